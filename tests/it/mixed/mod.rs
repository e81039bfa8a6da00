//! Layouts of several rules, with groups that change their hyperparameters or are frozen: on the GPU and on
//! the CPU, in flat slices and tensor by tensor.

mod changes;
mod frozen;
mod rules;
mod together;

use crate::common::Random;
use cpu_harness::{CpuRun, Form, cpu_slot};
use harness::{Gpu, GpuRun};
use std::collections::BTreeMap;
use wgpu_optim::{
    AnyRule, ChangeError, Clip, DynRule, Format, Group, Layout, Options, Report, Schedule, Step,
};

/// A device and a form of the tensors.
#[derive(Clone, Copy, Debug)]
struct Way<'a> {
    /// The CPU, if there is none.
    gpu: Option<&'a Gpu>,
    /// Whether tensors are handed over one by one.
    each: bool,
}

/// All ways to run: those of the CPU, and those of the GPU if there is one.
fn ways(gpu: Option<&Gpu>) -> Vec<Way<'_>> {
    let devices = [None, gpu];
    let devices = &devices[..1 + usize::from(gpu.is_some())];
    devices.iter().flat_map(|&gpu| [false, true].map(|each| Way { gpu, each })).collect()
}

/// A run on any device.
enum Run<'a> {
    Gpu(Box<GpuRun<'a>>),
    Cpu(Box<CpuRun>),
}

/// An expression of a run, on whichever device it is.
macro_rules! of {
    ($run:expr, $own:ident => $value:expr) => {
        match $run {
            Run::Gpu($own) => $value,
            Run::Cpu($own) => $value,
        }
    };
}

impl<'a> Way<'a> {
    fn name(self) -> String {
        format!("{}, {}", self.gpu.map_or("CPU", |_| "GPU"), if self.each { "each" } else { "flat" })
    }

    /// A run from parameters that reach at least as far as the layout.
    fn run(self, layout: &Layout, options: Options, start: &[f32]) -> Run<'a> {
        let start = &start[..layout.len() as usize];
        match self.gpu {
            Some(gpu) => {
                let new = if self.each { GpuRun::each } else { GpuRun::new };
                Run::Gpu(Box::new(new(gpu, layout.clone(), options, start)))
            }
            None => {
                let form = if self.each { Form::Each { backwards: true } } else { Form::Flat };
                Run::Cpu(Box::new(CpuRun { form, ..CpuRun::new(layout.clone(), options, start) }))
            }
        }
    }
}

impl Run<'_> {
    fn layout(&self) -> &Layout {
        of!(self, run => run.optimizer.layout())
    }

    /// One step, with gradients that reach at least as far as the layout.
    fn step(&mut self, gradients: &[f32], step: impl Into<Step>) -> Option<Report> {
        let gradients = &gradients[..self.layout().len() as usize];
        of!(self, run => run.step(gradients, step))
    }

    /// The codes of the gradients, as the last step has left them.
    fn gradients(&self) -> Vec<u32> {
        match self {
            Self::Gpu(run) => {
                assert_eq!(run.optimizer.options().grads, Format::F32);
                run.grads().into_iter().map(f32::to_bits).collect()
            }
            Self::Cpu(run) => run.grads.codes(),
        }
    }

    /// The codes of the parameters.
    fn params(&self) -> Vec<u32> {
        of!(self, run => run.codes())
    }

    /// A slot in the flat space; `None` if no tensor has it.
    fn slot(&self, name: &str) -> Option<Vec<u32>> {
        match self {
            Self::Gpu(run) => harness::slot(run.gpu, &run.optimizer, name),
            Self::Cpu(run) => cpu_slot(&run.optimizer, name),
        }
    }

    /// Parameters and everything kept of each tensor.
    fn bits(&self) -> Bits {
        let (layout, params) = (self.layout(), self.params());
        let mut bits = Bits::new();
        let mut insert = |tensor: &wgpu_optim::Tensor, slot: &str, flat: &[u32]| {
            bits.insert((tensor.name.clone(), slot.to_owned()), flat[tensor.range()].to_vec());
        };
        for tensor in layout.tensors() {
            insert(tensor, "param", &params);
        }
        for name in layout.slot_names() {
            let Some(flat) = self.slot(name).filter(|flat| !flat.is_empty()) else { continue };
            let keeps = |tensor: &&wgpu_optim::Tensor| layout.kept_slots(tensor).any(|kept| kept == name);
            layout.tensors().iter().filter(keeps).for_each(|tensor| insert(tensor, name, &flat));
        }
        for name in ["ema", "master", "remainder"] {
            let Some(flat) = self.slot(name).filter(|flat| !flat.is_empty()) else { continue };
            layout.tensors().iter().for_each(|tensor| insert(tensor, name, &flat));
        }
        bits
    }

    /// Overwrites parameters and state with those of another run: both in f32, and of the rules' slots alone.
    fn take_over(&mut self, from: &Run<'_>) {
        let numbers = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect::<Vec<f32>>();
        let layout = self.layout().clone();
        let params = numbers(from.params());
        of!(self, run => run.write_params(&params[..layout.len() as usize]));
        for name in layout.slot_names() {
            let Some(flat) = from.slot(name).filter(|flat| !flat.is_empty()).map(numbers) else { continue };
            for tensor in layout.tensors() {
                if layout.kept_slots(tensor).all(|kept| kept != name) {
                    continue;
                }
                let own = &flat[tensor.range()];
                match self {
                    Self::Gpu(run) => {
                        run.optimizer.write_state(&run.gpu.queue, name, &tensor.name, own).unwrap();
                    }
                    Self::Cpu(run) => run.optimizer.write_state(name, &tensor.name, own).unwrap(),
                }
            }
        }
    }

    fn set_rule(&mut self, group: &str, rule: impl Into<DynRule>) -> Result<(), ChangeError> {
        let rule = rule.into();
        of!(self, run => run.optimizer.set_rule(group, rule))
    }

    fn set_lr_factor(&mut self, group: &str, factor: impl Into<Schedule>) -> Result<(), ChangeError> {
        let factor = factor.into();
        of!(self, run => run.optimizer.set_lr_factor(group, factor))
    }

    fn set_clip(&mut self, clip: Clip) -> Result<(), ChangeError> {
        of!(self, run => run.optimizer.set_clip(clip))
    }

    fn set_frozen(&mut self, group: &str, frozen: bool) -> Result<(), ChangeError> {
        of!(self, run => if frozen { run.optimizer.freeze(group) } else { run.optimizer.unfreeze(group) })
    }
}

/// The bits of everything kept, by tensor and slot.
type Bits = BTreeMap<(String, String), Vec<u32>>;

/// Fails unless `all` has everything that `part` has, bit for bit.
fn assert_has(all: &Bits, part: &Bits, context: &str) {
    for ((tensor, slot), want) in part {
        let got = &all[&(tensor.clone(), slot.clone())];
        let different = got.iter().zip(want).position(|(got, want)| got != want);
        if let Some(i) = different {
            panic!("{context}: {slot}[{i}] of {tensor} is {:#x} and not {:#x}", got[i], want[i]);
        }
        assert_eq!(got.len(), want.len(), "{context}: {slot} of {tensor}");
    }
}

/// The layout of some of the groups, each tensor at its place.
fn only(layout: &Layout, keep: impl Fn(&Group) -> bool) -> Layout {
    let groups = layout.groups().iter().enumerate().filter(|(_, group)| keep(group)).map(|(nth, group)| {
        let new = Group::new(group.name(), group.rule().clone()).lr_factor(group.factor().clone());
        let tensors = layout.tensors().iter().filter(|tensor| tensor.group == nth);
        tensors.fold(new.frozen(group.is_frozen()), |new, tensor| {
            new.tensor_at(&tensor.name, &tensor.shape, tensor.offset)
        })
    });
    Layout::new(groups).unwrap()
}

/// A group of each rule, called like it: three tensors each, by turns in the flat space, behind each other or
/// each at a vector.
fn zoo(rules: &[AnyRule], packed: bool) -> Layout {
    let mut groups: Vec<_> = rules.iter().map(|rule| Group::new(rule.name(), *rule)).collect();
    let mut at = 0;
    for (i, len) in [5, 33, 130, 1, 64, 7, 258].into_iter().cycle().take(3 * rules.len()).enumerate() {
        let group = &mut groups[i % rules.len()];
        let name = format!("{}.{}", group.name(), i / rules.len());
        *group = group.clone().tensor_at(name, [len], at);
        at += len;
        if !packed {
            at = at.next_multiple_of(4);
        }
    }
    Layout::new(groups).unwrap()
}

/// Numbers of ordinary size: 0.5 to 1, of both signs.
fn ordinary(random: &mut Random, len: usize) -> Vec<f32> {
    let sign = |bits: u64| if bits.is_multiple_of(2) { 1.0 } else { -1.0 };
    (0..len).map(|_| sign(random.bits()) * (0.5 + 0.5 * random.unit() as f32)).collect()
}

/// Gradients with NaN in the gaps between tensors, which no step may read.
fn with_gaps(layout: &Layout, gradients: &[f32]) -> Vec<f32> {
    let mut gaps = vec![f32::NAN; layout.len() as usize];
    for tensor in layout.tensors() {
        gaps[tensor.range()].copy_from_slice(&gradients[tensor.range()]);
    }
    gaps
}

//! Checks a device against the f64 reference, step by step, on random data.

use crate::device::{Device, Error, Label, fits};
use crate::engine::{self, Engine};
use crate::presets::Preset;
use crate::rules::{BuiltIn, RuleVisitor, by_name};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use wgpu_optim::check::{Checker, Deviation, Snapshot};
use wgpu_optim::{Format, Group, Layout, Options, Step, Twin};

/// Elements between two tensors that belong to none: not a multiple of a vector's width, and the device must not touch them.
const GAP: u64 = 5;
/// Share of parameters and gradients that are zero.
const ZEROS: f64 = 0.05;

/// How much to check.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Parameters.
    pub elements: u64,
    /// Steps.
    pub steps: u64,
    /// Of the random numbers.
    pub seed: u64,
    /// How everything is stored.
    pub storage: Options,
}

/// The worst element of a check.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The rule.
    pub rule: &'static str,
    /// Which configuration of it.
    pub variant: &'static str,
    /// Where it ran.
    #[serde(flatten)]
    pub label: Label,
    /// Parameters.
    pub elements: u64,
    /// Steps.
    pub steps: u64,
    /// Of the random numbers.
    pub seed: u64,
    /// What is allowed.
    pub budget_ulps: f64,
    /// What was found; infinite (in JSON: null) where only one of the two values is finite.
    pub worst_ulps: f64,
    /// `param`, a slot, or `padding`.
    pub what: &'static str,
    /// The element, in the flat space.
    pub index: u64,
    /// What the device has there.
    pub got: f32,
    /// What the reference has.
    pub want: f64,
    /// Whether the worst is within what is allowed.
    pub pass: bool,
}

/// Checks configuration `preset` of `rule`; `tick` is called after every step. `None` if there is no such rule.
pub fn verify(
    rule: &str,
    preset: Preset,
    device: &Device,
    request: Request,
    tick: impl FnMut(),
) -> Option<Result<Row, Error>> {
    by_name(rule, Verify { preset, device, request, tick })
}

struct Verify<'a, F> {
    preset: Preset,
    device: &'a Device,
    request: Request,
    tick: F,
}

impl<F: FnMut()> RuleVisitor for Verify<'_, F> {
    type Output = Result<Row, Error>;

    fn visit<R: BuiltIn>(mut self) -> Self::Output {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(self.request.seed);
        let layout = layout::<R>(self.request.elements, self.preset)?;
        if let Device::Gpu(gpu) = self.device {
            fits(gpu, layout.len())?;
        }
        let params = values(&mut rng, layout.len(), self.request.storage.params);
        let worst = match self.device {
            Device::Gpu(gpu) => {
                let engine = engine::Device::new(gpu, layout, &params, self.request.storage)?;
                self.check(engine, &params, &mut rng)
            }
            Device::Cpu => {
                self.check(engine::Host::new(layout, &params, self.request.storage)?, &params, &mut rng)
            }
        }?;
        Ok(Row {
            rule: R::NAME,
            variant: self.preset.name,
            label: self.device.label(),
            elements: self.request.elements,
            steps: self.request.steps,
            seed: self.request.seed,
            budget_ulps: R::MAX_ULPS,
            worst_ulps: worst.ulps,
            what: worst.what,
            index: worst.index,
            got: worst.got,
            want: worst.want,
            pass: worst.ulps <= R::MAX_ULPS,
        })
    }
}

impl<F: FnMut()> Verify<'_, F> {
    fn check<R: Twin>(
        &mut self,
        mut engine: impl Engine<R, f32>,
        params: &[f32],
        rng: &mut Xoshiro256PlusPlus,
    ) -> Result<Deviation, Error> {
        let grads = self.request.storage.grads;
        let mut checker = Checker::new(engine.layout().clone()).stored(self.request.storage);
        // Nothing more is kept before the first step.
        let mut before = Snapshot { params: params.to_vec(), ..Snapshot::from(engine.values()) };
        let mut worst: Option<Deviation> = None;
        for _ in 0..self.request.steps {
            let grads = values(rng, params.len() as u64, grads);
            let step = Step::from(R::DEFAULT_LR * 10f64.powf(rng.random_range(-1.0..1.0)));
            engine.step(&grads, step)?;
            let after = Snapshot::from(engine.values());
            let found = checker.step(&before, &grads, step, &after)?;
            let found = touched(engine.layout(), params, &after.params).unwrap_or(found);
            if worst.as_ref().is_none_or(|worst| found.ulps > worst.ulps) {
                worst = Some(found);
            }
            before = after;
            (self.tick)();
        }
        // Without a step there is nothing to be wrong.
        Ok(worst.unwrap_or(Deviation { what: "param", index: 0, got: 0.0, want: 0.0, ulps: 0.0 }))
    }
}

/// An element between tensors that has changed.
fn touched<R: Twin>(layout: &Layout<R>, before: &[f32], after: &[f32]) -> Option<Deviation> {
    let mut end = 0;
    for tensor in layout.by_offset() {
        for i in end as usize..tensor.offset as usize {
            if before[i].to_bits() != after[i].to_bits() {
                return Some(Deviation {
                    what: "padding",
                    index: i as u64,
                    got: after[i],
                    want: before[i].into(),
                    ulps: f64::INFINITY,
                });
            }
        }
        end = tensor.end();
    }
    None
}

/// Tensors of odd sizes in two groups that alternate, with a gap between the first and the second.
fn layout<R: BuiltIn>(elements: u64, preset: Preset) -> Result<Layout<R>, wgpu_optim::Error> {
    let first = Group::new("first", preset.rule::<R>());
    let second = preset.with::<R>(r#"{"weight_decay": 0.1}"#);
    let mut groups = [(first, 0), (Group::new("second", second).lr_factor(0.5), 0)];
    let (mut left, mut offset, mut i) = (elements, 0, 0);
    let part = |divisor| (elements / divisor) | 1;
    let sizes = [part(2), part(5), 1, 3, part(7)].into_iter();
    for size in sizes.chain([elements]) {
        let size = size.min(left);
        if size == 0 {
            break;
        }
        let (group, tensors) = &mut groups[i % 2];
        *group = group.clone().tensor_at(format!("tensor {i}"), [size], offset);
        *tensors += 1;
        left -= size;
        offset += size + if i == 0 { GAP } else { 0 };
        i += 1;
    }
    Layout::new(groups.into_iter().filter(|(_, tensors)| *tensors > 0).map(|(group, _)| group))
}

/// Values of either sign with magnitudes 10^U(−6, 3), some of them zero, as `format` has them.
fn values(rng: &mut Xoshiro256PlusPlus, len: u64, format: Format) -> Vec<f32> {
    let value = |_| {
        if rng.random_bool(ZEROS) {
            return 0.0;
        }
        let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
        format.decode(format.encode(sign * 10f32.powf(rng.random_range(-6.0..3.0))))
    };
    (0..len).map(value).collect()
}

//! Checkpoints: a run that one process saves continues in another one without a difference.

mod elsewhere;
mod offloaded;
mod process;
mod ways;

use crate::common::{Random, cases, cases_of, lr};
use crate::formats::{SEED, odd};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use ways::{arounds, device_options, host_options};
use wgpu_optim::checkpoint::{self, Engine, Load, Loaded, Parameters, Save};
use wgpu_optim::offload::Offload;
use wgpu_optim::rules::Kind;
use wgpu_optim::{
    AdamW, AnyRule, Clip, DynRule, Ema, Format, Group, Lamb, Layout, LossScale, Master, NAdam, Options,
    Report, Rounding, Sgd, Step, cpu, wgpu,
};

/// Steps before the save, and after it.
const HALF: usize = 10;

/// Of 2 × `HALF` steps, those with a gradient that is not finite, in one case and the next: with one right
/// before the save, and with good steps before it.
const OVERFLOWS: [[usize; 4]; 2] = [[0, 4, 9, 12], [0, 4, 7, 12]];

/// A directory of its own, removed at the end. It is in memory where that is possible: every save waits for
/// the disk, which is not tested here.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
        let path = parent.join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that a step depends on or changes, bit for bit, by name.
type Bits = BTreeMap<String, Vec<u32>>;

/// A run on either engine.
trait Run {
    type Engine<'e>: Engine
    where
        Self: 'e;

    /// It with its parameters.
    fn engine(&mut self) -> Self::Engine<'_>;
    /// Does not wait for a device.
    fn take(&mut self, grads: &[f32], step: Step);
    /// Everything that is kept, bit for bit; and reports.
    fn bits(&mut self) -> Bits;

    fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default()).unwrap();
    }

    fn load(&mut self, path: &Path) -> Loaded {
        checkpoint::load(&mut self.engine(), path, &Load::default()).unwrap()
    }
}

/// Every slot that a rule or an option keeps.
fn names(layout: &Layout) -> Vec<&'static str> {
    [layout.slot_names(), vec!["master", "remainder", "ema"]].concat()
}

/// Everything that a checkpoint of an engine says beside its tensors, their places and their digest: steps,
/// carries, loss scale.
fn record<E: Engine>(engine: &mut E) -> Value {
    let mut bytes = Vec::new();
    checkpoint::save_to(engine, &mut bytes, &Save::default()).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut record: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["wgpu_optim"]).unwrap();
    for group in record["groups"].as_array_mut().unwrap() {
        group.as_object_mut().unwrap().remove("tensors").unwrap();
    }
    record.as_object_mut().unwrap().remove("crc32c").unwrap();
    record
}

/// The record, and reports of the second half.
fn others(record: &Value, reports: &[Report]) -> [(String, Vec<u32>); 2] {
    let reports: Vec<_> = reports.iter().filter(|report| report.step >= HALF as u64).collect();
    let bits = |text: String| text.bytes().map(u32::from).collect();
    [("record".into(), bits(record.to_string())), ("reports".into(), bits(format!("{reports:?}")))]
}

impl Run for GpuRun<'_> {
    type Engine<'e>
        = checkpoint::Gpu<'e>
    where
        Self: 'e;

    fn engine(&mut self) -> checkpoint::Gpu<'_> {
        checkpoint::Gpu::new(&mut self.optimizer, &self.gpu.queue).parameters(Parameters::flat(&self.params))
    }

    fn take(&mut self, grads: &[f32], step: Step) {
        self.submit(grads, step);
    }

    fn bits(&mut self) -> Bits {
        let record = record(&mut self.engine());
        let mut bits = Bits::from([("param".to_owned(), self.codes())]);
        for name in names(self.optimizer.layout()) {
            // All words of all buffers: codes and scales of blocks are among them.
            let mut seen: Vec<wgpu::Buffer> = Vec::new();
            for tensor in self.optimizer.layout().tensors() {
                for range in self.optimizer.state(name, &tensor.name).into_iter().flatten() {
                    if !seen.contains(range.buffer) {
                        let words = self.gpu.read_bits(range.buffer, 0, (range.buffer.size() / 4) as usize);
                        bits.entry(name.to_owned()).or_default().extend(words);
                        seen.push(range.buffer.clone());
                    }
                }
            }
        }
        let reports: Vec<_> = std::iter::from_fn(|| self.optimizer.take_report()).collect();
        bits.extend(others(&record, &reports));
        bits
    }
}

/// A run on the CPU, and its reports.
struct Host {
    run: CpuRun,
    reports: Vec<Report>,
}

impl Host {
    fn new(layout: Layout, options: Options, params: &[f32]) -> Self {
        Self { run: CpuRun::new(layout, options, params), reports: Vec::new() }
    }
}

impl Run for Host {
    type Engine<'e>
        = checkpoint::Cpu<'e>
    where
        Self: 'e;

    fn engine(&mut self) -> checkpoint::Cpu<'_> {
        checkpoint::Cpu::new(&mut self.run.optimizer).parameters(self.run.params.params())
    }

    fn take(&mut self, grads: &[f32], step: Step) {
        self.reports.extend(self.run.step(grads, step));
    }

    fn bits(&mut self) -> Bits {
        let record = record(&mut self.engine());
        let floats = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let halves = |x: &[u16]| x.iter().map(|&x| x.into()).collect::<Vec<_>>();
        let mut bits = Bits::from([("param".to_owned(), self.run.codes())]);
        let optimizer = &self.run.optimizer;
        for name in names(optimizer.layout()) {
            for tensor in optimizer.layout().tensors() {
                let Ok(Some(state)) = optimizer.state(name, &tensor.name) else { continue };
                bits.entry(name.to_owned()).or_default().extend(match state {
                    cpu::State::F32(x) => floats(x),
                    cpu::State::U16(x) => halves(x),
                    cpu::State::Q8(x, scales) => {
                        x.iter().map(|&x| x.into()).chain(scales.iter().copied()).collect()
                    }
                });
            }
        }
        bits.extend(others(&record, &self.reports));
        bits
    }
}

fn assert_same(got: &Bits, want: &Bits, context: &str) {
    assert!(got.keys().eq(want.keys()), "{context}: {:?} and {:?}", got.keys(), want.keys());
    for (name, want) in want {
        let got = &got[name];
        assert_eq!(got.len(), want.len(), "{context}: {name}");
        if let Some(i) = got.iter().zip(want).position(|(got, want)| got != want) {
            panic!("{context}: {name}[{i}] = {:#x}, in one run {:#x}", got[i], want[i]);
        }
    }
}

fn gradients(len: usize, format: Format, overflows: &[usize]) -> Vec<Vec<f32>> {
    let mut random = Random::new(17);
    let of_step = |t| {
        let mut grads: Vec<f32> =
            (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect();
        if overflows.contains(&t) {
            grads[3] = f32::INFINITY;
        }
        grads
    };
    (0..2 * HALF).map(of_step).collect()
}

/// Several rules whose groups alternate, with gaps, and a group that is frozen.
fn mixed() -> Layout {
    let momentum = Sgd { momentum: 0.9, ..Sgd::default() };
    Layout::new([
        Group::new("adamw", AdamW::default()).tensor_at("a", [301], 0).tensor_at("d", [1_030], 700),
        Group::new("lamb", Lamb::default()).tensor_at("b", [7], 302).tensor_at("e", [33], 1_732),
        Group::new("sgd", momentum).lr_factor(0.5).tensor_at("c", [250], 312).tensor_at("f", [5], 1_768),
        Group::new("nadam", NAdam::default()).tensor_at("g", [50], 1_774),
        Group::new("frozen", NAdam::default()).frozen(true).tensor_at("h", [50], 1_824),
    ])
    .unwrap()
}

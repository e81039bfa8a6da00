//! Checkpoints: a run that one process saves continues in another one without a difference.

mod elsewhere;
mod offloaded;
mod process;
mod ways;

use crate::common::{Random, cases, cases_of, lr};
use crate::formats::{SEED, odd};
use harness::Gpu;
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
    AdamW, AnyRule, Bound, Clip, DynRule, Ema, Format, Group, Lamb, Layout, LossScale, Master, NAdam,
    Optimizer, Options, Report, Rounding, Sgd, Step, Tensors, cpu, wgpu,
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
    fn step(&mut self, grads: &[f32], step: Step);
    fn save(&mut self, path: &Path);
    fn load(&mut self, path: &Path) -> Loaded;
    fn bits(&mut self) -> Bits;
}

/// Every slot that a rule or an option keeps.
fn names(layout: &Layout) -> Vec<&'static str> {
    [layout.slot_names(), vec!["master", "remainder", "ema"]].concat()
}

/// Everything that a checkpoint of an engine says beside its tensors and their places: steps, carries, loss
/// scale.
fn record<E: Engine>(engine: &mut E) -> Value {
    let mut bytes = Vec::new();
    checkpoint::save_to(engine, &mut bytes, &Save::default()).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut record: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["wgpu_optim"]).unwrap();
    for group in record["groups"].as_array_mut().unwrap() {
        group.as_object_mut().unwrap().remove("tensors").unwrap();
    }
    record
}

/// The record, and reports of the second half.
fn others(record: &Value, reports: &[Report]) -> [(String, Vec<u32>); 2] {
    let reports: Vec<_> = reports.iter().filter(|report| report.step >= HALF as u64).collect();
    let bits = |text: String| text.bytes().map(u32::from).collect();
    [("record".into(), bits(record.to_string())), ("reports".into(), bits(format!("{reports:?}")))]
}

/// A run on the GPU in flat buffers.
struct Session<'a> {
    gpu: &'a Gpu,
    optimizer: Optimizer,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a> Session<'a> {
    fn new(gpu: &'a Gpu, layout: &Layout, options: Options, params: &[f32]) -> Self {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let p = gpu.upload_as(options.params, params);
        let g = gpu.upload_as(options.grads, &vec![0.0; params.len()]);
        let bound = optimizer.bind(&Tensors::flat(&p, &g)).unwrap();
        Self { gpu, optimizer, params: p, grads: g, bound }
    }

    fn engine(&mut self) -> checkpoint::Gpu<'_> {
        checkpoint::Gpu::new(&mut self.optimizer, &self.gpu.queue).parameters(Parameters::flat(&self.params))
    }
}

impl Run for Session<'_> {
    /// Submits and does not wait.
    fn step(&mut self, grads: &[f32], step: Step) {
        self.gpu.write_as(self.optimizer.options().grads, &self.grads, grads);
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step).unwrap();
        self.gpu.queue.submit([encoder.finish()]);
    }

    fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default()).unwrap();
    }

    fn load(&mut self, path: &Path) -> Loaded {
        checkpoint::load(&mut self.engine(), path, &Load::default()).unwrap()
    }

    fn bits(&mut self) -> Bits {
        let record = record(&mut self.engine());
        let params = harness::param_codes(self.gpu, &self.optimizer, &self.params, 0);
        let mut bits = Bits::from([("param".to_owned(), params)]);
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

/// A run on the CPU, with parameters of 4 bytes or of 2.
struct Host {
    optimizer: cpu::Optimizer,
    wide: Vec<f32>,
    narrow: Vec<u16>,
    reports: Vec<Report>,
}

fn codes(format: Format, values: &[f32]) -> Vec<u16> {
    values.iter().map(|x| format.encode(*x) as u16).collect()
}

impl Host {
    fn new(layout: &Layout, options: Options, params: &[f32]) -> Self {
        let optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        Self { optimizer, wide: params.to_vec(), narrow: codes(options.params, params), reports: Vec::new() }
    }

    fn engine(&mut self) -> checkpoint::Cpu<'_> {
        let wide = self.optimizer.options().params == Format::F32;
        let engine = checkpoint::Cpu::new(&mut self.optimizer);
        if wide { engine.parameters(&mut self.wide) } else { engine.parameters(&mut self.narrow) }
    }
}

impl Run for Host {
    fn step(&mut self, grads: &[f32], step: Step) {
        let Options { params, grads: format, .. } = *self.optimizer.options();
        // Gradients may be set to zero.
        let (mut g4, mut g2) = (grads.to_vec(), codes(format, grads));
        let (p4, p2) = (&mut self.wide, &mut self.narrow);
        let tensors = match (params == Format::F32, format == Format::F32) {
            (true, true) => cpu::Tensors::flat(p4, &mut g4),
            (true, false) => cpu::Tensors::flat(p4, &mut g2),
            (false, true) => cpu::Tensors::flat(p2, &mut g4),
            (false, false) => cpu::Tensors::flat(p2, &mut g2),
        };
        self.reports.extend(self.optimizer.step(tensors, step).unwrap());
    }

    fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default()).unwrap();
    }

    fn load(&mut self, path: &Path) -> Loaded {
        checkpoint::load(&mut self.engine(), path, &Load::default()).unwrap()
    }

    fn bits(&mut self) -> Bits {
        let record = record(&mut self.engine());
        let floats = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let halves = |x: &[u16]| x.iter().map(|&x| x.into()).collect::<Vec<_>>();
        let wide = self.optimizer.options().params == Format::F32;
        let params = if wide { floats(&self.wide) } else { halves(&self.narrow) };
        let mut bits = Bits::from([("param".to_owned(), params)]);
        for name in names(self.optimizer.layout()) {
            for tensor in self.optimizer.layout().tensors() {
                let Ok(Some(state)) = self.optimizer.state(name, &tensor.name) else { continue };
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

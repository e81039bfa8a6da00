//! Checkpoints: what is saved and loaded is what was, and a run goes on from it as if nothing had happened.

use crate::common::{Cases, Random, lr};
use crate::formats::{odd, ways};
use harness::Gpu;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{self, Load, Parameters, Save};
use wgpu_optim::offload::Offload;
use wgpu_optim::rules::slots;
use wgpu_optim::{
    Bound, Clip, Ema, Format, Layout, LossScale, Optimizer, Options, Rule, Tensors, cpu, for_each_rule, wgpu,
};

/// Steps before the save, and after it.
const HALF: usize = 10;
/// Of 2 × `HALF` steps, those with a gradient that is not finite.
const OVERFLOWS: [usize; 4] = [0, 4, 9, 12];

/// A directory of its own, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
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

fn quiet(_: u64, _: u64) {}

/// A run on the GPU in flat buffers.
struct Session<'a, R> {
    gpu: &'a Gpu,
    optimizer: Optimizer<R>,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a, R: Rule + Serialize + DeserializeOwned> Session<'a, R> {
    fn new(gpu: &'a Gpu, layout: &Layout<R>, options: Options, params: &[f32]) -> Self {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let p = gpu.upload_as(options.params, params);
        let g = gpu.upload_as(options.grads, &vec![0.0; params.len()]);
        let bound = optimizer.bind(&Tensors::flat(&p, &g)).unwrap();
        Self { gpu, optimizer, params: p, grads: g, bound }
    }

    /// Submits a step and does not wait for it.
    fn step(&mut self, grads: &[f32], lr: f64) {
        self.gpu.write_as(self.optimizer.options().grads, &self.grads, grads);
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, lr).unwrap();
        self.gpu.queue.submit([encoder.finish()]);
    }

    fn engine(&mut self) -> checkpoint::Gpu<'_, R> {
        checkpoint::Gpu::new(&mut self.optimizer, &self.gpu.queue).parameters(Parameters::flat(&self.params))
    }

    fn save(&mut self, path: &Path) {
        checkpoint::save(&mut self.engine(), path, &Save::default(), &mut quiet).unwrap();
    }

    fn load(&mut self, path: &Path, load: &Load) -> Result<checkpoint::Loaded, checkpoint::Error> {
        checkpoint::load(&mut self.engine(), path, load, &mut quiet)
    }

    /// Every bit that a step depends on or changes: by name.
    fn bits(&mut self) -> Vec<(String, Vec<u32>)> {
        self.gpu.wait();
        let mut bits =
            vec![("param".to_owned(), harness::param_codes(self.gpu, &self.optimizer, &self.params, 0))];
        for name in slots::<R>().iter().copied().chain(["master", "remainder", "ema"]) {
            if let Some(codes) = harness::slot(self.gpu, &self.optimizer, name) {
                bits.push((name.into(), codes));
            }
        }
        if let Some(scale) = self.optimizer.loss_scale() {
            bits.push(("loss scale".into(), self.gpu.read_bits(scale, 0, 3)));
        }
        bits
    }
}

fn assert_same(a: &[(String, Vec<u32>)], b: &[(String, Vec<u32>)], context: &str) {
    assert_eq!(a.len(), b.len(), "{context}");
    for ((name, a), (_, b)) in a.iter().zip(b) {
        let different = a.iter().zip(b).position(|(a, b)| a != b);
        if let Some(i) = different {
            panic!("{context}: {name}[{i}] = {:#x} and {:#x}", a[i], b[i]);
        }
        assert_eq!(a.len(), b.len(), "{context}: {name}");
    }
}

fn gradients(len: usize, format: Format, overflows: bool) -> Vec<Vec<f32>> {
    let mut random = Random::new(17);
    let of_step = |t| {
        let mut grads: Vec<f32> =
            (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect();
        if overflows && OVERFLOWS.contains(&t) {
            grads[3] = f32::INFINITY;
        }
        grads
    };
    (0..2 * HALF).map(of_step).collect()
}

/// What stands around the rule, in combinations that have every option once.
fn arounds() -> Vec<Options> {
    let none = Options::default();
    vec![
        none,
        Options { skip_nonfinite: true, ema: Some(Ema { decay: 0.9, debias: true }), ..none },
        Options {
            loss_scale: Some(LossScale { growth_interval: 3, ..LossScale::default() }),
            clip: Some(Clip::GlobalNorm(1.0)),
            norms: true,
            zero_gradients: true,
            ..none
        },
        Options {
            clip: Some(Clip::GroupNorm(1.0)),
            ema: Some(Ema { decay: 0.5, debias: false }),
            report: true,
            ..none
        },
    ]
}

fn check<R: Cases + Serialize + DeserializeOwned>(
    gpu: &Gpu,
    case: (&str, R),
    options: Options,
    directory: &Directory,
) {
    let layout = odd(case.1);
    let len = layout.len() as usize;
    let context = format!("{} {} {options:?}", R::NAME, case.0);
    let grads = gradients(len, options.grads, options.skips());
    let mut random = Random::new(5);
    let start: Vec<f32> = (0..len).map(|_| random.value() * 0.1).collect();
    let mut whole = Session::new(gpu, &layout, options, &start);
    for (t, g) in grads.iter().enumerate().take(HALF) {
        whole.step(g, lr(t));
    }
    let path = directory.file(&format!("{}.safetensors", R::NAME));
    whole.save(&path);
    // A fresh one with other parameters; what lies between tensors is not in the file.
    let mut other = start.clone();
    layout.tensors().iter().for_each(|tensor| other[tensor.range()].fill(1.0));
    let mut second = Session::new(gpu, &layout, options, &other);
    let loaded = second.load(&path, &Load::default()).unwrap();
    let skipped = OVERFLOWS.iter().filter(|&&t| options.skips() && t < HALF).count();
    assert_eq!((loaded.steps, loaded.taken), (HALF as u64, (HALF - skipped) as u64), "{context}");
    assert_same(&second.bits(), &whole.bits(), &format!("{context}, loaded"));
    for (t, g) in grads.iter().enumerate().skip(HALF) {
        whole.step(g, lr(t));
        second.step(g, lr(t));
    }
    let (second_bits, whole_bits) = (second.bits(), whole.bits());
    assert_same(&second_bits, &whole_bits, &context);
    let reports = |session: &mut Session<'_, R>| {
        std::iter::from_fn(|| session.optimizer.take_report())
            .filter(|r| r.step >= HALF as u64)
            .collect::<Vec<_>>()
    };
    assert_eq!(reports(&mut second), reports(&mut whole), "{context}");
}

/// All rules with what stands around them.
#[test]
fn a_resumed_run_is_the_run() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("resume");
    macro_rules! all {
        ($($rule:ty),*) => { $(
            for case in <$rule as Cases>::cases() {
                check(&gpu, case, Options::default(), &directory);
            }
            for around in arounds() {
                check(&gpu, <$rule as Cases>::cases().pop().unwrap(), around, &directory);
            }
        )* };
    }
    for_each_rule!(all);
}

/// All formats, each with something around the rule.
fn stored() -> impl Iterator<Item = Options> {
    let formats = |options: &Options| [options.params, options.grads, options.states];
    let used: Vec<Format> = ways().iter().flat_map(formats).collect();
    assert!(Format::ALL.iter().all(|format| used.contains(format)), "a format is not tried");
    ways().into_iter().enumerate().map(|(i, way)| {
        let around = if i % 2 == 0 { arounds().swap_remove(1) } else { arounds().swap_remove(2) };
        let Options { params, grads, states, master, rounding, .. } = way;
        // Every third keeps small tensors in f32.
        let f32_states_below = [0, 0, 302][i % 3];
        Options { params, grads, states, master, rounding, f32_states_below, ..around }
    })
}

/// All rules in all formats.
#[test]
fn a_resumed_run_is_the_run_in_every_format() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("resume-formats");
    macro_rules! all {
        ($($rule:ty),*) => { $(
            for options in stored() {
                check(&gpu, <$rule as Cases>::cases().pop().unwrap(), options, &directory);
            }
        )* };
    }
    for_each_rule!(all);
}

/// The same on the CPU.
#[test]
fn a_resumed_run_is_the_run_on_the_cpu() {
    fn check<R: Cases + Serialize + DeserializeOwned>(case: (&str, R), options: Options, path: &Path) {
        let context = format!("{} {} {options:?}", R::NAME, case.0);
        let layout = odd(case.1);
        let len = layout.len() as usize;
        let grads = gradients(len, options.grads, options.skips());
        let run = |steps: std::ops::Range<usize>, load: bool, save: bool| {
            let mut optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
            let mut random = Random::new(5);
            let start: Vec<f32> = (0..len).map(|_| random.value() * 0.1).collect();
            let (mut wide, mut narrow) = (start.clone(), codes(options.params, &start));
            let narrow_grads: Vec<Vec<u16>> = grads.iter().map(|g| codes(options.grads, g)).collect();
            let is_wide = options.params == Format::F32;
            if load {
                let engine = checkpoint::Cpu::new(&mut optimizer);
                let mut engine =
                    if is_wide { engine.parameters(&mut wide) } else { engine.parameters(&mut narrow) };
                checkpoint::load(&mut engine, path, &Load::default(), &mut quiet).unwrap();
            }
            let mut reports = Vec::new();
            for t in steps {
                // Gradients may be set to zero.
                let (mut g4, mut g2) = (grads[t].clone(), narrow_grads[t].clone());
                let tensors = match (is_wide, options.grads == Format::F32) {
                    (true, true) => cpu::Tensors::flat(&mut wide, &mut g4),
                    (true, false) => cpu::Tensors::flat(&mut wide, &mut g2),
                    (false, true) => cpu::Tensors::flat(&mut narrow, &mut g4),
                    (false, false) => cpu::Tensors::flat(&mut narrow, &mut g2),
                };
                reports.push(optimizer.step(tensors, lr(t)).unwrap());
            }
            if save {
                let engine = checkpoint::Cpu::new(&mut optimizer);
                let mut engine =
                    if is_wide { engine.parameters(&mut wide) } else { engine.parameters(&mut narrow) };
                checkpoint::save(&mut engine, path, &Save::default(), &mut quiet).unwrap();
            }
            reports
        };
        // What is saved at the end is all that there is, so files are compared.
        let mut reports = run(0..2 * HALF, false, true);
        let whole = std::fs::read(path).unwrap();
        run(0..HALF, false, true);
        assert_eq!(run(HALF..2 * HALF, true, true), reports.split_off(HALF), "{context}");
        assert!(std::fs::read(path).unwrap() == whole, "{context}");
    }
    let directory = Directory::new("resume-cpu");
    let path = directory.file("run.safetensors");
    macro_rules! all {
        ($($rule:ty),*) => { $(
            for case in <$rule as Cases>::cases() {
                check(case, Options::default(), &path);
            }
            for options in arounds().into_iter().chain(stored()) {
                check(<$rule as Cases>::cases().pop().unwrap(), options, &path);
            }
        )* };
    }
    for_each_rule!(all);
}

/// State in host memory for a GPU: saved, loaded into another one, and gone on with; and a file of the GPU's own.
#[test]
fn a_resumed_run_is_the_run_offloaded() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("resume-offload");
    let layout = odd(wgpu_optim::NAdam::default());
    let len = layout.len() as usize;
    let start: Vec<f32> = (0..len).map(|i| i as f32 * 0.01).collect();
    type Engine = Offload<wgpu_optim::NAdam>;
    for (nth, options) in arounds().into_iter().enumerate() {
        let options = Options { zero_gradients: false, ..options };
        let grads = gradients(len, Format::F32, options.skips());
        let new = |start: &[f32]| {
            let offload = Offload::new(&gpu.device, layout.clone(), options, start.to_vec()).unwrap();
            (offload, gpu.upload(start), gpu.buffer(layout.buffer_size()))
        };
        let run = |(offload, p, g): &mut (Engine, wgpu::Buffer, wgpu::Buffer), t: usize| {
            gpu.write(g, 0, &grads[t]);
            crate::offload::step(&gpu, offload, p, g, lr(t))
        };
        let save = |offload: &mut Engine, name: &str| {
            let path = directory.file(&format!("{name}-{nth}.safetensors"));
            let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
            checkpoint::save(&mut engine, &path, &Save::default(), &mut quiet).unwrap();
            path
        };
        let load = |(offload, p, _): &mut (Engine, wgpu::Buffer, wgpu::Buffer), path: &Path| {
            let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
            checkpoint::load(&mut engine, path, &Load::default(), &mut quiet).unwrap();
            offload.upload(&gpu.queue, p).unwrap();
        };
        // All that there is, so files are compared.
        let same = |a: &Path, b: &Path| assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
        let mut whole = new(&start);
        for t in 0..HALF {
            run(&mut whole, t);
        }
        let half = save(&mut whole.0, "half");
        let mut second = new(&vec![7.0; len]);
        load(&mut second, &half);
        same(&save(&mut second.0, "again"), &half);
        for t in HALF..2 * HALF {
            assert_eq!(run(&mut second, t), run(&mut whole, t), "{options:?}, step {t}");
        }
        same(&save(&mut second.0, "second"), &save(&mut whole.0, "whole"));
        // What the device has is what the host has, but for what is nobody's.
        let device = gpu.read(&second.1, 0, len);
        for tensor in layout.tensors() {
            assert_eq!(device[tensor.range()], whole.0.params()[tensor.range()], "{}", tensor.name);
        }
        assert!(
            (0..len).any(|i| device[i] == 7.0 && !layout.tensors().iter().any(|t| t.range().contains(&i)))
        );

        // The GPU's run goes on here as it does on the CPU alone.
        let mut session = Session::new(&gpu, &layout, options, &start);
        grads[..HALF].iter().enumerate().for_each(|(t, g)| session.step(g, lr(t)));
        let path = directory.file(&format!("gpu-{nth}.safetensors"));
        session.save(&path);
        let mut offloaded = new(&vec![7.0; len]);
        load(&mut offloaded, &path);
        let mut alone = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        let mut params = vec![7.0; len];
        let mut engine = checkpoint::Cpu::new(&mut alone).parameters(&mut params);
        checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet).unwrap();
        for (t, grads) in grads.iter().enumerate().skip(HALF) {
            let want = alone.step(cpu::Tensors::flat(&mut params, grads), lr(t)).unwrap();
            assert_eq!(run(&mut offloaded, t), want, "{options:?}, step {t}");
        }
        let want = directory.file(&format!("alone-{nth}.safetensors"));
        let mut engine = checkpoint::Cpu::new(&mut alone).parameters(&mut params);
        checkpoint::save(&mut engine, &want, &Save::default(), &mut quiet).unwrap();
        same(&save(&mut offloaded.0, "offloaded"), &want);
    }
}

fn codes(format: Format, values: &[f32]) -> Vec<u16> {
    values.iter().map(|x| format.encode(*x) as u16).collect()
}

//! Options around the update: clipping, skipping, loss scale, averages, zeroed gradients.

mod accumulate;
mod clip;
mod ema;
mod in_flight;
mod loss_scale;
mod norms;
mod skip;

use crate::common::{Random, assert_same_bits, cases_of, lr, single};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun, Places};
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::{
    Adagrad, AdamW, Adan, AnyRule, BindError, ChangeError, Clip, DeviceError, DynRule, Ema, Group, Lamb,
    Lars, Layout, LossScale, NAdam, Optimizer, Options, OptionsError, Report, Sgd, Step, StepError, Tensors,
    View, cpu,
};

const SKIP: Options = Options { skip_nonfinite: true, ..Options::DEFAULT };

/// Two groups by turns, tensors of odd sizes, and a gap.
fn odd(rule: impl Into<DynRule>) -> Layout {
    let rule = rule.into();
    let first = Group::new("first", rule.clone()).tensor_at("a", [301], 0).tensor_at("c", [1_030], 310);
    let second =
        Group::new("second", rule).lr_factor(0.5).tensor_at("b", [7], 301).tensor_at("d", [5], 1_340);
    Layout::new([first, second]).unwrap()
}

/// Three groups by turns, so that most vectors are shared, and a tensor beyond a small binding.
fn by_turns(rule: impl Into<DynRule>) -> Layout {
    let rule = rule.into();
    let mut groups = ["a", "b", "c"].map(|name| Group::new(name, rule.clone()));
    let mut at = 0;
    for i in 0..40 {
        let len = if i == 19 { 40_000 } else { 1 + i * 7 % 50 };
        let group = &mut groups[i as usize % 3];
        *group = group.clone().tensor_at(format!("t{i}"), [len], at);
        at += len + i % 2;
    }
    Layout::new(groups).unwrap()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
}

/// All values of some of a layout's tensors, in the flat space.
fn gather(layout: &Layout, flat: &[f32], of: impl Fn(usize) -> bool) -> Vec<f32> {
    let tensors = layout.tensors().iter().filter(|t| of(t.group));
    tensors.flat_map(|t| flat[t.range()].iter().copied()).collect()
}

/// Each tensor in a place of its own, in pools of poison: its parameter and gradient at elements of different
/// alignment.
fn pooled<'a>(gpu: &'a Gpu, layout: &Layout, options: Options, start: &[f32]) -> GpuRun<'a> {
    let pool = || gpu.upload(&vec![f32::NAN; layout.len() as usize + 8]);
    let places = layout.tensors().iter().map(|t| [t.offset + 1, t.offset + 2]).collect();
    let run = GpuRun::over(gpu, layout.clone(), options, [pool(), pool()], Places::Pooled(places));
    run.write_params(start);
    run
}

/// A device of small bindings and one like any other.
fn roomy_and_cramped() -> [Option<Gpu>; 2] {
    let cramped = |limits: &mut wgpu::Limits| {
        limits.max_storage_buffer_binding_size = 1 << 16;
        limits.max_compute_workgroups_per_dimension = 40;
        limits.max_uniform_buffer_binding_size = 1 << 10;
    };
    [harness::test_gpu(), harness::test_gpu_with(cramped)]
}

/// Every WebGPU device has these limits. 8 storage bindings hold Adan's four states, an average and partial
/// results beside parameters and gradients.
#[test]
fn everything_at_once_with_the_least_limits() {
    let Some(gpu) = harness::test_gpu_with(|limits| *limits = wgpu::Limits::default()) else { return };
    let layout = by_turns(Adan::default());
    let ema = Some(Ema { decay: 0.9, debias: false });
    let options =
        Options { norms: true, clip: Some(Clip::GroupNorm(1.0)), zero_gradients: true, ema, ..SKIP };
    let len = layout.len() as usize;
    let mut run = GpuRun::new(&gpu, layout, options, &vec![1.0; len]);
    assert!(run.step(&vec![1.0; len], 0.1).unwrap().update_norm > Some(0.0));
    // A table in storage takes one more.
    let tensors =
        (0..3_000).fold(Group::new("g", Adan::default()), |g, i| g.tensor_at(format!("t{i}"), [3], i * 8));
    let mut optimizer =
        Optimizer::with_options(&gpu.device, Layout::new([tensors]).unwrap(), options).unwrap();
    let buffer = || gpu.buffer(3_000 * 8 * 4);
    let error = optimizer.bind(&Tensors::flat(&buffer(), &buffer())).unwrap_err();
    let limit = "max_storage_buffers_per_shader_stage";
    assert_eq!(error, BindError::Device(DeviceError::Limit { limit, value: 8, bound: 9 }));
}

/// One dispatch of each kind for any number of tensors. Without options there is the step's alone.
#[test]
fn dispatches_are_few() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut groups = [Group::new("a", AdamW::default()), Group::new("b", AdamW::default())];
    for i in 0..300u64 {
        let group = &mut groups[(i % 2) as usize];
        *group = group.clone().tensor_at(format!("t{i}"), [100 + i % 3], i * 104);
    }
    let layout = Layout::new(groups).unwrap();
    let all = Options {
        clip: Some(Clip::GlobalNorm(1.0)),
        loss_scale: Some(LossScale::default()),
        zero_gradients: true,
        ema: Some(Ema { decay: 0.99, debias: false }),
        ..SKIP
    };
    let cheap =
        Options { clip: Some(Clip::Value(1.0)), zero_gradients: true, ema: all.ema, ..Options::default() };
    let grouped = Options { clip: Some(Clip::GroupNorm(1.0)), ..all };
    let everything = Options { norms: true, ..grouped };
    for (options, dispatches) in
        [(Options::default(), 1), (cheap, 1), (SKIP, 3), (all, 3), (grouped, 4), (everything, 5)]
    {
        let zeros = vec![0.0; layout.len() as usize];
        let run = GpuRun::new(&gpu, layout.clone(), options, &zeros);
        assert_eq!(run.bound.dispatches(), dispatches, "{options:?}");
        // A layer-wise rule has a first phase, and one kernel between the phases.
        let group = layout.tensors().iter().fold(Group::new("all", Lamb::default()), |group, t| {
            group.tensor_at(&t.name, &t.shape, t.offset)
        });
        let run = GpuRun::new(&gpu, Layout::new([group]).unwrap(), options, &zeros);
        assert_eq!(run.bound.dispatches(), dispatches + 2, "{options:?}");
    }
}

#[test]
fn bad_options_and_gradient_scales() {
    let Some(gpu) = harness::test_gpu() else { return };
    let refused = |options: Options, field: &str| {
        let error = Optimizer::with_options(&gpu.device, single(Sgd::default(), 4), options).unwrap_err();
        assert!(matches!(&error, OptionsError::Field { field: found, .. } if *found == field), "{error}");
    };
    for bad in [0.0, -1.0, 1e-300, f64::NAN, f64::NEG_INFINITY, 1e39] {
        refused(Options { clip: Some(Clip::GlobalNorm(bad)), ..SKIP }, "clip.global_norm");
        refused(Options { clip: Some(Clip::GroupNorm(bad)), ..SKIP }, "clip.group_norm");
        refused(Options { clip: Some(Clip::Value(bad)), ..SKIP }, "clip.value");
    }
    refused(Options { clip: Some(Clip::Value(f64::INFINITY)), ..SKIP }, "clip.value");
    let scale = LossScale::default();
    let with = |scale| Options { loss_scale: Some(scale), ..SKIP };
    refused(with(LossScale { initial: 0.0, ..scale }), "loss_scale.initial");
    refused(with(LossScale { initial: f64::NAN, ..scale }), "loss_scale.initial");
    refused(with(LossScale { growth_factor: 0.5, ..scale }), "loss_scale.growth_factor");
    refused(with(LossScale { backoff_factor: 0.0, ..scale }), "loss_scale.backoff_factor");
    refused(with(LossScale { backoff_factor: 1.5, ..scale }), "loss_scale.backoff_factor");
    refused(with(LossScale { growth_interval: 0, ..scale }), "loss_scale.growth_interval");
    refused(with(LossScale { min: 0.0, ..scale }), "loss_scale.min");
    refused(with(LossScale { min: 8.0, max: 4.0, ..scale }), "loss_scale.max");
    for bad in [-0.1, 1.0, f64::NAN] {
        refused(Options { ema: Some(Ema { decay: bad, debias: false }), ..SKIP }, "ema.decay");
    }
    // A gradient scale needs no option.
    let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4), Options::default(), &[0.0; 4]);
    run.step(&[2.0; 4], Step::from(0.5).with_grad_scale(4.0));
    assert_eq!(run.snapshot().params, [-0.25; 4]);
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-40, 1e40] {
        let mut encoder = gpu.encoder();
        let step = Step::from(0.1).with_grad_scale(bad);
        let error = run.record(&mut encoder, step).unwrap_err();
        assert!(matches!(error, StepError::GradScale { .. }), "{error}");
        assert_eq!(run.optimizer.steps(), 1);
    }
}

//! What stands around the update: clipping, skipping, loss scale, averages, zeroed gradients.

use crate::common::{Cases, Random, assert_same_bits, lr, single};
use harness::{Gpu, snapshot};
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::check::Snapshot;
use wgpu_optim::{
    Adagrad, AdamW, Adan, Bound, Clip, Ema, Error, Format, Group, Lamb, Lars, Layout, LossScale, Master,
    NAdam, Optimizer, Options, Report, Rounding, Rule, Sgd, Step, Tensor, Tensors, View, cpu, for_each_rule,
};

/// A run whose gradients are written anew for every step.
struct Run<'a, R> {
    gpu: &'a Gpu,
    optimizer: Optimizer<R>,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a, R: Rule> Run<'a, R> {
    fn new(gpu: &'a Gpu, layout: Layout<R>, options: Options, params: &[f32]) -> Self {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout, options).unwrap();
        let (params, grads) = (gpu.upload(params), gpu.buffer((params.len() as u64).next_multiple_of(4) * 4));
        let bound = optimizer.bind(&Tensors::flat(&params, &grads)).unwrap();
        Self { gpu, optimizer, params, grads, bound }
    }

    /// Submits a step without waiting for it.
    fn submit(&mut self, grads: &[f32], step: impl Into<Step>) {
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step).unwrap();
        self.gpu.write(&self.grads, 0, grads);
        self.gpu.queue.submit([encoder.finish()]);
    }

    fn step(&mut self, grads: &[f32], step: impl Into<Step>) -> Option<Report> {
        self.submit(grads, step);
        self.gpu.wait();
        self.optimizer.take_report()
    }

    fn snapshot(&self) -> Snapshot {
        snapshot(self.gpu, &self.optimizer, &self.params, 0)
    }

    fn ema(&self, tensor: &str) -> Vec<f32> {
        let ranges = self.optimizer.state("ema", tensor).unwrap();
        ranges.iter().flat_map(|r| self.gpu.read(r.buffer, r.offset, r.len as usize)).collect()
    }
}

const SKIP: Options = Options {
    norms: false,
    divide: false,
    clip: None,
    skip_nonfinite: true,
    loss_scale: None,
    zero_gradients: false,
    ema: None,
    report: false,
    params: Format::F32,
    grads: Format::F32,
    states: Format::F32,
    f32_states_below: 0,
    master: Master::F32,
    rounding: Rounding::Nearest,
};

/// Two groups by turns, tensors of odd sizes, and a gap.
fn odd<R: Rule>(rule: R) -> Layout<R> {
    let first = Group::new("first", rule).tensor_at("a", [301], 0).tensor_at("c", [1_030], 310);
    let second =
        Group::new("second", rule).lr_factor(0.5).tensor_at("b", [7], 301).tensor_at("d", [5], 1_340);
    Layout::new([first, second]).unwrap()
}

/// Steps with gradients that are not finite leave no trace: the run equals, bit for bit, the one without them.
fn skipped_steps_leave_no_trace<R: Rule>(gpu: &Gpu, name: &str, rule: R, seed: u64, waiting: bool) {
    let layout = odd(rule);
    let len = layout.len() as usize;
    let mut random = Random::new(seed);
    let params = random.values(len);
    let clips = [None, Some(Clip::GlobalNorm(1.0)), Some(Clip::GroupNorm(1.0)), Some(Clip::Value(1.0))];
    let clip = clips[seed as usize % 4];
    let ema = Some(Ema { decay: 0.9, debias: true });
    let options = Options { ema, clip, norms: seed % 3 == 2, zero_gradients: seed % 2 == 1, ..SKIP };
    let mut dirty = Run::new(gpu, layout.clone(), options, &params);
    let mut clean = Run::new(gpu, layout.clone(), options, &params);
    let mut skipped = 0;
    for t in 0..12 {
        let mut grads = random.values(len);
        // Of every other run the first step too.
        let bad = if t == 0 { seed.is_multiple_of(2) } else { random.below(3) == 0 };
        if bad {
            let tensor = &layout.tensors()[random.below(4) as usize];
            let at = tensor.offset + random.below(tensor.len);
            let what = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)];
            grads[at as usize] = what[random.below(4) as usize];
            skipped += 1;
        } else {
            // What lies between the tensors is nobody's.
            grads[308] = f32::NAN;
            clean.submit(&grads, lr(t));
        }
        dirty.submit(&grads, lr(t));
        if waiting {
            gpu.wait();
        }
    }
    gpu.wait();
    let context = format!("{} {name}, seed {seed}", R::NAME);
    assert_same_bits(&dirty.snapshot(), &clean.snapshot(), &context);
    for tensor in layout.tensors() {
        assert_eq!(dirty.ema(&tensor.name), clean.ema(&tensor.name), "{context}: average of {}", tensor.name);
    }
    let last = std::iter::from_fn(|| dirty.optimizer.take_report()).last().unwrap();
    assert_eq!((last.step, last.skipped), (11, skipped), "{context}");
}

/// The same in buffers of single tensors and in chunks, and with a loss scale of which nothing is left where it is halved.
#[test]
fn skipped_steps_leave_no_trace_in_any_form_of_buffers() {
    fn test<R: Cases>(gpu: &Gpu) {
        let layout = by_turns(R::cases()[0].1);
        let len = layout.len() as usize;
        let params = Random::new(51).values(len);
        let scale = LossScale { initial: 4.0, backoff_factor: 1.0, ..LossScale::default() };
        let ema = Some(Ema { decay: 0.9, debias: false });
        let clip = Some(Clip::GlobalNorm(1.0));
        let options = Options { ema, clip, loss_scale: Some(scale), zero_gradients: true, ..SKIP };
        let run = |dirty: bool| {
            let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
            let pooled = Pooled::new(gpu, &mut optimizer, &params);
            let mut random = Random::new(52);
            for t in 0..5 {
                let mut grads = random.values(len);
                let tensor = &layout.tensors()[random.below(40) as usize];
                let at = (tensor.offset + random.below(tensor.len)) as usize;
                let what = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][t % 3];
                let good = std::mem::replace(&mut grads[at], what);
                if dirty {
                    assert!(!pooled.step(gpu, &mut optimizer, &grads, lr(t)).finite);
                }
                grads[at] = good;
                assert!(pooled.step(gpu, &mut optimizer, &grads, lr(t)).finite);
            }
            let state = snapshot(gpu, &optimizer, &gpu.buffer(len as u64 * 4), 0).state;
            let zeroed = |t: &Tensor| gpu.read(&pooled.grads, (t.offset + 2) * 4, t.len as usize);
            assert!(layout.tensors().iter().flat_map(zeroed).all(|g| g == 0.0));
            Snapshot { params: gather(&layout, &pooled.params(gpu, &layout), |_| true), state }
        };
        assert_same_bits(&run(true), &run(false), R::NAME);
    }
    let [Some(roomy), Some(cramped)] = roomy_and_cramped() else { return };
    test::<AdamW>(&roomy);
    test::<Lamb>(&roomy);
    test::<AdamW>(&cramped);
    test::<Lamb>(&cramped);
    test::<Lars>(&cramped);
}

macro_rules! fuzz {
    ($($rule:ty),*) => {
        $({
            let Some(gpu) = harness::test_gpu() else { return };
            for (seed, (name, rule)) in <$rule>::cases().into_iter().enumerate() {
                skipped_steps_leave_no_trace(&gpu, name, rule, seed as u64, seed % 2 == 0);
            }
        })*
    };
}

#[test]
fn skipped_steps_leave_no_trace_in_any_rule() {
    for_each_rule!(fuzz);
}

/// A hundred steps in one encoder, of which nothing is known on the host before all have been recorded.
#[test]
fn skipping_needs_no_readback() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = NAdam { weight_decay: 0.1, ..NAdam::default() };
    let layout = odd(rule);
    let mut random = Random::new(8);
    let params = random.values(layout.len() as usize);
    let bad = [0, 1, 5, 40, 41, 42, 98];
    let ends: Vec<_> = [true, false]
        .map(|dirty| {
            let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), SKIP).unwrap();
            let params = gpu.upload(&params);
            let good = gpu.upload(&Random::new(3).values(layout.len() as usize));
            let mut values = Random::new(4).values(layout.len() as usize);
            values[700] = f32::NAN;
            let nan = gpu.upload(&values);
            let good = optimizer.bind(&Tensors::flat(&params, &good)).unwrap();
            let nan = optimizer.bind(&Tensors::flat(&params, &nan)).unwrap();
            let mut encoder = gpu.encoder();
            for t in 0..100 {
                if !bad.contains(&t) {
                    optimizer.step(&gpu.queue, &mut encoder, &good, lr(t)).unwrap();
                } else if dirty {
                    optimizer.step(&gpu.queue, &mut encoder, &nan, lr(t)).unwrap();
                }
            }
            gpu.run(encoder);
            snapshot(&gpu, &optimizer, &params, 0)
        })
        .into();
    assert_same_bits(&ends[0], &ends[1], "a hundred steps in one encoder");
}

/// Chunked bindings, buffers of single tensors, pooled at odd offsets: one norm, one decision.
#[test]
fn every_form_of_buffers_is_clipped_and_skipped_alike() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let Some(gpu) = harness::test_gpu_with(limit) else { return };
    let rule = AdamW::default();
    let layout = Layout::new([
        Group::new("a", rule).tensor("w", [30_001]),
        Group::new("b", rule).lr_factor(2.0).tensor("v", [777]).tensor("u", [3]),
    ])
    .unwrap();
    let ema = Some(Ema { decay: 0.5, debias: false });
    let options = Options { clip: Some(Clip::GlobalNorm(2.0)), ema, ..SKIP };
    let len = layout.len() as usize;
    let mut random = Random::new(21);
    let params = random.values(len);
    let grads: Vec<_> = (0..4)
        .map(|t| {
            let mut grads = random.values(len);
            if t == 1 {
                // In the last tensor, and so in another binding than the first.
                grads[len - 1] = f32::INFINITY;
            }
            grads
        })
        .collect();
    let mut flat = Run::new(&gpu, layout.clone(), options, &params);
    let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
    let buffers: Vec<_> = layout
        .tensors()
        .iter()
        .map(|t| {
            let (p, g) = (gpu.buffer(t.len * 4 + 12), gpu.buffer(t.len * 4 + 12));
            gpu.write(&p, 4, &params[t.range()]);
            (t.name.clone(), p, g)
        })
        .collect();
    let each = buffers.iter().map(|(name, p, g)| (name.as_str(), View::new(p, 4), View::new(g, 8)));
    let bound = optimizer.bind(&Tensors::each(each)).unwrap();
    let mut norms = Vec::new();
    for (t, grads) in grads.iter().enumerate() {
        let report = flat.step(grads, lr(t)).unwrap();
        norms.push(report.grad_norm);
        assert_eq!(report.finite, t != 1);
        for (tensor, (_, _, g)) in layout.tensors().iter().zip(&buffers) {
            gpu.write(g, 8, &grads[tensor.range()]);
        }
        let mut encoder = gpu.encoder();
        optimizer.step(&gpu.queue, &mut encoder, &bound, lr(t)).unwrap();
        gpu.run(encoder);
        let report = optimizer.take_report().unwrap();
        assert_eq!(report.finite, t != 1);
        if t != 1 {
            let exact = norm(grads);
            approx::assert_relative_eq!(f64::from(norms[t]), exact, max_relative = 1e-6);
            approx::assert_relative_eq!(f64::from(report.grad_norm), exact, max_relative = 1e-6);
            assert!(report.clip_factor < 1.0);
        }
    }
    // The two add squares in another order, so their factors may differ in the last digit.
    let ends = flat.snapshot().params;
    for (tensor, (_, p, _)) in layout.tensors().iter().zip(&buffers) {
        let close = |a: &[f32], b: &[f32]| {
            for (a, b) in a.iter().zip(b) {
                approx::assert_relative_eq!(a, b, max_relative = 1e-6, epsilon = 1e-8);
            }
        };
        close(&gpu.read(p, 4, tensor.len as usize), &ends[tensor.range()]);
        let ranges = optimizer.state("ema", &tensor.name).unwrap();
        let ema =
            ranges.iter().flat_map(|r| gpu.read(r.buffer, r.offset, r.len as usize)).collect::<Vec<_>>();
        close(&ema, &flat.ema(&tensor.name));
        assert!(ema.iter().zip(&ends[tensor.range()]).any(|(e, p)| e != p));
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt()
}

/// All values of some of a layout's tensors, in the flat space.
fn gather<R: Rule>(layout: &Layout<R>, flat: &[f32], of: impl Fn(usize) -> bool) -> Vec<f32> {
    let tensors = layout.tensors().iter().filter(|t| of(t.group));
    tensors.flat_map(|t| flat[t.range()].iter().copied()).collect()
}

/// Each tensor in a place of its own, in pools of poison.
struct Pooled {
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl Pooled {
    /// Parameter and gradient of a tensor lie at elements of different alignment.
    fn new<R: Rule>(gpu: &Gpu, optimizer: &mut Optimizer<R>, params: &[f32]) -> Self {
        let layout = optimizer.layout().clone();
        let len = layout.len() + 8;
        let pool = || gpu.upload(&vec![f32::NAN; len as usize]);
        let (p, g) = (pool(), pool());
        let views = layout.tensors().iter().map(|t| {
            gpu.write(&p, (t.offset + 1) * 4, &params[t.range()]);
            (t.name.as_str(), View::new(&p, (t.offset + 1) * 4), View::new(&g, (t.offset + 2) * 4))
        });
        let bound = optimizer.bind(&Tensors::each(views)).unwrap();
        Self { params: p, grads: g, bound }
    }

    fn step<R: Rule>(&self, gpu: &Gpu, optimizer: &mut Optimizer<R>, grads: &[f32], lr: f64) -> Report {
        for t in optimizer.layout().tensors() {
            gpu.write(&self.grads, (t.offset + 2) * 4, &grads[t.range()]);
        }
        let mut encoder = gpu.encoder();
        optimizer.step(&gpu.queue, &mut encoder, &self.bound, lr).unwrap();
        gpu.run(encoder);
        optimizer.take_report().unwrap()
    }

    fn params<R: Rule>(&self, gpu: &Gpu, layout: &Layout<R>) -> Vec<f32> {
        gpu.read(&self.params, 4, layout.len() as usize)
    }
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

/// Three groups by turns, so that most vectors are shared, and a tensor beyond a small binding.
fn by_turns<R: Rule>(rule: R) -> Layout<R> {
    let mut groups = ["a", "b", "c"].map(|name| Group::new(name, rule));
    let mut at = 0;
    for i in 0..40 {
        let len = if i == 19 { 40_000 } else { 1 + i * 7 % 50 };
        let group = &mut groups[i as usize % 3];
        *group = group.clone().tensor_at(format!("t{i}"), [len], at);
        at += len + i % 2;
    }
    Layout::new(groups).unwrap()
}

/// `g · min(1, c / (‖g‖ + 10⁻⁶))` with each group's own norm, in every form of buffers.
#[test]
fn groups_are_clipped_each_by_its_own_norm() {
    const BOUND: f64 = 2.0;
    for gpu in roomy_and_cramped() {
        let Some(gpu) = gpu else { return };
        let layout = by_turns(Sgd::default());
        let len = layout.len() as usize;
        let mut grads = Random::new(31).values(len);
        // The last group is within the bound.
        for t in layout.tensors().iter().filter(|t| t.group == 2) {
            grads[t.range()].iter_mut().for_each(|g| *g *= 1e-6);
        }
        let options =
            Options { clip: Some(Clip::GroupNorm(BOUND)), divide: true, report: true, ..Options::default() };
        let factor = |group| {
            let norm = norm(&gather(&layout, &grads, |g| g == group)) / 2.0;
            (BOUND / (norm + 1e-6)).min(1.0)
        };
        let factors = [0, 1, 2].map(factor);
        assert!(factors[1] < factors[0] && factors[0] < 1.0 && factors[2] == 1.0, "{factors:?}");
        let judge = |params: &[f32], report: &Report, form: &str| {
            for tensor in layout.tensors() {
                for i in tensor.range() {
                    let want = -f64::from(grads[i]) * factors[tensor.group];
                    approx::assert_relative_eq!(f64::from(params[i]), want, max_relative = 1e-6);
                }
            }
            approx::assert_relative_eq!(
                f64::from(report.grad_norm),
                norm(&gather(&layout, &grads, |_| true)) / 2.0,
                max_relative = 1e-6
            );
            let least = factors.into_iter().fold(1.0, f64::min);
            approx::assert_relative_eq!(f64::from(report.clip_factor), least, max_relative = 1e-6);
            assert!(report.finite, "{form}");
        };
        let zeros = vec![0.0; len];
        let mut flat = Run::new(&gpu, layout.clone(), options, &zeros);
        let report = flat.step(&grads, Step::from(2.0).divided_by(2.0)).unwrap();
        judge(&flat.snapshot().params, &report, "flat");
        let halves: Vec<_> = grads.iter().map(|g| g / 2.0).collect();
        let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let pooled = Pooled::new(&gpu, &mut optimizer, &zeros);
        let report = pooled.step(&gpu, &mut optimizer, &halves, 2.0);
        judge(&pooled.params(&gpu, &layout), &report, "pooled");

        // What is not finite concerns its own group alone, as where PyTorch clips the groups one by one.
        let at = layout.tensor("t3").unwrap().offset as usize;
        grads[at] = f32::NAN;
        let before = flat.snapshot().params;
        flat.step(&grads, Step::from(2.0).divided_by(2.0)).unwrap();
        let after = flat.snapshot().params;
        assert!(gather(&layout, &after, |g| g == 0).iter().all(|p| p.is_nan()));
        let moved = |p: &[f32]| gather(&layout, p, |g| g != 0);
        for (before, after) in moved(&before).iter().zip(moved(&after)) {
            approx::assert_relative_eq!(2.0 * before, after, max_relative = 1e-6);
        }
    }
}

/// As many tiles as leave workgroups without one in the last row of a dispatch: what they would add is not added.
#[test]
fn workgroups_past_the_table_add_nothing() {
    let [_, Some(gpu)] = roomy_and_cramped() else { return };
    // Padding between the tensors keeps tiles apart: 41 of them in rows of at most 40 workgroups.
    let group =
        (0..41).fold(Group::new("g", Sgd::default()), |g, i| g.tensor_at(format!("t{i}"), [3], i * 8));
    let layout = Layout::new([group]).unwrap();
    let mut grads = vec![f32::NAN; layout.len() as usize];
    for (i, tensor) in layout.tensors().iter().enumerate() {
        grads[tensor.range()].fill(if i == 40 { 1_000.0 } else { 1.0 });
    }
    for norms in [false, true] {
        let options = Options { report: true, norms, ..Options::default() };
        let mut run = Run::new(&gpu, layout.clone(), options, &vec![0.0; grads.len()]);
        let report = run.step(&grads, 1.0).unwrap();
        let want = norm(&gather(&layout, &grads, |_| true));
        approx::assert_relative_eq!(f64::from(report.grad_norm), want, max_relative = 1e-6);
        assert_eq!(gather(&layout, &run.snapshot().params, |_| true)[120..], [-1_000.0; 3]);
        if let Some(moved) = report.update_norm {
            approx::assert_relative_eq!(f64::from(moved), want, max_relative = 1e-6);
        }
    }
}

/// What steps in flight may take is bounded, however many groups there are: an error in time.
#[test]
fn sets_in_flight_are_bounded() {
    let Some(gpu) = harness::test_gpu() else { return };
    let groups =
        (0..1_000).map(|i| Group::new(format!("g{i}"), AdamW::default()).tensor(format!("t{i}"), [1]));
    let layout = Layout::new(groups).unwrap();
    let mut run = Run::new(&gpu, layout, SKIP, &[0.0; 1_000]);
    let mut encoder = gpu.encoder();
    let mut record = || run.optimizer.step(&gpu.queue, &mut encoder, &run.bound, 1e-3);
    let refused = (0..100).find_map(|_| record().err());
    assert!(matches!(refused, Some(Error::Unreported { bound: 40..60, .. })), "{refused:?}");
    assert!(run.optimizer.overhead_bytes() < 256 << 20);
}

/// The scale of the least gradients: its reciprocal is exact, and what it is multiplied by leaves a normal number.
#[test]
fn the_factor_of_gradients_is_exact_and_normal() {
    let Some(gpu) = harness::test_gpu() else { return };
    let initial = 64f64.exp2();
    let scale = Some(LossScale { initial, ..LossScale::default() });
    let options = Options { loss_scale: scale, divide: true, ..Options::default() };
    let mut run = Run::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
    run.step(&[3.0 * initial as f32; 4], Step::from(1.0).divided_by(2f64.powi(60)));
    assert_eq!(run.snapshot().params, [-3.0 * 2f32.powi(-60); 4]);
}

/// The limits that every WebGPU device has: Adan's four states, an average and partial results are what 8 storage bindings hold.
#[test]
fn everything_at_once_with_the_least_limits() {
    let Some(gpu) = harness::test_gpu_with(|limits| *limits = wgpu::Limits::default()) else { return };
    let layout = by_turns(Adan::default());
    let ema = Some(Ema { decay: 0.9, debias: false });
    let options =
        Options { norms: true, clip: Some(Clip::GroupNorm(1.0)), zero_gradients: true, ema, ..SKIP };
    let len = layout.len() as usize;
    let mut run = Run::new(&gpu, layout, options, &vec![1.0; len]);
    assert!(run.step(&vec![1.0; len], 0.1).unwrap().update_norm > Some(0.0));
    // A table that has to be in storage is one more.
    let tensors =
        (0..3_000).fold(Group::new("g", Adan::default()), |g, i| g.tensor_at(format!("t{i}"), [3], i * 8));
    let mut optimizer =
        Optimizer::with_options(&gpu.device, Layout::new([tensors]).unwrap(), options).unwrap();
    let buffer = || gpu.buffer(3_000 * 8 * 4);
    let error = optimizer.bind(&Tensors::flat(&buffer(), &buffer())).unwrap_err();
    let limit = "max_storage_buffers_per_shader_stage";
    assert_eq!(error, Error::DeviceLimit { limit, value: 8, bound: 9 });
}

/// A layer-wise rule sees gradients that have been divided and clipped, in both of its phases, and the average sees what becomes of it.
#[test]
fn gradients_are_divided_and_clipped_before_a_layer_wise_rule() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = by_turns(Lars { momentum: 0.0, eps: 1.0, trust_coefficient: 1.0, ..Lars::default() });
    let len = layout.len() as usize;
    let (params, grads) = (Random::new(32).values(len), Random::new(33).values(len));
    for clip in [Clip::GroupNorm(2.0), Clip::GlobalNorm(2.0), Clip::Value(2.0)] {
        let ema = Some(Ema { decay: 0.9, debias: false });
        let options = Options { clip: Some(clip), divide: true, ema, ..Options::default() };
        let mut run = Run::new(&gpu, layout.clone(), options, &params);
        let mut clipped: Vec<f64> = grads.iter().map(|&g| f64::from(g) / 4.0).collect();
        for tensor in layout.tensors() {
            let norm = |of: &dyn Fn(usize) -> bool| norm(&gather(&layout, &grads, of)) / 4.0 + 1e-6;
            let (factor, bound) = match clip {
                Clip::GroupNorm(c) => (c / norm(&|g| g == tensor.group), f64::INFINITY),
                Clip::GlobalNorm(c) => (c / norm(&|_| true), f64::INFINITY),
                Clip::Value(c) => (1.0, c),
                _ => unreachable!(),
            };
            clipped[tensor.range()].iter_mut().for_each(|g| *g = (factor * *g).clamp(-bound, bound));
        }
        let mut reference = cpu::Reference::new(layout.clone()).unwrap();
        let mut want: Vec<f64> = params.iter().map(|&p| p.into()).collect();
        let mut average = Vec::new();
        for t in 0..2 {
            run.step(&grads, Step::from(0.1).divided_by(4.0));
            reference.step(&mut want, &clipped, 0.1).unwrap();
            let weight = if t == 0 { 1.0 } else { 0.1 };
            average.resize(len, 0.0);
            average.iter_mut().zip(&want).for_each(|(e, p)| *e += weight * (p - *e));
        }
        let got = run.snapshot().params;
        for tensor in layout.tensors() {
            // What is subtracted may be most of the parameter.
            let size = tensor.range().map(|i| want[i].abs()).fold(0.0, f64::max);
            let close = |got: f32, want: f64| {
                let epsilon = 2e-6 * size;
                approx::assert_relative_eq!(f64::from(got), want, max_relative = 2e-6, epsilon = epsilon);
            };
            for (i, ema) in tensor.range().zip(run.ema(&tensor.name)) {
                close(got[i], want[i]);
                close(ema, average[i]);
            }
        }
    }
}

/// ‖p‖ and ‖Δp‖ in every form of buffers; of a skipped step the second is 0.
#[test]
fn norms_of_parameters_and_updates() {
    fn test<R: Cases>(gpu: &Gpu) {
        let (name, rule) = R::cases()[0];
        let layout = by_turns(rule);
        let len = layout.len() as usize;
        let mut random = Random::new(41);
        let params = random.values(len);
        let ema = Some(Ema { decay: 0.5, debias: false });
        let options =
            Options { norms: true, skip_nonfinite: true, zero_gradients: true, ema, ..Options::default() };
        let judge = |report: &Report, before: &[f32], after: &[f32], form: &str| {
            let context = format!("{} {name}, {form}", R::NAME);
            let [before, after] = [before, after].map(|p| gather(&layout, p, |_| true));
            let close = |got: Option<f32>, want: f64, more: f64| {
                let got = f64::from(got.unwrap());
                assert!((got - want).abs() <= 1e-6 * want + more, "{context}: {got:e}, f64 {want:e}");
            };
            let size = norm(&before);
            close(report.param_norm, size, 0.0);
            let moved = before.iter().zip(&after).map(|(b, a)| a - b).collect::<Vec<_>>();
            // (p − s) − p is s to a compiler that likes: then each element lacks the rounding of its parameter, half an ulp.
            close(report.update_norm, norm(&moved), f64::from(f32::EPSILON) / 2.0 * size);
        };
        let mut flat = Run::new(gpu, layout.clone(), options, &params);
        let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let pooled = Pooled::new(gpu, &mut optimizer, &params);
        for t in 0..3 {
            let mut grads = random.values(len);
            let between = layout.tensors()[1].end() as usize;
            assert!(layout.tensors().iter().all(|t| !t.range().contains(&between)));
            grads[between] = f32::NAN;
            if t == 1 {
                grads[0] = f32::INFINITY;
            }
            let before = flat.snapshot().params;
            let report = flat.step(&grads, lr(t)).unwrap();
            judge(&report, &before, &flat.snapshot().params, "flat");
            assert_eq!(report.update_norm == Some(0.0), t == 1, "{}", R::NAME);
            let before = pooled.params(gpu, &layout);
            let report = pooled.step(gpu, &mut optimizer, &grads, lr(t));
            judge(&report, &before, &pooled.params(gpu, &layout), "pooled");
        }
    }
    let [Some(roomy), Some(cramped)] = roomy_and_cramped() else { return };
    macro_rules! all {
        ($($rule:ty),*) => { $(test::<$rule>(&roomy);)* };
    }
    for_each_rule!(all);
    test::<AdamW>(&cramped);
    test::<Lamb>(&cramped);
    // What is not finite is seen in both.
    let Some(gpu) = harness::test_gpu() else { return };
    for bad in [f32::INFINITY, f32::NAN] {
        let options = Options { norms: true, ..Options::default() };
        let seen = |p: f32, g: f32| {
            let mut run = Run::new(&gpu, single(Sgd::default(), 4), options, &[1.0, 1.0, p, 1.0]);
            run.step(&[1.0, g, 1.0, 1.0], 1.0).unwrap()
        };
        let same = |got: Option<f32>| got.is_some_and(|got| got == bad || got.is_nan() && bad.is_nan());
        let report = seen(bad, 1.0);
        assert!(same(report.param_norm), "{report:?}");
        let report = seen(1.0, bad);
        assert!(same(report.update_norm) && report.param_norm == Some(2.0), "{report:?}");
    }
    // Without the option there are none.
    let mut run =
        Run::new(&gpu, single(Sgd::default(), 4), Options { report: true, ..Options::default() }, &[1.0; 4]);
    let report = run.step(&[1.0; 4], 1.0).unwrap();
    assert_eq!((report.param_norm, report.update_norm), (None, None));
}

/// More partial results than a workgroup adds at once, of dispatches whose last row reaches past the table: what is there updates nothing, and adds to no norm.
#[test]
fn norms_of_hundreds_of_workgroups_in_rows() {
    fn test<R: Rule>(gpu: &Gpu, rule: R, options: Options, want: f32) {
        // 273 tiles, the last one of a single vector, in 17 rows of 17.
        let len = 272 * 16_384 + 4;
        let with_an_end = |value| {
            let mut values = vec![0.0; len];
            values[len - 4..].fill(value);
            values
        };
        let mut run = Run::new(gpu, single(rule, len as u64), options, &with_an_end(3.0));
        let report = run.step(&with_an_end(1e3), 1.0).unwrap();
        let norms = (report.grad_norm, report.param_norm, report.update_norm);
        assert_eq!(norms, (2e3, Some(6.0), Some(2.0 * (3.0 - want))), "{} {options:?}", R::NAME);
        assert!(run.snapshot().params == with_an_end(want), "{} {options:?}", R::NAME);
    }
    let Some(gpu) = harness::test_gpu_with(|l| l.max_compute_workgroups_per_dimension = 17) else { return };
    for clip in [None, Some(Clip::GroupNorm(1e9))] {
        let options = Options { clip, norms: true, ..Options::default() };
        test(&gpu, Sgd::default(), options, 3.0 - 1e3);
        // φ = 6 / (2 000 + 2 000).
        let lars = Lars { momentum: 0.0, trust_coefficient: 1.0, eps: 2e3, ..Lars::default() };
        test(&gpu, lars, options, 1.5);
    }
}

/// 16 M elements over eight decades: 1e-6 of f64, and the same bits every time.
#[test]
fn the_norm_is_accurate_and_the_same_every_time() {
    let Some(gpu) = harness::test_gpu() else { return };
    let len = 1 << 24;
    let mut random = Random::new(99);
    for decades in [-4.0..4.0, -12.0..-4.0] {
        let grads: Vec<f32> = (0..len)
            .map(|_| {
                let sign = if random.below(2) == 0 { 1.0 } else { -1.0 };
                let span: f64 = decades.end - decades.start;
                (sign * 10f64.powf(decades.start + random.unit() * span)) as f32
            })
            .collect();
        let options = Options { report: true, ..Options::default() };
        let mut run = Run::new(&gpu, single(Sgd::default(), len), options, &vec![0.0; len as usize]);
        let reports = [(); 3].map(|()| run.step(&grads, 0.0).unwrap());
        let (got, exact) = (f64::from(reports[0].grad_norm), norm(&grads));
        let off = (got - exact).abs() / exact;
        println!("norm {got:e}, f64 {exact:e}: {off:.1e} relative");
        assert!(off <= 1e-6, "norm {got:e}, f64 {exact:e}: {off:e} relative");
        assert!(reports.iter().all(|report| report.grad_norm.to_bits() == reports[0].grad_norm.to_bits()));
    }
}

/// Neither large nor tiny squares are lost, in what is scaled by the largest loss scale neither.
#[test]
fn norms_beyond_the_range_of_squares() {
    let Some(gpu) = harness::test_gpu() else { return };
    for exponent in [0, 66, 100, 126] {
        let initial = f64::from(exponent).exp2();
        let scale = Some(LossScale { initial, max: 126f64.exp2(), ..LossScale::default() });
        let options = Options { clip: Some(Clip::GlobalNorm(1.0)), loss_scale: scale, ..Options::default() };
        let mut run = Run::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
        let report = run.step(&[initial as f32; 4], 1.0).unwrap();
        assert_eq!((report.grad_norm, report.finite), (2.0, true), "scale 2^{exponent}");
        approx::assert_relative_eq!(run.snapshot().params[3], -0.5, max_relative = 1e-5);
    }
    for (grads, want) in [
        ([1e-23f32; 4], 2e-23f32),
        ([3e30, 4e30, 1e10, 0.0], 5e30),
        ([3e-13, 4e-13, 1e-30, 0.0], 5e-13),
        // On both sides of the bounds between the three sums.
        ([2f32.powi(40), 2f32.powi(40) * 0.999, 0.0, 0.0], 1.554_168_4e12),
    ] {
        let mut run = Run::new(
            &gpu,
            single(Sgd::default(), 4),
            Options { report: true, ..Options::default() },
            &[0.0; 4],
        );
        approx::assert_relative_eq!(run.step(&grads, 0.0).unwrap().grad_norm, want, max_relative = 1e-6);
    }
}

/// Steps whose commands are never submitted are not taken; those that are, are what they would have been without them.
#[test]
fn dropped_commands_leave_no_trace() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = Adagrad { initial_accumulator_value: 1.0, ..Adagrad::default() };
    let options = Options { ema: Some(Ema { decay: 0.9, debias: false }), ..SKIP };
    let ends = [true, false].map(|dropping| {
        let mut run = Run::new(&gpu, odd(rule), options, &vec![1.0; odd(rule).len() as usize]);
        let grads = Random::new(1).values(odd(rule).len() as usize);
        for t in 0..6 {
            if dropping && t % 2 == 0 {
                let mut encoder = gpu.encoder();
                run.optimizer.step(&gpu.queue, &mut encoder, &run.bound, lr(t)).unwrap();
            }
            run.submit(&grads, lr(t));
        }
        gpu.wait();
        (run.snapshot(), run.ema("a"))
    });
    assert_same_bits(&ends[0].0, &ends[1].0, "dropped commands");
    assert_eq!(ends[0].1, ends[1].1);
}

/// A report that is asked for in commands that run before the last step says what was so when they ran.
#[test]
fn a_report_is_of_the_step_that_had_run() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = AdamW::default();
    let layout = odd(rule);
    let len = layout.len() as usize;
    let good = Random::new(6).values(len);
    let mut nan = good.clone();
    nan[0] = f32::NAN;
    let mut run = Run::new(&gpu, layout.clone(), SKIP, &vec![1.0; len]);
    let nan = gpu.upload(&nan);
    let bad = run.optimizer.bind(&Tensors::flat(&run.params, &nan)).unwrap();
    gpu.write(&run.grads, 0, &good);
    let mut encoders = [gpu.encoder(), gpu.encoder()];
    for (encoder, bound) in encoders.iter_mut().zip([&run.bound, &bad]) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        run.optimizer.step_in_pass(&gpu.queue, &mut pass, bound, 0.1).unwrap();
    }
    run.optimizer.read_back(&mut encoders[0]).unwrap();
    for encoder in encoders {
        gpu.run(encoder);
    }
    let report = run.optimizer.take_report().unwrap();
    assert_eq!((report.step, report.skipped, report.finite), (0, 0, true));
    run.submit(&good, 0.1);
    gpu.wait();
    let mut clean = Run::new(&gpu, layout, SKIP, &vec![1.0; len]);
    for _ in 0..2 {
        clean.submit(&good, 0.1);
    }
    gpu.wait();
    assert_same_bits(&run.snapshot(), &clean.snapshot(), "a report that was early");
}

/// NAdam's product of momenta depends on which steps were taken: what cannot be known is refused, and with reports in time nothing is.
#[test]
fn momentum_that_changes_wants_reports() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(NAdam::default());
    let len = layout.len() as usize;
    let at = |t: usize| Step::from(lr(t)).with_momentum(0.8 + 0.02 * t as f64);
    let mut random = Random::new(31);
    let params = random.values(len);
    let grads: Vec<_> = (0..6).map(|_| random.values(len)).collect();
    let mut nan = grads[2].clone();
    nan[4] = f32::NAN;
    let mut dirty = Run::new(&gpu, layout.clone(), SKIP, &params);
    let mut clean = Run::new(&gpu, layout.clone(), SKIP, &params);
    for (t, grads) in grads.iter().enumerate() {
        dirty.step(if t == 2 { &nan } else { grads }, at(t));
        if t != 2 {
            clean.step(grads, at(t));
        }
    }
    assert_same_bits(&dirty.snapshot(), &clean.snapshot(), "a momentum that changes");

    let mut encoder = gpu.encoder();
    let mut recorded = 0;
    let error = loop {
        let done = dirty.optimizer.step(&gpu.queue, &mut encoder, &dirty.bound, at(6 + recorded));
        match done {
            Ok(()) => recorded += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Error::UncertainMomentum { rule: "nadam", steps: recorded });
    assert_eq!(dirty.optimizer.steps(), 6 + recorded as u64);
    gpu.run(encoder);
    dirty.step(&grads[0], at(6));
}

/// Requests grow no larger than a binding, and that is an error in time too.
#[test]
fn requests_fit_their_binding() {
    let Some(gpu) = harness::test_gpu_with(|l| l.max_storage_buffer_binding_size = 1 << 16) else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    let mut run = Run::new(&gpu, layout, SKIP, &vec![1.0; len]);
    let mut encoder = gpu.encoder();
    let error = (0..2_000).find_map(|_| run.optimizer.step(&gpu.queue, &mut encoder, &run.bound, 0.1).err());
    assert!(matches!(error, Some(Error::Unreported { bound: 500..600, .. })), "{error:?}");
}

/// Divisor, norm and bound together: what the rule sees.
#[test]
fn gradients_are_divided_and_then_clipped() {
    let Some(gpu) = harness::test_gpu() else { return };
    let step = |options, grads: &[f32], divisor: f64| {
        let mut run = Run::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
        let report = run.step(grads, Step::from(1.0).divided_by(divisor));
        (run.snapshot().params, report)
    };
    let options = Options { divide: true, ..Options::default() };
    let (params, report) = step(options, &[8.0, -4.0, 0.0, 2.0], 4.0);
    assert_eq!((params, report), (vec![-2.0, 1.0, 0.0, -0.5], None));
    let (params, report) =
        step(Options { clip: Some(Clip::Value(1.0)), ..options }, &[8.0, -4.0, 0.0, f32::NAN], 4.0);
    assert_eq!((&params[..3], report), (&[-1.0, 1.0, 0.0][..], None));
    assert!(params[3].is_nan(), "a bound makes no number of what is none");
    // ‖(3, 4)‖ = 5 after the division.
    let options = Options { clip: Some(Clip::GlobalNorm(2.5)), report: true, ..options };
    let (params, report) = step(options, &[12.0, 16.0, 0.0, 0.0], 4.0);
    let report = report.unwrap();
    assert_eq!((report.grad_norm, report.finite, report.skipped), (5.0, true, 0));
    approx::assert_relative_eq!(report.clip_factor, 0.5, max_relative = 1e-6);
    approx::assert_relative_eq!(params[0], -1.5, max_relative = 1e-6);
    // Within the bound nothing changes.
    let (params, _) = step(options, &[4.0, -4.0, 0.0, 0.0], 4.0);
    assert_eq!(params, [-1.0, 1.0, 0.0, 0.0]);
    // Without skipping, a norm that is no number makes all of them that, and an infinite one all others zero: as in PyTorch.
    let (params, _) = step(options, &[f32::NAN, 4.0, 4.0, 4.0], 4.0);
    assert!(params.iter().all(|p| p.is_nan()), "{params:?}");
    let (params, _) = step(options, &[f32::INFINITY, 4.0, 4.0, 4.0], 4.0);
    assert!(params[0].is_nan() && params[1..] == [0.0; 3], "{params:?}");
}

/// 500 steps of scripted overflows against PyTorch's scaler, in one run and in runs that each go on with the scale of the one before.
#[test]
fn the_loss_scale_is_pytorchs() {
    let Some(gpu) = harness::test_gpu() else { return };
    let text = include_str!("../golden/scaler.json");
    let golden: serde_json::Value = serde_json::from_str(text).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = &case["name"];
        let argument = |name: &str, default| case["arguments"][name].as_f64().unwrap_or(default);
        let scale = LossScale {
            initial: argument("init_scale", 65_536.0),
            growth_factor: argument("growth_factor", 2.0),
            backoff_factor: argument("backoff_factor", 0.5),
            growth_interval: argument("growth_interval", 2_000.0) as u32,
            // One of the runs goes as far as f32 does.
            max: 127f64.exp2(),
            ..LossScale::default()
        };
        let options = Options { loss_scale: Some(scale), ..Options::default() };
        let overflows: Vec<_> =
            case["overflow"].as_array().unwrap().iter().map(|o| o.as_bool().unwrap()).collect();
        for steps in [overflows.len(), 47] {
            let mut saved: Option<Report> = None;
            let mut used = scale.initial as f32;
            for (part, overflows) in overflows.chunks(steps).enumerate() {
                let mut run = Run::new(&gpu, single(Sgd::default(), 3), options, &[1.0; 3]);
                if let Some(Report { next_loss_scale, good_steps, .. }) = saved {
                    let restored =
                        run.optimizer.set_loss_scale(&gpu.queue, next_loss_scale.into(), good_steps);
                    assert_eq!(restored, Ok(()));
                }
                for &overflow in overflows {
                    run.submit(&[if overflow { f32::INFINITY } else { 1.0 }, 0.0, 0.0], 0.0);
                }
                gpu.wait();
                let reports: Vec<_> = std::iter::from_fn(|| run.optimizer.take_report()).collect();
                assert_eq!(reports.len(), overflows.len());
                for (t, report) in reports.iter().enumerate() {
                    let step = part * steps + t;
                    let want = case["scale"][step].as_f64().unwrap() as f32;
                    assert_eq!(
                        (report.step, report.finite),
                        (t as u64, !overflows[t]),
                        "{name}, step {step}"
                    );
                    let scales = (report.loss_scale, report.next_loss_scale);
                    assert_eq!(scales, (used, want), "{name}, step {step}");
                    used = want;
                }
                let read = gpu.read(run.optimizer.loss_scale().unwrap(), 0, 1);
                assert_eq!(read, [used]);
                saved = reports.last().copied();
            }
        }
    }
}

/// A restored scale holds from the next submission on, between steps too; what the options forbid changes nothing.
#[test]
fn loss_scales_are_restored_within_their_bounds() {
    let Some(gpu) = harness::test_gpu() else { return };
    let scale = LossScale { initial: 8.0, growth_interval: 3, max: 16.0, min: 4.0, ..LossScale::default() };
    let options = Options { loss_scale: Some(scale), ..Options::default() };
    let mut run = Run::new(&gpu, single(Sgd::default(), 1), options, &[0.0]);
    run.step(&[8.0], 1.0);
    run.optimizer.set_loss_scale(&gpu.queue, 4.0, 2).unwrap();
    let mut refused = |scale, good_steps, field, bound| {
        let error = run.optimizer.set_loss_scale(&gpu.queue, scale, good_steps).unwrap_err();
        let found = matches!(error, Error::Options { field: f, bound: b, .. } if (f, b) == (field, bound));
        assert!(found, "{error}");
    };
    for bad in [2.0, 32.0, -4.0, 0.0, f64::NAN, f64::INFINITY] {
        refused(bad, 0, "loss_scale", "from min to max");
    }
    refused(8.0, 3, "good_steps", "below growth_interval");
    let report = run.step(&[4.0], 1.0).unwrap();
    assert_eq!((report.loss_scale, report.next_loss_scale, report.good_steps), (4.0, 8.0, 0));
    assert_eq!((report.step, run.snapshot().params), (1, vec![-2.0]));

    let mut unscaled = Optimizer::with_options(&gpu.device, single(Sgd::default(), 1), SKIP).unwrap();
    let error = unscaled.set_loss_scale(&gpu.queue, 1.0, 0).unwrap_err();
    assert_eq!(error.to_string(), "loss_scale = 1, must be unset without Options::loss_scale");
}

/// The scale takes part: gradients of a scaled loss are divided by what they were scaled with.
#[test]
fn gradients_are_divided_by_the_loss_scale() {
    let Some(gpu) = harness::test_gpu() else { return };
    let scale = LossScale { initial: 8.0, growth_interval: 2, max: 16.0, min: 4.0, ..LossScale::default() };
    let options = Options { loss_scale: Some(scale), divide: true, ..Options::default() };
    let mut run = Run::new(&gpu, single(Sgd::default(), 1), options, &[0.0]);
    let mut scales = Vec::new();
    for grad in [32.0, 32.0, 64.0, f32::NAN, f32::INFINITY, f32::INFINITY, 16.0] {
        // Every good gradient is 2 · 2 times its scale.
        let report = run.step(&[grad], Step::from(1.0).divided_by(2.0)).unwrap();
        scales.push(report.next_loss_scale);
    }
    // Never above max, never below min.
    assert_eq!(scales, [8.0, 16.0, 16.0, 8.0, 4.0, 4.0, 4.0]);
    assert_eq!(run.snapshot().params, [-8.0]);
}

#[test]
fn gradients_are_set_to_zero_and_their_neighbours_are_not() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    for skip in [false, true] {
        let options = Options { zero_gradients: true, skip_nonfinite: skip, ..Options::default() };
        let mut run = Run::new(&gpu, layout.clone(), options, &vec![1.0; len]);
        let mut grads = vec![7.0; len];
        grads[400] = if skip { f32::NAN } else { 7.0 };
        run.step(&grads, 0.1);
        let after = gpu.read(&run.grads, 0, len);
        let inside = |i: usize| layout.tensors().iter().any(|t| t.range().contains(&i));
        for (i, g) in after.iter().enumerate() {
            assert_eq!(*g, if inside(i) { 0.0 } else { 7.0 }, "gradient {i}, skip {skip}");
        }
        let moved = run.snapshot().params[0] != 1.0;
        assert_eq!(moved, !skip);
    }
    // In buffers that are read element by element too.
    let options = Options { zero_gradients: true, ..Options::default() };
    // Every lane is somewhere between two tensors.
    let places = [(1, 2), (5, 2), (8, 1), (10, 2), (12, 2), (15, 2)];
    let group = places.iter().fold(Group::new("all", Sgd::default()), |group, &(offset, len)| {
        group.tensor_at(format!("t{offset}"), [len], offset)
    });
    let mut optimizer = Optimizer::with_options(&gpu.device, Layout::new([group]).unwrap(), options).unwrap();
    let (p, g) = (gpu.upload(&[0.0; 20]), gpu.upload(&[3.0; 20]));
    let bound = optimizer.bind(&Tensors::flat(View::new(&p, 4), View::new(&g, 8))).unwrap();
    let mut encoder = gpu.encoder();
    optimizer.step(&gpu.queue, &mut encoder, &bound, 1.0).unwrap();
    gpu.run(encoder);
    let (p, g) = (gpu.download(&p), gpu.download(&g));
    for i in 0..18 {
        let inside = places.iter().any(|&(offset, len)| (offset..offset + len).contains(&(i as u64)));
        let (want_p, want_g) = if inside { (-3.0, 0.0) } else { (0.0, 3.0) };
        assert_eq!((p[i + 1], g[i + 2]), (want_p, want_g), "element {i}");
    }
}

/// The average against its sum in f64, in the mean of all weights so far and in PyTorch's form.
#[test]
fn the_average_of_the_weights() {
    let Some(gpu) = harness::test_gpu() else { return };
    for debias in [false, true] {
        let decay = 0.8f64;
        let layout = odd(Sgd::default());
        let len = layout.len() as usize;
        let mut random = Random::new(2);
        let start: Vec<f32> = (0..len).map(|_| random.unit() as f32).collect();
        let options = Options { ema: Some(Ema { decay, debias }), ..Options::default() };
        let mut run = Run::new(&gpu, layout.clone(), options, &start);
        let mut history = Vec::new();
        for t in 0..9 {
            let grads: Vec<f32> = (0..len).map(|_| random.unit() as f32 - 0.5).collect();
            run.step(&grads, lr(t));
            history.push(run.snapshot().params);
        }
        for tensor in layout.tensors() {
            for (got, i) in run.ema(&tensor.name).iter().zip(tensor.range()) {
                let weight = |t: usize| match (debias, t) {
                    (false, 0) => decay.powi(8),
                    (false, _) => (1.0 - decay) * decay.powi(8 - t as i32),
                    (true, _) => (1.0 - decay) * decay.powi(8 - t as i32) / (1.0 - decay.powi(9)),
                };
                let want: f64 = (0..9).map(|t| weight(t) * f64::from(history[t][i])).sum();
                // Nine steps of three roundings of numbers below 1.5.
                approx::assert_abs_diff_eq!(f64::from(*got), want, epsilon = 27.0 * f64::from(f32::EPSILON));
            }
        }
        assert_eq!(run.optimizer.state_bytes(), 4 * layout.len().next_multiple_of(4));
    }
}

/// Three micro-batches, their mean, and an accumulator that is zero again: the same as one batch with the mean.
#[test]
fn micro_batches_add_up() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    let mut random = Random::new(12);
    let batches: Vec<_> = (0..3).map(|_| random.values(len)).collect();
    let options = Options { divide: true, zero_gradients: true, ..Options::default() };
    let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
    let (params, sum) = (gpu.upload(&vec![1.0; len]), gpu.upload(&vec![0.0; len]));
    let tensors = optimizer.bind(&Tensors::flat(&params, &sum)).unwrap();
    let mut accumulator = Accumulator::new(&gpu.device, &layout).unwrap();
    let micro: Vec<_> = batches.iter().map(|batch| gpu.upload(batch)).collect();
    let bound: Vec<_> = micro.iter().map(|m| accumulator.bind(&Tensors::flat(&sum, m)).unwrap()).collect();
    let mut encoder = gpu.encoder();
    for bound in &bound {
        accumulator.add(&gpu.queue, &mut encoder, bound).unwrap();
    }
    optimizer.step(&gpu.queue, &mut encoder, &tensors, Step::from(0.1).divided_by(4.0)).unwrap();
    gpu.run(encoder);
    assert_eq!(gpu.read(&sum, 0, len), vec![0.0; len]);

    let mean: Vec<f32> = (0..len).map(|i| 0.25 * (batches[0][i] + batches[1][i] + batches[2][i])).collect();
    let mut whole = Run::new(&gpu, layout, Options::default(), &vec![1.0; len]);
    whole.step(&mean, 0.1);
    assert_same_bits(&snapshot(&gpu, &optimizer, &params, 0), &whole.snapshot(), "micro-batches");
}

/// One dispatch of each kind whatever the number of tensors; and without options none but the step's.
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
        divide: true,
        clip: Some(Clip::GlobalNorm(1.0)),
        loss_scale: Some(LossScale::default()),
        zero_gradients: true,
        ema: Some(Ema { decay: 0.99, debias: false }),
        ..SKIP
    };
    let cheap = Options {
        divide: true,
        clip: Some(Clip::Value(1.0)),
        zero_gradients: true,
        ema: all.ema,
        ..Options::default()
    };
    let grouped = Options { clip: Some(Clip::GroupNorm(1.0)), ..all };
    let everything = Options { norms: true, ..grouped };
    for (options, dispatches) in
        [(Options::default(), 1), (cheap, 1), (SKIP, 3), (all, 3), (grouped, 4), (everything, 5)]
    {
        let zeros = vec![0.0; layout.len() as usize];
        let run = Run::new(&gpu, layout.clone(), options, &zeros);
        assert_eq!(run.bound.dispatches(), dispatches, "{options:?}");
        // A layer-wise rule takes its measure, and one kernel is between.
        let group = layout.tensors().iter().fold(Group::new("all", Lamb::default()), |group, t| {
            group.tensor_at(&t.name, &t.shape, t.offset)
        });
        let run = Run::new(&gpu, Layout::new([group]).unwrap(), options, &zeros);
        assert_eq!(run.bound.dispatches(), dispatches + 2, "{options:?}");
    }
}

#[test]
fn bad_options_and_divisors() {
    let Some(gpu) = harness::test_gpu() else { return };
    let refused = |options: Options, field: &str| {
        let error = Optimizer::with_options(&gpu.device, single(Sgd::default(), 4), options).unwrap_err();
        assert!(matches!(&error, Error::Options { field: found, .. } if *found == field), "{error}");
    };
    for bad in [0.0, -1.0, 1e-300, f64::NAN, f64::INFINITY, 1e39] {
        refused(Options { clip: Some(Clip::GlobalNorm(bad)), ..SKIP }, "clip.global_norm");
        refused(Options { clip: Some(Clip::GroupNorm(bad)), ..SKIP }, "clip.group_norm");
        refused(Options { clip: Some(Clip::Value(bad)), ..SKIP }, "clip.value");
    }
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
    let divided = |options, divisor| {
        let mut run = Run::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
        let mut encoder = gpu.encoder();
        let step = Step::from(0.1).divided_by(divisor);
        let error = run.optimizer.step(&gpu.queue, &mut encoder, &run.bound, step).unwrap_err();
        assert!(matches!(error, Error::Options { field: "divisor", .. }), "{error}");
        assert_eq!(run.optimizer.steps(), 0);
    };
    divided(Options::default(), 2.0);
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-40, 1e40] {
        divided(Options { divide: true, ..Options::default() }, bad);
    }
}

/// Steps that may be skipped and of which nothing is heard: an error in time, and after a report it goes on.
#[test]
fn unheard_of_steps() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = Run::new(&gpu, single(Sgd::default(), 4), SKIP, &[0.0; 4]);
    let record = |run: &mut Run<'_, Sgd>| {
        let mut encoder = gpu.encoder();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let done = run.optimizer.step_in_pass(&gpu.queue, &mut pass, &run.bound, 0.1);
        drop(pass);
        (done, encoder)
    };
    for _ in 0..1_024 {
        let (done, encoder) = record(&mut run);
        done.unwrap();
        gpu.queue.submit([encoder.finish()]);
    }
    let (done, mut encoder) = record(&mut run);
    assert_eq!(done, Err(Error::Unreported { steps: 1_024, bound: 1_023 }));
    run.optimizer.read_back(&mut encoder).unwrap();
    gpu.run(encoder);
    let report = run.optimizer.take_report().unwrap();
    assert_eq!((report.step, report.skipped), (1_023, 0));
    record(&mut run).0.unwrap();
}

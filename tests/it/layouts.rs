//! Many tensors in every form of the caller's buffers, with poison around them.

use crate::common::{Random, assert_within_budget, lr};
use harness::{Gpu, GpuRun, Places};
use proptest::prelude::*;
use std::ops::Range;
use wgpu_optim::check::Checker;
use wgpu_optim::wgpu::{Buffer, Limits};
use wgpu_optim::{
    AdamW, AnyRule, BindError, Bound, Clip, Group, Lamb, Lars, Layout, Optimizer, Options, Sgd, Tensors, View,
};

/// A signalling NaN that names its place: arithmetic would quiet it, a copy as float might.
fn poison(i: usize) -> u32 {
    0x7f80_0001 | (i as u32 & 0xffff) << 1
}

/// A buffer of `len` elements, all poison.
fn poisoned(gpu: &Gpu, len: u64) -> Buffer {
    let bits: Vec<f32> = (0..len as usize).map(|i| f32::from_bits(poison(i))).collect();
    let buffer = gpu.buffer(len * 4);
    gpu.write(&buffer, 0, &bits);
    buffer
}

/// Fails if an element outside of `ranges` is not poison any more.
fn assert_untouched(gpu: &Gpu, buffer: &Buffer, ranges: &[Range<u64>], context: &str) {
    let bits = gpu.read_bits(buffer, 0, (buffer.size() / 4) as usize);
    for (i, &found) in bits.iter().enumerate() {
        if !ranges.iter().any(|r| r.contains(&(i as u64))) {
            assert_eq!(found, poison(i), "{context}: element {i} is no tensor's and was written");
        }
    }
}

/// The random numbers of a property test.
#[derive(Clone, Debug)]
struct Shape {
    /// `(gap before it, length, group)` of each tensor.
    tensors: Vec<(u64, u64, usize)>,
    seed: u64,
}

fn shapes(most: usize) -> impl Strategy<Value = Shape> {
    let gap = prop_oneof![3 => Just(0u64), 1 => 1u64..9, 1 => Just(300u64)];
    let len = prop_oneof![4 => 1u64..10, 3 => 1u64..70, 1 => 250u64..1_500];
    (prop::collection::vec((gap, len, 0usize..6), 1..=most), any::<u64>())
        .prop_map(|(tensors, seed)| Shape { tensors, seed })
}

fn layout(shape: &Shape, rules: &[AnyRule]) -> Layout {
    let mut groups: Vec<_> =
        rules.iter().enumerate().map(|(g, rule)| (Group::new(format!("g{g}"), *rule), false)).collect();
    let mut at = 0;
    for (i, (gap, len, group)) in shape.tensors.iter().enumerate() {
        at += gap;
        let (group, used) = &mut groups[group % rules.len()];
        *group = group.clone().tensor_at(format!("t{i}"), [*len], at);
        *used = true;
        at += len;
    }
    Layout::new(groups.into_iter().filter(|(_, used)| *used).map(|(group, _)| group)).unwrap()
}

fn adamws() -> Vec<AnyRule> {
    let base = AdamW::default();
    let rules = [
        base,
        AdamW { weight_decay: 0.0, ..base },
        AdamW { beta1: 0.5, maximize: true, ..base },
        AdamW { beta2: 0.9, weight_decay: 0.2, ..base },
        AdamW { eps: 1e-3, ..base },
        AdamW { beta1: 0.0, ..base },
    ];
    rules.map(AnyRule::from).to_vec()
}

/// With and without momentum side by side: the slot is kept for all.
fn sgds() -> Vec<AnyRule> {
    let rules = [
        Sgd::default(),
        Sgd { momentum: 0.9, ..Sgd::default() },
        Sgd { momentum: 0.5, nesterov: true, weight_decay: 0.1, ..Sgd::default() },
    ];
    rules.map(AnyRule::from).to_vec()
}

fn lambs() -> Vec<AnyRule> {
    let base = Lamb::default();
    let rules =
        [base, Lamb { weight_decay: 0.1, maximize: true, ..base }, Lamb { adapt_undecayed: false, ..base }];
    rules.map(AnyRule::from).to_vec()
}

fn larses() -> Vec<AnyRule> {
    let base = Lars { weight_decay: 0.1, ..Lars::default() };
    let rules =
        [base, Lars { momentum: 0.0, ..base }, Lars { joint_norm: true, trust_coefficient: 0.1, ..base }];
    rules.map(AnyRule::from).to_vec()
}

/// Flat parameters and gradients at an element offset in poisoned buffers, with `behind` elements after them.
/// Returns how many dispatches update.
fn check_flat(gpu: &Gpu, layout: &Layout, before: [u64; 2], behind: u64, seed: u64) -> usize {
    let context = format!("flat at {before:?}, {behind} behind");
    let mut random = Random::new(seed);
    let len = layout.len();
    let buffers = before.map(|b| poisoned(gpu, b + len + behind));
    // Where the tensors' parameters and gradients lie is poison between them.
    let places = Places::Flat(before.map(|b| b * 4));
    let mut run = GpuRun::over(gpu, layout.clone(), Options::DEFAULT, buffers, places);
    let mut filled = |mut flat: Vec<f32>| {
        for tensor in layout.tensors() {
            flat[tensor.range()].copy_from_slice(&random.values(tensor.len as usize));
        }
        flat
    };
    run.write_params(&filled(run.params()));
    let mut checker = Checker::new(layout.clone());
    let ranges: Vec<_> = layout.tensors().iter().map(|t| before[0] + t.offset..before[0] + t.end()).collect();
    for t in 0..2 {
        run.write_grads(&filled(run.grads()));
        check_step(&mut run, &mut checker, lr(t), &context);
    }
    assert_untouched(gpu, &run.params, &ranges, &context);
    let dispatches = run.bound.dispatches();
    if layout.groups()[0].rule().spec().trust_ratio.is_none() {
        return dispatches;
    }
    // As many measure, and one is between them.
    assert_eq!(dispatches % 2, 1);
    dispatches / 2
}

/// A step on the gradients that are there, within the budget. It does not write them.
fn check_step(run: &mut GpuRun<'_>, checker: &mut Checker, lr: f64, context: &str) {
    let (old, grads) = (run.snapshot(), run.grads());
    let words = |run: &GpuRun<'_>| run.gpu.read_bits(&run.grads, 0, (run.grads.size() / 4) as usize);
    let gradients = words(run);
    run.again(lr);
    assert_eq!(words(run), gradients, "{context}: gradients were written");
    let deviation = checker.step(&old, &grads, lr, &run.snapshot()).unwrap();
    assert_within_budget(run.optimizer.layout(), &deviation, context);
}

/// A place for each tensor in two pools, in shuffled order, `gap` elements apart.
fn check_pooled(gpu: &Gpu, layout: &Layout, gap: u64, align: u64, seed: u64) {
    let context = format!("pooled, {gap} apart, at multiples of {align}");
    let mut random = Random::new(seed);
    let mut order: Vec<_> = layout.tensors().iter().enumerate().collect();
    order.sort_by_cached_key(|_| random.bits());
    let mut at = gap;
    let mut places = vec![[0; 2]; order.len()];
    for &(nth, tensor) in &order {
        places[nth] = [at; 2];
        at = (at + tensor.len + gap).next_multiple_of(align);
    }
    let ranges: Vec<_> = layout.tensors().iter().zip(&places).map(|(t, [at, _])| *at..at + t.len).collect();
    let buffers = [(); 2].map(|()| poisoned(gpu, at));
    let mut run = GpuRun::over(gpu, layout.clone(), Options::DEFAULT, buffers, Places::Pooled(places));
    let mut checker = Checker::new(layout.clone());
    let mut values = || {
        let mut flat = vec![0.0; layout.len() as usize];
        for (_, tensor) in &order {
            flat[tensor.range()].copy_from_slice(&random.values(tensor.len as usize));
        }
        flat
    };
    run.write_params(&values());
    for t in 0..2 {
        run.write_grads(&values());
        check_step(&mut run, &mut checker, lr(t), &context);
    }
    assert_untouched(gpu, &run.params, &ranges, &context);
}

fn check_shape(gpu: &Gpu, shape: &Shape, rules: &[AnyRule]) {
    let layout = layout(shape, rules);
    let seed = shape.seed;
    // Whole vectors behind the last tensor: one dispatch, however many tensors and groups.
    assert_eq!(check_flat(gpu, &layout, [64, 64], 7, seed), 1);
    assert_eq!(check_flat(gpu, &layout, [4, 128], 3, seed), 1);
    // Nothing behind it: at most a dispatch more, for the last one to three elements.
    assert!(check_flat(gpu, &layout, [0, 0], 0, seed) <= 2);
    // Vectors that straddle: element by element.
    assert_eq!(check_flat(gpu, &layout, [3, 65], 0, seed), 1);
    check_pooled(gpu, &layout, 0, 1, seed);
    check_pooled(gpu, &layout, 5, 4, seed);
}

#[test]
fn random_layouts_with_poisoned_padding() {
    let Some(gpu) = harness::test_gpu() else { return };
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(shape in shapes(40))| {
        check_shape(&gpu, &shape, &adamws());
        check_shape(&gpu, &shape, &sgds());
        check_shape(&gpu, &shape, &lambs());
        check_shape(&gpu, &shape, &larses());
    });
    let config = ProptestConfig {
        cases: 4,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..ProptestConfig::default()
    };
    proptest!(config, |(shape in shapes(1_000))| {
        check_shape(&gpu, &shape, &adamws());
    });
}

/// A device whose bindings hold 64 KiB and whose dispatches have 15 workgroups a row: chunks and rows at
/// sizes that are quick to check.
fn cramped() -> Option<Gpu> {
    harness::test_gpu_with(|limits: &mut Limits| {
        limits.max_storage_buffer_binding_size = 1 << 16;
        limits.max_compute_workgroups_per_dimension = 15;
        limits.max_uniform_buffer_binding_size = 1 << 10;
    })
}

#[test]
fn chunks_and_rows_on_a_cramped_device() {
    let Some(gpu) = cramped() else { return };
    let one = Layout::new([Group::new("all", AdamW::default()).tensor("w", [100_003])]).unwrap();
    let dispatches = check_flat(&gpu, &one, [0, 0], 1, 1);
    assert_eq!(dispatches, 7, "16 320 elements a chunk");
    check_flat(&gpu, &one, [64, 128], 0, 2);
    check_flat(&gpu, &one, [1, 2], 0, 3);
    check_pooled(&gpu, &one, 3, 1, 4);
    check_pooled(&gpu, &one, 64, 64, 5);
    let mut random = Random::new(6);
    let tensors =
        (0..300).map(|i| (random.below(5), 1 + random.below(if i % 9 == 0 { 9_000 } else { 40 }), i % 6));
    let shape = Shape { tensors: tensors.collect(), seed: 8 };
    let many = layout(&shape, &adamws());
    check_flat(&gpu, &many, [0, 64], 3, 9);
    check_flat(&gpu, &many, [7, 9], 0, 10);
    check_pooled(&gpu, &many, 2, 1, 11);
    // A tensor whose norm is of seven chunks.
    let one = Layout::new([Group::new("all", Lamb::default()).tensor("w", [100_003])]).unwrap();
    check_flat(&gpu, &one, [0, 0], 1, 1);
    check_flat(&gpu, &one, [1, 2], 0, 3);
    check_pooled(&gpu, &one, 3, 1, 4);
    let few = Shape { tensors: shape.tensors[..15].to_vec(), ..shape };
    check_flat(&gpu, &layout(&few, &larses()), [0, 64], 3, 9);
    check_flat(&gpu, &layout(&few, &lambs()), [7, 9], 0, 10);
    check_pooled(&gpu, &layout(&few, &larses()), 2, 1, 11);
}

/// More tiles than a uniform table holds: the table moves to storage, and it stays one dispatch.
#[test]
fn thousands_of_tiny_tensors_are_one_dispatch() {
    let Some(gpu) = harness::test_gpu() else { return };
    let shape = Shape { tensors: (0..5_000).map(|i| (0, 1 + i as u64 % 7, i % 6)).collect(), seed: 12 };
    assert_eq!(check_flat(&gpu, &layout(&shape, &adamws()), [0, 0], 8, 13), 1);
}

/// Parameters and gradients in one pooled buffer, in blocks of their own: the gradients' binding becomes
/// writable.
#[test]
fn parameters_and_gradients_may_share_a_buffer() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout =
        Layout::packed([Group::new("all", Sgd::default()).tensor("a", [100]).tensor("b", [30])]).unwrap();
    let pool = poisoned(&gpu, 1_024);
    let bind = |optimizer: &mut Optimizer, at: [u64; 4]| -> Result<Bound, BindError> {
        let [pa, ga, pb, gb] = at.map(|element| View::new(&pool, element * 4));
        optimizer.bind(&Tensors::each([("a", pa, ga), ("b", pb, gb)]))
    };
    let mut optimizer = Optimizer::new(&gpu.device, layout).unwrap();
    gpu.write(&pool, 0, &[1.0; 100]);
    gpu.write(&pool, 256 * 4, &[2.0; 100]);
    gpu.write(&pool, 512 * 4, &[3.0; 30]);
    gpu.write(&pool, 768 * 4, &[4.0; 30]);
    let tensors = bind(&mut optimizer, [0, 256, 512, 768]).unwrap();
    let mut encoder = gpu.encoder();
    optimizer.step(&gpu.queue, &mut encoder, &tensors, 0.5).unwrap();
    gpu.run(encoder);
    assert_eq!(gpu.read(&pool, 0, 100), [0.0; 100]);
    assert_eq!(gpu.read(&pool, 512 * 4, 30), [1.0; 30]);
    assert_eq!(gpu.read(&pool, 256 * 4, 100), [2.0; 100]);
    assert_untouched(&gpu, &pool, &[0..100, 256..356, 512..542, 768..798], "shared");

    // In one 256-byte block their bindings would overlap.
    let error = bind(&mut optimizer, [0, 256, 512, 544]).unwrap_err();
    assert!(matches!(error, BindError::Overlap { .. }), "{error}");
}

/// State lies where the layout says, whatever the form of the buffers: a run may change from one form to the
/// other.
#[test]
fn flat_and_each_may_take_turns() {
    let Some(gpu) = harness::test_gpu() else { return };
    let shape = Shape { tensors: vec![(0, 5, 0), (0, 7, 1), (2, 300, 2), (0, 1, 3)], seed: 21 };
    let layout = layout(&shape, &adamws());
    let mut random = Random::new(22);
    let len = layout.len() as usize;
    let mut run = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &random.values(len));
    let views = layout.tensors().iter().map(|t| {
        let at = t.offset * 4;
        (t.name.as_str(), View::new(&run.params, at), View::new(&run.grads, at))
    });
    let mut each = run.optimizer.bind(&Tensors::each(views)).unwrap();
    assert_eq!((run.bound.dispatches(), each.dispatches()), (1, 4));
    let mut checker = Checker::new(layout.clone());
    for t in 0..6 {
        let grads = random.values(len);
        let old = run.snapshot();
        run.step(&grads, lr(t));
        let deviation = checker.step(&old, &grads, lr(t), &run.snapshot()).unwrap();
        assert_within_budget(&layout, &deviation, &format!("step {}", t + 1));
        std::mem::swap(&mut run.bound, &mut each);
    }
}

/// A layout keeps single tensors of any length on the vector path: one dispatch each, and one more for a last
/// odd element. A packed layout does not, for all but the tensors that start at a vector.
#[test]
fn layouts_for_buffers_of_single_tensors() {
    let Some(gpu) = harness::test_gpu() else { return };
    let group = Group::new("g", AdamW::default()).tensor("a", [10]).tensor("b", [3]).tensor("c", [64]);
    let packed = Layout::packed([group.clone()]).unwrap();
    assert_eq!(packed.tensors().iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 10, 13]);
    let layout = Layout::new([group]).unwrap();
    assert_eq!(layout.tensors().iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 12, 16]);
    let buffers: Vec<_> =
        layout.tensors().iter().map(|t| (gpu.buffer(t.len * 4), gpu.buffer(t.len * 4))).collect();
    let bind = |layout: &Layout| {
        let mut optimizer = Optimizer::new(&gpu.device, layout.clone()).unwrap();
        let views = layout.tensors().iter().zip(&buffers).map(|(t, (p, g))| (t.name.as_str(), p, g));
        let bound = optimizer.bind(&Tensors::each(views)).unwrap();
        (bound.dispatches(), bound.slow_dispatches())
    };
    // 10 = 8 + 2, 3, 64.
    assert_eq!(bind(&layout), (4, 0));
    // 10 = 8 + 2, and two tensors at lanes 2 and 1.
    assert_eq!(bind(&packed), (4, 2));
    check_pooled(&gpu, &layout, 0, 4, 31);
    check_pooled(&gpu, &layout, 1, 1, 32);
    check_pooled(&gpu, &packed, 1, 1, 33);
}

/// Rows of 2 000 groups take more than the 64 KiB of a uniform binding, whether the host sends them or the
/// control kernel chooses them.
#[test]
fn more_groups_than_a_uniform_binding_holds() {
    const GROUPS: usize = 2_000;
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = |rule: AnyRule| {
        let group = |i: usize| {
            let factor = 1.0 + i as f64 / GROUPS as f64;
            Group::new(format!("g{i}"), rule).lr_factor(factor).tensor(format!("t{i}"), [3])
        };
        Layout::packed((0..GROUPS).map(group)).unwrap()
    };
    check_flat(&gpu, &layout(AdamW::default().into()), [64, 64], 0, 1);
    check_flat(&gpu, &layout(Lamb::default().into()), [64, 64], 0, 2);
    let layout = layout(Sgd::default().into());
    let grads = Random::new(5).values(3 * GROUPS);
    let options = Options { clip: Some(Clip::GroupNorm(2.0)), skip_nonfinite: true, ..Options::default() };
    let mut run = GpuRun::new(&gpu, layout, options, &vec![0.0; grads.len()]);
    run.step(&grads, 1.0);
    for (i, (got, g)) in run.params().chunks(3).zip(grads.chunks(3)).enumerate() {
        let norm = g.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let factor = (2.0 / (norm + 1e-6)).min(1.0) * (1.0 + i as f64 / GROUPS as f64);
        for (&got, &g) in got.iter().zip(g) {
            let want = -factor * f64::from(g);
            assert!(
                (f64::from(got) - want).abs() <= 2e-6 * want.abs(),
                "group {i}: {got:e}, must be {want:e}"
            );
        }
    }
}

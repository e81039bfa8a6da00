//! Whole runs with state in blocks.

use crate::common::{Random, single};
use harness::{Gpu, GpuRun};
use wgpu_optim::q8::{self, BLOCK};
use wgpu_optim::rules::GpuOnly;
use wgpu_optim::{
    AdamW, DynRule, Format, Group, Layout, Optimizer, Options, OptionsError, Rounding, RuleError, Sgd, wgpu,
};

/// Tensors that share vectors with others, of lengths that are no multiples of a block, in two groups, and a
/// gap.
fn odd(rule: impl Into<DynRule>) -> Layout {
    let rule = rule.into();
    Layout::packed([
        Group::new("g", rule.clone())
            .tensor("a", [5])
            .tensor("b", [1])
            .tensor("c", [1])
            .tensor("d", [1])
            .tensor("e", [3_333]),
        Group::new("h", rule)
            .lr_factor(0.5)
            .tensor("f", [64])
            .tensor("h", [31])
            .tensor_at("i", [700], 3_501)
            // Side by side, of whole vectors and not of whole blocks.
            .tensor_at("j", [36], 4_204)
            .tensor("k", [36])
            .tensor("l", [100]),
    ])
    .unwrap()
}

/// The blocks of a tensor in the flat space.
fn blocks(range: std::ops::Range<usize>) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = range.start / 4 * 4;
    (first..range.end).step_by(BLOCK).map(move |at| at.max(range.start)..(at + BLOCK).min(range.end))
}

/// The first momentum is the gradient: a whole step stores the codes that the CPU makes of its blocks. There
/// are blocks of zeros, of numbers below all scales, of very small and very large ones, one with a number
/// that is larger than all others, one without negative numbers, and one with a NaN.
#[test]
fn a_step_stores_the_blocks_of_each_tensor() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(Sgd { momentum: 0.9, ..Sgd::default() });
    let len = layout.len() as usize;
    // Smaller numbers are zero.
    let least = f64::from(f32::MIN_POSITIVE);
    let mut grads = Random::new(21).values(len);
    for (n, block) in blocks(layout.tensor("e").unwrap().range()).enumerate() {
        let outlier = block.start + 3;
        for i in block {
            let x = grads[i];
            grads[i] = match n {
                1 => 0.0,
                2 => x * 1e-39,
                3 => x * 1e-30,
                4 => x * 1e30,
                5 if i == outlier => 1e6,
                6 => x.abs(),
                7 if i == outlier => f32::NAN,
                _ => x,
            };
        }
    }
    let ways =
        [(Rounding::Nearest, false), (Rounding::Nearest, true), (Rounding::Stochastic { seed: 3 }, false)];
    for (norms, (rounding, each)) in [false, true].into_iter().flat_map(|norms| ways.map(|way| (norms, way)))
    {
        let options = Options { states: Format::Q8, rounding, norms, ..Options::default() };
        let new = if each { GpuRun::each } else { GpuRun::new };
        let mut run = new(&gpu, layout.clone(), options, &vec![0.5; len]);
        run.step(&grads, 0.0);
        let got = run.slot("momentum_buffer");
        for block in layout.tensors().iter().flat_map(|t| blocks(t.range())) {
            let scale = q8::scale(&grads[block.clone()]);
            for i in block {
                let (got, nearest) = (f32::from_bits(got[i]), q8::decode(q8::encode(grads[i], scale), scale));
                let good = match rounding {
                    Rounding::Nearest => got.to_bits() == nearest.to_bits(),
                    _ => {
                        f64::from(got - grads[i]).abs() <= q8::spacing(grads[i].into(), scale) * 1.01 + least
                            || nearest.is_nan()
                    }
                };
                assert!(good, "element {i}: {got:e} of {:e}, on the CPU {nearest:e}", grads[i]);
            }
        }
    }
}

/// Tensors below a size keep state in f32, which is that of a run in which all do.
#[test]
fn small_tensors_stay_f32() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    let run = |states, f32_states_below| {
        let options = Options { states, f32_states_below, ..Options::default() };
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &vec![0.5; len]);
        let mut random = Random::new(22);
        for _ in 0..5 {
            run.step(&random.values(len), 1e-3);
        }
        (run.snapshot(), run.optimizer.state_bytes())
    };
    let [(exact, bytes), (all, fewest), (large, fewer)] =
        [run(Format::F32, 0), run(Format::Q8, 0), run(Format::Q8, 64)];
    assert!(fewest < bytes / 3 && fewer < bytes / 3, "{fewest} {fewer} {bytes}");
    for t in layout.tensors() {
        let same = |other: &wgpu_optim::check::Snapshot, exact: &wgpu_optim::check::Snapshot| {
            other.params[t.range()] == exact.params[t.range()]
                && (0..2).all(|slot| other.state[slot][t.range()] == exact.state[slot][t.range()])
        };
        assert_eq!(same(&large, &exact), t.len < 64, "{}", t.name);
        assert_eq!(same(&large, &all), t.len >= 64, "{}", t.name);
    }
}

/// 16.5 bytes per parameter instead of 28, and 2.25 bytes of state instead of 8.
#[test]
fn eight_bit_adam_moves_half() {
    let Some(gpu) = harness::test_gpu() else { return };
    let elements = 1 << 24;
    let options = Options { states: Format::Q8, ..Options::default() };
    let layout = || single(AdamW::default(), elements);
    assert_eq!(layout().bytes_moved(&options), 33 * elements / 2);
    assert_eq!(layout().bytes_moved(&Options::default()), 28 * elements);
    let state = Optimizer::with_options(&gpu.device, layout(), options).unwrap().state_bytes();
    assert_eq!(state, 9 * elements / 4);
}

/// Neither chunks nor buffers change a bit; blocks are not cut.
#[test]
fn blocks_do_not_know_of_buffers() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let (Some(roomy), Some(cramped)) = (harness::test_gpu(), harness::test_gpu_with(limit)) else { return };
    let layout = || {
        let group = Group::new("g", AdamW::default());
        Layout::packed([group.tensor_at("a", [40_001], 6).tensor("b", [3]).tensor("c", [33_333])]).unwrap()
    };
    let len = layout().len() as usize;
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 5 }] {
        let options = Options { states: Format::Q8, rounding, norms: true, ..Options::default() };
        let run = |gpu: &Gpu, each: bool| {
            let new = if each { GpuRun::each } else { GpuRun::new };
            let mut run = new(gpu, layout(), options, &vec![1.0; len]);
            let mut random = Random::new(82);
            for _ in 0..4 {
                run.step(&random.values(len), 1e-3);
            }
            (run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq"))
        };
        let first = run(&roomy, false);
        assert!(run(&cramped, false) == first, "chunks");
        assert!(run(&roomy, true) == first, "buffers of single tensors");
    }
}

/// More tensors than a binding has room for the blocks of.
#[test]
fn small_tensors_fill_chunks() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let Some(gpu) = harness::test_gpu_with(limit) else { return };
    let tensors = (0..4_080).fold(Group::new("g", AdamW::default()), |g, i| g.tensor(i.to_string(), [4]));
    let layout = Layout::new([tensors]).unwrap();
    let len = layout.len() as usize;
    let ema = Some(wgpu_optim::Ema { decay: 0.9, debias: false });
    let options = Options { states: Format::Q8, ema, ..Options::default() };
    let mut run = GpuRun::new(&gpu, layout, options, &vec![1.0; len]);
    run.step(&vec![1.0; len], 1e-3);
    assert!(run.snapshot().params.iter().all(|&p| p < 1.0));
}

/// A rule that does not write leaves the values that it has read.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lazy;

wgpu_optim::fields! {
    /// None that count.
    struct LazyScalars {
        /// Learning rate.
        lr,
    }
}

impl wgpu_optim::Rule for Lazy {
    const NAME: &'static str = "lazy";
    const DEFAULT_LR: f64 = 1.0;
    const WGSL: &'static str = "fn update(s: Scalars, at: At) {
let g = read_g(at);
let m = read_momentum_buffer(at);
if any(g != vec4<f32>(0.0)) { write_momentum_buffer(at, m + g); }
let p = read_p(at);
write_p(at, p - s.lr * g);
}";
    type Scalars<T: wgpu_optim::float::Float> = LazyScalars<T>;
    type State<T: wgpu_optim::float::Float> = wgpu_optim::rules::SgdState<T>;
    fn validate(&self) -> Result<(), RuleError> {
        Ok(())
    }
    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> LazyScalars<f64> {
        LazyScalars { lr }
    }
}

#[test]
fn what_is_not_written_stays() {
    let Some(gpu) = harness::test_gpu() else { return };
    let options = Options { states: Format::Q8, ..Options::default() };
    let mut run = GpuRun::new(&gpu, single(GpuOnly(Lazy), 100), options, &[0.0; 100]);
    let mut random = Random::new(33);
    run.step(&random.values(100), 1.0);
    let before = run.slot("momentum_buffer");
    run.step(&[0.0; 100], 1.0);
    assert_eq!(run.slot("momentum_buffer"), before);
    assert!(before.iter().any(|&bits| bits != 0));
}

#[test]
fn blocks_are_for_state() {
    let Some(gpu) = harness::test_gpu() else { return };
    let q8 = Format::Q8;
    for (field, options) in [
        ("params", Options { params: q8, ..Options::default() }),
        ("grads", Options { grads: q8, ..Options::default() }),
    ] {
        let error = Optimizer::with_options(&gpu.device, single(AdamW::default(), 8), options).unwrap_err();
        assert!(
            matches!(error, OptionsError::Format { field: found, format: "q8", .. } if found == field),
            "{error}"
        );
    }
}

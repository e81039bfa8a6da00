//! The CPU engine beside the GPU: the same semantics, and the same bits where arithmetic is exact.
//! `cpu-harness` tests it alone.

use crate::common::{Random, assert_within_budget, lr};
use cpu_harness::{CpuRun, all, many};
use harness::{GpuRun, cpu_slot};
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::{AdamW, AnyRule, Clip, Format, Lamb, Master, NAdam, Options, Report, Rounding, Sgd, Step};

/// Gradients that are divided and clipped, and averages, are within the budget beside the GPU.
#[test]
fn options_are_those_of_the_gpu() {
    /// The most that may lie between the devices, in terms of the largest parameter: both round the factor of
    /// the gradients and the update.
    const TOLERANCE: f32 = 1e-6;
    fn test(rule: AnyRule) {
        let Some(gpu) = harness::test_gpu() else { return };
        let layout = many(rule);
        let len = layout.len() as usize;
        // Gradients are 0.02 at most by then.
        let clips = [Clip::GlobalNorm(1.0), Clip::GroupNorm(0.5), Clip::Value(0.005)];
        for options in clips.map(all) {
            let mut random = Random::new(12);
            // A step of the learning rate is a hundredth of the largest parameter.
            let start: Vec<f32> = (0..len).map(|_| 2.0 * random.unit() as f32 - 1.0).collect();
            let mut device = GpuRun::new(&gpu, layout.clone(), options, &start);
            let mut host = CpuRun::new(layout.clone(), options, &start);
            for t in 0..6 {
                let mut grads: Vec<f32> = (0..len).map(|_| random.unit() as f32 - 0.5).collect();
                if t % 3 == 1 {
                    grads[layout.tensors()[4].range().start] = f32::NEG_INFINITY;
                }
                let step = Step::from(lr(t)).with_grad_scale(3.0);
                let want = device.step(&grads, step).unwrap();
                let got = host.step(&grads, step).unwrap();
                let exact =
                    |r: &Report| (r.step, r.finite, r.skipped, r.loss_scale, r.next_loss_scale, r.good_steps);
                assert_eq!(exact(&got), exact(&want), "{} {options:?}", rule.name());
                for (got, want, tolerance) in [
                    (got.grad_norm, want.grad_norm, 1e-6),
                    (got.clip_factor, want.clip_factor, 1e-6),
                    (got.param_norm.unwrap(), want.param_norm.unwrap(), 1e-6),
                    // Of a thousandth of some parameters, which are rounded.
                    (got.update_norm.unwrap(), want.update_norm.unwrap(), 1e-5),
                ] {
                    approx::assert_relative_eq!(got, want, max_relative = tolerance);
                }
                assert_eq!(host.optimizer.loss_scale(), Some(got.next_loss_scale));
            }
            let (want, got) = (device.snapshot(), host.snapshot());
            let close = |what: &str, got: &[f32], want: &[f32]| {
                let size = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                for i in layout.tensors().iter().flat_map(|tensor| tensor.range()).filter(|&i| i < got.len())
                {
                    let off = (got[i] - want[i]).abs();
                    assert!(
                        off <= TOLERANCE * size,
                        "{} {what}[{i}] = {} and {}",
                        rule.name(),
                        got[i],
                        want[i]
                    );
                }
            };
            close("param", &got.params, &want.params);
            got.state.iter().zip(&want.state).for_each(|(got, want)| close("state", got, want));
            let numbers = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect::<Vec<_>>();
            close("ema", &numbers(host.slot("ema")), &numbers(device.slot("ema")));
        }
    }
    test(AdamW::default().into());
    test(Lamb { weight_decay: 0.1, ..Lamb::default() }.into());
    test(NAdam::default().into());
}

/// Numbers stored in 2 bytes are rounded as on the GPU, at random too: equal elements draw equal random
/// numbers.
#[test]
fn formats_are_those_of_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    // Sums and products of few digits are exact on every device; only stored numbers are rounded.
    let rule = Sgd { momentum: 0.5, ..Sgd::default() };
    let layout = many(rule);
    let len = layout.len() as usize;
    let bf16 =
        Options { params: Format::Bf16, grads: Format::Bf16, states: Format::Bf16, ..Options::default() };
    let stochastic = Rounding::Stochastic { seed: 77 };
    for options in [
        bf16,
        Options { master: Master::Remainder, ..bf16 },
        Options { master: Master::None, ..bf16 },
        Options { master: Master::None, rounding: stochastic, ..bf16 },
        Options { states: Format::Q8, ..Options::default() },
        Options { states: Format::Q8, rounding: stochastic, ..bf16 },
        Options { states: Format::Q8, rounding: stochastic, f32_states_below: 128, ..bf16 },
        Options { states: Format::Q8, f32_states_below: 45, ..Options::default() },
        Options { master: Master::None, rounding: stochastic, f32_states_below: 17_000, ..bf16 },
        Options { f32_states_below: u64::MAX, ..bf16 },
        Options {
            params: Format::F16,
            grads: Format::F16,
            master: Master::None,
            rounding: stochastic,
            ..bf16
        },
    ] {
        let mut random = Random::new(13);
        let start = random.values(len);
        let mut device = GpuRun::new(&gpu, layout.clone(), options, &start);
        let mut host = CpuRun::new(layout.clone(), options, &start);
        for _ in 0..3 {
            let grads: Vec<f32> = (0..len).map(|_| (random.below(9) as f32 - 4.0) * 0.0625).collect();
            device.step(&grads, 0.125);
            host.step(&grads, 0.125);
        }
        let (got, want) = (host.codes(), device.codes());
        for tensor in layout.tensors() {
            assert_eq!(got[tensor.range()], want[tensor.range()], "{} {options:?}", tensor.name);
        }
        for slot in ["momentum_buffer", "master", "remainder"] {
            let [got, want] = [cpu_slot(&host.optimizer, slot), harness::slot(&gpu, &device.optimizer, slot)];
            assert_eq!(got, want, "{slot}, {options:?}");
        }
    }
}

/// A run that goes on on the CPU from the GPU's state: every step is within the budget of the reference.
#[test]
fn a_run_changes_devices() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = many(AdamW::default());
    let len = layout.len() as usize;
    let mut random = Random::new(31);
    let mut device = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &random.values(len));
    let grads = random.values(len);
    device.step(&grads, 0.1);
    let before = device.snapshot();

    // The first step is the device's, the second the host's, which has counted one of its own.
    let mut host = CpuRun::new(layout.clone(), Options::DEFAULT, &vec![0.0; len]);
    host.step(&grads, 0.1);
    host.write_params(&before.params);
    for (slot, values) in ["exp_avg", "exp_avg_sq"].iter().zip(&before.state) {
        for tensor in layout.tensors() {
            host.optimizer.write_state(slot, &tensor.name, &values[tensor.range()]).unwrap();
        }
    }
    host.step(&grads, 0.1);
    let after = host.snapshot();
    let mut checker = Checker::new(layout.clone());
    let start = Snapshot { params: vec![0.0; len], state: vec![vec![0.0; len], vec![0.0; len], vec![]] };
    checker.step(&start, &grads, 0.1, &before).unwrap();
    let worst = checker.step(&before, &grads, 0.1, &after).unwrap();
    assert_within_budget(&layout, &worst, "the second step");
}

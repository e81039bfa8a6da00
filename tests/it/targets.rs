//! Kernels for GPUs, on any device.

use crate::common::{Random, assert_within_budget, lr};
use harness::{Gpu, GpuRun};
use wgpu_optim::check::Checker;
use wgpu_optim::kernel::Target;
use wgpu_optim::{AnyRule, Clip, DynRule, Ema, Format, Group, Layout, LossScale, Master, Options, Rounding};

const STEPS: usize = 3;

/// Tensors that share vectors, aligned ones, and one of several workgroups, in two groups.
fn layout(rule: &DynRule) -> Layout {
    let group = |name| Group::new(name, rule.clone());
    Layout::packed([
        group("even").tensor("a", [5]).tensor("c", [1_030]).tensor("e", [64]),
        group("odd").lr_factor(0.5).tensor("b", [3]).tensor("d", [33]),
    ])
    .unwrap()
}

fn run<'a>(gpu: &'a Gpu, rule: &DynRule, options: Options, target: Target) -> GpuRun<'a> {
    let layout = layout(rule);
    let mut random = Random::new(11);
    let start: Vec<f32> = random.values(layout.len() as usize);
    let mut run = GpuRun::new(gpu, layout, options, &start).for_target(target);
    for t in 0..STEPS {
        let mut grads: Vec<f32> = random.values(start.len());
        if t == 1 && options.skip_nonfinite {
            grads[7] = f32::NAN;
        }
        run.step(&grads, lr(t));
    }
    run
}

/// The options under which a rule's kernels differ, none of which takes a norm: sums of squares are added up
/// in another order.
fn options() -> Vec<Options> {
    let plain = Options::DEFAULT;
    let bf16 = Format::Bf16;
    let remainder = Options { params: bf16, grads: bf16, master: Master::Remainder, ..plain };
    let half = Options { params: bf16, grads: bf16, states: bf16, master: Master::None, ..plain };
    let ema = Some(Ema { decay: 0.9, debias: true });
    let skips = Options { skip_nonfinite: true, zero_gradients: true, ema, ..plain };
    let scaled = Options { loss_scale: Some(LossScale::default()), clip: Some(Clip::Value(0.5)), ..skips };
    let rounding = Rounding::Stochastic { seed: 5 };
    let f16 = Options { params: Format::F16, grads: Format::F16, ..skips };
    vec![
        plain,
        skips,
        scaled,
        remainder,
        f16,
        Options { rounding, ..half },
        Options { states: Format::Q8, ..skips },
        Options { states: Format::Q8, rounding, ..remainder },
    ]
}

/// Loads before the arithmetic or in it: the same bits.
#[test]
fn both_targets_have_the_same_bits() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rules = AnyRule::all().into_iter().map(DynRule::from);
    for rule in rules.filter(|rule| rule.spec().trust_ratio.is_none()) {
        for options in options() {
            let [a, b] = Target::ALL.map(|target| run(&gpu, &rule, options, target));
            let context = format!("{rule:?}, {options:?}");
            assert_eq!(a.codes(), b.codes(), "{context}");
            let grads = [&a, &b].map(|run| gpu.read_bits(&run.grads, 0, (run.grads.size() / 4) as usize));
            assert_eq!(grads[0], grads[1], "gradients, {context}");
            for slot in a.optimizer.layout().slot_names() {
                let [a, b] = [&a, &b].map(|run| harness::slot(&gpu, &run.optimizer, slot));
                assert_eq!(a, b, "{slot}, {context}");
            }
        }
    }
}

/// Kernels for GPUs that take norms, and so add up in an order of their own, are within the budget.
#[test]
fn kernels_for_gpus_are_within_budget() {
    let Some(gpu) = harness::test_gpu() else { return };
    for rule in AnyRule::all().into_iter().map(DynRule::from) {
        for norms in [false, true] {
            let options = Options { norms, report: norms, ..Options::DEFAULT };
            let layout = layout(&rule);
            let mut random = Random::new(12);
            let start: Vec<f32> = random.values(layout.len() as usize);
            let mut run = GpuRun::new(&gpu, layout.clone(), options, &start).for_target(Target::Gpu);
            let mut checker = Checker::new(layout.clone());
            let mut before = run.snapshot();
            for t in 0..STEPS {
                let grads: Vec<f32> = random.values(start.len());
                run.step(&grads, lr(t));
                let after = run.snapshot();
                let deviation = checker.step(&before, &grads, lr(t), &after).unwrap();
                assert_within_budget(&layout, &deviation, &format!("step {}", t + 1));
                before = after;
            }
        }
    }
}

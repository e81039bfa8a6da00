//! Values at the edges of f32, worked examples, and SGD's first step.

use crate::common::{Case, Random, assert_same_bits, assert_within_budget, cases, lr, single};
use cpu_harness::CpuRun;
use harness::GpuRun;
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, AnyRule, DynRule, Group, Layout, Lion, NAdam,
    Options, RAdam, RmsProp, Sgd, Step, cpu,
};

/// Runs both devices on the same data and hands each end to `judge`.
fn both(rule: &DynRule, params: &[f32], grads: &[Vec<f32>], mut judge: impl FnMut(&str, &Snapshot)) {
    let layout = single(rule.clone(), params.len() as u64);
    let mut run = CpuRun::new(layout.clone(), Options::DEFAULT, params);
    for (t, grads) in grads.iter().enumerate() {
        run.step(grads, lr(t));
    }
    judge("CPU", &run.snapshot());
    if let Some(gpu) = harness::test_gpu() {
        let mut run = GpuRun::new(&gpu, layout, Options::DEFAULT, params);
        for (t, grads) in grads.iter().enumerate() {
            run.step(grads, lr(t));
        }
        judge("GPU", &run.snapshot());
    }
}

/// [`both`] for a built-in rule.
fn both_of(rule: impl Into<AnyRule>, params: &[f32], grads: &[Vec<f32>], judge: impl FnMut(&str, &Snapshot)) {
    both(&rule.into().into(), params, grads, judge);
}

/// Each NaN or infinity stays in its own element, in parameters and state, for rules that are not layer-wise:
/// the norms of those it reaches.
#[test]
fn a_non_finite_gradient_stays_in_its_element() {
    /// Whole chunks of the CPU engine and a part of one, with bad elements in each.
    const LEN: usize = 300;
    const BAD: [(usize, f32); 6] = [
        (0, f32::NAN),
        (1, f32::INFINITY),
        (5, f32::NEG_INFINITY),
        (66, f32::INFINITY),
        (200, f32::NAN),
        (299, f32::INFINITY),
    ];
    for Case { rule, .. } in cases().into_iter().filter(|case| case.rule.spec().trust_ratio.is_none()) {
        let mut random = Random::new(5);
        let params: Vec<f32> = random.values(LEN);
        let clean: Vec<_> = (0..3).map(|_| random.values(LEN)).collect();
        let mut dirty = clean.clone();
        for (at, bad) in BAD {
            dirty[1][at] = bad;
        }
        let mut ends = Vec::new();
        both(&rule, &params, &clean, |_, end| ends.push(end.clone()));
        let mut ends = ends.into_iter();
        both(&rule, &params, &dirty, |device, end| {
            let mut end = end.clone();
            let clean = ends.next().unwrap();
            for (at, bad) in BAD {
                let finite = |values: &[f32]| values.is_empty() || values[at].is_finite();
                // A NaN is seen in the parameter. Lion's steps have the sign of an infinity, and only its
                // state has the infinity itself.
                let no_trace = finite(&end.params) && end.state.iter().all(|s| finite(s));
                let trace = if bad.is_nan() { end.params[at].is_nan() } else { !no_trace };
                assert!(trace, "{} {device}: {bad} left no trace", rule.name());
                end.params[at] = clean.params[at];
                for (slot, clean) in end.state.iter_mut().zip(&clean.state).filter(|(s, _)| !s.is_empty()) {
                    slot[at] = clean[at];
                }
            }
            assert_same_bits(&end, &clean, &format!("{} {device}", rule.name()));
        });
    }
}

/// Zero gradients from the start: nothing moves but by decay, and nothing becomes NaN.
#[test]
fn zeros_stay_zeros() {
    for Case { rule, .. } in cases() {
        both(&rule, &[0.0; 9], &vec![vec![0.0; 9]; 3], |device, end| {
            assert_eq!(end.params, [0.0; 9], "{} {device}", rule.name());
            // Some state takes ε or an initial value, and none more.
            assert!(end.state.iter().flatten().all(|s| (0.0..=0.2).contains(s)), "{} {device}", rule.name());
        });
    }
}

/// Tiny, huge and subnormal values, as far as f32 holds the squares: within the budget of every step.
#[test]
fn extreme_magnitudes_are_within_budget() {
    let Some(gpu) = harness::test_gpu() else { return };
    for Case { rule, .. } in cases() {
        let magnitudes = [0.0, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e18];
        let signed: Vec<f32> = magnitudes.iter().flat_map(|&x| [x, -x]).collect();
        let pairs = signed.iter().flat_map(|&p| signed.iter().map(move |&g| (p, g)));
        let (params, grads): (Vec<f32>, Vec<f32>) = pairs.unzip();
        let layout = single(rule, params.len() as u64);
        let mut run = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &params);
        let mut checker = Checker::new(layout.clone());
        let mut before = run.snapshot();
        for t in 0..3 {
            run.step(&grads, lr(t));
            let after = run.snapshot();
            let deviation = checker.step(&before, &grads, lr(t), &after).unwrap();
            assert_within_budget(&layout, &deviation, &format!("step {}", t + 1));
            before = after;
        }
    }
}

/// An infinite parameter stays infinite in a group without decay, even in one vector with a group that has
/// decay: 0 · ∞ would be NaN.
#[test]
fn an_infinite_parameter_without_decay_stays_infinite() {
    const LEN: usize = 75;
    let decoupled = Adam { decoupled_weight_decay: true, ..Adam::default() };
    // Every rule that has a decay and is not layer-wise.
    macro_rules! pairs {
        ($($rule:ident),+) => {
            [$([0.1, 0.0].map(|weight_decay| AnyRule::from($rule { weight_decay, ..$rule::default() }))),+]
        };
    }
    let pairs =
        pairs!(Sgd, Adam, AdamW, Adagrad, RmsProp, Adadelta, Adamax, NAdam, RAdam, Lion, AdaBelief, Adan);
    let [with, without] = [0.1, 0.0].map(|weight_decay| Adam { weight_decay, ..decoupled }.into());
    for [with, without] in pairs.into_iter().chain([[with, without]]) {
        let layout = Layout::packed([
            Group::new("decay", with).tensor("a", [3]),
            Group::new("no_decay", without).tensor("b", [LEN as u64 - 3]),
        ])
        .unwrap();
        let mut start = vec![0.5; LEN];
        let infinite = [3, 5, 40, LEN - 1];
        for (i, sign) in infinite.into_iter().zip([1.0, -1.0].into_iter().cycle()) {
            start[i] = sign * f32::INFINITY;
        }
        let judge = |device: &str, end: &Snapshot| {
            for (i, (&p, &start)) in end.params.iter().zip(&start).enumerate() {
                let context = format!("{without:?}, {device}, element {i}: {p:e}");
                if infinite.contains(&i) {
                    assert_eq!(p, start, "{context}");
                } else {
                    assert!(p.is_finite() && p < 0.5, "{context}");
                }
            }
            assert!(end.state.iter().flatten().all(|x| x.is_finite()), "{without:?}, {device}");
        };
        let grads = vec![0.25; LEN];
        let mut host = CpuRun::new(layout.clone(), Options::DEFAULT, &start);
        let gpu = harness::test_gpu();
        let mut run = gpu.as_ref().map(|gpu| GpuRun::new(gpu, layout, Options::DEFAULT, &start));
        for t in 0..2 {
            host.step(&grads, lr(t));
            judge("CPU", &host.snapshot());
            if let Some(run) = &mut run {
                run.step(&grads, lr(t));
                judge("GPU", &run.snapshot());
            }
        }
    }
}

/// Where the square overflows, 1e30, Adam's element rests: the step divides by infinity, as PyTorch's does in
/// f32. SGD's moves on.
#[test]
fn overflowing_squares_rest() {
    both_of(Adam::default(), &[1.0, 1.0], &[vec![1e30, 0.5], vec![1e30, 0.5]], |device, end| {
        assert_eq!(end.params[0], 1.0, "{device}");
        assert_eq!(end.state[1][0], f32::INFINITY, "{device}");
        assert!(end.params[1] < 1.0, "{device}");
    });
    // So does that of every rule that divides by a root of squares, if the gradient's mean has a square that
    // overflows as well.
    fn rests(rule: impl Into<AnyRule>) {
        let rule = rule.into();
        both_of(rule, &[1.0, 1.0], &[vec![1e22, 0.5], vec![1e22, 0.5]], |device, end| {
            assert_eq!(end.params[0], 1.0, "{} {device}", rule.name());
        });
    }
    rests(AdamW { weight_decay: 0.0, ..AdamW::default() });
    rests(Adagrad::default());
    rests(RmsProp::default());
    rests(RmsProp { centered: true, ..RmsProp::default() });
    rests(Adadelta::default());
    rests(NAdam::default());
    rests(AdaBelief::default());
    rests(Adan::default());
    both_of(Sgd::default(), &[0.0, 1e-30], &[vec![1e30, 1e-30]], |device, end| {
        approx::assert_relative_eq!(end.params[0], -1e28, max_relative = 1e-6);
        assert!(end.params[1] < 1e-30 && end.params[1] > 0.98e-30, "{device}: {:e}", end.params[1]);
    });
}

/// Without averages the moments are those of the step alone, whatever was before: nothing of a small gradient
/// is lost after a large one.
#[test]
fn small_gradients_after_large_ones() {
    let rule = Adam { beta1: 0.0, beta2: 0.0, eps: 1e-12, ..Adam::default() };
    both_of(rule, &[1.0, 1.0], &[vec![1e3, -1e3], vec![1e-6, 3e-7]], |device, end| {
        assert_eq!(end.state[0], [1e-6, 3e-7], "{device}");
    });
    let rule = RmsProp { centered: true, alpha: 0.01, ..RmsProp::default() };
    both_of(rule, &[1.0], &[vec![1e6], vec![1e-6], vec![1e-6], vec![1e-6]], |device, end| {
        // 0.99 · 1e-6 · (1 + 0.01 + …) and 0.99 · 1e6 · 0.01³.
        approx::assert_relative_eq!(end.state[2][0], 0.990_001, max_relative = 1e-6);
        assert!(end.params[0].is_finite(), "{device}");
    });
}

/// Lion's sign of zero is zero: without decay such an element does not move. Any other element moves by the
/// learning rate, for any size of its gradient.
#[test]
fn lion_rests_at_zero() {
    let rule = Lion { weight_decay: 0.0, ..Lion::default() };
    both_of(rule, &[1.0, 1.0, 1.0, 1.0], &[vec![0.0, -0.0, 1e-30, -5.0]], |device, end| {
        let lr = lr(0) as f32;
        assert_eq!(end.params, [1.0, 1.0, 1.0 - lr, 1.0 + lr], "{device}");
    });
}

/// One gradient again and again: its variance goes to zero, and rounding must not make a root of a negative
/// number of it.
#[test]
fn a_vanishing_variance_is_no_nan() {
    let rule = RmsProp { centered: true, alpha: 0.5, ..RmsProp::default() };
    let grads = [0.1f32, 0.7, -3.3, 1e-3, 12.7, -0.9].repeat(20);
    both_of(rule, &vec![1.0; grads.len()], &vec![grads.clone(); 60], |device, end| {
        assert!(end.params.iter().all(|p| p.is_finite()), "{device}: {:?}", end.params);
    });
}

/// AdaGrad's sum starts where it is told to, once.
#[test]
fn the_initial_sum_is_added_once() {
    let rule = Adagrad { initial_accumulator_value: 0.5, ..Adagrad::default() };
    both_of(rule, &[1.0, 1.0], &vec![vec![0.0, 2.0]; 2], |device, end| {
        assert_eq!(end.state[0], [0.5, 8.5], "{device}");
    });
}

/// SGD's first velocity is the gradient itself, undamped, in every group and also when that gradient is zero.
#[test]
fn the_first_velocity_is_the_gradient() {
    let rule = Sgd { momentum: 0.9, dampening: 0.5, ..Sgd::default() };
    both_of(rule, &[1.0, 1.0], &[vec![2.0, 0.0]], |device, end| {
        assert_eq!(end.state[0], [2.0, 0.0], "{device}");
    });
    // 0.9 · 0 + (1 − 0.5) · 2: a velocity that happens to be zero is not taken for a first step.
    both_of(rule, &[1.0, 1.0], &[vec![2.0, 0.0], vec![2.0, 2.0]], |device, end| {
        approx::assert_relative_eq!(end.state[0][0], 0.9 * 2.0 + 0.5 * 2.0, max_relative = 1e-6);
        assert_eq!(end.state[0][1], 1.0, "{device}");
    });
}

/// A schedule may start momentum late: the gradient of the first step with momentum becomes the velocity.
#[test]
fn momentum_may_begin_late() {
    let rule = Sgd { momentum: 0.9, dampening: 0.5, ..Sgd::default() };
    let mut optimizer = cpu::Reference::new(single(rule, 1)).unwrap();
    let mut p = [0.0];
    for (t, momentum) in [0.0, 0.0, 0.8, 0.0, 0.8].into_iter().enumerate() {
        optimizer.step(&mut p, &[1.0], Step::from(1.0).with_momentum(momentum)).unwrap();
        let velocity = optimizer.state("momentum_buffer", "w").unwrap().unwrap()[0];
        let expected = [0.0, 0.0, 1.0, 1.0, 0.8 * 1.0 + 0.5];
        assert_eq!(velocity, expected[t], "step {}", t + 1);
    }
}

/// Momentum 0 leaves a velocity alone, whatever the gradient. The first velocity does not depend on the
/// slot's value before it.
#[test]
fn a_resting_velocity_takes_no_harm() {
    let rule = Sgd { momentum: 0.9, dampening: 0.5, ..Sgd::default() };
    let layout = single(rule, 2);
    let steps = [(0.0, [f32::INFINITY, 1.0]), (0.8, [1.0, 2.0]), (0.0, [f32::NAN, 1.0]), (0.5, [1.0, 1.0])];
    let mut host = CpuRun::new(layout.clone(), Options::DEFAULT, &[0.0; 2]);
    let gpu = harness::test_gpu();
    let mut run = gpu.as_ref().map(|gpu| GpuRun::new(gpu, layout, Options::DEFAULT, &[0.0; 2]));
    let expected = [[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [0.5 * 1.0 + 0.5, 0.5 * 2.0 + 0.5]];
    for ((momentum, grads), expected) in steps.into_iter().zip(expected) {
        let step = Step::from(0.5).with_momentum(momentum);
        host.step(&grads, step);
        assert_eq!(host.snapshot().state[0], expected);
        if let Some(run) = &mut run {
            run.step(&grads, step);
            assert_eq!(run.snapshot().state[0], expected);
        }
    }
}

/// Groups have their own hyperparameters and learning-rate factors.
#[test]
fn groups_are_independent() {
    let layout = Layout::packed([
        Group::new("slow", Sgd::default()).lr_factor(0.5).tensor("a", [2]),
        Group::new("fast", Sgd { weight_decay: 1.0, ..Sgd::default() }).tensor("b", [2]),
    ])
    .unwrap();
    let mut run = CpuRun::new(layout.clone(), Options::DEFAULT, &[1.0; 4]);
    run.step(&[1.0; 4], 0.25);
    let params = run.params();
    assert_eq!(params, [0.875, 0.875, 0.5, 0.5]);
    if let Some(gpu) = harness::test_gpu() {
        let mut run = GpuRun::new(&gpu, layout, Options::DEFAULT, &[1.0; 4]);
        run.step(&[1.0; 4], 0.25);
        assert_eq!(run.snapshot().params, params);
    }
}

/// Rosenbrock's function from (−1, 1), learning rate 0.001, 5 000 steps: f32 lands where the reference does.
#[test]
fn rosenbrock() {
    fn gradient([x, y]: [f64; 2]) -> [f64; 2] {
        [-2.0 * (1.0 - x) - 400.0 * x * (y - x * x), 200.0 * (y - x * x)]
    }
    fn reference(rule: AnyRule) -> [f64; 2] {
        let mut optimizer = cpu::Reference::new(single(rule, 2)).unwrap();
        let mut p = [-1.0, 1.0];
        for _ in 0..5_000 {
            let g = gradient(p);
            optimizer.step(&mut p, &g, 1e-3).unwrap();
        }
        p
    }
    fn single_precision(rule: AnyRule) -> [f64; 2] {
        let mut optimizer = cpu::Optimizer::new(single(rule, 2)).unwrap();
        let mut p = [-1.0f32, 1.0];
        for _ in 0..5_000 {
            let g = gradient(p.map(f64::from)).map(|g| g as f32);
            optimizer.step(cpu::Tensors::flat(&mut p, &g), 1e-3).unwrap();
        }
        p.map(f64::from)
    }
    // The valley contracts errors: 5 000 steps of half an ulp stay below 1e-5.
    for rule in [AnyRule::from(Sgd::default()), Adam::default().into()] {
        let (name, want, got) = (rule.name(), reference(rule), single_precision(rule));
        println!("{name}: {want:?} in f64, {got:?} in f32");
        for i in 0..2 {
            approx::assert_abs_diff_eq!(want[i], got[i], epsilon = 1e-5);
        }
        let value = (1.0 - want[0]).powi(2) + 100.0 * (want[1] - want[0] * want[0]).powi(2);
        assert!(value < 0.2, "{name} ends at {want:?} with {value}");
    }
}

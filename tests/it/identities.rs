//! Rules that become one another when an option is neutral: perfect tests, bit for bit where the arithmetic
//! is the same.

use crate::common::{Random, assert_same_bits, lr, single};
use cpu_harness::CpuRun;
use harness::GpuRun;
use wgpu_optim::check::Snapshot;
use wgpu_optim::rules::MomentumForm;
use wgpu_optim::{Adam, AdamW, AnyRule, NAdam, Options, RAdam, Rule, Sgd, Step, cpu};

const LEN: usize = 1_000;
const STEPS: usize = 5;

/// Parameters and state after a few steps, on the GPU (if there is one) and on the CPU.
fn runs(rule: AnyRule, step: impl Fn(usize) -> Step) -> Vec<Snapshot> {
    let mut random = Random::new(3);
    let params = random.values(LEN);
    let grads: Vec<_> = (0..STEPS).map(|_| random.values(LEN)).collect();
    let layout = single(rule, LEN as u64);
    let mut ends = Vec::new();
    if let Some(gpu) = harness::test_gpu() {
        let mut run = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &params);
        for (t, grads) in grads.iter().enumerate() {
            run.step(grads, step(t));
        }
        ends.push(run.snapshot());
    }
    let mut run = CpuRun::new(layout, Options::DEFAULT, &params);
    for (t, grads) in grads.iter().enumerate() {
        run.step(grads, step(t));
    }
    ends.push(run.snapshot());
    ends
}

fn assert_same(a: AnyRule, b: AnyRule, context: &str) {
    for (a, b) in runs(a, |t| lr(t).into()).iter().zip(&runs(b, |t| lr(t).into())) {
        assert_same_bits(a, b, context);
    }
}

#[test]
fn adamw_without_decay_is_adam() {
    let adamw = AdamW { weight_decay: 0.0, ..AdamW::default() };
    assert_same(adamw.into(), Adam::default().into(), "AdamW and Adam without decay");
}

#[test]
fn adam_with_decoupled_decay_is_adamw() {
    let adam = Adam { weight_decay: 0.1, decoupled_weight_decay: true, amsgrad: true, ..Adam::default() };
    let adamw = AdamW { weight_decay: 0.1, amsgrad: true, ..AdamW::default() };
    assert_same(adam.into(), adamw.into(), "Adam with decoupled decay and AdamW");
}

/// In f64, so that only the formulas can differ.
fn end(rule: AnyRule, lr: impl Fn(usize) -> f64, gradient: impl Fn(usize) -> f64) -> f64 {
    let mut optimizer = cpu::Reference::new(single(rule, 1)).unwrap();
    let mut p = [1.0];
    for t in 0..50 {
        optimizer.step(&mut p, &[gradient(t)], lr(t)).unwrap();
    }
    p[0]
}

fn wave(t: usize) -> f64 {
    (t as f64 * 0.7).sin() + 0.2
}

#[test]
fn the_forms_of_momentum_meet() {
    for nesterov in [false, true] {
        let heavy = Sgd { momentum: 0.9, nesterov, ..Sgd::default() };
        let classic = Sgd { form: MomentumForm::Classic, ..heavy };
        let averaged = Sgd { form: MomentumForm::Averaged, ..heavy };
        // With one learning rate, inside the velocity is outside of it. A mean of gradients is a tenth of
        // their decaying sum.
        let [heavy, classic, averaged] = [heavy, classic, averaged].map(AnyRule::from);
        let want = end(heavy, |_| 0.01, wave);
        approx::assert_relative_eq!(end(classic, |_| 0.01, wave), want, max_relative = 1e-14);
        approx::assert_relative_eq!(end(averaged, |_| 0.1, wave), want, max_relative = 1e-14);
        // Another one at every step, and they part.
        let want = end(heavy, lr, wave);
        assert!((end(classic, lr, wave) - want).abs() > 1e-3);
        approx::assert_relative_eq!(end(averaged, |t| 10.0 * lr(t), wave), want, max_relative = 1e-14);
    }
}

#[test]
fn nadam_with_a_quick_warm_up_is_adam_with_nesterov_momentum() {
    // optax's nadam: m̂ = β₁ m / (1 − β₁ᵗ⁺¹) + (1 − β₁) g / (1 − β₁ᵗ).
    let rule = NAdam { momentum_decay: 1e6, ..NAdam::default() };
    let (mut m, mut v, mut p) = (0.0, 0.0, 1.0);
    for t in 1..=50 {
        let g = wave(t as usize - 1);
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        let m_hat = 0.9 * m / (1.0 - 0.9f64.powi(t + 1)) + 0.1 * g / (1.0 - 0.9f64.powi(t));
        p -= 0.01 * m_hat / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
    }
    approx::assert_relative_eq!(end(rule.into(), |_| 0.01, wave), p, max_relative = 1e-13);
}

#[test]
fn adam_whose_squares_only_grow_is_amsgrad() {
    let amsgrad = AnyRule::from(Adam { amsgrad: true, ..Adam::default() });
    let adam = AnyRule::from(Adam::default());
    let growing = |t: usize| 1.1f64.powi(t as i32);
    assert_eq!(end(amsgrad, lr, growing), end(adam, lr, growing));
    let shrinking = |t: usize| 0.5f64.powi(t as i32);
    assert_ne!(end(amsgrad, lr, shrinking), end(adam, lr, shrinking));
}

/// The switch comes at the step where ρₜ passes 5; before it the step is that of momentum alone.
#[test]
fn radam_rectifies_from_the_sixth_step_on() {
    let steps = |t: u64| {
        let scalars = RAdam::default().scalars(1.0, t, &mut 0.0);
        (scalars.rectified, scalars.step_size)
    };
    for t in 1..=5 {
        let (rectified, size) = steps(t);
        assert_eq!(rectified, 0.0, "step {t}");
        approx::assert_relative_eq!(size, 1.0 / (1.0 - 0.9f64.powi(t as i32)), max_relative = 1e-14);
    }
    assert_eq!(steps(6).0, 1.0);
    // In the long run it is Adam's.
    let (_, size) = steps(1_000_000);
    approx::assert_relative_eq!(size, 1.0, max_relative = 1e-9);
}

#[test]
fn maximizing_is_minimizing_the_opposite() {
    let down = Adam { maximize: false, ..Adam::default() };
    let up = Adam { maximize: true, ..Adam::default() };
    let [down, up] = [down, up].map(|rule| runs(rule.into(), |t| lr(t).into()));
    let start = Random::new(3).values(LEN);
    for (down, up) in down.iter().zip(&up) {
        for i in 0..LEN {
            assert_eq!(down.state[0][i], -up.state[0][i], "first moment {i}");
            assert_eq!(down.state[1][i], up.state[1][i], "second moment {i}");
        }
        assert_ne!(down.params, up.params);
        assert_ne!(down.params, start);
    }
}

#[test]
fn momentum_zero_is_plain_sgd() {
    // Momentum is configured, and the schedule takes it away.
    let plain = runs(Sgd::default().into(), |t| lr(t).into());
    let momentum = Sgd { momentum: 0.9, dampening: 0.5, ..Sgd::default() };
    let scheduled = runs(momentum.into(), |t| Step::from(lr(t)).with_momentum(0.0));
    for (plain, scheduled) in plain.iter().zip(&scheduled) {
        assert_eq!(plain.params, scheduled.params);
        assert!(scheduled.state[0].iter().all(|&b| b == 0.0), "no velocity without momentum");
        assert!(plain.state[0].is_empty(), "no momentum, no memory");
    }
}

#[test]
fn adam_without_averages_steps_by_the_sign() {
    let rule = Adam { beta1: 0.0, beta2: 0.0, eps: 0.0, ..Adam::default() };
    let start = Random::new(3);
    let mut random = start;
    let params = random.values(LEN);
    let grads: Vec<f32> = (0..LEN).map(|i| if i % 2 == 0 { 3.0 } else { -0.25 }).collect();
    let mut run = CpuRun::new(single(rule, LEN as u64), Options::DEFAULT, &params);
    run.step(&grads, 0.125);
    let moved = run.params();
    for i in 0..LEN {
        assert_eq!(moved[i], params[i] - 0.125 * grads[i].signum(), "{i}");
    }
}

#[test]
fn nesterov_with_constant_gradient_leads_by_one_velocity() {
    // With a constant gradient g and no decay, heavy ball moves by lr·bₜ, and Nesterov by lr·(g + μ·bₜ) =
    // lr·bₜ₊₁.
    let (mu, g, rate) = (0.5, 2.0, 0.25);
    let heavy = Sgd { momentum: mu, ..Sgd::default() };
    let nesterov = Sgd { nesterov: true, ..heavy };
    let run = |rule: Sgd, steps: usize| {
        let mut optimizer = cpu::Reference::new(single(rule, 1)).unwrap();
        let mut p = [0.0];
        for _ in 0..steps {
            optimizer.step(&mut p, &[g], rate).unwrap();
        }
        p[0]
    };
    for steps in 1..10 {
        // The first heavy-ball step, lr·b₁ = lr·g, is the one that Nesterov leaves out.
        approx::assert_relative_eq!(
            run(nesterov, steps),
            run(heavy, steps + 1) + rate * g,
            max_relative = 1e-15
        );
    }
}

//! A user-defined rule: AdEMAMix (Pagliardini, Ablin and Grangier, *The AdEMAMix Optimizer: Better, Faster,
//! Older*, ICLR 2025), which adds a second, much slower mean of the gradients to AdamW's, and warms up its
//! weight and its decay.
//!
//! It takes a struct of hyperparameters, a WGSL function, and a host function for the scalars of a step. The
//! same function in Rust lets the checker verify it like a built-in rule. Groups, offsets, chunks and the
//! single dispatch work unchanged.
//!
//!     cargo run --example own_rule
//!
//! The Rust function in f64 is compared with the paper's algorithm as it is printed, and the GPU with the
//! function.

use harness::{Gpu, snapshot};
use wgpu_optim::check::Checker;
use wgpu_optim::float::Float;
use wgpu_optim::rules::toward;
use wgpu_optim::{CpuRule, Group, Layout, Optimizer, Rule, RuleError, Tensors, cpu, fields};

/// Hyperparameters, with the paper's names and defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
struct AdEmaMix {
    beta1: f64,
    beta2: f64,
    beta3: f64,
    /// Weight of the slow mean.
    alpha: f64,
    eps: f64,
    weight_decay: f64,
    /// Steps over which `alpha` and `beta3` rise to their values.
    warmup: u64,
}

impl Default for AdEmaMix {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            beta3: 0.9999,
            alpha: 5.0,
            eps: 1e-8,
            weight_decay: 0.0,
            warmup: 10_000,
        }
    }
}

fields! {
    /// Scalars that the host computes for each step; the shader's `s`.
    struct AdEmaMixScalars {
        decay, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, fast, slow, eps
    }
}
fields! {
    /// State per parameter.
    struct AdEmaMixState { exp_avg_fast, exp_avg_slow, exp_avg_sq }
}

const WGSL: &str = "
fn update(s: Scalars, at: At) {
    let g = read_g(at);
    let fast = toward(read_exp_avg_fast(at), g, s.one_minus_beta1, s.beta1);
    write_exp_avg_fast(at, fast);
    let slow = toward(read_exp_avg_slow(at), g, s.one_minus_beta3, s.beta3);
    write_exp_avg_slow(at, slow);
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * g * g;
    write_exp_avg_sq(at, v);
    let p = read_p(at);
    write_p(at, p - (s.decay * p + (s.fast * fast + s.slow * slow) / (sqrt(v) + s.eps)));
}";

impl AdEmaMix {
    fn alpha_at(&self, t: u64) -> f64 {
        (t as f64 / self.warmup as f64).min(1.0) * self.alpha
    }

    fn beta3_at(&self, t: u64) -> f64 {
        let (done, from, to) = (t as f64 / self.warmup as f64, self.beta1.ln(), self.beta3.ln());
        if done >= 1.0 { self.beta3 } else { (from * to / ((1.0 - done) * to + done * from)).exp() }
    }
}

impl Rule for AdEmaMix {
    const NAME: &'static str = "ademamix";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = WGSL;
    type Scalars<T: Float> = AdEmaMixScalars<T>;
    type State<T: Float> = AdEmaMixState<T>;

    fn validate(&self) -> Result<(), RuleError> {
        let check = |field, value: f64, good, bound| {
            let error = RuleError::Hyperparameter { rule: Self::NAME, field, value, bound };
            if good && value.is_finite() { Ok(()) } else { Err(error) }
        };
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2), ("beta3", self.beta3)] {
            check(field, beta, beta > 0.0 && beta < 1.0, "in (0, 1)")?;
        }
        for (field, x) in [("alpha", self.alpha), ("eps", self.eps), ("weight_decay", self.weight_decay)] {
            check(field, x, x >= 0.0, "finite and at least 0")?;
        }
        check("warmup", self.warmup as f64, self.warmup > 0, "at least 1")
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdEmaMixScalars<f64> {
        let root2 = (1.0 - self.beta2.powf(t as f64)).sqrt();
        AdEmaMixScalars {
            decay: lr * self.weight_decay,
            beta1: self.beta1,
            one_minus_beta1: 1.0 - self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            beta3: self.beta3_at(t),
            one_minus_beta3: 1.0 - self.beta3_at(t),
            fast: lr * root2 / (1.0 - self.beta1.powf(t as f64)),
            slow: lr * root2 * self.alpha_at(t),
            eps: self.eps * root2,
        }
    }
}

/// Optional: makes the rule one that [`Checker`] verifies and the CPU runs.
impl CpuRule for AdEmaMix {
    const MAX_ULPS: f64 = 5.0;

    #[inline(always)]
    fn update<T: Float>(s: &AdEmaMixScalars<T>, p: &mut T, g: T, state: &mut AdEmaMixState<T>) {
        let fast = toward(state.exp_avg_fast, g, s.one_minus_beta1, s.beta1);
        let slow = toward(state.exp_avg_slow, g, s.one_minus_beta3, s.beta3);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * g * g;
        *p = *p - (s.decay * *p + (s.fast * fast + s.slow * slow) / (v.sqrt() + s.eps));
        *state = AdEmaMixState { exp_avg_fast: fast, exp_avg_slow: slow, exp_avg_sq: v };
    }
}

/// The paper's algorithm 1 for one parameter, line by line, with its schedulers f_α and f_β₃, whose β_start
/// is β₁.
fn paper(rule: &AdEmaMix, lr: f64, theta: f64, gradients: impl Iterator<Item = f64>) -> f64 {
    let AdEmaMix { beta1, beta2, eps, weight_decay, .. } = *rule;
    let period = rule.warmup as f64;
    let (mut m1, mut m2, mut nu, mut theta) = (0.0, 0.0, 0.0, theta);
    for (t, g) in (1..).zip(gradients) {
        let now = f64::from(t);
        let alpha = (now * rule.alpha / period).min(rule.alpha);
        let (start, end) = (beta1.ln(), rule.beta3.ln());
        let exponent = start * end / ((1.0 - now / period) * end + now / period * start);
        // Beyond the period the exponent would keep growing.
        let beta3 = if now < period { exponent.exp().min(rule.beta3) } else { rule.beta3 };
        m1 = beta1 * m1 + (1.0 - beta1) * g;
        m2 = beta3 * m2 + (1.0 - beta3) * g;
        nu = beta2 * nu + (1.0 - beta2) * g * g;
        let m1_hat = m1 / (1.0 - beta1.powi(t));
        let nu_hat = nu / (1.0 - beta2.powi(t));
        theta -= lr * ((m1_hat + alpha * m2) / (nu_hat.sqrt() + eps) + weight_decay * theta);
    }
    theta
}

const STEPS: u64 = 200;
const LR: f64 = 1e-2;
/// 200 steps of half an ulp of f64 each, and a margin for the order of operations.
const PAPER_TOLERANCE: f64 = 1e-12;

/// Gradients that change their sign and size.
fn gradient(t: u64, i: u64) -> f32 {
    ((t * 7 + i * 13) as f32).sin() * (1.0 + i as f32)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rule = AdEmaMix { beta3: 0.999, warmup: 150, weight_decay: 0.1, ..AdEmaMix::default() };
    let groups = || {
        let plain = AdEmaMix { weight_decay: 0.0, ..rule };
        [Group::new("decay", rule).tensor("w", [3, 5]), Group::new("no_decay", plain).tensor("b", [4])]
    };
    let layout = Layout::new(groups())?;
    let start: Vec<f32> = (0..layout.len()).map(|i| 1.0 - 0.1 * i as f32).collect();
    let gradients = |t| (0..layout.len()).map(|i| gradient(t, i)).collect::<Vec<f32>>();

    // The CPU implementation in f64 against the paper.
    let mut reference = cpu::Reference::new(layout.clone())?;
    let mut params: Vec<f64> = start.iter().map(|&p| p.into()).collect();
    for t in 1..=STEPS {
        let grads: Vec<f64> = gradients(t).into_iter().map(f64::from).collect();
        reference.step(&mut params, &grads, LR)?;
    }
    let mut worst = 0f64;
    for tensor in layout.tensors() {
        let rule = layout.groups()[tensor.group].rule().downcast_ref().ok_or("another rule")?;
        for i in tensor.range() {
            let all = (1..=STEPS).map(|t| gradient(t, i as u64).into());
            let want = paper(rule, LR, start[i].into(), all);
            worst = worst.max((params[i] - want).abs() / want.abs().max(1.0));
        }
    }
    println!("the rule in f64 and the paper's algorithm after {STEPS} steps: {worst:.1e} apart");
    assert!(worst < PAPER_TOLERANCE, "the rule is not the paper's algorithm");

    // The GPU against the CPU implementation, every element of every step.
    let gpu: Gpu = harness::open()?;
    let (p, g) = (gpu.upload(&start), gpu.buffer(layout.buffer_size()));
    let mut optimizer = Optimizer::new(&gpu.device, layout.clone())?;
    let tensors = optimizer.bind(&Tensors::flat(&p, &g))?;
    let mut checker = Checker::new(layout.clone());
    let mut before = snapshot(&gpu, &optimizer, &p, 0);
    let mut worst = None;
    for t in 1..=STEPS {
        let grads = gradients(t);
        gpu.write(&g, 0, &grads);
        let mut encoder = gpu.encoder();
        optimizer.step(&gpu.queue, &mut encoder, &tensors, LR)?;
        gpu.run(encoder);
        let after = snapshot(&gpu, &optimizer, &p, 0);
        let found = checker.step(&before, &grads, LR, &after)?;
        if worst
            .as_ref()
            .is_none_or(|(_, worst): &(u64, wgpu_optim::check::Deviation)| found.ulps > worst.ulps)
        {
            worst = Some((t, found));
        }
        before = after;
    }
    if let Some((t, worst)) = worst {
        println!(
            "{}: worst element of all steps, at step {t}: {worst}; allowed {}",
            gpu.info.name,
            AdEmaMix::MAX_ULPS
        );
        assert!(worst.ulps <= AdEmaMix::MAX_ULPS, "the GPU does not compute the rule");
    }
    Ok(())
}

#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, below_one, bias_correction, epsilon, non_negative, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// Adan: adaptive momentum with Nesterov's look-ahead taken from the difference of successive gradients.
///
/// ```text
/// d = ±g                                          (− if maximize)
/// Δ = d − d of the step before                    0 at the first step
/// m = beta1 · m + (1 − beta1) · d
/// v = beta2 · v + (1 − beta2) · Δ
/// n = beta3 · n + (1 − beta3) · (d + beta2 · Δ)²
/// u = (m / (1 − beta1ᵗ) + beta2 · v / (1 − beta2ᵗ)) / (√(n / (1 − beta3ᵗ) + eps_root) + eps)
/// p = (p − lr · u) / (1 + lr · weight_decay)
/// ```
///
/// With `no_prox` the last line is `p − lr · weight_decay · p − lr · u`. With `complement_beta2` the two
/// factors `beta2` before `Δ` and `v` are `1 − beta2`.
///
/// PyTorch has no Adan; semantics and defaults are those of the authors' code for PyTorch. `optax.adan` has
/// `complement_beta2`, `no_prox` and `eps_root` 1e-8. The only deviation is the bound on `eps`. The host
/// multiplies bias corrections into the steps, `eps` and `eps_root`. State: 16 bytes per parameter
/// (`exp_avg`, `exp_avg_diff`, `exp_avg_sq`, `pre_grad`). Error of one step: at most
/// [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Adan, Rule};
/// let optax = Adan { complement_beta2: true, no_prox: true, eps_root: 1e-8, ..Adan::default() };
/// assert!(optax.validate().is_ok());
/// assert!(Adan { beta3: 1.0, ..optax }.validate().is_err());
/// ```
///
/// Reference: Xie et al., *Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models*,
/// 2022.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adan {
    /// Decay of the mean, `[0, 1)`. Default 0.98.
    pub beta1: f64,
    /// Decay of the mean difference, and its weight, `[0, 1)`. Default 0.92.
    pub beta2: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.99.
    pub beta3: f64,
    /// Added to the root: 0, or large enough for `eps · √(1 − beta3)` to be a normal f32. Default 1e-8.
    pub eps: f64,
    /// Added inside the root: 0, or large enough for `eps_root · (1 − beta3)` to be a normal f32. Default 0.
    pub eps_root: f64,
    /// Share of the parameter, times the learning rate, that a step removes, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Decays as AdamW does, without the proximal quotient. Default false.
    pub no_prox: bool,
    /// Weighs the difference by `1 − beta2`, as optax does. Default false.
    pub complement_beta2: bool,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Adan {
    fn default() -> Self {
        Self {
            beta1: 0.98,
            beta2: 0.92,
            beta3: 0.99,
            eps: 1e-8,
            eps_root: 0.0,
            weight_decay: 0.0,
            no_prox: false,
            complement_beta2: false,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`Adan`].
    pub struct AdanScalars {
        /// −1 to maximize, else 1.
        sign,
        /// 0 at the first step, else 1.
        later,
        /// Weight of the gradient in its mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean, β₁.
        beta1,
        /// Weight of the difference in its mean, 1 − β₂.
        one_minus_beta2,
        /// Weight of the old mean, β₂.
        beta2,
        /// Weight of the difference beside the gradient.
        ahead,
        /// Weight of the old mean square.
        beta3,
        /// Weight of the new square, 1 − β₃.
        one_minus_beta3,
        /// Weight of the mean in the step, with all corrections.
        mean,
        /// Weight of the mean difference in the step, with all corrections.
        trend,
        /// eps_root · (1 − β₃ᵗ).
        eps_root,
        /// eps · √(1 − β₃ᵗ).
        eps,
        /// Share of the parameter that the step removes.
        decay,
    }
}
crate::fields! {
    /// State of [`Adan`].
    pub struct AdanState {
        /// Running mean of the gradient.
        exp_avg,
        /// Running mean of the gradient's difference from step to step.
        exp_avg_diff,
        /// Running mean square of the gradient with its look-ahead.
        exp_avg_sq,
        /// Gradient of the previous step, with the sign of `maximize`.
        pre_grad,
    }
}

impl Rule for Adan {
    const NAME: &'static str = "adan";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/adan.wgsl");
    type Scalars<T: Float> = AdanScalars<T>;
    type State<T: Float> = AdanState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        below_one(Self::NAME, "beta1", self.beta1)?;
        below_one(Self::NAME, "beta2", self.beta2)?;
        below_one(Self::NAME, "beta3", self.beta3)?;
        epsilon(Self::NAME, "eps", self.eps, (1.0 - self.beta3).sqrt())?;
        epsilon(Self::NAME, "eps_root", self.eps_root, 1.0 - self.beta3)?;
        non_negative(Self::NAME, "weight_decay", self.weight_decay)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdanScalars<f64> {
        let ahead = if self.complement_beta2 { 1.0 - self.beta2 } else { self.beta2 };
        let bias3 = bias_correction(self.beta3, t);
        let decay = lr * self.weight_decay;
        // (p − x) / (1 + decay) = p − decay / (1 + decay) · p − x / (1 + decay)
        let shrink = if self.no_prox { 1.0 } else { 1.0 + decay };
        let step = lr * bias3.sqrt() / shrink;
        AdanScalars {
            sign: sign(self.maximize),
            later: if t > 1 { 1.0 } else { 0.0 },
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            one_minus_beta2: 1.0 - self.beta2,
            beta2: self.beta2,
            ahead,
            beta3: self.beta3,
            one_minus_beta3: 1.0 - self.beta3,
            mean: step / bias_correction(self.beta1, t),
            trend: step * ahead / bias_correction(self.beta2, t),
            eps_root: self.eps_root * bias3,
            eps: self.eps * bias3.sqrt(),
            decay: decay / shrink,
        }
    }
}

impl CpuRule for Adan {
    // WGSL allows 4.5 ulp to the root and 2.5 to the quotient, and leaves the direction of some fifteen
    // roundings open; the error scale of the update counts at least four factors.
    const MAX_ULPS: f64 = 6.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdanScalars<T>, p: &mut T, g: T, state: &mut AdanState<T>) {
        let d = s.sign * g;
        let difference = if s.later > T::ZERO { d - state.pre_grad } else { T::ZERO };
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let v = toward(state.exp_avg_diff, difference, s.one_minus_beta2, s.beta2);
        let ahead = d + s.ahead * difference;
        let n = s.beta3 * state.exp_avg_sq + s.one_minus_beta3 * ahead * ahead;
        let step = (s.mean * m + s.trend * v) / ((n + s.eps_root).sqrt() + s.eps);
        *p = *p - (weighted(s.decay, *p) + step);
        *state = AdanState { exp_avg: m, exp_avg_diff: v, exp_avg_sq: n, pre_grad: d };
    }
}

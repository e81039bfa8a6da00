#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, below_one, bias_correction, epsilon, non_negative, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// Adamax: Adam with an exponentially decaying maximum of gradients in place of their root mean square.
///
/// ```text
/// d = ±g + weight_decay · p                       (− if maximize)
/// m = beta1 · m + (1 − beta1) · d
/// u = max(beta2 · u, |d| + eps)
/// p = p − lr / (1 − beta1ᵗ) · m / u
/// ```
///
/// With `eps_after_max` (Keras) `eps` is added to the divisor and not to the operand of the maximum: `m / (u
/// + eps)`.
///
/// Semantics and defaults are those of `torch.optim.Adamax`. There are two deviations: the bound on `eps`,
/// and an open maximum of a NaN. State: 8 bytes per parameter (`exp_avg`, `exp_inf`). Error of one step: at
/// most [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Adamax, Rule};
/// let adamax = Adamax { beta2: 0.99, ..Adamax::default() };
/// assert!(adamax.validate().is_ok());
/// assert!(Adamax { eps: -1.0, ..adamax }.validate().is_err());
/// ```
///
/// Reference: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015, section 7.1.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adamax {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the maximum, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Keeps the divisor from zero: 0, or a normal f32 (a deviation: PyTorch accepts any value, and divides
    /// zero by zero if it is flushed). Default 1e-8.
    pub eps: f64,
    /// Adds `eps` after the maximum has been taken. Default false.
    pub eps_after_max: bool,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Adamax {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, eps_after_max: false, weight_decay: 0.0, maximize: false }
    }
}

crate::fields! {
    /// Step scalars of [`Adamax`].
    pub struct AdamaxScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// Weight of the gradient in the mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean, β₁.
        beta1,
        /// Decay of the maximum.
        beta2,
        /// Added before the maximum is taken.
        eps,
        /// Added after the maximum is taken.
        eps_after,
        /// lr / (1 − β₁ᵗ).
        step_size,
    }
}
crate::fields! {
    /// State of [`Adamax`].
    pub struct AdamaxState {
        /// Running mean of the gradient.
        exp_avg,
        /// Decaying maximum of the gradient's magnitude.
        exp_inf,
    }
}

impl Rule for Adamax {
    const NAME: &'static str = "adamax";
    const DEFAULT_LR: f64 = 2e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/adamax.wgsl");
    type Scalars<T: Float> = AdamaxScalars<T>;
    type State<T: Float> = AdamaxState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        below_one(Self::NAME, "beta1", self.beta1)?;
        below_one(Self::NAME, "beta2", self.beta2)?;
        epsilon(Self::NAME, "eps", self.eps, 1.0)?;
        non_negative(Self::NAME, "weight_decay", self.weight_decay)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdamaxScalars<f64> {
        let (eps, eps_after) = if self.eps_after_max { (0.0, self.eps) } else { (self.eps, 0.0) };
        AdamaxScalars {
            sign: sign(self.maximize),
            weight_decay: self.weight_decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            beta2: self.beta2,
            eps,
            eps_after,
            step_size: lr / bias_correction(self.beta1, t),
        }
    }
}

impl CpuRule for Adamax {
    // WGSL allows 2.5 ulp to the quotient, and leaves the direction of eight roundings open; the error scale
    // of the update counts at least three factors.
    const MAX_ULPS: f64 = 4.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdamaxScalars<T>, p: &mut T, g: T, state: &mut AdamaxState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let u = (s.beta2 * state.exp_inf).max(d.abs() + s.eps);
        *p = *p - s.step_size * m / (u + s.eps_after);
        state.exp_avg = m;
        state.exp_inf = u;
    }
}

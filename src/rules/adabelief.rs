#[cfg(feature = "checkpoint")]
use super::Saved;
use super::adam::{ADAM_MAX_ULPS, validate_betas};
use super::loops::compiled_here;
use super::{CpuRule, MomentsState, Rule, bias_correction, epsilon, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// AdaBelief: Adam with the running variance of the gradient about its mean in place of the mean square;
/// decay is decoupled.
///
/// ```text
/// d = ±g                                          (− if maximize)
/// m = beta1 · m + (1 − beta1) · d
/// v = beta2 · v + (1 − beta2) · (d − m)² + eps_root
/// p = p − lr · weight_decay · p − lr / (1 − beta1ᵗ) · m / (√(v / (1 − beta2ᵗ)) + eps)
/// ```
///
/// PyTorch has no AdaBelief; semantics and defaults are those of `optax.adabelief`, with weight decay as
/// `optax.add_decayed_weights` would add it. The only deviation is the bound on `eps`. The host multiplies
/// `√(1 − beta2ᵗ)` into step and `eps`, as for [`Adam`](super::Adam). State: 8 bytes per parameter
/// (`exp_avg`, `exp_avg_sq`). Error of one step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{AdaBelief, Rule};
/// let adabelief = AdaBelief { eps: 1e-12, ..AdaBelief::default() };
/// assert!(adabelief.validate().is_ok());
/// assert!(AdaBelief { eps_root: f64::NAN, ..adabelief }.validate().is_err());
/// ```
///
/// Reference: Zhuang et al., *AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients*,
/// NeurIPS 2020.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct AdaBelief {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the variance, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root, after bias correction: 0, or large enough for `eps · √(1 − beta2)` to be a normal
    /// f32 (a deviation: others accept any value, and divide zero by zero if it is flushed). Default 1e-16.
    pub eps: f64,
    /// Added to the variance in every step: 0, or a normal f32. Default 1e-16.
    pub eps_root: f64,
    /// Share of the parameter, times the learning rate, that a step removes, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for AdaBelief {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-16, eps_root: 1e-16, weight_decay: 0.0, maximize: false }
    }
}

crate::fields! {
    /// Step scalars of [`AdaBelief`].
    pub struct AdaBeliefScalars {
        /// −1 to maximize, else 1.
        sign,
        /// lr · weight_decay.
        decay,
        /// Weight of the gradient in the mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean, β₁.
        beta1,
        /// Weight of the old variance.
        beta2,
        /// Weight of the new square, 1 − β₂.
        one_minus_beta2,
        /// Added to the variance.
        eps_root,
        /// lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ).
        step_size,
        /// eps · √(1 − β₂ᵗ).
        eps,
    }
}

impl Rule for AdaBelief {
    const NAME: &'static str = "adabelief";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/adabelief.wgsl");
    type Scalars<T: Float> = AdaBeliefScalars<T>;
    type State<T: Float> = MomentsState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        validate_betas(Self::NAME, self.beta1, self.beta2, self.eps, self.weight_decay)?;
        epsilon(Self::NAME, "eps_root", self.eps_root, 1.0)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdaBeliefScalars<f64> {
        let root2 = bias_correction(self.beta2, t).sqrt();
        AdaBeliefScalars {
            sign: sign(self.maximize),
            decay: lr * self.weight_decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            eps_root: self.eps_root,
            step_size: lr * root2 / bias_correction(self.beta1, t),
            eps: self.eps * root2,
        }
    }
}

impl CpuRule for AdaBelief {
    const MAX_ULPS: f64 = ADAM_MAX_ULPS;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdaBeliefScalars<T>, p: &mut T, g: T, state: &mut MomentsState<T>) {
        let d = s.sign * g;
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let error = d - m;
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * error * error + s.eps_root;
        *p = *p - (weighted(s.decay, *p) + s.step_size * m / (v.sqrt() + s.eps));
        state.exp_avg = m;
        state.exp_avg_sq = v;
    }
}

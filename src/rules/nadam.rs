#[cfg(feature = "checkpoint")]
use super::Saved;
use super::adam::{ADAM_MAX_ULPS, validate_betas};
use super::loops::compiled_here;
use super::{CpuRule, MomentsState, Rule, bias_correction, decays, non_negative, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// NAdam: Adam with Nesterov's look-ahead and a momentum that warms up.
///
/// ```text
/// d  = ±g + weight_decay · p                      (− if maximize)
/// μₜ = beta1 · (1 − ½ · 0.96^(t · momentum_decay)),  Πₜ = μ₁ · μ₂ · … · μₜ
/// m  = beta1 · m + (1 − beta1) · d
/// v  = beta2 · v + (1 − beta2) · d²
/// p  = p − lr · ((1 − μₜ) / (1 − Πₜ) · d + μₜ₊₁ / (1 − Πₜ · μₜ₊₁) · m) / (√(v / (1 − beta2ᵗ)) + eps)
/// ```
///
/// With `decoupled_weight_decay`, `d` has no second term and `lr · weight_decay · p` is subtracted from the
/// parameter instead.
///
/// Semantics and defaults are those of `torch.optim.NAdam`. optax has `μₜ = beta1` in every step; a large
/// `momentum_decay`, such as 1e6, gives that. The host multiplies `√(1 − beta2ᵗ)` into the weights and `eps`,
/// as for [`Adam`](super::Adam). There are two deviations: the bound on `eps`, and `Πₜ` in f64 where PyTorch
/// keeps it in f32. State: 8 bytes per parameter (`exp_avg`, `exp_avg_sq`). Error of one step: at most
/// [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{NAdam, Rule};
/// let nadam = NAdam { weight_decay: 0.01, decoupled_weight_decay: true, ..NAdam::default() };
/// assert!(nadam.validate().is_ok());
/// assert!(NAdam { momentum_decay: -1.0, ..nadam }.validate().is_err());
/// ```
///
/// Reference: Dozat, *Incorporating Nesterov Momentum into Adam*, ICLR 2016 workshop.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct NAdam {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root, after bias correction: 0, or large enough for `eps · √(1 − beta2)` to be a normal
    /// f32 (a deviation: others accept any value, and divide zero by zero if it is flushed). Default 1e-8.
    pub eps: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Applies `weight_decay` to the parameter instead, as AdamW does. Default false.
    pub decoupled_weight_decay: bool,
    /// Rate at which the momentum warms up, `[0, ∞)`. Default 4e-3.
    pub momentum_decay: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for NAdam {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled_weight_decay: false,
            momentum_decay: 4e-3,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`NAdam`].
    pub struct NAdamScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// lr · weight_decay if it is decoupled.
        decay,
        /// Weight of the gradient in the mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean, β₁.
        beta1,
        /// Weight of the old mean square.
        beta2,
        /// Weight of the gradient's square, 1 − β₂.
        one_minus_beta2,
        /// lr · (1 − μₜ) / (1 − Πₜ) · √(1 − β₂ᵗ).
        gradient,
        /// lr · μₜ₊₁ / (1 − Πₜ₊₁) · √(1 − β₂ᵗ).
        mean,
        /// eps · √(1 − β₂ᵗ).
        eps,
    }
}

impl Rule for NAdam {
    const NAME: &'static str = "nadam";
    const DEFAULT_LR: f64 = 2e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/nadam.wgsl");
    type Scalars<T: Float> = NAdamScalars<T>;
    type State<T: Float> = MomentsState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        validate_betas(Self::NAME, self.beta1, self.beta2, self.eps, self.weight_decay)?;
        non_negative(Self::NAME, "momentum_decay", self.momentum_decay)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    /// `carry` is Πₜ.
    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> NAdamScalars<f64> {
        let mu = |t: u64| self.beta1 * (1.0 - 0.5 * 0.96f64.powf(t as f64 * self.momentum_decay));
        let product = if t == 1 { 1.0 } else { *carry } * mu(t);
        let next = mu(t.saturating_add(1));
        *carry = product;
        let root2 = bias_correction(self.beta2, t).sqrt();
        let (weight_decay, decay) = decays(self.weight_decay, self.decoupled_weight_decay, lr);
        NAdamScalars {
            sign: sign(self.maximize),
            weight_decay,
            decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            gradient: lr * (1.0 - mu(t)) / (1.0 - product) * root2,
            mean: lr * next / (1.0 - product * next) * root2,
            eps: self.eps * root2,
        }
    }
}

impl CpuRule for NAdam {
    const MAX_ULPS: f64 = ADAM_MAX_ULPS;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &NAdamScalars<T>, p: &mut T, g: T, state: &mut MomentsState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * d * d;
        let step = (s.gradient * d + s.mean * m) / (v.sqrt() + s.eps);
        *p = *p - (weighted(s.decay, *p) + step);
        state.exp_avg = m;
        state.exp_avg_sq = v;
    }
}

#[cfg(feature = "checkpoint")]
use super::Saved;
use super::adam::{ADAM_MAX_ULPS, validate_betas};
use super::loops::compiled_here;
use super::{CpuRule, MomentsState, Rule, bias_correction, check, decays, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// RAdam: Adam without its divisor until the divisor's variance is bounded, then with a rectified divisor.
///
/// ```text
/// d  = ±g + weight_decay · p                      (− if maximize)
/// m  = beta1 · m + (1 − beta1) · d
/// v  = beta2 · v + (1 − beta2) · d²
/// ρ∞ = 2 / (1 − beta2) − 1,  ρₜ = ρ∞ − 2 t · beta2ᵗ / (1 − beta2ᵗ)
/// r  = √((ρₜ − 4) (ρₜ − 2) ρ∞ / ((ρ∞ − 4) (ρ∞ − 2) ρₜ))
/// p  = p − lr · m / (1 − beta1ᵗ) · r · √(1 − beta2ᵗ) / (√v + eps)     where ρₜ > rectification_threshold
/// p  = p − lr · m / (1 − beta1ᵗ)                                      elsewhere
/// ```
///
/// With `eps_corrected` (optax) the divisor is `√(v / (1 − beta2ᵗ)) + eps`. With `decoupled_weight_decay`,
/// `d` has no second term and `lr · weight_decay · p` is subtracted from the parameter instead.
///
/// Semantics and defaults are those of `torch.optim.RAdam`, with its fixed threshold. optax also rectifies at
/// the threshold itself; the authors' code rectifies from 5 on, with other warm-up options. The only other
/// deviation is the bound on `eps`. State: 8 bytes per parameter (`exp_avg`, `exp_avg_sq`). Error of one
/// step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{RAdam, Rule};
/// let radam = RAdam { weight_decay: 0.01, decoupled_weight_decay: true, ..RAdam::default() };
/// assert!(radam.validate().is_ok());
/// assert!(RAdam { rectification_threshold: 3.0, ..radam }.validate().is_err());
/// ```
///
/// Reference: Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond*, ICLR 2020.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct RAdam {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root: 0, or large enough for `eps · √(1 − beta2)` to be a normal f32 (a deviation:
    /// PyTorch accepts any value, and divides zero by zero if it is flushed). Default 1e-8.
    pub eps: f64,
    /// Adds `eps` after the bias correction, as optax does. Default false.
    pub eps_corrected: bool,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Applies `weight_decay` to the parameter instead, as AdamW does. Default false.
    pub decoupled_weight_decay: bool,
    /// Length of the approximated average above which the step is rectified, `[4, ∞)`. Default 5.
    pub rectification_threshold: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for RAdam {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            eps_corrected: false,
            weight_decay: 0.0,
            decoupled_weight_decay: false,
            rectification_threshold: 5.0,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`RAdam`].
    pub struct RAdamScalars {
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
        /// lr / (1 − β₁ᵗ), times r · √(1 − β₂ᵗ) if the step is rectified.
        step_size,
        /// eps, times √(1 − β₂ᵗ) if it is corrected.
        eps,
        /// 1 if the step is rectified, else 0.
        rectified,
    }
}

impl Rule for RAdam {
    const NAME: &'static str = "radam";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/radam.wgsl");
    type Scalars<T: Float> = RAdamScalars<T>;
    type State<T: Float> = MomentsState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        validate_betas(Self::NAME, self.beta1, self.beta2, self.eps, self.weight_decay)?;
        let threshold = self.rectification_threshold;
        check(Self::NAME, "rectification_threshold", threshold, threshold >= 4.0, "finite and at least 4")
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> RAdamScalars<f64> {
        let bias2 = bias_correction(self.beta2, t);
        let rho_inf = 2.0 / (1.0 - self.beta2) - 1.0;
        let rho = rho_inf - 2.0 * t as f64 * (1.0 - bias2) / bias2;
        let rectified = rho > self.rectification_threshold;
        let rectification =
            ((rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)).sqrt();
        let (weight_decay, decay) = decays(self.weight_decay, self.decoupled_weight_decay, lr);
        RAdamScalars {
            sign: sign(self.maximize),
            weight_decay,
            decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            step_size: lr / bias_correction(self.beta1, t)
                * if rectified { rectification * bias2.sqrt() } else { 1.0 },
            eps: if self.eps_corrected { self.eps * bias2.sqrt() } else { self.eps },
            rectified: if rectified { 1.0 } else { 0.0 },
        }
    }
}

impl CpuRule for RAdam {
    const MAX_ULPS: f64 = ADAM_MAX_ULPS;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &RAdamScalars<T>, p: &mut T, g: T, state: &mut MomentsState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * d * d;
        let step = s.step_size * m;
        let rectified = if s.rectified > T::ZERO { step / (v.sqrt() + s.eps) } else { step };
        *p = *p - (weighted(s.decay, *p) + rectified);
        state.exp_avg = m;
        state.exp_avg_sq = v;
    }
}

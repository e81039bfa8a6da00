use super::adam::{ADAM_MAX_ULPS, AdamState, Denominator, MAX_SLOT, validate_betas};
use super::{Rule, Twin, sign, toward};
use crate::error::Error;
use crate::float::Float;

/// AdamW: Adam with the weight decay taken out of the gradient and applied to the parameter itself.
///
/// ```text
/// d = ±g                                          (− if maximize)
/// m = beta1 · m + (1 − beta1) · d
/// v = beta2 · v + (1 − beta2) · d²
/// w = v                                           without amsgrad
/// w = max(w, v)                                   with amsgrad
/// p = p − lr · weight_decay · p − lr / (1 − beta1ᵗ) · m / (√w / √(1 − beta2ᵗ) + eps)
/// ```
///
/// `amsgrad_corrected` and `eps_corrected` are as in [`Adam`](super::Adam).
///
/// Semantics and defaults are those of `torch.optim.AdamW` (the decay takes the parameter from before the step and
/// scales with the learning rate). The kernel adds decay and step before it subtracts them, so that `p` is rounded once;
/// `√(1 − beta2ᵗ)` is multiplied into `step_size` and `eps` on the host as in [`Adam`](super::Adam). optax's default
/// `weight_decay` is 1e-4; bitsandbytes decays after the update. State: 8 bytes a parameter (`exp_avg`, `exp_avg_sq`), with amsgrad 12
/// (`max_exp_avg_sq`). Error of one step: at most
/// [`MAX_ULPS`](Twin::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{AdamW, Rule};
/// let adamw = AdamW { beta2: 0.95, weight_decay: 0.1, ..AdamW::default() };
/// assert!(adamw.validate().is_ok());
/// ```
///
/// Reference: Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, ICLR 2019.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct AdamW {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root, after bias correction: 0, or so large that `eps · √(1 − beta2)` is a normal f32 (a deviation: PyTorch takes any, and
    /// divides zeros by zero where it is flushed). Default 1e-8.
    pub eps: f64,
    /// Share of the parameter, times the learning rate, that a step removes, `[0, ∞)`. Default 0.01.
    pub weight_decay: f64,
    /// Divides by the largest mean square so far. Default false.
    pub amsgrad: bool,
    /// Takes that maximum over bias-corrected mean squares, as optax does; needs `amsgrad`. Default false.
    pub amsgrad_corrected: bool,
    /// Adds `eps` after the bias correction; Keras does so before it. Default true.
    pub eps_corrected: bool,
    /// Climbs instead of descending. Default false.
    pub maximize: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            amsgrad: false,
            amsgrad_corrected: false,
            eps_corrected: true,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`AdamW`].
    pub struct AdamWScalars {
        /// −1 to maximize, else 1.
        sign,
        /// lr · weight_decay.
        decay,
        /// Weight of the gradient in the mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean, β₁.
        beta1,
        /// Weight of the old mean square.
        beta2,
        /// Weight of the gradient's square, 1 − β₂.
        one_minus_beta2,
        /// lr / (1 − β₁ᵗ), times √(1 − β₂ᵗ) unless the maximum is of corrected squares.
        step_size,
        /// eps, times √(1 − β₂ᵗ) where it is to be corrected together with √v.
        eps,
        /// What the mean square is multiplied by before the maximum is taken, 0 without one.
        max_scale,
    }
}

impl AdamW {
    fn denominator(&self) -> Denominator {
        let Self { amsgrad, amsgrad_corrected, eps_corrected, .. } = *self;
        Denominator { amsgrad, amsgrad_corrected, eps_corrected }
    }
}

impl Rule for AdamW {
    const NAME: &'static str = "adamw";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/adamw.wgsl");
    type Scalars<T: Float> = AdamWScalars<T>;
    type State<T: Float> = AdamState<T>;

    fn validate(&self) -> Result<(), Error> {
        validate_betas(Self::NAME, self.beta1, self.beta2, self.eps, self.weight_decay)?;
        self.denominator().validate(Self::NAME)
    }

    fn keeps_slot(&self, slot: usize) -> bool {
        self.amsgrad || slot != MAX_SLOT
    }

    fn with_momentum(self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdamWScalars<f64> {
        let (step_size, eps, max_scale) = self.denominator().scalars(self.beta1, self.beta2, self.eps, lr, t);
        AdamWScalars {
            sign: sign(self.maximize),
            decay: lr * self.weight_decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            step_size,
            eps,
            max_scale,
        }
    }
}

impl Twin for AdamW {
    const MAX_ULPS: f64 = ADAM_MAX_ULPS;

    #[inline(always)]
    fn update<T: Float>(s: &AdamWScalars<T>, p: &mut T, g: T, state: &mut AdamState<T>) {
        let d = s.sign * g;
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * d * d;
        let mut w = v;
        if s.max_scale > T::ZERO {
            w = state.max_exp_avg_sq.max(s.max_scale * v);
            state.max_exp_avg_sq = w;
        }
        *p = *p - (s.decay * *p + s.step_size * m / (w.sqrt() + s.eps));
        state.exp_avg = m;
        state.exp_avg_sq = v;
    }
}

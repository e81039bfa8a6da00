#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{
    CpuRule, Rule, below_one, bias_correction, decays, epsilon, non_negative, sign, toward, weighted,
};
use crate::error::RuleError;
use crate::float::Float;

/// Adam: steps by the gradient's running mean divided by the root of its running mean square; decay is L2.
///
/// ```text
/// d = ±g + weight_decay · p                       (− if maximize)
/// m = beta1 · m + (1 − beta1) · d
/// v = beta2 · v + (1 − beta2) · d²
/// w = v                                           without amsgrad
/// w = max(w, v)                                   with amsgrad
/// p = p − lr / (1 − beta1ᵗ) · m / (√w / √(1 − beta2ᵗ) + eps)
/// ```
///
/// Options beyond PyTorch's: with `amsgrad_corrected` (optax) `w = max(w, v / (1 − beta2ᵗ))`, and the last
/// line has `√w` alone. Without `eps_corrected` (Keras) the divisor is `(√w + eps) / √(1 − beta2ᵗ)`. With
/// `decoupled_weight_decay` the rule is [`AdamW`](super::AdamW).
///
/// Semantics and defaults are those of `torch.optim.Adam`. The kernel evaluates the last line as `step_size ·
/// m / (√w + eps)` with `√(1 − beta2ᵗ)` multiplied into `step_size` and `eps` on the host: equal in exact
/// arithmetic, one operation less. The only other deviation: the maximum of a NaN is left open. `d²`
/// overflows f32 beyond |d| = 1.8·10¹⁹; the element then does not move, as in PyTorch. State: 8 bytes per
/// parameter (`exp_avg`, `exp_avg_sq`), with amsgrad 12 (`max_exp_avg_sq`). Error of one step: at most
/// [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Adam, Rule};
/// let adam = Adam { beta2: 0.95, ..Adam::default() };
/// assert!(adam.validate().is_ok());
/// assert!(Adam { beta1: 1.0, ..adam }.validate().is_err());
/// ```
///
/// Reference: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015; Reddi, Kale and Kumar,
/// *On the Convergence of Adam and Beyond*, ICLR 2018.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adam {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root, after bias correction: 0, or large enough for `eps · √(1 − beta2)` to be a normal
    /// f32 (a deviation: PyTorch accepts any value, and divides zero by zero if it is flushed). Default 1e-8.
    pub eps: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Applies `weight_decay` to the parameter instead, as AdamW does. Default false.
    pub decoupled_weight_decay: bool,
    /// Divides by the largest mean square so far. Default false.
    pub amsgrad: bool,
    /// Takes the maximum over bias-corrected mean squares, as optax does; needs `amsgrad`. Default false.
    pub amsgrad_corrected: bool,
    /// Adds `eps` after the bias correction; Keras does so before it. Default true.
    pub eps_corrected: bool,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled_weight_decay: false,
            amsgrad: false,
            amsgrad_corrected: false,
            eps_corrected: true,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`Adam`].
    pub struct AdamScalars {
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
        /// lr / (1 − β₁ᵗ), times √(1 − β₂ᵗ) unless the maximum is of corrected squares.
        step_size,
        /// eps, times √(1 − β₂ᵗ) if it is corrected together with √v.
        eps,
        /// Factor of the mean square before the maximum is taken, 0 without a maximum.
        max_scale,
    }
}
crate::fields! {
    /// State of [`Adam`] and [`AdamW`](super::AdamW).
    pub struct AdamState {
        /// Running mean of the gradient.
        exp_avg,
        /// Running mean of its square.
        exp_avg_sq,
        /// Largest mean square so far; kept with `amsgrad` only.
        max_exp_avg_sq,
    }
}

/// Correctly rounded, the worst measured is 1.6. WGSL leaves the direction open, which doubles that, and
/// allows 2.5 ulp to the quotient and 4.5 to the root; relative to the error scale of the update, which
/// counts at least four factors, these 7 weigh 1.75.
pub(super) const ADAM_MAX_ULPS: f64 = 5.0;

pub(super) fn validate_betas(
    rule: &'static str,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
) -> Result<(), RuleError> {
    below_one(rule, "beta1", beta1)?;
    below_one(rule, "beta2", beta2)?;
    // The device gets eps · √(1 − β₂ᵗ), which is least at the first step.
    epsilon(rule, "eps", eps, (1.0 - beta2).sqrt())?;
    non_negative(rule, "weight_decay", weight_decay)
}

/// The last line of Adam's update: `(step_size, eps, max_scale)` of step `t`.
struct Denominator {
    amsgrad: bool,
    amsgrad_corrected: bool,
    eps_corrected: bool,
}

impl Denominator {
    fn validate(&self, rule: &'static str) -> Result<(), RuleError> {
        if self.amsgrad_corrected && !self.amsgrad {
            return Err(RuleError::Conflict {
                rule,
                conflict: "amsgrad_corrected = true, must be false without amsgrad",
            });
        }
        Ok(())
    }

    fn scalars(&self, beta1: f64, beta2: f64, eps: f64, lr: f64, t: u64) -> (f64, f64, f64) {
        let (bias1, bias2) = (bias_correction(beta1, t), bias_correction(beta2, t));
        // √v̂ = √w / root.
        let root = if self.amsgrad_corrected { 1.0 } else { bias2.sqrt() };
        let max_scale = match (self.amsgrad, self.amsgrad_corrected) {
            (false, _) => 0.0,
            (true, false) => 1.0,
            (true, true) => 1.0 / bias2,
        };
        let eps = if self.eps_corrected { eps * root } else { eps * root / bias2.sqrt() };
        (lr * root / bias1, eps, max_scale)
    }
}

/// Index of `max_exp_avg_sq`.
const MAX_SLOT: usize = 2;

impl Adam {
    fn denominator(&self) -> Denominator {
        let Self { amsgrad, amsgrad_corrected, eps_corrected, .. } = *self;
        Denominator { amsgrad, amsgrad_corrected, eps_corrected }
    }

    /// Checks the hyperparameters; errors name `rule`.
    pub(super) fn validate_as(&self, rule: &'static str) -> Result<(), RuleError> {
        validate_betas(rule, self.beta1, self.beta2, self.eps, self.weight_decay)?;
        self.denominator().validate(rule)
    }
}

impl Rule for Adam {
    const NAME: &'static str = "adam";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/adam.wgsl");
    type Scalars<T: Float> = AdamScalars<T>;
    type State<T: Float> = AdamState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        self.validate_as(Self::NAME)
    }

    fn keeps_slot(&self, slot: usize) -> bool {
        self.amsgrad || slot != MAX_SLOT
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdamScalars<f64> {
        let (weight_decay, decay) = decays(self.weight_decay, self.decoupled_weight_decay, lr);
        let (step_size, eps, max_scale) = self.denominator().scalars(self.beta1, self.beta2, self.eps, lr, t);
        AdamScalars {
            sign: sign(self.maximize),
            weight_decay,
            decay,
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

impl CpuRule for Adam {
    const MAX_ULPS: f64 = ADAM_MAX_ULPS;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdamScalars<T>, p: &mut T, g: T, state: &mut AdamState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * d * d;
        let mut w = v;
        if s.max_scale > T::ZERO {
            w = state.max_exp_avg_sq.max(s.max_scale * v);
            state.max_exp_avg_sq = w;
        }
        *p = *p - (weighted(s.decay, *p) + s.step_size * m / (w.sqrt() + s.eps));
        state.exp_avg = m;
        state.exp_avg_sq = v;
    }
}

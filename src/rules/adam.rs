use super::{Rule, Twin, below_one, check, non_negative};
use crate::error::Error;
use crate::float::Float;

/// Adam: steps by the gradient's running mean over the root of its running mean square; decay, if any, is L2.
///
/// ```text
/// d = ±g + weight_decay · p                       (− if maximize)
/// m = beta1 · m + (1 − beta1) · d
/// v = beta2 · v + (1 − beta2) · d²
/// p = p − lr / (1 − beta1ᵗ) · m / (√v / √(1 − beta2ᵗ) + eps)
/// ```
///
/// Semantics and defaults are those of `torch.optim.Adam`. The kernel evaluates the last line as
/// `step_size · m / (√v + eps)` with `√(1 − beta2ᵗ)` multiplied into `step_size` and `eps` on the host: equal in exact
/// arithmetic, one operation less. No deviations otherwise. `d²` overflows f32 beyond |d| = 1.8·10¹⁹; the element
/// then rests, as PyTorch's does. State: 8 bytes a parameter (`exp_avg`, `exp_avg_sq`). Error of one step: at most
/// [`MAX_ULPS`](Twin::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Adam, Rule};
/// let adam = Adam { beta2: 0.95, ..Adam::default() };
/// assert!(adam.validate().is_ok());
/// assert!(Adam { beta1: 1.0, ..adam }.validate().is_err());
/// ```
///
/// Reference: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adam {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root, after bias correction: 0, or so large that `eps · √(1 − beta2)` is a normal f32 (a deviation: PyTorch takes any, and
    /// divides zeros by zero where it is flushed). Default 1e-8.
    pub eps: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Climbs instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, maximize: false }
    }
}

crate::fields! {
    /// Step scalars of [`Adam`].
    pub struct AdamScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// Weight of the gradient in the mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean square.
        beta2,
        /// Weight of the gradient's square, 1 − β₂.
        one_minus_beta2,
        /// lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ).
        step_size,
        /// eps · √(1 − β₂ᵗ).
        eps,
    }
}
crate::fields! {
    /// State of [`Adam`] and [`AdamW`](super::AdamW).
    pub struct AdamState {
        /// Running mean of the gradient.
        exp_avg,
        /// Running mean of its square.
        exp_avg_sq,
    }
}

/// Correctly rounded, the worst of 10⁸ random elements measured 1.4. WGSL leaves the direction open, which doubles that, and allows 2.5 ulp
/// to the quotient and 4.5 to the root; beside the size of the update, which counts at least four factors, these 7 weigh 1.75.
pub(super) const ADAM_MAX_ULPS: f64 = 5.0;

/// `(1 − β₁ᵗ, √(1 − β₂ᵗ))`, the bias corrections of step `t`.
pub(super) fn bias_corrections(beta1: f64, beta2: f64, t: u64) -> (f64, f64) {
    let power = |beta: f64| beta.powf(t as f64);
    (1.0 - power(beta1), (1.0 - power(beta2)).sqrt())
}

pub(super) fn validate_betas(
    rule: &'static str,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
) -> Result<(), Error> {
    below_one(rule, "beta1", beta1)?;
    below_one(rule, "beta2", beta2)?;
    non_negative(rule, "eps", eps)?;
    // What is sent is eps · √(1 − β₂ᵗ), least at the first step. Flushed to zero it would divide zeros by zero.
    let least = eps * (1.0 - beta2).sqrt();
    let bound = "0, or large enough for eps · √(1 − beta2) to be a normal f32";
    check(rule, "eps", eps, eps == 0.0 || least >= f32::MIN_POSITIVE.into(), bound)?;
    non_negative(rule, "weight_decay", weight_decay)
}

impl Rule for Adam {
    const NAME: &'static str = "adam";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/adam.wgsl");
    type Scalars<T: Float> = AdamScalars<T>;
    type State<T: Float> = AdamState<T>;

    fn validate(&self) -> Result<(), Error> {
        validate_betas(Self::NAME, self.beta1, self.beta2, self.eps, self.weight_decay)
    }

    fn with_momentum(self, beta1: f64) -> Self {
        Self { beta1, ..self }
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdamScalars<f64> {
        let (bias1, root2) = bias_corrections(self.beta1, self.beta2, t);
        AdamScalars {
            sign: if self.maximize { -1.0 } else { 1.0 },
            weight_decay: self.weight_decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            step_size: lr * root2 / bias1,
            eps: self.eps * root2,
        }
    }
}

impl Twin for Adam {
    const MAX_ULPS: f64 = ADAM_MAX_ULPS;

    #[inline]
    fn update<T: Float>(s: &AdamScalars<T>, p: &mut T, g: T, state: &mut AdamState<T>) {
        // Without weight decay a parameter is not even multiplied by 0: it may be infinite.
        let decay = if s.weight_decay > T::ZERO { s.weight_decay * *p } else { T::ZERO };
        let d = s.sign * g + decay;
        let m = state.exp_avg + s.one_minus_beta1 * (d - state.exp_avg);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * d * d;
        *p = *p - s.step_size * m / (v.sqrt() + s.eps);
        state.exp_avg = m;
        state.exp_avg_sq = v;
    }
}

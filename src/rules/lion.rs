#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, below_one, non_negative, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// Lion: steps by the sign of an interpolation between the gradient and its running mean; decay is decoupled.
///
/// ```text
/// d = ±g                                          (− if maximize)
/// c = beta1 · m + (1 − beta1) · d
/// p = p − lr · weight_decay · p − lr · sign(c)    sign(0) = 0
/// m = beta2 · m + (1 − beta2) · d
/// ```
///
/// PyTorch has no Lion; semantics and defaults are those of `optax.lion`. The paper's code has no decay. No
/// deviations: the sign of a NaN is NaN, as far as the device's arithmetic passes NaN on. State: 4 bytes per
/// parameter (`exp_avg`). Error of one step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS). If `c` is zero except
/// for rounding, any of the three signs is within that bound.
///
/// ```
/// use wgpu_optim::{Lion, Rule};
/// let lion = Lion { weight_decay: 0.01, ..Lion::default() };
/// assert!(lion.validate().is_ok());
/// assert!(Lion { beta2: 1.0, ..lion }.validate().is_err());
/// ```
///
/// Reference: Chen et al., *Symbolic Discovery of Optimization Algorithms*, NeurIPS 2023.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Lion {
    /// Weight of the mean in the step's direction, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean, `[0, 1)`. Default 0.99.
    pub beta2: f64,
    /// Share of the parameter, times the learning rate, that a step removes, `[0, ∞)`. Default 1e-3.
    pub weight_decay: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Lion {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, weight_decay: 1e-3, maximize: false }
    }
}

crate::fields! {
    /// Step scalars of [`Lion`].
    pub struct LionScalars {
        /// −1 to maximize, else 1.
        sign,
        /// lr · weight_decay.
        decay,
        /// Weight of the mean in the direction.
        beta1,
        /// Weight of the gradient in the direction, 1 − β₁.
        one_minus_beta1,
        /// Weight of the gradient in the mean, 1 − β₂.
        one_minus_beta2,
        /// Weight of the old mean, β₂.
        beta2,
        /// Learning rate.
        lr,
    }
}
crate::fields! {
    /// State of [`Lion`].
    pub struct LionState {
        /// Running mean of the gradient.
        exp_avg,
    }
}

impl Rule for Lion {
    const NAME: &'static str = "lion";
    const DEFAULT_LR: f64 = 1e-4;
    const WGSL: &'static str = include_str!("../../shaders/rules/lion.wgsl");
    type Scalars<T: Float> = LionScalars<T>;
    type State<T: Float> = LionState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        below_one(Self::NAME, "beta1", self.beta1)?;
        below_one(Self::NAME, "beta2", self.beta2)?;
        non_negative(Self::NAME, "weight_decay", self.weight_decay)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> LionScalars<f64> {
        LionScalars {
            sign: sign(self.maximize),
            decay: lr * self.weight_decay,
            beta1: self.beta1,
            one_minus_beta1: 1.0 - self.beta1,
            one_minus_beta2: 1.0 - self.beta2,
            beta2: self.beta2,
            lr,
        }
    }
}

impl CpuRule for Lion {
    // Sums and products only, and a sign; WGSL leaves the direction of six roundings open.
    const MAX_ULPS: f64 = 3.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &LionScalars<T>, p: &mut T, g: T, state: &mut LionState<T>) {
        let d = s.sign * g;
        let m = state.exp_avg;
        let c = s.beta1 * m + s.one_minus_beta1 * d;
        *p = *p - (weighted(s.decay, *p) + s.lr * c.sign());
        state.exp_avg = toward(m, d, s.one_minus_beta2, s.beta2);
    }
}

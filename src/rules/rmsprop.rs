#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, epsilon, non_negative, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// RMSprop: divides each step by the root of a running mean square, optionally centered and with momentum.
///
/// ```text
/// d = ±g + weight_decay · p                       (− if maximize)
/// v = alpha · v + (1 − alpha) · d²
/// m = alpha · m + (1 − alpha) · d                 m = 0 unless centered
/// s = d / (√(v − m² + eps_root) + eps)
/// b = momentum · b + s                            b = s without momentum
/// p = p − lr · b
/// ```
///
/// Semantics and defaults are those of `torch.optim.RMSprop`, which has no `eps_root`; optax and Keras have
/// `eps_root` 1e-8 or 1e-7 with `eps` 0 and `alpha` 0.9. Deviations: if rounding makes the variance `v − m²`
/// negative, it counts as 0, where PyTorch gets NaN. If both squares overflow, the element does not move, as
/// without `centered`. State: 4 bytes per parameter (`square_avg`), 4 more with momentum (`momentum_buffer`),
/// 4 more if centered (`grad_avg`). Error of one step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{RmsProp, Rule};
/// let rmsprop = RmsProp { momentum: 0.9, centered: true, ..RmsProp::default() };
/// assert!(rmsprop.validate().is_ok());
/// assert!(RmsProp { alpha: -0.5, ..rmsprop }.validate().is_err());
/// ```
///
/// Reference: Tieleman and Hinton, *Neural Networks for Machine Learning*, lecture 6.5, 2012; Graves,
/// *Generating Sequences With Recurrent Neural Networks*, 2013, for the centered form.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct RmsProp {
    /// Decay of both means, `[0, ∞)` as in PyTorch, sensibly below 1. Default 0.99.
    pub alpha: f64,
    /// Added to the root: 0, or a normal f32 (a deviation: PyTorch accepts any value, and divides zero by
    /// zero if it is flushed). Default 1e-8.
    pub eps: f64,
    /// Added inside the root: 0, or a normal f32. Default 0; optax and Keras put their ε here.
    pub eps_root: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Velocity kept from step to step, `[0, ∞)`. Default 0: no velocity, no state for it.
    pub momentum: f64,
    /// Subtracts the square of the mean. Default false.
    pub centered: bool,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self {
            alpha: 0.99,
            eps: 1e-8,
            eps_root: 0.0,
            weight_decay: 0.0,
            momentum: 0.0,
            centered: false,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`RmsProp`].
    pub struct RmsPropScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// Weight of the old mean square.
        alpha,
        /// Weight of the gradient in the means, 1 − alpha.
        one_minus_alpha,
        /// 1 if centered, else 0.
        centered,
        /// Added inside the root.
        eps_root,
        /// Added to the root.
        eps,
        /// Weight of the old velocity; 0 for no velocity, which then does not change.
        momentum,
        /// Learning rate.
        lr,
    }
}
crate::fields! {
    /// State of [`RmsProp`].
    pub struct RmsPropState {
        /// Running mean square of the gradient.
        square_avg,
        /// The velocity; kept with momentum only.
        momentum_buffer,
        /// Running mean of the gradient; kept if centered only.
        grad_avg,
    }
}

impl Rule for RmsProp {
    const NAME: &'static str = "rmsprop";
    const DEFAULT_LR: f64 = 1e-2;
    const WGSL: &'static str = include_str!("../../shaders/rules/rmsprop.wgsl");
    type Scalars<T: Float> = RmsPropScalars<T>;
    type State<T: Float> = RmsPropState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        non_negative(Self::NAME, "alpha", self.alpha)?;
        epsilon(Self::NAME, "eps", self.eps, 1.0)?;
        epsilon(Self::NAME, "eps_root", self.eps_root, 1.0)?;
        non_negative(Self::NAME, "weight_decay", self.weight_decay)?;
        non_negative(Self::NAME, "momentum", self.momentum)
    }

    fn keeps_slot(&self, slot: usize) -> bool {
        [true, self.momentum != 0.0, self.centered][slot]
    }

    fn with_momentum(&self, momentum: f64) -> Option<Self> {
        Some(Self { momentum, ..*self })
    }

    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> RmsPropScalars<f64> {
        RmsPropScalars {
            sign: sign(self.maximize),
            weight_decay: self.weight_decay,
            alpha: self.alpha,
            one_minus_alpha: 1.0 - self.alpha,
            centered: if self.centered { 1.0 } else { 0.0 },
            eps_root: self.eps_root,
            eps: self.eps,
            momentum: self.momentum,
            lr,
        }
    }
}

impl CpuRule for RmsProp {
    // WGSL allows 4.5 ulp to the root and 2.5 to the quotient, and leaves the direction of ten roundings
    // open; the error scale of lr · d / √v counts at least three factors.
    const MAX_ULPS: f64 = 6.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &RmsPropScalars<T>, p: &mut T, g: T, state: &mut RmsPropState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let v = s.alpha * state.square_avg + s.one_minus_alpha * d * d;
        let mut mean = T::ZERO;
        if s.centered > T::ZERO {
            mean = toward(state.grad_avg, d, s.one_minus_alpha, s.alpha);
            state.grad_avg = mean;
        }
        // A variance. Rounding must not make it negative, and two overflows must not make it zero.
        let step = d
            / (((v - (mean * mean).min(T::from_f64(f32::MAX.into()))).max(T::ZERO) + s.eps_root).sqrt()
                + s.eps);
        let mut b = step;
        if s.momentum > T::ZERO {
            b = s.momentum * state.momentum_buffer + step;
            state.momentum_buffer = b;
        }
        *p = *p - s.lr * b;
        state.square_avg = v;
    }
}

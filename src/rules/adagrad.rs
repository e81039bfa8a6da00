#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, epsilon, non_negative, sign, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// AdaGrad: divides each step by the root of the sum of all squared gradients.
///
/// ```text
/// d = ±g + weight_decay · p                       (− if maximize)
/// s = s + d²                                      s = initial_accumulator_value before the first step
/// p = p − lr / (1 + (t − 1) · lr_decay) · d / (√(s + eps_root) + eps)
/// ```
///
/// Semantics and defaults are those of `torch.optim.Adagrad`, which has no `eps_root`; optax and Keras start
/// from 0.1 and have `eps_root` 1e-7 with `eps` 0. The state reads 0 before the first step; the first step
/// adds the initial value. There are no other deviations. State: 4 bytes per parameter (`sum`). Error of one
/// step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Adagrad, Rule};
/// let optax = Adagrad { initial_accumulator_value: 0.1, eps: 0.0, eps_root: 1e-7, ..Adagrad::default() };
/// assert!(optax.validate().is_ok());
/// assert!(Adagrad { lr_decay: -1.0, ..optax }.validate().is_err());
/// ```
///
/// Reference: Duchi, Hazan and Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic
/// Optimization*, JMLR 12, 2011.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adagrad {
    /// Decay of the learning rate with the number of steps, `[0, ∞)`. Default 0.
    pub lr_decay: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Initial value of the sum: 0 or a normal f32. Default 0.
    pub initial_accumulator_value: f64,
    /// Added to the root: 0, or a normal f32 (a deviation: PyTorch accepts any value, and divides zero by
    /// zero if it is flushed). Default 1e-10.
    pub eps: f64,
    /// Added inside the root: 0, or a normal f32. Default 0; optax and Keras put their ε here.
    pub eps_root: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Adagrad {
    fn default() -> Self {
        Self {
            lr_decay: 0.0,
            weight_decay: 0.0,
            initial_accumulator_value: 0.0,
            eps: 1e-10,
            eps_root: 0.0,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`Adagrad`].
    pub struct AdagradScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// Initial value of the sum; 0 after the first step.
        initial,
        /// Added inside the root.
        eps_root,
        /// Added to the root.
        eps,
        /// Decayed learning rate.
        lr,
    }
}
crate::fields! {
    /// State of [`Adagrad`].
    pub struct AdagradState {
        /// Sum of squares.
        sum,
    }
}

impl Rule for Adagrad {
    const NAME: &'static str = "adagrad";
    const DEFAULT_LR: f64 = 1e-2;
    const WGSL: &'static str = include_str!("../../shaders/rules/adagrad.wgsl");
    type Scalars<T: Float> = AdagradScalars<T>;
    type State<T: Float> = AdagradState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        non_negative(Self::NAME, "lr_decay", self.lr_decay)?;
        non_negative(Self::NAME, "weight_decay", self.weight_decay)?;
        epsilon(Self::NAME, "initial_accumulator_value", self.initial_accumulator_value, 1.0)?;
        epsilon(Self::NAME, "eps", self.eps, 1.0)?;
        epsilon(Self::NAME, "eps_root", self.eps_root, 1.0)
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> AdagradScalars<f64> {
        AdagradScalars {
            sign: sign(self.maximize),
            weight_decay: self.weight_decay,
            initial: if t == 1 { self.initial_accumulator_value } else { 0.0 },
            eps_root: self.eps_root,
            eps: self.eps,
            lr: lr / (1.0 + t.saturating_sub(1) as f64 * self.lr_decay),
        }
    }
}

impl CpuRule for Adagrad {
    // WGSL allows 4.5 ulp to the root and 2.5 to the quotient, and leaves the direction of six roundings
    // open; the error scale of lr · d / √s counts at least three factors.
    const MAX_ULPS: f64 = 5.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdagradScalars<T>, p: &mut T, g: T, state: &mut AdagradState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let sum = state.sum + s.initial + d * d;
        *p = *p - s.lr * d / ((sum + s.eps_root).sqrt() + s.eps);
        state.sum = sum;
    }
}

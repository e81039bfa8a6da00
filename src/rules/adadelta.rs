#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, check, epsilon, non_negative, sign, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// Adadelta: scales the gradient by the ratio of the running root mean squares of steps and gradients.
///
/// ```text
/// d = ±g + weight_decay · p                       (− if maximize)
/// v = rho · v + (1 − rho) · d²
/// Δ = √(u + eps) / √(v + eps) · d
/// u = rho · u + (1 − rho) · Δ²
/// p = p − lr · Δ
/// ```
///
/// Semantics and defaults are those of `torch.optim.Adadelta`. The only deviation: `eps` must be a normal f32
/// or 0. State: 8 bytes per parameter (`square_avg`, `acc_delta`). Error of one step: at most
/// [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Adadelta, Rule};
/// let adadelta = Adadelta { rho: 0.95, ..Adadelta::default() };
/// assert!(adadelta.validate().is_ok());
/// assert!(Adadelta { rho: 1.5, ..adadelta }.validate().is_err());
/// ```
///
/// Reference: Zeiler, *ADADELTA: An Adaptive Learning Rate Method*, 2012.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Adadelta {
    /// Decay of both means, `[0, 1]`. Default 0.9.
    pub rho: f64,
    /// Added inside both roots: 0, or a normal f32 (a deviation: PyTorch accepts any value, and divides zero
    /// by zero if it is flushed). Default 1e-6.
    pub eps: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Adadelta {
    fn default() -> Self {
        Self { rho: 0.9, eps: 1e-6, weight_decay: 0.0, maximize: false }
    }
}

crate::fields! {
    /// Step scalars of [`Adadelta`].
    pub struct AdadeltaScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// Weight of the old means.
        rho,
        /// Weight of the new squares, 1 − rho.
        one_minus_rho,
        /// Added inside both roots.
        eps,
        /// Learning rate.
        lr,
    }
}
crate::fields! {
    /// State of [`Adadelta`].
    pub struct AdadeltaState {
        /// Running mean square of the gradient.
        square_avg,
        /// Running mean square of the step.
        acc_delta,
    }
}

impl Rule for Adadelta {
    const NAME: &'static str = "adadelta";
    const DEFAULT_LR: f64 = 1.0;
    const WGSL: &'static str = include_str!("../../shaders/rules/adadelta.wgsl");
    type Scalars<T: Float> = AdadeltaScalars<T>;
    type State<T: Float> = AdadeltaState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        let rho = (0.0..=1.0).contains(&self.rho);
        check(Self::NAME, "rho", self.rho, rho, "in [0, 1]")?;
        epsilon(Self::NAME, "eps", self.eps, 1.0)?;
        non_negative(Self::NAME, "weight_decay", self.weight_decay)
    }

    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> AdadeltaScalars<f64> {
        AdadeltaScalars {
            sign: sign(self.maximize),
            weight_decay: self.weight_decay,
            rho: self.rho,
            one_minus_rho: 1.0 - self.rho,
            eps: self.eps,
            lr,
        }
    }
}

impl CpuRule for Adadelta {
    // WGSL allows 4.5 ulp to each root and 2.5 to the quotient, and leaves the direction of ten roundings
    // open; the error scale of √u / √v · d counts at least two factors, that of its square four.
    const MAX_ULPS: f64 = 8.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdadeltaScalars<T>, p: &mut T, g: T, state: &mut AdadeltaState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let v = s.rho * state.square_avg + s.one_minus_rho * d * d;
        let u = state.acc_delta;
        let delta = (u + s.eps).sqrt() / (v + s.eps).sqrt() * d;
        *p = *p - s.lr * delta;
        state.square_avg = v;
        state.acc_delta = s.rho * u + s.one_minus_rho * delta * delta;
    }
}

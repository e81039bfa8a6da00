#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::{CpuRule, Rule, check, non_negative, sign, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// Stochastic gradient descent with momentum in its three forms, dampening, Nesterov momentum and L2
/// regularisation.
///
/// ```text
/// d = ±g + weight_decay · p                                     (− if maximize)
///
/// HeavyBall   b = d                                             at the first step with momentum
///             b = momentum · b + (1 − dampening) · d            after it
///             p = p − lr · (nesterov ? d + momentum · b : b)
/// Classic     b = momentum · b + lr · d                         b = 0 before the first step
///             p = p − (nesterov ? lr · d + momentum · b : b)
/// Averaged    b = momentum · b + (1 − momentum) · d             b = 0 before the first step
///             p = p − lr · (nesterov ? (1 − momentum) · d + momentum · b : b)
/// ```
///
/// With `momentum` 0 there is no `b`: `p = p − lr · d` for every form and dampening.
///
/// Semantics and defaults are those of `torch.optim.SGD`, which has the heavy ball: the learning rate is
/// outside the velocity, and the first velocity is the undamped gradient. Keras has the classic form, which
/// differs as soon as the learning rate changes. The averaged form is the heavy ball with `dampening =
/// momentum` from a zero velocity. No deviations. State: 4 bytes per parameter (`momentum_buffer`), none
/// without momentum. Error of one step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Rule, Sgd};
/// let sgd = Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() };
/// assert!(sgd.validate().is_ok());
/// assert!(Sgd { dampening: 0.1, ..sgd }.validate().is_err());
///
/// use wgpu_optim::rules::MomentumForm;
/// assert!(Sgd { form: MomentumForm::Classic, ..sgd }.validate().is_ok());
/// ```
///
/// Reference: Sutskever et al., *On the importance of initialization and momentum in deep learning*, ICML
/// 2013, in PyTorch's formulation; Polyak, *Some methods of speeding up the convergence of iteration
/// methods*, 1964; Dozat, *Incorporating Nesterov Momentum into Adam*, ICLR 2016 workshop, for Nesterov's
/// step over an average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Sgd {
    /// Velocity kept from step to step, `[0, ∞)`. Default 0: no velocity, no state.
    pub momentum: f64,
    /// Places of learning rate and dampening in the formula. Default: the heavy ball, PyTorch's.
    pub form: MomentumForm,
    /// Share of the gradient withheld from the heavy ball's velocity, finite; 0 in the other forms. Default
    /// 0.
    pub dampening: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Looks ahead along the velocity; needs `momentum > 0` and `dampening = 0`. Default false.
    pub nesterov: bool,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

/// The values that the velocity of [`Sgd`] accumulates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum MomentumForm {
    /// Gradients; the learning rate multiplies the velocity (PyTorch).
    #[default]
    HeavyBall,
    /// Steps: gradients times the learning rate of their step (Keras).
    Classic,
    /// A running mean of gradients.
    Averaged,
}

crate::fields! {
    /// Step scalars of [`Sgd`].
    pub struct SgdScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient.
        weight_decay,
        /// Weight of the old velocity, which is 0 before the first step.
        momentum,
        /// Weight of the gradient in the velocity: for the heavy ball 1 − dampening, or 1 in the first step.
        gain,
        /// 1 if the velocity moves the parameter, 0 without momentum: an existing velocity then does not
        /// change, as in PyTorch.
        velocity,
        /// The momentum of the look-ahead, 0 for none.
        lookahead,
        /// Weight of the gradient beside the look-ahead.
        own,
        /// Factor of the step: the learning rate, or 1 if the velocity contains it.
        rate,
    }
}
crate::fields! {
    /// State of [`Sgd`].
    pub struct SgdState {
        /// The velocity.
        momentum_buffer,
    }
}

/// Checks the settings of the velocity; errors name `rule`.
pub(super) fn validate_momentum(rule: &'static str, sgd: &Sgd) -> Result<(), RuleError> {
    let conflict = |conflict| Err(RuleError::Conflict { rule, conflict });
    non_negative(rule, "momentum", sgd.momentum)?;
    check(rule, "dampening", sgd.dampening, true, "finite")?;
    if sgd.form != MomentumForm::HeavyBall && sgd.dampening != 0.0 {
        return conflict("only the heavy ball has dampening");
    }
    if sgd.nesterov && (sgd.momentum == 0.0 || sgd.dampening != 0.0) {
        return conflict("nesterov needs momentum > 0 and dampening = 0");
    }
    Ok(())
}

impl Rule for Sgd {
    const NAME: &'static str = "sgd";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/sgd.wgsl");
    type Scalars<T: Float> = SgdScalars<T>;
    type State<T: Float> = SgdState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        non_negative(Self::NAME, "weight_decay", self.weight_decay)?;
        validate_momentum(Self::NAME, self)
    }

    fn keeps_slot(&self, _: usize) -> bool {
        self.momentum != 0.0
    }

    fn with_momentum(&self, momentum: f64) -> Option<Self> {
        Some(Self { momentum, ..*self })
    }

    /// `carry` becomes 1 with the first step that has momentum.
    fn scalars(&self, lr: f64, _: u64, carry: &mut f64) -> SgdScalars<f64> {
        let moving = self.momentum != 0.0;
        let first = moving && *carry == 0.0;
        if first {
            *carry = 1.0;
        }
        // Weights of the gradient in the velocity and beside it, and of the step.
        let (gain, own, rate) = match self.form {
            MomentumForm::HeavyBall => (if first { 1.0 } else { 1.0 - self.dampening }, 1.0, lr),
            MomentumForm::Classic => (lr, lr, if moving { 1.0 } else { lr }),
            MomentumForm::Averaged => (1.0 - self.momentum, 1.0 - self.momentum, lr),
        };
        SgdScalars {
            sign: sign(self.maximize),
            weight_decay: self.weight_decay,
            momentum: self.momentum,
            gain,
            velocity: if moving { 1.0 } else { 0.0 },
            lookahead: if self.nesterov { self.momentum } else { 0.0 },
            own,
            rate,
        }
    }
}

impl CpuRule for Sgd {
    // Sums and products only. Rounded to nearest, the worst of 10⁸ random elements measured 1.4; WGSL leaves
    // the direction open, which doubles that.
    const MAX_ULPS: f64 = 3.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &SgdScalars<T>, p: &mut T, g: T, state: &mut SgdState<T>) {
        let d = s.sign * g + weighted(s.weight_decay, *p);
        let old = state.momentum_buffer;
        let moving = s.velocity > T::ZERO;
        let b = if moving { weighted(s.momentum, old) + s.gain * d } else { old };
        let ahead = if s.lookahead > T::ZERO { s.own * d + s.lookahead * b } else { b };
        *p = *p - s.rate * if moving { ahead } else { d };
        state.momentum_buffer = b;
    }
}

#[cfg(feature = "checkpoint")]
use super::Saved;
use super::loops::compiled_here;
use super::sgd::{self, MomentumForm, Sgd, SgdScalars, SgdState};
use super::{CpuRule, Rule, epsilon, non_negative, sign, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// LARS: SGD with momentum, with gradients scaled in proportion to the norm of the tensor's parameters; for
/// large batches.
///
/// ```text
/// d = ±g                                                             (− if maximize)
/// φ = trust_coefficient · ‖p‖ / (‖d‖ + weight_decay · ‖p‖ + eps)     of each tensor; 1 if ‖p‖ or the
///                                                                     divisor is 0
/// d = φ · (d + weight_decay · p)
/// ```
///
/// The rest is [`Sgd`] with `momentum`, `form`, `dampening` and `nesterov`, without weight decay. With
/// `joint_norm` (optax) the divisor is `‖d + weight_decay · p‖ + eps`.
///
/// Defaults are those of `optax.lars`, except the momentum: optax and the paper have the
/// [classic](MomentumForm::Classic) form. The default here is the heavy ball, as in apex's LARC around
/// PyTorch's SGD. Deviations: LARC omits a step's decay if ‖p‖ or ‖d‖ is 0, and by default bounds φ by 1 /
/// lr. A separate phase on the device takes the norms and reads parameters and gradients once more. State: 4
/// bytes per parameter with momentum (`momentum_buffer`), else none. Error of one step: at most
/// [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Lars, Rule};
/// let lars = Lars { weight_decay: 5e-4, ..Lars::default() };
/// assert!(lars.validate().is_ok());
/// ```
///
/// Reference: You, Gitman and Ginsburg, *Large Batch Training of Convolutional Networks*, 2017 (arXiv
/// 1708.03888).
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Lars {
    /// Velocity kept from step to step, as in [`Sgd`]. Default 0.9.
    pub momentum: f64,
    /// Form of the momentum, as in [`Sgd`]. Default: the heavy ball.
    pub form: MomentumForm,
    /// Dampening of the heavy ball, as in [`Sgd`]. Default 0.
    pub dampening: f64,
    /// L2 coefficient added to the gradient, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Nesterov momentum, as in [`Sgd`]. Default false.
    pub nesterov: bool,
    /// Norm of the step at a learning rate of 1, relative to the norm of the parameters, `[0, ∞)`. Default
    /// 0.001.
    pub trust_coefficient: f64,
    /// Added to the divisor: 0, or at least 2⁻¹²⁶, the smallest normal f32. Default 0.
    pub eps: f64,
    /// Takes the norm of gradient and decay together. Default false.
    pub joint_norm: bool,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Lars {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            form: MomentumForm::HeavyBall,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            trust_coefficient: 0.001,
            eps: 0.0,
            joint_norm: false,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`Lars`].
    pub struct LarsScalars {
        /// −1 to maximize, else 1.
        sign,
        /// L2 coefficient if the norm includes its share.
        decay_within,
        /// L2 coefficient if the norms are taken apart.
        decay_beside,
        /// Factor of the norms' ratio.
        trust_coefficient,
        /// Added to the divisor.
        eps,
        /// Weight of the old velocity, which is 0 before the first step.
        momentum,
        /// Weight of the gradient in the velocity.
        gain,
        /// 1 if the velocity moves the parameter, 0 without momentum.
        velocity,
        /// The momentum of the look-ahead, 0 for none.
        lookahead,
        /// Weight of the gradient beside the look-ahead.
        own,
        /// Factor of the step.
        rate,
        /// φ of the tensor.
        ratio,
    }
}

impl Lars {
    /// The update by the scaled gradient.
    fn sgd(&self) -> Sgd {
        let Self { momentum, form, dampening, nesterov, .. } = *self;
        Sgd { momentum, form, dampening, nesterov, ..Sgd::default() }
    }
}

impl Rule for Lars {
    const NAME: &'static str = "lars";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/lars.wgsl");
    const TRUST_RATIO: Option<&'static str> = Some("ratio");
    const NORM_SCALARS: &'static [&'static str] = &["eps"];
    type Scalars<T: Float> = LarsScalars<T>;
    type State<T: Float> = SgdState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        non_negative(Self::NAME, "weight_decay", self.weight_decay)?;
        non_negative(Self::NAME, "trust_coefficient", self.trust_coefficient)?;
        epsilon(Self::NAME, "eps", self.eps, 1.0)?;
        sgd::validate_momentum(Self::NAME, &self.sgd())
    }

    fn keeps_slot(&self, slot: usize) -> bool {
        self.sgd().keeps_slot(slot)
    }

    fn with_momentum(&self, momentum: f64) -> Option<Self> {
        Some(Self { momentum, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> LarsScalars<f64> {
        let SgdScalars { momentum, gain, velocity, lookahead, own, rate, .. } =
            self.sgd().scalars(lr, t, carry);
        let (decay_within, decay_beside) =
            if self.joint_norm { (self.weight_decay, 0.0) } else { (0.0, self.weight_decay) };
        LarsScalars {
            sign: sign(self.maximize),
            decay_within,
            decay_beside,
            trust_coefficient: self.trust_coefficient,
            eps: self.eps,
            momentum,
            gain,
            velocity,
            lookahead,
            own,
            rate,
            ratio: 1.0,
        }
    }
}

impl CpuRule for Lars {
    const MAX_ULPS: f64 = 4.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &LarsScalars<T>, p: &mut T, g: T, state: &mut SgdState<T>) {
        let u = Self::direction(s, *p, g, state);
        let d = s.ratio * (u + weighted(s.decay_beside, *p));
        let LarsScalars { momentum, gain, velocity, lookahead, own, rate, .. } = *s;
        let (sign, weight_decay) = (T::from_f64(1.0), T::ZERO);
        let sgd = SgdScalars { sign, weight_decay, momentum, gain, velocity, lookahead, own, rate };
        Sgd::update(&sgd, p, d, state);
    }

    #[inline(always)]
    fn direction<T: Float>(s: &LarsScalars<T>, p: T, g: T, _: &SgdState<T>) -> T {
        s.sign * g + weighted(s.decay_within, p)
    }

    fn trust_ratio<T: Float>(s: &LarsScalars<T>, p_norm: T, u_norm: T) -> T {
        let divisor = u_norm + s.decay_beside * p_norm + s.eps;
        let one = p_norm == T::ZERO || divisor == T::ZERO;
        if one { T::from_f64(1.0) } else { s.trust_coefficient * p_norm / divisor }
    }
}

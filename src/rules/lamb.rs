#[cfg(feature = "checkpoint")]
use super::Saved;
use super::adam::validate_betas;
use super::loops::compiled_here;
use super::{CpuRule, MomentsState, Rule, bias_correction, sign, toward, weighted};
use crate::error::RuleError;
use crate::float::Float;

/// LAMB: AdamW's step, scaled to the norm of the tensor's parameters; for large batches.
///
/// ```text
/// d = ±g                                                             (− if maximize)
/// m = beta1 · m + (1 − beta1) · d
/// v = beta2 · v + (1 − beta2) · d²
/// u = m / (1 − beta1ᵗ) / (√v / √(1 − beta2ᵗ) + eps) + weight_decay · p
/// φ = ‖p‖ / ‖u‖ of each tensor, 1 where either is 0
/// p = p − lr · φ · u
/// ```
///
/// Semantics and defaults are those of `optax.lamb`. apex's FusedLAMB scales only the steps of groups with a
/// weight decay, like `adapt_undecayed: false`. It also bounds the norm of all gradients, like the
/// [option](crate::Options::clip), and adds `eps` at the same place. Deviations: the paper's φ bounds ‖p‖ by
/// constants that no library sets. The host multiplies `√(1 − beta2ᵗ)` into the mean's scale and `eps`, as
/// for [`Adam`](super::Adam). A separate phase on the device takes the norms and reads everything once more.
/// State: 8 bytes per parameter (`exp_avg`, `exp_avg_sq`). Error of one step: at most
/// [`MAX_ULPS`](CpuRule::MAX_ULPS).
///
/// ```
/// use wgpu_optim::{Lamb, Rule};
/// let lamb = Lamb { weight_decay: 0.01, ..Lamb::default() };
/// assert!(lamb.validate().is_ok());
/// ```
///
/// Reference: You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*, ICLR
/// 2020.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Lamb {
    /// Decay of the mean, `[0, 1)`. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean square, `[0, 1)`. Default 0.999.
    pub beta2: f64,
    /// Added to the root, after bias correction: 0, or large enough for `eps · √(1 − beta2)` to be a normal
    /// f32. Default 1e-6.
    pub eps: f64,
    /// Share of the parameter that is added to the update direction, `[0, ∞)`. Default 0.
    pub weight_decay: f64,
    /// Scales the steps of groups without weight decay too. Default true.
    pub adapt_undecayed: bool,
    /// Ascends instead of descending. Default false.
    pub maximize: bool,
}

impl Default for Lamb {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.0,
            adapt_undecayed: true,
            maximize: false,
        }
    }
}

crate::fields! {
    /// Step scalars of [`Lamb`].
    pub struct LambScalars {
        /// −1 to maximize, else 1.
        sign,
        /// Weight of the parameter in the direction.
        weight_decay,
        /// Weight of the gradient in the mean, 1 − β₁.
        one_minus_beta1,
        /// Weight of the old mean, β₁.
        beta1,
        /// Weight of the old mean square.
        beta2,
        /// Weight of the gradient's square, 1 − β₂.
        one_minus_beta2,
        /// √(1 − β₂ᵗ) / (1 − β₁ᵗ).
        mean_scale,
        /// eps · √(1 − β₂ᵗ).
        eps,
        /// Learning rate.
        lr,
        /// 1 where steps are scaled, else 0.
        adapts,
        /// φ of the tensor.
        ratio,
    }
}

impl Rule for Lamb {
    const NAME: &'static str = "lamb";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = include_str!("../../shaders/rules/lamb.wgsl");
    const TRUST_RATIO: Option<&'static str> = Some("ratio");
    const DIRECTION_SLOTS: &'static [&'static str] = &["exp_avg", "exp_avg_sq"];
    type Scalars<T: Float> = LambScalars<T>;
    type State<T: Float> = MomentsState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        validate_betas(Self::NAME, self.beta1, self.beta2, self.eps, self.weight_decay)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, _: &mut f64) -> LambScalars<f64> {
        let root = bias_correction(self.beta2, t).sqrt();
        let adapts = self.adapt_undecayed || self.weight_decay != 0.0;
        LambScalars {
            sign: sign(self.maximize),
            weight_decay: self.weight_decay,
            one_minus_beta1: 1.0 - self.beta1,
            beta1: self.beta1,
            beta2: self.beta2,
            one_minus_beta2: 1.0 - self.beta2,
            mean_scale: root / bias_correction(self.beta1, t),
            eps: self.eps * root,
            lr,
            adapts: if adapts { 1.0 } else { 0.0 },
            ratio: 1.0,
        }
    }
}

impl Lamb {
    /// The new moments and the direction.
    #[inline(always)]
    fn moments<T: Float>(s: &LambScalars<T>, p: T, g: T, state: &MomentsState<T>) -> (MomentsState<T>, T) {
        let d = s.sign * g;
        let m = toward(state.exp_avg, d, s.one_minus_beta1, s.beta1);
        let v = s.beta2 * state.exp_avg_sq + s.one_minus_beta2 * d * d;
        let u = s.mean_scale * m / (v.sqrt() + s.eps) + weighted(s.weight_decay, p);
        (MomentsState { exp_avg: m, exp_avg_sq: v }, u)
    }
}

impl CpuRule for Lamb {
    const MAX_ULPS: f64 = 6.0;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &LambScalars<T>, p: &mut T, g: T, state: &mut MomentsState<T>) {
        let (moments, u) = Self::moments(s, *p, g, state);
        *p = *p - s.lr * s.ratio * u;
        *state = moments;
    }

    #[inline(always)]
    fn direction<T: Float>(s: &LambScalars<T>, p: T, g: T, state: &MomentsState<T>) -> T {
        Self::moments(s, p, g, state).1
    }

    fn trust_ratio<T: Float>(s: &LambScalars<T>, p_norm: T, u_norm: T) -> T {
        let one = s.adapts == T::ZERO || p_norm == T::ZERO || u_norm == T::ZERO;
        if one { T::from_f64(1.0) } else { p_norm / u_norm }
    }
}

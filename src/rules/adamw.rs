#[cfg(feature = "checkpoint")]
use super::Saved;
use super::adam::{Adam, AdamScalars, AdamState};
use super::loops::compiled_here;
use super::{CpuRule, Rule};
use crate::error::RuleError;
use crate::float::Float;

/// AdamW: Adam with the weight decay applied to the parameter and not to the gradient.
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
/// Semantics and defaults are those of `torch.optim.AdamW` (the decay is a share of the parameter before the
/// step, and scales with the learning rate). The update is [`Adam`](super::Adam)'s with
/// `decoupled_weight_decay`: one shader, one CPU implementation. The kernel adds decay and step before it
/// subtracts them, so `p` is rounded once. The host multiplies `√(1 − beta2ᵗ)` into `step_size` and `eps`, as
/// for [`Adam`](super::Adam). optax's default `weight_decay` is 1e-4; bitsandbytes decays after the update.
/// State: 8 bytes per parameter (`exp_avg`, `exp_avg_sq`), with amsgrad 12 (`max_exp_avg_sq`). Error of one
/// step: at most [`MAX_ULPS`](CpuRule::MAX_ULPS).
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
    /// Added to the root, after bias correction: 0, or large enough for `eps · √(1 − beta2)` to be a normal
    /// f32 (a deviation: PyTorch accepts any value, and divides zero by zero if it is flushed). Default 1e-8.
    pub eps: f64,
    /// Share of the parameter, times the learning rate, that a step removes, `[0, ∞)`. Default 0.01.
    pub weight_decay: f64,
    /// Divides by the largest mean square so far. Default false.
    pub amsgrad: bool,
    /// Takes the maximum over bias-corrected mean squares, as optax does; needs `amsgrad`. Default false.
    pub amsgrad_corrected: bool,
    /// Adds `eps` after the bias correction; Keras does so before it. Default true.
    pub eps_corrected: bool,
    /// Ascends instead of descending. Default false.
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

impl AdamW {
    /// The rule as Adam with decoupled weight decay.
    fn adam(&self) -> Adam {
        let Self { beta1, beta2, eps, weight_decay, amsgrad, amsgrad_corrected, eps_corrected, maximize } =
            *self;
        Adam {
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled_weight_decay: true,
            amsgrad,
            amsgrad_corrected,
            eps_corrected,
            maximize,
        }
    }
}

impl Rule for AdamW {
    const NAME: &'static str = "adamw";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = Adam::WGSL;
    type Scalars<T: Float> = AdamScalars<T>;
    type State<T: Float> = AdamState<T>;
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = Some(Saved::new());

    fn validate(&self) -> Result<(), RuleError> {
        self.adam().validate_as(Self::NAME)
    }

    fn keeps_slot(&self, slot: usize) -> bool {
        self.adam().keeps_slot(slot)
    }

    fn with_momentum(&self, beta1: f64) -> Option<Self> {
        Some(Self { beta1, ..*self })
    }

    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> AdamScalars<f64> {
        self.adam().scalars(lr, t, carry)
    }
}

impl CpuRule for AdamW {
    const MAX_ULPS: f64 = Adam::MAX_ULPS;
    compiled_here!();

    #[inline(always)]
    fn update<T: Float>(s: &AdamScalars<T>, p: &mut T, g: T, state: &mut AdamState<T>) {
        Adam::update(s, p, g, state);
    }
}

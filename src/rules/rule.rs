//! The traits that a rule implements.

use super::fields::Fields;
use super::loops::{Loops, Of};
#[cfg(feature = "checkpoint")]
use super::saved::Saved;
use crate::error::RuleError;
use crate::float::Float;
use core::fmt::Debug;

/// An update rule: its hyperparameters, its state and its arithmetic on the GPU.
///
/// Implement it on a struct of your own for a rule that is not built in. Both kinds of rules are used alike:
/// a [`Group`](crate::Group) takes any value that converts to a [`DynRule`](crate::DynRule), which rules do
/// that implement [`CpuRule`] too. [`GpuOnly`](crate::rules::GpuOnly) converts a rule without a CPU
/// implementation.
///
/// The shader text defines `fn update(s: Scalars, at: At)`, which updates one vector of four elements. It
/// reads and writes each value once, through functions over `vec4<f32>`:
///
/// * `read_p(at)`, `read_g(at)` and, for each slot of [`State`](Self::State), `read_SLOT(at)`;
/// * `write_p(at, x)` and `write_SLOT(at, x)`, each after its read.
///
/// Read late and write early: software Vulkan then has few values live at a time. On a GPU all loads come
/// first, whatever the order of the text. `Scalars` has the fields of [`Scalars`](Self::Scalars). Each is a
/// `Number`: an `f32` or, where one vector spans several groups, a `vec4<f32>`. Write arithmetic that takes
/// both (`s.lr * g`). `Number(0.5)` is a constant of that type.
///
/// Helpers: `toward(old, new, s.w, s.rest)` is the running mean `w · new + rest · old`, without cancellation.
/// `weighted(s.w, x)` is `w · x`, and 0 where `w` is 0 even if `x` is infinite. `on(s.w)` is `w > 0`, for
/// `select`. `KEEPS_SLOT`, with the slot's name in capitals, says whether a slot is kept. `is_nan(x)` tests
/// each component. `sign_of(x)` is a sign that passes NaN on. In Rust they are
/// [`toward`](crate::rules::toward), [`weighted`](crate::rules::weighted), a comparison and [`Float::sign`].
/// WGSL promises nothing of the `max` and `min` of a NaN, and Rust drops it.
///
/// The rule's text shares a module with the kernel around it, so names of your own functions and constants
/// should begin with the rule's name. `optim kernel` prints the whole text of a built-in rule's kernel. A
/// slot is not called `p`, `g`, `param`, `ema`, `master` or `remainder`, and a scalar is not called
/// `gradient_factor` or `average_weight`.
pub trait Rule: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The name used in files, on the command line and in errors.
    const NAME: &'static str;
    /// PyTorch's default learning rate.
    const DEFAULT_LR: f64;
    /// The shader text.
    const WGSL: &'static str;
    /// Scalars that the host computes for every step and group.
    type Scalars<T: Float>: Fields<T>;
    /// State of one element; fields have PyTorch's slot names and start at zero.
    type State<T: Float>: Fields<T>;

    /// For a layer-wise rule: the name of its trust ratio, the scalar that depends on each tensor's own norms
    /// and is computed on the device. Its shader text defines two more functions:
    ///
    /// * `fn direction(s: Scalars, at: At, p: vec4<f32>) -> vec4<f32>`, the update direction, whose norm
    ///   stands beside the norm of the parameters `p`. `update` calls it too, with the parameters it has
    ///   read, so that everything else that is written is read and written in `direction`. A first phase
    ///   calls `direction` alone and drops its writes.
    /// * `fn trust_ratio(s: GroupScalars, p_norm: f32, u_norm: f32) -> f32`, the scalar, from the 2-norms of
    ///   the tensor's parameters and update direction. `GroupScalars` has the fields of `Scalars`, each an
    ///   `f32`.
    ///
    /// The value that [`scalars`](Self::scalars) gives for it is not used.
    const TRUST_RATIO: Option<&'static str> = None;

    /// For a layer-wise rule: the scalars that its `trust_ratio` adds to a norm. Where an f32 does not hold a
    /// norm, both norms and these scalars are 2⁻⁸⁰ times what they are, which leaves the ratio as it is.
    const NORM_SCALARS: &'static [&'static str] = &[];

    /// For a layer-wise rule: the state slots that its `direction` reads. The count of bytes moved needs it.
    const DIRECTION_SLOTS: &'static [&'static str] = &[];

    /// How hyperparameters are written to checkpoints and compared with those of a file; `None`, the default,
    /// for a rule that cannot be saved. `Some(Saved::new())` takes the rule's serde form.
    #[cfg(feature = "checkpoint")]
    const SAVED: Option<Saved<Self>> = None;

    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// A [`RuleError::Hyperparameter`] if one is out of range, a [`RuleError::Conflict`] if two exclude each
    /// other.
    fn validate(&self) -> Result<(), RuleError>;

    /// Whether this configuration keeps state slot `slot`, an index into the fields of
    /// [`State`](Self::State).
    ///
    /// A slot that no group of a layout keeps costs no memory and no traffic: the update then reads zero, and
    /// its writes are dropped.
    fn keeps_slot(&self, slot: usize) -> bool {
        let _ = slot;
        true
    }

    /// The rule with `momentum` in the place that a momentum schedule drives; `None`, the default, if it has
    /// no such place.
    #[must_use]
    fn with_momentum(&self, momentum: f64) -> Option<Self> {
        let _ = momentum;
        None
    }

    /// The scalars of step `t` (counted from 1) at learning rate `lr`, computed in f64.
    ///
    /// `carry` is one number that the host keeps for each group between steps, 0 before the first: a running
    /// product, or whether momentum has begun. State that starts from another value than zero gets it here,
    /// as a scalar that is 0 but at the first step.
    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> Self::Scalars<f64>;
}

/// A rule's arithmetic in Rust: at `f64` the reference, at `f32` the CPU engine.
///
/// The engine compiles it into loops for several instruction sets. Mark [`update`](Self::update) and
/// [`direction`](Self::direction) with `#[inline(always)]`, and write branches on scalars alone, or as short
/// choices between two numbers.
pub trait CpuRule: Rule {
    /// The largest error of one step, for a parameter or a state slot, on a device that rounds as WGSL
    /// requires: in units of [`ulp`](crate::float::ulp) of its [error scale](crate::float::Scaled).
    const MAX_ULPS: f64;

    /// Whether the update never changes a slot that is [not kept](Rule::keeps_slot). It then runs in longer
    /// loops.
    #[doc(hidden)]
    const LEAVES_DROPPED: bool = false;

    /// The rule's loops, compiled in the crate that calls this. A built-in rule overrides it: its loops are
    /// compiled in this crate alone.
    // Hidden: a rule of one's own has nothing to override, and `Loops` is no part of the stable interface.
    #[doc(hidden)]
    fn loops() -> &'static Loops {
        Of::<Self>::LOOPS
    }

    /// One element's update; names and order are those of the shader.
    fn update<T: Float>(s: &Self::Scalars<T>, p: &mut T, g: T, state: &mut Self::State<T>);

    /// For a [layer-wise](Rule::TRUST_RATIO) rule: the update direction of one element.
    fn direction<T: Float>(s: &Self::Scalars<T>, p: T, g: T, state: &Self::State<T>) -> T {
        let _ = (s, p, g, state);
        T::ZERO
    }

    /// For a [layer-wise](Rule::TRUST_RATIO) rule: the trust ratio of a tensor.
    fn trust_ratio<T: Float>(s: &Self::Scalars<T>, p_norm: T, u_norm: T) -> T {
        let _ = (s, p_norm, u_norm);
        T::ZERO
    }
}

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
/// Implement it on a struct of your own for a user-defined rule. A [`Group`](crate::Group) takes any value
/// that converts to a [`DynRule`](crate::DynRule), and every rule that also implements [`CpuRule`] converts.
/// [`GpuOnly`](crate::rules::GpuOnly) converts a rule without a CPU implementation.
///
/// The shader text defines `fn update(s: Scalars, at: At)`, which updates one vector of four elements. It
/// reads and writes each value once, through functions over `vec4<f32>`:
///
/// * `read_p(at)`, `read_g(at)` and, for each slot of [`State`](Self::State), `read_SLOT(at)`;
/// * `write_p(at, x)` and `write_SLOT(at, x)`, each after its read.
///
/// Read late and write early: few values are then live at a time on software Vulkan. On a GPU all loads come
/// first for any order of the text. `Scalars` has the fields of [`Scalars`](Self::Scalars). Each is a
/// `Number`: an `f32`, or a `vec4<f32>` if a vector spans several groups. Write arithmetic that takes both
/// (`s.lr * g`). `Number(0.5)` is a constant of that type.
///
/// Helpers: `toward(old, new, s.w, s.rest)` is the running mean `w · new + rest · old`, without cancellation.
/// `weighted(s.w, x)` is `w · x`, and 0 where `w` is 0 even if `x` is infinite. `on(s.w)` is `w > 0`, for
/// `select`. `KEEPS_SLOT`, with the slot's name in capitals, says whether a slot is kept. `is_nan(x)` tests
/// each component. `sign_of(x)` is a sign that passes NaN on. In Rust they are
/// [`toward`](crate::rules::toward), [`weighted`](crate::rules::weighted), a comparison and [`Float::sign`].
/// WGSL leaves the `max` and `min` of a NaN open, and Rust drops the NaN.
///
/// The rule's text shares a module with the rest of the kernel, so your functions and constants should have
/// names that begin with the rule's name. `optim kernel` prints the whole text of a built-in rule's kernel. A
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

    /// Name of a layer-wise rule's trust ratio: the scalar that the device computes from each tensor's norms.
    /// The shader text of such a rule defines two more functions:
    ///
    /// * `fn direction(s: Scalars, at: At, p: vec4<f32>) -> vec4<f32>`, the update direction, whose norm is
    ///   compared with the norm of the parameters `p`. `update` calls it too, with the parameters that it has
    ///   read. `direction` therefore reads and writes everything except the parameters. A first phase calls
    ///   only `direction` and drops its writes.
    /// * `fn trust_ratio(s: GroupScalars, p_norm: f32, u_norm: f32) -> f32`, the scalar, from the 2-norms of
    ///   the tensor's parameters and update direction. `GroupScalars` has the fields of `Scalars`, each an
    ///   `f32`.
    ///
    /// The value from [`scalars`](Self::scalars) for this scalar is not used.
    const TRUST_RATIO: Option<&'static str> = None;

    /// Scalars that a layer-wise rule's `trust_ratio` adds to a norm. If an f32 does not hold a norm, both
    /// norms and these scalars are multiplied by 2⁻⁸⁰, which does not change the ratio.
    const NORM_SCALARS: &'static [&'static str] = &[];

    /// State slots that a layer-wise rule's `direction` reads, for the count of bytes moved.
    const DIRECTION_SLOTS: &'static [&'static str] = &[];

    /// The form of hyperparameters in checkpoints. `None`, the default, is for a rule that cannot be saved.
    /// `Some(Saved::new())` takes the rule's serde form.
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
    /// A slot that no group of a layout keeps takes no memory and no traffic: the update reads zero, and
    /// writes are dropped.
    fn keeps_slot(&self, slot: usize) -> bool {
        let _ = slot;
        true
    }

    /// The rule with `momentum` as the hyperparameter that a momentum schedule sets; `None`, the default, if
    /// the rule has none.
    #[must_use]
    fn with_momentum(&self, momentum: f64) -> Option<Self> {
        let _ = momentum;
        None
    }

    /// The scalars of step `t` (counted from 1) at learning rate `lr`, computed in f64.
    ///
    /// `carry` is one number that the host keeps per group between steps, 0 before the first step: for
    /// example a running product, or whether momentum has begun. An initial state other than zero is a scalar
    /// that is 0 except at the first step.
    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> Self::Scalars<f64>;
}

/// A rule's arithmetic in Rust: in `f64` the reference, in `f32` the CPU engine.
///
/// The engine compiles it into loops for several instruction sets. Mark [`update`](Self::update) and
/// [`direction`](Self::direction) with `#[inline(always)]`, and branch only on scalars, or by short choices
/// between two numbers.
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
    // Hidden: a user-defined rule has nothing to override, and `Loops` is not part of the stable interface.
    #[doc(hidden)]
    fn loops() -> &'static Loops {
        Of::<Self>::LOOPS
    }

    /// One element's update; names and order are those of the shader.
    fn update<T: Float>(s: &Self::Scalars<T>, p: &mut T, g: T, state: &mut Self::State<T>);

    /// The update direction of one element, for a [layer-wise](Rule::TRUST_RATIO) rule.
    fn direction<T: Float>(s: &Self::Scalars<T>, p: T, g: T, state: &Self::State<T>) -> T {
        let _ = (s, p, g, state);
        T::ZERO
    }

    /// The trust ratio of a tensor, for a [layer-wise](Rule::TRUST_RATIO) rule.
    fn trust_ratio<T: Float>(s: &Self::Scalars<T>, p_norm: T, u_norm: T) -> T {
        let _ = (s, p_norm, u_norm);
        T::ZERO
    }
}

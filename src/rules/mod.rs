//! The update rules: what a rule is, and the list of them.
//!
//! A rule is a struct of hyperparameters with a WGSL function (its [`WGSL`](Rule::WGSL) text) and, as its
//! [`Twin`], the same function in Rust. Both are pure: numbers in, numbers out. Buffers, groups, chunks and
//! storage are the kernel's affair, and what is constant in a step is computed once on the
//! host, in f64, by [`Rule::scalars`].

mod adabelief;
mod adadelta;
mod adagrad;
mod adam;
mod adamax;
mod adamw;
mod adan;
mod lamb;
mod lars;
mod lion;
mod nadam;
mod radam;
mod rmsprop;
mod sgd;

pub use adabelief::{AdaBelief, AdaBeliefScalars};
pub use adadelta::{Adadelta, AdadeltaScalars, AdadeltaState};
pub use adagrad::{Adagrad, AdagradScalars, AdagradState};
pub use adam::{Adam, AdamScalars, AdamState};
pub use adamax::{Adamax, AdamaxScalars, AdamaxState};
pub use adamw::{AdamW, AdamWScalars};
pub use adan::{Adan, AdanScalars, AdanState};
pub use lamb::{Lamb, LambScalars};
pub use lars::{Lars, LarsScalars};
pub use lion::{Lion, LionScalars, LionState};
pub use nadam::{NAdam, NAdamScalars};
pub use radam::{RAdam, RAdamScalars};
pub use rmsprop::{RmsProp, RmsPropScalars, RmsPropState};
pub use sgd::{MomentumForm, Sgd, SgdScalars, SgdState};

use crate::error::Error;
use crate::float::Float;
use crate::kernel::GROUP_FACTOR;
use crate::options::{MASTER, REMAINDER};
#[cfg(feature = "gpu")]
use core::any::TypeId;
use core::fmt::Debug;

/// Calls a macro with the list of all built-in rules, each as its type: the one list that tests, benches,
/// the program and the documentation iterate.
///
/// ```
/// macro_rules! names {
///     ($($rule:ty),*) => { [$(<$rule as wgpu_optim::Rule>::NAME),*] };
/// }
/// assert!(wgpu_optim::for_each_rule!(names).contains(&"adamw"));
/// ```
#[macro_export]
macro_rules! for_each_rule {
    ($callback:ident) => {
        $callback! {
            $crate::Sgd, $crate::Adam, $crate::AdamW, $crate::Adagrad, $crate::RmsProp, $crate::Adadelta, $crate::Adamax,
            $crate::NAdam, $crate::RAdam, $crate::Lion, $crate::AdaBelief, $crate::Adan, $crate::Lamb,
            $crate::Lars
        }
    };
}

/// A struct whose fields are all of one type, so that it can be named in code and walked by index.
///
/// [`fields!`](crate::fields) implements it.
pub trait Fields<T>: Copy + Debug + Send + Sync {
    /// The fields' names, in order.
    const NAMES: &'static [&'static str];
    /// Builds one from its fields' values, asked for in order.
    fn from_fn(value: impl FnMut(usize) -> T) -> Self;
    /// The value of field `i`.
    fn get(&self, i: usize) -> T;
}

/// Declares a generic struct that implements [`Fields`](crate::rules::Fields).
///
/// ```
/// wgpu_optim::fields! {
///     /// What the kernel multiplies by.
///     pub struct DescentScalars {
///         /// Learning rate.
///         lr,
///     }
/// }
/// use wgpu_optim::rules::Fields;
/// assert_eq!(<DescentScalars<f32> as Fields<f32>>::NAMES, ["lr"]);
/// ```
#[macro_export]
macro_rules! fields {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        $vis struct $name<T> { $($(#[$doc])* $vis $field: T),+ }

        impl<T: Copy + ::core::fmt::Debug + Send + Sync> $crate::rules::Fields<T> for $name<T> {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
            #[inline(always)]
            fn from_fn(mut value: impl FnMut(usize) -> T) -> Self {
                let mut i = 0..;
                Self { $($field: value(i.next().unwrap_or_default())),+ }
            }
            #[inline(always)]
            fn get(&self, i: usize) -> T {
                [$(self.$field),+][i]
            }
        }
    };
}

fields! {
    /// State of rules with a first and a second moment.
    pub struct MomentsState {
        /// Running mean of the gradient.
        exp_avg,
        /// Running mean of a square.
        exp_avg_sq,
    }
}

/// What changes from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Learning rate of this step, before a group's factor.
    pub lr: f64,
    /// Replaces the rule's momentum (SGD, LARS, RMSprop) or β₁ (the Adam family, Lion, Adan) in this step, as a one-cycle schedule does.
    pub momentum: Option<f64>,
    /// What the gradients have been multiplied by: a loss scale, the number of micro-batches they are the sum of, or the product of both. They are divided by it before
    /// anything else. Other than 1 only with [`Options::divide`](crate::Options::divide).
    pub divisor: f64,
}

impl Step {
    /// The same with a momentum.
    #[must_use]
    pub fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum: Some(momentum), ..self }
    }

    /// What gradients are multiplied by before anything else; refuses a divisor where nothing `divides`.
    pub(crate) fn unscale(&self, divides: bool) -> Result<f64, Error> {
        let (field, value) = ("divisor", self.divisor);
        let unscale = 1.0 / value;
        if value == 1.0 || divides && value > 0.0 && (unscale as f32).is_normal() {
            return Ok(unscale);
        }
        let bound = if divides { "above 0, with a reciprocal in f32" } else { "1 without Options::divide" };
        Err(Error::Options { field, value, bound })
    }

    /// The same with a divisor of the gradients.
    #[must_use]
    pub fn divided_by(self, divisor: f64) -> Self {
        Self { divisor, ..self }
    }
}

impl From<f64> for Step {
    fn from(lr: f64) -> Self {
        Self { lr, momentum: None, divisor: 1.0 }
    }
}

/// An update rule: its hyperparameters, its state and its arithmetic on the GPU.
///
/// Implement it on a struct of your own for a rule that is not built in; [`Optimizer`](crate::Optimizer)
/// treats both alike.
///
/// The shader text defines `fn update(s: Scalars, at: At)`, which updates one quad: four elements, of which it reads and writes each
/// value once, through functions that are there for it, all over `vec4<f32>`:
///
/// * `read_p(at)`, `read_g(at)` and, for each slot of [`State`](Self::State), `read_SLOT(at)`;
/// * `write_p(at, x)` and `write_SLOT(at, x)`, each after its read.
///
/// Read late and write early: what is not live takes no registers. (On software Vulkan, AdamW so ordered takes 0.8 of the time that it takes
/// when all is read first.) `Scalars` has the fields of [`Scalars`](Self::Scalars), each an `f32` or, where one quad spans several groups, a
/// `vec4<f32>`: write arithmetic that takes both (`s.lr * g`; `vec4<f32>(s.eps)` where a vector is required).
///
/// Some functions are there to help: `toward(old, new, vec4<f32>(s.w), vec4<f32>(s.rest))` is a running mean, `w · new + rest · old`, without
/// cancellation; `weighted(vec4<f32>(s.w), x)` is `w · x`, and 0 where `w` is 0 even if `x` is infinite; `on(vec4<f32>(s.w))` is where `w > 0`, for `select`;
/// `sign_of(x)` is a sign that passes on what is no number. In Rust they are [`toward`], [`weighted`], a comparison and [`Float::sign`]. Of `max` and `min` of what is no
/// number WGSL promises nothing, and Rust drops it.
///
/// All that stands around the rule is in the same module, and grows with the options: names of your own functions and constants should begin with the rule's. Slots are not
/// called `p`, `g`, `param`, `ema`, `master` or `remainder`, scalars not `gradient_factor`.
pub trait Rule: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// The name used in files, on the command line and in errors; also the stem of the shader and source file.
    const NAME: &'static str;
    /// PyTorch's default learning rate.
    const DEFAULT_LR: f64;
    /// The shader text.
    const WGSL: &'static str;
    /// What the host computes for every step and group.
    type Scalars<T: Float>: Fields<T>;
    /// The state of one element; fields have PyTorch's slot names and start at zero.
    type State<T: Float>: Fields<T>;

    /// Of a layer-wise rule: the name of the scalar that depends on each tensor's own norms and is computed on the device. Its shader text defines two functions more:
    ///
    /// * `fn direction(s: Scalars, at: At, p: vec4<f32>) -> vec4<f32>`, what the norm is taken of beside the parameters `p`. `update` calls it too, with what it
    ///   has read, so that all else that is written has to be read or written there; a first phase calls it alone and drops what it writes.
    /// * `fn ratio(s: Row, p_norm: f32, u_norm: f32) -> f32`, the scalar, from the 2-norms of the tensor's parameters and direction. `Row` has the
    ///   same fields as `Scalars`, each an `f32`.
    ///
    /// What [`scalars`](Self::scalars) gives for it is not used.
    const RATIO: Option<&'static str> = None;

    /// Checks the hyperparameters.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] or [`Error::Conflict`].
    fn validate(&self) -> Result<(), Error>;

    /// Whether this configuration keeps slot `slot` at all. A slot that no group keeps costs no memory and no traffic:
    /// the update then reads zero and what it writes is dropped.
    fn keeps_slot(&self, slot: usize) -> bool {
        let _ = slot;
        true
    }

    /// The same rule with `momentum` in the place that a momentum schedule drives; `None`, the default, if it has no such place.
    #[must_use]
    fn with_momentum(self, momentum: f64) -> Option<Self> {
        let _ = momentum;
        None
    }

    /// The scalars of step `t` (counted from 1) at learning rate `lr`, computed in f64.
    ///
    /// `carry` is one number that the host keeps for each group between steps, 0 before the first: a running product, or
    /// whether momentum has begun. State that starts from another value than zero gets it here, as a scalar that is 0 but at the first step.
    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> Self::Scalars<f64>;
}

/// A rule's arithmetic in Rust: at `f64` the reference, at `f32` the CPU engine.
///
/// The engine compiles it into loops for several sets of instructions: mark [`update`](Self::update) and [`direction`](Self::direction) with `#[inline(always)]`, and write
/// branches on scalars alone, or as short choices between two numbers.
pub trait Twin: Rule {
    /// The largest error of one step, for a parameter or a state slot, on a device that rounds as WGSL requires:
    /// in units of [`ulp`](crate::float::ulp) of its [size](crate::float::Scaled).
    const MAX_ULPS: f64;

    /// One element's update; the same names and order as in the shader.
    fn update<T: Float>(s: &Self::Scalars<T>, p: &mut T, g: T, state: &mut Self::State<T>);

    /// Of a [layer-wise](Rule::RATIO) rule: the direction of one element.
    fn direction<T: Float>(s: &Self::Scalars<T>, p: T, g: T, state: &Self::State<T>) -> T {
        let _ = (s, p, g, state);
        T::ZERO
    }

    /// Of a [layer-wise](Rule::RATIO) rule: the ratio of a tensor.
    fn ratio<T: Float>(s: &Self::Scalars<T>, p_norm: T, u_norm: T) -> T {
        let _ = (s, p_norm, u_norm);
        T::ZERO
    }
}

/// `s` with the ratio of a tensor whose elements have these parameters and directions; `s` itself unless the rule is [layer-wise](Rule::RATIO).
pub(crate) fn with_ratio<R: Twin, T: Float>(
    s: &R::Scalars<T>,
    elements: impl Iterator<Item = (T, T)> + Clone,
) -> R::Scalars<T> {
    let Some(field) = ratio_field::<R>() else {
        return *s;
    };
    let p_norm = T::norm(elements.clone().map(|(p, _)| p));
    let ratio = R::ratio(s, p_norm, T::norm(elements.map(|(_, u)| u)));
    R::Scalars::<T>::from_fn(|i| if i == field { ratio } else { s.get(i) })
}

impl<T> Fields<T> for () {
    const NAMES: &'static [&'static str] = &[];
    fn from_fn(_: impl FnMut(usize) -> T) -> Self {}
    fn get(&self, _: usize) -> T {
        unreachable!("there are no fields")
    }
}

/// `w · x`, and 0 where `w` is 0: what has no weight is not even multiplied by 0, for it may be infinite.
#[inline(always)]
pub fn weighted<T: Float>(w: T, x: T) -> T {
    if w > T::ZERO { w * x } else { T::ZERO }
}

/// `w · new + (1 − w) · old`, in the form that does not cancel where `w` is near 0 or near 1; `rest` is `1 − w`, rounded on its own. PyTorch's `lerp` has the same
/// two forms.
#[inline(always)]
pub fn toward<T: Float>(old: T, new: T, w: T, rest: T) -> T {
    let d = new - old;
    if w < T::from_f64(0.5) { old + w * d } else { new - rest * d }
}

/// The slot names of a rule: the fields of its state.
#[must_use]
pub fn slots<R: Rule>() -> &'static [&'static str] {
    <R::State<f32> as Fields<f32>>::NAMES
}

/// The scalar names of a rule.
#[must_use]
pub fn scalar_names<R: Rule>() -> &'static [&'static str] {
    <R::Scalars<f32> as Fields<f32>>::NAMES
}

/// The field of a layer-wise rule's ratio among its scalars.
pub(crate) fn ratio_field<R: Rule>() -> Option<usize> {
    R::RATIO.and_then(|ratio| scalar_names::<R>().iter().position(|name| *name == ratio))
}

/// Refuses a rule whose names do not go together with each other or with what stands around it.
pub(crate) fn refuse_names<R: Rule>() -> Result<(), Error> {
    let conflict = |conflict| Err(Error::Conflict { rule: R::NAME, conflict });
    if scalar_names::<R>().is_empty() {
        return conflict("a rule has at least one scalar");
    }
    if R::RATIO.is_some() && ratio_field::<R>().is_none() {
        return conflict("RATIO has to be the name of a scalar");
    }
    if slots::<R>().iter().any(|slot| RESERVED_SLOTS.contains(slot)) {
        return conflict("no slot is called p, g, param, ema, master or remainder");
    }
    if scalar_names::<R>().contains(&GROUP_FACTOR) {
        return conflict("no scalar is called gradient_factor");
    }
    Ok(())
}

/// Names of what a rule does not keep itself.
const RESERVED_SLOTS: [&str; 6] = ["p", "g", "param", "ema", MASTER, REMAINDER];

/// Whether `R` is in the list of [`for_each_rule!`](crate::for_each_rule).
#[cfg(feature = "gpu")]
pub(crate) fn is_built_in<R: Rule>() -> bool {
    macro_rules! listed {
        ($($rule:ty),*) => { [$(TypeId::of::<$rule>()),*].contains(&TypeId::of::<R>()) };
    }
    crate::for_each_rule!(listed)
}

/// Refuses a hyperparameter outside `[0, ∞)`.
fn non_negative(rule: &'static str, field: &'static str, value: f64) -> Result<(), Error> {
    check(rule, field, value, value >= 0.0, "finite and at least 0")
}

/// Refuses a hyperparameter outside `[0, 1)`.
fn below_one(rule: &'static str, field: &'static str, value: f64) -> Result<(), Error> {
    check(rule, field, value, (0.0..1.0).contains(&value), "in [0, 1)")
}

/// Refuses an ε below `[0, ∞)`, and one that a device could flush to zero: it would then divide zeros by zero. `factor` is the least that ε is
/// multiplied by on its way to the device.
fn epsilon(rule: &'static str, field: &'static str, value: f64, factor: f64) -> Result<(), Error> {
    non_negative(rule, field, value)?;
    let bound = "0, or large enough to be a normal f32 when it is multiplied by its bias correction";
    check(rule, field, value, value == 0.0 || value * factor >= f32::MIN_POSITIVE.into(), bound)
}

/// −1 to maximize, else 1.
fn sign(maximize: bool) -> f64 {
    if maximize { -1.0 } else { 1.0 }
}

/// The coefficients `(L2, decoupled)` of a weight decay, the second times the learning rate.
fn decays(weight_decay: f64, decoupled: bool, lr: f64) -> (f64, f64) {
    if decoupled { (0.0, lr * weight_decay) } else { (weight_decay, 0.0) }
}

/// `1 − βᵗ`.
fn bias_correction(beta: f64, t: u64) -> f64 {
    1.0 - beta.powf(t as f64)
}

fn check(
    rule: &'static str,
    field: &'static str,
    value: f64,
    good: bool,
    bound: &'static str,
) -> Result<(), Error> {
    if good && value.is_finite() { Ok(()) } else { Err(Error::Hyperparameter { rule, field, value, bound }) }
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use super::*;

    /// Anyone else's text is compiled with wgpu's checks of indices and loops, so this is what memory safety rests on.
    #[test]
    fn only_the_rules_of_the_list_are_built_in() {
        macro_rules! all {
            ($($rule:ty),*) => { [$(is_built_in::<$rule>()),*] };
        }
        assert!(crate::for_each_rule!(all).iter().all(|&built_in| built_in));

        /// A rule of somebody's own with a familiar name.
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct Own;
        impl Rule for Own {
            const NAME: &'static str = "sgd";
            const DEFAULT_LR: f64 = 1.0;
            const WGSL: &'static str = Sgd::WGSL;
            type Scalars<T: Float> = SgdScalars<T>;
            type State<T: Float> = SgdState<T>;
            fn validate(&self) -> Result<(), Error> {
                Ok(())
            }
            fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> SgdScalars<f64> {
                Sgd::default().scalars(lr, t, carry)
            }
        }
        assert!(!is_built_in::<Own>());
    }
}

//! The update rules: the traits of a rule, and the list of built-in rules.
//!
//! A rule is a struct of hyperparameters with a WGSL function (its [`WGSL`](Rule::WGSL) text) and, as a
//! [`CpuRule`], the same function in Rust. Both are pure: numbers in, numbers out. Buffers, groups, chunks
//! and storage formats belong to the kernel. Every value that is constant in a step is computed once on the
//! host, in f64, by [`Rule::scalars`].

mod adabelief;
mod adadelta;
mod adagrad;
mod adam;
mod adamax;
mod adamw;
mod adan;
mod any;
mod arithmetic;
mod dynamic;
mod fields;
mod lamb;
mod lars;
mod lion;
pub(crate) mod loops;
mod nadam;
pub(crate) mod names;
mod radam;
mod rmsprop;
mod rule;
#[cfg(feature = "checkpoint")]
mod saved;
mod sgd;
mod spec;
#[cfg(test)]
mod tests;

pub use adabelief::AdaBelief;
pub use adadelta::Adadelta;
pub use adagrad::Adagrad;
pub use adam::Adam;
pub use adamax::Adamax;
pub use adamw::AdamW;
pub use adan::Adan;
pub use any::AnyRule;
pub use arithmetic::{toward, weighted};
pub use dynamic::{DynRule, GpuOnly};
pub use fields::{Fields, MomentsState};
pub use lamb::Lamb;
pub use lars::Lars;
pub use lion::Lion;
pub use nadam::NAdam;
pub use radam::RAdam;
pub use rmsprop::RmsProp;
pub use rule::{CpuRule, Rule};
#[cfg(feature = "checkpoint")]
pub use saved::Saved;
pub use sgd::{MomentumForm, Sgd};
pub use spec::{Kind, RuleSpec};

// Hidden: scalars and states of the built-in rules are public only because they are associated types of
// `Rule`. They are not part of the stable interface.
#[doc(hidden)]
pub use self::{
    adabelief::AdaBeliefScalars,
    adadelta::{AdadeltaScalars, AdadeltaState},
    adagrad::{AdagradScalars, AdagradState},
    adam::{AdamScalars, AdamState},
    adamax::{AdamaxScalars, AdamaxState},
    adan::{AdanScalars, AdanState},
    lamb::LambScalars,
    lars::LarsScalars,
    lion::{LionScalars, LionState},
    nadam::NAdamScalars,
    radam::RAdamScalars,
    rmsprop::{RmsPropScalars, RmsPropState},
    sgd::{SgdScalars, SgdState},
};

use arithmetic::{below_one, bias_correction, check, decays, epsilon, non_negative, sign};
pub(crate) use dynamic::Refusal;

/// Calls a macro with the types of all built-in rules. Tests, benches, the program and the documentation
/// iterate this list.
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
            $crate::Sgd, $crate::Adam, $crate::AdamW, $crate::Adagrad, $crate::RmsProp, $crate::Adadelta,
            $crate::Adamax, $crate::NAdam, $crate::RAdam, $crate::Lion, $crate::AdaBelief, $crate::Adan,
            $crate::Lamb, $crate::Lars
        }
    };
}

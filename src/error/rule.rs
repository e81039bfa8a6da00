//! Errors of rules and their hyperparameters.

use super::Number;

/// The error of a rule and its hyperparameters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// A hyperparameter is outside its range or not finite.
    #[error("{rule}: {field} = {}, must be {bound}", Number(*.value))]
    Hyperparameter {
        /// The rule's name.
        rule: &'static str,
        /// The hyperparameter's name.
        field: &'static str,
        /// The value that was refused.
        value: f64,
        /// The range of the hyperparameter.
        bound: &'static str,
    },
    /// Two settings of the rule exclude each other.
    #[error("{rule}: {conflict}")]
    Conflict {
        /// The rule's name.
        rule: &'static str,
        /// The settings, and the condition that they break.
        conflict: &'static str,
    },
    /// No built-in rule has the name.
    #[error("there is no rule {name:?}: choose one of {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names of all built-in rules.
        known: String,
    },
    /// The rule has no CPU implementation.
    #[error("{rule}: the rule has no CPU implementation: implement `CpuRule`")]
    NoCpu {
        /// The rule's name.
        rule: &'static str,
    },
    /// The rule has more state slots than the CPU engine supports.
    #[error("{rule}: {slots} state slots, must be at most {bound} on the CPU")]
    TooManySlots {
        /// The rule's name.
        rule: &'static str,
        /// The number of the rule's state slots.
        slots: usize,
        /// The largest number of state slots.
        bound: usize,
    },
}

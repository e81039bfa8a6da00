//! Differences between state and the optimizer that is to take it over.

/// All mismatches in one line.
pub(super) fn list(mismatches: &[StateMismatch]) -> String {
    mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A difference between state and the optimizer that is to take it over.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StateMismatch {
    /// A tensor of another shape.
    #[error("tensor {tensor:?} has shape {found:?}, must have {expected:?}")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// The shape in the old layout.
        found: Vec<u64>,
        /// The shape in the new one.
        expected: Vec<u64>,
    },
    /// A tensor with other state slots.
    #[error("tensor {tensor:?} has state slots {found:?}, must have {expected:?}")]
    Slots {
        /// The tensor's name.
        tensor: String,
        /// The slots that the old optimizer keeps.
        found: Vec<&'static str>,
        /// The slots that the new one keeps.
        expected: Vec<&'static str>,
    },
    /// A tensor of another rule, which carries a number from step to step.
    #[error("tensor {tensor:?} has rule {found}, which carries a number between steps, must have {expected}")]
    Rule {
        /// The tensor's name.
        tensor: String,
        /// The rule in the old layout.
        found: &'static str,
        /// The rule in the new one.
        expected: &'static str,
    },
    /// State in another format.
    #[error("{slot} of tensor {tensor:?}: {found}, must be {expected}")]
    Format {
        /// The tensor's name.
        tensor: String,
        /// `"states"`, `"master"` or `"ema"`.
        slot: &'static str,
        /// The old optimizer's format.
        found: &'static str,
        /// The new one's format.
        expected: &'static str,
    },
    /// A tensor that has taken another number of steps than other tensors of its group.
    #[error(
        "tensor {tensor:?} has taken another number of steps than others of group {group:?}: \
         give it a group of its own"
    )]
    Age {
        /// The tensor's name.
        tensor: String,
        /// The group's name.
        group: String,
    },
    /// An option that the state cannot go without.
    #[error("{option}: {found}, must be {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The old optimizer's value.
        found: &'static str,
        /// The value that the new one must have.
        expected: &'static str,
    },
}

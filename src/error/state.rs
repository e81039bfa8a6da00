//! Errors of reading, writing and taking over state.

use super::{BindError, Count, DeviceError};

/// The error of reading, writing or taking over state. The optimizer is unchanged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The layout has no tensor of the name.
    #[error("the layout has no tensor {tensor:?}: choose one of `Layout::tensors`")]
    UnknownTensor {
        /// The name that was asked for.
        tensor: String,
    },
    /// Neither the tensor's rule nor the options have a state slot of the name.
    #[error("tensor {tensor:?} has no state slot {slot:?}: choose one of `Layout::kept_slots`")]
    UnknownSlot {
        /// The tensor's name.
        tensor: String,
        /// The name that was asked for.
        slot: String,
    },
    /// No configuration of the tensor's rule keeps the state slot.
    #[error(
        "group {group:?}: the hyperparameters need no state slot {slot}: choose one of \
         `Layout::kept_slots`"
    )]
    SlotNotKept {
        /// The name of the tensor's group.
        group: String,
        /// The slot's name.
        slot: &'static str,
    },
    /// The state slot has codes that are not numbers.
    #[error("{slot} of tensor {tensor:?} has codes that are not numbers: read them in their stored form")]
    NoNumbers {
        /// The slot's name.
        slot: &'static str,
        /// The tensor's name.
        tensor: String,
    },
    /// The count of numbers differs from the tensor's elements.
    #[error(
        "{slot} of tensor {tensor:?}: {found} numbers, must be {expected}",
        found = Count(*.found), expected = Count(*.expected)
    )]
    Length {
        /// The slot's name.
        slot: String,
        /// The tensor's name.
        tensor: String,
        /// The number of numbers that were handed over.
        found: u64,
        /// The number of the tensor's elements.
        expected: u64,
    },
    /// A copy has too few bytes.
    #[error(
        "{found} bytes of a state slot, must be at least {bound}",
        found = Count(*.found), bound = Count(*.bound)
    )]
    Bytes {
        /// The number of bytes that were handed over.
        found: u64,
        /// The number of bytes of the copy.
        bound: u64,
    },
    /// The tensor shares words of 2-byte state with another tensor, as in a packed layout.
    #[error(
        "{slot} of tensor {tensor:?} has 2 bytes per element and shares words with another tensor: \
         align tensors as `Layout::new` does"
    )]
    SharedWord {
        /// The slot's name.
        slot: String,
        /// The tensor's name.
        tensor: String,
    },
    /// The buffer for a copy is refused.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The device is lost, or lacks memory for the written values.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The state does not fit the optimizer that takes it over: all differences.
    #[error("the state does not fit: {}", list(.0))]
    Mismatches(Vec<StateMismatch>),
}

/// Joins all mismatches in one line.
fn list(mismatches: &[StateMismatch]) -> String {
    mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A difference between state and the optimizer that takes it over.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StateMismatch {
    /// A tensor has another shape.
    #[error("tensor {tensor:?} has shape {found:?}, must have {expected:?}")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// The shape in the old layout.
        found: Vec<u64>,
        /// The shape in the new one.
        expected: Vec<u64>,
    },
    /// A tensor has other state slots.
    #[error("tensor {tensor:?} has state slots {found:?}, must have {expected:?}")]
    Slots {
        /// The tensor's name.
        tensor: String,
        /// The slots that the old optimizer keeps.
        found: Vec<&'static str>,
        /// The slots that the new one keeps.
        expected: Vec<&'static str>,
    },
    /// A tensor has another rule, and one that carries a number from step to step.
    #[error("tensor {tensor:?} has rule {found}, which carries a number between steps, must have {expected}")]
    Rule {
        /// The tensor's name.
        tensor: String,
        /// The rule in the old layout.
        found: &'static str,
        /// The rule in the new one.
        expected: &'static str,
    },
    /// State has another format.
    #[error("{slot} of tensor {tensor:?}: {found}, must be {expected}")]
    Format {
        /// The tensor's name.
        tensor: String,
        /// `"states"`, `"master"` or `"ema"`.
        slot: &'static str,
        /// The old optimizer's format.
        found: &'static str,
        /// The new optimizer's format.
        expected: &'static str,
    },
    /// A tensor has not taken the steps of its group, and the group's scalars depend on their number.
    #[error(
        "tensor {tensor:?} has not taken the {steps} steps of group {group:?}, and its scalars depend on \
         their number: put it in a group of its own", steps = Count(*.steps))]
    Age {
        /// The tensor's name.
        tensor: String,
        /// The group's name.
        group: String,
        /// The number of steps that the group has taken.
        steps: u64,
    },
    /// An option that the state depends on has another value.
    #[error("{option}: {found}, must be {expected}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The old optimizer's value.
        found: &'static str,
        /// The required value of the new optimizer.
        expected: &'static str,
    },
}

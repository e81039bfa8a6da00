//! Errors of layouts.

use super::{Count, RuleError, ScheduleError};

/// The error of a layout's groups and tensors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A group's rule is refused.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A group's schedule of the learning rate is refused.
    #[error("lr_factor of group {group:?}: {reason}")]
    Factor {
        /// The group's name.
        group: String,
        /// The error of the schedule.
        reason: ScheduleError,
    },
    /// The layout has no groups.
    #[error("the layout has no groups: add one, which may have no tensors")]
    Empty,
    /// Two groups have one name.
    #[error("group {group:?} is declared twice: give one of the two another name")]
    DuplicateGroup {
        /// The name of both groups.
        group: String,
    },
    /// Two tensors have one name.
    #[error("tensor {tensor:?} is declared twice: give one of the two another name")]
    DuplicateTensor {
        /// The name of both tensors.
        tensor: String,
    },
    /// Two tensors share elements of the flat space.
    #[error(
        "tensors {first:?} and {second:?} overlap: {first:?} ends at {end}, so {second:?}, which starts at \
         {start}, must start at {end} or later", end = Count(*.end), start = Count(*.start))]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The tensor that starts inside the first one.
        second: String,
        /// The end of the first tensor, in elements.
        end: u64,
        /// The start of the second tensor, in elements.
        start: u64,
    },
    /// A tensor lies beyond the reach of 64-bit byte addresses.
    #[error(
        "tensor {tensor:?}: offset + length = {end} elements, must be at most {bound}",
        end = Count(*.end), bound = Count(*.bound)
    )]
    TooLarge {
        /// The tensor's name.
        tensor: String,
        /// The end of the tensor, in elements, at most [`u64::MAX`].
        end: u64,
        /// The largest possible end.
        bound: u64,
    },
    /// The layout has no tensor of the name.
    #[error("the layout has no tensor {tensor:?}: choose one of `Layout::tensors`")]
    UnknownTensor {
        /// The name that was asked for.
        tensor: String,
    },
}

//! Errors of changes between steps.

use super::{Count, DeviceError, OptionsError, OutOfMemory, RuleError, ScheduleError};

/// The error of a change between steps: of a rule, a factor, a clip, a loss scale or a frozen group. The
/// optimizer is unchanged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// The layout has no group of the name.
    #[error("the layout has no group {group:?}: choose one of `Layout::groups`")]
    UnknownGroup {
        /// The name that was asked for.
        group: String,
    },
    /// The new rule is of another type than the group's.
    #[error("group {group:?}: the new rule is {found}, must be {expected} with other hyperparameters")]
    OtherRule {
        /// The group's name.
        group: String,
        /// The name of the new rule.
        found: &'static str,
        /// The name of the group's rule.
        expected: &'static str,
    },
    /// The new hyperparameters need a state slot that the optimizer does not keep.
    #[error(
        "group {group:?}: the hyperparameters need state slot {slot}, which the optimizer does not keep: \
         create it with hyperparameters that keep the slot"
    )]
    SlotNotKept {
        /// The group's name.
        group: String,
        /// The slot's name.
        slot: &'static str,
    },
    /// The new hyperparameters are refused.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The new schedule of a group's learning rate is refused.
    #[error("lr_factor of group {group:?}: {reason}")]
    Factor {
        /// The group's name.
        group: String,
        /// The error of the schedule.
        reason: ScheduleError,
    },
    /// The new clip is of another kind than the optimizer's.
    #[error("the new clip is {found}, must be {expected} with another bound")]
    OtherClip {
        /// The kind of the new clip.
        found: &'static str,
        /// The kind of the optimizer's clip, or `"none"`.
        expected: &'static str,
    },
    /// The new bound of the clip or the new loss scale is refused.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The device is lost, or has no memory for the new loss scale.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host has too little memory to divide the tensors again.
    #[error(
        "no memory for {bytes} bytes of optimizer state: free some, or store it in fewer bytes",
        bytes = Count(*.bytes)
    )]
    Memory {
        /// The number of bytes that were asked for.
        bytes: u64,
    },
}

impl From<OutOfMemory> for ChangeError {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::Memory { bytes }
    }
}

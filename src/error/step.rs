//! Errors of a step.

use super::{BindError, DeviceError, Number, RuleError, ScheduleError};

/// The error of a step. Nothing is recorded, and no state has changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The learning rate or the momentum of a group is outside its range or not finite.
    #[error("{field} = {} for group {group:?}, must be {bound}", Number(*.value))]
    Argument {
        /// The argument, or the hyperparameter that takes the momentum.
        field: &'static str,
        /// The group's name.
        group: String,
        /// The value that was refused.
        value: f64,
        /// The range of the argument.
        bound: &'static str,
    },
    /// The gradient scale is outside its range or not finite.
    #[error("grad_scale = {}, must be {bound}", Number(*.value))]
    GradScale {
        /// The value that was refused.
        value: f64,
        /// The range of the gradient scale.
        bound: &'static str,
    },
    /// A group's schedule of the learning rate has no value at this step.
    #[error("lr_factor of group {group:?}: {reason}")]
    Factor {
        /// The group's name.
        group: String,
        /// The error of the schedule.
        reason: ScheduleError,
    },
    /// An f32 cannot hold a scalar of the step.
    #[error(
        "{rule}: scalar {scalar} = {} of group {group:?} overflows f32: choose a smaller learning rate or \
         other hyperparameters", Number(*.value)
    )]
    ScalarOverflow {
        /// The rule's name.
        rule: &'static str,
        /// The scalar's name in the shader.
        scalar: &'static str,
        /// The group's name.
        group: String,
        /// The scalar in f64.
        value: f64,
    },
    /// Too many steps that may have been skipped were recorded since the device's last report.
    #[error(
        "{steps} steps recorded without a report from the device, must be at most {bound}: submit and poll"
    )]
    Unreported {
        /// The number of steps since the last report.
        steps: usize,
        /// The largest number of steps.
        bound: usize,
    },
    /// The momentum changes while a step that may have been skipped has no report, and the rule's scalars
    /// depend on the momenta of the taken steps.
    #[error("{rule}: the momentum changes while {steps} steps have no report: wait for their reports")]
    UncertainMomentum {
        /// The rule's name.
        rule: &'static str,
        /// The number of steps since the last report.
        steps: usize,
    },
    /// A group was frozen or thawed while steps that may have been skipped have no report.
    #[error(
        "group {group:?} was frozen or thawed while {steps} steps that may have been skipped have no report; \
         wait for their reports"
    )]
    UncertainAge {
        /// The group's name.
        group: String,
        /// The number of steps since the last report.
        steps: usize,
    },
    /// The tensors were bound by another optimizer.
    #[error("the tensors were bound by another optimizer: bind them by this one")]
    ForeignBinding,
    /// A rule has no CPU implementation; the check of a step needs one.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The caller's buffers or slices are refused.
    #[error(transparent)]
    Bind(BindError),
    /// The device is lost, refuses a buffer or a kernel, or a limit of it is too small.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<BindError> for StepError {
    /// A device's error becomes [`StepError::Device`].
    fn from(error: BindError) -> Self {
        match error {
            BindError::Device(error) => Self::Device(error),
            error => Self::Bind(error),
        }
    }
}

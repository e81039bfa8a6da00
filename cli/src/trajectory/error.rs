//! Errors of trajectory files, with name, value and bound.

use crate::number::shortest;
use safetensors::{Dtype, SafeTensorError};

/// The error of reading or replaying a trajectory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the file")]
    Io(#[source] std::io::Error),
    /// The file ends before an announced part.
    #[error("truncated: {what} ends at byte {end}, the file has {size}")]
    Truncated {
        /// The part that lies beyond the end.
        what: String,
        /// Where it would end.
        end: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// Bytes that no tensor accounts for.
    #[error("{size} bytes, but the last tensor ends at byte {end}")]
    Trailing {
        /// Where the tensors end.
        end: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// Not a safetensors file.
    #[error("not a safetensors file")]
    Safetensors(#[from] SafeTensorError),
    /// A metadata key that has to be there.
    #[error("metadata lacks the key {key:?}")]
    MissingMetadata {
        /// The key.
        key: &'static str,
    },
    /// The file has another format, or another version of it.
    #[error("metadata format = {found:?}, must be {expected:?}")]
    Format {
        /// The file's value.
        found: String,
        /// The known format.
        expected: &'static str,
    },
    /// A metadata value is not valid JSON of the expected form.
    #[error("metadata {key:?} is malformed")]
    Json {
        /// The key.
        key: &'static str,
        /// The reason.
        source: serde_json::Error,
    },
    /// A metadata value has no meaning.
    #[error("metadata {key:?} = {value}, must be {bound}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// The file's value.
        value: String,
        /// The values that are allowed.
        bound: &'static str,
    },
    /// A rule that the library does not have.
    #[error("unknown rule {rule:?}; known are {known}")]
    UnknownRule {
        /// The name in the file.
        rule: String,
        /// All names, separated by commas.
        known: String,
    },
    /// A hyperparameter that the rule lacks, or a value of another type.
    #[error("{rule}: hyperparameter {name} = {value}")]
    Hyperparameter {
        /// The rule.
        rule: &'static str,
        /// The hyperparameter.
        name: String,
        /// Its value in the file.
        value: String,
        /// The reason.
        source: serde_json::Error,
    },
    /// A group's rule or hyperparameters are refused.
    #[error("group {group:?}")]
    Group {
        /// The group.
        group: String,
        /// The reason.
        source: Box<Self>,
    },
    /// A group with a rule of its own and with overrides of the file's.
    #[error("group {group:?} has both \"optimizer\" and \"overrides\", must have at most one of them")]
    TwoRules {
        /// The group.
        group: String,
    },
    /// A momentum for each step, for rules without momentum.
    #[error("tensor \"momentum\": {rules} has no momentum to override")]
    NoMomentum {
        /// The names of the run's rules.
        rules: String,
    },
    /// A gradient of single rows, or a mask of rows.
    #[error(
        "tensor {name:?}: gradients of single rows (rows/…) and masks of rows (mask/…) are not supported"
    )]
    Rows {
        /// The tensor's full name.
        name: String,
    },
    /// A tensor that has to be there.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor's full name.
        name: String,
    },
    /// A tensor has no meaning in this format, or belongs to a parameter or a step that the file lacks.
    #[error("tensor {name:?} is not part of the format: {reason}")]
    UnexpectedTensor {
        /// The tensor's full name.
        name: String,
        /// The reason, with the names that have a meaning.
        reason: String,
    },
    /// A tensor of another type.
    #[error("tensor {name:?} has dtype {found:?}, must be {expected}")]
    Dtype {
        /// The tensor's full name.
        name: String,
        /// The tensor's type.
        found: Dtype,
        /// The values that are allowed.
        expected: &'static str,
    },
    /// A tensor of another shape.
    #[error("tensor {name:?} has shape {found:?}, must be {expected}")]
    Shape {
        /// The tensor's full name.
        name: String,
        /// The tensor's shape.
        found: Vec<usize>,
        /// The values that are allowed.
        expected: String,
    },
    /// A number outside its range.
    #[error("{field} = {}, must be {bound}", shortest(*.value))]
    Value {
        /// The name of the field, with an index.
        field: String,
        /// The number.
        value: f64,
        /// The values that are allowed.
        bound: &'static str,
    },
    /// A tensor of a group that the file does not have.
    #[error("group {group:?} names tensor {tensor:?}, which has no \"param/{tensor}\"")]
    GroupOfUnknown {
        /// The group.
        group: String,
        /// The name without a tensor.
        tensor: String,
    },
    /// A tensor that is in two groups, or twice in one.
    #[error("tensor {tensor:?} is in group {first:?} and again in group {second:?}")]
    GroupedTwice {
        /// The tensor.
        tensor: String,
        /// The first group.
        first: String,
        /// The second one.
        second: String,
    },
    /// A tensor that no group holds.
    #[error("tensor {tensor:?} is in no group")]
    Ungrouped {
        /// The tensor.
        tensor: String,
    },
    /// A learning-rate factor that is given beside a group's name and among its overrides.
    #[error("group {group:?} has two values of lr_factor")]
    TwoFactors {
        /// The group.
        group: String,
    },
    /// Expected state that the rule, as it is configured, does not keep.
    #[error("tensor {name:?}: rule {rule} as configured keeps no state {slot:?}; it keeps {kept:?}")]
    NoSuchState {
        /// The tensor's full name.
        name: String,
        /// The rule.
        rule: &'static str,
        /// The slot.
        slot: String,
        /// The slots that there are.
        kept: Vec<&'static str>,
    },
    /// The library refuses the groups.
    #[error("the run cannot be set up")]
    Setup(#[source] wgpu_optim::Error),
    /// The library refuses a step.
    #[error("step {t}")]
    Step {
        /// The step, counted from 1.
        t: usize,
        /// The reason.
        source: wgpu_optim::StepError,
    },
    /// The device refuses.
    #[error("the device cannot take the run")]
    Device(#[source] crate::device::Error),
}

//! Errors of options, and of the creation of an optimizer.

use super::{Count, DeviceError, Number, OutOfMemory, RuleError};

/// The error of options, or of the creation of an optimizer with them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// An option is outside its range or not finite.
    #[error("{field} = {}, must be {bound}", Number(*.value))]
    Field {
        /// The option's name.
        field: &'static str,
        /// The value that was refused.
        value: f64,
        /// The range of the option.
        bound: &'static str,
    },
    /// A storage format is not possible for an option.
    #[error("{field} are {format}, must be {bound}")]
    Format {
        /// The option's name.
        field: &'static str,
        /// The format that was refused.
        format: &'static str,
        /// The possible formats.
        bound: &'static str,
    },
    /// The options set gradients to zero that lie on a device, and only the caller writes them there.
    #[error("zero_gradients = true, must be false for offloaded state")]
    ZeroGradients,
    /// The number of parameters differs from the layout's.
    #[error(
        "{found} parameters, must be {expected} as in the layout",
        found = Count(*.found), expected = Count(*.expected)
    )]
    Parameters {
        /// The number of parameters that were handed over.
        found: u64,
        /// The length of the layout.
        expected: u64,
    },
    /// A rule cannot run on the CPU.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// Too many groups for the kernels, or too many scalars for a binding.
    #[error("{groups} groups, must be at most {bound} for these rules on this device: join some of them")]
    TooManyGroups {
        /// The number of groups.
        groups: usize,
        /// The largest number of groups.
        bound: usize,
    },
    /// Too many tensors of a layer-wise rule for the kernels.
    #[error(
        "{tensors} tensors, must be at most {bound} for rule {rule} on this device: join some of them, or \
         give some another rule"
    )]
    TooManyTensors {
        /// The rule's name.
        rule: &'static str,
        /// The number of the rule's tensors.
        tensors: usize,
        /// The largest number of tensors.
        bound: usize,
    },
    /// No buffer of the device can hold a tensor.
    #[error(
        "tensor {tensor:?} takes {bytes} bytes, must be at most {bound} on this device: divide it",
        bytes = Count(*.bytes), bound = Count(*.bound)
    )]
    TensorTooLarge {
        /// The tensor's name.
        tensor: String,
        /// The tensor's size.
        bytes: u64,
        /// The device's `max_buffer_size`.
        bound: u64,
    },
    /// The host has too little memory for the state.
    #[error(
        "no memory for {bytes} bytes of optimizer state: free some, or store it in fewer bytes",
        bytes = Count(*.bytes)
    )]
    Memory {
        /// The number of bytes that were asked for.
        bytes: u64,
    },
    /// The device is lost, refuses a buffer or a kernel, or a limit of it is too small.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<OutOfMemory> for OptionsError {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::Memory { bytes }
    }
}

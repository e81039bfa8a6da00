//! Errors of the caller's buffers and slices.

use super::{Count, DeviceError};

/// The error of the caller's buffers and slices, compared with the layout and the options.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The layout has no tensor of the name.
    #[error("the layout has no tensor {tensor:?}: choose one of `Layout::tensors`")]
    UnknownTensor {
        /// The name that was handed over.
        tensor: String,
    },
    /// A tensor was handed over twice.
    #[error("tensor {tensor:?} is given twice: give it once")]
    DuplicateTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// The number of tensors differs from the layout's.
    #[error(
        "{found} tensors, must be {expected} as in the layout",
        found = Count(*.found), expected = Count(*.expected)
    )]
    TensorCount {
        /// The number of tensors that were handed over.
        found: u64,
        /// The number of the layout's tensors.
        expected: u64,
    },
    /// A flat slice is shorter than the layout.
    #[error(
        "{what}: {found} elements, must be at least {bound}",
        found = Count(*.found), bound = Count(*.bound)
    )]
    TooShort {
        /// The name of the slice.
        what: &'static str,
        /// The length of the slice.
        found: u64,
        /// The length of the layout.
        bound: u64,
    },
    /// A slice has another length than its tensor, or a vector of a snapshot another length than the layout.
    #[error(
        "{what}: length {found}, must be {expected}",
        found = Count(*.found), expected = Count(*.expected)
    )]
    Length {
        /// The name of the slice.
        what: String,
        /// The length of the slice.
        found: u64,
        /// The length that the slice must have.
        expected: u64,
    },
    /// A slice has another type than the options say.
    #[error("{field} are {format}, must be {bound}")]
    Format {
        /// The option that says the type: `"params"` or `"grads"`.
        field: &'static str,
        /// The type of the slice.
        format: &'static str,
        /// The type that the options say.
        bound: &'static str,
    },
    /// The options set gradients to zero, and their slice is shared.
    #[error("grads are a shared slice, must be an exclusive one (`&mut`) with zero_gradients")]
    ReadOnly,
    /// A buffer of a tensor's own, with elements of 2 bytes, would share words with the tensor before it.
    #[error(
        "{what} start at element {offset} of the layout, must be even for elements of 2 bytes",
        offset = Count(*.offset)
    )]
    OddElement {
        /// The name of the buffer.
        what: String,
        /// The start of the tensor in the flat space.
        offset: u64,
    },
    /// A buffer lacks a usage that the kernels or copies need.
    #[error("{what}: the buffer lacks usage {usage}: create it with that usage")]
    MissingUsage {
        /// The name of the buffer.
        what: String,
        /// The usage that the buffer lacks.
        usage: &'static str,
    },
    /// A buffer is of another device than the optimizer.
    ///
    /// wgpu tells devices of one instance apart. A buffer of another instance is accepted as one of the
    /// device, or wgpu panics. In a browser the device's error handler gets the error.
    #[error("{what}: the buffer is of another device, must be of the optimizer's: create it on that device")]
    OtherDevice {
        /// The name of the buffer.
        what: String,
    },
    /// A byte offset does not fall on an element.
    #[error(
        "{what}: offset {offset} bytes, must be a multiple of {bound}",
        offset = Count(*.offset), bound = Count(*.bound)
    )]
    Misaligned {
        /// The name of the buffer.
        what: String,
        /// The offset in bytes.
        offset: u64,
        /// The alignment in bytes.
        bound: u64,
    },
    /// A buffer is too short for a tensor or for the layout.
    #[error(
        "{what}: needs bytes {start}..{end}, the buffer has {size}: create a larger one",
        start = Count(*.start), end = Count(*.end), size = Count(*.size)
    )]
    OutOfBounds {
        /// The name of the buffer.
        what: String,
        /// The first byte that is needed.
        start: u64,
        /// One past the last byte that is needed.
        end: u64,
        /// The size of the buffer.
        size: u64,
    },
    /// Two ranges of one buffer share bytes. Bindings start at multiples of 256 bytes, so parameters and
    /// gradients of one buffer have to lie in separate blocks of 256 bytes.
    #[error(
        "{first} and {second} share bytes {start}..{end} of one buffer: place them apart",
        start = Count(*.start), end = Count(*.end)
    )]
    Overlap {
        /// The name of one range.
        first: String,
        /// The name of the other range.
        second: String,
        /// The first shared byte.
        start: u64,
        /// One past the last shared byte.
        end: u64,
    },
    /// The device is lost, refuses a buffer or a kernel, or a limit of it is too small.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

//! Errors of a device.

use super::Count;
/// The error of a device: it is lost, it refuses an object, or its limits are too small.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device is lost: destroyed by the engine, or given up by its driver. The crate's documentation has
    /// [the way back](crate#a-lost-device).
    #[error("the device is lost: open another one, create the optimizer on it and load the last checkpoint")]
    Lost,
    /// The device cannot allocate a buffer, build a kernel or carry out a command.
    #[error("the device refused {what}: {reason}")]
    Refused {
        /// The object or the command.
        what: String,
        /// The message of the device.
        reason: String,
    },
    /// A limit of the device is below the need of the kernels.
    #[error(
        "device limit {limit} = {value}, must be at least {bound}",
        value = Count(*.value), bound = Count(*.bound)
    )]
    Limit {
        /// The limit's name in `wgpu::Limits`.
        limit: &'static str,
        /// The limit of the device.
        value: u64,
        /// The least value that the kernels need.
        bound: u64,
    },
}

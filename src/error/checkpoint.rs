//! Errors of saving and loading.

mod location;
mod malformed;
mod mismatch;

pub use location::Location;
pub use malformed::Malformed;
pub use mismatch::Mismatch;

use super::{BindError, Count, DeviceError, OutOfMemory};
use mismatch::Listed;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

/// The error of saving or loading a checkpoint.
///
/// The file at the checkpoint's path is always complete. It is the old file, or the new one if only the flush
/// of its directory failed. The optimizer's state is complete except after [`Torn`](Self::Torn).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system or the caller's stream refuses: no such file, no room, no permission.
    #[error("cannot {what} {location}: {source}")]
    Io {
        /// The verb of the action.
        what: &'static str,
        /// The file, directory or stream.
        location: Location,
        /// The error of the operating system or the stream.
        source: IoError,
    },
    /// The file is not a safetensors file, or is cut short or damaged. In a save: a load would refuse the
    /// file.
    #[error("{location}: {reason}")]
    Malformed {
        /// The file or stream.
        location: Location,
        /// The defect.
        reason: Malformed,
    },
    /// The extension of a path belongs to another kind of file.
    #[error("{path:?}: the name of {what} {bound}")]
    Name {
        /// The path.
        path: PathBuf,
        /// The requested kind of file.
        what: &'static str,
        /// The condition on its name.
        bound: &'static str,
    },
    /// [`Save::shard_bytes`](crate::checkpoint::Save::shard_bytes) is set for a stream, which takes one file.
    #[error("shard_bytes = {found}, must be None: a stream takes one file", found = Count(*.found))]
    Shards {
        /// The value of `shard_bytes`.
        found: u64,
    },
    /// The safetensors file has no metadata of an optimizer. It may contain parameters.
    #[error(
        "{location} is no checkpoint of an optimizer: its metadata has no {key:?}; load a file of `save`"
    )]
    NotACheckpoint {
        /// The file or stream.
        location: Location,
        /// The key that the metadata lacks.
        key: &'static str,
    },
    /// A later version of this crate wrote the checkpoint.
    #[error(
        "{location} has version {found} of the checkpoint format, this crate reads up to {bound}: use a \
         later version of the crate"
    )]
    Version {
        /// The file or stream.
        location: Location,
        /// The version of the file.
        found: u32,
        /// The latest version that is known.
        bound: u32,
    },
    /// The file has no tensor of the number.
    #[error("tensor {found}, must be below {bound}, the number of tensors of the file")]
    UnknownTensor {
        /// The number that was asked for.
        found: usize,
        /// The number of tensors.
        bound: usize,
    },
    /// The checkpoint does not fit the optimizer: the differences, at most 1 000.
    #[error(
        "the checkpoint does not fit: {}; load it as it was saved, or allow differences by `Load`",
        Listed(.0)
    )]
    Mismatches(Vec<Mismatch>),
    /// Commands of recorded steps are neither submitted nor dropped: their effect on the state is not known.
    #[error("{steps} recorded steps are neither submitted nor dropped; submit them first")]
    Unsubmitted {
        /// The number of steps.
        steps: usize,
    },
    /// A metadata key of the caller is reserved for the checkpoint.
    #[error("metadata {key:?} is reserved: choose another key")]
    Key {
        /// The key.
        key: String,
    },
    /// The hyperparameters of a rule cannot be written.
    #[error("{rule}: the rule cannot be saved: set `Rule::SAVED`")]
    NotSaved {
        /// The rule's name.
        rule: &'static str,
    },
    /// A tensor's parameters were not handed over, or are too few.
    #[error(
        "parameters of {tensor:?}: {found} elements, must be {expected} as in the layout",
        found = Count(*.found), expected = Count(*.expected)
    )]
    Parameters {
        /// The tensor's name.
        tensor: String,
        /// The number of elements that were handed over.
        found: u64,
        /// The number of elements in the layout.
        expected: u64,
    },
    /// The buffers or slices of the parameters are refused.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The host has too little memory for the groups of the checkpoint.
    #[error(
        "no memory for {bytes} bytes of optimizer state: free some, or store it in fewer bytes",
        bytes = Count(*.bytes)
    )]
    Memory {
        /// The number of bytes that were asked for.
        bytes: u64,
    },
    /// The device is lost, or refuses a buffer or a command.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Reading failed after the first write to the optimizer, so its state is partly the checkpoint's. Load
    /// again before the next step.
    #[error("the state is partly overwritten: {0}; load again before the next step")]
    Torn(Box<Self>),
}

impl Error {
    pub(crate) fn io(what: &'static str, location: impl Into<Location>) -> impl FnOnce(io::Error) -> Self {
        let location = location.into();
        move |source| Self::Io { what, location, source: source.into() }
    }
}

impl From<OutOfMemory> for Error {
    fn from(OutOfMemory { bytes }: OutOfMemory) -> Self {
        Self::Memory { bytes }
    }
}

/// An [`io::Error`] that can be cloned and compared.
///
/// Two of them are equal if they have the same kind and the same message.
#[derive(Clone, Debug)]
pub struct IoError(Arc<io::Error>);

impl From<io::Error> for IoError {
    fn from(error: io::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl Deref for IoError {
    type Target = io::Error;

    fn deref(&self) -> &io::Error {
        &self.0
    }
}

impl PartialEq for IoError {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for IoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

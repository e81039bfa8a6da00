//! Errors of an offloaded optimizer.

use super::{BindError, ChangeError, DeviceError, StateError, StepError};

/// The error of an optimizer with offloaded state.
///
/// A step in progress keeps its position.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// The optimizer has no such chunk.
    #[error("chunk {chunk} of the gradients, must be below {bound}")]
    UnknownChunk {
        /// The number of the chunk.
        chunk: usize,
        /// The number of chunks.
        bound: usize,
    },
    /// The next chunk of gradients has not been requested.
    #[error("chunk {chunk} of the gradients has not been requested: request it first")]
    NotRequested {
        /// The number of the chunk.
        chunk: usize,
    },
    /// A chunk of gradients is in transfer or has arrived.
    #[error("chunk {chunk} of the gradients has been requested already: advance the step first")]
    Requested {
        /// The number of the chunk.
        chunk: usize,
    },
    /// This pass is done with a chunk of gradients, or has no room for it yet.
    #[error("chunk {chunk} of the gradients, must be at least {first} and below {end} now")]
    OutOfTurn {
        /// The number of the chunk.
        chunk: usize,
        /// The first chunk that can be requested.
        first: usize,
        /// One past the last chunk that can be requested.
        end: usize,
    },
    /// A step is in progress, and the call is possible between steps only.
    #[error("a step is in progress, with chunks of gradients left: advance it to its end")]
    StepUnderWay,
    /// The arguments of a step are refused.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A change between steps is refused.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A tensor or a state slot is unknown.
    #[error(transparent)]
    State(#[from] StateError),
    /// A buffer of the caller is refused.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The device is lost or refuses staging buffers, or their contents cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

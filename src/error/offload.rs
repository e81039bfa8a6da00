//! Calls of an offloaded optimizer that come out of their order.

/// A step over offloaded state out of its order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// A chunk of gradients that is next and that nobody has asked for.
    #[error("chunk {chunk} of the gradients has not been requested")]
    NotRequested {
        /// Its number.
        chunk: usize,
    },
    /// A chunk of gradients that is none of those that there is room for now.
    #[error("chunk {chunk} of the gradients, must be at least {first} and below {end} now")]
    OutOfTurn {
        /// Its number.
        chunk: usize,
        /// The first that can be requested.
        first: usize,
        /// One past the last.
        end: usize,
    },
    /// What can only be done between steps.
    #[error("a step is under way: chunks of its gradients have not been worked on yet")]
    StepUnderWay,
}

//! The GPU half: an optimizer with state in device memory, and steps that are recorded into the caller's
//! encoder.

mod access;
pub mod accumulate;
mod bind;
mod buffers;
mod control;
mod describe;
pub(crate) mod device;
mod kernel;
mod limits;
mod optimizer;
mod pending;
mod pipeline;
mod plan;
mod record;
mod ring;
mod saved;
mod state;
mod step;
mod trust_ratio;

pub use access::StoredState;
#[cfg(feature = "checkpoint")]
pub(crate) use buffers::ByteRange;
pub use buffers::{Tensors, View};
#[cfg(feature = "checkpoint")]
pub(crate) use control::State as ControlState;
pub use describe::{Binding, Buffer, Description, Dispatch, GroupScalars, ScalarsLayout, TableWords};
pub use kernel::{Composed, Part, Stage, Target};
pub use optimizer::Optimizer;
pub use record::Bound;
#[cfg(feature = "checkpoint")]
pub(crate) use saved::Run;
pub use state::StateRange;

//! The same optimizer over slices, on the CPU: [`Optimizer`] in f32, as fast as memory allows, and
//! [`Reference`] in f64, as plain as it can be.
//!
//! # Threads
//!
//! With the feature `rayon` the work is divided among the threads of the pool that the call runs in: rayon's
//! global one, or one of the caller's, by `pool.install(|| optimizer.step(…))`. A pool that was asked for
//! with 0 threads has as many as there are cores, as rayon has it; one that the calling thread is part of
//! (`ThreadPoolBuilder::use_current_thread`) has nobody to wake. Without the feature everything runs on the
//! calling thread. Results are the same bit for bit: work is divided into tasks of a fixed number of
//! elements, whoever does them.
//!
//! # Instructions
//!
//! The update is compiled several times, for AVX-512, AVX2 and what every processor of the architecture has
//! (SSE2, or NEON on 64-bit ARM), and the best that the processor knows is chosen as it runs. Multiplications
//! and additions are never fused, so that the results are the same bit for bit here too, but for what a NaN
//! carries. Tests compare a run on an emulated AVX2, SSE2 and 64-bit ARM processor with that of one with
//! AVX-512. On other architectures there is what the target has.

mod access;
mod cells;
mod control;
mod norms;
mod optimizer;
mod passes;
mod reference;
mod saved;
mod share;
mod state;
mod tasks;
mod tensors;
mod threads;
mod tile;

#[cfg(feature = "gpu")]
pub(crate) use control::Decision;
pub use optimizer::Optimizer;
pub use reference::Reference;
#[cfg(feature = "gpu")]
pub(crate) use tensors::Checked;
pub use tensors::{Grads, Params, State, StateMut, Tensors};

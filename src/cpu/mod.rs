//! The optimizer for slices on the CPU: [`Optimizer`] in f32 for speed, and [`Reference`] in f64 for checks.
//!
//! # Threads
//!
//! With the feature `rayon`, the threads of a pool divide the work. It is rayon's global pool or the
//! caller's, by `pool.install(|| optimizer.step(…))`. A pool that was built with 0 threads has one per core,
//! as in rayon. A pool that contains the calling thread (`ThreadPoolBuilder::use_current_thread`) has no
//! thread to wake. Without the feature everything runs on the calling thread. Results are the same bit for
//! bit: a task has a fixed number of elements on any number of threads.
//!
//! # Instructions
//!
//! The update is compiled for AVX-512, for AVX2 and for the base instructions of the architecture: SSE2, or
//! NEON on 64-bit ARM. The best set that the processor has is chosen at run time. Multiplications and
//! additions are never fused, so results are the same bit for bit for all sets; only NaN payloads may differ.
//! Tests compare runs on emulated AVX2, SSE2 and 64-bit ARM processors with a run on one with AVX-512. Other
//! architectures use the target's instructions.

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

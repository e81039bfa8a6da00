//! Fused optimizer kernels for wgpu.
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod check;
pub mod cpu;
mod error;
pub mod float;
pub mod kernel;
mod layout;
#[cfg(feature = "gpu")]
mod optimizer;
pub mod plan;
#[cfg(feature = "gpu")]
mod rows;
pub mod rules;

pub use error::Error;
pub use layout::{Group, Layout, Tensor};
#[cfg(feature = "gpu")]
pub use optimizer::{Bound, Optimizer, StateRange, Tensors, View};
pub use rules::{Adam, AdamW, Rule, Sgd, Step, Twin};
#[cfg(feature = "gpu")]
pub use wgpu;

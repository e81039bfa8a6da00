//! The crate on a real Vulkan implementation, and the parts of it that need none.

mod bad_input;
mod blocks;
#[cfg(feature = "checkpoint")]
mod checkpoint;
mod common;
mod cpu;
mod formats;
mod identities;
mod kernels;
mod large;
mod layers;
mod layouts;
mod offload;
mod options;
mod own_rule;
mod planner;
mod recording;
mod schedules;
mod steps;
mod values;

//! The crate on a real Vulkan implementation, and the parts of it that need none.

mod bad_input;
mod blocks;
#[cfg(feature = "checkpoint")]
mod checkpoint;
mod common;
mod cpu;
#[cfg(feature = "checkpoint")]
mod devices;
mod empty;
mod extremes;
mod formats;
mod identities;
mod large;
mod layers;
mod layouts;
mod limits;
#[cfg(feature = "checkpoint")]
mod lost;
mod messages;
mod mixed;
mod offload;
mod options;
mod own_rule;
mod recording;
mod schedules;
mod state;
mod steps;
mod targets;
mod values;

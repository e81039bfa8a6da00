//! The program: reads arguments, prints tables and JSON.

pub(crate) mod args;
pub(crate) mod commands;
pub(crate) mod output;
pub(crate) mod overview;

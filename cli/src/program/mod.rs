//! Arguments in, tables and JSON out.

pub(crate) mod args;
pub(crate) mod commands;
pub(crate) mod output;
pub(crate) mod overview;

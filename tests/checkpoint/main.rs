//! Checkpoints: files and what is refused of them, policies, crashes. That runs of one rule are resumed bit
//! for bit is checked in `tests/it/checkpoint.rs`.

mod common;
mod converted;
mod crash;
mod digest;
mod extremes;
mod files;
mod fits;
mod fixtures;
mod gpu;
mod hostile;
mod late;
mod links;
mod memory;
mod mixed;
mod shards;
mod streams;
mod values;

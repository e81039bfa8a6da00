//! Checkpoints: files and refused files, policies, crashes. `tests/it/checkpoint` checks that runs of one
//! rule are resumed bit for bit.

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

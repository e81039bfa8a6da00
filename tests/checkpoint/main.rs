//! Checkpoints: files and what is refused of them, policies, crashes. That runs are resumed bit for bit is checked in `tests/it/checkpoint.rs`.

mod common;
mod crash;
mod files;
mod fits;
mod gpu;
mod hostile;

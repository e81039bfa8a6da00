//! The subcommands. Each returns whether all of its checks passed.

mod bench;
mod devices;
mod inspect;
mod kernel;
mod race;
mod replay;
mod schedules;
mod verify;

pub(super) use bench::bench_one;
pub(super) use replay::{ReplayLine, replay_one};

use super::args::{Command, Common};
use std::time::{SystemTime, UNIX_EPOCH};
use wgpu_optim::AnyRule;

pub(crate) fn run(command: Command, common: Common) -> anyhow::Result<bool> {
    match command {
        Command::Devices => devices::run(common),
        Command::Verify(arguments) => verify::run(arguments, common),
        Command::Replay { files } => replay::run(&files, common),
        Command::Bench(arguments) => bench::run(arguments, common),
        Command::Inspect { file, verify: true } => inspect::verify(&file, common),
        Command::Inspect { file, verify: false } => inspect::run(&file, common),
        Command::Kernel(arguments) => kernel::run(&arguments, common),
        Command::Schedules(arguments) => schedules::run(&arguments, common),
        Command::Race(arguments) => race::run(arguments, common),
    }
}

/// The named rules, or all rules if none is named.
fn named(rules: Vec<AnyRule>) -> Vec<AnyRule> {
    if rules.is_empty() { AnyRule::all() } else { rules }
}

/// A seed from the clock.
pub(super) fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

pub(super) fn verdict(pass: bool) -> &'static str {
    if pass { "pass" } else { "FAIL" }
}

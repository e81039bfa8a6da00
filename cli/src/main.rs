//! The program `optim`: without arguments it replays, checks and times. Its subcommands do each of these
//! alone.

mod program;

use clap::Parser;
use program::{args::Arguments, commands, overview};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Exit status for a failed check.
const FAILED: u8 = 1;
/// Exit status for bad input and bad usage.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let passed = match arguments.command {
        None => overview::run(arguments.common),
        Some(command) => commands::run(command, arguments.common),
    };
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        // The reader of the output has closed the pipe.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            program::output::error(&error);
            ExitCode::from(BAD_INPUT)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // Buffered output fails late; a flush shows it.
    let _ = std::io::stdout().flush();
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

//! Output: results on standard output, everything else on standard error.

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use optim::device::{Choice, Device};
use serde::Serialize;
use std::io::{self, Write};

/// Prints one JSON object on a line of its own.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(&serde_json::to_string(value).context("cannot write JSON")?)
}

/// Prints a line or a table.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Prints a line on standard error, and ignores failures.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// An error with its causes, on one line.
pub(crate) fn error(error: &anyhow::Error) {
    // Messages of drivers may have several paragraphs.
    let chain = format!("{error:#}");
    let line: Vec<_> = chain.split_whitespace().collect();
    note(&format!("error: {}", line.join(" ")));
}

/// A table with columns from `numbers` on aligned to the right.
pub(crate) fn table(header: &[&str], numbers: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied()).add_rows(rows);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// A progress bar on standard error, invisible without a terminal.
pub(crate) fn progress(len: u64, message: impl Into<String>) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:40} {bar:30} {pos}/{len}");
    let bar = ProgressBar::new(len).with_message(message.into());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.tick();
    bar
}

/// Opens the device, and prints a note if it is the CPU for want of an adapter.
pub(crate) fn open(choice: Choice) -> anyhow::Result<Device> {
    let (device, fallback) = Device::open(choice)?;
    if let Some(line) = fallback {
        note(&line);
    }
    Ok(device)
}

//! Standard output is for results, standard error for everything else.

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use optim::device::{Choice, Device};
use serde::Serialize;
use std::io::{self, Write};

/// One JSON object on a line of its own.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(&serde_json::to_string(value).context("cannot write JSON")?)
}

/// A line, or a table.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// A line on standard error. Nobody has to read it, so it cannot fail.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// An error with its causes, on one line.
pub(crate) fn error(error: &anyhow::Error) {
    // Drivers answer in paragraphs.
    let chain = format!("{error:#}");
    let line: Vec<_> = chain.split_whitespace().collect();
    note(&format!("error: {}", line.join(" ")));
}

/// A table whose columns from `numbers` on are aligned to the right.
pub(crate) fn table(header: &[&str], numbers: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied()).add_rows(rows);
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// A bar on standard error, invisible where that is no terminal.
pub(crate) fn progress(len: u64, message: impl Into<String>) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:40} {bar:30} {pos}/{len}");
    let bar = ProgressBar::new(len).with_message(message.into());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.tick();
    bar
}

/// Opens the device, and says so where it is the CPU for want of an adapter.
pub(crate) fn open(choice: Choice) -> anyhow::Result<Device> {
    let (device, fallback) = Device::open(choice)?;
    if let Some(line) = fallback {
        note(&line);
    }
    Ok(device)
}

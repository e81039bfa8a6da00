//! `optim devices`.

use crate::program::args::Common;
use crate::program::output::{self, json, text};
use anyhow::ensure;
use optim::device::Choice;
use optim::devices;

pub(super) fn run(common: Common) -> anyhow::Result<bool> {
    let rows = devices::devices(common.device);
    ensure!(common.device != Choice::Gpu || rows.iter().any(|row| row.chosen), devices::hint());
    if common.json {
        rows.iter().try_for_each(json)?;
        return Ok(true);
    }
    for row in &rows {
        let mark = if row.chosen { "* " } else { "  " };
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let Some(limits) = &row.limits else {
            text(&format!("{mark}CPU engine, f32, one thread"))?;
            continue;
        };
        text(&format!("{mark}{} ({}, {})", part(&row.adapter), part(&row.backend), part(&row.kind)))?;
        text(&format!("    driver {}", part(&row.driver)))?;
        let serde_json::Value::Object(limits) = serde_json::to_value(limits)? else { continue };
        for (name, value) in limits {
            text(&format!("    {name} {value}"))?;
        }
    }
    if rows.iter().all(|row| row.device == "cpu") {
        output::note(&devices::hint());
    }
    text("* would be chosen")?;
    Ok(true)
}

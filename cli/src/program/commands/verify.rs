//! `optim verify`.

use super::{fresh_seed, named, verdict};
use crate::program::args::{Common, Verify};
use crate::program::output::{self, json, progress, table, text};
use anyhow::Context;
use optim::device::{Choice, Device};
use optim::number::fixed;
use optim::presets::variants;
use optim::verify;

pub(super) fn run(arguments: Verify, common: Common) -> anyhow::Result<bool> {
    let storage = arguments.storage.options()?;
    let mut devices = vec![output::open(common.device)?];
    // State in blocks is checked on the GPU.
    let on_both = storage.states.block().is_none();
    if common.device == Choice::Auto && matches!(devices[0], Device::Gpu(_)) && on_both {
        devices.push(Device::Cpu);
    }
    let request = verify::Request {
        elements: arguments.elements,
        steps: arguments.steps,
        seed: arguments.seed.unwrap_or_else(fresh_seed),
        storage,
    };
    let mut rows = Vec::new();
    for rule in named(arguments.rules) {
        for preset in variants(rule) {
            for device in &devices {
                let title = format!("verify {} {}", rule.name(), preset.name);
                let bar = progress(request.steps, format!("{title} on {}", device.label()));
                let row = verify::verify(preset, device, request, &mut || bar.inc(1));
                bar.finish_and_clear();
                let row = row.context(title)?;
                if common.json {
                    json(&row)?;
                }
                rows.push(row);
            }
        }
    }
    let passed = rows.iter().all(|row| row.pass);
    if !common.json {
        let cells = rows.iter().map(|row| {
            vec![
                row.rule.into(),
                row.variant.into(),
                row.label.to_string(),
                verdict(row.pass).into(),
                fixed(row.worst_ulps, 2),
                row.budget_ulps.to_string(),
                format!("{}[{}]", row.what, row.index),
                format!("{:e}", row.got),
                format!("{:e}", row.want),
            ]
        });
        let header =
            ["rule", "variant", "device", "", "worst ulp", "budget", "where", "got", "f64 reference"];
        text(&table(&header, 4, cells.collect()))?;
        let verify::Request { elements, steps, seed, .. } = request;
        text(&format!("{elements} parameters, {steps} steps, --seed {seed}"))?;
    }
    Ok(passed)
}

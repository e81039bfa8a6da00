//! `optim bench`.

use super::named;
use crate::program::args::{Bench, Common};
use crate::program::output::{self, json, progress, table, text};
use anyhow::{Context, ensure};
use optim::bench::{self, Measurement};
use optim::device::Device;
use wgpu_optim::AnyRule;

pub(super) fn run(arguments: Bench, common: Common) -> anyhow::Result<bool> {
    let Bench { rules, elements, tensors, storage } = arguments;
    let storage = storage.options()?;
    ensure!(tensors <= elements, "--tensors = {tensors}, must be at most --elements = {elements}");
    let device = output::open(common.device)?;
    let mut rows = Vec::new();
    for rule in named(rules) {
        let measured = bench_one(rule, &device, bench::Request { elements, tensors, storage })?;
        if common.json {
            json(&measured)?;
        }
        rows.push(measured);
    }
    if !common.json {
        let cells = rows.iter().map(|m| {
            vec![
                m.rule.into(),
                m.variant.into(),
                format!("{:.3}", m.seconds * 1e3),
                format!("{:.2}", m.gb_per_s),
                format!("{:.2}", m.copy_gb_per_s),
                format!("{:.2}", m.gb_per_s / m.copy_gb_per_s),
                m.one_tensor_seconds.map_or("-".into(), |one| format!("{:.2}", m.seconds / one)),
                format!("{:.1}", m.record_us),
            ]
        });
        let header = [
            "rule",
            "variant",
            "ms a step",
            "GB/s",
            "copy GB/s",
            "beside copy",
            "time beside one tensor",
            "record µs",
        ];
        text(&table(&header, 2, cells.collect()))?;
        let samples = bench::SAMPLES;
        text(&format!(
            "{elements} parameters in {tensors} tensors, {}, on {}; medians of {samples}",
            bench::stored(&storage),
            device.label()
        ))?;
    }
    Ok(true)
}

/// Measures a rule with a bar.
pub(in crate::program) fn bench_one(
    rule: AnyRule,
    device: &Device,
    request: bench::Request,
) -> anyhow::Result<Measurement> {
    let title = format!("bench {}", rule.name());
    let bar = progress(bench::SAMPLES as u64, title.clone());
    let measured = bench::bench(rule, device, request, &mut || bar.inc(1));
    bar.finish_and_clear();
    measured.context(title)
}

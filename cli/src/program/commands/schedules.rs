//! `optim schedules`.

use crate::program::args::{Common, Schedules};
use crate::program::output::{json, table, text};
use anyhow::Context;
use optim::number::fixed;
use optim::schedules;
use serde::Serialize;
use wgpu_optim::Schedule;

/// An example as a line of JSON.
#[derive(Serialize)]
struct ExampleLine<'a> {
    schedule: &'static str,
    spec: &'a Schedule,
}

pub(super) fn run(arguments: &Schedules, common: Common) -> anyhow::Result<bool> {
    let Some(spec) = &arguments.spec else { return show_examples(arguments, common) };
    let schedule: Schedule = serde_json::from_str(spec).context("--spec")?;
    let points = schedules::points(&schedule, arguments.steps)?;
    plot(arguments, || Ok(schedules::curves(schedule.name(), &points)))?;
    if common.json {
        points.iter().try_for_each(json)?;
        return Ok(true);
    }
    let cells = points.iter().map(|point| {
        let momentum = point.momentum.map(|momentum| fixed(momentum, 6));
        [Some(point.step.to_string()), Some(format!("{:.6e}", point.lr)), momentum]
            .into_iter()
            .flatten()
            .collect()
    });
    let header = ["step", "lr", "momentum"];
    let columns = if points.iter().any(|point| point.momentum.is_some()) { 3 } else { 2 };
    text(&table(&header[..columns], 0, cells.collect()))?;
    Ok(true)
}

fn show_examples(arguments: &Schedules, common: Common) -> anyhow::Result<bool> {
    let examples = schedules::examples();
    plot(arguments, || {
        let curves = |schedule: &Schedule| {
            let points = schedules::points(schedule, arguments.steps)?;
            Ok(schedules::curves(schedule.name(), &points))
        };
        Ok(examples.iter().map(curves).collect::<anyhow::Result<Vec<_>>>()?.concat())
    })?;
    let mut rows = Vec::new();
    for spec in &examples {
        if common.json {
            json(&ExampleLine { schedule: spec.name(), spec })?;
        }
        rows.push(vec![spec.name().into(), serde_json::to_string(spec)?]);
    }
    if !common.json {
        text(&table(&["schedule", "example"], 2, rows))?;
    }
    Ok(true)
}

/// Draws the result of `curves`, if a picture is requested.
fn plot(
    arguments: &Schedules,
    curves: impl FnOnce() -> anyhow::Result<Vec<schedules::Curve>>,
) -> anyhow::Result<()> {
    let Some(file) = &arguments.plot else { return Ok(()) };
    let picture = schedules::draw(&curves()?).context("cannot draw")?;
    std::fs::write(file, picture).with_context(|| file.display().to_string())
}

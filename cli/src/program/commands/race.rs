//! `optim race`.

use super::{named, verdict};
use crate::program::args::{Common, Race};
use crate::program::output::{self, json, progress, table, text};
use anyhow::Context;
use optim::number::fixed;
use optim::race;

pub(super) fn run(arguments: Race, common: Common) -> anyhow::Result<bool> {
    let device = output::open(common.device)?;
    let lr = (!arguments.default_lr).then_some(arguments.lr);
    let request = race::Request { steps: arguments.steps, lr };
    let mut paths = Vec::new();
    for rule in named(arguments.rules) {
        let title = format!("race {}", rule.name());
        let bar = progress(request.steps, format!("{title} on {}", device.label()));
        let path = race::run(rule, &device, request, &mut || bar.inc(1));
        bar.finish_and_clear();
        let path = path.context(title)?;
        if common.json {
            json(&path)?;
        }
        paths.push(path);
    }
    if let Some(file) = &arguments.plot {
        let picture = race::draw(&paths).context("cannot draw")?;
        std::fs::write(file, picture).with_context(|| file.display().to_string())?;
    }
    if !common.json {
        let cells = paths.iter().map(|path| {
            let number = |x: f64| fixed(x, 6);
            vec![
                path.rule.into(),
                format!("{:e}", path.lr),
                number(path.end[0]),
                number(path.end[1]),
                format!("{:.3e}", path.value),
                number(path.reference[0]),
                number(path.reference[1]),
                format!("{:.1e}", path.distance),
                if path.diverged { "diverged" } else { path.pass.map_or("", verdict) }.into(),
            ]
        });
        let header = ["rule", "lr", "x", "y", "value", "f64 x", "f64 y", "distance", ""];
        text(&table(&header, 1, cells.collect()))?;
        text(&format!(
            "(1 - x)^2 + 100 (y - x^2)^2 from (-1, 1), {} steps on {}; sgd and adam have to end within {:e} \
             of the f64 reference",
            request.steps,
            device.label(),
            race::TOLERANCE
        ))?;
    }
    Ok(paths.iter().all(|path| path.pass != Some(false)))
}

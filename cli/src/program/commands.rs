//! The subcommands. Each says whether all it checked has passed.

use super::args::{Bench, Command, Common, Race, Schedules, Verify};
use super::output::{self, json, progress, table, text};
use anyhow::{Context, anyhow, ensure};
use optim::bar::Verdict;
use optim::bench::{self, Measurement};
use optim::device::{Choice, Device, Label};
use optim::presets::variants;
use optim::replay::{On, replay};
use optim::trajectory::Trajectory;
use optim::{devices, inspect, race, rules, schedules, verify};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use wgpu_optim::Schedule;

pub(crate) fn run(command: Command, common: Common) -> anyhow::Result<bool> {
    match command {
        Command::Devices => list(common),
        Command::Verify(arguments) => check(arguments, common),
        Command::Replay { files } => replay_all(&files, common),
        Command::Bench(arguments) => measure(arguments, common),
        Command::Inspect { file } => show_file(&file, common),
        Command::Schedules(arguments) => show(&arguments, common),
        Command::Race(arguments) => run_race(arguments, common),
    }
}

fn list(common: Common) -> anyhow::Result<bool> {
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

/// All rules, where none is named.
fn named(rules: Vec<String>) -> Vec<String> {
    if rules.is_empty() { rules::names().into_iter().map(Into::into).collect() } else { rules }
}

/// A seed of this moment.
pub(super) fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

fn check(arguments: Verify, common: Common) -> anyhow::Result<bool> {
    let storage = arguments.storage.options()?;
    let mut devices = vec![output::open(common.device)?];
    // Blocks are the GPU's.
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
        for preset in variants(&rule) {
            for device in &devices {
                let bar =
                    progress(request.steps, format!("verify {rule} {} on {}", preset.name, device.label()));
                let row = verify::verify(&rule, preset, device, request, || bar.inc(1));
                bar.finish_and_clear();
                let row = row.context("no such rule")?.with_context(|| format!("verify {rule}"))?;
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
                format!("{:.2}", row.worst_ulps),
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

/// A replay as a line of JSON.
#[derive(Serialize)]
pub(super) struct ReplayLine<'a> {
    pub(super) file: &'a str,
    pub(super) rule: &'a str,
    #[serde(flatten)]
    pub(super) label: Label,
    #[serde(flatten)]
    pub(super) verdict: &'a Verdict,
}

/// Replays a run with a bar.
pub(super) fn replay_one(name: &str, run: &Trajectory, device: &Device) -> anyhow::Result<Verdict> {
    if !run.unread_metadata.is_empty() {
        let keys = run.unread_metadata.join(", ");
        output::note(&format!("note: {name}: metadata that is no part of the format: {keys}"));
    }
    let bar = progress(run.steps() as u64, format!("replay {name}"));
    let on = match device {
        Device::Gpu(gpu) => On::Gpu(gpu),
        Device::Cpu => On::Cpu,
    };
    let verdict = replay(run, on, || bar.inc(1));
    bar.finish_and_clear();
    Ok(verdict?)
}

fn replay_file(path: &Path, device: &Device, common: Common) -> anyhow::Result<(bool, Vec<String>)> {
    let file = path.to_string_lossy();
    let run = Trajectory::read(path)?;
    let verdict = replay_one(&file, &run, device)?;
    if common.json {
        json(&ReplayLine { file: &file, rule: &run.rule, label: device.label(), verdict: &verdict })?;
    }
    for failure in verdict.failures() {
        output::note(&format!("{file}: {failure}"));
    }
    let row = vec![
        file.into_owned(),
        run.rule.clone(),
        self::verdict(verdict.pass).into(),
        run.steps().to_string(),
        format!("{:.4}", verdict.rms_ulps),
        verdict.peer_rms_ulps.map_or("none".into(), |peer| format!("{peer:.4}")),
    ];
    Ok((verdict.pass, row))
}

fn replay_all(files: &[PathBuf], common: Common) -> anyhow::Result<bool> {
    let device = output::open(common.device)?;
    let (mut passed, mut bad, mut rows) = (true, 0, Vec::new());
    for path in files {
        // A file that cannot be read says nothing about the others.
        match replay_file(path, &device, common).with_context(|| path.display().to_string()) {
            Ok((pass, row)) => {
                passed &= pass;
                rows.push(row);
            }
            Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Err(error),
            Err(error) => {
                output::error(&error);
                bad += 1;
            }
        }
    }
    if !common.json && !rows.is_empty() {
        let header = ["file", "rule", "", "steps", "rms ulp", "peer rms ulp"];
        text(&table(&header, 3, rows))?;
        text(&format!("replayed on {}", device.label()))?;
    }
    if bad > 0 {
        return Err(anyhow!("{bad} of {} files could not be replayed", files.len()));
    }
    Ok(passed)
}

fn measure(arguments: Bench, common: Common) -> anyhow::Result<bool> {
    let Bench { rules, elements, tensors, storage } = arguments;
    let storage = storage.options()?;
    ensure!(tensors <= elements, "--tensors = {tensors}, must be at most --elements = {elements}");
    let device = output::open(common.device)?;
    let mut rows = Vec::new();
    for rule in named(rules) {
        let measured = bench_one(&rule, &device, bench::Request { elements, tensors, storage })?;
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
pub(super) fn bench_one(rule: &str, device: &Device, request: bench::Request) -> anyhow::Result<Measurement> {
    let bar = progress(bench::SAMPLES as u64, format!("bench {rule}"));
    let measured = bench::bench(rule, device, request, || bar.inc(1));
    bar.finish_and_clear();
    measured.context("no such rule")?.with_context(|| format!("bench {rule}"))
}

/// An example as a line of JSON.
#[derive(Serialize)]
struct ExampleLine<'a> {
    schedule: &'static str,
    spec: &'a Schedule,
}

fn show(arguments: &Schedules, common: Common) -> anyhow::Result<bool> {
    let Some(spec) = &arguments.spec else { return show_examples(arguments, common) };
    let schedule: Schedule = serde_json::from_str(spec).context("--spec")?;
    let points = schedules::points(&schedule, arguments.steps)?;
    plot(arguments, || Ok(schedules::curves(schedule.name(), &points)))?;
    if common.json {
        points.iter().try_for_each(json)?;
        return Ok(true);
    }
    let cells = points.iter().map(|point| {
        let momentum = point.momentum.map(|momentum| format!("{momentum:.6}"));
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

/// Draws what `curves` makes, if that is asked for.
fn plot(
    arguments: &Schedules,
    curves: impl FnOnce() -> anyhow::Result<Vec<schedules::Curve>>,
) -> anyhow::Result<()> {
    let Some(file) = &arguments.plot else { return Ok(()) };
    let picture = schedules::draw(&curves()?).context("cannot draw")?;
    std::fs::write(file, picture).with_context(|| file.display().to_string())
}

fn run_race(arguments: Race, common: Common) -> anyhow::Result<bool> {
    let device = output::open(common.device)?;
    let lr = (!arguments.default_lr).then_some(arguments.lr);
    let request = race::Request { steps: arguments.steps, lr };
    let mut paths = Vec::new();
    for rule in named(arguments.rules) {
        let bar = progress(request.steps, format!("race {rule} on {}", device.label()));
        let path = race::run(&rule, &device, request, || bar.inc(1));
        bar.finish_and_clear();
        let path = path.context("no such rule")?.with_context(|| format!("race {rule}"))?;
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
            let number = |x: f64| format!("{x:.6}");
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
            "(1 - x)^2 + 100 (y - x^2)^2 from (-1, 1), {} steps on {}; sgd and adam have to end within {:e} of the f64 reference",
            request.steps,
            device.label(),
            race::TOLERANCE
        ))?;
    }
    Ok(paths.iter().all(|path| path.pass != Some(false)))
}

pub(super) fn verdict(pass: bool) -> &'static str {
    if pass { "pass" } else { "FAIL" }
}

fn show_file(file: &Path, common: Common) -> anyhow::Result<bool> {
    let bar = progress(0, format!("inspect {}", file.display()));
    let inspection = inspect::inspect(file, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let inspection = inspection?;
    if common.json {
        json(&inspection)?;
        return Ok(true);
    }
    let inspect::Inspection { bytes, run, metadata, slots, tensors, .. } = inspection;
    if let Some(run) = &run {
        text(&format!(
            "{}, {} steps, {} of them taken, saved by {}",
            run.rule, run.steps, run.taken, run.writer
        ))?;
        if let Some((scale, good)) = run.loss_scale {
            text(&format!("loss scale {scale}, {good} good steps"))?;
        }
        text(&format!("options {}", run.options))?;
        for group in &run.groups {
            let inspect::Group { name, hyperparameters, lr_factor, carry, tensors } = group;
            text(&format!(
                "group {name:?}: {} tensors, {hyperparameters}, lr_factor {lr_factor}, carry {carry}",
                tensors.len()
            ))?;
        }
    } else {
        text("no optimizer's state")?;
    }
    for (key, value) in &metadata {
        text(&format!("metadata {key:?}: {value:?}"))?;
    }
    let number = |x: Option<f64>| x.map_or_else(String::new, |x| format!("{x:e}"));
    let numbers = |n: &inspect::Numbers| {
        [n.nonfinite.to_string(), number(n.min.map(f64::from)), number(n.max.map(f64::from)), number(n.rms)]
    };
    let rows = tensors.iter().map(|tensor| {
        let own =
            [tensor.name.clone(), tensor.slot.clone(), tensor.format.clone(), format!("{:?}", tensor.shape)];
        [&own[..], &[tensor.bytes.to_string()], &numbers(&tensor.numbers)].concat()
    });
    let header = ["tensor", "slot", "format", "shape", "bytes", "not finite", "min", "max", "rms"];
    text(&table(&header, 4, rows.collect()))?;
    let rows = slots.iter().map(|slot| {
        let own =
            [slot.slot.clone(), slot.formats.join(" "), slot.tensors.to_string(), slot.elements.to_string()];
        [&own[..], &[slot.bytes.to_string()], &numbers(&slot.numbers)].concat()
    });
    let header = ["slot", "format", "tensors", "elements", "bytes", "not finite", "min", "max", "rms"];
    text(&table(&header, 2, rows.collect()))?;
    text(&format!("{bytes} bytes"))?;
    Ok(true)
}

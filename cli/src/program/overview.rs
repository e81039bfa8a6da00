//! The run without arguments: replays the bundled runs, checks an AdamW update of a million parameters, and
//! times it.

use super::args::Common;
use super::commands::{ReplayLine, bench_one, fresh_seed, replay_one, verdict};
use super::output::{self, json, progress, table, text};
use anyhow::Context;
use optim::number::fixed;
use optim::presets::Preset;
use optim::trajectory::Trajectory;
use optim::{bench, bundled, verify};
use wgpu_optim::{AdamW, AnyRule, Options};

const ELEMENTS: u64 = 1 << 20;
const STEPS: u64 = 5;

pub(crate) fn run(common: Common) -> anyhow::Result<bool> {
    let device = output::open(common.device)?;
    let (mut passed, mut rows) = (true, Vec::new());
    for recording in bundled::RECORDINGS {
        let name = recording.name;
        let run = Trajectory::parse(&recording.bytes()).context(name)?;
        let found = replay_one(name, &run, &device).context(name)?;
        if common.json {
            json(&ReplayLine { file: name, rule: &run.rules(), label: device.label(), verdict: &found })?;
        }
        for failure in found.failures() {
            output::note(&format!("{name}: {failure}"));
        }
        passed &= found.pass;
        let peer = found.peer_rms_ulps.map_or("none".into(), |peer| fixed(peer, 3));
        let detail = format!("rms error {} ulp, PyTorch's own f32 {peer}", fixed(found.rms_ulps, 3));
        rows.push(vec![format!("replay {name}"), verdict(found.pass).into(), detail]);
    }

    let rule = AnyRule::from(AdamW::default());
    let name = rule.name();
    let bar = progress(STEPS, format!("verify {name}"));
    let request =
        verify::Request { elements: ELEMENTS, steps: STEPS, seed: fresh_seed(), storage: Options::default() };
    let preset = Preset { name: "default", rule };
    let found = verify::verify(preset, &device, request, &mut || bar.inc(1));
    bar.finish_and_clear();
    let found = found.context("verify")?;
    if common.json {
        json(&found)?;
    }
    passed &= found.pass;
    let detail = format!(
        "worst {} ulp of {} allowed, against f64, {STEPS} steps",
        fixed(found.worst_ulps, 2),
        found.budget_ulps
    );
    rows.push(vec![format!("verify {name}, {ELEMENTS} parameters"), verdict(found.pass).into(), detail]);

    let measured = bench_one(
        rule,
        &device,
        bench::Request { elements: ELEMENTS, tensors: 1, storage: Options::default() },
    )?;
    if common.json {
        json(&measured)?;
        return Ok(passed);
    }
    let (ours, copy) = (measured.gb_per_s, measured.copy_gb_per_s);
    rows.push(vec![
        format!("step {name}, {ELEMENTS} parameters"),
        format!("{:.3} ms", measured.seconds * 1e3),
        format!("{ours:.1} GB/s, a plain copy {copy:.1} GB/s, ratio {:.2}", ours / copy),
    ]);
    text(&table(&[&format!("on {}", device.label()), "", ""], 3, rows))?;
    Ok(passed)
}

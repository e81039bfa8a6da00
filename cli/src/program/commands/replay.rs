//! `optim replay`.

use super::verdict;
use crate::program::args::Common;
use crate::program::output::{self, json, progress, table, text};
use anyhow::{Context, anyhow};
use optim::bar::Verdict;
use optim::device::{Device, Label};
use optim::number::fixed;
use optim::replay::{On, replay};
use optim::trajectory::Trajectory;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A replay as a line of JSON.
#[derive(Serialize)]
pub(in crate::program) struct ReplayLine<'a> {
    pub(in crate::program) file: &'a str,
    pub(in crate::program) rule: &'a str,
    #[serde(flatten)]
    pub(in crate::program) label: Label,
    #[serde(flatten)]
    pub(in crate::program) verdict: &'a Verdict,
}

/// Replays a run with a bar.
pub(in crate::program) fn replay_one(
    name: &str,
    run: &Trajectory,
    device: &Device,
) -> anyhow::Result<Verdict> {
    if !run.unread_metadata.is_empty() {
        let keys = run.unread_metadata.join(", ");
        output::note(&format!("note: {name}: metadata outside the format: {keys}"));
    }
    let bar = progress(run.steps() as u64, format!("replay {name}"));
    let on = match device {
        Device::Gpu(gpu) => On::Gpu(gpu),
        Device::Cpu => On::Cpu,
    };
    let verdict = replay(run, on, &mut || bar.inc(1));
    bar.finish_and_clear();
    Ok(verdict?)
}

fn replay_file(path: &Path, device: &Device, common: Common) -> anyhow::Result<(bool, Vec<String>)> {
    let file = path.to_string_lossy();
    let run = Trajectory::read(path)?;
    let verdict = replay_one(&file, &run, device)?;
    let rules = run.rules();
    if common.json {
        json(&ReplayLine { file: &file, rule: &rules, label: device.label(), verdict: &verdict })?;
    }
    for failure in verdict.failures() {
        output::note(&format!("{file}: {failure}"));
    }
    let row = vec![
        file.into_owned(),
        rules,
        self::verdict(verdict.pass).into(),
        run.steps().to_string(),
        fixed(verdict.rms_ulps, 4),
        verdict.peer_rms_ulps.map_or("none".into(), |peer| fixed(peer, 4)),
    ];
    Ok((verdict.pass, row))
}

pub(super) fn run(files: &[PathBuf], common: Common) -> anyhow::Result<bool> {
    let device = output::open(common.device)?;
    let (mut passed, mut bad, mut rows) = (true, 0, Vec::new());
    for path in files {
        // A file that cannot be read does not stop the others.
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

//! `optim inspect`.

use super::verdict;
use crate::program::args::Common;
use crate::program::output::{json, progress, table, text};
use optim::inspect;
use serde::Serialize;
use std::path::Path;
use wgpu_optim::checkpoint::{Error, Malformed, Metadata, Reader};

/// The result of a check.
#[derive(Serialize)]
struct Checked {
    file: String,
    pass: bool,
    /// The reason for a failure.
    reason: Option<String>,
}

/// Compares a checkpoint with its digest.
pub(super) fn verify(file: &Path, common: Common) -> anyhow::Result<bool> {
    let mut reader = Reader::open(file)?;
    Metadata::read(&reader)?;
    let reason = match reader.verify() {
        Ok(true) => None,
        Ok(false) => Some("it has no digest, so changes cannot be detected; save it again".to_owned()),
        Err(Error::Malformed { reason: reason @ Malformed::Digest { .. }, .. }) => Some(reason.to_string()),
        Err(error) => return Err(error.into()),
    };
    let checked = Checked { file: file.display().to_string(), pass: reason.is_none(), reason };
    if common.json {
        json(&checked)?;
    } else {
        let reason = checked.reason.map_or_else(String::new, |reason| format!(": {reason}"));
        text(&format!("{} {}{reason}", verdict(checked.pass), checked.file))?;
    }
    Ok(checked.pass)
}

pub(super) fn run(file: &Path, common: Common) -> anyhow::Result<bool> {
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
            let inspect::Group { name, rule, hyperparameters, lr_factor, carry, taken, frozen, tensors } =
                group;
            let frozen = if *frozen { ", frozen" } else { "" };
            text(&format!(
                "group {name:?}: {} tensors, {rule} {hyperparameters}, lr_factor {lr_factor}, carry {carry}, \
                 {taken} steps taken{frozen}",
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

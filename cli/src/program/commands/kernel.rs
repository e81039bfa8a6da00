//! `optim kernel`.

use crate::program::args::{Common, Kernel};
use crate::program::output;
use anyhow::bail;
use optim::kernel::{Request, describe};
use std::fmt::Write as _;
use wgpu_optim::DynRule;
use wgpu_optim::kernel::{Composed, Stage};

pub(super) fn run(arguments: &Kernel, common: Common) -> anyhow::Result<bool> {
    let default_lr = DynRule::from(arguments.rule).spec().default_lr;
    let request = Request {
        rule: arguments.rule,
        elements: arguments.elements,
        tensors: arguments.tensors,
        options: arguments.options()?,
        target: arguments.target,
        steps: arguments.steps,
        lr: arguments.lr.unwrap_or(default_lr),
    };
    let mut described = describe(&request)?;
    let dispatches = &mut described.description.dispatches;
    let present: Vec<_> =
        Stage::ALL.into_iter().filter(|s| dispatches.iter().any(|d| d.stage == *s)).collect();
    let shown = arguments.stage.or((!common.json).then_some(Stage::Update));
    if let Some(stage) = shown {
        dispatches.retain(|dispatch| dispatch.stage == stage);
        if dispatches.is_empty() {
            let present: Vec<_> = present.into_iter().map(Stage::name).collect();
            bail!("this step has no stage {}; its stages are {}", stage.name(), present.join(", "));
        }
    }
    if common.json {
        output::json(&described.json(&request))?;
        return Ok(true);
    }
    let mut shown: Vec<String> = Vec::new();
    for dispatch in &described.description.dispatches {
        let listing = listing(&dispatch.kernel);
        if !shown.contains(&listing) {
            output::text(&listing)?;
            shown.push(listing);
        }
    }
    Ok(true)
}

/// The text of a kernel, each part under the name of its file.
fn listing(kernel: &Composed) -> String {
    let mut text = String::new();
    for part in &kernel.parts {
        let _ = writeln!(text, "// ==== {} ====\n\n{}", part.name, part.text.trim());
        text.push('\n');
    }
    text.trim_end().into()
}

//! Checks a device against the f64 reference, step by step, on random data.

use crate::device::{Device, Error, Label, fits};
use crate::engine::{self, Engine};
use crate::presets::Preset;
use crate::rules::with_hyperparameter;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use wgpu_optim::check::{Checker, Deviation, Snapshot};
use wgpu_optim::{AnyRule, DynRule, Format, Group, Layout, LayoutError, Options, RuleError, Step};

/// Elements between two tensors, which the device must not change. Not a multiple of a vector's width.
const GAP: u64 = 5;
/// Share of parameters and gradients that are zero.
const ZEROS: f64 = 0.05;

/// The size of a check.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Number of parameters.
    pub elements: u64,
    /// Number of steps.
    pub steps: u64,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Storage of parameters, gradients and state.
    pub storage: Options,
}

/// The worst element of a check.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The rule.
    pub rule: &'static str,
    /// The rule's configuration.
    pub variant: &'static str,
    /// The device.
    #[serde(flatten)]
    pub label: Label,
    /// Number of parameters.
    pub elements: u64,
    /// Number of steps.
    pub steps: u64,
    /// Seed of the random numbers.
    pub seed: u64,
    /// The largest allowed error.
    pub budget_ulps: f64,
    /// The largest error found; infinite (null in JSON) if only one of both values is finite.
    pub worst_ulps: f64,
    /// `param`, a slot, or `padding`.
    pub what: &'static str,
    /// The element's index in the flat space.
    pub index: u64,
    /// The device's value of the element.
    pub got: f32,
    /// The reference's value of the element.
    pub want: f64,
    /// Whether the worst error is within the budget.
    pub pass: bool,
}

/// Checks a configuration of a rule; `tick` is called after every step.
///
/// # Errors
/// An [`Error`] if the device cannot take the steps.
pub fn verify(
    preset: Preset,
    device: &Device,
    request: Request,
    tick: &mut dyn FnMut(),
) -> Result<Row, Error> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(request.seed);
    let layout = layout(request.elements, preset.rule)?;
    if let Device::Gpu(gpu) = device {
        fits(gpu, layout.len())?;
    }
    let params = values(&mut rng, layout.len(), request.storage.params);
    let mut engine: Box<dyn Engine<f32> + '_> = match device {
        Device::Gpu(gpu) => Box::new(engine::Device::new(gpu, layout, &params, request.storage)?),
        Device::Cpu => Box::new(engine::Host::new(layout, &params, request.storage)?),
    };
    let rule = DynRule::from(preset.rule);
    let worst = check(&mut *engine, &rule, request, &params, &mut rng, tick)?;
    let budget_ulps = budget(&rule)?;
    Ok(Row {
        rule: rule.name(),
        variant: preset.name,
        label: device.label(),
        elements: request.elements,
        steps: request.steps,
        seed: request.seed,
        budget_ulps,
        worst_ulps: worst.ulps,
        what: worst.what,
        index: worst.index,
        got: worst.got,
        want: worst.want,
        pass: worst.ulps <= budget_ulps,
    })
}

/// The largest error that a step of the rule may have.
fn budget(rule: &DynRule) -> Result<f64, RuleError> {
    rule.spec().max_ulps.ok_or(RuleError::NoCpu { rule: rule.name() })
}

fn check(
    engine: &mut dyn Engine<f32>,
    rule: &DynRule,
    request: Request,
    params: &[f32],
    rng: &mut Xoshiro256PlusPlus,
    tick: &mut dyn FnMut(),
) -> Result<Deviation, Error> {
    let mut checker = Checker::new(engine.layout().clone()).stored(request.storage);
    // Before the first step there is neither a master nor a remainder.
    let mut before = Snapshot { params: params.to_vec(), ..Snapshot::from(engine.values()) };
    let mut worst: Option<Deviation> = None;
    for _ in 0..request.steps {
        let grads = values(rng, params.len() as u64, request.storage.grads);
        let step = Step::from(rule.spec().default_lr * 10f64.powf(rng.random_range(-1.0..1.0)));
        engine.step(&grads, step)?;
        let after = Snapshot::from(engine.values());
        let found = checker.step(&before, &grads, step, &after)?;
        let found = touched(engine.layout(), params, &after.params).unwrap_or(found);
        if worst.as_ref().is_none_or(|worst| found.ulps > worst.ulps) {
            worst = Some(found);
        }
        before = after;
        tick();
    }
    // Without a step there is no error.
    Ok(worst.unwrap_or_default())
}

/// A changed element between tensors.
fn touched(layout: &Layout, before: &[f32], after: &[f32]) -> Option<Deviation> {
    let mut end = 0;
    for tensor in layout.by_offset() {
        for i in end as usize..tensor.offset as usize {
            if before[i].to_bits() != after[i].to_bits() {
                let mut padding = Deviation::default();
                padding.what = "padding";
                padding.index = i as u64;
                padding.got = after[i];
                padding.want = before[i].into();
                padding.ulps = f64::INFINITY;
                return Some(padding);
            }
        }
        end = tensor.end();
    }
    None
}

/// Tensors of odd sizes in two groups that alternate, with a gap between the first and the second.
fn layout(elements: u64, rule: AnyRule) -> Result<Layout, LayoutError> {
    let first = Group::new("first", rule);
    let second = with_hyperparameter(rule, "weight_decay", 0.1);
    let mut groups = [(first, 0), (Group::new("second", second).lr_factor(0.5), 0)];
    let (mut left, mut offset, mut i) = (elements, 0, 0);
    let part = |divisor| (elements / divisor) | 1;
    let sizes = [part(2), part(5), 1, 3, part(7)].into_iter();
    for size in sizes.chain([elements]) {
        let size = size.min(left);
        if size == 0 {
            break;
        }
        let (group, tensors) = &mut groups[i % 2];
        *group = group.clone().tensor_at(format!("tensor {i}"), [size], offset);
        *tensors += 1;
        left -= size;
        offset += size + if i == 0 { GAP } else { 0 };
        i += 1;
    }
    Layout::new(groups.into_iter().filter(|(_, tensors)| *tensors > 0).map(|(group, _)| group))
}

/// Values of either sign with magnitudes 10^U(−6, 3), some of them zero, rounded to `format`.
fn values(rng: &mut Xoshiro256PlusPlus, len: u64, format: Format) -> Vec<f32> {
    let value = |_| {
        if rng.random_bool(ZEROS) {
            return 0.0;
        }
        let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
        format.decode(format.encode(sign * 10f32.powf(rng.random_range(-6.0..3.0))))
    };
    (0..len).map(value).collect()
}

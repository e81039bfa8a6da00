//! Replays a recorded run on a device.

use crate::bar::{Verdict, judge};
use crate::engine::{self, Engine, Values};
use crate::rules::{BuiltIn, RuleVisitor, by_name, configure, names};
use crate::trajectory::{Clip, Error, Target, Trajectory};
use harness::Gpu;
use serde::de::DeserializeOwned;
use wgpu_optim::float::Float;
use wgpu_optim::rules::slots;
use wgpu_optim::{Group, Layout, Options, Rule, Step, Twin};

/// Added to the norm that gradients are clipped by, as PyTorch's `clip_grad_norm_` does.
const NORM_EPS: f64 = 1e-6;

/// Where a run is replayed.
#[derive(Clone, Copy, Debug)]
pub enum On<'a> {
    /// An adapter.
    Gpu(&'a Gpu),
    /// The CPU engine in f32.
    Cpu,
    /// The same in f64: the reference that devices are checked against.
    Reference,
}

/// Replays and judges a run; `tick` is called after every step.
///
/// # Errors
/// [`Error`] says what the rule or the library refuses.
pub fn replay(trajectory: &Trajectory, on: On<'_>, tick: impl FnMut()) -> Result<Verdict, Error> {
    let ours = run(trajectory, on, tick)?;
    Ok(judge(&trajectory.targets, &ours, trajectory.steps()))
}

/// What `on` makes of a run: a vector for each of the run's targets.
///
/// # Errors
/// [`Error`] says what the rule or the library refuses.
pub fn run(trajectory: &Trajectory, on: On<'_>, mut tick: impl FnMut()) -> Result<Vec<Vec<f64>>, Error> {
    run_every(trajectory, on, &mut tick)
}

/// Compiled here and not in every program that calls it: it has all rules on all devices in it.
fn run_every(trajectory: &Trajectory, on: On<'_>, tick: &mut dyn FnMut()) -> Result<Vec<Vec<f64>>, Error> {
    by_name(&trajectory.rule, Run { trajectory, on, tick }).unwrap_or_else(|| {
        Err(Error::UnknownRule { rule: trajectory.rule.clone(), known: names().join(", ") })
    })
}

struct Run<'a, F> {
    trajectory: &'a Trajectory,
    on: On<'a>,
    tick: F,
}

impl<F: FnMut()> RuleVisitor for Run<'_, F> {
    type Output = Result<Vec<Vec<f64>>, Error>;

    fn visit<R: BuiltIn>(self) -> Self::Output {
        let Run { trajectory, on, tick } = self;
        let layout = layout::<R>(trajectory)?;
        refuse_other_state(trajectory, &layout)?;
        // Devices divide, clip and skip by themselves.
        let raw = |t: usize| {
            let scale = trajectory.loss_scale.as_ref().map_or(1.0, |scale| scale[t]);
            Some((trajectory.grads[t].clone(), step(trajectory, t).divided_by(scale)))
        };
        match on {
            On::Gpu(gpu) => {
                let engine = engine::Device::new(gpu, layout, &trajectory.params, options(trajectory));
                drive(trajectory, engine.map_err(Error::Device)?, raw, tick)
            }
            On::Cpu => {
                let engine = engine::Host::new(layout, &trajectory.params, options(trajectory));
                drive(trajectory, engine.map_err(Error::Setup)?, raw, tick)
            }
            On::Reference => {
                let engine = engine::Reference::new(layout, &trajectory.params).map_err(Error::Setup)?;
                let prepared = |t| Some((prepare(trajectory, t)?, step(trajectory, t)));
                drive(trajectory, engine, prepared, tick)
            }
        }
    }
}

/// The file's groups as the library has them.
fn layout<R: Rule + DeserializeOwned>(trajectory: &Trajectory) -> Result<Layout<R>, Error> {
    let groups = trajectory.groups.iter().map(|entry| {
        let mut hyper = trajectory.hyper.clone();
        hyper.extend(entry.overrides.clone());
        let rule = driven(configure::<R>(&hyper)?, trajectory.momentum.as_deref())?;
        let group = Group::new(&entry.name, rule).lr_factor(entry.lr_factor);
        Ok(entry.tensors.iter().fold(group, |group, (name, shape)| group.tensor(name, shape)))
    });
    Layout::new(groups.collect::<Result<Vec<_>, Error>>()?).map_err(Error::Setup)
}

/// The rule for a run in which `momentum` replaces its own in every step.
///
/// The configured value is then never used, but it decides whether a velocity is kept, and the file need not have one at all.
fn driven<R: Rule>(rule: R, momentum: Option<&[f64]>) -> Result<R, Error> {
    let Some(momentum) = momentum else { return Ok(rule) };
    let largest = momentum.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let driven = rule.with_momentum(largest).ok_or(Error::NoMomentum { rule: R::NAME })?;
    let needs_more = (0..slots::<R>().len()).any(|s| driven.keeps_slot(s) && !rule.keeps_slot(s));
    let incomplete = matches!(rule.validate(), Err(wgpu_optim::Error::Conflict { .. }));
    Ok(if needs_more || incomplete { driven } else { rule })
}

/// Refuses expected state that would not be there to compare.
fn refuse_other_state<R: Rule>(trajectory: &Trajectory, layout: &Layout<R>) -> Result<(), Error> {
    let slots = slots::<R>().iter().enumerate();
    let kept: Vec<_> = slots.filter(|(i, _)| layout.keeps_slot(*i)).map(|(_, name)| *name).collect();
    let stray = trajectory.targets.iter().find(|t| t.slot != "param" && !kept.contains(&t.slot.as_str()));
    stray.map_or(Ok(()), |target| {
        Err(Error::NoSuchState {
            name: format!("expect/{}", target.name()),
            rule: R::NAME,
            slot: target.slot.clone(),
            kept,
        })
    })
}

/// What the file has around the update.
fn options(trajectory: &Trajectory) -> Options {
    Options {
        divide: trajectory.loss_scale.is_some(),
        clip: trajectory.clip.as_ref().map(|clip| match clip {
            Clip::GlobalNorm(bound) => wgpu_optim::Clip::GlobalNorm(*bound),
            Clip::Value(bound) => wgpu_optim::Clip::Value(*bound),
        }),
        skip_nonfinite: trajectory.skip_nonfinite,
        ..Options::default()
    }
}

fn step(trajectory: &Trajectory, t: usize) -> Step {
    let momentum = trajectory.momentum.as_ref().map(|m| m[t]);
    Step { momentum, ..trajectory.lr[t].into() }
}

/// Takes the steps that `step` gives gradients for.
fn drive<R: Twin, T: Float, E: Engine<R, T>>(
    trajectory: &Trajectory,
    mut engine: E,
    step: impl Fn(usize) -> Option<(Vec<T>, Step)>,
    mut tick: impl FnMut(),
) -> Result<Vec<Vec<f64>>, Error> {
    for t in 0..trajectory.steps() {
        if let Some((grads, step)) = step(t) {
            engine.step(&grads, step).map_err(|source| Error::Step { t: t + 1, source })?;
        }
        tick();
    }
    let values = engine.values();
    trajectory.targets.iter().map(|target| pick(engine.layout(), &values, target)).collect()
}

/// A target's part of the flat vectors.
fn pick<R: Twin, T: Float>(
    layout: &Layout<R>,
    values: &Values<T>,
    target: &Target,
) -> Result<Vec<f64>, Error> {
    let tensor = layout.tensor(&target.tensor).map_err(Error::Setup)?;
    let slot = slots::<R>().iter().position(|slot| *slot == target.slot);
    let flat = slot.map_or(&values.params, |slot| &values.state[slot]);
    let part = &flat[tensor.offset as usize..tensor.end() as usize];
    Ok(part.iter().map(|x| x.to_f64()).collect())
}

/// The gradients of step `t` (from 0) as the update takes them in the reference, around which nothing stands; `None` if the step is to be skipped.
fn prepare(trajectory: &Trajectory, t: usize) -> Option<Vec<f64>> {
    let scale = trajectory.loss_scale.as_ref().map_or(1.0, |scale| scale[t]);
    let raw = trajectory.grads[t].iter();
    let mut grads: Vec<f64> = raw.map(|&g| f64::from(g) / scale).collect();
    if trajectory.skip_nonfinite && trajectory.grads[t].iter().any(|g| !g.is_finite()) {
        return None;
    }
    match trajectory.clip {
        None => {}
        Some(Clip::GlobalNorm(bound)) => {
            let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
            let factor = bound / (norm + NORM_EPS);
            // A gradient that is not a number makes all of them that, as in PyTorch.
            if factor < 1.0 || factor.is_nan() {
                grads.iter_mut().for_each(|g| *g *= factor);
            }
        }
        Some(Clip::Value(bound)) => {
            grads.iter_mut().for_each(|g| *g = g.clamp(-bound, bound));
        }
    }
    Some(grads)
}

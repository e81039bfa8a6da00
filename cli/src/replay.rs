//! Replays a recorded run on a device.

use crate::bar::{Verdict, judge};
use crate::engine::{self, Engine, Values};
use crate::trajectory::{Clip, Error, Target, Trajectory};
use harness::Gpu;
use std::sync::Arc;
use wgpu_optim::float::Float;
use wgpu_optim::{AnyRule, DynRule, Group, Layout, Options, RuleError, Schedule, Step};

/// Added to the norm of the gradients before clipping, as in PyTorch's `clip_grad_norm_`.
const NORM_EPS: f64 = 1e-6;

/// The engine for a replay.
#[derive(Clone, Copy, Debug)]
pub enum On<'a> {
    /// An adapter.
    Gpu(&'a Gpu),
    /// The CPU engine in f32.
    Cpu,
    /// The reference in f64 that devices are checked against.
    Reference,
}

/// Replays and judges a run; `tick` is called after every step.
///
/// # Errors
/// An [`Error`] if a rule or the library refuses the run.
pub fn replay(trajectory: &Trajectory, on: On<'_>, tick: &mut dyn FnMut()) -> Result<Verdict, Error> {
    let ours = run(trajectory, on, tick)?;
    Ok(judge(&trajectory.targets, &ours, trajectory.steps()))
}

/// The result of a run on `on`: one vector per target of the run.
///
/// # Errors
/// An [`Error`] if a rule or the library refuses the run.
pub fn run(trajectory: &Trajectory, on: On<'_>, tick: &mut dyn FnMut()) -> Result<Vec<Vec<f64>>, Error> {
    // The reference has no options: it neither gets nor counts skipped steps.
    let counted = |t: &usize| !matches!(on, On::Reference) || !is_skipped(trajectory, *t);
    let layout = layout(trajectory, (0..trajectory.steps()).filter(counted))?;
    refuse_other_state(trajectory, &layout)?;
    let params = &trajectory.params;
    // Devices unscale, clip and skip by themselves.
    let raw = |t: usize| {
        let step = Step::from(trajectory.lr[t]).with_grad_scale(loss_scale(trajectory, t));
        Some((trajectory.grads[t].clone(), step))
    };
    match on {
        On::Gpu(gpu) => {
            let engine = engine::Device::new(gpu, layout, params, options(trajectory));
            drive(trajectory, &mut engine.map_err(Error::Device)?, &raw, tick)
        }
        On::Cpu => {
            let engine = engine::Host::new(layout, params, options(trajectory));
            drive(trajectory, &mut engine.map_err(|error| Error::Setup(error.into()))?, &raw, tick)
        }
        On::Reference => {
            let engine = engine::Reference::new(layout, params);
            let prepared = |t| Some((prepare(trajectory, t)?, trajectory.lr[t].into()));
            drive(trajectory, &mut engine.map_err(|error| Error::Setup(error.into()))?, &prepared, tick)
        }
    }
}

/// The file's groups as groups of the library, for an engine that counts the steps `counted` of the file.
fn layout(trajectory: &Trajectory, counted: impl Iterator<Item = usize>) -> Result<Layout, Error> {
    let momentum = trajectory.momentum.as_ref();
    let momentum = momentum.map(|all| counted.map(|t| all[t]).collect::<Arc<[f64]>>());
    let has_momentum = |group: &crate::trajectory::Group| group.rule.with_momentum(0.0).is_some();
    if momentum.is_some() && !trajectory.groups.iter().any(has_momentum) {
        return Err(Error::NoMomentum { rules: trajectory.rules() });
    }
    let groups = trajectory.groups.iter().map(|entry| {
        let mut group = Group::new(&entry.name, entry.rule).lr_factor(entry.lr_factor);
        // Each group has the momentum in its own schedule, because the library refuses a momentum of the step
        // for a rule that has none.
        if let Some(momentum) = &momentum
            && let Some(rule) = driven(entry.rule, momentum)
        {
            let of_step = {
                let momentum = momentum.clone();
                // The library refuses a momentum that is not finite.
                move |t: u64| momentum.get(t as usize).copied().unwrap_or(f64::NAN)
            };
            let factor = Schedule::from(entry.lr_factor).with_momentum(of_step);
            group = Group::new(&entry.name, rule).lr_factor(factor);
        }
        entry.tensors.iter().fold(group, |group, (name, shape)| group.tensor(name, shape))
    });
    Layout::packed(groups).map_err(|error| Error::Setup(error.into()))
}

/// The rule for a run in which `momentum` replaces its own in every step; `None` for a rule without momentum.
///
/// The configured value is then never used, but it decides whether a velocity is kept. The file may have
/// none.
fn driven(rule: AnyRule, momentum: &[f64]) -> Option<AnyRule> {
    let largest = momentum.iter().copied().fold(0.0, f64::max);
    let driven = rule.with_momentum(largest)?;
    let [given, needed] = [rule, driven].map(DynRule::from);
    let slots = 0..given.spec().slots.len();
    let needs_more = slots.into_iter().any(|slot| needed.keeps_slot(slot) && !given.keeps_slot(slot));
    let incomplete = matches!(rule.validate(), Err(RuleError::Conflict { .. }));
    Some(if needs_more || incomplete { driven } else { rule })
}

/// Refuses expected state that the engine does not keep.
fn refuse_other_state(trajectory: &Trajectory, layout: &Layout) -> Result<(), Error> {
    for target in trajectory.targets.iter().filter(|target| target.slot != "param") {
        let tensor = layout.tensor(&target.tensor).map_err(|error| Error::Setup(error.into()))?;
        let kept: Vec<_> = layout.kept_slots(tensor).collect();
        if !kept.contains(&target.slot.as_str()) {
            return Err(Error::NoSuchState {
                name: format!("expect/{}", target.name()),
                rule: layout.groups()[tensor.group].rule().name(),
                slot: target.slot.clone(),
                kept,
            });
        }
    }
    Ok(())
}

/// The options for the file's settings around the update.
fn options(trajectory: &Trajectory) -> Options {
    Options {
        clip: trajectory.clip.as_ref().map(|clip| match clip {
            Clip::GlobalNorm(bound) => wgpu_optim::Clip::GlobalNorm(*bound),
            Clip::Value(bound) => wgpu_optim::Clip::Value(*bound),
        }),
        skip_nonfinite: trajectory.skip_nonfinite,
        ..Options::default()
    }
}

fn loss_scale(trajectory: &Trajectory, t: usize) -> f64 {
    trajectory.loss_scale.as_ref().map_or(1.0, |scale| scale[t])
}

fn is_skipped(trajectory: &Trajectory, t: usize) -> bool {
    trajectory.skip_nonfinite && trajectory.grads[t].iter().any(|g| !g.is_finite())
}

/// Gradients and arguments of a step (from 0); `None` if the engine does not get the step.
type Taken<'a, T> = dyn Fn(usize) -> Option<(Vec<T>, Step)> + 'a;

fn drive<T: Float>(
    trajectory: &Trajectory,
    engine: &mut dyn Engine<T>,
    step: &Taken<'_, T>,
    tick: &mut dyn FnMut(),
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
fn pick<T: Float>(layout: &Layout, values: &Values<T>, target: &Target) -> Result<Vec<f64>, Error> {
    let tensor = layout.tensor(&target.tensor).map_err(|error| Error::Setup(error.into()))?;
    let slot = layout.slot_names().iter().position(|slot| *slot == target.slot);
    let flat = slot.map_or(&values.params, |slot| &values.state[slot]);
    Ok(flat[tensor.range()].iter().map(|x| x.to_f64()).collect())
}

/// The gradients of step `t` (from 0) after scaling and clipping, for the reference, which has no options;
/// `None` for a skipped step.
fn prepare(trajectory: &Trajectory, t: usize) -> Option<Vec<f64>> {
    if is_skipped(trajectory, t) {
        return None;
    }
    let scale = loss_scale(trajectory, t);
    let mut grads: Vec<f64> = trajectory.grads[t].iter().map(|&g| f64::from(g) / scale).collect();
    match trajectory.clip {
        None => {}
        Some(Clip::GlobalNorm(bound)) => {
            let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
            let factor = bound / (norm + NORM_EPS);
            // One NaN makes all gradients NaN, as in PyTorch.
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

//! One step of any device against the same step in f64, element by element.

use crate::error::{BindError, RuleError, StepError};
use crate::float::{Float, Scaled, ulp};
use crate::formats::Format;
use crate::formats::q8;
use crate::layout::{Carry, Layout, Tensor, VECTOR};
use crate::narrow::to_usize;
use crate::options::{Options, Rounding};
use crate::rules::loops::Arithmetic;
use crate::step::Step;

/// Parameters and state at one moment, flat, with the tensors at the layout's offsets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The parameters.
    pub params: Vec<f32>,
    /// One vector per slot of [`Layout::slot_names`]; empty if no rule keeps the slot.
    pub state: Vec<Vec<f32>>,
}

/// The element of a step that lies farthest from the reference. The default is no deviation.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Deviation {
    /// `"param"` or the slot's name.
    pub what: &'static str,
    /// Index of the element in the flat space.
    pub index: u64,
    /// Value on the device.
    pub got: f32,
    /// Value of the reference.
    pub want: f64,
    /// Distance of both values, in units of [`ulp`] of the update's [`Scaled::error_scale`]; infinite if only
    /// one of them is finite.
    pub ulps: f64,
}

impl core::fmt::Display for Deviation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { what, index, got, want, ulps } = self;
        let ulps = if ulps.abs() < 1e9 { format!("{ulps:.2}") } else { format!("{ulps:.2e}") };
        write!(f, "{what}[{index}] = {got:e}, reference {want:e}: {ulps} ulp")
    }
}

/// Checks a run step by step. Each step starts from the device's own values, so errors do not add up over
/// steps.
#[derive(Clone, Debug)]
pub struct Checker {
    layout: Layout,
    names: Vec<&'static str>,
    options: Options,
    carries: Vec<Carry>,
    steps: u64,
}

impl Checker {
    /// Makes a checker for a run from its first step on.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        let carries = vec![Carry::default(); layout.groups().len()];
        Self { names: layout.slot_names(), layout, options: Options::default(), carries, steps: 0 }
    }

    /// Sets the storage of the device's parameters and state, so that the checker allows for their rounding.
    /// With master weights, the master weights are checked.
    #[must_use]
    pub fn stored(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// The largest rounding error of a stored number; `scale` is the scale of its block.
    fn room(&self, format: Format, scale: u32, x: f64) -> f64 {
        let spacing = match format {
            Format::F32 => return 0.0,
            Format::Q8 => q8::spacing(x, scale),
            _ => format.spacing(x),
        };
        // In a block, a scale that is off by one unit moves all numbers. In a block without signs, only zero
        // rounds to zero.
        let shifted = if format == Format::Q8 { (x.abs() + spacing) * SCALE_UNIT } else { 0.0 };
        let half = self.options.rounding == Rounding::Nearest && !(format == Format::Q8 && x.abs() < spacing);
        shifted + if half { spacing / 2.0 } else { spacing }
    }

    /// The worst deviation in the step from `before` to `after`, over parameters and kept slots.
    ///
    /// # Errors
    /// A [`StepError`] if a vector has another length, if an argument is out of range, for a gradient scale
    /// other than 1, or for a rule without a CPU implementation.
    pub fn step(
        &mut self,
        before: &Snapshot,
        grads: &[f32],
        step: impl Into<Step>,
        after: &Snapshot,
    ) -> Result<Deviation, StepError> {
        self.refuse_other_lengths(before, grads, after)?;
        let step = step.into();
        step.refuse_grad_scale()?;
        let mut of_groups: Vec<Vec<f64>> = Vec::new();
        let mut carries = self.carries.clone();
        let mut scratch = vec![0.0; self.layout.most_scalars()];
        self.layout
            .scalars(step, self.steps, &mut carries, &mut scratch, |_, _, s| of_groups.push(s.to_vec()))?;
        self.carries = carries;
        self.steps += 1;
        let mut worst = Deviation { what: "param", index: 0, got: 0.0, want: 0.0, ulps: -1.0 };
        let params =
            if self.options.storage().master().is_some() { Format::F32 } else { self.options.params };
        let thawed = |group: usize| !self.layout.groups()[group].is_frozen();
        for tensor in self.layout.by_offset().filter(|tensor| thawed(tensor.group)) {
            let states = self.options.states_of(tensor.len);
            let (exact, sizes) = self.updated(before, grads, tensor, &of_groups[tensor.group])?;
            let mut judge =
                |what, i: usize, got: f32, want: f64, size: Scaled, format: Format, scale: u32| {
                    let stored = format.decode(format.encode(f32::from_f64(want)));
                    let ulps = if got.is_infinite() && got == stored {
                        0.0
                    } else {
                        distance(got, want, size.error_scale(), self.room(format, scale, want))
                    };
                    // `distance` never returns NaN.
                    if ulps > worst.ulps {
                        worst = Deviation { what, index: i as u64, got, want, ulps };
                    }
                };
            let first = tensor.range().start;
            for block in blocks(tensor) {
                for i in block.clone() {
                    let (want, size) = (exact.params[i - first], sizes.params[i - first]);
                    judge("param", i, after.params[i], want, size, params, 0);
                }
                for (nth, name) in self.layout.rule_of(tensor).spec.slots.iter().enumerate() {
                    let Some(got) = after.state[self.index(name)].get(block.clone()) else { continue };
                    let Some(wants) = exact.state[nth].get(block.start - first..block.end - first) else {
                        continue;
                    };
                    let scale = q8::scale(&wants.iter().map(|&want| f32::from_f64(want)).collect::<Vec<_>>());
                    let lost = states == Format::Q8 && q8::is_lost(scale);
                    for ((i, &got), &want) in block.clone().zip(got).zip(wants) {
                        let want = if lost { f64::NAN } else { want };
                        judge(name, i, got, want, sizes.state[nth][i - first], states, scale);
                    }
                }
            }
        }
        Ok(worst)
    }

    /// The place of a slot in a snapshot.
    fn index(&self, slot: &str) -> usize {
        let found = self.names.iter().position(|name| *name == slot);
        found.expect("`slot_names` has the slots of every rule")
    }

    /// The values of a tensor after the step, exactly and with their error scales.
    fn updated(
        &self,
        before: &Snapshot,
        grads: &[f32],
        tensor: &Tensor,
        scalars: &[f64],
    ) -> Result<(Values<f64>, Values<Scaled>), RuleError> {
        let loops = self.layout.rule_of(tensor).spec.cpu()?;
        Ok((
            self.updated_in(&loops.exact, before, grads, tensor, scalars),
            self.updated_in(&loops.scaled, before, grads, tensor, scalars),
        ))
    }

    fn updated_in<T: Float>(
        &self,
        arithmetic: &Arithmetic<T>,
        before: &Snapshot,
        grads: &[f32],
        tensor: &Tensor,
        scalars: &[f64],
    ) -> Values<T> {
        let rule = self.layout.rule_of(tensor);
        let numbers = |x: &[f32]| x.iter().map(|&x| T::from_f64(x.into())).collect::<Vec<T>>();
        let mut scalars: Vec<T> = scalars.iter().map(|&x| T::from_f64(x)).collect();
        let slot = |(name, kept): (&&str, &bool)| {
            let values = before.state[self.index(name)].get(tensor.range());
            values.filter(|_| *kept).map(numbers).unwrap_or_default()
        };
        let mut state: Vec<Vec<T>> = rule.spec.slots.iter().zip(&rule.kept).map(slot).collect();
        let (mut params, grads) = (numbers(&before.params[tensor.range()]), numbers(&grads[tensor.range()]));
        if rule.spec.is_layer_wise() {
            let state: Vec<&[T]> = state.iter().map(Vec::as_slice).collect();
            let field = rule.spec.trust_ratio_field();
            arithmetic.set_trust_ratio(&mut scalars, field, &params, &grads, &state);
        }
        let mut slots: Vec<&mut [T]> = state.iter_mut().map(Vec::as_mut_slice).collect();
        (arithmetic.update)(&scalars, &mut params, &grads, &mut slots);
        Values { params, state }
    }

    fn refuse_other_lengths(
        &self,
        before: &Snapshot,
        grads: &[f32],
        after: &Snapshot,
    ) -> Result<(), BindError> {
        let len = self.layout.len();
        let check = |what: &str, found: usize, expected: u64| {
            let (what, found) = (what.into(), found as u64);
            if found == expected { Ok(()) } else { Err(BindError::Length { what, found, expected }) }
        };
        check("gradients", grads.len(), len)?;
        for snapshot in [before, after] {
            check("parameters", snapshot.params.len(), len)?;
            check("state slots", snapshot.state.len(), self.names.len() as u64)?;
            for (name, values) in self.names.iter().zip(&snapshot.state) {
                let expected = if self.layout.keeps_slot(name) { len } else { 0 };
                check("elements of a state slot", values.len(), expected)?;
            }
        }
        Ok(())
    }
}

/// The values of a tensor, in the arithmetic of `T`. A slot that is not kept has no values.
struct Values<T> {
    params: Vec<T>,
    state: Vec<Vec<T>>,
}

/// The largest ratio of a scale's last unit to the scale.
const SCALE_UNIT: f64 = 1.0 / (1 << (q8::SCALE_BITS - 1)) as f64;

/// The blocks of a tensor in the flat space.
fn blocks(tensor: &Tensor) -> impl Iterator<Item = core::ops::Range<usize>> + use<> {
    let range = tensor.range();
    let first = range.start - range.start % to_usize(VECTOR);
    (first..range.end).step_by(q8::BLOCK).map(move |at| at.max(range.start)..(at + q8::BLOCK).min(range.end))
}

fn distance(got: f32, want: f64, size: f64, room: f64) -> f64 {
    if !got.is_finite() || !want.is_finite() {
        // A value beyond f32 equals the infinity that it becomes.
        let same = (f64::from(got) == want) || (got.is_nan() && want.is_nan());
        let overflow = got.is_infinite() && f64::from(f32::from_f64(want)) == f64::from(got);
        return if same || overflow { 0.0 } else { f64::INFINITY };
    }
    let error = ((f64::from(got) - want).abs() - room).max(0.0);
    if error == 0.0 { 0.0 } else { error / ulp(size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_ulps_of_the_size() {
        assert_eq!(distance(1.0, 1.0, 1.0, 0.0), 0.0);
        assert_eq!(distance(1.0 + f32::EPSILON, 1.0, 1.0, 0.0), 1.0);
        // Cancellation: the same absolute error, beside terms of size 8.
        assert_eq!(distance(f32::EPSILON, 0.0, 8.0, 0.0), 1.0 / 8.0);
        assert_eq!(distance(f32::NAN, 1.0, 1.0, 0.0), f64::INFINITY);
        assert_eq!(distance(f32::NAN, f64::NAN, 1.0, 0.0), 0.0);
        assert_eq!(distance(f32::INFINITY, 1e60, 1e60, 0.0), 0.0);
        assert_eq!(distance(f32::INFINITY, -1e60, 1e60, 0.0), f64::INFINITY);
    }
}

//! One step of any device against the same step in f64, element by element.

use crate::error::Error;
use crate::float::{Float, Scaled, ulp};
use crate::format::Format;
use crate::layout::{Layout, Tensor};
use crate::options::{Options, Rounding};
use crate::plan::QUAD;
use crate::q8;
use crate::rules::{Fields, Step, Twin, slots, with_ratio};

/// Parameters and state at one moment, flat, as the layout places the tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The parameters.
    pub params: Vec<f32>,
    /// One vector for each of the rule's slots; empty where no group keeps it.
    pub state: Vec<Vec<f32>>,
}

/// The element of a step that lies farthest from the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// `"param"` or the slot's name.
    pub what: &'static str,
    /// Its index in the flat space.
    pub index: u64,
    /// What the device has.
    pub got: f32,
    /// What the reference has.
    pub want: f64,
    /// Their distance, in units of [`ulp`] of the update's [`Scaled::size`]; infinite if only one of them is finite.
    pub ulps: f64,
}

impl core::fmt::Display for Deviation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { what, index, got, want, ulps } = self;
        write!(f, "{what}[{index}] = {got:e}, reference {want:e}: {ulps:.2} ulp")
    }
}

/// Judges a run step by step: each step starts from the device's own values, so that errors are those of one step and do not add up.
#[derive(Clone, Debug)]
pub struct Checker<R> {
    layout: Layout<R>,
    options: Options,
    carries: Vec<f64>,
    steps: u64,
}

impl<R: Twin> Checker<R> {
    /// A checker for a run from its first step on.
    #[must_use]
    pub fn new(layout: Layout<R>) -> Self {
        let carries = vec![0.0; layout.groups().len()];
        Self { layout, options: Options::default(), carries, steps: 0 }
    }

    /// The same for a device that stores parameters and state as these options say: what it may be off by is more by what it rounds. Of parameters with a master it is that which is
    /// judged.
    #[must_use]
    pub fn stored(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// What a stored number may be off by, beside the number that was to be stored; `scale` is its block's.
    fn room(&self, format: Format, scale: u32, x: f64) -> f64 {
        let spacing = match format {
            Format::F32 => return 0.0,
            Format::Q8 => q8::spacing(x, scale),
            _ => format.spacing(x),
        };
        // In blocks, a scale that is one of its own units off moves everything, and nothing but zero is rounded to zero where there is no sign.
        let shifted = if format == Format::Q8 { (x.abs() + spacing) * SCALE_UNIT } else { 0.0 };
        let half = self.options.rounding == Rounding::Nearest && !(format == Format::Q8 && x.abs() < spacing);
        shifted + if half { spacing / 2.0 } else { spacing }
    }

    /// The worst deviation in the step from `before` to `after`, over parameters and kept slots.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for vectors of another length, [`Error::Step`], [`Error::Options`] for a divisor other than 1, [`Error::ScalarOverflow`].
    pub fn step(
        &mut self,
        before: &Snapshot,
        grads: &[f32],
        step: impl Into<Step>,
        after: &Snapshot,
    ) -> Result<Deviation, Error> {
        self.refuse_other_lengths(before, grads, after)?;
        let step = step.into();
        step.unscale(false)?;
        let mut exact = Vec::new();
        let mut carries = self.carries.clone();
        self.layout.scalars(step, self.steps, self.steps + 1, &mut carries, |_, s| exact.push(s))?;
        self.carries = carries;
        self.steps += 1;
        let mut worst = Deviation { what: "param", index: 0, got: 0.0, want: 0.0, ulps: -1.0 };
        let params =
            if self.options.storage().master().is_some() { Format::F32 } else { self.options.params };
        for tensor in self.layout.tensors() {
            let states = self.options.states_of(tensor.len);
            let exact = &exact[tensor.group];
            let scalars = scalars::<R, f64>(exact, before, grads, tensor);
            let sizes = self::scalars::<R, Scaled>(exact, before, grads, tensor);
            let mut judge =
                |what, i: usize, got: f32, want: f64, size: Scaled, format: Format, scale: u32| {
                    let stored = format.decode(format.encode(want as f32));
                    let ulps = if got.is_infinite() && got == stored {
                        0.0
                    } else {
                        distance(got, want, size.size(), self.room(format, scale, want))
                    };
                    // NaN never comes out of `distance`.
                    if ulps > worst.ulps {
                        worst = Deviation { what, index: i as u64, got, want, ulps };
                    }
                };
            for block in blocks(tensor) {
                let updates: Vec<_> = block
                    .clone()
                    .map(|i| {
                        (
                            update::<R, f64>(&scalars, before, grads, i),
                            update::<R, Scaled>(&sizes, before, grads, i),
                        )
                    })
                    .collect();
                for (i, ((p, _), (p_size, _))) in block.clone().zip(&updates) {
                    judge("param", i, after.params[i], *p, *p_size, params, 0);
                }
                for (slot, name) in slots::<R>().iter().enumerate() {
                    let Some(got) = after.state[slot].get(block.clone()) else { continue };
                    let wants = updates.iter().map(|((_, state), _)| state.get(slot) as f32);
                    let scale = q8::scale(&wants.collect::<Vec<_>>());
                    let lost = states == Format::Q8 && q8::is_lost(scale);
                    for ((i, &got), ((_, state), (_, size))) in block.clone().zip(got).zip(&updates) {
                        let want = if lost { f64::NAN } else { state.get(slot) };
                        judge(name, i, got, want, size.get(slot), states, scale);
                    }
                }
            }
        }
        Ok(worst)
    }

    fn refuse_other_lengths(&self, before: &Snapshot, grads: &[f32], after: &Snapshot) -> Result<(), Error> {
        let len = self.layout.len();
        let check = |what, found: usize, expected: u64| {
            if found as u64 == expected {
                Ok(())
            } else {
                Err(Error::Mismatch { what, found: found as u64, expected })
            }
        };
        check("gradients", grads.len(), len)?;
        for snapshot in [before, after] {
            check("parameters", snapshot.params.len(), len)?;
            check("state slots", snapshot.state.len(), slots::<R>().len() as u64)?;
            for (slot, values) in snapshot.state.iter().enumerate() {
                let expected = if self.layout.keeps_slot(slot) { len } else { 0 };
                check("elements of a state slot", values.len(), expected)?;
            }
        }
        Ok(())
    }
}

/// What a unit of a scale's last place is beside the scale, at most.
const SCALE_UNIT: f64 = 1.0 / (1 << (q8::SCALE_BITS - 1)) as f64;

/// The blocks of a tensor in the flat space.
fn blocks(tensor: &Tensor) -> impl Iterator<Item = core::ops::Range<usize>> + use<> {
    let range = tensor.range();
    let first = range.start - range.start % QUAD as usize;
    (first..range.end).step_by(q8::BLOCK).map(move |at| at.max(range.start)..(at + q8::BLOCK).min(range.end))
}

/// A tensor's scalars, in the arithmetic of `T`.
fn scalars<R: Twin, T: Float>(
    exact: &R::Scalars<f64>,
    before: &Snapshot,
    grads: &[f32],
    tensor: &Tensor,
) -> R::Scalars<T> {
    let scalars = R::Scalars::<T>::from_fn(|k| T::from_f64(exact.get(k)));
    let direction = |i| {
        let (p, g, state) = element::<R, T>(before, grads, i);
        (p, R::direction(&scalars, p, g, &state))
    };
    with_ratio::<R, T>(&scalars, tensor.range().map(direction))
}

/// Element `i` after the step, in the arithmetic of `T`.
fn update<R: Twin, T: Float>(
    scalars: &R::Scalars<T>,
    before: &Snapshot,
    grads: &[f32],
    i: usize,
) -> (T, R::State<T>) {
    let (mut p, g, mut state) = element::<R, T>(before, grads, i);
    R::update(scalars, &mut p, g, &mut state);
    (p, state)
}

/// Parameter, gradient and state of element `i` before the step.
fn element<R: Twin, T: Float>(before: &Snapshot, grads: &[f32], i: usize) -> (T, T, R::State<T>) {
    let number = |x: f32| T::from_f64(x.into());
    let state = |slot: usize| before.state[slot].get(i).map_or(T::ZERO, |&x| number(x));
    (number(before.params[i]), number(grads[i]), R::State::<T>::from_fn(state))
}

fn distance(got: f32, want: f64, size: f64, room: f64) -> f64 {
    if !got.is_finite() || !want.is_finite() {
        // A value that f32 cannot hold is as good as the infinity it becomes.
        let same = (f64::from(got) == want) || (got.is_nan() && want.is_nan());
        let overflow = got.is_infinite() && f64::from(want as f32) == f64::from(got);
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

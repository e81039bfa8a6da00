//! State as numbers for every format, and the takeover of another optimizer's state.

use super::{Optimizer, State};
use crate::error::{StateError, StateMismatch};
use crate::formats::Format;
use crate::layout::Carry;
use crate::narrow::to_usize;
use crate::rules::names::REMAINDER;
use crate::state::{Content, lead, take_over, values};

impl Optimizer {
    /// Reads state slot `slot` of `tensor` as one number per element, for every format.
    ///
    /// # Errors
    /// A [`StateError`] if the tensor or the slot is unknown, if the slot is not kept, or for a remainder,
    /// which has codes that are not numbers.
    pub fn read_state(&self, slot: &str, tensor: &str) -> Result<Vec<f32>, StateError> {
        let (format, lead, stored) = self.numbers_of(slot, tensor)?;
        Ok(match stored {
            State::F32(x) => x.to_vec(),
            State::U16(x) => values::decode(format, bytemuck::cast_slice(x), &[], lead),
            State::Q8(codes, scales) => values::decode(format, codes, bytemuck::cast_slice(scales), lead),
        })
    }

    /// Writes state slot `slot` of `tensor` from one number per element, with rounding to nearest.
    ///
    /// # Errors
    /// The errors of [`read_state`](Self::read_state), and a [`StateError::Length`]. Nothing changes then.
    pub fn write_state(&mut self, slot: &str, tensor: &str, numbers: &[f32]) -> Result<(), StateError> {
        let (format, lead, _) = self.numbers_of(slot, tensor)?;
        let expected = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?.len;
        let found = numbers.len() as u64;
        if found != expected {
            return Err(StateError::Length { slot: slot.into(), tensor: tensor.into(), found, expected });
        }
        let (codes, scales) = values::encode(format, numbers, lead);
        let mut stored = self.state_mut(slot, tensor)?.expect("`numbers_of` has found it");
        stored.bytes_mut(Content::Numbers(format)).copy_from_slice(&codes);
        if format == Format::Q8 {
            stored.bytes_mut(Content::Scales).copy_from_slice(&scales);
        }
        Ok(())
    }

    /// The format of a slot's numbers, the place of the tensor's first element in its first block, and the
    /// numbers in their stored form.
    fn numbers_of(&self, slot: &str, tensor: &str) -> Result<(Format, usize, State<'_>), StateError> {
        let stored = self.state(slot, tensor)?;
        let tensor = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let stored = stored.ok_or_else(|| self.layout.not_kept(slot, tensor))?;
        if slot == REMAINDER {
            return Err(StateError::NoNumbers { slot: REMAINDER, tensor: tensor.name.clone() });
        }
        let own = self.layout.rule_of(tensor).spec.slot(slot).is_some();
        let format = if own { self.options.states_of(tensor.len) } else { Format::F32 };
        Ok((format, to_usize(lead(tensor.offset)), stored))
    }

    /// Takes over the state of `old`.
    ///
    /// It copies the state of tensors with the same name, shape and slots, the counts of steps, carried
    /// numbers and the loss scale. A group of only new tensors starts as in a new optimizer. Tensors that
    /// this optimizer lacks are left out.
    ///
    /// # Errors
    /// A [`StateError::Mismatches`] with everything that differs. Nothing changes then.
    pub fn take_over(&mut self, old: &Self) -> Result<(), StateError> {
        if self.steps > 0 {
            let (option, found, expected) = ("steps", "some", "0: call it before the first step");
            return Err(StateError::Mismatches(vec![StateMismatch::Option { option, found, expected }]));
        }
        let (from, to) = ((&old.layout, &old.options), (&self.layout, &self.options));
        let taken = take_over::compare(from, to, &[&old.carries])?;
        let from: Vec<_> = old.layout.by_offset().collect();
        let names: Vec<_> = self.layout.by_offset().map(|tensor| tensor.name.clone()).collect();
        let mut old_of = vec![None; names.len()];
        taken.tensors.iter().for_each(|&(i, j)| old_of[j] = Some(i));
        for stream in self.streams() {
            for &j in &stream.tensors {
                let Some(i) = old_of[j] else { continue };
                let stored = old.state(&stream.slot, &from[i].name)?;
                let own = self.state_mut(&stream.slot, &names[j])?;
                if let (Some(stored), Some(mut own)) = (stored, own) {
                    own.bytes_mut(stream.content).copy_from_slice(stored.bytes(stream.content));
                }
            }
        }
        (self.steps, self.skipped) = (old.steps, old.skipped);
        for (carry, group) in self.carries.iter_mut().zip(&taken.groups) {
            *carry = group.map_or(Carry::default(), |group| old.carries[group]);
        }
        if self.options.loss_scale.is_some() && old.options.loss_scale.is_some() {
            (self.loss_scale, self.good_steps) = (old.loss_scale, old.good_steps);
        }
        Ok(())
    }
}

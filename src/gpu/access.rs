//! State as numbers for every format, and the takeover of another optimizer's state.

use super::buffers::View;
use super::control::{self, device_count};
use super::device::{self, alive};
use super::optimizer::Optimizer;
use super::state::StateRange;
use crate::error::{BindError, StateError, StateMismatch};
use crate::formats::Format;
use crate::layout::{Carry, VECTOR};
use crate::narrow::to_usize;
use crate::rules::names::REMAINDER;
use crate::state::{take_over, values};
use core::mem::offset_of;
use core::ops::Range;

/// Alignment and size of a copy, in bytes.
const WORD: u64 = 4;

/// The decoder for a copy of a tensor's state slot: the result of [`Optimizer::copy_state`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    format: Format,
    parts: Vec<StoredPart>,
    bytes: u64,
}

/// The part of a tensor in one chunk, in a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredPart {
    codes: Range<usize>,
    scales: Range<usize>,
    /// Places before the first element in its first block.
    lead: usize,
}

impl StoredState {
    /// Bytes of the copy: a multiple of 4.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The format of the numbers.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Decodes the bytes of the copy to one number per element of the tensor.
    ///
    /// # Errors
    /// A [`StateError::Bytes`] for fewer bytes than [`bytes`](Self::bytes).
    pub fn decode(&self, bytes: &[u8]) -> Result<Vec<f32>, StateError> {
        let (found, bound) = (bytes.len() as u64, self.bytes);
        if found < bound {
            return Err(StateError::Bytes { found, bound });
        }
        let decode = |part: &StoredPart| {
            let (codes, scales) = (&bytes[part.codes.clone()], &bytes[part.scales.clone()]);
            values::decode(self.format, codes, scales, part.lead)
        };
        Ok(self.parts.iter().flat_map(decode).collect())
    }
}

/// A copy of whole words.
struct Words<'a> {
    buffer: &'a wgpu::Buffer,
    from: u64,
    to: u64,
    bytes: u64,
}

impl Optimizer {
    /// Records copies of state slot `slot` of `tensor` in its stored form into the caller's buffer.
    ///
    /// The buffer has usage `COPY_DST` and room for [`StoredState::bytes`] from the view's offset on. The
    /// result decodes the bytes on the host. A slot in f32 is copied as numbers that a kernel can read.
    ///
    /// # Errors
    /// A [`StateError`] if the tensor or the slot is unknown, if the slot is not kept, for a remainder, which
    /// has codes that are not numbers, if the buffer is refused, or if the device is lost. Nothing is
    /// recorded then.
    pub fn copy_state<'a>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        slot: &str,
        tensor: &str,
        to: impl Into<View<'a>>,
    ) -> Result<StoredState, StateError> {
        let to = to.into();
        let (stored, copies) = self.copies(slot, tensor)?;
        let what = || format!("copy of {slot} of tensor {tensor:?}");
        if !to.buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
            return Err(BindError::MissingUsage { what: what(), usage: "COPY_DST" }.into());
        }
        if !to.offset.is_multiple_of(WORD) {
            return Err(BindError::Misaligned { what: what(), offset: to.offset, bound: WORD }.into());
        }
        let (start, size) = (to.offset, to.buffer.size());
        let end = start.saturating_add(stored.bytes);
        if end > size {
            return Err(BindError::OutOfBounds { what: what(), start, end, size }.into());
        }
        alive(&self.device)?;
        self.probe.check(to.buffer, what)?;
        for Words { buffer, from, to: at, bytes } in copies {
            encoder.copy_buffer_to_buffer(buffer, from, to.buffer, start + at, Some(bytes));
        }
        Ok(stored)
    }

    /// The size and the decoder of a copy of state slot `slot` of `tensor`.
    ///
    /// # Errors
    /// A [`StateError`] as of [`copy_state`](Self::copy_state).
    pub fn stored_state(&self, slot: &str, tensor: &str) -> Result<StoredState, StateError> {
        self.copies(slot, tensor).map(|(stored, _)| stored)
    }

    fn copies(&self, slot: &str, tensor: &str) -> Result<(StoredState, Vec<Words<'_>>), StateError> {
        let (format, ranges) = self.ranges_of(slot, tensor)?;
        let (mut parts, mut copies, mut at) = (Vec::new(), Vec::new(), 0);
        for StateRange { buffer, offset, len, element_bytes, scales, .. } in ranges {
            let mut copy = |start: u64, bytes: u64| {
                let from = start / WORD * WORD;
                let words = (start + bytes).next_multiple_of(WORD) - from;
                copies.push(Words { buffer, from, to: at, bytes: words });
                let first = to_usize(at + start - from);
                at += words;
                first..first + to_usize(bytes)
            };
            let codes = copy(offset, len * element_bytes);
            let lead = offset % VECTOR;
            let blocks = format.block().map_or(0, |block| (lead + len).div_ceil(block));
            let scales = scales.map_or(0..0, |scales| copy(scales, WORD * blocks));
            parts.push(StoredPart { codes, scales, lead: to_usize(lead) });
        }
        Ok((StoredState { format, parts, bytes: at }, copies))
    }

    /// The format and the places of a slot's numbers.
    fn ranges_of(&self, slot: &str, tensor: &str) -> Result<(Format, Vec<StateRange<'_>>), StateError> {
        let ranges = self.state(slot, tensor)?;
        let target = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let rule = self.layout.rule_of(target);
        if rule.spec.slot(slot).is_some_and(|nth| !rule.kept[nth]) {
            return Err(self.layout.not_kept(slot, target));
        }
        if slot == REMAINDER {
            return Err(StateError::NoNumbers { slot: REMAINDER, tensor: tensor.into() });
        }
        // A tensor without elements has no parts.
        let format = match ranges.first().map(|range| range.element_bytes) {
            Some(1) => Format::Q8,
            Some(2) => Format::Bf16,
            _ => Format::F32,
        };
        Ok((format, ranges))
    }

    /// Writes state slot `slot` of `tensor` from one number per element, with rounding to nearest. It takes
    /// effect before the next submission.
    ///
    /// # Errors
    /// A [`StateError`] as of [`copy_state`](Self::copy_state), for another count of numbers, or for a tensor
    /// that shares a word of 2-byte state with another one, which only tensors of a
    /// [packed](crate::Layout::packed) layout do, or if the device is lost. Nothing changes then.
    pub fn write_state(
        &mut self,
        queue: &wgpu::Queue,
        slot: &str,
        tensor: &str,
        numbers: &[f32],
    ) -> Result<(), StateError> {
        let (format, ranges) = self.ranges_of(slot, tensor)?;
        let target = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let (found, expected) = (numbers.len() as u64, target.len);
        if found != expected {
            return Err(StateError::Length { slot: slot.into(), tensor: tensor.into(), found, expected });
        }
        if format == Format::Bf16 && self.layout.shares_vector(target) {
            return Err(StateError::SharedWord { slot: slot.into(), tensor: tensor.into() });
        }
        for StateRange { buffer, offset, start, len, scales, .. } in ranges {
            let own = &numbers[to_usize(start)..to_usize(start + len)];
            let (codes, own_scales) = values::encode(format, own, to_usize(offset % VECTOR));
            let first = offset / WORD * WORD;
            // Components of a vector that belong to no tensor are 0.
            let mut words = vec![0; to_usize(offset - first)];
            words.extend_from_slice(&codes);
            words.resize(words.len().next_multiple_of(to_usize(WORD)), 0);
            device::write(&self.device, queue, buffer, first, &words)?;
            if let Some(scales) = scales {
                device::write(&self.device, queue, buffer, scales, &own_scales)?;
            }
        }
        Ok(())
    }

    /// Takes over the state of `old` on the device.
    ///
    /// It copies the state of tensors with the same name, shape and slots, the counts of steps, carried
    /// numbers and the loss scale. A group of only new tensors starts as in a new optimizer. Tensors that
    /// this optimizer lacks are left out.
    ///
    /// It records copies into `encoder`, which must follow the old optimizer's last step; `old` takes no more
    /// steps. Call it before this optimizer's first step is recorded. If steps may be skipped, poll for the
    /// old optimizer's reports first. Without them the age of a new group is uncertain, and the next step
    /// returns [`StepError::UncertainAge`](crate::StepError::UncertainAge).
    ///
    /// Both optimizers must be of one device. wgpu distinguishes devices of one instance, but not of two
    /// instances.
    ///
    /// # Errors
    /// A [`StateError::Mismatches`] with everything that differs, or a [`StateError::Device`] if the device
    /// is lost. Nothing is recorded and nothing changes then.
    pub fn take_over(
        &mut self,
        queue: &wgpu::Queue,
        encoder: &mut wgpu::CommandEncoder,
        old: &Self,
    ) -> Result<(), StateError> {
        if self.steps > 0 {
            let (option, found, expected) = ("steps", "some", "0: call it before the first step");
            return Err(StateError::Mismatches(vec![StateMismatch::Option { option, found, expected }]));
        }
        // Reports that arrived after the old optimizer's last step reduce the possible counts.
        let mut pending = old.pending.clone();
        if let Some((reported, skipped)) = old.control.as_ref().and_then(control::Control::newest) {
            pending.confirm(skipped, old.steps - reported - 1);
        }
        let counts = 0..pending.count() as u64;
        let carries: Vec<_> = counts.map(|i| pending.carries(pending.first() + i)).collect();
        let (from, to) = ((&old.layout, &old.options), (&self.layout, &self.options));
        let taken = take_over::compare(from, to, &carries)?;
        self.refuse_other_device(old, pending.count())?;
        alive(&self.device)?;
        let copies = self.state_copies(old, &taken.tensors)?;
        for (from, at, to, start, bytes) in &copies {
            encoder.copy_buffer_to_buffer(from, *at, to, *start, Some(*bytes));
        }
        self.steps = old.steps;
        self.pending.take_over(&pending, &taken.groups);
        let size = size_of::<control::State>() as u64;
        // The scale and the good steps come first.
        let counted = offset_of!(control::State, taken) as u64;
        let counts_alone = old.options.skips();
        if let Some(own) = &self.control {
            if !counts_alone {
                // Without skipping the host's count is right: dropped commands count as steps.
                let taken = device_count(old.steps - pending.first());
                queue.write_buffer(&own.state, counted, bytemuck::bytes_of(&taken));
            }
            if let Some(old_control) = old.control.as_ref().filter(|_| counts_alone) {
                let scales = self.options.loss_scale.is_some() && old.options.loss_scale.is_some();
                let first = if scales { 0 } else { counted };
                let bytes = Some(size - first);
                encoder.copy_buffer_to_buffer(&old_control.state, first, &own.state, first, bytes);
            }
        }
        Ok(())
    }

    fn refuse_other_device(&self, old: &Self, counts: usize) -> Result<(), StateError> {
        let option = |option, found, expected| StateMismatch::Option { option, found, expected };
        if self.device != old.device {
            return Err(StateError::Mismatches(vec![option("device", "another one", "the optimizer's own")]));
        }
        // Only a device that counts steps can continue from a device that counts steps.
        if counts > 1 && !self.options.skips() {
            return Err(StateError::Mismatches(vec![option(
                "skip_nonfinite",
                "true",
                "true, or all steps reported",
            )]));
        }
        Ok(())
    }

    /// The copies of all state of `tensors`, in whole words: old buffer and byte, new buffer and byte, and
    /// size.
    #[expect(clippy::type_complexity, reason = "a list for one loop")]
    fn state_copies(
        &self,
        old: &Self,
        tensors: &[(usize, usize)],
    ) -> Result<Vec<(wgpu::Buffer, u64, wgpu::Buffer, u64, u64)>, StateError> {
        let (mut copies, mut odd) = (Vec::new(), Vec::new());
        let mut new_of = vec![None; old.layout.by_offset().len()];
        tensors.iter().for_each(|&(i, j)| new_of[i] = Some(j));
        let names: Vec<_> = self.layout.by_offset().map(|tensor| tensor.name.as_str()).collect();
        let shared: Vec<_> = self.layout.by_offset().map(|t| self.layout.shares_vector(t)).collect();
        for stream in self.streams() {
            let (from, to) =
                (old.runs(&stream.slot, stream.content), self.runs(&stream.slot, stream.content));
            let mut by_tensor: Vec<Vec<_>> = vec![Vec::new(); names.len()];
            to.iter().for_each(|run| by_tensor[run.tensor].push(run));
            for run in &from {
                let Some(j) = new_of[run.tensor] else { continue };
                // Chunks may be cut at other places.
                for own in &by_tensor[j] {
                    let start = run.start.max(own.start);
                    let end = (run.start + run.bytes).min(own.start + own.bytes);
                    if start >= end {
                        continue;
                    }
                    let (at, place) = (run.offset + start - run.start, own.offset + start - own.start);
                    let bytes = end - start;
                    // Words of values of 2 bytes are copied whole.
                    let halves = stream.content.value_bytes() == 2;
                    if at % WORD != place % WORD || halves && shared[j] {
                        odd.push(StateMismatch::Format {
                            tensor: names[j].into(),
                            slot: "states",
                            found: "2 bytes per element, in words shared with other tensors",
                            expected: "in words of its own",
                        });
                        break;
                    }
                    // The rest of the first and the last word is padding.
                    let lead = at % WORD;
                    let words = (bytes + lead).next_multiple_of(WORD);
                    let (from, to) = (run.buffer.clone(), own.buffer.clone());
                    copies.push((from, at - lead, to, place - lead, words));
                }
            }
        }
        if odd.is_empty() { Ok(copies) } else { Err(StateError::Mismatches(odd)) }
    }
}

impl super::pending::Pending {
    /// Continues from the counts of another optimizer. Group `i` follows its group `groups[i]`; a group
    /// without one starts at zero.
    fn take_over(&mut self, old: &Self, groups: &[Option<usize>]) {
        let of_set = |skipped: u64| {
            let carries = old.carries(skipped).to_vec();
            groups.iter().map(move |group| group.map_or(Carry::default(), |group| carries[group]))
        };
        let counts = old.first()..old.first() + old.count() as u64;
        self.replace(old.first(), old.count(), counts.flat_map(of_set).collect());
    }
}

//! What a checkpoint has of the optimizer.

use super::{Optimizer, Slot, State};
use crate::checkpoint::gpu::Run;
use crate::checkpoint::{Content, Counters, LossScaleState};
use crate::control::{self, Control};
use crate::format::Format;
use crate::options::REMAINDER;
use crate::plan::QUAD;
use crate::q8;
use crate::rules::Rule;

/// What the values of a slot are in a chunk.
fn contents(slot: &Slot, state: &State) -> Vec<Content> {
    match slot.format.unwrap_or(state.format) {
        Format::Q8 => vec![Content::Codes, Content::Scales],
        _ if slot.name == REMAINDER => vec![Content::Remainders],
        format => vec![Content::Numbers(format)],
    }
}

impl<R: Rule> Optimizer<R> {
    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The slots, each with all that its values are, in the order of their buffers.
    pub(crate) fn saved_slots(&self) -> Vec<(usize, Content)> {
        let mut saved = Vec::new();
        for (i, slot) in self.slots.iter().enumerate() {
            for state in &self.state {
                for content in contents(slot, state) {
                    if !saved.contains(&(i, content)) {
                        saved.push((i, content));
                    }
                }
            }
        }
        saved
    }

    pub(crate) fn saved_name(&self, slot: usize) -> &'static str {
        self.slots[slot].name
    }

    /// Where values of a slot lie, those of one tensor behind each other.
    pub(crate) fn saved_runs(&self, slot: usize, content: Content) -> Vec<Run> {
        let tensors: Vec<_> = self.layout.by_offset().collect();
        let mut runs = Vec::new();
        for state in self.state.iter().filter(|state| contents(&self.slots[slot], state).contains(&content)) {
            let State { chunk, buffers, .. } = state;
            for piece in &chunk.pieces {
                let tensor = tensors[piece.tensor];
                // Elements of state before the piece, and of the tensor before and in it.
                let before = u64::from(piece.state) * QUAD + piece.start % QUAD;
                let (start, len) = (piece.start - tensor.offset, piece.end - piece.start);
                let bytes = content.value_bytes();
                let (offset, start, len) = if content == Content::Scales {
                    let block = q8::BLOCK as u64;
                    let codes = u64::from(chunk.state_quads) * QUAD;
                    let first = (tensor.offset % QUAD + start) / block;
                    (codes + before / block * bytes, first, (piece.start % QUAD + len).div_ceil(block))
                } else {
                    (before * bytes, start, len)
                };
                let (buffer, tensor) = (buffers[slot].clone(), piece.tensor);
                runs.push(Run { buffer, offset, bytes: len * bytes, tensor, start: start * bytes });
            }
        }
        runs
    }

    /// Steps whose commands have neither run nor been dropped.
    pub(crate) fn unsubmitted(&self) -> usize {
        self.rows.leased()
    }

    /// What the device counts, if it does: a [`control::State`].
    pub(crate) fn control_state(&self) -> Option<&wgpu::Buffer> {
        self.control.as_ref().map(|control| &control.state)
    }

    /// What is counted, with the device's state after all that was recorded.
    pub(crate) fn counters(&self, state: Option<control::State>) -> Counters {
        // Without skipping there is one count, and commands that were dropped were steps.
        let skipped = match state {
            Some(state) if self.options.skips() => {
                let least = self.lags.first();
                // Modulo 2³²: no more can be in flight.
                least + u64::from((self.steps as u32).wrapping_sub(state.taken).wrapping_sub(least as u32))
            }
            _ => self.lags.first(),
        };
        let scale = state.filter(|_| self.options.loss_scale.is_some());
        Counters {
            steps: self.steps,
            taken: self.steps - skipped,
            carries: self.lags.carries(skipped).to_vec(),
            loss_scale: scale.map(|state| LossScaleState { scale: state.scale, good_steps: state.good }),
        }
    }

    /// Goes on from `counters`, which have a carry for each group. Nothing may be in flight.
    pub(crate) fn restore(&mut self, queue: &wgpu::Queue, counters: &Counters) {
        self.steps = counters.steps;
        self.lags.restore(counters.steps - counters.taken, &counters.carries);
        if let Some(control) = &self.control {
            let first = Control::first_state(&self.options);
            let LossScaleState { scale, good_steps: good } =
                counters.loss_scale.unwrap_or(LossScaleState { scale: first.scale, good_steps: first.good });
            control.restore(queue, control::State { scale, good, taken: counters.taken as u32, ..first });
        }
    }
}

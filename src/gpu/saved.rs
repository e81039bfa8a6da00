//! The optimizer's state for checkpoints and other layouts.

#[cfg(feature = "checkpoint")]
use super::control::{self, Control, device_count};
use super::optimizer::Optimizer;
use super::state::{ChunkState, Slot};
use crate::formats::Format;
use crate::formats::q8;
use crate::layout::VECTOR;
use crate::rules::names::REMAINDER;
use crate::state::{Content, Stream};
#[cfg(feature = "checkpoint")]
use crate::state::{Counters, LossScaleState};

/// A contiguous range of a tensor's bytes in a buffer.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) buffer: wgpu::Buffer,
    /// The offset of the range in bytes.
    pub(crate) offset: u64,
    /// The number of bytes.
    pub(crate) bytes: u64,
    /// The tensor, as an index in the order of the flat space, and the first of its bytes in this range.
    pub(crate) tensor: usize,
    pub(crate) start: u64,
}

/// The kinds of the values of a slot in a chunk.
fn contents(slot: &Slot, state: &ChunkState) -> Vec<Content> {
    match slot.format.unwrap_or(state.format) {
        Format::Q8 => vec![Content::Codes, Content::Scales],
        _ if slot.name == REMAINDER => vec![Content::Remainders],
        format => vec![Content::Numbers(format)],
    }
}

impl Optimizer {
    #[cfg(feature = "checkpoint")]
    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The streams of all state, in the order of the slots.
    pub(crate) fn streams(&self) -> Vec<Stream> {
        let mut streams = Vec::new();
        let mut names: Vec<&'static str> = Vec::new();
        for slot in self.state.iter().flat_map(|state| &state.slots) {
            if !names.contains(&slot.name) {
                names.push(slot.name);
            }
        }
        // Slots other than a rule's own come last, as in the order of the buffers.
        names.sort_by_key(|name| !self.layout.slot_names().contains(name));
        for name in names {
            let mut kinds: Vec<Content> = Vec::new();
            for state in &self.state {
                for content in
                    state.slot(name).map(|i| contents(&state.slots[i], state)).into_iter().flatten()
                {
                    if !kinds.contains(&content) {
                        kinds.push(content);
                    }
                }
            }
            streams.extend(kinds.into_iter().map(|content| {
                let runs = self.runs(name, content);
                let mut tensors: Vec<_> = runs.into_iter().map(|run| run.tensor).collect();
                // Tensors that cross a chunk's end have several runs.
                tensors.dedup();
                Stream { slot: name.into(), content, tensors }
            }));
        }
        streams
    }

    /// The places of a slot's values, tensor by tensor.
    pub(crate) fn runs(&self, name: &str, content: Content) -> Vec<Run> {
        let tensors: Vec<_> = self.layout.by_offset().collect();
        let mut runs = Vec::new();
        for state in &self.state {
            let slot = state.slot(name).filter(|&i| contents(&state.slots[i], state).contains(&content));
            let Some(slot) = slot else { continue };
            let ChunkState { chunk, buffers, .. } = state;
            for tensor_range in &chunk.tensor_ranges {
                let tensor = tensors[tensor_range.tensor];
                // Elements of state before the tensor range, and elements of the tensor before it and in it.
                let before = u64::from(tensor_range.state) * VECTOR + tensor_range.start % VECTOR;
                let (start, len) =
                    (tensor_range.start - tensor.offset, tensor_range.end - tensor_range.start);
                let bytes = content.value_bytes();
                let (offset, start, len) = if content == Content::Scales {
                    let block = q8::BLOCK as u64;
                    let codes = u64::from(chunk.state_vectors) * VECTOR;
                    let first = (tensor.offset % VECTOR + start) / block;
                    (
                        codes + before / block * bytes,
                        first,
                        (tensor_range.start % VECTOR + len).div_ceil(block),
                    )
                } else {
                    (before * bytes, start, len)
                };
                let (buffer, tensor) = (buffers[slot].clone(), tensor_range.tensor);
                runs.push(Run { buffer, offset, bytes: len * bytes, tensor, start: start * bytes });
            }
        }
        runs
    }

    /// The number of steps with commands that have neither run nor been dropped.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn unsubmitted(&self) -> usize {
        self.ring.leased()
    }

    /// The device's counters, if it keeps any: a [`control::State`].
    #[cfg(feature = "checkpoint")]
    pub(crate) fn control_state(&self) -> Option<&wgpu::Buffer> {
        self.control.as_ref().map(|control| &control.state)
    }

    /// All counters, from the device's state after all recorded work.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn counters(&self, state: Option<control::State>) -> Counters {
        // Without skipping there is one count, and dropped commands count as steps.
        let skipped = match state {
            Some(state) if self.options.skips() => {
                let least = self.pending.first();
                // Modulo 2³²: no more can be in flight.
                least
                    + u64::from(
                        device_count(self.steps).wrapping_sub(state.taken).wrapping_sub(device_count(least)),
                    )
            }
            _ => self.pending.first(),
        };
        let scale = state.filter(|_| self.options.loss_scale.is_some());
        Counters {
            steps: self.steps,
            taken: self.steps - skipped,
            carries: self.pending.carries(skipped).to_vec(),
            loss_scale: scale.map(|state| LossScaleState { scale: state.scale, good_steps: state.good }),
        }
    }

    /// Takes the values of `layout` and `options` that may change between steps.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn configure(&mut self, layout: crate::Layout, options: crate::Options) {
        // The layout may have other frozen groups.
        self.revision += 1;
        (self.layout, self.options) = (layout, options);
    }

    /// Continues from `counters`, which have one entry per group. Nothing may be in flight.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn restore(&mut self, queue: &wgpu::Queue, counters: &Counters) {
        self.steps = counters.steps;
        self.pending.restore(counters.steps - counters.taken, &counters.carries);
        if let Some(control) = &self.control {
            let first = Control::first_state(&self.options);
            let LossScaleState { scale, good_steps: good } =
                counters.loss_scale.unwrap_or(LossScaleState { scale: first.scale, good_steps: first.good });
            control
                .restore(queue, control::State { scale, good, taken: device_count(counters.taken), ..first });
        }
    }
}

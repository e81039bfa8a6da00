//! State buffers, and the places of slots and tensors in them.

use super::device::create_buffer;
use super::optimizer::Optimizer;
use super::plan::{self, BLOCK_VECTORS, Chunk, Limits, Span};
use crate::error::{DeviceError, StateError};
use crate::formats::Format;
use crate::layout::{Layout, RuleUse, Tensor, VECTOR};
use crate::narrow::to_u32;
use crate::options::Options;
use crate::rules::names::EMA;

/// Bytes of a block's scale.
const SCALE_BYTES: u64 = 4;

/// The part of a tensor in one state buffer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct StateRange<'a> {
    /// The buffer, with usages `STORAGE`, `COPY_SRC` and `COPY_DST`.
    pub buffer: &'a wgpu::Buffer,
    /// Offset of the part in bytes. A part with elements of 2 bytes may start inside a word; the other half
    /// then belongs to another tensor.
    pub offset: u64,
    /// The first element of the part in its tensor.
    pub start: u64,
    /// The number of elements.
    pub len: u64,
    /// Bytes per element: 4 for f32, 2 and 1 for the formats of [`Options::states`], 2 for a remainder.
    pub element_bytes: u64,
    /// Offset of the scales of the part's [blocks](crate::q8) in bytes; 4 bytes per scale.
    pub scales: Option<u64>,
}

/// A value that is kept for each element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) name: &'static str,
    /// The format of a slot that is not the rule's. The rule's slots have the format of their chunk.
    pub(super) format: Option<Format>,
}

/// A chunk's state: of tensors of one rule, in one format.
#[derive(Debug)]
pub(super) struct ChunkState {
    /// The rule's place in the layout.
    pub(super) rule: usize,
    pub(super) chunk: Chunk,
    /// Format of the rule's slots.
    pub(super) format: Format,
    pub(super) slots: Vec<Slot>,
    /// One buffer per slot.
    pub(super) buffers: Vec<wgpu::Buffer>,
}

/// Vectors of state per scale, or 1 without scales.
pub(super) fn block_vectors(format: Format) -> u32 {
    if format.block().is_some() { BLOCK_VECTORS } else { 1 }
}

impl ChunkState {
    /// Allocates zeroed state for all chunks of a layout.
    pub(super) fn allocate(
        device: &wgpu::Device,
        layout: &Layout,
        options: &Options,
        limits: &Limits,
    ) -> Result<Vec<Self>, DeviceError> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let allocated = chunks(layout, options, limits).into_iter().map(|(rule, format, chunk)| {
            let slots = slots_of(&layout.rules()[rule], options);
            let elements = u64::from(chunk.state_vectors) * VECTOR;
            let buffer = |slot: &Slot| {
                let bytes = slot.format.unwrap_or(format).tensor_bytes(elements);
                create_buffer(device, slot.name, bytes, usage)
            };
            let buffers = slots.iter().map(buffer).collect::<Result<_, DeviceError>>()?;
            Ok(Self { rule, chunk, format, slots, buffers })
        });
        allocated.collect()
    }

    /// The place of a slot among the buffers.
    pub(super) fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| slot.name == name)
    }

    /// The part of a tensor in slot `slot`, if the chunk has one.
    fn range(&self, slot: usize, tensor: &Tensor) -> Option<StateRange<'_>> {
        let chunk = &self.chunk;
        let at = chunk.tensor_ranges.partition_point(|p| p.end <= tensor.offset);
        let tensor_range = chunk.tensor_ranges.get(at).filter(|p| p.start < tensor.end())?;
        let format = self.slots[slot].format.unwrap_or(self.format);
        // After the codes.
        let scale = |block: u64| {
            let [codes, before] =
                [chunk.state_vectors, tensor_range.state].map(|vectors| u64::from(vectors) * VECTOR);
            codes * format.bytes() + before / block * SCALE_BYTES
        };
        Some(StateRange {
            buffer: &self.buffers[slot],
            offset: (u64::from(tensor_range.state) * VECTOR + tensor_range.start % VECTOR) * format.bytes(),
            start: tensor_range.start - tensor.offset,
            len: tensor_range.end - tensor_range.start,
            element_bytes: format.bytes(),
            scales: format.block().map(scale),
        })
    }
}

/// The slots of a rule's tensors, in the order in which they are bound.
fn slots_of(rule: &RuleUse, options: &Options) -> Vec<Slot> {
    let slots = rule.kept_slots().map(|name| Slot { name, format: None });
    let beside = |(name, format)| Slot { name, format: Some(format) };
    let ema = options.ema.map(|_| (EMA, Format::F32));
    slots.chain(options.storage().master().into_iter().chain(ema).map(beside)).collect()
}

/// The tensors of a layout for the planner, in the order of the flat space.
pub(super) fn spans(layout: &Layout) -> impl Iterator<Item = (&Tensor, Span)> {
    layout
        .by_offset()
        .enumerate()
        .map(|(tensor, t)| (t, Span { tensor, group: to_u32(t.group), start: t.offset, end: t.end() }))
}

/// The chunks of a layout, each with its rule and the format of the rule's state in it.
fn chunks(layout: &Layout, options: &Options, limits: &Limits) -> Vec<(usize, Format, Chunk)> {
    let mut apart: Vec<(usize, Format, Vec<Span>)> = Vec::new();
    for (tensor, span) in spans(layout) {
        let (rule, format) = (layout.rule_index(tensor.group), options.states_of(tensor.len));
        match apart.iter_mut().find(|(r, f, _)| (*r, *f) == (rule, format)) {
            Some((.., spans)) => spans.push(span),
            None => apart.push((rule, format, vec![span])),
        }
    }
    let mut chunks = Vec::new();
    for (rule, format, spans) in apart {
        let block = block_vectors(format);
        let disjoint = block > 1 || options.storage().stochastic;
        let disjoint_sets = if disjoint { plan::disjoint_sets(&spans) } else { vec![spans] };
        let disjoint_sets =
            disjoint_sets.iter().flat_map(|spans| plan::chunks(spans, limits.chunk_elements, block));
        chunks.extend(disjoint_sets.map(|chunk| (rule, format, chunk)));
    }
    chunks
}

impl Optimizer {
    /// The places of state slot `slot` of `tensor`: one range, or several if the tensor crosses a chunk's
    /// end.
    ///
    /// The name is PyTorch's, `"ema"`, `"master"` or `"remainder"`. The result is empty if no group of the
    /// tensor's rule keeps the slot.
    ///
    /// # Errors
    /// A [`StateError`] if the layout lacks the tensor, or the tensor's rule the slot.
    pub fn state(&self, slot: &str, tensor: &str) -> Result<Vec<StateRange<'_>>, StateError> {
        let target = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let rule = self.layout.rule_index(target.group);
        let of_rule = &self.layout.rules()[rule];
        let Some(index) = slots_of(of_rule, &self.options).iter().position(|kept| kept.name == slot) else {
            let unknown = || StateError::UnknownSlot { tensor: tensor.into(), slot: slot.into() };
            return of_rule.spec.slot(slot).map(|_| Vec::new()).ok_or_else(unknown);
        };
        let chunks = self.state.iter().filter(|state| state.rule == rule && target.len > 0);
        Ok(chunks.filter_map(|state| state.range(index, target)).collect())
    }

    pub(super) fn buffers(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.state.iter().flat_map(|state| &state.buffers)
    }

    /// Bytes of device memory held as optimizer state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.buffers().map(wgpu::Buffer::size).sum()
    }
}

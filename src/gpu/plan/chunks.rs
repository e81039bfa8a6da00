//! Chunks: parts of the flat space that fit a binding.

use crate::layout::VECTOR;
use crate::narrow::to_u32;

/// Chunks start at multiples of this many elements: 256 bytes of f32, the largest offset alignment that a
/// device may require.
pub(crate) const CHUNK_ALIGNMENT: u64 = 64;

/// A part of one tensor inside one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorRange {
    /// Index of the tensor in the order of declaration.
    pub tensor: usize,
    /// The tensor's group, or another number that all vectors of a segment share.
    pub group: u32,
    /// First element in the flat space.
    pub start: u64,
    /// One past the last element.
    pub end: u64,
    /// The vector of the chunk's state that holds the first element.
    pub state: u32,
    /// The lane of the tensor's first element.
    pub lane: u32,
}

/// A range of the flat space that is bound at once, with state buffers of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// First element bound, a multiple of [`CHUNK_ALIGNMENT`].
    pub start: u64,
    /// One past the last element that belongs to a tensor.
    pub end: u64,
    /// Vectors of state: those that hold at least one element of a tensor.
    pub state_vectors: u32,
    /// The parts of tensors inside the chunk, in order.
    pub tensor_ranges: Vec<TensorRange>,
}

impl Chunk {
    /// Makes a chunk that starts at the last bindable element up to `start`.
    fn empty(start: u64) -> Self {
        let first = start / CHUNK_ALIGNMENT * CHUNK_ALIGNMENT;
        Self { start: first, end: start, state_vectors: 0, tensor_ranges: Vec::new() }
    }
}

/// A tensor as input of [`chunks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Index of the tensor in the order of the flat space.
    pub tensor: usize,
    /// The tensor's group.
    pub group: u32,
    /// First element in the flat space.
    pub start: u64,
    /// One past the last element.
    pub end: u64,
}

/// Sorts `tensors` (disjoint, in order) into the smallest number of sets without shared vectors inside a set.
#[must_use]
pub(crate) fn disjoint_sets(tensors: &[Span]) -> Vec<Vec<Span>> {
    let mut disjoint_sets: Vec<Vec<Span>> = Vec::new();
    for span in tensors {
        let apart = |disjoint_set: &&mut Vec<Span>| {
            disjoint_set.last().is_none_or(|last| (last.end - 1) / VECTOR < span.start / VECTOR)
        };
        match disjoint_sets.iter_mut().find(apart) {
            Some(disjoint_set) => disjoint_set.push(*span),
            None => disjoint_sets.push(vec![*span]),
        }
    }
    disjoint_sets
}

/// Cuts `tensors` (disjoint, in order) into chunks of at most `chunk_elements`. State is in blocks of `block`
/// vectors, counted from each tensor's first vector. Blocks of more than one vector require tensors without
/// shared vectors.
#[must_use]
pub(crate) fn chunks(tensors: &[Span], chunk_elements: u64, block: u32) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for span in tensors {
        let tensor = span.tensor;
        let mut start = span.start;
        while start < span.end {
            let room = |c: &Chunk| chunk_elements.saturating_sub(u64::from(c.state_vectors) * VECTOR);
            let fits = chunks
                .last()
                .is_some_and(|c| start < c.start + chunk_elements && (block == 1 || room(c) > 0));
            if !fits {
                chunks.push(Chunk::empty(start));
            }
            let Some(chunk) = chunks.last_mut() else { break };
            let mut end = span.end.min(chunk.start + chunk_elements);
            if block > 1 {
                // State in whole blocks may take more elements than the tensors have.
                end = end.min(start / VECTOR * VECTOR + room(chunk));
            }
            if end < span.end {
                end = whole_blocks(span.start, end, block);
                if end <= start {
                    // No block of the tensor has room here.
                    chunks.push(Chunk::empty(start));
                    continue;
                }
            }
            // The vector at the end of the previous tensor range may be shared with it.
            let shared = chunk.state_vectors > 0 && (chunk.end - 1) / VECTOR == start / VECTOR;
            let state = chunk.state_vectors - u32::from(shared);
            let vectors = to_u32(end.div_ceil(VECTOR) - start / VECTOR);
            chunk.state_vectors = state + vectors.next_multiple_of(block);
            chunk.end = end;
            let lane = (span.start % VECTOR) as u32;
            chunk.tensor_ranges.push(TensorRange { tensor, group: span.group, start, end, state, lane });
            start = end;
        }
    }
    chunks
}

/// The end of the last whole block up to `end`. Blocks are counted from the vector of `start`.
pub(crate) fn whole_blocks(start: u64, end: u64, block: u32) -> u64 {
    let first = start / VECTOR * VECTOR;
    first + (end - first) / (u64::from(block) * VECTOR) * (u64::from(block) * VECTOR)
}

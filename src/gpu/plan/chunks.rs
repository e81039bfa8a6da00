//! Chunks: parts of the flat space that fit a binding.

use crate::layout::VECTOR as QUAD;

/// Chunks start at multiples of this many elements: 256 bytes of f32, the largest offset alignment a device
/// may ask for.
pub const CHUNK_ALIGNMENT: u64 = 64;

/// A part of one tensor inside one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the tensor in the order the caller listed them.
    pub tensor: usize,
    /// The tensor's group, or what else a tile's quads are to have in common.
    pub group: u32,
    /// First element in the flat space.
    pub start: u64,
    /// One past the last element.
    pub end: u64,
    /// The quad of the chunk's state that holds the first element.
    pub state: u32,
    /// The lane of the tensor's first element.
    pub lane: u32,
}

/// A range of the flat space whose buffers are bound at once, with state buffers of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First element bound, a multiple of [`CHUNK_ALIGNMENT`].
    pub start: u64,
    /// One past the last element that belongs to a tensor.
    pub end: u64,
    /// Quads of state: those that hold at least one element of a tensor.
    pub state_quads: u32,
    /// The parts of tensors inside, in order.
    pub pieces: Vec<Piece>,
}

impl Chunk {
    /// One that begins where `start` can be bound.
    fn empty(start: u64) -> Self {
        let first = start / CHUNK_ALIGNMENT * CHUNK_ALIGNMENT;
        Self { start: first, end: start, state_quads: 0, pieces: Vec::new() }
    }
}

/// A tensor, as [`chunks`] takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its index in the order of the flat space.
    pub tensor: usize,
    /// The tensor's group.
    pub group: u32,
    /// First element in the flat space.
    pub start: u64,
    /// One past the last element.
    pub end: u64,
}

/// Sorts `tensors` (disjoint, in order) into as few families as there can be, of each of which no two tensors
/// share a quad.
#[must_use]
pub fn families(tensors: &[Span]) -> Vec<Vec<Span>> {
    let mut families: Vec<Vec<Span>> = Vec::new();
    for span in tensors {
        let apart = |family: &&mut Vec<Span>| {
            family.last().is_none_or(|last| (last.end - 1) / QUAD < span.start / QUAD)
        };
        match families.iter_mut().find(apart) {
            Some(family) => family.push(*span),
            None => families.push(vec![*span]),
        }
    }
    families
}

/// Cuts `tensors` (disjoint, in order) into chunks of at most `chunk_elements`. Their state is in blocks of
/// `block` quads, counted from each tensor's first: of more than one only where no tensors share a quad.
#[must_use]
pub fn chunks(tensors: &[Span], chunk_elements: u64, block: u32) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for span in tensors {
        let tensor = span.tensor;
        let mut start = span.start;
        while start < span.end {
            let room = |c: &Chunk| chunk_elements.saturating_sub(u64::from(c.state_quads) * QUAD);
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
                end = end.min(start / QUAD * QUAD + room(chunk));
            }
            if end < span.end {
                end = whole_blocks(span.start, end, block);
                if end <= start {
                    // No block of it has room here.
                    chunks.push(Chunk::empty(start));
                    continue;
                }
            }
            // A quad that the previous piece ends in is shared with it.
            let shared = chunk.state_quads > 0 && (chunk.end - 1) / QUAD == start / QUAD;
            let state = chunk.state_quads - u32::from(shared);
            let quads = (end.div_ceil(QUAD) - start / QUAD) as u32;
            chunk.state_quads = state + quads.next_multiple_of(block);
            chunk.end = end;
            let lane = (span.start % QUAD) as u32;
            chunk.pieces.push(Piece { tensor, group: span.group, start, end, state, lane });
            start = end;
        }
    }
    chunks
}

/// The end of the last whole block up to `end`, of those that begin with the quad of `start`.
pub(crate) fn whole_blocks(start: u64, end: u64, block: u32) -> u64 {
    let first = start / QUAD * QUAD;
    first + (end - first) / (u64::from(block) * QUAD) * (u64::from(block) * QUAD)
}

//! Tables of segments, in the form that the shaders read.

use crate::narrow::to_u32;
use bytemuck::{Pod, Zeroable};

/// The lane of a vector that belongs to no tensor.
pub(crate) const NONE: u16 = u16::MAX;

/// A run of vectors: those between the first and the last belong to one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First vector, counted from the chunk's start.
    pub vector: u32,
    /// First vector of the state.
    pub state: u32,
    /// The number of vectors.
    pub vectors: u32,
    /// The group of all lanes between the first and the last vector.
    pub group: u32,
    /// The group of each lane of the first vector, [`NONE`] for a lane of no tensor.
    pub first: [u16; 4],
    /// The group of each lane of the last vector. A lone vector has the same lanes in both fields.
    pub last: [u16; 4],
    /// The tensor of the first lane with a tensor: of all lanes, if segments are
    /// [`by_tensor`](Constraints::by_tensor).
    pub tensor: usize,
}

/// A segment in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SharedSegment {
    /// First vector, counted from the chunk's start.
    pub vector: u32,
    /// First vector of the state.
    pub state: u32,
    /// The number of vectors.
    pub vectors: u32,
    /// The group of all lanes between the first and the last vector.
    pub group: u32,
    /// The groups of the lanes of the first vector.
    pub first: [u16; 4],
    /// The groups of the lanes of the last vector.
    pub last: [u16; 4],
}

/// A group as the lane of a vector names it.
pub(super) fn lane_group(group: u32) -> u16 {
    u16::try_from(group).expect("a layout on a GPU has fewer groups than 2¹⁶")
}

impl Segment {
    pub(super) fn inner(&self) -> [u16; 4] {
        [lane_group(self.group); 4]
    }

    pub(super) fn is_aligned(&self) -> bool {
        self.first == self.inner() && self.last == self.inner()
    }

    /// One past the last vector.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.vector) + u64::from(self.vectors)
    }

    /// The groups of the lanes of vector `i` of the segment.
    #[must_use]
    pub(crate) fn lanes(&self, i: u32) -> [u16; 4] {
        if i + 1 == self.vectors {
            self.last
        } else if i == 0 {
            self.first
        } else {
            self.inner()
        }
    }
}

/// A segment in a table, if every vector belongs to one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AlignedSegment {
    /// First vector, counted from the chunk's start.
    pub vector: u32,
    /// First vector of the state.
    pub state: u32,
    /// The number of vectors.
    pub vectors: u32,
    /// The group of all vectors.
    pub group: u32,
}

/// The header before the segments in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    /// Segments in the table.
    pub segments: u32,
    /// A segment takes `1 << shift` workgroups.
    pub shift: u32,
    /// Workgroups in a row of the dispatch.
    pub stride: u32,
    /// Position of vector 0 in the bound parameters, in vectors or elements.
    pub p: u32,
    /// Position of vector 0 in the bound gradients, in vectors or elements.
    pub g: u32,
    /// Last element of the bound parameters.
    pub p_last: u32,
    /// Last element of the bound gradients.
    pub g_last: u32,
    /// Position of the first partial sum.
    pub partials: u32,
    /// Position of the first scale of state in blocks, in words.
    pub scales: u32,
}

/// Bytes of the header in the shader's table, rounded up to the alignment of the segments after it.
pub(crate) const HEADER_BYTES: usize = size_of::<Header>().next_multiple_of(16);

/// The address space of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    /// A uniform buffer: fastest, and limited in size.
    Uniform,
    /// A read-only storage buffer.
    Storage,
}

/// Bytes of a segment in a table, with its tensor's entry.
#[must_use]
pub(crate) fn segment_bytes(aligned: bool, by_tensor: bool) -> usize {
    let segment = if aligned { size_of::<AlignedSegment>() } else { size_of::<SharedSegment>() };
    segment + if by_tensor { TENSOR_BYTES } else { 0 }
}

/// Bytes of the entry that names a segment's tensor.
pub(crate) const TENSOR_BYTES: usize = 16;

/// Segments that fit a uniform table.
#[must_use]
pub(crate) fn uniform_segments(uniform_bytes: u32, aligned: bool, by_tensor: bool) -> u32 {
    to_u32((uniform_bytes as usize).saturating_sub(HEADER_BYTES) / segment_bytes(aligned, by_tensor))
}

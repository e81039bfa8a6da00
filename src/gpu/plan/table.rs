//! Tables of segments, as the shaders read them.

use bytemuck::{Pod, Zeroable};

/// The lane of a vector that belongs to no tensor.
pub const NONE: u16 = u16::MAX;

/// A run of vectors: those between the first and the last belong to one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First vector, counted from the chunk's start.
    pub vector: u32,
    /// First vector of the state.
    pub state: u32,
    /// How many vectors.
    pub vectors: u32,
    /// The group of all lanes between the first and the last vector.
    pub group: u32,
    /// The group of each lane of the first vector, [`NONE`] where it is not a tensor's.
    pub first: [u16; 4],
    /// The same of the last vector; of a lone vector, both.
    pub last: [u16; 4],
    /// The tensor of the first lane that is one's: of all, where segments are
    /// [`by_tensor`](Constraints::by_tensor).
    pub tensor: usize,
}

/// A segment in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SharedSegment {
    /// First vector, counted from the chunk's start.
    pub vector: u32,
    /// First vector of the state.
    pub state: u32,
    /// How many vectors.
    pub vectors: u32,
    /// The group of all lanes between the first and the last vector.
    pub group: u32,
    /// The groups of the lanes of the first vector.
    pub first: [u16; 4],
    /// The same of the last vector.
    pub last: [u16; 4],
}

impl Segment {
    pub(super) fn inner(&self) -> [u16; 4] {
        [self.group as u16; 4]
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
    pub fn lanes(&self, i: u32) -> [u16; 4] {
        if i + 1 == self.vectors {
            self.last
        } else if i == 0 {
            self.first
        } else {
            self.inner()
        }
    }
}

/// The same where every vector is of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AlignedSegment {
    /// First vector, counted from the chunk's start.
    pub vector: u32,
    /// First vector of the state.
    pub state: u32,
    /// How many vectors.
    pub vectors: u32,
    /// The group.
    pub group: u32,
}

/// What stands before the segments in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// Segments in the table.
    pub segments: u32,
    /// A segment takes `1 << shift` workgroups.
    pub shift: u32,
    /// Workgroups in a row of the dispatch.
    pub stride: u32,
    /// Where vector 0 lies in the bound parameters, in vectors or elements.
    pub p: u32,
    /// Where vector 0 lies in the bound gradients, in vectors or elements.
    pub g: u32,
    /// Last element of the bound parameters.
    pub p_last: u32,
    /// Last element of the bound gradients.
    pub g_last: u32,
    /// Where the partial sums begin.
    pub partials: u32,
    /// Where the scales of state in blocks begin, in words.
    pub scales: u32,
}

/// Bytes that the header takes in the shader's table: rounded up to the alignment of the segments behind it.
pub const HEADER_BYTES: usize = size_of::<Header>().next_multiple_of(16);

/// Where a table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A uniform buffer: quickest, and limited in size.
    Uniform,
    /// A read-only storage buffer.
    Storage,
}

/// Bytes of a segment in a table, and of what says which tensor's it is.
#[must_use]
pub fn segment_bytes(aligned: bool, by_tensor: bool) -> usize {
    let segment = if aligned { size_of::<AlignedSegment>() } else { size_of::<SharedSegment>() };
    segment + if by_tensor { TENSOR_BYTES } else { 0 }
}

/// Bytes that say which tensor's a segment is.
pub const TENSOR_BYTES: usize = 16;

/// Segments that fit a uniform table.
#[must_use]
pub fn uniform_segments(uniform_bytes: u32, aligned: bool, by_tensor: bool) -> u32 {
    (uniform_bytes as usize).saturating_sub(HEADER_BYTES) as u32 / segment_bytes(aligned, by_tensor) as u32
}

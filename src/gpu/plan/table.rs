//! Tables of tiles, as the shaders read them.

use bytemuck::{Pod, Zeroable};

/// The lane of a quad that belongs to no tensor.
pub const NONE: u16 = u16::MAX;

/// A run of quads: those between the first and the last belong to one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First quad, counted from the chunk's start.
    pub quad: u32,
    /// First quad of the state.
    pub state: u32,
    /// How many quads.
    pub quads: u32,
    /// The group of all lanes between the first and the last quad.
    pub group: u32,
    /// The group of each lane of the first quad, [`NONE`] where it is not a tensor's.
    pub first: [u16; 4],
    /// The same of the last quad; of a lone quad, both.
    pub last: [u16; 4],
    /// The tensor of the first lane that is one's: of all, where tiles are [`by_tensor`](Tiling::by_tensor).
    pub tensor: usize,
}

/// A tile in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SharedTile {
    /// First quad, counted from the chunk's start.
    pub quad: u32,
    /// First quad of the state.
    pub state: u32,
    /// How many quads.
    pub quads: u32,
    /// The group of all lanes between the first and the last quad.
    pub group: u32,
    /// The groups of the lanes of the first quad.
    pub first: [u16; 4],
    /// The same of the last quad.
    pub last: [u16; 4],
}

impl Tile {
    pub(super) fn inner(&self) -> [u16; 4] {
        [self.group as u16; 4]
    }

    pub(super) fn is_whole(&self) -> bool {
        self.first == self.inner() && self.last == self.inner()
    }

    /// One past the last quad.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.quad) + u64::from(self.quads)
    }

    /// The groups of the lanes of quad `i` of the tile.
    #[must_use]
    pub fn lanes(&self, i: u32) -> [u16; 4] {
        if i + 1 == self.quads {
            self.last
        } else if i == 0 {
            self.first
        } else {
            self.inner()
        }
    }
}

/// The same where every quad is of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WholeTile {
    /// First quad, counted from the chunk's start.
    pub quad: u32,
    /// First quad of the state.
    pub state: u32,
    /// How many quads.
    pub quads: u32,
    /// The group.
    pub group: u32,
}

/// What stands before the tiles in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// Tiles in the table.
    pub records: u32,
    /// A tile takes `1 << shift` workgroups.
    pub shift: u32,
    /// Workgroups in a row of the dispatch.
    pub stride: u32,
    /// Where quad 0 lies in the bound parameters, in quads or elements.
    pub p: u32,
    /// Where quad 0 lies in the bound gradients, in quads or elements.
    pub g: u32,
    /// Last element of the bound parameters.
    pub p_last: u32,
    /// Last element of the bound gradients.
    pub g_last: u32,
    /// Where the partial results begin.
    pub partials: u32,
    /// Where the scales of state in blocks begin, in words.
    pub scales: u32,
}

/// Bytes that the header takes in the shader's table: rounded up to the alignment of the tiles behind it.
pub const HEADER_BYTES: usize = size_of::<Header>().next_multiple_of(16);

/// Where a table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A uniform buffer: quickest, and limited in size.
    Uniform,
    /// A read-only storage buffer.
    Storage,
}

/// Bytes of a tile in a table, and of what says which tensor's it is.
#[must_use]
pub fn tile_bytes(whole: bool, by_tensor: bool) -> usize {
    let tile = if whole { size_of::<WholeTile>() } else { size_of::<SharedTile>() };
    tile + if by_tensor { TENSOR_BYTES } else { 0 }
}

/// Bytes that say which tensor's a tile is.
pub const TENSOR_BYTES: usize = 16;

/// Tiles that fit a uniform table.
#[must_use]
pub fn uniform_tiles(uniform_bytes: u32, whole: bool, by_tensor: bool) -> u32 {
    (uniform_bytes as usize).saturating_sub(HEADER_BYTES) as u32 / tile_bytes(whole, by_tensor) as u32
}

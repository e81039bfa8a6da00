//! How a layout becomes dispatches: chunks that fit a binding, and tables of tiles. Pure arithmetic, no GPU.

use crate::q8;
use bytemuck::{Pod, Zeroable};

/// Threads in a workgroup; each updates one quad.
pub const WORKGROUP_SIZE: u32 = 256;
/// Elements in a quad, one `vec4`.
pub const QUAD: u64 = 4;
/// Quads of a block of state that has a scale of its own: as many threads side by side.
pub const BLOCK_QUADS: u32 = q8::BLOCK as u32 / QUAD as u32;
/// Chunks start at multiples of this many elements: 256 bytes of f32, the largest offset alignment a device may ask for.
pub const CHUNK_ALIGNMENT: u64 = 64;
/// The lane of a quad that belongs to no tensor.
pub const NONE: u16 = u16::MAX;

/// Tiles that a table in storage may have beyond those that the layout forces on it: at most 512 KiB of them.
const STORAGE_TILES: u64 = 16_384;
/// What a table in storage costs in time, beside one in a uniform buffer: measured on lavapipe, which reads storage once a lane.
const STORAGE_COST: f64 = 1.1;

/// Rounds of a workgroup of a reduction over its tile: the second where the first makes too many tiles. More would make its sums less accurate.
const REDUCTION_ROUNDS: [u32; 2] = [16, 64];

/// What the planner needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Elements that one binding holds; a multiple of [`CHUNK_ALIGNMENT`].
    pub chunk_elements: u64,
    /// Workgroups in one dimension of a dispatch.
    pub workgroups: u32,
    /// Bytes of a uniform binding.
    pub uniform_bytes: u32,
    /// Storage bindings of a kernel.
    pub storage_bindings: u32,
}

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

/// Sorts `tensors` (disjoint, in order) into as few families as there can be, of each of which no two tensors share a quad.
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

/// Cuts `tensors` (disjoint, in order) into chunks of at most `chunk_elements`. Their state is in blocks of `block` quads, counted from each tensor's first: of more
/// than one only where no tensors share a quad.
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
    fn inner(&self) -> [u16; 4] {
        [self.group as u16; 4]
    }

    fn is_whole(&self) -> bool {
        self.first == self.inner() && self.last == self.inner()
    }

    /// One past the last quad.
    fn end(&self) -> u64 {
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

/// What tiles have to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// The kernel loads element by element, for which there are no tables of whole tiles.
    pub by_element: bool,
    /// Quads of a block of state, of which a tile has whole ones but for a tensor's last.
    pub block: u32,
    /// Every tile is of one tensor, and says of which. Only where no tensors share a quad.
    pub by_tensor: bool,
}

impl Tiling {
    /// For kernels that may go on from tensor to tensor.
    #[must_use]
    pub fn plain(by_element: bool) -> Self {
        Self { by_element, block: 1, by_tensor: false }
    }
}

/// What becomes of a quad that several groups have lanes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seams {
    /// It is in one tile, with lanes of all: every quad is visited once, as whoever writes it has to.
    Shared,
    /// It is in a tile of each, with that group's lanes.
    Apart,
}

/// The dispatch of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The tiles, in order.
    pub tiles: Vec<Tile>,
    /// A tile takes `1 << shift` workgroups, unless it is the only one of a step: that takes as many as it needs.
    pub shift: u32,
    /// Whether the table is of [`WholeTile`]s: every quad whole, and of one group.
    pub whole: bool,
    /// Where the table lies.
    pub space: Space,
    /// Workgroups in x and y.
    pub workgroups: [u32; 2],
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

/// Plans the dispatch that updates `pieces`; quads are counted from element `base`, a multiple of [`QUAD`].
#[must_use]
pub fn dispatch(pieces: &[Piece], base: u64, tiling: Tiling, limits: &Limits) -> Dispatch {
    let runs = runs(pieces, base, Seams::Shared, tiling);
    let whole = whole(pieces, &runs, tiling);
    let per_tile = |shift: u32| u64::from(WORKGROUP_SIZE) << shift;
    if let [run] = runs[..] {
        // One tile of any length: its workgroups need no table to find it.
        let total = u64::from(run.quads).div_ceil(WORKGROUP_SIZE.into());
        let (tiles, space) = (runs, Space::Uniform);
        return Dispatch { tiles, shift: 31, whole, space, workgroups: rows(total, limits) };
    }
    let uniform = u64::from(uniform_tiles(limits.uniform_bytes, whole, tiling.by_tensor));
    // Longer tiles make a shorter table, and leave more workgroups idle at the ends of tensors.
    let (shift, space, _) = (0..=20)
        .filter_map(|shift| {
            let count = count(&runs, per_tile(shift));
            let workgroups = (count << shift) as f64;
            if count <= uniform {
                Some((shift, Space::Uniform, workgroups))
            } else if count <= STORAGE_TILES.max(2 * runs.len() as u64) {
                Some((shift, Space::Storage, workgroups * STORAGE_COST))
            } else {
                None
            }
        })
        .min_by(|a, b| a.2.total_cmp(&b.2))
        .unwrap_or((20, Space::Storage, 0.0));
    let tiles = cut(&runs, per_tile(shift));
    let workgroups = rows((tiles.len() as u64) << shift, limits);
    Dispatch { tiles, shift, whole, space, workgroups }
}

/// Plans a reduction over `pieces`, a workgroup a tile, whose threads go round it as often as it takes. Where seams are kept apart every tile is of one group alone.
#[must_use]
pub fn reduction(pieces: &[Piece], base: u64, tiling: Tiling, seams: Seams, limits: &Limits) -> Dispatch {
    let runs = runs(pieces, base, seams, tiling);
    let whole = whole(pieces, &runs, tiling);
    let uniform = u64::from(uniform_tiles(limits.uniform_bytes, whole, tiling.by_tensor));
    let per_tile = |rounds: u32| u64::from(WORKGROUP_SIZE) * u64::from(rounds);
    let fit = REDUCTION_ROUNDS.into_iter().find(|&rounds| count(&runs, per_tile(rounds)) <= uniform);
    let (rounds, space) =
        fit.map_or((REDUCTION_ROUNDS[1], Space::Storage), |rounds| (rounds, Space::Uniform));
    let tiles = cut(&runs, per_tile(rounds));
    let workgroups = rows(tiles.len() as u64, limits);
    Dispatch { tiles, shift: 0, whole, space, workgroups }
}

/// Whether all quads are whole, and where tensors have numbers of their own those of their elements too.
fn whole(pieces: &[Piece], runs: &[Tile], tiling: Tiling) -> bool {
    let aligned = !tiling.by_tensor || pieces.iter().all(|piece| piece.lane == 0);
    !tiling.by_element && aligned && runs.iter().all(Tile::is_whole)
}

/// Tiles of at most `quads` that `runs` make.
fn count(runs: &[Tile], quads: u64) -> u64 {
    runs.iter().map(|run| u64::from(run.quads).div_ceil(quads)).sum()
}

/// `runs` in tiles of at most `per_tile` quads.
fn cut(runs: &[Tile], per_tile: u64) -> Vec<Tile> {
    let mut tiles = Vec::with_capacity(count(runs, per_tile) as usize);
    for run in runs {
        let mut done = 0;
        while done < run.quads {
            let quads = u64::from(run.quads - done).min(per_tile) as u32;
            let last = if done + quads == run.quads { run.last } else { run.inner() };
            let first = match (done, quads) {
                (_, 1) => last,
                (0, _) => run.first,
                _ => run.inner(),
            };
            let (quad, state) = (run.quad + done, run.state + done);
            tiles.push(Tile { quad, state, quads, first, last, ..*run });
            done += quads;
        }
    }
    tiles
}

/// A 2-D dispatch of at least `total` workgroups, in as few rows as there can be.
fn rows(total: u64, limits: &Limits) -> [u32; 2] {
    let rows = total.div_ceil(limits.workgroups.into()).max(1);
    [total.div_ceil(rows) as u32, rows as u32]
}

/// The quads of `pieces` in order, as maximal runs of one group; a quad that several pieces share ends the run of the first of them, or is in the runs of all. A run
/// goes on behind whole blocks only.
fn runs(pieces: &[Piece], base: u64, seams: Seams, tiling: Tiling) -> Vec<Tile> {
    let mut runs: Vec<Tile> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (start, end) = (piece.start - base, piece.end - base);
        let group = piece.group as u16;
        // The lanes of quad `q` that are this piece's.
        let lanes = |q: u64| {
            let mut lanes = [NONE; 4];
            let from = start.max(q * QUAD) - q * QUAD;
            let to = end.min((q + 1) * QUAD) - q * QUAD;
            lanes[from as usize..to as usize].fill(group);
            lanes
        };
        let (mut first, last) = (start / QUAD, (end - 1) / QUAD);
        let before = runs.last_mut().filter(|run| seams == Seams::Shared && run.end() > first);
        if let Some(run) = before {
            for (lane, own) in run.last.iter_mut().zip(lanes(first)) {
                *lane = (*lane).min(own);
            }
            if run.quads == 1 {
                run.first = run.last;
            }
            first += 1;
        }
        if first > last {
            continue;
        }
        let quads = (last - first + 1) as u32;
        let tile = Tile {
            quad: first as u32,
            state: piece.state + (first - start / QUAD) as u32,
            quads,
            group: piece.group,
            first: lanes(first),
            last: lanes(last),
            tensor: piece.tensor,
        };
        match runs.last_mut() {
            // Without a seam, one run.
            Some(run)
                if run.end() == first
                    && run.quads % tiling.block == 0
                    && (run.tensor == tile.tensor || !tiling.by_tensor)
                    && run.group == tile.group
                    && run.last == run.inner()
                    && tile.lanes(0) == run.inner() =>
            {
                run.quads += quads;
                run.last = tile.last;
            }
            _ => runs.push(tile),
        }
    }
    runs
}

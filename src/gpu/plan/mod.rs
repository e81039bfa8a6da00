//! How a layout becomes dispatches: chunks that fit a binding, and tables of tiles. Pure arithmetic, no GPU.

mod chunks;
mod table;
#[cfg(test)]
mod tests;

pub use chunks::*;
pub use table::*;

use crate::formats::q8;
use crate::layout::VECTOR as QUAD;

/// Threads in a workgroup; each updates one quad.
pub const WORKGROUP_SIZE: u32 = 256;
/// Quads of a block of state that has a scale of its own: as many threads side by side.
pub const BLOCK_QUADS: u32 = q8::BLOCK as u32 / QUAD as u32;
/// Tiles that a table in storage may have beyond those that the layout forces on it: at most 512 KiB of them.
const STORAGE_TILES: u64 = 16_384;
/// What a table in storage costs in time, beside one in a uniform buffer: measured on lavapipe, which reads
/// storage once a lane.
const STORAGE_COST: f64 = 1.1;

/// Rounds of a workgroup of a reduction over its tile: the second where the first makes too many tiles. More
/// would make its sums less accurate.
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
    /// A tile takes `1 << shift` workgroups, unless it is the only one of a step: that takes as many as it
    /// needs.
    pub shift: u32,
    /// Whether the table is of [`WholeTile`]s: every quad whole, and of one group.
    pub whole: bool,
    /// Where the table lies.
    pub space: Space,
    /// Workgroups in x and y.
    pub workgroups: [u32; 2],
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
        .expect("at the largest shift a run of a chunk is one tile, and storage has room for two");
    let tiles = cut(&runs, per_tile(shift));
    let workgroups = rows((tiles.len() as u64) << shift, limits);
    Dispatch { tiles, shift, whole, space, workgroups }
}

/// Plans a reduction over `pieces`, a workgroup a tile, whose threads go round it as often as it takes. Where
/// seams are kept apart every tile is of one group alone.
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

/// The quads of `pieces` in order, as maximal runs of one group; a quad that several pieces share ends the
/// run of the first of them, or is in the runs of all. A run goes on behind whole blocks only.
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

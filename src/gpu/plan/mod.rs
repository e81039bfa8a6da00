//! How a layout becomes dispatches: chunks that fit a binding, and tables of segments. Pure arithmetic, no
//! GPU.

mod chunks;
mod table;
#[cfg(test)]
mod tests;

pub use chunks::*;
pub use table::*;

use crate::formats::q8;
use crate::layout::VECTOR;

/// Threads in a workgroup; each updates one vector.
pub const WORKGROUP_SIZE: u32 = 256;
/// Vectors of a block of state that has a scale of its own: as many threads side by side.
pub const BLOCK_VECTORS: u32 = q8::BLOCK as u32 / VECTOR as u32;
/// Segments that a table in storage may have beyond those that the layout forces on it: at most 512 KiB of
/// them.
const STORAGE_SEGMENTS: u64 = 16_384;
/// What a table in storage costs in time, beside one in a uniform buffer: measured on lavapipe, which reads
/// storage once a lane.
const STORAGE_COST: f64 = 1.1;

/// Rounds of a workgroup of a reduction over its segment: the second where the first makes too many segments.
/// More would make its sums less accurate.
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
    /// Where the groups' scalars lie.
    pub scalars_space: Space,
    /// Bytes of a storage binding.
    pub binding_bytes: u64,
}

/// What segments have to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// The kernel loads element by element, for which there are no tables of whole segments.
    pub by_element: bool,
    /// Vectors of a block of state, of which a segment has whole ones but for a tensor's last.
    pub block: u32,
    /// Every segment is of one tensor, and says of which. Only where no tensors share a vector.
    pub by_tensor: bool,
}

impl Constraints {
    /// For kernels that may go on from tensor to tensor.
    #[must_use]
    pub fn plain(by_element: bool) -> Self {
        Self { by_element, block: 1, by_tensor: false }
    }
}

/// What becomes of a vector that several groups have lanes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seams {
    /// It is in one segment, with lanes of all: every vector is visited once, as whoever writes it has to.
    Shared,
    /// It is in a segment of each, with that group's lanes.
    Apart,
}

/// The dispatch of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// A segment takes `1 << shift` workgroups, unless it is the only one of a step: that takes as many as it
    /// needs.
    pub shift: u32,
    /// Whether the table is of [`AlignedSegment`]s: every vector whole, and of one group.
    pub aligned: bool,
    /// Where the table lies.
    pub space: Space,
    /// Workgroups in x and y.
    pub workgroups: [u32; 2],
}

/// Plans the dispatch that updates `tensor_ranges`; vectors are counted from element `base`, a multiple of
/// [`VECTOR`].
#[must_use]
pub fn dispatch(
    tensor_ranges: &[TensorRange],
    base: u64,
    constraints: Constraints,
    limits: &Limits,
) -> Dispatch {
    let runs = runs(tensor_ranges, base, Seams::Shared, constraints);
    let aligned = aligned(tensor_ranges, &runs, constraints);
    let per_segment = |shift: u32| u64::from(WORKGROUP_SIZE) << shift;
    if let [run] = runs[..] {
        // One segment of any length: its workgroups need no table to find it.
        let total = u64::from(run.vectors).div_ceil(WORKGROUP_SIZE.into());
        let (segments, space) = (runs, Space::Uniform);
        return Dispatch { segments, shift: 31, aligned, space, workgroups: rows(total, limits) };
    }
    let uniform = u64::from(uniform_segments(limits.uniform_bytes, aligned, constraints.by_tensor));
    // Longer segments make a shorter table, and leave more workgroups idle at the ends of tensors.
    let (shift, space, _) = (0..=20)
        .filter_map(|shift| {
            let count = count(&runs, per_segment(shift));
            let workgroups = (count << shift) as f64;
            if count <= uniform {
                Some((shift, Space::Uniform, workgroups))
            } else if count <= STORAGE_SEGMENTS.max(2 * runs.len() as u64) {
                Some((shift, Space::Storage, workgroups * STORAGE_COST))
            } else {
                None
            }
        })
        .min_by(|a, b| a.2.total_cmp(&b.2))
        .expect("at the largest shift a run of a chunk is one segment, and storage has room for two");
    let segments = cut(&runs, per_segment(shift));
    let workgroups = rows((segments.len() as u64) << shift, limits);
    Dispatch { segments, shift, aligned, space, workgroups }
}

/// Plans a reduction over `tensor_ranges`, a workgroup a segment, whose threads go round it as often as it
/// takes. Where seams are kept apart every segment is of one group alone.
#[must_use]
pub fn reduction(
    tensor_ranges: &[TensorRange],
    base: u64,
    constraints: Constraints,
    seams: Seams,
    limits: &Limits,
) -> Dispatch {
    let runs = runs(tensor_ranges, base, seams, constraints);
    let aligned = aligned(tensor_ranges, &runs, constraints);
    let uniform = u64::from(uniform_segments(limits.uniform_bytes, aligned, constraints.by_tensor));
    let per_segment = |rounds: u32| u64::from(WORKGROUP_SIZE) * u64::from(rounds);
    let fit = REDUCTION_ROUNDS.into_iter().find(|&rounds| count(&runs, per_segment(rounds)) <= uniform);
    let (rounds, space) =
        fit.map_or((REDUCTION_ROUNDS[1], Space::Storage), |rounds| (rounds, Space::Uniform));
    let segments = cut(&runs, per_segment(rounds));
    let workgroups = rows(segments.len() as u64, limits);
    Dispatch { segments, shift: 0, aligned, space, workgroups }
}

/// Whether all vectors are whole, and where tensors have numbers of their own those of their elements too.
fn aligned(tensor_ranges: &[TensorRange], runs: &[Segment], constraints: Constraints) -> bool {
    let placed = !constraints.by_tensor || tensor_ranges.iter().all(|tensor_range| tensor_range.lane == 0);
    !constraints.by_element && placed && runs.iter().all(Segment::is_aligned)
}

/// Segments of at most `vectors` that `runs` make.
fn count(runs: &[Segment], vectors: u64) -> u64 {
    runs.iter().map(|run| u64::from(run.vectors).div_ceil(vectors)).sum()
}

/// `runs` in segments of at most `per_segment` vectors.
fn cut(runs: &[Segment], per_segment: u64) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(count(runs, per_segment) as usize);
    for run in runs {
        let mut done = 0;
        while done < run.vectors {
            let vectors = u64::from(run.vectors - done).min(per_segment) as u32;
            let last = if done + vectors == run.vectors { run.last } else { run.inner() };
            let first = match (done, vectors) {
                (_, 1) => last,
                (0, _) => run.first,
                _ => run.inner(),
            };
            let (vector, state) = (run.vector + done, run.state + done);
            segments.push(Segment { vector, state, vectors, first, last, ..*run });
            done += vectors;
        }
    }
    segments
}

/// A 2-D dispatch of at least `total` workgroups, in as few rows as there can be.
fn rows(total: u64, limits: &Limits) -> [u32; 2] {
    let rows = total.div_ceil(limits.workgroups.into()).max(1);
    [total.div_ceil(rows) as u32, rows as u32]
}

/// The vectors of `tensor_ranges` in order, as maximal runs of one group; a vector that several tensor ranges
/// share ends the run of the first of them, or is in the runs of all. A run goes on behind whole blocks only.
fn runs(tensor_ranges: &[TensorRange], base: u64, seams: Seams, constraints: Constraints) -> Vec<Segment> {
    let mut runs: Vec<Segment> = Vec::with_capacity(tensor_ranges.len());
    for tensor_range in tensor_ranges {
        let (start, end) = (tensor_range.start - base, tensor_range.end - base);
        let group = tensor_range.group as u16;
        // The lanes of vector `q` that are this tensor range's.
        let lanes = |q: u64| {
            let mut lanes = [NONE; 4];
            let from = start.max(q * VECTOR) - q * VECTOR;
            let to = end.min((q + 1) * VECTOR) - q * VECTOR;
            lanes[from as usize..to as usize].fill(group);
            lanes
        };
        let (mut first, last) = (start / VECTOR, (end - 1) / VECTOR);
        let before = runs.last_mut().filter(|run| seams == Seams::Shared && run.end() > first);
        if let Some(run) = before {
            for (lane, own) in run.last.iter_mut().zip(lanes(first)) {
                *lane = (*lane).min(own);
            }
            if run.vectors == 1 {
                run.first = run.last;
            }
            first += 1;
        }
        if first > last {
            continue;
        }
        let vectors = (last - first + 1) as u32;
        let segment = Segment {
            vector: first as u32,
            state: tensor_range.state + (first - start / VECTOR) as u32,
            vectors,
            group: tensor_range.group,
            first: lanes(first),
            last: lanes(last),
            tensor: tensor_range.tensor,
        };
        match runs.last_mut() {
            // Without a seam, one run.
            Some(run)
                if run.end() == first
                    && run.vectors % constraints.block == 0
                    && (run.tensor == segment.tensor || !constraints.by_tensor)
                    && run.group == segment.group
                    && run.last == run.inner()
                    && segment.lanes(0) == run.inner() =>
            {
                run.vectors += vectors;
                run.last = segment.last;
            }
            _ => runs.push(segment),
        }
    }
    runs
}

//! The plan from layout to dispatches: chunks that fit a binding, and tables of segments. Pure arithmetic, no
//! GPU.

mod chunks;
mod table;
#[cfg(test)]
mod tests;

pub(super) use chunks::*;
use table::lane_group;
pub(super) use table::*;

use crate::formats::q8;
use crate::layout::VECTOR;
use crate::narrow::{to_u32, to_usize};

/// Threads in a workgroup; each updates one vector.
pub(super) const WORKGROUP_SIZE: u32 = 256;
/// Vectors per block of state with one scale, and neighbouring threads per block.
#[allow(clippy::cast_possible_truncation, reason = "constants of two digits")]
pub(super) const BLOCK_VECTORS: u32 = q8::BLOCK as u32 / VECTOR as u32;
/// Largest number of segments of a table in storage, unless the layout needs more: 512 KiB.
const STORAGE_SEGMENTS: u64 = 16_384;
/// Time with a table in storage relative to a table in a uniform buffer, measured on lavapipe, which reads
/// storage once per lane.
const STORAGE_COST: f64 = 1.1;

/// Rounds of a reduction's workgroup over its segment. The second number applies if the first makes too many
/// segments. More rounds would make sums less accurate.
const REDUCTION_ROUNDS: [u32; 2] = [16, 64];

/// The planner's limits of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Elements that one binding holds; a multiple of [`CHUNK_ALIGNMENT`].
    pub chunk_elements: u64,
    /// Workgroups in one dimension of a dispatch.
    pub workgroups: u32,
    /// Bytes of a uniform binding.
    pub uniform_bytes: u32,
    /// The address space of the groups' scalars.
    pub scalars_space: Space,
    /// Bytes of a storage binding.
    pub binding_bytes: u64,
}

/// Constraints on segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Constraints {
    /// Whether the kernel loads element by element; it has no table of aligned segments.
    pub by_element: bool,
    /// Vectors per block of state. A segment has whole blocks, except a tensor's last block.
    pub block: u32,
    /// Whether every segment belongs to one tensor and names it. Requires tensors without shared vectors.
    pub by_tensor: bool,
}

impl Constraints {
    /// Constraints for kernels with segments across tensors.
    #[must_use]
    pub(super) fn plain(by_element: bool) -> Self {
        Self { by_element, block: 1, by_tensor: false }
    }
}

/// The treatment of a vector with lanes of several groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seams {
    /// The vector is in one segment with the lanes of all groups. Every vector is visited once, as a kernel
    /// that writes requires.
    Shared,
    /// The vector is in one segment per group, each with that group's lanes.
    Apart,
}

/// The dispatch of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dispatch {
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// A segment takes `1 << shift` workgroups. The only segment of a step takes all workgroups.
    pub shift: u32,
    /// Whether the table has [`AlignedSegment`]s: every vector belongs wholly to one group.
    pub aligned: bool,
    /// The address space of the table.
    pub space: Space,
    /// Workgroups in x and y.
    pub workgroups: [u32; 2],
}

/// Plans the dispatch that updates `tensor_ranges`; vectors are counted from element `base`, a multiple of
/// [`VECTOR`].
#[must_use]
pub(super) fn dispatch(
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

/// Plans a reduction over `tensor_ranges`: one workgroup per segment, with threads that loop over it. With
/// [`Seams::Apart`] every segment has lanes of only one group.
#[must_use]
pub(super) fn reduction(
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

/// Whether all vectors belong wholly to one group. With `by_tensor` every tensor must also start at a vector.
fn aligned(tensor_ranges: &[TensorRange], runs: &[Segment], constraints: Constraints) -> bool {
    let placed = !constraints.by_tensor || tensor_ranges.iter().all(|tensor_range| tensor_range.lane == 0);
    !constraints.by_element && placed && runs.iter().all(Segment::is_aligned)
}

/// The number of segments of at most `vectors` in `runs`.
fn count(runs: &[Segment], vectors: u64) -> u64 {
    runs.iter().map(|run| u64::from(run.vectors).div_ceil(vectors)).sum()
}

/// Cuts `runs` into segments of at most `per_segment` vectors.
fn cut(runs: &[Segment], per_segment: u64) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(to_usize(count(runs, per_segment)));
    for run in runs {
        let mut done = 0;
        while done < run.vectors {
            let vectors = to_u32(u64::from(run.vectors - done).min(per_segment));
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

/// A 2-D dispatch of at least `total` workgroups, with the smallest number of rows.
fn rows(total: u64, limits: &Limits) -> [u32; 2] {
    let rows = total.div_ceil(limits.workgroups.into()).max(1);
    [total.div_ceil(rows), rows].map(to_u32)
}

/// The vectors of `tensor_ranges` in order, as maximal runs of one group. A shared vector ends the run of the
/// first of its tensor ranges, or is in the runs of all. A run continues only after whole blocks.
fn runs(tensor_ranges: &[TensorRange], base: u64, seams: Seams, constraints: Constraints) -> Vec<Segment> {
    let mut runs: Vec<Segment> = Vec::with_capacity(tensor_ranges.len());
    for tensor_range in tensor_ranges {
        let (start, end) = (tensor_range.start - base, tensor_range.end - base);
        let group = lane_group(tensor_range.group);
        // The lanes of vector `q` that belong to this tensor range.
        let lanes = |q: u64| {
            let mut lanes = [NONE; 4];
            let from = start.max(q * VECTOR) - q * VECTOR;
            let to = end.min((q + 1) * VECTOR) - q * VECTOR;
            lanes[to_usize(from)..to_usize(to)].fill(group);
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
        let vectors = to_u32(last - first + 1);
        let segment = Segment {
            vector: to_u32(first),
            state: tensor_range.state + to_u32(first - start / VECTOR),
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

//! The passes over memory: the gradient scan, the norms of a layer-wise rule, the update, and the rest of a
//! step that is skipped.
//!
//! If everything is f32, whole chunks are updated in place. A run is as long as the tensor range, or a strip
//! if work follows the update. Values in other formats, and a tensor's last elements, go tile by tile through
//! copies in the nearest cache. The passes are compiled once for all rules; each rule brings its loops.

use super::cells::{Cells, TILE};
use super::norms::{Squares, Sums, add_squares};
use super::tasks::{Plan, TASK, Task, TensorRange};
use super::tensors::{Memory, Pair};
use super::tile::{Place, Values, next, of_tensor_range};
use crate::formats::Format;
use crate::options::Storage;
use crate::rules::loops::{CHUNK, Constants, Factor, Loops, MAX_SLOTS};
use core::ops::Range;
use multiversion::multiversion;

/// Bytes of a cache line.
const CACHE_LINE: usize = 64;

/// Everything that does not change in a pass.
pub(super) struct Pass<'a> {
    pub(super) plan: &'a Plan,
    pub(super) loops: &'a Loops,
    /// Whether the best instructions of the processor are chosen.
    pub(super) dispatched: bool,
    /// State slots of the rule.
    pub(super) slots: usize,
    /// Formats of the tensors of each kind.
    pub(super) storage: [Storage; 2],
    /// The rule's scalars: one set per group, or one per tensor for a layer-wise rule.
    pub(super) scalars: &'a [f32],
    /// Factor of the gradients for each set of scalars.
    pub(super) factors: &'a [Factor],
    /// Bound of the gradients' elements.
    pub(super) bound: f32,
    pub(super) zero: bool,
    /// Weight of the parameters in their average for each set of scalars, if there is one.
    pub(super) weights: Option<&'a [f32]>,
    pub(super) norms: bool,
    /// Whether everything is f32, for tensors of each kind.
    pub(super) in_place: [bool; 2],
    /// Key of the random numbers, if any are needed.
    pub(super) key: Option<[f32; 3]>,
}

impl Pass<'_> {
    /// The constants of a tensor's loops, and the power of two for its gradients before the loops.
    fn constants(&self, scalars: usize) -> (Constants<'_>, f32) {
        let len = self.scalars.len() / self.factors.len();
        let Factor { factor, power } = self.factors[scalars];
        (Constants { scalars: &self.scalars[scalars * len..][..len], factor, bound: self.bound }, power)
    }
}

/// The memory of one task, or of several tasks that follow each other.
pub(super) struct Part<'m, 'a> {
    pub(super) start: usize,
    /// Where the state of each kind starts.
    pub(super) kept: [usize; 2],
    /// The tensor range of the first of [`sums`](Self::sums).
    pub(super) tensor_range: usize,
    pub(super) memory: Memory<'m, 'a>,
    /// For each kind of tensors, each slot.
    pub(super) state: [[Cells<'m>; MAX_SLOTS]; 2],
    pub(super) master: Cells<'m>,
    pub(super) ema: Cells<'m>,
    pub(super) sums: &'m mut [Sums],
}

impl<'m, 'a> Part<'m, 'a> {
    /// The memory before `task`, and from it on.
    pub(super) fn split(self, plan: &Plan, task: &Task) -> (Self, Self) {
        let at = task.start - self.start;
        let mut behind: [[Cells<'m>; MAX_SLOTS]; 2] = Default::default();
        let mut state = self.state;
        for (kind, slots) in state.iter_mut().enumerate() {
            let at = task.kept[kind] - self.kept[kind];
            for (slot, behind) in slots.iter_mut().zip(&mut behind[kind]) {
                (*slot, *behind) = core::mem::take(slot).split_at(at);
            }
        }
        let (memory, memory_behind) = self.memory.split(plan, task);
        let (master, master_behind) = self.master.split_at(at);
        let (ema, ema_behind) = self.ema.split_at(at);
        let (sums, sums_behind) = self.sums.split_at_mut(task.tensor_ranges.start - self.tensor_range);
        let behind = Self {
            start: task.start,
            kept: task.kept,
            tensor_range: task.tensor_ranges.start,
            memory: memory_behind,
            state: behind,
            master: master_behind,
            ema: ema_behind,
            sums: sums_behind,
        };
        (Self { memory, state, master, ema, sums, ..self }, behind)
    }
}

/// The average of the weights.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn average(ema: &mut [f32], p: &[f32], weight: f32) {
    for (e, p) in ema.iter_mut().zip(p) {
        *e += weight * (p - *e);
    }
}

/// The gradient scan: squares of the gradients.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn scan(plan: &Plan, grads: Format, task: &Task, part: &mut Part<'_, '_>) {
    scan_plainly(plan, grads, task, part);
}

/// [`scan`] with the plain instructions of the target.
#[inline(always)]
pub(super) fn scan_plainly(plan: &Plan, grads: Format, task: &Task, part: &mut Part<'_, '_>) {
    let mut g = [0.0; TILE];
    for (tensor_range, sums) in plan.tensor_ranges[task.tensor_ranges.clone()].iter().zip(&mut *part.sums) {
        let mut squares = Squares::new();
        let (pair, mut place) = of_tensor_range(plan, tensor_range, &mut part.memory, part.start, part.kept);
        let own = place.own.start..place.own.start + (tensor_range.end - tensor_range.start);
        match &pair.g {
            Cells::Read4(x) => squares.add(&x[own]),
            Cells::Write4(x) => squares.add(&x[own]),
            other => {
                let mut left = own.len();
                while left > 0 {
                    other.load(&place.own, &mut g, grads);
                    squares.add(&g[..place.len()]);
                    left -= place.len();
                    next(&mut place, left);
                }
            }
        }
        *sums = [squares.sum(), 0.0];
    }
}

/// The first phase of a layer-wise rule: squares of parameters and update directions.
pub(super) fn layer_norms(pass: &Pass<'_>, task: &Task, part: &mut Part<'_, '_>) {
    let directions = pass.loops.directions[usize::from(pass.dispatched)];
    let mut values = Values::new();
    let mut u = [0.0; TILE];
    for (tensor_range, sums) in
        pass.plan.tensor_ranges[task.tensor_ranges.clone()].iter().zip(&mut *part.sums)
    {
        let (pair, mut place) =
            of_tensor_range(pass.plan, tensor_range, &mut part.memory, part.start, part.kept);
        let (constants, power) = pass.constants(tensor_range.scalars);
        let mut squares = [Squares::new(), Squares::new()];
        let mut left = tensor_range.end - tensor_range.start;
        while left > 0 {
            let (storage, state) = (&pass.storage[place.kind], &part.state[place.kind][..pass.slots]);
            values.load(storage, &place, &pair, state, &part.master, power);
            let state = values.state.each_ref().map(|tile| tile.as_slice());
            directions(constants, &values.p, &values.g, &state[..pass.slots], &mut u);
            add_squares(&mut squares[0], &values.p[..place.len()]);
            add_squares(&mut squares[1], &u[..place.len()]);
            left -= place.len();
            next(&mut place, left);
        }
        *sums = squares.each_mut().map(Squares::sum);
    }
}

/// The update, and the work that follows it.
pub(super) fn update(pass: &Pass<'_>, task: &Task, part: &mut Part<'_, '_>) {
    let update = pass.loops.update[usize::from(pass.dispatched)];
    let mut values = Values::new();
    let mut before = [0.0; TILE];
    let mut squares = [Squares::new(), Squares::new()];
    let reads = pass.norms || pass.weights.is_some();
    // The work that follows the update finds its elements in the nearest cache.
    let strip = if reads || pass.zero { TILE } else { usize::MAX };
    let tensor_ranges = &pass.plan.tensor_ranges[task.tensor_ranges.clone()];
    // Segments of one tensor are one run, unless each has sums of its own.
    let runs = tensor_ranges.chunk_by(|a, b| !pass.norms && a.span == b.span);
    for (run, sums) in runs.zip(&mut *part.sums) {
        let tensor_range = &TensorRange { end: run[run.len() - 1].end, ..run[0].clone() };
        let (mut pair, mut place) =
            of_tensor_range(pass.plan, tensor_range, &mut part.memory, part.start, part.kept);
        let (constants, power) = pass.constants(tensor_range.scalars);
        if pass.norms {
            squares = [Squares::new(), Squares::new()];
        }
        let mut left = tensor_range.end - tensor_range.start;
        // Sums have an order that does not depend on addresses. A short run gains less than a copy costs.
        let in_place = pass.in_place[place.kind] && power == 1.0;
        let aligns = in_place && !pass.norms && left >= TASK;
        let mut head = if aligns { head(&pair, &place) } else { 0 };
        while left > 0 {
            let (storage, state) = (&pass.storage[place.kind], &mut part.state[place.kind][..pass.slots]);
            let whole = in_place && head == 0 && left >= CHUNK;
            if head > 0 {
                place.resize(core::mem::take(&mut head));
            }
            if whole {
                place.resize(left.min(strip) / CHUNK * CHUNK);
            } else {
                values.load(storage, &place, &pair, state, &part.master, power);
            }
            let len = place.len();
            {
                // The copy, rounded up to whole chunks.
                let copied = len.next_multiple_of(CHUNK).min(TILE);
                let (mut p, mut g) = (&mut values.p[..copied], &values.g[..copied]);
                if whole {
                    (p, g) = (pair.p.numbers_mut(&place.own), pair.g.numbers(&place.own));
                }
                let mut tiles: [&mut [f32]; MAX_SLOTS] = Default::default();
                for ((to, tile), cells) in tiles.iter_mut().zip(&mut values.state).zip(&mut *state) {
                    if whole {
                        *to = cells.numbers_mut(&place.state);
                    } else if !matches!(cells, Cells::None) {
                        *to = &mut tile[..copied];
                    }
                }
                if pass.norms {
                    before[..len].copy_from_slice(&p[..len]);
                }
                update(constants, p, g, tiles);
            }
            if !whole {
                values.store(storage, &place, &mut pair, state, &mut part.master, pass.key, reads);
            }
            let p = if whole { pair.p.numbers(&place.own) } else { &values.p[..len] };
            if let (Some(weights), Cells::Write4(ema)) = (pass.weights, &mut part.ema) {
                average(&mut ema[place.beside.clone()], p, weights[tensor_range.scalars]);
            }
            if pass.norms {
                let before = &mut before[..len];
                add_squares(&mut squares[0], before);
                before.iter_mut().zip(p).for_each(|(before, p)| *before = p - *before);
                add_squares(&mut squares[1], before);
            }
            if pass.zero {
                pair.g.zero(place.own.clone());
            }
            left -= len;
            next(&mut place, left);
        }
        if pass.norms {
            *sums = [squares[0].sum(), squares[1].sum()];
        }
    }
}

/// The number of parameters before the next start of a cache line. They are updated first, in a copy, so no
/// later vector crosses a cache line.
fn head(pair: &Pair<'_>, place: &Place) -> usize {
    let bytes = pair.p.numbers(&place.own).as_ptr().addr() % CACHE_LINE;
    (CACHE_LINE - bytes) % CACHE_LINE / size_of::<f32>()
}

/// The rest of a skipped step: norms of the parameters, and gradients set to zero.
pub(super) fn rest(pass: &Pass<'_>, task: &Task, part: &mut Part<'_, '_>) {
    let mut values = Values::new();
    for (tensor_range, sums) in
        pass.plan.tensor_ranges[task.tensor_ranges.clone()].iter().zip(&mut *part.sums)
    {
        let (mut pair, mut place) =
            of_tensor_range(pass.plan, tensor_range, &mut part.memory, part.start, part.kept);
        let mut squares = Squares::new();
        let mut left = tensor_range.end - tensor_range.start;
        while left > 0 {
            if pass.norms {
                values.load_params(&pass.storage[place.kind], &place, &pair, &part.master);
                add_squares(&mut squares, &values.p[..place.len()]);
            }
            if pass.zero {
                pair.g.zero(place.own.clone());
            }
            left -= place.len();
            next(&mut place, left);
        }
        if pass.norms {
            *sums = [squares.sum(), 0.0];
        }
    }
}

/// Calls `leaf` for all tasks, divided among threads. Adjacent tasks are merged into one call. With
/// `backwards` the last tasks come first: the cache still holds the memory that the previous pass read last.
pub(super) fn sweep(
    plan: &Plan,
    tasks: Range<usize>,
    part: Part<'_, '_>,
    backwards: bool,
    leaf: &(impl Fn(&Task, &mut Part<'_, '_>) + Sync),
) {
    fn halve(
        plan: &Plan,
        tasks: &[Task],
        mut part: Part<'_, '_>,
        leaf: &(impl Fn(&Task, &mut Part<'_, '_>) + Sync),
        backwards: bool,
        grain: usize,
    ) {
        if tasks.len() <= grain {
            if let (Some(first), Some(last)) = (tasks.first(), tasks.last()) {
                let tensor_ranges = first.tensor_ranges.start..last.tensor_ranges.end;
                leaf(&Task { tensor_ranges, ..first.clone() }, &mut part);
            }
            return;
        }
        let (first, second) = tasks.split_at(tasks.len() / 2);
        let (part, rest) = part.split(plan, &second[0]);
        let first = || halve(plan, first, part, leaf, backwards, grain);
        let second = || halve(plan, second, rest, leaf, backwards, grain);
        if backwards { super::threads::join(second, first) } else { super::threads::join(first, second) }
    }
    // A thread waits for its own writes before it takes more work, so it takes several tasks at once.
    let grain = (tasks.len() / (super::threads::count() * SHARES)).max(1);
    halve(plan, &plan.tasks[tasks], part, leaf, backwards, grain);
}

/// Parts of the work per thread, if there is enough work. Small parts keep the wait at the end short.
const SHARES: usize = 32;

//! What is done to a block: everything that stands around a rule's update, and the update, tile by tile.
//!
//! A tile is copied out of the caller's memory and the state, worked on, and copied back, all of it in the nearest cache; memory is passed over once. So
//! the loops run over arrays of a fixed length that nothing else refers to, which is what a compiler needs to vectorise them, and storage formats and tensors that end anywhere are the copies'
//! affair. What no rule is part of is compiled once for each set of instructions, and the update once more for each rule.

use super::blocks::{Block, Plan, Segment, TILE};
use super::tensors::{Cells, Memory, Pair};
use crate::format::{Format, joined_bf16, random, split_bf16};
use crate::kernel::Storage;
use crate::rules::{Fields, Twin, slots};
use core::ops::Range;
use multiversion::multiversion;

/// The most slots that a rule may have.
pub(super) const MAX_SLOTS: usize = 8;
/// Sums that are added up beside each other, so that none waits for the one before.
const LANES: usize = 32;

type Tile = [f32; TILE];

/// A row of scalars.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<S> {
    pub(super) scalars: S,
    /// What gradients are multiplied by.
    pub(super) factor: f32,
}

/// Sums of squares of a segment: of parameters and of what they are moved by, or the first of gradients alone. Squares of f32 are exact in f64, and none of them overflows or is
/// lost.
pub(super) type Sums = [f64; 2];

/// What does not change in a pass.
pub(super) struct Pass<'a, S> {
    pub(super) plan: &'a Plan,
    pub(super) storage: Storage,
    pub(super) rows: &'a [Row<S>],
    /// Bound of the gradients' elements.
    pub(super) bound: f32,
    pub(super) zero: bool,
    /// Weight of the parameters in their average.
    pub(super) average: Option<f32>,
    pub(super) norms: bool,
    /// Of random numbers, if any are needed.
    pub(super) key: Option<[f32; 3]>,
}

/// The memory of one block, or of several that follow each other.
pub(super) struct Part<'m, 'a> {
    pub(super) start: usize,
    /// The segment of the first of [`sums`](Self::sums).
    pub(super) segment: usize,
    pub(super) memory: Memory<'m, 'a>,
    pub(super) state: [Cells<'m>; MAX_SLOTS],
    pub(super) master: Cells<'m>,
    pub(super) ema: Cells<'m>,
    pub(super) sums: &'m mut [Sums],
}

impl<'m, 'a> Part<'m, 'a> {
    /// What comes before `block`, and the rest.
    pub(super) fn split(self, plan: &Plan, block: &Block) -> (Self, Self) {
        let at = block.start - self.start;
        let mut behind: [Cells<'m>; MAX_SLOTS] = Default::default();
        let mut slots = behind.iter_mut();
        let state = self.state.map(|cells| {
            let (cells, rest) = cells.split_at(at);
            if let Some(slot) = slots.next() {
                *slot = rest;
            }
            cells
        });
        let (memory, memory_behind) = self.memory.split(plan, block);
        let (master, master_behind) = self.master.split_at(at);
        let (ema, ema_behind) = self.ema.split_at(at);
        let (sums, sums_behind) = self.sums.split_at_mut(block.segments.start - self.segment);
        let behind = Self {
            start: block.start,
            segment: block.segments.start,
            memory: memory_behind,
            state: behind,
            master: master_behind,
            ema: ema_behind,
            sums: sums_behind,
        };
        (Self { memory, state, master, ema, sums, ..self }, behind)
    }
}

/// What random numbers depend on: the step, the first element's place in the flat space, and which of its values is rounded.
type Draw = Option<([f32; 3], u64, u32)>;

/// Part of a tile, or 2 bytes an element.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn load_other(cells: &Cells<'_>, range: Range<usize>, to: &mut [f32], format: Format) {
    let codes = match cells {
        Cells::None => return to.fill(0.0),
        Cells::Read4(x) => return to.copy_from_slice(&x[range]),
        Cells::Write4(x) => return to.copy_from_slice(&x[range]),
        Cells::Read2(x) => &x[range],
        Cells::Write2(x) => &x[range],
    };
    // A loop for each, so that the format is not asked for every element.
    if format == Format::F16 {
        to.iter_mut().zip(codes).for_each(|(to, &code)| *to = Format::F16.decode(code.into()));
    } else {
        to.iter_mut().zip(codes).for_each(|(to, &code)| *to = Format::Bf16.decode(code.into()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn store_other(cells: &mut Cells<'_>, range: Range<usize>, from: &[f32], format: Format, draw: Draw) {
    let codes = match cells {
        Cells::Write4(x) => return x[range].copy_from_slice(from),
        Cells::Write2(x) => &mut x[range],
        Cells::None | Cells::Read4(_) | Cells::Read2(_) => return,
    };
    let pairs = codes.iter_mut().zip(from);
    match (format, draw) {
        (Format::F16, None) => pairs.for_each(|(to, &x)| *to = Format::F16.encode(x) as u16),
        (_, None) => pairs.for_each(|(to, &x)| *to = Format::Bf16.encode(x) as u16),
        (_, Some((key, flat, nth))) => pairs.zip(flat..).for_each(|((to, &x), at)| {
            *to = format.encode_stochastic(x, random(key, at, nth)) as u16;
        }),
    }
}

impl Cells<'_> {
    /// Decodes `range` to the start of a tile; of no cells zeros.
    #[inline(always)]
    fn load(&self, range: Range<usize>, to: &mut Tile, format: Format) {
        let whole = match self {
            Self::Read4(x) => x.get(range.clone()),
            Self::Write4(x) => x.get(range.clone()),
            Self::None | Self::Read2(_) | Self::Write2(_) => None,
        };
        // A whole tile is copied without a call.
        match whole.and_then(|x| x.first_chunk::<TILE>()) {
            Some(x) => *to = *x,
            None => load_other(self, range.clone(), &mut to[..range.len()], format),
        }
    }

    /// Encodes the start of a tile.
    #[inline(always)]
    fn store(&mut self, range: Range<usize>, from: &Tile, format: Format, draw: Draw) {
        if let Self::Write4(x) = self
            && let Some(x) = x.get_mut(range.clone()).and_then(|x| x.first_chunk_mut::<TILE>())
        {
            *x = *from;
        } else {
            store_other(self, range.clone(), &from[..range.len()], format, draw);
        }
    }

    /// Codes of 2 bytes.
    fn codes(&self, range: Range<usize>) -> &[u16] {
        match self {
            Self::Read2(x) => &x[range],
            Self::Write2(x) => &x[range],
            Self::None | Self::Read4(_) | Self::Write4(_) => &[],
        }
    }

    fn codes_mut(&mut self, range: Range<usize>) -> &mut [u16] {
        if let Self::Write2(x) = self { &mut x[range] } else { &mut [] }
    }

    #[inline(always)]
    fn zero(&mut self, range: Range<usize>) {
        match self {
            Self::Write4(x) => x[range].fill(0.0),
            Self::Write2(x) => x[range].fill(0),
            Self::None | Self::Read4(_) | Self::Read2(_) => {}
        }
    }
}

/// Squares, beside each other.
struct Squares([f64; LANES]);

impl Squares {
    fn new() -> Self {
        Self([0.0; LANES])
    }

    fn sum(&self) -> f64 {
        self.0.iter().sum()
    }

    #[inline(always)]
    fn add(&mut self, x: &[f32]) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &x) in self.0.iter_mut().zip(chunk) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        for (sum, &x) in self.0.iter_mut().zip(rest) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn add_squares(squares: &mut Squares, x: &[f32]) {
    squares.add(x);
}

/// The average of the weights.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn average(ema: &mut [f32], p: &[f32], weight: f32) {
    for (e, p) in ema.iter_mut().zip(p) {
        *e += weight * (p - *e);
    }
}

/// Where a tile lies.
struct Place {
    /// In the state that a part has.
    state: Range<usize>,
    /// In the caller's slices.
    own: Range<usize>,
    /// In the flat space.
    flat: u64,
}

impl Place {
    fn len(&self) -> usize {
        self.own.len()
    }
}

/// A segment's memory: the caller's, and where its first tile lies.
#[inline(always)]
fn of_segment<'s>(
    plan: &Plan,
    segment: &Segment,
    memory: &'s mut Memory<'_, '_>,
    part_start: usize,
) -> (Pair<'s>, Place) {
    let (pair, first) = memory.of(plan, segment.span);
    let (span, len) = (&plan.spans[segment.span], (segment.end - segment.start).min(TILE));
    let (own, state) = (segment.start.wrapping_sub(first), segment.start - part_start);
    let flat = (span.flat + segment.start - span.start) as u64;
    (pair, Place { state: state..state + len, own: own..own + len, flat })
}

/// The next tile of a segment with `left` more elements.
#[inline(always)]
fn next(place: &mut Place, left: usize) {
    let len = place.len();
    place.state = place.state.end..place.state.end + left.min(TILE);
    place.own = place.own.end..place.own.end + left.min(TILE);
    place.flat += len as u64;
}

/// A tile on its way from memory and back.
struct Values {
    p: Tile,
    g: Tile,
    state: [Tile; MAX_SLOTS],
}

impl Values {
    #[inline(always)]
    fn new() -> Self {
        Self { p: [0.0; TILE], g: [0.0; TILE], state: [[0.0; TILE]; MAX_SLOTS] }
    }

    #[inline(always)]
    fn load(
        &mut self,
        storage: &Storage,
        place: &Place,
        pair: &Pair<'_>,
        state: &[Cells<'_>],
        master: &Cells<'_>,
    ) {
        pair.p.load(place.own.clone(), &mut self.p, storage.params);
        pair.g.load(place.own.clone(), &mut self.g, storage.grads);
        for (to, cells) in self.state.iter_mut().zip(state) {
            cells.load(place.state.clone(), to, storage.states);
        }
        if !matches!(master, Cells::None) {
            load_master(&mut self.p, place, &pair.p, master);
        }
    }

    /// Parameters and state back to memory; [`p`](Self::p) then is what the caller reads, or its master.
    #[inline(always)]
    fn store(
        &mut self,
        storage: &Storage,
        place: &Place,
        pair: &mut Pair<'_>,
        state: &mut [Cells<'_>],
        master: &mut Cells<'_>,
        key: Option<[f32; 3]>,
    ) {
        let draw = |nth: u32| key.map(|key| (key, place.flat, nth));
        if matches!(master, Cells::None) {
            pair.p.store(place.own.clone(), &self.p, storage.params, draw(0));
            if storage.params != Format::F32 {
                pair.p.load(place.own.clone(), &mut self.p, storage.params);
            }
        } else {
            store_master(&self.p, place, &mut pair.p, master, storage.params);
        }
        for (nth, (from, cells)) in (1..).zip(self.state.iter().zip(state)) {
            cells.store(place.state.clone(), from, storage.states, draw(nth));
        }
    }
}

/// Parameters by what is kept beside the stored ones, which `p` has.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn load_master(p: &mut Tile, place: &Place, stored: &Cells<'_>, master: &Cells<'_>) {
    if let Cells::Write4(master) = master {
        // The stored parameter is the master until there is one.
        for (p, &master) in p.iter_mut().zip(&master[place.state.clone()]) {
            *p = if master.to_bits() == 0 { *p } else { master };
        }
    } else {
        let codes = stored.codes(place.own.clone()).iter().zip(master.codes(place.state.clone()));
        p.iter_mut().zip(codes).for_each(|(p, (&code, &rest))| *p = joined_bf16(code, rest));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn store_master(p: &Tile, place: &Place, stored: &mut Cells<'_>, master: &mut Cells<'_>, params: Format) {
    if let Cells::Write4(master) = master {
        master[place.state.clone()].copy_from_slice(&p[..place.len()]);
        store_other(stored, place.own.clone(), &p[..place.len()], params, None);
    } else {
        let codes = stored.codes_mut(place.own.clone()).iter_mut();
        let rests = master.codes_mut(place.state.clone()).iter_mut();
        codes.zip(rests).zip(p).for_each(|((code, rest), &p)| [*code, *rest] = split_bf16(p));
    }
}

/// A gradient as the rule gets it. What is no number stays that.
#[inline(always)]
fn prepared(g: f32, factor: f32, bound: f32) -> f32 {
    let g = g * factor;
    let g = if g > bound { bound } else { g };
    if g < -bound { -bound } else { g }
}

/// The first pass where gradients are looked at: their squares.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn look(plan: &Plan, grads: Format, block: &Block, part: &mut Part<'_, '_>) {
    let mut g = [0.0; TILE];
    for (segment, sums) in plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let mut squares = Squares::new();
        let (pair, mut place) = of_segment(plan, segment, &mut part.memory, part.start);
        let own = place.own.start..place.own.start + (segment.end - segment.start);
        match &pair.g {
            Cells::Read4(x) => squares.add(&x[own]),
            Cells::Write4(x) => squares.add(&x[own]),
            other => {
                let mut left = own.len();
                while left > 0 {
                    other.load(place.own.clone(), &mut g, grads);
                    squares.add(&g[..place.len()]);
                    left -= place.len();
                    next(&mut place, left);
                }
            }
        }
        *sums = [squares.sum(), 0.0];
    }
}

/// The first phase of a layer-wise rule: squares of parameters and direction.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn measure<R: Twin>(pass: &Pass<'_, R::Scalars<f32>>, block: &Block, part: &mut Part<'_, '_>) {
    let slots = slots::<R>().len();
    let mut values = Values::new();
    let mut u = [0.0; TILE];
    for (segment, sums) in pass.plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let (pair, mut place) = of_segment(pass.plan, segment, &mut part.memory, part.start);
        let Row { scalars, factor } = pass.rows[segment.row];
        let mut squares = [Squares::new(), Squares::new()];
        let mut left = segment.end - segment.start;
        while left > 0 {
            values.load(&pass.storage, &place, &pair, &part.state[..slots], &part.master);
            for i in 0..TILE {
                let g = prepared(values.g[i], factor, pass.bound);
                let state = R::State::<f32>::from_fn(|slot| values.state[slot][i]);
                u[i] = R::direction(&scalars, values.p[i], g, &state);
            }
            add_squares(&mut squares[0], &values.p[..place.len()]);
            add_squares(&mut squares[1], &u[..place.len()]);
            left -= place.len();
            next(&mut place, left);
        }
        *sums = [squares[0].sum(), squares[1].sum()];
    }
}

/// The update, and what follows it.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn update<R: Twin>(pass: &Pass<'_, R::Scalars<f32>>, block: &Block, part: &mut Part<'_, '_>) {
    update_plainly::<R>(pass, block, part);
}

/// [`update`] with the instructions that this crate is compiled for.
#[inline(always)]
pub(super) fn update_plainly<R: Twin>(
    pass: &Pass<'_, R::Scalars<f32>>,
    block: &Block,
    part: &mut Part<'_, '_>,
) {
    let slots = slots::<R>().len();
    let mut values = Values::new();
    for (segment, sums) in pass.plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let (mut pair, mut place) = of_segment(pass.plan, segment, &mut part.memory, part.start);
        let Row { scalars, factor } = pass.rows[segment.row];
        let mut squares = [Squares::new(), Squares::new()];
        let mut left = segment.end - segment.start;
        while left > 0 {
            values.load(&pass.storage, &place, &pair, &part.state[..slots], &part.master);
            let before = values.p;
            // Of the last tile, what lies behind the segment's end is worked on too and dropped.
            for i in 0..TILE {
                let mut state = R::State::<f32>::from_fn(|slot| values.state[slot][i]);
                let g = prepared(values.g[i], factor, pass.bound);
                R::update(&scalars, &mut values.p[i], g, &mut state);
                for slot in 0..slots {
                    values.state[slot][i] = state.get(slot);
                }
            }
            let state = &mut part.state[..slots];
            values.store(&pass.storage, &place, &mut pair, state, &mut part.master, pass.key);
            if pass.zero {
                pair.g.zero(place.own.clone());
            }
            if let (Some(weight), Cells::Write4(ema)) = (pass.average, &mut part.ema) {
                average(&mut ema[place.state.clone()], &values.p, weight);
            }
            if pass.norms {
                let mut moved = values.p;
                moved.iter_mut().zip(&before).for_each(|(p, before)| *p -= before);
                add_squares(&mut squares[0], &before[..place.len()]);
                add_squares(&mut squares[1], &moved[..place.len()]);
            }
            left -= place.len();
            next(&mut place, left);
        }
        if pass.norms {
            *sums = [squares[0].sum(), squares[1].sum()];
        }
    }
}

/// What is left to do of a skipped step.
pub(super) fn rest<S>(pass: &Pass<'_, S>, block: &Block, part: &mut Part<'_, '_>) {
    let mut values = Values::new();
    for (segment, sums) in pass.plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let (mut pair, mut place) = of_segment(pass.plan, segment, &mut part.memory, part.start);
        let mut squares = Squares::new();
        let mut left = segment.end - segment.start;
        while left > 0 {
            if pass.norms {
                values.load(&pass.storage, &place, &pair, &[], &part.master);
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

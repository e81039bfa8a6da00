//! What is done to a block: everything that stands around a rule's update, and the update.
//!
//! Where all is f32, whole chunks are worked on where they lie, in runs as long as the segment or, with something to do after the update, as a strip. What is stored otherwise, and a tensor's last
//! elements, are worked on in copies in the nearest cache, tile by tile: storage formats and tensors that end anywhere are the copies' affair. Loops run over arrays of a fixed length that nothing else refers to, which is what a compiler needs to vectorise them. What no rule is part of is compiled once for each set of instructions, and the update once more for each rule.

use super::blocks::{Block, Plan, Segment, TILE};
use super::tensors::{Cells, Memory, Pair};
use crate::format::{Format, joined_bf16, random_four, split_bf16};
use crate::kernel::Storage;
use crate::q8;
use crate::rules::{Fields, Twin, slots};
use core::ops::Range;
use multiversion::multiversion;

/// The most slots that a rule may have.
pub(super) const MAX_SLOTS: usize = 8;

/// Elements in registers at a time: two of the widest there are, or several.
const CHUNK: usize = 32;
/// Elements that are updated where they lie before what follows the update is done to them, which are in the nearest cache then.
const STRIP: usize = 4 * TILE;

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
    /// Of tensors of each kind.
    pub(super) storage: [Storage; 2],
    pub(super) rows: &'a [Row<S>],
    /// Bound of the gradients' elements.
    pub(super) bound: f32,
    pub(super) zero: bool,
    /// Weight of the parameters in their average.
    pub(super) average: Option<f32>,
    pub(super) norms: bool,
    /// Whether everything is stored as it is worked on, of tensors of each kind.
    pub(super) in_place: [bool; 2],
    /// Of random numbers, if any are needed.
    pub(super) key: Option<[f32; 3]>,
}

/// The memory of one block, or of several that follow each other.
pub(super) struct Part<'m, 'a> {
    pub(super) start: usize,
    /// Where the state of each kind starts.
    pub(super) kept: [usize; 2],
    /// The segment of the first of [`sums`](Self::sums).
    pub(super) segment: usize,
    pub(super) memory: Memory<'m, 'a>,
    /// Of each kind of tensors, of each slot.
    pub(super) state: [[Cells<'m>; MAX_SLOTS]; 2],
    pub(super) master: Cells<'m>,
    pub(super) ema: Cells<'m>,
    pub(super) sums: &'m mut [Sums],
}

impl<'m, 'a> Part<'m, 'a> {
    /// What comes before `block`, and the rest.
    pub(super) fn split(self, plan: &Plan, block: &Block) -> (Self, Self) {
        let at = block.start - self.start;
        let mut behind: [[Cells<'m>; MAX_SLOTS]; 2] = Default::default();
        let mut state = self.state;
        for (kind, slots) in state.iter_mut().enumerate() {
            let at = block.kept[kind] - self.kept[kind];
            for (slot, behind) in slots.iter_mut().zip(&mut behind[kind]) {
                (*slot, *behind) = core::mem::take(slot).split_at(at);
            }
        }
        let (memory, memory_behind) = self.memory.split(plan, block);
        let (master, master_behind) = self.master.split_at(at);
        let (ema, ema_behind) = self.ema.split_at(at);
        let (sums, sums_behind) = self.sums.split_at_mut(block.segments.start - self.segment);
        let behind = Self {
            start: block.start,
            kept: block.kept,
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

/// What random numbers depend on: the step, the tensor, the first element's index in it, and which of its values is rounded.
#[derive(Clone, Copy)]
struct Draw {
    key: [f32; 3],
    tensor: u32,
    first: u64,
    nth: u32,
}

impl Draw {
    /// Of a tile's elements, from the lane on that is returned.
    #[inline(always)]
    fn fill(&self, randoms: &mut Randoms) -> usize {
        for (four, randoms) in (self.first / 4..).zip(&mut *randoms) {
            *randoms = random_four(self.key, self.tensor, four, self.nth);
        }
        (self.first % 4) as usize
    }
}

/// Random numbers of a tile, which may begin and end inside of a vector of four.
type Randoms = [[u32; 4]; TILE / 4 + 1];

/// Part of a tile, or 2 bytes an element.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn load_other(cells: &Cells<'_>, range: Range<usize>, to: &mut [f32], format: Format) {
    let codes = match cells {
        Cells::None => return to.fill(0.0),
        Cells::Read4(x) => return to.copy_from_slice(&x[range]),
        Cells::Write4(x) => return to.copy_from_slice(&x[range]),
        Cells::Write1(x, scales) => {
            for block in scaled_blocks(range.clone()) {
                let (scale, at, len) =
                    (scales[block.start / q8::BLOCK], block.start - range.start, block.len());
                let (codes, mut numbers) = (padded(&x[block]), [0.0; q8::BLOCK]);
                numbers.iter_mut().zip(&codes).for_each(|(x, &code)| *x = q8::decode(code, scale));
                put(&mut to[at..at + len], &numbers);
            }
            return;
        }
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
fn store_other(cells: &mut Cells<'_>, range: Range<usize>, from: &[f32], format: Format, draw: Option<Draw>) {
    if let Cells::Write4(x) = cells {
        return x[range].copy_from_slice(from);
    }
    let mut randoms: Randoms = [[0; 4]; TILE / 4 + 1];
    let first = draw.map_or(0, |draw| draw.fill(&mut randoms));
    let randoms = &randoms.as_flattened()[first..];
    let codes = match cells {
        Cells::Write1(x, scales) => {
            for block in scaled_blocks(range.clone()) {
                let (at, len) = (block.start - range.start, block.len());
                let from = padded(&from[at..at + len]);
                let scale = q8::scale(&from);
                scales[block.start / q8::BLOCK] = scale;
                let mut codes = [0; q8::BLOCK];
                let pairs = codes.iter_mut().zip(&from);
                if draw.is_some() {
                    let pairs = pairs.zip(padded(&randoms[at..at + len]));
                    pairs.for_each(|((to, &x), random)| *to = q8::encode_stochastic(x, scale, random));
                } else {
                    pairs.for_each(|(to, &x)| *to = q8::encode(x, scale));
                }
                put(&mut x[block], &codes);
            }
            return;
        }
        Cells::Write2(x) => &mut x[range],
        Cells::None | Cells::Read4(_) | Cells::Read2(_) | Cells::Write4(_) => return,
    };
    // A loop for each, so that the format is not asked for every element.
    let pairs = codes.iter_mut().zip(from);
    match (format, draw) {
        (Format::F16, None) => pairs.for_each(|(to, &x)| *to = Format::F16.encode(x) as u16),
        (_, None) => pairs.for_each(|(to, &x)| *to = Format::Bf16.encode(x) as u16),
        (Format::F16, Some(_)) => pairs.zip(randoms).for_each(|((to, &x), &random)| {
            *to = Format::F16.encode_stochastic(x, random) as u16;
        }),
        (_, Some(_)) => pairs.zip(randoms).for_each(|((to, &x), &random)| {
            *to = Format::Bf16.encode_stochastic(x, random) as u16;
        }),
    }
}

/// The blocks of elements that have scales, or what there is of them.
fn scaled_blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = range.start / q8::BLOCK * q8::BLOCK;
    (first..range.end).step_by(q8::BLOCK).map(move |at| at.max(range.start)..(at + q8::BLOCK).min(range.end))
}

/// A block, with zeros behind what there is of it: loops over as many elements as a compiler knows of have no ends to mind.
#[inline(always)]
fn padded<T: Copy + Default>(x: &[T]) -> [T; q8::BLOCK] {
    x.first_chunk().copied().unwrap_or_else(|| {
        let mut block = [T::default(); q8::BLOCK];
        block[..x.len()].copy_from_slice(x);
        block
    })
}

/// What there is of a block.
#[inline(always)]
fn put<T: Copy>(to: &mut [T], block: &[T; q8::BLOCK]) {
    match to.first_chunk_mut() {
        Some(whole) => *whole = *block,
        None => to.copy_from_slice(&block[..to.len()]),
    }
}

impl Cells<'_> {
    /// Decodes `range` to the start of a tile; of no cells zeros.
    #[inline(always)]
    fn load(&self, range: &Range<usize>, to: &mut Tile, format: Format) {
        // A whole tile is copied without a call.
        match self.numbers(range).first_chunk() {
            Some(x) => *to = *x,
            None => load_other(self, range.clone(), &mut to[..range.len()], format),
        }
    }

    /// Encodes the start of a tile.
    #[inline(always)]
    fn store(&mut self, range: &Range<usize>, from: &Tile, format: Format, draw: Option<Draw>) {
        match self.numbers_mut(range).first_chunk_mut() {
            Some(x) => *x = *from,
            None => store_other(self, range.clone(), &from[..range.len()], format, draw),
        }
    }

    /// f32, where they lie; none where they do not.
    #[inline(always)]
    fn numbers(&self, range: &Range<usize>) -> &[f32] {
        match self {
            Self::Read4(x) => &x[range.clone()],
            Self::Write4(x) => &x[range.clone()],
            Self::None | Self::Read2(_) | Self::Write2(_) | Self::Write1(..) => &[],
        }
    }

    #[inline(always)]
    fn numbers_mut(&mut self, range: &Range<usize>) -> &mut [f32] {
        if let Self::Write4(x) = self { &mut x[range.clone()] } else { &mut [] }
    }

    /// Codes of 2 bytes.
    fn codes(&self, range: Range<usize>) -> &[u16] {
        match self {
            Self::Read2(x) => &x[range],
            Self::Write2(x) => &x[range],
            Self::None | Self::Read4(_) | Self::Write4(_) | Self::Write1(..) => &[],
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
            Self::None | Self::Read4(_) | Self::Read2(_) | Self::Write1(..) => {}
        }
    }
}

/// Squares, beside each other: so many that the loops over them are vectorised.
struct Squares([f64; TILE]);

impl Squares {
    fn new() -> Self {
        Self([0.0; TILE])
    }

    /// In pairs.
    fn sum(&mut self) -> f64 {
        let mut half = TILE / 2;
        while half > 0 {
            let (low, high) = self.0.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
            half /= 2;
        }
        self.0[0]
    }

    #[inline(always)]
    fn add(&mut self, x: &[f32]) {
        let (tiles, rest) = x.as_chunks::<TILE>();
        for x in tiles {
            for (sum, &x) in self.0.iter_mut().zip(x) {
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
    /// In the state that a part has of this kind.
    state: Range<usize>,
    kind: usize,
    /// In what a part has beside it: master and average.
    beside: Range<usize>,
    /// In the caller's slices.
    own: Range<usize>,
    /// In the tensor.
    first: u64,
    /// What stands for the tensor in random numbers.
    tensor: u32,
}

impl Place {
    fn len(&self) -> usize {
        self.own.len()
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) {
        (self.state.end, self.own.end) = (self.state.start + len, self.own.start + len);
        self.beside.end = self.beside.start + len;
    }
}

/// A segment's memory: the caller's, and where its first tile lies.
#[inline(always)]
fn of_segment<'s>(
    plan: &Plan,
    segment: &Segment,
    memory: &'s mut Memory<'_, '_>,
    part_start: usize,
    part_kept: [usize; 2],
) -> (Pair<'s>, Place) {
    let (pair, begin) = memory.of(plan, segment.span);
    // Tiles have whole blocks.
    let most = TILE - segment.start % plan.scaled;
    let (span, len) = (&plan.spans[segment.span], (segment.end - segment.start).min(most));
    let (own, beside) = (segment.start.wrapping_sub(begin), segment.start - part_start);
    let (first, kind) = (segment.start - span.start, span.kind);
    let state = span.kept + first - part_kept[kind];
    let place = Place {
        state: state..state + len,
        kind,
        beside: beside..beside + len,
        own: own..own + len,
        first: first as u64,
        tensor: span.key,
    };
    (pair, place)
}

/// The next tile of a segment with `left` more elements.
#[inline(always)]
fn next(place: &mut Place, left: usize) {
    let len = place.len();
    place.state = place.state.end..place.state.end + left.min(TILE);
    place.beside = place.beside.end..place.beside.end + left.min(TILE);
    place.own = place.own.end..place.own.end + left.min(TILE);
    place.first += len as u64;
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
        self.load_params(storage, place, pair, master);
        pair.g.load(&place.own, &mut self.g, storage.grads);
        for (to, cells) in self.state.iter_mut().zip(state) {
            cells.load(&place.state, to, storage.states);
        }
    }

    #[inline(always)]
    fn load_params(&mut self, storage: &Storage, place: &Place, pair: &Pair<'_>, master: &Cells<'_>) {
        pair.p.load(&place.own, &mut self.p, storage.params);
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
        let Place { tensor, first, .. } = *place;
        let draw = |nth: u32| key.map(|key| Draw { key, tensor, first, nth });
        if matches!(master, Cells::None) {
            pair.p.store(&place.own, &self.p, storage.params, draw(0));
            if storage.params != Format::F32 {
                pair.p.load(&place.own, &mut self.p, storage.params);
            }
        } else {
            store_master(&self.p, place, &mut pair.p, master, storage.params);
        }
        for (nth, (from, cells)) in (1..).zip(self.state.iter().zip(state)) {
            cells.store(&place.state, from, storage.states, draw(nth));
        }
    }
}

/// Parameters by what is kept beside the stored ones, which `p` has.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn load_master(p: &mut Tile, place: &Place, stored: &Cells<'_>, master: &Cells<'_>) {
    if let Cells::Write4(master) = master {
        // The stored parameter is the master until there is one.
        for (p, &master) in p.iter_mut().zip(&master[place.beside.clone()]) {
            *p = if master.to_bits() == 0 { *p } else { master };
        }
    } else {
        let codes = stored.codes(place.own.clone()).iter().zip(master.codes(place.beside.clone()));
        p.iter_mut().zip(codes).for_each(|(p, (&code, &rest))| *p = joined_bf16(code, rest));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn store_master(p: &Tile, place: &Place, stored: &mut Cells<'_>, master: &mut Cells<'_>, params: Format) {
    if let Cells::Write4(master) = master {
        master[place.beside.clone()].copy_from_slice(&p[..place.len()]);
        store_other(stored, place.own.clone(), &p[..place.len()], params, None);
    } else {
        let codes = stored.codes_mut(place.own.clone()).iter_mut();
        let rests = master.codes_mut(place.beside.clone()).iter_mut();
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
    look_plainly(plan, grads, block, part);
}

/// [`look`] with the instructions that this crate is compiled for.
#[inline(always)]
pub(super) fn look_plainly(plan: &Plan, grads: Format, block: &Block, part: &mut Part<'_, '_>) {
    let mut g = [0.0; TILE];
    for (segment, sums) in plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let mut squares = Squares::new();
        let (pair, mut place) = of_segment(plan, segment, &mut part.memory, part.start, part.kept);
        let own = place.own.start..place.own.start + (segment.end - segment.start);
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

/// The first phase of a layer-wise rule: squares of parameters and direction.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn measure<R: Twin>(pass: &Pass<'_, R::Scalars<f32>>, block: &Block, part: &mut Part<'_, '_>) {
    measure_plainly::<R>(pass, block, part);
}

/// [`measure`] with the instructions that this crate is compiled for.
#[inline(always)]
pub(super) fn measure_plainly<R: Twin>(
    pass: &Pass<'_, R::Scalars<f32>>,
    block: &Block,
    part: &mut Part<'_, '_>,
) {
    let slots = slots::<R>().len();
    let mut values = Values::new();
    let mut u = [0.0; TILE];
    for (segment, sums) in pass.plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let (pair, mut place) = of_segment(pass.plan, segment, &mut part.memory, part.start, part.kept);
        let Row { scalars, factor } = pass.rows[segment.row];
        let mut squares = [Squares::new(), Squares::new()];
        let mut left = segment.end - segment.start;
        while left > 0 {
            let (storage, state) = (&pass.storage[place.kind], &part.state[place.kind][..slots]);
            values.load(storage, &place, &pair, state, &part.master);
            for (i, u) in u.iter_mut().enumerate() {
                let g = prepared(values.g[i], factor, pass.bound);
                let state = R::State::<f32>::from_fn(|slot| values.state[slot][i]);
                *u = R::direction(&scalars, values.p[i], g, &state);
            }
            add_squares(&mut squares[0], &values.p[..place.len()]);
            add_squares(&mut squares[1], &u[..place.len()]);
            left -= place.len();
            next(&mut place, left);
        }
        *sums = squares.each_mut().map(Squares::sum);
    }
}

/// The update of whole chunks: copies that stay in registers, which a compiler knows to be apart. A slot that is not kept has no elements.
#[inline(always)]
fn update_chunks<R: Twin>(
    scalars: &R::Scalars<f32>,
    factor: f32,
    bound: f32,
    p: &mut [f32],
    g: &[f32],
    state: [&mut [f32]; MAX_SLOTS],
) {
    let slots = slots::<R>().len();
    let mut state = state.map(|x| x.as_chunks_mut::<CHUNK>().0);
    let chunks = p.as_chunks_mut::<CHUNK>().0.iter_mut().zip(g.as_chunks::<CHUNK>().0);
    for (nth, (all_p, g)) in chunks.enumerate() {
        let (mut p, g) = (*all_p, *g);
        let mut own = [[0.0; CHUNK]; MAX_SLOTS];
        for (own, x) in own.iter_mut().zip(&state).take(slots) {
            if let Some(x) = x.get(nth) {
                *own = *x;
            }
        }
        for i in 0..CHUNK {
            let mut state = R::State::<f32>::from_fn(|slot| own[slot][i]);
            R::update(scalars, &mut p[i], prepared(g[i], factor, bound), &mut state);
            for (slot, own) in own.iter_mut().enumerate().take(slots) {
                own[i] = state.get(slot);
            }
        }
        *all_p = p;
        for (own, x) in own.iter().zip(&mut state).take(slots) {
            if let Some(x) = x.get_mut(nth) {
                *x = *own;
            }
        }
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
    let mut before = [0.0; STRIP];
    let mut squares = [Squares::new(), Squares::new()];
    let strip = if pass.norms || pass.zero || pass.average.is_some() { STRIP } else { usize::MAX };
    let segments = &pass.plan.segments[block.segments.clone()];
    // What is in one tensor is one run, unless it has sums of its own.
    let runs = segments.chunk_by(|a, b| !pass.norms && a.span == b.span);
    for (run, sums) in runs.zip(&mut *part.sums) {
        let segment = &Segment { end: run[run.len() - 1].end, ..run[0].clone() };
        let (mut pair, mut place) = of_segment(pass.plan, segment, &mut part.memory, part.start, part.kept);
        let Row { scalars, factor } = pass.rows[segment.row];
        if pass.norms {
            squares = [Squares::new(), Squares::new()];
        }
        let mut left = segment.end - segment.start;
        while left > 0 {
            let (storage, state) = (&pass.storage[place.kind], &mut part.state[place.kind][..slots]);
            let whole = pass.in_place[place.kind] && left >= CHUNK;
            if whole {
                place.resize(left.min(strip) / CHUNK * CHUNK);
            } else {
                values.load(storage, &place, &pair, state, &part.master);
            }
            let len = place.len();
            {
                // Of a copy as many chunks as it takes.
                let copied = len.next_multiple_of(CHUNK).min(TILE);
                let mut tiles = values.state.each_mut().map(|tile| &mut tile[..copied]);
                let (mut p, mut g) = (&mut values.p[..copied], &values.g[..copied]);
                if whole {
                    (p, g) = (pair.p.numbers_mut(&place.own), pair.g.numbers(&place.own));
                    for (tile, cells) in tiles.iter_mut().zip(&mut *state) {
                        *tile = cells.numbers_mut(&place.state);
                    }
                }
                if pass.norms {
                    before[..len].copy_from_slice(&p[..len]);
                }
                update_chunks::<R>(&scalars, factor, pass.bound, p, g, tiles);
            }
            if !whole {
                values.store(storage, &place, &mut pair, state, &mut part.master, pass.key);
            }
            let p = if whole { pair.p.numbers(&place.own) } else { &values.p[..len] };
            if let (Some(weight), Cells::Write4(ema)) = (pass.average, &mut part.ema) {
                average(&mut ema[place.beside.clone()], p, weight);
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

/// What is left to do of a skipped step.
pub(super) fn rest<S>(pass: &Pass<'_, S>, block: &Block, part: &mut Part<'_, '_>) {
    let mut values = Values::new();
    for (segment, sums) in pass.plan.segments[block.segments.clone()].iter().zip(&mut *part.sums) {
        let (mut pair, mut place) = of_segment(pass.plan, segment, &mut part.memory, part.start, part.kept);
        let mut squares = Squares::new();
        let mut left = segment.end - segment.start;
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

//! What is done to a block: everything that stands around a rule's update, and the update, strip by strip.
//!
//! A strip is copied out of the caller's memory and the state, worked on, and copied back: the copies stay in the nearest cache, so that memory is passed over once. In
//! return the loops run over arrays of a fixed length that nothing else refers to, which is what a compiler needs to vectorise them; storage formats and
//! tensors that end anywhere are the copies' affair.

use super::blocks::{Block, Plan, Run, STRIP};
use super::tensors::{Cells, Memory};
use crate::format::{Format, joined_bf16, random, split_bf16};
use crate::kernel::Storage;
use crate::options::Master;
use crate::rules::{Fields, Twin, slots};
use core::ops::Range;
use multiversion::multiversion;

/// The most slots that a rule may have.
pub(super) const MAX_SLOTS: usize = 8;
/// Sums that are added up beside each other, so that none waits for the one before.
const LANES: usize = 32;

type Strip = [f32; STRIP];

/// A row of scalars.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<S> {
    pub(super) scalars: S,
    /// What gradients are multiplied by.
    pub(super) factor: f32,
}

/// Sums of squares of a run: of parameters and of what they are moved by, or the first of gradients alone. Squares of f32 are exact in f64, and none of them overflows or is
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
    /// The first of [`sums`](Self::sums).
    pub(super) run: usize,
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
        let (sums, sums_behind) = self.sums.split_at_mut(block.runs.start - self.run);
        let behind = Self {
            start: block.start,
            run: block.runs.start,
            memory: memory_behind,
            state: behind,
            master: master_behind,
            ema: ema_behind,
            sums: sums_behind,
        };
        (Self { memory, state, master, ema, sums, ..self }, behind)
    }
}

impl Cells<'_> {
    /// Decodes what starts at `at`.
    #[inline(always)]
    fn load(&self, at: usize, to: &mut [f32], format: Format) {
        let end = at + to.len();
        match self {
            Self::None => to.fill(0.0),
            Self::Read4(x) => copy(&x[at..end], to),
            Self::Write4(x) => copy(&x[at..end], to),
            Self::Read2(x) => decode(&x[at..end], to, format),
            Self::Write2(x) => decode(&x[at..end], to, format),
        }
    }

    /// Encodes from `at` on.
    #[inline(always)]
    fn store(&mut self, at: usize, from: &[f32], format: Format, random: impl Fn(usize) -> Option<u32>) {
        let end = at + from.len();
        match self {
            Self::Write4(x) => copy(from, &mut x[at..end]),
            Self::Write2(x) => encode(from, &mut x[at..end], format, random),
            Self::None | Self::Read4(_) | Self::Read2(_) => {}
        }
    }

    /// Codes of 2 bytes.
    #[inline(always)]
    fn codes(&self, at: usize, to: &mut [u16]) {
        let end = at + to.len();
        match self {
            Self::Read2(x) => to.copy_from_slice(&x[at..end]),
            Self::Write2(x) => to.copy_from_slice(&x[at..end]),
            _ => to.fill(0),
        }
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

/// A whole strip is copied without a call.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    match (<&Strip>::try_from(from), <&mut Strip>::try_from(&mut *to)) {
        (Ok(from), Ok(to)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

#[inline(always)]
fn decode(from: &[u16], to: &mut [f32], format: Format) {
    // A loop for each, so that the format is not asked for every element.
    if format == Format::F16 {
        for (to, &code) in to.iter_mut().zip(from) {
            *to = Format::F16.decode(code.into());
        }
    } else {
        for (to, &code) in to.iter_mut().zip(from) {
            *to = Format::Bf16.decode(code.into());
        }
    }
}

#[inline(always)]
fn encode(from: &[f32], to: &mut [u16], format: Format, random: impl Fn(usize) -> Option<u32>) {
    for (i, (to, &x)) in to.iter_mut().zip(from).enumerate() {
        let code = match (format, random(i)) {
            (Format::F16, None) => Format::F16.encode(x),
            (Format::F16, Some(random)) => Format::F16.encode_stochastic(x, random),
            (_, None) => Format::Bf16.encode(x),
            (_, Some(random)) => Format::Bf16.encode_stochastic(x, random),
        };
        *to = code as u16;
    }
}

/// Squares, beside each other.
struct Squares([f64; LANES]);

impl Squares {
    #[inline(always)]
    fn new() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    fn add(&mut self, x: &Strip) {
        let (chunks, _) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &x) in self.0.iter_mut().zip(chunk) {
                let x = f64::from(x);
                *sum += x * x;
            }
        }
    }

    /// The elements of `range` alone.
    #[inline(always)]
    fn add_range(&mut self, x: &Strip, range: &Range<usize>) {
        if range.len() == STRIP {
            self.add(x);
        } else {
            // Zeros add nothing, and every element keeps its lane.
            let mut alone = [0.0; STRIP];
            alone[range.clone()].copy_from_slice(&x[range.clone()]);
            self.add(&alone);
        }
    }

    #[inline(always)]
    fn sum(&self) -> f64 {
        self.0.iter().sum()
    }
}

/// Where a pass over a block is.
struct Cursor<'p> {
    plan: &'p Plan,
    block: &'p Block,
    start: usize,
    end: usize,
    /// The tensor of the first element.
    span: usize,
    /// The run of the first element.
    run: usize,
}

impl<'p> Cursor<'p> {
    #[inline(always)]
    fn new(plan: &'p Plan, block: &'p Block) -> Self {
        let end = block.end.min(block.start + STRIP);
        Self { plan, block, start: block.start, end, span: block.span, run: block.runs.start }
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    /// The next strip, if there is one.
    #[inline(always)]
    fn advance(&mut self) -> bool {
        self.start = self.end;
        self.end = self.block.end.min(self.start + STRIP);
        if self.start == self.end {
            return false;
        }
        while self.plan.spans[self.span].end() <= self.start {
            self.span += 1;
        }
        while self.plan.runs[self.run].end <= self.start {
            self.run += 1;
        }
        true
    }

    /// The tensors in the strip, and which of its elements are theirs.
    #[inline(always)]
    fn spans(&self) -> Spans<'p> {
        Spans { plan: self.plan, span: self.span, from: self.start, end: self.end }
    }

    /// The runs in the strip, their places in it, and whether they end there.
    #[inline(always)]
    fn runs(&self) -> Runs<'p> {
        Runs { plan: self.plan, run: self.run, start: self.start, from: self.start, end: self.end }
    }
}

// Iterators and no closures: a closure is not always compiled into its caller, and then not for its instructions either.
struct Spans<'p> {
    plan: &'p Plan,
    span: usize,
    from: usize,
    end: usize,
}

impl Iterator for Spans<'_> {
    type Item = (usize, Range<usize>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.from == self.end {
            return None;
        }
        let to = self.plan.spans[self.span].end().min(self.end);
        let item = (self.span, self.from..to);
        (self.span, self.from) = (self.span + 1, to);
        Some(item)
    }
}

struct Runs<'p> {
    plan: &'p Plan,
    run: usize,
    start: usize,
    from: usize,
    end: usize,
}

impl<'p> Iterator for Runs<'p> {
    type Item = (usize, &'p Run, Range<usize>, bool);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.from == self.end {
            return None;
        }
        let run = &self.plan.runs[self.run];
        let to = run.end.min(self.end);
        let item = (self.run, run, self.from - self.start..to - self.start, run.end <= self.end);
        (self.run, self.from) = (self.run + 1, to);
        Some(item)
    }
}

/// A strip on its way from memory and back.
struct Values {
    p: Strip,
    g: Strip,
    state: [Strip; MAX_SLOTS],
    /// Stored codes of the parameters, where those and a remainder are one number.
    codes: [u16; STRIP],
}

impl Values {
    #[inline(always)]
    fn new() -> Self {
        let zero = [0.0; STRIP];
        Self { p: zero, g: zero, state: [zero; MAX_SLOTS], codes: [0; STRIP] }
    }

    #[inline(always)]
    fn load<S>(&mut self, pass: &Pass<'_, S>, cursor: &Cursor<'_>, part: &mut Part<'_, '_>, slots: usize) {
        let Storage { params, grads, states, .. } = pass.storage;
        let len = cursor.len();
        let master = pass.storage.master();
        for (span, range) in cursor.spans() {
            let (pair, first) = part.memory.of(pass.plan, span);
            let at = range.start.wrapping_sub(first);
            let to = range.start - cursor.start..range.end - cursor.start;
            pair.p.load(at, &mut self.p[to.clone()], params);
            pair.g.load(at, &mut self.g[to.clone()], grads);
            if pass.storage.master == Master::Remainder && master.is_some() {
                pair.p.codes(at, &mut self.codes[to]);
            }
        }
        let at = cursor.start - part.start;
        for (to, cells) in self.state.iter_mut().zip(&part.state).take(slots) {
            cells.load(at, &mut to[..len], states);
        }
        match master {
            None => {}
            Some((_, 4)) => {
                let mut master = [0.0; STRIP];
                part.master.load(at, &mut master[..len], Format::F32);
                // The stored parameter is the master until there is one.
                for (p, master) in self.p.iter_mut().zip(master) {
                    *p = if master.to_bits() == 0 { *p } else { master };
                }
            }
            Some(_) => {
                let mut rest = [0; STRIP];
                part.master.codes(at, &mut rest[..len]);
                for i in 0..STRIP {
                    self.p[i] = joined_bf16(self.codes[i], rest[i]);
                }
            }
        }
    }

    /// Parameters and state back to memory, of which [`p`](Self::p) then has what the caller reads there.
    #[inline(always)]
    fn store<S>(&mut self, pass: &Pass<'_, S>, cursor: &Cursor<'_>, part: &mut Part<'_, '_>, slots: usize) {
        let Storage { params, states, .. } = pass.storage;
        let (at, len) = (cursor.start - part.start, cursor.len());
        let master = pass.storage.master();
        if let Some((_, bytes)) = master {
            match &mut part.master {
                Cells::Write4(x) => copy(&self.p[..len], &mut x[at..at + len]),
                Cells::Write2(x) => {
                    for (x, p) in x[at..at + len].iter_mut().zip(&self.p) {
                        *x = split_bf16(*p)[1];
                    }
                }
                _ => {}
            }
            if bytes == 2 {
                self.codes = self.p.map(|p| split_bf16(p)[0]);
            }
        }
        let key = pass.key;
        let remainder = master.is_some_and(|(_, bytes)| bytes == 2);
        let p = &mut self.p;
        let (codes, state) = (&self.codes, &self.state);
        for (span, range) in cursor.spans() {
            let flat = pass.plan.spans[span].flat + (range.start - pass.plan.spans[span].start);
            let at = range.start - part.start;
            let (mut pair, first) = part.memory.of(pass.plan, span);
            let own = range.start.wrapping_sub(first);
            let from = range.start - cursor.start..range.end - cursor.start;
            let drawn = |nth: u32| move |i: usize| key.map(|key| random(key, (flat + i) as u64, nth));
            if remainder {
                if let Cells::Write2(x) = &mut pair.p {
                    x[own..own + from.len()].copy_from_slice(&codes[from.clone()]);
                }
            } else if master.is_some() {
                pair.p.store(own, &p[from.clone()], params, |_| None);
            } else {
                pair.p.store(own, &p[from.clone()], params, drawn(0));
                if params != Format::F32 {
                    pair.p.load(own, &mut p[from.clone()], params);
                }
            }
            for (nth, (values, cells)) in (1..).zip(state.iter().zip(&mut part.state)).take(slots) {
                cells.store(at, &values[from.clone()], states, drawn(nth));
            }
            if pass.zero {
                pair.g.zero(own..own + from.len());
            }
        }
    }

    /// The elements' state.
    #[inline(always)]
    fn state<R: Twin>(&self, i: usize) -> R::State<f32> {
        R::State::<f32>::from_fn(|slot| self.state[slot][i])
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
    let mut cursor = Cursor::new(plan, block);
    let mut g = [0.0; STRIP];
    let mut squares = Squares::new();
    loop {
        for (span, range) in cursor.spans() {
            let (pair, first) = part.memory.of(plan, span);
            let to = range.start - cursor.start..range.end - cursor.start;
            pair.g.load(range.start.wrapping_sub(first), &mut g[to], grads);
        }
        for (nth, _, range, ends) in cursor.runs() {
            squares.add_range(&g, &range);
            if ends {
                part.sums[nth - block.runs.start][0] = squares.sum();
                squares = Squares::new();
            }
        }
        if !cursor.advance() {
            break;
        }
    }
}

/// The first phase of a layer-wise rule: squares of parameters and direction.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn measure<R: Twin>(pass: &Pass<'_, R::Scalars<f32>>, block: &Block, part: &mut Part<'_, '_>) {
    let mut cursor = Cursor::new(pass.plan, block);
    let mut values = Values::new();
    let mut u = [0.0; STRIP];
    let mut squares = [Squares::new(), Squares::new()];
    loop {
        values.load(pass, &cursor, part, slots::<R>().len());
        for (nth, run, range, ends) in cursor.runs() {
            let Row { scalars, factor } = pass.rows[run.row];
            for i in range.start..range.end.min(STRIP) {
                let g = prepared(values.g[i], factor, pass.bound);
                u[i] = R::direction(&scalars, values.p[i], g, &values.state::<R>(i));
            }
            squares[0].add_range(&values.p, &range);
            squares[1].add_range(&u, &range);
            if ends {
                part.sums[nth - block.runs.start] = [squares[0].sum(), squares[1].sum()];
                squares = [Squares::new(), Squares::new()];
            }
        }
        if !cursor.advance() {
            break;
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
    let mut cursor = Cursor::new(pass.plan, block);
    let mut values = Values::new();
    let mut before = values.p;
    let mut squares = [Squares::new(), Squares::new()];
    loop {
        values.load(pass, &cursor, part, slots);
        if pass.norms {
            before = values.p;
        }
        for (_, run, range, _) in cursor.runs() {
            let Row { scalars, factor } = pass.rows[run.row];
            for i in range.start..range.end.min(STRIP) {
                let mut state = values.state::<R>(i);
                let g = prepared(values.g[i], factor, pass.bound);
                R::update(&scalars, &mut values.p[i], g, &mut state);
                for slot in 0..slots {
                    values.state[slot][i] = state.get(slot);
                }
            }
        }
        values.store(pass, &cursor, part, slots);
        if let Some(weight) = pass.average {
            let (at, len) = (cursor.start - part.start, cursor.len());
            let mut ema = [0.0; STRIP];
            part.ema.load(at, &mut ema[..len], Format::F32);
            for (e, p) in ema.iter_mut().zip(&values.p) {
                *e += weight * (p - *e);
            }
            part.ema.store(at, &ema[..len], Format::F32, |_| None);
        }
        if pass.norms {
            let mut moved = values.p;
            moved.iter_mut().zip(&before).for_each(|(p, before)| *p -= before);
            for (nth, _, range, ends) in cursor.runs() {
                squares[0].add_range(&before, &range);
                squares[1].add_range(&moved, &range);
                if ends {
                    part.sums[nth - block.runs.start] = [squares[0].sum(), squares[1].sum()];
                    squares = [Squares::new(), Squares::new()];
                }
            }
        }
        if !cursor.advance() {
            break;
        }
    }
}

/// What is left to do of a skipped step.
pub(super) fn rest<S>(pass: &Pass<'_, S>, block: &Block, part: &mut Part<'_, '_>) {
    let mut cursor = Cursor::new(pass.plan, block);
    let mut values = Values::new();
    let mut squares = Squares::new();
    loop {
        if pass.norms {
            values.load(pass, &cursor, part, 0);
            for (nth, _, range, ends) in cursor.runs() {
                squares.add_range(&values.p, &range);
                if ends {
                    part.sums[nth - block.runs.start] = [squares.sum(), 0.0];
                    squares = Squares::new();
                }
            }
        }
        if pass.zero {
            for (span, range) in cursor.spans() {
                let (mut pair, first) = part.memory.of(pass.plan, span);
                pair.g.zero(range.start.wrapping_sub(first)..range.end.wrapping_sub(first));
            }
        }
        if !cursor.advance() {
            break;
        }
    }
}

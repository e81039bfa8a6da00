//! A tile of a tensor: its place, and its way from memory to a copy and back.

use super::cells::{Cells, Draw, Randoms, TILE, Tile, store_other};
use super::norms::LANES;
use super::tasks::{Plan, TensorRange};
use super::tensors::{Memory, Pair};
use crate::formats::Format;
use crate::formats::bf16::{joined_bf16, split_bf16};
use crate::options::Storage;
use crate::rules::loops::MAX_SLOTS;
use core::ops::Range;
use multiversion::multiversion;

/// The place of a tile.
pub(super) struct Place {
    /// Its elements in the part's state of its kind.
    pub(super) state: Range<usize>,
    pub(super) kind: usize,
    /// Its elements in the part's master and average.
    pub(super) beside: Range<usize>,
    /// Its elements in the caller's slices.
    pub(super) own: Range<usize>,
    /// The index of its first element in the tensor.
    pub(super) first: u64,
    /// The tensor's key for random numbers.
    pub(super) tensor: u32,
}

impl Place {
    pub(super) fn len(&self) -> usize {
        self.own.len()
    }

    #[inline(always)]
    pub(super) fn resize(&mut self, len: usize) {
        (self.state.end, self.own.end) = (self.state.start + len, self.own.start + len);
        self.beside.end = self.beside.start + len;
    }
}

/// The caller's memory of a tensor range, and the place of its first tile.
#[inline(always)]
pub(super) fn of_tensor_range<'s>(
    plan: &Plan,
    tensor_range: &TensorRange,
    memory: &'s mut Memory<'_, '_>,
    part_start: usize,
    part_kept: [usize; 2],
) -> (Pair<'s>, Place) {
    let (pair, begin) = memory.of(plan, tensor_range.span);
    // Tiles have whole blocks. A first one that begins inside of a block is shorter than a sum has lanes: its
    // end decides which lane an element behind it goes to.
    let most = match tensor_range.start % plan.scaled {
        0 => TILE,
        lane => LANES - lane,
    };
    let (span, len) = (&plan.spans[tensor_range.span], (tensor_range.end - tensor_range.start).min(most));
    let (own, beside) = (tensor_range.start.wrapping_sub(begin), tensor_range.start - part_start);
    let (first, kind) = (tensor_range.start - span.start, span.kind);
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

/// The next tile of a tensor range with `left` more elements.
#[inline(always)]
pub(super) fn next(place: &mut Place, left: usize) {
    let len = place.len();
    place.state = place.state.end..place.state.end + left.min(TILE);
    place.beside = place.beside.end..place.beside.end + left.min(TILE);
    place.own = place.own.end..place.own.end + left.min(TILE);
    place.first += len as u64;
}

/// A tile on its way from memory and back.
pub(super) struct Values {
    pub(super) p: Tile,
    pub(super) g: Tile,
    pub(super) state: [Tile; MAX_SLOTS],
    randoms: Randoms,
}

impl Values {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self {
            p: [0.0; TILE],
            g: [0.0; TILE],
            state: [[0.0; TILE]; MAX_SLOTS],
            randoms: [[0; 4]; TILE / 4 + 1],
        }
    }

    /// A tile's numbers, gradients times `power`.
    #[inline(always)]
    pub(super) fn load(
        &mut self,
        storage: &Storage,
        place: &Place,
        pair: &Pair<'_>,
        state: &[Cells<'_>],
        master: &Cells<'_>,
        power: f32,
    ) {
        self.load_params(storage, place, pair, master);
        pair.g.load(&place.own, &mut self.g, storage.grads);
        if power != 1.0 {
            self.g.iter_mut().for_each(|g| *g *= power);
        }
        for (to, cells) in self.state.iter_mut().zip(state) {
            cells.load(&place.state, to, storage.states);
        }
    }

    #[inline(always)]
    pub(super) fn load_params(
        &mut self,
        storage: &Storage,
        place: &Place,
        pair: &Pair<'_>,
        master: &Cells<'_>,
    ) {
        pair.p.load(&place.own, &mut self.p, storage.params);
        if !matches!(master, Cells::None) {
            load_master(&mut self.p, place, &pair.p, master);
        }
    }

    /// Writes parameters and state back to memory. With `reads`, [`p`](Self::p) then holds the stored
    /// parameters, or their masters.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "parameters, state, master and random numbers are apart")]
    pub(super) fn store(
        &mut self,
        storage: &Storage,
        place: &Place,
        pair: &mut Pair<'_>,
        state: &mut [Cells<'_>],
        master: &mut Cells<'_>,
        key: Option<[f32; 3]>,
        reads: bool,
    ) {
        let Place { tensor, first, .. } = *place;
        let draw = |nth: u32| key.map(|key| Draw { key, tensor, first, nth });
        let randoms = &mut self.randoms;
        if matches!(master, Cells::None) {
            pair.p.store(&place.own, &self.p, storage.params, draw(0), randoms);
            if reads && storage.params != Format::F32 {
                pair.p.load(&place.own, &mut self.p, storage.params);
            }
        } else {
            store_master(&self.p, place, &mut pair.p, master, storage.params, randoms);
        }
        for (nth, (from, cells)) in (1..).zip(self.state.iter().zip(state)) {
            cells.store(&place.state, from, storage.states, draw(nth), randoms);
        }
    }
}

/// Replaces the stored parameters in `p` by their masters.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn load_master(p: &mut Tile, place: &Place, stored: &Cells<'_>, master: &Cells<'_>) {
    if let Cells::Write4(master) = master {
        // A master of zero is not yet initialised: the stored parameter is used.
        for (p, &master) in p.iter_mut().zip(&master[place.beside.clone()]) {
            *p = if master.to_bits() == 0 { *p } else { master };
        }
    } else {
        let codes = stored.codes(place.own.clone()).iter().zip(master.codes(place.beside.clone()));
        p.iter_mut().zip(codes).for_each(|(p, (&code, &rest))| *p = joined_bf16(code, rest));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn store_master(
    p: &Tile,
    place: &Place,
    stored: &mut Cells<'_>,
    master: &mut Cells<'_>,
    params: Format,
    randoms: &mut Randoms,
) {
    if let Cells::Write4(master) = master {
        master[place.beside.clone()].copy_from_slice(&p[..place.len()]);
        store_other(stored, place.own.clone(), &p[..place.len()], params, None, randoms);
    } else {
        let codes = stored.codes_mut(place.own.clone()).iter_mut();
        let rests = master.codes_mut(place.beside.clone()).iter_mut();
        codes.zip(rests).zip(p).for_each(|((code, rest), &p)| [*code, *rest] = split_bf16(p));
    }
}

//! Stored numbers of one array, and how they are decoded and encoded.

#![allow(clippy::cast_possible_truncation, reason = "a code of 2 bytes is the lower half of a u32")]

use crate::error::BindError;
use crate::formats::Format;
use crate::formats::q8;
use crate::random::random_four;
use core::ops::Range;
use multiversion::multiversion;

/// Elements of a tile, a copy in the nearest cache. The fixed cost per tile is small beside this many.
pub(super) const TILE: usize = 512;

pub(super) type Tile = [f32; TILE];

/// Stored numbers, writable or read-only.
#[derive(Debug, Default)]
pub(crate) enum Cells<'a> {
    #[default]
    None,
    Read4(&'a [f32]),
    Read2(&'a [u16]),
    Write4(&'a mut [f32]),
    Write2(&'a mut [u16]),
    /// Codes, and the scales of their blocks, the first of which begins with the first code.
    Write1(&'a mut [u8], &'a mut [u32]),
}

impl Cells<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Read4(x) => x.len(),
            Self::Read2(x) => x.len(),
            Self::Write4(x) => x.len(),
            Self::Write2(x) => x.len(),
            Self::Write1(x, _) => x.len(),
        }
    }

    #[inline]
    pub(super) fn reborrow(&mut self) -> Cells<'_> {
        match self {
            Self::None => Cells::None,
            Self::Read4(x) => Cells::Read4(x),
            Self::Read2(x) => Cells::Read2(x),
            Self::Write4(x) => Cells::Write4(x),
            Self::Write2(x) => Cells::Write2(x),
            Self::Write1(x, scales) => Cells::Write1(x, scales),
        }
    }

    pub(super) fn split_at(self, at: usize) -> (Self, Self) {
        match self {
            Self::None => (Self::None, Self::None),
            Self::Read4(x) => {
                let (a, b) = x.split_at(at);
                (Self::Read4(a), Self::Read4(b))
            }
            Self::Read2(x) => {
                let (a, b) = x.split_at(at);
                (Self::Read2(a), Self::Read2(b))
            }
            Self::Write4(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::Write4(a), Self::Write4(b))
            }
            Self::Write2(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::Write2(a), Self::Write2(b))
            }
            Self::Write1(x, scales) => {
                let (a, b) = x.split_at_mut(at);
                let (of_a, of_b) = scales.split_at_mut(at / q8::BLOCK);
                (Self::Write1(a, of_a), Self::Write1(b, of_b))
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Read4(_) | Self::Write4(_) => 4,
            Self::Read2(_) | Self::Write2(_) => 2,
            Self::Write1(..) => 1,
        }
    }

    pub(super) fn refuse_format(&self, field: &'static str, format: Format) -> Result<(), BindError> {
        match (self.bytes(), format.bytes()) {
            (found, wanted) if found == wanted => Ok(()),
            (2, _) => Err(BindError::Format { field, format: "u16", bound: "f32, as the options say" }),
            _ => Err(BindError::Format { field, format: "f32", bound: "u16, as the options say" }),
        }
    }
}

/// The counter of random numbers: step, tensor, index of the first element in the tensor, and number of the
/// rounded value.
#[derive(Clone, Copy)]
pub(super) struct Draw {
    pub(super) key: [f32; 3],
    pub(super) tensor: u32,
    pub(super) first: u64,
    pub(super) nth: u32,
}

/// Random numbers of a tile, which may begin and end inside of a vector of four.
pub(super) type Randoms = [[u32; 4]; TILE / 4 + 1];

impl Draw {
    /// The random numbers of the next `len` elements, written to `randoms`.
    #[inline(always)]
    fn numbers(self, len: usize, randoms: &mut Randoms) -> &[u32] {
        let lead = (self.first % 4) as usize;
        let vectors = &mut randoms[..(lead + len).div_ceil(4)];
        for (vector, four) in vectors.iter_mut().zip(self.first / 4..) {
            *vector = random_four(self.key, self.tensor, four, self.nth);
        }
        &vectors.as_flattened()[lead..][..len]
    }
}

/// Loads part of a tile, or elements of fewer than 4 bytes.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn load_other(cells: &Cells<'_>, range: Range<usize>, to: &mut [f32], format: Format) {
    let codes = match cells {
        Cells::None => return,
        Cells::Read4(x) => return to.copy_from_slice(&x[range]),
        Cells::Write4(x) => return to.copy_from_slice(&x[range]),
        Cells::Write1(x, scales) => {
            let (lead, mut scales) = (lead(&range), scales[range.start / q8::BLOCK..].iter());
            let (first, whole) = x[range].split_at(lead);
            let (to_first, to) = to.split_at_mut(lead);
            let (blocks, last) = whole.as_chunks::<{ q8::BLOCK }>();
            let (to_blocks, to_last) = to.as_chunks_mut::<{ q8::BLOCK }>();
            decode_part(first, &mut scales, to_first);
            for ((codes, to), &scale) in blocks.iter().zip(to_blocks).zip(&mut scales) {
                q8::decode_block(codes, scale, to);
            }
            decode_part(last, &mut scales, to_last);
            return;
        }
        Cells::Read2(x) => &x[range],
        Cells::Write2(x) => &x[range],
    };
    // One loop per format, so that no element tests the format.
    if format == Format::F16 {
        to.iter_mut().zip(codes).for_each(|(to, &code)| *to = Format::F16.decode(code.into()));
    } else {
        to.iter_mut().zip(codes).for_each(|(to, &code)| *to = Format::Bf16.decode(code.into()));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
pub(super) fn store_other(
    cells: &mut Cells<'_>,
    range: Range<usize>,
    from: &[f32],
    format: Format,
    draw: Option<Draw>,
    randoms: &mut Randoms,
) {
    #[allow(clippy::manual_map, reason = "a closure would be compiled without the function's instructions")]
    let randoms = match draw {
        Some(draw) => Some(draw.numbers(from.len(), randoms)),
        None => None,
    };
    let codes = match cells {
        Cells::Write4(x) => return x[range].copy_from_slice(from),
        Cells::Write1(x, scales) => {
            let (lead, mut scales) = (lead(&range), scales[range.start / q8::BLOCK..].iter_mut());
            let (first, whole) = from.split_at(lead);
            let (to_first, to) = x[range].split_at_mut(lead);
            let (blocks, last) = whole.as_chunks::<{ q8::BLOCK }>();
            let (to_blocks, to_last) = to.as_chunks_mut::<{ q8::BLOCK }>();
            if let Some(randoms) = randoms {
                let (random_first, randoms) = randoms.split_at(lead);
                let (random_blocks, random_last) = randoms.as_chunks::<{ q8::BLOCK }>();
                encode_part(first, Some(random_first), &mut scales, to_first);
                let blocks = blocks.iter().zip(random_blocks).zip(to_blocks).zip(&mut scales);
                for (((from, randoms), to), scale) in blocks {
                    *scale = q8::encode_block_stochastic(from, randoms, to);
                }
                encode_part(last, Some(random_last), &mut scales, to_last);
            } else {
                encode_part(first, None, &mut scales, to_first);
                for ((from, to), scale) in blocks.iter().zip(to_blocks).zip(&mut scales) {
                    *scale = q8::encode_block(from, to);
                }
                encode_part(last, None, &mut scales, to_last);
            }
            return;
        }
        Cells::Write2(x) => &mut x[range],
        Cells::None | Cells::Read4(_) | Cells::Read2(_) => {
            unreachable!("slices that are only read are not written")
        }
    };
    // One loop per format, so that no element tests the format.
    let pairs = codes.iter_mut().zip(from);
    match (format, randoms) {
        (Format::F16, None) => pairs.for_each(|(to, &x)| *to = Format::F16.encode(x) as u16),
        (_, None) => pairs.for_each(|(to, &x)| *to = Format::Bf16.encode(x) as u16),
        (Format::F16, Some(randoms)) => pairs.zip(randoms).for_each(|((to, &x), &random)| {
            *to = Format::F16.encode_stochastic(x, random) as u16;
        }),
        (_, Some(randoms)) => pairs.zip(randoms).for_each(|((to, &x), &random)| {
            *to = Format::Bf16.encode_stochastic(x, random) as u16;
        }),
    }
}

/// The number of elements in `range` before the first start of a block.
fn lead(range: &Range<usize>) -> usize {
    (range.start.next_multiple_of(q8::BLOCK) - range.start).min(range.len())
}

/// [`q8::decode_block`] of a part of a block, if it has elements.
#[cold]
fn decode_part<'s>(codes: &[u8], scales: &mut impl Iterator<Item = &'s u32>, to: &mut [f32]) {
    if let Some(&scale) = (!codes.is_empty()).then(|| scales.next()).flatten() {
        codes.iter().zip(to).for_each(|(&code, to)| *to = q8::decode(code, scale));
    }
}

/// [`q8::encode_block`] of a part of a block, if it has elements.
#[cold]
fn encode_part<'s>(
    from: &[f32],
    randoms: Option<&[u32]>,
    scales: &mut impl Iterator<Item = &'s mut u32>,
    to: &mut [u8],
) {
    let Some(scale) = (!from.is_empty()).then(|| scales.next()).flatten() else { return };
    *scale = q8::scale(from);
    let pairs = from.iter().zip(to);
    match randoms {
        None => pairs.for_each(|(&x, to)| *to = q8::encode(x, *scale)),
        Some(randoms) => pairs.zip(randoms).for_each(|((&x, to), &random)| {
            *to = q8::encode_stochastic(x, *scale, random);
        }),
    }
}

impl Cells<'_> {
    /// Decodes `range` to the start of a tile; no cells leave it as it is.
    #[inline(always)]
    pub(super) fn load(&self, range: &Range<usize>, to: &mut Tile, format: Format) {
        if matches!(self, Self::None) {
            return;
        }
        // A whole tile is copied without a call.
        match self.numbers(range).first_chunk() {
            Some(x) => *to = *x,
            None => load_other(self, range.clone(), &mut to[..range.len()], format),
        }
    }

    /// Encodes the start of a tile, if there are cells.
    #[inline(always)]
    pub(super) fn store(
        &mut self,
        range: &Range<usize>,
        from: &Tile,
        format: Format,
        draw: Option<Draw>,
        randoms: &mut Randoms,
    ) {
        if matches!(self, Self::None) {
            return;
        }
        match self.numbers_mut(range).first_chunk_mut() {
            Some(x) => *x = *from,
            None => store_other(self, range.clone(), &from[..range.len()], format, draw, randoms),
        }
    }

    /// The stored f32 in place; empty for other formats.
    #[inline(always)]
    pub(super) fn numbers(&self, range: &Range<usize>) -> &[f32] {
        match self {
            Self::Read4(x) => &x[range.clone()],
            Self::Write4(x) => &x[range.clone()],
            Self::None | Self::Read2(_) | Self::Write2(_) | Self::Write1(..) => &[],
        }
    }

    #[inline(always)]
    pub(super) fn numbers_mut(&mut self, range: &Range<usize>) -> &mut [f32] {
        if let Self::Write4(x) = self { &mut x[range.clone()] } else { &mut [] }
    }

    /// Codes of 2 bytes.
    pub(super) fn codes(&self, range: Range<usize>) -> &[u16] {
        match self {
            Self::Read2(x) => &x[range],
            Self::Write2(x) => &x[range],
            Self::None | Self::Read4(_) | Self::Write4(_) | Self::Write1(..) => {
                unreachable!("remainders stand beside parameters of 2 bytes")
            }
        }
    }

    pub(super) fn codes_mut(&mut self, range: Range<usize>) -> &mut [u16] {
        let Self::Write2(x) = self else { unreachable!("remainders stand beside parameters of 2 bytes") };
        &mut x[range]
    }

    #[inline(always)]
    pub(super) fn zero(&mut self, range: Range<usize>) {
        match self {
            Self::Write4(x) => x[range].fill(0.0),
            Self::Write2(x) => x[range].fill(0),
            Self::None | Self::Read4(_) | Self::Read2(_) | Self::Write1(..) => {
                unreachable!("`Tensors::checked` has refused gradients that cannot be set to zero")
            }
        }
    }
}

//! Optimizer state in host memory.

use super::cells::Cells;
use super::tensors::{State, StateMut};
use crate::error::OutOfMemory;
use crate::formats::Format;
use crate::formats::q8;
use core::ops::{Deref, DerefMut, Range};

/// Numbers of all elements in their stored form.
#[derive(Clone, Debug)]
pub(super) enum Numbers {
    None,
    F32(Staggered<f32>),
    U16(Staggered<u16>),
    Q8(Staggered<u8>, Staggered<u32>),
}

/// Bytes between the starts of two slots, on top of whole pages. Large arrays begin at the same place in a
/// page. Elements of one index then compete for the same sets of a cache, and the step takes up to an eighth
/// longer. This odd multiple of 256 spreads 16 arrays over a page, and keeps their alignment to cache lines.
const STAGGER: usize = 1280;

/// Numbers that begin some bytes after the start of their memory.
#[derive(Clone, Debug)]
pub(super) struct Staggered<T> {
    all: Vec<T>,
    first: usize,
}

impl<T: Copy + Default> Staggered<T> {
    /// Zeros of the `nth` array of an optimizer.
    fn zeros(len: usize, nth: usize) -> Result<Self, OutOfMemory> {
        let first = nth * STAGGER / size_of::<T>();
        let (mut all, padded) = (Vec::new(), len.saturating_add(first));
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        all.try_reserve_exact(padded).map_err(|_| OutOfMemory { bytes })?;
        all.resize(padded, T::default());
        Ok(Self { all, first })
    }
}

impl<T> Deref for Staggered<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.all[self.first..]
    }
}

impl<T> DerefMut for Staggered<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.all[self.first..]
    }
}

impl Numbers {
    /// Zeros of the `nth` array of an optimizer.
    pub(super) fn zeros(len: usize, format: Format, nth: usize) -> Result<Self, OutOfMemory> {
        match format.bytes() {
            4 => Staggered::zeros(len, nth).map(Self::F32),
            2 => Staggered::zeros(len, nth).map(Self::U16),
            _ => Ok(Self::Q8(Staggered::zeros(len, nth)?, Staggered::zeros(len / q8::BLOCK, nth)?)),
        }
    }

    pub(super) fn cells(&mut self) -> Cells<'_> {
        match self {
            Self::None => Cells::None,
            Self::F32(x) => Cells::Write4(x),
            Self::U16(x) => Cells::Write2(x),
            Self::Q8(x, scales) => Cells::Write1(x, scales),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::F32(x) => 4 * x.len() as u64,
            Self::U16(x) => 2 * x.len() as u64,
            Self::Q8(x, scales) => x.len() as u64 + 4 * scales.len() as u64,
        }
    }

    pub(super) fn get(&self, range: Range<usize>) -> Option<State<'_>> {
        Some(match self {
            Self::None => return None,
            Self::F32(x) => State::F32(&x[range]),
            Self::U16(x) => State::U16(&x[range]),
            Self::Q8(x, scales) => State::Q8(&x[range.clone()], &scales[scales_of(range)]),
        })
    }

    pub(super) fn get_mut(&mut self, range: Range<usize>) -> Option<StateMut<'_>> {
        Some(match self {
            Self::None => return None,
            Self::F32(x) => StateMut::F32(&mut x[range]),
            Self::U16(x) => StateMut::U16(&mut x[range]),
            Self::Q8(x, scales) => StateMut::Q8(&mut x[range.clone()], &mut scales[scales_of(range)]),
        })
    }
}

/// The blocks of elements that have scales.
fn scales_of(range: Range<usize>) -> Range<usize> {
    range.start / q8::BLOCK..range.end.div_ceil(q8::BLOCK)
}

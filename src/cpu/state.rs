//! Optimizer state in host memory.

use super::cells::Cells;
use super::tensors::{State, StateMut};
use crate::error::OutOfMemory;
use crate::formats::Format;
use crate::formats::q8;
use core::ops::Range;

/// Numbers of all elements, as they are stored.
#[derive(Clone, Debug)]
pub(super) enum Numbers {
    None,
    F32(Vec<f32>),
    U16(Vec<u16>),
    Q8(Vec<u8>, Vec<u32>),
}

impl Numbers {
    pub(super) fn zeros(len: usize, format: Format) -> Result<Self, OutOfMemory> {
        fn zeros<T: Copy + Default>(len: usize) -> Result<Vec<T>, OutOfMemory> {
            let mut zeros = Vec::new();
            let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
            zeros.try_reserve_exact(len).map_err(|_| OutOfMemory { bytes })?;
            zeros.resize(len, T::default());
            Ok(zeros)
        }
        match format.bytes() {
            4 => zeros(len).map(Self::F32),
            2 => zeros(len).map(Self::U16),
            _ => Ok(Self::Q8(zeros(len)?, zeros(len / q8::BLOCK)?)),
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

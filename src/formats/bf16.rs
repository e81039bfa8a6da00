//! The format bf16, the upper half of an f32, and the split of an f32 into a bf16 and a remainder.
//! `shaders/parts/formats/bf16.wgsl` has the same functions.

use super::MAGNITUDE;
use super::half::nearest;

const INFINITE: u32 = 0x7f80;
const QUIET: u32 = 0x40;

#[inline(always)]
pub(super) fn decode(code: u32) -> f32 {
    f32::from_bits(code << 16)
}

#[inline(always)]
pub(super) fn encode(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { bits >> 16 | QUIET } else { nearest(bits, 16) }
}

#[inline(always)]
pub(super) fn encode_stochastic(x: f32, random: u32) -> u32 {
    let (bits, magnitude) = (x.to_bits(), x.to_bits() & MAGNITUDE);
    // A finite number stays finite. An infinity or NaN keeps its own upper bits.
    let most = magnitude.max((INFINITE << 16) - 1);
    let sum = (magnitude + (random & 0xffff)).min(most);
    let quiet = if magnitude > INFINITE << 16 { QUIET << 16 } else { 0 };
    (bits & !MAGNITUDE | sum | quiet) >> 16
}

/// Splits an f32 into the nearest bf16 and the lower half of the f32's bits; ties go to the larger magnitude.
///
/// [`joined_bf16`] restores every bit of a number. For a NaN it clears the lower half and sets the quiet
/// bit.
#[inline]
pub(crate) fn split_bf16(x: f32) -> [u16; 2] {
    let bits = if x.is_nan() { x.to_bits() & 0xffff_0000 | 0x40_0000 } else { x.to_bits() };
    #[allow(clippy::cast_possible_truncation, reason = "halves of 32 bits")]
    [(bits.wrapping_add(0x8000) >> 16) as u16, bits as u16]
}

/// Joins the two halves that [`split_bf16`] returns.
#[inline]
pub(crate) fn joined_bf16(code: u16, rest: u16) -> f32 {
    // No split returns a zero with such a remainder: the caller has written the zero over another number.
    let low = if code & 0x7fff == 0 && rest >= 0x8000 { 0 } else { rest };
    f32::from_bits(u32::from(code.wrapping_sub(low >> 15)) << 16 | u32::from(low))
}

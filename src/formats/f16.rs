//! The format f16, IEEE 754 binary16. `shaders/parts/formats/f16.wgsl` has the same functions.

use super::MAGNITUDE;
use super::half::{nearest, sign_16, stochastic};

const INFINITE: u32 = 0x7c00;
const QUIET: u32 = 0x7e00;
/// The bits of 2⁻¹⁴ as an f32: the smallest normal f16.
const NORMAL: u32 = (127 - 14) << 23;
/// The difference between the two exponent biases, at the place of an f32's exponent.
const REBIAS: u32 = (127 - 15) << 23;

#[inline]
pub(super) fn decode(code: u32) -> f32 {
    let (sign, magnitude) = ((code & 0x8000) << 16, code & 0x7fff);
    let bits = if magnitude >= INFINITE {
        0x7f80_0000 | (magnitude & 0x3ff) << 13
    } else if magnitude >= 1 << 10 {
        (magnitude << 13) + REBIAS
    } else {
        // A subnormal f16 counts units of 2⁻²⁴; the quotient is exact.
        (magnitude as f32 / 16_777_216.0).to_bits()
    };
    f32::from_bits(sign | bits)
}

#[inline(always)]
pub(super) fn encode(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() {
        sign_16(bits) | QUIET | bits >> 13 & 0x3ff
    } else {
        sign_16(bits) | magnitude(bits & MAGNITUDE, nearest).min(INFINITE)
    }
}

#[inline(always)]
pub(super) fn encode_stochastic(x: f32, random: u32) -> u32 {
    if !x.is_finite() {
        return encode(x);
    }
    let bits = x.to_bits();
    let code = magnitude(bits & MAGNITUDE, |magnitude, shift| stochastic(magnitude, shift, random));
    sign_16(bits) | code.min(INFINITE - 1)
}

/// Encodes a finite magnitude; `round` removes the digits that a code has no place for.
#[inline(always)]
fn magnitude(magnitude: u32, round: impl Fn(u32, u32) -> u32) -> u32 {
    if magnitude >= NORMAL {
        round(magnitude - REBIAS, 13)
    } else {
        // In units of 2⁻²⁴. A subnormal f32 gets a leading one that it does not have, and rounds to zero with
        // it too.
        round(magnitude & 0x7f_ffff | 0x80_0000, 126 - (magnitude >> 23))
    }
}

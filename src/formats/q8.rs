//! State in 8 bits: a block of numbers has one scale, and each number is a small floating-point code.
//!
//! A block is [`BLOCK`] elements of one tensor. The first block starts at a multiple of 4 in the flat space:
//! the one at or before the tensor's first element. So a tensor's first and last block may be shorter. A
//! block is stored as one code of 8 bits per element and one scale:
//!
//! ```text
//! x = ± value(c) · scale
//! signed:      sign, 4 bits e, 3 bits f      value = (1 + f / 8) · 2^(e − 15)      e = 0:  f / 8 · 2^−14
//! unsigned:          4 bits e, 4 bits f      value = (1 + f / 16) · 2^(e − 15)     e = 0:  f / 16 · 2^−14
//! ```
//!
//! A block without negative numbers is unsigned, and its scale's sign bit is set. So a mean of squares gets
//! the finer codes without a declaration by the rule.
//!
//! The scale is the block's largest magnitude, rounded to [`SCALE_BITS`] bits. So every product of a value
//! and a scale is exactly an f32. No value is above 1.
//!
//! | relative error, down to 2⁻¹⁴ of the scale | signed | unsigned |
//! | --- | --- | --- |
//! | round to nearest | 1/16 | 1/32 |
//! | stochastic rounding | 1/8 | 1/16 |
//!
//! Below 2⁻¹⁴ of the scale the absolute error stays at its bound there. Round to nearest resolves ties to the
//! larger magnitude.
//!
//! In an unsigned block a number above zero never becomes zero: a zero mean of squares beside a mean that is
//! not zero would make a step without bound. A number below 2⁻¹²⁶ is zero. A block that contains an infinity
//! or NaN decodes to NaN in all its elements.
//!
//! All arithmetic is on integers, or on floats with exact results, so all devices and CPUs compute equal
//! bits.
//!
//! Reference for scales per block: Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, ICLR
//! 2022.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "codes are the bits of integers, and their ranges are in the comments"
)]

/// Elements per block.
pub const BLOCK: usize = 32;
/// Significant bits of a scale.
pub const SCALE_BITS: u32 = 16;

/// The sign bit of a scale: set for an unsigned block.
const UNSIGNED: u32 = 1 << 31;
const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITE: u32 = 0x7f80_0000;
const NAN: u32 = 0x7fc0_0000;
/// The leading one of a mantissa.
const ONE: u32 = 1 << 23;
/// The exponent of the code for the value 1, which is the largest code.
const TOP: u32 = 15;
/// 2²³: its sum with a smaller number is rounded to an integer.
const INTEGER: f32 = 8_388_608.0;
/// Lanes of a loop over a block.
const LANES: usize = 8;
/// Binary digits of a quotient after its leading one.
const QUOTIENT: u32 = 14;
/// The most powers of two below the smallest code that keep all their digits for rounding.
const MORE: u32 = 16;

/// Returns the bits of a code after its exponent.
#[inline(always)]
fn fraction(scale: u32) -> u32 {
    if scale & UNSIGNED == 0 { 3 } else { 4 }
}

/// The scale of a block, in its stored form.
#[must_use]
#[inline(always)]
pub fn scale(block: &[f32]) -> u32 {
    // One maximum per lane: the compiler makes them a vector.
    let (mut peaks, mut largest) = ([0; LANES], [0; LANES]);
    for part in block.chunks(LANES) {
        for ((x, peak), largest) in part.iter().zip(&mut peaks).zip(&mut largest) {
            *peak = (*peak).max(x.to_bits() & MAGNITUDE);
            *largest = (*largest).max(x.to_bits());
        }
    }
    let peak = peaks.into_iter().max().unwrap_or(0);
    if peak >= INFINITE {
        return NAN;
    }
    if peak < ONE {
        return 0;
    }
    // The minimum keeps the largest f32 from becoming an infinity.
    let rounded = ((peak + 0x80) & !0xff).min(INFINITE - 0x100);
    let negative = largest.into_iter().max().unwrap_or(0) > UNSIGNED;
    if negative { rounded } else { rounded | UNSIGNED }
}

/// Whether a block of this [`scale`] is NaN in all its elements.
#[must_use]
pub fn is_lost(scale: u32) -> bool {
    scale & MAGNITUDE >= INFINITE
}

/// The distance between adjacent numbers of a block of this [`scale`] at the magnitude of `x`.
///
/// It is 0 where the scale is zero or NaN.
#[must_use]
pub fn spacing(x: f64, scale: u32) -> f64 {
    let unit = f64::from(f32::from_bits(scale & MAGNITUDE));
    if unit == 0.0 || !unit.is_finite() {
        return 0.0;
    }
    let power = (x.abs() / unit).log2().floor().clamp(1.0 - f64::from(TOP), 0.0);
    unit * (power - f64::from(fraction(scale))).exp2()
}

/// The bit of a code that is its sign, or 0.
#[inline(always)]
fn sign_bit(scale: u32) -> u32 {
    if scale & UNSIGNED == 0 { 0x80 } else { 0 }
}

/// Decodes a code in a block of this [`scale`].
#[must_use]
#[inline(always)]
pub fn decode(code: u8, scale: u32) -> f32 {
    let (code, fraction, sign_bit) = (u32::from(code), fraction(scale), sign_bit(scale));
    let (magnitude, sign) = (code & !sign_bit, (code & sign_bit) << 24);
    let normal = f32::from_bits((magnitude << (23 - fraction)) + ((127 - TOP) << 23));
    let linear = magnitude as i32 as f32 * f32::from_bits((127 + 1 - TOP - fraction) << 23);
    let value = if magnitude >> fraction == 0 { linear } else { normal };
    // The scale's mantissa with exponent 0: the product is a normal number even where the result is not.
    let product = (value * f32::from_bits(scale & (ONE - 1) | 127 << 23)).to_bits();
    let power = (scale >> 23 & 0xff) as i32 - 127;
    let smallest = ((1 - power) << 23).max(1);
    let bits =
        if (product as i32) < smallest { 0 } else { product.wrapping_add((power as u32) << 23) | sign };
    f32::from_bits(if is_lost(scale) { NAN } else { bits })
}

/// The number that the value 1 stands for, or 1 in a block without numbers.
#[inline(always)]
fn divisor(scale: u32) -> f32 {
    if stands(scale) { f32::from_bits(scale & MAGNITUDE) } else { 1.0 }
}

/// Encodes a number in a block of this [`scale`] by round to nearest; ties go to the larger magnitude.
///
/// The magnitude of `x` must not exceed the block's largest; a larger one becomes the largest code.
#[must_use]
#[inline(always)]
pub fn encode(x: f32, scale: u32) -> u8 {
    nearest(x, scale) as u8
}

#[inline(always)]
fn nearest(x: f32, scale: u32) -> u32 {
    let fraction = fraction(scale);
    // The quotient decides as if it were exact. A tie has 6 bits at most, so its product with the scale is
    // exactly an f32. An `x` below that product is below it by 2⁻²⁴ of it or more, and then the quotient does
    // not round up to the tie.
    let quotient = kept_magnitude(x, scale) / divisor(scale);
    let normal = (quotient.to_bits() + (1 << (22 - fraction))) >> (23 - fraction);
    let normal = normal.wrapping_sub((127 - TOP) << fraction);
    // Below the smallest exponent codes are linear. The sum rounds ties to even; a tie that went down is
    // raised.
    let units = quotient * f32::from_bits((127 - 1 + TOP + fraction) << 23);
    let integer = units + INTEGER;
    let down = units - (integer - INTEGER) == 0.5;
    let linear = integer.to_bits().wrapping_sub(INTEGER.to_bits()) + u32::from(down);
    let small = quotient < f32::from_bits((128 - TOP) << 23);
    finished(x, scale, if small { linear } else { normal })
}

/// Encodes a number in a block of this [`scale`] by stochastic rounding, so that the expected value is `x`.
///
/// The result is one of the two codes around `x`; each is as probable as `x` is close to it. `random` is a
/// uniform 32-bit number. One expected value differs: below the smallest code of an unsigned block, the
/// result is that code.
#[must_use]
#[inline(always)]
pub fn encode_stochastic(x: f32, scale: u32, random: u32) -> u8 {
    stochastic(x, scale, random) as u8
}

#[inline(always)]
fn stochastic(x: f32, scale: u32, random: u32) -> u32 {
    let (magnitude, exponent) = (x.to_bits() & MAGNITUDE, scale >> 23 & 0xff);
    let divisor = (scale & (ONE - 1) | ONE) >> 8;
    // The quotient gets stochastic rounding too. A quotient rounded down would lower a slow running mean in
    // every step. It lies between 2^13 and 2^15, in units of 2^−14 of the mantissas' quotient.
    let part = ((random >> 16) * divisor) >> 16;
    let quotient = divided(((magnitude & (ONE - 1) | ONE) << 6) + part, divisor);
    let below = quotient >> QUOTIENT == 0;
    let digits = if below { quotient << 1 } else { quotient };
    let power = (magnitude >> 23) as i32 + TOP as i32 - exponent as i32 - i32::from(below);
    // Below the smallest exponent codes are linear, and each power of two loses one more digit.
    let more = (1 - power).max(0) as u32;
    let normal = digits.wrapping_add((power.wrapping_sub(1) as u32) << QUOTIENT);
    let linear = digits >> (more - more.min(MORE)).min(31);
    let position = if more == 0 { normal } else { linear };
    let lost = QUOTIENT - fraction(scale) + more.min(MORE);
    let rounded = position.wrapping_add(random & ((1 << lost) - 1)) >> lost;
    finished(x, scale, if kept_magnitude(x, scale) > 0.0 { rounded } else { 0 })
}

/// Whether a block of this scale has numbers: it is not zero and not lost.
#[inline(always)]
fn stands(scale: u32) -> bool {
    !matches!(scale & INFINITE, 0 | INFINITE)
}

/// The magnitude, or 0 for a number that becomes zero.
#[inline(always)]
fn kept_magnitude(x: f32, scale: u32) -> f32 {
    let smallest = if stands(scale) { f32::MIN_POSITIVE } else { f32::NAN };
    if x.abs() >= smallest { x.abs() } else { 0.0 }
}

/// The code of `x` from its rounded magnitude. It has no branch, so the compiler vectorises loops over it.
#[inline(always)]
fn finished(x: f32, scale: u32, rounded: u32) -> u32 {
    let least = if kept_magnitude(x, scale) > 0.0 { scale >> 31 } else { 0 };
    let code = rounded.min(TOP << fraction(scale)).max(least);
    let sign = x.to_bits() >> 24 & sign_bit(scale);
    if code == 0 { 0 } else { code | sign }
}

/// Returns `⌊n / d⌋` exactly, for `n` below 2³¹ − 2¹⁶, `d` below 2¹⁶ and a quotient below 2¹⁷.
///
/// The quotient in f32 is off by 2⁻⁵ at most. So the nearest integer is the floor or one more.
#[inline(always)]
fn divided(n: u32, d: u32) -> u32 {
    let quotient = n as i32 as f32 * (1.0 / d as i32 as f32);
    let near = (quotient + INTEGER).to_bits() as i32 - INTEGER.to_bits() as i32;
    (near - i32::from(near * d as i32 > n as i32)) as u32
}

/// Decodes a block.
#[inline(always)]
pub(crate) fn decode_block(codes: &[u8; BLOCK], scale: u32, to: &mut [f32; BLOCK]) {
    for (&code, to) in codes.iter().zip(to) {
        *to = decode(code, scale);
    }
}

/// Encodes a block and returns its scale.
#[inline(always)]
pub(crate) fn encode_block(from: &[f32; BLOCK], to: &mut [u8; BLOCK]) -> u32 {
    let (scale, mut codes) = (scale(from), [0; BLOCK]);
    for (&x, code) in from.iter().zip(&mut codes) {
        *code = nearest(x, scale);
    }
    narrow(&codes, to);
    scale
}

/// Encodes a block by stochastic rounding and returns its scale.
#[inline(always)]
pub(crate) fn encode_block_stochastic(
    from: &[f32; BLOCK],
    randoms: &[u32; BLOCK],
    to: &mut [u8; BLOCK],
) -> u32 {
    let (scale, mut codes) = (scale(from), [0; BLOCK]);
    for ((&x, &random), code) in from.iter().zip(randoms).zip(&mut codes) {
        *code = stochastic(x, scale, random);
    }
    narrow(&codes, to);
    scale
}

/// Stores codes in 8 bits. It is apart from the arithmetic: in one loop, a compiler would mix 8 and 32 bits.
#[inline(always)]
fn narrow(codes: &[u32; BLOCK], to: &mut [u8; BLOCK]) {
    for (&code, to) in codes.iter().zip(to) {
        *to = code as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every divisor, beside multiples of it over the whole range of numerators.
    #[test]
    fn divided_is_the_floor() {
        let mut checked = 0u64;
        for d in 1u32 << 15..1 << 16 {
            for k in [1u32 << 13, (1 << 13) + d % 997, 1 << 14, 20_011, 32_767, 32_768] {
                let numerators = [k * d - 1, k * d, k * d + 1, k * d + d / 2];
                for n in numerators.into_iter().filter(|&n| n < (1 << 31) - (1 << 16)) {
                    assert_eq!(divided(n, d), n / d, "{n} / {d}");
                    checked += 1;
                }
            }
        }
        assert!(checked > (1 << 15) * 23, "{checked}");
    }
}

//! State in 8 bits: blocks of numbers, each a small floating-point number beside a scale that the block has in common.
//!
//! A block is [`BLOCK`] elements of one tensor, counted from the multiple of 4 in the flat space at or before the tensor's first: the first and the last one may be shorter. What is
//! stored of it is a code of 8 bits for every element and one scale:
//!
//! ```text
//! x = ± value(c) · scale
//! signed:      sign, 4 bits e, 3 bits f      value = (1 + f / 8) · 2^(e − 15)      e = 0:  f / 8 · 2^−14
//! unsigned:          4 bits e, 4 bits f      value = (1 + f / 16) · 2^(e − 15)     e = 0:  f / 16 · 2^−14
//! ```
//!
//! A block in which nothing is negative is unsigned, and its scale's sign bit says so: mean squares need no word from the rule. The scale is the block's largest
//! magnitude, rounded to [`SCALE_BITS`] bits, so that every product of a value and a scale is an f32, exactly; no value is above 1. Rounded to the nearest, a number is off by
//! 1/16 of itself at most (signed) or 1/32 (unsigned), at random by 1/8 or 1/16, down to 2⁻¹⁴ of the largest, and from there on by the same amount.
//!
//! Numbers are rounded to the nearest, of two the larger in magnitude, or at random; in an unsigned block what is not zero stays so, for a mean square of zero under a mean that is
//! not would make a step without bound. What is below 2⁻¹²⁶ is zero. A block with a number that is not finite is NaN, all of it.
//!
//! All of it is integer arithmetic, but for products that are exact: devices and CPUs have the same bits. Block-wise scales are those of Tim Dettmers et al., *8-bit Optimizers via Block-wise
//! Quantization*, ICLR 2022.

/// Elements of a block.
pub const BLOCK: usize = 32;
/// Significant bits of a scale.
pub const SCALE_BITS: u32 = 16;

/// The sign bit of a scale, of an unsigned block.
const UNSIGNED: u32 = 1 << 31;
const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITE: u32 = 0x7f80_0000;
const NAN: u32 = 0x7fc0_0000;
/// The leading one of a mantissa.
const ONE: u32 = 1 << 23;
/// The exponent of codes from the value 1 on, of which that is the only one.
const TOP: u32 = 15;
/// Binary digits of a quotient, behind its leading one.
const QUOTIENT: u32 = 14;
/// Of numbers that are smaller than the least code by more powers of two, digits are cut off.
const MORE: u32 = 16;

/// Bits of a code behind its exponent.
#[inline(always)]
fn fraction(scale: u32) -> u32 {
    if scale & UNSIGNED == 0 { 3 } else { 4 }
}

/// The scale of a block, as it is stored.
#[must_use]
pub fn scale(block: &[f32]) -> u32 {
    let peak = block.iter().map(|x| x.to_bits() & MAGNITUDE).max().unwrap_or(0);
    if peak >= INFINITE {
        return NAN;
    }
    if peak < ONE {
        return 0;
    }
    // The largest f32 is not rounded up to an infinity.
    let rounded = ((peak + 0x80) & !0xff).min(INFINITE - 0x100);
    // Of all of them, for a loop without a way out is vectorised.
    let negative = block.iter().fold(false, |any, x| any | (x.to_bits() > UNSIGNED));
    if negative { rounded } else { rounded | UNSIGNED }
}

/// Whether all of a block is NaN.
#[must_use]
pub fn is_lost(scale: u32) -> bool {
    scale & MAGNITUDE >= INFINITE
}

/// The distance between the numbers around `x` that a block of this [`scale`] has, for the magnitude of `x`; 0 without a scale.
#[must_use]
pub fn spacing(x: f64, scale: u32) -> f64 {
    let unit = f64::from(f32::from_bits(scale & MAGNITUDE));
    if unit == 0.0 || !unit.is_finite() {
        return 0.0;
    }
    let power = (x.abs() / unit).log2().floor().clamp(1.0 - f64::from(TOP), 0.0);
    unit * (power - f64::from(fraction(scale))).exp2()
}

/// The number that `code` stands for in a block of this scale.
#[must_use]
#[inline]
pub fn decode(code: u8, scale: u32) -> f32 {
    let exponent = scale >> 23 & 0xff;
    if exponent == 0xff {
        return f32::from_bits(NAN);
    }
    let fraction = fraction(scale);
    let magnitude = if fraction == 3 { code & 0x7f } else { code };
    let (bits, sign) = (u32::from(magnitude), u32::from(code ^ magnitude) << 24);
    let value = if bits >> fraction == 0 {
        f32::from(magnitude) * f32::from_bits((127 + 1 - TOP - fraction) << 23)
    } else {
        f32::from_bits((bits << (23 - fraction)) + ((127 - TOP) << 23))
    };
    // With an exponent of 0, so that it is a normal number.
    let product = (value * f32::from_bits(scale & (ONE - 1) | 127 << 23)).to_bits();
    let stands = bits > 0 && (product >> 23) + exponent > 127;
    f32::from_bits(if stands { sign | (product + (exponent << 23) - (127 << 23)) } else { 0 })
}

/// The nearest code in a block of this [`scale`], of two the larger in magnitude. `x` is not larger than what the scale is of.
#[must_use]
#[inline]
pub fn encode(x: f32, scale: u32) -> u8 {
    rounded(x, scale, 0, |lost| 1 << (lost - 1))
}

/// One of the two codes around `x`, the nearer with the higher probability, so that the mean is `x`, but for what is less than the least code of an unsigned block, which it becomes; `random` is
/// a uniform 32-bit number.
#[must_use]
#[inline]
pub fn encode_stochastic(x: f32, scale: u32, random: u32) -> u8 {
    // The quotient too is rounded at random: if it always were down, a slow running mean would sink by that in every step.
    rounded(x, scale, random >> 16, |lost| random & ((1 << lost) - 1))
}

/// `part` is added to the quotient, in units of 2⁻¹⁶, and `addend` to the digits that a code does not have, of which it is told the number. Without a branch, so that loops over it are
/// vectorised.
#[inline(always)]
fn rounded(x: f32, scale: u32, part: u32, addend: impl Fn(u32) -> u32) -> u8 {
    let (bits, exponent) = (x.to_bits(), scale >> 23 & 0xff);
    let magnitude = bits & MAGNITUDE;
    let divisor = (scale & (ONE - 1) | ONE) >> 8;
    // From 2^13 to 2^15, and its last digit is 2^−14 of the mantissas' quotient.
    let quotient = divided(((magnitude & (ONE - 1) | ONE) << 6) + ((part * divisor) >> 16), divisor);
    let below = quotient >> QUOTIENT == 0;
    let digits = if below { quotient << 1 } else { quotient };
    let power = (magnitude >> 23) as i32 + TOP as i32 - exponent as i32 - i32::from(below);
    // What is left of the exponent's last bit is linear, and loses a digit more for every power.
    let more = (1 - power).max(0) as u32;
    let normal = digits.wrapping_add((power.wrapping_sub(1) as u32) << QUOTIENT);
    let linear = digits >> (more - more.min(MORE)).min(31);
    let position = if more == 0 { normal } else { linear };
    let fraction = fraction(scale);
    let lost = QUOTIENT - fraction + more.min(MORE);
    let code = (position.wrapping_add(addend(lost)) >> lost).min(TOP << fraction);
    let sign = if code == 0 { 0 } else { bits >> 24 & 0x80 };
    let code = if fraction == 3 { code | sign } else { code.max(1) };
    let none = magnitude < ONE || exponent == 0 || exponent == 0xff;
    if none { 0 } else { code as u8 }
}

/// `⌊n / d⌋` of `n` below 2³¹ and `d` below 2¹⁶, exactly: `(n + ½) / d` lies half of `1 / d` from an integer at least, far more than f64 may lose, and 2⁵² more has no digits behind the point.
#[inline(always)]
fn divided(n: u32, d: u32) -> u32 {
    let quotient = (f64::from(n as i32) + 0.5) * (1.0 / f64::from(d as i32));
    (quotient - 0.5 + (1u64 << 52) as f64).to_bits() as u32
}

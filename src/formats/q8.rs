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
pub fn scale(block: &[f32]) -> u32 {
    let peak = block.iter().map(|x| x.to_bits() & MAGNITUDE).max().unwrap_or(0);
    if peak >= INFINITE {
        return NAN;
    }
    if peak < ONE {
        return 0;
    }
    // The minimum keeps the largest f32 from becoming an infinity.
    let rounded = ((peak + 0x80) & !0xff).min(INFINITE - 0x100);
    // A fold over all elements, since the compiler vectorises no loop with an early exit.
    let negative = block.iter().fold(false, |any, x| any | (x.to_bits() > UNSIGNED));
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

/// Decodes a code in a block of this [`scale`].
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
    // The scale's mantissa with exponent 0: the product is a normal number even where the result is not.
    let product = (value * f32::from_bits(scale & (ONE - 1) | 127 << 23)).to_bits();
    let stands = bits > 0 && (product >> 23) + exponent > 127;
    f32::from_bits(if stands { sign | (product + (exponent << 23) - (127 << 23)) } else { 0 })
}

/// Encodes a number in a block of this [`scale`] by round to nearest; ties go to the larger magnitude.
///
/// The magnitude of `x` must not exceed the block's largest; a larger one becomes the largest code.
#[must_use]
#[inline]
pub fn encode(x: f32, scale: u32) -> u8 {
    rounded(x, scale, 0, |lost| 1 << (lost - 1))
}

/// Encodes a number in a block of this [`scale`] by stochastic rounding, so that the expected value is `x`.
///
/// The result is one of the two codes around `x`; each is as probable as `x` is close to it. `random` is a
/// uniform 32-bit number. One expected value differs: below the smallest code of an unsigned block, the
/// result is that code.
#[must_use]
#[inline]
pub fn encode_stochastic(x: f32, scale: u32, random: u32) -> u8 {
    // The quotient gets stochastic rounding too. A quotient rounded down would lower a slow running mean in
    // every step.
    rounded(x, scale, random >> 16, |lost| random & ((1 << lost) - 1))
}

/// Encodes `x` by the rounding that `part` and `addend` define.
///
/// `part` is added to the quotient in units of 2⁻¹⁶ of its last digit. `addend` returns the number to add
/// before the digits that a code has no place for are cut off; its argument is how many digits these are. The
/// body has no branch, so the compiler vectorises loops over it.
#[inline(always)]
fn rounded(x: f32, scale: u32, part: u32, addend: impl Fn(u32) -> u32) -> u8 {
    let (bits, exponent) = (x.to_bits(), scale >> 23 & 0xff);
    let magnitude = bits & MAGNITUDE;
    let divisor = (scale & (ONE - 1) | ONE) >> 8;
    // Between 2^13 and 2^15, in units of 2^−14 of the mantissas' quotient.
    let quotient = divided(((magnitude & (ONE - 1) | ONE) << 6) + ((part * divisor) >> 16), divisor);
    let below = quotient >> QUOTIENT == 0;
    let digits = if below { quotient << 1 } else { quotient };
    let power = (magnitude >> 23) as i32 + TOP as i32 - exponent as i32 - i32::from(below);
    // Below the smallest exponent codes are linear, and each power of two loses one more digit.
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

/// Returns `⌊n / d⌋` exactly, for `n` below 2³¹ and `d` below 2¹⁶.
///
/// `(n + ½) / d` is at least `½ / d` away from every integer, which is far more than the rounding error of
/// f64. Adding 2⁵² then removes the digits after the point.
#[inline(always)]
fn divided(n: u32, d: u32) -> u32 {
    let quotient = (f64::from(n as i32) + 0.5) * (1.0 / f64::from(d as i32));
    (quotient - 0.5 + (1u64 << 52) as f64).to_bits() as u32
}

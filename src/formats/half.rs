//! The parts that the formats of 2 bytes share: the sign and the two ways of rounding.
//! `shaders/parts/formats/half.wgsl` has the same functions.

/// Moves the sign of an f32 to the sign bit of a code of 16 bits.
#[inline]
pub(super) fn sign_16(bits: u32) -> u32 {
    bits >> 16 & 0x8000
}

/// Rounds `m / 2^shift` to nearest; ties go to the even code. `m` has at most 24 digits where `shift` is
/// above 16.
#[inline(always)]
pub(super) fn nearest(m: u32, shift: u32) -> u32 {
    let shift = shift.min(25);
    (m + (1 << (shift - 1)) - 1 + (m >> shift & 1)) >> shift
}

/// Rounds `m / 2^shift` stochastically: up with the probability of the fraction, otherwise down.
#[inline(always)]
pub(super) fn stochastic(m: u32, shift: u32, random: u32) -> u32 {
    let most = shift.min(31);
    // A draw has 32 bits, so the digits below the 31st of a fraction are dropped.
    let m = m >> (shift - most).min(31);
    (m + (random & ((1 << most) - 1))) >> most
}

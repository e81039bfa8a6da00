//! Storage formats: what decodes a stored number to `f32`, and what encodes it. Each has a twin in `shaders/formats`, equal bit for bit.

use crate::q8;

/// How numbers are stored. Arithmetic is in f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Format {
    /// IEEE 754 binary32: 4 bytes.
    #[default]
    F32,
    /// IEEE 754 binary16: 2 bytes, 11 bits of precision, at most 65 504, subnormal below 6.1·10⁻⁵.
    F16,
    /// The upper half of an f32: 2 bytes, 8 bits of precision, f32's range.
    Bf16,
    /// Blocks of 32 numbers of 8 bits with a scale in common, for state alone: 1.125 bytes. See [`q8`].
    Q8,
}

impl Format {
    /// What parameters and gradients can be stored as.
    pub const TENSORS: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];
    /// What state can be stored as.
    pub const STATES: [Self; 3] = [Self::F32, Self::Bf16, Self::Q8];
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8];

    /// The name in shaders and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }

    /// Bytes of an element, without its share in what a [block](Self::block) has in common.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8 => 1,
        }
    }

    /// Elements of a block, which has a scale of 4 bytes; `None` if every number stands for itself.
    #[must_use]
    pub fn block(self) -> Option<u64> {
        (self == Self::Q8).then_some(q8::BLOCK as u64)
    }

    /// Bytes of a tensor of `len` elements.
    #[must_use]
    pub fn tensor_bytes(self, len: u64) -> u64 {
        len * self.bytes() + self.block().map_or(0, |block| len.div_ceil(block) * 4)
    }

    /// The number that `bits` stand for; those of 2 bytes are the lower half. A code of [`Q8`](Self::Q8) stands for nothing without its block: here and in the functions
    /// below, it is the f32 that a block is made of. [`q8`] has the rest.
    #[must_use]
    #[inline]
    pub fn decode(self, bits: u32) -> f32 {
        match self {
            Self::F32 | Self::Q8 => f32::from_bits(bits),
            Self::F16 => decode_f16(bits),
            Self::Bf16 => f32::from_bits(bits << 16),
        }
    }

    /// The nearest stored number, of two the even one. Beyond the largest it is an infinity; NaN stays NaN.
    #[must_use]
    #[inline]
    pub fn encode(self, x: f32) -> u32 {
        let bits = x.to_bits();
        match self {
            Self::F32 | Self::Q8 => bits,
            Self::F16 if x.is_nan() => sign_16(bits) | QUIET_F16 | bits >> 13 & 0x3ff,
            Self::F16 => sign_16(bits) | f16_magnitude(bits & MAGNITUDE, nearest).min(INFINITE_F16),
            Self::Bf16 if x.is_nan() => bits >> 16 | QUIET_BF16,
            Self::Bf16 => nearest(bits, 16),
        }
    }

    /// The distance between the numbers around `x` that this format has, for the magnitude of `x`.
    #[must_use]
    pub fn spacing(self, x: f64) -> f64 {
        let (digits, least) = match self {
            Self::F32 | Self::Q8 => (23, -149),
            Self::F16 => (10, -24),
            Self::Bf16 => (7, -133),
        };
        // The power of two at or below x; of zero and subnormal numbers less than any here.
        let exponent = (x.abs().to_bits() >> 52) as i32 - 1_023;
        f64::from((exponent - digits).max(least)).exp2()
    }

    /// One of the two neighbours of `x`, the nearer with the higher probability, so that the mean is `x`; `random` is a uniform 32-bit number. Never beyond
    /// the largest finite number; infinities and NaN stay what they are, and f32 stays as it is.
    #[must_use]
    #[inline]
    pub fn encode_stochastic(self, x: f32, random: u32) -> u32 {
        let bits = x.to_bits();
        let up = |magnitude, shift| stochastic(magnitude, shift, random);
        match self {
            Self::F16 if x.is_finite() => {
                sign_16(bits) | f16_magnitude(bits & MAGNITUDE, up).min(INFINITE_F16 - 1)
            }
            Self::Bf16 if x.is_finite() => sign_16(bits) | up(bits & MAGNITUDE, 16).min(INFINITE_BF16 - 1),
            _ => self.encode(x),
        }
    }
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITE_F16: u32 = 0x7c00;
const INFINITE_BF16: u32 = 0x7f80;
const QUIET_F16: u32 = 0x7e00;
const QUIET_BF16: u32 = 0x40;
/// 2⁻¹⁴ as f32, the least normal f16.
const NORMAL_F16: u32 = (127 - 14) << 23;
/// What the exponents' biases differ by.
const REBIAS: u32 = (127 - 15) << 23;

#[inline]
fn sign_16(bits: u32) -> u32 {
    bits >> 16 & 0x8000
}

#[inline]
fn decode_f16(code: u32) -> f32 {
    let (sign, magnitude) = ((code & 0x8000) << 16, code & 0x7fff);
    let bits = if magnitude >= INFINITE_F16 {
        0x7f80_0000 | (magnitude & 0x3ff) << 13
    } else if magnitude >= 1 << 10 {
        (magnitude << 13) + REBIAS
    } else {
        // 2⁻²⁴ each, exactly.
        (magnitude as f32 / 16_777_216.0).to_bits()
    };
    f32::from_bits(sign | bits)
}

/// The code of a finite magnitude, whose lower digits `round` takes away.
#[inline(always)]
fn f16_magnitude(magnitude: u32, round: impl Fn(u32, u32) -> u32) -> u32 {
    if magnitude >= NORMAL_F16 {
        round(magnitude - REBIAS, 13)
    } else {
        // In units of 2⁻²⁴. A subnormal f32 is nothing beside them, and so is what its leading digit is taken for here.
        round(magnitude & 0x7f_ffff | 0x80_0000, 126 - (magnitude >> 23))
    }
}

/// `m / 2^shift`, of two equally near the even one; 24 digits at most where the shift is above 16.
#[inline(always)]
fn nearest(m: u32, shift: u32) -> u32 {
    let shift = shift.min(25);
    (m + (1 << (shift - 1)) - 1 + (m >> shift & 1)) >> shift
}

/// `m / 2^shift`, rounded up with the probability that its fraction says.
#[inline(always)]
fn stochastic(m: u32, shift: u32, random: u32) -> u32 {
    let most = shift.min(31);
    // Probabilities below 2⁻³¹ have to do.
    let m = m >> (shift - most).min(31);
    (m + (random & ((1 << most) - 1))) >> most
}

/// What stands for a tensor's name in random numbers.
pub(crate) fn tensor_key(name: &str) -> u32 {
    // Words of eight bytes and the length, mixed one after another.
    let words = name.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(mixed(name.len() as u64), |hash, word| mixed(hash ^ word)) as u32
}

/// An f32 as the bf16 that is nearest, of two the larger in magnitude, and the lower half of its bits: the f32 again, but for what NaN carries there.
#[inline]
pub(crate) fn split_bf16(x: f32) -> [u16; 2] {
    let bits = if x.is_nan() { x.to_bits() & 0xffff_0000 | 0x40_0000 } else { x.to_bits() };
    [(bits.wrapping_add(0x8000) >> 16) as u16, bits as u16]
}

/// What [`split_bf16`] has split.
#[inline]
pub(crate) fn joined_bf16(code: u16, rest: u16) -> f32 {
    // A zero with such a remainder is the caller's, and not what we have written.
    let low = if code & 0x7fff == 0 && rest >= 0x8000 { 0 } else { rest };
    f32::from_bits(u32::from(code.wrapping_sub(low >> 15)) << 16 | u32::from(low))
}

/// Random numbers of the `nth` value of a vector of four elements of a tensor, under a [`step_key`] and a [`tensor_key`].
#[inline(always)]
pub(crate) fn random_four(key: [f32; 3], tensor: u32, four: u64, nth: u32) -> [u32; 4] {
    let [x, y, z] = key.map(|part| part as u32);
    let mut v = [four as u32, x | y << 16, z | nth << 16, tensor]
        .map(|v| v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let rounds = |v: &mut [u32; 4]| {
        v[0] = v[0].wrapping_add(v[1].wrapping_mul(v[3]));
        v[1] = v[1].wrapping_add(v[2].wrapping_mul(v[0]));
        v[2] = v[2].wrapping_add(v[0].wrapping_mul(v[1]));
        v[3] = v[3].wrapping_add(v[1].wrapping_mul(v[2]));
    };
    rounds(&mut v);
    v = v.map(|v| v ^ v >> 16);
    rounds(&mut v);
    v.map(|v| v ^ v >> 16)
}

/// 48 random bits of step `t`, in three parts that an f32 holds.
pub(crate) fn step_key(seed: u64, t: u64) -> [f32; 3] {
    // SplitMix64 (Steele, Lea and Flood, 2014), twice: once to part seeds that lie side by side.
    let bits = mixed(mixed(seed).wrapping_add(t));
    [bits, bits >> 16, bits >> 32].map(|part| f32::from(part as u16))
}

fn mixed(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// A well-known implementation's codes.
    fn peer(format: Format, x: f32) -> u32 {
        match format {
            Format::F32 | Format::Q8 => x.to_bits(),
            Format::F16 => f16::from_f32(x).to_bits().into(),
            Format::Bf16 => bf16::from_f32(x).to_bits().into(),
        }
    }

    #[test]
    fn every_code_is_decoded() {
        for code in 0..=u16::MAX {
            let peers = [
                (Format::F16, f16::from_bits(code).to_f32()),
                (Format::Bf16, bf16::from_bits(code).to_f32()),
            ];
            for (format, want) in peers {
                // Signalling NaN stay that; the other implementation quiets them.
                let quiet = if want.is_nan() { 0x40_0000 } else { 0 };
                let bits = format.decode(code.into()).to_bits();
                assert_eq!(bits | quiet, want.to_bits() | quiet, "{format:?} {code:#x}");
            }
            for format in [Format::F16, Format::Bf16] {
                let x = format.decode(code.into());
                let again = format.encode(x);
                assert!(
                    again == u32::from(code) || x.is_nan() && format.decode(again).is_nan(),
                    "{format:?} {code:#x}"
                );
            }
        }
    }

    #[test]
    fn spacing_is_that_of_the_codes() {
        for format in [Format::F16, Format::Bf16] {
            for code in (0..0x7fff).filter(|&code| format.decode(code + 1).is_finite()) {
                let [low, high] = [code, code + 1].map(|code| f64::from(format.decode(code)));
                assert_eq!(format.spacing(low), high - low, "{format:?} {code:#x}");
                assert_eq!(format.spacing(-low), high - low);
            }
        }
        assert_eq!(Format::F32.spacing(1.5), f64::from(f32::EPSILON));
    }

    /// Every exponent and sign, with all leading digits and the ones around every tie.
    #[test]
    fn the_nearest_code() {
        for format in [Format::F16, Format::Bf16] {
            for high in 0..=u16::MAX {
                for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x7fff, 0x8000, 0x8001, 0xffff] {
                    let x = f32::from_bits(u32::from(high) << 16 | low);
                    assert_eq!(format.encode(x), peer(format, x), "{format:?} {x:e} {:#x}", x.to_bits());
                }
            }
        }
    }

    /// Rounded up as often as the fraction says: with all values of the random digits that matter.
    #[test]
    fn stochastic_rounding_has_the_mean_of_the_number() {
        for (format, x, codes) in [
            (Format::Bf16, 1.0 + 0.3 / 128.0, 16),
            (Format::Bf16, -3.0e38, 16),
            (Format::F16, 1.0 + 0.7 / 1_024.0, 13),
            (Format::F16, -5.3e-8, 24),
            (Format::F16, 2.2e-5, 20),
        ] {
            let draws = 1u32 << codes;
            let sum: f64 = (0..draws).map(|r| f64::from(format.decode(format.encode_stochastic(x, r)))).sum();
            let (mean, x) = (sum / f64::from(draws), f64::from(x));
            assert!((mean - x).abs() <= 1e-12 * x.abs(), "{format:?}: mean {mean:e} of {x:e}");
        }
        for format in [Format::F16, Format::Bf16] {
            for code in (0..=u16::MAX).map(u32::from) {
                let x = format.decode(code);
                for random in [0, 1, u32::MAX] {
                    let again = format.encode_stochastic(x, random);
                    assert!(again == code || x.is_nan(), "{format:?} {code:#x} has no neighbours");
                }
            }
            assert!(format.decode(format.encode_stochastic(f32::MAX, u32::MAX)).is_finite());
            assert!(format.decode(format.encode_stochastic(-f32::INFINITY, 0)) == -f32::INFINITY);
        }
    }
}

//! Storage formats: how a number is encoded into stored bits and decoded from them.
//!
//! `shaders/parts/formats` has the same functions in WGSL, which return the same bits.

pub(crate) mod bf16;
mod f16;
mod half;
pub mod q8;

/// The sign bit of an f32 cleared.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// A storage format of numbers. Arithmetic is always in f32.
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
    /// Blocks of 32 numbers of 8 bits with a common scale, for state only: 1.125 bytes per element. See
    /// [`q8`].
    Q8,
}

impl Format {
    /// The formats for parameters and gradients.
    pub const TENSORS: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];
    /// The formats for state.
    pub const STATES: [Self; 3] = [Self::F32, Self::Bf16, Self::Q8];
    /// All formats.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8];

    /// The format's name in shaders and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }

    /// Bytes per element, without its share of a [block](Self::block)'s scale.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8 => 1,
        }
    }

    /// Elements per block, if the format has blocks. A block has one scale of 4 bytes.
    #[must_use]
    pub fn block(self) -> Option<u64> {
        (self == Self::Q8).then_some(q8::BLOCK as u64)
    }

    /// Bytes of a tensor of `len` elements, with the scales of its blocks; at most `u64::MAX`.
    #[must_use]
    pub fn tensor_bytes(self, len: u64) -> u64 {
        let scales = self.block().map_or(0, |block| len.div_ceil(block) * 4);
        len.saturating_mul(self.bytes()).saturating_add(scales)
    }

    /// Decodes a stored number. A number of 2 bytes is the lower half of `bits`.
    ///
    /// A code of [`Q8`](Self::Q8) has no value without the scale of its block. For that format, `bits` are
    /// those of the f32 before its block is encoded, here and in the functions below; [`q8`] encodes and
    /// decodes blocks.
    #[must_use]
    #[inline]
    pub fn decode(self, bits: u32) -> f32 {
        match self {
            Self::F32 | Self::Q8 => f32::from_bits(bits),
            Self::F16 => f16::decode(bits),
            Self::Bf16 => bf16::decode(bits),
        }
    }

    /// Encodes a number by round to nearest; ties go to the even code.
    ///
    /// A number beyond the largest finite one becomes an infinity. NaN stays NaN.
    #[must_use]
    #[inline]
    pub fn encode(self, x: f32) -> u32 {
        match self {
            Self::F32 | Self::Q8 => x.to_bits(),
            Self::F16 => f16::encode(x),
            Self::Bf16 => bf16::encode(x),
        }
    }

    /// The distance between adjacent numbers of this format at the magnitude of `x`.
    #[must_use]
    pub fn spacing(self, x: f64) -> f64 {
        let (digits, least) = match self {
            Self::F32 | Self::Q8 => (23, -149),
            Self::F16 => (10, -24),
            Self::Bf16 => (7, -133),
        };
        // The power of two at or below x. Zero and subnormal f64 have a smaller one than any format here.
        let exponent = (x.abs().to_bits() >> 52) as i32 - 1_023;
        f64::from((exponent - digits).max(least)).exp2()
    }

    /// Encodes a number by stochastic rounding, so that the expected value is `x`.
    ///
    /// The result is one of the two neighbours of `x`; each is as probable as `x` is close to it. `random` is
    /// a uniform 32-bit number. A finite number never becomes an infinity. Infinities, NaN and numbers in f32
    /// are unchanged.
    #[must_use]
    #[inline]
    pub fn encode_stochastic(self, x: f32, random: u32) -> u32 {
        match self {
            Self::F32 | Self::Q8 => x.to_bits(),
            Self::F16 => f16::encode_stochastic(x, random),
            Self::Bf16 => bf16::encode_stochastic(x, random),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::half::{bf16, f16};

    /// Encodes by the crate `half`, which is another implementation.
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
                // A signalling NaN stays signalling here; `half` sets the quiet bit.
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
    fn sizes_do_not_overflow() {
        assert_eq!(Format::ALL.map(|format| format.tensor_bytes(33)), [132, 66, 66, 33 + 2 * 4]);
        assert_eq!(Format::ALL.map(|format| format.tensor_bytes(u64::MAX)), [u64::MAX; 4]);
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

    /// Covers every exponent, sign and leading digit, and the lower digits around every tie.
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

    /// Takes the mean over all values of the random digits that a code uses.
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

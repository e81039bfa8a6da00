//! The number types that a rule's Rust twin runs on.

use core::fmt::Debug;
use core::ops::{Add, Div, Mul, Neg, Sub};

/// What a rule's [`Twin::update`](crate::rules::Twin::update) needs from a number: `f64` makes it the
/// reference, `f32` the CPU engine, [`Magnitude`] the scale that errors are measured against.
pub trait Float:
    Copy
    + Debug
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// The zero that optimizer state starts from.
    const ZERO: Self;
    /// Rounds to nearest.
    fn from_f64(x: f64) -> Self;
    /// Exact for `f32` and `f64`.
    fn to_f64(self) -> f64;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            #[inline]
            fn from_f64(x: f64) -> Self {
                x as Self
            }
            #[inline]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
        }
    };
}
float!(f32);
float!(f64);

/// A number whose subtraction adds: the size of an expression's terms before any of them cancel.
///
/// An expression evaluated in floating point has an error of a few roundings of *this* value
/// (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1: `|fl(xᵀy) − xᵀy| ≤ γₙ |x|ᵀ|y|`),
/// not of its result, which cancellation can make arbitrarily small. Running a rule's update on
/// magnitudes therefore gives the unit in which its error can be bounded for every input.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Magnitude(f64);

impl Float for Magnitude {
    const ZERO: Self = Self(0.0);
    fn from_f64(x: f64) -> Self {
        Self(x.abs())
    }
    fn to_f64(self) -> f64 {
        self.0
    }
    fn sqrt(self) -> Self {
        Self(self.0.sqrt())
    }
}
impl Add for Magnitude {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}
impl Sub for Magnitude {
    type Output = Self;
    // The one operation that differs, and the reason for the type.
    #[expect(clippy::suspicious_arithmetic_impl, reason = "terms are summed so that none can cancel")]
    fn sub(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}
impl Mul for Magnitude {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0)
    }
}
impl Div for Magnitude {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        Self(self.0 / other.0)
    }
}
impl Neg for Magnitude {
    type Output = Self;
    fn neg(self) -> Self {
        self
    }
}

/// The distance between `x` and the next larger `f32`, for the magnitude of `x`: one unit in the last place.
///
/// Below the smallest normal number it stays at 2⁻¹²⁶: a GPU may flush a subnormal result to zero, so
/// nothing finer can be promised there.
#[must_use]
pub fn ulp(x: f64) -> f64 {
    let x = x.abs();
    if x < f64::from(f32::MIN_POSITIVE) {
        return f64::from(f32::MIN_POSITIVE);
    }
    if x > f64::from(f32::MAX) {
        return f64::INFINITY;
    }
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    2f64.powi(exponent - 23)
}

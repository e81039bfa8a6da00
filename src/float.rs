//! The number types that a rule's Rust twin runs on.

use core::cmp::Ordering;
use core::fmt::Debug;
use core::ops::{Add, Div, Mul, Neg, Sub};

/// What a rule's [`Twin::update`](crate::rules::Twin::update) needs from a number: `f64` makes it the
/// reference, `f32` the CPU engine, [`Scaled`] the scale that errors are measured against.
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
    /// Magnitude.
    fn abs(self) -> Self;
    /// The larger of two numbers.
    fn max(self, other: Self) -> Self;
    /// The smaller of two numbers.
    fn min(self, other: Self) -> Self;
    /// 1, −1, or 0 for a zero of either sign.
    fn sign(self) -> Self;
    /// The 2-norm, of which no square overflows or is lost in `f32`.
    fn norm(values: impl Iterator<Item = Self>) -> Self;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as Self
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                <$t>::max(self, other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                <$t>::min(self, other)
            }
            #[inline(always)]
            fn sign(self) -> Self {
                if self == 0.0 { 0.0 } else { self.signum() }
            }
            #[inline]
            fn norm(values: impl Iterator<Item = Self>) -> Self {
                values.map(f64::from).map(|x| x * x).sum::<f64>().sqrt() as Self
            }
        }
    };
}
float!(f32);
float!(f64);

/// A number together with the size of what its rounding errors are proportional to.
///
/// Every quantity that enters a computation in f32 is off by a relative ε, every operation adds one more, and the operations that
/// follow pass these errors on. To first order the error of a result is therefore a small multiple of ε times its *size*, where an
/// input's size is its magnitude and
///
/// ```text
/// size(a ± b)     = size(a) + size(b)
/// size(a · b)     = |a| size(b) + |b| size(a) + ε size(a) size(b)
/// size(a / b)     = (size(a) / |b| + |a| size(b) / b²) / (1 − ε size(b) / |b|)
/// size(√a)        = min(size(a) / 2√a, √(size(a) / ε))
/// size(max(a, b)) = max(size(a), size(b)), and of min likewise
/// ```
///
/// that is `Σ |∂f/∂x · x|` along the way (running error analysis: Higham, *Accuracy and Stability of Numerical Algorithms*, §3.3), with the
/// terms of second order that are left where a factor, a divisor or a radicand has cancelled to nothing. Of a quotient whose divisor is all error nothing
/// can be said, and its size is larger than any f32. The sign of a number that may be on either side of zero has the size whose ulp is 2.
/// A result that cancels to almost nothing keeps the size of its terms, so an error measured in [`ulp`]s of the size has a bound that
/// holds for every input. It bounds what rounding does to a given sequence of operations; that the sequence is a good one, only a comparison with others can show. No size is below 2⁻¹⁰³, where an ulp is 2⁻¹²⁶: what a GPU may flush to zero.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    value: f64,
    size: f64,
}

/// 2⁻¹⁰³.
const LEAST_SIZE: f64 = f32::MIN_POSITIVE as f64 / f32::EPSILON as f64;
/// Relative error that a size is multiplied by: an ulp.
const EPSILON: f64 = f32::EPSILON as f64;
/// A value is taken to be on its side of zero when it is this many times the ulp of its size.
const CLEAR: f64 = 8.0;
/// The size of what may be anything.
const UNKNOWN: f64 = 1e100;

impl Scaled {
    fn new(value: f64, size: f64) -> Self {
        // `max` passes over NaN, which stands for 0/0 here: a quotient of two zeros has no error to pass on.
        Self { value, size: LEAST_SIZE.max(size) }
    }

    /// The size.
    #[must_use]
    pub fn size(self) -> f64 {
        self.size
    }
}

impl PartialEq for Scaled {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Scaled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl Float for Scaled {
    const ZERO: Self = Self { value: 0.0, size: LEAST_SIZE };
    fn from_f64(x: f64) -> Self {
        Self::new(x, x.abs())
    }
    fn to_f64(self) -> f64 {
        self.value
    }
    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        // The first is infinite at 0.
        Self::new(root, (self.size / (2.0 * root)).min((self.size / EPSILON).sqrt()))
    }
    fn abs(self) -> Self {
        Self { value: self.value.abs(), ..self }
    }
    fn max(self, other: Self) -> Self {
        Self::new(self.value.max(other.value), self.size.max(other.size))
    }
    fn min(self, other: Self) -> Self {
        Self::new(self.value.min(other.value), self.size.max(other.size))
    }
    /// Exact where the value is clear of zero, or is a zero that nothing has cancelled to.
    fn sign(self) -> Self {
        let clear = if self.value == 0.0 { CLEAR * LEAST_SIZE } else { self.value.abs() / (CLEAR * EPSILON) };
        Self::new(self.value.sign(), if self.size <= clear { LEAST_SIZE } else { 2.0 / EPSILON })
    }
    fn norm(values: impl Iterator<Item = Self>) -> Self {
        values.map(|x| x * x).fold(Self::ZERO, |sum, square| sum + square).sqrt()
    }
}

impl Add for Scaled {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::new(self.value + other.value, self.size + other.size)
    }
}

impl Sub for Scaled {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::new(self.value - other.value, self.size + other.size)
    }
}

impl Mul for Scaled {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let (a, b) = (self.value.abs(), other.value.abs());
        let size = a * other.size + b * self.size + EPSILON * self.size * other.size;
        Self::new(self.value * other.value, size)
    }
}

impl Div for Scaled {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let (a, b) = (self.value.abs(), other.value.abs());
        let uncertain = EPSILON * other.size / b;
        let first_order = self.size / b + a / b * (other.size / b);
        let size = if uncertain < 1.0 { first_order / (1.0 - uncertain) } else { UNKNOWN };
        Self::new(self.value / other.value, size)
    }
}

impl Neg for Scaled {
    type Output = Self;
    fn neg(self) -> Self {
        Self::new(-self.value, self.size)
    }
}

/// The distance between `x` and the next larger `f32`, for the magnitude of `x`: one unit in the last place.
#[must_use]
pub fn ulp(x: f64) -> f64 {
    let x = x.abs();
    if x < f64::from(f32::MIN_POSITIVE) {
        return f64::from(f32::from_bits(1));
    }
    // The power of two at or below x, and 23 binary digits less. Infinite and NaN for themselves.
    f64::from_bits(x.to_bits() & 0x7ff0_0000_0000_0000) * f64::from(f32::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulp_is_the_spacing_of_f32() {
        for x in [1.0f32, 1.5, 0.999_999_9, 3e38, 1.2e-38, f32::MIN_POSITIVE, 7.0] {
            assert_eq!(ulp(x.into()), f64::from(x.next_up()) - f64::from(x), "{x}");
            assert_eq!(ulp(-f64::from(x)), ulp(x.into()));
        }
        assert_eq!(ulp(0.0), f64::from(f32::from_bits(1)));
        assert_eq!(ulp(1e-42), f64::from(f32::from_bits(1)));
        assert_eq!(ulp(f64::INFINITY), f64::INFINITY);
    }

    /// The size is the derivative: perturbing each input by a relative ε moves the result by ε times the size.
    #[test]
    fn size_bounds_what_perturbed_inputs_do() {
        fn f<T: Float>([a, b, c]: [T; 3]) -> T {
            a - b * (a - c) / ((a * b).sqrt() + c)
        }
        let inputs = [3.0, 0.7, 2.999];
        let size = f(inputs.map(Scaled::from_f64)).size();
        let eps = 1e-7;
        let mut moved = 0.0;
        for i in 0..3 {
            let mut changed = inputs;
            changed[i] *= 1.0 + eps;
            moved += (f(changed) - f(inputs)).abs();
        }
        // a and b appear more than once, so their effects may cancel in the sum of derivatives: the size is an upper bound.
        assert!(moved <= eps * size * 1.001 && moved > eps * size * 0.3, "{moved:e} of {:e}", eps * size);
    }

    /// What cancels to nothing keeps the error of what it came from, through a square, a root, a quotient and a sign.
    #[test]
    fn size_survives_cancellation() {
        let x = Scaled::from_f64(3.0);
        let none = x - x;
        let error = |s: Scaled| ulp(s.size());
        let lost = ulp(6.0);
        assert!(error(none * none) >= lost * lost, "{none:?}");
        assert!(error(none.sqrt()) >= lost.sqrt() / 2.0);
        assert!((x / none).size() >= UNKNOWN && (x / (none + Scaled::from_f64(1e-9))).size() >= UNKNOWN);
        assert!((x / (none + Scaled::from_f64(1e-3))).size() < 1e8);
        assert_eq!(error(none.sign()), 2.0);
        assert_eq!((x - Scaled::from_f64(2.0)).sign().size(), LEAST_SIZE);
        assert_eq!((Scaled::ZERO * x + Scaled::ZERO).sign().size(), LEAST_SIZE);
        assert_eq!((x - Scaled::from_f64(3.0 + 1e-7)).sign().size(), 2.0 / EPSILON);
    }

    #[test]
    fn sign_of_zeros_is_zero() {
        for (x, sign) in [(0.0, 0.0), (-0.0, 0.0), (2.5, 1.0), (-1e-45, -1.0), (f32::INFINITY, 1.0)] {
            assert_eq!(x.sign(), sign);
        }
        assert!(f32::NAN.sign().is_nan());
    }
}

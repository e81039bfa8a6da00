//! The number types on which a rule's CPU implementation runs.

use core::cmp::Ordering;
use core::fmt::Debug;
use core::ops::{Add, Div, Mul, Neg, Sub};

/// The operations that a rule's [`CpuRule::update`](crate::CpuRule::update) needs from a number.
///
/// `f64` makes the update the reference, `f32` the CPU engine, and [`Scaled`] the scale of rounding errors.
pub trait Float:
    sealed::Sealed
    + Copy
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
    /// Zero, the initial value of optimizer state.
    const ZERO: Self;
    /// Converts from `f64` by round to nearest.
    fn from_f64(x: f64) -> Self;
    /// Converts to `f64`, exactly for `f32` and `f64`.
    fn to_f64(self) -> f64;
    /// The square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;
    /// The larger of two numbers.
    fn max(self, other: Self) -> Self;
    /// The smaller of two numbers.
    fn min(self, other: Self) -> Self;
    /// The sign: 1, −1, or 0 for a zero of either sign.
    fn sign(self) -> Self;
    /// The 2-norm. For `f32` it is computed in `f64`, so no square overflows or underflows.
    fn norm(values: impl Iterator<Item = Self>) -> Self;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, reason = "rounds to nearest")]
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
                Self::from_f64(values.map(f64::from).map(|x| x * x).sum::<f64>().sqrt())
            }
        }
    };
}
float!(f32);
float!(f64);

/// A number together with its *error scale*, to which its rounding error is proportional.
///
/// Every input of a computation in f32 has a relative error ε, and every operation adds another. The
/// operations after it pass these errors on. To first order, the error of a result is a small multiple of ε
/// times its scale. The scale of an input is its magnitude; the scale of a result is
///
/// ```text
/// scale(a ± b)     = scale(a) + scale(b)
/// scale(a · b)     = |a| scale(b) + |b| scale(a) + ε scale(a) scale(b)
/// scale(a / b)     = (scale(a) / |b| + |a| scale(b) / b²) / (1 − ε scale(b) / |b|)
/// scale(√a)        = min(scale(a) / 2√a, √(scale(a) / ε))
/// scale(max(a, b)) = scale(min(a, b)) = max(scale(a), scale(b))
/// ```
///
/// This is `Σ |∂f/∂x · x|` over all inputs and intermediate results (running error analysis: Higham,
/// *Accuracy and Stability of Numerical Algorithms*, §3.3). Terms of second order are kept where a factor,
/// divisor or radicand can cancel to zero. If the error of a divisor is as large as the divisor, the quotient
/// can be anything, and its scale is larger than any f32. If a number's sign is uncertain, the scale of the
/// sign has an [`ulp`] of 2.
///
/// A result that cancels to almost zero keeps the scale of its terms. So an error in ulps of the scale has a
/// bound that holds for every input. The scale bounds the rounding of a given sequence of operations. It does
/// not show that the sequence is accurate; only a comparison with another sequence shows that.
///
/// No scale is below 2⁻¹⁰³, whose ulp is 2⁻¹²⁶: a GPU may flush smaller numbers to zero.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    value: f64,
    scale: f64,
}

/// The smallest scale, 2⁻¹⁰³.
const LEAST_SCALE: f64 = f32::MIN_POSITIVE as f64 / f32::EPSILON as f64;
/// The relative error ε: one ulp of 1.
const EPSILON: f64 = f32::EPSILON as f64;
/// The number of ulps of its scale from which on a value's sign is certain.
const CLEAR: f64 = 8.0;
/// The scale of a number that can be anything.
const UNKNOWN: f64 = 1e100;

impl Scaled {
    fn new(value: f64, scale: f64) -> Self {
        // A scale of NaN comes from 0/0, a quotient of two zeros without errors. `max` ignores NaN.
        Self { value, scale: LEAST_SCALE.max(scale) }
    }

    /// The scale, to which the number's rounding error is proportional.
    #[must_use]
    pub fn error_scale(self) -> f64 {
        self.scale
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
    const ZERO: Self = Self { value: 0.0, scale: LEAST_SCALE };
    fn from_f64(x: f64) -> Self {
        Self::new(x, x.abs())
    }
    fn to_f64(self) -> f64 {
        self.value
    }
    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        // The first operand of `min` is infinite at 0.
        Self::new(root, (self.scale / (2.0 * root)).min((self.scale / EPSILON).sqrt()))
    }
    fn abs(self) -> Self {
        Self { value: self.value.abs(), ..self }
    }
    fn max(self, other: Self) -> Self {
        Self::new(self.value.max(other.value), self.scale.max(other.scale))
    }
    fn min(self, other: Self) -> Self {
        Self::new(self.value.min(other.value), self.scale.max(other.scale))
    }
    /// The sign, exact where the value is clear of zero or is a zero without an error.
    fn sign(self) -> Self {
        let clear =
            if self.value == 0.0 { CLEAR * LEAST_SCALE } else { self.value.abs() / (CLEAR * EPSILON) };
        Self::new(self.value.sign(), if self.scale <= clear { LEAST_SCALE } else { 2.0 / EPSILON })
    }
    fn norm(values: impl Iterator<Item = Self>) -> Self {
        values.map(|x| x * x).fold(Self::ZERO, |sum, square| sum + square).sqrt()
    }
}

impl Add for Scaled {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::new(self.value + other.value, self.scale + other.scale)
    }
}

impl Sub for Scaled {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::new(self.value - other.value, self.scale + other.scale)
    }
}

impl Mul for Scaled {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let (a, b) = (self.value.abs(), other.value.abs());
        let scale = a * other.scale + b * self.scale + EPSILON * self.scale * other.scale;
        Self::new(self.value * other.value, scale)
    }
}

impl Div for Scaled {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let (a, b) = (self.value.abs(), other.value.abs());
        let uncertain = EPSILON * other.scale / b;
        let first_order = self.scale / b + a / b * (other.scale / b);
        let scale = if uncertain < 1.0 { first_order / (1.0 - uncertain) } else { UNKNOWN };
        Self::new(self.value / other.value, scale)
    }
}

impl Neg for Scaled {
    type Output = Self;
    fn neg(self) -> Self {
        Self::new(-self.value, self.scale)
    }
}

/// One unit in the last place: the distance between adjacent `f32` at the magnitude of `x`.
#[must_use]
pub fn ulp(x: f64) -> f64 {
    let x = x.abs();
    if x < f64::from(f32::MIN_POSITIVE) {
        return f64::from(f32::from_bits(1));
    }
    // The power of two at or below x, times 2⁻²³. An infinity stays infinite; NaN becomes infinite.
    f64::from_bits(x.to_bits() & 0x7ff0_0000_0000_0000) * f64::from(f32::EPSILON)
}

mod sealed {
    /// Keeps other crates from implementing [`Float`](super::Float), so that it may grow.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for super::Scaled {}
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

    /// Moves each input by a relative ε and sums the changes of the result: at most ε times the scale.
    #[test]
    fn size_bounds_what_perturbed_inputs_do() {
        fn f<T: Float>([a, b, c]: [T; 3]) -> T {
            a - b * (a - c) / ((a * b).sqrt() + c)
        }
        let inputs = [3.0, 0.7, 2.999];
        let scale = f(inputs.map(Scaled::from_f64)).error_scale();
        let eps = 1e-7;
        let mut moved = 0.0;
        for i in 0..3 {
            let mut changed = inputs;
            changed[i] *= 1.0 + eps;
            moved += (f(changed) - f(inputs)).abs();
        }
        // a and b occur more than once, so their effects can cancel: the scale is only an upper bound.
        assert!(moved <= eps * scale * 1.001 && moved > eps * scale * 0.3, "{moved:e} of {:e}", eps * scale);
    }

    /// A difference of zero keeps the error of its terms through a square, a root, a quotient and a sign.
    #[test]
    fn size_survives_cancellation() {
        let x = Scaled::from_f64(3.0);
        let none = x - x;
        let error = |s: Scaled| ulp(s.error_scale());
        let lost = ulp(6.0);
        assert!(error(none * none) >= lost * lost, "{none:?}");
        assert!(error(none.sqrt()) >= lost.sqrt() / 2.0);
        assert!(
            (x / none).error_scale() >= UNKNOWN
                && (x / (none + Scaled::from_f64(1e-9))).error_scale() >= UNKNOWN
        );
        assert!((x / (none + Scaled::from_f64(1e-3))).error_scale() < 1e8);
        assert_eq!(error(none.sign()), 2.0);
        assert_eq!((x - Scaled::from_f64(2.0)).sign().error_scale(), LEAST_SCALE);
        assert_eq!((Scaled::ZERO * x + Scaled::ZERO).sign().error_scale(), LEAST_SCALE);
        assert_eq!((x - Scaled::from_f64(3.0 + 1e-7)).sign().error_scale(), 2.0 / EPSILON);
    }

    #[test]
    fn sign_of_zeros_is_zero() {
        for (x, sign) in [(0.0, 0.0), (-0.0, 0.0), (2.5, 1.0), (-1e-45, -1.0), (f32::INFINITY, 1.0)] {
            assert_eq!(x.sign(), sign);
        }
        assert!(f32::NAN.sign().is_nan());
    }
}

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

/// A number together with the size of what its rounding errors are proportional to.
///
/// Every quantity that enters a computation in f32 is off by a relative ε, every operation adds one more, and the operations that
/// follow pass these errors on. To first order the error of a result is therefore a small multiple of ε times its *size*, where an
/// input's size is its magnitude and
///
/// ```text
/// size(a ± b) = size(a) + size(b)
/// size(a · b) = |a| size(b) + |b| size(a)
/// size(a / b) = size(a) / |b| + |a| size(b) / b²
/// size(√a)    = size(a) / 2√a
/// ```
///
/// that is `Σ |∂f/∂x · x|` along the way (running error analysis: Higham, *Accuracy and Stability of Numerical Algorithms*, §3.3).
/// A result that cancels to almost nothing keeps the size of its terms, so an error measured in [`ulp`]s of the size has a bound that
/// holds for every input. No size is below 2⁻¹⁰³, where an ulp is 2⁻¹²⁶: what a GPU may flush to zero.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    value: f64,
    size: f64,
}

/// 2⁻¹⁰³.
const LEAST_SIZE: f64 = f32::MIN_POSITIVE as f64 / f32::EPSILON as f64;

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
        Self::new(root, if root == 0.0 { self.size.sqrt() } else { self.size / (2.0 * root) })
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
        let size = self.value.abs() * other.size + other.value.abs() * self.size;
        Self::new(self.value * other.value, size)
    }
}

impl Div for Scaled {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let (a, b) = (self.value.abs(), other.value.abs());
        Self::new(self.value / other.value, self.size / b + a / b * (other.size / b))
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
}

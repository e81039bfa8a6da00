//! Numbers in messages.

use std::fmt;

/// A number in a message: in the fewest digits that read back as the same number, at most 17, and with an
/// exponent if zeros would surround them.
pub(crate) struct Number(pub(crate) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(x) = *self;
        let plain = x == 0.0 || !x.is_finite() || (1e-9..1e16).contains(&x.abs());
        if plain { write!(f, "{x}") } else { write!(f, "{x:e}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_17_digits() {
        for (x, text) in [
            (0.0, "0"),
            (-1.0, "-1"),
            (0.1 + 0.2, "0.30000000000000004"),
            (-1e-8, "-0.00000001"),
            (9.5e-10, "9.5e-10"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (u64::MAX as f64, "1.8446744073709552e19"),
            (f64::MAX, "1.7976931348623157e308"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
        ] {
            let printed = Number(x).to_string();
            assert_eq!(printed, text);
            assert!(printed.parse::<f64>().unwrap() == x || x.is_nan());
            // Leading zeros do not count.
            let digits = printed.split('e').next().unwrap().replace(['.', '-'], "");
            assert!(digits.trim_start_matches('0').len() <= 17, "{printed}");
        }
    }
}

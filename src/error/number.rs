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

/// A count in a message: exact up to 17 digits, and beyond that as a [`Number`].
pub(crate) struct Count(pub(crate) u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(n) = *self;
        if n < 10u64.pow(17) { write!(f, "{n}") } else { Number(n as f64).fmt(f) }
    }
}

/// A text with numbers of at most 17 digits; an ellipsis replaces further digits of a number.
#[cfg(feature = "checkpoint")]
pub(crate) fn with_short_numbers(text: &str) -> String {
    let (mut short, mut digits) = (String::new(), 0);
    for c in text.chars() {
        digits = match c {
            '0' if digits == 0 => 0,
            '.' => digits,
            c if c.is_ascii_digit() => digits + 1,
            _ => 0,
        };
        match digits {
            18 if c != '.' => short.push('…'),
            19.. => {}
            _ => short.push(c),
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_17_digits() {
        assert_eq!(Count(99_999_999_999_999_999).to_string(), "99999999999999999");
        assert_eq!(Count(u64::MAX).to_string(), "1.8446744073709552e19");
    }

    #[cfg(feature = "checkpoint")]
    #[test]
    fn numbers_in_texts_are_cut() {
        for (text, short) in [
            ("", ""),
            ("a 12 b", "a 12 b"),
            ("0.1000000000000000055511151231257827, 3", "0.10000000000000000…, 3"),
            ("18446744073709551615", "18446744073709551…"),
            ("0.00000000000000000000012", "0.00000000000000000000012"),
        ] {
            assert_eq!(with_short_numbers(text), short);
        }
    }

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

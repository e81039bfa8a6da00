//! Numbers in messages and tables, without hundreds of digits.

/// A number with `decimals` decimals, or with an exponent if it is large.
#[must_use]
pub fn fixed(x: f64, decimals: usize) -> String {
    if x.abs() < 1e9 || !x.is_finite() { format!("{x:.decimals$}") } else { format!("{x:.decimals$e}") }
}

/// A number in the fewest digits that read back as the same number.
#[must_use]
pub fn shortest(x: f64) -> String {
    let plain = x == 0.0 || !x.is_finite() || (1e-9..1e16).contains(&x.abs());
    if plain { format!("{x}") } else { format!("{x:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_long() {
        assert_eq!([fixed(1.25, 1), fixed(-1e300, 2), fixed(f64::INFINITY, 2)], ["1.2", "-1.00e300", "inf"]);
        let texts = ["0", "-0.5", "1e300", "5e-324", "NaN"];
        assert_eq!([0.0, -0.5, 1e300, 5e-324, f64::NAN].map(shortest), texts);
    }
}

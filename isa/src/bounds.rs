//! Bounds of kernels, and the file with the bounds.
//!
//! A line is `FAMILY | VARIANT | RULE | LIMITS`, where `*` stands for all names and for any part of one.
//! Limits are numbers by name, such as `trips 1, share 0.5`; `waves` is the least number and all others are
//! the largest. For each limit the last line that fits a kernel counts. `#` begins a comment.

use crate::measured::Measured;

/// A line of the file.
#[derive(Debug)]
struct Bound {
    /// Number of the line, from 1.
    line: usize,
    /// Family, variant and rule.
    patterns: [String; 3],
    limits: Vec<(Limit, f64)>,
}

/// The limits of the line.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    Trips,
    Latency,
    InverseThroughput,
    Vgprs,
    Waves,
    Spills,
    Scratch,
    Instructions,
    Share,
}

impl Limit {
    const ALL: [Self; 9] = [
        Self::Trips,
        Self::Latency,
        Self::InverseThroughput,
        Self::Vgprs,
        Self::Waves,
        Self::Spills,
        Self::Scratch,
        Self::Instructions,
        Self::Share,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Trips => "trips",
            Self::Latency => "latency",
            Self::InverseThroughput => "inverse_throughput",
            Self::Vgprs => "vgprs",
            Self::Waves => "waves",
            Self::Spills => "spills",
            Self::Scratch => "scratch",
            Self::Instructions => "instructions",
            Self::Share => "share",
        }
    }

    /// The number of a kernel, if it has one.
    fn of(self, kernel: &Measured) -> Option<f64> {
        Some(match self {
            Self::Trips => kernel.trips.into(),
            Self::Latency => kernel.latency as f64,
            Self::InverseThroughput => kernel.inverse_throughput as f64,
            Self::Vgprs => kernel.vgprs as f64,
            Self::Waves => kernel.waves as f64,
            Self::Spills => kernel.spills as f64,
            Self::Scratch => kernel.scratch as f64,
            Self::Instructions => kernel.instructions as f64,
            Self::Share => return kernel.share(),
        })
    }

    fn holds(self, value: f64, limit: f64) -> bool {
        if self == Self::Waves { value >= limit } else { value <= limit }
    }
}

/// The bounds of all kernels.
#[derive(Debug)]
pub(crate) struct Bounds(Vec<Bound>);

impl Bounds {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let lines =
            (1..).zip(text.lines()).map(|(line, text)| (line, text.split('#').next().unwrap_or("").trim()));
        let bounds = lines
            .filter(|(_, text)| !text.is_empty())
            .map(|(line, text)| bound(line, text).map_err(|error| format!("line {line}: {error}")));
        bounds.collect::<Result<_, _>>().map(Self)
    }

    /// Every bound that a kernel exceeds, and every line that fits no kernel.
    pub(crate) fn check(&self, kernels: &[Measured]) -> Vec<String> {
        let mut problems = Vec::new();
        for kernel in kernels {
            let fitting: Vec<_> = self.0.iter().filter(|bound| bound.fits(kernel)).collect();
            for limit in Limit::ALL {
                let last = fitting.iter().rev().find_map(|bound| {
                    let found = bound.limits.iter().find(|(name, _)| *name == limit);
                    found.map(|(_, value)| (bound.line, *value))
                });
                let (Some((line, bound)), Some(value)) = (last, limit.of(kernel)) else { continue };
                if !limit.holds(value, bound) {
                    let (name, kernel) = (limit.name(), kernel.name());
                    problems
                        .push(format!("{kernel}: {name} {} (bound of line {line}: {bound})", rounded(value)));
                }
            }
        }
        let idle = self.0.iter().filter(|bound| !kernels.iter().any(|kernel| bound.fits(kernel)));
        problems.extend(idle.map(|bound| format!("line {} of the bounds fits no kernel", bound.line)));
        problems
    }
}

impl Bound {
    fn fits(&self, kernel: &Measured) -> bool {
        let names = [&kernel.family, &kernel.variant, &kernel.rule];
        self.patterns.iter().zip(names).all(|(pattern, name)| matches(pattern, name))
    }
}

fn bound(line: usize, text: &str) -> Result<Bound, String> {
    let fields: Vec<_> = text.split('|').map(str::trim).collect();
    let [family, variant, rule, limits] = fields[..] else {
        return Err("a line is FAMILY | VARIANT | RULE | LIMITS".into());
    };
    let limits = limits.split(',').map(|limit| {
        let (name, value) = limit.trim().split_once(' ').ok_or_else(|| format!("{limit:?} has no number"))?;
        let found = Limit::ALL.into_iter().find(|limit| limit.name() == name);
        let value = value.trim().parse().map_err(|_| format!("{value:?} is no number"))?;
        Ok((found.ok_or_else(|| format!("there is no limit {name:?}"))?, value))
    });
    let limits = limits.collect::<Result<_, String>>()?;
    Ok(Bound { line, patterns: [family, variant, rule].map(str::to_owned), limits })
}

/// Whether a name fits a pattern, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            let ends = name.char_indices().map(|(i, _)| i).chain([name.len()]);
            ends.into_iter().any(|i| matches(rest, &name[i..]))
        }),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(rule: &str, variant: &str) -> Measured {
        Measured {
            family: "navi21".into(),
            rule: rule.into(),
            variant: variant.into(),
            trips: 1,
            latency: 800,
            inverse_throughput: 100,
            vgprs: 24,
            waves: 16,
            spills: 0,
            scratch: 0,
            instructions: 90,
            arithmetic_cycles: 50.0,
            memory_cycles: 100.0,
        }
    }

    fn check(bounds: &str, kernels: &[Measured]) -> Vec<String> {
        Bounds::parse(bounds).unwrap().check(kernels)
    }

    #[test]
    fn the_last_line_that_fits_counts() {
        let kernels = [kernel("sgd", "one group"), kernel("adan", "one group")];
        assert!(check("* | * | * | trips 1, waves 16, share 0.5 # all", &kernels).is_empty());
        let problems = check("* | * | * | trips 0, waves 17\n\n# why\n*21 | one* | sgd | trips 1", &kernels);
        let expected = [
            "navi21, sgd, one group: waves 16 (bound of line 1: 17)",
            "navi21, adan, one group: trips 1 (bound of line 1: 0)",
            "navi21, adan, one group: waves 16 (bound of line 1: 17)",
        ];
        assert_eq!(problems, expected);
    }

    #[test]
    fn a_line_that_fits_nothing_is_stale() {
        let problems = check("* | two groups | * | trips 1", &[kernel("sgd", "one group")]);
        assert_eq!(problems, ["line 1 of the bounds fits no kernel"]);
    }

    #[test]
    fn a_kernel_without_elements_has_no_share() {
        let control = Measured { memory_cycles: 0.0, ..kernel("-", "control") };
        assert!(check("* | * | * | share 0", std::slice::from_ref(&control)).is_empty());
        assert_eq!(check("* | * | - | spills -1", &[control]).len(), 1);
    }

    #[test]
    fn mistakes_are_named_with_their_lines() {
        for (text, part) in [
            ("\n* | * | trips 1", "line 2: a line is FAMILY"),
            ("* | * | * | trips", "\"trips\" has no number"),
            ("* | * | * | tripe 1", "there is no limit \"tripe\""),
            ("* | * | * | trips few", "\"few\" is no number"),
        ] {
            let error = Bounds::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name) in
            [("*", ""), ("*", "a"), ("a*", "a"), ("*c", "abc"), ("a*c", "abc"), ("a*b*", "axb")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "ab"), ("*c", "cb"), ("a*c", "ab"), ("", "a")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}

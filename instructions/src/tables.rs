//! Tables of counts, for a terminal, the document and the bounds: a row for each rule, a column for each way
//! of storing values.

/// Instructions per element.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Count {
    pub(crate) rule: String,
    /// How values are stored.
    pub(crate) format: String,
    pub(crate) instructions: f64,
}

/// How far a count may be from the document's, as a part of it. The C library's copies are counted too, and
/// its versions copy in different ways. On one system, counts of one source in three folders differed by 0.1
/// %.
const MARGIN: f64 = 0.03;

/// The text before the table in `docs/instructions.md`.
const INTRODUCTION: &str = "\
# Instructions per element of the CPU engine

`cargo xtask instructions` counts the instructions that a step of the CPU engine takes per element, and
`cargo xtask instructions --write` writes this file. Callgrind counts them: Valgrind emulates a processor that
has AVX2 and no AVX-512, so the numbers are of the loops for AVX2 and the same on every machine that has AVX2.
They are the difference between steps over 32 768 and 16 384 elements on one thread, in the release profile,
without the features of the library. `cargo xtask instructions --check` holds them to
`instructions/bounds.txt`. It also compares this file with what it counts, where the compiler is the same. A
count may be 3 % off: the C library's copies are counted too, and its versions copy in different ways.

A count says nothing of time where memory decides. It shows which loops the compiler has not turned into
vectors: such a loop takes four to ten times the instructions.

- *f32* has everything in f32, and is updated in place. *f32 around* has in addition a clip by the global
  norm, skipped steps, an average of the parameters, norms, and gradients set to zero.
- *f16* and *bf16* have parameters, gradients and state in that format, without a master. *bf16 master* has
  parameters and gradients in bf16, state in f32, and a master in f32; *bf16 remainder* has the remainders in
  place of the master.
- *q8* has state in 8 bits, and parameters and gradients in f32. *bf16 q8* has these in bf16.
- *stochastic* is stochastic rounding; the others round to nearest.
- SGD has momentum; every other rule is as it is by default.
";

/// The document.
pub(crate) fn document(compiler: &str, counts: &[Count]) -> String {
    format!("{INTRODUCTION}\n{}\n\n{}", version_line(compiler), table(counts))
}

/// The line of the document that names the compiler.
pub(crate) fn version_line(compiler: &str) -> String {
    format!("Compiled by {compiler}.")
}

/// The table of counts that stand by rule, with all formats in one order.
pub(crate) fn table(counts: &[Count]) -> String {
    let by_rule: Vec<_> = counts.chunk_by(|a, b| a.rule == b.rule).collect();
    let formats: Vec<_> = by_rule
        .first()
        .map_or_else(Vec::new, |first| first.iter().map(|count| count.format.clone()).collect());
    let mut rows = vec![[vec!["rule".to_owned()], formats].concat()];
    rows.push(vec!["---".to_owned(); rows[0].len()]);
    rows.extend(by_rule.iter().map(|of_rule| {
        let numbers = of_rule.iter().map(|count| format!("{:.2}", count.instructions));
        [of_rule[0].rule.clone()].into_iter().chain(numbers).collect()
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let row = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    rows.iter().map(row).collect()
}

/// The counts of the table in a text, whose other lines are passed over.
pub(crate) fn parse(text: &str) -> Result<Vec<Count>, String> {
    let mut rows = (1..).zip(text.lines()).filter_map(|(line, text)| {
        let cells = text.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim);
        Some((line, cells.collect::<Vec<_>>()))
    });
    let (_, formats) = rows.next().ok_or("there is no table")?;
    let mut counts = Vec::new();
    for (line, row) in rows.filter(|(_, row)| row[0] != "---") {
        if row.len() != formats.len() {
            return Err(format!("line {line}: {} cells in place of {}", row.len(), formats.len()));
        }
        for (cell, format) in row.iter().zip(&formats).skip(1) {
            let instructions = cell.parse().map_err(|_| format!("line {line}: {cell:?} is no number"))?;
            counts.push(Count { rule: row[0].into(), format: (*format).into(), instructions });
        }
    }
    Ok(counts)
}

/// Every count above its bound, every count without a bound, and every bound without a count.
pub(crate) fn exceeding(counts: &[Count], bounds: &[Count]) -> Vec<String> {
    let mut problems = Vec::new();
    for count @ Count { rule, format, instructions } in counts {
        match of(bounds, count).map(|bound| bound.instructions) {
            None => problems.push(format!("{rule}, {format}: {instructions:.2} instructions, and no bound")),
            Some(bound) if *instructions > bound => {
                problems.push(format!("{rule}, {format}: {instructions:.2} instructions (bound: {bound})"));
            }
            Some(_) => {}
        }
    }
    let idle = bounds.iter().filter(|bound| of(counts, bound).is_none());
    problems.extend(idle.map(|Count { rule, format, .. }| format!("{rule}, {format}: a bound for nothing")));
    problems
}

/// Whether the counts are those that are written, but for the [`MARGIN`].
pub(crate) fn alike(counts: &[Count], written: &[Count]) -> bool {
    let near = |count: &Count| {
        let written = of(written, count).map(|written| written.instructions);
        written.is_some_and(|written| (count.instructions - written).abs() <= MARGIN * written)
    };
    counts.len() == written.len() && counts.iter().all(near)
}

/// The count of the same rule in the same format.
fn of<'a>(counts: &'a [Count], like: &Count) -> Option<&'a Count> {
    counts.iter().find(|count| count.rule == like.rule && count.format == like.format)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: &str, format: &str, instructions: f64) -> Count {
        Count { rule: rule.into(), format: format.into(), instructions }
    }

    fn counts() -> [Count; 4] {
        [
            count("sgd", "f32", 2.5),
            count("sgd", "bf16", 12.25),
            count("adamw", "f32", 4.0),
            count("adamw", "bf16", 20.125),
        ]
    }

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let text =
            table(&counts()[..3].iter().cloned().chain([count("adamw", "bf16", 20.12)]).collect::<Vec<_>>());
        let lines = [
            "| rule  | f32  | bf16  |",
            "| ---   | ---  | ---   |",
            "| sgd   | 2.50 | 12.25 |",
            "| adamw | 4.00 | 20.12 |",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
        let mut expected = counts();
        expected[3].instructions = 20.12;
        assert_eq!(parse(&document("rustc 1", &expected)).unwrap(), expected);
    }

    #[test]
    fn a_bound_is_the_most_and_each_has_a_count() {
        assert!(exceeding(&counts(), &counts()).is_empty());
        let mut bounds = counts();
        bounds[1].instructions = 12.2;
        bounds[2].rule = "adan".into();
        let expected = [
            "sgd, bf16: 12.25 instructions (bound: 12.2)",
            "adamw, f32: 4.00 instructions, and no bound",
            "adan, f32: a bound for nothing",
        ];
        assert_eq!(exceeding(&counts(), &bounds), expected);
    }

    #[test]
    fn the_document_has_a_margin() {
        let mut written = counts();
        written[3].instructions *= 1.02;
        assert!(alike(&counts(), &written));
        assert!(!alike(&counts(), &written[..3]));
        written[3].instructions *= 1.02;
        assert!(!alike(&counts(), &written));
    }

    #[test]
    fn mistakes_are_named_with_their_lines() {
        for (text, part) in [
            ("# nothing", "there is no table"),
            ("\n| rule | f32 |\n| sgd |", "line 3: 1 cells in place of 2"),
            ("| rule | f32 |\n| sgd | few |", "line 2: \"few\" is no number"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}

//! Limits on the lengths of files and the widths of lines.

use std::path::Path;

/// A limit per file.
pub(super) struct Limit {
    max: usize,
    /// The counted things, as a message names them.
    unit: &'static str,
    measure: fn(&str, &str) -> Measured,
}

/// A number for one file, and the lines at which to look.
struct Measured {
    count: usize,
    at: Vec<usize>,
}

const MAX_LINES: usize = 400;
const MAX_COLUMNS: usize = 110;
/// Lines that a message names.
const SHOWN: usize = 8;

pub(super) const LIMITS: [Limit; 2] = [
    Limit { max: MAX_LINES, unit: "lines", measure: lines },
    Limit { max: 0, unit: "lines over 110 columns", measure: wide_lines },
];

impl Limit {
    /// Problems of `files`, which are paths from `root`.
    pub(super) fn check(&self, root: &Path, files: &[String]) -> Result<Vec<String>, String> {
        let mut problems = Vec::new();
        for file in files {
            let Measured { count, at } = (self.measure)(file, &super::read(root, file)?);
            if count > self.max {
                let shown: Vec<_> = at.iter().take(SHOWN).map(usize::to_string).collect();
                let dots = if at.len() > SHOWN { ", …" } else { "" };
                let at = if at.is_empty() { String::new() } else { format!(": {}{dots}", shown.join(", ")) };
                let Self { max, unit, .. } = self;
                problems.push(format!("{file}: {count} {unit}, {max} allowed{at}"));
            }
        }
        Ok(problems)
    }
}

/// Files and folders without limits, each for its reason.
const GENERATED: [(&str, &str); 3] = [
    ("docs/kernels/", "kernels composed from shaders; a test compares them"),
    ("docs/isa.md", "tables with one column per compiler statistic; `cargo xtask isa --check` compares them"),
    (
        "docs/instructions.md",
        "tables with one column per format; `cargo xtask instructions --check` compares",
    ),
];

fn is_generated(file: &str) -> bool {
    GENERATED.iter().any(|(path, _)| if path.ends_with('/') { file.starts_with(path) } else { file == *path })
}

fn lines(file: &str, text: &str) -> Measured {
    let code = (file.ends_with(".rs") || file.ends_with(".wgsl")) && !is_generated(file);
    Measured { count: if code { text.lines().count() } else { 0 }, at: Vec::new() }
}

fn wide_lines(file: &str, text: &str) -> Measured {
    if is_generated(file) {
        return Measured { count: 0, at: Vec::new() };
    }
    let markdown = file.ends_with(".md");
    let wide = text.lines().zip(1..).filter(|(line, _)| line.chars().count() > MAX_COLUMNS);
    let at: Vec<_> = wide.filter(|(line, _)| !is_address(line, markdown)).map(|(_, n)| n).collect();
    Measured { count: at.len(), at }
}

/// Whether a line of Markdown, or of a comment in code, is a link's address or only an address.
fn is_address(line: &str, markdown: bool) -> bool {
    let line = line.trim();
    let comment = ["//!", "///", "//", "#"].iter().find_map(|start| line.strip_prefix(start));
    let Some(text) = (if markdown { Some(line) } else { comment }) else { return false };
    let text = text.trim();
    let text = text.strip_prefix(['-', '*']).map_or(text, str::trim_start);
    let address = match text.split_once("]: ") {
        Some((name, address)) if name.starts_with('[') && !name.contains(']') => address.trim(),
        _ => text,
    };
    let bare = address.contains("://") && !address.contains(char::is_whitespace);
    bare || (address != text && !address.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    fn wide(n: usize) -> String {
        format!("let x;\n{}", format!("{}\n", "ü".repeat(MAX_COLUMNS + 1)).repeat(n))
    }

    /// Problems of both limits.
    fn problems(tree: &Tree, files: &[&str]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|&name| name.to_owned()).collect();
        LIMITS.iter().flat_map(|limit| limit.check(&tree.0, &files).unwrap()).collect()
    }

    #[test]
    fn long_files_and_wide_lines_are_listed_all_at_once() {
        let tree = Tree::new("long");
        tree.write("a.rs", &"\n".repeat(400));
        tree.write("b.rs", &"\n".repeat(401));
        tree.write("c.wgsl", &"x\n".repeat(500));
        tree.write("d.md", &"\n".repeat(500));
        tree.write("e.py", &wide(1));
        tree.write("f.rs", &wide(11));
        let expected = [
            "b.rs: 401 lines, 400 allowed",
            "c.wgsl: 500 lines, 400 allowed",
            "e.py: 1 lines over 110 columns, 0 allowed: 2",
            "f.rs: 11 lines over 110 columns, 0 allowed: 2, 3, 4, 5, 6, 7, 8, 9, …",
        ];
        assert_eq!(problems(&tree, &["a.rs", "b.rs", "c.wgsl", "d.md", "e.py", "f.rs"]), expected);
    }

    #[test]
    fn columns_are_scalar_values() {
        let fits = "ü".repeat(MAX_COLUMNS);
        for file in ["a.rs", "a.wgsl", "a.md", "a.py", "a.toml"] {
            assert_eq!(wide_lines(file, &format!("{fits}\r\n{fits}\n")).count, 0);
            let measured = wide_lines(file, &format!("{fits}\n{fits}ü\n{fits}\n{fits}x"));
            assert_eq!(measured.at, [2, 4], "{file}");
        }
    }

    #[test]
    fn addresses_are_exempt() {
        let long = "x".repeat(MAX_COLUMNS);
        let (row, address) = (format!("| a | {long} |"), format!("https://a.b/{long}"));
        for text in [address.clone(), format!("- {address}"), format!("[a b]: {address}")] {
            assert_eq!(wide_lines("a.md", &text).count, 0, "{text}");
            assert_eq!(wide_lines("a.rs", &format!("    //! {text}")).count, 0, "{text}");
            assert_eq!(wide_lines("a.wgsl", &format!("// {text}")).count, 0, "{text}");
            assert_eq!(wide_lines("a.py", &format!("# {text}")).count, 0, "{text}");
            assert_eq!(wide_lines("a.rs", &text).count, 1, "{text}");
        }
        for text in [format!("see {address}"), format!("[a]: b {address}"), row] {
            assert_eq!(wide_lines("a.md", &text).count, 1, "{text}");
        }
    }

    #[test]
    fn generated_files_have_no_limits() {
        let text = wide(500);
        for (file, limited) in [("docs/isa.md", 0), ("docs/kernels/a.wgsl", 0), ("docs/isa.md.rs", 1)] {
            assert_eq!(wide_lines(file, &text).count, limited * 500, "{file}");
            assert_eq!(lines(file, &text).count, limited * 501, "{file}");
        }
    }
}

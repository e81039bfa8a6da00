//! Limits that old files may exceed by as much as a list says, and never by more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A limit, and the list of the files that exceed it.
pub(super) struct Ratchet {
    /// Lines `PATH NUMBER`, below comments with `#`.
    pub(super) list: &'static str,
    header: &'static str,
    /// Up to this number a file needs no entry.
    limit: usize,
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

pub(super) const RATCHETS: [Ratchet; 2] = [
    Ratchet {
        list: "xtask/long-files.txt",
        header: "# Files over 400 lines, with the number of lines that each may have. \
            `cargo xtask house --bless` lowers them.\n",
        limit: MAX_LINES,
        unit: "lines",
        measure: lines,
    },
    Ratchet {
        list: "xtask/wide-lines.txt",
        header: "# Files with lines over 110 columns, with the number that each may have. \
            `cargo xtask house --bless` lowers them.\n",
        limit: 0,
        unit: "lines over 110 columns",
        measure: wide_lines,
    },
];

/// Problems, and what else there is to say.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Ratchet {
    /// Checks `files`, which are paths from `root`.
    pub(super) fn check(&self, root: &Path, files: &[String]) -> Result<Findings, String> {
        let entries = self.entries(root)?.unwrap_or_default();
        let mut measured = self.measure(root, files)?;
        let mut findings = Findings::default();
        for (file, Measured { count, at }) in &measured {
            let allowed = entries.get(file).copied().unwrap_or(0).max(self.limit);
            if *count > allowed {
                let shown: Vec<_> = at.iter().take(SHOWN).map(usize::to_string).collect();
                let dots = if at.len() > SHOWN { ", …" } else { "" };
                let at = if at.is_empty() { String::new() } else { format!(": {}{dots}", shown.join(", ")) };
                let unit = self.unit;
                findings.problems.push(format!("{file}: {count} {unit}, {allowed} allowed{at}"));
            }
        }
        for (file, allowed) in entries {
            let count = measured.remove(&file).map_or(0, |measured| measured.count);
            if count <= self.limit {
                findings.notes.push(format!("{}: the entry of {file} can go", self.list));
            } else if count < allowed {
                findings.notes.push(format!("{}: {file} can be lowered to {count}", self.list));
            }
        }
        Ok(findings)
    }

    /// Lowers the entries of the list, or makes a list that does not exist. Returns the changed entries.
    pub(super) fn bless(&self, root: &Path, files: &[String]) -> Result<Vec<String>, String> {
        let old = self.entries(root)?;
        let measured = self.measure(root, files)?;
        let mut new = BTreeMap::new();
        for (file, Measured { count, .. }) in measured.into_iter().filter(|(_, m)| m.count > self.limit) {
            match &old {
                None => {
                    new.insert(file, count);
                }
                Some(old) => {
                    if let Some(allowed) = old.get(&file) {
                        new.insert(file, count.min(*allowed));
                    }
                }
            }
        }
        let mut text = self.header.to_owned();
        for (file, count) in &new {
            text += &format!("{file} {count}\n");
        }
        fs::write(root.join(self.list), text).map_err(|error| format!("{}: {error}", self.list))?;
        let changed = old.unwrap_or_default().into_iter().filter_map(|(file, allowed)| {
            let count = new.get(&file).copied();
            match count {
                Some(count) if count == allowed => None,
                Some(count) => Some(format!("{}: {file} from {allowed} to {count}", self.list)),
                None => Some(format!("{}: {file} is gone", self.list)),
            }
        });
        Ok(changed.collect())
    }

    /// The entries of the list; `None` if there is no list.
    fn entries(&self, root: &Path) -> Result<Option<BTreeMap<String, usize>>, String> {
        if !root.join(self.list).exists() {
            return Ok(None);
        }
        let text = super::read(root, self.list)?;
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        let entries = lines.map(|(line, number)| {
            let entry = line.rsplit_once(' ').and_then(|(file, n)| Some((file.to_owned(), n.parse().ok()?)));
            entry.ok_or_else(|| format!("{}:{number}: `PATH NUMBER` is the form of a line", self.list))
        });
        entries.collect::<Result<_, _>>().map(Some)
    }

    fn measure(&self, root: &Path, files: &[String]) -> Result<BTreeMap<String, Measured>, String> {
        let measured =
            files.iter().map(|file| Ok((file.clone(), (self.measure)(file, &super::read(root, file)?))));
        measured.collect()
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

    const LONG: &Ratchet = &RATCHETS[0];
    const WIDE: &Ratchet = &RATCHETS[1];

    fn wide(n: usize) -> String {
        format!("let x;\n{}", format!("{}\n", "ü".repeat(MAX_COLUMNS + 1)).repeat(n))
    }

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn long_files_are_listed_all_at_once() {
        let tree = Tree::new("long");
        tree.write("src/a.rs", &"\n".repeat(400));
        tree.write("src/b.rs", &"\n".repeat(401));
        tree.write("shaders/c.wgsl", &"x\n".repeat(500));
        tree.write("d.md", &"\n".repeat(500));
        let all = files(&["src/a.rs", "src/b.rs", "shaders/c.wgsl", "d.md"]);
        let found = LONG.check(&tree.0, &all).unwrap();
        assert_eq!(
            found.problems,
            ["shaders/c.wgsl: 500 lines, 400 allowed", "src/b.rs: 401 lines, 400 allowed"]
        );
        tree.write(LONG.list, "# comment\n\nsrc/b.rs 401\nshaders/c.wgsl 499\n");
        let found = LONG.check(&tree.0, &all).unwrap();
        assert_eq!(found.problems, ["shaders/c.wgsl: 500 lines, 499 allowed"]);
        assert!(found.notes.is_empty(), "{found:?}");
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

    #[test]
    fn entries_may_be_lowered_and_never_raised() {
        let tree = Tree::new("ratchet");
        tree.write("same.rs", &wide(2));
        tree.write("better.rs", &wide(9));
        tree.write("good.md", "x\n");
        tree.write("worse.rs", &wide(4));
        tree.write("new.rs", &wide(1));
        let all = files(&["same.rs", "better.rs", "good.md", "worse.rs", "new.rs"]);
        tree.write(WIDE.list, "same.rs 2\nbetter.rs 10\ngood.md 1\nworse.rs 3\ngone.rs 5\n");
        let problems = [
            "new.rs: 1 lines over 110 columns, 0 allowed: 2",
            "worse.rs: 4 lines over 110 columns, 3 allowed: 2, 3, 4, 5",
        ];
        let found = WIDE.check(&tree.0, &all).unwrap();
        assert_eq!(found.problems, problems);
        let list = WIDE.list;
        let notes =
            ["better.rs can be lowered to 9", "the entry of gone.rs can go", "the entry of good.md can go"];
        assert_eq!(found.notes, notes.map(|note| format!("{list}: {note}")));
        let changed = WIDE.bless(&tree.0, &all).unwrap();
        let expected = ["better.rs from 10 to 9", "gone.rs is gone", "good.md is gone"];
        assert_eq!(changed, expected.map(|change| format!("{list}: {change}")));
        let text = format!("{}better.rs 9\nsame.rs 2\nworse.rs 3\n", WIDE.header);
        assert_eq!(tree.read(WIDE.list), text);
        let found = WIDE.check(&tree.0, &all).unwrap();
        assert_eq!(found.problems, problems);
        assert!(found.notes.is_empty(), "{found:?}");
        assert!(WIDE.bless(&tree.0, &all).unwrap().is_empty());
    }

    #[test]
    fn a_list_that_does_not_exist_is_made() {
        let tree = Tree::new("made");
        tree.write("a.rs", &wide(11));
        tree.write("b.rs", "x\n");
        tree.write("xtask/x", "");
        let all = files(&["a.rs", "b.rs"]);
        let found = WIDE.check(&tree.0, &all).unwrap();
        assert_eq!(found.problems, ["a.rs: 11 lines over 110 columns, 0 allowed: 2, 3, 4, 5, 6, 7, 8, 9, …"]);
        WIDE.bless(&tree.0, &all).unwrap();
        assert_eq!(tree.read(WIDE.list), format!("{}a.rs 11\n", WIDE.header));
        assert!(WIDE.check(&tree.0, &all).unwrap().problems.is_empty());
    }

    #[test]
    fn an_entry_without_a_number_is_refused() {
        let tree = Tree::new("form");
        tree.write(WIDE.list, "# comment\na.rs many\n");
        let error = WIDE.check(&tree.0, &[]).unwrap_err();
        assert_eq!(error, format!("{}:2: `PATH NUMBER` is the form of a line", WIDE.list));
    }
}

//! The links of Markdown files: each relative one leads to a file, and an anchor to a heading of that file.
//!
//! A file of the library's package links only to files of the package: others are not there for a reader of
//! the package.

use std::collections::HashMap;
use std::path::Path;

/// Problems of the links in the Markdown files among `files`, which are paths from `root`.
pub(super) fn check(root: &Path, files: &[String]) -> Result<Vec<String>, String> {
    let package = Package::read(root)?;
    let mut pages = HashMap::new();
    for file in files.iter().filter(|file| file.ends_with(".md")) {
        pages.insert(file.as_str(), Page::parse(&super::read(root, file)?));
    }
    let mut problems = Vec::new();
    for file in files {
        let Some(page) = pages.get(file.as_str()) else { continue };
        for (line, target) in &page.links {
            let mut complain = |what: &str| problems.push(format!("{file}:{line}: link {target:?} {what}"));
            let (path, anchor) = target.split_once('#').map_or((&**target, None), |(p, a)| (p, Some(a)));
            let Some(path) = resolve(file, path) else {
                complain("leads out of the repository");
                continue;
            };
            if !root.join(&path).exists() {
                complain("leads to no file");
            } else if package.has(file) && !package.has(&path) {
                complain("leads out of the package, whose files are `include` of Cargo.toml");
            } else if let Some(anchor) = anchor {
                match pages.get(path.as_str()) {
                    Some(page) if page.anchors.iter().any(|known| known == anchor) => {}
                    Some(_) => complain("leads to no heading"),
                    None => complain("has an anchor, and the file is no page"),
                }
            }
        }
    }
    Ok(problems)
}

/// The path from the root to which `path` leads in `file`; an empty one leads to the file itself.
fn resolve(file: &str, path: &str) -> Option<String> {
    if path.is_empty() {
        return Some(file.to_owned());
    }
    let mut parts: Vec<_> = file.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// A Markdown file.
struct Page {
    /// Line and target of each relative link.
    links: Vec<(usize, String)>,
    /// The anchors of the headings.
    anchors: Vec<String>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let (mut links, mut anchors) = (Vec::new(), Vec::<String>::new());
        let mut fenced = false;
        for (line, number) in text.lines().zip(1..) {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                if let Some(heading) = line.strip_prefix('#') {
                    let own = anchor(heading.trim_start_matches('#'));
                    let repeated = |name: &&String| {
                        name.strip_prefix(&*own).is_some_and(|end| end.is_empty() || end.starts_with('-'))
                    };
                    match anchors.iter().filter(repeated).count() {
                        0 => anchors.push(own),
                        n => anchors.push(format!("{own}-{n}")),
                    }
                }
                let targets = targets(line).into_iter().filter(|target| !is_absolute(target));
                links.extend(targets.map(|target| (number, target)));
            }
        }
        Self { links, anchors }
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The targets of the links in a line, outside of code.
fn targets(line: &str) -> Vec<String> {
    // Text and code by turns.
    let text: String = line.split('`').step_by(2).collect();
    let first = |rest: &str| rest.split_whitespace().next().map(str::to_owned);
    let inline = text.split("](").skip(1);
    let inline = inline.filter_map(|rest| first(rest.split(')').next().unwrap_or_default()));
    let defined = text.strip_prefix('[').and_then(|text| text.split_once("]: "));
    inline.chain(defined.and_then(|(_, rest)| first(rest))).collect()
}

fn is_absolute(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// The files of the library's package: entries of `include`, which begin with `/` and have a `*` at most at
/// the end.
struct Package(Vec<String>);

impl Package {
    fn read(root: &Path) -> Result<Self, String> {
        if !root.join("Cargo.toml").exists() {
            return Ok(Self(Vec::new()));
        }
        let manifest = super::read(root, "Cargo.toml")?;
        let list = manifest.split_once("\ninclude = [").and_then(|(_, rest)| rest.split_once(']'));
        let entries = list.map_or("", |(list, _)| list).split('"').skip(1).step_by(2);
        Ok(Self(entries.map(|entry| entry.trim_start_matches('/').to_owned()).collect()))
    }

    fn has(&self, file: &str) -> bool {
        self.0.iter().any(|entry| match entry.strip_suffix('*') {
            Some(start) => file.strip_prefix(start).is_some_and(|end| !end.contains('/')),
            None => file.strip_prefix(entry).is_some_and(|end| end.is_empty() || end.starts_with('/')),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    fn problems(tree: &Tree) -> Vec<String> {
        let files = ["a.md", "docs/b.md", "src/c.rs"].map(str::to_owned);
        check(&tree.0, &files).unwrap()
    }

    fn tree(name: &str) -> Tree {
        let tree = Tree::new(name);
        tree.write("docs/b.md", "# `Two` words: naïve, A_b\n## Same\n## Same\n");
        tree.write("src/c.rs", "");
        tree
    }

    #[test]
    fn files_and_headings_are_found() {
        let tree = tree("links");
        let text = "# Top\n[a](docs/b.md) [b](docs/b.md#two-words-naïve-a_b) ![c](src/c.rs)\n\
            [d](#top) [e](docs/b.md#same-1) [f](https://a.b/c#d) [g]\n\n[g]: src/c.rs \"title\"\n\
            `[x](nowhere)` [h](docs)\n```text\n[x](nowhere)\n# No heading\n```\n";
        tree.write("a.md", text);
        assert_eq!(problems(&tree), [""; 0]);
    }

    #[test]
    fn broken_links_are_listed_with_their_lines() {
        let tree = tree("broken");
        tree.write("a.md", "[a](gone.md)\n[b](docs/b.md#three) and [c](src/c.rs#L1)\n[d](../e)\n\n[f]: g\n");
        let expected = [
            "a.md:1: link \"gone.md\" leads to no file",
            "a.md:2: link \"docs/b.md#three\" leads to no heading",
            "a.md:2: link \"src/c.rs#L1\" has an anchor, and the file is no page",
            "a.md:3: link \"../e\" leads out of the repository",
            "a.md:5: link \"g\" leads to no file",
        ];
        assert_eq!(problems(&tree), expected);
    }

    #[test]
    fn links_of_the_package_stay_in_it() {
        let tree = tree("package");
        tree.write(
            "Cargo.toml",
            "[package]\ninclude = [\n    \"/a.md\",\n    \"/LICENSE-*\", \"/src\",\n]\n",
        );
        tree.write("LICENSE-MIT", "");
        tree.write("a.md", "[a](src/c.rs) [b](LICENSE-MIT)\n[c](docs/b.md)\n");
        tree.write("docs/b.md", "[a](../src/c.rs) [b](b.md)\n");
        let what = "leads out of the package, whose files are `include` of Cargo.toml";
        assert_eq!(problems(&tree), [format!("a.md:2: link \"docs/b.md\" {what}")]);
    }
}

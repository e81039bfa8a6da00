//! Reads the paths of Rust source: the names that a file takes from the root of its crate.
//!
//! It skips comments, documentation, strings and items under `#[cfg(test)]`. It also skips `$crate::…` of
//! macros, which are resolved at the macro's use.

/// A word, a `::` or another character of the source, outside of comments, strings and numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// From 1.
    pub(super) line: usize,
}

/// Divides source into tokens.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (source, 1);
    while let Some(first) = rest.chars().next() {
        let (length, kept) = piece(rest, first);
        let (text, after) = rest.split_at(length);
        if kept {
            tokens.push(Token { text: text.trim_start_matches("r#"), line });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    tokens
}

/// The length in bytes of the piece at the front of `rest`, and whether the piece is a token.
fn piece(rest: &str, first: char) -> (usize, bool) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), false);
    }
    if let Some(length) = literal(rest) {
        return (length, false);
    }
    if rest.starts_with("::") {
        return (2, true);
    }
    let prefix = if rest.starts_with("r#") { 2 } else { 0 };
    match word(&rest[prefix..]) {
        0 => (first.len_utf8(), !first.is_whitespace()),
        length => (prefix + length, !first.is_ascii_digit()),
    }
}

fn word(rest: &str) -> usize {
    rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    loop {
        let Some(next) = rest[at..].find(['/', '*']) else { return rest.len() };
        at += next;
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
}

/// The length of a string, character or lifetime, with its prefix.
fn literal(rest: &str) -> Option<usize> {
    for prefix in ["r", "br", "cr"] {
        let Some(after) = rest.strip_prefix(prefix) else { continue };
        let hashes = after.len() - after.trim_start_matches('#').len();
        if after[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = prefix.len() + hashes + 1;
            return Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()));
        }
    }
    let prefix = usize::from(["b\"", "c\"", "b'"].iter().any(|start| rest.starts_with(start)));
    let quoted = &rest[prefix..];
    match quoted.chars().next()? {
        '"' => Some(prefix + closed(quoted, '"')),
        '\'' => {
            let mut next = quoted.chars().skip(1);
            let (first, second) = (next.next(), next.next());
            if first == Some('\\') || second == Some('\'') {
                Some(prefix + closed(quoted, '\''))
            } else {
                // A lifetime or a label.
                Some(1 + word(&quoted[1..]))
            }
        }
        _ => None,
    }
}

/// The length of `text` up to the quote that closes the one at its front.
fn closed(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// A name that a file takes from the root of the crate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Import<'a> {
    /// `*` for all names of the root, `crate` for the root itself.
    pub(super) name: &'a str,
    /// The last name of the path, or the name that `as` gives it.
    pub(super) leaf: &'a str,
    pub(super) line: usize,
}

/// Paths that a file takes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Paths<'a> {
    /// First names of the paths that start at the root of the crate, with those inside the file's own room.
    pub(super) imports: Vec<Import<'a>>,
    /// Modules in files of their own that only tests have.
    pub(super) tests: Vec<Vec<&'a str>>,
}

/// The paths in a file that is the module `module`: `["a", "b"]` for `src/a/b.rs`.
pub(super) fn paths<'a>(tokens: &[Token<'a>], module: &[&'a str]) -> Paths<'a> {
    let mut reader = Reader { tokens, module: module.to_vec(), paths: Paths::default() };
    reader.read();
    reader.paths
}

/// The names that `use` brings to the root of the crate, in `src/lib.rs`.
pub(super) fn root_names<'a>(tokens: &[Token<'a>]) -> Vec<Import<'a>> {
    let mut reader = Reader { tokens, module: Vec::new(), paths: Paths::default() };
    for at in (0..tokens.len()).filter(|&at| tokens[at].text == "use") {
        reader.tree(at + 1, Vec::new());
    }
    reader.paths.imports
}

/// The macros that a file exports, which lie at the root of the crate.
pub(super) fn exported_macros<'a>(tokens: &[Token<'a>]) -> Vec<&'a str> {
    let text = |at: usize| tokens.get(at).map(|token| token.text);
    let exports = (0..tokens.len()).filter(|&at| text(at) == Some("macro_export"));
    let definitions = exports.filter_map(|at| (at..tokens.len()).find(|&at| text(at) == Some("macro_rules")));
    definitions.filter_map(|at| text(at + 2)).collect()
}

struct Reader<'t, 'a> {
    tokens: &'t [Token<'a>],
    /// The module at the place that is being read.
    module: Vec<&'a str>,
    paths: Paths<'a>,
}

impl<'a> Reader<'_, 'a> {
    fn text(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    fn read(&mut self) {
        // One entry for each open brace: whether it is that of a module.
        let mut braces = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            match (self.text(at), self.text(at + 1)) {
                ("#", "[") if self.is_test_attribute(at) => {
                    at = self.skip_item(at);
                    continue;
                }
                ("mod", name) if self.text(at + 2) == "{" => {
                    self.module.push(name);
                    braces.push(true);
                    at += 3;
                    continue;
                }
                ("{", _) => braces.push(false),
                ("}", _) if braces.pop() == Some(true) => {
                    self.module.pop();
                }
                ("crate", "as") => self.record(at, &[]),
                ("crate" | "super" | "self", "::") if !self.is_continued(at) => {
                    at = self.tree(at, self.module.clone());
                    continue;
                }
                _ => (),
            }
            at += 1;
        }
    }

    /// Whether the word at `at` has a path before it, or the `$` of a macro.
    fn is_continued(&self, at: usize) -> bool {
        at > 0 && matches!(self.text(at - 1), "::" | "$")
    }

    /// Reads a path, or a tree of them, that continues `base`; returns the place of the token after it.
    fn tree(&mut self, at: usize, mut base: Vec<&'a str>) -> usize {
        match self.text(at) {
            "{" => {
                let mut at = at + 1;
                while at < self.tokens.len() && self.text(at) != "}" {
                    at = match self.text(at) {
                        "," => at + 1,
                        "as" => at + 2,
                        _ => self.tree(at, base.clone()),
                    };
                }
                return at + 1;
            }
            "crate" => base.clear(),
            "super" => {
                base.pop();
            }
            "self" => (),
            name => base.push(name),
        }
        let next = self.text(at + 2);
        let continues = next.starts_with(|c: char| c.is_alphanumeric() || "_{*".contains(c));
        if self.text(at + 1) == "::" && continues {
            return self.tree(at + 2, base);
        }
        self.record(at, &base);
        at + 1
    }

    fn record(&mut self, at: usize, path: &[&'a str]) {
        let name = path.first().copied().unwrap_or("crate");
        let last = path.last().copied().unwrap_or(name);
        let leaf = if self.text(at + 1) == "as" { self.text(at + 2) } else { last };
        self.paths.imports.push(Import { name, leaf, line: self.tokens[at].line });
    }

    /// Whether the attribute at `at` is `#[cfg(test)]` or `#[cfg(all(test, …))]`.
    fn is_test_attribute(&self, at: usize) -> bool {
        let words: Vec<_> = (at + 2..at + 7).map(|at| self.text(at)).collect();
        words[..4] == ["cfg", "(", "test", ")"] || words == ["cfg", "(", "all", "(", "test"]
    }

    /// The place after the item that follows the attribute at `at`, or after its part up to a comma.
    fn skip_item(&mut self, at: usize) -> usize {
        let mut at = self.closing(at + 1) + 1;
        while self.text(at) == "#" {
            at = self.closing(at + 1) + 1;
        }
        let mut previous = "";
        while at < self.tokens.len() {
            match self.text(at) {
                "mod" if self.text(at + 2) == ";" => {
                    let module = self.module.iter().copied().chain([self.text(at + 1)]);
                    self.paths.tests.push(module.collect());
                    return at + 3;
                }
                "{" if previous != "::" => return self.closing(at) + 1,
                "(" | "[" | "{" => at = self.closing(at),
                ";" | "," => return at + 1,
                "}" => return at,
                _ => (),
            }
            previous = self.text(at);
            at += 1;
        }
        at
    }

    /// The place of the bracket that closes the one at `at`.
    fn closing(&self, at: usize) -> usize {
        let mut depth = 0;
        for place in at..self.tokens.len() {
            match self.text(place) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => (),
            }
            if depth == 0 {
                return place;
            }
        }
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests;

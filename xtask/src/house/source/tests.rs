use super::*;

fn words(source: &str) -> Vec<&str> {
    tokens(source).iter().map(|token| token.text).collect()
}

/// Names and lines that a file `src/a/b.rs` takes from the root.
fn of(source: &str) -> Vec<(String, usize)> {
    let tokens = tokens(source);
    let imports = paths(&tokens, &["a", "b"]).imports;
    imports.into_iter().map(|import| (import.name.to_owned(), import.line)).collect()
}

fn names(source: &str) -> Vec<String> {
    of(source).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn comments_strings_and_numbers_are_no_tokens() {
    for source in [
        "x // crate::y\nz",
        "x /* crate::y /* crate::y */ crate::y */ z",
        "x /// [y](crate::y)\n z",
        r#"x "crate::y \" crate::y" z"#,
        r###"x r#"crate::y " crate::y"# z"###,
        r#"x br"crate::y \" z"#,
        r"x '\'' '{' b'\\' b'{' '\u{7f}' z",
        "x 'z' 1_000u32 0x7f z",
        "x 'label z",
    ] {
        assert_eq!(words(source), ["x", "z"], "{source}");
    }
    assert_eq!(words("f::<'a, T>(r#match)"), ["f", "::", "<", ",", "T", ">", "(", "match", ")"]);
    assert_eq!(words("r as br"), ["r", "as", "br"]);
}

#[test]
fn tokens_know_their_lines() {
    let lines: Vec<_> = tokens("x\n/*\n*/ y \"\n\" z").iter().map(|token| (token.text, token.line)).collect();
    assert_eq!(lines, [("x", 1), ("y", 3), ("z", 4)]);
}

#[test]
fn uses_and_inline_paths_are_imports() {
    assert_eq!(names("use crate::x::Y;"), ["x"]);
    assert_eq!(names("pub(crate) use crate::x::{Y, z::{self, W as _}};"), ["x", "x", "x"]);
    assert_eq!(names("use crate::{x, y::{Y, Z}, self};"), ["x", "y", "y", "crate"]);
    assert_eq!(names("use {std::fmt, crate::x as y, crate::z::*};"), ["x", "z"]);
    assert_eq!(names("use crate::*;"), ["*"]);
    assert_eq!(names("use crate as root;"), ["crate"]);
    assert_eq!(names("fn f(x: &crate::x::X) -> <crate::y::Y as crate::z::Z>::W {}"), ["x", "y", "z"]);
    assert_eq!(names("let x = crate::x::f::<crate::y::Y>(crate::Z { w });"), ["x", "y", "Z"]);
    assert_eq!(names("crate::fields! { x }"), ["fields"]);
    assert_eq!(of("\nuse crate::{\n    x,\n    y,\n};"), [("x".into(), 3), ("y".into(), 4)]);
}

#[test]
fn other_words_are_no_imports() {
    let source = "pub(crate) fn f(self, x: Self) { self.x; super_x::y; $crate::z::w!(); std::fmt::x } \
        //! [x](crate::x)\n";
    assert_eq!(names(source), [""; 0]);
}

#[test]
fn super_climbs_as_far_as_it_says() {
    assert_eq!(names("use super::x;"), ["a"]);
    assert_eq!(names("use super::super::x;"), ["x"]);
    assert_eq!(names("use super::{c, super::{x, y::Y}};"), ["a", "x", "y"]);
    assert_eq!(names("use self::super::super::x;"), ["x"]);
    assert_eq!(names("use self::x;"), ["a"]);
    assert_eq!(names("use super::super::*;"), ["*"]);
}

#[test]
fn inline_modules_count_as_a_level() {
    let source = "mod c { use super::super::x; fn f() { { super::super::super::y() } } } \
        use super::super::z;";
    assert_eq!(names(source), ["a", "y", "z"]);
}

#[test]
fn tests_are_passed_over() {
    let kept = "use crate::z;";
    for test in [
        "#[cfg(test)] mod tests { use crate::x; fn f() { crate::y() } }",
        "#[cfg(test)] #[allow(unused)] pub(crate) mod tests { use crate::x; }",
        "#[cfg(all(test, feature = \"x\"))] mod tests { use crate::x; }",
        "#[cfg(test)] use crate::{x, y};",
        "#[cfg(test)] fn f(x: (u8, u8)) -> crate::x::X { crate::y() }",
    ] {
        assert_eq!(names(&format!("{test} {kept}")), ["z"], "{test}");
    }
    let field = "struct S { #[cfg(test)] x: crate::x::X, y: crate::y::Y }";
    assert_eq!(names(field), ["y"]);
    let not = "#[cfg(not(test))] mod x { use crate::x; }";
    assert_eq!(names(not), ["x"]);
    let tokens = tokens("#[cfg(test)]\nmod tests;\nuse crate::x;");
    let paths = paths(&tokens, &["a"]);
    assert_eq!((paths.tests, paths.imports.len()), (vec![vec!["a", "tests"]], 1));
}

#[test]
fn names_at_the_root_are_resolved() {
    let source = "mod x; pub use x::{A, B as C, y::D, z::{self}}; pub use crate::x::E; pub use other;";
    let tokens = tokens(source);
    let names: Vec<_> = root_names(&tokens).iter().map(|import| (import.leaf, import.name)).collect();
    assert_eq!(names, [("A", "x"), ("C", "x"), ("D", "x"), ("z", "x"), ("E", "x"), ("other", "other")]);
}

#[test]
fn exported_macros_are_found() {
    let source = "#[macro_export]\n#[doc(hidden)]\nmacro_rules! x { () => {} } macro_rules! y { () => {} }";
    assert_eq!(exported_macros(&tokens(source)), ["x"]);
}

use super::super::tests::Tree;
use super::*;

const ROOT_TEXT: &str = "pub mod shop; mod tools; mod wood; mod glue; pub use tools::{Saw, glue_gun as Gun}; \
    pub use wood::Plank; pub use wgpu;";

/// A house of four rooms whose sources are those given, empty where they are not.
fn house(name: &str, map: &str, sources: &[(&str, &str)]) -> Tree {
    let tree = Tree::new(name);
    tree.write("ARCHITECTURE.md", &format!("# A\n\n## Module map\n\nRooms.\n\n```text\n{map}```\n\n## B\n"));
    tree.write("src/lib.rs", ROOT_TEXT);
    for file in ["src/shop/mod.rs", "src/tools.rs", "src/tools/saw.rs", "src/glue.rs", "src/wood.rs"] {
        tree.write(file, "");
    }
    sources.iter().for_each(|(file, text)| tree.write(file, text));
    tree
}

const MAP: &str =
    "shop -> tools..  sells\ntools -> glue..  cuts\n\nglue -> wood..  glues\nwood -> nothing  grows\n";

fn problems(name: &str, map: &str, sources: &[(&str, &str)]) -> Vec<String> {
    check(&house(name, map, sources).0).unwrap()
}

#[test]
fn arrows_run_down() {
    let down = [
        (
            "src/shop/mod.rs",
            "use crate::{Saw, tools::saw, wood::*}; use crate::wgpu::Device; use super::glue;",
        ),
        ("src/tools/saw.rs", "use super::super::glue; use super::X; fn f() { crate::Plank; crate::Saw; }"),
        ("src/glue.rs", "use crate::wood;"),
    ];
    assert_eq!(problems("down", MAP, &down), [""; 0]);
}

#[test]
fn no_arrow_runs_up() {
    let up = [
        ("src/tools.rs", "use crate::wood;\nuse crate::shop;"),
        ("src/tools/saw.rs", "\n\nfn f() -> super::super::shop::Till { crate::shop::till() }"),
        ("src/wood.rs", "use crate::{\n    Gun,\n    Plank,\n};\ncrate::weld! {}"),
        ("src/glue.rs", "#[macro_export]\nmacro_rules! weld { () => { $crate::shop } }"),
    ];
    let expected = [
        "src/tools.rs:2: room `tools` imports `shop`",
        "src/tools/saw.rs:3: room `tools` imports `shop`",
        "src/tools/saw.rs:3: room `tools` imports `shop`",
        "src/wood.rs:2: room `wood` imports `tools`",
        "src/wood.rs:5: room `wood` imports `glue`",
    ];
    assert_eq!(problems("up", MAP, &up), expected.map(|problem| format!("{problem}, which stands above it")));
}

#[test]
fn only_listed_rooms_are_imported() {
    let map =
        "shop -> tools, glue  sells\ntools -> nothing  cuts\nglue -> wood  glues\nwood -> nothing  grows\n";
    let sources = [("src/shop/mod.rs", "use crate::{tools,\nwood};"), ("src/glue.rs", "use crate::wood;")];
    let expected = [
        "src/shop/mod.rs:2: room `shop` imports `wood`, which its line of the map does not list",
        "ARCHITECTURE.md:8: room `shop` lists `glue`, which it does not import",
    ];
    assert_eq!(problems("listed", map, &sources), expected);
}

#[test]
fn rooms_of_map_and_sources_are_equal() {
    let map = "shop -> nothing  sells\ncellar -> nothing  stores\nglue -> nothing  glues\n\
        wood -> nothing  grows\nshop -> nothing  sells\n";
    let expected = [
        "ARCHITECTURE.md:12: room `shop` is listed twice",
        "ARCHITECTURE.md:9: there is no room `cellar` in src/",
        "ARCHITECTURE.md: room `tools` of src/ is not listed",
    ];
    assert_eq!(problems("equal", map, &[("src/tools.rs", "use crate::shop;")]), expected);
}

#[test]
fn lists_name_rooms_below() {
    let map =
        "shop -> loft, tools..  sells\ntools -> shop  cuts\nglue -> glue..  glues\nwood -> nothing  grows\n";
    let expected = [
        "ARCHITECTURE.md:8: room `shop` lists `loft`, which is no room",
        "ARCHITECTURE.md:9: room `tools` lists `shop`, which does not stand below it",
        "ARCHITECTURE.md:10: room `glue` lists `glue`, which does not stand below it",
    ];
    let found = problems("below", map, &[]);
    assert_eq!(found[..3], expected);
}

#[test]
fn the_root_itself_is_no_import() {
    let sources = [("src/glue.rs", "use crate::*;\nuse super::*;\nuse crate as root;\nuse crate::Chair;")];
    let expected = [
        "src/glue.rs:1: room `glue` imports `crate::*`, which is in no room",
        "src/glue.rs:2: room `glue` imports `crate::*`, which is in no room",
        "src/glue.rs:3: room `glue` imports `crate`, which is in no room",
        "src/glue.rs:4: room `glue` imports `crate::Chair`, which is in no room",
    ];
    assert_eq!(problems("root", MAP, &sources), expected);
}

#[test]
fn tests_import_from_everywhere() {
    let sources = [
        ("src/wood.rs", "#[cfg(test)]\nmod tests { use crate::shop; }\n#[cfg(test)]\nmod fixtures;"),
        ("src/wood/fixtures.rs", "use crate::shop;"),
        ("src/wood/fixtures/deep.rs", "use crate::shop;"),
    ];
    assert_eq!(problems("tests", MAP, &sources), [""; 0]);
}

#[test]
fn lines_of_the_map_have_a_form() {
    let line = "optimizer  -> plan, rules..   steps -> on the GPU";
    let expected = Room {
        name: "optimizer",
        line: 3,
        imports: vec!["plan", "rules.."],
        description: "steps -> on the GPU",
    };
    assert_eq!(parse_line(line, 3), Some(expected));
    assert_eq!(parse_line("float -> nothing  numbers", 1).unwrap().imports, [""; 0]);
    for line in [
        "float",
        "float: numbers",
        "float -> nothing",
        "a b -> c  d",
        "-> a  b",
        "a -> b,  c-d e",
        "a -> ..  b",
    ] {
        assert_eq!(parse_line(line, 1), None, "{line}");
    }
    let bad = format!("{MAP}loft\n");
    assert_eq!(
        problems("form", &bad, &[]),
        ["ARCHITECTURE.md:13: `ROOM -> ROOMS  DESCRIPTION` is the form of a line"]
    );
    for page in ["", "## Module map\n", "## Module map\n```\na -> b  c\n", "## Module map\n## B\n```\n```\n"]
    {
        let mut problems = Vec::new();
        assert!(parse(page, &mut problems).is_empty());
        assert_eq!(problems, ["ARCHITECTURE.md: there is no fenced block below `## Module map`"], "{page:?}");
    }
}

#[test]
fn the_map_is_drawn_from_the_sources() {
    let sources =
        [("src/shop/mod.rs", "use crate::{wood, Saw, wood::Plank}; use super::glue;"), ("src/attic.rs", "")];
    let tree = house("draw", MAP, &sources);
    let drawn = draw(&tree.0).unwrap();
    let lines: Vec<Vec<_>> = drawn.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["shop", "->", "tools,", "glue,", "wood", "sells"]);
    assert_eq!(lines[3], ["wood", "->", "nothing", "grows"]);
    assert_eq!(lines[4], ["attic", "->", "nothing", "not", "listed"]);
}

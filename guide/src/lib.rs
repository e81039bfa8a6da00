//! The code of README.md and of the pages in docs/guide, as documentation tests: `cargo test -p guide --doc`
//! compiles it, and runs the code that needs no GPU.

macro_rules! pages {
    ($($name:ident: $path:literal),* $(,)?) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!($path)]
            mod $name {}
        )*
    };
}

pages! {
    readme: "../../README.md",
    embedding: "../../docs/guide/embedding.md",
    groups: "../../docs/guide/groups.md",
    mixed_precision: "../../docs/guide/mixed-precision.md",
    low_memory: "../../docs/guide/low-memory.md",
    clipping: "../../docs/guide/clipping.md",
    schedules: "../../docs/guide/schedules.md",
    checkpoints: "../../docs/guide/checkpoints.md",
    own_rule: "../../docs/guide/own-rule.md",
    cpu: "../../docs/guide/cpu.md",
    measuring: "../../docs/guide/measuring.md",
    numerics: "../../docs/guide/numerics.md",
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn every_page_is_listed_and_has_its_parts() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide");
        let index = fs::read_to_string(format!("{folder}/README.md")).unwrap();
        let mut pages = 0;
        for file in fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            if name == "README.md" {
                continue;
            }
            assert!(index.contains(&format!("]({name})")), "{name} is not in the index");
            let listed = include_str!("lib.rs").contains(&format!("/docs/guide/{name}\""));
            assert!(listed, "{name} is not compiled: `pages!` does not list it");
            let text = fs::read_to_string(format!("{folder}/{name}")).unwrap();
            for part in ["\n**Task:** ", "\n```rust\n", "\n## What can go wrong\n"] {
                assert!(text.contains(part), "{name} has no {part:?}");
            }
            pages += 1;
        }
        assert_eq!(pages, 11);
    }
}

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

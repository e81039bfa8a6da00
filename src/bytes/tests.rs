//! The bytes that the documentation promises.

use super::*;
use crate::options::every_format;
use crate::{AdamW, Adan, Clip, DynRule, Ema, Lamb, Master};
use std::fmt::Write as _;

fn spec(rule: impl Into<DynRule>) -> RuleSpec {
    *rule.into().spec()
}

/// Bytes that a step moves for a parameter, with options and formats.
#[test]
fn bytes_a_parameter() {
    let none = Options::default();
    let clip = Some(Clip::GlobalNorm(1.0));
    let pipeline = Options { skip_nonfinite: true, clip, zero_gradients: true, ..none };
    let ema = Some(Ema { decay: 0.9, debias: false });
    let (bf16, remainder) = (Format::Bf16, Master::Remainder);
    let half = Options { params: bf16, grads: bf16, ..none };
    let adamw = |options| bytes_moved(&spec(AdamW::default()), &[true, true, false], &options, 1);
    for (bytes, options) in [
        (28, none),
        // Gradients are read once more and written.
        (28 + 4 + 4, pipeline),
        (28 + 8, Options { ema, ..none }),
        (28 + 4, Options { norms: true, ..none }),
        (28 - 16 + 8, Options { states: bf16, ..none }),
        (4 + 2 + 16 + 8, half),
        (4 + 2 + 16 + 4, Options { master: remainder, ..half }),
        (4 + 2 + 8, Options { master: Master::None, states: bf16, ..half }),
    ] {
        assert_eq!(adamw(options), bytes, "{options:?}");
    }
    assert_eq!(bytes_moved(&spec(Lamb::default()), &[true, true], &pipeline, 1), 36 + 16);
}

/// The guide's table of formats says what the code does.
#[test]
fn bytes_of_the_guide() {
    let page = include_str!("../../docs/guide/low-memory.md");
    let (_, table) = page.split_once("| bytes of state | bytes moved |\n").unwrap();
    let format = |name: &str| Format::ALL.into_iter().find(|format| format.name() == name).unwrap();
    let mut rows = 0;
    for line in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let master = match cells[3] {
            "" | "f32" => Master::F32,
            "remainder" => Master::Remainder,
            _ => Master::None,
        };
        let [params, grads, states] = [cells[0], cells[1], cells[2]].map(format);
        let options = Options { params, grads, states, master, ..Options::default() };
        let (state, moved) = bytes_of(AdamW::default(), &[true, true, false], &options);
        assert_eq!(cells[4..], [format!("{state} B"), format!("{moved} B")], "{line}");
        rows += 1;
    }
    assert_eq!(rows, 9);
}

/// Bytes of state per parameter, and bytes that a step moves per parameter.
fn bytes_of(rule: impl Into<DynRule>, kept: &[bool], options: &Options) -> (f64, f64) {
    // So many that blocks are whole.
    const MANY: u64 = 1 << 20;
    let moved = bytes_moved(&spec(rule), kept, options, MANY) as f64 / MANY as f64;
    // Everything that is written is read too; the rest of both is the caller's.
    let state = (moved - (2 * options.params.bytes() + options.grads.bytes()) as f64) / 2.0;
    (state, moved)
}

/// The table of all formats is the one that the code computes. `WGPU_OPTIM_WRITE=1 cargo test --lib
/// formats_of_the_documentation` writes it.
#[test]
fn formats_of_the_documentation() {
    let mut text = String::from(
        "# Bytes of every combination of formats

Bytes per parameter. In front of the slash stand the bytes of state, including what is kept of the parameters;
behind it stand the bytes that a step reads and writes. Rules keep one slot (SGD with momentum, Lion,
AdaGrad), two (Adam and most of its family), three (Adam with AMSGrad) or four (Adan).

Options add to this. An average of the weights takes 4 bytes of state and moves 8. A scan of the gradients
(clip by norm, skipped steps, reports) and zeroed gradients each move the bytes of a gradient. LAMB and LARS
have a first phase. `Layout::bytes_moved` counts all of it.

The table is computed by the code that it describes.

| parameters | kept | gradients | state | 1 slot | 2 slots | 3 slots | 4 slots |
| --- | --- | --- | --- | --- | --- | --- | --- |
",
    );
    for options in every_format() {
        let Options { params, grads, states, master, .. } = options;
        let kept = match master {
            _ if params == Format::F32 => "",
            Master::F32 => "f32",
            Master::Remainder => "remainder",
            _ => "none",
        };
        let names = [params, grads, states].map(Format::name);
        let _ = write!(text, "| {} | {kept} | {} | {} |", names[0], names[1], names[2]);
        for slots in 1..=4 {
            let (state, moved) = bytes_of(Adan::default(), &[1, 2, 3, 4].map(|n| n <= slots), &options);
            let _ = write!(text, " {state} / {moved} |");
        }
        text.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/formats.md");
    if std::env::var_os("WGPU_OPTIM_WRITE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap();
    for (line, (found, want)) in found.lines().zip(text.lines()).enumerate() {
        assert_eq!(found, want, "docs/formats.md, line {}", line + 1);
    }
    assert_eq!(found.lines().count(), text.lines().count());
}

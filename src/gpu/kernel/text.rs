//! Shader text around a rule's own: tables of segments, storage formats, loads, stores and rows of scalars.

use super::{Access, BINDING_TABLE, KernelKey, TableLayout, row_names};
use crate::formats::Format;
use crate::gpu::plan::{HEADER_BYTES, Space, TENSOR_BYTES, WORKGROUP_SIZE, uniform_segments};
use crate::options::Storage;
use crate::rules::RuleSpec;
use std::fmt::Write as _;

/// Up to this many rows, a kernel selects a row's scalars instead of addressing them.
const SELECTED_ROWS: u32 = 4;

const HALF: &str = include_str!("../../../shaders/formats/half.wgsl");

/// The text of a storage format.
fn own_source(format: Format) -> &'static str {
    match format {
        Format::F32 => include_str!("../../../shaders/formats/f32.wgsl"),
        Format::F16 => include_str!("../../../shaders/formats/f16.wgsl"),
        Format::Bf16 => include_str!("../../../shaders/formats/bf16.wgsl"),
        Format::Q8 => include_str!("../../../shaders/formats/q8.wgsl"),
    }
}

impl Format {
    /// The type of a stored vector in shaders.
    pub(super) fn raw(self) -> &'static str {
        match self.bytes() {
            1 => "u32",
            2 => "Half",
            _ => "F32",
        }
    }

    /// The function that keeps lanes of padding.
    pub(super) fn keep(self) -> &'static str {
        match self.bytes() {
            1 => "keep_codes",
            2 => "keep_half",
            _ => "keep",
        }
    }
}

impl Storage {
    /// The expression that encodes `x`, the `nth` value of an element.
    pub(super) fn encoded(&self, format: Format, x: &str, nth: usize) -> String {
        let name = format.name();
        if self.stochastic && format != Format::F32 {
            format!("encode_{name}_stochastic({x}, random({nth}u))")
        } else {
            format!("encode_{name}({x})")
        }
    }
}

/// What the kernels that walk a table of segments have in common.
pub(super) fn common(table_layout: &TableLayout) -> String {
    let segments = if table_layout.aligned {
        include_str!("../../../shaders/segments/aligned.wgsl")
    } else {
        include_str!("../../../shaders/segments/shared.wgsl")
    };
    let (space, count) = match table_layout.space {
        Space::Uniform => (
            "uniform",
            format!(
                ", {}",
                uniform_segments(table_layout.uniform_bytes, table_layout.aligned, table_layout.by_tensor)
            ),
        ),
        Space::Storage => ("storage, read", String::new()),
    };
    // Where random numbers are drawn, a segment says which tensor's it is and where in it.
    let (entry, access) = if table_layout.by_tensor { ("Entry", ".segment") } else { ("Segment", "") };
    let table = format!(
        "const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;
const ALIGNED = {};
struct Entry {{ segment: Segment, @size({TENSOR_BYTES}) element: vec2<u32> }}
struct Table {{ @size({HEADER_BYTES}) header: Header, segments: array<{entry}{count}> }}
@group(0) @binding({BINDING_TABLE}) var<{space}> table: Table;
fn segment_at(i: u32) -> Segment {{ return table.segments[i]{access}; }}
",
        table_layout.aligned
    );
    [segments, include_str!("../../../shaders/lib/table.wgsl"), &table].join("\n")
}

/// The formats that are stored, each once.
pub(super) fn formats(storage: &Storage) -> String {
    let Storage { params, grads, states, stochastic, .. } = storage;
    let used = |format| [params, grads, states].contains(&&format);
    let half = if [params, grads, states].iter().any(|format| format.bytes() == 2) { HALF } else { "" };
    let named =
        Format::ALL.into_iter().filter(|&format| format == Format::F32 || used(format)).map(own_source);
    let random = if *stochastic {
        include_str!("../../../shaders/lib/random.wgsl")
    } else {
        "fn locate(segment: u32, i: u32) {}"
    };
    [half, random].into_iter().chain(named).collect::<Vec<_>>().join("\n")
}

/// How a buffer of vectors is declared: whole ones, or words.
pub(super) fn stored(format: Format, access: Access) -> &'static str {
    match access {
        Access::Vectors => format.raw(),
        Access::Elements => "u32",
    }
}

/// Loads a vector of the parameters (`"p"`) or the gradients (`"g"`).
pub(super) fn load(side: &str, format: Format, access: Access) -> String {
    let raw = format.raw();
    match (access, format.bytes()) {
        (Access::Vectors, _) => format!(
            "fn load_{side}(at: At) -> {raw} {{ return {side}_buffer[at.vector + table.header.{side}]; }}"
        ),
        // A vector's words. Lanes of padding may lie outside of the buffer, before it (wrapped) or behind it:
        // they read its last word.
        (Access::Elements, 4) => format!(
            "fn words_{side}(at: At) -> vec4<u32> {{
let first = vec4<u32>(4u * at.vector + table.header.{side});
return min(first + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(table.header.{side}_last));
}}
fn load_{side}(at: At) -> {raw} {{
let i = words_{side}(at);
return vec4<u32>({side}_buffer[i.x], {side}_buffer[i.y], {side}_buffer[i.z], {side}_buffer[i.w]);
}}"
        ),
        (Access::Elements, _) => format!(
            "fn words_{side}(at: At) -> vec2<u32> {{
let first = vec2<u32>(2u * at.vector + table.header.{side});
return min(first + vec2<u32>(0u, 1u), vec2<u32>(table.header.{side}_last));
}}
fn load_{side}(at: At) -> {raw} {{
let i = words_{side}(at);
return vec2<u32>({side}_buffer[i.x], {side}_buffer[i.y]);
}}"
        ),
    }
}

/// Stores a vector in which lanes of padding have what they had.
pub(super) fn store(side: &str, format: Format, access: Access) -> String {
    let raw = format.raw();
    match (access, format.bytes()) {
        (Access::Vectors, _) => format!(
            "fn store_{side}(at: At, next: {raw}) {{ {side}_buffer[at.vector + table.header.{side}] = next; }}"
        ),
        (Access::Elements, 4) => format!(
            "fn store_{side}(at: At, next: {raw}) {{
let i = words_{side}(at);
if at.lanes.x != NONE {{ {side}_buffer[i.x] = next.x; }}
if at.lanes.y != NONE {{ {side}_buffer[i.y] = next.y; }}
if at.lanes.z != NONE {{ {side}_buffer[i.z] = next.z; }}
if at.lanes.w != NONE {{ {side}_buffer[i.w] = next.w; }}
}}"
        ),
        (Access::Elements, _) => format!(
            "fn store_{side}(at: At, next: {raw}) {{
let i = words_{side}(at);
if at.lanes.x != NONE || at.lanes.y != NONE {{ {side}_buffer[i.x] = next.x; }}
if at.lanes.z != NONE || at.lanes.w != NONE {{ {side}_buffer[i.y] = next.y; }}
}}"
        ),
    }
}

/// The rows of scalars.
pub(super) fn rows(spec: &RuleSpec, key: &KernelKey) -> String {
    let names = row_names(spec, key);
    let vectors = key.set.row as usize;
    let mut text = String::new();
    let mut line = |l: String| {
        text.push_str(&l);
        text.push('\n');
    };
    line(format!("struct Row {{ {} }}", fields(names.iter().map(|(name, _)| *name), "f32")));
    line(match key.rows_space {
        Space::Uniform => format!(
            "@group(1) @binding(0) var<uniform> rows: array<vec4<f32>, {}>;",
            key.set.vectors(key.rows as usize)
        ),
        Space::Storage => "@group(1) @binding(0) var<storage, read> rows: array<vec4<f32>>;".into(),
    });
    let step_header = key.set.header as usize;
    line("fn row(group: u32) -> Row {".into());
    // A vec4 at a time: fewer uniform loads than a field at a time. Few rows are all loaded from constant
    // addresses and selected from: on software Vulkan, where a computed address is a gather, that measured 10
    // % of a whole AdamW step.
    for v in (0..vectors).filter(|v| names.iter().any(|(_, place)| place / 4 == *v)) {
        if key.rows <= SELECTED_ROWS {
            let chain = (1..key.rows as usize).fold(format!("rows[{}]", step_header + v), |chain, g| {
                format!("select({chain}, rows[{}], group == {g}u)", step_header + g * vectors + v)
            });
            line(format!("let v{v} = {chain};"));
        } else {
            line(format!("let v{v} = rows[group * {vectors}u + {}u];", step_header + v));
        }
    }
    let parts = list(names.iter(), |(_, i)| format!("v{}.{}", i / 4, lane(i % 4)));
    line(format!("return Row({parts});\n}}"));
    text
}

fn lane(i: usize) -> char {
    ['x', 'y', 'z', 'w'][i]
}

pub(super) fn list<T>(items: impl Iterator<Item = T>, mut item: impl FnMut(T) -> String) -> String {
    let mut out = String::new();
    for i in items {
        // Writing to a string cannot fail.
        let _ = write!(out, "{}, ", item(i));
    }
    out
}

pub(super) fn fields<'a>(names: impl Iterator<Item = &'a str>, ty: &str) -> String {
    list(names, |name| format!("{name}: {ty}"))
}

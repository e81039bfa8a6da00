//! What a rule's text stands between: tiles, formats, rows of scalars, and the functions that read and write.

use super::{
    Access, BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, GROUP_FACTOR, Key, Walk, row_names,
    row_vectors, set_vectors,
};
use crate::format::Format;
use crate::options::{MASTER, Master, REMAINDER};
use crate::plan::{BLOCK_QUADS, HEADER_BYTES, Space, TENSOR_BYTES, WORKGROUP_SIZE, uniform_tiles};
use crate::rules::{Rule, slots};
use std::fmt::Write as _;

/// Up to this many rows, a kernel selects a row's scalars instead of addressing them.
const SELECTED_ROWS: u32 = 4;

const HALF: &str = include_str!("../../shaders/formats/half.wgsl");

/// The text of a storage format, and of what it needs beside it.
#[must_use]
pub fn format_source(format: Format) -> String {
    let beside = if format.bytes() == 2 { HALF } else { "" };
    [beside, own_source(format)].concat()
}

fn own_source(format: Format) -> &'static str {
    match format {
        Format::F32 => include_str!("../../shaders/formats/f32.wgsl"),
        Format::F16 => include_str!("../../shaders/formats/f16.wgsl"),
        Format::Bf16 => include_str!("../../shaders/formats/bf16.wgsl"),
        Format::Q8 => include_str!("../../shaders/formats/q8.wgsl"),
    }
}

impl Format {
    /// The type of a stored quad in shaders.
    pub(super) fn raw(self) -> &'static str {
        match self.bytes() {
            1 => "u32",
            2 => "Half",
            _ => "F32",
        }
    }

    /// The function that keeps lanes of padding.
    fn keep(self) -> &'static str {
        match self.bytes() {
            1 => "keep_codes",
            2 => "keep_half",
            _ => "keep",
        }
    }
}

/// How parameters, gradients and state are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    /// The caller's parameters.
    pub params: Format,
    /// The caller's gradients.
    pub grads: Format,
    /// The rule's state.
    pub states: Format,
    /// What is kept of parameters beside those of 2 bytes.
    pub master: Master,
    /// Whether what has fewer than 4 bytes is rounded at random.
    pub stochastic: bool,
}

impl Storage {
    /// What is kept of the parameters: its name, and the format that takes as many bytes.
    #[must_use]
    pub fn master(&self) -> Option<(&'static str, Format)> {
        match self.master {
            _ if self.params == Format::F32 => None,
            Master::F32 => Some((MASTER, Format::F32)),
            Master::Remainder => Some((REMAINDER, Format::Bf16)),
            Master::None => None,
        }
    }

    /// The expression that encodes `x`, the `nth` value of an element.
    fn encoded(&self, format: Format, x: &str, nth: usize) -> String {
        let name = format.name();
        if self.stochastic && format != Format::F32 {
            format!("encode_{name}_stochastic({x}, random({nth}u))")
        } else {
            format!("encode_{name}({x})")
        }
    }
}

/// What the kernels that walk a table of tiles have in common.
pub(super) fn common(walk: &Walk) -> String {
    let tiles = if walk.whole {
        include_str!("../../shaders/tiles/whole.wgsl")
    } else {
        include_str!("../../shaders/tiles/mixed.wgsl")
    };
    let (space, count) = match walk.space {
        Space::Uniform => {
            ("uniform", format!(", {}", uniform_tiles(walk.uniform_bytes, walk.whole, walk.by_tensor)))
        }
        Space::Storage => ("storage, read", String::new()),
    };
    // Where random numbers are drawn, a tile says which tensor's it is and where in it.
    let (entry, access) = if walk.by_tensor { ("Entry", ".record") } else { ("Record", "") };
    let table = format!(
        "const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;
const WHOLE = {};
struct Entry {{ record: Record, @size({TENSOR_BYTES}) element: vec2<u32> }}
struct Table {{ @size({HEADER_BYTES}) header: Header, records: array<{entry}{count}> }}
@group(0) @binding({BINDING_TABLE}) var<{space}> table: Table;
fn record_at(i: u32) -> Record {{ return table.records[i]{access}; }}
",
        walk.whole
    );
    [tiles, include_str!("../../shaders/header.wgsl"), &table].join("\n")
}

/// The formats that are stored, each once.
pub(super) fn formats(storage: &Storage) -> String {
    let Storage { params, grads, states, stochastic, .. } = storage;
    let used = |format| [params, grads, states].contains(&&format);
    let half = if [params, grads, states].iter().any(|format| format.bytes() == 2) { HALF } else { "" };
    let named =
        Format::ALL.into_iter().filter(|&format| format == Format::F32 || used(format)).map(own_source);
    let random = if *stochastic {
        include_str!("../../shaders/random.wgsl")
    } else {
        "fn locate(tile: u32, i: u32) {}"
    };
    [half, random].into_iter().chain(named).collect::<Vec<_>>().join("\n")
}

/// How a buffer of quads is declared: whole ones, or words.
pub(super) fn stored(format: Format, access: Access) -> &'static str {
    match access {
        Access::Quads => format.raw(),
        Access::Elements => "u32",
    }
}

/// Loads a quad of the parameters (`"p"`) or the gradients (`"g"`).
pub(super) fn load(side: &str, format: Format, access: Access) -> String {
    let raw = format.raw();
    match (access, format.bytes()) {
        (Access::Quads, _) => format!(
            "fn load_{side}(at: At) -> {raw} {{ return {side}_buffer[at.quad + table.header.{side}]; }}"
        ),
        // A quad's words. Lanes of padding may lie outside of the buffer, before it (wrapped) or behind it: they read its last word.
        (Access::Elements, 4) => format!(
            "fn words_{side}(at: At) -> vec4<u32> {{
return min(vec4<u32>(4u * at.quad + table.header.{side}) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(table.header.{side}_last));
}}
fn load_{side}(at: At) -> {raw} {{
let i = words_{side}(at);
return vec4<u32>({side}_buffer[i.x], {side}_buffer[i.y], {side}_buffer[i.z], {side}_buffer[i.w]);
}}"
        ),
        (Access::Elements, _) => format!(
            "fn words_{side}(at: At) -> vec2<u32> {{
return min(vec2<u32>(2u * at.quad + table.header.{side}) + vec2<u32>(0u, 1u), vec2<u32>(table.header.{side}_last));
}}
fn load_{side}(at: At) -> {raw} {{
let i = words_{side}(at);
return vec2<u32>({side}_buffer[i.x], {side}_buffer[i.y]);
}}"
        ),
    }
}

/// Stores a quad in which lanes of padding have what they had.
fn store(side: &str, format: Format, access: Access) -> String {
    let raw = format.raw();
    match (access, format.bytes()) {
        (Access::Quads, _) => format!(
            "fn store_{side}(at: At, next: {raw}) {{ {side}_buffer[at.quad + table.header.{side}] = next; }}"
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
pub(super) fn rows<R: Rule>(key: &Key) -> String {
    let names = row_names::<R>(&key.around);
    let vectors = row_vectors::<R>(&key.around);
    let mut text = String::new();
    let mut line = |l: String| {
        text.push_str(&l);
        text.push('\n');
    };
    line(format!("struct Row {{ {} }}", fields(&names, "f32")));
    line(match key.rows_space {
        Space::Uniform => format!(
            "@group(1) @binding(0) var<uniform> rows: array<vec4<f32>, {}>;",
            set_vectors::<R>(key.rows as usize, &key.around)
        ),
        Space::Storage => "@group(1) @binding(0) var<storage, read> rows: array<vec4<f32>>;".into(),
    });
    let head = key.around.head_vectors();
    line("fn row(group: u32) -> Row {".into());
    // A vec4 at a time: fewer uniform loads than a field at a time. Few rows are all loaded from constant addresses and selected
    // from: on software Vulkan, where a computed address is a gather, that measured 10 % of a whole AdamW step.
    for v in 0..vectors {
        if key.rows <= SELECTED_ROWS {
            let chain = (1..key.rows as usize).fold(format!("rows[{}]", head + v), |chain, g| {
                format!("select({chain}, rows[{}], group == {g}u)", head + g * vectors + v)
            });
            line(format!("let v{v} = {chain};"));
        } else {
            line(format!("let v{v} = rows[group * {vectors}u + {}u];", head + v));
        }
    }
    let parts = list(names.iter().enumerate(), |(i, _)| format!("v{}.{}", i / 4, lane(i % 4)));
    line(format!("return Row({parts});\n}}"));
    text
}

/// What a kernel with a rule in it is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first phase of a layer-wise rule: norms, and nothing is written.
    Measure,
    /// The update.
    Update,
}

/// Declarations that follow from the rule's fields, the key and the phase.
pub(super) fn glue<R: Rule>(key: &Key, phase: Phase) -> String {
    let slots = slots::<R>();
    let kept = || slots.iter().zip(&key.kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let mut text = rows::<R>(key);
    let mut line = |l: String| {
        text.push_str(&l);
        text.push('\n');
    };
    line(format!("const SINGLE = {};", key.single));
    // In the first phase every tile is of one tensor.
    if key.walk.whole || phase == Phase::Measure {
        line("alias Scalars = Row;".into());
        line("fn scalars(record: Record, at: At) -> Scalars { return row(record.group); }".into());
    } else {
        let names = row_names::<R>(&key.around);
        line(format!("struct Scalars {{ {} }}", fields(&names, "vec4<f32>")));
        line("fn scalars(record: Record, at: At) -> Scalars {".into());
        line(format!("let group = min(at.lanes, vec4<u32>({}u));", key.rows - 1));
        line(
            "let a = row(group.x); let b = row(group.y); let c = row(group.z); let d = row(group.w);".into(),
        );
        let parts = list(names.iter(), |n| format!("vec4<f32>(a.{n}, b.{n}, c.{n}, d.{n})"));
        line(format!("return Scalars({parts});\n}}"));
    }

    let Key { storage, walk: Walk { access, .. }, .. } = key;
    let Storage { params, grads, states, .. } = *storage;
    let g_access = if key.writable_gradients { "read_write" } else { "read" };
    for (binding, side, access_mode, format) in
        [(BINDING_P, "p", "read_write", params), (BINDING_G, "g", g_access, grads)]
    {
        let stored = stored(format, *access);
        line(format!(
            "@group(0) @binding({binding}) var<storage, {access_mode}> {side}_buffer: array<{stored}>;"
        ));
        line(load(side, format, *access));
    }
    let raw = states.raw();
    for (binding, slot) in (BINDING_STATE..).zip(kept()) {
        line(format!("@group(0) @binding({binding}) var<storage, read_write> {slot}_buffer: array<{raw}>;"));
    }

    // What was read is remembered as it was stored, for the lanes that keep it.
    let updates = phase == Phase::Update;
    line(parameters(key, updates));
    let (name, in_blocks) = (states.name(), states.block().is_some());
    for (nth, (slot, kept)) in slots.iter().zip(&key.kept).enumerate() {
        if *kept {
            let scale = if in_blocks { format!(", {slot}_buffer[scale_at(at)]") } else { String::new() };
            line(format!("var<private> old_{slot}: {raw};"));
            // What is not written stays what it was: a block is encoded anew to what it has been.
            let hold = if in_blocks { format!("next_{slot} = x; ") } else { String::new() };
            line(format!(
                "fn read_{slot}(at: At) -> vec4<f32> {{ old_{slot} = {slot}_buffer[at.state]; let x = decode_{name}(old_{slot}{scale}); {hold}return x; }}"
            ));
        } else {
            line(format!("fn read_{slot}(at: At) -> vec4<f32> {{ return vec4<f32>(); }}"));
        }
        let write = match (*kept && updates, in_blocks) {
            (false, _) => String::new(),
            (true, false) => {
                let (keep, next) = (states.keep(), storage.encoded(states, "x", nth + 1));
                format!("{slot}_buffer[at.state] = {keep}(at, old_{slot}, {next});")
            }
            // The scale is known when the whole block is.
            (true, true) => format!("next_{slot} = x;"),
        };
        if *kept && in_blocks {
            line(format!("var<private> next_{slot}: vec4<f32>;"));
        }
        line(format!("fn write_{slot}(at: At, x: vec4<f32>) {{ {write} }}"));
    }
    if in_blocks {
        line(format!(
            "fn scale_at(at: At) -> u32 {{ return table.header.scales + at.state / {BLOCK_QUADS}u; }}"
        ));
    }
    if updates {
        line(settle::<R>(key));
    }
    line(around(key, phase));
    text
}

/// What is stored behind the update: state in blocks, each of which [`BLOCK_QUADS`] threads side by side have together.
fn settle<R: Rule>(key: &Key) -> String {
    let kept = slots::<R>().iter().zip(&key.kept).enumerate().filter(|(_, (_, kept))| **kept);
    let kept: Vec<_> = kept.map(|(nth, (slot, _))| (nth + 1, slot)).collect();
    let (storage, states) = (&key.storage, key.storage.states);
    if states.block().is_none() || kept.is_empty() {
        return "fn settle(at: At, own: bool, thread: u32) {}".into();
    }
    // One thread adds up a block, and all read what it has found: on software Vulkan a load from a computed address is a load for each thread, and costs more than a barrier.
    let (slots, blocks) = (kept.len() as u32, WORKGROUP_SIZE / BLOCK_QUADS);
    let mut text = format!(
        "var<workgroup> peaks: array<u32, {}>;
var<workgroup> scales: array<u32, {}>;
fn settle(at: At, own: bool, thread: u32) {{
",
        slots * WORKGROUP_SIZE,
        slots * blocks
    );
    let outside = "vec4<u32>(0u)";
    for (place, (_, slot)) in (0..).zip(&kept) {
        let first = place * WORKGROUP_SIZE;
        let bits = format!("keep(at, {outside}, bitcast<vec4<u32>>(next_{slot}))");
        let _ = writeln!(text, "peaks[{first}u + thread] = select(0u, peak({bits}), own);");
    }
    let _ = writeln!(
        text,
        "workgroupBarrier();
for (var i = thread; i < {}u; i += WORKGROUP_SIZE) {{
var all = peaks[{BLOCK_QUADS}u * i];
for (var k = 1u; k < {BLOCK_QUADS}u; k++) {{ all = joined_peaks(all, peaks[{BLOCK_QUADS}u * i + k]); }}
scales[i] = scale_q8(all);
}}
workgroupBarrier();
if !own {{ return; }}",
        slots * blocks
    );
    let keep = states.keep();
    for (place, (nth, slot)) in (0..).zip(&kept) {
        let first = place * blocks;
        let next = storage.encoded(states, &format!("next_{slot}, scale_{slot}"), *nth);
        let _ = writeln!(
            text,
            "let scale_{slot} = scales[{first}u + thread / {BLOCK_QUADS}u];
{slot}_buffer[at.state] = {keep}(at, old_{slot}, {next});
if at.state % {BLOCK_QUADS}u == 0u {{ {slot}_buffer[scale_at(at)] = scale_{slot}; }}"
        );
    }
    text.push('}');
    text
}

/// How parameters are read and written.
fn parameters(key: &Key, updates: bool) -> String {
    let storage = &key.storage;
    let params = storage.params;
    let (name, raw, keep) = (params.name(), params.raw(), params.keep());
    let mut text = format!("var<private> old_p: {raw};\nvar<private> value_p: vec4<f32>;\n");
    let binding = BINDING_STATE + key.kept_slots();
    let (read, write, value) = match storage.master() {
        None => {
            let value = if params == Format::F32 { "x".into() } else { format!("decode_{name}(next)") };
            (format!("value_p = decode_{name}(old_p);"), String::new(), value)
        }
        Some((slot, Format::F32)) => {
            // State starts at zero: the stored parameter is the master until there is one, and a master of zero is stored as zero.
            let _ = writeln!(
                text,
                "@group(0) @binding({binding}) var<storage, read_write> {slot}_buffer: array<F32>;
var<private> old_{slot}: F32;"
            );
            let read = format!(
                "old_{slot} = {slot}_buffer[at.state];
value_p = select(decode_f32(old_{slot}), decode_{name}(old_p), old_{slot} == F32());"
            );
            (read, format!("{slot}_buffer[at.state] = keep(at, old_{slot}, encode_f32(x));"), "x".into())
        }
        Some((slot, _)) => {
            let _ = writeln!(
                text,
                "@group(0) @binding({binding}) var<storage, read_write> {slot}_buffer: array<Half>;
var<private> old_{slot}: Half;"
            );
            let read = format!(
                "old_{slot} = {slot}_buffer[at.state];
value_p = bf16_with_remainder(old_p, old_{slot});"
            );
            let write = format!("{slot}_buffer[at.state] = keep_half(at, old_{slot}, remainder_of_bf16(x));");
            (read, write, "x".into())
        }
    };
    let _ =
        writeln!(text, "fn read_p(at: At) -> vec4<f32> {{\nold_p = load_p(at);\n{read}\nreturn value_p;\n}}");
    if !updates {
        text.push_str("fn write_p(at: At, x: vec4<f32>) {}\n");
        return text;
    }
    let next = match storage.master() {
        Some((_, Format::F32)) => format!("encode_{name}(x)"),
        Some(_) => "bf16_before_remainder(x)".into(),
        None => storage.encoded(params, "x", 0),
    };
    text.push_str(&store("p", params, key.walk.access));
    let _ = writeln!(
        text,
        "
fn write_p(at: At, x: vec4<f32>) {{
let next = {next};
store_p(at, {keep}(at, old_p, next));
{write}
let value = {value};
average(at, value);
moved(at, value);
}}"
    );
    text
}

/// What stands around the rule.
fn around(key: &Key, phase: Phase) -> String {
    let around = &key.around;
    let mut text = String::new();
    let mut line = |l: &str| {
        text.push_str(l);
        text.push('\n');
    };
    // Read before the branch, as the rows are.
    if around.head {
        line("var<private> head: vec4<f32>;\nvar<private> factor: vec4<f32>;");
    }
    if around.key {
        line("var<private> key: vec4<f32>;");
    }
    line("fn prepare(s: Scalars) {");
    if around.head {
        line("head = rows[0];");
        if around.key {
            line("key = rows[1];");
        }
        line(&if around.grouped {
            format!("factor = vec4<f32>(s.{GROUP_FACTOR});")
        } else {
            "factor = vec4<f32>(head.x);".into()
        });
    }
    line("}");
    let grads = key.storage.grads;
    let (name, raw, keep) = (grads.name(), grads.raw(), grads.keep());
    if around.zero {
        line(&store("g", grads, key.walk.access));
        line(&format!("fn zero_g(at: At, raw: {raw}) {{ store_g(at, {keep}(at, raw, {raw}())); }}"));
    } else {
        line(&format!("fn zero_g(at: At, raw: {raw}) {{}}"));
    }
    line(&format!(
        "fn read_g(at: At) -> vec4<f32> {{\nlet raw = load_g(at);\nzero_g(at, raw);\nlet g = decode_{name}(raw);"
    ));
    line(if around.head { "let x = g * factor;" } else { "let x = g;" });
    line(if around.bounded {
        // A bound must not make a number of what is none.
        "let nan = (bitcast<vec4<u32>>(g) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
return select(clamp(x, vec4<f32>(-head.w), vec4<f32>(head.w)), x, nan);
}"
    } else {
        "return x;\n}"
    });
    let partials = BINDING_STATE + key.states();
    if around.norms {
        line(&format!(
            "@group(0) @binding({partials}) var<storage, read_write> partials: array<Partial>;
fn conclude(number: u32, thread: u32, of_p: Squares, of_u: Squares) {{
let place = 2u * (table.header.partials + number);
let all_p = of_workgroup(thread, of_thread(of_p));
let all_u = of_workgroup(thread, of_thread(of_u));
if thread == 0u {{
partials[place] = all_p;
partials[place + 1u] = all_u;
}}
}}"
        ));
    }
    if phase == Phase::Measure {
        return text;
    }
    if around.skips {
        line("fn skipped() -> bool { return head.y > 0.0; }\nfn rest(at: At) {");
        if around.zero {
            line("zero_g(at, load_g(at));");
        }
        if around.norms {
            line(
                "let p = read_p(at);\nof_p = squares(of_p, keep(at, vec4<u32>(0u), bitcast<vec4<u32>>(p)));",
            );
        }
        line("}");
    } else {
        line("fn skipped() -> bool { return false; }\nfn rest(at: At) {}");
    }
    if around.ema {
        let binding = partials - 1;
        line(&format!("@group(0) @binding({binding}) var<storage, read_write> ema_buffer: array<F32>;"));
        line(
            "fn average(at: At, x: vec4<f32>) {
let old = ema_buffer[at.state];
let e = decode_f32(old);
ema_buffer[at.state] = keep(at, old, encode_f32(e + head.z * (x - e)));
}",
        );
    } else {
        line("fn average(at: At, x: vec4<f32>) {}");
    }
    line(if around.norms {
        "var<private> of_p: Squares;
var<private> of_u: Squares;
fn moved(at: At, x: vec4<f32>) {
of_p = squares(of_p, keep(at, vec4<u32>(0u), bitcast<vec4<u32>>(value_p)));
of_u = squares(of_u, keep(at, vec4<u32>(0u), bitcast<vec4<u32>>(x - value_p)));
}"
    } else {
        "fn moved(at: At, x: vec4<f32>) {}"
    });
    text
}

fn lane(i: usize) -> char {
    ['x', 'y', 'z', 'w'][i]
}

fn list<T>(items: impl Iterator<Item = T>, mut item: impl FnMut(T) -> String) -> String {
    let mut out = String::new();
    for i in items {
        // Writing to a string cannot fail.
        let _ = write!(out, "{}, ", item(i));
    }
    out
}

fn fields(names: &[&str], ty: &str) -> String {
    list(names.iter(), |name| format!("{name}: {ty}"))
}

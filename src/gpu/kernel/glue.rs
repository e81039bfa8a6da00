//! Shader text between the kernel and the rule: the functions that a rule reads and writes by, and the
//! options around them.

use super::text::{fields, list, load, rows, store, stored};
use super::{BINDING_G, BINDING_P, BINDING_STATE, KernelKey, TableLayout, row_names};
use crate::formats::Format;
use crate::gpu::plan::{BLOCK_VECTORS, WORKGROUP_SIZE};
use crate::options::Storage;
use crate::rules::RuleSpec;
use crate::rules::names::{AVERAGE_WEIGHT, GROUP_FACTOR};
use std::fmt::Write as _;

/// What a kernel with a rule in it is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first phase of a layer-wise rule: norms, and nothing is written.
    LayerNorms,
    /// The update.
    Update,
}

/// Declarations that follow from the rule's fields, the key and the phase.
pub(super) fn glue(spec: &RuleSpec, key: &KernelKey, phase: Phase) -> String {
    let slots = spec.slots;
    let kept = || slots.iter().zip(&key.kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let mut text = rows(spec, key);
    let mut line = |l: String| {
        text.push_str(&l);
        text.push('\n');
    };
    line(format!("const SINGLE = {};", key.single));
    // In the first phase every segment is of one tensor.
    if key.table_layout.aligned || phase == Phase::LayerNorms {
        line("alias Scalars = Row;".into());
        line("fn scalars(segment: Segment, at: At) -> Scalars { return row(segment.group); }".into());
    } else {
        let names: Vec<_> = row_names(spec, key).into_iter().map(|(name, _)| name).collect();
        line(format!("struct Scalars {{ {} }}", fields(names.iter().copied(), "vec4<f32>")));
        line("fn scalars(segment: Segment, at: At) -> Scalars {".into());
        line(format!("let group = min(at.lanes, vec4<u32>({}u));", key.rows - 1));
        line(
            "let a = row(group.x); let b = row(group.y); let c = row(group.z); let d = row(group.w);".into(),
        );
        let parts = list(names.iter(), |n| format!("vec4<f32>(a.{n}, b.{n}, c.{n}, d.{n})"));
        line(format!("return Scalars({parts});\n}}"));
    }

    let KernelKey { storage, table_layout: TableLayout { access, .. }, .. } = key;
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
            "fn scale_at(at: At) -> u32 {{ return table.header.scales + at.state / {BLOCK_VECTORS}u; }}"
        ));
    }
    if updates {
        line(store_blocks(spec, key));
    }
    line(fused(key, phase));
    text
}

/// What is stored behind the update: state in blocks, each of which [`BLOCK_VECTORS`] threads side by side
/// have together.
fn store_blocks(spec: &RuleSpec, key: &KernelKey) -> String {
    let kept = spec.slots.iter().zip(&key.kept).enumerate().filter(|(_, (_, kept))| **kept);
    let kept: Vec<_> = kept.map(|(nth, (slot, _))| (nth + 1, slot)).collect();
    let (storage, states) = (&key.storage, key.storage.states);
    if states.block().is_none() || kept.is_empty() {
        return "fn store_blocks(at: At, own: bool, thread: u32) {}".into();
    }
    // One thread adds up a block, and all read what it has found: on software Vulkan a load from a computed
    // address is a load for each thread, and costs more than a barrier.
    let (slots, blocks) = (kept.len() as u32, WORKGROUP_SIZE / BLOCK_VECTORS);
    let mut text = format!(
        "var<workgroup> peaks: array<u32, {}>;
var<workgroup> scales: array<u32, {}>;
fn store_blocks(at: At, own: bool, thread: u32) {{
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
var all = peaks[{BLOCK_VECTORS}u * i];
for (var k = 1u; k < {BLOCK_VECTORS}u; k++) {{ all = joined_peaks(all, peaks[{BLOCK_VECTORS}u * i + k]); }}
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
            "let scale_{slot} = scales[{first}u + thread / {BLOCK_VECTORS}u];
{slot}_buffer[at.state] = {keep}(at, old_{slot}, {next});
if at.state % {BLOCK_VECTORS}u == 0u {{ {slot}_buffer[scale_at(at)] = scale_{slot}; }}"
        );
    }
    text.push('}');
    text
}

/// How parameters are read and written.
fn parameters(key: &KernelKey, updates: bool) -> String {
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
            // State starts at zero: the stored parameter is the master until there is one, and a master of
            // zero is stored as zero.
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
    text.push_str(&store("p", params, key.table_layout.access));
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
fn fused(key: &KernelKey, phase: Phase) -> String {
    let fused = &key.fused;
    let mut text = String::new();
    let mut line = |l: &str| {
        text.push_str(l);
        text.push('\n');
    };
    // Read before the branch, as the rows are.
    line("var<private> step_header: vec4<f32>;\nvar<private> factor: vec4<f32>;");
    if fused.key {
        line("var<private> key: vec4<f32>;");
    }
    if fused.ema {
        line("var<private> weight: vec4<f32>;");
    }
    line("fn prepare(s: Scalars) {");
    line("step_header = rows[0];");
    if fused.key {
        line("key = rows[1];");
    }
    line(&if fused.grouped {
        format!("factor = vec4<f32>(s.{GROUP_FACTOR});")
    } else {
        "factor = vec4<f32>(step_header.x);".into()
    });
    if fused.ema {
        line(&format!("weight = vec4<f32>(s.{AVERAGE_WEIGHT});"));
    }
    line("}");
    let grads = key.storage.grads;
    let (name, raw, keep) = (grads.name(), grads.raw(), grads.keep());
    if fused.zero {
        line(&store("g", grads, key.table_layout.access));
        line(&format!("fn zero_g(at: At, raw: {raw}) {{ store_g(at, {keep}(at, raw, {raw}())); }}"));
    } else {
        line(&format!("fn zero_g(at: At, raw: {raw}) {{}}"));
    }
    line(&format!(
        "fn read_g(at: At) -> vec4<f32> {{\nlet raw = load_g(at);\nzero_g(at, raw);\nlet g = decode_{name}(raw);"
    ));
    line("let x = g * factor;");
    line(if fused.bounded {
        // A bound must not make a number of what is none.
        "let nan = (bitcast<vec4<u32>>(g) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
return select(clamp(x, vec4<f32>(-step_header.w), vec4<f32>(step_header.w)), x, nan);
}"
    } else {
        "return x;\n}"
    });
    let partials = BINDING_STATE + key.states();
    if fused.norms {
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
    if phase == Phase::LayerNorms {
        return text;
    }
    if fused.skips {
        line("fn skipped() -> bool { return step_header.y > 0.0; }\nfn rest(at: At) {");
        if fused.zero {
            line("zero_g(at, load_g(at));");
        }
        if fused.norms {
            line(
                "let p = read_p(at);\nof_p = squares(of_p, keep(at, vec4<u32>(0u), bitcast<vec4<u32>>(p)));",
            );
        }
        line("}");
    } else {
        line("fn skipped() -> bool { return false; }\nfn rest(at: At) {}");
    }
    if fused.ema {
        let binding = partials - 1;
        line(&format!("@group(0) @binding({binding}) var<storage, read_write> ema_buffer: array<F32>;"));
        line(
            "fn average(at: At, x: vec4<f32>) {
let old = ema_buffer[at.state];
let e = decode_f32(old);
ema_buffer[at.state] = keep(at, old, encode_f32(e + weight * (x - e)));
}",
        );
    } else {
        line("fn average(at: At, x: vec4<f32>) {}");
    }
    line(if fused.norms {
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

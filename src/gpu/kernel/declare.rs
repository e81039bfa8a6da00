//! The declarations of a kernel: constants, bindings, the struct of scalars with its loads, and lists of
//! calls.

use super::{
    Access, BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, CandidateLayout, Fold, Fused, KernelKey,
    REDUCE_BINDING_G, REDUCE_BINDING_PARTIALS, TableLayout, scalar_names,
};
use crate::formats::Format;
use crate::gpu::plan::{BLOCK_VECTORS, HEADER_BYTES, Space, TENSOR_BYTES, WORKGROUP_SIZE, uniform_segments};
use crate::options::{Clip, Options};
use crate::rules::RuleSpec;
use std::fmt::{Display, Write as _};

/// The use of a kernel with a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first phase of a layer-wise rule: norms only, without writes.
    LayerNorms,
    /// The update.
    Update,
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
            _ => "keep_f32",
        }
    }
}

/// The declarations of a kernel with a rule that keeps `stored` slots.
pub(super) fn with_rule(spec: &RuleSpec, key: &KernelKey, phase: Phase, stored: u32) -> String {
    let updates = phase == Phase::Update;
    let mut text = constants(&[
        ("SINGLE", &key.single),
        ("UPDATES", &updates),
        ("LOADS_FIRST", &key.table_layout.target.loads_first()),
        ("STOCHASTIC", &key.storage.stochastic),
        ("BOUNDED", &key.fused.bounded),
        ("SPLITS", &key.fused.splits),
        ("SKIPS", &(key.fused.skips && updates)),
    ]);
    if key.fused.norms {
        text += &constants(&[("QUANTITIES", &"2u")]);
    }
    if key.storage.states.block().is_some() {
        let (vectors, slots) = (format!("{BLOCK_VECTORS}u"), format!("{stored}u"));
        text += &constants(&[("BLOCK_VECTORS", &vectors), ("BLOCK_SLOTS", &slots)]);
    }
    text += &keeps(spec, key.kept.iter().copied());
    text += &table(&key.table_layout);
    text += &buffers(spec, key);
    text += &group_scalars(spec, key);
    text += &scalars(spec, key, phase);
    text += &calls(spec, key, phase);
    text
}

pub(super) fn trust_ratios(spec: &RuleSpec, key: &KernelKey) -> String {
    constants(&[
        ("WORKGROUP_SIZE", &format!("{WORKGROUP_SIZE}u")),
        ("QUANTITIES", &"2u"),
        ("STEP_HEADER", &format!("{}u", key.candidate.header)),
        ("STEP_SCALARS", &format!("{}u", key.candidate.stride)),
        ("RATIO", &format!("{}u", spec.trust_ratio_field())),
    ]) + &keeps(spec, [false].into_iter().cycle())
        + "\nalias At = u32;\nalias Scalars = GroupScalars;\n"
        + NUMBER
        + &group_scalars(spec, key)
        + &scaled(spec)
}

/// A group's scalars, with the scalars that the trust ratio adds to a norm in the unit of large norms.
fn scaled(spec: &RuleSpec) -> String {
    let lines = spec.norm_scalars.iter().map(|name| format!("    x.{name} *= 0x1p-80f;\n"));
    let lines: String = lines.collect();
    format!(
        "\nfn in_large_units(s: GroupScalars) -> GroupScalars {{\n    var x = s;\n{lines}    return x;\n}}\n"
    )
}

pub(super) fn reduce(layout: &TableLayout, grads: Format) -> String {
    constants(&[("QUANTITIES", &"1u")])
        + &table(layout)
        + &storage(REDUCE_BINDING_G, "read", "g_buffer", stored(grads, layout.access))
        + &storage(REDUCE_BINDING_PARTIALS, "read_write", "partials", "Partial")
}

pub(super) fn fold(fold: Fold) -> String {
    let quantities = match fold {
        Fold::Groups => "1u",
        Fold::All => "2u",
    };
    constants(&[("WORKGROUP_SIZE", &format!("{WORKGROUP_SIZE}u")), ("QUANTITIES", &quantities)])
}

pub(super) fn control(options: &Options, candidate: &CandidateLayout, groups: usize) -> String {
    let fused = Fused::of(options);
    constants(&[
        ("WORKGROUP_SIZE", &format!("{WORKGROUP_SIZE}u")),
        ("QUANTITIES", &"1u"),
        ("CANDIDATE", &format!("{}u", candidate.vectors(groups))),
        ("STEP_HEADER", &format!("{}u", candidate.header)),
        ("STEP_SCALARS", &format!("{}u", candidate.stride)),
        ("FACTOR", &format!("{}u", candidate.factor % 4)),
        ("CLIPS", &matches!(options.clip, Some(Clip::GlobalNorm(_)))),
        ("GROUPED", &fused.grouped),
        ("SKIPS", &fused.skips),
        ("DYNAMIC", &options.loss_scale.is_some()),
    ])
}

/// Whether each slot is kept. A rule omits the arithmetic of a slot that is not kept.
fn keeps(spec: &RuleSpec, kept: impl Iterator<Item = bool>) -> String {
    let name = |slot: &str| format!("KEEPS_{}", slot.to_uppercase());
    spec.slots.iter().zip(kept).map(|(slot, kept)| constants(&[(&name(slot), &kept)])).collect()
}

/// A scalar of one group.
const NUMBER: &str = "alias Number = f32;\nalias Choice = bool;\n";
/// A scalar of each lane's group.
const NUMBERS: &str = "alias Number = vec4<f32>;\nalias Choice = vec4<bool>;\n";

fn constants(values: &[(&str, &dyn Display)]) -> String {
    values.iter().map(|(name, value)| format!("const {name} = {value};\n")).collect()
}

fn storage(binding: u32, mode: &str, name: &str, of: &str) -> String {
    format!("@group(0) @binding({binding}) var<storage, {mode}> {name}: array<{of}>;\n")
}

/// The declaration of a buffer of vectors: vectors, or words.
fn stored(format: Format, access: Access) -> &'static str {
    match access {
        Access::Vectors => format.raw(),
        Access::Elements => "u32",
    }
}

/// The table of segments.
fn table(layout: &TableLayout) -> String {
    let (space, count) = match layout.space {
        Space::Uniform => {
            let count = uniform_segments(layout.uniform_bytes, layout.aligned, layout.by_tensor);
            ("uniform", format!(", {count}"))
        }
        Space::Storage => ("storage, read", String::new()),
    };
    // With random numbers, an entry has a segment's tensor and the position in it.
    let by_tensor = format!(
        "struct Entry {{\n    segment: Segment,\n    @size({TENSOR_BYTES}) element: vec2<u32>,\n}}\n\n"
    );
    let (declared, entry, access) =
        if layout.by_tensor { (by_tensor.as_str(), "Entry", ".segment") } else { ("", "Segment", "") };
    let constants = constants(&[
        ("WORKGROUP_SIZE", &format!("{WORKGROUP_SIZE}u")),
        ("STREAM", &format!("{}u", layout.target.stream(WORKGROUP_SIZE))),
        ("ALIGNED", &layout.aligned),
    ]);
    format!(
        "{constants}
{declared}struct Table {{
    @size({HEADER_BYTES}) header: Header,
    segments: array<{entry}{count}>,
}}

@group(0) @binding({BINDING_TABLE}) var<{space}> table: Table;

fn segment_at(i: u32) -> Segment {{
    return table.segments[i]{access};
}}

"
    )
}

/// Parameters, gradients, kept slots, master or remainder, average, partial sums.
fn buffers(spec: &RuleSpec, key: &KernelKey) -> String {
    let (access, of) = (key.table_layout.access, key.storage);
    let g_mode = if key.writable_gradients { "read_write" } else { "read" };
    let mut text = storage(BINDING_P, "read_write", "p_buffer", stored(of.params, access));
    text += &storage(BINDING_G, g_mode, "g_buffer", stored(of.grads, access));
    let slots = kept(spec, key).map(|slot| (format!("{slot}_buffer"), of.states.raw()));
    let master = of.master().map(|(slot, format)| (format!("{slot}_buffer"), format.raw()));
    let ema = key.fused.ema.then(|| ("ema_buffer".into(), "F32"));
    let partials = key.fused.norms.then(|| ("partials".into(), "Partial"));
    for (binding, (name, of)) in (BINDING_STATE..).zip(slots.chain(master).chain(ema).chain(partials)) {
        text += &storage(binding, "read_write", &name, of);
    }
    text
}

fn kept<'a>(spec: &'a RuleSpec, key: &'a KernelKey) -> impl Iterator<Item = &'static str> + 'a {
    spec.slots.iter().zip(&key.kept).filter(|(_, kept)| **kept).map(|(slot, _)| *slot)
}

/// The scalars of each group.
fn group_scalars(spec: &RuleSpec, key: &KernelKey) -> String {
    let names = scalar_names(spec, key);
    let (header, vectors) = (key.candidate.header as usize, key.candidate.stride as usize);
    let mut text =
        format!("\nstruct GroupScalars {{\n{}}}\n\n", fields(names.iter().map(|(name, _)| *name), "f32"));
    text += &match key.scalars_space {
        Space::Uniform => format!(
            "@group(1) @binding(0) var<uniform> step_scalars: array<vec4<f32>, {}>;\n\n",
            key.candidate.vectors(key.groups as usize)
        ),
        Space::Storage => {
            "@group(1) @binding(0) var<storage, read> step_scalars: array<vec4<f32>>;\n\n".into()
        }
    };
    text += "fn scalars_of(group: u32) -> GroupScalars {\n";
    // One load per vec4: fewer uniform loads than one per field.
    for v in (0..vectors).filter(|v| names.iter().any(|(_, place)| place / 4 == *v)) {
        if key.groups <= key.table_layout.target.selected_groups() {
            let chain = (1..key.groups as usize).fold(format!("step_scalars[{}]", header + v), |chain, g| {
                format!("select({chain}, step_scalars[{}], group == {g}u)", header + g * vectors + v)
            });
            let _ = writeln!(text, "    let v{v} = {chain};");
        } else {
            let _ = writeln!(text, "    let v{v} = step_scalars[group * {vectors}u + {}u];", header + v);
        }
    }
    let parts = list(names.iter(), |(_, i)| format!("v{}.{}", i / 4, ['x', 'y', 'z', 'w'][i % 4]));
    let _ = writeln!(text, "    return GroupScalars({parts});\n}}\n");
    text
}

/// The scalars of a vector: of one group, or of each lane's.
fn scalars(spec: &RuleSpec, key: &KernelKey, phase: Phase) -> String {
    // In the first phase of a layer-wise rule every segment belongs to one tensor.
    if key.table_layout.aligned || phase == Phase::LayerNorms {
        let of = "\nfn scalars(segment: Segment, at: At) -> Scalars {
    return scalars_of(segment.group);
}

";
        return ["alias Scalars = GroupScalars;\n", NUMBER, of].concat();
    }
    let names: Vec<_> = scalar_names(spec, key).into_iter().map(|(name, _)| name).collect();
    let part = |n: &&str| format!("        vec4<f32>(a.{n}, b.{n}, c.{n}, d.{n}),\n");
    let parts: String = names.iter().map(part).collect();
    format!(
        "struct Scalars {{
{}}}

{NUMBERS}
fn scalars(segment: Segment, at: At) -> Scalars {{
    let group = min(at.lanes, vec4<u32>({}u));
    let a = scalars_of(group.x);
    let b = scalars_of(group.y);
    let c = scalars_of(group.z);
    let d = scalars_of(group.w);
    return Scalars(
{parts}    );
}}

",
        fields(names.iter().copied(), "vec4<f32>"),
        key.groups - 1
    )
}

/// Functions with one call per buffer.
fn calls(spec: &RuleSpec, key: &KernelKey, phase: Phase) -> String {
    let updates = phase == Phase::Update;
    let read = |slot: &&str| updates || spec.direction_slots.contains(slot);
    let call = |name: &str, args: &str, slot: &str| format!("    {name}_{slot}({args});\n");
    let values = ["p", "g"].into_iter().chain(kept(spec, key).filter(read));
    let mut fetch: String = values.map(|value| call("fetch", "at", value)).collect();
    if updates {
        fetch += "    fetch_average(at);\n";
    }
    let mut text = format!("fn fetch(at: At) {{\n{fetch}}}\n");
    if key.storage.states.block().is_some() {
        let share: String = kept(spec, key).map(|slot| call("share_peak", "at, own, thread", slot)).collect();
        let store: String = kept(spec, key).map(|slot| call("store", "at, thread", slot)).collect();
        text += &format!("\nfn share_peaks(at: At, own: bool, thread: u32) {{\n{share}}}\n");
        text += &format!("\nfn store_slots(at: At, thread: u32) {{\n{store}}}\n");
    }
    text
}

fn list<T>(items: impl Iterator<Item = T>, item: impl FnMut(T) -> String) -> String {
    items.map(item).collect::<Vec<_>>().join(", ")
}

fn fields<'a>(names: impl Iterator<Item = &'a str>, ty: &str) -> String {
    names.map(|name| format!("    {name}: {ty},\n")).collect()
}

//! From a rule to shader text and a pipeline: `rule ++ format ++ access ++ tiles ++ driver`.
//!
//! A kernel is specialised by its [`Key`]; what a key switches off is not in the text.

use crate::plan::{HEADER_BYTES, Space, Tile, WORKGROUP_SIZE, WholeTile};
use crate::rules::{Rule, scalar_names, slots};
use std::fmt::Write as _;

/// Bind group 0: binding of the table of tiles. Then parameters, gradients, and from [`BINDING_STATE`] the kept slots in order.
pub const BINDING_TABLE: u32 = 0;
/// Bind group 0: binding of the parameters.
pub const BINDING_P: u32 = 1;
/// Bind group 0: binding of the gradients.
pub const BINDING_G: u32 = 2;
/// Bind group 0: binding of the first kept state slot. Behind the last of them: the average of the weights.
pub const BINDING_STATE: u32 = 3;
/// Bind group 0 of the reduction, behind the table: binding of the gradients, then of the partial results.
pub const REDUCE_BINDING_G: u32 = 1;
/// Bind group 0 of the reduction: binding of the partial results.
pub const REDUCE_BINDING_PARTIALS: u32 = 2;
/// The driver's entry point.
pub const ENTRY_POINT: &str = "step";
/// The reduction's entry point.
pub const REDUCE_ENTRY_POINT: &str = "reduce";
/// The step's workgroups whose quads a workgroup of the reduction looks at.
pub const REDUCE_RUN: u32 = 16;

/// Up to this many groups, a kernel selects a group's scalars instead of addressing them.
const SELECTED_ROWS: u32 = 4;

/// How parameters and gradients are loaded and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// One `vec4` a quad.
    Quads,
    /// Element by element: for ranges that start or end inside a 16-byte block of their buffer.
    Elements,
}

/// What stands around the rule: see [`Options`](crate::Options).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Around {
    /// Whether a vec4 stands before the scalars: factor of the gradients, skip, weight of the average, bound of the gradients.
    pub head: bool,
    /// Whether gradients are bounded by value.
    pub bounded: bool,
    /// Whether the step may be skipped.
    pub skips: bool,
    /// Whether gradients are set to zero.
    pub zero: bool,
    /// Whether there is an average of the weights.
    pub ema: bool,
}

/// What a kernel is specialised for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// How parameters and gradients are loaded.
    pub access: Access,
    /// Whether every tile is of whole quads of one group. Never with [`Access::Elements`].
    pub whole: bool,
    /// Whether there is but one tile, which then is no matter of looking up.
    pub single: bool,
    /// Where the table lies.
    pub space: Space,
    /// Whether the gradients' binding is writable, as it has to be when they share a buffer with the parameters.
    pub writable_gradients: bool,
    /// Number of groups.
    pub groups: u32,
    /// Which of the rule's slots are kept.
    pub kept: Vec<bool>,
    /// Bytes of a uniform binding on the device.
    pub uniform_bytes: u32,
    /// What stands around the rule.
    pub around: Around,
}

impl Key {
    /// Storage bindings of the kernel.
    #[must_use]
    pub fn storage_bindings(&self) -> u32 {
        let table = u32::from(self.space == Space::Storage);
        2 + table + self.kept.iter().filter(|&&kept| kept).count() as u32 + u32::from(self.around.ema)
    }

    /// Bytes of a table with `tiles` tiles.
    #[must_use]
    pub fn table_bytes(&self, tiles: usize) -> u64 {
        let tile = if self.whole { size_of::<WholeTile>() } else { size_of::<Tile>() };
        (HEADER_BYTES + tiles * tile) as u64
    }
}

/// vec4s that one group's scalars take.
#[must_use]
pub fn row_vectors<R: Rule>() -> usize {
    scalar_names::<R>().len().div_ceil(4)
}

/// Bytes that one group's scalars take.
#[must_use]
pub fn row_bytes<R: Rule>() -> usize {
    row_vectors::<R>() * 16
}

/// vec4s of a step's scalars of all groups.
#[must_use]
pub fn set_vectors<R: Rule>(groups: usize, around: &Around) -> usize {
    usize::from(around.head) + groups * row_vectors::<R>()
}

/// The text of the kernel that applies `R` under `key`.
#[must_use]
pub fn source<R: Rule>(key: &Key) -> String {
    let zero = match (key.around.zero, key.access) {
        (false, _) => "fn zero_g(at: At, raw: vec4<u32>) {}\n",
        (true, Access::Quads) => include_str!("../shaders/access/quads_zero.wgsl"),
        (true, Access::Elements) => include_str!("../shaders/access/elements_zero.wgsl"),
    };
    // The rule comes first: module scope knows no order, and an error then names the rule's own line.
    [R::WGSL, &common(key), zero, &glue::<R>(key), include_str!("../shaders/step.wgsl")].join("\n")
}

/// The text of the kernel that reduces the gradients of what a kernel under `key` updates.
#[must_use]
pub fn reduce_source(key: &Key) -> String {
    // The access text names the parameters too, which a reduction does not bind: they are a private stand-in.
    let buffers = format!(
        "var<private> p_buffer: array<Stored, 1>;
@group(0) @binding({REDUCE_BINDING_G}) var<storage, read> g_buffer: array<Stored>;"
    );
    [&common(key), buffers.as_str(), include_str!("../shaders/reduce.wgsl")].join("\n")
}

/// What the kernels that walk a table of tiles have in common.
fn common(key: &Key) -> String {
    let access = match key.access {
        Access::Quads => include_str!("../shaders/access/quads.wgsl"),
        Access::Elements => include_str!("../shaders/access/elements.wgsl"),
    };
    let tiles = if key.whole {
        include_str!("../shaders/tiles/whole.wgsl")
    } else {
        include_str!("../shaders/tiles/mixed.wgsl")
    };
    let format = include_str!("../shaders/formats/f32.wgsl");
    [format, access, tiles, include_str!("../shaders/header.wgsl"), &table(key)].join("\n")
}

/// The table of tiles.
fn table(key: &Key) -> String {
    let (space, count) = match key.space {
        Space::Uniform => {
            let count = crate::plan::uniform_tiles(key.uniform_bytes, key.whole);
            ("uniform", format!(", {count}"))
        }
        Space::Storage => ("storage, read", String::new()),
    };
    format!(
        "const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;
const ROWS = {}u;
const SINGLE = {};
struct Table {{ @size({HEADER_BYTES}) header: Header, records: array<Record{count}> }}
@group(0) @binding({BINDING_TABLE}) var<{space}> table: Table;
",
        key.groups, key.single
    )
}

/// Declarations that follow from the rule's fields and the key.
fn glue<R: Rule>(key: &Key) -> String {
    let (names, slots) = (scalar_names::<R>(), slots::<R>());
    let kept = || slots.iter().zip(&key.kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let vectors = row_vectors::<R>();
    let mut text = String::new();
    let mut line = |l: String| {
        text.push_str(&l);
        text.push('\n');
    };

    line(format!("struct Row {{ {} }}", fields(names, "f32")));
    line(format!(
        "@group(1) @binding(0) var<uniform> rows: array<vec4<f32>, {}>;",
        set_vectors::<R>(key.groups as usize, &key.around)
    ));
    let head = usize::from(key.around.head);
    line("fn row(group: u32) -> Row {".into());
    // A vec4 at a time: fewer uniform loads than a field at a time. Few rows are all loaded from constant addresses and selected
    // from: on software Vulkan, where a computed address is a gather, that measured 10 % of a whole AdamW step.
    for v in 0..vectors {
        if key.groups <= SELECTED_ROWS {
            let chain = (1..key.groups as usize).fold(format!("rows[{}]", head + v), |chain, g| {
                format!("select({chain}, rows[{}], group == {g}u)", head + g * vectors + v)
            });
            line(format!("let v{v} = {chain};"));
        } else {
            line(format!("let v{v} = rows[group * {vectors}u + {}u];", head + v));
        }
    }
    let parts = list(names.iter().enumerate(), |(i, _)| format!("v{}.{}", i / 4, lane(i % 4)));
    line(format!("return Row({parts});\n}}"));

    if key.whole {
        line("alias Scalars = Row;".into());
        line("fn scalars(record: Record, at: At) -> Scalars { return row(record.group); }".into());
    } else {
        line(format!("struct Scalars {{ {} }}", fields(names, "vec4<f32>")));
        line("fn scalars(record: Record, at: At) -> Scalars {".into());
        line("let group = min(at.lanes, vec4<u32>(ROWS - 1u));".into());
        line(
            "let a = row(group.x); let b = row(group.y); let c = row(group.z); let d = row(group.w);".into(),
        );
        let parts = list(names.iter(), |n| format!("vec4<f32>(a.{n}, b.{n}, c.{n}, d.{n})"));
        line(format!("return Scalars({parts});\n}}"));
    }

    let g_access = if key.writable_gradients { "read_write" } else { "read" };
    line(format!("@group(0) @binding({BINDING_P}) var<storage, read_write> p_buffer: array<Stored>;"));
    line(format!("@group(0) @binding({BINDING_G}) var<storage, {g_access}> g_buffer: array<Stored>;"));
    for (binding, slot) in (BINDING_STATE..).zip(kept()) {
        line(format!("@group(0) @binding({binding}) var<storage, read_write> {slot}_buffer: array<F32>;"));
    }

    // What was read is remembered as it was stored, for the lanes that keep it.
    line("var<private> old_p: F32;".into());
    line("fn read_p(at: At) -> vec4<f32> { old_p = load_p(at); return decode_f32(old_p); }".into());
    line(
        "fn write_p(at: At, x: vec4<f32>) { store_p(at, keep(at, old_p, encode_f32(x))); average(at, x); }"
            .into(),
    );
    line(around(&key.around, key.kept.iter().filter(|&&kept| kept).count()));
    for (slot, kept) in slots.iter().zip(&key.kept) {
        if *kept {
            line(format!("var<private> old_{slot}: F32;"));
            line(format!(
                "fn read_{slot}(at: At) -> vec4<f32> {{ old_{slot} = {slot}_buffer[at.state]; return decode_f32(old_{slot}); }}"
            ));
            line(format!(
                "fn write_{slot}(at: At, x: vec4<f32>) {{ {slot}_buffer[at.state] = keep(at, old_{slot}, encode_f32(x)); }}"
            ));
        } else {
            line(format!("fn read_{slot}(at: At) -> vec4<f32> {{ return vec4<f32>(); }}"));
            line(format!("fn write_{slot}(at: At, x: vec4<f32>) {{ }}"));
        }
    }
    text
}

/// What stands around the rule; `kept` slots are bound before the average.
fn around(around: &Around, kept: usize) -> String {
    let mut text = String::new();
    let mut line = |l: &str| {
        text.push_str(l);
        text.push('\n');
    };
    // Read before the branch, as the rows are.
    line(if around.head {
        "var<private> head: vec4<f32>;\nfn prepare() { head = rows[0]; }"
    } else {
        "fn prepare() {}"
    });
    line("fn read_g(at: At) -> vec4<f32> {\nlet raw = load_g(at);\nzero_g(at, raw);");
    line(if around.head { "let x = decode_f32(raw) * head.x;" } else { "let x = decode_f32(raw);" });
    line(if around.bounded {
        // A bound must not make a number of what is none.
        "let nan = (raw & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
return select(clamp(x, vec4<f32>(-head.w), vec4<f32>(head.w)), x, nan);
}"
    } else {
        "return x;\n}"
    });
    if around.skips {
        line("fn skipped() -> bool { return head.y > 0.0; }\nfn rest(at: At) {");
        line(if around.zero { "zero_g(at, load_g(at));\n}" } else { "}" });
    } else {
        line("fn skipped() -> bool { return false; }\nfn rest(at: At) {}");
    }
    if around.ema {
        let binding = BINDING_STATE as usize + kept;
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

#[cfg(feature = "gpu")]
pub(crate) use compiled::{Kernel, check_text};

#[cfg(feature = "gpu")]
mod compiled {
    use super::{
        BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, ENTRY_POINT, Key, REDUCE_BINDING_G,
        REDUCE_BINDING_PARTIALS, reduce_source, source,
    };
    use crate::device::checked;
    use crate::error::Error;
    use crate::plan::Space;
    use crate::rules::{Rule, is_built_in};

    /// A compiled kernel of the step.
    #[derive(Debug)]
    pub(crate) struct Kernel {
        pub(crate) pipeline: wgpu::ComputePipeline,
        pub(crate) layout: wgpu::BindGroupLayout,
    }

    impl Kernel {
        pub(crate) fn new<R: Rule>(
            device: &wgpu::Device,
            rows: &wgpu::BindGroupLayout,
            key: &Key,
        ) -> Result<Self, Error> {
            let label = format!("wgpu-optim {}", R::NAME);
            checked(device, what::<R>, || {
                let text = source::<R>(key);
                let descriptor = wgpu::ShaderModuleDescriptor {
                    label: Some(&label),
                    source: wgpu::ShaderSource::Wgsl(text.into()),
                };
                let module = if is_built_in::<R>() {
                    // SAFETY: no index leaves its binding. `Part::prove_bounds` has checked every tile of the table against
                    // what is bound, the driver stays inside of its tile, element access clamps, and the rules of the list index
                    // nothing and have no loops.
                    unsafe {
                        let checks = wgpu::ShaderRuntimeChecks::unchecked();
                        device.create_shader_module_trusted(descriptor, checks)
                    }
                } else {
                    // Anyone's text, which can name any of the kernel's buffers: wgpu checks indices and loops.
                    device.create_shader_module(descriptor)
                };
                let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
                let table = match key.space {
                    Space::Uniform => wgpu::BufferBindingType::Uniform,
                    Space::Storage => storage(true),
                };
                let mut entries = vec![
                    entry(BINDING_TABLE, table),
                    entry(BINDING_P, storage(false)),
                    entry(BINDING_G, storage(!key.writable_gradients)),
                ];
                let kept = key.kept.iter().filter(|&&kept| kept);
                let states = kept.count() as u32 + u32::from(key.around.ema);
                entries.extend((0..states).map(|i| entry(BINDING_STATE + i, storage(false))));
                let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: Some(&label),
                    entries: &entries,
                });
                let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: Some(&label),
                    bind_group_layouts: &[Some(&layout), Some(rows)],
                    immediate_size: 0,
                });
                let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&label),
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: Some(ENTRY_POINT),
                    compilation_options: wgpu::PipelineCompilationOptions::default(),
                    cache: None,
                });
                Self { pipeline, layout }
            })
        }
    }

    fn what<R: Rule>() -> String {
        format!("the kernel of rule {} (whose own text is lines 1 to {})", R::NAME, R::WGSL.lines().count())
    }

    /// Has the device look at a rule's text in both of its forms, with scalars and with vectors of them, one of which only some layouts need.
    pub(crate) fn check_text<R: Rule>(device: &wgpu::Device, key: &Key) -> Result<(), Error> {
        for whole in [true, false] {
            let text = source::<R>(&Key { whole, ..key.clone() });
            let label = format!("wgpu-optim {}", R::NAME);
            let source = wgpu::ShaderSource::Wgsl(text.into());
            let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&label), source };
            checked(device, what::<R>, || device.create_shader_module(descriptor))?;
        }
        Ok(())
    }

    impl Kernel {
        /// The reduction of the gradients of what the kernel under `key` updates.
        pub(crate) fn reduction(device: &wgpu::Device, key: &Key) -> Result<Self, Error> {
            let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
            let table = match key.space {
                Space::Uniform => wgpu::BufferBindingType::Uniform,
                Space::Storage => storage(true),
            };
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("wgpu-optim reduction"),
                entries: &[
                    entry(BINDING_TABLE, table),
                    entry(REDUCE_BINDING_G, storage(true)),
                    entry(REDUCE_BINDING_PARTIALS, storage(false)),
                ],
            });
            let pipeline = crate::control::reduce_pipeline(device, reduce_source(key), &layout)?;
            Ok(Self { pipeline, layout })
        }
    }

    fn entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
        wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        }
    }
}

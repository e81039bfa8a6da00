//! From a rule to shader text and a pipeline: `rule ++ format ++ access ++ tiles ++ driver`.
//!
//! A kernel is specialised by its [`Key`]; what a key switches off is not in the text.

use crate::format::Format;
use crate::options::{Clip, Options};
use crate::plan::{HEADER_BYTES, Space, Tile, WORKGROUP_SIZE, WholeTile};
use crate::rules::{Rule, scalar_names, slots};
use std::fmt::Write as _;

/// Bind group 0: binding of the table of tiles. Then parameters, gradients, and from [`BINDING_STATE`] the kept slots in order.
pub const BINDING_TABLE: u32 = 0;
/// Bind group 0: binding of the parameters.
pub const BINDING_P: u32 = 1;
/// Bind group 0: binding of the gradients.
pub const BINDING_G: u32 = 2;
/// Bind group 0: binding of the first kept state slot. Behind the last of them: the average of the weights, then partial results of norms.
pub const BINDING_STATE: u32 = 3;
/// Bind group 0 of the reduction, behind the table: binding of the gradients, then of the partial results.
pub const REDUCE_BINDING_G: u32 = 1;
/// Bind group 0 of the reduction: binding of the partial results.
pub const REDUCE_BINDING_PARTIALS: u32 = 2;
/// The driver's entry point.
pub const ENTRY_POINT: &str = "step";
/// The entry point of a layer-wise rule's first phase.
pub const MEASURE_ENTRY_POINT: &str = "measure";
/// The reduction's entry point.
pub const REDUCE_ENTRY_POINT: &str = "reduce";
/// The entry point of the kernels that add up partial results.
pub const FOLD_ENTRY_POINT: &str = "fold";
/// The scalar that a group's gradients are multiplied by, behind the rule's own.
pub const GROUP_FACTOR: &str = "gradient_factor";

/// Up to this many rows, a kernel selects a row's scalars instead of addressing them.
const SELECTED_ROWS: u32 = 4;
const NORMS: &str = include_str!("../shaders/norms.wgsl");

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
    /// Whether every group's gradients have a factor of their own, behind the group's scalars.
    pub grouped: bool,
    /// Whether gradients are bounded by value.
    pub bounded: bool,
    /// Whether the step may be skipped.
    pub skips: bool,
    /// Whether gradients are set to zero.
    pub zero: bool,
    /// Whether there is an average of the weights.
    pub ema: bool,
    /// Whether the norms of parameters and update are taken.
    pub norms: bool,
}

/// How a kernel walks a table of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Walk {
    /// How parameters and gradients are loaded.
    pub access: Access,
    /// Whether every tile is of whole quads of one group. Never with [`Access::Elements`].
    pub whole: bool,
    /// Where the table lies.
    pub space: Space,
    /// Bytes of a uniform binding on the device.
    pub uniform_bytes: u32,
}

impl Walk {
    /// Bytes of a table with `tiles` tiles.
    #[must_use]
    pub fn table_bytes(&self, tiles: usize) -> u64 {
        let tile = if self.whole { size_of::<WholeTile>() } else { size_of::<Tile>() };
        (HEADER_BYTES + tiles * tile) as u64
    }
}

/// What a kernel is specialised for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// How it walks its table.
    pub walk: Walk,
    /// Whether there is but one tile, which then is no matter of looking up.
    pub single: bool,
    /// Whether the gradients' binding is writable, as it has to be when they share a buffer with the parameters.
    pub writable_gradients: bool,
    /// Rows of scalars: of groups, or of tensors in the second phase of a layer-wise rule.
    pub rows: u32,
    /// Where the rows lie.
    pub rows_space: Space,
    /// Which of the rule's slots are kept.
    pub kept: Vec<bool>,
    /// What stands around the rule.
    pub around: Around,
}

impl Key {
    /// Bindings of state in bind group 0: kept slots and the average of the weights.
    #[must_use]
    pub fn states(&self) -> u32 {
        self.kept.iter().filter(|&&kept| kept).count() as u32 + u32::from(self.around.ema)
    }

    /// Storage bindings of the kernel.
    #[must_use]
    pub fn storage_bindings(&self) -> u32 {
        let storage = |space| u32::from(space == Space::Storage);
        2 + storage(self.walk.space) + storage(self.rows_space) + self.states() + u32::from(self.around.norms)
    }

    /// What the first phase of a layer-wise rule is specialised for: it writes nothing but partial results.
    #[must_use]
    pub fn measuring(&self) -> Self {
        let Around { head, grouped, bounded, .. } = self.around;
        let around = Around { head, grouped, bounded, norms: true, ..Around::default() };
        Self { around, single: false, ..self.clone() }
    }
}

/// The names of a row's scalars: the rule's, and what stands around it.
fn row_names<R: Rule>(around: &Around) -> Vec<&'static str> {
    scalar_names::<R>().iter().copied().chain(around.grouped.then_some(GROUP_FACTOR)).collect()
}

/// vec4s that one group's scalars take.
#[must_use]
pub fn row_vectors<R: Rule>(around: &Around) -> usize {
    (scalar_names::<R>().len() + usize::from(around.grouped)).div_ceil(4)
}

/// vec4s of a step's scalars of all groups, or tensors.
#[must_use]
pub fn set_vectors<R: Rule>(rows: usize, around: &Around) -> usize {
    usize::from(around.head) + rows * row_vectors::<R>(around)
}

/// Bytes that a step of `R` moves for a parameter of f32, options apart: parameters and kept slots are read and written, gradients are read. The first phase of a
/// layer-wise rule reads parameters, gradients and the kept slots that the direction takes.
#[must_use]
pub fn bytes_moved<R: Rule>(kept: &[bool]) -> u64 {
    let kept = || slots::<R>().iter().zip(kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let values = match (R::RATIO, R::WGSL.split_once("fn direction")) {
        (Some(_), Some((_, text))) => {
            let direction = text.split("\nfn ").next().unwrap_or_default();
            2 + kept().filter(|slot| direction.contains(&format!("read_{slot}("))).count()
        }
        _ => 0,
    };
    4 * (values + 3 + 2 * kept().count()) as u64
}

/// The text of the kernel that applies `R` under `key`.
#[must_use]
pub fn source<R: Rule>(key: &Key) -> String {
    let zero = match (key.around.zero, key.walk.access) {
        (false, _) => "",
        (true, Access::Quads) => include_str!("../shaders/access/quads_zero.wgsl"),
        (true, Access::Elements) => include_str!("../shaders/access/elements_zero.wgsl"),
    };
    let norms = if key.around.norms { NORMS } else { "" };
    let driver = if key.around.norms {
        include_str!("../shaders/measured_step.wgsl")
    } else {
        include_str!("../shaders/step.wgsl")
    };
    // The rule comes first: module scope knows no order, and an error then names the rule's own line.
    let glue = glue::<R>(key, Phase::Update);
    [R::WGSL, HELPERS, &common(&key.walk), zero, norms, &glue, driver].join("\n")
}

/// The text of the first phase of a layer-wise rule under `key`, which is [measuring](Key::measuring).
#[must_use]
pub fn measure_source<R: Rule>(key: &Key) -> String {
    let driver = include_str!("../shaders/measure.wgsl");
    [R::WGSL, HELPERS, &common(&key.walk), NORMS, &glue::<R>(key, Phase::Measure), driver].join("\n")
}

/// The text of the kernel that reduces the gradients of what a kernel that walks so updates.
#[must_use]
pub fn reduce_source(walk: &Walk) -> String {
    // The access text names the parameters too, which a reduction does not bind: they are a private stand-in.
    let buffers = format!(
        "var<private> p_buffer: array<Stored, 1>;
@group(0) @binding({REDUCE_BINDING_G}) var<storage, read> g_buffer: array<Stored>;
@group(0) @binding({REDUCE_BINDING_PARTIALS}) var<storage, read_write> partials: array<Partial>;"
    );
    [&common(walk), buffers.as_str(), NORMS, include_str!("../shaders/reduce.wgsl")].join("\n")
}

/// What partial results are added up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// The norm of each group's gradients.
    Groups,
    /// The norms of all parameters and of their update.
    All,
}

/// The text of a kernel that adds up partial results.
#[must_use]
pub fn fold_source(fold: Fold) -> String {
    let (quantities, end) = match fold {
        Fold::Groups => (1, [include_str!("../shaders/fold/groups.wgsl"), ""]),
        Fold::All => (2, [include_str!("../shaders/fold/all.wgsl"), STATE]),
    };
    [&fold_common(quantities), &end.join("\n")].map(String::as_str).join("\n")
}

/// The text of the kernel between the phases of a layer-wise rule, for groups' rows as `key` has them.
#[must_use]
pub fn ratio_source<R: Rule>(key: &Key) -> String {
    let names = row_names::<R>(&key.around);
    let ratio = R::RATIO.and_then(|ratio| names.iter().position(|name| *name == ratio)).unwrap_or_default();
    let mut text = format!(
        "const HEAD = {}u;
const ROW = {}u;
const RATIO = {ratio}u;
alias At = u32;
alias Scalars = Row;
",
        usize::from(key.around.head),
        row_vectors::<R>(&key.around),
    );
    // What the rule's other functions call.
    for value in ["p", "g"].iter().chain(slots::<R>()) {
        let _ = writeln!(text, "fn read_{value}(at: At) -> vec4<f32> {{ return vec4<f32>(); }}");
        let _ = writeln!(text, "fn write_{value}(at: At, x: vec4<f32>) {{}}");
    }
    let fold = fold_common(2);
    [R::WGSL, HELPERS, &text, &rows::<R>(key), &fold, include_str!("../shaders/fold/tensors.wgsl")].join("\n")
}

fn fold_common(quantities: u32) -> String {
    let constants = format!("const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;\nconst QUANTITIES = {quantities}u;");
    [&constants, NORMS, include_str!("../shaders/fold.wgsl")].join("\n")
}

/// The text of the control kernel for `groups` groups of `R`.
#[must_use]
pub fn control_source<R: Rule>(options: &Options, groups: usize) -> String {
    let around = options.around();
    let constants = format!(
        "const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;
const SET = {}u;
const ROW = {}u;
const FACTOR = {}u;
const CLIPS = {};
const GROUPED = {};
const SKIPS = {};
const DYNAMIC = {};",
        set_vectors::<R>(groups, &around),
        row_vectors::<R>(&around),
        scalar_names::<R>().len() % 4,
        matches!(options.clip, Some(Clip::GlobalNorm(_))),
        around.grouped,
        around.skips,
        options.loss_scale.is_some(),
    );
    [&constants, NORMS, STATE, include_str!("../shaders/control.wgsl")].join("\n")
}

const HELPERS: &str = include_str!("../shaders/helpers.wgsl");
const STATE: &str = include_str!("../shaders/state.wgsl");

/// The text of a storage format, and of what it needs beside it.
#[must_use]
pub fn format_source(format: Format) -> &'static str {
    match format {
        Format::F32 => include_str!("../shaders/formats/f32.wgsl"),
        Format::F16 => {
            concat!(include_str!("../shaders/formats/half.wgsl"), include_str!("../shaders/formats/f16.wgsl"))
        }
        Format::Bf16 => {
            concat!(
                include_str!("../shaders/formats/half.wgsl"),
                include_str!("../shaders/formats/bf16.wgsl")
            )
        }
    }
}

/// What the kernels that walk a table of tiles have in common.
fn common(walk: &Walk) -> String {
    let access = match walk.access {
        Access::Quads => include_str!("../shaders/access/quads.wgsl"),
        Access::Elements => include_str!("../shaders/access/elements.wgsl"),
    };
    let tiles = if walk.whole {
        include_str!("../shaders/tiles/whole.wgsl")
    } else {
        include_str!("../shaders/tiles/mixed.wgsl")
    };
    let format = include_str!("../shaders/formats/f32.wgsl");
    let (space, count) = match walk.space {
        Space::Uniform => {
            ("uniform", format!(", {}", crate::plan::uniform_tiles(walk.uniform_bytes, walk.whole)))
        }
        Space::Storage => ("storage, read", String::new()),
    };
    let table = format!(
        "const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;
struct Table {{ @size({HEADER_BYTES}) header: Header, records: array<Record{count}> }}
@group(0) @binding({BINDING_TABLE}) var<{space}> table: Table;
"
    );
    [format, access, tiles, include_str!("../shaders/header.wgsl"), &table].join("\n")
}

/// The rows of scalars.
fn rows<R: Rule>(key: &Key) -> String {
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
    let head = usize::from(key.around.head);
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
enum Phase {
    /// The first phase of a layer-wise rule: norms, and nothing is written.
    Measure,
    /// The update.
    Update,
}

/// Declarations that follow from the rule's fields, the key and the phase.
fn glue<R: Rule>(key: &Key, phase: Phase) -> String {
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

    let g_access = if key.writable_gradients { "read_write" } else { "read" };
    line(format!("@group(0) @binding({BINDING_P}) var<storage, read_write> p_buffer: array<Stored>;"));
    line(format!("@group(0) @binding({BINDING_G}) var<storage, {g_access}> g_buffer: array<Stored>;"));
    for (binding, slot) in (BINDING_STATE..).zip(kept()) {
        line(format!("@group(0) @binding({binding}) var<storage, read_write> {slot}_buffer: array<F32>;"));
    }

    // What was read is remembered as it was stored, for the lanes that keep it.
    line("var<private> old_p: F32;".into());
    line("fn read_p(at: At) -> vec4<f32> { old_p = load_p(at); return decode_f32(old_p); }".into());
    let updates = phase == Phase::Update;
    if updates {
        line("fn write_p(at: At, x: vec4<f32>) { store_p(at, keep(at, old_p, encode_f32(x))); average(at, x); moved(at, x); }".into());
    } else {
        line("fn write_p(at: At, x: vec4<f32>) {}".into());
    }
    for (slot, kept) in slots.iter().zip(&key.kept) {
        if *kept {
            line(format!("var<private> old_{slot}: F32;"));
            line(format!(
                "fn read_{slot}(at: At) -> vec4<f32> {{ old_{slot} = {slot}_buffer[at.state]; return decode_f32(old_{slot}); }}"
            ));
        } else {
            line(format!("fn read_{slot}(at: At) -> vec4<f32> {{ return vec4<f32>(); }}"));
        }
        let write = if *kept && updates {
            format!("{slot}_buffer[at.state] = keep(at, old_{slot}, encode_f32(x));")
        } else {
            String::new()
        };
        line(format!("fn write_{slot}(at: At, x: vec4<f32>) {{ {write} }}"));
    }
    line(around(key, phase));
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
    line("fn prepare(s: Scalars) {");
    if around.head {
        line("head = rows[0];");
        line(&if around.grouped {
            format!("factor = vec4<f32>(s.{GROUP_FACTOR});")
        } else {
            "factor = vec4<f32>(head.x);".into()
        });
    }
    line("}");
    if !around.zero {
        line("fn zero_g(at: At, raw: vec4<u32>) {}");
    }
    line("fn read_g(at: At) -> vec4<f32> {\nlet raw = load_g(at);\nzero_g(at, raw);");
    line(if around.head { "let x = decode_f32(raw) * factor;" } else { "let x = decode_f32(raw);" });
    line(if around.bounded {
        // A bound must not make a number of what is none.
        "let nan = (raw & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
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
            line("of_p = squares(of_p, keep(at, vec4<u32>(0u), load_p(at)));");
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
of_p = squares(of_p, keep(at, vec4<u32>(0u), old_p));
of_u = squares(of_u, keep(at, vec4<u32>(0u), bitcast<vec4<u32>>(x - decode_f32(old_p))));
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

//! From a rule to shader text and a pipeline: `rule ++ format ++ access ++ tiles ++ driver`.
//!
//! A kernel is specialised by its [`Key`]; what a key switches off is not in the text.

use crate::format::Format;
use crate::options::{Clip, Master, Options};
use crate::plan::{HEADER_BYTES, Space, Tile, WORKGROUP_SIZE, WholeTile};
use crate::rules::{Rule, ratio_field, scalar_names, slots};
use std::fmt::Write as _;

/// Bind group 0: binding of the table of tiles. Then parameters, gradients, and from [`BINDING_STATE`] the kept slots in order.
pub const BINDING_TABLE: u32 = 0;
/// Bind group 0: binding of the parameters.
pub const BINDING_P: u32 = 1;
/// Bind group 0: binding of the gradients.
pub const BINDING_G: u32 = 2;
/// Bind group 0: binding of the first kept state slot. Behind the last of them: the parameters' master, the average of the weights, partial results of norms.
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
    /// Whether another one follows it: the step's random key in three parts of 16 bits. Never without the other.
    pub key: bool,
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

impl Around {
    /// vec4s before the scalars.
    #[must_use]
    pub fn head_vectors(&self) -> usize {
        usize::from(self.head) + usize::from(self.key)
    }
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
    /// How everything is stored.
    pub storage: Storage,
    /// What stands around the rule.
    pub around: Around,
}

impl Key {
    /// Bindings of state in bind group 0: kept slots, what is kept of the weights beside the stored ones, and the average of the weights.
    #[must_use]
    pub fn states(&self) -> u32 {
        self.kept_slots() + u32::from(self.storage.master().is_some()) + u32::from(self.around.ema)
    }

    fn kept_slots(&self) -> u32 {
        self.kept.iter().filter(|&&kept| kept).count() as u32
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
        let Around { head, key, grouped, bounded, .. } = self.around;
        let around = Around { head, key, grouped, bounded, norms: true, ..Around::default() };
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
    around.head_vectors() + rows * row_vectors::<R>(around)
}

/// Bytes that a step of `R` moves for a parameter: what is written is read too, but for zeroed gradients. The first phase of a layer-wise rule reads parameters, gradients and the
/// kept slots that the direction takes.
#[must_use]
pub fn bytes_moved<R: Rule>(kept: &[bool], options: &Options) -> u64 {
    let kept = || slots::<R>().iter().zip(kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let [params, grads, states] = [options.params, options.grads, options.states].map(Format::bytes);
    let params = params + options.storage().master().map_or(0, |(_, bytes)| bytes);
    let ema = if options.ema.is_some() { Format::F32.bytes() } else { 0 };
    let mut read = params + grads + states * kept().count() as u64 + ema;
    let written = read - grads + if options.zero_gradients { grads } else { 0 };
    if options.looks_first() {
        read += grads;
    }
    if let (Some(_), Some((_, text))) = (R::RATIO, R::WGSL.split_once("fn direction")) {
        let direction = text.split("\nfn ").next().unwrap_or_default();
        let slots = kept().filter(|slot| direction.contains(&format!("read_{slot}(")));
        read += params + grads + states * slots.count() as u64;
    }
    read + written
}

/// The text of the kernel that applies `R` under `key`.
#[must_use]
pub fn source<R: Rule>(key: &Key) -> String {
    let norms = if key.around.norms { NORMS } else { "" };
    let driver = if key.around.norms {
        concat!(include_str!("../shaders/rounds.wgsl"), include_str!("../shaders/measured_step.wgsl"))
    } else {
        include_str!("../shaders/step.wgsl")
    };
    // The rule comes first: module scope knows no order, and an error then names the rule's own line.
    let glue = glue::<R>(key, Phase::Update);
    [R::WGSL, HELPERS, &common(&key.walk), &formats(&key.storage), norms, &glue, driver].join("\n")
}

/// The text of the first phase of a layer-wise rule under `key`, which is [measuring](Key::measuring).
#[must_use]
pub fn measure_source<R: Rule>(key: &Key) -> String {
    let driver = concat!(include_str!("../shaders/rounds.wgsl"), include_str!("../shaders/measure.wgsl"));
    let glue = glue::<R>(key, Phase::Measure);
    [R::WGSL, HELPERS, &common(&key.walk), &formats(&key.storage), NORMS, &glue, driver].join("\n")
}

/// The text of the kernel that reduces the gradients, stored as `grads`, of what a kernel that walks so updates.
#[must_use]
pub fn reduce_source(walk: &Walk, grads: Format) -> String {
    let storage = Storage { grads, ..Storage::default() };
    let buffers = format!(
        "@group(0) @binding({REDUCE_BINDING_G}) var<storage, read> g_buffer: array<{}>;
@group(0) @binding({REDUCE_BINDING_PARTIALS}) var<storage, read_write> partials: array<Partial>;
fn decode_g(raw: {}) -> vec4<f32> {{ return decode_{}(raw); }}
{}",
        stored(grads, walk.access),
        grads.raw(),
        grads.name(),
        load("g", grads, walk.access)
    );
    let driver = concat!(include_str!("../shaders/rounds.wgsl"), include_str!("../shaders/reduce.wgsl"));
    [&common(walk), &formats(&storage), buffers.as_str(), NORMS, driver].join("\n")
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
    // `Layout::new` has seen to it that there is one.
    let ratio = ratio_field::<R>().unwrap_or_default();
    let mut text = format!(
        "const HEAD = {}u;
const ROW = {}u;
const RATIO = {ratio}u;
alias At = u32;
alias Scalars = Row;
",
        key.around.head_vectors(),
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
const HEAD = {}u;
const ROW = {}u;
const FACTOR = {}u;
const CLIPS = {};
const GROUPED = {};
const SKIPS = {};
const DYNAMIC = {};",
        set_vectors::<R>(groups, &around),
        around.head_vectors(),
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

const HALF: &str = include_str!("../shaders/formats/half.wgsl");

/// The text of a storage format, and of what it needs beside it.
#[must_use]
pub fn format_source(format: Format) -> String {
    let beside = if format == Format::F32 { "" } else { HALF };
    [beside, own_source(format)].concat()
}

fn own_source(format: Format) -> &'static str {
    match format {
        Format::F32 => include_str!("../shaders/formats/f32.wgsl"),
        Format::F16 => include_str!("../shaders/formats/f16.wgsl"),
        Format::Bf16 => include_str!("../shaders/formats/bf16.wgsl"),
    }
}

impl Format {
    /// The type of a stored quad in shaders.
    fn raw(self) -> &'static str {
        if self == Self::F32 { "F32" } else { "Half" }
    }

    /// The function that keeps lanes of padding.
    fn keep(self) -> &'static str {
        if self == Self::F32 { "keep" } else { "keep_half" }
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
    /// Whether what has 2 bytes is rounded at random.
    pub stochastic: bool,
}

impl Storage {
    /// Name and bytes an element of what is kept of the parameters.
    #[must_use]
    pub fn master(&self) -> Option<(&'static str, u64)> {
        match self.master {
            _ if self.params == Format::F32 => None,
            Master::F32 => Some(("master", 4)),
            Master::Remainder => Some(("remainder", 2)),
            Master::None => None,
        }
    }

    /// The expression that encodes `x`, the `nth` value of an element.
    fn encoded(&self, format: Format, nth: usize) -> String {
        let name = format.name();
        if self.stochastic && format != Format::F32 {
            format!("encode_{name}_stochastic(x, random(at, {nth}u))")
        } else {
            format!("encode_{name}(x)")
        }
    }
}

/// What the kernels that walk a table of tiles have in common.
fn common(walk: &Walk) -> String {
    let tiles = if walk.whole {
        include_str!("../shaders/tiles/whole.wgsl")
    } else {
        include_str!("../shaders/tiles/mixed.wgsl")
    };
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
    [tiles, include_str!("../shaders/header.wgsl"), &table].join("\n")
}

/// The formats that are stored, each once.
fn formats(storage: &Storage) -> String {
    let Storage { params, grads, states, stochastic, .. } = storage;
    let used = |format| [params, grads, states].contains(&&format);
    let half = if used(Format::F16) || used(Format::Bf16) { HALF } else { "" };
    let named =
        Format::ALL.into_iter().filter(|&format| format == Format::F32 || used(format)).map(own_source);
    let random = if *stochastic { include_str!("../shaders/random.wgsl") } else { "" };
    [half, random].into_iter().chain(named).collect::<Vec<_>>().join("\n")
}

/// How a buffer of quads is declared: whole ones, or words.
fn stored(format: Format, access: Access) -> &'static str {
    match access {
        Access::Quads => format.raw(),
        Access::Elements => "u32",
    }
}

/// Loads a quad of the parameters (`"p"`) or the gradients (`"g"`).
fn load(side: &str, format: Format, access: Access) -> String {
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
    for (nth, (slot, kept)) in slots.iter().zip(&key.kept).enumerate() {
        if *kept {
            line(format!("var<private> old_{slot}: {raw};"));
            line(format!(
                "fn read_{slot}(at: At) -> vec4<f32> {{ old_{slot} = {slot}_buffer[at.state]; return decode_{}(old_{slot}); }}",
                states.name()
            ));
        } else {
            line(format!("fn read_{slot}(at: At) -> vec4<f32> {{ return vec4<f32>(); }}"));
        }
        let write = if *kept && updates {
            let (keep, next) = (states.keep(), storage.encoded(states, nth + 1));
            format!("{slot}_buffer[at.state] = {keep}(at, old_{slot}, {next});")
        } else {
            String::new()
        };
        line(format!("fn write_{slot}(at: At, x: vec4<f32>) {{ {write} }}"));
    }
    line(around(key, phase));
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
        Some((slot, 4)) => {
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
        Some((_, 2)) => "bf16_before_remainder(x)".into(),
        Some(_) => format!("encode_{name}(x)"),
        None => storage.encoded(params, 0),
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

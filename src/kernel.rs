//! From a rule to shader text and a pipeline: `rule ++ format ++ access ++ tiles ++ driver`.
//!
//! A kernel is specialised by its [`Key`]; what a key switches off is not in the text.

mod text;

pub use text::{Storage, format_source};

use crate::format::Format;
use crate::options::{Clip, Options};
use crate::plan::{HEADER_BYTES, Space, WORKGROUP_SIZE, tile_bytes};
use crate::rules::{Rule, ratio_field, scalar_names, slots};
use std::fmt::Write as _;
use text::{Phase, common, formats, glue, load, rows, stored};

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

const HELPERS: &str = include_str!("../shaders/helpers.wgsl");
const STATE: &str = include_str!("../shaders/state.wgsl");
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
    /// Whether every tile is of one tensor, and says of which: for random numbers.
    pub by_tensor: bool,
}

impl Walk {
    /// Bytes of a table with `tiles` tiles.
    #[must_use]
    pub fn table_bytes(&self, tiles: usize) -> u64 {
        (HEADER_BYTES + tiles * tile_bytes(self.whole, self.by_tensor)) as u64
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
        let storage = Storage { stochastic: false, ..self.storage };
        Self { around, storage, single: false, ..self.clone() }
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

/// Bytes that a step of `R` moves for a tensor of `len` elements: what is written is read too, but for zeroed gradients. The first phase of a layer-wise rule reads parameters, gradients
/// and the kept slots that the direction takes.
#[must_use]
pub fn bytes_moved<R: Rule>(kept: &[bool], options: &Options, len: u64) -> u64 {
    let kept = || slots::<R>().iter().zip(kept).filter(|(_, kept)| **kept).map(|(slot, _)| slot);
    let bytes = |format: Format| format.tensor_bytes(len);
    let [params, grads, states] = [options.params, options.grads, options.states_of(len)].map(bytes);
    let params = params + options.storage().master().map_or(0, |(_, format)| bytes(format));
    let ema = options.ema.map_or(0, |_| bytes(Format::F32));
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

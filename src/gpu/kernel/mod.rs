//! From a rule to the text of its kernels: files of `shaders/`, and declarations of the host.
//!
//! A kernel is specialised by its [`KernelKey`].

mod compose;
mod declare;
mod stage;
mod target;
#[cfg(test)]
mod tests;

use super::plan::{HEADER_BYTES, Space, segment_bytes};
use crate::layout::Layout;
use crate::options::{Clip, Options, Storage};
use crate::rules::RuleSpec;
use crate::rules::names::{AVERAGE_WEIGHT, GROUP_FACTOR};
pub use compose::{Composed, Part};
pub(crate) use compose::{control, fold, layer_norms, reduce, trust_ratios, update};
pub use stage::Stage;
pub use target::Target;

/// Bind group 0: binding of the table of segments. Then parameters, gradients, and from [`BINDING_STATE`] the
/// kept slots in order.
pub const BINDING_TABLE: u32 = 0;
/// Bind group 0: binding of the parameters.
pub const BINDING_P: u32 = 1;
/// Bind group 0: binding of the gradients.
pub const BINDING_G: u32 = 2;
/// Bind group 0: binding of the first kept state slot. Behind the last of them: the parameters' master, the
/// average of the weights, partial sums of norms.
pub const BINDING_STATE: u32 = 3;
/// Bind group 0 of the reduction, behind the table: binding of the gradients, then of the partial sums.
pub const REDUCE_BINDING_G: u32 = 1;
/// Bind group 0 of the reduction: binding of the partial sums.
pub const REDUCE_BINDING_PARTIALS: u32 = 2;
/// How parameters and gradients are loaded and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// One `vec4` a vector.
    Vectors,
    /// Element by element: for ranges that start or end inside a 16-byte block of their buffer.
    Elements,
}

/// The options that a kernel has around the rule: see [`Options`](crate::Options).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fused {
    /// Whether the step's random key is in the header, in three parts of 16 bits.
    pub key: bool,
    /// Whether every group's gradients have a factor of their own, behind the group's scalars.
    pub grouped: bool,
    /// Whether gradients are bounded by value.
    pub bounded: bool,
    /// Whether the factor of the gradients may be beyond the normal numbers, as the device computes it.
    pub splits: bool,
    /// Whether the step may be skipped.
    pub skips: bool,
    /// Whether gradients are set to zero.
    pub zero: bool,
    /// Whether there is an average of the weights.
    pub ema: bool,
    /// Whether the norms of parameters and update are taken.
    pub norms: bool,
}

impl Fused {
    /// The options of a step's kernels.
    #[must_use]
    pub fn of(options: &Options) -> Self {
        Self {
            key: options.storage().stochastic,
            grouped: matches!(options.clip, Some(Clip::GroupNorm(_))),
            bounded: matches!(options.clip, Some(Clip::Value(_))),
            splits: options.loss_scale.is_some() || options.bounds_norms(),
            skips: options.skips(),
            zero: options.zero_gradients,
            ema: options.ema.is_some(),
            norms: options.norms,
        }
    }
}

/// Where the scalars of a step lie: a header, and those of each group, or of each tensor in the second
/// phase of a layer-wise rule. All in vectors of four. They take as much for each rule of a layout.
///
/// The header's first vector has the factor of the gradients, whether the step is skipped and, last, the
/// bound of the gradients. A second one has the random key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CandidateLayout {
    /// Vectors of the header.
    pub header: u32,
    /// Vectors from one group to the next.
    pub stride: u32,
    /// The place of the average's weight among a group's scalars, if there is one: behind the scalars of the
    /// rule with the most.
    pub weight: u32,
    /// The place of the factor of a group's gradients among its scalars, if it has one: in their last vector.
    pub factor: u32,
}

impl CandidateLayout {
    /// The candidates of a layout's steps.
    #[must_use]
    pub fn new(layout: &Layout, fused: &Fused) -> Self {
        Self::of(layout.most_scalars(), fused)
    }

    /// Candidates whose groups have at most so many scalars of a rule.
    #[must_use]
    pub fn of(scalars: usize, fused: &Fused) -> Self {
        let weight = scalars as u32;
        let factor = weight + u32::from(fused.ema);
        let stride = (factor + u32::from(fused.grouped)).div_ceil(4);
        Self { header: 1 + u32::from(fused.key), stride, weight, factor }
    }

    /// Vectors of a candidate for so many groups.
    #[must_use]
    pub fn vectors(&self, groups: usize) -> usize {
        self.header as usize + groups * self.stride as usize
    }
}

/// How a kernel walks a table of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableLayout {
    /// How parameters and gradients are loaded.
    pub access: Access,
    /// Whether every segment is of whole vectors of one group. Never with [`Access::Elements`].
    pub aligned: bool,
    /// Where the table lies.
    pub space: Space,
    /// Bytes of a uniform binding on the device.
    pub uniform_bytes: u32,
    /// Whether every segment is of one tensor, and says of which: for random numbers.
    pub by_tensor: bool,
    /// The kind of device that the kernel is for.
    pub target: Target,
}

impl TableLayout {
    /// Bytes of a table with `segments` segments.
    #[must_use]
    pub fn table_bytes(&self, segments: usize) -> u64 {
        (HEADER_BYTES + segments * segment_bytes(self.aligned, self.by_tensor)) as u64
    }
}

/// What a kernel is specialised for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelKey {
    /// How it walks its table.
    pub table_layout: TableLayout,
    /// Whether there is but one segment, which then is no matter of looking up.
    pub single: bool,
    /// Whether the gradients' binding is writable, as it has to be when they share a buffer with the
    /// parameters.
    pub writable_gradients: bool,
    /// Groups that have scalars, or tensors in the second phase of a layer-wise rule.
    pub groups: u32,
    /// Where the scalars lie.
    pub scalars_space: Space,
    /// Where scalars lie in a candidate.
    pub candidate: CandidateLayout,
    /// Which of the rule's slots are kept.
    pub kept: Vec<bool>,
    /// How everything is stored.
    pub storage: Storage,
    /// What stands around the rule.
    pub fused: Fused,
}

impl KernelKey {
    /// Bindings of state in bind group 0: kept slots, what is kept of the weights beside the stored ones, and
    /// the average of the weights.
    #[must_use]
    pub fn states(&self) -> u32 {
        self.kept_slots() + u32::from(self.storage.master().is_some()) + u32::from(self.fused.ema)
    }

    fn kept_slots(&self) -> u32 {
        self.kept.iter().filter(|&&kept| kept).count() as u32
    }

    /// Storage bindings of the kernel.
    #[must_use]
    pub fn storage_bindings(&self) -> u32 {
        let storage = |space| u32::from(space == Space::Storage);
        2 + storage(self.table_layout.space)
            + storage(self.scalars_space)
            + self.states()
            + u32::from(self.fused.norms)
    }

    /// What the first phase of a layer-wise rule is specialised for: it writes nothing but partial sums.
    #[must_use]
    pub fn for_layer_norms(&self) -> Self {
        let Fused { key, grouped, bounded, splits, .. } = self.fused;
        let fused = Fused { key, grouped, bounded, splits, norms: true, ..Fused::default() };
        let storage = Storage { stochastic: false, ..self.storage };
        Self { fused, storage, single: false, ..self.clone() }
    }
}

/// The names of the scalars of a group, with their places.
fn scalar_names(spec: &RuleSpec, key: &KernelKey) -> Vec<(&'static str, usize)> {
    let own = spec.scalars.iter().enumerate().map(|(i, name)| (*name, i));
    let weight = key.fused.ema.then_some((AVERAGE_WEIGHT, key.candidate.weight as usize));
    own.chain(weight)
        .chain(key.fused.grouped.then_some((GROUP_FACTOR, key.candidate.factor as usize)))
        .collect()
}

/// What adds up the partial sums of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldBy {
    /// A workgroup.
    Workgroup,
    /// A thread, where each target has few: 512 tensors of a layer-wise rule then need two workgroups and no
    /// barrier, and not 512 of each.
    Thread,
}

impl FoldBy {
    /// In the order of their kernels.
    pub const ALL: [Self; 2] = [Self::Workgroup, Self::Thread];
    /// The most partial sums of a target that a thread adds up by itself. Its loads follow each other.
    const FEW: usize = 16;

    /// For targets of which the largest has so many partial sums.
    #[must_use]
    pub fn of(most: usize) -> Self {
        if most <= Self::FEW { Self::Thread } else { Self::Workgroup }
    }
}

/// The sums that a kernel adds up from partial sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// The norm of each group's gradients.
    Groups,
    /// The norms of all parameters and of their update.
    All,
}

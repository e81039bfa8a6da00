//! The text of kernels: files of `shaders/`, and declarations of the host.
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
use crate::narrow::to_u32;
use crate::options::{Clip, Options, Storage};
use crate::rules::RuleSpec;
use crate::rules::names::{AVERAGE_WEIGHT, GROUP_FACTOR};
pub use compose::{Composed, Part};
pub(crate) use compose::{control, fold, layer_norms, reduce, trust_ratios, update};
pub use stage::Stage;
pub use target::Target;

/// Bind group 0: binding of the table of segments. Then parameters, gradients, and from [`BINDING_STATE`] the
/// kept slots in order.
pub(super) const BINDING_TABLE: u32 = 0;
/// Bind group 0: binding of the parameters.
pub(super) const BINDING_P: u32 = 1;
/// Bind group 0: binding of the gradients.
pub(super) const BINDING_G: u32 = 2;
/// Bind group 0: binding of the first kept state slot. After the last slot: the parameters' master, the
/// average of the weights, partial sums of norms.
pub(super) const BINDING_STATE: u32 = 3;
/// Bind group 0 of the reduction: binding of the gradients, after the table.
pub(super) const REDUCE_BINDING_G: u32 = 1;
/// Bind group 0 of the reduction: binding of the partial sums.
pub(super) const REDUCE_BINDING_PARTIALS: u32 = 2;
/// The access to parameters and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    /// One `vec4` per vector.
    Vectors,
    /// Element by element: for ranges that start or end inside a 16-byte block of their buffer.
    Elements,
}

/// The options of a kernel around the rule: see [`Options`](crate::Options).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Fused {
    /// Whether the step's random key is in the header, in three parts of 16 bits.
    pub key: bool,
    /// Whether every group's gradients have their own factor, after the group's scalars.
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
    pub(super) fn of(options: &Options) -> Self {
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

/// The places of a step's scalars: a header, then the scalars per group, or per tensor in the second phase of
/// a layer-wise rule. All are in vectors of four, with the same size for each rule of a layout.
///
/// The header's first vector has the factor of the gradients, whether the step is skipped and, last, the
/// bound of the gradients. A second one has the random key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CandidateLayout {
    /// Vectors of the header.
    pub header: u32,
    /// Vectors from one group to the next.
    pub stride: u32,
    /// The place of the average's weight among a group's scalars, if there is an average: after the scalars
    /// of the rule with the most scalars.
    pub weight: u32,
    /// The place of the factor of a group's gradients among its scalars, if there is a factor: in their last
    /// vector.
    pub factor: u32,
}

impl CandidateLayout {
    /// The candidates of a layout's steps.
    #[must_use]
    pub(super) fn new(layout: &Layout, fused: &Fused) -> Self {
        Self::of(layout.most_scalars(), fused)
    }

    /// Candidates for rules with at most `scalars` scalars.
    #[must_use]
    pub(super) fn of(scalars: usize, fused: &Fused) -> Self {
        let weight = to_u32(scalars);
        let factor = weight + u32::from(fused.ema);
        let stride = (factor + u32::from(fused.grouped)).div_ceil(4);
        Self { header: 1 + u32::from(fused.key), stride, weight, factor }
    }

    /// Vectors of a candidate for `groups` groups.
    #[must_use]
    pub(super) fn vectors(&self, groups: usize) -> usize {
        self.header as usize + groups * self.stride as usize
    }
}

/// The access of a kernel to a table of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TableLayout {
    /// The access to parameters and gradients.
    pub access: Access,
    /// Whether every vector belongs wholly to one group. Never with [`Access::Elements`].
    pub aligned: bool,
    /// The address space of the table.
    pub space: Space,
    /// Bytes of a uniform binding on the device.
    pub uniform_bytes: u32,
    /// Whether every segment belongs to one tensor and names it, for random numbers.
    pub by_tensor: bool,
    /// The kind of device that the kernel is for.
    pub target: Target,
}

impl TableLayout {
    /// Bytes of a table with `segments` segments.
    #[must_use]
    pub(super) fn table_bytes(&self, segments: usize) -> u64 {
        (HEADER_BYTES + segments * segment_bytes(self.aligned, self.by_tensor)) as u64
    }
}

/// The key by which a kernel is specialised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct KernelKey {
    /// The access to the table.
    pub table_layout: TableLayout,
    /// Whether there is only one segment, which needs no lookup.
    pub single: bool,
    /// Whether the gradients' binding is writable. It must be if gradients and parameters share a buffer.
    pub writable_gradients: bool,
    /// The number of groups with scalars, or of tensors in the second phase of a layer-wise rule.
    pub groups: u32,
    /// The address space of the scalars.
    pub scalars_space: Space,
    /// The places of scalars in a candidate.
    pub candidate: CandidateLayout,
    /// Whether each of the rule's slots is kept.
    pub kept: Vec<bool>,
    /// The storage of parameters, gradients and state.
    pub storage: Storage,
    /// The options around the rule.
    pub fused: Fused,
}

impl KernelKey {
    /// Bindings of state in bind group 0: kept slots, master or remainder, and the average of the weights.
    #[must_use]
    pub(super) fn states(&self) -> u32 {
        self.kept_slots() + u32::from(self.storage.master().is_some()) + u32::from(self.fused.ema)
    }

    fn kept_slots(&self) -> u32 {
        to_u32(self.kept.iter().filter(|&&kept| kept).count())
    }

    /// Storage bindings of the kernel.
    #[must_use]
    pub(super) fn storage_bindings(&self) -> u32 {
        let storage = |space| u32::from(space == Space::Storage);
        2 + storage(self.table_layout.space)
            + storage(self.scalars_space)
            + self.states()
            + u32::from(self.fused.norms)
    }

    /// The key for the first phase of a layer-wise rule, which writes only partial sums.
    #[must_use]
    pub(super) fn for_layer_norms(&self) -> Self {
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

/// The unit that adds up the partial sums of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoldBy {
    /// A workgroup.
    Workgroup,
    /// A thread, if each target has few partial sums: 512 tensors of a layer-wise rule then need two
    /// workgroups and no barrier, instead of 512 workgroups with barriers.
    Thread,
}

impl FoldBy {
    /// The units in the order of their kernels.
    pub(super) const ALL: [Self; 2] = [Self::Workgroup, Self::Thread];
    /// The largest number of partial sums of a target that one thread adds up. Its loads follow each other.
    const FEW: usize = 16;

    /// The unit for targets with at most `most` partial sums.
    #[must_use]
    pub(super) fn of(most: usize) -> Self {
        if most <= Self::FEW { Self::Thread } else { Self::Workgroup }
    }
}

/// The sums that a kernel adds up from partial sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    /// The norm of each group's gradients.
    Groups,
    /// The norms of all parameters and of their update.
    All,
}

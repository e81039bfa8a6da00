//! Tensors, their places in the flat space, and the rule of each group.

mod change;
mod group;

pub(crate) use group::Carry;
pub use group::Group;

use crate::bytes::bytes_moved;
use crate::error::{LayoutError, RuleError, StateError, StepError};
use crate::formats::Format;
use crate::narrow::to_usize;
use crate::options::Options;
use crate::rules::RuleSpec;
use crate::step::Step;
use std::collections::HashSet;

/// Elements of a vector, one `vec4`.
pub(crate) const VECTOR: u64 = 4;
/// The largest element index: byte addresses of four-byte elements stay below 2⁶³.
const MAX_ELEMENTS: u64 = 1 << 61;

/// A rule of a layout, with everything that its groups have in common.
#[derive(Clone, Debug)]
pub(crate) struct RuleUse {
    pub(crate) spec: RuleSpec,
    /// Whether any of its groups keeps each state slot.
    pub(crate) kept: Vec<bool>,
}

/// One tensor of a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tensor {
    /// Unique name.
    pub name: String,
    /// Dimensions; the product is [`len`](Self::len).
    pub shape: Vec<u64>,
    /// Index into [`Layout::groups`].
    pub group: usize,
    /// First element in the flat space.
    pub offset: u64,
    /// Number of elements.
    pub len: u64,
}

impl Tensor {
    /// One past the last element in the flat space.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// The tensor's range in a flat slice; `0..0` for a tensor without elements, at any offset.
    ///
    /// # Panics
    /// If the range ends beyond the address space, where no slice does: on 32-bit hosts only.
    #[must_use]
    pub fn range(&self) -> core::ops::Range<usize> {
        if self.len == 0 { 0..0 } else { to_usize(self.offset)..to_usize(self.end()) }
    }
}

/// Named tensors in groups, each a range of one flat space of elements.
///
/// Tensors of one shared buffer lie in this space, and all state does. Gaps between tensors are allowed and
/// belong to the caller.
///
/// ```
/// use wgpu_optim::{AdamW, Group, Layout};
/// let layout = Layout::new([
///     Group::new("decay", AdamW::default()).tensor("w", [64, 32]).tensor_at("head", [32, 10], 4096),
///     Group::new("no_decay", AdamW { weight_decay: 0.0, ..AdamW::default() }).tensor("b", [32]),
/// ])?;
/// assert_eq!(layout.tensor("head")?.offset, 4096);
/// assert_eq!(layout.tensor("b")?.offset, 4096 + 320); // behind "head"
/// assert_eq!((layout.len(), layout.parameters()), (4448, 2400));
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Layout {
    groups: Vec<Group>,
    rules: Vec<RuleUse>,
    /// The index in `rules` of each group's rule.
    rule_of: Vec<usize>,
    tensors: Vec<Tensor>,
    by_offset: Vec<usize>,
    by_name: Vec<usize>,
}

impl Layout {
    /// Places the groups' tensors and checks them.
    ///
    /// A tensor without an offset of its own starts at a multiple of 4 elements: one vector.
    ///
    /// State has the order of the flat space. A tensor that starts at a vector in the flat space and in its
    /// buffer is updated by vectors, the fast way. A group may have no tensors, and a tensor no elements: a
    /// step ignores them.
    ///
    /// # Errors
    /// A [`LayoutError`] if there are no groups, if a rule or a factor is refused, if a name occurs twice, or
    /// if tensors overlap or end beyond the largest element.
    pub fn new(groups: impl IntoIterator<Item = Group>) -> Result<Self, LayoutError> {
        Self::with_alignment(groups, VECTOR)
    }

    /// Places tensors without gaps, each directly after the one declared before it.
    ///
    /// It is meant for flat buffers that are packed already. In buffers per tensor, tensors that do not start
    /// at a vector are updated element by element: [`Bound::slow_dispatches`](crate::Bound::slow_dispatches)
    /// counts such dispatches.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new).
    pub fn packed(groups: impl IntoIterator<Item = Group>) -> Result<Self, LayoutError> {
        Self::with_alignment(groups, 1)
    }

    fn with_alignment(groups: impl IntoIterator<Item = Group>, alignment: u64) -> Result<Self, LayoutError> {
        let groups: Vec<_> = groups.into_iter().collect();
        let mut tensors = Vec::new();
        let (mut group_names, mut tensor_names) = (HashSet::new(), HashSet::new());
        let mut next = 0;
        for (g, group) in groups.iter().enumerate() {
            group.rule.validate()?;
            let refuse = |reason| LayoutError::Factor { group: group.name.clone(), reason };
            group.lr_factor.validate().map_err(refuse)?;
            if !group_names.insert(group.name.as_str()) {
                return Err(LayoutError::DuplicateGroup { group: group.name.clone() });
            }
            for declared in &group.tensors {
                if !tensor_names.insert(declared.name.as_str()) {
                    return Err(LayoutError::DuplicateTensor { tensor: declared.name.clone() });
                }
                let tensor = place(declared, g, next, alignment)?;
                next = tensor.end();
                tensors.push(tensor);
            }
        }
        if groups.is_empty() {
            return Err(LayoutError::Empty);
        }
        let mut by_name: Vec<_> = (0..tensors.len()).collect();
        let mut by_offset: Vec<_> = by_name.iter().copied().filter(|&i| tensors[i].len > 0).collect();
        by_offset.sort_by_key(|&i| tensors[i].offset);
        for pair in by_offset.windows(2) {
            let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
            if b.offset < a.end() {
                return Err(LayoutError::Overlap {
                    first: a.name.clone(),
                    second: b.name.clone(),
                    end: a.end(),
                    start: b.offset,
                });
            }
        }
        by_name.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        let (rules, rule_of) = rules_of(&groups)?;
        Ok(Self { groups, rules, rule_of, tensors, by_offset, by_name })
    }

    /// The groups, in the order they were declared.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The tensors, in the order they were declared.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors in the order of the flat space, without tensors of no elements.
    pub fn by_offset(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.by_offset.iter().map(|&i| &self.tensors[i])
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// A [`LayoutError::UnknownTensor`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor, LayoutError> {
        self.find(name, |tensor| LayoutError::UnknownTensor { tensor })
    }

    /// A tensor by name, or the error of another stage for an unknown name.
    pub(crate) fn find<E>(&self, name: &str, unknown: impl FnOnce(String) -> E) -> Result<&Tensor, E> {
        self.by_name
            .binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name))
            .map(|at| &self.tensors[self.by_name[at]])
            .map_err(|_| unknown(name.into()))
    }

    /// The extent of the flat space in elements: one past the last tensor's last element, gaps included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an extent, and no collection")]
    pub fn len(&self) -> u64 {
        self.by_offset().last().map_or(0, Tensor::end)
    }

    /// The number of parameters: the elements of all tensors, gaps excluded.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|t| t.len).sum()
    }

    /// Bytes of a flat f32 buffer that holds the layout in whole 16-byte vectors.
    ///
    /// A buffer down to `4 · len()` bytes works too; its last one to three elements then take a dispatch of
    /// their own.
    #[must_use]
    pub fn buffer_size(&self) -> u64 {
        self.buffer_size_as(Format::F32)
    }

    /// Bytes of a flat buffer of elements stored as `format`, in whole vectors of four.
    #[must_use]
    pub fn buffer_size_as(&self, format: Format) -> u64 {
        self.len().next_multiple_of(VECTOR) * format.bytes()
    }

    /// Bytes that a step moves on the GPU.
    ///
    /// Parameters and state are read and written. Gradients are read once, or twice if their norm is taken.
    /// Layer-wise rules read the values for their norms twice. Frozen groups move nothing. The count
    /// saturates at `u64::MAX`.
    #[must_use]
    pub fn bytes_moved(&self, options: &Options) -> u64 {
        let tensors = self.tensors.iter().filter(|tensor| !self.groups[tensor.group].frozen);
        let moved = tensors.map(|tensor| {
            let RuleUse { spec, kept } = &self.rules[self.rule_of[tensor.group]];
            bytes_moved(spec, kept, options, tensor.len)
        });
        u64::try_from(moved.sum::<u128>()).unwrap_or(u64::MAX)
    }

    /// Names of the state slots of all rules, each once, in the order of the groups.
    #[must_use]
    pub fn slot_names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for slot in self.rules.iter().flat_map(|rule| rule.spec.slots) {
            if !names.contains(slot) {
                names.push(*slot);
            }
        }
        names
    }

    /// Names of the state slots kept for a tensor: the slots of its rule that any group of the rule keeps. A
    /// tensor of another layout has none if this layout lacks its group.
    pub fn kept_slots(&self, tensor: &Tensor) -> impl Iterator<Item = &'static str> {
        let known = tensor.group < self.groups.len();
        known.then(|| self.rule_of(tensor).kept_slots()).into_iter().flatten()
    }

    /// Whether any tensor keeps the state slot `slot`.
    #[must_use]
    pub fn keeps_slot(&self, slot: &str) -> bool {
        self.rules.iter().any(|rule| rule.kept_slots().any(|kept| kept == slot))
    }

    /// Whether a tensor shares a vector with another one.
    #[cfg(feature = "gpu")]
    pub(crate) fn shares_vector(&self, tensor: &Tensor) -> bool {
        if tensor.len == 0 {
            return false;
        }
        let place = self.by_offset.partition_point(|&i| self.tensors[i].offset < tensor.offset);
        let neighbour = |i: usize| self.by_offset.get(i).map(|&i| &self.tensors[i]);
        let before = place.checked_sub(1).and_then(neighbour);
        let behind = neighbour(place + 1);
        before.is_some_and(|before| before.end().div_ceil(VECTOR) > tensor.offset / VECTOR)
            || behind.is_some_and(|behind| behind.offset / VECTOR < tensor.end().div_ceil(VECTOR))
    }

    /// The error for a slot of a tensor's rule that no group of the rule keeps.
    pub(crate) fn not_kept(&self, slot: &str, tensor: &Tensor) -> StateError {
        let known = self.rule_of(tensor).spec.slots.iter().find(|known| **known == slot);
        match known {
            Some(slot) => StateError::SlotNotKept { group: self.groups[tensor.group].name.clone(), slot },
            None => StateError::UnknownSlot { tensor: tensor.name.clone(), slot: slot.into() },
        }
    }

    /// The rules, in the order of the groups.
    pub(crate) fn rules(&self) -> &[RuleUse] {
        &self.rules
    }

    /// The index of a group's rule in [`rules`](Self::rules).
    pub(crate) fn rule_index(&self, group: usize) -> usize {
        self.rule_of[group]
    }

    /// The rule of a tensor.
    pub(crate) fn rule_of(&self, tensor: &Tensor) -> &RuleUse {
        &self.rules[self.rule_of[tensor.group]]
    }

    /// The largest number of scalars of a rule.
    pub(crate) fn most_scalars(&self) -> usize {
        self.rules.iter().map(|rule| rule.spec.scalars.len()).max().unwrap_or(0)
    }

    /// The scalars and the number of each group's next step, after `recorded` steps on the host; zeros for a
    /// frozen group.
    ///
    /// `carries` has one entry per group; after an error some may have advanced. `scratch` has room for the
    /// [most scalars](Self::most_scalars).
    pub(crate) fn scalars(
        &self,
        step: Step,
        recorded: u64,
        carries: &mut [Carry],
        scratch: &mut [f64],
        mut each: impl FnMut(usize, u64, &[f64]),
    ) -> Result<(), StepError> {
        for (g, (group, carry)) in self.groups.iter().zip(carries).enumerate() {
            let rule = &self.rules[self.rule_of[g]];
            let scalars = &mut scratch[..rule.spec.scalars.len()];
            if group.frozen {
                scalars.fill(0.0);
            } else {
                group.scalars(step, recorded, carry, &rule.kept, scalars)?;
            }
            each(g, carry.taken, scalars);
        }
        Ok(())
    }
}

impl RuleUse {
    /// Names of the state slots that are kept.
    pub(crate) fn kept_slots(&self) -> impl Iterator<Item = &'static str> {
        self.spec.slots.iter().zip(&self.kept).filter(|(_, kept)| **kept).map(|(slot, _)| *slot)
    }
}

/// The different rules of the groups, and each group's index among them.
fn rules_of(groups: &[Group]) -> Result<(Vec<RuleUse>, Vec<usize>), RuleError> {
    let mut rules: Vec<RuleUse> = Vec::new();
    let mut rule_of = Vec::with_capacity(groups.len());
    for group in groups {
        let spec = *group.rule.spec();
        let found = rules.iter().position(|rule| rule.spec.id == spec.id);
        if found.is_none() && rules.iter().any(|rule| rule.spec.name == spec.name) {
            let conflict = "two rules of this name in one layout";
            return Err(RuleError::Conflict { rule: spec.name, conflict });
        }
        let index = found.unwrap_or(rules.len());
        if let Some(rule) = rules.get_mut(index)
            && spec.loops.is_none()
        {
            // `GpuOnly` in any group refuses the CPU.
            rule.spec = spec;
        }
        if index == rules.len() {
            rules.push(RuleUse { spec, kept: vec![false; spec.slots.len()] });
        }
        for (slot, kept) in rules[index].kept.iter_mut().enumerate() {
            *kept |= group.rule.keeps_slot(slot);
        }
        rule_of.push(index);
    }
    Ok((rules, rule_of))
}

/// Places a tensor at its own offset. Without one it goes to the multiple of `alignment` from `next` on, or
/// to `next` if it has no elements.
fn place(declared: &group::Declared, group: usize, next: u64, alignment: u64) -> Result<Tensor, LayoutError> {
    let empty = declared.shape.contains(&0);
    let len = declared.shape.iter().try_fold(1u128, |n, &d| n.checked_mul(d.into())).unwrap_or(u128::MAX);
    let len = if empty { 0 } else { len };
    let behind = || if empty { next } else { next.next_multiple_of(alignment) };
    let offset = declared.offset.unwrap_or_else(behind);
    let end = len.saturating_add(offset.into());
    if end > MAX_ELEMENTS.into() {
        let (tensor, end) = (declared.name.clone(), u64::try_from(end).unwrap_or(u64::MAX));
        return Err(LayoutError::TooLarge { tensor, end, bound: MAX_ELEMENTS });
    }
    Ok(Tensor {
        name: declared.name.clone(),
        shape: declared.shape.clone(),
        group,
        offset,
        len: u64::try_from(len).expect("at most MAX_ELEMENTS"),
    })
}

//! Which tensors there are, where they lie in the flat space, and which hyperparameters each group has.

use crate::error::Error;
use crate::format::Format;
use crate::kernel::bytes_moved;
use crate::options::Options;
use crate::plan::QUAD;
use crate::rules::{Fields, Rule, Step, refuse_names, scalar_names, slots};
use crate::schedule::Schedule;
use std::collections::HashSet;

/// The largest element index: byte addresses of four-byte elements stay below 2⁶³.
const MAX_ELEMENTS: u64 = 1 << 61;

/// Tensors that share hyperparameters.
///
/// A group *is* a rule with its own values, so it cannot name a hyperparameter that the rule lacks:
///
/// ```
/// use wgpu_optim::{AdamW, Group};
/// let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
/// let decay = Group::new("decay", adamw).tensor("wte", [50257, 768]);
/// let no_decay = Group::new("no_decay", AdamW { weight_decay: 0.0, ..adamw }).tensor("ln.b", [768]);
/// ```
#[derive(Clone, Debug)]
pub struct Group<R> {
    name: String,
    rule: R,
    lr_factor: Schedule,
    tensors: Vec<Declared>,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    shape: Vec<u64>,
    offset: Option<u64>,
}

impl<R: Rule> Group<R> {
    /// An empty group of tensors that `rule` updates.
    #[must_use]
    pub fn new(name: impl Into<String>, rule: R) -> Self {
        Self { name: name.into(), rule, lr_factor: Schedule::Constant(1.0), tensors: Vec::new() }
    }

    /// Multiplies every step's learning rate for this group: a number, or a [`Schedule`] of the steps that have been recorded, skipped ones included. Default 1.
    ///
    /// Where steps are given 1.0, a group's schedule is its learning rate. A momentum of the schedule's takes precedence over the step's.
    ///
    /// ```
    /// use wgpu_optim::{AdamW, Group, Layout, cpu, schedule};
    /// let layout = Layout::new([
    ///     Group::new("body", AdamW::default()).lr_factor(schedule::cosine(1e-4, 0.0, 1_000)).tensor("w", [4]),
    ///     Group::new("head", AdamW::default()).lr_factor(1e-3).tensor("v", [2]),
    /// ])?;
    /// cpu::Optimizer::<AdamW>::new(layout)?.step(cpu::Tensors::flat(&mut [0.0; 6], &[1.0; 6]), 1.0)?;
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    #[must_use]
    pub fn lr_factor(mut self, factor: impl Into<Schedule>) -> Self {
        self.lr_factor = factor.into();
        self
    }

    fn refuse_factor(&self, reason: Error) -> Error {
        Error::Factor { group: self.name.clone(), reason: Box::new(reason) }
    }

    /// Adds a tensor, right behind the one declared before it (of whatever group), the first at 0.
    #[must_use]
    pub fn tensor(self, name: impl Into<String>, shape: impl AsRef<[u64]>) -> Self {
        self.declare(name.into(), shape.as_ref(), None)
    }

    /// Adds a tensor that starts at element `offset` of the flat space.
    #[must_use]
    pub fn tensor_at(self, name: impl Into<String>, shape: impl AsRef<[u64]>, offset: u64) -> Self {
        self.declare(name.into(), shape.as_ref(), Some(offset))
    }

    fn declare(mut self, name: String, shape: &[u64], offset: Option<u64>) -> Self {
        self.tensors.push(Declared { name, shape: shape.to_vec(), offset });
        self
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The group's hyperparameters.
    #[must_use]
    pub fn rule(&self) -> &R {
        &self.rule
    }

    /// What every step's learning rate is multiplied by.
    #[must_use]
    pub fn factor(&self) -> &Schedule {
        &self.lr_factor
    }

    /// The group's scalars of step `t`, after `recorded` steps of the host's; advances `carry`.
    fn scalars(
        &self,
        step: Step,
        recorded: u64,
        t: u64,
        carry: &mut f64,
        kept: impl Fn(usize) -> bool,
    ) -> Result<R::Scalars<f64>, Error> {
        let refuse = |field, value, bound| Error::Step { field, group: self.name.clone(), value, bound };
        let factor = self.lr_factor.at(recorded).map_err(|reason| self.refuse_factor(reason))?;
        let lr = step.lr * factor.lr;
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(refuse("learning rate", lr, "finite and at least 0"));
        }
        let rule = match factor.momentum.or(step.momentum) {
            None => self.rule,
            Some(momentum) => {
                let bound = "absent: the rule has no momentum";
                let rule =
                    self.rule.with_momentum(momentum).ok_or_else(|| refuse("momentum", momentum, bound))?;
                // What excludes momentum 0 in a configuration (Nesterov) does not exclude a step of a schedule.
                match rule.validate() {
                    Err(Error::Hyperparameter { field, value, bound, .. }) => {
                        return Err(refuse(field, value, bound));
                    }
                    _ if (0..slots::<R>().len()).any(|s| rule.keeps_slot(s) && !kept(s)) => {
                        let bound = "0: no group's configuration keeps the state it needs";
                        return Err(refuse("momentum", momentum, bound));
                    }
                    _ => rule,
                }
            }
        };
        let scalars = rule.scalars(lr, t, carry);
        for (i, scalar) in scalar_names::<R>().iter().enumerate() {
            let value = scalars.get(i);
            if !(value as f32).is_finite() {
                return Err(Error::ScalarOverflow { rule: R::NAME, scalar, group: self.name.clone(), value });
            }
        }
        Ok(scalars)
    }
}

/// One tensor of a [`Layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
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
        self.offset + self.len
    }

    /// The tensor's place in a flat slice.
    #[must_use]
    pub fn range(&self) -> core::ops::Range<usize> {
        self.offset as usize..self.end() as usize
    }
}

/// Named tensors in groups, each a range of one flat space of elements.
///
/// The flat space is where the tensors lie when they share one buffer, and where their state lies always. For buffers of single tensors see
/// [`aligned`](Self::aligned).
/// Gaps between tensors are allowed and belong to the caller.
///
/// ```
/// use wgpu_optim::{AdamW, Group, Layout};
/// let layout = Layout::new([
///     Group::new("decay", AdamW::default()).tensor("w", [64, 32]).tensor_at("head", [32, 10], 4096),
///     Group::new("no_decay", AdamW { weight_decay: 0.0, ..AdamW::default() }).tensor("b", [32]),
/// ])?;
/// assert_eq!(layout.tensor("head")?.offset, 4096);
/// assert_eq!(layout.tensor("b")?.offset, 4096 + 320); // right behind "head"
/// assert_eq!((layout.len(), layout.parameters()), (4448, 2400));
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Layout<R> {
    groups: Vec<Group<R>>,
    tensors: Vec<Tensor>,
    by_offset: Vec<usize>,
    by_name: Vec<usize>,
}

impl<R: Rule> Layout<R> {
    /// Places the groups' tensors and checks them.
    ///
    /// # Errors
    /// A rule whose names are reserved, hyperparameters out of range, a learning-rate factor or a field of its schedule out of range, names declared twice, empty groups or
    /// tensors, tensors that overlap, or sizes beyond 64-bit addresses.
    pub fn new(groups: impl IntoIterator<Item = Group<R>>) -> Result<Self, Error> {
        Self::with_alignment(groups, 1)
    }

    /// [`new`](Self::new), but every tensor without an offset of its own starts at a multiple of 4 elements: 16 bytes, one vector.
    ///
    /// The layout to choose for a buffer for each tensor. State is kept as the flat space has it, so a tensor that starts inside a vector there, and
    /// at the start of one in its own buffer, is updated element by element.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn aligned(groups: impl IntoIterator<Item = Group<R>>) -> Result<Self, Error> {
        Self::with_alignment(groups, QUAD)
    }

    fn with_alignment(groups: impl IntoIterator<Item = Group<R>>, alignment: u64) -> Result<Self, Error> {
        refuse_names::<R>()?;
        let groups: Vec<_> = groups.into_iter().collect();
        let mut tensors = Vec::new();
        let (mut group_names, mut tensor_names) = (HashSet::new(), HashSet::new());
        let mut next = 0;
        for (g, group) in groups.iter().enumerate() {
            group.rule.validate()?;
            group.lr_factor.validate().map_err(|reason| group.refuse_factor(reason))?;
            if !group_names.insert(group.name.as_str()) {
                return Err(duplicate("group", &group.name));
            }
            if group.tensors.is_empty() {
                return Err(Error::EmptyGroup { group: group.name.clone() });
            }
            for declared in &group.tensors {
                if !tensor_names.insert(declared.name.as_str()) {
                    return Err(duplicate("tensor", &declared.name));
                }
                let tensor = place(declared, g, u64::next_multiple_of(next, alignment))?;
                next = tensor.end();
                tensors.push(tensor);
            }
        }
        if tensors.is_empty() {
            return Err(Error::EmptyLayout);
        }
        let mut by_offset: Vec<_> = (0..tensors.len()).collect();
        by_offset.sort_by_key(|&i| tensors[i].offset);
        for pair in by_offset.windows(2) {
            let (a, b) = (&tensors[pair[0]], &tensors[pair[1]]);
            if b.offset < a.end() {
                return Err(Error::TensorsOverlap {
                    first: a.name.clone(),
                    second: b.name.clone(),
                    end: a.end(),
                    start: b.offset,
                });
            }
        }
        let mut by_name = by_offset.clone();
        by_name.sort_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
        Ok(Self { groups, tensors, by_offset, by_name })
    }

    /// The groups, in the order they were declared.
    #[must_use]
    pub fn groups(&self) -> &[Group<R>] {
        &self.groups
    }

    /// The tensors, in the order they were declared.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors in the order of the flat space.
    pub fn by_offset(&self) -> impl Iterator<Item = &Tensor> {
        self.by_offset.iter().map(|&i| &self.tensors[i])
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.by_name
            .binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name))
            .map(|at| &self.tensors[self.by_name[at]])
            .map_err(|_| Error::Unknown { what: "tensor", name: name.into() })
    }

    /// The extent of the flat space in elements: one past the last tensor's last element, gaps included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a layout is never empty")]
    pub fn len(&self) -> u64 {
        self.by_offset().last().map_or(0, Tensor::end)
    }

    /// The number of parameters: the elements of all tensors, gaps excluded.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|t| t.len).sum()
    }

    /// Bytes of a flat f32 buffer that holds the layout in whole 16-byte vectors. A shorter one works too, down to
    /// `4 · len()`; its last one to three elements then take a dispatch of their own.
    #[must_use]
    pub fn buffer_size(&self) -> u64 {
        self.buffer_size_as(Format::F32)
    }

    /// The same of elements that are stored as `format`: whole vectors of four.
    #[must_use]
    pub fn buffer_size_as(&self, format: Format) -> u64 {
        self.len().next_multiple_of(QUAD) * format.bytes()
    }

    /// Bytes that a step has to move on the GPU: parameters and state are read and written, gradients are read, twice where their norm is; of layer-wise
    /// rules what their norms are taken of is read twice.
    #[must_use]
    pub fn bytes_moved(&self, options: &Options) -> u64 {
        let kept: Vec<_> = (0..slots::<R>().len()).map(|slot| self.keeps_slot(slot)).collect();
        self.tensors.iter().map(|tensor| bytes_moved::<R>(&kept, options, tensor.len)).sum()
    }

    /// The scalars of step `t` for every group, after `recorded` steps of the host's: more than `t − 1` if some were skipped. `carries` has a number a group; on an error some may have advanced.
    pub(crate) fn scalars(
        &self,
        step: Step,
        recorded: u64,
        t: u64,
        carries: &mut [f64],
        mut each: impl FnMut(usize, R::Scalars<f64>),
    ) -> Result<(), Error> {
        for (g, (group, carry)) in self.groups.iter().zip(carries).enumerate() {
            each(g, group.scalars(step, recorded, t, carry, |slot| self.keeps_slot(slot))?);
        }
        Ok(())
    }

    /// Whether any group keeps state slot `slot`.
    #[must_use]
    pub fn keeps_slot(&self, slot: usize) -> bool {
        self.groups.iter().any(|g| g.rule.keeps_slot(slot))
    }
}

fn duplicate(what: &'static str, name: &str) -> Error {
    Error::Duplicate { what, name: name.into() }
}

fn place(declared: &Declared, group: usize, next: u64) -> Result<Tensor, Error> {
    let too_large = |field, value: u128| Error::TooLarge {
        tensor: declared.name.clone(),
        field,
        value: u64::try_from(value).unwrap_or(u64::MAX),
        bound: MAX_ELEMENTS,
    };
    if declared.shape.contains(&0) {
        return Err(Error::EmptyTensor { tensor: declared.name.clone(), shape: declared.shape.clone() });
    }
    let len = declared.shape.iter().try_fold(1u128, |n, &d| n.checked_mul(d.into())).unwrap_or(u128::MAX);
    let offset = declared.offset.unwrap_or(next);
    let end = len.saturating_add(offset.into());
    if end > MAX_ELEMENTS.into() {
        return Err(too_large("offset + length", end));
    }
    Ok(Tensor {
        name: declared.name.clone(),
        shape: declared.shape.clone(),
        group,
        offset,
        // At most MAX_ELEMENTS.
        len: len as u64,
    })
}

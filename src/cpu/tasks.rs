//! Divides the work on the tensors of one rule into tasks of a fixed number of elements. A task may span
//! several tensors.
//!
//! Elements are numbered in the order of state: the rule's tensors in the order of the flat space, without
//! the gaps between them. Where state has [scales](crate::q8), a tensor begins at a multiple of 32 plus its
//! lane in the flat space. Small tensors keep state in f32. They are numbered among the others, and their
//! state has an array of its own.

use super::cells::TILE;
use crate::error::OutOfMemory;
use crate::formats::Format;
use crate::layout::{Layout, Tensor, VECTOR};
use crate::narrow::to_usize;
use crate::options::Options;
use crate::random::tensor_key;
use core::ops::Range;

/// Elements of a task, which one thread updates: few enough that all threads have work to the end.
pub(super) const TASK: usize = 32 * TILE;

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// Its place in the order of the flat space.
    pub(super) tensor: usize,
    /// Its first element.
    pub(super) start: usize,
    /// Its length.
    pub(super) len: usize,
    /// Where it starts in the flat space.
    pub(super) flat: usize,
    /// Its key for random numbers.
    pub(super) key: u32,
    /// The number of its array in each slot: 0 in the options' format, 1 in f32 for small tensors.
    pub(super) kind: usize,
    /// Its first element in that array.
    pub(super) kept: usize,
    /// The place of its scalars among the plan's sets.
    pub(super) scalars: usize,
}

impl Span {
    pub(super) fn end(&self) -> usize {
        self.start + self.len
    }

    /// Its elements in the array of its state.
    pub(super) fn state(&self) -> Range<usize> {
        self.kept..self.kept + self.len
    }
}

/// The part of a tensor in a task.
#[derive(Clone, Debug)]
pub(super) struct TensorRange {
    pub(super) span: usize,
    /// The place of its scalars among the plan's sets.
    pub(super) scalars: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The [kind](Span::kind) of a tensor of `len` elements.
fn kind(options: &Options, len: u64) -> usize {
    usize::from(options.states_of(len) != options.states)
}

/// The unit of work of a thread: one task, or several adjacent tasks.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// The first element: a multiple of [`TASK`], at or before its first tensor range.
    pub(super) start: usize,
    /// The start in the state of each kind: at or before the state of its first tensor range of that kind,
    /// and a multiple of [`Plan::scaled`].
    pub(super) kept: [usize; 2],
    pub(super) tensor_ranges: Range<usize>,
}

/// The tensors of one rule and their tasks.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// In the order of the flat space.
    pub(super) spans: Vec<Span>,
    pub(super) tensor_ranges: Vec<TensorRange>,
    pub(super) tasks: Vec<Task>,
    /// The group of each set of scalars.
    pub(super) groups: Vec<usize>,
    /// The number of elements, with the padding to whole blocks.
    pub(super) len: usize,
    /// Allocated elements of state of each kind.
    pub(super) kept: [usize; 2],
    /// Elements of state per scale, or 1 without scales.
    pub(super) scaled: usize,
}

impl Plan {
    /// The places of the tensors of rule `rule`; [`divide`](Self::divide) adds the tasks. There is a set of
    /// scalars for each group or, for a layer-wise rule, for each tensor in the order of the flat space.
    pub(super) fn new(layout: &Layout, options: &Options, rule: usize) -> Result<Self, OutOfMemory> {
        let layer_wise = layout.rules()[rule].spec.is_layer_wise();
        let mut spans = Vec::new();
        let mut groups = if layer_wise { Vec::new() } else { (0..layout.groups().len()).collect() };
        let scaled = to_usize(options.states.block().unwrap_or(1));
        // An upper bound of all numbers below: two blocks of padding per tensor, and one task.
        let tensors = layout.tensors().len() as u64;
        let bound = layout.len().saturating_add(tensors * 2 * scaled as u64 + TASK as u64);
        if usize::try_from(bound).is_err() {
            return Err(OutOfMemory { bytes: layout.parameters().saturating_mul(Format::F32.bytes()) });
        }
        let (mut start, mut kept) = (0usize, [0usize; 2]);
        let tensors = layout.by_offset().enumerate();
        for (nth, tensor) in tensors.filter(|(_, tensor)| layout.rule_index(tensor.group) == rule) {
            let (len, flat) = (to_usize(tensor.len), to_usize(tensor.offset));
            let kind = kind(options, tensor.len);
            if scaled > 1 && kind == 0 {
                let lane = flat % to_usize(VECTOR);
                start = start.next_multiple_of(scaled) + lane;
                kept[0] = kept[0].next_multiple_of(scaled) + lane;
            }
            if layer_wise {
                groups.push(tensor.group);
            }
            let scalars = if layer_wise { groups.len() - 1 } else { tensor.group };
            let key = tensor_key(&tensor.name);
            spans.push(Span { tensor: nth, start, len, flat, key, kind, kept: kept[kind], scalars });
            start += len;
            kept[kind] += len;
        }
        kept[0] = kept[0].next_multiple_of(scaled);
        let len = start.next_multiple_of(scaled);
        Ok(Self { spans, tensor_ranges: Vec::new(), tasks: Vec::new(), groups, len, kept, scaled })
    }

    /// Divides the tensors of groups that are not frozen. It is called after state is reserved: the
    /// reservation fails for a layout that is too large.
    pub(super) fn divide(&mut self, layout: &Layout) -> Result<(), OutOfMemory> {
        let Self { spans, tensor_ranges, tasks, scaled, groups, .. } = self;
        tensor_ranges.clear();
        tasks.clear();
        let start = spans.last().map_or(0, Span::end);
        let count = start.div_ceil(TASK);
        let bytes = (count as u64).saturating_mul((size_of::<Task>() + size_of::<TensorRange>()) as u64);
        tasks.try_reserve_exact(count).map_err(|_| OutOfMemory { bytes })?;
        tensor_ranges.try_reserve(count + spans.len()).map_err(|_| OutOfMemory { bytes })?;
        let (mut span, mut reached) = (0, [0usize; 2]);
        for from in (0..start).step_by(TASK) {
            let (to, first) = (start.min(from + TASK), tensor_ranges.len());
            // Scales are not divided.
            let kept = [reached[0].next_multiple_of(*scaled), reached[1]];
            while let Some(tensor) = spans.get(span).filter(|tensor| tensor.start < to) {
                let (start, end) = (tensor.start.max(from), tensor.end().min(to));
                if !layout.groups()[groups[tensor.scalars]].is_frozen() {
                    tensor_ranges.push(TensorRange { span, scalars: tensor.scalars, start, end });
                    reached[tensor.kind] = tensor.kept + (end - tensor.start);
                }
                if end < tensor.end() {
                    break;
                }
                span += 1;
            }
            if tensor_ranges.len() > first {
                tasks.push(Task { start: from, kept, tensor_ranges: first..tensor_ranges.len() });
            }
        }
        Ok(())
    }

    /// The place of one of the rule's tensors in [`spans`](Self::spans); it has elements.
    pub(super) fn span_of(&self, tensor: &Tensor) -> usize {
        self.spans.partition_point(|span| (span.flat as u64) < tensor.offset)
    }

    /// The kind of one of the rule's tensors, its elements in the array of its state, and its elements.
    pub(super) fn places(&self, tensor: &Tensor, options: &Options) -> (usize, Range<usize>, Range<usize>) {
        if tensor.len == 0 {
            return (kind(options, 0), 0..0, 0..0);
        }
        let span = &self.spans[self.span_of(tensor)];
        (span.kind, span.state(), span.start..span.end())
    }
}

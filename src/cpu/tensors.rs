//! The caller's parameters and gradients, and their division among threads.

use super::cells::Cells;
use super::tasks::{Plan, Task, TensorRange};
use crate::error::BindError;
use crate::layout::Layout;
use crate::options::Options;
#[cfg(feature = "gpu")]
use core::ops::Range;
use std::collections::HashSet;

/// Parameters: a slice of f32, or of the codes of a format of 2 bytes.
#[derive(Debug)]
pub struct Params<'a>(pub(super) Cells<'a>);

/// Gradients: a slice as for [`Params`]; an exclusive one if the options set gradients to zero.
#[derive(Debug)]
pub struct Grads<'a>(Cells<'a>);

macro_rules! from {
    ($name:ident, $t:ty, $cells:ident, $([$lifetime:lifetime $mut:tt])?) => {
        impl<'a> From<&'a $($mut)? [$t]> for $name<'a> {
            fn from(x: &'a $($mut)? [$t]) -> Self {
                Self(Cells::$cells(x))
            }
        }
        impl<'a> From<&'a $($mut)? Vec<$t>> for $name<'a> {
            fn from(x: &'a $($mut)? Vec<$t>) -> Self {
                Self(Cells::$cells(x))
            }
        }
        impl<'a, const N: usize> From<&'a $($mut)? [$t; N]> for $name<'a> {
            fn from(x: &'a $($mut)? [$t; N]) -> Self {
                Self(Cells::$cells(x))
            }
        }
    };
}
from!(Params, f32, Write4, ['a mut]);
from!(Params, u16, Write2, ['a mut]);
from!(Grads, f32, Write4, ['a mut]);
from!(Grads, u16, Write2, ['a mut]);
from!(Grads, f32, Read4,);
from!(Grads, u16, Read2,);

/// The caller's parameters and gradients in host memory.
#[derive(Debug)]
pub struct Tensors<'a>(Form<'a>);

#[derive(Debug)]
enum Form<'a> {
    Flat(Pair<'a>),
    Each(Vec<(&'a str, Pair<'a>)>),
}

/// Parameters and gradients of the same elements.
#[derive(Debug, Default)]
pub(crate) struct Pair<'a> {
    pub(super) p: Cells<'a>,
    pub(super) g: Cells<'a>,
}

impl Pair<'_> {
    #[inline]
    fn reborrow(&mut self) -> Pair<'_> {
        Pair { p: self.p.reborrow(), g: self.g.reborrow() }
    }

    fn split_at(self, at: usize) -> (Self, Self) {
        let ((p, p_rest), (g, g_rest)) = (self.p.split_at(at), self.g.split_at(at));
        (Self { p, g }, Self { p: p_rest, g: g_rest })
    }
}

impl<'a> Tensors<'a> {
    /// All parameters in one slice and all gradients in another, each tensor at its layout's offset.
    pub fn flat(params: impl Into<Params<'a>>, grads: impl Into<Grads<'a>>) -> Self {
        Self(Form::Flat(Pair { p: params.into().0, g: grads.into().0 }))
    }

    /// One pair of slices per tensor: `(name, parameters, gradients)`, in any order. The order of the
    /// layout's flat space is fastest.
    pub fn each<P: Into<Params<'a>>, G: Into<Grads<'a>>>(
        tensors: impl IntoIterator<Item = (&'a str, P, G)>,
    ) -> Self {
        let pair = |(name, p, g): (&'a str, P, G)| (name, Pair { p: p.into().0, g: g.into().0 });
        Self(Form::Each(tensors.into_iter().map(pair).collect()))
    }

    /// Checks them against the layout and divides them by rules, in the order of the flat space. `plan` gives
    /// the plan of each rule.
    pub(super) fn checked<'p>(
        self,
        layout: &Layout,
        plan: impl Fn(usize) -> &'p Plan,
        options: &Options,
    ) -> Result<Checked<'a>, BindError> {
        let check = |pair: &Pair<'_>| {
            pair.p.refuse_format("params", options.params)?;
            pair.g.refuse_format("grads", options.grads)?;
            if options.zero_gradients && matches!(pair.g, Cells::Read4(_) | Cells::Read2(_)) {
                return Err(BindError::ReadOnly);
            }
            Ok(())
        };
        match self.0 {
            Form::Flat(pair) => {
                check(&pair)?;
                let bound = layout.len();
                for (what, found) in [("parameters", pair.p.len()), ("gradients", pair.g.len())] {
                    if (found as u64) < bound {
                        return Err(BindError::TooShort { what, found: found as u64, bound });
                    }
                }
                Ok(Checked::Flat { first: 0, pair })
            }
            Form::Each(given) => {
                let (found, expected) = (given.len() as u64, layout.tensors().len() as u64);
                let rules = layout.rules().len();
                let mut pairs: Vec<Vec<Pair<'a>>> = Vec::new();
                pairs.resize_with(rules, Vec::new);
                for (rule, pairs) in pairs.iter_mut().enumerate() {
                    pairs.resize_with(plan(rule).spans.len(), Pair::default);
                }
                // The next tensor, and the next place of each rule: slices in order need no search.
                let (mut in_order, mut nth) = (layout.by_offset().peekable(), vec![0; rules]);
                let mut without_elements = HashSet::new();
                for (name, pair) in given.into_iter().take(layout.tensors().len()) {
                    let unknown = |tensor| BindError::UnknownTensor { tensor };
                    let tensor = match in_order.peek() {
                        Some(next) if next.name == name => next,
                        _ => layout.find(name, unknown)?,
                    };
                    check(&pair)?;
                    for (what, cells) in [("parameters", &pair.p), ("gradients", &pair.g)] {
                        let (found, expected) = (cells.len() as u64, tensor.len);
                        if found != expected {
                            let what = format!("{what} of tensor {name:?}");
                            return Err(BindError::Length { what, found, expected });
                        }
                    }
                    let twice = || BindError::DuplicateTensor { tensor: name.into() };
                    if tensor.len == 0 {
                        if !without_elements.insert(name) {
                            return Err(twice());
                        }
                        continue;
                    }
                    in_order.next();
                    let rule = layout.rule_index(tensor.group);
                    let next = plan(rule).spans.get(nth[rule]);
                    let at = match next.filter(|span| span.flat as u64 == tensor.offset) {
                        Some(_) => nth[rule],
                        None => plan(rule).span_of(tensor),
                    };
                    nth[rule] = at + 1;
                    if pairs[rule][at].p.len() > 0 {
                        return Err(twice());
                    }
                    pairs[rule][at] = pair;
                }
                if found != expected {
                    return Err(BindError::TensorCount { found, expected });
                }
                Ok(Checked::Each(pairs))
            }
        }
    }
}

/// Tensors that were checked against a layout.
#[derive(Debug)]
pub(crate) enum Checked<'a> {
    /// One slice of parameters and one of gradients.
    Flat {
        /// The start of the slices in the flat space.
        first: usize,
        pair: Pair<'a>,
    },
    /// Slices of single tensors, for each rule.
    Each(Vec<Vec<Pair<'a>>>),
    /// Slices of the parts of tensors in some tasks of one rule.
    #[cfg(feature = "gpu")]
    Tasks {
        /// The first element.
        start: usize,
        /// The tensor of the first element.
        span: usize,
        pairs: Vec<Pair<'a>>,
    },
}

impl<'a> Checked<'a> {
    /// Parameters in one slice, if no gradients are read.
    #[cfg(feature = "gpu")]
    pub(crate) fn params(params: &'a mut [f32]) -> Self {
        Self::Flat { first: 0, pair: Pair { p: Cells::Write4(params), g: Cells::None } }
    }

    /// The slices of tasks of one rule, from element `start` of span `span` on. `ranges` are their ranges of
    /// the flat space with their spans; the gradients lie one range after the other.
    #[cfg(feature = "gpu")]
    pub(super) fn tasks(
        start: usize,
        span: usize,
        ranges: impl Iterator<Item = (Range<usize>, usize)>,
        params: &'a mut [f32],
        grads: &'a [f32],
    ) -> Self {
        let (mut params, mut grads, mut at) = (params, grads, 0);
        let mut merged: Vec<(Range<usize>, usize)> = Vec::new();
        for (range, of) in ranges {
            match merged.last_mut().filter(|(_, last)| *last == of) {
                Some((last, _)) => last.end = range.end,
                None => merged.push((range, of)),
            }
        }
        let mut pairs = Vec::new();
        for (range, of) in merged {
            let (own, rest) = core::mem::take(&mut params)[range.start - at..].split_at_mut(range.len());
            let (g, g_rest) = grads.split_at(range.len());
            (params, grads, at) = (rest, g_rest, range.end);
            // Tensors of frozen groups lie between.
            pairs.resize_with(of - span, Pair::default);
            pairs.push(Pair { p: Cells::Write4(own), g: Cells::Read4(g) });
        }
        Self::Tasks { start, span, pairs }
    }

    pub(super) fn memory(&mut self, rule: usize) -> Memory<'_, 'a> {
        match self {
            Self::Flat { first, pair } => Memory::Flat { first: *first, pair: pair.reborrow() },
            Self::Each(pairs) => {
                Memory::Each { start: 0, span: 0, head: None, body: &mut pairs[rule], tail: None }
            }
            #[cfg(feature = "gpu")]
            Self::Tasks { start, span, pairs } => {
                Memory::Each { start: *start, span: *span, head: None, body: pairs, tail: None }
            }
        }
    }
}

/// The caller's memory of a range of elements.
pub(super) enum Memory<'m, 'a> {
    Flat {
        /// The start of the slices in the flat space.
        first: usize,
        pair: Pair<'m>,
    },
    Each {
        /// The first element.
        start: usize,
        /// The tensor of the first element.
        span: usize,
        /// The rest of a tensor that begins before the first element.
        head: Option<Pair<'m>>,
        /// Whole tensors.
        body: &'m mut [Pair<'a>],
        /// The part of a tensor that ends after the last element.
        tail: Option<Pair<'m>>,
    },
}

impl<'m, 'a> Memory<'m, 'a> {
    /// The memory of tensor `span`, and the number of its first element. A number below zero wraps.
    #[inline]
    pub(super) fn of(&mut self, plan: &Plan, span: usize) -> (Pair<'_>, usize) {
        let at = &plan.spans[span];
        match self {
            Self::Flat { first, pair } => {
                (pair.reborrow(), at.start.wrapping_sub(at.flat).wrapping_add(*first))
            }
            Self::Each { start, span: first, head, body, tail } => {
                let nth = span - *first;
                let in_body = nth - usize::from(head.is_some()).min(nth);
                let pair = match (head, body.get_mut(in_body), tail) {
                    (Some(head), _, _) if nth == 0 => head.reborrow(),
                    (_, Some(whole), _) => whole.reborrow(),
                    (_, None, Some(tail)) => tail.reborrow(),
                    (_, None, None) => Pair::default(),
                };
                (pair, at.start.max(*start))
            }
        }
    }

    /// The memory before and from `task` on.
    pub(super) fn split(self, plan: &Plan, task: &Task) -> (Self, Self) {
        let TensorRange { span: first_span, start: cut, .. } = plan.tensor_ranges[task.tensor_ranges.start];
        let at = &plan.spans[first_span];
        match self {
            Self::Flat { first, pair } => {
                let next = at.flat + (cut - at.start);
                let (pair, rest) = pair.split_at(next - first);
                (Self::Flat { first, pair }, Self::Flat { first: next, pair: rest })
            }
            Self::Each { start, span, mut head, body, mut tail } => {
                // Elements of the tensor in this memory before the task.
                let before = cut - at.start.max(start);
                let nth = first_span - span;
                let heads = usize::from(head.is_some());
                let behind = |head, body, tail| Self::Each { start: cut, span: first_span, head, body, tail };
                let front = |head, body, tail| Self::Each { start, span, head, body, tail };
                if nth < heads {
                    let (a, b) = head.take().unwrap_or_default().split_at(cut - start);
                    return (front(Some(a), &mut [], None), behind(Some(b), body, tail));
                }
                let (body, rest) = body.split_at_mut((nth - heads).min(body.len()));
                if before == 0 {
                    return (front(head, body, None), behind(None, rest, tail));
                }
                match rest.split_first_mut() {
                    Some((cut, rest)) => {
                        let (a, b) = cut.reborrow().split_at(before);
                        (front(head, body, Some(a)), behind(Some(b), rest, tail))
                    }
                    None => {
                        let (a, b) = tail.take().unwrap_or_default().split_at(before);
                        (front(head, body, Some(a)), behind(Some(b), &mut [], None))
                    }
                }
            }
        }
    }
}

/// State of a tensor in its stored form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State<'a> {
    /// Numbers.
    F32(&'a [f32]),
    /// Codes of the [options'](crate::Options::states) format, or of a remainder.
    U16(&'a [u16]),
    /// Codes of 8 bits, and the scales of their [blocks](crate::q8). The first block begins with the multiple
    /// of 4 in the flat space at or before the tensor's first element.
    Q8(&'a [u8], &'a [u32]),
}

impl<'a> State<'a> {
    /// The numbers, if the state is stored in f32.
    #[must_use]
    pub fn as_f32(self) -> Option<&'a [f32]> {
        if let Self::F32(numbers) = self { Some(numbers) } else { None }
    }
}

impl<'a> From<&'a [f32]> for State<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::F32(numbers)
    }
}

/// State of a tensor in its stored form, for writing.
#[derive(Debug, PartialEq)]
pub enum StateMut<'a> {
    /// Numbers.
    F32(&'a mut [f32]),
    /// Codes.
    U16(&'a mut [u16]),
    /// Codes and scales.
    Q8(&'a mut [u8], &'a mut [u32]),
}

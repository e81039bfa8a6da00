//! The caller's parameters and gradients, and how they are divided among threads.

use super::blocks::{Block, Plan, Segment};
use crate::error::Error;
use crate::format::Format;
use crate::layout::Layout;
use crate::options::Options;
use crate::q8;
use crate::rules::Rule;

/// Stored numbers, which may be only to be read.
#[derive(Debug, Default)]
pub(crate) enum Cells<'a> {
    #[default]
    None,
    Read4(&'a [f32]),
    Read2(&'a [u16]),
    Write4(&'a mut [f32]),
    Write2(&'a mut [u16]),
    /// Codes, and the scales of their blocks, the first of which begins with the first code.
    Write1(&'a mut [u8], &'a mut [u32]),
}

impl Cells<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Read4(x) => x.len(),
            Self::Read2(x) => x.len(),
            Self::Write4(x) => x.len(),
            Self::Write2(x) => x.len(),
            Self::Write1(x, _) => x.len(),
        }
    }

    #[inline]
    pub(super) fn reborrow(&mut self) -> Cells<'_> {
        match self {
            Self::None => Cells::None,
            Self::Read4(x) => Cells::Read4(x),
            Self::Read2(x) => Cells::Read2(x),
            Self::Write4(x) => Cells::Write4(x),
            Self::Write2(x) => Cells::Write2(x),
            Self::Write1(x, scales) => Cells::Write1(x, scales),
        }
    }

    pub(super) fn split_at(self, at: usize) -> (Self, Self) {
        match self {
            Self::None => (Self::None, Self::None),
            Self::Read4(x) => {
                let (a, b) = x.split_at(at);
                (Self::Read4(a), Self::Read4(b))
            }
            Self::Read2(x) => {
                let (a, b) = x.split_at(at);
                (Self::Read2(a), Self::Read2(b))
            }
            Self::Write4(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::Write4(a), Self::Write4(b))
            }
            Self::Write2(x) => {
                let (a, b) = x.split_at_mut(at);
                (Self::Write2(a), Self::Write2(b))
            }
            Self::Write1(x, scales) => {
                let (a, b) = x.split_at_mut(at);
                let (of_a, of_b) = scales.split_at_mut(at / q8::BLOCK);
                (Self::Write1(a, of_a), Self::Write1(b, of_b))
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Read4(_) | Self::Write4(_) => 4,
            Self::Read2(_) | Self::Write2(_) => 2,
            Self::Write1(..) => 1,
        }
    }

    fn refuse_format(&self, field: &'static str, format: Format) -> Result<(), Error> {
        match (self.bytes(), format.bytes()) {
            (found, wanted) if found == wanted => Ok(()),
            (2, _) => Err(Error::Format { field, format: "u16", bound: "f32, as the options say" }),
            _ => Err(Error::Format { field, format: "f32", bound: "u16, as the options say" }),
        }
    }
}

/// Parameters: a slice of f32, or of the codes of a format of 2 bytes.
#[derive(Debug)]
pub struct Params<'a>(pub(super) Cells<'a>);

/// Gradients: a slice as of [`Params`], exclusive if they are to be set to zero.
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

/// The caller's parameters and gradients.
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

    /// Slices of single tensors: `(name, parameters, gradients)`, in any order; that of the layout's flat space is quickest.
    pub fn each<P: Into<Params<'a>>, G: Into<Grads<'a>>>(
        tensors: impl IntoIterator<Item = (&'a str, P, G)>,
    ) -> Self {
        let pair = |(name, p, g): (&'a str, P, G)| (name, Pair { p: p.into().0, g: g.into().0 });
        Self(Form::Each(tensors.into_iter().map(pair).collect()))
    }

    /// Checks them against the layout and puts them in the order of its flat space.
    pub(super) fn checked<R: Rule>(
        self,
        layout: &Layout<R>,
        plan: &Plan,
        options: &Options,
    ) -> Result<Checked<'a>, Error> {
        let check = |pair: &Pair<'_>| {
            pair.p.refuse_format("params", options.params)?;
            pair.g.refuse_format("grads", options.grads)?;
            if options.zero_gradients && matches!(pair.g, Cells::Read4(_) | Cells::Read2(_)) {
                return Err(Error::ReadOnly { what: "gradients that are to be set to zero" });
            }
            Ok(())
        };
        match self.0 {
            Form::Flat(pair) => {
                check(&pair)?;
                let expected = layout.len();
                for (what, found) in [("parameters", pair.p.len()), ("gradients", pair.g.len())] {
                    if (found as u64) < expected {
                        return Err(Error::Mismatch { what, found: found as u64, expected });
                    }
                }
                Ok(Checked::Flat { first: 0, pair })
            }
            Form::Each(given) => {
                let (found, expected) = (given.len() as u64, plan.spans.len() as u64);
                let mut pairs: Vec<Pair<'a>> = Vec::new();
                pairs.resize_with(plan.spans.len(), Pair::default);
                for ((name, pair), (nth, next)) in given.into_iter().zip(layout.by_offset().enumerate()) {
                    // Without a search for those that come in order.
                    let at = if next.name == name { nth } else { plan.span_of(layout.tensor(name)?) };
                    check(&pair)?;
                    for (what, cells) in [("parameters", &pair.p), ("gradients", &pair.g)] {
                        let (found, expected) = (cells.len(), plan.spans[at].len);
                        if found != expected {
                            let what = format!("{what} of tensor {name:?}");
                            return Err(Error::Length {
                                what,
                                found: found as u64,
                                expected: expected as u64,
                            });
                        }
                    }
                    if pairs[at].p.len() > 0 {
                        return Err(Error::Duplicate { what: "tensor", name: name.into() });
                    }
                    pairs[at] = pair;
                }
                if found != expected {
                    return Err(Error::Mismatch { what: "tensors", found, expected });
                }
                Ok(Checked::Each(pairs))
            }
        }
    }
}

/// Tensors that go with a layout.
#[derive(Debug)]
pub(crate) enum Checked<'a> {
    Flat {
        /// Where the slices start, in the flat space.
        first: usize,
        pair: Pair<'a>,
    },
    Each(Vec<Pair<'a>>),
}

impl<'a> Checked<'a> {
    /// Slices that start at element `first` of the flat space, without gradients where none are looked at.
    #[cfg(feature = "gpu")]
    pub(crate) fn part(first: usize, params: &'a mut [f32], grads: Option<&'a [f32]>) -> Self {
        let g = grads.map_or(Cells::None, Cells::Read4);
        Self::Flat { first, pair: Pair { p: Cells::Write4(params), g } }
    }

    pub(super) fn memory(&mut self) -> Memory<'_, 'a> {
        match self {
            Self::Flat { first, pair } => Memory::Flat { first: *first, pair: pair.reborrow() },
            Self::Each(pairs) => Memory::Each { start: 0, span: 0, head: None, body: pairs, tail: None },
        }
    }
}

/// The caller's memory of the elements from one to another.
pub(super) enum Memory<'m, 'a> {
    Flat {
        /// Where the slices start, in the flat space.
        first: usize,
        pair: Pair<'m>,
    },
    Each {
        /// The first element.
        start: usize,
        /// Its tensor.
        span: usize,
        /// What is left of a tensor that begins before the first element.
        head: Option<Pair<'m>>,
        /// Whole tensors.
        body: &'m mut [Pair<'a>],
        /// What there is of a tensor that ends behind the last element.
        tail: Option<Pair<'m>>,
    },
}

impl<'m, 'a> Memory<'m, 'a> {
    /// The memory of tensor `span`, and the number of the element that it begins with, which may be below zero and then wraps.
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

    /// The memory before and from `block` on.
    pub(super) fn split(self, plan: &Plan, block: &Block) -> (Self, Self) {
        let Segment { span: first_span, start: cut, .. } = plan.segments[block.segments.start];
        let at = &plan.spans[first_span];
        // Elements of the tensor that come before the block.
        let before = cut - at.start;
        match self {
            Self::Flat { first, pair } => {
                let next = at.flat + before;
                let (pair, rest) = pair.split_at(next - first);
                (Self::Flat { first, pair }, Self::Flat { first: next, pair: rest })
            }
            Self::Each { start, span, mut head, body, mut tail } => {
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

/// State of a tensor, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State<'a> {
    /// Numbers.
    F32(&'a [f32]),
    /// Codes of the format that the [options](crate::Options::states) say, or of a remainder.
    U16(&'a [u16]),
    /// Codes of 8 bits, and the scales of their [blocks](q8), the first of which begins with the multiple of 4 in the flat space at or before the tensor's first element.
    Q8(&'a [u8], &'a [u32]),
}

impl<'a> State<'a> {
    /// The numbers, if it is stored as such.
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

/// The same, to be written: a run that goes on from saved state starts with it.
#[derive(Debug, PartialEq)]
pub enum StateMut<'a> {
    /// Numbers.
    F32(&'a mut [f32]),
    /// Codes.
    U16(&'a mut [u16]),
    /// Codes and scales.
    Q8(&'a mut [u8], &'a mut [u32]),
}

//! The caller's buffers, and the bytes of them that a dispatch binds.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "offsets in buffers and layouts lie far below 2⁶³"
)]

use super::device::{ALIGNMENT, ELEMENT};
use super::kernel::Access;
use super::plan::{Dispatch, TensorRange, whole_blocks};
use crate::error::BindError;
use crate::formats::Format;
use crate::layout::VECTOR;
use crate::narrow::to_u32;

/// A place in one of the caller's buffers.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The buffer, with usage `STORAGE`.
    pub buffer: &'a wgpu::Buffer,
    /// Offset of the first element in bytes: a multiple of 4. Multiples of 16 are fastest, for elements of 2
    /// bytes multiples of 8.
    pub offset: u64,
}

impl<'a> View<'a> {
    /// The view of the elements from byte `offset` on.
    #[must_use]
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64) -> Self {
        Self { buffer, offset }
    }
}

impl<'a> From<&'a wgpu::Buffer> for View<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self::new(buffer, 0)
    }
}

/// The caller's parameters and gradients in device buffers.
///
/// [`Options`](crate::Options) sets the formats, f32 by default. Elements of 2 bytes lie two to a word of 4
/// bytes, and buffers end with whole words.
#[derive(Clone, Debug)]
pub struct Tensors<'a>(pub(crate) Form<'a>);

#[derive(Clone, Debug)]
pub(crate) enum Form<'a> {
    Flat(View<'a>, View<'a>),
    Each(Vec<(&'a str, View<'a>, View<'a>)>),
}

impl<'a> Tensors<'a> {
    /// All parameters in one buffer and all gradients in another, each tensor at its layout's offset.
    pub fn flat(params: impl Into<View<'a>>, grads: impl Into<View<'a>>) -> Self {
        Self(Form::Flat(params.into(), grads.into()))
    }

    /// A place for each tensor: `(name, parameters, gradients)`, in any order. Several may lie in one pooled
    /// buffer.
    pub fn each<P: Into<View<'a>>, G: Into<View<'a>>>(
        tensors: impl IntoIterator<Item = (&'a str, P, G)>,
    ) -> Self {
        let tensors = tensors.into_iter().map(|(name, p, g)| (name, p.into(), g.into()));
        Self(Form::Each(tensors.collect()))
    }
}

/// A checked view with its name for errors.
pub(crate) struct Named<'a> {
    pub(crate) what: String,
    pub(crate) view: View<'a>,
}

impl<'a> Named<'a> {
    pub(crate) fn new(what: &str, view: View<'a>, bytes: u64) -> Result<Self, BindError> {
        let what = what.to_owned();
        if !view.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(BindError::MissingUsage { what, usage: "STORAGE" });
        }
        if !view.offset.is_multiple_of(ELEMENT) {
            return Err(BindError::Misaligned { what, offset: view.offset, bound: ELEMENT });
        }
        // Words are written whole.
        let end = view.offset.saturating_add(bytes.next_multiple_of(ELEMENT));
        if end > view.buffer.size() {
            return Err(BindError::OutOfBounds { what, start: view.offset, end, size: view.buffer.size() });
        }
        Ok(Self { what, view })
    }

    pub(crate) fn range(&self, bytes: u64) -> ByteRange {
        ByteRange {
            what: self.what.clone(),
            buffer: self.view.buffer.clone(),
            start: self.view.offset,
            end: self.view.offset + bytes,
        }
    }

    /// The byte of element `first` of the view, for elements in `format`; it may lie up to three elements
    /// before the view.
    pub(crate) fn at(&self, first: i64, format: Format) -> Side {
        let element = format.bytes();
        Side {
            what: self.what.clone(),
            buffer: self.view.buffer.clone(),
            base: self.view.offset as i64 + first * element as i64,
            element,
        }
    }
}

/// Parameters or gradients of a part.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) what: String,
    pub(crate) buffer: wgpu::Buffer,
    /// The byte of the part's `base`.
    pub(crate) base: i64,
    /// Bytes of an element.
    pub(crate) element: u64,
}

impl Side {
    /// Bytes of a vector.
    fn vector(&self) -> u64 {
        VECTOR * self.element
    }
}

/// Tensors that a dispatch updates or scans, with their places in the caller's buffers.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) chunk: usize,
    /// The element that vectors are counted from, a multiple of [`VECTOR`].
    pub(crate) base: u64,
    /// Vectors of the chunk's state.
    pub(crate) state: u32,
    pub(crate) tensor_ranges: Vec<TensorRange>,
    pub(crate) p: Side,
    pub(crate) g: Side,
}

impl Part {
    pub(crate) fn byte(&self, side: &Side, element: u64) -> i64 {
        side.base + ((element - self.base) * side.element) as i64
    }

    pub(crate) fn start(&self) -> u64 {
        self.tensor_ranges[0].start
    }

    pub(crate) fn end(&self) -> u64 {
        self.tensor_ranges[self.tensor_ranges.len() - 1].end
    }

    /// Whether vectors are aligned vec4 in both buffers.
    pub(crate) fn is_aligned(&self) -> bool {
        let aligned = |side: &Side| side.base % side.vector() as i64 == 0 && side.base >= 0;
        aligned(&self.p) && aligned(&self.g)
    }

    /// The smallest number of dispatches: one if every vector is an aligned vec4 inside its buffer; else one
    /// without the last block of `block` vectors and one for that block; else one by elements.
    pub(crate) fn split(&self, block: u32) -> Vec<(Self, Access)> {
        if !self.is_aligned() {
            return vec![(self.clone(), Access::Elements)];
        }
        let padded =
            |side: &Side| self.byte(side, self.end().next_multiple_of(VECTOR)) as u64 <= side.buffer.size();
        if padded(&self.p) && padded(&self.g) {
            return vec![(self.clone(), Access::Vectors)];
        }
        let last = self.tensor_ranges[self.tensor_ranges.len() - 1].start;
        let (bulk, tail) = self.cut(whole_blocks(last, self.end(), block));
        [bulk.map(|b| (b, Access::Vectors)), tail.map(|t| (t, Access::Elements))]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The parts before and after element `at`, a multiple of [`VECTOR`].
    pub(crate) fn cut(&self, at: u64) -> (Option<Self>, Option<Self>) {
        let before = self.tensor_ranges.iter().filter(|p| p.start < at);
        let before = before.map(|p| TensorRange { end: p.end.min(at), ..*p }).collect();
        let after = self.tensor_ranges.iter().filter(|p| p.end > at).map(|p| {
            let start = p.start.max(at);
            let state = p.state + to_u32(start / VECTOR - p.start / VECTOR);
            TensorRange { start, state, ..*p }
        });
        let with = |tensor_ranges: Vec<TensorRange>| {
            (!tensor_ranges.is_empty()).then(|| Self { tensor_ranges, ..self.clone() })
        };
        (with(before), with(after.collect()))
    }

    /// Refuses a table that reaches beyond the bound part of the caller's buffers (`sides`) or of the state,
    /// in vectors. The kernels index without checks.
    pub(crate) fn prove_bounds(
        &self,
        dispatch: &Dispatch,
        sides: &[&Window],
        state: u64,
    ) -> Result<(), BindError> {
        for segment in &dispatch.segments {
            let count = u64::from(segment.vectors);
            let refuse = |first: u32, size| {
                let (start, end) = (u64::from(first), u64::from(first) + count);
                let what = self.p.what.clone();
                if end > size { Err(BindError::OutOfBounds { what, start, end, size }) } else { Ok(()) }
            };
            refuse(segment.state, state)?;
            sides.iter().try_for_each(|side| refuse(segment.vector.wrapping_add(side.base), side.vectors))?;
        }
        Ok(())
    }

    /// The bytes to bind, and the shader's offset of a vector in them.
    pub(crate) fn window(&self, side: &Side, access: Access) -> Window {
        let (first, last, unit) = match access {
            Access::Vectors => {
                (self.start() / VECTOR * VECTOR, self.end().next_multiple_of(VECTOR), side.vector())
            }
            Access::Elements => (self.start(), self.end(), ELEMENT),
        };
        // Both are inside the buffer: `Named::new` and `split` ensure it.
        let start = self.byte(side, first) as u64 / ALIGNMENT * ALIGNMENT;
        let end = (self.byte(side, last) as u64).next_multiple_of(ELEMENT);
        Window {
            // The base may lie before the window; the shader's addition wraps back.
            #[allow(clippy::cast_possible_truncation, reason = "the shader adds modulo 2³²")]
            base: ((side.base - start as i64) / unit as i64) as u32,
            last: to_u32((end - start) / ELEMENT - 1),
            vectors: (end - start) / side.vector(),
            range: ByteRange {
                what: format!("{} (in blocks of {ALIGNMENT} bytes)", side.what),
                buffer: side.buffer.clone(),
                start,
                end,
            },
        }
    }
}

pub(crate) struct Window {
    pub(crate) range: ByteRange,
    pub(crate) base: u32,
    pub(crate) last: u32,
    pub(crate) vectors: u64,
}

#[derive(Clone)]
pub(crate) struct ByteRange {
    pub(crate) what: String,
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl ByteRange {
    /// `other` starts no earlier than `self`.
    pub(crate) fn refuse_overlap(&self, other: &Self) -> Result<(), BindError> {
        if self.buffer != other.buffer || other.start >= self.end {
            return Ok(());
        }
        Err(BindError::Overlap {
            first: self.what.clone(),
            second: other.what.clone(),
            start: other.start,
            end: self.end.min(other.end),
        })
    }
}

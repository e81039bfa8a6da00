//! How the work is divided: into blocks of a fixed number of elements, whatever tensors they belong to.
//!
//! Elements are numbered as state is kept: all tensors in the order of the flat space, without the gaps between them.

use crate::error::Error;
use crate::format::tensor_key;
use crate::layout::{Layout, Tensor};
use crate::rules::Rule;
use core::ops::Range;

/// Elements that are updated at a time: few, so that memory is read ahead while they are worked on.
pub(super) const TILE: usize = 128;
/// Elements of a block, which one thread updates: enough that handing it over does not count, few enough that all threads have work to the end.
pub(super) const BLOCK: usize = 128 * TILE;

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// Its first element.
    pub(super) start: usize,
    /// Its length.
    pub(super) len: usize,
    /// Where it starts in the flat space.
    pub(super) flat: usize,
    /// What stands for it in random numbers.
    pub(super) key: u32,
}

impl Span {
    pub(super) fn end(&self) -> usize {
        self.start + self.len
    }
}

/// The part of a tensor in a block.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) span: usize,
    /// Of its scalars.
    pub(super) row: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What a thread does at a time.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) segments: Range<usize>,
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// In the order of the flat space.
    pub(super) spans: Vec<Span>,
    pub(super) segments: Vec<Segment>,
    pub(super) blocks: Vec<Block>,
    /// The group of each row.
    pub(super) groups: Vec<usize>,
}

impl Plan {
    /// Rows are the groups', or of a layer-wise rule the tensors', in the order of the flat space.
    pub(super) fn new<R: Rule>(layout: &Layout<R>) -> Result<Self, Error> {
        let (mut spans, mut rows) = (Vec::new(), Vec::new());
        let mut groups = if R::RATIO.is_some() { Vec::new() } else { (0..layout.groups().len()).collect() };
        let mut start = 0;
        for tensor in layout.by_offset() {
            let len = tensor.len as usize;
            let key = tensor_key(&tensor.name);
            spans.push(Span { start, len, flat: tensor.offset as usize, key });
            start += len;
            if R::RATIO.is_some() {
                rows.push(groups.len());
                groups.push(tensor.group);
            } else {
                rows.push(tensor.group);
            }
        }
        let (mut segments, mut blocks) = (Vec::new(), Vec::new());
        let count = start.div_ceil(BLOCK);
        let bytes = (count as u64).saturating_mul((size_of::<Block>() + size_of::<Segment>()) as u64);
        blocks.try_reserve_exact(count).map_err(|_| Error::Memory { bytes })?;
        segments.try_reserve(count + spans.len()).map_err(|_| Error::Memory { bytes })?;
        let mut span = 0;
        for from in (0..start).step_by(BLOCK) {
            let (to, first) = (start.min(from + BLOCK), segments.len());
            loop {
                let (start, end) = (spans[span].start.max(from), spans[span].end().min(to));
                segments.push(Segment { span, row: rows[span], start, end });
                span += usize::from(end == spans[span].end());
                if end == to {
                    break;
                }
            }
            blocks.push(Block { start: from, segments: first..segments.len() });
        }
        Ok(Self { spans, segments, blocks, groups })
    }

    /// The place of one of the layout's tensors in [`spans`](Self::spans).
    pub(super) fn span_of(&self, tensor: &Tensor) -> usize {
        self.spans.partition_point(|span| (span.flat as u64) < tensor.offset)
    }
}

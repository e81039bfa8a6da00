//! How the work is divided: into blocks of a fixed number of elements, whatever tensors they belong to.
//!
//! Elements are numbered as state is kept: all tensors in the order of the flat space, without the gaps between them.

use crate::error::Error;
use crate::layout::{Layout, Tensor};
use crate::rules::Rule;
use core::ops::Range;

/// Elements that are brought into the cache nearest to the processor and updated at a time.
pub(super) const STRIP: usize = 256;
/// Elements of a block, which one thread updates: enough that handing it over does not count, few enough that all threads have work to the end.
pub(super) const BLOCK: usize = 64 * STRIP;

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct Span {
    /// Its first element.
    pub(super) start: usize,
    /// Its length.
    pub(super) len: usize,
    /// Where it starts in the flat space.
    pub(super) flat: usize,
}

impl Span {
    pub(super) fn end(&self) -> usize {
        self.start + self.len
    }
}

/// Elements of a block that have the same scalars.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) row: usize,
    pub(super) end: usize,
}

/// What a thread does at a time.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) end: usize,
    /// The tensor of the first element.
    pub(super) span: usize,
    pub(super) runs: Range<usize>,
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// In the order of the flat space.
    pub(super) spans: Vec<Span>,
    pub(super) runs: Vec<Run>,
    pub(super) blocks: Vec<Block>,
    /// The group of each row.
    pub(super) groups: Vec<usize>,
}

impl Plan {
    /// Rows are the groups', or of a layer-wise rule the tensors', in the order of the flat space.
    pub(super) fn new<R: Rule>(layout: &Layout<R>) -> Result<Self, Error> {
        let (mut spans, mut ends): (Vec<Span>, Vec<Run>) = (Vec::new(), Vec::new());
        let mut groups = if R::RATIO.is_some() { Vec::new() } else { (0..layout.groups().len()).collect() };
        let mut start = 0;
        for tensor in layout.by_offset() {
            let len = tensor.len as usize;
            spans.push(Span { start, len, flat: tensor.offset as usize });
            start += len;
            let row = if R::RATIO.is_some() { groups.len() } else { tensor.group };
            if R::RATIO.is_some() {
                groups.push(tensor.group);
            }
            match ends.last_mut().filter(|last| last.row == row) {
                Some(last) => last.end = start,
                None => ends.push(Run { row, end: start }),
            }
        }
        let (mut runs, mut blocks) = (Vec::new(), Vec::new());
        let count = start.div_ceil(BLOCK);
        let bytes = (count as u64).saturating_mul((size_of::<Block>() + size_of::<Run>()) as u64);
        blocks.try_reserve_exact(count).map_err(|_| Error::Memory { bytes })?;
        runs.try_reserve(count + ends.len()).map_err(|_| Error::Memory { bytes })?;
        let (mut span, mut nth) = (0, 0);
        for from in (0..start).step_by(BLOCK) {
            let end = start.min(from + BLOCK);
            while spans[span].end() <= from {
                span += 1;
            }
            let first = runs.len();
            loop {
                let run = &ends[nth];
                runs.push(Run { row: run.row, end: run.end.min(end) });
                if run.end <= end {
                    nth += 1;
                }
                if run.end >= end {
                    break;
                }
            }
            blocks.push(Block { start: from, end, span, runs: first..runs.len() });
        }
        Ok(Self { spans, runs, blocks, groups })
    }

    /// The place of one of the layout's tensors in [`spans`](Self::spans).
    pub(super) fn span_of(&self, tensor: &Tensor) -> usize {
        self.spans.partition_point(|span| (span.flat as u64) < tensor.offset)
    }
}

//! Chunks: the units of transfer for gradients to the host and parameters back.

use crate::cpu::Optimizer;
use crate::error::{BindError, DeviceError};
use crate::gpu::device::{Probe, write};
use core::ops::Range;

/// Bytes per element.
pub(super) const ELEMENT: usize = size_of::<f32>();

/// Tasks of one rule, with the gradients' transfer to the host.
#[derive(Debug, PartialEq)]
pub(super) struct Chunk {
    pub(super) rule: usize,
    pub(super) tasks: Range<usize>,
    /// The ranges of the flat space that they update, in order.
    pub(super) ranges: Vec<Range<usize>>,
}

/// All chunks of an optimizer.
pub(super) fn chunks(optimizer: &Optimizer, chunk_blocks: usize) -> Vec<Chunk> {
    let chunk = |(rule, tasks, ranges)| Chunk { rule, tasks, ranges };
    optimizer.chunks(chunk_blocks).map(chunk).collect()
}

impl Chunk {
    /// One past the chunk's last element in the flat space.
    pub(super) fn end(&self) -> usize {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Checks that a buffer of the caller contains the chunk.
    pub(super) fn check(
        &self,
        probe: &Probe,
        buffer: &wgpu::Buffer,
        what: &str,
        usage: wgpu::BufferUsages,
        name: &'static str,
    ) -> Result<(), BindError> {
        if !buffer.usage().contains(usage) {
            return Err(BindError::MissingUsage { what: what.into(), usage: name });
        }
        let start = self.ranges.first().map_or(0, |range| range.start);
        let [start, end] = [start, self.end()].map(|at| (at * ELEMENT) as u64);
        if end > buffer.size() {
            return Err(BindError::OutOfBounds { what: what.into(), start, end, size: buffer.size() });
        }
        probe.check(buffer, || what.into())
    }

    /// Bytes of the chunk's gradients.
    pub(super) fn byte_len(&self) -> u64 {
        (self.ranges.iter().map(Range::len).sum::<usize>() * ELEMENT) as u64
    }

    /// Sends the chunk's parameters to the device.
    pub(super) fn upload(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        params: &wgpu::Buffer,
        values: &[f32],
    ) -> Result<(), DeviceError> {
        self.ranges.iter().try_for_each(|range| {
            let at = (range.start * ELEMENT) as u64;
            write(device, queue, params, at, bytemuck::cast_slice(&values[range.clone()]))
        })
    }
}

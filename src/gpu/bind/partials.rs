//! Partial sums: the place and the target of each workgroup's sum.

use super::tables::Table;
use crate::error::DeviceError;
use crate::gpu::device::{create_buffer, create_filled};
use crate::gpu::plan::Dispatch;
use crate::narrow::to_u32;

/// Bytes of a partial sum: three sums and flags.
const PARTIAL_BYTES: u64 = 16;
/// The target of a workgroup of a 2-D dispatch that lies past its table.
const NOBODY: u32 = u32::MAX;

/// The reduction target of each partial sum: a group, a tensor of a rule, or everything.
#[derive(Default)]
pub(super) struct Targets(Vec<u32>);

impl Targets {
    pub(super) fn len(&self) -> u32 {
        to_u32(self.0.len())
    }

    /// All partial sums, as parts of one sum.
    pub(super) fn as_one(&self) -> Self {
        Self(vec![0; self.0.len()])
    }

    /// Gives every workgroup of a dispatch a place for its partial sum; the target is the segment's group.
    pub(super) fn number(&mut self, table: &mut Table) {
        table.header.partials = self.len();
        let Dispatch { segments, workgroups: [x, y], .. } = &table.dispatch;
        let end = self.0.len() + (x * y) as usize;
        self.0.extend(segments.iter().map(|segment| segment.group));
        self.0.resize(end, NOBODY);
    }

    /// The largest number of partial sums of one of `count` targets.
    pub(super) fn most(&self, count: u32) -> usize {
        let mut of = vec![0; count as usize];
        self.0.iter().filter(|target| **target < count).for_each(|target| of[*target as usize] += 1);
        of.into_iter().max().unwrap_or(0)
    }

    /// The start of the list of each of `count` targets and the end of the last list, then the lists of the
    /// numbers of their partial sums.
    pub(super) fn list(&self, count: u32) -> Vec<u32> {
        let mut list = vec![0; count as usize + 1];
        let mut numbers: Vec<_> = (0..self.len()).filter(|&n| self.0[n as usize] < count).collect();
        numbers.sort_by_key(|&n| self.0[n as usize]);
        for (target, begin) in (0..).zip(&mut list) {
            let before = numbers.partition_point(|&n| self.0[n as usize] < target);
            *begin = count + 1 + to_u32(before);
        }
        list.append(&mut numbers);
        list
    }
}

/// Allocation of a binding's device memory, with its count.
pub(super) struct Memory<'a> {
    pub(super) device: &'a wgpu::Device,
    pub(super) bytes: u64,
    /// The contents of the buffers, if they are requested.
    pub(super) contents: Option<Vec<(wgpu::Buffer, Vec<u8>)>>,
}

impl Memory<'_> {
    pub(super) fn filled(
        &mut self,
        label: &str,
        bytes: &[u8],
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, DeviceError> {
        self.bytes += bytes.len() as u64;
        let buffer = create_filled(self.device, label, bytes, usage)?;
        if let Some(contents) = &mut self.contents {
            contents.push((buffer.clone(), bytes.to_vec()));
        }
        Ok(buffer)
    }

    /// Allocates room for `count` partial sums, and for one if there are none, since a binding must have
    /// bytes.
    pub(super) fn sums(&mut self, count: u32) -> Result<wgpu::Buffer, DeviceError> {
        let bytes = u64::from(count.max(1)) * PARTIAL_BYTES;
        self.bytes += bytes;
        create_buffer(self.device, "partial sums", bytes, wgpu::BufferUsages::STORAGE)
    }
}

//! The trust ratios of a layer-wise rule: scalars per tensor, from its norms.

use super::device::{create_buffer, create_filled};
use super::kernel::KernelKey;
use super::pipeline::{Folds, Kernel, binding_type};
use super::plan::Space;
use super::ring;
use crate::error::DeviceError;
use crate::rules::RuleSpec;

/// The kernel between the phases of a layer-wise rule, and its memory.
#[derive(Debug)]
pub(crate) struct Layers {
    /// The kernels that add up the partial sums of each tensor.
    pub(crate) folds: Folds,
    /// The group of each of the rule's tensors, in the order of the flat space.
    pub(crate) groups: wgpu::Buffer,
    /// The host's copy of `groups`.
    pub(crate) group_of: Vec<u32>,
    /// The scalars of each tensor, for the kernels of the update.
    pub(crate) scalars: wgpu::Buffer,
    pub(crate) space: Space,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) group: wgpu::BindGroup,
}

impl Layers {
    /// `group_of` has the group of each of the rule's tensors, in the order of the flat space. `scalars` is
    /// the layout of the groups' scalars for `key`.
    pub(crate) fn new(
        device: &wgpu::Device,
        spec: &RuleSpec,
        group_of: Vec<u32>,
        scalars: &wgpu::BindGroupLayout,
        key: &KernelKey,
    ) -> Result<Self, DeviceError> {
        let folds = Kernel::ratio(spec, device, scalars, key)?;
        let bytes = 16 * key.candidate.vectors(group_of.len()) as u64;
        let uniform = bytes <= key.table_layout.uniform_bytes.into();
        let space = if uniform { Space::Uniform } else { Space::Storage };
        let usage = wgpu::BufferUsages::STORAGE;
        let groups = create_filled(device, "groups of tensors", bytemuck::cast_slice(&group_of), usage)?;
        let scalars =
            create_buffer(device, "scalars of tensors", bytes, usage | wgpu::BufferUsages::UNIFORM)?;
        let layout = ring::layout(device, binding_type(space), bytes)?;
        let group = ring::group(device, &layout, &scalars, bytes)?;
        Ok(Self { folds, groups, group_of, scalars, space, layout, group })
    }

    /// Bytes of device memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.groups.size() + self.scalars.size()
    }
}

//! Layer-wise rules: each tensor's own scalars, from its norms.

use crate::device::{create_buffer, create_filled};
use crate::error::Error;
use crate::kernel::{Key, set_vectors};
use crate::layout::Layout;
use crate::pipeline::Kernel;
use crate::plan::Space;
use crate::rows;
use crate::rules::Rule;

/// What stands between the phases of a layer-wise rule, and what it writes.
#[derive(Debug)]
pub(crate) struct Layers {
    /// It adds up the partial results of each tensor.
    pub(crate) kernel: Kernel,
    /// The group of each tensor, in the order of the flat space.
    pub(crate) groups: wgpu::Buffer,
    /// The scalars of each tensor, as [`step`](Self::layout)'s kernels read them.
    pub(crate) rows: wgpu::Buffer,
    pub(crate) space: Space,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) group: wgpu::BindGroup,
}

impl Layers {
    /// `scalars` is the layout of the groups' rows, as `key` has them.
    pub(crate) fn new<R: Rule>(
        device: &wgpu::Device,
        layout: &Layout<R>,
        scalars: &wgpu::BindGroupLayout,
        key: &Key,
    ) -> Result<Self, Error> {
        let kernel = Kernel::ratio::<R>(device, scalars, key)?;
        let groups: Vec<_> = layout.by_offset().map(|tensor| tensor.group as u32).collect();
        let bytes = 16 * set_vectors::<R>(groups.len(), &key.around) as u64;
        let (space, ty) = if bytes <= key.walk.uniform_bytes.into() {
            (Space::Uniform, wgpu::BufferBindingType::Uniform)
        } else {
            (Space::Storage, wgpu::BufferBindingType::Storage { read_only: true })
        };
        let usage = wgpu::BufferUsages::STORAGE;
        let groups = create_filled(device, "groups of tensors", bytemuck::cast_slice(&groups), usage)?;
        let rows = create_buffer(device, "scalars of tensors", bytes, usage | wgpu::BufferUsages::UNIFORM)?;
        let layout = rows::layout(device, ty, bytes);
        let group = rows::group(device, &layout, &rows, bytes)?;
        Ok(Self { kernel, groups, rows, space, layout, group })
    }

    /// Bytes of device memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.groups.size() + self.rows.size()
    }
}

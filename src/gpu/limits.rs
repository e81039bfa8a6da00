//! The planner's admission check: whether a device's limits suffice for a layout.

use super::control::Request;
use super::device::{ALIGNMENT, ELEMENT};
use super::kernel::{CandidateLayout, Fused};
use super::plan::{CHUNK_ALIGNMENT, Limits, NONE, Space, WORKGROUP_SIZE};
use crate::error::{DeviceError, OptionsError};
use crate::layout::Layout;
use crate::narrow::to_usize;
use crate::options::Options;

/// The largest uniform binding in use: every WebGPU device offers it.
const UNIFORM_BYTES: u64 = 64 << 10;
/// The smallest storage binding that the planner accepts.
const LEAST_BINDING: u64 = 1 << 16;
/// The largest workgroup memory of a kernel: every WebGPU device offers it.
const WORKGROUP_BYTES: u64 = 16 << 10;
/// Vectors of four words before the candidates in a request.
const REQUEST_VECTORS: u64 = size_of::<Request>() as u64 / 16;
/// The largest binding that Vulkan and DX12 accept, less one alignment.
const MAX_BINDING: u64 = (1 << 31) - ALIGNMENT;

/// The planner's limits of a device, or the limit that is too small.
pub(crate) fn limits(
    device: &wgpu::Limits,
    layout: &Layout,
    options: &Options,
) -> Result<Limits, OptionsError> {
    let fused = Fused::of(options);
    let layerwise = layout.rules().iter().any(|rule| rule.spec.is_layer_wise());
    let uniform = device.max_uniform_buffer_binding_size.min(UNIFORM_BYTES);
    at_least("max_uniform_buffer_binding_size", uniform, 1 << 10)?;
    at_least("max_storage_buffer_binding_size", device.max_storage_buffer_binding_size, LEAST_BINDING)?;
    at_least("max_buffer_size", device.max_buffer_size, LEAST_BINDING)?;
    let binding = device.max_storage_buffer_binding_size.min(device.max_buffer_size).min(MAX_BINDING);
    // Scalars that a uniform binding cannot hold are read from storage, which is slower.
    let candidate = CandidateLayout::new(layout, &fused);
    let groups = layout.groups().len();
    let bytes = 16 * candidate.vectors(groups) as u64;
    let scalars_space = if bytes <= uniform { Space::Uniform } else { Space::Storage };
    let in_storage = scalars_space == Space::Storage;
    let threads = WORKGROUP_SIZE.into();
    at_least("max_compute_workgroup_size_x", device.max_compute_workgroup_size_x.into(), threads)?;
    at_least("max_compute_workgroup_size_y", device.max_compute_workgroup_size_y.into(), 1)?;
    at_least("max_compute_workgroup_size_z", device.max_compute_workgroup_size_z.into(), 1)?;
    at_least(
        "max_compute_invocations_per_workgroup",
        device.max_compute_invocations_per_workgroup.into(),
        threads,
    )?;
    at_least("max_compute_workgroups_per_dimension", device.max_compute_workgroups_per_dimension.into(), 1)?;
    at_least("max_bind_groups", device.max_bind_groups.into(), 2)?;
    at_least("max_uniform_buffers_per_shader_stage", device.max_uniform_buffers_per_shader_stage.into(), 2)?;
    at_least(
        "max_dynamic_uniform_buffers_per_pipeline_layout",
        device.max_dynamic_uniform_buffers_per_pipeline_layout.into(),
        1,
    )?;
    if options.looks_first() || layerwise || in_storage {
        let dynamic = device.max_dynamic_storage_buffers_per_pipeline_layout;
        at_least("max_dynamic_storage_buffers_per_pipeline_layout", dynamic.into(), 1)?;
    }
    // A group has a number in the segments, and a workgroup if it is clipped; so has a tensor of a layer-wise
    // rule. A candidate must fit a binding.
    let bound = device.max_compute_workgroups_per_dimension.min(NONE.into()) as usize;
    let numbers = if fused.grouped { bound } else { NONE.into() };
    let candidates = to_usize(binding / 16 - REQUEST_VECTORS);
    let most = numbers.min((candidates - candidate.header as usize) / candidate.stride as usize);
    if groups > most {
        return Err(OptionsError::TooManyGroups { groups, bound: most });
    }
    for (i, rule) in layout.rules().iter().enumerate().filter(|(_, rule)| rule.spec.is_layer_wise()) {
        let tensors = layout.by_offset().filter(|tensor| layout.rule_index(tensor.group) == i).count();
        if tensors > bound {
            return Err(OptionsError::TooManyTensors { rule: rule.spec.name, tensors, bound });
        }
    }
    Ok(Limits {
        // A window starts at a multiple of the alignment, which may lie up to one alignment before the chunk.
        chunk_elements: (binding - ALIGNMENT) / ELEMENT / CHUNK_ALIGNMENT * CHUNK_ALIGNMENT,
        workgroups: device.max_compute_workgroups_per_dimension,
        uniform_bytes: uniform as u32,
        scalars_space,
        binding_bytes: binding,
    })
}

/// Refuses a limit of the device that is below the need.
pub(crate) fn at_least(limit: &'static str, value: u64, bound: u64) -> Result<(), DeviceError> {
    if value >= bound { Ok(()) } else { Err(DeviceError::Limit { limit, value, bound }) }
}

/// Refuses a kernel with too many bindings or too much workgroup memory for the device. `types` has all
/// bindings; the first `first` are those of bind group 0.
pub(crate) fn check_kernel(
    device: &wgpu::Limits,
    types: &[wgpu::BufferBindingType],
    first: usize,
    workgroup_memory: bool,
) -> Result<(), DeviceError> {
    let uniform = types.iter().filter(|&&ty| ty == wgpu::BufferBindingType::Uniform).count();
    let counts = [
        ("max_bindings_per_bind_group", device.max_bindings_per_bind_group, first),
        ("max_uniform_buffers_per_shader_stage", device.max_uniform_buffers_per_shader_stage, uniform),
        (
            "max_storage_buffers_per_shader_stage",
            device.max_storage_buffers_per_shader_stage,
            types.len() - uniform,
        ),
        (
            "max_buffers_and_acceleration_structures_per_shader_stage",
            device.max_buffers_and_acceleration_structures_per_shader_stage,
            types.len(),
        ),
    ];
    counts.into_iter().try_for_each(|(limit, value, bound)| at_least(limit, value.into(), bound as u64))?;
    let bound = if workgroup_memory { WORKGROUP_BYTES } else { 0 };
    at_least("max_compute_workgroup_storage_size", device.max_compute_workgroup_storage_size.into(), bound)
}

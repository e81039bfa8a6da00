//! The planner's admission check: whether a device's limits suffice for a layout.

use super::control::Request;
use super::device::{ALIGNMENT, ELEMENT};
use super::kernel::{CandidateLayout, Fused};
use super::plan::{CHUNK_ALIGNMENT, Limits, NONE, Space, WORKGROUP_SIZE};
use crate::error::{DeviceError, OptionsError};
use crate::layout::{Layout, RuleUse};
use crate::options::Options;

/// The largest uniform binding that is used: what every WebGPU device offers.
const UNIFORM_BYTES: u64 = 64 << 10;
/// Vectors of four words that stand before the candidates in a request.
const REQUEST_VECTORS: u64 = size_of::<Request>() as u64 / 16;
/// The largest binding that Vulkan and DX12 take, less what alignment may add.
const MAX_BINDING: u64 = (1 << 31) - ALIGNMENT;

/// What the planner needs of the device, or which limit is too small.
pub(crate) fn limits(
    device: &wgpu::Limits,
    layout: &Layout,
    options: &Options,
) -> Result<Limits, OptionsError> {
    let at_least = |limit, value: u64, bound: u64| {
        if value >= bound { Ok(()) } else { Err(DeviceError::Limit { limit, value, bound }) }
    };
    let fused = Fused::of(options);
    let layerwise = layout.rules().iter().any(|rule| rule.spec.is_layer_wise());
    // Parameters, gradients, states, average, master, partial sums. Table and tensors' scalars are uniform
    // while they are small; what they take beyond is seen when tensors are bound.
    let master = options.storage().master().is_some();
    let [ema, master, norms] = [fused.ema, master, fused.norms].map(u64::from);
    let of_rule = |rule: &RuleUse| {
        // The first phase of a layer-wise rule has partial sums, and no average.
        let layers = u64::from(rule.spec.is_layer_wise());
        2 + rule.kept_slots().count() as u64 + master + (ema + norms).max(layers)
    };
    let storage = layout.rules().iter().map(of_rule).max().unwrap_or(0);
    let uniform = device.max_uniform_buffer_binding_size.min(UNIFORM_BYTES);
    at_least("max_uniform_buffer_binding_size", uniform, 1 << 10)?;
    let binding = device.max_storage_buffer_binding_size.min(device.max_buffer_size).min(MAX_BINDING);
    at_least("max_storage_buffer_binding_size", binding, 1 << 16)?;
    // Scalars that a uniform binding cannot hold are read from storage, which is slower.
    let candidate = CandidateLayout::new(layout, &fused);
    let groups = layout.groups().len();
    let bytes = 16 * candidate.vectors(groups) as u64;
    let scalars_space = if bytes <= uniform { Space::Uniform } else { Space::Storage };
    let in_storage = scalars_space == Space::Storage;
    at_least(
        "max_storage_buffers_per_shader_stage",
        device.max_storage_buffers_per_shader_stage.into(),
        storage + u64::from(in_storage),
    )?;
    let threads = WORKGROUP_SIZE.into();
    at_least("max_compute_workgroup_size_x", device.max_compute_workgroup_size_x.into(), threads)?;
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
    // A group has a number in the segments, and where it is clipped a workgroup; a tensor of a layer-wise
    // rule likewise. A candidate has to fit a binding.
    let bound = device.max_compute_workgroups_per_dimension.min(NONE.into()) as usize;
    let numbers = if fused.grouped { bound } else { NONE.into() };
    let candidates = (binding / 16 - REQUEST_VECTORS) as usize;
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
        storage_bindings: device.max_storage_buffers_per_shader_stage,
    })
}

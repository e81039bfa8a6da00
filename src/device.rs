//! What is asked of a device: its limits, memory, and answers instead of panics.

use crate::error::Error;
use crate::kernel::set_vectors;
use crate::layout::Layout;
use crate::options::Options;
use crate::plan::{CHUNK_ALIGNMENT, Limits, NONE, WORKGROUP_SIZE};
use crate::rules::Rule;
use std::task::{Context, Poll, Waker};

/// Alignment of every binding offset: the largest that a WebGPU device may ask for.
pub(crate) const ALIGNMENT: u64 = 256;
/// Bytes of an f32.
pub(crate) const ELEMENT: u64 = 4;
/// The largest uniform binding that is used: what every WebGPU device offers.
const UNIFORM_BYTES: u64 = 64 << 10;
/// The largest binding that Vulkan and DX12 take, less what alignment may add.
const MAX_BINDING: u64 = (1 << 31) - ALIGNMENT;

/// What the planner needs of the device, or which limit is too small.
pub(crate) fn limits<R: Rule>(
    device: &wgpu::Limits,
    layout: &Layout<R>,
    kept: &[bool],
    options: &Options,
) -> Result<Limits, Error> {
    let at_least = |limit, value: u64, bound: u64| {
        if value >= bound { Ok(()) } else { Err(Error::DeviceLimit { limit, value, bound }) }
    };
    let around = options.around();
    let layerwise = R::RATIO.is_some();
    // Parameters, gradients, states, average, master, partial results. Table and tensors' rows are uniform while they are small; what they take beyond is seen when
    // tensors are bound.
    let states = kept.iter().filter(|&&kept| kept).count() as u64;
    let master = options.storage().master().is_some();
    let [ema, master, norms, layers] = [around.ema, master, around.norms, layerwise].map(u64::from);
    // The first phase of a layer-wise rule has partial results, and no average.
    let storage = 2 + states + master + (ema + norms).max(layers);
    at_least(
        "max_storage_buffers_per_shader_stage",
        device.max_storage_buffers_per_shader_stage.into(),
        storage,
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
    if options.looks_first() || layerwise {
        let dynamic = device.max_dynamic_storage_buffers_per_pipeline_layout;
        at_least("max_dynamic_storage_buffers_per_pipeline_layout", dynamic.into(), 1)?;
    }
    let uniform = device.max_uniform_buffer_binding_size.min(UNIFORM_BYTES);
    at_least("max_uniform_buffer_binding_size", uniform, 1 << 10)?;
    let row = set_vectors::<R>(1, &around) - set_vectors::<R>(0, &around);
    let bound = (uniform as usize / 16 - set_vectors::<R>(0, &around)) / row;
    if layout.groups().len() > bound {
        return Err(Error::TooManyGroups { rule: R::NAME, groups: layout.groups().len(), bound });
    }
    // A group has a number in the tiles, and where it is clipped a workgroup; a tensor of a layer-wise rule likewise.
    let bound = device.max_compute_workgroups_per_dimension.min(NONE.into()) as usize;
    if around.grouped && layout.groups().len() > bound {
        return Err(Error::TooManyGroups { rule: R::NAME, groups: layout.groups().len(), bound });
    }
    let tensors = layout.tensors().len();
    if layerwise && tensors > bound {
        return Err(Error::TooManyTensors { rule: R::NAME, tensors, bound });
    }
    let binding = device.max_storage_buffer_binding_size.min(device.max_buffer_size).min(MAX_BINDING);
    at_least("max_storage_buffer_binding_size", binding, 1 << 16)?;
    Ok(Limits {
        // A window starts at a multiple of the alignment, which may lie up to one alignment before the chunk.
        chunk_elements: (binding - ALIGNMENT) / ELEMENT / CHUNK_ALIGNMENT * CHUNK_ALIGNMENT,
        workgroups: device.max_compute_workgroups_per_dimension,
        uniform_bytes: uniform as u32,
        storage_bindings: device.max_storage_buffers_per_shader_stage,
    })
}

/// Runs `make` and turns what the device objects to into an error instead of a panic.
///
/// Native devices answer at once. A browser answers later, so nothing is caught there: the error reaches the device's own handler.
pub(crate) fn checked<T>(
    device: &wgpu::Device,
    what: impl FnOnce() -> String,
    make: impl FnOnce() -> T,
) -> Result<T, Error> {
    if cfg!(target_arch = "wasm32") {
        return Ok(make());
    }
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let made = make();
    let mut context = Context::from_waker(Waker::noop());
    // Both scopes are popped, the inner one first.
    let answers = [
        std::pin::pin!(validation.pop()).poll(&mut context),
        std::pin::pin!(memory.pop()).poll(&mut context),
    ];
    for answer in answers {
        if let Poll::Ready(Some(error)) = answer {
            return Err(Error::Device { what: what(), reason: error.to_string() });
        }
    }
    Ok(made)
}

/// Allocates a buffer, or says why not.
pub(crate) fn create_buffer(
    device: &wgpu::Device,
    label: &str,
    size: u64,
    usage: wgpu::BufferUsages,
) -> Result<wgpu::Buffer, Error> {
    checked(
        device,
        || format!("{size} bytes for {label}"),
        || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&format!("wgpu-optim {label}")),
                size,
                usage,
                mapped_at_creation: false,
            })
        },
    )
}

/// Allocates a buffer with `bytes` in it.
pub(crate) fn create_filled(
    device: &wgpu::Device,
    label: &str,
    bytes: &[u8],
    usage: wgpu::BufferUsages,
) -> Result<wgpu::Buffer, Error> {
    let what = || format!("{} bytes for {label}", bytes.len());
    let buffer = checked(device, what, || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("wgpu-optim {label}")),
            size: bytes.len() as u64,
            usage,
            mapped_at_creation: true,
        })
    })?;
    let mut mapped = buffer
        .get_mapped_range_mut(..)
        .map_err(|error| Error::Device { what: what(), reason: error.to_string() })?;
    mapped.copy_from_slice(bytes);
    drop(mapped);
    buffer.unmap();
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the device refuses is an error and not a panic.
    #[test]
    fn a_refused_buffer_is_an_error() {
        let Some(gpu) = harness::test_gpu() else { return };
        let size = gpu.device.limits().max_buffer_size + 4;
        let error = create_buffer(&gpu.device, "test", size, wgpu::BufferUsages::STORAGE).unwrap_err();
        let Error::Device { what, reason } = &error else { panic!("{error}") };
        assert!(what.contains(&size.to_string()) && !reason.is_empty(), "{error}");
    }
}

//! A device's memory, and its objections as errors instead of panics.

use crate::error::DeviceError;
use std::task::{Context, Poll, Waker};

/// Alignment of every binding offset: the largest that a WebGPU device may ask for.
pub(crate) const ALIGNMENT: u64 = 256;
/// Bytes of an f32.
pub(crate) const ELEMENT: u64 = 4;

/// Runs `make` and turns what the device objects to into an error instead of a panic.
///
/// Native devices answer at once. A browser answers later, so nothing is caught there: the error reaches the
/// device's own handler.
pub(crate) fn checked<T>(
    device: &wgpu::Device,
    what: impl FnOnce() -> String,
    make: impl FnOnce() -> T,
) -> Result<T, DeviceError> {
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
            return Err(DeviceError::Refused { what: what(), reason: error.to_string() });
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
) -> Result<wgpu::Buffer, DeviceError> {
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
) -> Result<wgpu::Buffer, DeviceError> {
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
        .map_err(|error| DeviceError::Refused { what: what(), reason: error.to_string() })?;
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
        let DeviceError::Refused { what, reason } = &error else { panic!("{error}") };
        assert!(what.contains(&size.to_string()) && !reason.is_empty(), "{error}");
    }
}

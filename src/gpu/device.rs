//! A device's memory, and its errors as values instead of panics.

use super::limits::at_least;
use crate::error::{BindError, DeviceError};
use std::task::{Context, Poll, Waker};

/// Alignment of every binding offset: the largest that a WebGPU device may require.
pub(crate) const ALIGNMENT: u64 = 256;
/// Bytes of an f32.
pub(crate) const ELEMENT: u64 = 4;

/// Runs `make` and returns the device's error instead of a panic.
///
/// A lost device reports no error by itself, only for the use of objects that it made while it was lost.
pub(crate) fn checked<T>(
    device: &wgpu::Device,
    what: impl FnOnce() -> String,
    make: impl FnOnce() -> T,
) -> Result<T, DeviceError> {
    let (made, objection) = caught(device, make);
    objection.map_or(Ok(made), |error| Err(refused(device, what(), error)))
}

/// Runs `make`, and keeps its errors from the device's error handler.
///
/// Native devices answer at once. A browser answers later, so nothing is caught there: the error reaches the
/// device's own handler.
fn caught<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
    if cfg!(target_arch = "wasm32") {
        return (make(), None);
    }
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let made = make();
    let mut context = Context::from_waker(Waker::noop());
    // Both scopes are popped, the inner scope first.
    let answers = [
        std::pin::pin!(validation.pop()).poll(&mut context),
        std::pin::pin!(memory.pop()).poll(&mut context),
    ];
    let objection = answers.into_iter().find_map(|answer| match answer {
        Poll::Ready(error) => error,
        Poll::Pending => None,
    });
    (made, objection)
}

/// The error of a command that failed for `reason`, or for the loss of the device.
pub(crate) fn refused(device: &wgpu::Device, what: impl Into<String>, reason: impl ToString) -> DeviceError {
    let refused = |()| DeviceError::Refused { what: what.into(), reason: reason.to_string() };
    alive(device).map_or_else(|lost| lost, refused)
}

/// Refuses a device that is lost.
///
/// wgpu tells one listener of a loss, and the engine owns that place. A buffer from a lost device is invalid:
/// its memory should be mapped and is not available. A browser gives no such sign, so nothing is refused
/// there.
pub(crate) fn alive(device: &wgpu::Device) -> Result<(), DeviceError> {
    if cfg!(target_arch = "wasm32") {
        return Ok(());
    }
    let probe = wgpu::BufferDescriptor {
        label: Some("wgpu-optim probe"),
        size: ELEMENT,
        usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: true,
    };
    let (probe, objection) = caught(device, || device.create_buffer(&probe));
    // A device without memory is not lost.
    if objection.is_none() && probe.get_mapped_range_mut(..).is_err() {
        return Err(DeviceError::Lost);
    }
    Ok(())
}

/// Detects buffers of another device.
///
/// wgpu has no comparison for that. The probe tries to make a bind group with more bytes than the buffer has,
/// which always fails: wgpu checks the device before usage and size. Buffers of two instances have the same
/// numbers, so a buffer of another instance is accepted as one of the device, or wgpu panics. In a browser
/// nothing is refused, and the device's error handler gets the error.
#[derive(Debug)]
pub(crate) struct Probe {
    device: wgpu::Device,
    layout: wgpu::BindGroupLayout,
}

impl Probe {
    pub(crate) fn new(device: &wgpu::Device) -> Self {
        let ty = wgpu::BufferBindingType::Storage { read_only: true };
        let descriptor = wgpu::BindGroupLayoutDescriptor {
            label: Some("wgpu-optim probe"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            }],
        };
        let (layout, _) = caught(device, || device.create_bind_group_layout(&descriptor));
        Self { device: device.clone(), layout }
    }

    /// Refuses a buffer of another device.
    pub(crate) fn check(
        &self,
        buffer: &wgpu::Buffer,
        what: impl FnOnce() -> String,
    ) -> Result<(), BindError> {
        if cfg!(target_arch = "wasm32") {
            return Ok(());
        }
        let size = wgpu::BufferSize::new(buffer.size().saturating_add(ELEMENT));
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size });
        let descriptor = wgpu::BindGroupDescriptor {
            label: None,
            layout: &self.layout,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
        };
        match caught(&self.device, || self.device.create_bind_group(&descriptor)).1 {
            Some(error) if is_mismatch(&error) => Err(BindError::OtherDevice { what: what() }),
            _ => Ok(()),
        }
    }
}

/// Whether a bind group was refused for a buffer of another device.
#[cfg(not(target_arch = "wasm32"))]
fn is_mismatch(error: &wgpu::Error) -> bool {
    use std::error::Error;
    use wgpu::wgc::{binding_model::CreateBindGroupError as Refused, device::DeviceError};
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.any(|cause| matches!(cause.downcast_ref(), Some(Refused::Device(DeviceError::DeviceMismatch(_)))))
}

#[cfg(target_arch = "wasm32")]
fn is_mismatch(_: &wgpu::Error) -> bool {
    false
}

/// Writes to a buffer before the next submission. The bytes fit the buffer.
///
/// `Queue::write_buffer` is silent about the loss of the device. `Queue::write_buffer_with` returns an error,
/// at nearly the same cost.
pub(crate) fn write(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
    offset: u64,
    bytes: &[u8],
) -> Result<(), DeviceError> {
    let Some(size) = wgpu::BufferSize::new(bytes.len() as u64) else { return alive(device) };
    match queue.write_buffer_with(buffer, offset, size) {
        Some(mut view) => view.copy_from_slice(bytes),
        None => return Err(refused(device, format!("{size} bytes"), "its handler of errors has it")),
    }
    Ok(())
}

/// Unmaps a buffer. wgpu panics here for a device that was lost and then polled.
pub(crate) fn unmap(device: &wgpu::Device, buffer: &wgpu::Buffer) {
    caught(device, || buffer.unmap());
}

/// Allocates a buffer, or returns the reason for a failure.
pub(crate) fn create_buffer(
    device: &wgpu::Device,
    label: &str,
    size: u64,
    usage: wgpu::BufferUsages,
) -> Result<wgpu::Buffer, DeviceError> {
    at_least("max_buffer_size", device.limits().max_buffer_size, size)?;
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
    at_least("max_buffer_size", device.limits().max_buffer_size, bytes.len() as u64)?;
    let what = || format!("{} bytes for {label}", bytes.len());
    let buffer = checked(device, what, || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&format!("wgpu-optim {label}")),
            size: bytes.len() as u64,
            usage,
            mapped_at_creation: true,
        })
    })?;
    let mut mapped = buffer.get_mapped_range_mut(..).map_err(|error| refused(device, what(), error))?;
    mapped.copy_from_slice(bytes);
    drop(mapped);
    unmap(device, &buffer);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal by the device is an error and not a panic.
    #[test]
    fn a_refused_buffer_is_an_error() {
        let Some(gpu) = harness::test_gpu() else { return };
        let size = gpu.device.limits().max_buffer_size + 4;
        let error = create_buffer(&gpu.device, "test", size, wgpu::BufferUsages::STORAGE).unwrap_err();
        assert!(matches!(error, DeviceError::Limit { bound, .. } if bound == size), "{error}");
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
        let error = create_buffer(&gpu.device, "test", 4, usage).unwrap_err();
        let DeviceError::Refused { what, reason } = &error else { panic!("{error}") };
        assert!(what.contains("4 bytes") && !reason.is_empty(), "{error}");
    }
}

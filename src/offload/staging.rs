//! Staging buffers, in which the gradients of a chunk arrive.

use super::chunk::Chunk;
use crate::error::DeviceError;
use crate::gpu::device::{create_buffer, unmap};
use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

/// The state of a request: not made, under way, arrived, failed.
pub(super) const ABSENT: u8 = 0;
pub(super) const ASKED: u8 = 1;
pub(super) const HERE: u8 = 2;
pub(super) const FAILED: u8 = 3;

/// A request in progress, until its commands are dropped. It has its own state, since a newer request may be
/// in progress when it is dropped.
pub(super) struct Asked(pub(super) Arc<AtomicU8>);

impl Drop for Asked {
    fn drop(&mut self) {
        // A request that has arrived keeps its state.
        let _ = self.0.compare_exchange(ASKED, ABSENT, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// A buffer in which a chunk's gradients arrive.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) buffer: wgpu::Buffer,
    /// The state of the last request.
    pub(super) state: Arc<AtomicU8>,
}

/// A ring of staging buffers for `chunks`.
pub(super) fn staging(
    device: &wgpu::Device,
    chunks: &[Chunk],
    staged_chunks: usize,
) -> Result<Vec<Staging>, DeviceError> {
    let ring = staged_chunks.min(chunks.len());
    let staging = (0..ring).map(|nth| {
        let most = chunks.iter().skip(nth).step_by(ring).map(Chunk::byte_len).max().unwrap_or(0);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let buffer = create_buffer(device, "gradients", most, usage)?;
        Ok(Staging { buffer, state: Arc::new(AtomicU8::new(ABSENT)) })
    });
    staging.collect()
}

impl Staging {
    /// Whether a request is in progress, or has brought gradients that no pass has read.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), ASKED | HERE)
    }

    /// Makes room for another request.
    pub(super) fn release(&self, device: &wgpu::Device) {
        unmap(device, &self.buffer);
        self.state.store(ABSENT, Ordering::Release);
    }

    /// The error of gradients that did not arrive; they can be requested again.
    pub(super) fn unreadable(&self) -> DeviceError {
        self.state.store(ABSENT, Ordering::Release);
        DeviceError::Refused { what: "gradients".into(), reason: "they cannot be mapped".into() }
    }
}

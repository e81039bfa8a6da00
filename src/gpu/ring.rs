//! The upload of each step's scalars.
//!
//! `Queue::write_buffer` takes effect before the next submission, not where an encoder stands, so two steps
//! recorded into one encoder need a slot each. A slot is free again when the commands that read it have run,
//! or were dropped unsubmitted; the encoder's callback reports it. When all slots are taken, a page of new
//! slots is added. Any number of steps may therefore be recorded before a submission, and a loop that submits
//! every step never allocates.

use super::device::{self, ALIGNMENT, checked, create_buffer};
use super::limits::{at_least, check_kernel};
use crate::error::DeviceError;
use crate::narrow::to_u32;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a page, unless one slot takes more.
const PAGE_BYTES: u64 = 32 << 10;

type Free = Arc<Mutex<Vec<u32>>>;

/// A growing list of slots for one step's scalars each.
#[derive(Debug)]
pub(crate) struct Ring {
    device: wgpu::Device,
    layout: wgpu::BindGroupLayout,
    pages: Vec<Page>,
    spacing: u64,
    slot_bytes: u64,
    free: Free,
    /// Shared with every lease.
    leases: Arc<()>,
}

#[derive(Debug)]
struct Page {
    buffer: wgpu::Buffer,
    group: wgpu::BindGroup,
}

/// A slot that returns to the free ones when it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: u32,
    free: Free,
    _counted: Arc<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The list's capacity is the number of slots: this never allocates.
        lock(&self.free).push(self.slot);
    }
}

fn lock(free: &Free) -> std::sync::MutexGuard<'_, Vec<u32>> {
    // A panic elsewhere leaves the list complete: its operations are a push and a pop.
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The layout of a bind group with a slot in it.
pub(crate) fn layout(
    device: &wgpu::Device,
    ty: wgpu::BufferBindingType,
    bytes: u64,
) -> Result<wgpu::BindGroupLayout, DeviceError> {
    check_kernel(&device.limits(), &[ty], 1, false)?;
    Ok(device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("wgpu-optim scalars"),
        entries: &[wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset: true,
                min_binding_size: wgpu::BufferSize::new(bytes),
            },
            count: None,
        }],
    }))
}

/// A bind group of this layout, with slots of `bytes` in `buffer`.
pub(crate) fn group(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    buffer: &wgpu::Buffer,
    bytes: u64,
) -> Result<wgpu::BindGroup, DeviceError> {
    let limit = device.limits().max_storage_buffer_binding_size;
    at_least("max_storage_buffer_binding_size", limit, bytes)?;
    let size = wgpu::BufferSize::new(bytes);
    let entries = [wgpu::BindGroupEntry {
        binding: 0,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size }),
    }];
    let descriptor =
        wgpu::BindGroupDescriptor { label: Some("wgpu-optim scalars"), layout, entries: &entries };
    let what = || format!("a binding of {bytes} bytes of scalars");
    checked(device, what, || device.create_bind_group(&descriptor))
}

impl Ring {
    /// Makes slots of `slot_bytes` in bind groups of `layout`.
    pub(crate) fn new(
        device: &wgpu::Device,
        layout: wgpu::BindGroupLayout,
        slot_bytes: u64,
    ) -> Result<Self, DeviceError> {
        let mut ring = Self {
            device: device.clone(),
            layout,
            pages: Vec::new(),
            spacing: slot_bytes.next_multiple_of(ALIGNMENT),
            slot_bytes,
            free: Free::default(),
            leases: Arc::default(),
        };
        ring.grow()?;
        Ok(ring)
    }

    /// Makes larger slots; leased slots stay valid.
    pub(crate) fn with_slot_bytes(&self, slot_bytes: u64) -> Result<Self, DeviceError> {
        let larger = Self::new(&self.device, self.layout.clone(), slot_bytes)?;
        Ok(Self { leases: self.leases.clone(), ..larger })
    }

    /// The number of leased slots: steps that have neither run nor been dropped.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn leased(&self) -> usize {
        Arc::strong_count(&self.leases) - 1
    }

    fn per_page(&self) -> u32 {
        to_u32((PAGE_BYTES / self.spacing).max(1))
    }

    fn grow(&mut self) -> Result<(), DeviceError> {
        let buffer = create_buffer(
            &self.device,
            "scalars",
            u64::from(self.per_page()) * self.spacing,
            wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        )?;
        let group = group(&self.device, &self.layout, &buffer, self.slot_bytes)?;
        let first = self.slots();
        self.pages.push(Page { buffer, group });
        let slots = self.slots();
        let mut free = lock(&self.free);
        // Room for every slot that exists, leased ones included.
        let room = slots as usize - free.len();
        free.reserve_exact(room);
        free.extend((first..slots).rev());
        Ok(())
    }

    fn slots(&self) -> u32 {
        to_u32(self.pages.len()) * self.per_page()
    }

    /// Bytes of a slot.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Bytes of device memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        u64::from(self.slots()) * self.spacing
    }

    /// Writes one step's scalars to a free slot.
    pub(crate) fn write(&mut self, queue: &wgpu::Queue, bytes: &[u8]) -> Result<Lease, DeviceError> {
        let popped = lock(&self.free).pop();
        let slot = match popped {
            Some(slot) => slot,
            None => {
                self.grow()?;
                lock(&self.free).pop().expect("`grow` has just added a free slot")
            }
        };
        let (page, offset) = self.at(slot);
        // The slot is free again if it cannot be written.
        let lease = Lease { slot, free: self.free.clone(), _counted: self.leases.clone() };
        device::write(&self.device, queue, &page.buffer, offset.into(), bytes)?;
        Ok(lease)
    }

    fn at(&self, slot: u32) -> (&Page, u32) {
        let per_page = self.per_page();
        let offset = u64::from(slot % per_page) * self.spacing;
        (&self.pages[(slot / per_page) as usize], to_u32(offset))
    }

    /// The bind group and dynamic offset of a slot.
    pub(crate) fn group(&self, lease: &Lease) -> (&wgpu::BindGroup, u32) {
        let (page, offset) = self.at(lease.slot);
        (&page.group, offset)
    }
}

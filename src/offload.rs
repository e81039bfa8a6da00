//! Parameters and gradients on the GPU, optimizer state in host memory: where the device has no room for it.

use crate::cpu::{Checked, Decision, Optimizer};
use crate::device::create_buffer;
use crate::error::Error;
use crate::layout::Layout;
use crate::options::Options;
use crate::report::Report;
use crate::rules::{Step, Twin};
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

/// Blocks of the CPU engine in a chunk: 4 MiB of gradients.
const CHUNK_BLOCKS: usize = 64;
/// Bytes of an element.
const ELEMENT: usize = size_of::<f32>();

/// What has become of a request.
const ABSENT: u8 = 0;
const ASKED: u8 = 1;
const HERE: u8 = 2;
const FAILED: u8 = 3;

/// A request under way, which is none any more when its commands are dropped.
struct Asked(Arc<AtomicU8>);

impl Drop for Asked {
    fn drop(&mut self) {
        // Only of what has not arrived.
        let _ = self.0.compare_exchange(ASKED, ABSENT, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// The CPU engine for parameters and gradients that lie on a device, flat and in f32. Gradients come to the host and parameters go back in chunks. A chunk is updated while others are on their way,
/// where options and rule let the update begin with the first: with a clip by norm, steps that may be skipped, reports or a layer-wise rule all chunks have to arrive before any is updated.
///
/// Like the GPU optimizer it neither submits nor waits:
///
/// ```no_run
/// # fn f(device: &wgpu_optim::wgpu::Device, queue: &wgpu_optim::wgpu::Queue, params: &wgpu_optim::wgpu::Buffer, grads: &wgpu_optim::wgpu::Buffer) -> Result<(), Box<dyn std::error::Error>> {
/// use wgpu_optim::offload::{Offload, Progress};
/// use wgpu_optim::{AdamW, Group, Layout, Options, wgpu};
/// let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [64, 32])])?;
/// let start = vec![0.0; 64 * 32]; // as the device has them
/// let mut offload = Offload::new(device, layout, Options::default(), start)?;
/// for _ in 0..100 {
///     // … forward and backward passes …
///     for chunk in 0..offload.chunks() {
///         // In a submission of its own, so that it is here when its copy is done and not when all are.
///         let mut encoder = device.create_command_encoder(&Default::default());
///         offload.request(&mut encoder, grads, chunk)?;
///         queue.submit([encoder.finish()]);
///     }
///     loop {
///         match offload.advance(queue, params, 1e-3)? {
///             Progress::Waiting => {
///                 device.poll(wgpu::PollType::Poll)?;
///             }
///             Progress::Working => {
///                 queue.submit([]); // sends what has been updated
///             }
///             Progress::Done(_) => break,
///         }
///     }
///     queue.submit([]);
/// }
/// # Ok(())
/// # }
/// ```
///
/// The host keeps the parameters too, and the device's staging buffers hold all gradients once more in memory of the host: 8 bytes a parameter beside the state. What the caller writes to the device's parameters has no effect.
#[derive(Debug)]
pub struct Offload<R: Twin> {
    optimizer: Optimizer<R>,
    params: Vec<f32>,
    chunks: Vec<Chunk>,
    phase: Phase,
    /// The chunk that is next in this phase.
    next: usize,
}

/// What has been done when a call returns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// Nothing: the gradients that are next have not arrived.
    Waiting,
    /// A chunk; there are more.
    Working,
    /// The last one. The report is there if the options ask for one.
    Done(Option<Report>),
}

/// Part of the flat space, with its way to the host.
#[derive(Debug)]
struct Chunk {
    blocks: Range<usize>,
    flat: Range<usize>,
    /// The same without what lies between tensors, which is the caller's.
    written: Vec<Range<usize>>,
    staging: wgpu::Buffer,
    state: Arc<AtomicU8>,
}

/// Where a step is.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    Look { unscale: f64 },
    Measure { report: Report },
    Update { skip: bool, report: Report },
}

impl<R: Twin> Offload<R> {
    /// Zeroed state for `layout`, and parameters that start as `params`, which is what the device has.
    ///
    /// # Errors
    /// As [`cpu::Optimizer::with_options`](Optimizer::with_options); [`Error::Format`] for formats other than f32, [`Error::ReadOnly`] for gradients that are to be set to zero,
    /// which is the device's to do; [`Error::Mismatch`] for parameters of another length, [`Error::Device`] if it refuses memory.
    pub fn new(
        device: &wgpu::Device,
        layout: Layout<R>,
        options: Options,
        params: Vec<f32>,
    ) -> Result<Self, Error> {
        for (field, format) in [("params", options.params), ("grads", options.grads)] {
            if format != crate::Format::F32 {
                return Err(Error::Format {
                    field,
                    format: format.name(),
                    bound: "f32 where state is offloaded",
                });
            }
        }
        if options.zero_gradients {
            return Err(Error::ReadOnly { what: "gradients on a device" });
        }
        let (found, expected) = (params.len() as u64, layout.len());
        if found != expected {
            return Err(Error::Mismatch { what: "parameters", found, expected });
        }
        let optimizer = Optimizer::with_options(layout, options)?;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let chunks = optimizer.chunks(CHUNK_BLOCKS).map(|(blocks, written)| {
            let flat = written[0].start..written[written.len() - 1].end;
            let staging = create_buffer(device, "gradients", (flat.len() * ELEMENT) as u64, usage)?;
            Ok(Chunk { blocks, flat, written, staging, state: Arc::new(AtomicU8::new(ABSENT)) })
        });
        let chunks = chunks.collect::<Result<_, Error>>()?;
        Ok(Self { optimizer, params, chunks, phase: Phase::Idle, next: 0 })
    }

    /// The optimizer, with state, options and layout.
    #[must_use]
    pub fn optimizer(&self) -> &Optimizer<R> {
        &self.optimizer
    }

    /// The parameters as the host has them, flat.
    #[must_use]
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// How many requests a step takes.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Records the copy of one chunk of the gradients, which is on the host some time after the commands have been submitted.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there is no such chunk, [`Error::MissingUsage`] without `COPY_SRC`, [`Error::OutOfBounds`] for a buffer that is too short,
    /// [`Error::Duplicate`] for a chunk that is on its way; nothing is recorded then.
    pub fn request(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        grads: &wgpu::Buffer,
        chunk: usize,
    ) -> Result<(), Error> {
        let (found, expected) = ((chunk as u64).saturating_add(1), self.chunks.len() as u64);
        let number = chunk;
        let chunk = self.chunks.get(chunk).ok_or(Error::Mismatch { what: "chunks", found, expected })?;
        let (from, bytes) = chunk.bytes(grads, "gradients", wgpu::BufferUsages::COPY_SRC, "COPY_SRC")?;
        if let ASKED | HERE = chunk.state.load(Ordering::Acquire) {
            return Err(Error::Duplicate { what: "request of chunk", name: number.to_string() });
        }
        // Nobody else changes what is not on its way.
        chunk.state.store(ASKED, Ordering::Release);
        encoder.copy_buffer_to_buffer(grads, from, &chunk.staging, 0, Some(bytes));
        let asked = Asked(chunk.state.clone());
        encoder.map_buffer_on_submit(&chunk.staging, wgpu::MapMode::Read, .., move |mapped| {
            asked.0.store(if mapped.is_ok() { HERE } else { FAILED }, Ordering::Release);
        });
        Ok(())
    }

    /// Does what can be done with the next chunk, and writes updated parameters to `params` by the queue: they are sent with the next submission. The first call of a step
    /// decides its learning rate.
    ///
    /// # Errors
    /// Those of a step's scalars ([`cpu::Optimizer::step`](Optimizer::step)), [`Error::MissingUsage`] without `COPY_DST`, [`Error::OutOfBounds`], [`Error::NotRequested`] if nobody has asked for the chunk that is next
    /// (or the commands that did were dropped), and [`Error::Device`] if its gradients cannot be read. The step stays where it was: chunks before this one have been worked on, and it goes on when this one has been
    /// requested again, of the same gradients.
    pub fn advance(
        &mut self,
        queue: &wgpu::Queue,
        params: &wgpu::Buffer,
        step: impl Into<Step>,
    ) -> Result<Progress, Error> {
        // Chunks are in the order of the flat space: where the last one fits, all do.
        if let Some(last) = self.chunks.last() {
            last.bytes(params, "parameters", wgpu::BufferUsages::COPY_DST, "COPY_DST")?;
        }
        let state = self.chunks[self.next].state.load(Ordering::Acquire);
        match state {
            ABSENT => return Err(Error::NotRequested { chunk: self.next }),
            FAILED => return Err(self.chunks[self.next].unreadable()),
            _ => {}
        }
        if let Phase::Idle = self.phase {
            let unscale = self.optimizer.begin(step.into())?;
            self.phase = Phase::Look { unscale };
            if !self.optimizer.options().looks_first() {
                self.decide(unscale);
            }
        }
        if state != HERE {
            return Ok(Progress::Waiting);
        }
        let chunk = &self.chunks[self.next];
        let blocks = chunk.blocks.clone();
        let range = chunk.flat.clone();
        {
            let mut mapped = chunk.staging.get_mapped_range(..).ok();
            let Some(grads) = mapped.as_deref().and_then(|bytes| bytemuck::try_cast_slice(bytes).ok()) else {
                // What is not mapped cannot be unmapped.
                if mapped.take().is_some() {
                    chunk.staging.unmap();
                }
                return Err(chunk.unreadable());
            };
            let own = &mut self.params[range.clone()];
            let mut tensors = Checked::part(range.start, own, grads);
            match self.phase {
                Phase::Idle => {}
                Phase::Look { .. } => self.optimizer.look(&mut tensors, blocks),
                Phase::Measure { .. } => self.optimizer.measure(&mut tensors, blocks, false),
                Phase::Update { skip, .. } => self.optimizer.update(&mut tensors, blocks, false, skip),
            }
        }
        if let Phase::Update { skip, .. } = self.phase {
            chunk.staging.unmap();
            chunk.state.store(ABSENT, Ordering::Release);
            for range in chunk.written.iter().filter(|_| !skip) {
                let at = (range.start * ELEMENT) as u64;
                queue.write_buffer(params, at, bytemuck::cast_slice(&self.params[range.clone()]));
            }
        }
        self.next += 1;
        if self.next < self.chunks.len() {
            return Ok(Progress::Working);
        }
        self.next = 0;
        match self.phase {
            Phase::Look { unscale } => self.decide(unscale),
            Phase::Measure { report } => {
                self.optimizer.set_ratios();
                self.phase = Phase::Update { skip: false, report };
            }
            Phase::Update { skip, mut report } => {
                self.optimizer.end(skip, &mut report);
                self.phase = Phase::Idle;
                return Ok(Progress::Done(self.optimizer.options().reports().then_some(report)));
            }
            Phase::Idle => {}
        }
        Ok(Progress::Working)
    }

    fn decide(&mut self, unscale: f64) {
        let Decision { skip, report } = self.optimizer.decide(unscale);
        let measures = R::RATIO.is_some() && !skip;
        self.phase = if measures { Phase::Measure { report } } else { Phase::Update { skip, report } };
    }
}

impl Chunk {
    /// Where it lies in a buffer of the caller's.
    fn bytes(
        &self,
        buffer: &wgpu::Buffer,
        what: &str,
        usage: wgpu::BufferUsages,
        name: &'static str,
    ) -> Result<(u64, u64), Error> {
        if !buffer.usage().contains(usage) {
            return Err(Error::MissingUsage { what: what.into(), usage: name });
        }
        let [start, end] = [self.flat.start, self.flat.end].map(|at| (at * ELEMENT) as u64);
        if end > buffer.size() {
            return Err(Error::OutOfBounds { what: what.into(), start, end, size: buffer.size() });
        }
        Ok((start, end - start))
    }

    /// What did not arrive can be requested again.
    fn unreadable(&self) -> Error {
        self.state.store(ABSENT, Ordering::Release);
        Error::Device { what: "gradients".into(), reason: "they cannot be mapped".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdamW, Group};

    /// What no adapter does when it is asked to: a copy that fails, and one that cannot be read.
    #[test]
    fn what_failed_can_be_requested_again() {
        let Some(gpu) = harness::test_gpu() else { return };
        let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [10])]).unwrap();
        let mut offload = Offload::new(&gpu.device, layout, Options::default(), vec![0.0; 10]).unwrap();
        let buffer = gpu.buffer(40);
        let request = |offload: &mut Offload<AdamW>| {
            let mut encoder = gpu.encoder();
            offload.request(&mut encoder, &buffer, 0).unwrap();
            gpu.run(encoder);
        };
        let advance = |offload: &mut Offload<AdamW>| offload.advance(&gpu.queue, &buffer, 0.1);
        let done = Ok(Progress::Done(None));
        offload.chunks[0].state.store(FAILED, Ordering::Release);
        assert!(matches!(advance(&mut offload), Err(Error::Device { .. })));
        assert_eq!(advance(&mut offload), Err(Error::NotRequested { chunk: 0 }));
        request(&mut offload);
        assert_eq!(advance(&mut offload), done);
        // Without a look at the error.
        offload.chunks[0].state.store(FAILED, Ordering::Release);
        request(&mut offload);
        assert_eq!(advance(&mut offload), done);
        request(&mut offload);
        offload.chunks[0].staging.unmap();
        assert!(matches!(advance(&mut offload), Err(Error::Device { .. })));
        request(&mut offload);
        assert_eq!(advance(&mut offload), done);
        assert_eq!(offload.optimizer().steps(), 3);
    }
}

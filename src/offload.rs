//! Parameters and gradients on the GPU, optimizer state in host memory: where the device has no room for it.

use crate::cpu::{Checked, Decision, Optimizer, StateMut};
use crate::device::create_buffer;
use crate::error::Error;
use crate::layout::Layout;
use crate::options::Options;
use crate::report::Report;
use crate::rules::{Step, Twin};
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

/// Bytes of an element.
const ELEMENT: usize = size_of::<f32>();

/// What has become of a request.
const ABSENT: u8 = 0;
const ASKED: u8 = 1;
const HERE: u8 = 2;
const FAILED: u8 = 3;

/// A request under way, which is none any more when its commands are dropped. Its state is its own: when it is dropped, a newer one may be under way.
struct Asked(Arc<AtomicU8>);

impl Drop for Asked {
    fn drop(&mut self) {
        // Only of what has not arrived.
        let _ = self.0.compare_exchange(ASKED, ABSENT, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// How gradients come to the host: in chunks, through a ring of staging buffers, which are memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfers {
    /// Blocks of the CPU engine in a chunk, each 16 384 parameters; by default 64, which have 4 MiB of gradients.
    pub chunk_blocks: usize,
    /// Chunks that are on their way or have arrived, at a time; by default 4. With all of them ([`usize::MAX`]) gradients stay on the host until the step is done: they cross once also where a step takes more than one pass.
    pub staged_chunks: usize,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { chunk_blocks: 64, staged_chunks: 4 }
    }
}

/// The CPU engine for parameters and gradients that lie on a device, flat and in f32. Gradients come to the host and parameters go back in chunks. A chunk is updated while others are on their way,
/// where options and rule let the update begin with the first. Otherwise there is a pass over all gradients before the update: for a clip by norm, steps that may be skipped and reports one, for a layer-wise rule one (more).
/// Gradients cross once a pass, unless [`Transfers`] keep all of them; so they must not change before the step is done. A step that is skipped is done when all have been looked at.
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
///     loop {
///         while let Some(chunk) = offload.wanted() {
///             // In a submission of its own, so that it is here when its copy is done and not when all are.
///             let mut encoder = device.create_command_encoder(&Default::default());
///             offload.request(&mut encoder, grads, chunk)?;
///             queue.submit([encoder.finish()]); // also sends what has been updated
///         }
///         match offload.advance(queue, params, 1e-3)? {
///             Progress::Waiting => {
///                 device.poll(wgpu::PollType::Poll)?;
///             }
///             Progress::Working => {
///                 queue.submit([]);
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
/// Host memory beside the state: 4 bytes a parameter for the parameters, which the host keeps too, and [`staging_bytes`](Self::staging_bytes): 16 MiB at most by default if no tensors of a chunk are apart, 4 bytes a parameter if all chunks are kept.
/// What the caller writes to the device's parameters has no effect.
#[derive(Debug)]
pub struct Offload<R: Twin> {
    optimizer: Optimizer<R>,
    params: Vec<f32>,
    chunks: Vec<Chunk>,
    /// A ring: chunk `c` comes through the one at `c` modulo their number.
    staging: Vec<Staging>,
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
}

/// Where a chunk's gradients arrive.
#[derive(Debug)]
struct Staging {
    buffer: wgpu::Buffer,
    /// Of the last request.
    state: Arc<AtomicU8>,
}

/// Where a step is.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    Look { unscale: f64 },
    Measure { report: Report },
    Update { report: Report },
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
        Self::with_transfers(device, layout, options, Transfers::default(), params)
    }

    /// [`new`](Self::new) with chunks of another size, or more or fewer of them at a time.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::Options`] for a field of `transfers` that is 0.
    pub fn with_transfers(
        device: &wgpu::Device,
        layout: Layout<R>,
        options: Options,
        transfers: Transfers,
        params: Vec<f32>,
    ) -> Result<Self, Error> {
        let Transfers { chunk_blocks, staged_chunks } = transfers;
        for (field, value) in [("chunk_blocks", chunk_blocks), ("staged_chunks", staged_chunks)] {
            if value == 0 {
                return Err(Error::Options { field, value: 0.0, bound: "at least 1" });
            }
        }
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
        let chunk = |(blocks, written): (_, Vec<Range<usize>>)| {
            let flat = written[0].start..written[written.len() - 1].end;
            Chunk { blocks, flat, written }
        };
        let chunks: Vec<Chunk> = optimizer.chunks(chunk_blocks).map(chunk).collect();
        let ring = staged_chunks.min(chunks.len());
        let staging = (0..ring).map(|nth| {
            let most = chunks.iter().skip(nth).step_by(ring).map(Chunk::byte_len).max().unwrap_or(0);
            let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let buffer = create_buffer(device, "gradients", most, usage)?;
            Ok(Staging { buffer, state: Arc::new(AtomicU8::new(ABSENT)) })
        });
        let staging = staging.collect::<Result<_, Error>>()?;
        Ok(Self { optimizer, params, chunks, staging, phase: Phase::Idle, next: 0 })
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

    /// The chunks of the flat space.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of the staging buffers. Of a chunk they hold what lies between its tensors too.
    #[must_use]
    pub fn staging_bytes(&self) -> u64 {
        self.staging.iter().map(|staging| staging.buffer.size()).sum()
    }

    /// Goes on with a saved loss scale, as [`cpu::Optimizer::set_loss_scale`](Optimizer::set_loss_scale).
    ///
    /// # Errors
    /// Its errors, and [`Error::StepUnderWay`].
    pub fn set_loss_scale(&mut self, scale: f64, good_steps: u32) -> Result<(), Error> {
        self.between_steps()?;
        self.optimizer.set_loss_scale(scale, good_steps)
    }

    /// State to be written, as [`cpu::Optimizer::state_mut`](Optimizer::state_mut). With feature `checkpoint`, `checkpoint::Cpu::offloaded` saves and loads all there is.
    ///
    /// # Errors
    /// Its errors, and [`Error::StepUnderWay`].
    pub fn state_mut(&mut self, slot: &str, tensor: &str) -> Result<Option<StateMut<'_>>, Error> {
        self.between_steps()?;
        self.optimizer.state_mut(slot, tensor)
    }

    /// Writes all parameters that the host has to the device's, by the queue: they are sent with the next submission. What lies between tensors stays.
    ///
    /// # Errors
    /// [`Error::StepUnderWay`], [`Error::MissingUsage`] without `COPY_DST`, [`Error::OutOfBounds`].
    pub fn upload(&self, queue: &wgpu::Queue, params: &wgpu::Buffer) -> Result<(), Error> {
        self.between_steps()?;
        self.check_params(params)?;
        self.chunks.iter().for_each(|chunk| chunk.upload(queue, params, &self.params));
        Ok(())
    }

    /// What a checkpoint is of.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn parts_mut(&mut self) -> Result<(&mut Optimizer<R>, &mut [f32]), Error> {
        self.between_steps()?;
        Ok((&mut self.optimizer, &mut self.params))
    }

    fn between_steps(&self) -> Result<(), Error> {
        if let Phase::Idle = self.phase { Ok(()) } else { Err(Error::StepUnderWay) }
    }

    fn staging(&self, chunk: usize) -> &Staging {
        &self.staging[chunk % self.staging.len()]
    }

    /// The chunks for which there is room now.
    fn window(&self) -> Range<usize> {
        self.next..self.chunks.len().min(self.next + self.staging.len())
    }

    /// The chunk that is to be [requested](Self::request) next; `None` if all for which there is room are on their way or here. Between steps it is of the next one.
    #[must_use]
    pub fn wanted(&self) -> Option<usize> {
        let absent = |chunk: &usize| !self.staging(*chunk).is_taken();
        self.window().find(absent)
    }

    /// Records the copy of one chunk of the gradients, which is on the host some time after the commands have been submitted. A submission that the device refuses is not noticed: what the staging buffer had
    /// before then counts as the gradients.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if there is no such chunk, [`Error::MissingUsage`] without `COPY_SRC`, [`Error::OutOfBounds`] for a buffer that is too short,
    /// [`Error::OutOfTurn`] for a chunk that this pass is done with, or for which there is no room yet, [`Error::Duplicate`] for one that is on its way; nothing is recorded then.
    pub fn request(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        grads: &wgpu::Buffer,
        chunk: usize,
    ) -> Result<(), Error> {
        let (found, expected) = ((chunk as u64).saturating_add(1), self.chunks.len() as u64);
        let place = self.chunks.get(chunk).ok_or(Error::Mismatch { what: "chunks", found, expected })?;
        let (from, bytes) = place.bytes(grads, "gradients", wgpu::BufferUsages::COPY_SRC, "COPY_SRC")?;
        let Range { start: first, end } = self.window();
        if !(first..end).contains(&chunk) {
            return Err(Error::OutOfTurn { chunk, first, end });
        }
        if self.staging(chunk).is_taken() {
            return Err(Error::Duplicate { what: "request of chunk", name: chunk.to_string() });
        }
        let ring = self.staging.len();
        let staging = &mut self.staging[chunk % ring];
        staging.state = Arc::new(AtomicU8::new(ASKED));
        encoder.copy_buffer_to_buffer(grads, from, &staging.buffer, 0, Some(bytes));
        let asked = Asked(staging.state.clone());
        encoder.map_buffer_on_submit(&staging.buffer, wgpu::MapMode::Read, ..bytes, move |mapped| {
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
        self.check_params(params)?;
        let (next, keeps_all) = (self.next, self.staging.len() == self.chunks.len());
        let state = self.staging(next).state.load(Ordering::Acquire);
        match state {
            ABSENT => return Err(Error::NotRequested { chunk: next }),
            FAILED => return Err(self.staging(next).unreadable()),
            _ => {}
        }
        if let Phase::Idle = self.phase {
            let unscale = self.optimizer.begin(step.into())?;
            self.phase = Phase::Look { unscale };
            if !self.optimizer.options().looks_first() {
                // What nobody has looked at is not skipped.
                self.decide(unscale);
            }
        }
        if state != HERE {
            return Ok(Progress::Waiting);
        }
        let (chunk, staging) = (&self.chunks[next], &self.staging[next % self.staging.len()]);
        let blocks = chunk.blocks.clone();
        {
            let mut mapped = staging.buffer.get_mapped_range(..chunk.byte_len()).ok();
            let Some(grads) = mapped.as_deref().and_then(|bytes| bytemuck::try_cast_slice(bytes).ok()) else {
                // What is not mapped cannot be unmapped.
                if mapped.take().is_some() {
                    staging.buffer.unmap();
                }
                return Err(staging.unreadable());
            };
            let own = &mut self.params[chunk.flat.clone()];
            let mut tensors = Checked::part(chunk.flat.start, own, Some(grads));
            match self.phase {
                Phase::Idle => {}
                Phase::Look { .. } => self.optimizer.look(&mut tensors, blocks),
                Phase::Measure { .. } => self.optimizer.measure(&mut tensors, blocks, false),
                Phase::Update { .. } => self.optimizer.update(&mut tensors, blocks, false, false),
            }
        }
        if let (Phase::Update { .. }, _) | (_, false) = (self.phase, keeps_all) {
            staging.release();
        }
        if let Phase::Update { .. } = self.phase {
            chunk.upload(queue, params, &self.params);
        }
        self.next += 1;
        if self.next < self.chunks.len() {
            return Ok(Progress::Working);
        }
        self.next = 0;
        match self.phase {
            Phase::Look { unscale } => {
                if let Some(report) = self.decide(unscale) {
                    return Ok(self.done(true, report));
                }
            }
            Phase::Measure { report } => {
                self.optimizer.set_ratios();
                self.phase = Phase::Update { report };
            }
            Phase::Update { report } => return Ok(self.done(false, report)),
            Phase::Idle => {}
        }
        Ok(Progress::Working)
    }

    fn check_params(&self, params: &wgpu::Buffer) -> Result<(), Error> {
        // Chunks are in the order of the flat space: where the last one fits, all do.
        let last = self.chunks.last();
        last.map_or(Ok(()), |last| {
            last.bytes(params, "parameters", wgpu::BufferUsages::COPY_DST, "COPY_DST").map(|_| ())
        })
    }

    /// What follows the look at the gradients; the report of a step that is skipped, of which no gradient is needed any more.
    fn decide(&mut self, unscale: f64) -> Option<Report> {
        let Decision { skip, report } = self.optimizer.decide(unscale);
        if skip {
            self.staging.iter().filter(|staging| staging.is_taken()).for_each(Staging::release);
            let blocks = self.chunks.last().map_or(0, |chunk| chunk.blocks.end);
            let mut tensors = Checked::part(0, &mut self.params, None);
            self.optimizer.update(&mut tensors, 0..blocks, false, true);
            return Some(report);
        }
        self.phase = if R::RATIO.is_some() { Phase::Measure { report } } else { Phase::Update { report } };
        None
    }

    fn done(&mut self, skip: bool, mut report: Report) -> Progress {
        self.optimizer.end(skip, &mut report);
        self.phase = Phase::Idle;
        Progress::Done(self.optimizer.options().reports().then_some(report))
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

    fn byte_len(&self) -> u64 {
        (self.flat.len() * ELEMENT) as u64
    }

    /// Its parameters to the device, without what is the caller's.
    fn upload(&self, queue: &wgpu::Queue, params: &wgpu::Buffer, values: &[f32]) {
        for range in &self.written {
            let at = (range.start * ELEMENT) as u64;
            queue.write_buffer(params, at, bytemuck::cast_slice(&values[range.clone()]));
        }
    }
}

impl Staging {
    /// Whether a request is under way, or has brought what nobody has worked on.
    fn is_taken(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), ASKED | HERE)
    }

    /// What has arrived is not needed any more.
    fn release(&self) {
        self.buffer.unmap();
        self.state.store(ABSENT, Ordering::Release);
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
        offload.staging[0].state.store(FAILED, Ordering::Release);
        assert!(matches!(advance(&mut offload), Err(Error::Device { .. })));
        assert_eq!(advance(&mut offload), Err(Error::NotRequested { chunk: 0 }));
        request(&mut offload);
        assert_eq!(advance(&mut offload), done);
        // Without a look at the error.
        offload.staging[0].state.store(FAILED, Ordering::Release);
        request(&mut offload);
        assert_eq!(advance(&mut offload), done);
        request(&mut offload);
        offload.staging[0].buffer.unmap();
        assert!(matches!(advance(&mut offload), Err(Error::Device { .. })));
        request(&mut offload);
        assert_eq!(advance(&mut offload), done);
        assert_eq!(offload.optimizer().steps(), 3);
    }

    /// A request that has failed is dropped when a newer one is under way.
    #[test]
    fn a_late_drop_is_of_its_own_request() {
        let Some(gpu) = harness::test_gpu() else { return };
        let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [10])]).unwrap();
        let mut offload = Offload::new(&gpu.device, layout, Options::default(), vec![0.0; 10]).unwrap();
        let buffer = gpu.buffer(40);
        let mut encoder = gpu.encoder();
        offload.request(&mut encoder, &buffer, 0).unwrap();
        let late = Asked(offload.staging[0].state.clone());
        drop(encoder);
        assert_eq!(offload.wanted(), Some(0));
        let mut encoder = gpu.encoder();
        offload.request(&mut encoder, &buffer, 0).unwrap();
        // As if its callback had only now come to its end.
        late.0.store(ASKED, Ordering::Release);
        drop(late);
        assert_eq!(offload.wanted(), None);
        gpu.run(encoder);
        assert_eq!(offload.advance(&gpu.queue, &buffer, 0.1), Ok(Progress::Done(None)));
    }
}

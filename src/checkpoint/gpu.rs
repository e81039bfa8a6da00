//! The GPU side of checkpoints: state in device memory, moved through staging buffers of bounded size.

use super::PARAM;
use super::engine::{Backend, Part, Sink, Source};
use crate::error::BindError;
use crate::error::checkpoint::Error;
use crate::gpu::device::{alive, checked, create_buffer, refused, unmap, write};
use crate::gpu::{ByteRange, ControlState, Optimizer, Run, View};
use crate::layout::Layout;
use crate::narrow::to_usize;
use crate::options::Options;
use crate::state::{Content, Counters, Stream};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// Bytes of a staging buffer.
const STAGING: u64 = 8 << 20;
/// Number of staging buffers: one is emptied while the others are filled.
const IN_FLIGHT: usize = 3;
/// Bytes per write, few enough to stay in the processor's cache from the file to the device.
const WRITTEN: u64 = 2 << 20;
/// Largest number of writes that the device has not finished.
const WRITES: usize = 12;
/// Alignment and size of a copy.
const WORD: u64 = 4;
/// Largest gap between two ranges, in bytes, that is copied along so that both are one copy.
const GAP: u64 = 64;

/// The caller's parameters.
#[derive(Clone, Debug)]
pub struct Parameters<'a>(Form<'a>);

#[derive(Clone, Debug)]
enum Form<'a> {
    Flat(View<'a>),
    Each(Vec<(&'a str, View<'a>)>),
}

impl<'a> Parameters<'a> {
    /// All parameters in one buffer, each tensor at its layout's offset. The buffer has usage `COPY_SRC`, and
    /// for loading also `COPY_DST`.
    pub fn flat(params: impl Into<View<'a>>) -> Self {
        Self(Form::Flat(params.into()))
    }

    /// A place for each tensor, by name.
    pub fn each<P: Into<View<'a>>>(tensors: impl IntoIterator<Item = (&'a str, P)>) -> Self {
        Self(Form::Each(tensors.into_iter().map(|(name, p)| (name, p.into())).collect()))
    }
}

/// An optimizer on the GPU with its queue, and parameters if they are to be saved or loaded too.
#[derive(Debug)]
pub struct Gpu<'a> {
    optimizer: &'a mut Optimizer,
    queue: &'a wgpu::Queue,
    parameters: Option<Parameters<'a>>,
}

/// The contents of one staging buffer.
#[derive(Debug, Default)]
struct Batch {
    copies: Vec<Copy>,
    /// The place of each part.
    parts: Vec<(Part, Range<usize>)>,
    bytes: u64,
}

/// Whole words of a buffer.
#[derive(Debug)]
struct Copy {
    buffer: wgpu::Buffer,
    offset: u64,
    bytes: u64,
    /// The place of these words in the staging buffer.
    at: u64,
}

/// Joins runs to batches of at most `most` bytes, in order.
fn batches(runs: Vec<Run>, most: u64) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut batch = Batch::default();
    for mut run in runs {
        while run.bytes > 0 {
            let start = run.offset / WORD * WORD;
            // Room for at least one word on each side.
            if batch.bytes + 4 * WORD > most {
                batches.push(std::mem::take(&mut batch));
            }
            let end_of = |copy: &Copy| copy.offset + copy.bytes;
            let near = batch.copies.last().is_some_and(|copy| {
                // The word at a seam is in both.
                let end = end_of(copy);
                copy.buffer == run.buffer
                    && start + WORD >= end
                    && start <= end + GAP
                    && batch.bytes + GAP + 4 * WORD <= most
            });
            if !near {
                batch.copies.push(Copy {
                    buffer: run.buffer.clone(),
                    offset: start,
                    bytes: 0,
                    at: batch.bytes,
                });
            }
            let Some(copy) = batch.copies.last_mut() else { break };
            let room = copy.offset + most - copy.at;
            let end = (run.offset + run.bytes).min(room);
            let taken = end - run.offset;
            copy.bytes = copy.bytes.max(end.next_multiple_of(WORD) - copy.offset);
            batch.bytes = copy.at + copy.bytes;
            let from = to_usize(copy.at + run.offset - copy.offset);
            batch.parts.push((Part { tensor: run.tensor, start: run.start }, from..from + to_usize(taken)));
            run.offset += taken;
            run.start += taken;
            run.bytes -= taken;
        }
    }
    if !batch.parts.is_empty() {
        batches.push(batch);
    }
    batches
}

impl<'a> Gpu<'a> {
    /// Makes an engine for checkpoints of `optimizer`, with the queue of its device.
    pub fn new(optimizer: &'a mut Optimizer, queue: &'a wgpu::Queue) -> Self {
        Self { optimizer, queue, parameters: None }
    }

    /// Adds parameters in the format [`Options::params`].
    #[must_use]
    pub fn parameters(self, parameters: Parameters<'a>) -> Self {
        Self { parameters: Some(parameters), ..self }
    }

    fn runs(&self, stream: usize) -> Result<Vec<Run>, Error> {
        if let Some(found) = self.optimizer.streams().get(stream) {
            return Ok(self.optimizer.runs(&found.slot, found.content));
        }
        let (layout, format) = (self.optimizer.layout(), self.optimizer.options().params);
        let mut views: HashMap<&str, View<'_>> = HashMap::new();
        if let Some(Parameters(Form::Each(each))) = &self.parameters {
            for (name, view) in each {
                layout.find(name, |tensor| BindError::UnknownTensor { tensor })?;
                if views.insert(*name, *view).is_some() {
                    return Err(BindError::DuplicateTensor { tensor: (*name).into() }.into());
                }
            }
        }
        let (mut runs, mut ranges) = (Vec::new(), Vec::new());
        for (i, tensor) in layout.by_offset().enumerate() {
            let bytes = tensor.len * format.bytes();
            let (view, before) = match &self.parameters {
                Some(Parameters(Form::Flat(view))) => (*view, tensor.offset * format.bytes()),
                _ => {
                    let refuse =
                        || Error::Parameters { tensor: tensor.name.clone(), found: 0, expected: tensor.len };
                    (*views.get(tensor.name.as_str()).ok_or_else(refuse)?, 0)
                }
            };
            let what = || format!("parameters of tensor {:?}", tensor.name);
            let offset = view.offset.saturating_add(before);
            let end = offset.saturating_add(bytes);
            if !view.offset.is_multiple_of(WORD) {
                return Err(BindError::Misaligned { what: what(), offset: view.offset, bound: WORD }.into());
            }
            if end.checked_next_multiple_of(WORD).is_none_or(|end| end > view.buffer.size()) {
                return Err(BindError::OutOfBounds {
                    what: what(),
                    start: offset,
                    end,
                    size: view.buffer.size(),
                }
                .into());
            }
            ranges.push(ByteRange { what: what(), buffer: view.buffer.clone(), start: offset, end });
            runs.push(Run { buffer: view.buffer.clone(), offset, bytes, tensor: i, start: 0 });
        }
        self.optimizer.check_ranges(ranges)?;
        Ok(runs)
    }

    fn require(runs: &[Run], usage: wgpu::BufferUsages, name: &'static str) -> Result<(), Error> {
        if runs.iter().all(|run| run.buffer.usage().contains(usage)) {
            Ok(())
        } else {
            Err(BindError::MissingUsage { what: "parameters".into(), usage: name }.into())
        }
    }

    fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<(), Error> {
        let poll = wgpu::PollType::Wait { submission_index: submission, timeout: None };
        let device = self.optimizer.device();
        device.poll(poll).map_err(|error| refused(device, "an answer", error))?;
        Ok(())
    }

    fn staging(&self, bytes: u64) -> Result<wgpu::Buffer, Error> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Ok(create_buffer(self.optimizer.device(), "checkpoint", bytes, usage)?)
    }

    /// Submits the copies to a staging buffer, which is mapped when they are done.
    fn submit(&self, copies: &[Copy], staging: &wgpu::Buffer) -> Result<wgpu::SubmissionIndex, Error> {
        let device = self.optimizer.device();
        let what = || "copies to the host".to_owned();
        let submission = checked(device, what, || {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            for Copy { buffer, offset, bytes, at } in copies {
                encoder.copy_buffer_to_buffer(buffer, *offset, staging, *at, Some(*bytes));
            }
            // A failed mapping is found when the buffer is read.
            encoder.map_buffer_on_submit(staging, wgpu::MapMode::Read, .., |_| ());
            self.queue.submit([encoder.finish()])
        })?;
        Ok(submission)
    }

    /// Waits for a submission and passes its staging buffer on.
    fn receive<T>(
        &self,
        staging: &wgpu::Buffer,
        submission: wgpu::SubmissionIndex,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        self.wait(Some(submission))?;
        let device = self.optimizer.device();
        let mapped = staging.get_mapped_range(..);
        let mapped = mapped.map_err(|error| refused(device, "a copy to the host", error))?;
        let taken = take(&mapped);
        drop(mapped);
        unmap(device, staging);
        Ok(taken)
    }

    /// Reads a few bytes.
    fn read_small(&self, copy: Copy) -> Result<Vec<u8>, Error> {
        let staging = self.staging(copy.bytes)?;
        let submission = self.submit(&[copy], &staging)?;
        self.receive(&staging, submission, <[u8]>::to_vec)
    }
}

impl Backend for Gpu<'_> {
    fn layout(&self) -> &Layout {
        self.optimizer.layout()
    }

    fn options(&self) -> &Options {
        self.optimizer.options()
    }

    fn streams(&self) -> Vec<Stream> {
        let param = self.parameters.as_ref().map(|_| Stream {
            slot: PARAM.into(),
            content: Content::Numbers(self.optimizer.options().params),
            tensors: (0..self.optimizer.layout().by_offset().len()).collect(),
        });
        self.optimizer.streams().into_iter().chain(param).collect()
    }

    fn check(&self, writing: bool) -> Result<(), Error> {
        alive(self.optimizer.device())?;
        let runs = match self.parameters {
            Some(_) => self.runs(usize::MAX)?,
            None => Vec::new(),
        };
        Self::require(&runs, wgpu::BufferUsages::COPY_SRC, "COPY_SRC")?;
        if writing { Self::require(&runs, wgpu::BufferUsages::COPY_DST, "COPY_DST") } else { Ok(()) }
    }

    fn counters(&mut self) -> Result<Counters, Error> {
        // All submitted work ends, and with it the leases of its steps.
        self.queue.submit([]);
        self.wait(None)?;
        let steps = self.optimizer.unsubmitted();
        if steps > 0 {
            return Err(Error::Unsubmitted { steps });
        }
        let state = match self.optimizer.control_state().cloned() {
            None => None,
            Some(buffer) => {
                let bytes = self.read_small(Copy {
                    buffer,
                    offset: 0,
                    bytes: size_of::<ControlState>() as u64,
                    at: 0,
                })?;
                Some(bytemuck::pod_read_unaligned(&bytes))
            }
        };
        Ok(self.optimizer.counters(state))
    }

    fn read(&mut self, stream: usize, sink: &mut Sink<'_>) -> Result<(), Error> {
        let runs = self.runs(stream)?;
        let mut free = Vec::new();
        let mut sent: VecDeque<(Batch, wgpu::Buffer, wgpu::SubmissionIndex)> = VecDeque::new();
        let batches = batches(runs, STAGING);
        let bytes = batches.iter().map(|batch| batch.bytes).max().unwrap_or(0);
        let mut batches = batches.into_iter();
        loop {
            while sent.len() < IN_FLIGHT
                && let Some(batch) = batches.next()
            {
                let staging = match free.pop() {
                    Some(staging) => staging,
                    None => self.staging(bytes)?,
                };
                let submission = self.submit(&batch.copies, &staging)?;
                sent.push_back((batch, staging, submission));
            }
            let Some((batch, staging, submission)) = sent.pop_front() else { return Ok(()) };
            self.receive(&staging, submission, |mapped| {
                batch.parts.iter().try_for_each(|(part, range)| sink(*part, &mapped[range.clone()]))
            })??;
            free.push(staging);
        }
    }

    fn write(&mut self, stream: usize, source: &mut Source<'_>) -> Result<(), Error> {
        let runs = self.runs(stream)?;
        let mut bytes = Vec::new();
        let mut sent = VecDeque::new();
        for batch in batches(runs, WRITTEN) {
            // Bytes of the previous batch are overwritten, or replaced by the device's bytes.
            bytes.resize(to_usize(batch.bytes), 0);
            let mut filled: Vec<Range<usize>> = Vec::new();
            for (part, range) in &batch.parts {
                if source(*part, &mut bytes[range.clone()])? {
                    match filled.last_mut() {
                        Some(last) if last.end == range.start => last.end = range.end,
                        _ => filled.push(range.clone()),
                    }
                }
            }
            for copy in &batch.copies {
                let whole = to_usize(copy.at)..to_usize(copy.at + copy.bytes);
                // Parts may continue in the next copy.
                let within = |range: &Range<usize>| range.start.max(whole.start)..range.end.min(whole.end);
                let ours: Vec<_> = filled.iter().map(within).filter(|range| !range.is_empty()).collect();
                if ours.is_empty() {
                    continue;
                }
                if ours.len() > 1 || ours[0] != whole {
                    // The bytes in between must not change.
                    let Copy { buffer, offset, bytes: len, .. } = copy;
                    let old = self.read_small(Copy {
                        buffer: buffer.clone(),
                        offset: *offset,
                        bytes: *len,
                        at: 0,
                    })?;
                    let mut at = whole.start;
                    for range in ours.iter().cloned().chain(std::iter::once(whole.end..whole.end)) {
                        bytes[at..range.start]
                            .copy_from_slice(&old[at - whole.start..range.start - whole.start]);
                        at = range.end;
                    }
                }
                let what = || format!("{} bytes of state", copy.bytes);
                let device = self.optimizer.device();
                let written = || write(device, self.queue, &copy.buffer, copy.offset, &bytes[whole]);
                checked(device, what, written)??;
            }
            sent.push_back(self.queue.submit([]));
            if sent.len() == WRITES {
                self.wait(sent.pop_front())?;
            }
        }
        self.wait(None)
    }

    fn configure(&mut self, layout: Layout, options: Options) -> Result<(), Error> {
        self.optimizer.configure(layout, options);
        Ok(())
    }

    fn restore(&mut self, counters: &Counters) -> Result<(), Error> {
        self.optimizer.restore(self.queue, counters);
        self.queue.submit([]);
        self.wait(None)?;
        // A device that was lost meanwhile accepted all writes silently.
        Ok(alive(self.optimizer.device())?)
    }
}

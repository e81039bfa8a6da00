//! A step: passes over the chunks, in the order in which their gradients arrive.

use super::chunk::{Chunk, ELEMENT};
use super::staging::{ABSENT, ASKED, Asked, FAILED, HERE, Staging};
use super::{Offload, Phase, Progress};
use crate::cpu::{Checked, Decision};
use crate::error::{BindError, OffloadError};
use crate::gpu::device::{alive, unmap};
use crate::report::Report;
use crate::step::Step;
use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

impl Offload {
    fn staging(&self, chunk: usize) -> &Staging {
        &self.staging[chunk % self.staging.len()]
    }

    /// The chunks that have room now.
    fn window(&self) -> Range<usize> {
        self.next..self.chunks.len().min(self.next + self.staging.len())
    }

    /// The chunk to [request](Self::request) next; `None` if all chunks with room are in transfer or on the
    /// host. Between steps it is a chunk of the next step.
    #[must_use]
    pub fn wanted(&self) -> Option<usize> {
        if let Some(chunks) = self.changed_chunks() {
            return (0..chunks.len()).find(|&chunk| self.is_needed_of(&chunks, chunk));
        }
        let absent = |chunk: &usize| self.is_needed(*chunk) && !self.staging(*chunk).is_taken();
        self.window().find(absent)
    }

    /// Records the copy of one chunk of the gradients. The copy is on the host some time after the submission
    /// of the commands.
    ///
    /// The library does not notice a submission that the device refuses: the old contents of the staging
    /// buffer then count as the gradients.
    ///
    /// # Errors
    /// An [`OffloadError`] if the chunk is unknown, in transfer or out of turn, if the buffer is too short,
    /// lacks usage `COPY_SRC` or is of another device, if the device is lost, or if there is no memory for
    /// staging buffers. Nothing is recorded then.
    pub fn request(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        grads: &wgpu::Buffer,
        chunk: usize,
    ) -> Result<(), OffloadError> {
        alive(&self.device)?;
        self.refresh()?;
        let unknown = OffloadError::UnknownChunk { chunk, bound: self.chunks.len() };
        let place = self.chunks.get(chunk).ok_or(unknown)?;
        place.check(&self.probe, grads, "gradients", wgpu::BufferUsages::COPY_SRC, "COPY_SRC")?;
        let Range { start: first, end } = self.window();
        if !(first..end).contains(&chunk) || !self.is_needed(chunk) {
            return Err(OffloadError::OutOfTurn { chunk, first, end });
        }
        if self.staging(chunk).is_taken() {
            return Err(OffloadError::Requested { chunk });
        }
        let ring = self.staging.len();
        let staging = &mut self.staging[chunk % ring];
        staging.state = Arc::new(AtomicU8::new(ASKED));
        let mut to = 0;
        for range in &place.ranges {
            let (from, bytes) = ((range.start * ELEMENT) as u64, (range.len() * ELEMENT) as u64);
            encoder.copy_buffer_to_buffer(grads, from, &staging.buffer, to, Some(bytes));
            to += bytes;
        }
        let bytes = to;
        let asked = Asked(staging.state.clone());
        encoder.map_buffer_on_submit(&staging.buffer, wgpu::MapMode::Read, ..bytes, move |mapped| {
            asked.0.store(if mapped.is_ok() { HERE } else { FAILED }, Ordering::Release);
        });
        Ok(())
    }

    /// Works on the next chunk if its gradients have arrived.
    ///
    /// Updated parameters are written to `params` by the queue, and are sent with the next submission. The
    /// first call of a step sets its learning rate.
    ///
    /// # Errors
    /// An [`OffloadError`] if an argument is out of range, if the buffer is too short, lacks usage `COPY_DST`
    /// or is of another device, if the device is lost, if the next chunk was not requested (or its commands
    /// were dropped), or if its gradients cannot be read. The step keeps its position: earlier chunks are
    /// done, and the step continues after another request for this chunk, with the same gradients.
    pub fn advance(
        &mut self,
        queue: &wgpu::Queue,
        params: &wgpu::Buffer,
        step: impl Into<Step>,
    ) -> Result<Progress, OffloadError> {
        alive(&self.device)?;
        self.refresh()?;
        self.check_params(params)?;
        if self.chunks.is_empty() {
            // Every group is frozen.
            let unscale = self.optimizer.begin(step.into())?;
            let Decision { skip, report } = self.optimizer.decide(unscale);
            return Ok(self.done(skip, report));
        }
        let (next, keeps_all) = (self.next, self.staging.len() == self.chunks.len());
        let state = self.staging(next).state.load(Ordering::Acquire);
        match state {
            ABSENT => return Err(OffloadError::NotRequested { chunk: next }),
            FAILED => return Err(self.staging(next).unreadable().into()),
            _ => {}
        }
        if let Phase::Idle = self.phase {
            let unscale = self.optimizer.begin(step.into())?;
            self.phase = Phase::Scan { unscale };
            if !self.optimizer.options().looks_first() {
                // A step without a gradient scan is not skipped.
                self.decide(unscale);
            }
        }
        if state != HERE {
            return Ok(Progress::Waiting);
        }
        let (chunk, staging) = (&self.chunks[next], &self.staging[next % self.staging.len()]);
        let tasks = chunk.tasks.clone();
        {
            let mut mapped = staging.buffer.get_mapped_range(..chunk.byte_len()).ok();
            let Some(grads) = mapped.as_deref().and_then(|bytes| bytemuck::try_cast_slice(bytes).ok()) else {
                // A buffer that is not mapped cannot be unmapped.
                if mapped.take().is_some() {
                    unmap(&self.device, &staging.buffer);
                }
                return Err(staging.unreadable().into());
            };
            let rule = chunk.rule;
            let mut tensors = self.optimizer.pieces(rule, tasks.clone(), &mut self.params, grads);
            match self.phase {
                Phase::Idle => {}
                Phase::Scan { .. } => self.optimizer.scan(&mut tensors, rule, tasks),
                Phase::LayerNorms { .. } => self.optimizer.layer_norms(&mut tensors, rule, tasks, false),
                Phase::Update { .. } => self.optimizer.update(&mut tensors, rule, tasks, false, false),
            }
        }
        if let (Phase::Update { .. }, _) | (_, false) = (self.phase, keeps_all) {
            staging.release(&self.device);
        }
        if let Phase::Update { .. } = self.phase {
            // The host has the parameters; the next call reports the lost device.
            let _ = chunk.upload(&self.device, queue, params, &self.params);
        }
        self.next += 1;
        self.pass_by();
        if self.next < self.chunks.len() {
            return Ok(Progress::Working);
        }
        match self.phase {
            Phase::Scan { unscale } => {
                if let Some(report) = self.decide(unscale) {
                    return Ok(self.done(true, report));
                }
            }
            Phase::LayerNorms { report } => {
                for rule in 0..self.optimizer.layout().rules().len() {
                    if self.optimizer.is_layer_wise(rule) {
                        self.optimizer.set_trust_ratios(rule);
                    }
                }
                self.begin_pass(Phase::Update { report });
            }
            Phase::Update { report } => return Ok(self.done(false, report)),
            Phase::Idle => {}
        }
        Ok(Progress::Working)
    }

    pub(super) fn check_params(&self, params: &wgpu::Buffer) -> Result<(), BindError> {
        let last = self.chunks.iter().max_by_key(|chunk| chunk.end());
        last.map_or(Ok(()), |last| {
            last.check(&self.probe, params, "parameters", wgpu::BufferUsages::COPY_DST, "COPY_DST")
        })
    }

    /// Whether a pass reads a chunk: the first phase of layer-wise rules reads only their tensors.
    fn is_needed(&self, chunk: usize) -> bool {
        self.is_needed_of(&self.chunks, chunk)
    }

    fn is_needed_of(&self, chunks: &[Chunk], chunk: usize) -> bool {
        let layer_wise = |chunk: &Chunk| self.optimizer.is_layer_wise(chunk.rule);
        let measures = match self.phase {
            // The first pass of the next step.
            Phase::Idle => !self.optimizer.options().looks_first() && chunks.iter().any(layer_wise),
            Phase::Scan { .. } | Phase::Update { .. } => false,
            Phase::LayerNorms { .. } => true,
        };
        !measures || layer_wise(&chunks[chunk])
    }

    /// Moves on to the next chunk that this pass reads.
    fn pass_by(&mut self) {
        while self.next < self.chunks.len() && !self.is_needed(self.next) {
            self.next += 1;
        }
    }

    /// Begins a pass.
    pub(super) fn begin_pass(&mut self, phase: Phase) {
        (self.phase, self.next) = (phase, 0);
        self.pass_by();
    }

    /// Decides after the gradient scan. Returns the report of a skipped step, which needs no more gradients.
    fn decide(&mut self, unscale: f64) -> Option<Report> {
        let Decision { skip, report } = self.optimizer.decide(unscale);
        if skip {
            let taken = self.staging.iter().filter(|staging| staging.is_taken());
            taken.for_each(|staging| staging.release(&self.device));
            for rule in 0..self.optimizer.layout().rules().len() {
                let mut tensors = Checked::params(&mut self.params);
                let tasks = self.optimizer.tasks(rule);
                self.optimizer.update(&mut tensors, rule, tasks, false, true);
            }
            return Some(report);
        }
        let measures = self.chunks.iter().any(|chunk| self.optimizer.is_layer_wise(chunk.rule));
        self.begin_pass(if measures { Phase::LayerNorms { report } } else { Phase::Update { report } });
        None
    }

    fn done(&mut self, skip: bool, mut report: Report) -> Progress {
        self.optimizer.end(skip, &mut report);
        self.begin_pass(Phase::Idle);
        Progress::Done(self.optimizer.options().reports().then_some(report))
    }
}

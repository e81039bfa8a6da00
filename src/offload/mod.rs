//! Optimizer state in host memory, for parameters and gradients on a GPU that lacks room for the state.

mod chunk;
mod staging;
mod step;
#[cfg(test)]
mod tests;

use crate::cpu::{Optimizer, StateMut};
use crate::error::{DeviceError, OffloadError, OptionsError};
use crate::gpu::device::{Probe, alive};
use crate::layout::Layout;
use crate::options::{Clip, Options};
use crate::report::Report;
use crate::rules::DynRule;
use crate::schedule::Schedule;
use chunk::{Chunk, chunks};
use staging::{Staging, staging};

/// Settings of the transfer of gradients to the host: in chunks, through a ring of staging buffers in host
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfers {
    /// Tasks of the CPU engine per chunk, of 16 384 parameters each. Default 64: 4 MiB of gradients per
    /// chunk.
    pub chunk_blocks: usize,
    /// Largest number of chunks in transfer or on the host. Default 4. With all of them ([`usize::MAX`])
    /// gradients stay on the host until the step is done, so they cross once even in a step of several
    /// passes.
    pub staged_chunks: usize,
}

impl Default for Transfers {
    fn default() -> Self {
        Self { chunk_blocks: 64, staged_chunks: 4 }
    }
}

/// The CPU engine for flat f32 parameters and gradients on a device.
///
/// Gradients come to the host and parameters go back in chunks; each chunk has tensors of one rule. If
/// options and rules allow it, the update begins with the first chunk, and other chunks are in transfer
/// meanwhile. Otherwise passes precede the update: one over all gradients for a clip by norm, steps that may
/// be skipped and reports, and one over the gradients of layer-wise rules. Gradients cross once per pass, or
/// once in all if [`Transfers`] keep all of them. They must not change before the step is done. A skipped
/// step is done after the first pass.
///
/// Like the GPU optimizer, an offloaded one neither submits nor waits:
///
/// ```no_run
/// # use wgpu_optim::wgpu::{Buffer, Device, Queue};
/// # type Done = Result<(), Box<dyn std::error::Error>>;
/// # fn f(device: &Device, queue: &Queue, params: &Buffer, grads: &Buffer) -> Done {
/// use wgpu_optim::offload::{Offload, Progress};
/// use wgpu_optim::{AdamW, Group, Layout, Options, wgpu};
/// let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [64, 32])])?;
/// let start = vec![0.0; 64 * 32]; // as the device has them
/// let mut offload = Offload::new(device, layout, Options::default(), start)?;
/// for _ in 0..100 {
///     // … forward and backward passes …
///     loop {
///         while let Some(chunk) = offload.wanted() {
///             // A submission of its own, so that the chunk arrives when its own copy is done.
///             let mut encoder = device.create_command_encoder(&Default::default());
///             offload.request(&mut encoder, grads, chunk)?;
///             queue.submit([encoder.finish()]); // also sends updated parameters
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
/// Host memory beside the state: 4 bytes per parameter for a copy of the parameters, and
/// [`staging_bytes`](Self::staging_bytes), which is 16 MiB at most by default and 4 bytes per parameter if
/// all chunks are kept. A parameter that the caller writes on the device has no effect.
#[derive(Debug)]
pub struct Offload {
    device: wgpu::Device,
    probe: Probe,
    optimizer: Optimizer,
    params: Vec<f32>,
    transfers: Transfers,
    /// Whether groups may have been frozen or thawed since the chunks were made.
    stale: bool,
    chunks: Vec<Chunk>,
    /// The ring: chunk `c` takes the buffer at `c` modulo the number of buffers.
    staging: Vec<Staging>,
    phase: Phase,
    /// The next chunk of this phase.
    next: usize,
}

/// The state of a step when a call returns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// No work done: the next gradients have not arrived.
    Waiting,
    /// One chunk done, and more to come.
    Working,
    /// The last chunk done, with a report if the options ask for one.
    Done(Option<Report>),
}

/// The phase of a step.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Idle,
    Scan { unscale: f64 },
    LayerNorms { report: Report },
    Update { report: Report },
}

impl Offload {
    /// Allocates zeroed state for `layout`. `params` are the parameters on the device.
    ///
    /// # Errors
    /// An [`OptionsError`] as of [`cpu::Optimizer::with_options`](Optimizer::with_options), for formats other
    /// than f32, for options that set gradients to zero, because only the caller writes the device's
    /// gradients, for parameters of another length, or if the device refuses memory.
    pub fn new(
        device: &wgpu::Device,
        layout: Layout,
        options: Options,
        params: Vec<f32>,
    ) -> Result<Self, OptionsError> {
        Self::with_transfers(device, layout, options, Transfers::default(), params)
    }

    /// Allocates zeroed state as [`new`](Self::new), with other settings for the transfer.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and an [`OptionsError`] if a field of `transfers` is 0.
    pub fn with_transfers(
        device: &wgpu::Device,
        layout: Layout,
        options: Options,
        transfers: Transfers,
        params: Vec<f32>,
    ) -> Result<Self, OptionsError> {
        let Transfers { chunk_blocks, staged_chunks } = transfers;
        for (field, value) in [("chunk_blocks", chunk_blocks), ("staged_chunks", staged_chunks)] {
            if value == 0 {
                return Err(OptionsError::Field { field, value: 0.0, bound: "at least 1" });
            }
        }
        for (field, format) in [("params", options.params), ("grads", options.grads)] {
            if format != crate::Format::F32 {
                return Err(OptionsError::Format {
                    field,
                    format: format.name(),
                    bound: "f32 for offloaded state",
                });
            }
        }
        if options.zero_gradients {
            return Err(OptionsError::ZeroGradients);
        }
        let (found, expected) = (params.len() as u64, layout.len());
        if found != expected {
            return Err(OptionsError::Parameters { found, expected });
        }
        alive(device)?;
        let optimizer = Optimizer::with_options(layout, options)?;
        let chunks = chunks(&optimizer, chunk_blocks);
        let staging = staging(device, &chunks, staged_chunks)?;
        let (device, probe, phase) = (device.clone(), Probe::new(device), Phase::Idle);
        let mut offload = Self {
            device,
            probe,
            optimizer,
            params,
            transfers,
            stale: false,
            chunks,
            staging,
            phase,
            next: 0,
        };
        offload.begin_pass(Phase::Idle);
        Ok(offload)
    }

    /// The CPU optimizer, with state, options and layout.
    #[must_use]
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The host's copy of the parameters, flat.
    #[must_use]
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// The number of chunks per pass.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Bytes of the staging buffers.
    #[must_use]
    pub fn staging_bytes(&self) -> u64 {
        self.staging.iter().map(|staging| staging.buffer.size()).sum()
    }

    /// Restores a saved loss scale, as [`cpu::Optimizer::set_loss_scale`](Optimizer::set_loss_scale).
    ///
    /// # Errors
    /// An [`OffloadError`] with the optimizer's error, or if a step is in progress.
    pub fn set_loss_scale(&mut self, scale: f64, good_steps: u32) -> Result<(), OffloadError> {
        self.between_steps()?;
        Ok(self.optimizer.set_loss_scale(scale, good_steps)?)
    }

    /// State for writing, as [`cpu::Optimizer::state_mut`](Optimizer::state_mut). With feature `checkpoint`,
    /// `checkpoint::Cpu::offloaded` saves and loads everything.
    ///
    /// # Errors
    /// An [`OffloadError`] with the optimizer's error, or if a step is in progress.
    pub fn state_mut(&mut self, slot: &str, tensor: &str) -> Result<Option<StateMut<'_>>, OffloadError> {
        self.between_steps()?;
        Ok(self.optimizer.state_mut(slot, tensor)?)
    }

    /// Writes the host's copy of all parameters to the device by the queue; they are sent with the next
    /// submission. Gaps between tensors keep their content.
    ///
    /// # Errors
    /// An [`OffloadError`] if a step is in progress, if the buffer is too short, lacks usage `COPY_DST` or is
    /// of another device, or if the device is lost.
    pub fn upload(&self, queue: &wgpu::Queue, params: &wgpu::Buffer) -> Result<(), OffloadError> {
        self.between_steps()?;
        let mut ranges: Vec<core::ops::Range<usize>> = Vec::new();
        for tensor in self.optimizer.layout().by_offset() {
            match ranges.last_mut().filter(|last| last.end as u64 == tensor.offset) {
                Some(last) => last.end = tensor.range().end,
                None => ranges.push(tensor.range()),
            }
        }
        // Chunks of frozen groups too.
        let all = Chunk { rule: 0, tasks: 0..0, ranges };
        all.check(&self.probe, params, "parameters", wgpu::BufferUsages::COPY_DST, "COPY_DST")?;
        Ok(all.upload(&self.device, queue, params, &self.params)?)
    }

    /// Sets the hyperparameters of a group's rule, as [`cpu::Optimizer::set_rule`](Optimizer::set_rule).
    ///
    /// # Errors
    /// An [`OffloadError`] with the optimizer's error, or if a step is in progress.
    pub fn set_rule(&mut self, group: &str, rule: impl Into<DynRule>) -> Result<(), OffloadError> {
        self.between_steps()?;
        Ok(self.optimizer.set_rule(group, rule)?)
    }

    /// Sets a group's factor of the learning rate, as
    /// [`cpu::Optimizer::set_lr_factor`](Optimizer::set_lr_factor).
    ///
    /// # Errors
    /// An [`OffloadError`] with the optimizer's error, or if a step is in progress.
    pub fn set_lr_factor(&mut self, group: &str, factor: impl Into<Schedule>) -> Result<(), OffloadError> {
        self.between_steps()?;
        Ok(self.optimizer.set_lr_factor(group, factor)?)
    }

    /// Sets the bound of the clip, as [`cpu::Optimizer::set_clip`](Optimizer::set_clip).
    ///
    /// # Errors
    /// An [`OffloadError`] with the optimizer's error, or if a step is in progress.
    pub fn set_clip(&mut self, clip: Clip) -> Result<(), OffloadError> {
        self.between_steps()?;
        Ok(self.optimizer.set_clip(clip)?)
    }

    /// Freezes a group, as [`cpu::Optimizer::freeze`](Optimizer::freeze): its gradients cross no more.
    ///
    /// The next step divides the rest into new chunks; gradients that were requested for it have to be
    /// requested again.
    ///
    /// # Errors
    /// An [`OffloadError`] with the optimizer's error, or if a step is in progress.
    pub fn freeze(&mut self, group: &str) -> Result<(), OffloadError> {
        self.between_steps()?;
        self.stale = true;
        Ok(self.optimizer.freeze(group)?)
    }

    /// Ends the freezing of a group.
    ///
    /// # Errors
    /// The errors of [`freeze`](Self::freeze).
    pub fn unfreeze(&mut self, group: &str) -> Result<(), OffloadError> {
        self.between_steps()?;
        self.stale = true;
        Ok(self.optimizer.unfreeze(group)?)
    }

    /// The chunks of the groups that are not frozen, if they differ from those of the last step.
    fn changed_chunks(&self) -> Option<Vec<Chunk>> {
        let chunks = || chunks(&self.optimizer, self.transfers.chunk_blocks);
        self.stale.then(chunks).filter(|chunks| *chunks != self.chunks)
    }

    /// Changes to the chunks of the groups that are not frozen.
    fn refresh(&mut self) -> Result<(), DeviceError> {
        if let Some(chunks) = self.changed_chunks() {
            self.staging = staging(&self.device, &chunks, self.transfers.staged_chunks)?;
            self.chunks = chunks;
        }
        if std::mem::take(&mut self.stale) {
            // Loaded options may need another first pass.
            self.begin_pass(Phase::Idle);
        }
        Ok(())
    }

    /// The parts that a checkpoint saves.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn parts_mut(&mut self) -> Result<(&mut Optimizer, &mut [f32]), OffloadError> {
        self.between_steps()?;
        // A load may freeze and thaw groups.
        self.stale = true;
        Ok((&mut self.optimizer, &mut self.params))
    }

    fn between_steps(&self) -> Result<(), OffloadError> {
        if let Phase::Idle = self.phase { Ok(()) } else { Err(OffloadError::StepUnderWay) }
    }
}

//! Between the gradients and the update: reduction, decision, report.

use super::device::{create_buffer, create_filled, unmap};
use super::kernel::{CandidateLayout, Fold, Fused};
use super::pipeline::{Folds, Kernel};
use super::ring;
use crate::error::DeviceError;
use crate::float::Float;
use crate::options::{Clip, Options};
use crate::report::Report;
use bytemuck::{Pod, Zeroable};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number in the state before the first step.
const NO_STEP: u32 = u32::MAX;
/// The epoch of the state before any load. A report without a finished copy has epoch 0.
const FIRST_EPOCH: u32 = 1;
/// The number of reports that are kept until the caller takes them; older ones are dropped.
const KEPT_REPORTS: usize = 1_024;

/// The words before the candidates in a step's request.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Request {
    pub(crate) number: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) unscale: f32,
    pub(crate) max_norm: f32,
    pub(crate) growth: f32,
    pub(crate) backoff: f32,
    pub(crate) interval: u32,
    pub(crate) min_scale: f32,
    pub(crate) max_scale: f32,
    pub(crate) partials: u32,
    pub(crate) unused: u32,
}

/// The device's state between steps.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct State {
    pub(crate) scale: f32,
    pub(crate) good: u32,
    pub(crate) taken: u32,
    pub(crate) number: u32,
    pub(crate) flags: u32,
    pub(crate) norm: f32,
    pub(crate) factor: f32,
    pub(crate) used_scale: f32,
    pub(crate) param_norm: f32,
    pub(crate) update_norm: f32,
    pub(crate) epoch: u32,
    pub(crate) disordered: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these lists complete: they only see a push or a pop.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The control kernel with its buffers.
#[derive(Debug)]
pub(crate) struct Control {
    /// Bind group 0: partial sums, live scalars, state.
    pub(crate) kernel: Kernel,
    /// The fold of the gradients' partial sums by group, if groups are clipped.
    pub(crate) by_group: Option<Folds>,
    /// The fold of the squares of parameters and update, if they are reported.
    pub(crate) of_all: Option<Folds>,
    /// The scalars that the step's kernels read.
    pub(crate) live: wgpu::Buffer,
    pub(crate) live_group: wgpu::BindGroup,
    pub(crate) state: wgpu::Buffer,
    pub(crate) request: Request,
    reports: Reports,
}

impl Control {
    /// `scalars` is the layout of the step's scalars, `requests` the layout of the control kernel's requests.
    pub(crate) fn new(
        device: &wgpu::Device,
        options: &Options,
        candidate: &CandidateLayout,
        groups: usize,
        scalars: &wgpu::BindGroupLayout,
        requests: &wgpu::BindGroupLayout,
    ) -> Result<Self, DeviceError> {
        let fused = Fused::of(options);
        let kernel = Kernel::control(device, requests, options, candidate, groups)?;
        let fold = |on: bool, fold| on.then(|| Kernel::fold(device, fold)).transpose();
        let by_group = fold(fused.grouped, Fold::Groups)?;
        let of_all = fold(fused.norms, Fold::All)?;
        let live_bytes = (candidate.vectors(groups) * 16) as u64;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
        let live = create_buffer(device, "live scalars", live_bytes, usage)?;
        let live_group = ring::group(device, scalars, &live, live_bytes)?;
        let scale = options.loss_scale.unwrap_or_default();
        let state = Self::first_state(options);
        let copied = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM | copied;
        let state = create_filled(device, "control state", bytemuck::bytes_of(&state), usage)?;
        let request = Request {
            growth: f32::from_f64(scale.growth_factor),
            backoff: f32::from_f64(scale.backoff_factor),
            interval: scale.growth_interval,
            min_scale: f32::from_f64(scale.min),
            max_scale: f32::from_f64(scale.max),
            ..Request::default()
        };
        let reports = Reports::new(options.norms);
        Ok(Self { kernel, by_group, of_all, live, live_group, state, request, reports })
    }

    /// The device's state before the first step.
    pub(crate) fn first_state(options: &Options) -> State {
        let scale = options.loss_scale.map_or(1.0, |scale| f32::from_f64(scale.initial));
        State { scale, number: NO_STEP, epoch: FIRST_EPOCH, ..State::default() }
    }

    /// The bound of the norm in a request.
    pub(crate) fn max_norm(options: &Options) -> f32 {
        match options.clip {
            Some(Clip::GlobalNorm(c) | Clip::GroupNorm(c)) => f32::from_f64(c),
            _ => 0.0,
        }
    }

    /// Makes the device continue from `state`, from the next submission on. Nothing may be in flight, and
    /// reports that have arrived are dropped.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn restore(&self, queue: &wgpu::Queue, state: State) {
        let mut inbox = lock(&self.reports.inbox);
        inbox.epoch += 1;
        (inbox.newest, inbox.disordered) = (None, false);
        inbox.reports.clear();
        queue.write_buffer(&self.state, 0, bytemuck::bytes_of(&State { epoch: inbox.epoch, ..state }));
    }

    /// Bytes of device memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.live.size() + self.state.size()
    }

    /// A place for a report on its way to the host.
    pub(crate) fn staging(&self, device: &wgpu::Device) -> Result<Staging, DeviceError> {
        self.reports.staging(device)
    }

    /// Requests the device's state after the last step that has run by then; `step` is the last recorded
    /// step.
    pub(crate) fn read_back(
        &self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        staging: Staging,
        step: u64,
    ) {
        self.reports.read_back(device, encoder, &self.state, staging, step);
    }

    /// The newest step with a report, and the number of steps skipped until then.
    pub(crate) fn newest(&self) -> Option<(u64, u64)> {
        lock(&self.reports.inbox).newest
    }

    pub(crate) fn take_report(&self) -> Option<Report> {
        lock(&self.reports.inbox).reports.pop_front()
    }
}

/// Reports on their way to the host.
#[derive(Debug)]
struct Reports {
    inbox: Arc<Mutex<Inbox>>,
    free: Arc<Mutex<Vec<wgpu::Buffer>>>,
}

#[derive(Debug)]
struct Inbox {
    norms: bool,
    /// The number of states that the device has continued from. Reports of other epochs are dropped.
    epoch: u32,
    /// Whether a report showed steps that ran out of order.
    disordered: bool,
    newest: Option<(u64, u64)>,
    reports: VecDeque<Report>,
}

/// A staging buffer that returns to the free ones when it is dropped.
pub(crate) struct Staging {
    buffer: wgpu::Buffer,
    free: Arc<Mutex<Vec<wgpu::Buffer>>>,
}

impl Drop for Staging {
    fn drop(&mut self) {
        lock(&self.free).push(self.buffer.clone());
    }
}

impl Reports {
    fn new(norms: bool) -> Self {
        // Room for all reports, so that nothing is allocated later.
        let reports = VecDeque::with_capacity(KEPT_REPORTS);
        let inbox = Inbox { norms, epoch: FIRST_EPOCH, disordered: false, newest: None, reports };
        #[cfg_attr(
            target_arch = "wasm32",
            expect(clippy::arc_with_non_send_sync, reason = "a browser's buffers stay on their thread")
        )]
        let free = Arc::new(Mutex::new(Vec::with_capacity(KEPT_REPORTS)));
        Self { inbox: Arc::new(Mutex::new(inbox)), free }
    }

    fn staging(&self, device: &wgpu::Device) -> Result<Staging, DeviceError> {
        let popped = lock(&self.free).pop();
        let buffer = match popped {
            Some(buffer) => buffer,
            None => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                create_buffer(device, "report", size_of::<State>() as u64, usage)?
            }
        };
        Ok(Staging { buffer, free: self.free.clone() })
    }

    fn read_back(
        &self,
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        state: &wgpu::Buffer,
        staging: Staging,
        step: u64,
    ) {
        encoder.copy_buffer_to_buffer(state, 0, &staging.buffer, 0, Some(size_of::<State>() as u64));
        let (device, inbox, buffer) = (device.clone(), self.inbox.clone(), staging.buffer.clone());
        let epoch = lock(&inbox).epoch;
        encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Read, .., move |mapped| {
            if mapped.is_err() {
                return;
            }
            // A lost device takes the buffer away, and wgpu then returns an error.
            let Ok(range) = staging.buffer.get_mapped_range(..) else { return };
            lock(&inbox).receive(bytemuck::pod_read_unaligned(&range), step, epoch);
            drop(range);
            // A poll by another thread may have taken it away since.
            unmap(&device, &staging.buffer);
        });
    }
}

/// A count of steps as the device has it: modulo 2³².
#[allow(clippy::cast_possible_truncation, reason = "the device counts modulo 2³²")]
pub(crate) fn device_count(steps: u64) -> u32 {
    steps as u32
}

impl Inbox {
    /// `recorded` is the last recorded step and `epoch` the epoch at the time of the request. The device may
    /// be before or after that step. A report without a finished copy has another epoch.
    fn receive(&mut self, state: State, recorded: u64, epoch: u32) {
        if state.number == NO_STEP || [state.epoch, self.epoch] != [epoch; 2] {
            return;
        }
        // The device's numbers have 32 bits and lie near the host's.
        let distance = state.number.wrapping_sub(device_count(recorded)).cast_signed();
        let Some(step) = recorded.checked_add_signed(distance.into()) else { return };
        let skipped = device_count(step).wrapping_add(1).wrapping_sub(state.taken).cast_signed();
        let skipped = u64::try_from(skipped).unwrap_or(0);
        let newest = Some((step, skipped));
        let disordered = state.disordered != 0;
        // A step that ran out of order is reported at once.
        if self.newest >= newest && disordered == self.disordered {
            return;
        }
        self.newest = self.newest.max(newest);
        self.disordered = disordered;
        if self.reports.len() == KEPT_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(Report {
            step,
            in_order: !disordered,
            finite: state.flags == 0,
            skipped,
            grad_norm: state.norm,
            clip_factor: state.factor,
            loss_scale: state.used_scale,
            next_loss_scale: state.scale,
            good_steps: state.good,
            param_norm: self.norms.then_some(state.param_norm),
            update_norm: self.norms.then_some(state.update_norm),
        });
    }
}

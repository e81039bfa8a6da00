//! Between the gradients and the update: reduction, decision, report.

use crate::device::{checked, create_buffer, create_filled};
use crate::error::Error;
use crate::kernel::{REDUCE_ENTRY_POINT, REDUCE_RUN};
use crate::options::{Clip, Options};
use crate::plan::WORKGROUP_SIZE;
use bytemuck::{Pod, Zeroable};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The number in the state before the first step.
const NO_STEP: u32 = u32::MAX;
/// Reports that are kept until somebody asks for them; older ones are dropped.
const KEPT_REPORTS: usize = 1_024;

/// What stands before the sets of scalars in a step's request.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
#[doc(hidden)]
pub struct Request {
    pub number: u32,
    pub first: u32,
    pub count: u32,
    pub unscale: f32,
    pub max_norm: f32,
    pub growth: f32,
    pub backoff: f32,
    pub interval: u32,
    pub min_scale: f32,
    pub max_scale: f32,
    pub nan: f32,
    pub partials: u32,
}

/// What the device remembers from step to step.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
#[doc(hidden)]
pub struct State {
    pub scale: f32,
    pub good: u32,
    pub taken: u32,
    pub number: u32,
    pub flags: u32,
    pub norm: f32,
    pub factor: f32,
    pub used_scale: f32,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// The step, counted from 0 as it was recorded.
    pub step: u64,
    /// Whether all of its gradients were finite.
    pub finite: bool,
    /// Steps not taken so far, this one included: those skipped, and those recorded into commands that were never submitted.
    pub skipped: u64,
    /// 2-norm of the gradients of all tensors, divided by divisor and loss scale and not yet clipped. Without meaning where they are not finite.
    pub norm: f32,
    /// What the gradients were multiplied by to bound their norm.
    pub clip_factor: f32,
    /// The dynamic loss scale that the gradients had; 1 without one.
    pub loss_scale: f32,
    /// The loss scale of the next step.
    pub next_loss_scale: f32,
    /// Good steps in a row, as the loss scale counts them.
    pub good_steps: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these whole: all that is done with them is a push or a pop.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text of the control kernel.
#[doc(hidden)]
#[must_use]
pub fn source(options: &Options, set_vectors: usize) -> String {
    let clips = matches!(options.clip, Some(Clip::GlobalNorm(_)));
    format!(
        "const WORKGROUP_SIZE = {WORKGROUP_SIZE}u;
const SET = {set_vectors}u;
const CLIPS = {clips};
const SKIPS = {};
const DYNAMIC = {};
{}",
        options.skips(),
        options.loss_scale.is_some(),
        include_str!("../shaders/control.wgsl")
    )
}

/// Workgroups of the reduction for `workgroups` of a step, in x and y.
pub(crate) fn reduce_workgroups(workgroups: [u32; 2], limit: u32) -> [u32; 2] {
    let total = (u64::from(workgroups[0]) * u64::from(workgroups[1])).div_ceil(REDUCE_RUN.into());
    let rows = total.div_ceil(limit.into()).max(1);
    [total.div_ceil(rows) as u32, rows as u32]
}

/// A compute pipeline of ours, of text that nobody else has written.
pub(crate) fn pipeline(
    device: &wgpu::Device,
    label: &str,
    text: String,
    entry_point: &str,
    layouts: &[Option<&wgpu::BindGroupLayout>],
) -> Result<wgpu::ComputePipeline, Error> {
    checked(
        device,
        || format!("the kernel of {label}"),
        || {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(label),
                source: wgpu::ShaderSource::Wgsl(text.into()),
            };
            // SAFETY: the reduction reads what `Part::prove_bounds` has checked, and writes one partial result a workgroup, for all of which there is
            // room; its loops end after constant rounds. The control kernel's are bounded by counts that the host sends with what they count.
            let module = unsafe {
                device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            };
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(label),
                bind_group_layouts: layouts,
                immediate_size: 0,
            });
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(label),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(entry_point),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        },
    )
}

/// The reduction's pipeline.
pub(crate) fn reduce_pipeline(
    device: &wgpu::Device,
    text: String,
    layout: &wgpu::BindGroupLayout,
) -> Result<wgpu::ComputePipeline, Error> {
    pipeline(device, "wgpu-optim reduction", text, REDUCE_ENTRY_POINT, &[Some(layout)])
}

/// The control kernel with its buffers.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) pipeline: wgpu::ComputePipeline,
    /// Bind group 0: partial results, live scalars, state.
    pub(crate) layout: wgpu::BindGroupLayout,
    /// The scalars that the step's kernels read.
    pub(crate) live: wgpu::Buffer,
    pub(crate) live_group: wgpu::BindGroup,
    pub(crate) state: wgpu::Buffer,
    pub(crate) request: Request,
    reports: Reports,
}

impl Control {
    /// `rows` is the layout of the step's scalars, `requests` that of the control kernel's.
    pub(crate) fn new(
        device: &wgpu::Device,
        options: &Options,
        set_vectors: usize,
        rows: &wgpu::BindGroupLayout,
        requests: &wgpu::BindGroupLayout,
    ) -> Result<Self, Error> {
        let storage = |binding, read_only| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("wgpu-optim control"),
            entries: &[storage(0, true), storage(1, false), storage(2, false)],
        });
        let text = source(options, set_vectors);
        let layouts = [Some(&layout), Some(requests)];
        let pipeline = pipeline(device, "wgpu-optim control", text, "control", &layouts)?;
        let live_bytes = (set_vectors * 16) as u64;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM;
        let live = create_buffer(device, "live scalars", live_bytes, usage)?;
        let live_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("wgpu-optim live scalars"),
            layout: rows,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &live,
                    offset: 0,
                    size: wgpu::BufferSize::new(live_bytes),
                }),
            }],
        });
        let scale = options.loss_scale.unwrap_or_default();
        let first = if options.loss_scale.is_some() { scale.initial as f32 } else { 1.0 };
        let state = State { scale: first, number: NO_STEP, ..State::default() };
        let copied = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM | copied;
        let state = create_filled(device, "control state", bytemuck::bytes_of(&state), usage)?;
        let request = Request {
            max_norm: match options.clip {
                Some(Clip::GlobalNorm(c)) => c as f32,
                _ => 0.0,
            },
            growth: scale.growth_factor as f32,
            backoff: scale.backoff_factor as f32,
            interval: scale.growth_interval,
            min_scale: scale.min as f32,
            max_scale: scale.max as f32,
            nan: f32::NAN,
            ..Request::default()
        };
        Ok(Self { pipeline, layout, live, live_group, state, request, reports: Reports::default() })
    }

    /// Bytes of device memory.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.live.size() + self.state.size()
    }

    /// A place for a report on its way to the host.
    pub(crate) fn staging(&self, device: &wgpu::Device) -> Result<Staging, Error> {
        self.reports.staging(device)
    }

    /// Has the state of the device sent to the host, of the last step that has run by then; `step` is the last that has been recorded.
    pub(crate) fn read_back(&self, encoder: &mut wgpu::CommandEncoder, staging: Staging, step: u64) {
        self.reports.read_back(encoder, &self.state, staging, step);
    }

    /// The newest step that a report has come of, and how many were skipped until then.
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

impl Default for Reports {
    fn default() -> Self {
        // Room for all, so that nothing is allocated later.
        let inbox = Inbox { newest: None, reports: VecDeque::with_capacity(KEPT_REPORTS) };
        let free = Arc::new(Mutex::new(Vec::with_capacity(KEPT_REPORTS)));
        Self { inbox: Arc::new(Mutex::new(inbox)), free }
    }
}

#[derive(Debug)]
struct Inbox {
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
    fn staging(&self, device: &wgpu::Device) -> Result<Staging, Error> {
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
        encoder: &mut wgpu::CommandEncoder,
        state: &wgpu::Buffer,
        staging: Staging,
        step: u64,
    ) {
        encoder.copy_buffer_to_buffer(state, 0, &staging.buffer, 0, Some(size_of::<State>() as u64));
        let (inbox, buffer) = (self.inbox.clone(), staging.buffer.clone());
        encoder.map_buffer_on_submit(&buffer, wgpu::MapMode::Read, .., move |mapped| {
            if mapped.is_err() {
                return;
            }
            if let Ok(range) = staging.buffer.get_mapped_range(..) {
                lock(&inbox).receive(bytemuck::pod_read_unaligned(&range), step);
            }
            staging.buffer.unmap();
        });
    }
}

impl Inbox {
    /// `recorded`: the last step that had been recorded when the report was asked for. The device may not have been there yet.
    fn receive(&mut self, state: State, recorded: u64) {
        if state.number == NO_STEP {
            return;
        }
        let step = recorded - u64::from((recorded as u32).wrapping_sub(state.number));
        let skipped = u64::from((step as u32).wrapping_add(1).wrapping_sub(state.taken));
        let newest = Some((step, skipped));
        if self.newest >= newest {
            return;
        }
        self.newest = newest;
        if self.reports.len() == KEPT_REPORTS {
            self.reports.pop_front();
        }
        self.reports.push_back(Report {
            step,
            finite: state.flags == 0,
            skipped,
            norm: state.norm,
            clip_factor: state.factor,
            loss_scale: state.used_scale,
            next_loss_scale: state.scale,
            good_steps: state.good,
        });
    }
}

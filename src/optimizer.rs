//! The GPU optimizer: state, and a step recorded into the caller's encoder.

mod binding;
#[cfg(feature = "checkpoint")]
mod saved;

use crate::control::{Control, Request, Staging};
use crate::device::{create_buffer, limits};
use crate::error::Error;
use crate::format::{Format, step_key};
use crate::kernel::{Access, Key, Walk, row_vectors, set_vectors};
use crate::lag::Lags;
use crate::layers::Layers;
use crate::layout::Layout;
use crate::options::{Clip, EMA, Options, Rounding};
use crate::pipeline::{Kernel, check_text};
use crate::plan::{self, BLOCK_QUADS, Chunk, Limits, QUAD, Space, Span};
use crate::report::Report;
use crate::rows::{self, Lease, Rows};
use crate::rules::{Fields, Rule, Step, is_built_in, slots};
use std::collections::HashMap;
use std::slice;
use std::sync::Arc;

/// Bytes of a block's scale.
const SCALE_BYTES: u64 = 4;
/// Sets of scalars in a request, to begin with.
const FIRST_SETS: usize = 8;
/// The most of them: one more than steps that may be recorded between two reports.
const MAX_SETS: usize = 1_024;
/// Bytes that the sets of all steps in flight may take.
const MAX_SET_BYTES: usize = 128 << 20;
const REQUEST_WORDS: usize = size_of::<Request>() / size_of::<u32>();

/// Tensors that have been checked against a layout and made ready to record: the result of [`Optimizer::bind`].
///
/// It keeps the caller's buffers alive. Bind again when parameters or gradients move to other buffers.
#[derive(Debug)]
pub struct Bound {
    owner: Arc<()>,
    /// What looks at the gradients first, if the options ask for it.
    look: Option<Look>,
    /// The first phase of a layer-wise rule, and what adds up its results.
    measure: Option<(Vec<BoundDispatch>, BoundDispatch)>,
    dispatches: Vec<BoundDispatch>,
    /// What adds up the norms of parameters and update.
    norms: Option<BoundDispatch>,
    device_bytes: u64,
}

/// The gradients' reduction, and the control kernel behind it.
#[derive(Debug)]
struct Look {
    reductions: Vec<BoundDispatch>,
    /// What adds up the results by group, if anything does.
    by_group: Option<BoundDispatch>,
    control: BoundDispatch,
    /// Partial results that reach the control kernel.
    partials: u32,
}

#[derive(Debug)]
struct BoundDispatch {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: [u32; 2],
}

impl Bound {
    /// Dispatches that a step records: one for flat buffers that fit a binding and have the size of
    /// [`Layout::buffer_size`]; where the options have the gradients looked at first, as many again and one more, or two if groups are clipped; for a
    /// layer-wise rule as many again and one more; and one more for norms. State in 8 bits or rounded at random takes as many for each set of tensors that share no vector of four
    /// with each other (one if none do), and state of which some is in f32 as many for each.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        let look = self.look.as_ref();
        self.dispatches.len()
            + look.map_or(0, |look| look.reductions.len() + 1 + usize::from(look.by_group.is_some()))
            + self.measure.as_ref().map_or(0, |(measures, _)| measures.len() + 1)
            + usize::from(self.norms.is_some())
    }

    /// Bytes of device memory that the binding itself takes.
    #[must_use]
    pub fn device_bytes(&self) -> u64 {
        self.device_bytes
    }
}

/// A tensor's part of one state buffer.
#[derive(Clone, Copy, Debug)]
pub struct StateRange<'a> {
    /// The buffer, with usages `STORAGE`, `COPY_SRC` and `COPY_DST`.
    pub buffer: &'a wgpu::Buffer,
    /// Where the part starts, in bytes: of elements of 2 bytes possibly inside of a word, whose other half is another tensor's.
    pub offset: u64,
    /// The first element of the tensor that lies here.
    pub start: u64,
    /// How many of the tensor's elements lie here.
    pub len: u64,
    /// Bytes of an element: 4 of an f32, 2 and 1 of what [`Options::states`] stores so, 2 of a remainder.
    pub element_bytes: u64,
    /// Where the scales of the part's [blocks](crate::q8) start, in bytes: 4 each, as many as it takes.
    pub scales: Option<u64>,
}

/// What is kept for each element.
#[derive(Clone, Copy, Debug)]
struct Slot {
    name: &'static str,
    /// Of what is not the rule's, which is stored as its chunk says.
    format: Option<Format>,
}

/// A chunk's state.
#[derive(Debug)]
struct State {
    chunk: Chunk,
    /// Of the rule's slots.
    format: Format,
    /// One a slot.
    buffers: Vec<wgpu::Buffer>,
}

/// Quads of state that have a scale in common, or else one.
fn block_quads(format: Format) -> u32 {
    if format.block().is_some() { BLOCK_QUADS } else { 1 }
}

/// Applies rule `R` to the tensors of a layout, on the GPU.
///
/// ```no_run
/// # fn f(device: &wgpu::Device, queue: &wgpu::Queue, params: &wgpu::Buffer, grads: &wgpu::Buffer) -> Result<(), wgpu_optim::Error> {
/// use wgpu_optim::{AdamW, Group, Layout, Optimizer, Tensors};
/// let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [64, 32])])?;
/// let mut optimizer = Optimizer::new(device, layout)?;
/// let tensors = optimizer.bind(&Tensors::flat(params, grads))?;
/// for _ in 0..100 {
///     let mut encoder = device.create_command_encoder(&Default::default());
///     // … forward and backward passes …
///     optimizer.step(queue, &mut encoder, &tensors, 1e-3)?;
///     queue.submit([encoder.finish()]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Optimizer<R> {
    device: wgpu::Device,
    layout: Layout<R>,
    options: Options,
    limits: Limits,
    kept: Vec<bool>,
    /// All state, in the order of its buffers.
    slots: Vec<Slot>,
    state: Vec<State>,
    kernels: HashMap<Key, Kernel>,
    measures: HashMap<Key, Kernel>,
    reductions: HashMap<Walk, Kernel>,
    control: Option<Control>,
    /// For layer-wise rules.
    layers: Option<Layers>,
    /// The layout of the step's scalars, as its kernels bind them.
    scalars_layout: wgpu::BindGroupLayout,
    /// Where each step's scalars are sent: to the step's kernels, or to the control kernel.
    rows: Rows,
    scratch: Vec<u32>,
    lags: Lags,
    /// The most sets that a request may have.
    max_sets: usize,
    steps: u64,
    identity: Arc<()>,
}

impl<R: Rule> Optimizer<R> {
    /// Allocates zeroed state for `layout` on `device`.
    ///
    /// # Errors
    /// [`Error::DeviceLimit`] or [`Error::TooManyGroups`] if the device cannot run the kernels, [`Error::Device`] if it refuses the memory or the text of
    /// a rule that is not built in.
    pub fn new(device: &wgpu::Device, layout: Layout<R>) -> Result<Self, Error> {
        Self::with_options(device, layout, Options::default())
    }

    /// [`new`](Self::new) with what stands around the update.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::Options`].
    pub fn with_options(device: &wgpu::Device, layout: Layout<R>, options: Options) -> Result<Self, Error> {
        options.validate()?;
        let around = options.around();
        let kept: Vec<_> = (0..slots::<R>().len()).map(|slot| layout.keeps_slot(slot)).collect();
        let limits = limits::<R>(&device.limits(), &layout, &kept, &options)?;
        let groups = layout.groups().len();
        let uniform_bytes = limits.uniform_bytes;
        let key = Key {
            walk: Walk {
                access: Access::Quads,
                whole: true,
                space: Space::Uniform,
                uniform_bytes,
                by_tensor: options.storage().stochastic,
            },
            single: false,
            writable_gradients: options.zero_gradients,
            rows: groups as u32,
            rows_space: Space::Uniform,
            kept: kept.clone(),
            storage: options.storage(),
            around,
        };
        if !is_built_in::<R>() {
            check_text::<R>(device, &key)?;
        }
        let bound = device.limits().max_buffer_size;
        let element = options.params.bytes().max(options.grads.bytes());
        if let Some(tensor) = layout.tensors().iter().find(|t| t.len * element > bound) {
            let bytes = tensor.len * element;
            return Err(Error::TensorTooLarge { tensor: tensor.name.clone(), bytes, bound });
        }
        let slots = slots_stored::<R>(&kept, &options);
        let state = chunks(&layout, &options, &limits).into_iter().map(|(format, chunk)| {
            let usage =
                wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            let elements = u64::from(chunk.state_quads) * QUAD;
            let buffer = |slot: &Slot| {
                let bytes = slot.format.unwrap_or(format).tensor_bytes(elements);
                create_buffer(device, slot.name, bytes, usage)
            };
            let buffers = slots.iter().map(buffer).collect::<Result<_, Error>>()?;
            Ok(State { chunk, format, buffers })
        });
        let state = state.collect::<Result<_, Error>>()?;
        let set = set_vectors::<R>(groups, &around);
        let bytes = (set * 16) as u64;
        let scalars_layout = rows::layout(device, wgpu::BufferBindingType::Uniform, bytes);
        // Bytes of sets that a binding has room for.
        let binding = device.limits().max_storage_buffer_binding_size.min(device.limits().max_buffer_size);
        let room = usize::try_from(binding).unwrap_or(usize::MAX) - size_of::<Request>();
        // As many steps may be in flight as have sets, and each has all of them.
        let in_flight = (MAX_SET_BYTES / (set * 16)).isqrt();
        let max_sets = MAX_SETS.min(in_flight).min(room / (set * 16)).max(1);
        let (rows, control) = if options.looks_first() {
            let sets = if options.skips() { FIRST_SETS.min(max_sets) } else { 1 };
            let bytes = request_bytes(set, sets);
            let least = request_bytes(set, 1);
            let requests = rows::layout(device, wgpu::BufferBindingType::Storage { read_only: true }, least);
            let control = Control::new::<R>(device, &options, groups, &scalars_layout, &requests)?;
            (Rows::new(device, requests, bytes)?, Some(control))
        } else {
            (Rows::new(device, scalars_layout.clone(), bytes)?, None)
        };
        let layers = R::RATIO.map(|_| Layers::new(device, &layout, &scalars_layout, &key)).transpose()?;
        Ok(Self {
            device: device.clone(),
            options,
            limits,
            kept,
            slots,
            state,
            kernels: HashMap::new(),
            measures: HashMap::new(),
            reductions: HashMap::new(),
            control,
            layers,
            scalars_layout,
            rows,
            scratch: Vec::new(),
            lags: Lags::new(groups),
            max_sets,
            steps: 0,
            identity: Arc::new(()),
            layout,
        })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Layout<R> {
        &self.layout
    }

    /// What stands around the update.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Steps recorded so far, skipped ones included.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The oldest report that has arrived and has not been taken, of a step some steps ago. Reports arrive while the device is polled or submitted
    /// to; nothing waits for them. The last 1 024 are kept.
    pub fn take_report(&mut self) -> Option<Report> {
        self.control.as_ref().and_then(Control::take_report)
    }

    /// The buffer that starts with the dynamic loss scale, one f32, by which the engine multiplies its loss before the backward pass. `None` without
    /// [`Options::loss_scale`]. Usages are `STORAGE`, `UNIFORM`, `COPY_SRC` and `COPY_DST`; only this optimizer writes it.
    #[must_use]
    pub fn loss_scale(&self) -> Option<&wgpu::Buffer> {
        let control = self.control.as_ref().filter(|_| self.options.loss_scale.is_some())?;
        Some(&control.state)
    }

    /// Goes on with a saved loss scale: [`Report::next_loss_scale`] and [`Report::good_steps`]. It holds from the next submission on.
    ///
    /// # Errors
    /// [`Error::Options`] for a scale not from [`min`](crate::LossScale::min) to [`max`](crate::LossScale::max), for `good_steps` not below
    /// [`growth_interval`](crate::LossScale::growth_interval), and without [`Options::loss_scale`]; nothing changes then.
    pub fn set_loss_scale(&mut self, queue: &wgpu::Queue, scale: f64, good_steps: u32) -> Result<(), Error> {
        self.options.check_loss_scale(scale, good_steps)?;
        if let Some(state) = self.loss_scale() {
            // What `State` starts with.
            let bits = [(scale as f32).to_bits(), good_steps];
            queue.write_buffer(state, 0, bytemuck::cast_slice(&bits));
        }
        Ok(())
    }

    /// Has the report of the last step sent to the host. [`step`](Self::step) does so itself; after [`step_in_pass`](Self::step_in_pass) it is the
    /// caller's to do, before 1 024 more steps have been recorded. Without reports by the options it does nothing.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no memory for a report.
    pub fn read_back(&self, encoder: &mut wgpu::CommandEncoder) -> Result<(), Error> {
        if let (Some(control), Some(staging), 1..) = (&self.control, self.staging()?, self.steps) {
            control.read_back(encoder, staging, self.steps - 1);
        }
        Ok(())
    }

    fn buffers(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.state.iter().flat_map(|state| &state.buffers)
    }

    /// Bytes of device memory held as optimizer state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.buffers().map(wgpu::Buffer::size).sum()
    }

    /// Bytes of device memory held beside the state; a [`Bound`] adds its own.
    #[must_use]
    pub fn overhead_bytes(&self) -> u64 {
        let control = self.control.as_ref().map_or(0, Control::device_bytes);
        self.rows.device_bytes() + control + self.layers.as_ref().map_or(0, Layers::device_bytes)
    }

    /// Where slot `slot` (by its PyTorch name, `"ema"`, `"master"` or `"remainder"`) of `tensor` lies: one range, or several if the tensor crosses a chunk's end. Empty if
    /// no group's configuration keeps the slot.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn state(&self, slot: &str, tensor: &str) -> Result<Vec<StateRange<'_>>, Error> {
        let target = self.layout.tensor(tensor)?;
        let Some(index) = self.slots.iter().position(|kept| kept.name == slot) else {
            let known = slots::<R>().contains(&slot);
            return if known {
                Ok(Vec::new())
            } else {
                Err(Error::Unknown { what: "slot", name: slot.into() })
            };
        };
        let mut ranges = Vec::new();
        for State { chunk, format, buffers } in &self.state {
            let at = chunk.pieces.partition_point(|p| p.end <= target.offset);
            if let Some(piece) = chunk.pieces.get(at).filter(|p| p.start < target.end()) {
                let format = self.slots[index].format.unwrap_or(*format);
                // Behind the codes.
                let scale = |block: u64| {
                    let [codes, before] =
                        [chunk.state_quads, piece.state].map(|quads| u64::from(quads) * QUAD);
                    codes * format.bytes() + before / block * SCALE_BYTES
                };
                ranges.push(StateRange {
                    buffer: &buffers[index],
                    offset: (u64::from(piece.state) * QUAD + piece.start % QUAD) * format.bytes(),
                    start: piece.start - target.offset,
                    len: piece.end - piece.start,
                    element_bytes: format.bytes(),
                    scales: format.block().map(scale),
                });
            }
        }
        Ok(ranges)
    }

    /// Records one step: a single compute pass with as many [dispatches](Bound::dispatches) as the binding says.
    ///
    /// `step` is a learning rate, or a [`Step`]. Neither submits nor waits, and allocates nothing of its own once as many steps as are ever in
    /// flight at a time have been recorded (wgpu allocates while it records). `steps()` counts it.
    ///
    /// # Errors
    /// [`Error::ForeignBinding`], [`Error::Step`], [`Error::Options`] for the divisor, [`Error::ScalarOverflow`], [`Error::Unreported`],
    /// [`Error::UncertainMomentum`], [`Error::Device`] if there is no memory for scalars or a report; nothing is recorded and no state changes.
    pub fn step(
        &mut self,
        queue: &wgpu::Queue,
        encoder: &mut wgpu::CommandEncoder,
        tensors: &Bound,
        step: impl Into<Step>,
    ) -> Result<(), Error> {
        // Before anything is recorded, for it may fail.
        let staging = self.staging()?;
        let lease = self.prepare(queue, tensors, step.into())?;
        self.record(
            &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
            tensors,
            &lease,
        );
        encoder.on_submitted_work_done(move || drop(lease));
        if let (Some(control), Some(staging)) = (&self.control, staging) {
            control.read_back(encoder, staging, self.steps - 1);
        }
        Ok(())
    }

    /// A place for a report, if there are any.
    fn staging(&self) -> Result<Option<Staging>, Error> {
        match &self.control {
            Some(control) if self.options.reports() => control.staging(&self.device).map(Some),
            _ => Ok(None),
        }
    }

    /// [`step`](Self::step) into a compute pass of the caller's. It leaves its own pipeline and bind groups 0 and 1 set.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_in_pass(
        &mut self,
        queue: &wgpu::Queue,
        pass: &mut wgpu::ComputePass<'_>,
        tensors: &Bound,
        step: impl Into<Step>,
    ) -> Result<(), Error> {
        let lease = self.prepare(queue, tensors, step.into())?;
        self.record(pass, tensors, &lease);
        pass.on_submitted_work_done(move || drop(lease));
        Ok(())
    }

    fn prepare(&mut self, queue: &wgpu::Queue, tensors: &Bound, step: Step) -> Result<Lease, Error> {
        if !Arc::ptr_eq(&tensors.owner, &self.identity) {
            return Err(Error::ForeignBinding);
        }
        let unscale = step.unscale(self.options.divide)? as f32;
        if let Some((reported, skipped)) = self.control.as_ref().and_then(Control::newest) {
            self.lags.confirm(skipped, self.steps - reported - 1);
        }
        let sets = self.lags.count();
        if sets > self.max_sets {
            return Err(Error::Unreported { steps: sets - 1, bound: self.max_sets - 1 });
        }
        let (groups, around) = (self.layout.groups().len(), self.options.around());
        let set = 4 * set_vectors::<R>(groups, &around);
        let row = 4 * row_vectors::<R>(&around);
        let first = if self.control.is_some() { REQUEST_WORDS } else { 0 };
        let (scratch, layout, options, steps) = (&mut self.scratch, &self.layout, &self.options, self.steps);
        scratch.resize(first + sets * set, 0);
        let names = crate::rules::scalar_names::<R>().len();
        let certain = self.lags.prepare(|i, skipped, carries| {
            let t = steps + 1 - skipped;
            let set = &mut scratch[first + i * set..][..set];
            let rows = if around.head {
                let (head, rows) = set.split_at_mut(4 * around.head_vectors());
                let bound = if let Some(Clip::Value(bound)) = options.clip { bound } else { 0.0 };
                let average = options.ema.map_or(0.0, |ema| ema.weight(t));
                // Without a control kernel the first two are the host's: the factor, and that nothing is skipped.
                head[..4].copy_from_slice(&[unscale, 0.0, average as f32, bound as f32].map(f32::to_bits));
                if let Some(key) = head.get_mut(4..) {
                    let seed = if let Rounding::Stochastic { seed } = options.rounding { seed } else { 0 };
                    key.iter_mut().zip(step_key(seed, t)).for_each(|(to, x)| *to = x.to_bits());
                }
                rows
            } else {
                set
            };
            layout.scalars(step, steps, t, carries, |group, scalars| {
                for i in 0..names {
                    rows[group * row + i] = (scalars.get(i) as f32).to_bits();
                }
            })
        })?;
        if !certain {
            return Err(Error::UncertainMomentum { rule: R::NAME, steps: sets - 1 });
        }
        // Where they are all the same, one will do.
        let (one, others) = self.scratch[first..].split_at(set);
        let sent = if others.chunks_exact(set).all(|other| other == one) { 1 } else { sets };
        self.scratch.truncate(first + sent * set);
        if let (Some(control), Some(look)) = (&self.control, &tensors.look) {
            let request = Request {
                number: self.steps as u32,
                first: self.lags.first() as u32,
                count: sent as u32,
                unscale,
                partials: look.partials,
                ..control.request
            };
            self.scratch[..REQUEST_WORDS].copy_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(&request)));
        }
        if size_of_val(self.scratch.as_slice()) as u64 > self.rows.row_bytes() {
            let bytes = request_bytes(set / 4, (2 * sets).min(self.max_sets));
            self.rows = self.rows.with_row_bytes(bytes)?;
        }
        let lease = self.rows.write(queue, bytemuck::cast_slice(&self.scratch))?;
        self.lags.commit(self.options.skips());
        self.steps += 1;
        Ok(lease)
    }

    fn record(&self, pass: &mut wgpu::ComputePass<'_>, tensors: &Bound, lease: &Lease) {
        let sent = self.rows.group(lease);
        let mut rows = sent;
        if let (Some(control), Some(look)) = (&self.control, &tensors.look) {
            dispatch(pass, &look.reductions, None);
            dispatch(pass, look.by_group.as_slice(), None);
            dispatch(pass, slice::from_ref(&look.control), Some(sent));
            rows = (&control.live_group, 0);
        }
        if let (Some(layers), Some((measures, ratio))) = (&self.layers, &tensors.measure) {
            dispatch(pass, measures, Some(rows));
            dispatch(pass, slice::from_ref(ratio), Some(rows));
            rows = (&layers.group, 0);
        }
        dispatch(pass, &tensors.dispatches, Some(rows));
        dispatch(pass, tensors.norms.as_slice(), None);
    }
}

/// Records `dispatches`, whose pipelines have the scalars in bind group 1, if any.
fn dispatch(
    pass: &mut wgpu::ComputePass<'_>,
    dispatches: &[BoundDispatch],
    scalars: Option<(&wgpu::BindGroup, u32)>,
) {
    let mut current: Option<&wgpu::ComputePipeline> = None;
    for dispatch in dispatches {
        if current != Some(&dispatch.pipeline) {
            pass.set_pipeline(&dispatch.pipeline);
            if let Some((rows, offset)) = scalars {
                pass.set_bind_group(1, rows, &[offset]);
            }
            current = Some(&dispatch.pipeline);
        }
        pass.set_bind_group(0, &dispatch.group, &[]);
        let [x, y] = dispatch.workgroups;
        pass.dispatch_workgroups(x, y, 1);
    }
}

/// All state, in the order in which it is bound.
fn slots_stored<R: Rule>(kept: &[bool], options: &Options) -> Vec<Slot> {
    let slots = slots::<R>().iter().zip(kept).filter(|(_, kept)| **kept);
    let slots = slots.map(|(slot, _)| Slot { name: slot, format: None });
    let beside = |(name, format)| Slot { name, format: Some(format) };
    let ema = options.ema.map(|_| (EMA, Format::F32));
    slots.chain(options.storage().master().into_iter().chain(ema).map(beside)).collect()
}

/// The chunks of a layout, each with the format of the rule's state in it.
fn chunks<R: Rule>(layout: &Layout<R>, options: &Options, limits: &Limits) -> Vec<(Format, Chunk)> {
    let mut by_format: Vec<(Format, Vec<Span>)> = Vec::new();
    for (tensor, t) in layout.by_offset().enumerate() {
        let span = Span { tensor, group: t.group as u32, start: t.offset, end: t.end() };
        let format = options.states_of(t.len);
        match by_format.iter_mut().find(|(other, _)| *other == format) {
            Some((_, spans)) => spans.push(span),
            None => by_format.push((format, vec![span])),
        }
    }
    let mut chunks = Vec::new();
    for (format, spans) in by_format {
        let block = block_quads(format);
        let apart = block > 1 || options.storage().stochastic;
        let families = if apart { plan::families(&spans) } else { vec![spans] };
        let families = families.iter().flat_map(|spans| plan::chunks(spans, limits.chunk_elements, block));
        chunks.extend(families.map(|chunk| (format, chunk)));
    }
    chunks
}

/// Bytes of a request with `sets` sets of scalars.
fn request_bytes(set_vectors: usize, sets: usize) -> u64 {
    (size_of::<Request>() + sets * set_vectors * 16) as u64
}

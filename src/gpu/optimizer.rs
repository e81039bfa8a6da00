//! The GPU optimizer: its construction, and everything that the caller asks of it between steps.

use super::control::{Control, Request};
use super::device::{self, Probe};
use super::kernel::{Access, CandidateLayout, Fused, KernelKey, TableLayout, Target};
use super::limits::{at_least, limits};
use super::pending::Pending;
use super::pipeline::{Kernel, binding_type, check_text};
use super::plan::{Limits, Space};
use super::ring::{self, Ring};
use super::state::ChunkState;
use super::trust_ratio::Layers;
use crate::error::{ChangeError, DeviceError, OptionsError};
use crate::float::Float;
use crate::layout::{Layout, RuleUse};
use crate::narrow::to_u32;
use crate::options::{Clip, Options};
use crate::report::Report;
use crate::rules::DynRule;
use crate::schedule::Schedule;
use std::collections::HashMap;
use std::sync::Arc;

/// Initial number of candidates in a request.
const FIRST_CANDIDATES: usize = 8;
/// Largest number of candidates: one more than the steps that may be recorded between two reports.
const MAX_CANDIDATES: usize = 1_024;
/// Largest size of the candidates of all steps in flight, in bytes.
const MAX_SET_BYTES: usize = 128 << 20;

/// Applies the rules of a layout to its tensors, on the GPU.
///
/// ```no_run
/// # fn f(device: &wgpu::Device, queue: &wgpu::Queue, params: &wgpu::Buffer, grads: &wgpu::Buffer)
/// # -> Result<(), wgpu_optim::Error> {
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
pub struct Optimizer {
    pub(super) device: wgpu::Device,
    pub(super) probe: Probe,
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) limits: Limits,
    /// The kind of device that the kernels are written for.
    pub(super) target: Target,
    pub(super) state: Vec<ChunkState>,
    /// Compiled kernels of each rule.
    pub(super) kernels: HashMap<(usize, KernelKey), Kernel>,
    pub(super) layer_norms: HashMap<(usize, KernelKey), Kernel>,
    pub(super) reductions: HashMap<TableLayout, Kernel>,
    pub(super) control: Option<Control>,
    /// The layer norms of each rule that is layer-wise.
    pub(super) layers: Vec<Option<Layers>>,
    /// The number of each tensor among the tensors of its rule, in the order of the flat space.
    pub(super) numbers: Vec<u32>,
    /// The places of scalars in a candidate.
    pub(super) candidate: CandidateLayout,
    /// The layout of the step's scalars for the kernels' bind groups.
    pub(super) scalars_layout: wgpu::BindGroupLayout,
    /// The ring for each step's scalars. The step's kernels or the control kernel read them.
    pub(super) ring: Ring,
    pub(super) scratch: Vec<u32>,
    pub(super) exact: Vec<f64>,
    pub(super) pending: Pending,
    /// The largest number of candidates in a request.
    pub(super) max_candidates: usize,
    pub(super) steps: u64,
    /// The number of changes of the frozen groups. Bindings are planned again after a change.
    pub(super) revision: u64,
    pub(super) identity: Arc<()>,
}

impl Optimizer {
    /// Allocates zeroed state for `layout` on `device`.
    ///
    /// # Errors
    /// An [`OptionsError`] if the limits of the device are too small, or if it refuses the memory or the
    /// shader of a user-defined rule.
    pub fn new(device: &wgpu::Device, layout: Layout) -> Result<Self, OptionsError> {
        Self::with_options(device, layout, Options::default())
    }

    /// Allocates zeroed state for `layout` on `device`, with options for everything around the update.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and an [`OptionsError`] if an option is out of range.
    pub fn with_options(
        device: &wgpu::Device,
        layout: Layout,
        options: Options,
    ) -> Result<Self, OptionsError> {
        Self::with_target(device, layout, options, Target::of(device))
    }

    /// Allocates zeroed state for `layout` on `device`, with kernels for `target`. It serves to measure which
    /// target is faster on a device.
    ///
    /// # Errors
    /// The errors of [`with_options`](Self::with_options).
    pub fn with_target(
        device: &wgpu::Device,
        layout: Layout,
        options: Options,
        target: Target,
    ) -> Result<Self, OptionsError> {
        options.validate()?;
        device::alive(device)?;
        let fused = Fused::of(&options);
        let limits = limits(&device.limits(), &layout, &options)?;
        let groups = layout.groups().len();
        let candidate = CandidateLayout::new(&layout, &fused);
        let key = |rule: &RuleUse| KernelKey {
            table_layout: TableLayout {
                access: Access::Vectors,
                aligned: true,
                space: Space::Uniform,
                uniform_bytes: limits.uniform_bytes,
                by_tensor: options.storage().stochastic,
                target,
            },
            single: false,
            writable_gradients: options.zero_gradients,
            groups: to_u32(groups),
            scalars_space: limits.scalars_space,
            candidate,
            kept: rule.kept.clone(),
            storage: options.storage(),
            fused,
        };
        for rule in layout.rules() {
            let key = key(rule);
            let phases = rule.spec.is_layer_wise().then(|| key.for_layer_norms().storage_bindings());
            let bound = key.storage_bindings().max(phases.unwrap_or(0)).into();
            let value = device.limits().max_storage_buffers_per_shader_stage.into();
            at_least("max_storage_buffers_per_shader_stage", value, bound)?;
        }
        for rule in layout.rules().iter().filter(|rule| !rule.spec.trusted) {
            check_text(&rule.spec, device, &key(rule))?;
        }
        let bound = device.limits().max_buffer_size;
        let element = options.params.bytes().max(options.grads.bytes());
        if let Some(tensor) = layout.tensors().iter().find(|t| t.len * element > bound) {
            let bytes = tensor.len * element;
            return Err(OptionsError::TensorTooLarge { tensor: tensor.name.clone(), bytes, bound });
        }
        let state = ChunkState::allocate(device, &layout, &options, &limits)?;
        let (vectors, bytes) = (candidate.vectors(groups), (candidate.vectors(groups) * 16) as u64);
        let scalars_layout = ring::layout(device, binding_type(limits.scalars_space), bytes)?;
        // The bytes of candidates that fit a binding.
        let binding = device.limits().max_storage_buffer_binding_size.min(device.limits().max_buffer_size);
        let room = usize::try_from(binding).unwrap_or(usize::MAX) - size_of::<Request>();
        // With n candidates n steps may be in flight, each with n candidates.
        let in_flight = (MAX_SET_BYTES / (vectors * 16)).isqrt();
        let max_candidates = MAX_CANDIDATES.min(in_flight).min(room / (vectors * 16)).max(1);
        let (ring, control) = if options.looks_first() {
            let candidates = if options.skips() { FIRST_CANDIDATES.min(max_candidates) } else { 1 };
            let least = request_bytes(vectors, 1);
            let requests = ring::layout(device, binding_type(Space::Storage), least)?;
            let control = Control::new(device, &options, &candidate, groups, &scalars_layout, &requests)?;
            (Ring::new(device, requests, request_bytes(vectors, candidates))?, Some(control))
        } else {
            (Ring::new(device, scalars_layout.clone(), bytes)?, None)
        };
        let layers = layout.rules().iter().enumerate().map(|(i, rule)| {
            let own = layout.by_offset().filter(|tensor| layout.rule_index(tensor.group) == i);
            let groups: Vec<_> = own.map(|tensor| to_u32(tensor.group)).collect();
            if !rule.spec.is_layer_wise() || groups.is_empty() {
                return Ok(None);
            }
            Layers::new(device, &rule.spec, groups, &scalars_layout, &key(rule)).map(Some)
        });
        let layers = layers.collect::<Result<_, DeviceError>>()?;
        Ok(Self {
            device: device.clone(),
            probe: Probe::new(device),
            options,
            limits,
            target,
            state,
            kernels: HashMap::new(),
            layer_norms: HashMap::new(),
            reductions: HashMap::new(),
            control,
            layers,
            numbers: numbers(&layout),
            candidate,
            scalars_layout,
            ring,
            scratch: Vec::new(),
            exact: vec![0.0; layout.most_scalars()],
            pending: Pending::new(groups),
            max_candidates,
            steps: 0,
            revision: 0,
            identity: Arc::new(()),
            layout,
        })
    }

    /// The layout of the optimizer's tensors.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The options of the optimizer.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The number of steps recorded so far, including skipped ones.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes the oldest report that has arrived.
    ///
    /// A report arrives some steps after its step, while the device is polled or submitted to; nothing waits
    /// for it. The last 1 024 are kept.
    pub fn take_report(&mut self) -> Option<Report> {
        self.control.as_ref().and_then(Control::take_report)
    }

    /// The buffer with the dynamic loss scale as its first f32.
    ///
    /// The engine multiplies its loss by it before the backward pass. `None` without [`Options::loss_scale`].
    /// Usages are `STORAGE`, `UNIFORM`, `COPY_SRC` and `COPY_DST`; only this optimizer writes it.
    #[must_use]
    pub fn loss_scale(&self) -> Option<&wgpu::Buffer> {
        let control = self.control.as_ref().filter(|_| self.options.loss_scale.is_some())?;
        Some(&control.state)
    }

    /// Restores a saved loss scale: [`Report::next_loss_scale`] and [`Report::good_steps`]. It applies from
    /// the next submission on.
    ///
    /// # Errors
    /// A [`ChangeError`] if the scale is not from [`min`](crate::LossScale::min) to
    /// [`max`](crate::LossScale::max), if `good_steps` is not below
    /// [`growth_interval`](crate::LossScale::growth_interval), without [`Options::loss_scale`], or if the
    /// device is lost. Nothing changes then.
    pub fn set_loss_scale(
        &mut self,
        queue: &wgpu::Queue,
        scale: f64,
        good_steps: u32,
    ) -> Result<(), ChangeError> {
        self.options.check_loss_scale(scale, good_steps)?;
        if let Some(state) = self.loss_scale() {
            // The first two fields of `State`.
            let bits = [f32::from_f64(scale).to_bits(), good_steps];
            device::write(&self.device, queue, state, 0, bytemuck::cast_slice(&bits))?;
        }
        Ok(())
    }

    /// Sets the hyperparameters of a group's rule, from the next recorded step on. Bindings stay valid.
    ///
    /// # Errors
    /// A [`ChangeError`] if the group is unknown, if the rule is of another type or refused, or if it needs a
    /// state slot that is not kept. Nothing changes then.
    pub fn set_rule(&mut self, group: &str, rule: impl Into<DynRule>) -> Result<(), ChangeError> {
        self.layout.set_rule(group, rule.into())
    }

    /// Sets a group's factor of the learning rate, from the next recorded step on.
    ///
    /// # Errors
    /// A [`ChangeError`] if the group is unknown or the schedule is refused. Nothing changes then.
    pub fn set_lr_factor(&mut self, group: &str, factor: impl Into<Schedule>) -> Result<(), ChangeError> {
        self.layout.set_lr_factor(group, factor.into())
    }

    /// Sets the bound of the clip, from the next recorded step on.
    ///
    /// # Errors
    /// A [`ChangeError`] if the clip is of another kind than [`Options::clip`], or its bound is out of range.
    /// Nothing changes then.
    pub fn set_clip(&mut self, clip: Clip) -> Result<(), ChangeError> {
        self.options.set_clip(clip)
    }

    /// Freezes a group, from the next recorded step on.
    ///
    /// Until it is [thawed](Self::unfreeze), a step neither reads nor writes the group, and no norm includes
    /// it. The group's count of steps rests too, like the count of a PyTorch parameter with `grad` set to
    /// `None`.
    ///
    /// Bindings stay valid. The first step after a change plans its binding again, which allocates and may
    /// compile kernels.
    ///
    /// # Errors
    /// A [`ChangeError::UnknownGroup`].
    pub fn freeze(&mut self, group: &str) -> Result<(), ChangeError> {
        self.set_frozen(group, true)
    }

    /// Ends the freezing of a group, from the next recorded step on.
    ///
    /// # Errors
    /// A [`ChangeError::UnknownGroup`].
    pub fn unfreeze(&mut self, group: &str) -> Result<(), ChangeError> {
        self.set_frozen(group, false)
    }

    fn set_frozen(&mut self, group: &str, frozen: bool) -> Result<(), ChangeError> {
        self.revision += u64::from(self.layout.set_frozen(group, frozen)?);
        Ok(())
    }

    /// Bytes of device memory in use beside the state, without the memory of a [`Bound`](super::Bound).
    #[must_use]
    pub fn overhead_bytes(&self) -> u64 {
        let control = self.control.as_ref().map_or(0, Control::device_bytes);
        let layers = self.layers.iter().flatten().map(Layers::device_bytes).sum::<u64>();
        self.ring.device_bytes() + control + layers
    }
}

/// The number of each tensor among the tensors of its rule, in the order of the flat space.
fn numbers(layout: &Layout) -> Vec<u32> {
    let mut next = vec![0; layout.rules().len()];
    let number = |tensor: &crate::Tensor| {
        let next = &mut next[layout.rule_index(tensor.group)];
        *next += 1;
        *next - 1
    };
    layout.by_offset().map(number).collect()
}

/// The bytes of a request with a number of candidates.
pub(super) fn request_bytes(candidate_vectors: usize, candidates: usize) -> u64 {
    (size_of::<Request>() + candidates * candidate_vectors * 16) as u64
}

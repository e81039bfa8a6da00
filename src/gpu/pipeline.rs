//! Compiled kernels.

use super::device::checked;
use super::kernel::{
    self, BINDING_G, BINDING_P, BINDING_STATE, BINDING_TABLE, CandidateLayout, Composed, Fold, FoldBy,
    KernelKey, REDUCE_BINDING_G, REDUCE_BINDING_PARTIALS, TableLayout,
};
use super::limits::check_kernel;
use super::plan::{Space, WORKGROUP_SIZE};
use crate::error::DeviceError;
use crate::formats::Format;
use crate::options::Options;
use crate::rules::RuleSpec;
use std::sync::Arc;

/// A compiled kernel, with the layout of its bind group 0.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) composed: Arc<Composed>,
}

/// The parts of a kernel.
struct Text {
    what: String,
    label: String,
    composed: Composed,
    /// Whether every line of the text is this crate's.
    ours: bool,
}

impl Text {
    fn of_rule(spec: &RuleSpec, composed: Composed) -> Self {
        Self {
            what: format!(
                "the kernel of rule {} (whose own text is lines 1 to {})",
                spec.name,
                spec.wgsl.lines().count()
            ),
            label: format!("wgpu-optim {} {}", spec.name, composed.entry_point),
            composed,
            ours: spec.trusted,
        }
    }

    fn of_ours(composed: Composed) -> Self {
        let entry_point = composed.entry_point;
        let (what, label) = (format!("the kernel {entry_point}"), format!("wgpu-optim {entry_point}"));
        Self { what, label, composed, ours: true }
    }

    fn module(&self, device: &wgpu::Device) -> wgpu::ShaderModule {
        let source = wgpu::ShaderSource::Wgsl(self.composed.wgsl().into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&self.label), source };
        if !self.ours {
            // User-defined text can name any of the kernel's buffers: wgpu checks indices and loops.
            return device.create_shader_module(descriptor);
        }
        // SAFETY: no index leaves its binding and every loop ends. `Part::prove_bounds` has checked every
        // segment of the tables against the bound ranges. Entry points stay inside their segments; a
        // segment's state lies in whole blocks, each with a scale. Element access clamps. Built-in rules
        // index nothing and have no loops. Loops of reductions end with the segment. A workgroup writes one
        // partial sum, and there is room for all of them. Other loops are bounded by counts that the host
        // sends together with the counted data.
        unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
    }
}

/// Kernels that add up the same partial sums.
#[derive(Clone, Debug)]
pub(crate) struct Folds([Kernel; FoldBy::ALL.len()]);

impl Folds {
    fn new(kernel: impl Fn(FoldBy) -> Result<Kernel, DeviceError>) -> Result<Self, DeviceError> {
        let [workgroup, thread] = FoldBy::ALL.map(kernel);
        Ok(Self([workgroup?, thread?]))
    }

    /// The kernel for `count` targets with at most `most` partial sums each, and its workgroups.
    pub(crate) fn of(&self, most: usize, count: u32) -> (&Kernel, [u32; 2]) {
        match FoldBy::of(most) {
            FoldBy::Workgroup => (&self.0[0], [count, 1]),
            FoldBy::Thread => (&self.0[1], [count.div_ceil(WORKGROUP_SIZE), 1]),
        }
    }
}

impl Kernel {
    /// `scalars` has the layout of bind group 1 and the binding type of its buffer.
    fn new(
        device: &wgpu::Device,
        text: Text,
        entries: &[wgpu::BindGroupLayoutEntry],
        scalars: Option<(&wgpu::BindGroupLayout, wgpu::BufferBindingType)>,
    ) -> Result<Self, DeviceError> {
        let buffer_type = |entry: &wgpu::BindGroupLayoutEntry| match entry.ty {
            wgpu::BindingType::Buffer { ty, .. } => Some(ty),
            _ => None,
        };
        let types = entries.iter().filter_map(buffer_type).chain(scalars.map(|(_, ty)| ty));
        let workgroup_memory = text.composed.wgsl().contains("var<workgroup>");
        check_kernel(&device.limits(), &types.collect::<Vec<_>>(), entries.len(), workgroup_memory)?;
        let label = Some(text.label.as_str());
        let make = || {
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries });
            let groups = [Some(&layout), scalars.map(|(layout, _)| layout)];
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label,
                bind_group_layouts: if scalars.is_some() { &groups } else { &groups[..1] },
                immediate_size: 0,
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label,
                layout: Some(&pipeline_layout),
                module: &text.module(device),
                entry_point: Some(text.composed.entry_point),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Every built-in kernel writes its workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: !text.ours,
                    ..Default::default()
                },
                cache: None,
            });
            (pipeline, layout)
        };
        let (pipeline, layout) = checked(device, || text.what.clone(), make)?;
        Ok(Self { pipeline, layout, composed: Arc::new(text.composed) })
    }

    /// Compiles the update for `key`, with its scalars in a bind group of layout `scalars`.
    pub(crate) fn step(
        spec: &RuleSpec,
        device: &wgpu::Device,
        scalars: &wgpu::BindGroupLayout,
        key: &KernelKey,
    ) -> Result<Self, DeviceError> {
        let text = Text::of_rule(spec, kernel::update(spec, key));
        Self::new(device, text, &entries(key), Some((scalars, binding_type(key.scalars_space))))
    }

    /// The first phase of a layer-wise rule.
    pub(crate) fn layer_norms(
        spec: &RuleSpec,
        device: &wgpu::Device,
        scalars: &wgpu::BindGroupLayout,
        key: &KernelKey,
    ) -> Result<Self, DeviceError> {
        let text = Text::of_rule(spec, kernel::layer_norms(spec, key));
        Self::new(device, text, &entries(key), Some((scalars, binding_type(key.scalars_space))))
    }

    /// The kernels between the phases of a layer-wise rule.
    pub(crate) fn ratio(
        spec: &RuleSpec,
        device: &wgpu::Device,
        scalars: &wgpu::BindGroupLayout,
        key: &KernelKey,
    ) -> Result<Folds, DeviceError> {
        let entries = [entry(0, READ), entry(1, READ), entry(2, WRITE), entry(3, READ)];
        Folds::new(|by| {
            let text = Text::of_rule(spec, kernel::trust_ratios(spec, key, by));
            Self::new(device, text, &entries, Some((scalars, binding_type(key.scalars_space))))
        })
    }

    /// The reduction of gradients.
    pub(crate) fn reduction(
        device: &wgpu::Device,
        table_layout: &TableLayout,
        grads: Format,
    ) -> Result<Self, DeviceError> {
        let entries = [
            entry(BINDING_TABLE, binding_type(table_layout.space)),
            entry(REDUCE_BINDING_G, READ),
            entry(REDUCE_BINDING_PARTIALS, WRITE),
        ];
        Self::new(device, Text::of_ours(kernel::reduce(table_layout, grads)), &entries, None)
    }

    /// The kernels that add up partial sums.
    pub(crate) fn fold(device: &wgpu::Device, fold: Fold) -> Result<Folds, DeviceError> {
        let entries = [entry(0, READ), entry(1, READ), entry(2, WRITE)];
        Folds::new(|by| Self::new(device, Text::of_ours(kernel::fold(fold, by)), &entries, None))
    }

    /// The decision between reduction and update, which reads requests in a bind group of layout `requests`.
    pub(crate) fn control(
        device: &wgpu::Device,
        requests: &wgpu::BindGroupLayout,
        options: &Options,
        candidate: &CandidateLayout,
        groups: usize,
    ) -> Result<Self, DeviceError> {
        let text = Text::of_ours(kernel::control(options, candidate, groups));
        let entries = [entry(0, READ), entry(1, WRITE), entry(2, WRITE)];
        Self::new(device, text, &entries, Some((requests, READ)))
    }
}

/// Lets the device validate a rule's text in all forms: with scalars, with vectors of scalars, and in both
/// phases. Some layouts need only one form.
pub(crate) fn check_text(spec: &RuleSpec, device: &wgpu::Device, key: &KernelKey) -> Result<(), DeviceError> {
    let check = |composed: Composed| {
        let text = Text::of_rule(spec, composed);
        checked(device, || text.what.clone(), || text.module(device)).map(drop)
    };
    for aligned in [true, false] {
        let key = KernelKey { table_layout: TableLayout { aligned, ..key.table_layout }, ..key.clone() };
        check(kernel::update(spec, &key))?;
        if spec.is_layer_wise() {
            check(kernel::layer_norms(spec, &key.for_layer_norms()))?;
            FoldBy::ALL.into_iter().try_for_each(|by| check(kernel::trust_ratios(spec, &key, by)))?;
        }
    }
    Ok(())
}

const READ: wgpu::BufferBindingType = wgpu::BufferBindingType::Storage { read_only: true };
const WRITE: wgpu::BufferBindingType = wgpu::BufferBindingType::Storage { read_only: false };

/// Bind group 0 of a kernel with a rule in it.
fn entries(key: &KernelKey) -> Vec<wgpu::BindGroupLayoutEntry> {
    let gradients = if key.writable_gradients { WRITE } else { READ };
    let mut entries = vec![
        entry(BINDING_TABLE, binding_type(key.table_layout.space)),
        entry(BINDING_P, WRITE),
        entry(BINDING_G, gradients),
    ];
    let states = key.states() + u32::from(key.fused.norms);
    entries.extend((0..states).map(|i| entry(BINDING_STATE + i, WRITE)));
    entries
}

/// The binding type of a table or of scalars.
pub(crate) fn binding_type(space: Space) -> wgpu::BufferBindingType {
    match space {
        Space::Uniform => wgpu::BufferBindingType::Uniform,
        Space::Storage => READ,
    }
}

fn entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

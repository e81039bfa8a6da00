//! The kernels of a step as data, composed on a device that computes nothing.

use crate::bench::layout;
use crate::device::Error;
use harness::wgpu;
use serde_json::{Value, json};
use wgpu_optim::kernel::{Binding, Buffer, Description, Dispatch, Target};
use wgpu_optim::{AnyRule, Bound, DynRule, Layout, Optimizer, Options, Tensors};

/// Storage buffers per kernel: enough for every rule in every format.
const STORAGE_BUFFERS: u32 = 16;

/// The step that is described.
#[derive(Clone, Debug)]
pub struct Request {
    /// The rule.
    pub rule: AnyRule,
    /// Number of parameters.
    pub elements: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Storage, and the options around the update.
    pub options: Options,
    /// The kind of device that the kernels are for.
    pub target: Target,
    /// Number of steps with computed scalars.
    pub steps: u64,
    /// The learning rate of these steps.
    pub lr: f64,
}

/// A described step.
#[derive(Clone, Debug)]
pub struct Described {
    /// The dispatches and their buffers.
    pub description: Description,
    /// The words of scalars that each step uploads.
    pub scalars: Vec<Vec<u32>>,
}

/// Describes a step over flat buffers.
///
/// # Errors
/// An [`Error`] if the library refuses.
pub fn describe(request: &Request) -> Result<Described, Error> {
    let layout = layout(&DynRule::from(request.rule), request.elements, request.tensors)?;
    let (mut optimizer, bound) = bind(layout, request.options, request.target)?;
    let mut description = optimizer.describe(&bound)?;
    let mut scalars = Vec::new();
    for _ in 0..request.steps {
        let bytes = optimizer.next_scalars(&bound, request.lr)?;
        scalars.push(words(&bytes));
        make_room(&mut description, bytes.len() as u64);
    }
    Ok(Described { description, scalars })
}

/// An optimizer on a device that computes nothing, bound to flat buffers.
///
/// # Errors
/// An [`Error`] if the library refuses.
pub fn bind(layout: Layout, options: Options, target: Target) -> Result<(Optimizer, Bound), Error> {
    let (device, _queue) = noop()?;
    let bytes = |element: u64| (layout.len() * element).next_multiple_of(16);
    let buffer = |size| {
        let usage = wgpu::BufferUsages::STORAGE;
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let (params, grads) = (buffer(bytes(options.params.bytes())), buffer(bytes(options.grads.bytes())));
    let mut optimizer = Optimizer::with_target(&device, layout, options, target)?;
    let bound = optimizer.bind(&Tensors::flat(&params, &grads))?;
    Ok((optimizer, bound))
}

/// Enlarges the buffer of the scalars to the bytes that a step uploads.
fn make_room(description: &mut Description, bytes: u64) {
    let Some(sent) = description.scalars.buffer else { return };
    let buffer = &mut description.buffers[sent].bytes;
    if bytes > *buffer {
        *buffer = bytes;
        let bindings = description.dispatches.iter_mut().flat_map(|dispatch| &mut dispatch.bindings);
        bindings.filter(|binding| binding.buffer == sent).for_each(|binding| binding.size = bytes);
    }
}

/// A device that validates its input and computes nothing.
fn noop() -> Result<(wgpu::Device, wgpu::Queue), Error> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::NOOP;
    descriptor.backend_options.noop = wgpu::NoopBackendOptions::enabled();
    let instance = wgpu::Instance::new(descriptor);
    let refused = |error: &dyn std::fmt::Display| Error::Refused(error.to_string());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
    let adapter = adapter.map_err(|error| refused(&error))?;
    let required_limits =
        wgpu::Limits { max_storage_buffers_per_shader_stage: STORAGE_BUFFERS, ..wgpu::Limits::default() };
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
    pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| refused(&error))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

impl Described {
    /// The description as JSON. Contents of buffers and scalars are words of 32 bits.
    #[must_use]
    pub fn json(&self, request: &Request) -> Value {
        let Description { buffers, dispatches, scalars, table, .. } = &self.description;
        let groups = scalars.groups.iter().map(|group| {
            let words: serde_json::Map<_, _> =
                group.scalars.iter().map(|(name, word)| ((*name).into(), json!(word))).collect();
            json!({"group": group.group, "rule": group.rule, "words": words})
        });
        json!({
            "rule": serde_json::to_value(request.rule).unwrap_or_default(),
            "target": request.target.name(),
            "elements": request.elements,
            "buffers": buffers.iter().map(buffer).collect::<Vec<_>>(),
            "dispatches": dispatches.iter().map(dispatch).collect::<Vec<_>>(),
            "table": {
                "header": table.header,
                "first_segment": table.first_segment,
                "aligned": table.aligned,
                "shared": table.shared,
                "by_tensor": table.by_tensor,
            },
            "scalars": {
                "buffer": scalars.buffer,
                "request_words": scalars.request_words,
                "header_words": scalars.header_words,
                "group_words": scalars.group_words,
                "groups": groups.collect::<Vec<_>>(),
                "steps": self.scalars,
            },
        })
    }
}

fn buffer(buffer: &Buffer) -> Value {
    json!({"name": buffer.name, "bytes": buffer.bytes, "contents": words(&buffer.contents)})
}

fn dispatch(dispatch: &Dispatch) -> Value {
    json!({
        "stage": dispatch.stage.name(),
        "rule": dispatch.rule,
        "entry_point": dispatch.kernel.entry_point,
        "workgroup_size": dispatch.workgroup_size,
        "workgroups": dispatch.workgroups,
        "bindings": dispatch.bindings.iter().map(binding).collect::<Vec<_>>(),
        "wgsl": dispatch.kernel.wgsl(),
    })
}

fn binding(binding: &Binding) -> Value {
    json!({
        "group": binding.group,
        "binding": binding.binding,
        "type": binding.kind,
        "variable": binding.variable,
        "buffer": binding.buffer,
        "offset": binding.offset,
        "size": binding.size,
    })
}

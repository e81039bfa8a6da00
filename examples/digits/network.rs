//! A network of one hidden layer, forward and backward, for the examples that train it in f32.

use crate::digits::{self, CLASSES, HIDDEN, dispatch};
use harness::Gpu;
use wgpu_optim::{Layout, wgpu};

const SHADER: &str = include_str!("mlp.wgsl");
const KERNELS: [&str; 4] = ["hidden_layer", "output_layer", "hidden_gradients", "parameter_gradients"];

/// The network's kernels and their buffers.
pub(crate) struct Network {
    bindings: wgpu::BindGroupLayout,
    /// The buffers in the order of their bindings, from 1 on; binding 0 is the batch.
    buffers: [wgpu::Buffer; 7],
    /// Loss and correctness (1 or 0) of each image, from its last forward pass.
    pub outcomes: wgpu::Buffer,
    /// The pipelines of [`KERNELS`].
    kernels: [wgpu::ComputePipeline; 4],
    parameters: usize,
}

/// The images of the passes: windows of `examples` indices in one buffer.
pub(crate) struct Batch {
    group: wgpu::BindGroup,
    examples: usize,
}

impl Network {
    /// `data` are images, labels, parameters and gradients.
    pub(crate) fn new(gpu: &Gpu, layout: &Layout, data: [wgpu::Buffer; 4], images: usize) -> Self {
        // Two f32 per element, and room for a batch of all images.
        let pairs = |elements: usize| gpu.buffer((images * elements * 8) as u64);
        let (hidden, output, outcomes) = (pairs(HIDDEN), pairs(CLASSES), pairs(1));
        let [pixels, labels, params, grads] = data;
        let bindings = bindings(&gpu.device);
        Self {
            kernels: digits::kernels(&gpu.device, SHADER, KERNELS, &bindings, layout),
            bindings,
            buffers: [pixels, labels, params, grads, hidden, output, outcomes.clone()],
            outcomes,
            parameters: layout.len() as usize,
        }
    }

    /// Batches of `examples` images, with indices in `order`.
    pub(crate) fn batch(&self, gpu: &Gpu, order: &wgpu::Buffer, examples: usize) -> Batch {
        let size = wgpu::BufferSize::new((examples * size_of::<u32>()) as u64);
        let window = wgpu::BufferBinding { buffer: order, offset: 0, size };
        let entry = |(binding, resource)| wgpu::BindGroupEntry { binding, resource };
        let mut entries = vec![entry((0, wgpu::BindingResource::Buffer(window)))];
        entries.extend((1..).zip(self.buffers.iter().map(wgpu::Buffer::as_entire_binding)).map(entry));
        let group = wgpu::BindGroupDescriptor { label: None, layout: &self.bindings, entries: &entries };
        Batch { group: gpu.device.create_bind_group(&group), examples }
    }

    /// Records the forward pass over a window's images, up to their losses.
    pub(crate) fn forward(&self, pass: &mut wgpu::ComputePass<'_>, batch: &Batch, window: usize) {
        let offset = window * batch.examples * size_of::<u32>();
        pass.set_bind_group(0, &batch.group, &[offset as u32]);
        let [hidden_layer, output_layer, ..] = &self.kernels;
        dispatch(pass, hidden_layer, batch.examples * HIDDEN);
        dispatch(pass, output_layer, batch.examples);
    }

    /// Records the backward pass of the batch that went forward last: fills the gradient buffer.
    pub(crate) fn backward(&self, pass: &mut wgpu::ComputePass<'_>, batch: &Batch) {
        let [.., hidden_gradients, parameter_gradients] = &self.kernels;
        dispatch(pass, hidden_gradients, batch.examples * HIDDEN);
        dispatch(pass, parameter_gradients, self.parameters);
    }
}

/// The shader's bindings.
fn bindings(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    let entries: [_; 8] = std::array::from_fn(|binding| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: binding < 4 },
            has_dynamic_offset: binding == 0,
            min_binding_size: None,
        },
        count: None,
    });
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

/// Means of an epoch. Training images are evaluated during the epoch, held-out images at its end.
pub(crate) struct Epoch {
    /// Mean cross-entropy of the training images, in nats.
    pub training_loss: f64,
    /// Mean cross-entropy of the held-out images, in nats.
    pub held_out_loss: f64,
    /// Share of the held-out images that is recognised.
    pub accuracy: f64,
}

impl Epoch {
    /// `outcomes` has loss and correctness of each image in turn.
    pub(crate) fn new(outcomes: &[f32], training: &[u32], held_out: &[u32]) -> Self {
        let mean = |images: &[u32], field| {
            let values = images.iter().map(|&image| f64::from(outcomes[2 * image as usize + field]));
            values.sum::<f64>() / images.len() as f64
        };
        let (training_loss, held_out_loss) = (mean(training, 0), mean(held_out, 0));
        Self { training_loss, held_out_loss, accuracy: mean(held_out, 1) }
    }

    pub(crate) fn summary(&self) -> String {
        let Self { training_loss, held_out_loss, accuracy } = self;
        let percent = 100.0 * accuracy;
        format!("loss {training_loss:.4}, held out {held_out_loss:.4}, {percent:.2} % recognised")
    }
}

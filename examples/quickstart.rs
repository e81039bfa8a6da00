//! A training loop in miniature: backward pass and optimizer step in one encoder, nothing read back before the end.
//!
//! In a crate of your own it needs the dependencies `wgpu-optim` and `pollster`.

use wgpu_optim::{AdamW, Group, Layout, Optimizer, Tensors, wgpu};

/// Stands for an engine's backward pass: the gradient of the loss `∑ (p[i] − i)² / 2`.
const BACKWARD: &str = "
    @group(0) @binding(0) var<storage, read> p: array<f32>;
    @group(0) @binding(1) var<storage, read_write> g: array<f32>;
    @compute @workgroup_size(64) fn backward(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < arrayLength(&p) { g[id.x] = p[id.x] - f32(id.x); }
    }";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;

    // Parameters lie one behind the other in a flat buffer: eight weights with decay, four biases without.
    let adamw = AdamW { weight_decay: 0.01, ..AdamW::default() };
    let layout = Layout::new([
        Group::new("decay", adamw).tensor("weight", [2, 4]),
        Group::new("no_decay", AdamW { weight_decay: 0.0, ..adamw }).tensor("bias", [4]),
    ])?;
    let (size, usage) = (layout.buffer_size(), wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let flat = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let (params, grads) = (device.create_buffer(&flat), device.create_buffer(&flat)); // zeros
    let mut optimizer = Optimizer::new(&device, layout)?;
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads))?;

    let source = wgpu::ShaderSource::Wgsl(BACKWARD.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
    let backward = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let buffers = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &backward.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: grads.as_entire_binding() },
        ],
    });

    let lr = |step: u32| 0.1 * f64::from(step + 1).min(20.0) / 20.0; // warms up over 20 steps
    for step in 0..500 {
        let mut encoder = device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&backward);
            pass.set_bind_group(0, &buffers, &[]);
            pass.dispatch_workgroups(1, 1, 1);
        }
        optimizer.step(&queue, &mut encoder, &tensors, lr(step))?;
        queue.submit([encoder.finish()]);
    }

    // Each parameter i comes near i; decay holds the weights back a little.
    wgpu::util::DownloadBuffer::read_buffer(&device, &queue, &params.slice(..), |bytes| {
        for (i, bytes) in bytes.expect("the device answers").as_chunks().0.iter().enumerate() {
            println!("p[{i}] = {:.3}", f32::from_le_bytes(*bytes));
        }
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(())
}

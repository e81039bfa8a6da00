//! Embedding the optimizer: layout, state, and a step recorded into the engine's encoder.
//!
//! In a crate of your own it needs the dependencies `wgpu-optim` and `pollster`.

use wgpu_optim::{AdamW, Group, Layout, Optimizer, Schedule, Tensors, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;

    // Eight weights that decay and four biases that do not, one after the other in a flat buffer.
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let layout = Layout::new([
        Group::new("decay", adamw).tensor("weight", [2, 4]),
        Group::new("no_decay", AdamW { weight_decay: 0.0, ..adamw }).tensor("bias", [4]),
    ])?;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let size = layout.buffer_size();
    let buffer = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let (params, grads) = (device.create_buffer(&buffer), device.create_buffer(&buffer));
    queue.write_buffer(&params, 0, &1f32.to_le_bytes().repeat(12));
    queue.write_buffer(&grads, 0, &0.5f32.to_le_bytes().repeat(12)); // an engine's backward pass writes these

    let mut optimizer = Optimizer::new(&device, layout)?;
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads))?;
    let lr = Schedule::from(0.01).warmup(10); // from 0 up to 0.01 in ten steps
    for step in 0..50 {
        let mut encoder = device.create_command_encoder(&Default::default());
        // … forward and backward passes go into the same encoder …
        optimizer.step(&queue, &mut encoder, &tensors, lr.at(step)?)?;
        queue.submit([encoder.finish()]);
    }

    // The steps have moved every parameter by the sum of their learning rates, 0.445; decay adds a little.
    wgpu::util::DownloadBuffer::read_buffer(&device, &queue, &params.slice(..), |bytes| {
        for (i, bytes) in bytes.expect("the device answers").as_chunks().0.iter().enumerate() {
            println!("p[{i}] = {:.3}", f32::from_le_bytes(*bytes));
        }
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    Ok(())
}

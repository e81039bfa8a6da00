//! Trains a small neural network on the GPU while the optimizer and its state are on the CPU.
//!
//! ```text
//! cargo run --release --example offload -- [SEED]
//! ```
//!
//! What to look at: the loop in [`train`]. The device computes gradients; they come to the host in chunks, and the new parameters go back. The device keeps nothing but parameters and gradients.
//!
//! This network is one chunk, and a clip by norm has to see all gradients before any is used: nothing overlaps here. Larger ones without it are updated while other chunks are on their
//! way, by the same loop.
//!
//! It fails if it recognises fewer than 95 % of the images that it has not trained on.

mod digits;
#[path = "digits/network.rs"]
mod network;

use digits::{Random, upload};
use harness::Gpu;
use network::{Epoch, Network};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use wgpu_optim::offload::{Offload, Progress};
use wgpu_optim::{Clip, Options, schedule, wgpu};

/// Images a step: a window of the order, 256 bytes of indices.
const BATCH: usize = 64;
const EPOCHS: usize = 20;
const WARMUP_STEPS: usize = 50;
const PEAK_LR: f64 = 1e-2;
const REQUIRED_ACCURACY: f64 = 0.95;

fn main() -> ExitCode {
    digits::main("offload", run)
}

fn run(gpu: &Gpu, seed: u64, _: &Path) -> Result<(), Box<dyn Error>> {
    let epoch = train(gpu, seed)?;
    println!("{}", epoch.summary());
    if epoch.accuracy < REQUIRED_ACCURACY {
        return Err(format!("{:.0} % are required", 100.0 * REQUIRED_ACCURACY).into());
    }
    Ok(())
}

fn train(gpu: &Gpu, seed: u64) -> Result<Epoch, Box<dyn Error>> {
    let mut random = Random(seed);
    let (pixels, labels) = digits::images()?;
    // A fifth of the images, at random, is held out.
    let mut held_out: Vec<_> = (0..labels.len() as u32).collect();
    random.shuffle(&mut held_out);
    let mut training = held_out.split_off(labels.len() / 5);

    let layout = digits::layout()?;
    let mut start = digits::initial_parameters(&layout, &mut random);
    let (params, grads) = (upload(gpu, &start), gpu.buffer(layout.buffer_size()));
    let data = [upload(gpu, &pixels), upload(gpu, &labels), params.clone(), grads.clone()];
    let network = Network::new(gpu, &layout, data, labels.len());
    start.truncate(layout.len() as usize);
    let options = Options { clip: Some(Clip::GlobalNorm(5.0)), ..Options::default() };
    let mut offload = Offload::new(&gpu.device, layout, options, start)?;

    let order = upload(gpu, &training);
    let training_batch = network.batch(gpu, &order, BATCH);
    let held_out_batch = network.batch(gpu, &upload(gpu, &held_out), held_out.len());
    let batches = training.len() / BATCH;
    let steps = (EPOCHS * batches - WARMUP_STEPS) as u64;
    let lr = schedule::cosine(PEAK_LR, 0.0, steps).warmup(WARMUP_STEPS as u64);
    for _ in 0..EPOCHS {
        random.shuffle(&mut training);
        gpu.queue.write_buffer(&order, 0, bytemuck::cast_slice(&training));
        for window in 0..batches {
            let mut encoder = gpu.encoder();
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                network.forward(&mut pass, &training_batch, window);
                network.backward(&mut pass, &training_batch);
            }
            gpu.queue.submit([encoder.finish()]);
            for chunk in 0..offload.chunks() {
                let mut encoder = gpu.encoder();
                offload.request(&mut encoder, &grads, chunk)?;
                gpu.queue.submit([encoder.finish()]);
            }
            let lr = lr.at(offload.optimizer().steps())?;
            loop {
                match offload.advance(&gpu.queue, &params, lr)? {
                    Progress::Waiting => {
                        gpu.device.poll(wgpu::PollType::Poll)?;
                    }
                    Progress::Working => {
                        // Sends what has been updated.
                        gpu.queue.submit([]);
                    }
                    Progress::Done(_) => break,
                }
            }
        }
    }
    let mut encoder = gpu.encoder();
    network.forward(
        &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
        &held_out_batch,
        0,
    );
    gpu.queue.submit([encoder.finish()]);
    let outcomes = gpu.download(&network.outcomes);
    Ok(Epoch::new(&outcomes, &training[..batches * BATCH], &held_out))
}

//! Trains a small neural network on the GPU while the optimizer and its state are on the CPU.
//!
//! ```text
//! cargo run --release --example offload -- [SEED]
//! ```
//!
//! The loop is in [`update`]. The device computes gradients; they come to the host in chunks, and the new
//! parameters go back. The device keeps only parameters and gradients.
//!
//! This network is one chunk, and a clip by norm needs all gradients before the update: nothing overlaps
//! here. The example then measures steps of [`MEASURED`] parameters without a clip. By turns it uses the loop
//! above, which updates chunks while others are in transfer, and a loop that waits for all gradients first.
//! If device and host are the same processor, as with software Vulkan, there is no gain.
//!
//! The example fails if the network recognises fewer than 95 % of the held-out images.

mod digits;
#[path = "digits/network.rs"]
mod network;

use digits::{Random, upload};
use harness::Gpu;
use network::{Epoch, Network};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use wgpu_optim::offload::{Offload, Progress, Transfers};
use wgpu_optim::{AdamW, Clip, Group, Layout, Options, Step, schedule, wgpu};

/// Images per step: a window of the order, 256 bytes of indices.
const BATCH: usize = 64;
const EPOCHS: usize = 20;
const WARMUP_STEPS: usize = 50;
const PEAK_LR: f64 = 1e-2;
const REQUIRED_ACCURACY: f64 = 0.95;
/// Parameters of the measured steps, in 16 chunks.
const MEASURED: usize = 1 << 24;
/// Measured steps of each kind, after one that is not measured.
const ROUNDS: usize = 9;

fn main() -> ExitCode {
    digits::main("offload", run)
}

fn run(gpu: &Gpu, seed: u64, _: &Path) -> Result<(), Box<dyn Error>> {
    let epoch = train(gpu, seed)?;
    println!("{}", epoch.summary());
    if epoch.accuracy < REQUIRED_ACCURACY {
        return Err(format!("{:.0} % are required", 100.0 * REQUIRED_ACCURACY).into());
    }
    measure(gpu)
}

/// Takes a step: the device's gradients go to the host, and the new parameters back.
fn update(
    gpu: &Gpu,
    offload: &mut Offload,
    params: &wgpu::Buffer,
    grads: &wgpu::Buffer,
    step: Step,
) -> Result<(), wgpu_optim::Error> {
    loop {
        while let Some(chunk) = offload.wanted() {
            let mut encoder = gpu.encoder();
            offload.request(&mut encoder, grads, chunk)?;
            // Also sends updated parameters.
            gpu.queue.submit([encoder.finish()]);
        }
        match offload.advance(&gpu.queue, params, step)? {
            Progress::Waiting => {
                gpu.device.poll(wgpu::PollType::Poll).map_err(|error| wgpu_optim::DeviceError::Refused {
                    what: "gradients".into(),
                    reason: error.to_string(),
                })?;
            }
            Progress::Working => {
                gpu.queue.submit([]);
            }
            Progress::Done(_) => {
                gpu.queue.submit([]);
                return Ok(());
            }
        }
    }
}

/// Measures the gain of updating chunks while others are in transfer.
fn measure(gpu: &Gpu) -> Result<(), Box<dyn Error>> {
    let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [MEASURED as u64])])?;
    let bytes = layout.buffer_size();
    let (params, grads) = (gpu.buffer(bytes), gpu.buffer(bytes));
    let new = |transfers| {
        let start = vec![0.0; MEASURED];
        Offload::with_transfers(&gpu.device, layout.clone(), Options::default(), transfers, start)
    };
    let mut overlapped = new(Transfers::default())?;
    let mut waiting = new(Transfers { staged_chunks: usize::MAX, ..Transfers::default() })?;
    let step = Step::from(1e-3);
    let [mut times, mut waiting_times] = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let start = Instant::now();
        update(gpu, &mut overlapped, &params, &grads, step)?;
        gpu.wait();
        let middle = Instant::now();
        while let Some(chunk) = waiting.wanted() {
            let mut encoder = gpu.encoder();
            waiting.request(&mut encoder, &grads, chunk)?;
            gpu.queue.submit([encoder.finish()]);
        }
        gpu.wait();
        update(gpu, &mut waiting, &params, &grads, step)?;
        gpu.wait();
        if round > 0 {
            times.push((middle - start).as_secs_f64());
            waiting_times.push(middle.elapsed().as_secs_f64());
        }
    }
    let ratio = harness::median(times.iter().zip(&waiting_times).map(|(a, b)| a / b).collect());
    println!(
        "a step of {MEASURED} parameters, updated as chunks arrive: {:.1} ms and {:.0} MiB of staging \
         buffers; when all have arrived: {:.1} ms and {:.0} MiB; ratio {ratio:.2} (medians of {ROUNDS})",
        1e3 * harness::median(times),
        overlapped.staging_bytes() as f64 / f64::from(1 << 20),
        1e3 * harness::median(waiting_times),
        waiting.staging_bytes() as f64 / f64::from(1 << 20),
    );
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
            let lr = lr.at(offload.optimizer().steps())?;
            update(gpu, &mut offload, &params, &grads, lr)?;
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

//! Trains a small neural network on handwritten digits, all of it on the GPU.
//!
//! ```text
//! cargo run --release --example train_digits -- [SEED] [PICTURE.svg]
//! ```
//!
//! Points for an engine of your own:
//! - parameters and gradients are two flat buffers of one [`Layout`], which also gives the shader the start
//!   of each tensor;
//! - forward pass, backward pass and optimizer step of a batch go into one encoder (the loop in [`train`]);
//! - the host sends the order of the images before an epoch and reads losses after it; between batches it
//!   does not wait.
//!
//! The example fails if the network recognises fewer than 95 % of the held-out images.

mod digits;
#[path = "digits/network.rs"]
mod network;

use digits::{Random, upload};
use harness::Gpu;
use indicatif::{ProgressBar, ProgressStyle};
use network::{Epoch, Network};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use wgpu_optim::{Optimizer, Tensors, schedule};

/// Images per step. Their indices take 256 bytes, the alignment of a dynamic offset: a batch is a window of
/// the order.
const BATCH: usize = 64;
const EPOCHS: usize = 40;
const WARMUP_STEPS: usize = 50;
const PEAK_LR: f64 = 1e-2;
const REQUIRED_ACCURACY: f64 = 0.95;

fn main() -> ExitCode {
    digits::main("train_digits", run)
}

fn run(gpu: &Gpu, seed: u64, picture: &Path) -> Result<(), Box<dyn Error>> {
    let curve = train(gpu, seed)?;
    draw(&curve, picture)?;
    let last = curve.last().ok_or("no epochs")?;
    println!("{}; loss curve in {}", last.summary(), picture.display());
    if last.accuracy < REQUIRED_ACCURACY {
        return Err(format!("{:.0} % are required", 100.0 * REQUIRED_ACCURACY).into());
    }
    Ok(())
}

/// Trains for [`EPOCHS`] and returns the means of each epoch.
fn train(gpu: &Gpu, seed: u64) -> Result<Vec<Epoch>, Box<dyn Error>> {
    let mut random = Random(seed);
    let (pixels, labels) = digits::images()?;
    // A fifth of the images, at random, is held out.
    let mut held_out: Vec<_> = (0..labels.len() as u32).collect();
    random.shuffle(&mut held_out);
    let mut training = held_out.split_off(labels.len() / 5);

    let layout = digits::layout()?;
    let params = upload(gpu, &digits::initial_parameters(&layout, &mut random));
    let grads = gpu.buffer(layout.buffer_size());
    let data = [upload(gpu, &pixels), upload(gpu, &labels), params.clone(), grads.clone()];
    let network = Network::new(gpu, &layout, data, labels.len());
    let mut optimizer = Optimizer::new(&gpu.device, layout)?;
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads))?;

    let order = upload(gpu, &training);
    let training_batch = network.batch(gpu, &order, BATCH);
    let held_out_batch = network.batch(gpu, &upload(gpu, &held_out), held_out.len());
    let batches = training.len() / BATCH; // the rest is left out, a different one every epoch
    let style = ProgressStyle::with_template("{bar:20} {pos}/{len}, {msg}")?;
    let progress = ProgressBar::new((EPOCHS * batches) as u64).with_style(style);
    let mut curve = Vec::new();
    let lr =
        schedule::cosine(PEAK_LR, 0.0, (EPOCHS * batches - WARMUP_STEPS) as u64).warmup(WARMUP_STEPS as u64);
    for _ in 0..EPOCHS {
        random.shuffle(&mut training);
        gpu.queue.write_buffer(&order, 0, bytemuck::cast_slice(&training));
        for window in 0..batches {
            let lr = lr.at(optimizer.steps())?;
            let mut encoder = gpu.encoder();
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                network.forward(&mut pass, &training_batch, window);
                network.backward(&mut pass, &training_batch);
            }
            optimizer.step(&gpu.queue, &mut encoder, &tensors, lr)?;
            gpu.queue.submit([encoder.finish()]);
            progress.inc(1);
        }
        let mut encoder = gpu.encoder();
        network.forward(&mut encoder.begin_compute_pass(&Default::default()), &held_out_batch, 0);
        gpu.queue.submit([encoder.finish()]);
        // The one time in an epoch that the host waits.
        let outcomes = gpu.download(&network.outcomes);
        let epoch = Epoch::new(&outcomes, &training[..batches * BATCH], &held_out);
        progress.set_message(epoch.summary());
        curve.push(epoch);
    }
    progress.finish_and_clear();
    Ok(curve)
}

/// Draws the losses of all epochs as an SVG.
fn draw(curve: &[Epoch], path: &Path) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (640, 400)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("AdamW on handwritten digits", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(1..curve.len(), (0.02..4.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("epoch")
        .y_desc("mean cross-entropy, nats")
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;
    let losses = |of: fn(&Epoch) -> f64| (1..).zip(curve.iter().map(of));
    let training = ("training", BLUE, losses(|epoch| epoch.training_loss));
    let held_out = ("held out", RED, losses(|epoch| epoch.held_out_loss));
    for (name, color, points) in [training, held_out] {
        chart
            .draw_series(LineSeries::new(points, color))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

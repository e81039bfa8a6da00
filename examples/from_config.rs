//! Trains a network on handwritten digits from a JSON file with tensors in groups of any rules, learning rate
//! and options.
//!
//! ```text
//! cargo run --release --example from_config -- [FILE]
//! ```
//!
//! The file is `examples/from_config.json` by default. A program that takes rules from a file needs no rule's
//! type: serde reads [`AnyRule`], [`Schedule`] and [`Options`], and a layout takes them unchanged. A mistake
//! in the file is an error that names its place and lists the known names. The network computes on the CPU;
//! the optimizer is on the GPU if there is one, and on the CPU if not.

#[expect(dead_code, reason = "the network's shaders are other examples'")]
mod digits;
#[expect(dead_code, reason = "the transformer is another example's")]
mod nets;

use digits::{CLASSES, PIXELS, Random, initial_parameters};
use harness::Gpu;
use ndarray::{Array2, ArrayView1, Axis};
use nets::mlp;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use wgpu_optim::{AnyRule, Bound, Format, Group, Layout, Optimizer, Options, Schedule, Step, Tensors};
use wgpu_optim::{cpu, wgpu};

const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/from_config.json");

/// The contents of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    steps: usize,
    batch: NonZeroUsize,
    /// The share of held-out images that the network must recognise in the end.
    required_accuracy: f64,
    lr: Schedule,
    #[serde(default)]
    options: Options,
    groups: Vec<GroupConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupConfig {
    name: String,
    rule: AnyRule,
    #[serde(default = "one")]
    lr_factor: Schedule,
    /// Shapes by name.
    tensors: BTreeMap<String, Vec<u64>>,
}

fn one() -> Schedule {
    1.0.into()
}

impl Config {
    fn read(path: &str) -> Result<Self, Box<dyn Error>> {
        let text = std::fs::read_to_string(path)?;
        let config: Self = serde_json::from_str(&text)?;
        match (config.options.params, config.options.grads) {
            (Format::F32, Format::F32) => Ok(config),
            _ => Err("options: params and grads must be \"f32\", which the network computes with".into()),
        }
    }

    fn layout(&self) -> Result<Layout, Box<dyn Error>> {
        let group = |config: &GroupConfig| {
            let group = Group::new(&config.name, config.rule).lr_factor(config.lr_factor.clone());
            config.tensors.iter().fold(group, |group, (name, shape)| group.tensor(name, shape))
        };
        let layout = Layout::new(self.groups.iter().map(group))?;
        // The network's tensors, for any number of hidden units.
        let hidden = layout.tensor("B1")?.len;
        let [pixels, classes] = [PIXELS, CLASSES].map(|n| n as u64);
        let wanted: [(&str, &[u64]); 4] =
            [("W1", &[pixels, hidden]), ("B1", &[hidden]), ("W2", &[hidden, classes]), ("B2", &[classes])];
        for (name, shape) in wanted {
            let found = &layout.tensor(name)?.shape;
            if found != shape {
                return Err(format!("tensor {name:?} of shape {found:?}, must be {shape:?}").into());
            }
        }
        let found = layout.tensors().len();
        if found == wanted.len() { Ok(layout) } else { Err(format!("{found} tensors, must be 4").into()) }
    }
}

/// The optimizer and its parameters, on either side.
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Engine {
    Gpu { gpu: Gpu, optimizer: Optimizer, params: wgpu::Buffer, grads: wgpu::Buffer, tensors: Bound },
    Cpu { optimizer: cpu::Optimizer, params: Vec<f32> },
}

impl Engine {
    fn new(layout: Layout, options: Options, start: Vec<f32>) -> Result<Self, Box<dyn Error>> {
        let gpu = match harness::open() {
            Ok(gpu) => gpu,
            Err(error) => {
                println!("no GPU ({error}): the optimizer is on the CPU");
                return Ok(Self::Cpu {
                    optimizer: cpu::Optimizer::with_options(layout, options)?,
                    params: start,
                });
            }
        };
        println!("{} ({})", gpu.info.name, gpu.info.backend);
        let (params, grads) = (gpu.upload(&start), gpu.buffer(layout.buffer_size()));
        let mut optimizer = Optimizer::with_options(&gpu.device, layout, options)?;
        let tensors = optimizer.bind(&Tensors::flat(&params, &grads))?;
        Ok(Self::Gpu { gpu, optimizer, params, grads, tensors })
    }

    fn step(&mut self, gradients: &[f32], step: Step) -> Result<(), wgpu_optim::Error> {
        match self {
            Self::Gpu { gpu, optimizer, grads, tensors, .. } => {
                gpu.write(grads, 0, gradients);
                let mut encoder = gpu.encoder();
                optimizer.step(&gpu.queue, &mut encoder, tensors, step)?;
                gpu.queue.submit([encoder.finish()]);
            }
            Self::Cpu { optimizer, params } => {
                // A copy, as options may set gradients to zero.
                optimizer.step(cpu::Tensors::flat(params, &mut gradients.to_vec()), step)?;
            }
        }
        Ok(())
    }

    fn params(&self) -> Vec<f32> {
        match self {
            Self::Gpu { gpu, params, .. } => gpu.download(params),
            Self::Cpu { params, .. } => params.clone(),
        }
    }
}

/// Trains, and returns the share of held-out images that the network recognises.
fn train(config: &Config) -> Result<f64, Box<dyn Error>> {
    let layout = config.layout()?;
    for group in layout.groups() {
        println!("group {:?}: {:?}, lr_factor {:?}", group.name(), group.rule(), group.factor());
    }
    let mut random = Random(config.seed);
    let (pixels, labels) = digits::images()?;
    let pixels = Array2::from_shape_vec((labels.len(), PIXELS), pixels)?;
    let select = |images: &[u32]| {
        let indices: Vec<_> = images.iter().map(|&i| i as usize).collect();
        let labels: Vec<_> = indices.iter().map(|&i| labels[i]).collect();
        (pixels.select(Axis(0), &indices), labels)
    };
    // A fifth of the images, at random, is held out.
    let mut training: Vec<_> = (0..labels.len() as u32).collect();
    random.shuffle(&mut training);
    let held_out = select(&training.split_off(labels.len() - labels.len() / 5));
    let start = initial_parameters(&layout, &mut random);
    let mut gradients = vec![0.0; layout.len() as usize];
    let mut engine = Engine::new(layout.clone(), config.options, start)?;
    let (mut accuracy, mut order, batch) = (0.0, Vec::new(), config.batch.get());
    for step in 0..config.steps {
        if order.len() < batch {
            random.shuffle(&mut training);
            order.extend_from_slice(&training);
        }
        let (images, labels) = select(&order.split_off(order.len().saturating_sub(batch)));
        let loss = mlp::loss(&layout, &engine.params(), images.view(), &labels, Some(&mut gradients));
        engine.step(&gradients, config.lr.at(step as u64)?)?;
        if (step + 1) % 100 == 0 || step + 1 == config.steps {
            let (images, labels) = &held_out;
            let (scores, _) = mlp::scores(&layout, &engine.params(), images.view());
            let largest = |row: ArrayView1<'_, f32>| (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            let right = scores.rows().into_iter().zip(labels);
            let right = right.filter(|(row, label)| largest(*row) == Some(**label as usize)).count();
            accuracy = right as f64 / labels.len() as f64;
            println!("step {:4}: loss {loss:.4}, {:.2} % recognised", step + 1, 100.0 * accuracy);
        }
    }
    Ok(accuracy)
}

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| DEFAULT.into());
    match Config::read(&path).and_then(|config| Ok((train(&config)?, config.required_accuracy))) {
        Ok((accuracy, required)) if accuracy >= required => ExitCode::SUCCESS,
        Ok((_, required)) => {
            eprintln!("{:.2} % are required", 100.0 * required);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}

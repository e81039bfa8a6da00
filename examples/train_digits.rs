//! Trains a small neural network on handwritten digits, all of it on the GPU.
//!
//! ```text
//! cargo run --release --example train_digits -- [SEED] [PICTURE.svg]
//! ```
//!
//! What to look at when you write an engine of your own:
//! - parameters and gradients are two flat buffers of one [`Layout`], which also tells the shader where each tensor lies;
//! - forward pass, backward pass and optimizer step of a batch go into one encoder (the loop in [`train`]);
//! - the host sends the order of the images before an epoch and reads losses after it; between batches it waits for
//!   nothing.
//!
//! It fails if it recognises fewer than 95 % of the images that it has not trained on.

use harness::Gpu;
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use wgpu_optim::{AdamW, Group, Layout, Optimizer, Tensors, schedule, wgpu};

const DIGITS: &str = include_str!("digits/digits.txt");
const SHADER: &str = include_str!("digits/mlp.wgsl");
const KERNELS: [&str; 4] = ["hidden_layer", "output_layer", "hidden_gradients", "parameter_gradients"];
/// Threads of a workgroup of the shader.
const WORKGROUP: usize = 64;

const PIXELS: usize = 64;
const HIDDEN: usize = 32;
const CLASSES: usize = 10;
/// Images a step. Their indices take 256 bytes, the alignment of a dynamic offset: a batch is a window of the order.
const BATCH: usize = 64;
const EPOCHS: usize = 40;
const WARMUP_STEPS: usize = 50;
const PEAK_LR: f64 = 1e-2;
const REQUIRED_ACCURACY: f64 = 0.95;

fn main() -> ExitCode {
    let gpu = match harness::open() {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match run(&gpu) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(gpu: &Gpu) -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seed = arguments.next().unwrap_or_else(|| "0".into());
    let seed = seed.parse().map_err(|_| format!("SEED is {seed:?}, must be a whole number"))?;
    let picture = arguments.next().unwrap_or_else(|| "target/train_digits.svg".into());
    println!("{} ({}), seed {seed}", gpu.info.name, gpu.info.backend);

    let curve = train(gpu, seed)?;
    draw(&curve, Path::new(&picture))?;
    let last = curve.last().ok_or("no epochs")?;
    println!("{}; loss curve in {picture}", last.summary());
    if last.accuracy < REQUIRED_ACCURACY {
        return Err(format!("{:.0} % are required", 100.0 * REQUIRED_ACCURACY).into());
    }
    Ok(())
}

/// Trains for [`EPOCHS`] and returns what each of them has come to.
fn train(gpu: &Gpu, seed: u64) -> Result<Vec<Epoch>, Box<dyn Error>> {
    let mut random = Random(seed);
    let (pixels, labels) = parse(DIGITS)?;
    // A fifth of the images, at random, is held out.
    let mut held_out: Vec<_> = (0..labels.len() as u32).collect();
    random.shuffle(&mut held_out);
    let mut training = held_out.split_off(labels.len() / 5);

    let layout = layout()?;
    let params = upload(gpu, &initial_parameters(&layout, &mut random));
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

/// Weights decay and biases do not. The names are those of the shader's offsets.
fn layout() -> Result<Layout<AdamW>, wgpu_optim::Error> {
    let [pixels, hidden, classes] = [PIXELS, HIDDEN, CLASSES].map(|n| n as u64);
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let no_decay = AdamW { weight_decay: 0.0, ..adamw };
    Layout::new([
        Group::new("decay", adamw).tensor("W1", [pixels, hidden]).tensor("W2", [hidden, classes]),
        Group::new("no_decay", no_decay).tensor("B1", [hidden]).tensor("B2", [classes]),
    ])
}

/// The flat parameters before training: weights uniform with variance 2 / rows (He et al., 2015), biases 0.
fn initial_parameters(layout: &Layout<AdamW>, random: &mut Random) -> Vec<f32> {
    let mut params = vec![0.0; (layout.buffer_size() / 4) as usize];
    for tensor in layout.tensors() {
        if let [rows, _] = tensor.shape[..] {
            let bound = (6.0 / rows as f64).sqrt();
            params[tensor.offset as usize..tensor.end() as usize]
                .fill_with(|| (bound * (2.0 * random.uniform() - 1.0)) as f32);
        }
    }
    params
}

/// The images: [`PIXELS`] numbers from 0 to 1 each, and their labels. Lines of base-17 digits, one a pixel, and a label.
fn parse(text: &str) -> Result<(Vec<f32>, Vec<u32>), Box<dyn Error>> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (image, label) = line.split_once(' ').ok_or("an image without a label")?;
        pixels.extend(image.chars().filter_map(|c| c.to_digit(17)).map(|ink| ink as f32 / 16.0));
        labels.push(label.parse()?);
    }
    if pixels.len() == PIXELS * labels.len() { Ok((pixels, labels)) } else { Err("pixels missing".into()) }
}

/// The network's kernels and the buffers they work in.
struct Network {
    bindings: wgpu::BindGroupLayout,
    /// In the order of their bindings, from 1 on; binding 0 is the batch.
    buffers: [wgpu::Buffer; 7],
    /// Loss and correctness (1 or 0) of each image, from when it was last looked at.
    outcomes: wgpu::Buffer,
    /// Those of [`KERNELS`].
    kernels: [wgpu::ComputePipeline; 4],
    parameters: usize,
}

/// Where the network finds the images to look at: windows of `examples` indices in one buffer.
struct Batch {
    group: wgpu::BindGroup,
    examples: usize,
}

impl Network {
    /// `data` are images, labels, parameters and gradients.
    fn new(gpu: &Gpu, layout: &Layout<AdamW>, data: [wgpu::Buffer; 4], images: usize) -> Self {
        // Two f32 an element, and room for a batch of all images.
        let pairs = |elements: usize| gpu.buffer((images * elements * 8) as u64);
        let (hidden, output, outcomes) = (pairs(HIDDEN), pairs(CLASSES), pairs(1));
        let [pixels, labels, params, grads] = data;
        let bindings = bindings(&gpu.device);
        Self {
            kernels: kernels(&gpu.device, &bindings, layout),
            bindings,
            buffers: [pixels, labels, params, grads, hidden, output, outcomes.clone()],
            outcomes,
            parameters: layout.len() as usize,
        }
    }

    /// Batches of `examples` images, whose indices `order` has.
    fn batch(&self, gpu: &Gpu, order: &wgpu::Buffer, examples: usize) -> Batch {
        let size = wgpu::BufferSize::new((examples * size_of::<u32>()) as u64);
        let window = wgpu::BufferBinding { buffer: order, offset: 0, size };
        let entry = |(binding, resource)| wgpu::BindGroupEntry { binding, resource };
        let mut entries = vec![entry((0, wgpu::BindingResource::Buffer(window)))];
        entries.extend((1..).zip(self.buffers.iter().map(wgpu::Buffer::as_entire_binding)).map(entry));
        let group = wgpu::BindGroupDescriptor { label: None, layout: &self.bindings, entries: &entries };
        Batch { group: gpu.device.create_bind_group(&group), examples }
    }

    /// Records the forward pass over a window's images, up to their losses.
    fn forward(&self, pass: &mut wgpu::ComputePass<'_>, batch: &Batch, window: usize) {
        let offset = window * batch.examples * size_of::<u32>();
        pass.set_bind_group(0, &batch.group, &[offset as u32]);
        let [hidden_layer, output_layer, ..] = &self.kernels;
        dispatch(pass, hidden_layer, batch.examples * HIDDEN);
        dispatch(pass, output_layer, batch.examples);
    }

    /// Records the backward pass of the batch that went forward last: fills the gradient buffer.
    fn backward(&self, pass: &mut wgpu::ComputePass<'_>, batch: &Batch) {
        let [.., hidden_gradients, parameter_gradients] = &self.kernels;
        dispatch(pass, hidden_gradients, batch.examples * HIDDEN);
        dispatch(pass, parameter_gradients, self.parameters);
    }
}

/// Records at least `threads` threads.
fn dispatch(pass: &mut wgpu::ComputePass<'_>, kernel: &wgpu::ComputePipeline, threads: usize) {
    pass.set_pipeline(kernel);
    pass.dispatch_workgroups(threads.div_ceil(WORKGROUP) as u32, 1, 1);
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

/// Compiles the shader's kernels. They learn from the layout where each tensor lies.
fn kernels(
    device: &wgpu::Device,
    bindings: &wgpu::BindGroupLayout,
    layout: &Layout<AdamW>,
) -> [wgpu::ComputePipeline; 4] {
    let source = wgpu::ShaderSource::Wgsl(SHADER.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("mlp"), source });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        bind_group_layouts: &[Some(bindings)],
        ..Default::default()
    });
    let mut constants: Vec<_> = layout.tensors().iter().map(|t| (t.name.as_str(), t.offset as f64)).collect();
    let sizes = [("WORKGROUP", WORKGROUP), ("PIXELS", PIXELS), ("HIDDEN", HIDDEN), ("CLASSES", CLASSES)];
    constants.extend(sizes.map(|(name, size)| (name, size as f64)));
    let constants = &constants[..];
    KERNELS.map(|name| {
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions { constants, ..Default::default() },
            cache: None,
        })
    })
}

/// A storage buffer of exactly `data`.
fn upload<T: bytemuck::Pod>(gpu: &Gpu, data: &[T]) -> wgpu::Buffer {
    let buffer = gpu.buffer(size_of_val(data) as u64);
    gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(data));
    buffer
}

/// Means of an epoch. Training images are looked at in the course of it, held-out ones at its end.
struct Epoch {
    training_loss: f64,
    held_out_loss: f64,
    accuracy: f64,
}

impl Epoch {
    /// `outcomes` has loss and correctness of each image in turn.
    fn new(outcomes: &[f32], training: &[u32], held_out: &[u32]) -> Self {
        let mean = |images: &[u32], field| {
            let values = images.iter().map(|&image| f64::from(outcomes[2 * image as usize + field]));
            values.sum::<f64>() / images.len() as f64
        };
        let (training_loss, held_out_loss) = (mean(training, 0), mean(held_out, 0));
        Self { training_loss, held_out_loss, accuracy: mean(held_out, 1) }
    }

    fn summary(&self) -> String {
        let Self { training_loss, held_out_loss, accuracy } = self;
        let percent = 100.0 * accuracy;
        format!("loss {training_loss:.4}, held out {held_out_loss:.4}, {percent:.2} % recognised")
    }
}

/// Draws the losses of all epochs as an SVG.
fn draw(curve: &[Epoch], path: &Path) -> Result<(), Box<dyn Error>> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
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

/// The SplitMix64 generator (Steele, Lea and Flood, 2014): the same seed gives the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Fisher and Yates's shuffle.
    fn shuffle(&mut self, items: &mut [u32]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.uniform() * (i + 1) as f64) as usize);
        }
    }
}

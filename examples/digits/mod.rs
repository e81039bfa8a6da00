//! Shared code of the examples with handwritten digits: the images, the network's shape and start, and the
//! running of shaders.

use harness::Gpu;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wgpu_optim::{AdamW, Group, Layout, wgpu};

/// Threads of a workgroup of the shaders.
const WORKGROUP: usize = 64;

pub(crate) const PIXELS: usize = 64;
pub(crate) const HIDDEN: usize = 32;
pub(crate) const CLASSES: usize = 10;

pub(crate) type Done = Result<(), Box<dyn Error>>;

/// Runs an example with the arguments `[SEED] [PICTURE.svg]`.
pub(crate) fn main(name: &str, run: fn(&Gpu, u64, &Path) -> Done) -> ExitCode {
    let gpu = match harness::open() {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let run = || {
        let mut arguments = std::env::args().skip(1);
        let seed = arguments.next().unwrap_or_else(|| "0".into());
        let seed = seed.parse().map_err(|_| format!("SEED is {seed:?}, must be a whole number"))?;
        let picture = arguments.next().map_or_else(|| format!("target/{name}.svg").into(), PathBuf::from);
        if let Some(directory) = picture.parent() {
            std::fs::create_dir_all(directory)?;
        }
        println!("{} ({}), seed {seed}", gpu.info.name, gpu.info.backend);
        run(&gpu, seed, &picture)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The images: [`PIXELS`] numbers from 0 to 1 each, and their labels. Lines of base-17 digits, one per pixel,
/// and a label.
pub(crate) fn images() -> Result<(Vec<f32>, Vec<u32>), Box<dyn Error>> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for line in include_str!("digits.txt").lines() {
        let (image, label) = line.split_once(' ').ok_or("an image without a label")?;
        pixels.extend(image.chars().filter_map(|c| c.to_digit(17)).map(|ink| ink as f32 / 16.0));
        labels.push(label.parse()?);
    }
    if pixels.len() == PIXELS * labels.len() { Ok((pixels, labels)) } else { Err("pixels missing".into()) }
}

/// Weights decay and biases do not. The names are those of the shaders' offsets.
pub(crate) fn layout() -> Result<Layout, wgpu_optim::LayoutError> {
    let [pixels, hidden, classes] = [PIXELS, HIDDEN, CLASSES].map(|n| n as u64);
    let adamw = AdamW { weight_decay: 0.1, ..AdamW::default() };
    let no_decay = AdamW { weight_decay: 0.0, ..adamw };
    Layout::new([
        Group::new("decay", adamw).tensor("W1", [pixels, hidden]).tensor("W2", [hidden, classes]),
        Group::new("no_decay", no_decay).tensor("B1", [hidden]).tensor("B2", [classes]),
    ])
}

/// The flat parameters before training: weights uniform with variance 2 / rows (He et al., 2015), biases 0.
pub(crate) fn initial_parameters(layout: &Layout, random: &mut Random) -> Vec<f32> {
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

/// A storage buffer of exactly `data`.
pub(crate) fn upload<T: bytemuck::Pod>(gpu: &Gpu, data: &[T]) -> wgpu::Buffer {
    let buffer = gpu.buffer(size_of_val(data) as u64);
    gpu.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(data));
    buffer
}

/// Compiles the kernels of a shader. Constants from the layout give them the start of each tensor.
pub(crate) fn kernels<const N: usize>(
    device: &wgpu::Device,
    shader: &str,
    names: [&str; N],
    bindings: &wgpu::BindGroupLayout,
    layout: &Layout,
) -> [wgpu::ComputePipeline; N] {
    let source = wgpu::ShaderSource::Wgsl(shader.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("mlp"), source });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        bind_group_layouts: &[Some(bindings)],
        ..Default::default()
    });
    let mut constants: Vec<_> = layout.tensors().iter().map(|t| (t.name.as_str(), t.offset as f64)).collect();
    let sizes = [("WORKGROUP", WORKGROUP), ("PIXELS", PIXELS), ("HIDDEN", HIDDEN), ("CLASSES", CLASSES)];
    constants.extend(sizes.map(|(name, size)| (name, size as f64)));
    let constants = &constants[..];
    names.map(|name| {
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

/// Records at least `threads` threads.
pub(crate) fn dispatch(pass: &mut wgpu::ComputePass<'_>, kernel: &wgpu::ComputePipeline, threads: usize) {
    pass.set_pipeline(kernel);
    pass.dispatch_workgroups(threads.div_ceil(WORKGROUP) as u32, 1, 1);
}

/// The SplitMix64 generator (Steele, Lea and Flood, 2014): the same seed gives the same run.
pub(crate) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Fisher and Yates's shuffle.
    pub(crate) fn shuffle(&mut self, items: &mut [u32]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.uniform() * (i + 1) as f64) as usize);
        }
    }
}

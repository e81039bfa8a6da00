//! One dispatch for all tensors beside a dispatch for each: AdamW over the same parameters in more and more
//! tensors.
//!
//! ```text
//! cargo bench --bench tensors
//! ```
//!
//! The kernel is the same on both sides. On one side, all tensors lie in a flat buffer. On the other, each
//! lies in buffers of its own, as frameworks keep them. A sample is a submitted step, waited for; both sides
//! are sampled by turns. Prints medians.

use harness::{Gpu, median};
use std::time::Instant;
use wgpu_optim::{AdamW, Bound, Group, Layout, Optimizer, Tensors, wgpu};

const ELEMENTS: u64 = 1 << 21;
const COUNTS: [u64; 4] = [1, 8, 64, 512];
const WARMUP: usize = 3;
const SAMPLES: usize = 21;

fn main() {
    let gpu = harness::open().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    let device = format!("{}, {}", gpu.info.name, gpu.info.driver_info);
    println!("AdamW, {ELEMENTS} parameters, on {device}; medians of {SAMPLES}");
    for tensors in COUNTS {
        measure(&gpu, tensors);
    }
}

fn layout(tensors: u64) -> Layout {
    let group = Group::new("all", AdamW::default());
    let group = (0..tensors).fold(group, |group, i| group.tensor(format!("t{i}"), [ELEMENTS / tensors]));
    Layout::new([group]).expect("a good layout")
}

/// An optimizer with its tensors.
struct Side {
    optimizer: Optimizer,
    tensors: Bound,
}

impl Side {
    fn new(gpu: &Gpu, layout: &Layout, tensors: &Tensors<'_>) -> Self {
        let mut optimizer = Optimizer::new(&gpu.device, layout.clone()).expect("a capable device");
        let tensors = optimizer.bind(tensors).expect("good buffers");
        Self { optimizer, tensors }
    }

    /// Seconds of a step.
    fn sample(&mut self, gpu: &Gpu) -> f64 {
        let start = Instant::now();
        let mut encoder = gpu.encoder();
        self.optimizer.step(&gpu.queue, &mut encoder, &self.tensors, 1e-3).expect("a good learning rate");
        gpu.run(encoder);
        start.elapsed().as_secs_f64()
    }
}

/// Prints the times of both sides.
fn measure(gpu: &Gpu, tensors: u64) {
    let layout = layout(tensors);
    let values = vec![0.01; ELEMENTS as usize];
    let (params, grads) = (gpu.upload(&values), gpu.upload(&values));
    let own: Vec<[wgpu::Buffer; 2]> =
        layout.tensors().iter().map(|tensor| [(); 2].map(|()| gpu.upload(&values[tensor.range()]))).collect();
    let each = layout.tensors().iter().zip(&own).map(|(tensor, [p, g])| (tensor.name.as_str(), p, g));
    let each = Tensors::each(each);
    let mut sides = [Tensors::flat(&params, &grads), each].map(|tensors| Side::new(gpu, &layout, &tensors));
    let mut samples = [Vec::new(), Vec::new()];
    for round in 0..WARMUP + SAMPLES {
        for (side, samples) in sides.iter_mut().zip(&mut samples) {
            let seconds = side.sample(gpu);
            if round >= WARMUP {
                samples.push(seconds);
            }
        }
    }
    let [flat, each] = samples.map(|samples| 1e3 * median(samples));
    let [one, many] = sides.map(|side| side.tensors.dispatches());
    println!(
        "{tensors:3} tensors in one buffer: {flat:6.2} ms, dispatches: {one}; in buffers of their own: \
         {each:6.2} ms, dispatches: {many}; ratio {:.3}",
        flat / each
    );
}

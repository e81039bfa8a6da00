//! One dispatch for all tensors beside a dispatch for each: AdamW over the same parameters in more and more
//! tensors.
//!
//! ```text
//! cargo bench --bench tensors -- [PICTURE.svg]
//! ```
//!
//! The kernel is the same on both sides. On one side, all tensors lie in a flat buffer. On the other, each
//! lies in buffers of its own, as frameworks keep them. A sample is a submitted step, waited for; both sides
//! are sampled by turns. Prints medians, and draws them.

use harness::{Gpu, median};
use std::fmt::Write as _;
use std::time::Instant;
use wgpu_optim::{AdamW, Bound, Group, Layout, Optimizer, Tensors, wgpu};

/// As the picture says.
const ELEMENTS: u64 = 1 << 21;
const COUNTS: [u64; 4] = [1, 8, 64, 512];
const WARMUP: usize = 3;
const SAMPLES: usize = 21;

/// Medians in milliseconds.
struct Row {
    tensors: u64,
    /// Dispatches and time of a step in the flat buffer, then in buffers of single tensors.
    sides: [(usize, f64); 2],
}

fn main() {
    let gpu = harness::open().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    // Cargo adds `--bench`.
    let picture = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let rows: Vec<_> = COUNTS.iter().map(|&tensors| measure(&gpu, tensors)).collect();
    let device = format!("{}, {}", gpu.info.name, gpu.info.driver_info);
    println!("AdamW, {ELEMENTS} parameters, on {device}; medians of {SAMPLES}");
    for Row { tensors, sides: [(one, flat), (many, each)] } in &rows {
        println!(
            "{tensors:3} in one buffer: {flat:6.2} ms, dispatches: {one}; in buffers of their own: \
             {each:6.2} ms, dispatches: {many}; ratio {:.3}",
            flat / each
        );
    }
    if let Some(file) = picture {
        std::fs::write(&file, draw(&rows, &device)).unwrap_or_else(|error| panic!("{file}: {error}"));
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

fn measure(gpu: &Gpu, tensors: u64) -> Row {
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
    Row { tensors, sides: [(one, flat), (many, each)] }
}

/// A bar for each median.
fn draw(rows: &[Row], device: &str) -> String {
    const WIDTH: f64 = 640.0;
    const LEFT: f64 = 90.0;
    let longest = rows.iter().flat_map(|row| row.sides).map(|(_, ms)| ms).fold(0.0, f64::max);
    let height = 74 + 52 * rows.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"14\">A step of AdamW over 2²¹ parameters: all tensors in one \
         buffer (blue), or each in its own (grey)</text>\n\
         <text x=\"12\" y=\"44\" fill=\"#555\">{device}; medians of {SAMPLES} steps</text>\n"
    );
    for (i, row) in rows.iter().enumerate() {
        let top = 62 + 52 * i;
        let name = if row.tensors == 1 { "tensor" } else { "tensors" };
        let _ = writeln!(svg, "<text x=\"12\" y=\"{}\">{} {name}</text>", top + 26, row.tensors);
        for (j, (dispatches, ms)) in row.sides.into_iter().enumerate() {
            let (y, width) = (top + 20 * j, (WIDTH - LEFT - 170.0) * ms / longest);
            let colour = ["#1f5fbf", "#aaaaaa"][j];
            let name = if dispatches == 1 { "dispatch" } else { "dispatches" };
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"18\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{ms:.1} ms, {dispatches} {name}</text>",
                LEFT + width + 6.0,
                y + 14
            );
        }
    }
    svg + "</svg>\n"
}

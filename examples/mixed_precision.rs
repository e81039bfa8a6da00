//! Trains a small neural network in mixed precision on the GPU, a thousand steps of which the host waits for none, and holds the loss curve
//! against the CPU's.
//!
//! ```text
//! cargo run --release --example mixed_precision -- [SEED] [PICTURE.svg]
//! ```
//!
//! What to look at when you write an engine of your own:
//! - parameters, state and gradients of the optimizer are f32; the network reads weights that are rounded to f16 before every step;
//! - the shader multiplies the loss by [`Optimizer::loss_scale`], where the device keeps it;
//! - activations and gradients are stored in f16, so that a scale too large makes infinities of them; the optimizer then skips the step and
//!   lowers the scale;
//! - which steps were skipped is in the reports, which the host looks at when all is done.
//!
//! Two references in f64 on the CPU go the same way: one rounds to f16 where the device does, with a loss scale and skips of its own; the other
//! rounds nothing and skips the steps that the device has skipped. The example fails if the first skips or scales otherwise, or if losses differ
//! by more than a bound. Relative differences, for seeds 0 to 39 with lavapipe (Mesa 22.3.6):
//!
//! | loss | beside | median | worst | bound |
//! | --- | --- | --- | --- | --- |
//! | each step of the warm-up | the same roundings | 1.0·10⁻⁵ | 3.1·10⁻⁵ | 10⁻⁴ |
//! | each step | the same roundings | 1.8·10⁻³ | 1.1·10⁻² | 3·10⁻² |
//! | means of 50 steps | no roundings | 5·10⁻⁴ | 3.8·10⁻³ | 10⁻² |
//!
//! The first two are so far above f32's precision because a sum whose last digit differs is now and then rounded to another f16, and training
//! amplifies that: Adam divides by the root of a mean square, however small it is, and a ReLU is on or off. A gradient that is that near to
//! f16's limit can overflow on one side alone, and the runs part. In these seeds none has; where the scale grows every 40 steps instead of every
//! 100, one has in one seed of 30.

mod digits;

use digits::{CLASSES, Done, HIDDEN, PIXELS, Random, dispatch, upload};
use harness::Gpu;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use wgpu_optim::cpu::Reference;
use wgpu_optim::{AdamW, Clip, Layout, LossScale, Optimizer, Options, Schedule, Tensors, schedule, wgpu};

const SHADER: &str = concat!(include_str!("digits/f16.wgsl"), include_str!("digits/mixed.wgsl"));
const KERNELS: [&str; 5] =
    ["round_weights", "hidden_layer", "output_layer", "hidden_gradients", "parameter_gradients"];

const STEPS: usize = 1_000;
/// Images a step. Their losses take 256 bytes, the alignment of a dynamic offset: those of a step are a window of all.
const BATCH: usize = 64;
const WARMUP_STEPS: usize = 50;
const PEAK_LR: f64 = 2e-3;
const MAX_NORM: f64 = 1.0;

/// Steps in a mean loss.
const WINDOW: usize = 50;
/// Bounds of relative differences: see above.
const WARMUP_BOUND: f64 = 1e-4;
const STEP_BOUND: f64 = 0.03;
const WINDOW_BOUND: f64 = 0.01;

/// It overflows from the start, and again and again as it grows.
fn loss_scale() -> LossScale {
    LossScale { initial: 24f64.exp2(), growth_interval: 100, ..LossScale::default() }
}

fn main() -> ExitCode {
    digits::main("mixed_precision", run)
}

fn run(gpu: &Gpu, seed: u64, picture: &Path) -> Done {
    let task = Task::new(seed)?;
    let device = train(gpu, &task)?;
    let mixed = task.reference(f16, |_, overflow| overflow)?;
    let double = task.reference(|x| x, |step, _| device.skipped.contains(&step))?;
    draw(&device, &mixed, &double, picture)?;
    println!("{STEPS} steps, skipped on the device: {:?}", device.skipped);
    println!("and in the reference: {:?}", mixed.skipped);
    let [a, b, c] = [&device, &mixed, &double].map(|run| run.means(WINDOW).last().unwrap_or(f64::NAN));
    println!("mean loss of the last {WINDOW}: {a:.5}, in the reference {b:.5}, without roundings {c:.5}");
    println!("loss curves in {}", picture.display());
    if device.skipped != mixed.skipped || device.scales != mixed.scales {
        return Err("skipped steps or loss scales differ".into());
    }
    let warmup = largest(device.differences(&mixed, 1).take(WARMUP_STEPS));
    let step = largest(device.differences(&mixed, 1));
    let window = largest(device.differences(&double, WINDOW));
    let bounds = [
        ("a step's loss in the warm-up", warmup, WARMUP_BOUND),
        ("a step's loss", step, STEP_BOUND),
        ("a mean loss to that without roundings", window, WINDOW_BOUND),
    ];
    for (what, found, bound) in bounds {
        println!("largest difference of {what}: {found:.1e}, at most {bound:.0e}");
    }
    // NaN is within no bound.
    let within = bounds.iter().all(|(_, found, bound)| found <= bound);
    if within { Ok(()) } else { Err("a bound is exceeded".into()) }
}

/// What is to be trained, from the same start and with the same batches on every device.
struct Task {
    pixels: Vec<f32>,
    /// Image and label of each example of all batches in turn.
    examples: Vec<[u32; 2]>,
    layout: Layout<AdamW>,
    params: Vec<f32>,
    lr: Schedule,
}

/// What became of the steps.
#[derive(Default)]
struct Run {
    losses: Vec<f64>,
    /// What the losses were multiplied by.
    scales: Vec<f64>,
    /// Steps that were not taken.
    skipped: Vec<usize>,
}

impl Run {
    /// Mean losses of `window` steps each.
    fn means(&self, window: usize) -> impl Iterator<Item = f64> {
        self.losses.chunks(window).map(|losses| losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// Relative differences of such means.
    fn differences(&self, reference: &Self, window: usize) -> impl Iterator<Item = f64> {
        self.means(window).zip(reference.means(window)).map(|(a, b)| (a / b - 1.0).abs())
    }
}

/// NaN if any is.
fn largest(differences: impl Iterator<Item = f64>) -> f64 {
    differences.max_by(f64::total_cmp).unwrap_or(f64::NAN)
}

impl Task {
    fn new(seed: u64) -> Result<Self, Box<dyn Error>> {
        let mut random = Random(seed);
        let (pixels, labels) = digits::images()?;
        let mut order: Vec<_> = (0..labels.len() as u32).collect();
        let mut examples = Vec::new();
        while examples.len() < STEPS * BATCH {
            random.shuffle(&mut order);
            examples.extend(order.iter().map(|&image| [image, labels[image as usize]]));
        }
        examples.truncate(STEPS * BATCH);
        let layout = digits::layout()?;
        let params = digits::initial_parameters(&layout, &mut random);
        let lr = schedule::cosine(PEAK_LR, 0.0, (STEPS - WARMUP_STEPS) as u64).warmup(WARMUP_STEPS as u64);
        Ok(Self { pixels, examples, layout, params, lr })
    }

    /// The run on the CPU in f64, with `round` where the device rounds to f16. `skip` decides from a step's number and from whether its gradients
    /// have overflowed.
    fn reference(
        &self,
        round: fn(f64) -> f64,
        skip: impl Fn(usize, bool) -> bool,
    ) -> Result<Run, Box<dyn Error>> {
        let options = loss_scale();
        let (mut scale, mut good) = (options.initial, 0);
        let mut optimizer = Reference::new(self.layout.clone())?;
        let mut params: Vec<_> = self.params.iter().map(|&p| f64::from(p)).collect();
        let mut run = Run::default();
        for (step, batch) in self.examples.chunks(BATCH).enumerate() {
            let (loss, mut grads) = self.gradients(batch, &params, scale, round)?;
            let skipped = skip(step, grads.iter().any(|g| !g.is_finite()));
            run.losses.push(loss);
            run.scales.push(scale);
            if skipped {
                run.skipped.push(step);
                scale = (scale * options.backoff_factor).max(options.min);
                good = 0;
                continue;
            }
            let norm = grads.iter().map(|g| (g / scale).powi(2)).sum::<f64>().sqrt();
            let factor = (MAX_NORM / (norm + 1e-6)).min(1.0) / scale;
            grads.iter_mut().for_each(|g| *g *= factor);
            optimizer.step(&mut params, &grads, self.lr.at(step as u64)?)?;
            good += 1;
            if good == options.growth_interval {
                scale = (scale * options.growth_factor).min(options.max);
                good = 0;
            }
        }
        Ok(run)
    }

    /// The batch's mean loss, and the gradients of that times `scale`.
    fn gradients(
        &self,
        batch: &[[u32; 2]],
        params: &[f64],
        scale: f64,
        round: fn(f64) -> f64,
    ) -> Result<(f64, Vec<f64>), Box<dyn Error>> {
        let range = |name| self.layout.tensor(name).map(|t| t.range());
        let [w1, b1, w2, b2] = [range("W1")?, range("B1")?, range("W2")?, range("B2")?];
        let weights: Vec<_> = params.iter().map(|&p| round(p)).collect();
        let mut grads = vec![0.0; params.len()];
        let mut loss = 0.0;
        for &[image, label] in batch {
            let pixels: Vec<_> =
                self.pixels[image as usize * PIXELS..][..PIXELS].iter().map(|&x| f64::from(x)).collect();
            let mut hidden = product(&pixels, &weights[w1.clone()], &weights[b1.clone()]);
            hidden.iter_mut().for_each(|h| *h = round(h.max(0.0)));
            let mut scores = product(&hidden, &weights[w2.clone()], &weights[b2.clone()]);
            scores.iter_mut().for_each(|s| *s = round(*s));
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            loss += total.ln() - (scores[label as usize] - largest);
            let by_scores: Vec<_> = (0..)
                .zip(&scores)
                .map(|(digit, s)| (s - largest).exp() / total - f64::from(u8::from(digit == label)))
                .map(|gradient| round(scale / batch.len() as f64 * gradient))
                .collect();
            let by_hidden: Vec<_> = (hidden.iter().zip(weights[w2.clone()].chunks(CLASSES)))
                .map(|(&h, row)| if h > 0.0 { round(dot(row, &by_scores)) } else { 0.0 })
                .collect();
            add_outer(&mut grads[w1.clone()], &pixels, &by_hidden);
            add_outer(&mut grads[b1.clone()], &[1.0], &by_hidden);
            add_outer(&mut grads[w2.clone()], &hidden, &by_scores);
            add_outer(&mut grads[b2.clone()], &[1.0], &by_scores);
        }
        grads.iter_mut().for_each(|g| *g = round(*g));
        Ok((loss / batch.len() as f64, grads))
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// bias + x · matrix
fn product(x: &[f64], matrix: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut sums = bias.to_vec();
    for (x, row) in x.iter().zip(matrix.chunks(bias.len())) {
        sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * w);
    }
    sums
}

/// matrix + a bᵀ
fn add_outer(matrix: &mut [f64], a: &[f64], b: &[f64]) {
    for (row, a) in matrix.chunks_mut(b.len()).zip(a) {
        row.iter_mut().zip(b).for_each(|(m, b)| *m += a * b);
    }
}

/// The nearest f16, ties to even.
fn f16(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1_023;
    // Eleven binary digits, none of them below 2⁻²⁴.
    let quantum = f64::from(exponent.max(-14) - 10).exp2();
    let rounded = (x / quantum).round_ties_even() * quantum;
    if rounded.abs() > 65_504.0 { f64::INFINITY.copysign(x) } else { rounded }
}

/// Trains on the device.
fn train(gpu: &Gpu, task: &Task) -> Result<Run, Box<dyn Error>> {
    let options = Options {
        loss_scale: Some(loss_scale()),
        clip: Some(Clip::GlobalNorm(MAX_NORM)),
        ..Options::default()
    };
    let mut optimizer = Optimizer::with_options(&gpu.device, task.layout.clone(), options)?;
    let params = upload(gpu, &task.params);
    let grads = gpu.buffer(task.layout.buffer_size());
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads))?;
    let losses = gpu.buffer((STEPS * BATCH * size_of::<f32>()) as u64);
    let scale = optimizer.loss_scale().ok_or("no loss scale")?;
    let network = Network::new(gpu, task, [&params, &grads, &losses, scale]);
    for step in 0..STEPS {
        let lr = task.lr.at(step as u64)?;
        let mut encoder = gpu.encoder();
        network.record(&mut encoder.begin_compute_pass(&Default::default()), step);
        optimizer.step(&gpu.queue, &mut encoder, &tensors, lr)?;
        gpu.queue.submit([encoder.finish()]);
        // Lets reports arrive that are there, and waits for none.
        gpu.device.poll(wgpu::PollType::Poll)?;
    }
    // The one time that the host waits.
    let losses = gpu.download(&losses);
    let mut run = Run::default();
    for losses in losses.chunks(BATCH) {
        let report = optimizer.take_report().ok_or("a report is missing")?;
        run.losses.push(losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / BATCH as f64);
        run.scales.push(report.loss_scale.into());
        if !report.finite {
            run.skipped.push(report.step as usize);
        }
    }
    Ok(run)
}

/// The network's kernels and what they are bound to.
struct Network {
    /// Those of [`KERNELS`].
    kernels: [wgpu::ComputePipeline; 5],
    group: wgpu::BindGroup,
    parameters: usize,
}

impl Network {
    fn new(gpu: &Gpu, task: &Task, [params, grads, losses, scale]: [&wgpu::Buffer; 4]) -> Self {
        let examples = upload(gpu, &task.examples);
        let pixels = upload(gpu, &task.pixels);
        let weights = gpu.buffer(params.size() / 2);
        let [hidden, output] = [HIDDEN, CLASSES].map(|n| gpu.buffer((BATCH * n * 4) as u64));
        let window = |buffer, bytes: usize| {
            let size = wgpu::BufferSize::new(bytes as u64);
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size })
        };
        let resources = [
            window(&examples, BATCH * 8),
            window(losses, BATCH * 4),
            pixels.as_entire_binding(),
            params.as_entire_binding(),
            grads.as_entire_binding(),
            weights.as_entire_binding(),
            hidden.as_entire_binding(),
            output.as_entire_binding(),
            scale.as_entire_binding(),
        ];
        let bindings = bindings(&gpu.device);
        let entries: Vec<_> = (0..)
            .zip(resources)
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource })
            .collect();
        Self {
            kernels: digits::kernels(&gpu.device, SHADER, KERNELS, &bindings, &task.layout),
            group: gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &bindings,
                entries: &entries,
            }),
            parameters: task.layout.len() as usize,
        }
    }

    /// Records forward and backward pass of a step: fills the gradient buffer.
    fn record(&self, pass: &mut wgpu::ComputePass<'_>, step: usize) {
        pass.set_bind_group(0, &self.group, &[step * BATCH * 8, step * BATCH * 4].map(|o| o as u32));
        let [round_weights, hidden_layer, output_layer, hidden_gradients, parameter_gradients] =
            &self.kernels;
        dispatch(pass, round_weights, self.parameters / 2);
        dispatch(pass, hidden_layer, BATCH * HIDDEN / 2);
        dispatch(pass, output_layer, BATCH);
        dispatch(pass, hidden_gradients, BATCH * HIDDEN / 2);
        dispatch(pass, parameter_gradients, self.parameters / 2);
    }
}

/// The shader's bindings.
fn bindings(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    let entries: [_; 9] = std::array::from_fn(|binding| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match binding {
                8 => wgpu::BufferBindingType::Uniform,
                _ => wgpu::BufferBindingType::Storage { read_only: matches!(binding, 0 | 2 | 3) },
            },
            has_dynamic_offset: binding < 2,
            min_binding_size: None,
        },
        count: None,
    });
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

/// Draws the losses and the loss scale of all steps as an SVG.
fn draw(device: &Run, mixed: &Run, double: &Run, path: &Path) -> Done {
    let root = SVGBackend::new(path, (640, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(400);
    let mut chart = ChartBuilder::on(&above)
        .caption("AdamW on handwritten digits, in mixed precision", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(20)
        .y_label_area_size(50)
        .build_cartesian_2d(0..STEPS, (0.02..4.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .y_desc("mean cross-entropy, nats")
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;
    // Each covers the one before, so it is thinner.
    let curves = [
        ("device", device, BLUE.mix(0.3).stroke_width(5)),
        ("CPU, rounding to f16", mixed, BLACK.stroke_width(2)),
        ("CPU, f64", double, RED.stroke_width(1)),
    ];
    for (name, run, style) in curves {
        chart
            .draw_series(LineSeries::new((0..).zip(run.losses.iter().copied()), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;

    let bits = |scale: &f64| scale.log2();
    let ends = device.scales.iter().map(bits).fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let mut chart = ChartBuilder::on(&below)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0..STEPS, ends.0 - 1.0..ends.1 + 1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("step; dots overflow")
        .y_desc("log₂ of loss scale")
        .y_labels(5)
        .draw()?;
    chart.draw_series(LineSeries::new((0..).zip(device.scales.iter().map(bits)), BLUE))?;
    let overflows = device.skipped.iter().map(|&step| (step, bits(&device.scales[step])));
    chart.draw_series(overflows.map(|at| Circle::new(at, 2, RED.filled())))?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFINITY: u16 = 0x7c00;

    /// What the bits of an f16 mean.
    fn value(bits: u16) -> f64 {
        let (exponent, fraction) = (bits >> 10 & 0x1f, f64::from(bits & 0x3ff));
        let magnitude = match exponent {
            0 => fraction * (-24f64).exp2(),
            31 => f64::INFINITY,
            _ => (1_024.0 + fraction) * (f64::from(exponent) - 25.0).exp2(),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }

    /// Each f16, the middle between it and the next, the numbers on either side of that, and what they are to be rounded to.
    fn cases() -> Vec<(f32, u16)> {
        let mut cases =
            vec![(f32::from_bits(1), 0), (f32::MAX, INFINITY), (f32::INFINITY, INFINITY), (1e6, INFINITY)];
        for bits in 0..INFINITY {
            // Were f16 to go on, it would with 2¹⁶.
            let next = value(bits + 1).min(65_536.0);
            let middle = f64::midpoint(value(bits), next) as f32;
            let even = bits + bits % 2;
            cases.push((value(bits) as f32, bits));
            cases.extend([(middle.next_down(), bits), (middle, even), (middle.next_up(), bits + 1)]);
        }
        let negative: Vec<_> = cases.iter().map(|&(x, bits)| (-x, bits | 0x8000)).collect();
        cases.extend(negative);
        cases
    }

    #[test]
    fn the_reference_rounds_to_nearest() {
        for (x, bits) in cases() {
            let (got, want) = (f16(x.into()), value(bits));
            assert_eq!(got.to_bits(), want.to_bits(), "{x:e}: {got:e} instead of {want:e}");
        }
        assert!(f16(f64::NAN).is_nan());
        // What f32 would round to a tie first.
        assert_eq!(f16(1.0 + 2f64.powi(-11) + 2f64.powi(-40)), 1.0 + 2f64.powi(-10));
    }

    #[test]
    fn the_device_rounds_to_nearest() {
        const ENTRY: &str = "
            @group(0) @binding(0) var<storage, read> x: array<vec2<f32>>;
            @group(0) @binding(1) var<storage, read_write> y: array<vec4<u32>>;
            @compute @workgroup_size(64)
            fn round(@builtin(global_invocation_id) id: vec3<u32>) {
                if id.x < arrayLength(&x) {
                    let packed = pack(x[id.x]);
                    y[id.x] = vec4<u32>(halves(packed), bitcast<vec2<u32>>(unpack(packed)));
                }
            }";
        let Some(gpu) = harness::test_gpu() else { return };
        let mut cases = cases();
        cases.extend([(f32::NAN, INFINITY), (0.0, 0)]);
        assert!(cases.len().is_multiple_of(2));
        let x: Vec<_> = cases.iter().map(|&(x, _)| x).collect();
        let (x, y) = (upload(&gpu, &x), gpu.buffer(cases.len() as u64 * 8));
        let source = [include_str!("digits/f16.wgsl"), ENTRY].concat();
        let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let kernel = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let entries = [(0, &x), (1, &y)]
            .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() });
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = gpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_bind_group(0, &group, &[]);
            dispatch(&mut pass, &kernel, cases.len() / 2);
        }
        gpu.run(encoder);
        let y = gpu.read_bits(&y, 0, 2 * cases.len());
        for (cases, y) in cases.chunks(2).zip(y.chunks(4)) {
            for (i, &(x, bits)) in cases.iter().enumerate() {
                assert_eq!(y[i], u32::from(bits), "{x:e} becomes {:#x}", y[i]);
                let (got, want) = (f32::from_bits(y[2 + i]), value(bits) as f32);
                let finite = bits & INFINITY != INFINITY;
                assert!(!finite || got.to_bits() == want.to_bits(), "{bits:#x} means {got:e}");
            }
        }
    }
}

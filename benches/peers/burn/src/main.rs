//! AdamW of wgpu-optim beside AdamW of burn (wgpu backend, fusion) on the adapter that both choose. A sample
//! records a step and waits until the device has finished it. The two run in separate processes, by turns:
//! with a software adapter, burn's worker threads would otherwise share the cores with our samples. Prints
//! medians over all samples and their ratio.
//!
//! `cargo run --release --manifest-path benches/peers/burn/Cargo.toml`

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use harness::{Gpu, median};
use std::process::Command;
use std::time::Instant;
use wgpu_optim::{AdamW, Group, Layout, Optimizer, Tensors};

const WARMUP: usize = 5;
const SAMPLES: usize = 11;
const ROUNDS: usize = 5;
const LR: f64 = 1e-3;

#[derive(Module, Debug)]
struct Model {
    tensors: Vec<Param<Tensor<1>>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [who, count, len] => sample(who, number(count), number(len)),
        _ => [(1, 16_777_216), (512, 4_096)].iter().for_each(|&(count, len)| compare(count, len)),
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a count that `compare` wrote")
}

/// The parent: processes of both by turns.
fn compare(count: usize, len: usize) {
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (who, samples) in ["wgpu-optim", "burn"].iter().zip(&mut samples) {
            let program = std::env::current_exe().expect("this program's path");
            let child = Command::new(program).args([who, &*count.to_string(), &*len.to_string()]).output();
            let child = child.expect("the child runs");
            assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
            let text = String::from_utf8_lossy(&child.stdout);
            samples.extend(text.lines().map(|l| l.parse::<f64>().expect("a sample in seconds")));
        }
    }
    let [a, b] = samples.map(|s| median(s) * 1e3);
    println!("{count} × {len}: wgpu-optim {a:.2} ms, burn {b:.2} ms, ratio {:.3}", a / b);
}

/// The child: one sample per line.
fn sample(who: &str, count: usize, len: usize) {
    let values: Vec<f32> = (0..count * len).map(|i| (i as f32 * 0.618).fract() - 0.5).collect();
    let gpu = harness::open().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    let mut step: Box<dyn FnMut() -> f64> = match who {
        "burn" => Box::new(burns(&values, len)),
        _ => Box::new(ours(&gpu, &values, count, len)),
    };
    for sample in 0..WARMUP + SAMPLES {
        let seconds = step();
        if sample >= WARMUP {
            println!("{seconds}");
        }
    }
}

/// A sampler of our step: flat buffers, and two groups for several tensors.
fn ours<'a>(gpu: &'a Gpu, values: &[f32], count: usize, len: usize) -> impl FnMut() -> f64 + use<'a> {
    let rule = AdamW::default();
    let mut groups = vec![Group::new("even", rule), Group::new("odd", AdamW { weight_decay: 0.0, ..rule })];
    for i in 0..count {
        let group = &mut groups[i % 2];
        *group = group.clone().tensor_at(format!("t{i}"), [len as u64], (i * len) as u64);
    }
    groups.truncate(count);
    let layout = Layout::new(groups).expect("a good layout");
    let (params, grads) = (gpu.upload(values), gpu.upload(values));
    let mut optimizer = Optimizer::new(&gpu.device, layout).expect("a capable device");
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads)).expect("good buffers");
    move || {
        let start = Instant::now();
        let mut encoder = gpu.encoder();
        optimizer.step(&gpu.queue, &mut encoder, &tensors, LR).expect("a good learning rate");
        gpu.run(encoder);
        start.elapsed().as_secs_f64()
    }
}

/// A sampler of burn's step.
fn burns(values: &[f32], len: usize) -> impl FnMut() -> f64 {
    let device = Device::default();
    let autodiff = device.clone().autodiff();
    let tensors = values.chunks(len).map(|part| {
        let data = TensorData::new(part.to_vec(), [len]);
        Param::from_tensor(Tensor::<1>::from_data(data, &autodiff))
    });
    let mut model = Some(Model { tensors: tensors.collect() });
    let grads =
        values.chunks(len).map(|part| Tensor::<1>::from_data(TensorData::new(part.to_vec(), [len]), &device));
    let grads: Vec<_> = grads.collect();
    let mut optimizer: ModuleOptimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
    move || {
        let before = model.take().expect("put back below");
        let mut gradients = GradientsParams::new();
        for (param, grad) in before.tensors.iter().zip(&grads) {
            gradients.register(param.id, grad.clone());
        }
        device.sync().expect("the device answers");
        let start = Instant::now();
        model = Some(optimizer.step(LR, before, gradients));
        device.sync().expect("the device answers");
        start.elapsed().as_secs_f64()
    }
}

//! AdamW of wgpu-optim beside AdamW of burn (wgpu backend, fusion) on the adapter that both choose: samples of the two by turns, each the
//! recording of a step and the wait until the device has finished it. Prints medians and their ratio.
//!
//! `cargo run --release --manifest-path benches/peers/burn/Cargo.toml`

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use harness::{Gpu, median};
use std::time::Instant;
use wgpu_optim::{AdamW, Group, Layout, Optimizer, Tensors};

const WARMUP: usize = 5;
const SAMPLES: usize = 31;
const LR: f64 = 1e-3;

#[derive(Module, Debug)]
struct Model {
    tensors: Vec<Param<Tensor<1>>>,
}

fn main() {
    let gpu = harness::open().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    println!("{}, {}", gpu.info.name, gpu.info.driver_info);
    for (tensors, len) in [(1, 16_777_216), (512, 4_096)] {
        compare(&gpu, tensors, len);
    }
}

fn compare(gpu: &Gpu, count: usize, len: usize) {
    let values: Vec<f32> = (0..count * len).map(|i| (i as f32 * 0.618).fract() - 0.5).collect();
    let mut ours = ours(gpu, &values, count, len);
    let mut burns = burns(&values, len);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for sample in 0..WARMUP + SAMPLES {
        let (x, y) = (ours(), burns());
        if sample >= WARMUP {
            a.push(x);
            b.push(y);
        }
    }
    let (a, b) = (median(a) * 1e3, median(b) * 1e3);
    println!("{count} × {len}: wgpu-optim {a:.2} ms, burn {b:.2} ms, ratio {:.3}", a / b);
}

/// A sampler of our step: flat buffers, and two groups where there are several tensors.
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
    let grads = values.chunks(len).map(|part| {
        Tensor::<1>::from_data(TensorData::new(part.to_vec(), [len]), &device)
    });
    let grads: Vec<_> = grads.collect();
    let mut optimizer: ModuleOptimizer =
        AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init();
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

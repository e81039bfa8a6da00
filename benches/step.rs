//! Bytes per second of every rule, beside a plain copy of the same size on the same device.
//!
//! Throughput counts the bytes that an update must move ([`Layout::bytes_moved`]). A sample is one submitted
//! step with the wait for it.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use harness::{Copy, Gpu, wgpu};
use std::hint::black_box;
use std::time::Duration;
use wgpu_optim::{AdamW, AnyRule, Clip, Group, Layout, Optimizer, Options, Rule, Sgd, Tensors};

/// Every rule in its measured configuration: its defaults, except the momentum of SGD.
fn measured() -> Vec<AnyRule> {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    AnyRule::all().into_iter().map(|rule| if rule.name() == Sgd::NAME { sgd.into() } else { rule }).collect()
}

/// `count` tensors of `len` elements side by side; several are in two groups by turns.
fn layout(rule: impl Into<AnyRule>, count: u64, len: u64) -> Layout {
    let rule = rule.into();
    let mut groups = vec![Group::new("even", rule), Group::new("odd", rule).lr_factor(0.5)];
    for i in 0..count {
        let group = &mut groups[(i % 2) as usize];
        *group = group.clone().tensor_at(format!("t{i}"), [len], i * len);
    }
    groups.truncate(count as usize);
    Layout::new(groups).expect("a good layout")
}

fn step(criterion: &mut Criterion, gpu: &Gpu, group: &str, rule: impl Into<AnyRule>, count: u64, len: u64) {
    let rule = rule.into();
    let layout = layout(rule, count, len);
    let values = vec![0.01; layout.len() as usize];
    let (params, grads) = (gpu.upload(&values), gpu.upload(&values));
    let moved = layout.bytes_moved(&Options::default());
    let mut optimizer = Optimizer::new(&gpu.device, layout).expect("a capable device");
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads)).expect("good buffers");
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Bytes(moved));
    group.bench_function(BenchmarkId::new(rule.name(), format!("{count}x{len}")), |bencher| {
        bencher.iter(|| {
            let mut encoder = gpu.encoder();
            optimizer.step(&gpu.queue, &mut encoder, &tensors, 1e-3).expect("a good learning rate");
            gpu.run(encoder);
        });
    });
    group.finish();
}

fn copy(criterion: &mut Criterion, gpu: &Gpu, group: &str, elements: u64) {
    let (from, to) = (gpu.buffer(elements * 4), gpu.buffer(elements * 4));
    let copy = Copy::new(gpu, &from, &to, elements);
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Bytes(elements * 8));
    group.bench_function(BenchmarkId::new("copy", elements), |bencher| {
        bencher.iter(|| {
            let mut encoder = gpu.encoder();
            copy.record(&mut encoder);
            gpu.run(encoder);
        });
    });
    group.finish();
}

fn benches(criterion: &mut Criterion) {
    let gpu = harness::open().unwrap_or_else(|error| panic!("{error}"));
    println!("{}, {}", gpu.info.name, gpu.info.driver_info);
    for (name, elements) in [("1M", 1 << 20), ("16M", 1 << 24)] {
        copy(criterion, &gpu, name, elements);
        for rule in measured() {
            step(criterion, &gpu, name, rule, 1, elements);
        }
        copy(criterion, &gpu, &format!("{name} again"), elements);
    }
    pipeline(criterion, &gpu, 1 << 24);
    // Many tensors beside one of the same total.
    step(criterion, &gpu, "tensors", AdamW::default(), 1, 512 * 4_096);
    step(criterion, &gpu, "tensors", AdamW::default(), 512, 4_096);
    recording(criterion, &gpu);
}

/// Unscale, finite check, clip by global norm, AdamW and zeroed gradients: in our passes, and in the separate
/// passes that they replace. Prints the bytes that must be moved.
fn pipeline(criterion: &mut Criterion, gpu: &Gpu, elements: u64) {
    const IN_PLACE: &str = "
        @group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
        @compute @workgroup_size(256)
        fn scale(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>) {
            let i = id.y * n.x * 256u + id.x;
            if i < arrayLength(&x) { x[i] *= 0.999; }
        }";
    let layout = || layout(AdamW::default(), 1, elements);
    let values = vec![0.01; elements as usize];
    let (params, grads) = (gpu.upload(&values), gpu.upload(&values));
    let fused = Options {
        clip: Some(Clip::GlobalNorm(1.0)),
        skip_nonfinite: true,
        zero_gradients: true,
        ..Options::default()
    };
    let looks = Options { report: true, ..Options::default() };
    let descriptor =
        wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(IN_PLACE.into()) };
    // SAFETY: the only index is compared with the length. Without checks, like the kernels that it is timed
    // beside.
    let module = unsafe {
        gpu.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    };
    let scale = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let part = gpu.device.limits().max_storage_buffer_binding_size.min(1 << 27) / 4_096 * 4_096;
    let parts: Vec<_> = (0..(elements * 4).div_ceil(part))
        .map(|i| {
            let size = part.min(elements * 4 - i * part);
            let binding =
                wgpu::BufferBinding { buffer: &grads, offset: i * part, size: wgpu::BufferSize::new(size) };
            let entry = wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(binding) };
            let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &scale.get_bind_group_layout(0),
                entries: &[entry],
            });
            (group, size.div_ceil(4_096) as u32)
        })
        .collect();
    let scale_all = |encoder: &mut wgpu::CommandEncoder| {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&scale);
        for (group, workgroups) in &parts {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*workgroups, 1, 1);
        }
    };
    let make = |options| {
        let mut optimizer =
            Optimizer::with_options(&gpu.device, layout(), options).expect("a capable device");
        let tensors = optimizer.bind(&Tensors::flat(&params, &grads)).expect("good buffers");
        (optimizer, tensors)
    };
    let plain = Options::default();
    let bytes = |options| layout().bytes_moved(options) / elements;
    // Unscaling and clipping read and write the gradients, and a clear writes them.
    println!(
        "bytes a parameter: plain {}, fused {}, separate {}",
        bytes(&plain),
        bytes(&fused),
        bytes(&looks) + 20
    );
    let mut group = criterion.benchmark_group("pipeline");
    // `separate`: passes that read and scale run before the step, and a clear after it.
    for (name, options, separate) in
        [("plain step", Options::default(), false), ("fused", fused, false), ("separate", looks, true)]
    {
        let (mut optimizer, tensors) = make(options);
        group.bench_function(BenchmarkId::new(name, elements), |bencher| {
            bencher.iter(|| {
                let mut encoder = gpu.encoder();
                if separate {
                    // Unscale and clip; the reduction is in the optimizer's own passes.
                    scale_all(&mut encoder);
                    scale_all(&mut encoder);
                }
                optimizer.step(&gpu.queue, &mut encoder, &tensors, 1e-3).expect("a good learning rate");
                if separate {
                    encoder.clear_buffer(&grads, 0, None);
                }
                gpu.run(encoder);
            });
        });
    }
    group.finish();
}

/// Host time of only the recording call: 512 tensors in a flat buffer.
fn recording(criterion: &mut Criterion, gpu: &Gpu) {
    let layout = layout(AdamW::default(), 512, 4_096);
    let (params, grads) = (gpu.buffer(layout.buffer_size()), gpu.buffer(layout.buffer_size()));
    let mut optimizer = Optimizer::new(&gpu.device, layout).expect("a capable device");
    let tensors = optimizer.bind(&Tensors::flat(&params, &grads)).expect("good buffers");
    criterion.bench_function("record/adamw/512x4096", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let mut encoder = gpu.encoder();
                let start = std::time::Instant::now();
                optimizer
                    .step(&gpu.queue, &mut encoder, black_box(&tensors), 1e-3)
                    .expect("a good learning rate");
                total += start.elapsed();
                gpu.run(encoder);
            }
            total
        });
    });
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .sample_size(15)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4));
    targets = benches
}
criterion_main!(all);

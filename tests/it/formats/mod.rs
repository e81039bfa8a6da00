//! Storage formats on the GPU: the same bits as on the CPU.

mod codes;
mod rounding;
mod runs;

use harness::Gpu;
use wgpu_optim::{DynRule, Format, Group, Layout, Master, Options, Rounding};

/// The text of a storage format, and of the functions that it needs beside it.
fn format_source(format: Format) -> String {
    let own = match format {
        Format::F16 => include_str!("../../../shaders/parts/formats/f16.wgsl"),
        Format::Bf16 => include_str!("../../../shaders/parts/formats/bf16.wgsl"),
        Format::Q8 => include_str!("../../../shaders/parts/formats/q8.wgsl"),
        _ => include_str!("../../../shaders/parts/formats/f32.wgsl"),
    };
    let beside =
        if format.bytes() == 2 { include_str!("../../../shaders/parts/formats/half.wgsl") } else { "" };
    [beside, own].concat()
}

/// Runs `body`, a function of `x: vec4<u32>` and `random: vec4<u32>`, on all words of `input`, four at a
/// time; it returns as many.
pub(crate) fn map(gpu: &Gpu, format: Format, body: &str, input: &[u32], random: &[u32]) -> Vec<u32> {
    let text = format!(
        "{}
@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> random: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<u32>>;
fn body(x: vec4<u32>, random: vec4<u32>) -> vec4<u32> {{ {body} }}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    if id.x < arrayLength(&input) {{ output[id.x] = body(input[id.x], random[id.x]); }}
}}",
        format_source(format)
    );
    let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let upload = |words: &[u32]| gpu.upload(bytemuck::cast_slice(words));
    let buffers = [upload(input), upload(random), gpu.buffer(input.len() as u64 * 4)];
    let entries: Vec<_> = (0..)
        .zip(&buffers)
        .map(|(binding, b)| wgpu::BindGroupEntry { binding, resource: b.as_entire_binding() })
        .collect();
    let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = gpu.encoder();
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups((input.len() as u32 / 4).div_ceil(64), 1, 1);
    }
    gpu.run(encoder);
    gpu.read_bits(&buffers[2], 0, input.len())
}

/// Tensors of odd lengths in two groups, and gaps.
pub(crate) fn odd(rule: impl Into<DynRule>) -> Layout {
    let rule = rule.into();
    let first = Group::new("first", rule.clone()).tensor_at("a", [301], 0).tensor_at("c", [1_030], 310);
    let second =
        Group::new("second", rule).lr_factor(0.5).tensor_at("b", [7], 302).tensor_at("d", [5], 1_342);
    Layout::new([first, second]).unwrap()
}

pub(crate) const SEED: Rounding = Rounding::Stochastic { seed: 7 };

/// Ways to store: every format in every place, and every way to keep more of the parameters.
pub(crate) fn ways() -> Vec<Options> {
    use Format::{Bf16, F16, F32, Q8};
    let ways = [
        (F32, Bf16, F32, Master::F32, Rounding::Nearest),
        (F32, F32, Bf16, Master::F32, Rounding::Nearest),
        (F32, F16, Bf16, Master::F32, SEED),
        (Bf16, Bf16, F32, Master::F32, Rounding::Nearest),
        (F16, F16, F32, Master::F32, SEED),
        (Bf16, F32, Bf16, Master::Remainder, SEED),
        (Bf16, F16, F32, Master::Remainder, Rounding::Nearest),
        (Bf16, Bf16, Bf16, Master::None, SEED),
        (F16, Bf16, F32, Master::None, SEED),
        (Bf16, F32, F32, Master::None, Rounding::Nearest),
        (F16, F32, Bf16, Master::None, Rounding::Nearest),
        (F32, F32, Q8, Master::F32, Rounding::Nearest),
        (F32, Bf16, Q8, Master::F32, SEED),
        (Bf16, F16, Q8, Master::Remainder, Rounding::Nearest),
        (Bf16, Bf16, Q8, Master::None, SEED),
        (F16, F32, Q8, Master::F32, Rounding::Nearest),
    ];
    let options = |(params, grads, states, master, rounding)| Options {
        params,
        grads,
        states,
        master,
        rounding,
        ..Options::default()
    };
    ways.into_iter().map(options).collect()
}

/// Pearson's statistic of a table of two by two, of independence; 0 where there is nothing to compare.
pub(crate) fn chi_square(table: [[f64; 2]; 2]) -> f64 {
    let total: f64 = table.iter().flatten().sum();
    let of = |row: usize, column: usize| {
        let rows: f64 = table[row].iter().sum();
        let expected = rows * (table[0][column] + table[1][column]) / total;
        if expected == 0.0 { 0.0 } else { (table[row][column] - expected).powi(2) / expected }
    };
    of(0, 0) + of(0, 1) + of(1, 0) + of(1, 1)
}

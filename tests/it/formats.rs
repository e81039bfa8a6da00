//! Storage formats on the GPU: the same bits as on the CPU.

use crate::common::Random;
use harness::Gpu;
use wgpu_optim::Format;
use wgpu_optim::kernel::format_source;

/// Runs `body`, a function of `code: vec4<u32>` and `random: vec4<u32>` that returns as many words as `input` has, four at a time.
fn map(gpu: &Gpu, format: Format, body: &str, input: &[u32], random: &[u32]) -> Vec<u32> {
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

const HALVES: [Format; 2] = [Format::F16, Format::Bf16];

fn assert_same(got: &[u32], want: impl Fn(usize) -> u32, context: &str) {
    for (i, &got) in got.iter().enumerate() {
        let want = want(i);
        assert_eq!(got, want, "{context}: word {i} is {got:#x}, on the CPU {want:#x}");
    }
}

#[test]
fn every_code_is_decoded_as_on_the_cpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let codes: Vec<u32> = (0..1 << 16).collect();
    for format in HALVES {
        let body = format!("return bitcast<vec4<u32>>(decode_{}(packed(x)));", format.name());
        let got = map(&gpu, format, &body, &codes, &codes);
        assert_same(&got, |i| format.decode(codes[i]).to_bits(), &format!("{format:?}"));
    }
}

/// Every exponent, sign and leading digit, with the lower digits around every tie, and random ones for rounding at random.
#[test]
fn every_number_is_encoded_as_on_the_cpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut random = Random::new(3);
    for format in HALVES {
        for low in
            [0, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff, random.bits() as u32 & 0xffff]
        {
            let bits: Vec<u32> = (0..1 << 16).map(|high: u32| high << 16 | low).collect();
            let draws: Vec<u32> = bits.iter().map(|_| random.bits() as u32).collect();
            let context = format!("{format:?}, lower half {low:#x}");
            let name = format.name();
            let body = format!("return unpacked(encode_{name}(bitcast<vec4<f32>>(x)));");
            let got = map(&gpu, format, &body, &bits, &draws);
            assert_same(&got, |i| format.encode(f32::from_bits(bits[i])), &context);
            let body = format!("return unpacked(encode_{name}_stochastic(bitcast<vec4<f32>>(x), random));");
            let got = map(&gpu, format, &body, &bits, &draws);
            let want = |i: usize| format.encode_stochastic(f32::from_bits(bits[i]), draws[i]);
            assert_same(&got, want, &format!("{context}, at random"));
        }
    }
}

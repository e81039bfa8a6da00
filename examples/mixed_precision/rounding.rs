//! Tests of the rounding to f16, in the reference and on the device.

use crate::digits::{dispatch, upload};
use crate::reference::f16;

const INFINITY: u16 = 0x7c00;

/// The value of the bits of an f16.
fn value(bits: u16) -> f64 {
    let (exponent, fraction) = (bits >> 10 & 0x1f, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction * (-24f64).exp2(),
        31 => f64::INFINITY,
        _ => (1_024.0 + fraction) * (f64::from(exponent) - 25.0).exp2(),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// Each f16, the middle between it and the next, and the numbers on either side of the middle, with the
/// expected results of rounding.
fn cases() -> Vec<(f32, u16)> {
    let mut cases =
        vec![(f32::from_bits(1), 0), (f32::MAX, INFINITY), (f32::INFINITY, INFINITY), (1e6, INFINITY)];
    for bits in 0..INFINITY {
        // The next f16 would be 2¹⁶.
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
    // Numbers that f32 would first round to a tie.
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
    let source = [include_str!("../digits/f16.wgsl"), ENTRY].concat();
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

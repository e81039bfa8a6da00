//! Single numbers: codes, and formats that are refused.

use super::map;
use crate::common::{Random, single};
use wgpu_optim::{
    AdamW, BindError, Format, Group, Layout, Master, Optimizer, Options, OptionsError, Tensors,
};

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

/// Every exponent, sign and leading digit, with the lower digits around every tie, and random ones for
/// rounding at random.
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

#[test]
fn formats_that_do_not_go_there() {
    let Some(gpu) = harness::test_gpu() else { return };
    let refused = |options: Options| {
        Optimizer::with_options(&gpu.device, single(AdamW::default(), 8), options).unwrap_err()
    };
    let states = Options { states: Format::F16, ..Options::default() };
    assert!(matches!(refused(states), OptionsError::Format { field: "states", format: "f16", .. }));
    let remainder = Options { params: Format::F16, master: Master::Remainder, ..Options::default() };
    assert!(matches!(refused(remainder), OptionsError::Format { field: "params", format: "f16", .. }));
    // A tensor that shares a word with the one before it, in a buffer of its own.
    let group = Group::new("g", AdamW::default()).tensor("a", [3]).tensor("b", [4]);
    let options = Options { grads: Format::Bf16, ..Options::default() };
    let mut optimizer =
        Optimizer::with_options(&gpu.device, Layout::packed([group]).unwrap(), options).unwrap();
    let buffer = || gpu.buffer(64);
    let (pa, ga, pb, gb) = (buffer(), buffer(), buffer(), buffer());
    let error = optimizer.bind(&Tensors::each([("a", &pa, &ga), ("b", &pb, &gb)])).unwrap_err();
    assert_eq!(error, BindError::OddElement { what: "gradients of tensor \"b\"".into(), offset: 3 });
    // And in flat buffers it shares them with nobody else.
    assert!(optimizer.bind(&Tensors::flat(&pa, &ga)).is_ok());
}

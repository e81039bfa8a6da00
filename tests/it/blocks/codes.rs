//! Codes and scales of single blocks.

use crate::common::Random;
use crate::formats::map;
use wgpu_optim::Format;
use wgpu_optim::q8::{self, BLOCK};

/// Scales of both kinds: none, the least, some whose smallest codes are below the least normal number,
/// 10^±30, ordinary ones, the largest, and those of lost blocks.
fn scales() -> Vec<u32> {
    let peaks = [
        0.0,
        1.2e-38,
        4e-37,
        1e-30,
        3e-5,
        1.0,
        1.5,
        1.999_99,
        777.0,
        1e30,
        f32::MAX,
        f32::NAN,
        f32::INFINITY,
    ];
    peaks.iter().flat_map(|&peak| [q8::scale(&[peak, -peak]), q8::scale(&[peak, 0.0])]).collect()
}

/// The formula of the documentation, in f64 and without the least number of f32.
fn value(code: u8, scale: u32) -> f64 {
    let unit = f64::from(f32::from_bits(scale & 0x7fff_ffff));
    let (sign, code, fraction) = match scale >> 31 {
        0 => (if code > 127 { -1.0 } else { 1.0 }, code & 127, 8.0),
        _ => (1.0, code, 16.0),
    };
    let (e, f) = (code / fraction as u8, f64::from(code % fraction as u8));
    let magnitude = match e {
        0 => f / fraction * (-14f64).exp2(),
        _ => (1.0 + f / fraction) * (f64::from(e) - 15.0).exp2(),
    };
    sign * magnitude * unit
}

/// Codes that are used: no value is above 1.
fn codes(scale: u32) -> Vec<u8> {
    let unit = f64::from(f32::from_bits(scale & 0x7fff_ffff));
    (0..=255).filter(|&code| value(code, scale).abs() <= unit).collect()
}

#[test]
fn every_code_is_the_number_of_the_formula() {
    for scale in scales() {
        for code in 0..=255 {
            let (got, want) = (q8::decode(code, scale), value(code, scale));
            if q8::is_lost(scale) {
                assert!(got.is_nan());
            } else if want.abs() < f32::MIN_POSITIVE.into() {
                assert_eq!(got.to_bits(), 0, "{code} {scale:#x}");
            } else if want.abs() <= f32::MAX.into() {
                assert_eq!(f64::from(got), want, "{code} {scale:#x}: not exact");
            }
        }
    }
}

/// Numbers across the range of a block, densely, and those beside every tie.
fn sweep(scale: u32) -> Vec<f32> {
    let unit = f32::from_bits(scale & 0x7fff_ffff);
    let mut numbers = vec![0.0, -0.0, 1e-45, f32::MIN_POSITIVE, -f32::MIN_POSITIVE];
    numbers.extend((0..20_000).map(|i| unit * (f64::from(i) / -1_000.0).exp2() as f32));
    let ties = codes(scale).into_iter().map(|code| (code, code.wrapping_add(1)));
    for (a, b) in ties {
        let tie = ((value(a, scale) + value(b, scale)) / 2.0) as f32;
        numbers.extend([tie, tie.next_up(), tie.next_down()]);
    }
    // All codes, if there is no scale.
    numbers.retain(|x| unit.is_nan() || x.abs() <= unit);
    let signed = scale >> 31 == 0;
    let negative: Vec<_> = numbers.iter().filter(|_| signed).map(|x| -x).collect();
    numbers.retain(|x| signed || x.to_bits() <= 0x7fff_ffff);
    numbers.extend(negative);
    numbers
}

/// Against all 256 codes in f64; zero alone is zero where nothing is negative.
#[test]
fn the_nearest_code_of_all() {
    for scale in scales().into_iter().filter(|&scale| scale != 0 && !q8::is_lost(scale)) {
        let codes: Vec<_> = codes(scale).into_iter().map(|code| (code, value(code, scale))).collect();
        let unsigned = scale >> 31 == 1;
        for x in sweep(scale) {
            let code = q8::encode(x, scale);
            let normal = x.abs() >= f32::MIN_POSITIVE;
            if !normal {
                assert_eq!(code, 0, "{x:e}");
                continue;
            }
            let near = |y: f64| (y - f64::from(x)).abs();
            let candidates = codes.iter().filter(|(code, _)| !unsigned || *code > 0);
            let best = candidates.map(|&(_, y)| near(y)).fold(f64::INFINITY, f64::min);
            let got = near(value(code, scale));
            assert_eq!(got, best, "{x:e} in a block of {scale:#x} has the code {code:#x}, off by {got:e}");
        }
    }
}

/// A block's largest number sets its scale, which is off by half a unit of its 16 bits at most.
#[test]
fn scales_of_blocks() {
    let of = |block: &[f32]| q8::scale(block);
    assert_eq!([of(&[]), of(&[0.0; 32]), of(&[-0.0, 1e-39, -1e-45])], [0; 3]);
    assert!(q8::is_lost(of(&[1.0, f32::NAN])) && q8::is_lost(of(&[-f32::INFINITY])));
    let mut random = Random::new(5);
    for exponent in -125..=127 {
        let peak = (1.0 + random.value().abs().fract()) * 2f32.powi(exponent);
        for (block, unsigned) in [([peak, 0.5 * peak, -0.0], true), ([0.3 * peak, -peak, 0.0], false)] {
            let scale = of(&block);
            assert_eq!(scale >> 31 == 1, unsigned);
            let got = f64::from(f32::from_bits(scale & 0x7fff_ffff));
            let peak = f64::from(peak);
            let room = if exponent == 127 { 256.0 } else { 128.0 }
                * f64::from(f32::EPSILON)
                * f64::from(exponent).exp2();
            assert!((got - peak).abs() <= room && got.is_finite(), "{peak:e}: {got:e}");
        }
    }
}

/// All 2⁸ codes and a dense sweep of numbers in every kind of block, to the nearest and at random.
#[test]
fn devices_have_the_same_bits() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut random = Random::new(9);
    for scale in scales() {
        let words: Vec<u32> =
            (0..256u32).step_by(4).map(|c| u32::from_le_bytes([0, 1, 2, 3].map(|i| c as u8 + i))).collect();
        let spread: Vec<u32> = words.iter().flat_map(|&word| [word; 4]).collect();
        let got = map(
            &gpu,
            Format::Q8,
            &format!("return bitcast<vec4<u32>>(decode_q8(x.x, {scale}u));"),
            &spread,
            &spread,
        );
        for (code, got) in (0..=255).zip(got) {
            let want = q8::decode(code, scale).to_bits();
            assert_eq!(got, want, "code {code:#x} of {scale:#x}: {got:#x}, on the CPU {want:#x}");
        }
        let mut numbers = sweep(scale);
        numbers.resize(numbers.len().next_multiple_of(4), 0.0);
        let bits: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
        let draws: Vec<u32> = bits.iter().map(|_| random.bits() as u32).collect();
        for at_random in [false, true] {
            let encode = if at_random { "encode_q8_stochastic" } else { "encode_q8" };
            let more = if at_random { ", random" } else { "" };
            let body = format!(
                "return vec4<u32>({encode}(bitcast<vec4<f32>>(x), {scale}u{more})) \
                 >> vec4<u32>(0u, 8u, 16u, 24u);"
            );
            let got = map(&gpu, Format::Q8, &body, &bits, &draws);
            for (i, &x) in numbers.iter().enumerate() {
                let want =
                    if at_random { q8::encode_stochastic(x, scale, draws[i]) } else { q8::encode(x, scale) };
                let got = got[i] & 0xff;
                assert_eq!(got, u32::from(want), "{x:e} in a block of {scale:#x}, at random: {at_random}");
            }
        }
    }
    let peaks: Vec<u32> = (0..1 << 16).map(|_| random.bits() as u32).collect();
    let got = map(
        &gpu,
        Format::Q8,
        "return vec4<u32>(scale_q8(x.x), scale_q8(x.y), scale_q8(x.z), scale_q8(x.w));",
        &peaks,
        &peaks,
    );
    for (&peak, got) in peaks.iter().zip(got) {
        // The lowest bit of a peak says that something is negative.
        let x = f32::from_bits(peak >> 1);
        let other = if peak & 1 == 1 { -x } else { 0.0 };
        assert_eq!(got, q8::scale(&[x, other]), "{peak:#x}");
    }
}

/// A running mean of constant numbers stays constant for any weight of the new number: stochastic rounding
/// has the right mean.
#[test]
fn a_slow_running_mean_does_not_sink() {
    const STEPS: usize = 12_000;
    const WEIGHT: f32 = 1e-3;
    // Five standard errors, of which one was measured to be 0.0017; with the quotient cut off means sink by
    // 0.034.
    const TOLERANCE: f64 = 0.008;
    let mut random = Random::new(31);
    let mut ratio = 0.0;
    let blocks = 32;
    for _ in 0..blocks {
        let targets: Vec<f32> = (0..BLOCK).map(|_| 10f32.powf(-3.0 * random.unit() as f32)).collect();
        let mut means = targets.clone();
        for step in 0..STEPS {
            for (mean, target) in means.iter_mut().zip(&targets) {
                *mean += WEIGHT * (target - *mean);
            }
            let scale = q8::scale(&means);
            for mean in &mut means {
                *mean = q8::decode(q8::encode_stochastic(*mean, scale, random.bits() as u32), scale);
            }
            if step >= STEPS / 2 {
                ratio +=
                    means.iter().zip(&targets).map(|(mean, target)| f64::from(mean / target)).sum::<f64>();
            }
        }
    }
    ratio /= (blocks * BLOCK * STEPS / 2) as f64;
    assert!((ratio - 1.0).abs() < TOLERANCE, "{ratio} of what they should be");
}

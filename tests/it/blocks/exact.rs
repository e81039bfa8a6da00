//! Devices against the CPU over the whole range of blocks: the same bits.

use crate::common::Random;
use crate::formats::map;
use wgpu_optim::Format;
use wgpu_optim::q8;

const UNSIGNED: u32 = 1 << 31;
const MAGNITUDE: u32 = !UNSIGNED;
/// The least normal number.
const NORMAL: u32 = 1 << 23;
/// The scale of a block with an infinity or NaN.
const LOST: u32 = 0x7fc0_0000;
/// The largest scale.
const LARGEST: u32 = 0x7f7f_ff00;
/// Random numbers at which the two parts of stochastic rounding change.
const DRAWS: [u32; 8] = [0, 1, 0x7fff, 0xffff, 0x1_0000, 0xffff_0000, 0xfffe_ffff, u32::MAX];

/// Scales of all exponents, of both kinds.
fn scales(random: &mut Random) -> Vec<u32> {
    let mut scales = vec![0, LOST, LARGEST, LARGEST | UNSIGNED];
    for exponent in 1..255u32 {
        let other = random.bits() as u32 & 0x7fff;
        for digits in [0, 1, 0x4000, 0x7fff, other] {
            let scale = exponent << 23 | digits << 8;
            scales.extend([scale, scale | UNSIGNED]);
        }
    }
    scales
}

/// Whether a block of this scale can have this number, both in bits.
fn fits(number: u32, scale: u32) -> bool {
    let magnitude = number & MAGNITUDE;
    // Scales are rounded to nearest, but for the largest.
    let peak = match scale & MAGNITUDE {
        0 => NORMAL - 1,
        LOST => return true,
        LARGEST => LARGEST + 0xff,
        most => most + 0x7f,
    };
    magnitude <= peak && (scale & UNSIGNED == 0 || number <= UNSIGNED || magnitude < NORMAL)
}

/// Numbers of a block of this scale: at every power of two below it, and beside each tie of two codes.
fn numbers(scale: u32, random: &mut Random) -> Vec<u32> {
    let most = scale & MAGNITUDE;
    let mut numbers = vec![0, 1, NORMAL - 1, NORMAL, NORMAL + 1, 0x7f80_0000, 0x7fc0_0000];
    for below in (0..50).chain([60, 100]) {
        let Some(power) = (most >> 23).checked_sub(below) else { break };
        let digits = [0, 1, most & 0x7f_ffff, 0x40_0000, 0x7f_ffff, random.bits() as u32 & 0x7f_ffff];
        numbers.extend(digits.map(|digits| power << 23 | digits));
        // The numbers beside the scale's multiples by powers of two.
        numbers.extend([-1, 1].map(|by| (power << 23 | most & 0x7f_ffff).wrapping_add_signed(by)));
    }
    let codes = if scale & UNSIGNED == 0 { 0..=120 } else { 0..=240u8 };
    let values: Vec<_> = codes.map(|code| q8::decode(code, scale)).collect();
    for pair in values.windows(2) {
        let tie = (0.5 * pair[0] + 0.5 * pair[1]).to_bits();
        numbers.extend([-1, 0, 1].map(|by| tie.wrapping_add_signed(by)));
    }
    let negative: Vec<_> = numbers.iter().map(|number| number | UNSIGNED).collect();
    numbers.extend(negative);
    numbers.retain(|&number| fits(number, scale));
    numbers
}

/// The four draws of a vector of numbers, from the three that are handed over.
fn draws([a, b, c]: [u32; 3]) -> [u32; 4] {
    [a, b, c, a ^ b]
}

/// Encodes vectors of four numbers, each with its scale and three draws, to the nearest and at random.
fn check(vectors: &[([u32; 4], u32, [u32; 3])]) {
    let Some(gpu) = harness::test_gpu() else { return };
    for part in vectors.chunks(1 << 20) {
        let numbers: Vec<u32> = part.iter().flat_map(|(numbers, _, _)| *numbers).collect();
        let beside: Vec<u32> = part.iter().flat_map(|(_, scale, [a, b, c])| [*scale, *a, *b, *c]).collect();
        for at_random in [false, true] {
            let call = if at_random {
                "encode_q8_stochastic(bitcast<vec4<f32>>(x), random.x, \
                 vec4<u32>(random.yzw, random.y ^ random.z))"
            } else {
                "encode_q8(bitcast<vec4<f32>>(x), random.x)"
            };
            let body =
                format!("return (vec4<u32>({call}) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);");
            let got = map(&gpu, Format::Q8, &body, &numbers, &beside);
            for ((numbers, scale, three), got) in part.iter().zip(got.chunks(4)) {
                for ((&number, draw), &got) in numbers.iter().zip(draws(*three)).zip(got) {
                    let x = f32::from_bits(number);
                    let want = if at_random {
                        q8::encode_stochastic(x, *scale, draw)
                    } else {
                        q8::encode(x, *scale)
                    };
                    assert_eq!(
                        got,
                        u32::from(want),
                        "{number:#x} in a block of {scale:#x}, draw {draw:#x}, at random: {at_random}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_exponent_and_tie_is_encoded_alike() {
    let mut random = Random::new(17);
    let mut vectors = Vec::new();
    for scale in scales(&mut random) {
        for four in numbers(scale, &mut random).chunks(4) {
            let numbers = std::array::from_fn(|i| *four.get(i).unwrap_or(&0));
            let three = std::array::from_fn(|_| match random.bits() as usize % 16 {
                known if known < DRAWS.len() => DRAWS[known],
                _ => random.bits() as u32,
            });
            vectors.push((numbers, scale, three));
        }
    }
    check(&vectors);
}

#[test]
fn random_numbers_are_encoded_alike() {
    let mut random = Random::new(23);
    let mut bits = || random.bits() as u32;
    let vectors = (0..1 << 19).map(|_| {
        let kind = bits() & UNSIGNED;
        let scale = (1 + bits() % 254) << 23 | (bits() & 0x7f_ff00) | kind;
        let numbers = std::array::from_fn(|_| {
            let below = (scale >> 23 & 0xff).saturating_sub(bits() % 33 * (bits() % 2));
            let number = below << 23 | bits() & 0x7f_ffff | if kind == 0 { bits() & UNSIGNED } else { 0 };
            if fits(number, scale) { number } else { scale & MAGNITUDE }
        });
        (numbers, scale, [bits(), bits(), bits()])
    });
    check(&vectors.collect::<Vec<_>>());
}

#[test]
fn every_code_is_decoded_alike() {
    let Some(gpu) = harness::test_gpu() else { return };
    let scales = scales(&mut Random::new(29));
    let words =
        || (0..256u32).step_by(4).map(|code| u32::from_le_bytes([0, 1, 2, 3].map(|i| code as u8 + i)));
    let input: Vec<u32> =
        scales.iter().flat_map(|&scale| words().flat_map(move |word| [word, scale, 0, 0])).collect();
    let got = map(&gpu, Format::Q8, "return bitcast<vec4<u32>>(decode_q8(x.x, x.y));", &input, &input);
    let cases = scales.iter().flat_map(|&scale| (0..=255).map(move |code| (code, scale)));
    for ((code, scale), got) in cases.zip(got) {
        let want = q8::decode(code, scale).to_bits();
        assert_eq!(got, want, "code {code:#x} of {scale:#x}: {got:#x}, on the CPU {want:#x}");
    }
}

//! State in 8 bits: codes and scales, on the GPU and on the CPU.

use crate::common::{Random, single};
use crate::formats::{Stored, chi_square, map};
use harness::Gpu;
use wgpu_optim::q8::{self, BLOCK};
use wgpu_optim::{AdamW, Error, Format, Group, Layout, Optimizer, Options, Rounding, Sgd, wgpu};

/// Scales of both kinds: none, the least, some whose smallest codes are below the least normal number, 10^±30, ordinary ones, the largest, and of what is lost.
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

/// The formula of the documentation, in f64 and without any regard for the least number of f32.
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
    // All of them where the scale is none.
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
                "return vec4<u32>({encode}(bitcast<vec4<f32>>(x), {scale}u{more})) >> vec4<u32>(0u, 8u, 16u, 24u);"
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
        // The sign bit of a peak says that something is negative.
        let x = f32::from_bits(peak & 0x7fff_ffff);
        let other = if peak >> 31 == 1 { -x } else { 0.0 };
        assert_eq!(got, q8::scale(&[x, other]), "{peak:#x}");
    }
}

/// Tensors that share vectors with others, of lengths that are no multiples of a block, in two groups, and a gap.
fn odd<R: wgpu_optim::Rule>(rule: R) -> Layout<R> {
    Layout::new([
        Group::new("g", rule)
            .tensor("a", [5])
            .tensor("b", [1])
            .tensor("c", [1])
            .tensor("d", [1])
            .tensor("e", [3_333]),
        Group::new("h", rule)
            .lr_factor(0.5)
            .tensor("f", [64])
            .tensor("h", [31])
            .tensor_at("i", [700], 3_501)
            // Side by side, of whole vectors and not of whole blocks.
            .tensor_at("j", [36], 4_204)
            .tensor("k", [36])
            .tensor("l", [100]),
    ])
    .unwrap()
}

/// The blocks of a tensor in the flat space.
fn blocks(range: std::ops::Range<usize>) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = range.start / 4 * 4;
    (first..range.end).step_by(BLOCK).map(move |at| at.max(range.start)..(at + BLOCK).min(range.end))
}

/// The first momentum is the gradient: what a whole step stores is what the CPU makes of its blocks. Of zeros, of what is below all scales, very small and very large ones, one that is larger than all
/// others, one without negative numbers, and one with a NaN.
#[test]
fn a_step_stores_the_blocks_of_each_tensor() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(Sgd { momentum: 0.9, ..Sgd::default() });
    let len = layout.len() as usize;
    // What is smaller is zero.
    let least = f64::from(f32::MIN_POSITIVE);
    let mut grads = Random::new(21).values(len);
    for (n, block) in blocks(layout.tensor("e").unwrap().range()).enumerate() {
        let outlier = block.start + 3;
        for i in block {
            let x = grads[i];
            grads[i] = match n {
                1 => 0.0,
                2 => x * 1e-39,
                3 => x * 1e-30,
                4 => x * 1e30,
                5 if i == outlier => 1e6,
                6 => x.abs(),
                7 if i == outlier => f32::NAN,
                _ => x,
            };
        }
    }
    let ways =
        [(Rounding::Nearest, false), (Rounding::Nearest, true), (Rounding::Stochastic { seed: 3 }, false)];
    for (norms, (rounding, each)) in [false, true].into_iter().flat_map(|norms| ways.map(|way| (norms, way)))
    {
        let options = Options { states: Format::Q8, rounding, norms, ..Options::default() };
        let mut run = Stored::new(&gpu, layout.clone(), options, &vec![0.5; len], each);
        run.step(&grads, 0.0);
        let got = run.slot("momentum_buffer");
        for block in layout.tensors().iter().flat_map(|t| blocks(t.range())) {
            let scale = q8::scale(&grads[block.clone()]);
            for i in block {
                let (got, nearest) = (f32::from_bits(got[i]), q8::decode(q8::encode(grads[i], scale), scale));
                let good = match rounding {
                    Rounding::Nearest => got.to_bits() == nearest.to_bits(),
                    _ => {
                        f64::from(got - grads[i]).abs() <= q8::spacing(grads[i].into(), scale) * 1.01 + least
                            || nearest.is_nan()
                    }
                };
                assert!(good, "element {i}: {got:e} of {:e}, on the CPU {nearest:e}", grads[i]);
            }
        }
    }
}

/// Tensors below a size keep state in f32, which is that of a run in which all do.
#[test]
fn small_tensors_stay_f32() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    let run = |states, f32_states_below| {
        let options = Options { states, f32_states_below, ..Options::default() };
        let mut run = Stored::new(&gpu, layout.clone(), options, &vec![0.5; len], false);
        let mut random = Random::new(22);
        (0..5).for_each(|_| run.step(&random.values(len), 1e-3));
        (run.snapshot(), run.optimizer.state_bytes())
    };
    let [(exact, bytes), (all, fewest), (large, fewer)] =
        [run(Format::F32, 0), run(Format::Q8, 0), run(Format::Q8, 64)];
    assert!(fewest < bytes / 3 && fewer < bytes / 3, "{fewest} {fewer} {bytes}");
    for t in layout.tensors() {
        let same = |other: &wgpu_optim::check::Snapshot, exact: &wgpu_optim::check::Snapshot| {
            other.params[t.range()] == exact.params[t.range()]
                && (0..2).all(|slot| other.state[slot][t.range()] == exact.state[slot][t.range()])
        };
        assert_eq!(same(&large, &exact), t.len < 64, "{}", t.name);
        assert_eq!(same(&large, &all), t.len >= 64, "{}", t.name);
    }
}

/// 16.5 bytes a parameter instead of 28, and 2.25 of state instead of 8.
#[test]
fn eight_bit_adam_moves_half() {
    let Some(gpu) = harness::test_gpu() else { return };
    let elements = 1 << 24;
    let options = Options { states: Format::Q8, ..Options::default() };
    let layout = || single(AdamW::default(), elements);
    assert_eq!(layout().bytes_moved(&options), 33 * elements / 2);
    assert_eq!(layout().bytes_moved(&Options::default()), 28 * elements);
    let state = Optimizer::with_options(&gpu.device, layout(), options).unwrap().state_bytes();
    assert_eq!(state, 9 * elements / 4);
}

/// Neither chunks nor buffers change a bit; blocks are not cut.
#[test]
fn blocks_do_not_know_of_buffers() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let (Some(roomy), Some(cramped)) = (harness::test_gpu(), harness::test_gpu_with(limit)) else { return };
    let layout = || {
        let group = Group::new("g", AdamW::default());
        Layout::new([group.tensor_at("a", [40_001], 6).tensor("b", [3]).tensor("c", [33_333])]).unwrap()
    };
    let len = layout().len() as usize;
    for rounding in [Rounding::Nearest, Rounding::Stochastic { seed: 5 }] {
        let options = Options { states: Format::Q8, rounding, norms: true, ..Options::default() };
        let run = |gpu: &Gpu, each: bool| {
            let mut run = Stored::new(gpu, layout(), options, &vec![1.0; len], each);
            let mut random = Random::new(82);
            (0..4).for_each(|_| run.step(&random.values(len), 1e-3));
            (run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq"))
        };
        let first = run(&roomy, false);
        assert!(run(&cramped, false) == first, "chunks");
        assert!(run(&roomy, true) == first, "buffers of single tensors");
    }
}

/// A running mean of what does not change stays where it is, however little of it is new: what is lost in a rounding comes back.
#[test]
fn a_slow_running_mean_does_not_sink() {
    const STEPS: usize = 12_000;
    const WEIGHT: f32 = 1e-3;
    // Five standard errors, of which one was measured to be 0.0017; with the quotient cut off means sink by 0.034.
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

/// What two slots of an element draw has nothing to do with each other.
#[test]
fn slots_draw_numbers_of_their_own() {
    let Some(gpu) = harness::test_gpu() else { return };
    for states in [Format::Bf16, Format::Q8] {
        let options = Options { states, rounding: Rounding::Stochastic { seed: 12 }, ..Options::default() };
        let rule = AdamW { beta1: 0.0, beta2: 0.0, ..AdamW::default() };
        let mut run = Stored::new(&gpu, single(rule, 1 << 16), options, &vec![0.0; 1 << 16], false);
        // Of blocks whose first number sets the scale.
        let (outer, inner) = (1.0, 0.719);
        let mut grads = vec![inner; 1 << 16];
        grads.iter_mut().step_by(BLOCK).for_each(|x| *x = outer);
        run.step(&grads, 0.0);
        let ups = ["exp_avg", "exp_avg_sq"].map(|slot| {
            let exact = if slot == "exp_avg" { inner } else { inner * inner };
            let number =
                |bits: u32| if states == Format::Q8 { f32::from_bits(bits) } else { states.decode(bits) };
            run.slot(slot).into_iter().map(|bits| number(bits) > exact).collect::<Vec<_>>()
        });
        let mut table = [[0.0; 2]; 2];
        for i in (0..1 << 16).filter(|i| i % BLOCK > 0) {
            table[usize::from(ups[0][i])][usize::from(ups[1][i])] += 1.0;
        }
        assert!(table.iter().flatten().all(|&count| count > 100.0), "{states:?}: {table:?}");
        let chi_square = chi_square(table);
        // One degree of freedom: 15 is exceeded once in ten thousand.
        assert!(chi_square < 15.0, "{states:?}: {table:?}, {chi_square}");
    }
}

/// More tensors than a binding has room for the blocks of.
#[test]
fn small_tensors_fill_chunks() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let Some(gpu) = harness::test_gpu_with(limit) else { return };
    let tensors = (0..4_080).fold(Group::new("g", AdamW::default()), |g, i| g.tensor(i.to_string(), [4]));
    let layout = Layout::new([tensors]).unwrap();
    let len = layout.len() as usize;
    let ema = Some(wgpu_optim::Ema { decay: 0.9, debias: false });
    let options = Options { states: Format::Q8, ema, ..Options::default() };
    let mut run = Stored::new(&gpu, layout, options, &vec![1.0; len], false);
    run.step(&vec![1.0; len], 1e-3);
    assert!(run.snapshot().params.iter().all(|&p| p < 1.0));
}

/// A rule that does not write leaves what it has read.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lazy;

wgpu_optim::fields! {
    /// None that count.
    struct LazyScalars {
        /// Learning rate.
        lr,
    }
}

impl wgpu_optim::Rule for Lazy {
    const NAME: &'static str = "lazy";
    const DEFAULT_LR: f64 = 1.0;
    const WGSL: &'static str = "fn update(s: Scalars, at: At) {
let g = read_g(at);
let m = read_momentum_buffer(at);
if any(g != vec4<f32>(0.0)) { write_momentum_buffer(at, m + g); }
let p = read_p(at);
write_p(at, p - s.lr * g);
}";
    type Scalars<T: wgpu_optim::float::Float> = LazyScalars<T>;
    type State<T: wgpu_optim::float::Float> = wgpu_optim::rules::SgdState<T>;
    fn validate(&self) -> Result<(), Error> {
        Ok(())
    }
    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> LazyScalars<f64> {
        LazyScalars { lr }
    }
}

#[test]
fn what_is_not_written_stays() {
    let Some(gpu) = harness::test_gpu() else { return };
    let options = Options { states: Format::Q8, ..Options::default() };
    let mut run = Stored::new(&gpu, single(Lazy, 100), options, &[0.0; 100], false);
    let mut random = Random::new(33);
    run.step(&random.values(100), 1.0);
    let before = run.slot("momentum_buffer");
    run.step(&[0.0; 100], 1.0);
    assert_eq!(run.slot("momentum_buffer"), before);
    assert!(before.iter().any(|&bits| bits != 0));
}

/// 10⁵ draws a value: their mean is the value within three standard errors. Beside a number that sets the scale.
#[test]
fn random_rounding_in_blocks_is_unbiased() {
    let Some(gpu) = harness::test_gpu() else { return };
    // Without the numbers that set the scales.
    const DRAWS: usize = 100_000 * BLOCK / (BLOCK - 1) + BLOCK;
    for (value, signed) in [
        (0.7, true),
        (-0.013, true),
        (3.3e-5, true),
        (1.7e-6, true),
        (0.7, false),
        (0.013, false),
        (6e-6, false),
    ] {
        let options =
            Options { states: Format::Q8, rounding: Rounding::Stochastic { seed: 11 }, ..Options::default() };
        let layout = single(Sgd { momentum: 0.9, ..Sgd::default() }, DRAWS as u64);
        let mut run = Stored::new(&gpu, layout, options, &vec![0.0; DRAWS], false);
        let mut grads = vec![value; DRAWS];
        grads.iter_mut().step_by(BLOCK).for_each(|x| *x = if signed { -1.0 } else { 1.0 });
        run.step(&grads, 0.0);
        let got = run.slot("momentum_buffer").into_iter().map(|bits| f64::from(f32::from_bits(bits)));
        let got: Vec<_> = got.enumerate().filter(|(i, _)| i % BLOCK > 0).map(|(_, x)| x).collect();
        let count = got.len() as f64;
        let mean = got.iter().sum::<f64>() / count;
        let variance = got.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let error = (variance / count).sqrt();
        assert!(variance > 0.0, "{value:e} is a code");
        assert!(
            (mean - f64::from(value)).abs() <= 3.0 * error,
            "mean {mean:e} of {value:e}, standard error {error:e}"
        );
    }
}

#[test]
fn blocks_are_for_state() {
    let Some(gpu) = harness::test_gpu() else { return };
    let q8 = Format::Q8;
    for (field, options) in [
        ("params", Options { params: q8, ..Options::default() }),
        ("grads", Options { grads: q8, ..Options::default() }),
    ] {
        let error = Optimizer::with_options(&gpu.device, single(AdamW::default(), 8), options).unwrap_err();
        assert!(
            matches!(error, Error::Format { field: found, format: "q8", .. } if found == field),
            "{error}"
        );
    }
}

//! Whole runs over stored parameters, gradients and state.

use super::{odd, ways};
use crate::common::{Random, assert_within_budget, lr, single};
use harness::{Gpu, GpuRun, Places};
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::check::Checker;
use wgpu_optim::{AdamW, AnyRule, Format, Group, Lamb, Layout, Master, Options, Sgd, Step, Tensors};

/// Each step lies within the rule's budget and the rounding of its format, and the caller gets the number
/// that is nearest to the kept one.
fn check(gpu: &Gpu, rule: AnyRule, options: Options, each: bool) {
    let layout = odd(rule);
    let len = layout.len() as usize;
    let Options { params, grads, states, master, rounding, .. } = options;
    let context =
        format!("{}, {params:?} {grads:?} {states:?} {master:?} {rounding:?}, each: {each}", rule.name());
    let mut random = Random::new(61);
    // Within the range of f16, and at places on both sides of its normal numbers.
    let mut values = |format: Format| -> Vec<f32> {
        (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect()
    };
    let start = values(params);
    let new = if each { GpuRun::each } else { GpuRun::new };
    let mut run = new(gpu, layout.clone(), options, &start);
    let kept = ["master", "remainder"].iter().any(|slot| run.optimizer.state(slot, "a").is_ok());
    let mut checker = Checker::new(layout.clone()).stored(options);
    let mut before = run.snapshot();
    // There is none before the first step.
    before.params.clone_from(&start);
    for t in 0..3 {
        let g = values(grads);
        run.step(&g, lr(t));
        let after = run.snapshot();
        let deviation = checker.step(&before, &g, lr(t), &after).unwrap();
        assert_within_budget(&layout, &deviation, &format!("{context}, step {}", t + 1));
        if kept {
            let codes = run.codes();
            for i in layout.tensors().iter().flat_map(|t| t.range()) {
                let x = after.params[i];
                let split = (x.to_bits() + 0x8000) >> 16;
                let want = if master == Master::Remainder { split } else { params.encode(x) };
                assert_eq!(codes[i], want, "{context}: parameter {i} of {x:e}");
            }
        }
        before = after;
    }
    let moved = |tensor: &wgpu_optim::Tensor| tensor.range().any(|i| before.params[i] != start[i]);
    assert!(layout.tensors().iter().any(moved), "{context}: nothing has moved");
    // Gaps keep their bits.
    let codes = run.codes();
    for i in [301, 309, 1_340, 1_341] {
        assert_eq!(codes[i], params.encode(start[i]), "{context}: element {i} is no tensor's");
    }
}

/// Views that are no multiples of a vector, buffers that end inside one, and everything around the rule:
/// equal bits to those of a run where everything is aligned and nothing is near.
#[test]
fn words_one_by_one_and_everything_around() {
    fn test(gpu: &Gpu, rule: AnyRule, storage: Options) {
        let layout = || {
            let group = |name: &str, names: [&str; 2], lens: [u64; 2]| {
                let group = Group::new(name, rule);
                group.tensor(names[0], [lens[0]]).tensor(names[1], [lens[1]])
            };
            Layout::packed([group("g", ["a", "b"], [302, 2]), group("h", ["c", "d"], [32, 5])]).unwrap()
        };
        let len = layout().len() as usize;
        let options = Options {
            clip: Some(wgpu_optim::Clip::Value(0.5)),
            skip_nonfinite: true,
            zero_gradients: true,
            ema: Some(wgpu_optim::Ema { decay: 0.5, debias: false }),
            norms: rule.name() == "lamb",
            ..storage
        };
        let format = options.params;
        let mut random = Random::new(91);
        let start: Vec<f32> = (0..len).map(|_| format.decode(format.encode(random.value() * 0.1))).collect();
        let grads: Vec<Vec<f32>> = (0..4).map(|_| random.values(len)).collect();
        // Bytes before the parameters and the gradients, whether tensors are bound one by one, and whether
        // steps are skipped.
        let run = |before: [u64; 2], each: bool, skips: bool| {
            let side = |format: Format, before: u64| {
                // It ends where the tensors do, inside of a vector.
                let bytes = (len as u64 * format.bytes()).next_multiple_of(4);
                let buffer = gpu.buffer(before + bytes);
                gpu.write(&buffer, 0, &vec![f32::from_bits(0x4dcd_abcd); ((before + bytes) / 4) as usize]);
                buffer
            };
            let buffers = [side(options.params, before[0]), side(options.grads, before[1])];
            let places = if each { Places::Each(before) } else { Places::Flat(before) };
            let mut run = GpuRun::over(gpu, layout(), options, buffers, places);
            run.write_params(&start);
            for (t, grads) in grads.iter().enumerate() {
                let mut bad = grads.clone();
                bad[303] = f32::INFINITY;
                // The first step too is tried with what is not finite, and commands are dropped.
                for grads in [&bad, grads].into_iter().skip(usize::from(!skips)) {
                    let step = Step::from(lr(t)).with_grad_scale(2.0);
                    run.record(&mut gpu.encoder(), step).unwrap();
                    run.step(grads, step);
                    let words = (len as u64 * options.grads.bytes() / 4) as usize;
                    let zeroed = gpu.read_bits(&run.grads, before[1], words);
                    assert!(zeroed.iter().all(|&word| word == 0));
                }
            }
            for (buffer, before) in [(&run.params, before[0]), (&run.grads, before[1])] {
                let outside = gpu.read_bits(buffer, 0, (before / 4) as usize);
                assert!(
                    outside.iter().all(|&word| word == 0x4dcd_abcd),
                    "words before the view are not ours"
                );
            }
            (run.snapshot(), run.codes(), run.slot("ema"))
        };
        let first = run([256, 256], false, false);
        assert!(first.0.params.iter().all(|p| p.is_finite()));
        assert!(first.0.params.iter().zip(&start).any(|(a, b)| a != b));
        let ways =
            [([256, 256], false), ([4, 256], false), ([12, 8], false), ([0, 0], true), ([4, 20], true)];
        for (before, each) in ways {
            assert!(run(before, each, true) == first, "{} {storage:?} {before:?} {each}", rule.name());
        }
    }
    let Some(gpu) = harness::test_gpu() else { return };
    for options in ways() {
        test(&gpu, AdamW::default().into(), options);
        test(&gpu, Lamb::default().into(), options);
    }
}

/// The first phase of a layer-wise rule reads the kept parameters, and not the average that is bound beside
/// them.
#[test]
fn layer_wise_rules_measure_the_master() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = || odd(Lamb { weight_decay: 0.1, ..Lamb::default() });
    let len = layout().len() as usize;
    let format = Format::Bf16;
    let start: Vec<f32> =
        Random::new(73).values(len).iter().map(|&x| format.decode(format.encode(x))).collect();
    let ends = [(Format::F32, Master::F32), (format, Master::F32), (format, Master::Remainder)].map(
        |(params, master)| {
            let ema = Some(wgpu_optim::Ema { decay: 0.9, debias: false });
            let mut run =
                GpuRun::new(&gpu, layout(), Options { params, master, ema, ..Options::default() }, &start);
            let mut random = Random::new(74);
            for t in 0..20 {
                run.step(&random.values(len), lr(t));
            }
            (
                layout()
                    .tensors()
                    .iter()
                    .flat_map(|t| run.snapshot().params[t.range()].to_vec())
                    .collect::<Vec<_>>(),
                run.slot("ema"),
            )
        },
    );
    assert!(ends[1] == ends[0] && ends[2] == ends[0]);
}

/// Micro-batches in bf16 add up in f32, exactly where the sum has the digits.
#[test]
fn micro_batches_of_two_bytes_add_up() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    for (sums, grads) in [(Format::F32, Format::Bf16), (Format::Bf16, Format::F16)] {
        let mut accumulator = Accumulator::stored(&gpu.device, &layout, sums, grads).unwrap();
        let (sum, micro) = (gpu.upload_as(sums, &vec![0.0; len]), gpu.upload_as(grads, &vec![0.0; len]));
        let bound = accumulator.bind(&Tensors::flat(&sum, &micro)).unwrap();
        // Whole numbers, whose sums have no more digits than bf16.
        for scale in [1.0, 2.0, 4.0] {
            gpu.write_as(grads, &micro, &(0..len).map(|i| scale * (i % 32) as f32).collect::<Vec<_>>());
            let mut encoder = gpu.encoder();
            accumulator.add(&gpu.queue, &mut encoder, &bound).unwrap();
            gpu.run(encoder);
        }
        let words = gpu.read_bits(&sum, 0, (sum.size() / 4) as usize);
        let want: Vec<f32> = (0..len).map(|i| 7.0 * (i % 32) as f32).collect();
        let owned = |i: usize| layout.tensors().iter().any(|t| t.range().contains(&i));
        let want: Vec<f32> = want.iter().enumerate().map(|(i, &x)| if owned(i) { x } else { 0.0 }).collect();
        assert!(words.starts_with(&harness::packed(sums, &want)), "{sums:?} {grads:?}");
    }
}

/// Zeros that the caller writes are zeros, whatever the remainders say.
#[test]
fn a_remainder_of_zero_is_none() {
    let Some(gpu) = harness::test_gpu() else { return };
    let options = Options { params: Format::Bf16, master: Master::Remainder, ..Options::default() };
    let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4_096), options, &vec![1.0; 4_096]);
    run.step(&Random::new(75).values(4_096), 1e-3);
    run.write_params(&vec![0.0; 4_096]);
    run.step(&vec![-1.0; 4_096], 1.0);
    assert!(run.snapshot().params.iter().all(|p| (p - 1.0).abs() < 1e-30));
}

#[test]
fn every_rule_in_every_format() {
    let Some(gpu) = harness::test_gpu() else { return };
    for rule in AnyRule::all() {
        for (i, options) in ways().into_iter().enumerate() {
            check(&gpu, rule, options, i % 3 == 1);
        }
    }
}

/// A bf16 and its remainder, and an f32 beside a stored parameter, are f32 parameters: bit for bit after a
/// thousand steps.
#[test]
fn a_master_is_exact() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW { weight_decay: 0.1, ..AdamW::default() });
    let len = layout.len() as usize;
    let start: Vec<f32> =
        Random::new(71).values(len).iter().map(|&x| Format::Bf16.decode(Format::Bf16.encode(x))).collect();
    let ends = [(Format::F32, Master::F32), (Format::Bf16, Master::Remainder), (Format::Bf16, Master::F32)]
        .map(|(params, master)| {
            let options = Options { params, master, ..Options::default() };
            let mut run = GpuRun::new(&gpu, layout.clone(), options, &start);
            let mut random = Random::new(72);
            for t in 0..1_000 {
                run.step(&random.values(len), 1e-3 / (1.0 + t as f64 / 100.0));
            }
            run.snapshot()
        });
    for end in &ends[1..] {
        for i in layout.tensors().iter().flat_map(|t| t.range()) {
            assert_eq!(ends[0].params[i].to_bits(), end.params[i].to_bits(), "element {i}");
        }
        assert_eq!(ends[0].state, end.state);
    }
}

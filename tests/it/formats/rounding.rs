//! Stochastic rounding.

use super::{SEED, chi_square};
use crate::common::{Random, lr, single};
use harness::{Gpu, GpuRun};
use wgpu_optim::{AdamW, Format, Group, Layout, Master, Options, Rounding, Sgd};

/// Random numbers are functions of the element and the step: neither chunks nor buffers nor skipped steps
/// make a difference.
#[test]
fn stochastic_rounding_does_not_know_of_buffers() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let (Some(roomy), Some(cramped)) = (harness::test_gpu(), harness::test_gpu_with(limit)) else { return };
    let layout = || {
        let group = Group::new("g", AdamW::default());
        Layout::new([group.tensor("a", [40_001]).tensor("b", [3]).tensor("c", [333])]).unwrap()
    };
    let len = layout().len() as usize;
    let start = vec![1.0; len];
    let options = Options {
        params: Format::Bf16,
        grads: Format::F16,
        states: Format::Bf16,
        master: Master::None,
        rounding: SEED,
        skip_nonfinite: true,
        ..Options::default()
    };
    let run = |gpu: &Gpu, each: bool, options: Options, skipped: &[usize]| {
        let new = if each { GpuRun::each } else { GpuRun::new };
        let mut run = new(gpu, layout(), options, &start);
        let mut random = Random::new(81);
        for t in 0..4 {
            let mut grads = random.values(len);
            grads.iter_mut().for_each(|g| *g *= 1e-2);
            if skipped.contains(&t) {
                let mut bad = grads.clone();
                bad[40_004] = f32::NAN;
                run.step(&bad, lr(t));
            }
            run.step(&grads, lr(t));
        }
        (run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq"))
    };
    let first = run(&roomy, false, options, &[]);
    assert!(run(&roomy, true, options, &[]) == first, "buffers of single tensors");
    assert!(run(&cramped, false, options, &[]) == first, "chunks");
    assert!(run(&roomy, false, options, &[0, 2]) == first, "skipped steps");
    let other = Options { rounding: Rounding::Stochastic { seed: 8 }, ..options };
    assert!(run(&roomy, false, other, &[]) != first, "another seed");
}

/// The layout makes no difference either: random numbers depend on a tensor's name and the place in it, not
/// on its offset, its neighbours or its group.
#[test]
fn stochastic_rounding_does_not_know_of_layouts() {
    let Some(gpu) = harness::test_gpu() else { return };
    let lens = [("a", 2_001), ("b", 3), ("c", 333), ("d", 1), ("e", 2), ("f", 70_000)];
    let adamw = AdamW::default();
    let of = |names: &str, group: &str| {
        let tensors = names.chars().map(|name| lens[name as usize - 'a' as usize]);
        tensors.fold(Group::new(group, adamw), |group, (name, len)| group.tensor(name, [len]))
    };
    let layouts = [
        Layout::packed([of("abcdef", "g")]),
        Layout::new([of("abcdef", "g")]),
        Layout::packed([of("fd", "g"), of("ecba", "h")]),
        // Each at another lane of its vector.
        Layout::new([Group::new("g", adamw)
            .tensor_at("d", [1], 2)
            .tensor_at("a", [2_001], 3)
            .tensor_at("f", [70_000], 2_105)
            .tensor_at("e", [2], 72_106)
            .tensor_at("c", [333], 72_109)
            .tensor_at("b", [3], 72_443)]),
    ];
    let options = Options {
        params: Format::Bf16,
        states: Format::Bf16,
        master: Master::None,
        rounding: SEED,
        ..Options::default()
    };
    let ends = layouts.map(|layout| {
        let layout = layout.unwrap();
        let len = layout.len() as usize;
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &vec![1.0; len]);
        for t in 0..3 {
            let mut grads = vec![0.0; len];
            for (name, len) in lens {
                let values = Random::new(40 + t + 10 * len).values(len as usize);
                grads[layout.tensor(name).unwrap().range()].copy_from_slice(&values);
            }
            run.step(&grads, 1e-3);
        }
        let all = [run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq")];
        lens.map(|(name, _)| all.each_ref().map(|all| all[layout.tensor(name).unwrap().range()].to_vec()))
    });
    for (nth, end) in ends.iter().enumerate().skip(1) {
        for (tensor, (got, want)) in lens.iter().zip(end.iter().zip(&ends[0])) {
            assert!(got == want, "layout {nth}, tensor {}", tensor.0);
        }
    }
    assert_ne!(ends[0][0][0][..300], ends[0][5][0][..300], "two tensors draw the same");
}

/// 10⁵ draws a value: their mean is the value within three standard errors, and neighbours and steps know
/// nothing of each other.
#[test]
fn stochastic_rounding_is_unbiased_and_independent() {
    let Some(gpu) = harness::test_gpu() else { return };
    const DRAWS: usize = 100_000;
    for params in [Format::Bf16, Format::F16] {
        for value in [1.0 + 1.0 / 1_300.0, -3.1e-3, 0.7, 5e-6, 1e3] {
            let options = Options { params, master: Master::None, rounding: SEED, ..Options::default() };
            let low = params.decode(params.encode(value * (1.0 - 1e-9)));
            // From a stored number by a gradient to the value: p − 1 · (p − value), exact but for one
            // rounding of f32.
            let mut run = GpuRun::new(&gpu, single(Sgd::default(), DRAWS as u64), options, &vec![low; DRAWS]);
            let mut ups = Vec::new();
            let target = f64::from(low - (low - value));
            for _ in 0..2 {
                run.write_params(&vec![low; DRAWS]);
                run.step(&vec![low - value; DRAWS], 1.0);
                let got: Vec<f64> = run.snapshot().params.into_iter().map(f64::from).collect();
                let spacing = params.spacing(target);
                assert!(
                    got.iter().all(|x| (x - target).abs() < spacing),
                    "{params:?} {value:e}: no neighbour"
                );
                let mean = got.iter().sum::<f64>() / DRAWS as f64;
                let variance = got.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / DRAWS as f64;
                let error = (variance / DRAWS as f64).sqrt();
                assert!(
                    (mean - target).abs() <= 3.0 * error + 1e-9 * target.abs(),
                    "{params:?}: mean {mean:e} of {target:e}, standard error {error:e}"
                );
                ups.push(got.iter().map(|x| *x > target).collect::<Vec<_>>());
            }
            let pairs = |pairs: &mut dyn Iterator<Item = (bool, bool)>| {
                let mut table = [[0f64; 2]; 2];
                pairs.for_each(|(a, b)| table[usize::from(a)][usize::from(b)] += 1.0);
                table
            };
            let neighbours =
                |apart: usize| pairs(&mut ups[0].iter().copied().zip(ups[0][apart..].iter().copied()));
            let tables = [
                ("next", neighbours(1)),
                ("of the next vector", neighbours(4)),
                ("of the next workgroup", neighbours(1_024)),
                ("of the next step", pairs(&mut ups[0].iter().copied().zip(ups[1].iter().copied()))),
            ];
            for (what, table) in tables {
                let chi_square = chi_square(table);
                // One degree of freedom: 10.83 is exceeded once in a thousand, and there are forty of these.
                assert!(
                    chi_square < 15.0,
                    "{params:?} {value:e}: the element {what} depends on it, {chi_square}"
                );
            }
        }
    }
}

//! Steps: skipped ones, norms, reports, averages, and the budget of every rule.

use cpu_harness::{
    Case, CpuRun, Random, assert_same_bits, cases, cases_of, check_cpu, cpu_slot, lr, many, single,
};
use wgpu_optim::{AdamW, AnyRule, Clip, Ema, Format, Group, Lamb, Layout, Master, Options, Sgd};

/// A skipped step changes no bit of parameters, state or average, and does not count.
#[test]
fn skipped_steps_leave_no_trace() {
    for rule in AnyRule::NAMES {
        for (seed, Case { name, rule: of }) in cases_of(rule).into_iter().enumerate() {
            let layout = many(of);
            let options = Options {
                skip_nonfinite: true,
                ema: Some(Ema { decay: 0.9, debias: true }),
                clip: [None, Some(Clip::GlobalNorm(1.0)), Some(Clip::GroupNorm(1.0))][seed % 3],
                ..Options::default()
            };
            let run = |dirty: bool| {
                let mut random = Random::new(seed as u64);
                let len = layout.len() as usize;
                let mut run = CpuRun::new(layout.clone(), options, &random.values(len));
                for t in 0..4 {
                    let mut grads = random.values(len);
                    // No tensor's.
                    grads[0] = f32::NAN;
                    let at = layout.tensors()[random.below(600) as usize].range().start;
                    let good = std::mem::replace(&mut grads[at], [f32::NAN, f32::INFINITY][t % 2]);
                    if dirty {
                        let report = run.step(&grads, lr(t)).unwrap();
                        assert_eq!((report.finite, report.skipped), (false, t as u64 + 1));
                    }
                    grads[at] = good;
                    assert!(run.step(&grads, lr(t)).unwrap().finite);
                }
                (run.snapshot(), run.slot("ema"))
            };
            let [(a, a_ema), (b, b_ema)] = [run(true), run(false)];
            assert_same_bits(&a, &b, &format!("{rule} {name}"));
            assert!(a_ema == b_ema, "{rule} {name}: ema");
        }
    }
}

/// Squares of gradients beyond f32, and gradients that are not finite without skipping.
#[test]
fn norms_at_the_edges() {
    let options = Options { clip: Some(Clip::GlobalNorm(1.0)), report: true, ..Options::default() };
    for (g, norm) in [(1e-30, 2e-30), (1e30, 2e30), (0.25, 0.5), (f32::MAX, f32::INFINITY)] {
        let mut run = CpuRun::new(single(Sgd::default(), 4), options, &[0.0; 4]);
        let report = run.step(&[g; 4], 1.0).unwrap();
        approx::assert_relative_eq!(report.grad_norm, norm, max_relative = 1e-6);
        approx::assert_relative_eq!(run.params()[0], -g.min(0.5), max_relative = 1e-5);
    }
    for (bad, rest) in [(f32::INFINITY, 0.0), (f32::NAN, f32::NAN)] {
        let mut run = CpuRun::new(single(Sgd::default(), 3), options, &[0.0; 3]);
        let report = run.step(&[1.0, bad, 1.0], 1.0).unwrap();
        let params = run.params();
        // PyTorch's: c / ∞ of the others, and NaN of all.
        assert!(!report.finite && params[1].is_nan(), "{params:?}");
        assert_eq!(params[0].is_nan(), rest.is_nan());
        assert!(params[2] == rest || rest.is_nan(), "{params:?}");
    }
}

/// Reports of groups, of gradients that are not finite, and of norms, by hand.
#[test]
fn reports_say_what_was() {
    let close = |got: f32, want: f32| approx::assert_relative_eq!(got, want, max_relative = 1e-5);
    // The tensors of a layer-wise rule are groups of their own to it, and not to the clip. The first group's
    // norm is 5.
    let first = Group::new("first", Lamb::default()).tensor("a", [1]).tensor("b", [1]);
    let layout = Layout::packed([first, Group::new("second", Lamb::default()).tensor("c", [1])]).unwrap();
    let options = Options { clip: Some(Clip::GroupNorm(1.0)), report: true, ..Options::default() };
    let mut run = CpuRun::new(layout, options, &[1.0; 3]);
    let report = run.step(&[3.0, 4.0, 0.5], 0.1).unwrap();
    close(report.clip_factor, 0.2);
    // A step with gradients that are not finite is not a skipped step if skipping is off.
    let report = run.step(&[3.0, f32::NAN, 0.5], 0.1).unwrap();
    assert_eq!((report.finite, report.skipped), (false, 0));
    // Norms, and those of a step that is skipped.
    let options = Options { norms: true, skip_nonfinite: true, ..Options::default() };
    let mut run = CpuRun::new(single(Sgd::default(), 2), options, &[3.0, 4.0]);
    for (grad, update_norm) in [(f32::NAN, 0.0), (0.6, 1.0)] {
        let report = run.step(&[grad, 0.8], 1.0).unwrap();
        close(report.param_norm.unwrap(), 5.0);
        close(report.update_norm.unwrap(), update_norm);
    }
}

/// The average is of the parameters that the caller reads, not of the numbers that were rounded to them.
#[test]
fn an_average_of_stored_parameters() {
    let ema = Some(Ema { decay: 0.0, debias: false });
    let options = Options { params: Format::Bf16, master: Master::None, ema, ..Options::default() };
    let mut run = CpuRun::new(single(Sgd::default(), 1), options, &[1.0]);
    run.step(&[-1e-3], 1.0);
    assert_eq!(run.state("ema", "w"), [1.0]);
}

/// A bound does nothing to a NaN.
#[test]
fn a_bounded_nan_stays_one() {
    let options = Options { clip: Some(Clip::Value(1.0)), ..Options::default() };
    let mut run = CpuRun::new(single(Sgd::default(), 3), options, &[0.0; 3]);
    run.step(&[f32::NAN, f32::INFINITY, -3.0], 1.0);
    let params = run.params();
    assert!(params[0].is_nan());
    assert_eq!(params[1..], [-1.0, 1.0]);
}

/// A NaN stays in its element, or in its block of 8 bits, in all state and in every part of the work.
#[test]
fn a_nan_stays_where_it_is() {
    const LEN: usize = 40_000;
    const BAD: [usize; 5] = [0, 31, 16_383, 16_384, LEN - 1];
    let layout = single(AdamW::default(), LEN as u64);
    let bf16 = Options { params: Format::Bf16, states: Format::Bf16, ..Options::default() };
    let ema = Some(Ema { decay: 0.5, debias: false });
    for options in [Options { ema, ..Options::default() }, Options { ema, ..bf16 }] {
        let run = |bad: &[usize]| {
            let mut random = Random::new(8);
            let mut run = CpuRun::new(layout.clone(), options, &random.values(LEN));
            let mut grads = random.values(LEN);
            bad.iter().for_each(|&i| grads[i] = f32::NAN);
            run.step(&grads, 0.1);
            let slots = ["exp_avg", "exp_avg_sq", "ema", "master"];
            let slots = slots.map(|slot| cpu_slot(&run.optimizer, slot).unwrap_or_default());
            [vec![run.codes()], slots.to_vec()].concat()
        };
        for (got, want) in run(&BAD).iter().zip(run(&[])) {
            let differ: Vec<usize> = (0..want.len()).filter(|&i| got[i] != want[i]).collect();
            assert!(want.is_empty() || differ == BAD, "{options:?}: {differ:?}");
        }
    }
}

/// Every rule is within its budget of the reference, on every processor.
#[test]
fn every_rule_is_within_its_budget() {
    for Case { name, rule } in cases() {
        check_cpu(&many(rule), 41, 3, name);
    }
}

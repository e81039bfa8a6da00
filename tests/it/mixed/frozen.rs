//! Frozen groups.

use super::{Bits, assert_has, only, ordinary, ways, with_gaps, zoo};
use crate::common::{Random, lr};
use cpu_harness::all;
use harness::GpuRun;
use wgpu_optim::{AdamW, AnyRule, Clip, Ema, Format, Group, LossScale, NAdam, Options, Sgd, StepError};

const STEPS: usize = 6;

/// Whether a group is frozen in a step: each group has a pattern of its own, and some start with it.
fn is_frozen(group: usize, t: usize) -> bool {
    (group + 3 * t) % 7 < 3
}

/// A group that was frozen at times is, bit for bit, one that never saw the steps in between: its bias
/// corrections, its average and everything else that is counted follow its own steps.
#[test]
fn a_frozen_group_does_not_age() {
    let gpu = harness::test_gpu();
    let layout = zoo(&AnyRule::all(), true);
    let len = layout.len() as usize;
    let mut random = Random::new(17);
    let start = random.values(len);
    let steps: Vec<_> = (0..STEPS).map(|_| with_gaps(&layout, &random.values(len))).collect();
    let names: Vec<_> = layout.groups().iter().map(|group| group.name().to_owned()).collect();
    let ema = Some(Ema { decay: 0.9, debias: true });
    for options in [
        Options { ema, ..Options::default() },
        Options { states: Format::Q8, norms: true, ..Options::default() },
    ] {
        for way in ways(gpu.as_ref()) {
            let mut run = way.run(&layout, options, &start);
            for (t, grads) in steps.iter().enumerate() {
                for (g, name) in names.iter().enumerate() {
                    run.set_frozen(name, is_frozen(g, t)).unwrap();
                }
                run.step(grads, lr(t));
            }
            let bits = run.bits();
            for (g, name) in names.iter().enumerate() {
                let mut alone = way.run(&only(&layout, |group| group.name() == name), options, &start);
                for (t, grads) in steps.iter().enumerate().filter(|&(t, _)| !is_frozen(g, t)) {
                    alone.step(grads, lr(t));
                }
                assert_has(&bits, &alone.bits(), &format!("{name}, {}", way.name()));
            }
        }
    }
}

/// A layout may start with frozen groups.
#[test]
fn a_group_may_start_frozen() {
    let gpu = harness::test_gpu();
    let groups = |frozen| {
        let first = Group::new("first", AdamW::default()).tensor("a", [5]).tensor("b", [70]);
        [first, Group::new("second", AdamW::default()).frozen(frozen).tensor("c", [33])]
    };
    let layouts = [true, false].map(|frozen| wgpu_optim::Layout::packed(groups(frozen)).unwrap());
    assert!(layouts[0].groups()[1].is_frozen() && !layouts[1].groups()[1].is_frozen());
    let moved = layouts.each_ref().map(|layout| layout.bytes_moved(&Options::default()));
    assert_eq!(moved, [28 * 75, 28 * 108]);
    let mut random = Random::new(4);
    let (start, grads) = (random.values(108), random.values(108));
    for way in ways(gpu.as_ref()) {
        let [started, frozen, alone] =
            [&layouts[0], &layouts[1], &only(&layouts[1], |g| g.name() == "second")];
        let ends = [started, frozen].map(|layout| {
            let mut run = way.run(layout, Options::default(), &start);
            if !layout.groups()[1].is_frozen() {
                run.set_frozen("second", true).unwrap();
            }
            run.step(&grads, 0.1);
            run.set_frozen("second", false).unwrap();
            run.step(&grads, 0.1);
            run.bits()
        });
        assert!(ends[0] == ends[1], "{}", way.name());
        let mut alone = way.run(alone, Options::default(), &start);
        alone.step(&grads, 0.1);
        assert_has(&ends[0], &alone.bits(), &way.name());
    }
}

/// Nothing of a frozen group is read or written: no NaN of its gradients is seen, no norm includes it, and
/// parameters, state, average and gradients keep every bit.
#[test]
fn a_frozen_group_is_not_touched() {
    let gpu = harness::test_gpu();
    let layout = zoo(&AnyRule::all(), true);
    let len = layout.len() as usize;
    let frozen = ["adam", "lion", "lars"];
    let is_frozen = |group: &Group| frozen.contains(&group.name());
    let rest = only(&layout, |group| !is_frozen(group));
    let own = only(&layout, is_frozen);
    let ema = Some(Ema { decay: 0.9, debias: true });
    for clip in [Clip::GlobalNorm(1.0), Clip::GroupNorm(1.0)] {
        let scale = Some(LossScale { initial: 4.0, ..LossScale::default() });
        let options = Options { ema, loss_scale: scale, ..all(clip) };
        for way in ways(gpu.as_ref()) {
            let mut random = Random::new(9);
            let start = ordinary(&mut random, len);
            let (mut run, mut other) = (way.run(&layout, options, &start), way.run(&rest, options, &start));
            let mut grads = with_gaps(&layout, &ordinary(&mut random, len));
            run.step(&grads, 0.1).unwrap();
            frozen.iter().for_each(|name| run.set_frozen(name, true).unwrap());
            let of_frozen = |bits: Bits| -> Bits {
                let own = |(tensor, _): &(String, String)| own.tensor(tensor).is_ok();
                bits.into_iter().filter(|(key, _)| own(key)).collect()
            };
            let before = of_frozen(run.bits());
            assert!(before.keys().any(|(_, slot)| slot == "ema"));
            // A step that the run without these groups takes too, from the same parameters and state.
            other.step(&grads, 0.1).unwrap();
            other.take_over(&run);
            for tensor in own.tensors() {
                grads[tensor.range()].fill(f32::NAN);
            }
            let (got, want) = (run.step(&grads, 0.1).unwrap(), other.step(&grads, 0.1).unwrap());
            assert_eq!(format!("{got:?}"), format!("{want:?}"), "{}", way.name());
            assert!(got.finite && got.grad_norm > 0.0);
            assert_has(&of_frozen(run.bits()), &before, &way.name());
            let bits = run.bits();
            let mut others = other.bits();
            // Their averages began elsewhere.
            others.retain(|(_, slot), _| slot != "ema");
            assert_has(&bits, &others, &way.name());
            let left = run.gradients();
            for tensor in own.tensors() {
                assert!(left[tensor.range()].iter().all(|&g| g == f32::NAN.to_bits()), "{}", way.name());
            }
            for tensor in rest.tensors() {
                assert!(left[tensor.range()].iter().all(|&g| g == 0), "{}", way.name());
            }
            // Nor is it touched in a step that is skipped.
            let bad = rest.tensors()[7].range().start;
            grads[bad] = f32::INFINITY;
            let report = run.step(&grads, 0.1).unwrap();
            assert_eq!((report.finite, report.skipped), (false, 1), "{}", way.name());
            assert_has(&run.bits(), &bits, &way.name());
            let left = run.gradients();
            for tensor in own.tensors() {
                assert!(left[tensor.range()].iter().all(|&g| g == f32::NAN.to_bits()), "{}", way.name());
            }
        }
    }
}

/// A step of frozen groups alone does nothing, and is counted.
#[test]
fn all_groups_may_be_frozen() {
    let gpu = harness::test_gpu();
    let rules: [AnyRule; 3] = [AdamW::default().into(), NAdam::default().into(), Sgd::default().into()];
    let layout = zoo(&rules, true);
    let len = layout.len() as usize;
    let mut random = Random::new(2);
    let start = random.values(len);
    let grads = random.values(len);
    for way in ways(gpu.as_ref()) {
        for options in [Options::default(), all(Clip::GlobalNorm(1.0)), all(Clip::GroupNorm(1.0))] {
            let mut run = way.run(&layout, options, &start);
            run.step(&grads, 0.1);
            let before = run.bits();
            rules.iter().for_each(|rule| run.set_frozen(rule.name(), true).unwrap());
            if let Some(report) = run.step(&vec![f32::NAN; len], 0.1) {
                assert_eq!((report.step, report.finite, report.grad_norm), (1, true, 0.0), "{}", way.name());
                assert_eq!((report.param_norm, report.update_norm), (Some(0.0), Some(0.0)));
            }
            assert_has(&run.bits(), &before, &way.name());
            rules.iter().for_each(|rule| run.set_frozen(rule.name(), false).unwrap());
            run.step(&grads, 0.1);
            assert_ne!(run.bits(), before, "{}", way.name());
        }
    }
}

/// A rule whose groups are all frozen is not dispatched, and comes back with them.
#[test]
fn frozen_rules_are_not_dispatched() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rules: [AnyRule; 3] = [AdamW::default().into(), NAdam::default().into(), Sgd::default().into()];
    let layout = zoo(&rules, true);
    let start = vec![0.5; layout.len() as usize];
    let mut run = GpuRun::new(&gpu, layout, Options::default(), &start);
    assert_eq!(run.bound.dispatches(), 3);
    run.optimizer.freeze("nadam").unwrap();
    run.step(&start, 0.1);
    assert_eq!(run.bound.dispatches(), 2);
    run.optimizer.unfreeze("nadam").unwrap();
    run.step(&start, 0.1);
    assert_eq!(run.bound.dispatches(), 3);
}

/// While a step that may be skipped is unreported, nobody knows how old a group that is frozen now is: an
/// error, after which the run goes on as if it had not been asked for.
#[test]
fn freezing_waits_for_reports() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = zoo(&[AdamW::default().into(), Sgd { momentum: 0.9, ..Sgd::default() }.into()], true);
    let len = layout.len() as usize;
    let options = Options { skip_nonfinite: true, ..Options::default() };
    let mut random = Random::new(8);
    let (start, grads) = (random.values(len), random.values(len));
    let end = |early: bool| {
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &start);
        for freeze in [true, false] {
            // Two steps whose reports have not arrived.
            run.write_grads(&grads);
            let mut encoder = gpu.encoder();
            for t in 0..2 {
                run.record(&mut encoder, lr(t)).unwrap();
            }
            let change = |run: &mut GpuRun<'_>| {
                if freeze { run.optimizer.freeze("adamw") } else { run.optimizer.unfreeze("adamw") }.unwrap();
            };
            if early {
                change(&mut run);
                let steps = run.optimizer.steps();
                for _ in 0..2 {
                    let mut encoder = gpu.encoder();
                    let error = run.record(&mut encoder, 0.1).unwrap_err();
                    assert_eq!(error, StepError::UncertainAge { group: "adamw".into(), steps: 2 });
                    assert_eq!(run.optimizer.steps(), steps);
                }
            }
            gpu.run(encoder);
            if !early {
                change(&mut run);
            }
            run.step(&grads, 0.1);
        }
        (run.codes(), run.slot("exp_avg"), run.slot("exp_avg_sq"), run.slot("momentum_buffer"))
    };
    assert!(end(true) == end(false));
}

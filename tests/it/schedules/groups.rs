//! Schedules of groups.

use super::*;

/// Takes six steps from fixed parameters with fixed gradients, on a GPU or else on the CPU.
fn run(gpu: Option<&Gpu>, layout: Layout, step: impl Fn(u64) -> Step) -> Snapshot {
    let (start, grads) =
        ([1.0f32, -2.0, 3.0, 0.25, 1e3].repeat(2), [0.5f32, 0.25, -1.0, 2.0, -8.0].repeat(2));
    let start = &start[..layout.len() as usize];
    if let Some(gpu) = gpu {
        let mut run = GpuRun::new(gpu, layout, Options::DEFAULT, start);
        for t in 0..6 {
            run.step(&grads, step(t));
        }
        return run.snapshot();
    }
    let mut run = CpuRun::new(layout, Options::DEFAULT, start);
    for t in 0..6 {
        run.step(&grads, step(t));
    }
    run.snapshot()
}

/// Compares two groups with factors of their own, in steps of `outer`, with groups without factors in steps
/// that are computed here for each of them.
fn groups(rule: impl Into<AnyRule>, slow: &Schedule, fast: &Schedule, outer: &Schedule) {
    let rule = rule.into();
    let gpu = harness::test_gpu();
    let layout = |factors: [&Schedule; 2]| {
        let group =
            |name, factor: &Schedule| Group::new(name, rule).lr_factor(factor.clone()).tensor(name, [5]);
        Layout::packed([group("slow", factors[0]), group("fast", factors[1])]).unwrap()
    };
    for gpu in std::iter::once(None).chain(gpu.iter().map(Some)) {
        let together = run(gpu, layout([slow, fast]), |t| outer.at(t).unwrap());
        for (range, own) in [(0..5, slow), (5..10, fast)] {
            let by_hand = run(gpu, layout([&1.0.into(); 2]), |t| {
                let (outer, own) = (outer.at(t).unwrap(), own.at(t).unwrap());
                let step = Step::from(outer.lr * own.lr);
                own.momentum.or(outer.momentum).map_or(step, |momentum| step.with_momentum(momentum))
            });
            let part = |of: &[f32]| of.get(range.clone()).unwrap_or_default().to_vec();
            let part = |of: &Snapshot| Snapshot {
                params: part(&of.params),
                state: of.state.iter().map(|slot| part(slot)).collect(),
            };
            let engine = if gpu.is_some() { "on the GPU" } else { "on the CPU" };
            let context = format!("{} {own:?} {engine}", rule.name());
            assert_same_bits(&part(&together), &part(&by_hand), &context);
        }
    }
}

#[test]
fn a_groups_schedule_is_its_learning_rate() {
    let slow = schedule::linear(1e-3, 1e-2, 4);
    let fast = schedule::cosine(0.1, 0.0, 8).warmup(2);
    for outer in [Schedule::from(1.0), schedule::exponential(2.0, 0.5)] {
        groups(AdamW::default(), &slow, &fast, &outer);
        groups(Sgd::default(), &slow, &fast, &outer);
        groups(Sgd::default(), &0.5.into(), &(|t: u64| t as f64).into(), &outer);
    }
}

#[test]
fn a_groups_cycle_drives_its_momentum() {
    let cycle = schedule::one_cycle(0.1, 8);
    let driven = Schedule::from(0.1).with_momentum(schedule::linear(0.5, 0.9, 3));
    // Where a group has none, the step's counts.
    for (slow, fast) in [(&cycle, &driven), (&cycle, &Schedule::from(0.1))] {
        for outer in [Schedule::from(1.0), Schedule::from(2.0).with_momentum(0.7)] {
            groups(Sgd { momentum: 0.9, ..Sgd::default() }, slow, fast, &outer);
            groups(Adam::default(), slow, fast, &outer);
        }
    }
}

#[test]
fn a_groups_schedule_is_refused_by_group() {
    let group = |factor: Schedule| Group::new("g", Sgd::default()).lr_factor(factor).tensor("w", [1]);
    let error = Layout::new([group(schedule::cosine(1.0, 0.0, 0).warmup(3))]).unwrap_err();
    assert_eq!(error.to_string(), "lr_factor of group \"g\": cosine: steps = 0, must be at least 1");
    let cycle = OneCycle { max_lr: 0.1, total_steps: 2, cycle_momentum: false, ..OneCycle::default() };
    let mut optimizer = cpu::Optimizer::new(Layout::new([group(cycle.into())]).unwrap()).unwrap();
    let mut step = || optimizer.step(cpu::Tensors::flat(&mut [1.0], &[1.0]), 1.0);
    (0..3).for_each(|_| assert!(step().is_ok()));
    let error = step().unwrap_err();
    assert_eq!(error.to_string(), "lr_factor of group \"g\": one_cycle: step 3, must be at most 2");
    assert_eq!(optimizer.steps(), 3);
    // A rule has bounds of its own for what a schedule drives.
    let mut optimizer = cpu::Optimizer::new(single(Adam::default(), 1)).unwrap();
    let step = Schedule::from(0.1).with_momentum(1.0).at(0).unwrap();
    let error = optimizer.step(cpu::Tensors::flat(&mut [1.0], &[1.0]), step).unwrap_err();
    assert!(matches!(error, StepError::Argument { field: "beta1", .. }), "{error}");
}

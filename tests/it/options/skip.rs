//! Skipped steps leave no trace.

use super::*;

/// Runs steps of which some have gradients that are not finite: the run equals, bit for bit, the one without
/// them.
fn skipped_steps_leave_no_trace(gpu: &Gpu, name: &str, rule: DynRule, seed: u64, waiting: bool) {
    let rule_name = rule.name();
    let layout = odd(rule);
    let len = layout.len() as usize;
    let mut random = Random::new(seed);
    let params = random.values(len);
    let clips = [None, Some(Clip::GlobalNorm(1.0)), Some(Clip::GroupNorm(1.0)), Some(Clip::Value(1.0))];
    let clip = clips[seed as usize % 4];
    let ema = Some(Ema { decay: 0.9, debias: true });
    let options = Options { ema, clip, norms: seed % 3 == 2, zero_gradients: seed % 2 == 1, ..SKIP };
    let mut dirty = GpuRun::new(gpu, layout.clone(), options, &params);
    let mut clean = GpuRun::new(gpu, layout.clone(), options, &params);
    let mut skipped = 0;
    for t in 0..12 {
        let mut grads = random.values(len);
        // In every other run the first step is bad.
        let bad = if t == 0 { seed.is_multiple_of(2) } else { random.below(3) == 0 };
        if bad {
            let tensor = &layout.tensors()[random.below(4) as usize];
            let at = tensor.offset + random.below(tensor.len);
            let what = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xff80_0001)];
            grads[at as usize] = what[random.below(4) as usize];
            skipped += 1;
        } else {
            // A gap between tensors belongs to the caller.
            grads[308] = f32::NAN;
            clean.submit(&grads, lr(t));
        }
        dirty.submit(&grads, lr(t));
        if waiting {
            gpu.wait();
        }
    }
    gpu.wait();
    let context = format!("{rule_name} {name}, seed {seed}");
    assert_same_bits(&dirty.snapshot(), &clean.snapshot(), &context);
    for tensor in layout.tensors() {
        assert_eq!(
            dirty.state("ema", &tensor.name),
            clean.state("ema", &tensor.name),
            "{context}: average of {}",
            tensor.name
        );
    }
    let last = std::iter::from_fn(|| dirty.optimizer.take_report()).last().unwrap();
    assert_eq!((last.step, last.skipped), (11, skipped), "{context}");
}

/// Skips in buffers of single tensors and in chunks, with a loss scale that a bad step does not change.
#[test]
fn skipped_steps_leave_no_trace_in_any_form_of_buffers() {
    fn test(gpu: &Gpu, rule: AnyRule) {
        let layout = by_turns(rule);
        let len = layout.len() as usize;
        let params = Random::new(51).values(len);
        let scale = LossScale { initial: 4.0, backoff_factor: 1.0, ..LossScale::default() };
        let ema = Some(Ema { decay: 0.9, debias: false });
        let clip = Some(Clip::GlobalNorm(1.0));
        let options = Options { ema, clip, loss_scale: Some(scale), zero_gradients: true, ..SKIP };
        let run = |dirty: bool| {
            let mut pooled = pooled(gpu, &layout, options, &params);
            let mut random = Random::new(52);
            for t in 0..5 {
                let mut grads = random.values(len);
                let tensor = &layout.tensors()[random.below(40) as usize];
                let at = (tensor.offset + random.below(tensor.len)) as usize;
                let what = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][t % 3];
                let good = std::mem::replace(&mut grads[at], what);
                if dirty {
                    assert!(!pooled.step(&grads, lr(t)).unwrap().finite);
                }
                grads[at] = good;
                assert!(pooled.step(&grads, lr(t)).unwrap().finite);
            }
            assert!(gather(&layout, &pooled.grads(), |_| true).iter().all(|&g| g == 0.0));
            pooled.snapshot()
        };
        assert_same_bits(&run(true), &run(false), rule.name());
    }
    let [Some(roomy), Some(cramped)] = roomy_and_cramped() else { return };
    test(&roomy, AdamW::default().into());
    test(&roomy, Lamb::default().into());
    test(&cramped, AdamW::default().into());
    test(&cramped, Lamb::default().into());
    test(&cramped, Lars::default().into());
}

#[test]
fn skipped_steps_leave_no_trace_in_any_rule() {
    let Some(gpu) = harness::test_gpu() else { return };
    for rule in AnyRule::NAMES {
        for (seed, case) in cases_of(rule).into_iter().enumerate() {
            skipped_steps_leave_no_trace(&gpu, case.name, case.rule, seed as u64, seed % 2 == 0);
        }
    }
}

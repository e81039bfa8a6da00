//! Clipping: by one norm, by norms of groups, by value.

use super::*;

/// Chunked bindings, buffers of single tensors, pooled at odd offsets: one norm, one decision.
#[test]
fn every_form_of_buffers_is_clipped_and_skipped_alike() {
    let limit = |l: &mut wgpu::Limits| l.max_storage_buffer_binding_size = 1 << 16;
    let Some(gpu) = harness::test_gpu_with(limit) else { return };
    let rule = AdamW::default();
    let layout = Layout::packed([
        Group::new("a", rule).tensor("w", [30_001]),
        Group::new("b", rule).lr_factor(2.0).tensor("v", [777]).tensor("u", [3]),
    ])
    .unwrap();
    let ema = Some(Ema { decay: 0.5, debias: false });
    let options = Options { clip: Some(Clip::GlobalNorm(2.0)), ema, ..SKIP };
    let len = layout.len() as usize;
    let mut random = Random::new(21);
    let params = random.values(len);
    let grads: Vec<_> = (0..4)
        .map(|t| {
            let mut grads = random.values(len);
            if t == 1 {
                // In the last tensor, and so in another binding than the first.
                grads[len - 1] = f32::INFINITY;
            }
            grads
        })
        .collect();
    let mut flat = GpuRun::new(&gpu, layout.clone(), options, &params);
    let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
    // A buffer for each tensor and side.
    let buffers: Vec<_> = layout
        .tensors()
        .iter()
        .map(|t| {
            let (p, g) = (gpu.buffer(t.len * 4 + 12), gpu.buffer(t.len * 4 + 12));
            gpu.write(&p, 4, &params[t.range()]);
            (t.name.clone(), p, g)
        })
        .collect();
    let each = buffers.iter().map(|(name, p, g)| (name.as_str(), View::new(p, 4), View::new(g, 8)));
    let bound = optimizer.bind(&Tensors::each(each)).unwrap();
    let mut norms = Vec::new();
    for (t, grads) in grads.iter().enumerate() {
        let report = flat.step(grads, lr(t)).unwrap();
        norms.push(report.grad_norm);
        assert_eq!(report.finite, t != 1);
        for (tensor, (_, _, g)) in layout.tensors().iter().zip(&buffers) {
            gpu.write(g, 8, &grads[tensor.range()]);
        }
        let mut encoder = gpu.encoder();
        optimizer.step(&gpu.queue, &mut encoder, &bound, lr(t)).unwrap();
        gpu.run(encoder);
        let report = optimizer.take_report().unwrap();
        assert_eq!(report.finite, t != 1);
        if t != 1 {
            let exact = norm(grads);
            approx::assert_relative_eq!(f64::from(norms[t]), exact, max_relative = 1e-6);
            approx::assert_relative_eq!(f64::from(report.grad_norm), exact, max_relative = 1e-6);
            assert!(report.clip_factor < 1.0);
        }
    }
    // The two add squares in another order, so their factors may differ in the last digit.
    let ends = flat.snapshot().params;
    for (tensor, (_, p, _)) in layout.tensors().iter().zip(&buffers) {
        let close = |a: &[f32], b: &[f32]| {
            for (a, b) in a.iter().zip(b) {
                approx::assert_relative_eq!(a, b, max_relative = 1e-6, epsilon = 1e-8);
            }
        };
        close(&gpu.read(p, 4, tensor.len as usize), &ends[tensor.range()]);
        let ranges = optimizer.state("ema", &tensor.name).unwrap();
        let ema =
            ranges.iter().flat_map(|r| gpu.read(r.buffer, r.offset, r.len as usize)).collect::<Vec<_>>();
        close(&ema, &flat.state("ema", &tensor.name));
        assert!(ema.iter().zip(&ends[tensor.range()]).any(|(e, p)| e != p));
    }
}

/// `g · min(1, c / (‖g‖ + 10⁻⁶))` with each group's own norm, in every form of buffers.
#[test]
fn groups_are_clipped_each_by_its_own_norm() {
    const BOUND: f64 = 2.0;
    for gpu in roomy_and_cramped() {
        let Some(gpu) = gpu else { return };
        let layout = by_turns(Sgd::default());
        let len = layout.len() as usize;
        let mut grads = Random::new(31).values(len);
        // The last group is within the bound.
        for t in layout.tensors().iter().filter(|t| t.group == 2) {
            grads[t.range()].iter_mut().for_each(|g| *g *= 1e-6);
        }
        let options = Options { clip: Some(Clip::GroupNorm(BOUND)), report: true, ..Options::default() };
        let factor = |group| {
            let norm = norm(&gather(&layout, &grads, |g| g == group)) / 2.0;
            (BOUND / (norm + 1e-6)).min(1.0)
        };
        let factors = [0, 1, 2].map(factor);
        assert!(factors[1] < factors[0] && factors[0] < 1.0 && factors[2] == 1.0, "{factors:?}");
        let judge = |params: &[f32], report: &Report, form: &str| {
            for tensor in layout.tensors() {
                for i in tensor.range() {
                    let want = -f64::from(grads[i]) * factors[tensor.group];
                    approx::assert_relative_eq!(f64::from(params[i]), want, max_relative = 1e-6);
                }
            }
            approx::assert_relative_eq!(
                f64::from(report.grad_norm),
                norm(&gather(&layout, &grads, |_| true)) / 2.0,
                max_relative = 1e-6
            );
            let least = factors.into_iter().fold(1.0, f64::min);
            approx::assert_relative_eq!(f64::from(report.clip_factor), least, max_relative = 1e-6);
            assert!(report.finite, "{form}");
        };
        let zeros = vec![0.0; len];
        let mut flat = GpuRun::new(&gpu, layout.clone(), options, &zeros);
        let report = flat.step(&grads, Step::from(2.0).with_grad_scale(2.0)).unwrap();
        judge(&flat.snapshot().params, &report, "flat");
        let halves: Vec<_> = grads.iter().map(|g| g / 2.0).collect();
        let mut pooled = pooled(&gpu, &layout, options, &zeros);
        let report = pooled.step(&halves, 2.0).unwrap();
        judge(&pooled.params(), &report, "pooled");

        // A NaN concerns its own group alone, as where PyTorch clips the groups one by one.
        let at = layout.tensor("t3").unwrap().offset as usize;
        grads[at] = f32::NAN;
        let before = flat.snapshot().params;
        flat.step(&grads, Step::from(2.0).with_grad_scale(2.0)).unwrap();
        let after = flat.snapshot().params;
        assert!(gather(&layout, &after, |g| g == 0).iter().all(|p| p.is_nan()));
        let moved = |p: &[f32]| gather(&layout, p, |g| g != 0);
        for (before, after) in moved(&before).iter().zip(moved(&after)) {
            approx::assert_relative_eq!(2.0 * before, after, max_relative = 1e-6);
        }
    }
}

/// A layer-wise rule reads gradients that have been divided and clipped, in both of its phases, and the
/// average follows its parameters.
#[test]
fn gradients_are_divided_and_clipped_before_a_layer_wise_rule() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = by_turns(Lars { momentum: 0.0, eps: 1.0, trust_coefficient: 1.0, ..Lars::default() });
    let len = layout.len() as usize;
    let (params, grads) = (Random::new(32).values(len), Random::new(33).values(len));
    for clip in [Clip::GroupNorm(2.0), Clip::GlobalNorm(2.0), Clip::Value(2.0)] {
        let ema = Some(Ema { decay: 0.9, debias: false });
        let options = Options { clip: Some(clip), ema, ..Options::default() };
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &params);
        let mut clipped: Vec<f64> = grads.iter().map(|&g| f64::from(g) / 4.0).collect();
        for tensor in layout.tensors() {
            let norm = |of: &dyn Fn(usize) -> bool| norm(&gather(&layout, &grads, of)) / 4.0 + 1e-6;
            let (factor, bound) = match clip {
                Clip::GroupNorm(c) => (c / norm(&|g| g == tensor.group), f64::INFINITY),
                Clip::GlobalNorm(c) => (c / norm(&|_| true), f64::INFINITY),
                Clip::Value(c) => (1.0, c),
                _ => unreachable!(),
            };
            clipped[tensor.range()].iter_mut().for_each(|g| *g = (factor * *g).clamp(-bound, bound));
        }
        let mut reference = cpu::Reference::new(layout.clone()).unwrap();
        let mut want: Vec<f64> = params.iter().map(|&p| p.into()).collect();
        let mut average = Vec::new();
        for t in 0..2 {
            run.step(&grads, Step::from(0.1).with_grad_scale(4.0));
            reference.step(&mut want, &clipped, 0.1).unwrap();
            let weight = if t == 0 { 1.0 } else { 0.1 };
            average.resize(len, 0.0);
            average.iter_mut().zip(&want).for_each(|(e, p)| *e += weight * (p - *e));
        }
        let got = run.snapshot().params;
        for tensor in layout.tensors() {
            // The subtracted part may be most of the parameter.
            let size = tensor.range().map(|i| want[i].abs()).fold(0.0, f64::max);
            let close = |got: f32, want: f64| {
                let epsilon = 2e-6 * size;
                approx::assert_relative_eq!(f64::from(got), want, max_relative = 2e-6, epsilon = epsilon);
            };
            for (i, ema) in tensor.range().zip(run.state("ema", &tensor.name)) {
                close(got[i], want[i]);
                close(ema, average[i]);
            }
        }
    }
}

/// Gradient scale, norm and bound together.
#[test]
fn gradients_are_divided_and_then_clipped() {
    let Some(gpu) = harness::test_gpu() else { return };
    let step = |options, grads: &[f32], divisor: f64| {
        let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
        let report = run.step(grads, Step::from(1.0).with_grad_scale(divisor));
        (run.snapshot().params, report)
    };
    let options = Options { ..Options::default() };
    let (params, report) = step(options, &[8.0, -4.0, 0.0, 2.0], 4.0);
    assert_eq!((params, report), (vec![-2.0, 1.0, 0.0, -0.5], None));
    let (params, report) =
        step(Options { clip: Some(Clip::Value(1.0)), ..options }, &[8.0, -4.0, 0.0, f32::NAN], 4.0);
    assert_eq!((&params[..3], report), (&[-1.0, 1.0, 0.0][..], None));
    assert!(params[3].is_nan(), "a bound makes no number of what is none");
    // ‖(3, 4)‖ = 5 after the division.
    let options = Options { clip: Some(Clip::GlobalNorm(2.5)), report: true, ..options };
    let (params, report) = step(options, &[12.0, 16.0, 0.0, 0.0], 4.0);
    let report = report.unwrap();
    assert_eq!((report.grad_norm, report.finite, report.skipped), (5.0, true, 0));
    approx::assert_relative_eq!(report.clip_factor, 0.5, max_relative = 1e-6);
    approx::assert_relative_eq!(params[0], -1.5, max_relative = 1e-6);
    // Within the bound nothing changes.
    let (params, _) = step(options, &[4.0, -4.0, 0.0, 0.0], 4.0);
    assert_eq!(params, [-1.0, 1.0, 0.0, 0.0]);
    // Without skipping, a norm of NaN makes all gradients NaN, and an infinite one all others zero, as in
    // PyTorch.
    let (params, _) = step(options, &[f32::NAN, 4.0, 4.0, 4.0], 4.0);
    assert!(params.iter().all(|p| p.is_nan()), "{params:?}");
    let (params, _) = step(options, &[f32::INFINITY, 4.0, 4.0, 4.0], 4.0);
    assert!(params[0].is_nan() && params[1..] == [0.0; 3], "{params:?}");
}

/// A group's factor is `c / (‖g‖ + 10⁻⁶)`, at most 1; 0 under an infinite norm, and NaN under one of NaN. The
/// least of them is reported, and NaN if there is one, by both engines.
#[test]
fn the_reported_factor_is_the_least_or_no_number() {
    let Some(gpu) = harness::test_gpu() else { return };
    // Gradients of a group, and their norm.
    let kinds = [
        ([0.3f32, 0.4], 0.5),
        ([3.0, 4.0], 5.0),
        ([f32::INFINITY, 1.0], f64::INFINITY),
        ([f32::NAN, 1.0], f64::NAN),
        ([f32::NEG_INFINITY, f32::NAN], f64::NAN),
    ];
    let layout = || {
        let [a, b] = ["a", "b"].map(|name| Group::new(name, Sgd::default()).tensor(name, [2]));
        Layout::packed([a, b]).unwrap()
    };
    let factor = |norm: f64| {
        let factor = 1.0 / (norm + 1e-6);
        if factor > 1.0 { 1.0 } else { factor }
    };
    for ((a, a_norm), (b, b_norm)) in kinds.into_iter().flat_map(|a| kinds.map(|b| (a, b))) {
        let (of_a, of_b) = (factor(a_norm), factor(b_norm));
        let least = if of_a.is_nan() || of_b.is_nan() { f64::NAN } else { of_a.min(of_b) };
        let global = factor((a_norm * a_norm + b_norm * b_norm).sqrt());
        for (clip, want) in [(Clip::GroupNorm(1.0), least), (Clip::GlobalNorm(1.0), global)] {
            let options = Options { clip: Some(clip), report: true, ..Options::default() };
            let grads = [a, b].concat();
            let of_gpu = GpuRun::new(&gpu, layout(), options, &[0.0; 4]).step(&grads, 1.0);
            let of_cpu = CpuRun::new(layout(), options, &[0.0; 4]).step(&grads, 1.0);
            for (engine, report) in [("GPU", of_gpu), ("CPU", of_cpu)] {
                let got = f64::from(report.unwrap().clip_factor);
                let same = got.is_nan() && want.is_nan() || (got - want).abs() <= 1e-6 * want;
                assert!(same, "{engine}, {clip:?}, {grads:?}: {got}, must be {want}");
            }
        }
    }
}

/// Under an infinite bound the norm is measured, and gradients stay as they are, whatever it is.
#[test]
fn an_infinite_bound_measures_alone() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = || {
        let [a, b] = ["a", "b"].map(|name| Group::new(name, Sgd::default()).tensor(name, [2]));
        Layout::packed([a, b]).unwrap()
    };
    for (clip, bounded) in [
        (Clip::GlobalNorm(f64::INFINITY), Clip::GlobalNorm(2.5)),
        (Clip::GroupNorm(f64::INFINITY), Clip::GroupNorm(1e9)),
    ] {
        let options = Options { clip: Some(clip), report: true, ..Options::default() };
        let mut device = GpuRun::new(&gpu, layout(), options, &[0.0; 4]);
        let mut host = CpuRun::new(layout(), options, &[0.0; 4]);
        for (grads, norm) in [
            ([3.0f32, 4.0, 0.0, 0.0], 5.0f32),
            ([1e30, 0.0, -1e30, 0.0], 1.414_213_6e30),
            ([f32::INFINITY, 1.0, 2.0, 3.0], f32::INFINITY),
            ([f32::NAN, 1.0, 2.0, 3.0], f32::NAN),
        ] {
            device.write_params(&[0.0; 4]);
            host.write_params(&[0.0; 4]);
            let reports = [device.step(&grads, 1.0).unwrap(), host.step(&grads, 1.0).unwrap()];
            for (report, params) in reports.into_iter().zip([device.params(), host.params()]) {
                let close = (report.grad_norm / norm - 1.0).abs() <= 1e-6;
                assert!(close || report.grad_norm.to_bits() == norm.to_bits() || norm.is_nan(), "{report:?}");
                assert_eq!(report.grad_norm.is_nan(), norm.is_nan(), "{report:?}");
                assert_eq!((report.clip_factor, report.finite), (1.0, norm.is_finite()), "{report:?}");
                let same = params.iter().zip(&grads).all(|(p, g)| *p == -g || p.is_nan() && g.is_nan());
                assert!(same, "{clip:?}, {grads:?}: {params:?}");
            }
        }
        // The bound is that of the next step.
        device.optimizer.set_clip(bounded).unwrap();
        host.optimizer.set_clip(bounded).unwrap();
        let want = if matches!(bounded, Clip::GlobalNorm(_)) { 0.5 } else { 1.0 };
        let reports = [device.step(&[3.0, 4.0, 0.0, 0.0], 0.0), host.step(&[3.0, 4.0, 0.0, 0.0], 0.0)];
        for report in reports {
            approx::assert_relative_eq!(report.unwrap().clip_factor, want, max_relative = 1e-6);
        }
    }
}

#[cfg(feature = "serde")]
#[test]
fn an_infinite_bound_is_text_in_json() {
    for (clip, json) in [
        (Clip::GlobalNorm(f64::INFINITY), r#"{"global_norm":"inf"}"#),
        (Clip::GroupNorm(f64::INFINITY), r#"{"group_norm":"inf"}"#),
        (Clip::GlobalNorm(2.5), r#"{"global_norm":2.5}"#),
    ] {
        assert_eq!(serde_json::to_string(&clip).unwrap(), json);
        assert_eq!(serde_json::from_str::<Clip>(json).unwrap(), clip);
        assert_eq!(serde_json::from_value::<Clip>(serde_json::to_value(clip).unwrap()).unwrap(), clip);
    }
    assert_eq!(serde_json::from_str::<Clip>(r#"{"global_norm": 3}"#).unwrap(), Clip::GlobalNorm(3.0));
    for bad in [r#"{"global_norm": "nan"}"#, r#"{"global_norm": null}"#, r#"{"value": "inf"}"#] {
        assert!(serde_json::from_str::<Clip>(bad).is_err(), "{bad}");
    }
}

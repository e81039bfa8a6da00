//! Norms of gradients, parameters and updates.

use super::*;

/// So many tiles that the last row of a dispatch has workgroups without one: these add nothing.
#[test]
fn workgroups_past_the_table_add_nothing() {
    let [_, Some(gpu)] = roomy_and_cramped() else { return };
    // Padding between the tensors keeps tiles apart: 41 of them in rows of at most 40 workgroups.
    let group =
        (0..41).fold(Group::new("g", Sgd::default()), |g, i| g.tensor_at(format!("t{i}"), [3], i * 8));
    let layout = Layout::new([group]).unwrap();
    let mut grads = vec![f32::NAN; layout.len() as usize];
    for (i, tensor) in layout.tensors().iter().enumerate() {
        grads[tensor.range()].fill(if i == 40 { 1_000.0 } else { 1.0 });
    }
    for norms in [false, true] {
        let options = Options { report: true, norms, ..Options::default() };
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &vec![0.0; grads.len()]);
        let report = run.step(&grads, 1.0).unwrap();
        let want = norm(&gather(&layout, &grads, |_| true));
        approx::assert_relative_eq!(f64::from(report.grad_norm), want, max_relative = 1e-6);
        assert_eq!(gather(&layout, &run.snapshot().params, |_| true)[120..], [-1_000.0; 3]);
        if let Some(moved) = report.update_norm {
            approx::assert_relative_eq!(f64::from(moved), want, max_relative = 1e-6);
        }
    }
}

/// ‖p‖ and ‖Δp‖ in every form of buffers; of a skipped step the second is 0.
#[test]
fn norms_of_parameters_and_updates() {
    fn test(gpu: &Gpu, rule: AnyRule) {
        let layout = by_turns(rule);
        let len = layout.len() as usize;
        let mut random = Random::new(41);
        let params = random.values(len);
        let ema = Some(Ema { decay: 0.5, debias: false });
        let options =
            Options { norms: true, skip_nonfinite: true, zero_gradients: true, ema, ..Options::default() };
        let judge = |report: &Report, before: &[f32], after: &[f32], form: &str| {
            let context = format!("{}, {form}", rule.name());
            let [before, after] = [before, after].map(|p| gather(&layout, p, |_| true));
            let close = |got: Option<f32>, want: f64, more: f64| {
                let got = f64::from(got.unwrap());
                assert!((got - want).abs() <= 1e-6 * want + more, "{context}: {got:e}, f64 {want:e}");
            };
            let size = norm(&before);
            close(report.param_norm, size, 0.0);
            let moved = before.iter().zip(&after).map(|(b, a)| a - b).collect::<Vec<_>>();
            // A compiler may simplify (p − s) − p to s: then each element lacks the rounding of its
            // parameter, half an ulp.
            close(report.update_norm, norm(&moved), f64::from(f32::EPSILON) / 2.0 * size);
        };
        let mut flat = GpuRun::new(gpu, layout.clone(), options, &params);
        let mut pooled = pooled(gpu, &layout, options, &params);
        for t in 0..3 {
            let mut grads = random.values(len);
            let between = layout.tensors()[1].end() as usize;
            assert!(layout.tensors().iter().all(|t| !t.range().contains(&between)));
            grads[between] = f32::NAN;
            if t == 1 {
                grads[0] = f32::INFINITY;
            }
            let before = flat.snapshot().params;
            let report = flat.step(&grads, lr(t)).unwrap();
            judge(&report, &before, &flat.snapshot().params, "flat");
            assert_eq!(report.update_norm == Some(0.0), t == 1, "{}", rule.name());
            let before = pooled.params();
            let report = pooled.step(&grads, lr(t)).unwrap();
            judge(&report, &before, &pooled.params(), "pooled");
        }
    }
    let [Some(roomy), Some(cramped)] = roomy_and_cramped() else { return };
    AnyRule::all().into_iter().for_each(|rule| test(&roomy, rule));
    test(&cramped, AdamW::default().into());
    test(&cramped, Lamb::default().into());
    // Both norms show infinities and NaN.
    let Some(gpu) = harness::test_gpu() else { return };
    for bad in [f32::INFINITY, f32::NAN] {
        let options = Options { norms: true, ..Options::default() };
        let seen = |p: f32, g: f32| {
            let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4), options, &[1.0, 1.0, p, 1.0]);
            run.step(&[1.0, g, 1.0, 1.0], 1.0).unwrap()
        };
        let same = |got: Option<f32>| got.is_some_and(|got| got == bad || got.is_nan() && bad.is_nan());
        let report = seen(bad, 1.0);
        assert!(same(report.param_norm), "{report:?}");
        let report = seen(1.0, bad);
        assert!(same(report.update_norm) && report.param_norm == Some(2.0), "{report:?}");
    }
    // Without the option there are none.
    let mut run = GpuRun::new(
        &gpu,
        single(Sgd::default(), 4),
        Options { report: true, ..Options::default() },
        &[1.0; 4],
    );
    let report = run.step(&[1.0; 4], 1.0).unwrap();
    assert_eq!((report.param_norm, report.update_norm), (None, None));
}

/// More partial results than a workgroup adds at once, of dispatches whose last row reaches past the table:
/// the workgroups there update nothing and add to no norm.
#[test]
fn norms_of_hundreds_of_workgroups_in_rows() {
    fn test(gpu: &Gpu, rule: AnyRule, options: Options, want: f32) {
        let name = rule.name();
        // 273 tiles, the last one of a single vector, in 17 rows of 17.
        let len = 272 * 16_384 + 4;
        let with_an_end = |value| {
            let mut values = vec![0.0; len];
            values[len - 4..].fill(value);
            values
        };
        let mut run = GpuRun::new(gpu, single(rule, len as u64), options, &with_an_end(3.0));
        let report = run.step(&with_an_end(1e3), 1.0).unwrap();
        let norms = (report.grad_norm, report.param_norm, report.update_norm);
        assert_eq!(norms, (2e3, Some(6.0), Some(2.0 * (3.0 - want))), "{name} {options:?}");
        assert!(run.snapshot().params == with_an_end(want), "{name} {options:?}");
    }
    let Some(gpu) = harness::test_gpu_with(|l| l.max_compute_workgroups_per_dimension = 17) else { return };
    for clip in [None, Some(Clip::GroupNorm(1e9))] {
        let options = Options { clip, norms: true, ..Options::default() };
        test(&gpu, Sgd::default().into(), options, 3.0 - 1e3);
        // φ = 6 / (2 000 + 2 000).
        let lars = Lars { momentum: 0.0, trust_coefficient: 1.0, eps: 2e3, ..Lars::default() };
        test(&gpu, lars.into(), options, 1.5);
    }
}

/// 16 M elements over eight decades: 1e-6 of f64, and the same bits every time.
#[test]
fn the_norm_is_accurate_and_the_same_every_time() {
    let Some(gpu) = harness::test_gpu() else { return };
    let len = 1 << 24;
    let mut random = Random::new(99);
    for decades in [-4.0..4.0, -12.0..-4.0] {
        let grads: Vec<f32> = (0..len)
            .map(|_| {
                let sign = if random.below(2) == 0 { 1.0 } else { -1.0 };
                let span: f64 = decades.end - decades.start;
                (sign * 10f64.powf(decades.start + random.unit() * span)) as f32
            })
            .collect();
        let options = Options { report: true, ..Options::default() };
        let mut run = GpuRun::new(&gpu, single(Sgd::default(), len), options, &vec![0.0; len as usize]);
        let reports = [(); 3].map(|()| run.step(&grads, 0.0).unwrap());
        let (got, exact) = (f64::from(reports[0].grad_norm), norm(&grads));
        let off = (got - exact).abs() / exact;
        println!("norm {got:e}, f64 {exact:e}: {off:.1e} relative");
        assert!(off <= 1e-6, "norm {got:e}, f64 {exact:e}: {off:e} relative");
        assert!(reports.iter().all(|report| report.grad_norm.to_bits() == reports[0].grad_norm.to_bits()));
    }
}

/// No square is lost, large or tiny, nor with the largest loss scale.
#[test]
fn norms_beyond_the_range_of_squares() {
    let Some(gpu) = harness::test_gpu() else { return };
    for exponent in [0, 66, 100, 126] {
        let initial = f64::from(exponent).exp2();
        let scale = Some(LossScale { initial, max: 126f64.exp2(), ..LossScale::default() });
        let options = Options { clip: Some(Clip::GlobalNorm(1.0)), loss_scale: scale, ..Options::default() };
        let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
        let report = run.step(&[initial as f32; 4], 1.0).unwrap();
        assert_eq!((report.grad_norm, report.finite), (2.0, true), "scale 2^{exponent}");
        approx::assert_relative_eq!(run.snapshot().params[3], -0.5, max_relative = 1e-5);
    }
    for (grads, want) in [
        ([1e-23f32; 4], 2e-23f32),
        ([3e30, 4e30, 1e10, 0.0], 5e30),
        ([3e-13, 4e-13, 1e-30, 0.0], 5e-13),
        // On both sides of the bounds between the three sums.
        ([2f32.powi(40), 2f32.powi(40) * 0.999, 0.0, 0.0], 1.554_168_4e12),
    ] {
        let mut run = GpuRun::new(
            &gpu,
            single(Sgd::default(), 4),
            Options { report: true, ..Options::default() },
            &[0.0; 4],
        );
        approx::assert_relative_eq!(run.step(&grads, 0.0).unwrap().grad_norm, want, max_relative = 1e-6);
    }
}

/// Norms, scales and factors beyond the range of an f32: the step is that of exact arithmetic, on both
/// engines and on devices that take subnormal numbers for zero.
#[test]
fn factors_beyond_the_range_of_an_f32() {
    /// The norm, its reciprocal and three products are rounded.
    const TOLERANCE: f64 = 1e-6;
    fn test(gpu: &Gpu, grads: [f32; 4], divisor: f64, scale: Option<f64>, clip: Clip) {
        let clip_of = |norm: f64, bound: f64| (bound / (norm + 1e-6)).min(1.0);
        let unscale = 1.0 / divisor / scale.unwrap_or(1.0);
        let norm = norm(&grads) * unscale;
        let factor = match clip {
            Clip::GlobalNorm(bound) | Clip::GroupNorm(bound) => clip_of(norm, bound),
            _ => unreachable!(),
        };
        let loss_scale = scale.map(|initial| {
            let max = 127f64.exp2();
            LossScale { initial, max, ..LossScale::default() }
        });
        let options = Options { clip: Some(clip), loss_scale, report: true, ..Options::default() };
        let layout = || single(Sgd::default(), 4);
        let mut device = GpuRun::new(gpu, layout(), options, &[0.0; 4]);
        let mut host = CpuRun::new(layout(), options, &[0.0; 4]);
        let step = Step::from(1.0).with_grad_scale(divisor);
        let reports = [device.step(&grads, step).unwrap(), host.step(&grads, step).unwrap()];
        let context = format!("{grads:?} / {divisor:e} / {scale:?}, {clip:?}");
        for (report, params) in reports.into_iter().zip([device.params(), host.params()]) {
            // Subnormal results may be zero, and those of reports may be rounded towards it.
            let close = |got: f32, want: f64| {
                let (got, least) = (f64::from(got), f64::from(f32::MIN_POSITIVE));
                let off = (got - want).abs();
                off <= TOLERANCE * want.abs()
                    || want.abs() <= least * 1.000_001 && off <= least
                    || got.is_infinite() && want > f64::from(f32::MAX)
            };
            assert!(report.finite, "{context}: {report:?}");
            assert!(close(report.grad_norm, norm), "{context}: {report:?}, norm {norm:e}");
            assert!(close(report.clip_factor, factor), "{context}: {report:?}, factor {factor:e}");
            for (&p, &g) in params.iter().zip(&grads) {
                let want = -f64::from(g) * unscale * factor;
                assert!(close(p, want), "{context}: {p:e}, must be {want:e}");
            }
        }
    }
    let Some(gpu) = harness::test_gpu() else { return };
    for clip in [Clip::GlobalNorm, Clip::GroupNorm] {
        // ‖g‖ = 3.6·10³⁸: −0.5 each.
        test(&gpu, [1.8e38; 4], 1.0, None, clip(1.0));
        // A factor of 2⁻¹⁴⁰, as norm or as norm and scale.
        test(&gpu, [2f32.powi(120); 4], 1.0, None, clip(2f64.powi(-19)));
        test(&gpu, [2f32.powi(120); 4], 2f64.powi(20), None, clip(2f64.powi(-39)));
        test(&gpu, [2f32.powi(40); 4], 1.0, Some(126f64.exp2()), clip(1e30));
        // 1 over the divisors is 2²⁰⁰.
        test(&gpu, [2f32.powi(-110); 4], 2f64.powi(-100), Some(2f64.powi(-100)), clip(1e30));
    }
    let mut random = Random::new(77);
    let mut exponent = |from: i32, to: i32| from + random.below((to - from + 1) as u64) as i32;
    for _ in 0..24 {
        let grads = [0; 4].map(|_| (1.0 + exponent(0, 1_000) as f32 / 1e3) * 2f32.powi(exponent(-126, 126)));
        let bound = 2f64.powi(exponent(-126, 126)) * 1.3;
        let (divisor, scale) = (2f64.powi(exponent(-60, 60)), 2f64.powi(exponent(-126, 127)));
        test(&gpu, grads, divisor, Some(scale), Clip::GlobalNorm(bound));
        test(&gpu, grads, divisor, None, Clip::GroupNorm(bound));
    }
}

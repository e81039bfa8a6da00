//! The dynamic loss scale.

use super::*;

/// The largest scale by default: its reciprocal is exact, and its product with that of a gradient scale is
/// normal.
#[test]
fn the_factor_of_gradients_is_exact_and_normal() {
    let Some(gpu) = harness::test_gpu() else { return };
    let initial = 64f64.exp2();
    let scale = Some(LossScale { initial, ..LossScale::default() });
    let options = Options { loss_scale: scale, ..Options::default() };
    let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4), options, &[0.0; 4]);
    run.step(&[3.0 * initial as f32; 4], Step::from(1.0).with_grad_scale(2f64.powi(60)));
    assert_eq!(run.snapshot().params, [-3.0 * 2f32.powi(-60); 4]);
}

/// 500 steps of scripted overflows against PyTorch's scaler, in one run and in runs that each continue with
/// the scale of the run before.
#[test]
fn the_loss_scale_is_pytorchs() {
    let Some(gpu) = harness::test_gpu() else { return };
    let text = include_str!("../../golden/scaler.json");
    let golden: serde_json::Value = serde_json::from_str(text).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let name = &case["name"];
        let argument = |name: &str, default| case["arguments"][name].as_f64().unwrap_or(default);
        let scale = LossScale {
            initial: argument("init_scale", 65_536.0),
            growth_factor: argument("growth_factor", 2.0),
            backoff_factor: argument("backoff_factor", 0.5),
            growth_interval: argument("growth_interval", 2_000.0) as u32,
            // One of the runs reaches the largest power of two of f32.
            max: 127f64.exp2(),
            ..LossScale::default()
        };
        let options = Options { loss_scale: Some(scale), ..Options::default() };
        let overflows: Vec<_> =
            case["overflow"].as_array().unwrap().iter().map(|o| o.as_bool().unwrap()).collect();
        for steps in [overflows.len(), 47] {
            let mut saved: Option<Report> = None;
            let mut used = scale.initial as f32;
            for (part, overflows) in overflows.chunks(steps).enumerate() {
                let mut run = GpuRun::new(&gpu, single(Sgd::default(), 3), options, &[1.0; 3]);
                if let Some(Report { next_loss_scale, good_steps, .. }) = saved {
                    let restored =
                        run.optimizer.set_loss_scale(&gpu.queue, next_loss_scale.into(), good_steps);
                    assert_eq!(restored, Ok(()));
                }
                for &overflow in overflows {
                    run.submit(&[if overflow { f32::INFINITY } else { 1.0 }, 0.0, 0.0], 0.0);
                }
                gpu.wait();
                let reports: Vec<_> = std::iter::from_fn(|| run.optimizer.take_report()).collect();
                assert_eq!(reports.len(), overflows.len());
                for (t, report) in reports.iter().enumerate() {
                    let step = part * steps + t;
                    let want = case["scale"][step].as_f64().unwrap() as f32;
                    assert_eq!(
                        (report.step, report.finite),
                        (t as u64, !overflows[t]),
                        "{name}, step {step}"
                    );
                    let scales = (report.loss_scale, report.next_loss_scale);
                    assert_eq!(scales, (used, want), "{name}, step {step}");
                    used = want;
                }
                let read = gpu.read(run.optimizer.loss_scale().unwrap(), 0, 1);
                assert_eq!(read, [used]);
                saved = reports.last().copied();
            }
        }
    }
}

/// A restored scale holds from the next submission on, between steps too. A refused one changes nothing.
#[test]
fn loss_scales_are_restored_within_their_bounds() {
    let Some(gpu) = harness::test_gpu() else { return };
    let scale = LossScale { initial: 8.0, growth_interval: 3, max: 16.0, min: 4.0, ..LossScale::default() };
    let options = Options { loss_scale: Some(scale), ..Options::default() };
    let mut run = GpuRun::new(&gpu, single(Sgd::default(), 1), options, &[0.0]);
    run.step(&[8.0], 1.0);
    run.optimizer.set_loss_scale(&gpu.queue, 4.0, 2).unwrap();
    let mut refused = |scale, good_steps, field, bound| {
        let error = run.optimizer.set_loss_scale(&gpu.queue, scale, good_steps).unwrap_err();
        let ChangeError::Options(error) = error else { panic!("{error}") };
        let found =
            matches!(error, OptionsError::Field { field: f, bound: b, .. } if (f, b) == (field, bound));
        assert!(found, "{error}");
    };
    for bad in [2.0, 32.0, -4.0, 0.0, f64::NAN, f64::INFINITY] {
        refused(bad, 0, "loss_scale", "from min to max");
    }
    refused(8.0, 3, "good_steps", "below growth_interval");
    let report = run.step(&[4.0], 1.0).unwrap();
    assert_eq!((report.loss_scale, report.next_loss_scale, report.good_steps), (4.0, 8.0, 0));
    assert_eq!((report.step, run.snapshot().params), (1, vec![-2.0]));

    let mut unscaled = Optimizer::with_options(&gpu.device, single(Sgd::default(), 1), SKIP).unwrap();
    let error = unscaled.set_loss_scale(&gpu.queue, 1.0, 0).unwrap_err();
    assert_eq!(error.to_string(), "loss_scale = 1, must be unset without Options::loss_scale");
}

/// Gradients of a scaled loss are divided by the scale of that loss.
#[test]
fn gradients_are_divided_by_the_loss_scale() {
    let Some(gpu) = harness::test_gpu() else { return };
    let scale = LossScale { initial: 8.0, growth_interval: 2, max: 16.0, min: 4.0, ..LossScale::default() };
    let options = Options { loss_scale: Some(scale), ..Options::default() };
    let mut run = GpuRun::new(&gpu, single(Sgd::default(), 1), options, &[0.0]);
    let mut scales = Vec::new();
    for grad in [32.0, 32.0, 64.0, f32::NAN, f32::INFINITY, f32::INFINITY, 16.0] {
        // Every good gradient is 2 · 2 times its scale.
        let report = run.step(&[grad], Step::from(1.0).with_grad_scale(2.0)).unwrap();
        scales.push(report.next_loss_scale);
    }
    // Never above max, never below min.
    assert_eq!(scales, [8.0, 16.0, 16.0, 8.0, 4.0, 4.0, 4.0]);
    assert_eq!(run.snapshot().params, [-8.0]);
}

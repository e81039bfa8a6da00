//! Everything that the rules of a layout have in common: the norm of all gradients, and skipped steps.

use super::{assert_has, ordinary, ways, with_gaps, zoo};
use crate::common::{Random, lr};
use cpu_harness::all;
use wgpu_optim::float::ulp;
use wgpu_optim::{AnyRule, Clip, Ema, Options, Report, Tensor, cpu};

/// Floats from one number to the other, of one sign.
fn apart(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits())
}

/// A clip of the norm over all rules is that of gradients clipped in f64 beside the reference, and the
/// devices report one norm.
#[test]
fn one_norm_over_all_rules() {
    const BOUND: f64 = 2.0;
    /// Units in the last place that four steps may add up to.
    const ULPS: f64 = 4.0;
    let gpu = harness::test_gpu();
    for packed in [true, false] {
        let layout = zoo(&AnyRule::all(), packed);
        let len = layout.len() as usize;
        let options = Options { clip: Some(Clip::GlobalNorm(BOUND)), report: true, ..Options::default() };
        let mut random = Random::new(3);
        let start = ordinary(&mut random, len);
        let steps: Vec<_> = (0..4).map(|_| with_gaps(&layout, &ordinary(&mut random, len))).collect();
        // The reference, with the exact norm.
        let mut reference = cpu::Reference::new(layout.clone()).unwrap();
        let mut exact: Vec<f64> = start.iter().map(|&p| p.into()).collect();
        let mut norms = Vec::new();
        for (t, grads) in steps.iter().enumerate() {
            let own = || layout.tensors().iter().flat_map(|tensor| &grads[tensor.range()]);
            let norm = own().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let factor = (BOUND / (norm + 1e-6)).min(1.0);
            assert!(factor < 0.1, "a clip that is seen");
            let clipped: Vec<f64> = grads.iter().map(|&g| f64::from(g) * factor).collect();
            reference.step(&mut exact, &clipped, lr(t)).unwrap();
            norms.push((norm, factor));
        }
        let (mut reports, mut worst) = (Vec::<Vec<Report>>::new(), 0f64);
        for way in ways(gpu.as_ref()) {
            let mut run = way.run(&layout, options, &start);
            reports.push((0..).zip(&steps).map(|(t, grads)| run.step(grads, lr(t)).unwrap()).collect());
            for (report, &(norm, factor)) in reports.last().unwrap().iter().zip(&norms) {
                assert!(apart(report.grad_norm, norm as f32) <= 2, "{} of {norm}", report.grad_norm);
                assert!(apart(report.clip_factor, factor as f32) <= 2, "{} of {factor}", report.clip_factor);
            }
            if way.gpu.is_some() {
                continue;
            }
            let bits = run.bits();
            for ((tensor, slot), got) in &bits {
                let want = |tensor: &str| match slot.as_str() {
                    "param" => &exact[layout.tensor(tensor).unwrap().range()],
                    _ => reference.state(slot, tensor).unwrap().unwrap(),
                };
                // Some numbers are small differences: units are those of the largest of the group.
                let group = layout.tensor(tensor).unwrap().group;
                let tensors = layout.tensors().iter().filter(|tensor| tensor.group == group);
                let largest =
                    tensors.flat_map(|tensor| want(&tensor.name)).fold(0.0, |a: f64, b| a.max(b.abs()));
                for (i, (&got, &want)) in got.iter().zip(want(tensor)).enumerate() {
                    let got = f64::from(f32::from_bits(got));
                    let off = (got - want).abs() / ulp(largest);
                    worst = worst.max(off);
                    assert!(off <= ULPS, "{slot}[{i}] of {tensor}: {got:e} of {want:e}, {off:.1} ulp");
                }
            }
        }
        println!("worst: {worst:.2} ulp");
        for report in reports.iter().flat_map(|other| other.iter().zip(&reports[0])) {
            let (got, want) = report;
            assert!(apart(got.grad_norm, want.grad_norm) <= 2, "{got:?} {want:?}");
            assert!(apart(got.clip_factor, want.clip_factor) <= 2, "{got:?} {want:?}");
            assert_eq!((got.step, got.finite, got.skipped), (want.step, true, 0));
        }
    }
}

/// A NaN in one tensor's gradient leaves every bit of all groups, and the run goes on as if the step had not
/// been.
#[test]
fn a_nan_skips_the_step_of_all_rules() {
    let gpu = harness::test_gpu();
    let layout = zoo(&AnyRule::all(), true);
    let len = layout.len() as usize;
    let plain = Options { skip_nonfinite: true, ..Options::default() };
    let around = Options {
        loss_scale: None,
        skip_nonfinite: true,
        ema: Some(Ema { decay: 0.9, debias: true }),
        ..all(Clip::GroupNorm(1.0))
    };
    let mut random = Random::new(6);
    let start = random.values(len);
    let steps: Vec<_> = (0..3).map(|_| with_gaps(&layout, &random.values(len))).collect();
    for (options, way) in
        [plain, around].iter().flat_map(|o| ways(gpu.as_ref()).into_iter().map(move |w| (*o, w)))
    {
        let ends = [true, false].map(|dirty| {
            let mut run = way.run(&layout, options, &start);
            let mut skipped = 0;
            for (t, grads) in steps.iter().enumerate() {
                let before = run.bits();
                // A bad gradient in each group, by turns.
                let group = |tensor: &&Tensor| dirty && tensor.group % steps.len() == t;
                let suffix = format!(".{t}");
                for tensor in layout.tensors().iter().filter(group).filter(|t| t.name.ends_with(&suffix)) {
                    let mut grads = grads.clone();
                    grads[tensor.range().end - 1] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][t];
                    let report = run.step(&grads, lr(t)).unwrap();
                    skipped += 1;
                    assert_eq!((report.finite, report.skipped), (false, skipped), "{}", way.name());
                    assert_has(&run.bits(), &before, &format!("{} skipped, {}", tensor.name, way.name()));
                    if options.zero_gradients {
                        let left = run.gradients();
                        assert!(layout.tensors().iter().all(|t| left[t.range()].iter().all(|&g| g == 0)));
                    }
                }
                assert!(run.step(grads, lr(t)).unwrap().finite);
            }
            assert_eq!(skipped, if dirty { layout.groups().len() as u64 } else { 0 });
            run.bits()
        });
        assert!(!ends[1].is_empty());
        assert_has(&ends[0], &ends[1], &way.name());
    }
}

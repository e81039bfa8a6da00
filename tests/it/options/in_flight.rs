//! Steps in flight: recorded, and not yet reported by the device.

use super::*;

/// A hundred steps in one encoder: the host knows nothing of them before all have been recorded.
#[test]
fn skipping_needs_no_readback() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = NAdam { weight_decay: 0.1, ..NAdam::default() };
    let layout = odd(rule);
    let mut random = Random::new(8);
    let params = random.values(layout.len() as usize);
    let bad = [0, 1, 5, 40, 41, 42, 98];
    let ends: Vec<_> = [true, false]
        .map(|dirty| {
            let mut run = GpuRun::new(&gpu, layout.clone(), SKIP, &params);
            run.write_grads(&Random::new(3).values(layout.len() as usize));
            let mut values = Random::new(4).values(layout.len() as usize);
            values[700] = f32::NAN;
            let nan = run.bind(&gpu.upload(&values));
            let mut encoder = gpu.encoder();
            for t in 0..100 {
                if !bad.contains(&t) {
                    run.record(&mut encoder, lr(t)).unwrap();
                } else if dirty {
                    run.optimizer.step(&gpu.queue, &mut encoder, &nan, lr(t)).unwrap();
                }
            }
            gpu.run(encoder);
            run.snapshot()
        })
        .into();
    assert_same_bits(&ends[0], &ends[1], "a hundred steps in one encoder");
}

/// Memory of steps in flight is bounded for any number of groups: an error comes in time.
#[test]
fn sets_in_flight_are_bounded() {
    let Some(gpu) = harness::test_gpu() else { return };
    let groups =
        (0..1_000).map(|i| Group::new(format!("g{i}"), AdamW::default()).tensor(format!("t{i}"), [1]));
    let layout = Layout::packed(groups).unwrap();
    let mut run = GpuRun::new(&gpu, layout, SKIP, &[0.0; 1_000]);
    let mut encoder = gpu.encoder();
    let mut record = || run.record(&mut encoder, 1e-3);
    let refused = (0..100).find_map(|_| record().err());
    assert!(matches!(refused, Some(StepError::Unreported { bound: 40..60, .. })), "{refused:?}");
    assert!(run.optimizer.overhead_bytes() < 256 << 20);
}

/// Steps whose commands are never submitted are not taken, and do not change the others.
#[test]
fn dropped_commands_leave_no_trace() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = Adagrad { initial_accumulator_value: 1.0, ..Adagrad::default() };
    let options = Options { ema: Some(Ema { decay: 0.9, debias: false }), ..SKIP };
    let ends = [true, false].map(|dropping| {
        let mut run = GpuRun::new(&gpu, odd(rule), options, &vec![1.0; odd(rule).len() as usize]);
        let grads = Random::new(1).values(odd(rule).len() as usize);
        for t in 0..6 {
            if dropping && t % 2 == 0 {
                let mut encoder = gpu.encoder();
                run.record(&mut encoder, lr(t)).unwrap();
            }
            run.submit(&grads, lr(t));
        }
        gpu.wait();
        (run.snapshot(), run.state("ema", "a"))
    });
    assert_same_bits(&ends[0].0, &ends[1].0, "dropped commands");
    assert_eq!(ends[0].1, ends[1].1);
}

/// A report that is requested in commands before the last step describes the state at that place.
#[test]
fn a_report_is_of_the_step_that_had_run() {
    let Some(gpu) = harness::test_gpu() else { return };
    let rule = AdamW::default();
    let layout = odd(rule);
    let len = layout.len() as usize;
    let good = Random::new(6).values(len);
    let mut nan = good.clone();
    nan[0] = f32::NAN;
    let mut run = GpuRun::new(&gpu, layout.clone(), SKIP, &vec![1.0; len]);
    let bad = run.bind(&gpu.upload(&nan));
    run.write_grads(&good);
    let mut encoders = [gpu.encoder(), gpu.encoder()];
    for (encoder, bound) in encoders.iter_mut().zip([&run.bound, &bad]) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        run.optimizer.step_in_pass(&gpu.queue, &mut pass, bound, 0.1).unwrap();
    }
    run.optimizer.read_back(&mut encoders[0]).unwrap();
    for encoder in encoders {
        gpu.run(encoder);
    }
    let report = run.optimizer.take_report().unwrap();
    assert_eq!((report.step, report.skipped, report.finite), (0, 0, true));
    run.submit(&good, 0.1);
    gpu.wait();
    let mut clean = GpuRun::new(&gpu, layout, SKIP, &vec![1.0; len]);
    for _ in 0..2 {
        clean.submit(&good, 0.1);
    }
    gpu.wait();
    assert_same_bits(&run.snapshot(), &clean.snapshot(), "a report that was early");
}

/// NAdam's product of momenta depends on which steps were taken: an uncertain one is refused. With reports in
/// time none is.
#[test]
fn momentum_that_changes_wants_reports() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(NAdam::default());
    let len = layout.len() as usize;
    let at = |t: usize| Step::from(lr(t)).with_momentum(0.8 + 0.02 * t as f64);
    let mut random = Random::new(31);
    let params = random.values(len);
    let grads: Vec<_> = (0..6).map(|_| random.values(len)).collect();
    let mut nan = grads[2].clone();
    nan[4] = f32::NAN;
    let mut dirty = GpuRun::new(&gpu, layout.clone(), SKIP, &params);
    let mut clean = GpuRun::new(&gpu, layout.clone(), SKIP, &params);
    for (t, grads) in grads.iter().enumerate() {
        dirty.step(if t == 2 { &nan } else { grads }, at(t));
        if t != 2 {
            clean.step(grads, at(t));
        }
    }
    assert_same_bits(&dirty.snapshot(), &clean.snapshot(), "a momentum that changes");

    let mut encoder = gpu.encoder();
    let mut recorded = 0;
    let error = loop {
        let done = dirty.record(&mut encoder, at(6 + recorded));
        match done {
            Ok(()) => recorded += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, StepError::UncertainMomentum { rule: "nadam", steps: recorded });
    assert_eq!(dirty.optimizer.steps(), 6 + recorded as u64);
    gpu.run(encoder);
    dirty.step(&grads[0], at(6));
}

/// Requests grow no larger than a binding: an error comes in time.
#[test]
fn requests_fit_their_binding() {
    let Some(gpu) = harness::test_gpu_with(|l| l.max_storage_buffer_binding_size = 1 << 16) else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    let mut run = GpuRun::new(&gpu, layout, SKIP, &vec![1.0; len]);
    let mut encoder = gpu.encoder();
    let error = (0..2_000).find_map(|_| run.record(&mut encoder, 0.1).err());
    assert!(matches!(error, Some(StepError::Unreported { bound: 500..600, .. })), "{error:?}");
}

/// Steps that may be skipped, without a report: an error comes in time, and the run continues after a report.
#[test]
fn unheard_of_steps() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = GpuRun::new(&gpu, single(Sgd::default(), 4), SKIP, &[0.0; 4]);
    let record = |run: &mut GpuRun<'_>| {
        let mut encoder = gpu.encoder();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let done = run.optimizer.step_in_pass(&gpu.queue, &mut pass, &run.bound, 0.1);
        drop(pass);
        (done, encoder)
    };
    for _ in 0..1_024 {
        let (done, encoder) = record(&mut run);
        done.unwrap();
        gpu.queue.submit([encoder.finish()]);
    }
    let (done, mut encoder) = record(&mut run);
    assert_eq!(done, Err(StepError::Unreported { steps: 1_024, bound: 1_023 }));
    run.optimizer.read_back(&mut encoder).unwrap();
    gpu.run(encoder);
    let report = run.optimizer.take_report().unwrap();
    assert_eq!((report.step, report.skipped), (1_023, 0));
    record(&mut run).0.unwrap();
}

/// A step in commands of their own, without a report.
fn in_pass(gpu: &Gpu, run: &mut GpuRun<'_>) -> wgpu::CommandEncoder {
    let mut encoder = gpu.encoder();
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    run.optimizer.step_in_pass(&gpu.queue, &mut pass, &run.bound, 0.1).unwrap();
    drop(pass);
    encoder
}

/// A report that is requested before a step is recorded, in commands that run after it, is of that step.
#[test]
fn a_report_may_be_of_a_later_step() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = GpuRun::new(&gpu, single(AdamW::default(), 4), SKIP, &[1.0; 4]);
    run.write_grads(&[1.0; 4]);
    let mut report = gpu.encoder();
    let first = in_pass(&gpu, &mut run);
    run.optimizer.read_back(&mut report).unwrap();
    let second = in_pass(&gpu, &mut run);
    for encoder in [first, second, report] {
        gpu.run(encoder);
    }
    let report = run.optimizer.take_report().unwrap();
    assert_eq!((report.step, report.skipped, report.in_order), (1, 0, true));
    // Its buffer serves the next one.
    let report = run.step(&[1.0; 4], 0.1).unwrap();
    assert_eq!((report.step, report.skipped, report.in_order), (2, 0, true));
}

/// A report whose commands the device has refused says nothing. The step counts as not taken.
#[test]
fn a_report_that_was_not_written_is_not_believed() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut runs = [false, true].map(|fails| {
        let mut run = GpuRun::new(&gpu, single(AdamW::default(), 4), SKIP, &[1.0; 4]);
        run.write_grads(&[1.0; 4]);
        if fails {
            let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
            let mut encoder = gpu.encoder();
            run.record(&mut encoder, 0.1).unwrap();
            // Beyond the end of the buffer.
            let buffer = gpu.upload(&[0.0; 4]);
            encoder.clear_buffer(&buffer, 1 << 20, None);
            gpu.run(encoder);
            assert!(pollster::block_on(scope.pop()).is_some());
            assert_eq!(run.optimizer.take_report(), None);
        }
        run
    });
    for t in 0..3 {
        let reports = runs.each_mut().map(|run| run.step(&[1.0, -2.0, 0.5, 1.0], lr(t)).unwrap());
        assert_eq!(reports.map(|report| report.skipped), [0, 1]);
        assert_eq!(reports.map(|report| report.step), [t as u64, t as u64 + 1]);
    }
    let [clean, failed] = runs.each_ref().map(GpuRun::snapshot);
    assert_same_bits(&failed, &clean, "a step that was refused");
}

/// Commands that are submitted in another order than they were recorded: reports say so from then on.
#[test]
fn steps_out_of_order_are_reported() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = GpuRun::new(&gpu, single(AdamW::default(), 4), SKIP, &[1.0; 4]);
    assert!(run.step(&[1.0; 4], 0.1).unwrap().in_order);
    let encoders = [in_pass(&gpu, &mut run), in_pass(&gpu, &mut run)];
    for mut encoder in encoders.into_iter().rev() {
        run.optimizer.read_back(&mut encoder).unwrap();
        gpu.run(encoder);
    }
    let reports: Vec<_> = std::iter::from_fn(|| run.optimizer.take_report()).collect();
    let told: Vec<_> = reports.iter().map(|report| (report.step, report.in_order)).collect();
    assert_eq!(told, [(2, true), (1, false)]);
    assert!(!run.step(&[1.0; 4], 0.1).unwrap().in_order);
}

//! Parameters and gradients on the GPU, state on the CPU: the CPU engine's run, bit for bit.

use crate::common::{Random, lr, single};
use harness::Gpu;
use wgpu_optim::offload::{Offload, Progress};
use wgpu_optim::{AdamW, Clip, Error, Format, Group, Lamb, Layout, Options, Report, Twin, cpu, wgpu};

/// Several chunks, with a gap in the second.
fn large<R: Twin>(rule: R) -> Layout<R> {
    let group = Group::new("g", rule).tensor("a", [1_500_000]).tensor_at("b", [900_001], 1_500_017);
    Layout::new([group]).unwrap()
}

fn advance<R: Twin>(gpu: &Gpu, offload: &mut Offload<R>, params: &wgpu::Buffer, lr: f64) -> Option<Report> {
    loop {
        match offload.advance(&gpu.queue, params, lr).unwrap() {
            Progress::Waiting => {
                gpu.device.poll(wgpu::PollType::Poll).unwrap();
            }
            Progress::Working => {
                gpu.queue.submit([]);
            }
            Progress::Done(report) => {
                gpu.queue.submit([]);
                return report;
            }
        }
    }
}

#[test]
fn the_same_bits_as_on_the_cpu_alone() {
    fn test<R: Twin>(rule: R, options: Options) {
        let Some(gpu) = harness::test_gpu() else { return };
        let layout = large(rule);
        let len = layout.len() as usize;
        let mut random = Random::new(3);
        let mut start = random.values(len);
        start[1_500_003] = 7.0;
        let (params, grads) = (gpu.upload(&start), gpu.buffer(layout.buffer_size()));
        let mut offload = Offload::new(&gpu.device, layout.clone(), options, start.clone()).unwrap();
        let mut alone = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        assert!(offload.chunks() > 1);
        // Between tensors nothing is the optimizer's.
        gpu.write(&params, 4 * 1_500_003, &[8.0]);
        for t in 0..3 {
            let mut values = random.values(len);
            if t == 1 {
                values[2_400_000] = f32::NAN;
            }
            gpu.write(&grads, 0, &values);
            for chunk in 0..offload.chunks() {
                let mut encoder = gpu.encoder();
                offload.request(&mut encoder, &grads, chunk).unwrap();
                gpu.queue.submit([encoder.finish()]);
            }
            let got = advance(&gpu, &mut offload, &params, lr(t));
            let want = alone.step(cpu::Tensors::flat(&mut start, &values), lr(t)).unwrap();
            assert_eq!(format!("{got:?}"), format!("{want:?}"));
        }
        let got = gpu.read(&params, 0, len);
        assert_eq!(got[1_500_003], 8.0);
        for tensor in layout.tensors() {
            let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same(&got[tensor.range()], &start[tensor.range()]), "{}", tensor.name);
            for slot in wgpu_optim::rules::slots::<R>() {
                let of = |o: &cpu::Optimizer<R>| {
                    o.state(slot, &tensor.name).unwrap().map(|s| s.as_f32().unwrap().to_vec())
                };
                assert_eq!(format!("{:?}", of(offload.optimizer())), format!("{:?}", of(&alone)));
            }
        }
    }
    let skip = Options { skip_nonfinite: true, clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() };
    test(AdamW::default(), Options::default());
    test(AdamW::default(), Options { norms: true, ..skip });
    test(Lamb::default(), skip);
}

#[test]
fn bad_requests() {
    let Some(gpu) = harness::test_gpu() else { return };
    let new = |options, len| Offload::new(&gpu.device, single(AdamW::default(), 10), options, vec![0.0; len]);
    let refused = |options| new(options, 10).unwrap_err();
    let error = refused(Options { zero_gradients: true, ..Options::default() });
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    let error = refused(Options { grads: Format::F16, ..Options::default() });
    assert!(matches!(error, Error::Format { field: "grads", .. }), "{error}");
    let error = new(Options::default(), 9).unwrap_err();
    assert_eq!(error, Error::Mismatch { what: "parameters", found: 9, expected: 10 });
    let mut offload = new(Options::default(), 10).unwrap();
    let (good, short) = (gpu.buffer(40), gpu.buffer(36));
    let mut encoder = gpu.encoder();
    let error = offload.request(&mut encoder, &good, 1).unwrap_err();
    assert_eq!(error, Error::Mismatch { what: "chunks", found: 2, expected: 1 });
    let error = offload.request(&mut encoder, &good, usize::MAX).unwrap_err();
    assert!(matches!(error, Error::Mismatch { what: "chunks", expected: 1, .. }), "{error}");
    let error = offload.request(&mut encoder, &short, 0).unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { start: 0, end: 40, size: 36, .. }), "{error}");
    let error = offload.advance(&gpu.queue, &short, 0.1).unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { .. }), "{error}");
    let error = offload.advance(&gpu.queue, &good, 0.1).unwrap_err();
    assert_eq!(error, Error::NotRequested { chunk: 0 });
    offload.request(&mut encoder, &good, 0).unwrap();
    let error = offload.advance(&gpu.queue, &good, f64::NAN).unwrap_err();
    assert!(matches!(error, Error::Step { .. }), "{error}");
    let error = offload.request(&mut encoder, &good, 0).unwrap_err();
    assert!(matches!(error, Error::Duplicate { .. }), "{error}");
    // Commands that are dropped are no request.
    drop(encoder);
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &good, 0).unwrap();
    // Nothing has arrived.
    assert_eq!(offload.advance(&gpu.queue, &good, 0.1).unwrap(), Progress::Waiting);
    drop(encoder);
    // Within a step that has begun.
    let error = offload.advance(&gpu.queue, &good, 0.1).unwrap_err();
    assert_eq!(error, Error::NotRequested { chunk: 0 });
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &good, 0).unwrap();
    gpu.run(encoder);
    assert_eq!(advance(&gpu, &mut offload, &good, 0.1), None);
}

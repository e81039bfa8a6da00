//! Parameters and gradients on the GPU, state on the CPU: the CPU engine's run, bit for bit.

use crate::common::{Random, lr, single};
use harness::Gpu;
use wgpu_optim::offload::{Offload, Progress, Transfers};
use wgpu_optim::{
    AdamW, AnyRule, BindError, ChangeError, Clip, Format, Group, Lamb, Layout, LossScale, OffloadError,
    Options, OptionsError, Report, Sgd, StateError, StepError, cpu, wgpu,
};

/// Several chunks, with a gap in the second.
fn large(rule: AnyRule) -> Layout {
    let group = Group::new("g", rule).tensor("a", [1_500_000]).tensor_at("b", [900_001], 1_500_017);
    Layout::new([group]).unwrap()
}

/// A submission of its own for one chunk.
fn request(gpu: &Gpu, offload: &mut Offload, grads: &wgpu::Buffer, chunk: usize) {
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, grads, chunk).unwrap();
    gpu.queue.submit([encoder.finish()]);
}

/// A whole step.
pub(crate) fn step(
    gpu: &Gpu,
    offload: &mut Offload,
    params: &wgpu::Buffer,
    grads: &wgpu::Buffer,
    lr: f64,
) -> Option<Report> {
    loop {
        while let Some(chunk) = offload.wanted() {
            request(gpu, offload, grads, chunk);
        }
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

/// Gradients that are not used do not cross again.
#[test]
fn a_skipped_step_is_done_with_a_look() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = single(AdamW::default(), 60_000);
    let options = Options { skip_nonfinite: true, norms: true, ..Options::default() };
    let (params, grads) = (gpu.upload(&vec![2.0; 60_000]), gpu.upload(&vec![f32::NAN; 60_000]));
    for staged_chunks in [2, usize::MAX] {
        let transfers = Transfers { chunk_blocks: 1, staged_chunks };
        let start = vec![2.0; 60_000];
        let mut offload =
            Offload::with_transfers(&gpu.device, layout.clone(), options, transfers, start).unwrap();
        let mut requests = 0;
        let report = loop {
            while let Some(chunk) = offload.wanted() {
                requests += 1;
                request(&gpu, &mut offload, &grads, chunk);
            }
            match offload.advance(&gpu.queue, &params, 0.1).unwrap() {
                Progress::Done(report) => break report.unwrap(),
                _ => gpu.device.poll(wgpu::PollType::Poll).unwrap(),
            };
        };
        assert_eq!((requests, offload.chunks()), (4, 4));
        assert_eq!((report.skipped, report.update_norm), (1, Some(0.0)));
        assert_eq!(report.param_norm, Some((4.0 * 60_000f64).sqrt() as f32));
        // The next step has room for all that it wants.
        assert_eq!(offload.wanted(), Some(0));
    }
}

#[test]
fn the_same_bits_as_on_the_cpu_alone() {
    fn test(rule: AnyRule, options: Options, transfers: Transfers) {
        let Some(gpu) = harness::test_gpu() else { return };
        let layout = large(rule);
        let len = layout.len() as usize;
        let mut random = Random::new(3);
        let mut start = random.values(len);
        start[1_500_003] = 7.0;
        let (params, grads) = (gpu.upload(&start), gpu.buffer(layout.buffer_size()));
        let mut offload =
            Offload::with_transfers(&gpu.device, layout.clone(), options, transfers, start.clone()).unwrap();
        let mut alone = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        assert!(offload.chunks() > 1);
        // The optimizer does not write between tensors.
        gpu.write(&params, 4 * 1_500_003, &[8.0]);
        for t in 0..3 {
            let mut values = random.values(len);
            if t == 1 {
                values[2_400_000] = f32::NAN;
            }
            gpu.write(&grads, 0, &values);
            let got = step(&gpu, &mut offload, &params, &grads, lr(t));
            let want = alone.step(cpu::Tensors::flat(&mut start, &values), lr(t)).unwrap();
            assert_eq!(format!("{got:?}"), format!("{want:?}"));
        }
        let got = gpu.read(&params, 0, len);
        assert_eq!(got[1_500_003], 8.0);
        for tensor in layout.tensors() {
            let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same(&got[tensor.range()], &start[tensor.range()]), "{}", tensor.name);
            for slot in layout.slot_names() {
                let of = |o: &cpu::Optimizer| format!("{:?}", o.state(slot, &tensor.name).unwrap());
                assert!(of(offload.optimizer()) == of(&alone), "{slot} of {}", tensor.name);
            }
        }
    }
    let skip = Options { skip_nonfinite: true, clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() };
    // In 3 chunks, all of which there is room for; in 21, with room for two; in 147, with room for one.
    let [large, few, one] = [(64, 4), (7, 2), (1, 1)]
        .map(|(chunk_blocks, staged_chunks)| Transfers { chunk_blocks, staged_chunks });
    assert_eq!(large, Transfers::default());
    test(AdamW::default().into(), Options::default(), large);
    test(AdamW::default().into(), Options::default(), few);
    test(AdamW::default().into(), Options { norms: true, ..skip }, large);
    test(AdamW::default().into(), Options { norms: true, ..skip }, few);
    test(Lamb::default().into(), skip, Transfers { staged_chunks: usize::MAX, ..few });
    test(Lamb::default().into(), skip, one);
    let small = Options { states: Format::Q8, f32_states_below: 1_000_000, ..Options::default() };
    test(AdamW::default().into(), small, few);
}

/// Rules by turns, with gaps, in tensors below and above a block. Two of them share nothing but the flat
/// space.
fn mixed(frozen: bool) -> Layout {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let mut groups = [
        Group::new("adamw", AdamW::default()),
        Group::new("lamb", Lamb::default()).lr_factor(2.0),
        Group::new("sgd", sgd).lr_factor(0.5),
        Group::new("frozen", sgd).frozen(frozen),
    ];
    let mut offset = 3;
    for i in 0..40u64 {
        let len = if i % 9 == 4 { 20_001 } else { 1 + i * 37 % 200 };
        let group = &mut groups[i as usize % 4];
        *group = group.clone().tensor_at(format!("t{i}"), [len], offset);
        offset += len + i % 3;
    }
    Layout::new(groups).unwrap()
}

/// Chunks of one rule each, of which a frozen group has no part.
#[test]
fn several_rules_have_the_same_bits_as_on_the_cpu_alone() {
    let Some(gpu) = harness::test_gpu() else { return };
    let clip = |clip| Options { clip: Some(clip), report: true, ..Options::default() };
    let skip = Options { skip_nonfinite: true, norms: true, ..clip(Clip::GlobalNorm(1.0)) };
    for options in [Options::default(), clip(Clip::GlobalNorm(1.0)), clip(Clip::GroupNorm(1.0)), skip] {
        for (chunk_blocks, staged_chunks) in [(1, 1), (1, 3), (2, 2), (3, usize::MAX)] {
            for frozen in [false, true] {
                let transfers = Transfers { chunk_blocks, staged_chunks };
                check_mixed(&gpu, &mixed(frozen), options, transfers);
            }
        }
    }
}

fn check_mixed(gpu: &Gpu, layout: &Layout, options: Options, transfers: Transfers) {
    let context = format!("{options:?} {transfers:?}");
    let len = layout.len() as usize;
    let mut random = Random::new(5);
    let mut start = random.values(len);
    let (params, grads) = (gpu.upload(&start), gpu.buffer(layout.buffer_size()));
    let mut offload =
        Offload::with_transfers(&gpu.device, layout.clone(), options, transfers, start.clone()).unwrap();
    let mut alone = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
    // A gap belongs to the caller.
    gpu.write(&params, 0, &[8.0; 3]);
    let frozen = &layout.groups()[3];
    for t in 0..8 {
        if t == 2 || t == 5 {
            if (t == 2) == frozen.is_frozen() {
                offload.unfreeze(frozen.name()).unwrap();
                alone.unfreeze(frozen.name()).unwrap();
            } else {
                offload.freeze(frozen.name()).unwrap();
                alone.freeze(frozen.name()).unwrap();
            }
        }
        let mut values = random.values(len);
        if t == 3 && options.skip_nonfinite {
            values[layout.tensor("t1").unwrap().range()].fill(f32::NAN);
        }
        if offload.optimizer().layout().groups()[3].is_frozen() {
            // No norm includes them, and nothing of them is skipped.
            values[layout.tensor("t3").unwrap().range()].fill(f32::INFINITY);
        }
        gpu.write(&grads, 0, &values);
        let got = step(gpu, &mut offload, &params, &grads, lr(t));
        let want = alone.step(cpu::Tensors::flat(&mut start, &values), lr(t)).unwrap();
        assert_eq!(format!("{got:?}"), format!("{want:?}"), "{context}, step {t}");
    }
    let got = gpu.read(&params, 0, len);
    assert_eq!(got[..3], [8.0; 3]);
    for tensor in layout.tensors() {
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        let range = tensor.range();
        assert!(same(&got[range.clone()], &start[range.clone()]), "{context}: {}", tensor.name);
        assert!(same(&offload.params()[range.clone()], &start[range]), "{context}: {}", tensor.name);
        for slot in layout.kept_slots(tensor) {
            let of = |o: &cpu::Optimizer| format!("{:?}", o.state(slot, &tensor.name).unwrap());
            assert!(of(offload.optimizer()) == of(&alone), "{context}: {slot} of {}", tensor.name);
        }
    }
}

/// Elements of a block of the CPU engine.
const BLOCK: usize = 16_384;

/// The first chunk is updated, and its parameters are on the device, while the second has not even been asked
/// for.
#[test]
fn a_chunk_does_not_wait_for_the_next() {
    let Some(gpu) = harness::test_gpu() else { return };
    let transfers = Transfers { chunk_blocks: 1, staged_chunks: 2 };
    let len = 2 * BLOCK + 5;
    let layout = single(AdamW::default(), len as u64);
    let new = |options| {
        Offload::with_transfers(&gpu.device, layout.clone(), options, transfers, vec![1.0; len]).unwrap()
    };
    let (params, grads) = (gpu.upload(&vec![1.0; len]), gpu.upload(&vec![1.0; len]));
    let mut offload = new(Options::default());
    // The buffers of the ring, of which the last chunk has the first's.
    assert_eq!((offload.chunks(), offload.staging_bytes()), (3, 8 * BLOCK as u64));
    for chunk in 0..3 {
        assert_eq!(offload.wanted(), Some(chunk));
        request(&gpu, &mut offload, &grads, chunk);
        gpu.wait();
        let done = if chunk == 2 { Progress::Done(None) } else { Progress::Working };
        assert_eq!(offload.advance(&gpu.queue, &params, 0.5).unwrap(), done);
        gpu.queue.submit([]);
        let moved = gpu.read(&params, 0, len).iter().filter(|&&p| p < 1.0).count();
        assert_eq!(moved, len.min((chunk + 1) * BLOCK));
        if chunk < 2 {
            let error = offload.advance(&gpu.queue, &params, 0.5).unwrap_err();
            assert_eq!(error, OffloadError::NotRequested { chunk: chunk + 1 });
        }
    }
    // With a look at all gradients first, nothing is written before the second pass.
    let params = gpu.upload(&vec![1.0; len]);
    let mut offload = new(Options { skip_nonfinite: true, ..Options::default() });
    for chunk in [0, 1, 2, 0] {
        let moved = gpu.read(&params, 0, len).iter().filter(|&&p| p < 1.0).count();
        assert_eq!((offload.wanted(), moved), (Some(chunk), 0));
        request(&gpu, &mut offload, &grads, chunk);
        gpu.wait();
        assert_eq!(offload.advance(&gpu.queue, &params, 0.5).unwrap(), Progress::Working);
        gpu.queue.submit([]);
    }
    assert_eq!(gpu.read(&params, 0, len).iter().filter(|&&p| p < 1.0).count(), BLOCK);
}

/// A chunk without room cannot be requested, nor one that the pass is done with.
#[test]
fn a_ring_has_an_order() {
    let Some(gpu) = harness::test_gpu() else { return };
    let transfers = Transfers { chunk_blocks: 1, staged_chunks: 2 };
    let (len, options) = (4 * BLOCK, Options::default());
    let layout = single(AdamW::default(), len as u64);
    let new =
        |transfers| Offload::with_transfers(&gpu.device, layout.clone(), options, transfers, vec![0.0; len]);
    for (field, bad) in [
        ("chunk_blocks", Transfers { chunk_blocks: 0, ..transfers }),
        ("staged_chunks", Transfers { staged_chunks: 0, ..transfers }),
    ] {
        let error = new(bad).unwrap_err();
        assert_eq!(error, OptionsError::Field { field, value: 0.0, bound: "at least 1" });
    }
    // All in one chunk, whatever there would be room for.
    let most = Transfers { chunk_blocks: usize::MAX, staged_chunks: usize::MAX };
    let most = new(most).unwrap();
    assert_eq!((most.chunks(), most.staging_bytes()), (1, 4 * len as u64));
    let mut offload = new(transfers).unwrap();
    let (params, grads) = (gpu.buffer(4 * len as u64), gpu.buffer(4 * len as u64));
    let refused = |offload: &mut Offload, chunk, first| {
        let error = offload.request(&mut gpu.encoder(), &grads, chunk).unwrap_err();
        assert_eq!(error, OffloadError::OutOfTurn { chunk, first, end: first + 2 });
    };
    refused(&mut offload, 2, 0);
    // Not in order: there is room for both.
    request(&gpu, &mut offload, &grads, 1);
    assert_eq!(offload.wanted(), Some(0));
    request(&gpu, &mut offload, &grads, 0);
    assert_eq!(offload.wanted(), None);
    gpu.wait();
    assert_eq!(offload.advance(&gpu.queue, &params, 0.1).unwrap(), Progress::Working);
    assert_eq!(offload.wanted(), Some(2));
    refused(&mut offload, 0, 1);
    refused(&mut offload, 3, 1);
}

/// Between chunks nothing can be read or written that is of whole steps.
#[test]
fn nothing_changes_within_a_step() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = single(AdamW::default(), 2 * BLOCK as u64);
    let options = Options { loss_scale: Some(LossScale::default()), ..Options::default() };
    let transfers = Transfers { chunk_blocks: 1, ..Transfers::default() };
    let start = vec![0.0; 2 * BLOCK];
    let mut offload =
        Offload::with_transfers(&gpu.device, layout, options, transfers, start.clone()).unwrap();
    let (params, grads) = (gpu.upload(&start), gpu.upload(&start));
    offload.set_loss_scale(16.0, 3).unwrap();
    request(&gpu, &mut offload, &grads, 0);
    // A request alone is no step yet.
    offload.set_loss_scale(32.0, 3).unwrap();
    gpu.wait();
    assert_eq!(offload.advance(&gpu.queue, &params, 0.1).unwrap(), Progress::Working);
    let refused = OffloadError::StepUnderWay;
    assert_eq!(offload.set_loss_scale(64.0, 0).unwrap_err(), refused);
    assert_eq!(offload.state_mut("exp_avg", "w").unwrap_err(), refused);
    assert_eq!(offload.upload(&gpu.queue, &params).unwrap_err(), refused);
    #[cfg(feature = "checkpoint")]
    assert_eq!(wgpu_optim::checkpoint::Cpu::offloaded(&mut offload).unwrap_err(), refused);
    let report = step(&gpu, &mut offload, &params, &grads, 0.1).unwrap();
    assert_eq!((report.loss_scale, report.good_steps), (32.0, 4));
    assert!(matches!(offload.state_mut("exp_avg", "w"), Ok(Some(cpu::StateMut::F32(_)))));
    assert!(matches!(
        offload.state_mut("momentum", "w"),
        Err(OffloadError::State(StateError::UnknownSlot { .. }))
    ));
    let error = offload.set_loss_scale(-1.0, 0).unwrap_err();
    let OffloadError::Change(ChangeError::Options(error)) = error else { panic!("{error}") };
    assert!(matches!(error, OptionsError::Field { field: "loss_scale", value: -1.0, .. }), "{error}");
    let short = gpu.buffer(4);
    assert!(matches!(
        offload.upload(&gpu.queue, &short),
        Err(OffloadError::Bind(BindError::OutOfBounds { .. }))
    ));
}

#[test]
fn bad_requests() {
    let Some(gpu) = harness::test_gpu() else { return };
    let new = |options, len| Offload::new(&gpu.device, single(AdamW::default(), 10), options, vec![0.0; len]);
    let refused = |options| new(options, 10).unwrap_err();
    let error = refused(Options { zero_gradients: true, ..Options::default() });
    assert!(matches!(error, OptionsError::ZeroGradients), "{error}");
    let error = refused(Options { grads: Format::F16, ..Options::default() });
    assert!(matches!(error, OptionsError::Format { field: "grads", .. }), "{error}");
    let error = new(Options::default(), 9).unwrap_err();
    assert_eq!(error, OptionsError::Parameters { found: 9, expected: 10 });
    let mut offload = new(Options::default(), 10).unwrap();
    let (good, short) = (gpu.buffer(40), gpu.buffer(36));
    let mut encoder = gpu.encoder();
    let error = offload.request(&mut encoder, &good, 1).unwrap_err();
    assert_eq!(error, OffloadError::UnknownChunk { chunk: 1, bound: 1 });
    let error = offload.request(&mut encoder, &good, usize::MAX).unwrap_err();
    assert_eq!(error, OffloadError::UnknownChunk { chunk: usize::MAX, bound: 1 });
    let error = offload.request(&mut encoder, &short, 0).unwrap_err();
    let OffloadError::Bind(error) = error else { panic!("{error}") };
    assert!(matches!(error, BindError::OutOfBounds { start: 0, end: 40, size: 36, .. }), "{error}");
    let error = offload.advance(&gpu.queue, &short, 0.1).unwrap_err();
    assert!(matches!(error, OffloadError::Bind(BindError::OutOfBounds { .. })), "{error}");
    let error = offload.advance(&gpu.queue, &good, 0.1).unwrap_err();
    assert_eq!(error, OffloadError::NotRequested { chunk: 0 });
    offload.request(&mut encoder, &good, 0).unwrap();
    let error = offload.advance(&gpu.queue, &good, f64::NAN).unwrap_err();
    assert!(matches!(error, OffloadError::Step(StepError::Argument { .. })), "{error}");
    let error = offload.request(&mut encoder, &good, 0).unwrap_err();
    assert_eq!(error, OffloadError::Requested { chunk: 0 });
    // Commands that are dropped are no request.
    drop(encoder);
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &good, 0).unwrap();
    // Nothing has arrived.
    assert_eq!(offload.advance(&gpu.queue, &good, 0.1).unwrap(), Progress::Waiting);
    drop(encoder);
    // Within a step that has begun.
    let error = offload.advance(&gpu.queue, &good, 0.1).unwrap_err();
    assert_eq!(error, OffloadError::NotRequested { chunk: 0 });
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &good, 0).unwrap();
    gpu.run(encoder);
    assert_eq!(step(&gpu, &mut offload, &good, &good, 0.1), None);
}

//! A device that is lost during a run: every call returns the error, nothing reaches the device's error
//! handler, and a checkpoint restores the run.

use crate::common::{Random, Uncaught, assert_same_bits, lr, watch};
use harness::{Gpu, GpuRun};
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::checkpoint::{self, Load, Parameters, Save};
use wgpu_optim::offload::{Offload, Progress};
use wgpu_optim::{
    AdamW, BindError, ChangeError, Clip, DeviceError, Ema, Format, Group, Lamb, Layout, LossScale, Master,
    OffloadError, Optimizer, Options, OptionsError, Rounding, StateError, StepError, Tensors, wgpu,
};

const LEN: usize = 1_000;

/// A device with a handler that lists what reaches it.
fn watched() -> Option<(Gpu, Uncaught)> {
    let gpu = harness::test_gpu()?;
    let uncaught = watch(&gpu);
    Some((gpu, uncaught))
}

/// The act of the engine between the loss and the next call: none, or one that takes its buffers away.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    Poll,
    Submit,
}

const THEN: [Then; 3] = [Then::Nothing, Then::Poll, Then::Submit];

fn lose(gpu: &Gpu, then: Then) {
    gpu.device.destroy();
    match then {
        Then::Nothing => {}
        Then::Poll => gpu.wait(),
        Then::Submit => {
            gpu.queue.submit([]);
        }
    }
}

fn layout() -> Layout {
    let (rule, lamb) = (AdamW::default(), Lamb::default());
    Layout::new([Group::new("a", rule).tensor("a", [600]), Group::new("b", lamb).tensor("b", [300])]).unwrap()
}

/// Plain, with reports, with a loss scale.
fn options() -> [Options; 3] {
    let plain = Options::default();
    [
        plain,
        Options { norms: true, ..plain },
        Options { loss_scale: Some(LossScale { initial: 2.0, ..LossScale::default() }), ..plain },
    ]
}

/// These, and everything that only the GPU's own state has: other formats, further buffers and kernels.
fn options_of_state() -> Vec<Options> {
    let plain = Options::default();
    let ema = Some(Ema { decay: 0.9, debias: true });
    let bf16 = Options { params: Format::Bf16, states: Format::Q8, zero_gradients: true, ema, ..plain };
    let rounding = Rounding::Stochastic { seed: 1 };
    let more = [
        Options { clip: Some(Clip::GlobalNorm(1.0)), states: Format::Bf16, rounding, ..plain },
        Options { clip: Some(Clip::Value(1.0)), ema, zero_gradients: true, ..plain },
        Options { clip: Some(Clip::GroupNorm(1.0)), norms: true, master: Master::Remainder, ..bf16 },
        Options { skip_nonfinite: true, report: true, master: Master::F32, rounding, ..bf16 },
    ];
    options().into_iter().chain(more).collect()
}

fn new_run(gpu: &Gpu, options: Options) -> GpuRun<'_> {
    let run = GpuRun::new(gpu, layout(), options, &Random::new(1).values(LEN)[..layout().len() as usize]);
    run.write_grads(&gradients(0));
    run
}

fn gradients(step: usize) -> Vec<f32> {
    Random::new(2 + step as u64).values(layout().len() as usize)
}

/// Every call on the device of an optimizer, lost before it.
fn refuses(
    run: &mut GpuRun<'_>,
    other: &mut Optimizer,
    encoder: &mut wgpu::CommandEncoder,
    buffer: &wgpu::Buffer,
) {
    const LOST: DeviceError = DeviceError::Lost;
    let (gpu, steps, settings) = (run.gpu, run.optimizer.steps(), *run.optimizer.options());
    let queue = &gpu.queue;
    let tensors = Tensors::flat(&run.params, &run.grads);
    let optimizer = &mut run.optimizer;
    for _ in 0..3 {
        assert_eq!(optimizer.step(queue, encoder, &run.bound, 0.1), Err(StepError::Device(LOST)));
    }
    let mut own = gpu.encoder();
    assert_eq!(optimizer.step(queue, &mut own, &run.bound, 0.1), Err(StepError::Device(LOST)));
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let result = optimizer.step_in_pass(queue, &mut pass, &run.bound, 0.1);
        assert_eq!(result, Err(StepError::Device(LOST)));
    }
    assert_eq!(optimizer.read_back(encoder), Err(LOST));
    let error = optimizer.bind(&tensors).unwrap_err();
    assert_eq!(error, BindError::Device(LOST));
    assert!(matches!(optimizer.describe(&run.bound), Err(BindError::Device(LOST))));
    let error = Optimizer::with_options(&gpu.device, layout(), settings).unwrap_err();
    assert_eq!(error, OptionsError::Device(LOST));
    assert_eq!(Accumulator::new(&gpu.device, &layout()).unwrap_err(), OptionsError::Device(LOST));
    if settings.loss_scale.is_some() {
        assert_eq!(optimizer.set_loss_scale(queue, 8.0, 0), Err(ChangeError::Device(LOST)));
    }
    let copied = optimizer.copy_state(encoder, "exp_avg", "a", buffer);
    assert_eq!(copied, Err(StateError::Device(LOST)));
    let written = optimizer.write_state(queue, "exp_avg", "a", &[1.0; 600]);
    assert_eq!(written, Err(StateError::Device(LOST)));
    assert_eq!(other.take_over(queue, encoder, optimizer), Err(StateError::Device(LOST)));
    let mut engine = checkpoint::Gpu::new(optimizer, queue).parameters(Parameters::flat(&run.params));
    let mut nowhere = Vec::new();
    let saved = checkpoint::save_to(&mut engine, &mut nowhere, &Save::default());
    assert_eq!((saved, nowhere.len()), (Err(checkpoint::Error::Device(LOST)), 0));
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("lost.safetensors");
    assert_eq!(checkpoint::save(&mut engine, &path, &Save::default()), Err(checkpoint::Error::Device(LOST)));
    assert!(!path.exists());
    optimizer.take_report();
    // A step that plans its binding anew.
    optimizer.freeze("a").unwrap();
    assert_eq!(optimizer.step(queue, encoder, &run.bound, 0.1), Err(StepError::Device(LOST)));
    optimizer.unfreeze("a").unwrap();
    assert_eq!(optimizer.steps(), steps);
}

#[test]
fn every_call_says_that_the_device_is_lost() {
    for options in options_of_state() {
        for then in THEN {
            let Some((gpu, uncaught)) = watched() else { return };
            let mut run = new_run(&gpu, options);
            let mut other = Optimizer::with_options(&gpu.device, layout(), options).unwrap();
            let mut accumulator =
                Accumulator::stored(&gpu.device, &layout(), options.params, options.grads).unwrap();
            let added = accumulator.bind(&Tensors::flat(&run.params, &run.grads)).unwrap();
            let buffer = gpu.buffer(4_096);
            // One step has run, one is submitted, and one recorded when the device is lost.
            run.again(0.1);
            let mut file = Vec::new();
            let mut engine = checkpoint::Gpu::new(&mut run.optimizer, &gpu.queue);
            checkpoint::save_to(&mut engine, &mut file, &Save::default()).unwrap();
            run.submit(&gradients(1), 0.1);
            let mut recorded = gpu.encoder();
            run.record(&mut recorded, 0.1).unwrap();
            let mut encoder = gpu.encoder();
            lose(&gpu, then);
            refuses(&mut run, &mut other, &mut encoder, &buffer);
            let again = accumulator.bind(&Tensors::flat(&run.params, &run.grads)).unwrap_err();
            assert_eq!(again, BindError::Device(DeviceError::Lost));
            let added = accumulator.add(&gpu.queue, &mut encoder, &added);
            assert_eq!(added, Err(StepError::Device(DeviceError::Lost)));
            // The engine's next submission, with what was recorded before the loss.
            gpu.queue.submit([recorded.finish(), encoder.finish()]);
            gpu.device.poll(wgpu::PollType::Poll).unwrap();
            run.optimizer.take_report();
            refuses(&mut run, &mut other, &mut gpu.encoder(), &buffer);
            let mut engine = checkpoint::Gpu::new(&mut run.optimizer, &gpu.queue);
            let loaded = checkpoint::load_from(&mut engine, std::io::Cursor::new(&file), &Load::default());
            assert_eq!(loaded.unwrap_err(), checkpoint::Error::Device(DeviceError::Lost));
            drop((run, other));
            gpu.device.poll(wgpu::PollType::Poll).unwrap();
            uncaught.is_empty();
        }
    }
}

/// A new device, a new optimizer and the last checkpoint.
#[test]
fn a_checkpoint_leads_back() {
    for options in options_of_state() {
        let (Some((lost, uncaught)), Some(gpu)) = (watched(), harness::test_gpu()) else { return };
        let Some(third) = harness::test_gpu() else { return };
        let mut whole = new_run(&third, options);
        let mut run = new_run(&lost, options);
        for t in 0..5 {
            run.step(&gradients(t), lr(t));
        }
        let mut file = Vec::new();
        let mut engine =
            checkpoint::Gpu::new(&mut run.optimizer, &lost.queue).parameters(Parameters::flat(&run.params));
        checkpoint::save_to(&mut engine, &mut file, &Save::default()).unwrap();
        run.submit(&gradients(5), lr(5));
        lose(&lost, Then::Poll);
        let error = run.record(&mut lost.encoder(), lr(6)).unwrap_err();
        assert_eq!(error, StepError::Device(DeviceError::Lost));
        drop(run);

        let mut run = new_run(&gpu, options);
        run.write_params(&vec![7.0; layout().len() as usize]);
        let mut engine =
            checkpoint::Gpu::new(&mut run.optimizer, &gpu.queue).parameters(Parameters::flat(&run.params));
        let loaded = checkpoint::load_from(&mut engine, std::io::Cursor::new(&file), &Load::default());
        assert_eq!(loaded.unwrap().steps, 5);
        for t in 0..5 {
            whole.step(&gradients(t), lr(t));
        }
        for t in 5..10 {
            let reports = [run.step(&gradients(t), lr(t)), whole.step(&gradients(t), lr(t))];
            assert_eq!(format!("{:?}", reports[0]), format!("{:?}", reports[1]));
        }
        assert_same_bits(&run.snapshot(), &whole.snapshot(), &format!("{options:?}"));
        uncaught.is_empty();
    }
}

/// State in host memory is whole after the loss, saved after it, and goes on elsewhere.
#[test]
fn offloaded_state_stays() {
    const LOST: DeviceError = DeviceError::Lost;
    let save = |offload: &mut Offload| {
        let mut file = Vec::new();
        let mut engine = checkpoint::Cpu::offloaded(offload).unwrap();
        checkpoint::save_to(&mut engine, &mut file, &Save::default()).unwrap();
        file
    };
    let start = &Random::new(1).values(LEN)[..layout().len() as usize];
    let new = |gpu: &Gpu, options| {
        let offload = Offload::new(&gpu.device, layout(), options, start.to_vec()).unwrap();
        (offload, gpu.upload(start), gpu.upload(&gradients(0)))
    };
    for options in options() {
        for then in THEN {
            let (Some((gpu, uncaught)), Some(next)) = (watched(), harness::test_gpu()) else { return };
            let (mut offload, params, grads) = new(&gpu, options);
            let request = |offload: &mut Offload, chunk| {
                let mut encoder = gpu.encoder();
                let requested = offload.request(&mut encoder, &grads, chunk);
                gpu.queue.submit([encoder.finish()]);
                requested
            };
            crate::offload::step(&gpu, &mut offload, &params, &grads, lr(0));
            let before = save(&mut offload);
            // Between steps: a chunk is here, and the other, if it is wanted already, on its way.
            let chunk = offload.wanted().unwrap();
            request(&mut offload, chunk).unwrap();
            gpu.wait();
            while let Some(chunk) = offload.wanted() {
                request(&mut offload, chunk).unwrap();
            }
            lose(&gpu, then);
            for _ in 0..2 {
                let advanced = offload.advance(&gpu.queue, &params, lr(1));
                assert_eq!(advanced, Err(OffloadError::Device(LOST)));
                assert_eq!(request(&mut offload, 1), Err(OffloadError::Device(LOST)));
                assert_eq!(offload.upload(&gpu.queue, &params), Err(OffloadError::Device(LOST)));
                gpu.device.poll(wgpu::PollType::Poll).unwrap();
            }
            let error = Offload::new(&gpu.device, layout(), options, start.to_vec()).unwrap_err();
            assert_eq!(error, OptionsError::Device(LOST));
            let after = save(&mut offload);
            assert!(before == after, "{options:?} {then:?}");
            drop(offload);
            uncaught.is_empty();

            // Elsewhere it goes on as a run without a loss.
            let (mut back, params, grads) = new(&next, options);
            let mut engine = checkpoint::Cpu::offloaded(&mut back).unwrap();
            checkpoint::load_from(&mut engine, std::io::Cursor::new(&after), &Load::default()).unwrap();
            back.upload(&next.queue, &params).unwrap();
            let (mut whole, own, own_grads) = new(&next, options);
            crate::offload::step(&next, &mut whole, &own, &own_grads, lr(0));
            for t in 1..4 {
                next.write(&grads, 0, &gradients(t));
                let got = crate::offload::step(&next, &mut back, &params, &grads, lr(t));
                let want = crate::offload::step(&next, &mut whole, &own, &grads, lr(t));
                assert_eq!(format!("{got:?}"), format!("{want:?}"));
            }
            assert!(save(&mut back) == save(&mut whole), "{options:?} {then:?}");
        }
    }
}

/// A loss between the chunks of a step.
#[test]
fn a_step_under_way_is_lost_with_its_gradients() {
    let Some((gpu, uncaught)) = watched() else { return };
    let start = vec![1.0; layout().len() as usize];
    let mut offload = Offload::new(&gpu.device, layout(), Options::default(), start).unwrap();
    assert_eq!(offload.chunks(), 2);
    let (params, grads) = (gpu.upload(&gradients(0)), gpu.upload(&gradients(1)));
    let chunk = offload.wanted().unwrap();
    let mut encoder = gpu.encoder();
    offload.request(&mut encoder, &grads, chunk).unwrap();
    gpu.run(encoder);
    assert_eq!(offload.advance(&gpu.queue, &params, 0.1), Ok(Progress::Working));
    lose(&gpu, Then::Poll);
    let before = offload.params().to_vec();
    let advanced = offload.advance(&gpu.queue, &params, 0.1);
    assert_eq!(advanced, Err(OffloadError::Device(DeviceError::Lost)));
    assert_eq!(offload.params(), before);
    uncaught.is_empty();
}

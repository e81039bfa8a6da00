//! Many steps in one encoder, abandoned encoders, compute passes of the caller's, reproducibility, memory.

use crate::common::{Random, assert_same_bits, lr, single};
use harness::{Gpu, GpuRun, Places};
use wgpu_optim::check::Snapshot;
use wgpu_optim::{
    AdamW, AnyRule, Clip, DynRule, Group, Lamb, Lars, Layout, Optimizer, Options, Sgd, StepError,
};

const LEN: usize = 3_000;
/// More than the first page of scalars has places for: 128, with two groups.
const STEPS: usize = 300;

/// A run of AdamW in two groups, with gradients.
fn run(gpu: &Gpu) -> GpuRun<'_> {
    let rule = AdamW::default();
    let layout = Layout::packed([
        Group::new("decay", rule).tensor("a", [1_000]).tensor("b", [1_501]),
        Group::new("no decay", AdamW { weight_decay: 0.0, ..rule }).lr_factor(2.0).tensor("c", [499]),
    ])
    .unwrap();
    let mut random = Random::new(1);
    let run = GpuRun::new(gpu, layout, Options::DEFAULT, &random.values(LEN));
    run.write_grads(&random.values(LEN));
    run
}

/// [`STEPS`] steps with a submission each.
fn one_by_one(gpu: &Gpu) -> Snapshot {
    let mut run = run(gpu);
    for t in 0..STEPS {
        run.again(lr(t));
    }
    run.snapshot()
}

/// Zeros for a layout of any size, without a copy of them in host memory.
fn zeros(gpu: &Gpu, layout: Layout, options: Options) -> GpuRun<'_> {
    let buffers = [(); 2].map(|()| gpu.buffer(layout.buffer_size()));
    GpuRun::over(gpu, layout, options, buffers, Places::Flat([0; 2]))
}

/// More steps than the first page of scalars has places, recorded before a single submission: each sees its
/// own learning rate and bias corrections.
#[test]
fn hundreds_of_steps_in_one_encoder() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    let expected = one_by_one(&one);
    let mut run = run(&other);
    let places = run.optimizer.overhead_bytes();
    let mut encoder = other.encoder();
    for t in 0..STEPS {
        run.record(&mut encoder, lr(t)).unwrap();
    }
    other.run(encoder);
    assert_same_bits(&run.snapshot(), &expected, "one submission and many");
    assert_eq!(run.optimizer.steps(), STEPS as u64);

    // A thousand in one encoder need more places, and get them.
    let mut encoder = other.encoder();
    for t in 0..1_000 {
        run.record(&mut encoder, lr(t)).unwrap();
    }
    other.run(encoder);
    let grown = run.optimizer.overhead_bytes();
    assert!(grown > places, "{grown} bytes of places");
    // They are free again now.
    let mut encoder = other.encoder();
    for t in 0..1_000 {
        run.record(&mut encoder, lr(t)).unwrap();
    }
    drop(encoder);
    // They are free too when an encoder is dropped unsubmitted.
    let mut encoder = other.encoder();
    for t in 0..1_000 {
        run.record(&mut encoder, lr(t)).unwrap();
    }
    other.run(encoder);
    assert_eq!(run.optimizer.overhead_bytes(), grown);
}

#[test]
fn two_runs_are_bit_equal() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    assert_same_bits(&one_by_one(&one), &one_by_one(&other), "two runs");
}

#[test]
fn a_pass_of_the_callers_takes_steps_too() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    let expected = one_by_one(&one);
    let mut run = run(&other);
    let mut encoder = other.encoder();
    let mut pass = encoder.begin_compute_pass(&Default::default());
    for t in 0..STEPS {
        run.optimizer.step_in_pass(&other.queue, &mut pass, &run.bound, lr(t)).unwrap();
    }
    drop(pass);
    other.run(encoder);
    assert_same_bits(&run.snapshot(), &expected, "own pass");
}

/// State is 4 bytes per parameter and kept slot; all other memory is under 1 MiB.
#[test]
fn memory_is_as_promised() {
    let Some(gpu) = harness::test_gpu() else { return };
    let megabyte = 1 << 20;
    for (tensors, len) in [(1u64, 16_777_216u64), (512, 4_096), (1_000, 37)] {
        let rule = AdamW::default();
        let mut groups = [Group::new("even", rule), Group::new("odd", AdamW { weight_decay: 0.0, ..rule })];
        for i in 0..tensors.max(2) {
            let group = &mut groups[(i % 2) as usize];
            *group = group.clone().tensor_at(format!("t{i}"), [len / (1 + u64::from(tensors == 1))], i * len);
        }
        let layout = Layout::new(groups).unwrap();
        let parameters = layout.parameters();
        let GpuRun { optimizer, bound, .. } = zeros(&gpu, layout, Options::DEFAULT);
        let slack = optimizer.state_bytes() - 8 * parameters;
        let overhead = optimizer.overhead_bytes() + bound.device_bytes() + slack;
        assert!(overhead < megabyte, "{overhead} bytes beside the state of {parameters} parameters");
    }
    let plain = Optimizer::new(&gpu.device, single(Sgd::default(), 1_000)).unwrap();
    assert_eq!(plain.state_bytes(), 0, "SGD without momentum has no state");
}

/// The bytes that the optimizer counts are those that the device has allocated.
#[test]
fn memory_is_what_is_allocated() {
    fn test(rule: AnyRule, options: Options) {
        // On a device of its own: another's memory may be free a little later.
        let Some(gpu) = harness::test_gpu() else { return };
        let groups = (0..250).map(|i| {
            let group = Group::new(format!("g{i}"), rule);
            group.tensor(format!("a{i}"), [400 + i % 9]).tensor(format!("b{i}"), [300])
        });
        let layout = Layout::new(groups).unwrap();
        let run = zeros(&gpu, layout, options);
        let said = run.optimizer.state_bytes() + run.optimizer.overhead_bytes() + run.bound.device_bytes();
        // Some backends keep no books.
        let Some(report) = gpu.device.generate_allocator_report() else { return };
        let ours = report.allocations.iter().filter(|a| a.name.contains("wgpu-optim"));
        let sizes: Vec<_> = ours.map(|a| a.size).collect();
        // Each is rounded up to its alignment.
        let held: u64 = sizes.iter().sum();
        let slack = 256 * sizes.len() as u64;
        assert!((said..said + slack).contains(&held), "{} {options:?}: {said} of {sizes:?}", rule.name());
    }
    let options = Options { clip: Some(Clip::GroupNorm(1.0)), norms: true, ..Options::default() };
    test(AdamW::default().into(), Options::default());
    test(AdamW::default().into(), options);
    test(Lamb::default().into(), options);
}

/// Gaps are not moved, nor slots that no group keeps; a layer-wise rule reads more than once.
#[test]
fn bytes_moved_are_those_of_the_parameters() {
    fn moved(rule: impl Into<DynRule>) -> u64 {
        Layout::new([Group::new("g", rule).tensor_at("w", [10], 6)]).unwrap().bytes_moved(&Options::default())
    }
    assert_eq!((moved(Sgd::default()), moved(AdamW::default())), (10 * 12, 10 * 28));
    let lars = Lars::default();
    assert_eq!((moved(lars), moved(Lars { momentum: 0.0, ..lars })), (10 * 28, 10 * 20));
}

/// Gaps in the flat space cost no state.
#[test]
fn state_is_compact() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = Layout::new([Group::new("all", AdamW::default())
        .tensor_at("a", [4], 0)
        .tensor_at("b", [4], 1 << 20)
        .tensor_at("far", [6], 1 << 40)])
    .unwrap();
    let optimizer = Optimizer::new(&gpu.device, layout).unwrap();
    assert_eq!(optimizer.state_bytes(), 2 * 4 * (4 + 4 + 8));
}

/// An error leaves everything as it was: parameters, state, step count.
#[test]
fn a_refused_step_changes_nothing() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    let expected = one_by_one(&one);
    let mut run = run(&other);
    for t in 0..STEPS {
        let mut encoder = other.encoder();
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let result = run.record(&mut encoder, bad);
            assert!(
                matches!(result, Err(StepError::Argument { .. } | StepError::ScalarOverflow { .. })),
                "{bad}: {result:?}"
            );
        }
        assert_eq!(run.optimizer.steps(), t as u64);
        run.record(&mut encoder, lr(t)).unwrap();
        other.run(encoder);
    }
    assert_same_bits(&run.snapshot(), &expected, "with refused steps between");
}

#[test]
fn a_binding_of_another_optimizer_is_refused() {
    let Some(gpu) = harness::test_gpu() else { return };
    let a = run(&gpu);
    let mut other = GpuRun::new(&gpu, a.optimizer.layout().clone(), Options::DEFAULT, &[0.0; LEN]);
    let mut encoder = gpu.encoder();
    let error = other.optimizer.step(&gpu.queue, &mut encoder, &a.bound, 0.1).unwrap_err();
    assert_eq!(error, StepError::ForeignBinding);
}

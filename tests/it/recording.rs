//! Many steps in one encoder, abandoned encoders, compute passes of the caller's, reproducibility, memory.

use crate::common::{Random, Run, assert_same_bits, lr, single};
use harness::{Gpu, snapshot};
use wgpu_optim::check::Snapshot;
use wgpu_optim::{
    AdamW, AnyRule, Bound, Clip, DynRule, Group, Lamb, Lars, Layout, Optimizer, Options, Sgd, StepError,
    Tensors,
};

const LEN: usize = 3_000;
/// More than the first page of scalars has places for: 128, with two groups.
const STEPS: usize = 300;

/// Parameters, gradients, optimizer and binding for AdamW in two groups.
struct Setup {
    gpu: Gpu,
    params: wgpu::Buffer,
    optimizer: Optimizer,
    tensors: Bound,
}

impl Setup {
    fn new(gpu: Gpu) -> Self {
        let rule = AdamW::default();
        let layout = Layout::packed([
            Group::new("decay", rule).tensor("a", [1_000]).tensor("b", [1_501]),
            Group::new("no decay", AdamW { weight_decay: 0.0, ..rule }).lr_factor(2.0).tensor("c", [499]),
        ])
        .unwrap();
        let mut random = Random::new(1);
        let params = gpu.upload(&random.values(LEN));
        let grads = gpu.upload(&random.values(LEN));
        let mut optimizer = Optimizer::new(&gpu.device, layout).unwrap();
        let tensors = optimizer.bind(&Tensors::flat(&params, &grads)).unwrap();
        Self { gpu, params, optimizer, tensors }
    }

    fn snapshot(&self) -> Snapshot {
        snapshot(&self.gpu, &self.optimizer, &self.params, 0)
    }

    fn step(&mut self, encoder: &mut wgpu::CommandEncoder, t: usize) {
        self.optimizer.step(&self.gpu.queue, encoder, &self.tensors, lr(t)).unwrap();
    }

    /// [`STEPS`] steps with a submission each.
    fn one_by_one(gpu: Gpu) -> Snapshot {
        let mut setup = Self::new(gpu);
        for t in 0..STEPS {
            let mut encoder = setup.gpu.encoder();
            setup.step(&mut encoder, t);
            setup.gpu.run(encoder);
        }
        setup.snapshot()
    }
}

/// More steps than the first page of scalars has places, recorded before a single submission: each sees its
/// own learning rate and bias corrections.
#[test]
fn hundreds_of_steps_in_one_encoder() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    let expected = Setup::one_by_one(one);
    let mut setup = Setup::new(other);
    let places = setup.optimizer.overhead_bytes();
    let mut encoder = setup.gpu.encoder();
    for t in 0..STEPS {
        setup.step(&mut encoder, t);
    }
    setup.gpu.run(encoder);
    assert_same_bits(&setup.snapshot(), &expected, "one submission and many");
    assert_eq!(setup.optimizer.steps(), STEPS as u64);

    // A thousand in one encoder need more places, and get them.
    let mut encoder = setup.gpu.encoder();
    for t in 0..1_000 {
        setup.step(&mut encoder, t);
    }
    setup.gpu.run(encoder);
    let grown = setup.optimizer.overhead_bytes();
    assert!(grown > places, "{grown} bytes of places");
    // They are free again now.
    let mut encoder = setup.gpu.encoder();
    for t in 0..1_000 {
        setup.step(&mut encoder, t);
    }
    drop(encoder);
    // They are free too when an encoder is dropped unsubmitted.
    let mut encoder = setup.gpu.encoder();
    for t in 0..1_000 {
        setup.step(&mut encoder, t);
    }
    setup.gpu.run(encoder);
    assert_eq!(setup.optimizer.overhead_bytes(), grown);
}

#[test]
fn two_runs_are_bit_equal() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    assert_same_bits(&Setup::one_by_one(one), &Setup::one_by_one(other), "two runs");
}

#[test]
fn a_pass_of_the_callers_takes_steps_too() {
    let (Some(one), Some(other)) = (harness::test_gpu(), harness::test_gpu()) else { return };
    let expected = Setup::one_by_one(one);
    let mut setup = Setup::new(other);
    let mut encoder = setup.gpu.encoder();
    let mut pass = encoder.begin_compute_pass(&Default::default());
    for t in 0..STEPS {
        setup.optimizer.step_in_pass(&setup.gpu.queue, &mut pass, &setup.tensors, lr(t)).unwrap();
    }
    drop(pass);
    setup.gpu.run(encoder);
    assert_same_bits(&setup.snapshot(), &expected, "own pass");
}

/// State is 4 bytes a parameter and kept slot; all else is under 1 MiB.
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
        let buffers = [(); 2].map(|()| gpu.buffer(layout.buffer_size()));
        let mut optimizer = Optimizer::new(&gpu.device, layout).unwrap();
        let tensors = optimizer.bind(&Tensors::flat(&buffers[0], &buffers[1])).unwrap();
        let slack = optimizer.state_bytes() - 8 * parameters;
        let overhead = optimizer.overhead_bytes() + tensors.device_bytes() + slack;
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
        let buffers = [(); 2].map(|()| gpu.buffer(layout.buffer_size()));
        let mut optimizer = Optimizer::with_options(&gpu.device, layout, options).unwrap();
        let tensors = optimizer.bind(&Tensors::flat(&buffers[0], &buffers[1])).unwrap();
        let said = optimizer.state_bytes() + optimizer.overhead_bytes() + tensors.device_bytes();
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
    let expected = Setup::one_by_one(one);
    let mut setup = Setup::new(other);
    for t in 0..STEPS {
        let mut encoder = setup.gpu.encoder();
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let result = setup.optimizer.step(&setup.gpu.queue, &mut encoder, &setup.tensors, bad);
            assert!(
                matches!(result, Err(StepError::Argument { .. } | StepError::ScalarOverflow { .. })),
                "{bad}: {result:?}"
            );
        }
        assert_eq!(setup.optimizer.steps(), t as u64);
        setup.step(&mut encoder, t);
        setup.gpu.run(encoder);
    }
    assert_same_bits(&setup.snapshot(), &expected, "with refused steps between");
}

#[test]
fn a_binding_of_another_optimizer_is_refused() {
    let Some(gpu) = harness::test_gpu() else { return };
    let a = Setup::new(gpu);
    let mut other = Run::new(&a.gpu, a.optimizer.layout().clone(), &[0.0; LEN]);
    let mut encoder = a.gpu.encoder();
    let error = other.optimizer.step(&a.gpu.queue, &mut encoder, &a.tensors, 0.1).unwrap_err();
    assert_eq!(error, StepError::ForeignBinding);
}

//! Bad input: each a typed error that names field, value and bound.

use crate::common::single;
use harness::{Gpu, GpuRun};
use wgpu_optim::rules::MomentumForm;
use wgpu_optim::wgpu::{BufferDescriptor, BufferUsages, Limits};
use wgpu_optim::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, AnyRule, BindError, DeviceError, DynRule, Ema,
    Group, Lamb, Lars, Layout, LayoutError, Lion, NAdam, Optimizer, Options, OptionsError, RAdam, RmsProp,
    Rule, RuleError, Sgd, StateError, Step, StepError, Tensors, View, check, cpu,
};

fn bad_field(rule: AnyRule, field: &str) {
    let error = rule.validate().unwrap_err();
    // As strings, for a NaN is not equal to itself.
    assert_eq!(DynRule::from(rule).validate().unwrap_err().to_string(), error.to_string());
    match &error {
        RuleError::Hyperparameter { field: found, rule: named, .. } => {
            assert_eq!((*found, *named), (field, rule.name()));
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains(field), "{error}");
    // A layout checks its groups' rules.
    let refused = Layout::new([Group::new("g", rule).tensor("t", [1])]).unwrap_err();
    assert_eq!(refused.to_string(), error.to_string());
}

#[test]
fn hyperparameters() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, -1e-300] {
        // Every number of every rule, except SGD's dampening.
        macro_rules! refused {
            ($($rule:ident: $($field:ident)+;)+) => {
                $($(bad_field($rule { $field: bad, ..$rule::default() }.into(), stringify!($field));)+)+
            };
        }
        refused! {
            Sgd: momentum weight_decay;
            Adam: beta1 beta2 eps weight_decay;
            AdamW: beta1 beta2 eps weight_decay;
            Adagrad: lr_decay weight_decay initial_accumulator_value eps eps_root;
            RmsProp: alpha eps eps_root weight_decay momentum;
            Adadelta: rho eps weight_decay;
            Adamax: beta1 beta2 eps weight_decay;
            NAdam: beta1 beta2 eps weight_decay momentum_decay;
            RAdam: beta1 beta2 eps weight_decay rectification_threshold;
            Lion: beta1 beta2 weight_decay;
            AdaBelief: beta1 beta2 eps eps_root weight_decay;
            Adan: beta1 beta2 beta3 eps eps_root weight_decay;
        }
    }
    bad_field(Sgd { dampening: f64::NAN, ..Sgd::default() }.into(), "dampening");
    bad_field(Adam { beta1: 1.0, ..Adam::default() }.into(), "beta1");
    bad_field(AdamW { beta2: 1.5, ..AdamW::default() }.into(), "beta2");
    bad_field(Lion { beta1: 1.0, ..Lion::default() }.into(), "beta1");
    bad_field(Adan { beta3: 1.0, ..Adan::default() }.into(), "beta3");
    bad_field(Adadelta { rho: 1.0 + 1e-9, ..Adadelta::default() }.into(), "rho");
    bad_field(RAdam { rectification_threshold: 3.9, ..RAdam::default() }.into(), "rectification_threshold");
    assert!(Adadelta { rho: 1.0, ..Adadelta::default() }.validate().is_ok());
    // A device may flush such an ε to zero, and would then divide zero by zero.
    bad_field(Adam { eps: 1e-37, ..Adam::default() }.into(), "eps");
    bad_field(AdamW { eps: 1e-44, ..AdamW::default() }.into(), "eps");
    bad_field(Adagrad { eps: 1e-40, ..Adagrad::default() }.into(), "eps");
    bad_field(Lars { eps: 1e-40, ..Lars::default() }.into(), "eps");
    bad_field(
        Adagrad { initial_accumulator_value: 1e-40, ..Adagrad::default() }.into(),
        "initial_accumulator_value",
    );
    bad_field(RmsProp { eps_root: 1e-39, ..RmsProp::default() }.into(), "eps_root");
    bad_field(Adan { eps_root: 1e-37, ..Adan::default() }.into(), "eps_root");
    assert!(Adam { eps: 0.0, ..Adam::default() }.validate().is_ok());
    assert!(Adam { eps: 1e-36, ..Adam::default() }.validate().is_ok());
    // PyTorch has no bound on dampening's sign.
    assert!(Sgd { dampening: -0.5, ..Sgd::default() }.validate().is_ok());
    for (momentum, dampening) in [(0.0, 0.0), (0.9, 0.1)] {
        let error = Sgd { nesterov: true, momentum, dampening, ..Sgd::default() }.validate().unwrap_err();
        assert!(matches!(error, RuleError::Conflict { rule: "sgd", .. }), "{error}");
    }
    let averaged = Sgd { form: MomentumForm::Averaged, momentum: 0.9, dampening: 0.1, ..Sgd::default() };
    assert!(matches!(averaged.validate(), Err(RuleError::Conflict { rule: "sgd", .. })));
    let corrected = Adam { amsgrad_corrected: true, ..Adam::default() };
    assert!(matches!(corrected.validate(), Err(RuleError::Conflict { rule: "adam", .. })));
    let corrected = AdamW { amsgrad_corrected: true, ..AdamW::default() };
    assert!(matches!(corrected.validate(), Err(RuleError::Conflict { rule: "adamw", .. })));
}

/// AdaGrad and Adadelta have no momentum that a schedule could drive.
#[test]
fn momentum_of_a_rule_without() {
    let mut optimizer = cpu::Optimizer::new(single(Adagrad::default(), 1)).unwrap();
    let error = optimizer
        .step(cpu::Tensors::flat(&mut [1.0], &[1.0]), Step::from(0.1).with_momentum(0.9))
        .unwrap_err();
    assert!(matches!(error, StepError::Argument { field: "momentum", value: 0.9, .. }), "{error}");
    assert_eq!(optimizer.steps(), 0);
}

/// A gradient scale needs a reciprocal that f32 holds as a normal number.
#[test]
fn gradient_scales() {
    let layout = single(Sgd::default(), 1);
    let mut host = cpu::Optimizer::new(layout.clone()).unwrap();
    let gpu = harness::test_gpu();
    let mut device = gpu.as_ref().map(|gpu| GpuRun::new(gpu, layout.clone(), Options::DEFAULT, &[1.0]));
    let mut refused = |scale: f64| {
        let step = Step::from(0.1).with_grad_scale(scale);
        let mut params = [1.0];
        let error = host.step(cpu::Tensors::flat(&mut params, &[1.0]), step).unwrap_err();
        assert!(matches!(error, StepError::GradScale { .. }), "{error}");
        assert_eq!((host.steps(), params), (0, [1.0]));
        if let Some(run) = &mut device {
            let refused = run.record(&mut run.gpu.encoder(), step).unwrap_err();
            assert_eq!(refused.to_string(), error.to_string());
            assert_eq!(run.optimizer.steps(), 0);
        }
    };
    for scale in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e39, 1e-39, 2f64.powi(127)] {
        refused(scale);
    }
    // The reference has no gradient scale.
    let step = Step::from(0.1).with_grad_scale(2.0);
    let mut reference = cpu::Reference::new(layout.clone()).unwrap();
    let error = reference.step(&mut [1.0], &[1.0], step).unwrap_err();
    assert!(matches!(error, StepError::GradScale { value: 2.0, .. }), "{error}");
    let snapshot = check::Snapshot { params: vec![1.0], state: vec![vec![]] };
    let error = check::Checker::new(layout.clone()).step(&snapshot, &[1.0], step, &snapshot).unwrap_err();
    assert!(matches!(error, StepError::GradScale { value: 2.0, .. }), "{error}");
    // No option has to allow one.
    let mut params = [1.0];
    cpu::Optimizer::new(layout).unwrap().step(cpu::Tensors::flat(&mut params, &[1.0]), step).unwrap();
    assert_eq!(params, [1.0 - 0.1 * 0.5]);
}

#[test]
fn layouts() {
    let group = |name| Group::new(name, Sgd::default());
    let refused = |groups: Vec<Group>| Layout::new(groups).unwrap_err();
    assert_eq!(refused(vec![]), LayoutError::Empty);
    let twice = refused(vec![group("g").tensor("t", [1]).tensor("t", [2])]);
    assert_eq!(twice, LayoutError::DuplicateTensor { tensor: "t".into() });
    let twice = refused(vec![group("g").tensor("t", [1]), group("g").tensor("u", [2])]);
    assert_eq!(twice, LayoutError::DuplicateGroup { group: "g".into() });
    let overlap = refused(vec![group("g").tensor_at("b", [5], 3).tensor_at("a", [4], 0)]);
    assert_eq!(overlap, LayoutError::Overlap { first: "a".into(), second: "b".into(), end: 4, start: 3 });
    for shape in [&[u64::MAX, u64::MAX][..], &[1 << 32, 1 << 32], &[(1 << 61) + 1]] {
        let error = refused(vec![group("g").tensor("t", shape)]);
        assert!(matches!(error, LayoutError::TooLarge { .. }), "{error}");
    }
    let error = refused(vec![group("g").tensor_at("t", [2], u64::MAX)]);
    assert!(matches!(error, LayoutError::TooLarge { .. }), "{error}");
    for factor in [f64::NAN, -1.0, f64::INFINITY] {
        let error = refused(vec![group("g").lr_factor(factor).tensor("t", [1])]);
        assert!(matches!(&error, LayoutError::Factor { group, .. } if group == "g"), "{error}");
    }
    // A scalar has one element.
    assert_eq!(Layout::new([group("g").tensor("t", [])]).unwrap().len(), 1);
}

#[test]
fn steps() {
    let mut optimizer = cpu::Optimizer::new(single(Adam::default(), 3)).unwrap();
    let mut params = [1.0; 3];
    for lr in [f64::NAN, f64::INFINITY, -1e-3] {
        let error = optimizer.step(cpu::Tensors::flat(&mut params, &[1.0; 3]), lr).unwrap_err();
        assert!(matches!(error, StepError::Argument { field: "learning rate", .. }), "{error}");
    }
    for momentum in [1.0, -0.5, f64::NAN] {
        let step = Step::from(0.1).with_momentum(momentum);
        let error = optimizer.step(cpu::Tensors::flat(&mut params, &[1.0; 3]), step).unwrap_err();
        assert!(matches!(error, StepError::Argument { field: "beta1", .. }), "{error}");
    }
    let error = optimizer.step(cpu::Tensors::flat(&mut params, &[1.0; 3]), 1e40).unwrap_err();
    assert!(matches!(error, StepError::ScalarOverflow { scalar: "step_size", .. }), "{error}");
    let error = optimizer.step(cpu::Tensors::flat(&mut params, &[1.0; 2]), 0.1).unwrap_err();
    assert_eq!(error, StepError::Bind(BindError::TooShort { what: "gradients", found: 2, bound: 3 }));
    let error = optimizer.step(cpu::Tensors::flat(&mut params[..1], &[1.0; 3]), 0.1).unwrap_err();
    assert_eq!(error, StepError::Bind(BindError::TooShort { what: "parameters", found: 1, bound: 3 }));
    assert_eq!((optimizer.steps(), params), (0, [1.0; 3]));

    // A schedule cannot conjure up state that the configuration does not keep.
    let mut plain = cpu::Optimizer::new(single(Sgd::default(), 3)).unwrap();
    let step = Step::from(0.1).with_momentum(0.9);
    let error = plain.step(cpu::Tensors::flat(&mut params, &[1.0; 3]), step).unwrap_err();
    assert!(matches!(error, StepError::Argument { field: "momentum", .. }), "{error}");
}

/// `bind` on a layout of tensors "a" [100] and "b" [28].
fn bind(gpu: &Gpu, tensors: &Tensors<'_>) -> BindError {
    let layout =
        Layout::new([Group::new("g", Adam::default()).tensor("a", [100]).tensor("b", [28])]).unwrap();
    let mut optimizer = Optimizer::new(&gpu.device, layout).unwrap();
    optimizer.bind(tensors).unwrap_err()
}

#[test]
fn buffers() {
    let Some(gpu) = harness::test_gpu() else { return };
    let (p, g, short) = (gpu.buffer(1_024), gpu.buffer(1_024), gpu.buffer(508));
    let no_storage = gpu.device.create_buffer(&BufferDescriptor {
        label: None,
        size: 1_024,
        usage: BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    for tensors in [Tensors::flat(&no_storage, &g), Tensors::flat(&p, &no_storage)] {
        let error = bind(&gpu, &tensors);
        assert!(matches!(error, BindError::MissingUsage { usage: "STORAGE", .. }), "{error}");
    }
    let error = bind(&gpu, &Tensors::flat(&short, &g));
    assert!(matches!(error, BindError::OutOfBounds { start: 0, end: 512, size: 508, .. }), "{error}");
    let error = bind(&gpu, &Tensors::flat(&p, View::new(&g, 516)));
    assert!(matches!(error, BindError::OutOfBounds { start: 516, end: 1_028, size: 1_024, .. }), "{error}");
    let error = bind(&gpu, &Tensors::flat(&p, View::new(&g, u64::MAX - 3)));
    assert!(matches!(error, BindError::OutOfBounds { .. }), "{error}");
    let error = bind(&gpu, &Tensors::flat(View::new(&p, 6), &g));
    assert!(matches!(error, BindError::Misaligned { offset: 6, bound: 4, .. }), "{error}");
    let error = bind(&gpu, &Tensors::flat(&p, &p));
    assert!(matches!(error, BindError::Overlap { .. }), "{error}");
    let error = bind(&gpu, &Tensors::flat(&p, View::new(&p, 508)));
    assert!(matches!(error, BindError::Overlap { start: 508, end: 512, .. }), "{error}");

    let at = |offset| View::new(&p, offset);
    let error = bind(&gpu, &Tensors::each([("a", &p, &g)]));
    assert_eq!(error, BindError::TensorCount { found: 1, expected: 2 });
    let error = bind(&gpu, &Tensors::each([("a", &p, &g), ("c", &p, &g)]));
    assert_eq!(error, BindError::UnknownTensor { tensor: "c".into() });
    let error = bind(&gpu, &Tensors::each([("a", &p, &g), ("a", &p, &g)]));
    assert_eq!(error, BindError::DuplicateTensor { tensor: "a".into() });
    let error =
        bind(&gpu, &Tensors::each([("a", at(0), View::from(&g)), ("b", at(396), View::new(&g, 512))]));
    assert!(matches!(error, BindError::Overlap { start: 396, end: 400, .. }), "{error}");
    assert!(error.to_string().contains("\"b\""), "{error}");
}

/// Our own state is not the caller's to train.
#[test]
fn state_as_gradients() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut optimizer = Optimizer::new(&gpu.device, single(Adam::default(), 8)).unwrap();
    let p = gpu.buffer(32);
    let state = optimizer.state("exp_avg", "w").unwrap()[0].buffer.clone();
    let error = optimizer.bind(&Tensors::flat(&p, &state)).unwrap_err();
    assert!(matches!(error, BindError::Overlap { .. }), "{error}");
    assert!(matches!(optimizer.state("exp", "w"), Err(StateError::UnknownSlot { .. })));
    assert!(matches!(optimizer.state("exp_avg", "x"), Err(StateError::UnknownTensor { .. })));
}

#[test]
fn device_limits() {
    fn refused(adjust: impl FnOnce(&mut Limits)) -> Option<OptionsError> {
        let gpu = harness::test_gpu_with(adjust)?;
        Some(Optimizer::new(&gpu.device, single(Adam::default(), 8)).unwrap_err())
    }
    let Some(error) = refused(|l| l.max_storage_buffers_per_shader_stage = 3) else { return };
    let limit = "max_storage_buffers_per_shader_stage";
    assert_eq!(error, OptionsError::Device(DeviceError::Limit { limit, value: 3, bound: 4 }));
    // Norms bind one more, and so does an average.
    let Some(gpu) = harness::test_gpu_with(|l| l.max_storage_buffers_per_shader_stage = 5) else { return };
    let options = |ema| Options { ema, norms: true, ..Options::default() };
    assert!(Optimizer::with_options(&gpu.device, single(Lamb::default(), 8), options(None)).is_ok());
    let ema = Some(Ema { decay: 0.5, debias: false });
    let error = Optimizer::with_options(&gpu.device, single(Lamb::default(), 8), options(ema)).unwrap_err();
    assert_eq!(error, OptionsError::Device(DeviceError::Limit { limit, value: 5, bound: 6 }));
    let error = refused(|l| l.max_compute_invocations_per_workgroup = 128).unwrap();
    assert!(
        matches!(error, OptionsError::Device(DeviceError::Limit { value: 128, bound: 256, .. })),
        "{error}"
    );
    let error = refused(|l| l.max_storage_buffer_binding_size = 1 << 10).unwrap();
    assert!(matches!(error, OptionsError::Device(DeviceError::Limit { value: 1_024, .. })), "{error}");

    let Some(gpu) = harness::test_gpu() else { return };
    let groups =
        (0..70_000).map(|i| Group::new(format!("g{i}"), Adam::default()).tensor(format!("t{i}"), [1]));
    let error = Optimizer::new(&gpu.device, Layout::new(groups).unwrap()).unwrap_err();
    assert!(matches!(error, OptionsError::TooManyGroups { groups: 70_000, bound: 65_535 }), "{error}");

    // Refused before anything is planned or allocated.
    let huge = single(Sgd { momentum: 0.9, ..Sgd::default() }, 1 << 61);
    let error = Optimizer::new(&gpu.device, huge.clone()).unwrap_err();
    assert!(matches!(error, OptionsError::TensorTooLarge { .. }), "{error}");
    let error = cpu::Optimizer::new(huge).unwrap_err();
    assert!(matches!(error, OptionsError::Memory { .. }), "{error}");

    // Three workgroups a dimension reach nine tiles.
    let Some(gpu) = harness::test_gpu_with(|l| l.max_compute_workgroups_per_dimension = 3) else { return };
    let mut optimizer = Optimizer::new(&gpu.device, single(Adam::default(), 100_000)).unwrap();
    let (p, g) = (gpu.buffer(400_000), gpu.buffer(400_000));
    let error = optimizer.bind(&Tensors::flat(&p, &g)).unwrap_err();
    let limit = "max_compute_workgroups_per_dimension";
    let BindError::Device(error) = error else { panic!("{error}") };
    assert!(matches!(error, DeviceError::Limit { limit: l, value: 3, .. } if l == limit), "{error}");
}

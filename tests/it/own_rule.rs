//! A rule of the user's own: a struct, a shader text and the host's scalars.

use crate::common::single;
use harness::GpuRun;
use wgpu_optim::float::Float;
use wgpu_optim::rules::{Fields, GpuOnly};
use wgpu_optim::{
    DeviceError, Ema, Group, Layout, LayoutError, Optimizer, Options, OptionsError, Rule, RuleError, Step,
    cpu, fields,
};

fields! {
    /// Step scalars.
    pub struct SignumScalars {
        /// Learning rate.
        lr,
        /// Weight of the gradient.
        weight,
    }
}
fields! {
    /// State.
    pub struct SignumState {
        /// Running mean.
        mean,
    }
}

const SIGNUM: &str = "
fn update(s: Scalars, at: At) {
    let old = read_mean(at);
    let mean = old + s.weight * (read_g(at) - old);
    write_mean(at, mean);
    write_p(at, read_p(at) - s.lr * sign(mean));
}";

/// Signed momentum (steps by the sign of a running mean), with a shader of its own.
macro_rules! signum {
    ($name:ident, $label:literal, $shader:expr) => {
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct $name {
            beta: f64,
        }
        impl Rule for $name {
            const NAME: &'static str = $label;
            const DEFAULT_LR: f64 = 1e-3;
            const WGSL: &'static str = $shader;
            type Scalars<T: Float> = SignumScalars<T>;
            type State<T: Float> = SignumState<T>;
            fn validate(&self) -> Result<(), RuleError> {
                Ok(())
            }
            fn with_momentum(&self, beta: f64) -> Option<Self> {
                Some(Self { beta })
            }
            fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> SignumScalars<f64> {
                SignumScalars { lr, weight: 1.0 - self.beta }
            }
        }
    };
}

signum!(Signum, "signum", SIGNUM);
signum!(
    OneGroupOnly,
    "one_group_only",
    "
fn update(s: Scalars, at: At) {
    let lr: f32 = s.lr;
    write_p(at, read_p(at) - lr * read_g(at));
}"
);
signum!(Misspelt, "misspelt", "\nfn update(s: Scalars, at: At) {\n    write_p(at, read_q(at));\n}");

#[test]
fn it_gets_groups_and_state_like_a_built_in_one() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = Layout::packed([
        Group::new("a", GpuOnly(Signum { beta: 0.5 })).tensor("a", [3]),
        Group::new("b", GpuOnly(Signum { beta: 0.0 })).lr_factor(2.0).tensor("b", [2]),
    ])
    .unwrap();
    let mut run = GpuRun::new(&gpu, layout, Options::DEFAULT, &[1.0; 5]);
    run.step(&[4.0, -4.0, 0.0, 1.0, -1.0], 0.25);
    run.step(&[-2.0, 2.0, 0.0, -1.0, 1.0], Step::from(0.125));
    let end = run.snapshot();
    assert_eq!(end.state[0], [0.0, 0.0, 0.0, -1.0, 1.0]);
    assert_eq!(end.params, [0.75, 1.25, 1.0, 0.75, 1.25]);
}

/// The CPU engine names a rule that has no implementation for it.
#[test]
fn it_is_for_the_gpu_alone_without_a_cpu_implementation() {
    let error = cpu::Optimizer::new(single(GpuOnly(Signum { beta: 0.5 }), 8)).unwrap_err();
    assert_eq!(error, OptionsError::Rule(RuleError::NoCpu { rule: "signum" }));
}

/// The device's words name the rule's own third line.
#[test]
fn a_mistake_in_its_shader_is_an_error_with_its_line() {
    let Some(gpu) = harness::test_gpu() else { return };
    let error = Optimizer::new(&gpu.device, single(GpuOnly(Misspelt { beta: 0.0 }), 8)).unwrap_err();
    let OptionsError::Device(DeviceError::Refused { what, reason }) = &error else { panic!("{error}") };
    assert!(what.contains("misspelt") && what.contains("lines 1 to 4"), "{what}");
    assert!(reason.contains("read_q") && reason.contains(":3:"), "{reason}");
    // The text for vectors of several groups is checked too, for any layout.
    let error = Optimizer::new(&gpu.device, single(GpuOnly(OneGroupOnly { beta: 0.0 }), 8)).unwrap_err();
    let OptionsError::Device(DeviceError::Refused { reason, .. }) = &error else { panic!("{error}") };
    assert!(reason.contains(":3:"), "{reason}");
}

fields! {
    /// State that is more than a shader stage may bind.
    pub struct ManySlots { a, b, c, d, e, f }
}

/// Six slots: the device's limit of 8 storage buffers then leaves room for parameters and gradients, and none
/// for an average of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Greedy;

impl Rule for Greedy {
    const NAME: &'static str = "greedy";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = "";
    type Scalars<T: Float> = SignumScalars<T>;
    type State<T: Float> = ManySlots<T>;
    fn validate(&self) -> Result<(), RuleError> {
        Ok(())
    }
    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> SignumScalars<f64> {
        SignumScalars { lr, weight: 1.0 }
    }
}

#[test]
fn too_many_slots_for_the_device() {
    let Some(gpu) = harness::test_gpu_with(|l| l.max_storage_buffers_per_shader_stage = 8) else { return };
    let options = Options { ema: Some(Ema { decay: 0.9, debias: false }), ..Options::default() };
    let error = Optimizer::with_options(&gpu.device, single(GpuOnly(Greedy), 8), options).unwrap_err();
    let limit = "max_storage_buffers_per_shader_stage";
    assert_eq!(error, OptionsError::Device(DeviceError::Limit { limit, value: 8, bound: 9 }));
}

/// A rule of given names.
macro_rules! named {
    ($name:ident, $scalars:ty, $state:ty, $ratio:expr) => {
        #[derive(Clone, Copy, Debug, PartialEq)]
        struct $name;
        impl Rule for $name {
            const NAME: &'static str = "named";
            const DEFAULT_LR: f64 = 1e-3;
            const WGSL: &'static str = "";
            const TRUST_RATIO: Option<&'static str> = $ratio;
            type Scalars<T: Float> = $scalars;
            type State<T: Float> = $state;
            fn validate(&self) -> Result<(), RuleError> {
                Ok(())
            }
            fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> Self::Scalars<f64> {
                Fields::from_fn(|_| lr)
            }
        }
    };
}

fields! {
    /// A scalar of the driver's name.
    pub struct Factor { gradient_factor }
}
fields! {
    /// A slot of the average's name.
    pub struct Ema2 { ema }
}
named!(NoScalars, (), (), None);
named!(NoRatio, SignumScalars<T>, (), Some("phi"));
named!(ItsFactor, Factor<T>, (), None);
named!(ItsAverage, SignumScalars<T>, Ema2<T>, None);

/// Names that clash with those of the kernel are refused with the layout.
#[test]
fn names_that_are_taken() {
    fn refused<R: Rule>(rule: R, what: &str) {
        let error = Layout::new([Group::new("g", GpuOnly(rule)).tensor("w", [4])]).unwrap_err();
        let LayoutError::Rule(RuleError::Conflict { rule: "named", conflict }) = error else {
            panic!("{error}")
        };
        assert!(conflict.contains(what), "{conflict}");
    }
    refused(NoScalars, "at least one scalar");
    refused(NoRatio, "TRUST_RATIO");
    refused(ItsFactor, "gradient_factor");
    refused(ItsAverage, "ema");
}

/// Steps by the sign of the gradient: no state at all.
#[derive(Clone, Copy, Debug, PartialEq)]
struct SignDescent;

impl Rule for SignDescent {
    const NAME: &'static str = "sign_descent";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str =
        "fn update(s: Scalars, at: At) { write_p(at, read_p(at) - s.lr * sign(read_g(at))); }";
    type Scalars<T: Float> = SignumScalars<T>;
    type State<T: Float> = ();
    fn validate(&self) -> Result<(), RuleError> {
        Ok(())
    }
    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> SignumScalars<f64> {
        SignumScalars { lr, weight: 1.0 }
    }
}

#[test]
fn a_rule_without_state() {
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = GpuRun::new(&gpu, single(GpuOnly(SignDescent), 3), Options::DEFAULT, &[1.0; 3]);
    run.step(&[2.0, 0.0, -0.5], 0.25);
    let end = run.snapshot();
    assert_eq!(end.params, [0.75, 1.0, 1.25]);
    assert!(end.state.is_empty());
    assert_eq!(run.optimizer.state_bytes(), 0);
}

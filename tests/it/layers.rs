//! Layer-wise rules: everything that depends on the norms of each tensor.

use crate::common::{Case, Random, assert_same_bits, assert_within_budget, cases_of, check_gpu, lr, single};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun};
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::float::Float;
use wgpu_optim::rules::{GpuOnly, LambScalars, MomentsState};
use wgpu_optim::{
    AdamW, CpuRule, DeviceError, Group, Lamb, Lars, Layout, Optimizer, Options, OptionsError, Rule,
    RuleError, Sgd, Step, cpu, fields,
};

/// LAMB whose ratio is 1 whatever the decay: a rule of somebody's own with a familiar text.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RatioOne(Lamb);

impl Rule for RatioOne {
    const NAME: &'static str = "ratio_one";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = Lamb::WGSL;
    const TRUST_RATIO: Option<&'static str> = Lamb::TRUST_RATIO;
    const DIRECTION_SLOTS: &'static [&'static str] = Lamb::DIRECTION_SLOTS;
    type Scalars<T: Float> = LambScalars<T>;
    type State<T: Float> = MomentsState<T>;
    fn validate(&self) -> Result<(), RuleError> {
        self.0.validate()
    }
    fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> LambScalars<f64> {
        LambScalars { adapts: 0.0, ..self.0.scalars(lr, t, carry) }
    }
}

impl CpuRule for RatioOne {
    const MAX_ULPS: f64 = Lamb::MAX_ULPS;
    fn update<T: Float>(s: &LambScalars<T>, p: &mut T, g: T, state: &mut MomentsState<T>) {
        Lamb::update(s, p, g, state);
    }
    fn direction<T: Float>(s: &LambScalars<T>, p: T, g: T, state: &MomentsState<T>) -> T {
        Lamb::direction(s, p, g, state)
    }
    fn trust_ratio<T: Float>(s: &LambScalars<T>, p_norm: T, u_norm: T) -> T {
        Lamb::trust_ratio(s, p_norm, u_norm)
    }
}

/// `p − lr (m̂ / (√v̂ + ε) + λ p)`: each step of the one, judged as a step of the other.
#[test]
fn lamb_with_ratio_1_is_adamw() {
    let adamw = AdamW { eps: 1e-6, weight_decay: 0.3, ..AdamW::default() };
    let lamb = RatioOne(Lamb { weight_decay: 0.3, ..Lamb::default() });
    let mut random = Random::new(1);
    let (params, grads) = (random.values(1_001), (0..5).map(|_| random.values(1_001)).collect::<Vec<_>>());
    // In f64 they are one.
    let (mut a, mut b) = (params.iter().map(|&p| p.into()).collect::<Vec<f64>>(), Vec::new());
    b.clone_from(&a);
    let mut first = cpu::Reference::new(single(adamw, 1_001)).unwrap();
    let mut second = cpu::Reference::new(single(lamb, 1_001)).unwrap();
    for (t, grads) in grads.iter().enumerate() {
        let grads: Vec<f64> = grads.iter().map(|&g| g.into()).collect();
        first.step(&mut a, &grads, lr(t)).unwrap();
        second.step(&mut b, &grads, lr(t)).unwrap();
    }
    for (a, b) in a.iter().zip(&b) {
        approx::assert_relative_eq!(a, b, max_relative = 1e-14, epsilon = 1e-15);
    }
    // And on the GPU within the budget.
    let Some(gpu) = harness::test_gpu() else { return };
    let mut run = GpuRun::new(&gpu, single(lamb, 1_001), Options::DEFAULT, &params);
    let layout = single(adamw, 1_001);
    let mut checker = Checker::new(layout.clone());
    for (t, grads) in grads.iter().enumerate() {
        let before = run.snapshot();
        run.step(grads, lr(t));
        // AdamW keeps one slot more, for AMSGrad, and it is off.
        let with_a_third = |mut snapshot: Snapshot| {
            snapshot.state.push(Vec::new());
            snapshot
        };
        let after = with_a_third(run.snapshot());
        let deviation = checker.step(&with_a_third(before), grads, lr(t), &after).unwrap();
        assert_within_budget(&layout, &deviation, &format!("beside AdamW, step {}", t + 1));
    }
}

/// With φ = 1 from a trust coefficient of ‖g‖ / ‖p‖, LARS is SGD, whose momentum a schedule may drive.
#[test]
fn lars_with_ratio_1_is_sgd() {
    let (params, grads) = ([3.0, 0.0, -4.0], [0.0, 12.0, 5.0]);
    let momentum = 0.5;
    let lars = Lars { momentum, trust_coefficient: 13.0 / 5.0, nesterov: true, ..Lars::default() };
    let sgd = Sgd { momentum, nesterov: true, ..Sgd::default() };
    let mut ends = [params; 2];
    let mut first = cpu::Reference::new(single(sgd, 3)).unwrap();
    let mut second = cpu::Reference::new(single(lars, 3)).unwrap();
    let step = Step::from(0.1).with_momentum(0.8);
    first.step(&mut ends[0], &grads, step).unwrap();
    second.step(&mut ends[1], &grads, step).unwrap();
    approx::assert_relative_eq!(ends[0][..], ends[1][..], max_relative = 1e-15);
}

/// Thousands of tensors: three dispatches, and as many rows of scalars as only storage holds.
#[test]
fn thousands_of_tensors_are_three_dispatches() {
    let Some(gpu) = harness::test_gpu() else { return };
    for cases in [cases_of("lamb"), cases_of("lars")] {
        let groups = cases.iter().enumerate().map(|(g, Case { name, rule })| {
            let tensors = (g..3_000).step_by(cases.len());
            tensors.fold(Group::new(*name, rule.clone()), |group, i| {
                group.tensor(format!("t{i}"), [1 + i as u64 % 11])
            })
        });
        let layout = Layout::packed(groups).unwrap();
        let zeros = vec![0.0; layout.len() as usize];
        let run = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &zeros);
        assert_eq!(run.bound.dispatches(), 3);
        check_gpu(&gpu, &layout, 5, 2, "3 000 tensors");
    }
}

/// Norms over many workgroups, and the same bits every time.
#[test]
fn large_tensors() {
    let Some(gpu) = harness::test_gpu() else { return };
    for name in ["lamb", "lars"] {
        let rule = cases_of(name)[1].rule.clone();
        let layout =
            Layout::packed([Group::new("g", rule).tensor("a", [700_001]).tensor("b", [33_333])]).unwrap();
        check_gpu(&gpu, &layout, 6, 2, "large tensors");
        let mut random = Random::new(7);
        let (params, grads) = (random.values(733_334), random.values(733_334));
        let ends = [(); 2].map(|()| {
            let mut run = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &params);
            run.step(&grads, 0.1);
            run.snapshot()
        });
        assert_same_bits(&ends[0], &ends[1], name);
    }
}

/// A gradient that is not finite reaches all of its tensor, by the norm, and nothing of its neighbours, one
/// of which shares its last vector.
#[test]
fn a_non_finite_gradient_stays_in_its_tensor() {
    let gpu = harness::test_gpu();
    for name in ["lamb", "lars"] {
        let rule = cases_of(name)[0].rule.clone();
        let layout = Layout::packed([Group::new("g", rule).tensor("a", [66]).tensor("b", [5])]).unwrap();
        let mut random = Random::new(8);
        let (params, clean) = (random.values(71), random.values(71));
        let mut dirty = clean.clone();
        dirty[65] = f32::NAN;
        let judge = |device: &str, [clean, dirty]: [&[f32]; 2]| {
            assert!(dirty[..66].iter().all(|p| p.is_nan()), "{name} {device}: {dirty:?}");
            assert_eq!(clean[66..], dirty[66..], "{name} {device}");
        };
        let ends = [&clean, &dirty].map(|grads| {
            let mut run = CpuRun::new(layout.clone(), Options::DEFAULT, &params);
            run.step(grads, 0.1);
            run.params()
        });
        judge("CPU", [&ends[0], &ends[1]]);
        let Some(gpu) = &gpu else { continue };
        let ends = [&clean, &dirty].map(|grads| {
            let mut run = GpuRun::new(gpu, layout.clone(), Options::DEFAULT, &params);
            run.step(grads, 0.1);
            run.snapshot().params
        });
        judge("GPU", [&ends[0], &ends[1]]);
    }
}

/// Squares that f32 has no room for, of either norm.
#[test]
fn norms_beyond_the_range_of_squares() {
    let Some(gpu) = harness::test_gpu() else { return };
    for (p, g) in [(1e-25, 1.0), (1e25, 1e-3), (1.0, 1e-25), (1e3, 1e25)] {
        let lars = Lars { momentum: 0.0, trust_coefficient: 0.5, ..Lars::default() };
        let mut run = GpuRun::new(&gpu, single(lars, 4), Options::DEFAULT, &[p; 4]);
        run.step(&[g; 4], 1.0);
        approx::assert_relative_eq!(run.snapshot().params[3], 0.5 * p, max_relative = 1e-6);
        let mut run = CpuRun::new(single(lars, 4), Options::DEFAULT, &[p; 4]);
        run.step(&[g; 4], 1.0);
        approx::assert_relative_eq!(run.params()[3], 0.5 * p, max_relative = 1e-6);
    }
}

#[test]
fn more_tensors_than_can_be_told_apart() {
    let Some(gpu) = harness::test_gpu() else { return };
    let refused = |gpu: &Gpu, tensors| {
        let group = Group::new("g", Lars::default());
        let group = (0..tensors).fold(group, |group, i| group.tensor(format!("t{i}"), [1]));
        Optimizer::new(&gpu.device, Layout::new([group]).unwrap()).err()
    };
    let too_many = |tensors, bound| Some(OptionsError::TooManyTensors { rule: "lars", tensors, bound });
    assert_eq!(refused(&gpu, 65_536), too_many(65_536, 65_535));
    // Nor more than there are workgroups between the phases.
    let Some(gpu) = harness::test_gpu_with(|l| l.max_compute_workgroups_per_dimension = 40) else { return };
    assert_eq!(refused(&gpu, 41), too_many(41, 40));
    assert_eq!(refused(&gpu, 40), None);
}

fields! {
    /// Scalars of [`Forgetful`].
    struct ForgetfulScalars { lr, phi }
}

/// A layer-wise rule without a direction.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Forgetful;

impl Rule for Forgetful {
    const NAME: &'static str = "forgetful";
    const DEFAULT_LR: f64 = 1e-3;
    const WGSL: &'static str = "
fn trust_ratio(s: GroupScalars, p_norm: f32, u_norm: f32) -> f32 { return p_norm; }
fn update(s: Scalars, at: At) { write_p(at, read_p(at) - s.phi * s.lr * read_g(at)); }";
    const TRUST_RATIO: Option<&'static str> = Some("phi");
    type Scalars<T: Float> = ForgetfulScalars<T>;
    type State<T: Float> = ();
    fn validate(&self) -> Result<(), RuleError> {
        Ok(())
    }
    fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> ForgetfulScalars<f64> {
        ForgetfulScalars { lr, phi: 0.0 }
    }
}

#[test]
fn a_rule_without_a_direction_is_an_error() {
    let Some(gpu) = harness::test_gpu() else { return };
    let error = Optimizer::new(&gpu.device, single(GpuOnly(Forgetful), 8)).unwrap_err();
    let OptionsError::Device(DeviceError::Refused { what, reason }) = &error else { panic!("{error}") };
    assert!(what.contains("forgetful") && reason.contains("direction"), "{error}");
}

/// Norms of parameters or directions that an f32 does not hold: both engines take the step of the f64
/// reference.
#[test]
fn norms_beyond_an_f32() {
    let gpu = harness::test_gpu();
    let lamb = Lamb { weight_decay: 0.1, ..Lamb::default() };
    let lars = Lars { weight_decay: 1e-4, ..Lars::default() };
    let eps = Lars { weight_decay: 0.0, eps: 1e20, ..lars };
    let undecayed = Lars { weight_decay: 0.0, eps: 0.0, ..lars };
    for len in [8, 1_001] {
        for (params, grads) in [(3e38, 1.0), (3e38, 1e30), (1e25, 3e38), (3e38, 3e38), (3e38, 0.0)] {
            let values = |scale: f32| -> Vec<f32> {
                let signs = Random::new(3).values(len);
                signs.iter().map(|x| scale * if *x < 0.0 { -0.9 } else { 1.0 }).collect()
            };
            let (params, grads) = (values(params), values(grads));
            let context = format!("{len} of {} and {}", params[0], grads[0]);
            let check = |layout: Layout, step: &mut dyn FnMut(&[f32]) -> [Snapshot; 2]| {
                let [before, after] = step(&grads);
                let deviation = Checker::new(layout.clone()).step(&before, &grads, 1e-3, &after).unwrap();
                assert_within_budget(&layout, &deviation, &context);
                assert!(after.params.iter().all(|p| p.is_finite()), "{context}");
            };
            // d² of LAMB overflows beyond 1.8e19.
            let small = grads[0].abs() < 1e10;
            let mut layouts: Vec<_> = [lars, eps, undecayed].map(|rule| single(rule, len as u64)).into();
            layouts.extend(small.then(|| single(lamb, len as u64)));
            for layout in layouts {
                let mut run = CpuRun::new(layout.clone(), Options::default(), &params);
                check(layout.clone(), &mut |grads| {
                    let before = run.snapshot();
                    run.step(grads, 1e-3);
                    [before, run.snapshot()]
                });
                let Some(gpu) = &gpu else { continue };
                let mut run = GpuRun::new(gpu, layout.clone(), Options::default(), &params);
                check(layout, &mut |grads| {
                    let before = run.snapshot();
                    run.step(grads, 1e-3);
                    [before, run.snapshot()]
                });
            }
        }
    }
}

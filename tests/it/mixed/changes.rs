//! Hyperparameters, factors and bounds that change between two steps.

use super::{Run, Way, assert_has, ordinary, ways, with_gaps, zoo};
use crate::common::{Random, lr};
use wgpu_optim::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, AnyRule, ChangeError, Clip, DynRule, Lamb, Lars,
    Layout, Lion, NAdam, Options, OptionsError, RAdam, RmsProp, RuleError, Sgd, schedule,
};

const STEPS: usize = 4;
/// Steps before the change.
const BEFORE: usize = 2;

/// Every rule as `zoo` has it, with other hyperparameters that keep no more state.
fn others() -> Vec<AnyRule> {
    vec![
        Sgd { weight_decay: 0.1, maximize: true, ..Sgd::default() }.into(),
        Adam { beta2: 0.9, weight_decay: 0.1, ..Adam::default() }.into(),
        AdamW { beta1: 0.5, weight_decay: 0.3, ..AdamW::default() }.into(),
        Adagrad { weight_decay: 0.1, lr_decay: 0.5, ..Adagrad::default() }.into(),
        RmsProp { alpha: 0.5, weight_decay: 0.1, ..RmsProp::default() }.into(),
        Adadelta { rho: 0.5, eps: 1e-3, ..Adadelta::default() }.into(),
        Adamax { beta2: 0.7, eps_after_max: true, ..Adamax::default() }.into(),
        NAdam { beta2: 0.9, weight_decay: 0.1, ..NAdam::default() }.into(),
        RAdam { weight_decay: 0.1, rectification_threshold: 4.0, ..RAdam::default() }.into(),
        Lion { beta2: 0.5, weight_decay: 0.3, ..Lion::default() }.into(),
        AdaBelief { eps_root: 1e-8, maximize: true, ..AdaBelief::default() }.into(),
        Adan { beta3: 0.9, no_prox: true, weight_decay: 0.1, ..Adan::default() }.into(),
        Lamb { weight_decay: 0.1, ..Lamb::default() }.into(),
        Lars { trust_coefficient: 0.1, nesterov: true, ..Lars::default() }.into(),
    ]
}

/// A few rules, among them a layer-wise one.
fn few() -> [AnyRule; 4] {
    [Sgd::default().into(), Adam::default().into(), AdamW::default().into(), Lars::default().into()]
}

/// A run over a layout that changes in its middle, against one that had the layout of its end from the
/// beginning and takes over parameters and state in the middle.
fn check(way: Way<'_>, layouts: [&Layout; 2], options: [Options; 2], mut change: impl FnMut(&mut Run<'_>)) {
    let mut random = Random::new(23);
    let len = layouts[0].len() as usize;
    let start = ordinary(&mut random, len);
    let steps: Vec<_> = (0..STEPS).map(|_| with_gaps(layouts[0], &ordinary(&mut random, len))).collect();
    let mut run = way.run(layouts[0], options[0], &start);
    let mut other = way.run(layouts[1], options[1], &start);
    for (t, grads) in steps.iter().enumerate() {
        if t == BEFORE {
            assert_ne!(run.bits(), other.bits(), "the change makes no difference");
            change(&mut run);
            other.take_over(&run);
        }
        let reports = [run.step(grads, lr(t)), other.step(grads, lr(t))];
        if t >= BEFORE {
            assert_eq!(format!("{:?}", reports[0]), format!("{:?}", reports[1]), "{}", way.name());
            assert_has(&run.bits(), &other.bits(), &format!("step {t}, {}", way.name()));
        }
    }
}

/// New hyperparameters are those of a run that always had them, from the next step on.
#[test]
fn other_hyperparameters() {
    let gpu = harness::test_gpu();
    let [old, new] = [AnyRule::all(), others()].map(|rules| zoo(&rules, true));
    for way in ways(gpu.as_ref()) {
        check(way, [&old, &new], [Options::default(); 2], |run| {
            for rule in others() {
                run.set_rule(rule.name(), rule).unwrap();
                let group = run.layout().groups().iter().find(|group| group.name() == rule.name()).unwrap();
                assert_eq!(*group.rule(), DynRule::from(rule));
            }
        });
    }
}

/// A factor of the learning rate is a learning rate.
#[test]
fn other_factors() {
    let gpu = harness::test_gpu();
    let layout = zoo(&AnyRule::all(), true);
    let factor = schedule::linear(0.5, 0.125, 8);
    let scheduled = {
        let groups = layout.groups().iter().enumerate().map(|(g, group)| {
            let new = wgpu_optim::Group::new(group.name(), group.rule().clone()).lr_factor(factor.clone());
            let tensors = layout.tensors().iter().filter(|tensor| tensor.group == g);
            tensors.fold(new, |new, tensor| new.tensor_at(&tensor.name, &tensor.shape, tensor.offset))
        });
        Layout::new(groups).unwrap()
    };
    for way in ways(gpu.as_ref()) {
        check(way, [&layout, &scheduled], [Options::default(); 2], |run| {
            for name in AnyRule::NAMES {
                run.set_lr_factor(name, factor.clone()).unwrap();
            }
        });
    }
    // In one step, against the product.
    let mut random = Random::new(29);
    let len = layout.len() as usize;
    let (start, grads) = (ordinary(&mut random, len), ordinary(&mut random, len));
    for way in ways(gpu.as_ref()) {
        let mut halved = way.run(&layout, Options::default(), &start);
        AnyRule::NAMES.iter().for_each(|name| halved.set_lr_factor(name, 0.5).unwrap());
        halved.step(&grads, 0.1);
        let mut plain = way.run(&layout, Options::default(), &start);
        plain.step(&grads, 0.05);
        assert_has(&halved.bits(), &plain.bits(), &way.name());
    }
}

/// A new bound of a clip, of each kind.
#[test]
fn other_bounds() {
    let gpu = harness::test_gpu();
    let layout = zoo(&few(), true);
    let kinds = [Clip::GlobalNorm, Clip::GroupNorm, Clip::Value];
    for way in ways(gpu.as_ref()) {
        for (kind, bounds) in kinds.into_iter().zip([[2.0, 0.5], [1.0, 0.25], [0.75, 0.125]]) {
            let options =
                bounds.map(|bound| Options { clip: Some(kind(bound)), report: true, ..Options::default() });
            check(way, [&layout; 2], options, |run| run.set_clip(kind(bounds[1])).unwrap());
        }
    }
}

/// A change that is refused changes nothing, neither alone nor of the bits of the run.
#[test]
fn refused_changes() {
    let gpu = harness::test_gpu();
    let layout = zoo(&few(), true);
    let options = Options { clip: Some(Clip::GlobalNorm(1.0)), report: true, ..Options::default() };
    let mut random = Random::new(31);
    let len = layout.len() as usize;
    let (start, grads) = (ordinary(&mut random, len), ordinary(&mut random, len));
    let attempts = |run: &mut Run<'_>| {
        let before = format!("{:?}", run.layout().groups());
        let unknown = Err(ChangeError::UnknownGroup { group: "none".into() });
        assert_eq!(run.set_rule("none", AdamW::default()), unknown);
        assert_eq!(run.set_lr_factor("none", 0.5), unknown);
        assert_eq!(run.set_frozen("none", true), unknown);
        assert_eq!(run.set_frozen("none", false), unknown);
        // A tensor is no group.
        assert!(run.set_frozen("adam.0", true).is_err());
        let other = |group: &str, found, expected| {
            Err(ChangeError::OtherRule { group: group.into(), found, expected })
        };
        assert_eq!(run.set_rule("adam", AdamW::default()), other("adam", "adamw", "adam"));
        assert_eq!(run.set_rule("lars", Sgd::default()), other("lars", "sgd", "lars"));
        let missing = |group: &str, slot| Err(ChangeError::SlotNotKept { group: group.into(), slot });
        let amsgrad = Adam { amsgrad: true, ..Adam::default() };
        assert_eq!(run.set_rule("adam", amsgrad), missing("adam", "max_exp_avg_sq"));
        let momentum = Sgd { momentum: 0.9, ..Sgd::default() };
        assert_eq!(run.set_rule("sgd", momentum), missing("sgd", "momentum_buffer"));
        let error = run.set_rule("adamw", AdamW { beta2: 1.0, ..AdamW::default() }).unwrap_err();
        let ChangeError::Rule(error) = error else { panic!("{error}") };
        assert!(matches!(error, RuleError::Hyperparameter { rule: "adamw", field: "beta2", .. }), "{error}");
        let error = run.set_rule("sgd", Sgd { nesterov: true, ..Sgd::default() }).unwrap_err();
        assert!(matches!(error, ChangeError::Rule(RuleError::Conflict { rule: "sgd", .. })), "{error}");
        for factor in [-1.0, f64::NAN, f64::INFINITY] {
            let error = run.set_lr_factor("adamw", factor).unwrap_err();
            assert!(matches!(&error, ChangeError::Factor { group, .. } if group == "adamw"), "{error}");
        }
        let kind = |found| Err(ChangeError::OtherClip { found, expected: "global_norm" });
        assert_eq!(run.set_clip(Clip::GroupNorm(0.5)), kind("group_norm"));
        assert_eq!(run.set_clip(Clip::Value(0.5)), kind("value"));
        for bound in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY, 1e-40] {
            let error = run.set_clip(Clip::GlobalNorm(bound)).unwrap_err();
            let ChangeError::Options(error) = error else { panic!("{error}") };
            assert!(matches!(error, OptionsError::Field { field: "clip.global_norm", .. }), "{error}");
        }
        assert_eq!(format!("{:?}", run.layout().groups()), before);
    };
    for way in ways(gpu.as_ref()) {
        let ends = [true, false].map(|tried| {
            let mut run = way.run(&layout, options, &start);
            let reports = (0..STEPS).map(|t| {
                if tried {
                    attempts(&mut run);
                }
                format!("{:?}", run.step(&grads, lr(t)))
            });
            let reports: Vec<_> = reports.collect();
            (reports, run.bits())
        });
        assert!(ends[0] == ends[1], "{}", way.name());
        // Without a clip there is none to change.
        let mut run = way.run(&layout, Options::default(), &start);
        let error = run.set_clip(Clip::Value(1.0)).unwrap_err();
        assert_eq!(error, ChangeError::OtherClip { found: "value", expected: "none" });
    }
}

//! What fits, what does not, and what the policies make of it.

use crate::common::{Directory, Run, layout, mismatches, quiet};
use wgpu_optim::checkpoint::{self, Cpu, Differing, Error, Extra, Formats, Load, Mismatch, Missing, Save};
use wgpu_optim::{Adam, AdamW, Group, Layout, Schedule, cpu};

fn saved(directory: &Directory) -> (std::path::PathBuf, Run<AdamW>) {
    let path = directory.file("run.safetensors");
    let mut run = Run::new(layout());
    run.steps(3).save(&path, &Save::default()).unwrap();
    (path, run)
}

/// The layout with something changed.
fn changed(
    rule: AdamW,
    factor: impl Into<Schedule>,
    shape: [u64; 2],
    others: &[(&str, u64)],
) -> Layout<AdamW> {
    let decay = Group::new("decay", rule).tensor("w", shape);
    let mut plain = Group::new("plain", AdamW { weight_decay: 0.0, ..AdamW::default() }).lr_factor(factor);
    for (name, len) in others {
        plain = plain.tensor(*name, [*len]);
    }
    Layout::new([decay, plain]).unwrap()
}

#[test]
fn every_mismatch_is_listed_and_nothing_changes() {
    let directory = Directory::new("mismatches");
    let (path, _) = saved(&directory);
    let rule = AdamW { beta1: 0.8, amsgrad: true, ..AdamW::default() };
    let mut run = Run::new(changed(rule, 0.25, [5, 3], &[("v", 7), ("b", 2), ("new", 4)]));
    run.steps(1);
    let before = run.bits();
    let found = mismatches(run.load(&path, &Load::default()));
    let hyperparameter = |group: &str, field: &str, found: &str, expected: &str| Mismatch::Hyperparameter {
        group: group.into(),
        field: field.into(),
        found: found.into(),
        expected: expected.into(),
    };
    let shape =
        |slot: &str| Mismatch::Shape { tensor: format!("{slot}/w"), found: vec![3, 5], expected: vec![5, 3] };
    let missing =
        |tensor: &str| Mismatch::MissingSlot { slot: "max_exp_avg_sq".into(), tensor: tensor.into() };
    let want = [
        hyperparameter("decay", "amsgrad", "false", "true"),
        hyperparameter("decay", "beta1", "0.9", "0.8"),
        hyperparameter("plain", "lr_factor", r#"{"constant":0.5}"#, r#"{"constant":0.25}"#),
        Mismatch::Group { tensor: "v".into(), found: "decay".into(), expected: "plain".into() },
        Mismatch::MissingTensor { tensor: "new".into() },
        shape("exp_avg"),
        shape("exp_avg_sq"),
        missing("w"),
        missing("v"),
        missing("b"),
        shape("param"),
    ];
    assert_eq!(found, want);
    assert_eq!(run.bits(), before);
}

#[test]
fn another_rule_is_refused() {
    let directory = Directory::new("rule");
    let (path, _) = saved(&directory);
    let decay = Group::new("decay", Adam::default()).tensor("w", [3, 5]).tensor("v", [7]);
    let plain = Group::new("plain", Adam::default()).tensor("b", [2]);
    let mut run = Run::new(Layout::new([decay, plain]).unwrap());
    let found = mismatches(run.load(&path, &Load::default()));
    assert_eq!(found, [Mismatch::Rule { found: "adamw".into(), expected: "adam" }]);
}

#[test]
fn missing_and_extra_tensors_are_a_matter_of_policy() {
    let directory = Directory::new("policies");
    let (path, saved) = saved(&directory);
    let layout = || changed(AdamW::default(), 0.5, [3, 5], &[("b", 2), ("new", 4)]);
    let mut run = Run::new(layout());
    let missing = Mismatch::MissingTensor { tensor: "new".into() };
    let extra = Mismatch::ExtraTensor { tensor: "v".into() };
    let load = |missing, extra| Load { missing, extra, ..Load::default() };
    assert_eq!(
        mismatches(run.load(&path, &load(Missing::Error, Extra::Error))),
        [missing.clone(), extra.clone()]
    );
    assert_eq!(mismatches(run.load(&path, &load(Missing::Zero, Extra::Error))), [extra]);
    assert_eq!(mismatches(run.load(&path, &load(Missing::Error, Extra::Ignore))), [missing]);
    run.steps(5);
    let before = run.params.clone();
    run.load(&path, &load(Missing::Zero, Extra::Ignore)).unwrap();
    assert_eq!(run.optimizer.steps(), 3);
    let state = |run: &Run<AdamW>, tensor: &str| run.state("exp_avg", tensor).to_vec();
    assert_eq!(state(&run, "new"), [0.0; 4]);
    for tensor in ["w", "b"] {
        assert_eq!(state(&run, tensor), state(&saved, tensor));
    }
    let new = run.optimizer.layout().tensor("new").unwrap().range();
    assert_eq!(run.params[new.clone()], before[new], "parameters that the file lacks keep their values");
    // Parameters are not there to be loaded, or were not saved.
    let mut optimizer = cpu::Optimizer::<AdamW>::new(crate::common::layout()).unwrap();
    let mut engine = Cpu::new(&mut optimizer);
    let extra = [Mismatch::ExtraSlot { slot: "param".into(), tensors: 3 }];
    assert_eq!(mismatches(checkpoint::load(&mut engine, &path, &Load::default(), &mut quiet)), extra);
    let ignoring = load(Missing::Error, Extra::Ignore);
    checkpoint::load(&mut engine, &path, &ignoring, &mut quiet).unwrap();
    let bare = directory.file("bare.safetensors");
    checkpoint::save(&mut engine, &bare, &Save::default(), &mut quiet).unwrap();
    let mut run = Run::new(crate::common::layout());
    let found = mismatches(run.load(&bare, &Load::default()));
    let missing = |tensor: &str| Mismatch::MissingSlot { slot: "param".into(), tensor: tensor.into() };
    assert_eq!(found, ["w", "v", "b"].map(missing));
    run.load(&bare, &load(Missing::Zero, Extra::Error)).unwrap();
    assert_eq!(run.params, [0.5; 24]);
}

#[test]
fn hyperparameters_of_the_optimizer_hold_on_request() {
    let directory = Directory::new("hyperparameters");
    let (path, mut saved) = saved(&directory);
    let group = |name: &str| Group::new(name, AdamW { beta2: 0.5, ..AdamW::default() });
    let layout =
        Layout::new([group("decay").tensor("w", [3, 5]).tensor("v", [7]), group("plain").tensor("b", [2])]);
    let mut run = Run::new(layout.unwrap());
    assert_eq!(mismatches(run.load(&path, &Load::default())).len(), 4);
    run.load(&path, &Load { hyperparameters: Differing::Ignore, ..Load::default() }).unwrap();
    assert_eq!(run.bits(), saved.bits());
    assert_eq!(run.optimizer.layout().groups()[0].rule().beta2, 0.5);
}

/// Formats that the CPU has not got are tried on the GPU, in `gpu_formats`.
#[test]
fn parameters_without_state_are_no_checkpoint() {
    let directory = Directory::new("bare");
    let path = directory.file("model.safetensors");
    let data = [0u8; 8];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &data).unwrap();
    safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
    let error =
        Run::new(layout()).load(&path, &Load { formats: Formats::Convert, ..Load::default() }).unwrap_err();
    assert!(matches!(error, Error::NotACheckpoint { key: "wgpu_optim", .. }), "{error}");
}

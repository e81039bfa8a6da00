//! Fitting and mismatching checkpoints, and the policies of a load.

use crate::common::{Directory, Saves, bits, layout, mismatches, on_cpu};
use cpu_harness::CpuRun;
use wgpu_optim::checkpoint::{
    self, Cpu, Differing, Error, Extra, Formats, Load, Mismatch, Missing, Reader, Save,
};
use wgpu_optim::{Adam, AdamW, Group, Layout, LossScale, Options, Schedule, Sgd, cpu};

fn saved(directory: &Directory) -> (std::path::PathBuf, CpuRun) {
    let path = directory.file("run.safetensors");
    let mut run = on_cpu(layout());
    run.steps(3).save(&path, &Save::default()).unwrap();
    (path, run)
}

/// The layout with something changed.
fn changed(rule: AdamW, factor: impl Into<Schedule>, shape: [u64; 2], others: &[(&str, u64)]) -> Layout {
    let decay = Group::new("decay", rule).tensor("w", shape);
    let mut plain = Group::new("plain", AdamW { weight_decay: 0.0, ..AdamW::default() }).lr_factor(factor);
    for (name, len) in others {
        plain = plain.tensor(*name, [*len]);
    }
    Layout::packed([decay, plain]).unwrap()
}

/// A large unrelated file: a thousand mismatches are listed and the others counted.
#[test]
fn mismatches_without_end_are_counted() {
    let directory = Directory::new("more");
    let path = directory.file("run.safetensors");
    let layout = |prefix: &str| {
        let group = Group::new("all", AdamW::default());
        Layout::new([(0..1_200).fold(group, |group, i| group.tensor(format!("{prefix}{i}"), [1]))]).unwrap()
    };
    on_cpu(layout("a")).save(&path, &Save::default()).unwrap();
    let found = mismatches(on_cpu(layout("b")).load(&path, &Load::default()));
    assert_eq!(found.len(), 1_001);
    let missing = |m: &&Mismatch| matches!(m, Mismatch::MissingTensor { .. });
    assert_eq!(found.iter().filter(missing).count(), 1_000);
    // Of 1 200 that the layout lacks no more than 1 000 are looked at.
    assert_eq!(found[1_000], Mismatch::More { count: 200 + 1_000 });
}

#[test]
fn every_mismatch_is_listed_and_nothing_changes() {
    let directory = Directory::new("mismatches");
    let (path, _) = saved(&directory);
    let rule = AdamW { beta1: 0.8, amsgrad: true, ..AdamW::default() };
    let mut run = on_cpu(changed(rule, 0.25, [5, 3], &[("v", 7), ("b", 2), ("new", 4)]));
    run.steps(1);
    let before = bits(&run);
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
    assert_eq!(bits(&run), before);
}

#[test]
fn another_rule_is_refused() {
    let directory = Directory::new("rule");
    let (path, _) = saved(&directory);
    let decay = Group::new("decay", Adam::default()).tensor("w", [3, 5]).tensor("v", [7]);
    let plain = Group::new("plain", Adam::default()).tensor("b", [2]);
    let mut run = on_cpu(Layout::new([decay, plain]).unwrap());
    let found = mismatches(run.load(&path, &Load::default()));
    assert_eq!(found, [Mismatch::Rule { found: "adamw".into(), expected: "adam" }]);
}

#[test]
fn missing_and_extra_tensors_are_a_matter_of_policy() {
    let directory = Directory::new("policies");
    let (path, saved) = saved(&directory);
    let layout = || changed(AdamW::default(), 0.5, [3, 5], &[("b", 2), ("new", 4)]);
    let mut run = on_cpu(layout());
    let missing = Mismatch::MissingTensor { tensor: "new".into() };
    let extra = Mismatch::ExtraTensor { tensor: "v".into() };
    let load = |missing, extra| Load { missing, extra, ..Load::default() };
    assert_eq!(
        mismatches(run.load(&path, &load(Missing::Error, Extra::Error))),
        [missing.clone(), extra.clone()]
    );
    let late = Mismatch::Age { tensor: "new".into(), group: "plain".into(), steps: 3 };
    assert_eq!(
        mismatches(run.load(&path, &load(Missing::Zero, Extra::Error))),
        [late.clone(), extra.clone()]
    );
    assert_eq!(
        mismatches(run.load(&path, &load(Missing::Error, Extra::Ignore))),
        std::slice::from_ref(&missing)
    );
    assert_eq!(mismatches(run.load(&path, &load(Missing::Zero, Extra::Ignore))), [late]);
    // In a group of its own.
    let decay = Group::new("decay", AdamW::default()).tensor("w", [3, 5]);
    let plain = AdamW { weight_decay: 0.0, ..AdamW::default() };
    let own = Group::new("own", plain).tensor("new", [4]);
    let plain = Group::new("plain", plain).lr_factor(0.5).tensor("b", [2]);
    let mut run = on_cpu(Layout::packed([decay, plain, own]).unwrap());
    assert_eq!(mismatches(run.load(&path, &load(Missing::Zero, Extra::Error))), [extra]);
    assert_eq!(mismatches(run.load(&path, &load(Missing::Error, Extra::Ignore))), [missing]);
    run.steps(5);
    let before = run.params();
    run.load(&path, &load(Missing::Zero, Extra::Ignore)).unwrap();
    assert_eq!(run.optimizer.steps(), 3);
    let state = |run: &CpuRun, tensor: &str| run.state("exp_avg", tensor);
    assert_eq!(state(&run, "new"), [0.0; 4]);
    for tensor in ["w", "b"] {
        assert_eq!(state(&run, tensor), state(&saved, tensor));
    }
    let new = run.optimizer.layout().tensor("new").unwrap().range();
    assert_eq!(run.params()[new.clone()], before[new], "parameters that the file lacks keep their values");
    // Parameters are not there to be loaded, or were not saved.
    let mut optimizer = cpu::Optimizer::new(crate::common::layout()).unwrap();
    let mut engine = Cpu::new(&mut optimizer);
    let extra = [Mismatch::ExtraSlot { slot: "param".into(), tensors: 3 }];
    assert_eq!(mismatches(checkpoint::load(&mut engine, &path, &Load::default())), extra);
    let ignoring = load(Missing::Error, Extra::Ignore);
    checkpoint::load(&mut engine, &path, &ignoring).unwrap();
    let bare = directory.file("bare.safetensors");
    checkpoint::save(&mut engine, &bare, &Save::default()).unwrap();
    let mut run = on_cpu(crate::common::layout());
    let found = mismatches(run.load(&bare, &Load::default()));
    let missing = |tensor: &str| Mismatch::MissingSlot { slot: "param".into(), tensor: tensor.into() };
    assert_eq!(found, ["w", "v", "b"].map(missing));
    run.load(&bare, &load(Missing::Zero, Extra::Error)).unwrap();
    assert_eq!(run.params(), [0.5; 24]);
}

#[test]
fn hyperparameters_of_the_optimizer_hold_on_request() {
    let directory = Directory::new("hyperparameters");
    let (path, saved) = saved(&directory);
    let group = |name: &str| Group::new(name, AdamW { beta2: 0.5, ..AdamW::default() });
    let layout = Layout::packed([
        group("decay").tensor("w", [3, 5]).tensor("v", [7]),
        group("plain").tensor("b", [2]),
    ]);
    let mut run = on_cpu(layout.unwrap());
    assert_eq!(mismatches(run.load(&path, &Load::default())).len(), 4);
    run.load(&path, &Load { hyperparameters: Differing::Ignore, ..Load::default() }).unwrap();
    assert_eq!(bits(&run), bits(&saved));
    let rule = run.optimizer.layout().groups()[0].rule();
    assert_eq!(rule.downcast_ref::<AdamW>().unwrap().beta2, 0.5);
}

/// `interop/torch_state.py` makes a checkpoint from a model's file.
#[test]
fn parameters_without_state_are_no_checkpoint() {
    let directory = Directory::new("bare");
    let path = directory.file("model.safetensors");
    let data = [0u8; 8];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &data).unwrap();
    safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
    let error =
        on_cpu(layout()).load(&path, &Load { formats: Formats::Convert, ..Load::default() }).unwrap_err();
    assert!(matches!(error, Error::NotACheckpoint { key: "wgpu_optim", .. }), "{error}");
}

/// A checkpoint of `Sgd` after a step, with these tensors.
fn crafted(directory: &Directory, tensors: &[(&str, safetensors::Dtype, Vec<u8>)]) -> std::path::PathBuf {
    let path = directory.file("crafted.safetensors");
    let mut optimizer = cpu::Optimizer::new(sgd()).unwrap();
    optimizer.step(cpu::Tensors::flat(&mut [0.0; 4], &[1.0; 4]), 0.1).unwrap();
    checkpoint::save(&mut Cpu::new(&mut optimizer), &path, &Save::default()).unwrap();
    let mut metadata = Reader::open(&path).unwrap().metadata().clone();
    // The digest is that of other tensors.
    let mut record: serde_json::Value = serde_json::from_str(&metadata["wgpu_optim"]).unwrap();
    record.as_object_mut().unwrap().remove("crc32c").unwrap();
    metadata.insert("wgpu_optim".into(), record.to_string());
    let views = tensors.iter().map(|(name, dtype, bytes)| {
        (*name, safetensors::tensor::TensorView::new(*dtype, vec![4], bytes).unwrap())
    });
    safetensors::serialize_to_file(views, Some(metadata.into_iter().collect()), &path).unwrap();
    path
}

fn sgd() -> Layout {
    Layout::new([Group::new("all", Sgd::default()).tensor("w", [4])]).unwrap()
}

fn converted(path: &std::path::Path) -> [u32; 4] {
    let mut optimizer = cpu::Optimizer::new(sgd()).unwrap();
    let mut params = [0.0f32; 4];
    let load = Load { formats: Formats::Convert, ..Load::default() };
    let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
    checkpoint::load(&mut engine, path, &load).unwrap();
    params.map(f32::to_bits)
}

#[test]
fn a_zero_has_no_remainder() {
    let directory = Directory::new("zeros");
    let bytes = |codes: [u16; 4]| codes.iter().flat_map(|code| code.to_le_bytes()).collect::<Vec<_>>();
    let path = crafted(
        &directory,
        &[
            ("param/w", safetensors::Dtype::BF16, bytes([0, 0x8000, 0x3f80, 0x3f80])),
            ("remainder/w", safetensors::Dtype::U16, bytes([0x8000, 0xffff, 0x8000, 1])),
        ],
    );
    assert_eq!(converted(&path), [0, 0x8000_0000, 0x3f7f_8000, 0x3f80_0001]);
}

#[test]
fn a_master_that_is_not_there_yet_is_the_parameter() {
    let directory = Directory::new("no-masters");
    let params: Vec<u8> = [0x3f80u16; 4].iter().flat_map(|code| code.to_le_bytes()).collect();
    let masters = [0, 0x3f80_0001u32, 0x8000_0000, 0].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let path = crafted(
        &directory,
        &[("param/w", safetensors::Dtype::BF16, params), ("master/w", safetensors::Dtype::F32, masters)],
    );
    assert_eq!(converted(&path), [0x3f80_0000, 0x3f80_0001, 0x8000_0000, 0x3f80_0000]);
}

/// 0.1 is below the f32 that is nearest to it, which is what the scale is held to.
#[test]
fn a_loss_scale_is_compared_in_f32() {
    let directory = Directory::new("loss-scale");
    let path = directory.file("run.safetensors");
    let scale = LossScale { initial: 0.1, min: 0.1, max: 1.0, ..LossScale::default() };
    let options = |loss_scale| Options { loss_scale: Some(loss_scale), ..Options::default() };
    let optimizer = |scale| cpu::Optimizer::with_options(sgd(), options(scale)).unwrap();
    let mut saved = optimizer(LossScale { max: 0.1, ..scale });
    saved.step(cpu::Tensors::flat(&mut [0.0; 4], &[1.0; 4]), 0.1).unwrap();
    checkpoint::save(&mut Cpu::new(&mut saved), &path, &Save::default()).unwrap();
    let load = Load { options: Differing::Ignore, ..Load::default() };
    for scale in [LossScale { max: 0.1, ..scale }, scale] {
        checkpoint::load(&mut Cpu::new(&mut optimizer(scale)), &path, &load).unwrap();
    }
    let hasty = LossScale { growth_interval: 1, ..scale };
    let found = mismatches(checkpoint::load(&mut Cpu::new(&mut optimizer(hasty)), &path, &load));
    assert_eq!(found, [Mismatch::GoodSteps { found: 1, bound: 1 }]);
}

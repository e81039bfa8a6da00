//! Runs with several rules: each group is updated as in a run of its own, and clip and skip are over all of
//! them.

mod common;

use common::Parts;
use optim::replay::{On, replay, run};

const ADAGRAD: &str = r#"{"rule": "adagrad", "lr_decay": 0.1}"#;
const RULES: [&str; 5] = [
    r#"{"rule": "sgd", "momentum": 0.9, "weight_decay": 0.01}"#,
    r#"{"rule": "adamw", "beta2": 0.9, "weight_decay": 0.1}"#,
    r#"{"rule": "lamb", "weight_decay": 0.1}"#,
    r#"{"rule": "nadam", "momentum_decay": 0.1}"#,
    ADAGRAD,
];

/// `a` has rule `one`, and `b` has rule `other` at half the learning rate. The file's own rule is used by
/// neither.
fn mixed(one: &str, other: &str) -> Parts {
    Parts::new(r#"{"rule": "adadelta"}"#).meta(
        "groups",
        &format!(
            r#"[{{"name": "x", "params": ["a"], "optimizer": {one}}},
                {{"name": "y", "params": ["b"], "optimizer": {other}, "lr_factor": 0.5}}]"#
        ),
    )
}

/// Both tensors have one rule, `b` at half the learning rate.
fn single(rule: &str) -> Parts {
    let groups = r#"[{"name": "x", "params": ["a"]}, {"name": "y", "params": ["b"], "lr_factor": 0.5}]"#;
    Parts::new(rule).meta("groups", groups)
}

/// The parameters of `a` and `b` after the run, in the reference.
fn parameters(parts: &Parts) -> [Vec<f64>; 2] {
    let ours = run(&parts.parse().expect("a good file"), On::Reference, &mut || ()).expect("a good run");
    ours.try_into().expect("two tensors")
}

fn all_pass(files: &[Parts], on: On<'_>) {
    for file in files {
        let verdict = replay(&file.parse().expect("a good file"), on, &mut || ()).expect("a good run");
        assert!(verdict.pass, "{:?}: {:?}", file.metadata, verdict.failures());
    }
}

/// Checks with both f32 engines; a device is opened once.
fn each_engine(mut check: impl FnMut(On<'_>)) {
    check(On::Cpu);
    if let Some(gpu) = harness::test_gpu() {
        check(On::Gpu(&gpu));
    }
}

#[test]
fn each_group_is_as_in_a_run_of_its_own() {
    let mut files = Vec::new();
    for (i, one) in RULES.iter().enumerate() {
        for other in &RULES[..i] {
            for (one, other) in [(one, other), (other, one)] {
                let mixed = mixed(one, other);
                let [a, b] = parameters(&mixed);
                assert_eq!(a, parameters(&single(one))[0], "{one} beside {other}");
                assert_eq!(b, parameters(&single(other))[1], "{other} beside {one}");
                files.push(mixed.solved());
            }
        }
    }
    each_engine(|on| all_pass(&files, on));
}

#[test]
fn a_momentum_goes_to_the_groups_that_have_one() {
    let momentum = |parts: Parts| parts.with_f64("momentum", &[4], &[0.5, 0.0, 0.95, 0.8]);
    let mut files = Vec::new();
    for rule in &RULES[..4] {
        for (one, other) in [(*rule, ADAGRAD), (ADAGRAD, rule)] {
            let mixed = momentum(mixed(one, other));
            let [a, b] = parameters(&mixed);
            let alone = |rule| {
                let file = single(rule);
                parameters(&if rule == ADAGRAD { file } else { momentum(file) })
            };
            assert_eq!((&a, &b), (&alone(one)[0], &alone(other)[1]), "{one} beside {other}");
            files.push(mixed.solved());
        }
    }
    each_engine(|on| all_pass(&files, on));
}

/// NAdam carries a product of the momenta of the steps taken, so a device cannot guess it.
#[test]
fn a_momentum_of_a_skipped_step_is_not_carried() {
    let mut parts = mixed(RULES[3], RULES[0]).meta("skip_nonfinite", "true");
    parts = parts.with_f64("momentum", &[4], &[0.5, 0.6, 0.7, 0.8]);
    // A gradient of the other group.
    let mut grads = [0.5f32; 5];
    grads[2] = f32::INFINITY;
    parts.f32("grad/2/b", &[5], &grads);
    // The run of the three other steps.
    let mut three = parts.clone().with_f64("lr", &[3], &[0.1, 0.02, 0.01]);
    three = three.with_f64("momentum", &[3], &[0.5, 0.7, 0.8]);
    for name in ["a", "b"] {
        for (t, from) in [(2, 3), (3, 4)] {
            let tensor = parts.tensors[&format!("grad/{from}/{name}")].clone();
            three.tensors.insert(format!("grad/{t}/{name}"), tensor);
        }
        three = three.without(&format!("grad/4/{name}"));
    }
    assert_eq!(parameters(&parts), parameters(&three));
    let files = [parts.solved()];
    each_engine(|on| all_pass(&files, on));
}

#[test]
fn one_clip_is_over_all_rules() {
    let clipped = |parts: Parts, clip: &str| parts.meta("clip", clip);
    let mut files = Vec::new();
    let (sgd, adamw) = (RULES[0], RULES[1]);
    for clip in [r#"{"global_norm": 0.5}"#, r#"{"value": 0.25}"#] {
        let mixed = clipped(mixed(sgd, adamw), clip);
        // The gradients are those of the runs with one rule, and so is their norm.
        let [a, b] = parameters(&mixed);
        assert_eq!(a, parameters(&clipped(single(sgd), clip))[0]);
        assert_eq!(b, parameters(&clipped(single(adamw), clip))[1]);
        files.push(mixed.solved());
    }
    each_engine(|on| all_pass(&files, on));
}

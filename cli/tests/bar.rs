//! The bar itself: good runs pass, and the smallest error that the bar promises to detect fails.

mod common;

use common::{Parts, STEPS};
use optim::bar::Verdict;
use optim::replay::{On, replay};
use wgpu_optim::float::ulp;

const RULES: [&str; 3] = [
    r#"{"rule": "sgd", "momentum": 0.9, "weight_decay": 0.01}"#,
    r#"{"rule": "adam", "beta2": 0.9}"#,
    r#"{"rule": "adamw", "beta2": 0.9, "weight_decay": 0.1}"#,
];

fn judged(parts: &Parts) -> Verdict {
    replay(&parts.parse().expect("a good file"), On::Cpu, &mut || ()).expect("a good run")
}

fn values(parts: &Parts, name: &str) -> Vec<f64> {
    let (_, _, bytes) = &parts.tensors[name];
    bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn size(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max: f64, x| max.max(x.abs()))
}

/// The file with element 1 of `name` moved by `ulps` of the tensor.
fn moved(parts: &Parts, name: &str, ulps: f64) -> Parts {
    let mut values = values(parts, name);
    values[1] += ulps * ulp(size(&values));
    let shape = parts.tensors[name].1.clone();
    parts.clone().with_f64(name, &shape, &values)
}

#[test]
fn a_moved_value_fails() {
    for rule in RULES {
        let good = Parts::new(rule).solved();
        assert!(judged(&good).pass, "{rule}");
        for name in ["a", "b"] {
            let name = format!("expect/param/{name}");
            // The peer moves along: it agrees with the new truth, and only ours is wrong.
            let bad = moved(&good, &name, 40.0);
            let peer = name.replace("expect", "peer");
            let shape = bad.tensors[&name].1.clone();
            let bad = bad.clone().with_f64(&peer, &shape, &values(&bad, &name));
            let verdict = judged(&bad);
            assert!(!verdict.pass, "{rule}: {name}");
            let failed: Vec<_> = verdict.tensors.iter().filter(|t| !t.pass).map(|t| &t.name).collect();
            assert_eq!(failed, [name.strip_prefix("expect/").expect("a prefix")]);
            assert_eq!(
                verdict.failures().len(),
                2,
                "the tensor and the pooled error: {:?}",
                verdict.failures()
            );
        }
    }
}

#[test]
fn without_a_peer_the_allowance_is_four_root_t() {
    for rule in RULES {
        let mut good = Parts::new(rule).solved();
        good.tensors.retain(|name, _| !name.starts_with("peer/"));
        let verdict = judged(&good);
        assert!(verdict.pass && verdict.peer_rms_ulps.is_none());
        assert!(verdict.tensors.iter().all(|t| t.peer_max_abs_err.is_none()));
        // 4 · √4 = 8, within the run's own error of less than 2.
        assert_eq!(STEPS, 4);
        assert!(judged(&moved(&good, "expect/param/a", 6.0)).pass, "{rule}");
        assert!(!judged(&moved(&good, "expect/param/a", 10.0)).pass, "{rule}");
    }
}

#[test]
fn state_is_judged_like_parameters() {
    let sgd = Parts::new(RULES[0]).with_f64("expect/momentum_buffer/b", &[5], &[0.0; 5]).solved();
    assert!(judged(&sgd).pass);
    let mut bad = moved(&sgd, "expect/momentum_buffer/b", 20.0);
    bad.tensors.remove("peer/momentum_buffer/b");
    let verdict = judged(&bad);
    let failed: Vec<_> = verdict.tensors.iter().filter(|t| !t.pass).map(|t| t.name.as_str()).collect();
    assert_eq!(failed, ["momentum_buffer/b"]);
}

#[test]
fn what_is_not_finite_fails() {
    let mut parts = Parts::new(RULES[0]).solved();
    let mut grads = [0.5f32; 5];
    grads[3] = f32::NAN;
    parts.f32("grad/2/b", &[5], &grads);
    let verdict = judged(&parts);
    assert!(!verdict.pass && verdict.rms_ulps.is_infinite());
    // An infinite peer excuses nothing.
    let parts = parts.with_f32("peer/param/b", &[5], &[f32::INFINITY; 5]);
    assert!(!judged(&parts).pass);
    // Expected infinities cannot be met either.
    let parts = Parts::new(RULES[0]).solved().with_f64("expect/param/b", &[5], &[f64::INFINITY; 5]);
    assert!(!judged(&parts).pass);
}

#[test]
fn a_skipped_step_spends_its_rate_and_nothing_else() {
    let good = Parts::new(RULES[2]);
    // Step 2 of four is skipped: the run is that of the other three.
    let mut three = good.clone().without("lr").with_f64("lr", &[3], &[0.1, 0.02, 0.01]);
    for name in ["a", "b"] {
        for (t, from) in [(2, 3), (3, 4)] {
            let tensor = good.tensors[&format!("grad/{from}/{name}")].clone();
            three.tensors.insert(format!("grad/{t}/{name}"), tensor);
        }
        three = three.without(&format!("grad/4/{name}"));
    }
    let three = three.solved();
    let mut grads = [0.5f32; 5];
    grads[0] = f32::NEG_INFINITY;
    let mut four = good.meta("skip_nonfinite", "true").with_f32("grad/2/b", &[5], &grads);
    for name in ["expect/param/a", "expect/param/b"] {
        four.tensors.insert(name.into(), three.tensors[name].clone());
    }
    let four = four.clone();
    let verdict = judged(&four);
    assert!(verdict.pass, "{:?}", verdict.failures());
    assert!(!judged(&four.meta("skip_nonfinite", "false")).pass);
}

#[test]
fn lr_factor_may_stand_in_either_place() {
    let groups =
        |a: &str| format!(r#"[{{"name": "x", "params": ["b"], {a}}}, {{"name": "y", "params": ["a"]}}]"#);
    let outside = Parts::new(RULES[0]).meta("groups", &groups(r#""lr_factor": 3"#)).solved();
    let inside = outside.clone().meta("groups", &groups(r#""overrides": {"lr_factor": 3}"#));
    assert!(judged(&outside).pass);
    assert_eq!(judged(&outside), judged(&inside));
    let none = outside.clone().meta("groups", &groups(r#""overrides": {}"#));
    assert!(!judged(&none).pass);
}

#[test]
fn a_configured_momentum_of_zero_does_not_stop_an_override() {
    let momentum = [0.0, 0.5, 0.9, 0.0];
    let with = |json: &str| Parts::new(json).with_f64("momentum", &[4], &momentum).solved();
    let given = with(r#"{"rule": "sgd", "momentum": 0.7}"#);
    let zero = given.clone().meta("optimizer", r#"{"rule": "sgd"}"#);
    assert_eq!(judged(&given), judged(&zero));
    assert!(judged(&zero).pass);
    let nesterov = with(r#"{"rule": "sgd", "nesterov": true}"#);
    assert!(judged(&nesterov).pass);
}

//! `optim race`.

use crate::{curves, errors, has, lines, optim};
use serde_json::Value;
use std::path::Path;
use wgpu_optim::AnyRule;

#[test]
fn a_race_ends_where_the_reference_does() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("race.svg");
    let plot = file.display().to_string();
    let output = optim(&["race", "--device", "cpu", "--json", "--plot", &plot]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let all = lines(&output);
    let rules: Vec<_> = all.iter().map(|line| line["rule"].as_str().expect("a name")).collect();
    assert_eq!(rules, AnyRule::NAMES);
    for line in &all {
        has(line, &["lr", "steps", "end", "value", "reference", "distance", "pass"]);
        let judged = matches!(line["rule"].as_str(), Some("sgd" | "adam"));
        assert_eq!(line["pass"], if judged { Value::Bool(true) } else { Value::Null });
    }
    // Known from the worked example: plain descent is still in the valley, Adam nearer to (1, 1).
    let x = |rule: &str| all[rules.iter().position(|r| *r == rule).expect("a rule")]["end"][0].as_f64();
    assert!(
        (x("sgd").expect("x") - 0.939_826).abs() < 1e-5 && (x("adam").expect("x") - 0.985_037).abs() < 1e-5
    );
    assert_eq!(curves(&file), all.len());
    let table = String::from_utf8(optim(&["race", "--device", "cpu", "--steps", "9"]).stdout).expect("UTF-8");
    assert_eq!(table.lines().count(), 2 + all.len());
}

#[test]
fn a_race_with_a_bad_learning_rate() {
    let output = optim(&["race", "--device", "cpu", "--rule", "sgd", "--lr=-1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("learning rate = -1"), "{}", errors(&output));
    // Both diverge, which is no disagreement, and no pass.
    let output = optim(&["race", "--device", "cpu", "--rule", "sgd", "--lr", "10", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let line = &lines(&output)[0];
    assert_eq!(line["end"], serde_json::json!([null, null]));
    assert_eq!((&line["diverged"], &line["pass"]), (&Value::Bool(true), &Value::Null));
}

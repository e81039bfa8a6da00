//! `optim schedules`.

use crate::{curves, errors, lines, optim};
use serde_json::Value;
use std::path::Path;

#[test]
fn schedules_equal_those_of_the_library() {
    let specs = [
        r#"{"warmup": {"steps": 7, "schedule": {"cosine": {"start": 3e-4, "end": 3e-5, "steps": 60}}}}"#,
        r#"{"one_cycle": {"max_lr": 0.1, "total_steps": 70, "three_phase": true}}"#,
    ];
    for (spec, panels) in specs.into_iter().zip([1, 2]) {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schedule{panels}.svg"));
        let plot = file.display().to_string();
        let arguments = ["schedules", "--spec", spec, "--steps", "70", "--plot", &plot];
        let output = optim(&[&arguments[..], &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let (all, schedule) = (lines(&output), serde_json::from_str::<wgpu_optim::Schedule>(spec).unwrap());
        assert_eq!(all.len(), 70);
        for (t, line) in (0..).zip(&all) {
            let step = schedule.at(t).unwrap();
            assert_eq!((&line["step"], line["lr"].as_f64()), (&t.into(), Some(step.lr)));
            assert_eq!(line.get("momentum").and_then(Value::as_f64), step.momentum);
        }
        assert_eq!(curves(&file), panels);
        // The table has as many columns.
        let table = String::from_utf8(optim(&arguments).stdout).unwrap();
        assert_eq!(table.lines().count(), 71);
        assert!(table.lines().all(|line| line.split_whitespace().count() == 1 + panels), "{table}");
    }
}

#[test]
fn every_kind_of_schedule_has_an_example() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schedules.svg");
    let output = optim(&["schedules", "--json", "--plot", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let all = lines(&output);
    // Two of them drive the momentum as well.
    assert_eq!(curves(&file), all.len() + 2);
    let table = String::from_utf8(optim(&["schedules"]).stdout).unwrap();
    // serde says which kinds there are.
    let kinds = serde_json::from_str::<wgpu_optim::Schedule>(r#"{"?": 0}"#).unwrap_err().to_string();
    let kinds: Vec<_> = kinds.split('`').skip(3).step_by(2).collect();
    let shown: Vec<_> = all.iter().map(|line| line["schedule"].as_str().expect("a name")).collect();
    assert_eq!(shown, kinds);
    for line in &all {
        let spec: wgpu_optim::Schedule = serde_json::from_value(line["spec"].clone()).expect("a schedule");
        let spec = serde_json::to_string(&spec).expect("JSON");
        assert!(table.contains(&spec), "{table}");
        let again = optim(&["schedules", "--spec", &spec, "--json"]);
        assert_eq!(lines(&again).len(), 100, "{}", errors(&again));
    }
}

#[test]
fn bad_schedules_are_named() {
    for (spec, words) in [
        (r#"{"sine": 1}"#, "--spec: unknown variant `sine`"),
        (r#"{"linear": {"start": 1, "end": 0, "steps": -9}}"#, "--spec: invalid value: integer `-9`"),
        // Checked also where the steps do not reach.
        (
            r#"{"sequence": {"schedules": [{"constant": 1}, {"constant": -1}], "milestones": [500]}}"#,
            "constant: value = -1, must be finite and at least 0",
        ),
        (r#"{"one_cycle": {"max_lr": 1, "total_steps": 50}}"#, "one_cycle: step 51, must be at most 50"),
    ] {
        let said = errors(&optim(&["schedules", "--spec", spec]));
        assert!(said.starts_with("error: ") && said.contains(words), "{said}");
    }
}

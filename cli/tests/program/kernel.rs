//! `optim kernel`.

use crate::{errors, has, lines, optim};
use std::collections::HashSet;
use std::path::Path;
use wgpu_optim::AnyRule;

/// The kernels that docs/ shows, with the arguments that print them.
const SHOWN: [(&str, &[&str]); 2] = [
    ("adamw.wgsl", &["kernel", "--rule", "adamw"]),
    (
        "adamw-bf16-q8.wgsl",
        &[
            "kernel",
            "--rule",
            "adamw",
            "--params",
            "bf16",
            "--grads",
            "bf16",
            "--master",
            "remainder",
            "--states",
            "q8",
            "--elements",
            "1024",
            "--tensors",
            "2",
            "--clip-norm",
            "1",
            "--skip",
            "--zero",
        ],
    ),
];

#[test]
fn kernels_in_the_documentation_are_those_that_run() {
    for (file, arguments) in SHOWN {
        let output = optim(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kernels").join(file);
        let kept = std::fs::read(&path).unwrap_or_default();
        let command = format!("cargo run -- {} > docs/kernels/{file}", arguments.join(" "));
        assert!(kept == output.stdout, "docs/kernels/{file} differs: {command}");
    }
}

/// Every rule's step is described for both targets, and its parts are under the names of their files.
#[test]
fn every_rule_is_shown() {
    for rule in AnyRule::NAMES {
        for target in ["gpu", "software"] {
            let arguments = ["kernel", "--rule", rule, "--target", target];
            let text = String::from_utf8(optim(&arguments).stdout).expect("UTF-8");
            let names = text.lines().filter_map(|line| line.strip_prefix("// ==== ")?.strip_suffix(" ===="));
            let names: Vec<_> = names.collect();
            assert_eq!((names[1], names[names.len() - 1]), ("kernels/step.wgsl", "declarations"));
            assert!(names[0].starts_with("rules/"), "{}", names[0]);
            for name in &names[..names.len() - 1] {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shaders").join(name);
                assert!(path.is_file(), "{name}");
            }
        }
    }
}

/// The JSON has every dispatch of a step with everything that is bound, and the scalars of each step.
#[test]
fn json_describes_the_whole_step() {
    let arguments = [
        "kernel",
        "--json",
        "--rule",
        "lamb",
        "--elements",
        "5000",
        "--tensors",
        "3",
        "--clip-group-norm",
        "1",
        "--loss-scale",
        "--norms",
        "--ema",
        "0.99",
        "--steps",
        "3",
        "--lr",
        "0.01",
    ];
    let output = optim(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let [line] = &lines(&output)[..] else { panic!("one line") };
    has(line, &["rule", "target", "elements", "buffers", "dispatches", "table", "scalars"]);
    let dispatches = line["dispatches"].as_array().expect("an array");
    let stages: Vec<_> = dispatches.iter().map(|d| d["stage"].as_str().expect("a name")).collect();
    let expected = ["reduce", "fold-groups", "control", "layer-norms", "trust-ratio", "update", "fold-norms"];
    assert_eq!(stages, expected);
    let buffers = line["buffers"].as_array().expect("an array");
    let names: HashSet<_> = buffers.iter().map(|buffer| buffer["name"].as_str()).collect();
    assert_eq!(names.len(), buffers.len(), "names of buffers differ");
    for dispatch in dispatches {
        has(dispatch, &["stage", "rule", "entry_point", "workgroup_size", "workgroups", "bindings", "wgsl"]);
        let wgsl = dispatch["wgsl"].as_str().expect("text");
        let bindings = dispatch["bindings"].as_array().expect("an array");
        assert_eq!(bindings.len(), wgsl.matches("@binding(").count());
        for binding in bindings {
            let buffer = &buffers[binding["buffer"].as_u64().expect("an index") as usize];
            let [offset, size, bytes] = [&binding["offset"], &binding["size"], &buffer["bytes"]];
            let end = offset.as_u64().expect("bytes") + size.as_u64().expect("bytes");
            assert!(end <= bytes.as_u64().expect("bytes"), "{binding}");
            let variable = binding["variable"].as_str().expect("a name");
            assert!(wgsl.contains(&format!("> {variable}: ")), "{variable}");
        }
    }
    let scalars = &line["scalars"];
    let steps = scalars["steps"].as_array().expect("an array");
    assert_eq!(steps.len(), 3);
    let words = |field: &str| scalars[field].as_u64().expect("words");
    let candidate = words("header_words") + 2 * words("group_words");
    for (nth, step) in (1..).zip(steps) {
        // A step may have been skipped: there is a candidate for each count of skipped steps.
        let len = step.as_array().expect("words").len() as u64;
        assert_eq!((len - words("request_words")) % candidate, 0);
        assert!((len - words("request_words")) / candidate <= nth);
    }
    assert_ne!(steps[0], steps[1]);
}

/// A rule in its serde form has its own scalars; mistakes name the known words.
#[test]
fn rules_and_stages_are_checked() {
    let plain = optim(&["kernel", "--json", "--rule", "adamw"]);
    let other = optim(&["kernel", "--json", "--rule", r#"{"adamw": {"beta2": 0.5}}"#]);
    assert_eq!(other.status.code(), Some(0), "{}", errors(&other));
    let scalars = |output| lines(output)[0]["scalars"]["steps"].clone();
    assert_ne!(scalars(&plain), scalars(&other));
    for (arguments, expected) in [
        (&["--rule", "adamz"][..], "adamw"),
        (&["--rule", r#"{"adamw": {"beta9": 0.5}}"#], "beta2"),
        (&["--stage", "control"], "has no stage control; its stages are update"),
        (&["--clip-norm", "-1"], "-1"),
    ] {
        let output = optim(&[&["kernel"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&output).contains(expected), "{}", errors(&output));
    }
}

//! The built program: its output and exit status.

#[path = "../common/mod.rs"]
mod common;
mod inspect;
mod kernel;
mod race;
mod schedules;

use common::Parts;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use wgpu_optim::AnyRule;

fn optim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_optim")).args(arguments).output().expect("the program starts")
}

/// Every line of standard output, which must be a JSON object.
fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(value.is_object(), "{line}");
        value
    };
    text.lines().map(parse).collect()
}

#[track_caller]
fn has(line: &Value, fields: &[&str]) {
    for field in fields {
        assert!(line.get(field).is_some(), "{line} lacks {field}");
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    path.display().to_string()
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).expect("the target directory can be written");
    path
}

#[test]
fn replay_reports_every_field() {
    let file = golden("adamw-everything.safetensors");
    let output = optim(&["replay", "--device", "cpu", "--json", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let [line] = &lines(&output)[..] else { panic!("one line") };
    has(line, &["file", "rule", "device", "adapter", "pass", "rms_ulps", "peer_rms_ulps", "tensors"]);
    assert_eq!(line["file"], file);
    assert_eq!(line["rule"], "adamw");
    assert_eq!(line["device"], "cpu");
    assert_eq!(line["adapter"], Value::Null);
    assert_eq!(line["pass"], true);
    let tensors = line["tensors"].as_array().expect("an array");
    assert_eq!(tensors.len(), 15);
    for tensor in tensors {
        has(tensor, &["name", "max_abs_err", "peer_max_abs_err"]);
    }
}

#[test]
fn a_replay_names_all_rules() {
    let file = golden("mixed/adamw-sgd-lamb.safetensors");
    let output = optim(&["replay", "--device", "cpu", "--json", &file]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(lines(&output)[0]["rule"], "adamw + sgd + lamb");
    let table = String::from_utf8(optim(&["replay", "--device", "cpu", &file]).stdout).expect("UTF-8");
    assert!(table.contains("adamw + sgd + lamb") && table.contains("pass"), "{table}");
}

#[test]
fn exit_codes_tell_failure_from_bad_input() {
    let good = Parts::new(r#"{"rule": "sgd"}"#).solved();
    let wrong = good.clone().with_f64("expect/param/b", &[5], &[0.25; 5]).without("peer/param/b");
    let good = write("good.safetensors", &good.bytes()).display().to_string();
    let wrong = write("wrong.safetensors", &wrong.bytes()).display().to_string();
    let bad = write("bad.safetensors", b"oops").display().to_string();
    let replay = |files: &[&str]| optim(&[&["replay", "--device", "cpu", "--json"], files].concat());
    assert_eq!(replay(&[&good]).status.code(), Some(0));
    let failed = replay(&[&wrong, &good]);
    assert_eq!(failed.status.code(), Some(1));
    let passed: Vec<_> = lines(&failed).iter().map(|l| l["pass"].clone()).collect();
    assert_eq!(passed, [false, true]);
    assert!(errors(&failed).contains("param/b: error"), "{}", errors(&failed));
    // A bad file does not keep the others from being replayed.
    let output = replay(&[&bad, &good, "no/such/file"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(lines(&output).len(), 1);
    let said = errors(&output);
    assert!(said.contains("bad.safetensors: truncated") && said.contains("error: no/such/file"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn usage_errors_exit_with_2() {
    let cases: [&[&str]; 18] = [
        &["verify", "--elements", "0"],
        &["verify", "--steps", "0"],
        &["verify", "--rule", "nope"],
        &["bench", "--elements", "x"],
        &["bench", "--tensors", "0"],
        &["bench", "--device", "cpu", "--elements", "3", "--tensors", "4"],
        &["replay"],
        &["schedules", "--steps", "0"],
        &["schedules", "--steps", "102", "--plot", "x.svg"],
        &["schedules", "--plot", "no/such/directory/x.svg"],
        &["schedules", "--spec", "cosine"],
        &["schedules", "--spec", r#"{"sine": 1}"#],
        &["schedules", "--spec", r#"{"linear": {"start": 1, "end": 0, "steps": -9}}"#],
        &["schedules", "--spec", r#"{"linear": {"start": 1, "end": 0, "steps": 0}}"#],
        &["schedules", "--spec", r#"{"constant": -1}"#],
        &["schedules", "--spec", r#"{"one_cycle": {"max_lr": 1, "total_steps": 50}}"#],
        &["--device", "tpu"],
        &["nope"],
    ];
    for arguments in cases {
        let output = optim(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&output).contains("error: "), "{arguments:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn verify_reports_the_worst_element() {
    let arguments = ["verify", "--device", "cpu", "--json", "--rule", "adamw", "--elements", "1001"];
    let output = optim(&[&arguments[..], &["--steps", "2", "--seed", "7"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let all = lines(&output);
    assert!(!all.is_empty());
    for line in &all {
        has(line, &["rule", "device", "adapter", "elements", "steps", "budget_ulps", "worst_ulps"]);
        has(line, &["what", "index", "got", "want", "pass"]);
        assert_eq!((&line["elements"], &line["steps"]), (&1001.into(), &2.into()));
        assert!(line["worst_ulps"].as_f64() <= line["budget_ulps"].as_f64());
    }
    // A seed determines the numbers.
    let again = optim(&[&arguments[..], &["--steps", "2", "--seed", "7"]].concat());
    assert_eq!(output.stdout, again.stdout);
}

#[test]
fn bench_reports_bytes_and_times() {
    let arguments = ["bench", "--device", "cpu", "--json", "--elements", "1001", "--tensors", "10"];
    let output = optim(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let all = lines(&output);
    assert_eq!(all.len(), AnyRule::NAMES.len());
    for line in &all {
        has(line, &["rule", "format", "device", "adapter", "elements", "tensors", "bytes_per_step"]);
        for field in ["seconds", "gb_per_s", "copy_gb_per_s", "record_us"] {
            assert!(line[field].is_f64(), "{field} of {line}");
        }
        let values = match line["rule"].as_str() {
            Some("sgd" | "adagrad" | "rmsprop" | "lion") => 5,
            // Norms take another read of parameters and gradients, and LAMB one of the moments.
            Some("lars") => 5 + 2,
            Some("lamb") => 7 + 4,
            Some("adan") => 11,
            _ => 7,
        };
        assert_eq!(line["bytes_per_step"], 1001 * 4 * values);
    }
}

#[test]
fn without_arguments_it_does_everything() {
    let output = optim(&["--device", "cpu"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["replay digits-adam ", "verify adamw", "step adamw", "GB/s", "pass"] {
        assert!(text.contains(word), "{text}");
    }
    let output = optim(&["--device", "cpu", "--json"]);
    assert_eq!(lines(&output).len(), 5);
    assert!(output.stderr.is_empty(), "{}", errors(&output));
}

#[test]
fn without_an_adapter_auto_takes_the_cpu_and_says_so() {
    let with = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_optim"));
        command.args(arguments).env("WGPU_ADAPTER_NAME", "no such adapter").output().expect("it starts")
    };
    let file = golden("sgd-plain.safetensors");
    let auto = with(&["replay", "--json", &file]);
    assert_eq!(auto.status.code(), Some(0));
    assert_eq!(lines(&auto)[0]["device"], "cpu");
    // A Vulkan loader may print messages of its own.
    let said = errors(&auto);
    let ours = said.lines().filter(|line| line.contains(harness::SOFTWARE_VULKAN));
    assert_eq!(ours.count(), 1, "{said}");
    let gpu = with(&["replay", "--device", "gpu", &file]);
    assert_eq!(gpu.status.code(), Some(2));
    assert!(errors(&gpu).contains("no such adapter"));
    let devices = with(&["devices", "--json"]);
    let chosen: Vec<_> = lines(&devices).into_iter().filter(|row| row["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    assert_eq!(chosen[0]["device"], "cpu");
}

#[test]
fn the_gpu_does_all_of_it_too() {
    let Some(gpu) = harness::test_gpu() else { return };
    let output = optim(&["--device", "gpu", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    for line in lines(&output) {
        assert_eq!(line["device"], "gpu");
        assert_eq!(line["adapter"], gpu.info.name);
    }
    let devices = lines(&optim(&["devices", "--json"]));
    assert!(devices.iter().any(|row| row["chosen"] == true && row["adapter"] == gpu.info.name));
    if gpu.device.limits().max_buffer_size < 4 << 30 {
        for command in ["verify", "bench"] {
            let output = optim(&[command, "--device", "gpu", "--elements", "1073741824"]);
            assert_eq!(output.status.code(), Some(2));
            assert!(errors(&output).contains("max_buffer_size"), "{}", errors(&output));
        }
    }
    let output = optim(&["bench", "--device", "gpu", "--json", "--elements", "1000", "--tensors", "7"]);
    for line in lines(&output) {
        assert!(line["record_us"].as_f64() > Some(0.0), "{line}");
    }
}

/// The curves of a picture, which has to be well-formed.
fn curves(file: &Path) -> usize {
    let picture = std::fs::read_to_string(file).expect("it was written");
    let mut open = Vec::new();
    for tag in picture.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("tags are closed");
        let name = tag.split_whitespace().next().expect("tags have names");
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') || name.starts_with(['?', '!']) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty() && picture.contains("<svg "), "{open:?}");
    picture.split('<').filter(|tag| tag.starts_with("polyline") && tag.contains("#0000FF")).count()
}

/// Formats are accepted only where they fit.
#[test]
fn formats() {
    let formats = ["--params", "bf16", "--grads", "f16", "--states", "bf16"];
    let output = optim(
        &[&["verify", "--device", "cpu", "--elements", "5001", "--rule", "lamb"], &formats[..]].concat(),
    );
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let output = optim(&["verify", "--states", "f16"]);
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
    let output = optim(&["verify", "--params", "f16", "--master", "remainder"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("bf16 for a remainder"), "{}", errors(&output));
    if harness::test_gpu().is_none() {
        return;
    }
    let storage =
        ["--params", "bf16", "--grads", "f16", "--states", "bf16", "--master", "none", "--stochastic"];
    let arguments =
        ["verify", "--device", "gpu", "--json", "--rule", "adamw", "--elements", "5001", "--seed", "3"];
    let output = optim(&[&arguments[..], &storage].concat());
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(lines(&output).iter().all(|line| line["pass"] == true));
    let arguments = ["bench", "--device", "gpu", "--json", "--rule", "adamw", "--elements", "1001"];
    let output = optim(&[&arguments[..], &storage].concat());
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let line = &lines(&output)[0];
    assert_eq!((&line["format"], &line["bytes_per_step"]), (&"bf16, f16, bf16".into(), &(1001 * 14).into()));
    for device in ["gpu", "cpu"] {
        let arguments = ["verify", "--device", device, "--json", "--rule", "adamw", "--elements", "5001"];
        let output = optim(&[&arguments[..], &["--states", "q8", "--stochastic"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert!(lines(&output).iter().all(|line| line["pass"] == true), "{device}");
    }
    let arguments = ["bench", "--device", "gpu", "--json", "--rule", "adamw", "--elements", "1024"];
    let output = optim(&[&arguments[..], &["--states", "q8"]].concat());
    let line = &lines(&output)[0];
    assert_eq!((&line["format"], &line["bytes_per_step"]), (&"f32, f32, q8".into(), &(512 * 33).into()));
}

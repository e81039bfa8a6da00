//! `optim inspect`.

use crate::{errors, has, lines, optim, write};
use serde_json::Value;
use std::path::Path;
use wgpu_optim::checkpoint::{self, Cpu, Save};
use wgpu_optim::{AdamW, Group, Layout, Sgd, cpu};

#[test]
fn inspect_tells_what_a_checkpoint_holds() {
    let fixture = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoint").join(name).display().to_string()
    };
    let output = optim(&["inspect", "--json", &fixture("v1-gpu.safetensors")]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let [line] = &lines(&output)[..] else { panic!("one line") };
    has(line, &["file", "bytes", "run", "metadata", "slots", "tensors"]);
    has(&line["run"], &["writer", "rule", "steps", "taken", "loss_scale", "options", "groups"]);
    assert_eq!(
        (&line["run"]["rule"], &line["run"]["steps"], &line["run"]["taken"]),
        (&"adamw".into(), &4.into(), &3.into())
    );
    assert_eq!(line["run"]["options"]["rounding"]["stochastic"]["seed"], u64::MAX);
    let slots = line["slots"].as_array().expect("an array");
    let of = |name: &str| slots.iter().find(|slot| slot["slot"] == name).expect("a slot");
    assert_eq!(of("exp_avg")["formats"], serde_json::json!(["f32", "q8"]));
    assert_eq!(
        (&of("exp_avg")["elements"], &of("exp_avg")["bytes"]),
        (&82.into(), &(5 * 4 + 77 + 3 * 4).into())
    );
    assert_eq!(of("remainder")["rms"], Value::Null, "halves are no numbers");
    for slot in ["exp_avg", "exp_avg_sq", "ema", "param"] {
        let [min, max, rms] = ["min", "max", "rms"].map(|field| of(slot)[field].as_f64().expect("a number"));
        assert!(min < max && 0.0 < rms && rms <= max.abs().max(min.abs()), "{slot}");
        assert_eq!(of(slot)["nonfinite"], 0);
    }
    let output = optim(&["inspect", &fixture("v1-gpu.safetensors")]);
    let text = String::from_utf8_lossy(&output.stdout);
    let columns: Vec<&str> =
        text.lines().find(|line| line.contains("shape")).expect("tensors").split("  ").collect();
    let columns: Vec<_> = columns.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    assert_eq!(columns, ["tensor", "slot", "format", "shape", "bytes", "not finite", "min", "max", "rms"]);
    for part in ["loss scale 32768, 1 good steps", "f32 q8", "u16", "\n874 bytes\n"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let output = optim(&["inspect", &fixture("v1.safetensors")]);
    let text = String::from_utf8_lossy(&output.stdout);
    for part in [
        "adamw, 5 steps, 5 of them taken",
        "group \"plain\": 1 tensors",
        "lr_factor {\"constant\":0.5}",
        "metadata \"epoch\": \"3\"",
        "[3, 5]",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    // Parameters alone, with what is not finite.
    let data: Vec<u8> =
        [1.0f32, -3.0, f32::NAN, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], &data).expect("a tensor");
    let path = write("model.safetensors", &safetensors::serialize([("a/b", view)], None).expect("a file"));
    let output = optim(&["inspect", "--json", path.to_str().expect("UTF-8")]);
    let [line] = &lines(&output)[..] else { panic!("one line") };
    assert_eq!(line["run"], Value::Null);
    let slot = &line["slots"][0];
    assert_eq!(
        (&slot["nonfinite"], &slot["min"], &slot["max"], &slot["rms"]),
        (&2.into(), &(-3.0).into(), &1.0.into(), &5f64.sqrt().into())
    );
    // A file of another kind.
    let path = write("none.safetensors", b"no file of this form");
    let output = optim(&["inspect", path.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors(&output).contains("headers of"), "{}", errors(&output));
}

#[test]
fn inspect_tells_the_rule_of_each_group() {
    let sgd = Sgd { momentum: 0.9, ..Sgd::default() };
    let layout = Layout::new([
        Group::new("hidden", AdamW::default()).tensor("w", [2, 3]),
        Group::new("rest", sgd).tensor("b", [5]),
        Group::new("frozen", sgd).tensor("c", [2]).frozen(true),
    ]);
    let mut optimizer = cpu::Optimizer::new(layout.expect("a layout")).expect("an optimizer");
    let len = optimizer.layout().len() as usize;
    let (mut params, grads) = (vec![1.0; len], vec![0.5; len]);
    optimizer.step(cpu::Tensors::flat(&mut params, &grads), 0.1).expect("a step");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mixed-checkpoint.safetensors");
    let mut engine = Cpu::new(&mut optimizer).parameters(&mut params);
    checkpoint::save(&mut engine, &path, &Save::default()).expect("a checkpoint");
    let path = path.to_str().expect("UTF-8");
    let output = optim(&["inspect", "--json", path]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let run = &lines(&output)[0]["run"];
    assert_eq!(run["rule"], "adamw + sgd");
    let groups = run["groups"].as_array().expect("groups");
    let of = |field: &str| groups.iter().map(|group| group[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("rule"), ["adamw", "sgd", "sgd"]);
    assert_eq!(
        (of("taken"), of("frozen")),
        (vec![1.into(), 1.into(), 0.into()], vec![false.into(), false.into(), true.into()])
    );
    let text = String::from_utf8_lossy(&optim(&["inspect", path]).stdout).into_owned();
    for part in ["adamw + sgd, 1 steps", "group \"hidden\": 1 tensors, adamw {", "0 steps taken, frozen"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn inspect_verifies_a_digest() {
    let mut optimizer = cpu::Optimizer::new(
        Layout::new([Group::new("all", AdamW::default()).tensor("w", [2, 3])]).expect("a layout"),
    )
    .expect("an optimizer");
    let mut bytes = Vec::new();
    checkpoint::save_to(&mut Cpu::new(&mut optimizer), &mut bytes, &Save::default()).expect("memory");
    let verify = |name: &str, bytes: &[u8]| {
        let path = write(name, bytes);
        let path = path.to_str().expect("UTF-8");
        let output = optim(&["inspect", "--verify", "--json", path]);
        let text = String::from_utf8_lossy(&optim(&["inspect", "--verify", path]).stdout).into_owned();
        (output.status.code(), lines(&output).pop(), text, errors(&output))
    };
    let (code, line, text, _) = verify("whole.safetensors", &bytes);
    let line = line.expect("a line");
    has(&line, &["file", "pass", "reason"]);
    assert_eq!((code, &line["pass"], &line["reason"]), (Some(0), &true.into(), &Value::Null));
    assert!(text.starts_with("pass ") && text.ends_with("whole.safetensors\n"), "{text}");
    // A bit of the data, and one of a count in the header.
    let at = bytes.windows(10).position(|part| part == b"\\\"taken\\\":").expect("a count") + 10;
    for at in [bytes.len() - 1, at] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        let (code, line, text, errors) = verify("flipped.safetensors", &bytes);
        if at == bytes.len() - 1 {
            let line = line.expect("a line");
            let reason = line["reason"].as_str().expect("a reason");
            assert_eq!((code, &line["pass"]), (Some(1), &false.into()));
            assert!(reason.contains("it has changed since it was saved"), "{reason}");
            assert!(text.starts_with("FAIL ") && text.contains(reason), "{text}");
        } else {
            // More steps taken than recorded.
            assert_eq!((code, line), (Some(2), None), "{errors}");
        }
    }
    // None to compare with.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoint/v1.safetensors");
    let output = optim(&["inspect", "--verify", fixture.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("it has no digest"));
    // No checkpoint at all.
    let (code, _, _, errors) = verify("none.safetensors", b"\x08\0\0\0\0\0\0\0{}      ");
    assert_eq!(code, Some(2));
    assert!(errors.contains("no checkpoint"), "{errors}");
}

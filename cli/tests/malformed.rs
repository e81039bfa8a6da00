//! Bad files: each is an error that names the defect, and none is a panic.

mod common;

use common::{Parts, STEPS, chain};
use optim::replay::{On, replay};
use optim::trajectory::{Error, Trajectory};

const SGD: &str = r#"{"rule": "sgd", "momentum": 0.9}"#;
const ADAMW: &str = r#"{"rule": "adamw"}"#;

fn sgd() -> Parts {
    Parts::new(SGD)
}

/// The error of reading and replaying a file.
fn complaint(bytes: &[u8]) -> String {
    let outcome = Trajectory::parse(bytes).and_then(|t| replay(&t, On::Cpu, &mut || ()));
    chain(&outcome.expect_err("a bad file"))
}

#[track_caller]
fn refused(parts: &Parts, words: &[&str]) {
    let complaint = complaint(&parts.bytes());
    for word in words {
        assert!(complaint.contains(word), "{complaint:?} does not mention {word:?}");
    }
}

#[test]
fn the_file_they_are_made_from_is_good() {
    let good = sgd().solved().parse().expect("good");
    assert!(replay(&good, On::Cpu, &mut || ()).expect("good").pass);
}

#[test]
fn every_truncation_is_called_one() {
    let bytes = sgd().bytes();
    for len in 0..bytes.len() {
        match Trajectory::parse(&bytes[..len]) {
            Err(Error::Truncated { end, size, .. }) => assert!(end > size && size == len as u64, "{len}"),
            other => panic!("{len} of {} bytes: {other:?}", bytes.len()),
        }
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(Trajectory::parse(&longer), Err(Error::Trailing { .. })));
}

#[test]
fn no_changed_byte_panics() {
    let bytes = sgd().solved().bytes();
    for i in 0..bytes.len() {
        for change in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[i] ^= change;
            if let Ok(trajectory) = Trajectory::parse(&bytes) {
                let _ = replay(&trajectory, On::Cpu, &mut || ());
            }
        }
    }
}

#[test]
fn headers() {
    let with_header = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    assert!(complaint(&[]).contains("the length of the header ends at byte 8, the file has 0"));
    assert!(complaint(&u64::MAX.to_le_bytes()).contains("length of the header = 1.8446744073709552e19"));
    assert!(complaint(&1_000u64.to_le_bytes()).contains("the header ends at byte 1008, the file has 8"));
    assert!(complaint(&with_header("{oops", 0)).contains("not a safetensors file"));
    assert!(complaint(&with_header("\u{0}", 0)).contains("not a safetensors file"));
    assert!(complaint(&with_header("{}", 0)).contains("\"format\""));
    let no_such_bytes = r#"{"lr":{"dtype":"F64","shape":[1],"data_offsets":[0,18446744073709551615]}}"#;
    assert!(complaint(&with_header(no_such_bytes, 8)).contains("tensor \"lr\""));
    let huge = r#"{"lr":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#;
    assert!(complaint(&with_header(huge, 8)).contains("not a safetensors file"));
}

#[test]
fn metadata() {
    refused(&sgd().meta("format", "optim-trajectory/2"), &["format", "optim-trajectory/2"]);
    let mut parts = sgd();
    parts.metadata.remove("optimizer");
    refused(&parts, &["\"optimizer\""]);
    refused(&sgd().meta("optimizer", "{"), &["optimizer", "line 1"]);
    refused(&sgd().meta("optimizer", "[]"), &["optimizer"]);
    refused(&sgd().meta("optimizer", r#"{"momentum": 0.9}"#), &["optimizer", "rule"]);
    refused(&Parts::new(r#"{"rule": "sgdd"}"#), &["unknown rule \"sgdd\"", "sgd", "adamw"]);
    refused(&Parts::new(r#"{"rule": "SGD"}"#), &["unknown rule \"SGD\""]);
    refused(&sgd().meta("skip_nonfinite", "yes"), &["skip_nonfinite", "yes"]);
    refused(&sgd().meta("clip", r#"{"norm": 1.0}"#), &["clip", "norm", "global_norm"]);
    refused(&sgd().meta("clip", r#"{"global_norm": 1.0, "value": 1.0}"#), &["clip", "either"]);
    refused(&sgd().meta("clip", "{}"), &["clip", "global_norm"]);
    refused(&sgd().meta("clip", r#"{"value": -1.0}"#), &["clip = -1", "at least 0"]);
    refused(&sgd().meta("clip", r#"{"value": NaN}"#), &["clip"]);
}

#[test]
fn hyperparameters() {
    let with = |json: &str| Parts::new(&format!(r#"{{"rule": "adamw", {json}}}"#));
    refused(&with(r#""lr": 0.1"#), &["lr = 0.1", "unknown field", "beta1"]);
    refused(&with(r#""momentum": 0.9"#), &["momentum = 0.9", "unknown field"]);
    refused(&with(r#""beta1": "0.9""#), &["beta1 = \"0.9\"", "f64"]);
    refused(&with(r#""maximize": 1"#), &["maximize = 1", "boolean"]);
    refused(&with(r#""eps": null"#), &["eps = null"]);
    refused(&with(r#""beta2": 1"#), &["beta2 = 1", "[0, 1)"]);
    refused(&with(r#""eps": -1e-8"#), &["eps = -0.00000001", "at least 0"]);
    refused(&Parts::new(r#"{"rule": "sgd", "nesterov": true}"#), &["nesterov needs momentum"]);
    // An integer is a number.
    assert!(with(r#""weight_decay": 0"#).solved().parse().is_ok());
}

#[test]
fn tensors() {
    for name in ["lr", "param/a", "grad/1/b", "grad/4/a", "expect/param/b"] {
        let parts = sgd().without(name);
        // Without its parameter every other tensor of `a` is one too many.
        let word = if name == "param/a" { "/a\"" } else { name };
        refused(&parts, &[word]);
    }
    refused(&sgd().with_f32("lr", &[STEPS], &[0.1; STEPS]), &["\"lr\"", "F32", "F64"]);
    refused(&sgd().with_f64("param/b", &[5], &[0.0; 5]), &["\"param/b\"", "F64", "F32"]);
    refused(&sgd().with_f64("grad/2/b", &[5], &[0.0; 5]), &["\"grad/2/b\"", "F64"]);
    refused(&sgd().with_f32("expect/param/b", &[5], &[0.0; 5]), &["\"expect/param/b\"", "F32"]);
    refused(&sgd().with_f32("grad/2/b", &[6], &[0.0; 6]), &["\"grad/2/b\"", "[6]", "[5]"]);
    refused(&sgd().with_f32("grad/2/a", &[3, 2], &[0.0; 6]), &["\"grad/2/a\"", "[3, 2]", "[2, 3]"]);
    refused(&sgd().with_f64("expect/param/a", &[6], &[0.0; 6]), &["\"expect/param/a\"", "[6]"]);
    refused(&sgd().with_f32("peer/param/b", &[1], &[0.0]), &["\"peer/param/b\"", "[1]"]);
    refused(&sgd().with_f32("param/c", &[0], &[]), &["c"]);
    refused(&sgd().with_f32("extra", &[1], &[0.0]), &["\"extra\"", "not part of the format"]);
    refused(&sgd().with_f32("grad/5/a", &[2, 3], &[0.0; 6]), &["\"grad/5/a\"", "1 to 4"]);
    refused(&sgd().with_f32("peer/exp_avg/a", &[2, 3], &[0.0; 6]), &["\"peer/exp_avg/a\""]);
}

#[test]
fn what_is_empty_is_legal() {
    let mut parts = sgd().with_f32("param/c", &[0], &[]).with_f64("expect/param/c", &[0], &[]);
    for t in 1..=STEPS {
        parts.f32(&format!("grad/{t}/c"), &[0], &[]);
    }
    let groups = r#"[{"name": "x", "params": ["a", "c", "b"]}, {"name": "y", "params": []}]"#;
    let run = parts.meta("groups", groups).solved().parse().expect("good");
    for on in [On::Cpu, On::Reference] {
        assert!(replay(&run, on, &mut || ()).expect("good").pass);
    }
}

#[test]
fn schedules() {
    refused(&sgd().with_f64("lr", &[3], &[0.1; 3]), &["\"grad/4/a\""]);
    refused(&sgd().with_f64("lr", &[5], &[0.1; 5]), &["\"grad/5/a\""]);
    refused(&sgd().with_f64("lr", &[0], &[]), &["\"lr\"", "[0]"]);
    refused(&sgd().with_f64("lr", &[], &[0.1]), &["\"lr\"", "[]"]);
    refused(&sgd().with_f64("lr", &[4], &[0.1, f64::NAN, 0.1, 0.1]), &["lr of step 2 = NaN", "finite"]);
    refused(&sgd().with_f64("lr", &[4], &[0.1, 0.1, -0.1, 0.1]), &["lr of step 3 = -0.1"]);
    refused(&sgd().with_f64("momentum", &[3], &[0.9; 3]), &["\"momentum\"", "[3]", "[4]"]);
    refused(&sgd().with_f64("momentum", &[4], &[f64::INFINITY; 4]), &["momentum of step 1 = inf"]);
    refused(&sgd().with_f64("momentum", &[4], &[0.9, -0.5, 0.9, 0.9]), &["momentum of step 2 = -0.5"]);
    refused(&sgd().with_f64("loss_scale", &[4], &[1.0, 1.0, 1.0, 0.0]), &["loss_scale of step 4 = 0"]);
    let override_ = [0.9, 0.9, 1.5, 0.9];
    refused(&Parts::new(ADAMW).with_f64("momentum", &[4], &override_), &["step 3", "beta1 = 1.5"]);
    // Finite in f64, but no float32 at all.
    refused(&sgd().with_f64("lr", &[4], &[1e300; 4]), &["step 1", "overflows f32"]);
}

#[test]
fn groups() {
    let with = |json: &str| sgd().meta("groups", json);
    refused(&with("{}"), &["groups"]);
    refused(&with(r#"[{"name": "x", "params": ["a"]}]"#), &["\"b\" is in no group"]);
    refused(&with("[]"), &["\"a\" is in no group"]);
    refused(
        &with(r#"[{"name": "x", "params": ["a", "b"]}, {"name": "y", "params": ["b"]}]"#),
        &["\"b\"", "\"x\"", "\"y\""],
    );
    refused(&with(r#"[{"name": "x", "params": ["a", "b", "a"]}]"#), &["\"a\"", "again"]);
    refused(&with(r#"[{"name": "x", "params": ["a", "b", "c"]}]"#), &["\"x\"", "\"c\""]);
    refused(&with(r#"[{"name": "x", "params": ["a", "b"], "lr": 1}]"#), &["groups", "lr", "lr_factor"]);
    refused(&with(r#"[{"params": ["a", "b"]}]"#), &["groups", "name"]);
    refused(
        &with(r#"[{"name": "x", "params": ["a", "b"], "overrides": {"beta1": 0.5}}]"#),
        &["beta1 = 0.5", "unknown field"],
    );
    refused(
        &with(r#"[{"name": "x", "params": ["a", "b"], "lr_factor": 2, "overrides": {"lr_factor": 2}}]"#),
        &["\"x\"", "lr_factor"],
    );
    refused(&with(r#"[{"name": "x", "params": ["a", "b"], "lr_factor": -2}]"#), &["lr_factor", "value = -2"]);
    refused(
        &with(r#"[{"name": "x", "params": ["a"]}, {"name": "x", "params": ["b"]}]"#),
        &["\"x\"", "twice"],
    );
}

#[test]
fn rules_of_groups() {
    let groups = |own: &str, other: &str| {
        format!(r#"[{{"name": "x", "params": ["a"]{own}}}, {{"name": "y", "params": ["b"]{other}}}]"#)
    };
    let with = |own: &str| sgd().meta("groups", &groups(own, ""));
    let known = ["group \"x\": unknown rule \"muon\"", "sgd, adam, adamw"];
    refused(&with(r#", "optimizer": {"rule": "muon", "ns_steps": 5}"#), &known);
    refused(
        &with(r#", "optimizer": {"rule": "adamw", "momentum": 0.9}"#),
        &["group \"x\": adamw: hyperparameter momentum = 0.9", "unknown field", "beta1"],
    );
    refused(
        &with(r#", "optimizer": {"rule": "adamw", "amsgrad": 1}"#),
        &["\"x\"", "adamw", "amsgrad = 1", "boolean"],
    );
    refused(&with(r#", "optimizer": {"rule": "adamw", "beta1": 1}"#), &["adamw", "beta1 = 1", "[0, 1)"]);
    refused(&with(r#", "optimizer": {"momentum": 0.9}"#), &["\"x\"", "groups", "rule", "momentum"]);
    refused(&with(r#", "optimizer": {"rule": 3}"#), &["\"x\"", "groups", r#"{"rule":3}"#]);
    refused(&with(r#", "optimizer": "adamw""#), &["groups", "adamw"]);
    refused(
        &with(r#", "optimizer": {"rule": "adamw", "lr_factor": 2}"#),
        &["lr_factor = 2", "unknown field"],
    );
    let both = [r#""overrides": {"momentum": 0.5}"#, r#""overrides": {}"#];
    for overrides in both {
        let own = format!(r#", "optimizer": {{"rule": "adamw"}}, {overrides}"#);
        refused(&with(&own), &["group \"x\"", "\"optimizer\"", "\"overrides\""]);
    }
    // A rule that no group uses is checked too.
    let adamw = r#", "optimizer": {"rule": "adamw"}"#;
    let unused = |optimizer: &str| Parts::new(optimizer).meta("groups", &groups(adamw, adamw));
    refused(&unused(r#"{"rule": "muon"}"#), &["unknown rule \"muon\""]);
    refused(&unused(r#"{"rule": "sgd", "beta1": 0.9}"#), &["beta1 = 0.9"]);
    // A group without a rule of its own needs one of the file.
    let mut parts = with(adamw);
    parts.metadata.remove("optimizer");
    refused(&parts, &["\"optimizer\""]);
    // One group is enough to have a momentum, and none is too few.
    let momentum = |optimizer: &str| {
        let own = format!(r#", "optimizer": {{"rule": "{optimizer}"}}"#);
        let parts = Parts::new(r#"{"rule": "adagrad"}"#).with_f64("momentum", &[4], &[0.9; 4]);
        parts.meta("groups", &groups(&own, ""))
    };
    refused(&momentum("adadelta"), &["\"momentum\"", "adadelta + adagrad"]);
    assert!(replay(&momentum("sgd").parse().expect("good"), On::Cpu, &mut || ()).is_ok());
}

#[test]
fn rows_and_masks_are_not_supported() {
    refused(&sgd().with_f64("rows/1/a", &[1], &[0.0]), &["\"rows/1/a\"", "not supported"]);
    refused(&sgd().with_f64("mask/1/a", &[2], &[0.0; 2]), &["\"mask/1/a\"", "not supported"]);
}

#[test]
fn state_that_is_not_kept() {
    let slot = |slot: &str| format!("expect/{slot}/b");
    refused(&sgd().with_f64(&slot("exp_avg"), &[5], &[0.0; 5]), &["exp_avg", "momentum_buffer"]);
    let plain = Parts::new(r#"{"rule": "sgd"}"#);
    refused(&plain.with_f64(&slot("momentum_buffer"), &[5], &[0.0; 5]), &["momentum_buffer", "sgd"]);
    refused(&sgd().with_f64("expect/param/c", &[5], &[0.0; 5]), &["expect/param/c"]);
    // The state of another group's rule.
    let groups =
        r#"[{"name": "x", "params": ["a"], "optimizer": {"rule": "adamw"}}, {"name": "y", "params": ["b"]}]"#;
    let mixed = sgd().meta("groups", groups);
    assert!(mixed.clone().with_f64("expect/exp_avg/a", &[2, 3], &[0.0; 6]).solved().parse().is_ok());
    refused(
        &mixed.clone().with_f64(&slot("exp_avg"), &[5], &[0.0; 5]),
        &["rule sgd", "exp_avg", "[\"momentum_buffer\"]"],
    );
    refused(
        &mixed.with_f64("expect/momentum_buffer/a", &[2, 3], &[0.0; 6]),
        &["rule adamw", "momentum_buffer", "[\"exp_avg\", \"exp_avg_sq\"]"],
    );
}

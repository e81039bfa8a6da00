//! Malicious files: an error, never a panic.

use crate::common::{Directory, Random, Saves, bits, layout, on_cpu};
use crate::mixed::TAKE;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use wgpu_optim::checkpoint::{Differing, Error, Load, Malformed, Metadata, Mismatch, Reader, Save};

/// Loads a file onto the small run. The load is refused, or succeeds and the run takes a step.
pub(crate) fn load(path: &Path) -> Result<(), Error> {
    let mut run = on_cpu(layout());
    run.steps(1);
    let before = bits(&run);
    let result = run.load(path, &Load::default());
    match &result {
        Ok(_) => drop(run.steps(1)),
        Err(_) => assert_eq!(bits(&run), before),
    }
    result.map(|_| ())
}

/// A good file, as its header and data.
pub(crate) fn good(directory: &Directory) -> (Value, Vec<u8>) {
    let path = directory.file("good.safetensors");
    on_cpu(layout()).steps(2).save(&path, &Save::default()).unwrap();
    let bytes = fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + len]).unwrap(), bytes[8 + len..].to_vec())
}

pub(crate) fn write(path: &Path, header: &[u8], data: &[u8]) {
    let len = (header.len() as u64).to_le_bytes();
    fs::write(path, [&len[..], header, data].concat()).unwrap();
}

#[test]
fn truncated_at_every_byte() {
    let directory = Directory::new("truncated");
    let (header, data) = good(&directory);
    let path = directory.file("bad.safetensors");
    write(&path, header.to_string().as_bytes(), &data);
    assert!(load(&path).is_ok());
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let error = load(&path).unwrap_err();
        let short = matches!(error, Error::Malformed { reason: Malformed::Truncated { .. }, .. });
        assert!(short, "{len} bytes: {error}");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(matches!(load(&path), Err(Error::Malformed { reason: Malformed::Trailing { .. }, .. })));
}

#[test]
fn lies_of_the_header() {
    let directory = Directory::new("lies");
    let (header, data) = good(&directory);
    let path = directory.file("bad.safetensors");
    let try_text = |what: &str, text: &str| {
        write(&path, text.as_bytes(), &data);
        let error = load(&path).expect_err(what);
        assert!(matches!(error, Error::Malformed { .. } | Error::Mismatches(_)), "{what}: {error}");
        error.to_string()
    };
    let lie = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        try_text(what, &header.to_string())
    };
    lie("no object", &|h| *h = json!([]));
    lie("another type", &|h| h["param/w"]["dtype"] = json!("F64"));
    lie("no type", &|h| h["param/w"]["dtype"] = json!("F31"));
    lie("another type of the same size", &|h| h["param/w"]["dtype"] = json!("I32"));
    lie("a field less", &|h| drop(h["param/w"].as_object_mut().unwrap().remove("shape")));
    lie("out of range", &|h| h["param/b"]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 8]));
    lie("backwards", &|h| h["param/b"]["data_offsets"] = json!([8, 0]));
    lie("the largest numbers", &|h| h["param/b"]["data_offsets"] = json!([0, u64::MAX]));
    lie("overlapping", &|h| h["param/b"]["data_offsets"] = h["exp_avg/b"]["data_offsets"].clone());
    lie("negative", &|h| h["param/b"]["data_offsets"] = json!([-1, 7]));
    lie("a shape of more than can be counted", &|h| h["param/b"]["shape"] = json!([1u64 << 33, 1u64 << 33]));
    lie("dimensions without end", &|h| h["param/b"]["shape"] = json!(vec![1; 100]));
    lie("another shape", &|h| h["param/w"]["shape"] = json!([5, 3]));
    lie("metadata that is no text", &|h| h["__metadata__"] = json!(7));
    lie("keys without end", &|h| {
        for i in 0..5_000 {
            h["__metadata__"][i.to_string()] = json!("");
        }
    });
    lie("an unknown tensor", &|h| {
        h["param/x"] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    });
    let again = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    let twice = format!("{{\"param/b\":{again},{}", &header.to_string()[1..]);
    assert!(try_text("a name twice", &twice).contains("twice"));
    try_text("two texts", &[header.to_string(), "{}".into()].concat());
    try_text("not UTF-8", &header.to_string().replace("plain", "\u{fffd}"));
    try_text("nested without end", &"[".repeat(100_000));
    for len in [0, 1, MAX, MAX + 1, u64::MAX, 1 << 63] {
        fs::write(&path, [&len.to_le_bytes()[..], &data].concat()).unwrap();
        assert!(load(&path).is_err(), "a header of {len} bytes");
    }
}

/// Fields of other tools beside a tensor's three fields are ignored.
#[test]
fn further_fields_of_tensors_are_left_out() {
    let directory = Directory::new("further-fields");
    let (header, data) = good(&directory);
    let path = directory.file("more.safetensors");
    let whole = on_cpu(layout()).after(2);
    let deep = (0..200).fold(json!(1), |deep, _| json!([deep]));
    for more in [json!(1), json!(-1.5), json!(null), json!("F32"), json!({"dtype": "F64"}), json!([]), deep] {
        let mut header = header.clone();
        let tensors = header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__");
        tensors.for_each(|(_, tensor)| tensor["more"] = more.clone());
        write(&path, header.to_string().as_bytes(), &data);
        let mut run = on_cpu(layout());
        run.load(&path, &Load::default()).unwrap_or_else(|error| panic!("{more}: {error}"));
        assert_eq!(bits(&run), bits(&whole), "{more}");
    }
    // None of the three may be there twice.
    let text = header.to_string();
    for field in ["\"dtype\":\"F32\"", "\"shape\":[2]", "\"data_offsets\":[0,8]"] {
        let twice = text.replacen("\"dtype\"", &format!("{field},\"dtype\""), 1);
        write(&path, twice.as_bytes(), &data);
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("duplicate field"), "{field}: {error}");
    }
}

/// Bytes of the largest header.
pub(crate) const MAX: u64 = 16 << 20;

#[test]
fn lies_of_the_record() {
    let directory = Directory::new("record-lies");
    let (header, data) = good(&directory);
    let path = directory.file("bad.safetensors");
    let record: Value = serde_json::from_str(header["__metadata__"]["wgpu_optim"].as_str().unwrap()).unwrap();
    let lie = |what: &str, change: &dyn Fn(&mut Value)| {
        let (mut header, mut record) = (header.clone(), record.clone());
        change(&mut record);
        header["__metadata__"]["wgpu_optim"] = json!(record.to_string());
        write(&path, header.to_string().as_bytes(), &data);
        load(&path).expect_err(what)
    };
    let version = lie("a later version", &|r| *r = json!({"version": 2, "what": []}));
    assert!(matches!(version, Error::Version { found: 2, bound: 1, .. }), "{version}");
    for (what, change) in [
        ("no object", &(|r: &mut Value| *r = json!(1)) as &dyn Fn(&mut Value)),
        ("a field more", &|r| r["more"] = json!(1)),
        ("more taken than recorded", &|r| r["taken"] = json!(3)),
        ("more steps than can be counted", &|r| r["steps"] = json!(u64::MAX)),
        ("a carry of letters", &|r| r["groups"][0]["carry"] = json!("abcdefghijklmnop")),
        ("a negative place", &|r| r["groups"][0]["tensors"]["w"] = json!(-1)),
        ("two groups of one name", &|r| r["groups"][1]["name"] = json!("decay")),
        ("hyperparameters without end", &|r| r["groups"][0]["hyperparameters"] = json!(vec![0; 100_000])),
        ("a schedule within a schedule", &|r| {
            let mut factor = json!({"constant": 0.5});
            for _ in 0..1_000 {
                factor = json!({"warmup": {"steps": 1, "schedule": factor}});
            }
            r["groups"][1]["lr_factor"] = json!(factor.to_string());
        }),
        ("hyperparameters of another rule", &|r| {
            r["groups"][0]["hyperparameters"] = json!({"momentum": 0.9});
        }),
        ("hyperparameters out of range", &|r| r["groups"][0]["hyperparameters"]["beta1"] = json!(2.0)),
        ("an option that is none", &|r| r["options"]["speed"] = json!(1)),
    ] {
        let error = lie(what, change);
        assert!(matches!(error, Error::Malformed { .. } | Error::Mismatches(_)), "{what}: {error}");
    }
    // Values of single groups.
    let taken = lie("more taken by a group than recorded", &|r| r["groups"][0]["taken"] = json!(3));
    let Error::Malformed { reason: Malformed::Value { field: "taken of a group", value, .. }, .. } = &taken
    else {
        panic!("{taken}")
    };
    assert_eq!(value, "3");
    let frozen = lie("frozen by a number", &|r| r["groups"][0]["frozen"] = json!(1));
    assert!(matches!(frozen, Error::Malformed { reason: Malformed::Json { .. }, .. }), "{frozen}");
    let rule = lie("a group of another rule", &|r| r["groups"][0]["rule"] = json!("adamx"));
    let other = Mismatch::Rule { found: "adamx".into(), expected: "adamw" };
    assert!(matches!(&rule, Error::Mismatches(found) if *found == [other]), "{rule}");
    // Values out of range are refused.
    for (what, change) in [
        ("a hyperparameter", &(|r: &mut Value| r["groups"][0]["hyperparameters"]["beta1"] = json!(2.0)) as _),
        ("a factor", &|r: &mut Value| r["groups"][1]["lr_factor"] = json!({"constant": -1.0})),
        ("a clip", &|r: &mut Value| r["options"]["clip"] = json!({"value": -1.0})),
    ] as [(&str, &dyn Fn(&mut Value)); 3]
    {
        lie(what, change);
        let mut run = on_cpu(layout());
        let before = bits(&run);
        let result = run.load(&path, &TAKE);
        assert!(matches!(&result, Err(Error::Mismatches(found)) if found.len() == 1), "{what}: {result:?}");
        assert_eq!(bits(&run), before);
    }
    // The policy also covers values that cannot be read.
    lie("an option that is none", &|r| r["options"]["speed"] = json!(1));
    let ignore = Load { options: Differing::Ignore, ..Load::default() };
    assert_eq!(on_cpu(layout()).load(&path, &ignore).unwrap().steps, 2);
    let mut header = header.clone();
    header["__metadata__"] = json!({});
    write(&path, header.to_string().as_bytes(), &data);
    assert!(matches!(load(&path), Err(Error::NotACheckpoint { .. })));
}

#[test]
fn lies_of_an_index() {
    let directory = Directory::new("index-lies");
    let path = directory.file("run.safetensors.index.json");
    on_cpu(layout()).steps(2).save(&path, &Save { shard_bytes: Some(96), ..Save::default() }).unwrap();
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let lie = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut index = index.clone();
        change(&mut index);
        fs::write(&path, index.to_string()).unwrap();
        load(&path).expect_err(what)
    };
    let first = "run-00001-of-00003-1.safetensors";
    fs::copy(directory.file(first), directory.file("copy.safetensors")).unwrap();
    for (what, change) in [
        ("no map", &(|i: &mut Value| *i = json!({})) as &dyn Fn(&mut Value)),
        ("a tensor less", &|i| drop(i["weight_map"].as_object_mut().unwrap().remove("param/w"))),
        ("a tensor more", &|i| i["weight_map"]["param/x"] = json!(first)),
        ("another shard", &|i| i["weight_map"]["param/b"] = json!("run-00002-of-00003-1.safetensors")),
        ("a file elsewhere", &|i| i["weight_map"]["param/w"] = json!("../run.safetensors")),
        ("an absolute file", &|i| i["weight_map"]["param/w"] = json!("/etc/passwd")),
        ("a directory", &|i| i["weight_map"]["param/w"] = json!("..")),
        ("a shard with the tensors of another", &|i| i["weight_map"]["param/x"] = json!("copy.safetensors")),
        ("shards without end", &|i| {
            for n in 0..1_000 {
                i["weight_map"][n.to_string()] = json!(format!("{n}.safetensors"));
            }
        }),
    ] {
        let Error::Malformed { location, reason } = lie(what, change) else { panic!("{what}") };
        assert_eq!(location.path(), Some(&*path), "{what}");
        let typed = match what {
            "no map" => matches!(reason, Malformed::Json { .. }),
            "a file elsewhere" | "an absolute file" | "a directory" => {
                matches!(reason, Malformed::ShardName { .. })
            }
            "shards without end" => matches!(reason, Malformed::TooMany { what: "files", .. }),
            "a shard with the tensors of another" => matches!(reason, Malformed::Duplicate { .. }),
            _ => matches!(reason, Malformed::Shard { .. }),
        };
        assert!(typed, "{what}: {reason}");
    }
    // The index has the record, so errors of the record name the index.
    let empty = lie("nothing", &|i| *i = json!({"weight_map": {}}));
    assert!(
        matches!(&empty, Error::NotACheckpoint { location, .. } if location.path() == Some(&path)),
        "{empty}"
    );
    let record = lie("a bad record", &|i| i["metadata"]["wgpu_optim"] = json!("{"));
    assert!(
        matches!(&record, Error::Malformed { location, .. } if location.path() == Some(&path)),
        "{record}"
    );
    let absent = lie("no such file", &|i| i["weight_map"]["param/w"] = json!("none.safetensors"));
    assert!(matches!(absent, Error::Io { what: "open", .. }), "{absent}");
    let text = index.to_string().replacen("\"param/b\"", "\"param/v\"", 1);
    fs::write(&path, text).unwrap();
    assert!(matches!(load(&path), Err(Error::Malformed { .. })));
}

/// The fuzzer's first files and its kept findings, with random damage to each: bytes changed, removed and
/// inserted.
#[test]
fn damaged_files_are_errors_or_load() {
    let directory = Directory::new("damaged");
    let (header, data) = good(&directory);
    let path = directory.file("bad.safetensors");
    write(&path, header.to_string().as_bytes(), &data);
    let mut files = vec![fs::read(&path).unwrap()];
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/checkpoint");
    files.extend(fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()));
    assert!(files.len() > 4);
    let index = directory.file("bad.safetensors.index.json");
    let mut random = Random::new(11);
    for whole in files {
        for round in 0..500 {
            let mut bytes = whole.clone();
            for _ in 0..if round == 0 { 0 } else { 1 + random.below(3) } {
                let at = random.below(bytes.len() as u64) as usize;
                match random.below(4) {
                    0 => bytes[at] = random.bits() as u8,
                    1 => drop(bytes.remove(at)),
                    2 => bytes.insert(at, b"0123456789{}[],:\"\\"[random.below(18) as usize]),
                    _ => bytes[at] ^= 1 << random.below(8),
                }
            }
            // As it is, as a header, and as an index.
            fs::write(&path, &bytes).unwrap();
            fs::write(&index, &bytes).unwrap();
            for path in [&path, &index] {
                let _ = load(path);
                if let Ok(reader) = Reader::open(path) {
                    let _ = Metadata::read(&reader);
                }
            }
            write(&path, &bytes, &data);
            let _ = load(&path);
        }
    }
}

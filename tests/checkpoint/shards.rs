//! Checkpoints of several files.

use crate::common::{Directory, Saves, bits, layout, on_cpu};
use std::fs;
use wgpu_optim::checkpoint::{self, Cpu, Load, Save};
use wgpu_optim::{Group, Layout, Sgd, cpu};

#[test]
fn shards_have_an_index_and_replace_each_other() {
    let directory = Directory::new("shards");
    let path = directory.file("run.safetensors.index.json");
    let mut run = on_cpu(layout());
    // Tensors have 8, 28 and 60 bytes, three times.
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    run.steps(2).save(&path, &save).unwrap();
    let shards = |generation: u64, of: usize| {
        (1..=of).map(|i| format!("run-{i:05}-of-{of:05}-{generation}.safetensors")).collect::<Vec<_>>()
    };
    let index = ["run.safetensors.index.json".to_owned()];
    assert_eq!(directory.names(), [&shards(1, 3)[..], &index].concat());
    let text: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(text["metadata"]["total_size"], 3 * 96);
    assert_eq!(text["weight_map"].as_object().unwrap().len(), 9);
    let mut other = on_cpu(layout());
    assert_eq!(other.load(&path, &Load::default()).unwrap().steps, 2);
    assert_eq!(bits(&other), bits(&run));
    // The next save removes everything that killed saves have left: files that are not whole, whole ones
    // before their index was, and old ones behind it. Those of others stay.
    let index_before = fs::read(&path).unwrap();
    run.steps(1).save(&path, &save).unwrap();
    let orphans = shards(2, 3);
    let kept: Vec<_> = orphans.iter().map(|name| fs::read(directory.file(name)).unwrap()).collect();
    fs::write(&path, index_before).unwrap();
    for name in shards(1, 3).iter().chain([&".run-00009-of-00009-7.safetensors.partial".to_owned()]) {
        fs::write(directory.file(name), &kept[0]).unwrap();
    }
    let others = [
        ".else.safetensors.partial",
        "run-1-00001-of-00001-2.safetensors",
        "run-1-00009-of-00009.safetensors",
        "run-00001-of-00002.safetensors",
        "run-1-of-2-3.safetensors",
        "run-5-of-5-2024.safetensors",
        "run-00003-of-00002-1.safetensors",
        "run-00000-of-00002-1.safetensors",
        "run-00001-of-00513-1.safetensors",
        "run-00001-of-00002-01.safetensors",
        "run.safetensors",
        "rune-00001-of-00002-1.safetensors",
    ];
    others.iter().for_each(|name| fs::write(directory.file(name), "").unwrap());
    run.save(&path, &Save { shard_bytes: Some(1), ..Save::default() }).unwrap();
    let mut names = [&others.map(str::to_owned)[..], &shards(3, 9), &index].concat();
    names.sort();
    assert_eq!(directory.names(), names);
    assert_eq!(other.load(&path, &Load::default()).unwrap().steps, 3);
    assert_eq!(bits(&other), bits(&run));
}

/// Behind the last number there is none: the shards that the index names are not written over.
#[test]
fn the_last_number_is_not_used_twice() {
    let directory = Directory::new("last-number");
    let path = directory.file("run.safetensors.index.json");
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    let mut run = on_cpu(layout());
    run.steps(1).save(&path, &save).unwrap();
    let first = directory.names();
    let [end, last] = ["-1.safetensors".to_owned(), format!("-{}.safetensors", u64::MAX)];
    for name in first.iter().filter(|name| name.ends_with(&end)) {
        fs::rename(directory.file(name), directory.file(&name.replace(&end, &last))).unwrap();
    }
    fs::write(&path, fs::read_to_string(&path).unwrap().replace(&end, &last)).unwrap();
    assert_eq!(on_cpu(layout()).load(&path, &Load::default()).unwrap().steps, 1);
    run.steps(1).save(&path, &save).unwrap();
    assert_eq!(directory.names(), first);
    assert_eq!(on_cpu(layout()).load(&path, &Load::default()).unwrap().steps, 2);
}

#[test]
fn an_index_without_tensors_has_no_shards() {
    let directory = Directory::new("no-tensors");
    let path = directory.file("run.safetensors.index.json");
    let layout = || Layout::new([Group::new("all", Sgd::default()).tensor("w", [2])]).unwrap();
    let mut optimizer = cpu::Optimizer::new(layout()).unwrap();
    optimizer.step(cpu::Tensors::flat(&mut [0.0; 2], &[1.0; 2]), 0.1).unwrap();
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    checkpoint::save(&mut Cpu::new(&mut optimizer), &path, &save).unwrap();
    assert_eq!(directory.names(), ["run.safetensors.index.json"]);
    let mut fresh = cpu::Optimizer::new(layout()).unwrap();
    checkpoint::load(&mut Cpu::new(&mut fresh), &path, &Load::default()).unwrap();
    assert_eq!(fresh.steps(), 1);
}

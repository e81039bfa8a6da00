//! Loads the fuzzer's input onto optimizers of several rules and formats, and takes a step after a successful
//! load. The result is an error or a load, never a panic. No allocation exceeds 64 MiB (`-malloc_limit_mb`),
//! and the process, including the fuzzer, stays below 512 MiB (`-rss_limit_mb`). `tests/checkpoint/memory.rs`
//! checks that a load takes at most the file's size and 64 MiB.
//!
//! The input is the file itself. If it does not begin with the length of its header, it is also tried as a
//! header, with the length before it and zeros for its tensors after it, so that the fuzzer need not guess
//! numbers. It is always tried as an index too.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use wgpu_optim::checkpoint::{self, Cpu, Differing, Extra, Formats, Load, Metadata, Missing, Reader};
use wgpu_optim::{
    AdamW, Clip, DynRule, Ema, Format, Group, Layout, LossScale, Master, NAdam, Options, Rounding, cpu,
};

/// The file that an index finds under the name "a".
const SHARD: &[u8] = include_bytes!("../../tests/interop/adamw-10.safetensors");
/// Bytes of zeros that stand for data.
const MAX_DATA: u64 = 1 << 16;

thread_local! {
    static DIRECTORY: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// A directory of this process, with a good shard.
fn directory() -> PathBuf {
    DIRECTORY.with_borrow_mut(|directory| {
        let make = || {
            let path = std::env::temp_dir().join(format!("fuzz-{}", std::process::id()));
            fs::create_dir_all(&path).expect("the temporary directory can be written");
            fs::write(path.join("a"), SHARD).expect("the temporary directory can be written");
            path
        };
        directory.get_or_insert_with(make).clone()
    })
}

/// The tensors of tests/interop.
fn layout(decay: impl Into<DynRule>, plain: impl Into<DynRule>) -> Layout {
    let decay = Group::new("decay", decay).tensor("w", [4, 3]).tensor("v", [5]);
    Layout::packed([decay, Group::new("plain", plain).tensor("b", [3])]).expect("a good layout")
}

/// Loads, and takes a step if that succeeds.
fn onto(layout: Layout, options: Options, path: &Path) {
    let mut optimizer = cpu::Optimizer::with_options(layout, options).expect("memory");
    let (mut wide, mut narrow) = ([0.0f32; 20], [0u16; 20]);
    let is_wide = options.params == Format::F32;
    let lenient = Load {
        missing: Missing::Zero,
        extra: Extra::Ignore,
        formats: Formats::Convert,
        hyperparameters: Differing::Ignore,
        options: Differing::Ignore,
    };
    // Values of the file, which must be refused or work.
    let taking = Load { hyperparameters: Differing::Take, options: Differing::Take, ..lenient };
    for load in [Load::default(), lenient, taking] {
        let engine = Cpu::new(&mut optimizer);
        let mut engine = if is_wide { engine.parameters(&mut wide) } else { engine.parameters(&mut narrow) };
        if checkpoint::load(&mut engine, path, &load).is_ok() {
            let tensors = match is_wide {
                true => cpu::Tensors::flat(&mut wide, &[0.5f32; 20]),
                false => cpu::Tensors::flat(&mut narrow, &[0.5f32; 20]),
            };
            let _ = optimizer.step(tensors, 0.01);
        }
    }
}

fn load(name: &str, bytes: &[u8]) {
    let path = directory().join(name);
    fs::write(&path, bytes).expect("the temporary directory can be written");
    // Those of tests/interop/adamw-10.safetensors and nadam-10.safetensors.
    let adamw = AdamW { beta2: 0.95, weight_decay: 0.1, ..AdamW::default() };
    let adamw = || layout(adamw, AdamW { weight_decay: 0.0, ..adamw });
    let nadam = NAdam { beta2: 0.95, momentum_decay: 0.01, ..NAdam::default() };
    let nadam = || layout(nadam, NAdam { weight_decay: 0.1, ..nadam });
    let around = Options {
        ema: Some(Ema { decay: 0.5, debias: true }),
        loss_scale: Some(LossScale::default()),
        rounding: Rounding::Stochastic { seed: 1 },
        ..Options::default()
    };
    let split = Options { params: Format::Bf16, master: Master::Remainder, states: Format::Q8, ..around };
    onto(adamw(), Options::default(), &path);
    onto(adamw(), split, &path);
    onto(nadam(), Options::default(), &path);
    onto(nadam(), Options { params: Format::F16, states: Format::Bf16, ..around }, &path);
    let mixed = || layout(AdamW::default(), NAdam::default());
    onto(mixed(), Options { clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() }, &path);
    if let Ok(mut reader) = Reader::open(&path) {
        let _ = Metadata::read(&reader);
        let _ = reader.verify();
        for tensor in reader.tensors().to_vec() {
            if let Some((slot, name)) = tensor.name().split_once('/') {
                let _ = reader.numbers(slot, name, 1, 0, tensor.len().min(100));
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    load("run.safetensors", bytes);
    load("run.safetensors.index.json", bytes);
    let data = serde_json::from_slice::<serde_json::Value>(bytes).ok().and_then(|header| {
        let ends = header.as_object()?.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
        ends.max().filter(|end| *end <= MAX_DATA)
    });
    if let Some(data) = data {
        let len = (bytes.len() as u64).to_le_bytes();
        load("run.safetensors", &[&len, bytes, &vec![0; data as usize]].concat());
    }
});

//! The digest finds any bit of a checkpoint that flipped after the save.

use crate::common::{Directory, Random, Saves, bits, blocks_fixture, layout, on_cpu};
use crate::gpu::on_gpu;
use crate::hostile::write;
use cpu_harness::CpuRun;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use wgpu_optim::checkpoint::{self, Error, Extra, Formats, Load, Malformed, Metadata, Missing, Reader, Save};
use wgpu_optim::{AdamW, Format, Group, Layout, Options};

fn sharded() -> Save {
    Save { shard_bytes: Some(96), ..Save::default() }
}

fn with_metadata() -> Save {
    let metadata = [("epoch", "3"), ("\u{e9}\"\\\n", "{}"), ("zz", "")].map(|(k, v)| (k.into(), v.into()));
    Save { metadata: BTreeMap::from(metadata), ..Save::default() }
}

/// Whether a load and a check alone both refuse the checkpoint in memory; a load leaves `run` as it was.
fn refused(bytes: &[u8], run: &mut CpuRun, before: &[Vec<u32>]) -> bool {
    let load = checkpoint::load_from(&mut run.engine(), Cursor::new(bytes), &Load::default());
    let alone = Reader::new(Cursor::new(bytes)).and_then(|mut reader| {
        Metadata::read(&reader)?;
        reader.verify()
    });
    assert!(load.is_ok() || bits(run) == before, "the small file has changed something");
    load.is_err() && alone.is_err()
}

#[test]
fn every_flipped_bit_of_a_file_is_found() {
    let mut bytes = Vec::new();
    let mut run = on_cpu(layout()).after(2);
    checkpoint::save_to(&mut run.engine(), &mut bytes, &with_metadata()).unwrap();
    let before = bits(&run);
    assert!(!refused(&bytes, &mut run, &before));
    for bit in 0..8 * bytes.len() {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(&bytes, &mut run, &before), "bit {} of byte {}", bit % 8, bit / 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(!refused(&bytes, &mut run, &before));
}

#[test]
fn every_flipped_bit_of_several_files_is_found() {
    let directory = Directory::new("flipped-shards");
    let index = directory.file("run.safetensors.index.json");
    let mut run = on_cpu(layout()).after(2);
    run.save(&index, &Save { shard_bytes: Some(96), ..with_metadata() }).unwrap();
    let before = bits(&run);
    for name in directory.names() {
        let path = directory.file(&name);
        let mut bytes = fs::read(&path).unwrap();
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let load = run.load(&index, &Load::default());
            assert!(load.is_err(), "bit {} of byte {} of {name}", bit % 8, bit / 8);
            assert!(bits(&run) == before);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(run.load(&index, &Load::default()).unwrap().checked);
}

/// One bit after the other into the register, as the polynomial is defined.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let byte = |crc, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc));
    !bytes.iter().fold(!0, byte)
}

/// The digest of a file's content, by the format's own library.
fn digest(file: &[u8]) -> u32 {
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(file).unwrap();
    let metadata: BTreeMap<_, _> = header.metadata().as_ref().unwrap().iter().collect();
    let mut content = Vec::new();
    let mut add = |bytes: &[u8]| {
        content.extend((bytes.len() as u64).to_le_bytes());
        content.extend(bytes);
    };
    for (key, text) in metadata {
        add(key.as_bytes());
        if key == "wgpu_optim" {
            let (before, behind) = text.split_once("\"crc32c\":\"").unwrap();
            add(format!("{before}\"crc32c\":\"").as_bytes());
            add(&behind.as_bytes()[8..]);
        } else {
            add(text.as_bytes());
        }
    }
    let tensors: BTreeMap<_, _> = tensors.tensors().into_iter().collect();
    for (name, tensor) in tensors {
        add(name.as_bytes());
        add(format!("{:?}", tensor.dtype()).as_bytes());
        tensor.shape().iter().for_each(|n| add(&(*n as u64).to_le_bytes()));
        add(&crc32c(tensor.data()).to_le_bytes());
    }
    crc32c(&content)
}

#[test]
fn the_digest_is_the_crc_of_the_content() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let mut bytes = Vec::new();
    checkpoint::save_to(&mut on_cpu(layout()).after(2).engine(), &mut bytes, &with_metadata()).unwrap();
    let reader = Reader::new(Cursor::new(&bytes)).unwrap();
    let record: Value = serde_json::from_str(&reader.metadata()["wgpu_optim"]).unwrap();
    assert_eq!(record["crc32c"], format!("{:08x}", digest(&bytes)));
}

/// The fixtures, and a file of PyTorch's converter.
#[test]
fn a_file_without_a_digest_loads_and_says_so() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for name in ["checkpoint/v1.safetensors", "checkpoint/v1-gpu.safetensors", "interop/adamw-10.safetensors"]
    {
        assert!(!Reader::open(root.join(name)).unwrap().verify().unwrap(), "{name}");
    }
    let directory = Directory::new("no-digest");
    let path = directory.file("run.safetensors");
    let mut run = on_cpu(layout()).after(2);
    run.save(&path, &Save::default()).unwrap();
    assert!(run.load(&path, &Load::default()).unwrap().checked);
    let bytes = fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let record: Value = serde_json::from_str(header["__metadata__"]["wgpu_optim"].as_str().unwrap()).unwrap();
    let without = |change: &dyn Fn(&mut Value)| {
        let (mut header, mut record) = (header.clone(), record.clone());
        change(&mut record);
        header["__metadata__"]["wgpu_optim"] = record.to_string().into();
        write(&path, header.to_string().as_bytes(), &bytes[8 + len..]);
        on_cpu(layout()).load(&path, &Load::default()).unwrap().checked
    };
    assert!(!without(&|record| drop(record.as_object_mut().unwrap().remove("crc32c"))));
    // A record in another form is not the one that was saved.
    assert!(!without(&|_| ()));
}

/// Only the content counts, at any place in the file: other programs copy checkpoints too.
#[test]
fn a_copy_by_another_program_is_checked() {
    // A copy of a run's file without its first tensors, and the run.
    let copy = |steps, without: usize| {
        let (mut run, mut bytes) = (on_cpu(layout()).after(steps), Vec::new());
        checkpoint::save_to(&mut run.engine(), &mut bytes, &with_metadata()).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
        let copy = safetensors::serialize(tensors[without..].to_vec(), header.metadata().clone()).unwrap();
        assert!(copy != bytes);
        (run, copy)
    };
    let (run, whole) = copy(2, 0);
    let mut other = on_cpu(layout());
    let loaded = checkpoint::load_from(&mut other.engine(), Cursor::new(whole), &Load::default()).unwrap();
    assert!(loaded.checked);
    assert_eq!(bits(&other), bits(&run));
    // State that is missing may begin before the first step.
    let (_, less) = copy(0, 1);
    let lenient = Load { missing: Missing::Zero, ..Load::default() };
    let error = checkpoint::load_from(&mut other.engine(), Cursor::new(less), &lenient).unwrap_err();
    assert!(matches!(error, Error::Malformed { reason: Malformed::Digest { .. }, .. }), "{error}");
    assert!(error.to_string().ends_with("it has changed since it was saved; load another copy"), "{error}");
}

/// Also in tensors that a load leaves out or converts.
#[test]
fn bits_that_are_not_loaded_count_too() {
    let options = Options { states: Format::Q8, f32_states_below: 0, ..Options::default() };
    let shape = || blocks_fixture().0;
    let start = vec![0.5; shape().len() as usize];
    let mut run = CpuRun::new(shape(), options, &start).after(2);
    let bytes = run.bytes();
    let load = Load { extra: Extra::Ignore, formats: Formats::Convert, ..Load::default() };
    let mut other = CpuRun::new(shape(), Options::default(), &start);
    // Without the parameters, which the file has.
    let mut load = |bytes: &[u8]| {
        checkpoint::load_from(&mut checkpoint::Cpu::new(&mut other.optimizer), Cursor::new(bytes), &load)
    };
    assert!(load(&bytes).unwrap().checked);
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in 8 + len..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        assert!(load(&bytes).is_err(), "byte {at}");
    }
}

/// After any earlier reads, in any order.
#[test]
fn reading_and_checking_do_not_disturb_each_other() {
    let bytes = on_cpu(layout()).after(2).bytes();
    let mut random = Random::new(5);
    for _ in 0..50 {
        let mut reader = Reader::new(Cursor::new(&bytes)).unwrap();
        let tensors = reader.tensors().to_vec();
        for _ in 0..random.below(30) {
            let i = random.below(tensors.len() as u64) as usize;
            let start = random.below(tensors[i].bytes() + 1);
            let mut part = vec![0; random.below(tensors[i].bytes() - start + 1) as usize];
            reader.read(i, start, &mut part).unwrap();
        }
        assert!(reader.verify().unwrap());
        assert!(reader.verify().unwrap());
    }
}

#[test]
fn flipped_bits_are_found_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let (layout, options) = blocks_fixture();
    let new = || on_gpu(&gpu, layout.clone(), options);
    let mut bytes = new().after(3).bytes();
    let mut run = new();
    let mut load =
        |bytes: &[u8]| checkpoint::load_from(&mut run.engine(), Cursor::new(bytes), &Load::default());
    assert!(load(&bytes).unwrap().checked);
    for at in (0..bytes.len()).rev().step_by(61) {
        bytes[at] ^= 4;
        assert!(load(&bytes).is_err(), "byte {at}");
        bytes[at] ^= 4;
    }
}

/// A file above the size that is checked first: the state is torn, and the error says so.
#[test]
fn a_large_file_is_checked_while_it_is_loaded() {
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [500_000])]).unwrap();
    let mut run = on_cpu(layout()).after(1);
    for (name, save) in [("run.safetensors", Save::default()), ("run.safetensors.index.json", sharded())] {
        let directory = Directory::new("large-digest");
        let path = directory.file(name);
        run.save(&path, &save).unwrap();
        assert!(on_cpu(layout()).load(&path, &Load::default()).unwrap().checked);
        let file = directory.names().into_iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
        let file = directory.file(&file);
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let mut other = on_cpu(layout());
        let error = other.load(&path, &Load::default()).unwrap_err();
        let Error::Torn(error) = error else { panic!("{error}") };
        let Error::Malformed { location, reason: Malformed::Digest { .. } } = *error else {
            panic!("{error}")
        };
        assert_eq!(location.path(), Some(&*path));
        assert_eq!(other.optimizer.steps(), 0, "it has not gone on");
        bytes[last] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(other.load(&path, &Load::default()).unwrap().checked);
        assert!(bits(&other) == bits(&run));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any bits of up to four bytes side by side, anywhere in files of any size.
    #[test]
    fn changes_are_found(
        lens in prop::collection::vec(0u64..60_000, 1..6),
        formats in (0usize..2, 0usize..3),
        seed: u64,
    ) {
        let group = Group::new("all", AdamW::default());
        let group = lens.iter().enumerate().fold(group, |g, (i, n)| g.tensor(format!("t{i}"), [n + 1]));
        let layout = Layout::new([group]).unwrap();
        let states = Format::STATES[formats.1];
        let options = Options { states, ..Options::default() };
        let start = vec![0.25; layout.len() as usize];
        let mut run = CpuRun::new(layout, options, &start).after(formats.0);
        let good = run.bytes();
        prop_assert!(Reader::new(Cursor::new(&good)).unwrap().verify().unwrap());
        let mut random = Random::new(seed);
        for _ in 0..40 {
            let mut bytes = good.clone();
            let at = random.below(bytes.len() as u64 - 4) as usize;
            let change = (random.bits() as u32).max(1).to_le_bytes();
            bytes[at..at + 4].iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change);
            let load = checkpoint::load_from(&mut run.engine(), Cursor::new(&bytes), &Load::default());
            prop_assert!(load.is_err(), "bytes {}.. by {:?}", at, change);
        }
    }
}

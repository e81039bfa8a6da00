//! Extreme integers around files: each an error or a result, never an overflow.

use crate::common::{Directory, Saves, layout, on_cpu};
use crate::hostile::{good, write};
use serde_json::{Value, json};
use wgpu_optim::checkpoint::{Error, Load, Metadata, Reader, Save};

fn extremes() -> Vec<u64> {
    let powers = [0, 1, 2, 8, 31, 32, 33, 52, 53, 61, 63].map(|power| 1u64 << power);
    let near = powers.into_iter().flat_map(|n| [n - 1, n, n + 1]);
    near.chain((0..9).map(|n| u64::MAX - n)).collect()
}

#[test]
fn sizes_of_shards() {
    let directory = Directory::new("extreme-shards");
    for bytes in extremes() {
        let path = directory.file(&format!("{bytes}.safetensors.index.json"));
        let save = Save { shard_bytes: Some(bytes), ..Save::default() };
        on_cpu(layout()).steps(1).save(&path, &save).unwrap();
        on_cpu(layout()).load(&path, &Load::default()).unwrap();
    }
}

#[test]
fn places_in_a_file() {
    let directory = Directory::new("extreme-places");
    let path = directory.file("whole.safetensors");
    on_cpu(layout()).steps(1).save(&path, &Save::default()).unwrap();
    let mut reader = Reader::open(&path).unwrap();
    let (name, first) = (reader.tensors()[0].name().to_string(), reader.tensors()[0].bytes());
    let (slot, tensor) = name.split_once('/').unwrap();
    for n in extremes() {
        if let Ok(i) = usize::try_from(n) {
            let bound = reader.tensors().len();
            let read = reader.read(i, 0, &mut []);
            if i < bound {
                read.unwrap();
            } else {
                assert_eq!(read, Err(Error::UnknownTensor { found: i, bound }));
            }
        }
        for len in [0, 1, 1 << 20] {
            let fits = n.saturating_add(len as u64) <= first;
            assert_eq!(reader.read(0, n, &mut vec![0; len]).is_ok(), fits, "{n} {len}");
        }
        for other in extremes() {
            let fits = n <= other && 4 * u128::from(other) <= u128::from(first);
            assert_eq!(reader.plain_numbers(&name, n, other).is_ok(), fits, "{n} {other}");
            for offset in [0, 1, u64::MAX, 1 << 63] {
                assert_eq!(reader.numbers(slot, tensor, offset, n, other).is_ok(), fits, "{n} {other}");
            }
        }
    }
}

/// A run at any count of steps goes on, and is saved so that it can be read.
#[test]
fn counts_of_steps() {
    let directory = Directory::new("extreme-steps");
    let (header, data) = good(&directory);
    let record: Value = serde_json::from_str(header["__metadata__"]["wgpu_optim"].as_str().unwrap()).unwrap();
    let path = directory.file("many.safetensors");
    for steps in extremes() {
        for taken in [0, 1, steps / 2, steps.saturating_sub(1), steps] {
            let (mut header, mut record) = (header.clone(), record.clone());
            record["steps"] = json!(steps);
            record["taken"] = json!(taken);
            record.as_object_mut().unwrap().remove("crc32c");
            header["__metadata__"]["wgpu_optim"] = json!(record.to_string());
            write(&path, header.to_string().as_bytes(), &data);
            let mut run = on_cpu(layout());
            let loaded = run.load(&path, &Load::default());
            assert_eq!(loaded.is_ok(), steps <= 1 << 53 && taken <= steps, "{steps} {taken}");
            if loaded.is_ok() {
                run.steps(2);
                match run.save(&path, &Save::default()) {
                    Ok(()) => {
                        let again = Metadata::read(&Reader::open(&path).unwrap()).unwrap();
                        assert_eq!((again.steps, again.taken), (steps + 2, taken + 2));
                    }
                    Err(error) => assert!(matches!(error, Error::Malformed { .. }), "{error}"),
                }
            }
        }
    }
}

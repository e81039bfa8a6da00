//! Memory of loading and saving: bounded for any file.

use crate::common::{Directory, Saves, on_cpu};
use crate::hostile::{MAX, load, write};
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::fs;
use wgpu_optim::checkpoint::{Error, Load, Malformed, Save};
use wgpu_optim::{AdamW, Group, Layout};

/// The largest memory of a load beyond the file's size.
const BOUND: usize = 64 << 20;

struct Counting;

thread_local! {
    /// Bytes that this thread holds, and the most so far. Counts are per thread because other tests run at
    /// the same time.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD.set(HELD.get() + bytes);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: it is the system's; what is counted does not change what it does.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count(memory.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(memory) }
    }
    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        count(-(memory.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, memory) }
    }
}

/// The most bytes that `f` holds at a time, and its result.
fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    ((PEAK.get() - before) as usize, result)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn headers_of_all_shards_are_bounded() {
    let directory = Directory::new("headers");
    let index = directory.file("run.safetensors.index.json");
    let header = format!("{{{}}}", " ".repeat(MAX as usize / 2));
    let names = ["a", "b"];
    names.iter().for_each(|name| write(&directory.file(name), header.as_bytes(), &[]));
    fs::write(&index, json!({"weight_map": {"x": "a", "y": "b"}}).to_string()).unwrap();
    let error = load(&index).unwrap_err();
    assert!(matches!(error, Error::Malformed { reason: Malformed::TooLarge { .. }, .. }), "{error}");
}

/// Memory stays below the file's size plus 64 MiB, for the content that takes the most memory per byte.
#[test]
fn memory_is_bounded() {
    let directory = Directory::new("memory");
    let path = directory.file("large.safetensors");
    let repeated = |first: &str, item: &dyn Fn(usize) -> String, last: &str, bytes: usize| {
        let mut text = first.to_owned();
        let mut i = 0;
        while text.len() + last.len() + 200 < bytes {
            if i > 0 {
                text.push(',');
            }
            text += &item(i);
            i += 1;
        }
        text + last
    };
    let max = MAX as usize;
    let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let record = |text: String| format!(r#"{{"__metadata__":{{"wgpu_optim":{}}}}}"#, json!(text));
    let start = r#"{"version":1,"writer":"","rule":"","steps":0,"taken":0,"loss_scale":null,"options":null,"#;
    let start = &[start, r#""groups":["#].concat();
    let group = r#"{"name":"","hyperparameters":0,"lr_factor":null,"carry":"0000000000000000","tensors":{}}"#;
    let names =
        [start, r#"{"name":"","hyperparameters":0,"lr_factor":null,"carry":"0000000000000000","tensors":{"#]
            .concat();
    for (what, text) in [
        ("tensors of one name", repeated("{", &|_| format!(r#""":{empty}"#), "}", max)),
        ("tensors", repeated("{", &|i| format!(r#""{i:x}":{empty}"#), "}", max)),
        (
            "dimensions",
            repeated(r#"{"a":{"dtype":"U8","data_offsets":[0,0],"shape":["#, &|_| "1".into(), "]}}", max),
        ),
        ("keys", repeated(r#"{"__metadata__":{"#, &|i| format!(r#""{i}":"""#), "}}", max)),
        ("one long text", format!(r#"{{"__metadata__":{{"wgpu_optim":"{}"}}}}"#, "x".repeat(max - 100))),
        ("one long name", format!(r#"{{"{}":{empty}}}"#, "x".repeat(max - 100))),
        ("groups", record(repeated(start, &|_| group.into(), "]}", 5 << 20))),
        ("places", record(repeated(&names, &|_| r#""":0"#.into(), "}}]}", 3 << 20))),
        ("other tensors", record(repeated(&names, &|i| format!(r#""{i:x}":0"#), "}}]}", 3 << 20))),
        (
            "long hyperparameters",
            record(repeated(
                start,
                &|_| group.replace(":0,", &format!(":[{}0],", "0,".repeat(30_000))),
                "]}",
                5 << 20,
            )),
        ),
    ] {
        write(&path, text.as_bytes(), &[]);
        drop(text);
        let size = fs::metadata(&path).unwrap().len() as usize;
        let (took, result) = peak(|| load(&path));
        assert!(result.is_err(), "{what}");
        assert!(took <= size + BOUND, "{what}: {took} bytes for a file of {size}");
        eprintln!("{what}: {} MiB for a file of {} MiB", took >> 20, size >> 20);
    }
    let index = directory.file("large.safetensors.index.json");
    for text in [
        repeated(r#"{"weight_map":{"#, &|_| r#""":"a""#.into(), "}}", max),
        repeated(r#"{"weight_map":{"#, &|i| format!(r#""{i:x}":"{i:x}""#), "}}", max),
    ] {
        fs::write(&index, &text).unwrap();
        drop(text);
        let size = fs::metadata(&index).unwrap().len() as usize;
        let (took, result) = peak(|| load(&index));
        assert!(result.is_err());
        assert!(took <= size + BOUND, "an index: {took} bytes for a file of {size}");
    }
}

/// Neither saving nor loading takes memory in proportion to the state.
#[test]
fn both_ways_are_streams() {
    /// Far below the 96 MB of the file; what there is of it are buffers of 1 MiB.
    const STREAMED: usize = 8 << 20;
    let directory = Directory::new("streams");
    let path = directory.file("run.safetensors");
    let group = Group::new("all", AdamW::default()).tensor("w", [6_000_000]).tensor("v", [2_000_000]);
    let mut run = on_cpu(Layout::new([group]).unwrap());
    run.steps(1);
    let (saving, result) = peak(|| run.save(&path, &Save::default()));
    result.unwrap();
    let (loading, result) = peak(|| run.load(&path, &Load::default()));
    result.unwrap();
    assert!(saving < STREAMED && loading < STREAMED, "{saving} and {loading} bytes");
}

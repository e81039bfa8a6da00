//! Checkpoints through readers and writers of the caller: the bytes and checks of files.

use crate::common::{Directory, Random, Saves, bits, blocks_fixture, layout, mismatches, on_cpu};
use crate::gpu::on_gpu;
use cpu_harness::CpuRun;
use harness::GpuRun;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use wgpu_optim::checkpoint::{self, Error, Load, Location, Malformed, Metadata, Mismatch, Reader, Save};
use wgpu_optim::{AdamW, Format, Group, Layout, Master, Options, Rounding};

/// A run's checkpoint.
fn saved(run: &mut CpuRun, save: &Save) -> Vec<u8> {
    let mut bytes = Vec::new();
    checkpoint::save_to(&mut run.engine(), &mut bytes, save).unwrap();
    bytes
}

/// Loads bytes onto the small run after a step. An error leaves it as it was, and a load lets it step.
fn load(bytes: &[u8]) -> Result<(), Error> {
    let mut run = on_cpu(layout());
    run.steps(1);
    let before = bits(&run);
    let result = checkpoint::load_from(&mut run.engine(), Cursor::new(bytes), &Load::default());
    match &result {
        Ok(_) => drop(run.steps(1)),
        Err(_) => assert_eq!(bits(&run), before),
    }
    result.map(drop)
}

/// Every format of parameters and of state with every master that fits, and others.
fn all_options() -> Vec<Options> {
    let around = Options {
        ema: Some(wgpu_optim::Ema { decay: 0.5, debias: true }),
        loss_scale: Some(wgpu_optim::LossScale::default()),
        rounding: Rounding::Stochastic { seed: 3 },
        ..Options::default()
    };
    let mut all = vec![Options::default(), blocks_fixture().1];
    for (params, states) in Format::TENSORS.into_iter().flat_map(|p| Format::STATES.map(|s| (p, s))) {
        for master in Master::ALL {
            let options = Options { params, grads: params, states, master, ..around };
            if options.validate().is_ok() {
                all.push(options);
            }
        }
    }
    all
}

/// In memory, in every format, on the CPU: bit for bit, and the bytes of the file.
#[test]
fn round_trips_in_memory() {
    let directory = Directory::new("stream-formats");
    let path = directory.file("run.safetensors");
    for options in all_options() {
        // The CPU engine takes gradients of 4 bytes beside parameters of 2.
        let options = Options { grads: Format::F32, ..options };
        let new = || {
            let layout = blocks_fixture().0;
            let start = vec![0.25; layout.len() as usize];
            CpuRun::new(layout, options, &start)
        };
        let mut run = new().after(3);
        let save = Save { metadata: BTreeMap::from([("a".into(), "b".into())]), ..Save::default() };
        let bytes = saved(&mut run, &save);
        run.save(&path, &save).unwrap();
        assert!(fs::read(&path).unwrap() == bytes, "{options:?}");
        let mut other = new();
        let loaded =
            checkpoint::load_from(&mut other.engine(), Cursor::new(&bytes), &Load::default()).unwrap();
        assert_eq!((loaded.steps, loaded.metadata["a"].as_str()), (3, "b"), "{options:?}");
        // Both go on alike.
        assert!(run.steps(1).bytes() == other.steps(1).bytes(), "{options:?}");
    }
}

#[test]
fn round_trips_on_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("stream-gpu");
    let path = directory.file("run.safetensors");
    let (layout, options) = blocks_fixture();
    let new = || on_gpu(&gpu, layout.clone(), options);
    let save = |run: &mut GpuRun<'_>| {
        let bytes = run.bytes();
        run.save(&path, &Save::default()).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        bytes
    };
    let bytes = save(&mut new().after(3));
    let mut other = new();
    let loaded = checkpoint::load_from(&mut other.engine(), Cursor::new(&bytes), &Load::default()).unwrap();
    assert_eq!(loaded.steps, 3);
    assert!(save(&mut other) == bytes);
}

/// A stream is read from its first byte, for any position.
#[test]
fn a_stream_is_read_from_its_start() {
    let mut run = on_cpu(layout());
    let mut stream = Cursor::new(Vec::new());
    checkpoint::save_to(&mut run.steps(2).engine(), &mut stream, &Save::default()).unwrap();
    assert_eq!(stream.position(), stream.get_ref().len() as u64);
    let mut other = on_cpu(layout());
    checkpoint::load_from(&mut other.engine(), &mut stream, &Load::default()).unwrap();
    assert_eq!(bits(&other), bits(&run));
    let mut reader = Reader::new(stream).unwrap();
    assert_eq!(Metadata::read(&reader).unwrap().steps, 2);
    let numbers = reader.numbers("exp_avg", "w", 0, 0, 15).unwrap().unwrap();
    assert_eq!(numbers, run.state("exp_avg", "w"));
}

#[test]
fn progress_of_streams_counts_to_the_end() {
    let mut run = on_cpu(layout());
    let (mut bytes, mut seen) = (Vec::new(), Vec::new());
    let save = Save::default();
    let each = |done, total| seen.push((done, total));
    checkpoint::save_to_with_progress(&mut run.engine(), &mut bytes, &save, each).unwrap();
    assert_eq!((seen[0], seen[seen.len() - 1], seen.len()), ((0, 288), (288, 288), 10));
    let saving = std::mem::take(&mut seen);
    let each = |done, total| seen.push((done, total));
    let (stream, load) = (Cursor::new(&bytes), Load::default());
    checkpoint::load_from_with_progress(&mut run.engine(), stream, &load, each).unwrap();
    assert_eq!((seen[0], seen[seen.len() - 1], seen.len()), ((0, 288), (288, 288), saving.len()));
}

#[test]
fn a_stream_takes_one_file() {
    let mut run = on_cpu(layout());
    let save = Save { shard_bytes: Some(96), ..Save::default() };
    let mut bytes = Vec::new();
    let error = checkpoint::save_to(&mut run.engine(), &mut bytes, &save).unwrap_err();
    assert!(matches!(error, Error::Shards { found: 96 }), "{error}");
    assert_eq!(error.to_string(), "shard_bytes = 96, must be None: a stream takes one file");
    assert!(bytes.is_empty());
    // An index is none either.
    let directory = Directory::new("stream-index");
    let path = directory.file("run.safetensors.index.json");
    run.save(&path, &save).unwrap();
    let error = load(&fs::read(path).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Malformed { location: Location::Stream, .. }), "{error}");
}

#[test]
fn a_stream_cut_short_is_malformed() {
    let bytes = saved(on_cpu(layout()).steps(2), &Save::default());
    load(&bytes).unwrap();
    for len in 0..bytes.len() {
        let error = load(&bytes[..len]).unwrap_err();
        let Error::Malformed { location: Location::Stream, reason } = &error else { panic!("{error}") };
        assert!(matches!(reason, Malformed::Truncated { len: found, .. } if *found == len as u64), "{error}");
        assert!(error.to_string().starts_with("<stream>: "), "{error}");
    }
    let error = load(&[&bytes[..], &[0]].concat()).unwrap_err();
    assert!(matches!(error, Error::Malformed { reason: Malformed::Trailing { .. }, .. }), "{error}");
}

/// A stream with the bytes of a file is refused for the reason for which the file is.
#[test]
fn damaged_streams_are_refused_as_files_are() {
    let directory = Directory::new("stream-damaged");
    let path = directory.file("run.safetensors");
    let good = saved(on_cpu(layout()).steps(2), &Save::default());
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/checkpoint");
    let mut all = vec![good];
    all.extend(fs::read_dir(corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()));
    let mut random = Random::new(12);
    let (mut refused, mut loads) = (0, 0);
    for whole in all {
        for round in 0..100 {
            let mut bytes = whole.clone();
            for _ in 0..round % 3 {
                let at = random.below(bytes.len() as u64) as usize;
                match random.below(3) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"0123456789{}[],:\"\\"[random.below(18) as usize]),
                }
            }
            fs::write(&path, &bytes).unwrap();
            let file = on_cpu(layout()).load(&path, &Load::default());
            match (file, load(&bytes)) {
                (Ok(_), Ok(())) => loads += 1,
                (Err(file), Err(stream)) => {
                    let stream = stream.to_string().replacen("<stream>", &format!("{path:?}"), 1);
                    assert_eq!(stream, file.to_string());
                    refused += 1;
                }
                (file, stream) => panic!("file: {file:?}, stream: {stream:?}"),
            }
        }
    }
    assert!(refused > 100 && loads > 10, "{refused} refused, {loads} loaded");
}

#[test]
fn a_stream_of_something_else_is_refused() {
    let empty = b"\x08\0\0\0\0\0\0\0{}      ";
    let error = load(empty).unwrap_err();
    assert!(matches!(error, Error::NotACheckpoint { location: Location::Stream, .. }), "{error}");
    let other = Layout::new([Group::new("all", AdamW::default()).tensor("x", [4])]).unwrap();
    let bytes = saved(&mut on_cpu(other), &Save::default());
    let mut run = on_cpu(layout());
    let before = bits(run.steps(1));
    let found = mismatches(checkpoint::load_from(&mut run.engine(), Cursor::new(bytes), &Load::default()));
    assert!(found.contains(&Mismatch::ExtraTensor { tensor: "x".into() }), "{found:?}");
    assert_eq!(bits(&run), before);
}

/// A writer that takes a number of bytes, and then is full.
struct Full {
    room: usize,
    flushes: bool,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == 0 {
            return Err(ErrorKind::StorageFull.into());
        }
        let n = bytes.len().min(self.room);
        self.room -= n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.flushes { Ok(()) } else { Err(ErrorKind::BrokenPipe.into()) }
    }
}

/// In the header, in the data, one byte before the end, and as the end is flushed: an error, and the run is
/// as it was.
#[test]
fn a_writer_that_fails_is_an_error() {
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [300_000])]).unwrap();
    let mut run = on_cpu(layout());
    let bytes = saved(run.steps(1), &Save::default());
    let before = bits(&run);
    let all = bytes.len();
    for (room, kind) in [
        (0, ErrorKind::StorageFull),
        (100, ErrorKind::StorageFull),
        (all / 2, ErrorKind::StorageFull),
        (all - 1, ErrorKind::StorageFull),
        (all, ErrorKind::BrokenPipe),
    ] {
        let writer = Full { room, flushes: false };
        let error = checkpoint::save_to(&mut run.engine(), writer, &Save::default()).unwrap_err();
        let Error::Io { what: "write", location: Location::Stream, source } = &error else {
            panic!("{room}: {error}")
        };
        assert_eq!(source.kind(), kind, "{room} bytes");
        assert!(error.to_string().starts_with("cannot write <stream>: "), "{error}");
    }
    checkpoint::save_to(&mut run.engine(), Full { room: all, flushes: true }, &Save::default()).unwrap();
    assert!(bits(&run) == before);
    assert!(saved(&mut run, &Save::default()) == bytes);
}

/// A reader that reports `len` bytes, and fails after the first `good`.
struct Liar<'a> {
    bytes: Cursor<&'a [u8]>,
    len: u64,
    good: u64,
}

impl Read for Liar<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.good.saturating_sub(self.bytes.position());
        if left == 0 {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let n = into.len().min(left as usize);
        self.bytes.read(&mut into[..n])
    }
}

impl Seek for Liar<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::End(0) => Ok(self.len),
            to => self.bytes.seek(to),
        }
    }
}

/// A reader that fails in the header changes nothing. One that fails in the data leaves torn state, and the
/// error tells it.
#[test]
fn a_reader_that_fails_is_an_error() {
    let layout = || Layout::new([Group::new("all", AdamW::default()).tensor("w", [500_000])]).unwrap();
    let mut run = on_cpu(layout());
    let bytes = saved(run.steps(1), &Save::default());
    let len = bytes.len() as u64;
    let mut other = on_cpu(layout());
    let before = bits(&other);
    let failing = |good, len| Liar { bytes: Cursor::new(&bytes[..]), len, good };
    for good in [0, 8, 100] {
        let error = checkpoint::load_from(&mut other.engine(), failing(good, len), &Load::default());
        let error = error.unwrap_err();
        let Error::Io { what: "read", location: Location::Stream, source } = &error else {
            panic!("{error}")
        };
        assert_eq!(source.kind(), ErrorKind::ConnectionReset);
        assert!(bits(&other) == before);
    }
    // Lengths that are not so.
    for len in [0, len - 1, len + 1, u64::MAX] {
        let error = checkpoint::load_from(&mut other.engine(), failing(u64::MAX, len), &Load::default());
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Malformed { location: Location::Stream, .. }), "{error}");
        assert!(bits(&other) == before);
    }
    let error = checkpoint::load_from(&mut other.engine(), failing(len / 2, len), &Load::default());
    let Err(Error::Torn(error)) = error else { panic!("{error:?}") };
    assert!(matches!(*error, Error::Io { what: "read", location: Location::Stream, .. }), "{error}");
    assert_eq!(other.optimizer.steps(), 0, "it has not gone on");
    checkpoint::load_from(&mut other.engine(), failing(len, len), &Load::default()).unwrap();
    assert!(bits(&other) == bits(&run));
}

//! Saving: writes the streams of an engine as tensors of files or of a stream.

use super::limits::TOTAL_SIZE;
use super::metadata::{self, Metadata};
use super::writer::{Planned, Writer};
use super::{Engine, Save};
use crate::error::checkpoint::{Error, Location};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Saves all state of an optimizer to `path`.
///
/// # Errors
/// An [`Error`] if the file cannot be written, if parameters, names or keys are refused, if a rule cannot be
/// saved, or if the file would exceed the limits of a load: 512 files, 16 MiB for the headers of all files
/// together or for the index, 1 024 keys of metadata, 32 dimensions, a bounded depth of schedules. For AdamW
/// with parameters, 16 MiB of headers are about 40 000 tensors with names of 40 letters.
///
/// After an error the old file is still at `path`, with one exception: if the directory could not be flushed
/// ([`Error::Io`], "write" with the directory's path), the complete new file is at `path`. A crash of the
/// machine may then bring back the old one.
pub fn save<E: Engine>(engine: &mut E, path: impl AsRef<Path>, save: &Save) -> Result<(), Error> {
    save_with_progress(engine, path, save, |_, _| ())
}

/// Saves as [`save`] does. `progress` is told how many bytes of how many are done, before the first and after
/// each part of a tensor.
///
/// ```no_run
/// # use wgpu_optim::checkpoint::{self, Error, Save};
/// # fn f(engine: &mut wgpu_optim::checkpoint::Cpu<'_>) -> Result<(), Error> {
/// checkpoint::save_with_progress(engine, "run.safetensors", &Save::default(), |done, total| {
///     eprintln!("{done} of {total} bytes");
/// })?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The errors of [`save`].
pub fn save_with_progress<E: Engine>(
    engine: &mut E,
    path: impl AsRef<Path>,
    save: &Save,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let path = path.as_ref();
    let Plan { streams, tensors, metadata } = Plan::new(engine, save, &path.into())?;
    let writer = Writer::create(path, tensors, metadata, save.shard_bytes)?;
    write(engine, &streams, writer, &mut progress).map(drop)
}

/// Saves all state of an optimizer into `writer`, with the bytes that [`save`] writes to one file.
///
/// The bytes are written in pieces of at most 256 KiB, and `writer` is flushed after the last. The header has
/// the digest of all later bytes, and a stream cannot go back. The state is therefore read twice, the first
/// time for the digest.
///
/// ```
/// use std::io::Cursor;
/// use wgpu_optim::checkpoint::{self, Cpu, Load, Save};
/// use wgpu_optim::{Adam, Group, Layout, cpu};
/// let layout = Layout::new([Group::new("all", Adam::default()).tensor("w", [64, 32])])?;
/// let mut optimizer = cpu::Optimizer::new(layout)?;
/// let mut snapshot = Vec::new();
/// checkpoint::save_to(&mut Cpu::new(&mut optimizer), &mut snapshot, &Save::default())?;
/// // … steps that are to be taken back …
/// checkpoint::load_from(&mut Cpu::new(&mut optimizer), Cursor::new(&snapshot), &Load::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The errors of [`save`], and an [`Error`] if [`Save::shard_bytes`] is set. After an error of the stream
/// ([`Error::Io`]) or of the engine, `writer` may have a part of the bytes; [`load_from`](super::load_from)
/// refuses such a part.
pub fn save_to<E: Engine>(engine: &mut E, writer: impl Write, save: &Save) -> Result<(), Error> {
    save_to_with_progress(engine, writer, save, |_, _| ())
}

/// Saves as [`save_to`] does, and reports as [`save_with_progress`] does.
///
/// # Errors
/// The errors of [`save_to`].
pub fn save_to_with_progress<E: Engine>(
    engine: &mut E,
    writer: impl Write,
    save: &Save,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    if let Some(found) = save.shard_bytes {
        return Err(Error::Shards { found });
    }
    let Plan { streams, tensors, metadata } = Plan::new(engine, save, &Location::Stream)?;
    let nowhere = Writer::stream(io::sink(), tensors.clone(), metadata.clone(), None)?;
    let digest = write(engine, &streams, nowhere, &mut |_, _| ())?;
    let writer = Writer::stream(writer, tensors, metadata, digest)?;
    write(engine, &streams, writer, &mut progress).map(drop)
}

/// The tensors of a checkpoint, before the first is written.
struct Plan {
    /// The engine's streams, in the order in which they are written.
    streams: Vec<usize>,
    tensors: Vec<Planned>,
    metadata: BTreeMap<String, String>,
}

impl Plan {
    fn new<E: Engine>(engine: &mut E, save: &Save, location: &Location) -> Result<Self, Error> {
        let mut metadata = save.metadata.clone();
        engine.check(false)?;
        let counters = engine.counters()?;
        let text = Metadata::new(engine.layout(), engine.options(), &counters)?.text(location)?;
        for key in [metadata::KEY, TOTAL_SIZE] {
            if metadata.contains_key(key) {
                return Err(Error::Key { key: key.into() });
            }
        }
        metadata.insert(metadata::KEY.into(), text);
        let all = engine.streams();
        // Wider values first, so that all are aligned.
        let mut streams: Vec<_> = (0..all.len()).collect();
        streams.sort_by_key(|&i| Reverse(all[i].content.value_bytes()));
        let by_offset: Vec<_> = engine.layout().by_offset().collect();
        let mut tensors = Vec::new();
        for stream in streams.iter().map(|&i| &all[i]) {
            let (prefix, dtype) = (stream.prefix(), stream.content.dtype());
            tensors.extend(stream.tensors.iter().map(|&i| Planned {
                name: [prefix.as_str(), &by_offset[i].name].concat(),
                dtype,
                shape: stream.shape(by_offset[i]),
                bytes: stream.bytes(by_offset[i]),
            }));
        }
        Ok(Self { streams, tensors, metadata })
    }
}

/// Writes the streams of an engine, one after the other. Returns the digest if it was not given.
fn write<E: Engine>(
    engine: &mut E,
    streams: &[usize],
    mut writer: Writer<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<u32>, Error> {
    let total = writer.total();
    let mut done = 0;
    progress(done, total);
    for &stream in streams {
        engine.read(stream, &mut |_, bytes| {
            writer.write(bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(())
        })?;
    }
    writer.finish()
}

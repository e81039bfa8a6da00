//! Loading: the tensors of files, or of a stream, become the streams of an engine.

use super::engine::Part;
use super::metadata::{self, Metadata};
use super::reader::Reader;
use super::{Engine, Load, Loaded, fit};
use crate::error::checkpoint::Error;
use std::io::{Read, Seek};
use std::path::Path;

/// Up to this many bytes of tensors are compared with the digest before the first write, and read twice.
const SMALL: u64 = 1 << 20;

/// Loads a checkpoint file or an index at `path`, as written by [`save`](super::save).
///
/// # Errors
/// An [`Error`] if the file cannot be read, is no checkpoint or does not fit; nothing has changed then. An
/// [`Error::Torn`] if reading fails although the file's length is right, or if the content does not match the
/// digest. A file of at most 1 MiB is checked before anything changes.
pub fn load<E: Engine>(engine: &mut E, path: impl AsRef<Path>, load: &Load) -> Result<Loaded, Error> {
    load_with_progress(engine, path, load, |_, _| ())
}

/// Loads as [`load`] does. `progress` gets the bytes done and the bytes in all, before the first and after
/// each part of a tensor.
///
/// # Errors
/// The errors of [`load`].
pub fn load_with_progress<E: Engine>(
    engine: &mut E,
    path: impl AsRef<Path>,
    load: &Load,
    mut progress: impl FnMut(u64, u64),
) -> Result<Loaded, Error> {
    read(engine, Reader::open(path)?, load, &mut progress)
}

/// Loads a checkpoint of one file from a stream.
///
/// The checkpoint is all bytes of the stream from the first to the last, for any position of the stream.
/// [`save_to`](super::save_to) has an example.
///
/// The stream may be untrusted, as for [`load`].
///
/// # Errors
/// The errors of [`load`], with [`Location::Stream`](super::Location::Stream).
pub fn load_from<E: Engine>(engine: &mut E, reader: impl Read + Seek, load: &Load) -> Result<Loaded, Error> {
    load_from_with_progress(engine, reader, load, |_, _| ())
}

/// Loads as [`load_from`] does, and reports as [`load_with_progress`] does.
///
/// # Errors
/// The errors of [`load_from`].
pub fn load_from_with_progress<E: Engine>(
    engine: &mut E,
    reader: impl Read + Seek,
    load: &Load,
    mut progress: impl FnMut(u64, u64),
) -> Result<Loaded, Error> {
    read(engine, Reader::new(reader)?, load, &mut progress)
}

fn read<E: Engine>(
    engine: &mut E,
    mut reader: Reader<'_>,
    load: &Load,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, Error> {
    let record = Metadata::read(&reader)?;
    let streams = engine.streams();
    let fit::Fitted { sources, counters, layout, options } =
        fit::fit(engine.layout(), engine.options(), &streams, &reader, &record, load)?;
    engine.check(true)?;
    // Refuses steps in flight.
    engine.counters()?;
    if reader.tensors().iter().map(|tensor| tensor.bytes()).sum::<u64>() <= SMALL {
        reader.verify()?;
    }
    let total = sources.iter().flatten().map(|source| source.bytes).sum();
    let mut done = 0;
    progress(done, total);
    for (i, sources) in sources.iter().enumerate() {
        let mut fill = |part: Part, bytes: &mut [u8]| {
            let filled = sources[part.tensor].fill(&mut reader, part.start, bytes)?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(filled)
        };
        engine.write(i, &mut fill).map_err(|error| Error::Torn(error.into()))?;
    }
    assert_eq!(done, total, "an engine asks for all bytes of its streams");
    let rest = || {
        let checked = reader.verify()?;
        engine.configure(layout, options)?;
        engine.restore(&counters)?;
        Ok(checked)
    };
    let checked = rest().map_err(|error: Error| Error::Torn(error.into()))?;
    let mut metadata = reader.metadata().clone();
    metadata.remove(metadata::KEY);
    Ok(Loaded { steps: counters.steps, taken: counters.taken, checked, metadata })
}

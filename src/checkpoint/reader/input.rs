//! Input bytes: of a file, or of a stream of the caller.

use crate::error::checkpoint::{Error, Location, Malformed};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// A file, or a stream of the caller.
pub(super) struct Input<'a> {
    location: Location,
    bytes: Box<dyn ReadSeek + 'a>,
    len: u64,
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { location, len, .. } = self;
        f.debug_struct("Input").field("location", location).field("len", len).finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    /// Opens the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::new(path.into(), File::open(path).map_err(Error::io("open", path))?)
    }

    /// Takes the bytes of `stream` from its first to its last, for any position of the stream.
    pub(super) fn stream(stream: impl Read + Seek + 'a) -> Result<Self, Error> {
        Self::new(Location::Stream, stream)
    }

    fn new(location: Location, mut bytes: impl Read + Seek + 'a) -> Result<Self, Error> {
        let len = bytes.seek(SeekFrom::End(0)).map_err(Error::io("read", &location))?;
        Ok(Self { location, bytes: Box::new(bytes), len })
    }

    /// The size in bytes at the time of opening.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The error for malformed input.
    pub(super) fn malformed(&self, reason: Malformed) -> Error {
        Error::Malformed { location: self.location.clone(), reason }
    }

    /// Reads from byte `at` on until `into` is full.
    pub(super) fn read_at(&mut self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        self.bytes
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.bytes.read_exact(into))
            .map_err(Error::io("read", &self.location))
    }
}

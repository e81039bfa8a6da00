//! The caller's stream, which takes one file.

use super::Output;
use crate::error::checkpoint::{Error, Location};
use std::io::{self, BufWriter, Write};

/// Bytes per write. With 1 MiB and more, Linux (ext4) allocates large pieces for its page cache, which took
/// up to seven times as long.
pub(super) const BUFFER: usize = 256 << 10;

pub(super) fn write_all(writer: &mut BufWriter<impl Write>, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(BUFFER).try_for_each(|part| writer.write_all(part))
}

/// A stream of the caller.
pub(super) struct Stream<W: Write>(BufWriter<W>);

impl<W: Write> Stream<W> {
    pub(super) fn new(writer: W) -> Self {
        Self(BufWriter::with_capacity(BUFFER, writer))
    }
}

impl<W: Write> Output for Stream<W> {
    fn begin(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        write_all(&mut self.0, bytes).map_err(Error::io("write", &Location::Stream))
    }

    fn restart(&mut self, _: &[u8]) -> Result<(), Error> {
        // The digest was given, or is not kept.
        Ok(())
    }

    fn finish(&mut self, _: Option<&[u8]>) -> Result<(), Error> {
        self.0.flush().map_err(Error::io("write", &Location::Stream))
    }
}

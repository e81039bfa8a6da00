//! Writing of safetensors files: headers that are known beforehand, then tensors one after the other.

mod files;
mod header;
mod pending;
mod shards;
mod stream;

use super::digest;
use super::limits::{HEADERS, LENGTH_BYTES, MAX_DIMENSIONS, MAX_KEYS, MAX_SHARDS};
use crate::error::checkpoint::{Error, Location, Malformed};
use crc32c::crc32c_append;
use files::Files;
use header::{bounded, header, index};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use stream::{BUFFER, Stream};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: u64,
}

/// Takes the bytes of files, one file after the other.
trait Output {
    /// Starts the next file, to which all later bytes belong.
    fn begin(&mut self) -> Result<(), Error>;
    /// Writes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// Replaces the first bytes of the only file.
    fn restart(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// Ends the last file. `index` is the text of the index of several files.
    fn finish(&mut self, index: Option<&[u8]>) -> Result<(), Error>;
}

/// Writes tensors one after the other into one file, into several files with an index, or into a stream.
pub(super) struct Writer<'a> {
    location: Location,
    tensors: Vec<Planned>,
    metadata: BTreeMap<String, String>,
    /// The tensors of each file.
    files: Vec<Range<usize>>,
    /// The files' names, if there is an index.
    names: Option<Vec<String>>,
    output: Box<dyn Output + 'a>,
    /// The number of files that have begun.
    begun: usize,
    /// The next tensor, and the number of its bytes written.
    tensor: usize,
    left: u64,
    /// The sum of each tensor's bytes, unless the digest is known.
    sums: Option<Vec<u32>>,
    /// Bytes of all tensors, and the number written so far.
    total: u64,
    written: u64,
}

impl<'a> Writer<'a> {
    /// Prepares to write `tensors` in this order. With `shard_bytes` it makes files of at most this size; a
    /// larger tensor has a file of its own.
    pub(super) fn create(
        path: &Path,
        tensors: Vec<Planned>,
        metadata: BTreeMap<String, String>,
        shard_bytes: Option<u64>,
    ) -> Result<Self, Error> {
        let Some(most) = shard_bytes else {
            return Self::one(path.into(), Box::new(Files::one(path)?), tensors, metadata);
        };
        let ranges = shards::ranges(&tensors, most);
        let files = Files::several(path, ranges.len())?;
        let names = Some(files.names());
        Self::new(path.into(), Box::new(files), tensors, metadata, ranges, names)
    }

    /// Prepares to write `tensors`, in this order, into `writer`. A stream cannot go back to its header: the
    /// header has the given digest, or zeros.
    pub(super) fn stream(
        writer: impl Write + 'a,
        tensors: Vec<Planned>,
        mut metadata: BTreeMap<String, String>,
        digest: Option<u32>,
    ) -> Result<Self, Error> {
        digest::stamp(&mut metadata, digest.unwrap_or(0));
        let mut new = Self::one(Location::Stream, Box::new(Stream::new(writer)), tensors, metadata)?;
        new.sums = new.sums.filter(|_| digest.is_none());
        Ok(new)
    }

    fn one(
        location: Location,
        output: Box<dyn Output + 'a>,
        tensors: Vec<Planned>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let all = 0..tensors.len();
        Self::new(location, output, tensors, metadata, vec![all], None)
    }

    fn new(
        location: Location,
        output: Box<dyn Output + 'a>,
        tensors: Vec<Planned>,
        metadata: BTreeMap<String, String>,
        files: Vec<Range<usize>>,
        names: Option<Vec<String>>,
    ) -> Result<Self, Error> {
        let total = tensors.iter().map(|tensor| tensor.bytes).sum();
        let sums = Some(vec![0; tensors.len()]);
        let left = tensors.first().map_or(0, |tensor| tensor.bytes);
        let (begun, tensor, written) = (0, 0, 0);
        let new = Self {
            location,
            tensors,
            metadata,
            files,
            names,
            output,
            begun,
            tensor,
            left,
            sums,
            total,
            written,
        };
        new.check()?;
        Ok(new)
    }

    /// Refuses, before the first byte is written, a checkpoint that a load would refuse.
    fn check(&self) -> Result<(), Error> {
        let most = |what, found: usize, bound: usize| {
            let (found, bound) = (found as u64, bound as u64);
            let reason = Malformed::TooMany { what, found, bound };
            let refuse = || Error::Malformed { location: self.location.clone(), reason };
            if found <= bound { Ok(()) } else { Err(refuse()) }
        };
        most("files", self.files.len(), MAX_SHARDS)?;
        most("keys of metadata", self.metadata.len() + usize::from(self.names.is_some()), MAX_KEYS)?;
        for tensor in &self.tensors {
            most("dimensions of a tensor", tensor.shape.len(), MAX_DIMENSIONS)?;
        }
        let mut headers = 0;
        for file in 0..self.files.len() {
            headers += self.header(file)?.len() as u64 - LENGTH_BYTES;
        }
        bounded(&self.location, HEADERS, headers)?;
        match self.index()? {
            Some(index) => bounded(&self.location, "an index", index.len() as u64),
            None => Ok(()),
        }
    }

    fn tensors(&self, file: usize) -> &[Planned] {
        &self.tensors[self.files[file].clone()]
    }

    fn header(&self, file: usize) -> Result<Vec<u8>, Error> {
        let none = BTreeMap::new();
        let metadata = if self.names.is_some() { &none } else { &self.metadata };
        header(&self.location, self.tensors(file), metadata)
    }

    fn index(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(names) = &self.names else { return Ok(None) };
        let files = names.iter().enumerate().map(|(file, name)| (name.as_str(), self.tensors(file)));
        index(&self.location, files, &self.metadata, self.total).map(Some)
    }

    /// Bytes of all tensors.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Writes the next bytes. They do not cross from one tensor into the next.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        assert!(self.written <= self.total, "an engine hands over the bytes of its streams and no more");
        while !bytes.is_empty() {
            if self.left == 0 {
                self.tensor += 1;
                self.left = self.tensors[self.tensor].bytes;
                continue;
            }
            while self.files[..self.begun].last().is_none_or(|file| self.tensor >= file.end) {
                let begun = self.begin()?;
                assert!(begun, "a file follows while bytes are left");
            }
            // By pieces: a piece is still in the processor's cache when it is written.
            let n = (bytes.len().min(BUFFER) as u64).min(self.left) as usize;
            let (piece, rest) = bytes.split_at(n);
            if let Some(sums) = &mut self.sums {
                sums[self.tensor] = crc32c_append(sums[self.tensor], piece);
            }
            self.output.write(piece)?;
            self.left -= n as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Begins the next file with its header, if there is another file.
    fn begin(&mut self) -> Result<bool, Error> {
        if self.begun == self.files.len() {
            return Ok(false);
        }
        self.output.begin()?;
        self.output.write(&self.header(self.begun)?)?;
        self.begun += 1;
        Ok(true)
    }

    /// Ends the last file, flushes all files and renames them. The digest is `None` if it was given.
    pub(super) fn finish(mut self) -> Result<Option<u32>, Error> {
        assert_eq!(self.written, self.total, "an engine hands over all bytes of its streams");
        // A file without a byte of data has a header too.
        while self.begin()? {}
        let digest = self.sums.take().map(|sums| self.digest(&sums));
        if let Some(digest) = digest {
            digest::stamp(&mut self.metadata, digest);
        }
        let index = self.index()?;
        if digest.is_some() && index.is_none() {
            self.output.restart(&self.header(0)?)?;
        }
        self.output.finish(index.as_deref())?;
        Ok(digest)
    }

    fn digest(&self, sums: &[u32]) -> u32 {
        let mut tensors: Vec<_> = self.tensors.iter().zip(sums).collect();
        tensors.sort_unstable_by(|a, b| a.0.name.cmp(&b.0.name));
        let tensors = tensors.into_iter().map(|(t, sum)| (t.name.as_str(), t.dtype, &t.shape[..], *sum));
        digest::digest(&self.metadata, tensors)
    }
}

//! Reading of untrusted safetensors files: all content is checked before use.

mod header;
mod index;
mod input;
mod metadata;

use super::digest::{self, Sum};
use super::limits::INDEX_END;
use crate::error::checkpoint::{Error, Location, Malformed};
use crate::narrow::{to_u32, to_usize};
use index::Shards;
use input::Input;
use safetensors::Dtype;
use serde::de::Deserialize;
use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

/// Bytes per read for smaller requests.
const BUFFER: usize = 1 << 20;
/// Bytes per read for larger requests.
const PIECE: usize = 256 << 10;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    name: String,
    dtype: Dtype,
    shape: Box<[u64]>,
    bytes: u64,
    file: u32,
    /// The tensor's first byte from the start of the file.
    offset: u64,
}

impl Stored {
    /// The tensor's name: `SLOT/TENSOR` in a checkpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of the stored elements.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The tensor's dimensions.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The tensor's size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of the tensor's elements.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the number of elements, as in `Tensor`")]
    pub fn len(&self) -> u64 {
        self.bytes * 8 / self.dtype.bitsize() as u64
    }
}

/// A safetensors file, several files with an index, or a stream of the caller, open for reading.
///
/// Opening reads and checks the headers, in memory of a few times their size. Their size is at most 16 MiB
/// for all files together. Tensors are read on request.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The location of the file, the index or the stream.
    location: Location,
    files: Vec<Input<'a>>,
    /// The tensors, sorted by name.
    tensors: Vec<Stored>,
    metadata: BTreeMap<String, String>,
    /// The sums of each tensor's bytes read so far, if there is a digest.
    sums: Vec<Sum>,
    /// Bytes of the headers.
    header_bytes: u64,
    buffer: Vec<u8>,
    /// The file and the first byte of the buffer's content.
    buffered: (u32, u64),
}

impl<'a> Reader<'a> {
    /// Opens a safetensors file, or the index of several if the name ends in `.index.json`.
    ///
    /// # Errors
    /// An [`Error`] if the file cannot be read or is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut reader = Self::empty(path.into());
        let input = Input::open(path)?;
        if path.to_str().is_some_and(|path| path.ends_with(INDEX_END)) {
            reader.add_shards(input, path.parent().unwrap_or(Path::new("")))?;
        } else {
            reader.metadata = reader.add(input)?;
        }
        Ok(reader.summed())
    }

    /// Opens a stream that is one safetensors file from its first byte to its last, for any position of the
    /// stream.
    ///
    /// ```
    /// use wgpu_optim::checkpoint::Reader;
    /// let bytes = b"\x08\0\0\0\0\0\0\0{}      ";
    /// assert!(Reader::new(std::io::Cursor::new(bytes))?.tensors().is_empty());
    /// # Ok::<(), wgpu_optim::checkpoint::Error>(())
    /// ```
    ///
    /// # Errors
    /// An [`Error`] if the stream cannot be read or is malformed.
    pub fn new(stream: impl Read + Seek + 'a) -> Result<Self, Error> {
        let mut reader = Self::empty(Location::Stream);
        reader.metadata = reader.add(Input::stream(stream)?)?;
        Ok(reader.summed())
    }

    fn empty(location: Location) -> Self {
        Self {
            location,
            files: Vec::new(),
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
            sums: Vec::new(),
            header_bytes: 0,
            buffer: Vec::new(),
            buffered: (0, 0),
        }
    }

    /// Prepares the sums of the bytes that will be read, if there is a digest.
    fn summed(mut self) -> Self {
        if digest::digits(&self.metadata).is_some() {
            self.sums = vec![Sum::default(); self.tensors.len()];
        }
        self
    }

    /// The tensors, in the order of their names.
    #[must_use]
    pub fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    /// The tensor with the name `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Stored> {
        self.index(name).map(|i| &self.tensors[i])
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// The metadata of the file: texts by key.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The location of the file, the index or the stream that was opened.
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Reads bytes of tensor `i` of [`tensors`](Self::tensors), from its byte `start` on, until `into` is
    /// full.
    ///
    /// # Errors
    /// An [`Error`] if there is no such tensor, if the bytes cannot be read, or if the tensor has too few
    /// bytes.
    pub fn read(&mut self, i: usize, start: u64, into: &mut [u8]) -> Result<(), Error> {
        let bound = self.tensors.len();
        let tensor = self.tensors.get(i).ok_or(Error::UnknownTensor { found: i, bound })?;
        let (file, expected) = (tensor.file, start.saturating_add(into.len() as u64));
        let input = &mut self.files[file as usize];
        if expected > tensor.bytes {
            let (name, found) = (tensor.name.clone(), tensor.bytes);
            return Err(input.malformed(Malformed::Size { name, found, expected: Some(expected) }));
        }
        let mut sum = self.sums.get_mut(i);
        let at = tensor.offset + start;
        if into.len() >= BUFFER {
            // A piece is in the processor's cache when it is summed.
            for (i, piece) in (0..).zip(into.chunks_mut(PIECE)) {
                let skip = i * PIECE as u64;
                input.read_at(at + skip, piece)?;
                if let Some(sum) = &mut sum {
                    sum.add(start + skip, piece);
                }
            }
            return Ok(());
        }
        let within = |buffered: (u32, u64), len: usize| {
            let skip = usize::try_from(at.checked_sub(buffered.1)?).ok()?;
            let range = skip..skip.checked_add(into.len())?;
            (buffered.0 == file && range.end <= len).then_some(range)
        };
        let range = match within(self.buffered, self.buffer.len()) {
            Some(range) => range,
            None => {
                // The file's tensors end where it does.
                let left = input.len().saturating_sub(at).min(BUFFER as u64);
                let len = to_usize(left).max(into.len());
                self.buffer.clear();
                self.buffer.resize(len, 0);
                let filled = input.read_at(at, &mut self.buffer);
                if filled.is_err() {
                    self.buffer.clear();
                }
                filled?;
                self.buffered = (file, at);
                0..into.len()
            }
        };
        into.copy_from_slice(&self.buffer[range]);
        if let Some(sum) = sum {
            sum.add(start, into);
        }
        Ok(())
    }

    /// Reads all bytes that were not read yet, and compares the content with the saved digest. `false` if
    /// there is no digest.
    ///
    /// ```no_run
    /// # fn f() -> Result<(), wgpu_optim::checkpoint::Error> {
    /// let checked = wgpu_optim::checkpoint::Reader::open("run.safetensors")?.verify()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Malformed::Digest`] if the content differs, and an [`Error`] if it cannot be read.
    pub fn verify(&mut self) -> Result<bool, Error> {
        let Some(expected) = digest::digits(&self.metadata).map(str::to_owned) else { return Ok(false) };
        let mut order: Vec<_> = (0..self.tensors.len()).collect();
        order.sort_unstable_by_key(|&i| (self.tensors[i].file, self.tensors[i].offset));
        let mut part = Vec::new();
        for i in order {
            while self.sums[i].bytes < self.tensors[i].bytes {
                let (start, end) = (self.sums[i].bytes, self.tensors[i].bytes);
                part.resize(to_usize((end - start).min(BUFFER as u64)), 0);
                self.read(i, start, &mut part)?;
            }
        }
        let tensors = self.tensors.iter().zip(&self.sums);
        let tensors = tensors.map(|(t, sum)| (t.name(), t.dtype, &t.shape[..], sum.crc32c));
        let found = digest::text(digest::digest(&self.metadata, tensors));
        if found == expected {
            return Ok(true);
        }
        let reason = Malformed::Digest { found, expected };
        Err(Error::Malformed { location: self.location.clone(), reason })
    }

    /// Adds the tensors of a file after the earlier ones; returns the file's metadata.
    fn add(&mut self, mut input: Input<'a>) -> Result<BTreeMap<String, String>, Error> {
        let file = to_u32(self.files.len());
        let (metadata, mut tensors) = header::read(&mut input, file, &mut self.header_bytes)?;
        if self.tensors.is_empty() {
            self.tensors = tensors;
        } else {
            self.tensors.append(&mut tensors);
        }
        self.files.push(input);
        Ok(metadata)
    }

    /// Adds the files of an index, which lie in `directory`.
    fn add_shards(&mut self, mut index: Input<'_>, directory: &Path) -> Result<(), Error> {
        let text = index::read(&mut index)?;
        let malformed = |reason| index.malformed(reason);
        let shards = Shards::parse(&text).map_err(malformed)?;
        for shard in &shards.names {
            self.add(Input::open(&directory.join(shard))?)?;
        }
        header::sort(&mut self.tensors).map_err(malformed)?;
        shards.check(&text, &self.tensors).map_err(malformed)?;
        if digest::digits(&shards.metadata).is_some() {
            Shards::check_size(&text, &self.tensors).map_err(malformed)?;
        }
        self.metadata = shards.metadata;
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, text: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(text).map_err(|error| Malformed::Json { what, reason: error.to_string() })
}

//! Reading safetensors files, whoever wrote them: nothing in them is believed before it is checked.

use super::error::{Error, Malformed};
use safetensors::Dtype;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The end of an index's name.
pub(super) const INDEX_END: &str = ".index.json";
/// Bytes that the headers of all files, or an index, may have. What is made of them takes up to three times as much memory.
pub(super) const MAX_HEADER: u64 = 16 << 20;
/// What they are called where they have more.
pub(super) const HEADERS: &str = "headers";
/// Dimensions of a tensor.
pub(super) const MAX_DIMENSIONS: usize = 32;
/// Keys of metadata.
pub(super) const MAX_KEYS: usize = 1_024;
/// Files of one checkpoint: each is open.
pub(super) const MAX_SHARDS: usize = 512;
/// Bytes read at a time, where less is asked for.
const BUFFER: usize = 1 << 20;
/// Before the header, its length.
pub(super) const LENGTH_BYTES: u64 = 8;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    name: String,
    dtype: Dtype,
    shape: Box<[u64]>,
    bytes: u64,
    file: u32,
    /// From the start of the file.
    offset: u64,
}

impl Stored {
    /// Its name: in a checkpoint `SLOT/TENSOR`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its elements are stored.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its dimensions.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of its elements.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the number of elements, as in `Tensor`")]
    pub fn len(&self) -> u64 {
        self.bytes * 8 / self.dtype.bitsize() as u64
    }
}

/// A safetensors file, or several with an index, open for reading.
///
/// Opening reads and checks the headers, in memory of a few times their size, which is at most 16 MiB in all files together; tensors are read when they are asked for.
#[derive(Debug)]
pub struct Reader {
    /// What was opened: the file, or the index.
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    /// By name.
    tensors: Vec<Stored>,
    metadata: BTreeMap<String, String>,
    /// Bytes of their headers.
    header_bytes: u64,
    buffer: Vec<u8>,
    /// Which file's bytes from where on are in the buffer.
    buffered: (u32, u64),
}

impl Reader {
    /// Opens a safetensors file, or the index of several if the name ends in `.index.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut reader = Self {
            path: path.to_owned(),
            files: Vec::new(),
            tensors: Vec::new(),
            metadata: BTreeMap::new(),
            header_bytes: 0,
            buffer: Vec::new(),
            buffered: (0, 0),
        };
        if path.to_str().is_some_and(|path| path.ends_with(INDEX_END)) {
            reader.open_index(path)?;
        } else {
            reader.metadata = reader.open_file(path.to_owned())?;
        }
        Ok(reader)
    }

    /// The tensors, in the order of their names.
    #[must_use]
    pub fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Stored> {
        self.index(name).map(|i| &self.tensors[i])
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// The metadata: texts by key.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The path that was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads bytes of tensor `i` of [`tensors`](Self::tensors), from byte `start` of it on, until `into` is full.
    ///
    /// # Errors
    /// [`Error::Io`]; and [`Error::Malformed`] if the tensor has not so many.
    pub fn read(&mut self, i: usize, start: u64, into: &mut [u8]) -> Result<(), Error> {
        let tensor = &self.tensors[i];
        let (file, expected) = (tensor.file, start.saturating_add(into.len() as u64));
        let (path, handle) = &mut self.files[file as usize];
        if expected > tensor.bytes {
            let reason =
                Malformed::Size { name: tensor.name.clone(), found: tensor.bytes, expected: Some(expected) };
            return Err(Error::Malformed { path: path.clone(), reason });
        }
        let at = tensor.offset + start;
        let fill = |handle: &mut File, into: &mut [u8]| {
            handle
                .seek(SeekFrom::Start(at))
                .and_then(|_| handle.read_exact(into))
                .map_err(Error::io("read", path))
        };
        if into.len() >= BUFFER {
            return fill(handle, into);
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
                let last = handle.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
                let len = (BUFFER as u64).min(last.saturating_sub(at)).max(into.len() as u64) as usize;
                self.buffer.clear();
                self.buffer.resize(len, 0);
                let filled = fill(handle, &mut self.buffer);
                if filled.is_err() {
                    self.buffer.clear();
                }
                filled?;
                self.buffered = (file, at);
                0..into.len()
            }
        };
        into.copy_from_slice(&self.buffer[range]);
        Ok(())
    }

    /// Adds the tensors of a file; its metadata.
    fn open_file(&mut self, path: PathBuf) -> Result<BTreeMap<String, String>, Error> {
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let len = file.metadata().map_err(Error::io("read", &path))?.len();
        let malformed = |reason| Error::Malformed { path: path.clone(), reason };
        if len < LENGTH_BYTES {
            return Err(malformed(Malformed::Truncated { len, expected: LENGTH_BYTES }));
        }
        let mut bytes = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut bytes).map_err(Error::io("read", &path))?;
        let header_bytes = u64::from_le_bytes(bytes);
        let (found, bound) = (self.header_bytes.saturating_add(header_bytes), MAX_HEADER);
        if found > bound {
            return Err(malformed(Malformed::TooLarge { what: HEADERS, found, bound }));
        }
        self.header_bytes = found;
        let data = LENGTH_BYTES + header_bytes;
        if len < data {
            return Err(malformed(Malformed::Truncated { len, expected: data }));
        }
        let mut text = vec![0; header_bytes as usize];
        file.read_exact(&mut text).map_err(Error::io("read", &path))?;
        let header: Header = parse("the header", &text).map_err(malformed)?;
        drop(text);
        let mut entries = header.entries;
        entries.sort_unstable_by_key(|(_, entry)| entry.data_offsets);
        let first = self.tensors.len();
        let (index, mut end) = (self.files.len() as u32, 0u64);
        self.tensors.reserve_exact(entries.len());
        for (name, entry) in entries {
            let (found, stop) = entry.data_offsets;
            if found != end || stop < found {
                return Err(malformed(Malformed::Offset { name, found, expected: end }));
            }
            let elements = entry.shape.0.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
            let bits = elements.and_then(|n| n.checked_mul(entry.dtype.bitsize() as u64));
            let bytes = stop - found;
            if bits.is_none() || bits != bytes.checked_mul(8) {
                let expected = bits.map(|bits| bits.div_ceil(8));
                return Err(malformed(Malformed::Size { name, found: bytes, expected }));
            }
            end = stop;
            // Below 2⁶³: the data end at the file's length, which is checked below.
            let offset = data.saturating_add(found);
            self.tensors.push(Stored {
                name,
                dtype: entry.dtype,
                shape: entry.shape.0,
                bytes,
                file: index,
                offset,
            });
        }
        let expected = data.saturating_add(end);
        if len < expected {
            return Err(malformed(Malformed::Truncated { len, expected }));
        }
        if len > expected {
            return Err(malformed(Malformed::Trailing { len, expected }));
        }
        self.tensors[first..].sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = self.tensors[first..].windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(malformed(Malformed::Duplicate { name: pair[0].name.clone() }));
        }
        self.files.push((path, file));
        Ok(header.metadata)
    }

    fn open_index(&mut self, path: &Path) -> Result<(), Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        let malformed = |reason| Error::Malformed { path: path.to_owned(), reason };
        if len > MAX_HEADER {
            return Err(malformed(Malformed::TooLarge { what: "an index", found: len, bound: MAX_HEADER }));
        }
        let mut text = Vec::with_capacity(len as usize);
        file.take(MAX_HEADER).read_to_end(&mut text).map_err(Error::io("read", path))?;
        // Twice, so that no list of the index's own is needed: first the shards, then what they have.
        let shards: Shards = parse("the index", &text).map_err(malformed)?;
        if let Some(reason) = shards.wrong {
            return Err(malformed(reason));
        }
        let beside = path.parent().unwrap_or(Path::new(""));
        for shard in &shards.names {
            self.open_file(beside.join(shard))?;
        }
        self.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = self.tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(malformed(Malformed::Duplicate { name: pair[0].name.clone() }));
        }
        let mut named = vec![false; self.tensors.len()];
        let wrong = {
            let mut wrong = None;
            let mut each = |name: String, shard: String| {
                let at = self.tensors.binary_search_by(|tensor| tensor.name.cmp(&name)).ok();
                let at = at.filter(|&i| shards.names[self.tensors[i].file as usize] == shard);
                if wrong.is_some() {
                } else if at.is_some_and(|i| named[i]) {
                    wrong = Some(Malformed::Duplicate { name });
                } else if let Some(i) = at {
                    named[i] = true;
                } else {
                    wrong = Some(Malformed::Shard { name, shard });
                }
            };
            let json =
                |error: serde_json::Error| Malformed::Json { what: "the index", reason: error.to_string() };
            let mut parser = serde_json::Deserializer::from_slice(&text);
            Fields(&mut each).deserialize(&mut parser).map_err(json).map_err(malformed)?;
            wrong
        };
        let unnamed = named.iter().position(|named| !named).map(|i| {
            let Stored { name, file, .. } = &self.tensors[i];
            Malformed::Shard { name: name.clone(), shard: shards.names[*file as usize].clone() }
        });
        if let Some(reason) = wrong.or(unnamed) {
            return Err(malformed(reason));
        }
        let metadata = shards.metadata;
        self.metadata = metadata;
        Ok(())
    }
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, text: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(text).map_err(|error| Malformed::Json { what, reason: error.to_string() })
}

/// A file's header. The types of the `safetensors` crate would take the last of two tensors of one name, and memory without bound.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    entries: Vec<(String, Entry)>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Dimensions,
    data_offsets: (u64, u64),
}

struct Dimensions(Box<[u64]>);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Dimensions;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_DIMENSIONS} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dimensions, A::Error> {
                let mut shape = Vec::new();
                while let Some(dimension) = seq.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::invalid_length(shape.len() + 1, &self));
                    }
                    shape.push(dimension);
                }
                Ok(Dimensions(shape.into()))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        header.entries.push((name, map.next_value()?));
                    } else if seen {
                        return Err(A::Error::duplicate_field("__metadata__"));
                    } else {
                        header.metadata = map.next_value_seed(Texts)?;
                        seen = true;
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Reads metadata: what is no text is left out, of which an index has some.
struct Texts;

impl<'de> DeserializeSeed<'de> for Texts {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Texts {
    type Value = BTreeMap<String, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_KEYS} texts, each with its own key")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut texts = BTreeMap::new();
        let mut keys = 0;
        while let Some(key) = map.next_key::<String>()? {
            keys += 1;
            if keys > MAX_KEYS {
                return Err(A::Error::invalid_length(keys, &self));
            }
            if let Some(text) = map.next_value::<Text>()?.0
                && texts.insert(key, text).is_some()
            {
                return Err(A::Error::custom("a key of the metadata is there twice"));
            }
        }
        Ok(texts)
    }
}

/// A text, or something else, which is skipped.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Some(text.into())))
            }
            fn visit_string<E>(self, text: String) -> Result<Text, E> {
                Ok(Text(Some(text)))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
                Ok(Text(None))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
                Ok(Text(None))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
                Ok(Text(None))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
                Ok(Text(None))
            }
            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Text, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The files and the metadata of an index.
#[derive(Default)]
struct Shards {
    metadata: BTreeMap<String, String>,
    names: Vec<String>,
    /// What the parser has no word for.
    wrong: Option<Malformed>,
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut names = BTreeSet::new();
        let mut wrong = None;
        let mut each = |_, shard: String| {
            if wrong.is_some() || names.contains(&shard) {
            } else if Path::new(&shard).file_name().is_none_or(|file| file != shard.as_str()) {
                wrong = Some(Malformed::ShardName { name: shard });
            } else if names.len() == MAX_SHARDS {
                let (found, bound) = (MAX_SHARDS as u64 + 1, MAX_SHARDS as u64);
                wrong = Some(Malformed::TooMany { what: "files", found, bound });
            } else {
                names.insert(shard);
            }
        };
        let metadata = Fields(&mut each).deserialize(deserializer)?;
        Ok(Self { metadata, names: names.into_iter().collect(), wrong })
    }
}

/// Reads an index: calls its function with the name of each tensor and its file, and gives back the metadata.
struct Fields<'a>(&'a mut dyn FnMut(String, String));

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = BTreeMap<String, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("weight_map, and metadata")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut metadata, mut weights) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" if metadata.is_none() => metadata = Some(map.next_value_seed(Texts)?),
                "weight_map" if !weights => {
                    map.next_value_seed(Weights(&mut self.0))?;
                    weights = true;
                }
                "metadata" | "weight_map" => {
                    return Err(A::Error::custom(format_args!("{key} is there twice")));
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if weights { Ok(metadata.unwrap_or_default()) } else { Err(A::Error::missing_field("weight_map")) }
    }
}

struct Weights<'a>(&'a mut dyn FnMut(String, String));

impl<'de> DeserializeSeed<'de> for Weights<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Weights<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("files by the names of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, shard)) = map.next_entry()? {
            (self.0)(name, shard);
        }
        Ok(())
    }
}

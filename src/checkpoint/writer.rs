//! Writing safetensors files: a stream whose header is known beforehand, beside the file that it replaces when it is whole.

use super::error::Error;
use super::reader::{HEADERS, INDEX_END, LENGTH_BYTES, MAX_DIMENSIONS, MAX_HEADER, MAX_KEYS, MAX_SHARDS};
use crate::checkpoint::Malformed;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The key of the tensors' bytes in an index.
pub(super) const TOTAL_SIZE: &str = "total_size";
/// The end of a file's name until it is whole.
const PARTIAL_END: &str = ".partial";
/// Bytes that are gathered before they are written, and written at a time. With 1 MiB and more, Linux (ext4) looks for memory in large pieces for its page cache: measured, that takes up to seven times as long.
const BUFFER: usize = 256 << 10;
/// The header is filled up to a multiple of this, so that data are aligned.
const ALIGNMENT: usize = 8;

/// A tensor that is going to be written.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) bytes: u64,
}

/// Waits until the disk has what is at `_path`.
fn flush(file: &File, _path: &Path) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(test)]
    tests::log("flush", _path);
    Ok(())
}

/// Gives a file the name of another, which is gone.
fn replace(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    #[cfg(test)]
    tests::log("rename", to);
    Ok(())
}

/// A file under a name of its own until it is whole; gone if it is not to be kept.
struct Pending {
    file: BufWriter<File>,
    /// Where it lies.
    at: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl Pending {
    fn create(target: PathBuf) -> Result<Self, Error> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(PARTIAL_END);
        let at = target.with_file_name(name);
        let file = File::create(&at).map_err(Error::io("create", &at))?;
        Ok(Self { file: BufWriter::with_capacity(BUFFER, file), at, target, kept: false })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut parts = bytes.chunks(BUFFER);
        parts.try_for_each(|part| self.file.write_all(part)).map_err(Error::io("write", &self.at))
    }

    /// Has the disk keep it.
    fn sync(&mut self) -> Result<(), Error> {
        self.file.flush().map_err(Error::io("write", &self.at))?;
        flush(self.file.get_ref(), &self.at).map_err(Error::io("write", &self.at))
    }

    fn rename(&mut self) -> Result<(), Error> {
        replace(&self.at, &self.target).map_err(Error::io("replace", &self.target))?;
        self.at.clone_from(&self.target);
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is overwritten or removed by the next save.
            let _ = fs::remove_file(&self.at);
        }
    }
}

/// Has the disk keep the names in a directory.
fn sync_directory(path: &Path) -> Result<(), Error> {
    // Elsewhere a directory cannot be opened, and renaming is what the file system makes of it.
    if cfg!(unix) {
        File::open(path).and_then(|directory| flush(&directory, path)).map_err(Error::io("write", path))?;
    }
    Ok(())
}

/// Tensors one after the other into one file, or into several with an index.
pub(super) struct Writer {
    path: PathBuf,
    directory: PathBuf,
    tensors: Vec<Planned>,
    metadata: BTreeMap<String, String>,
    /// Which tensors each file has, and its name.
    shards: Vec<(Range<usize>, PathBuf)>,
    sharded: bool,
    done: Vec<Pending>,
    current: Option<(Pending, u64)>,
    /// Bytes of all tensors, and how many of them have been written.
    total: u64,
    written: u64,
}

impl Writer {
    /// Prepares to write `tensors`, in this order, in files of at most `shard_bytes` if it is given (a larger tensor has a file of its own).
    pub(super) fn create(
        path: &Path,
        tensors: Vec<Planned>,
        metadata: BTreeMap<String, String>,
        shard_bytes: Option<u64>,
    ) -> Result<Self, Error> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let refuse = |what, bound| Err(Error::Name { path: path.to_owned(), what, bound });
        let end = [".safetensors", INDEX_END].concat();
        let sharded = shard_bytes.is_some();
        if sharded && (!name.ends_with(&end) || name.len() == end.len()) {
            return refuse(
                "the index of several files",
                "must end in \".safetensors.index.json\", behind a name",
            );
        }
        if !sharded && (name.is_empty() || name.ends_with(INDEX_END)) {
            return refuse("one file", "must be there, and not end in \".index.json\" as an index's");
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let shards = if let Some(most) = shard_bytes {
            let ranges = ranges(&tensors, most);
            let stem = &name[..name.len() - end.len()];
            let generation = free_generation(&directory, stem)?;
            let of = ranges.len();
            let name = |i| directory.join(shard_name(stem, generation, i + 1, of));
            ranges.into_iter().enumerate().map(|(i, range)| (range, name(i))).collect()
        } else {
            vec![(0..tensors.len(), path.to_owned())]
        };
        let total = tensors.iter().map(|tensor| tensor.bytes).sum();
        let writer = Self {
            path: path.to_owned(),
            directory,
            tensors,
            metadata,
            shards,
            sharded,
            done: Vec::new(),
            current: None,
            total,
            written: 0,
        };
        writer.check()?;
        Ok(writer)
    }

    /// What cannot be read again is not written, nor begun.
    fn check(&self) -> Result<(), Error> {
        let most = |what, found: usize, bound: usize| {
            let (found, bound) = (found as u64, bound as u64);
            let reason = Malformed::TooMany { what, found, bound };
            if found <= bound { Ok(()) } else { Err(Error::Malformed { path: self.path.clone(), reason }) }
        };
        most("files", self.shards.len(), MAX_SHARDS)?;
        most("keys of metadata", self.metadata.len() + usize::from(self.sharded), MAX_KEYS)?;
        for tensor in &self.tensors {
            most("dimensions of a tensor", tensor.shape.len(), MAX_DIMENSIONS)?;
        }
        let mut headers = 0;
        for (range, _) in &self.shards {
            headers += self.header(range)?.len() as u64 - LENGTH_BYTES;
        }
        bounded(&self.path, HEADERS, headers)?;
        if self.sharded {
            bounded(&self.path, "an index", self.index()?.len() as u64)?;
        }
        Ok(())
    }

    fn header(&self, range: &Range<usize>) -> Result<Vec<u8>, Error> {
        let none = BTreeMap::new();
        let metadata = if self.sharded { &none } else { &self.metadata };
        header(&self.path, &self.tensors[range.clone()], metadata)
    }

    /// The next bytes; they do not reach from one tensor into the next.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        self.check_written(self.written > self.total)?;
        while !bytes.is_empty() {
            let (file, left) = self.file()?;
            let n = (bytes.len() as u64).min(*left) as usize;
            file.write(&bytes[..n])?;
            *left -= n as u64;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn check_written(&self, wrong: bool) -> Result<(), Error> {
        let (found, expected) = (self.written, self.total);
        if wrong { Err(Error::Engine { found, expected }) } else { Ok(()) }
    }

    /// The file that has room for what comes next, and how much.
    fn file(&mut self) -> Result<&mut (Pending, u64), Error> {
        if self.current.as_ref().is_some_and(|(_, left)| *left == 0)
            && self.done.len() + 1 < self.shards.len()
        {
            self.close()?;
        }
        let current = match self.current.take() {
            Some(current) => current,
            None => {
                let (range, target) = &self.shards[self.done.len()];
                let bytes = self.tensors[range.clone()].iter().map(|tensor| tensor.bytes).sum();
                let mut file = Pending::create(target.clone())?;
                file.write(&self.header(range)?)?;
                (file, bytes)
            }
        };
        Ok(self.current.insert(current))
    }

    fn close(&mut self) -> Result<(), Error> {
        if let Some((mut file, _)) = self.current.take() {
            file.sync()?;
            self.done.push(file);
        }
        Ok(())
    }

    /// Has the disk keep what has been written, and puts it in place.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.check_written(self.written != self.total)?;
        // A file without a byte of data has a header too; an index without tensors has no files.
        if !self.shards.is_empty() {
            self.file()?;
        }
        self.close()?;
        if !self.sharded {
            self.rename()?;
            self.keep();
            return sync_directory(&self.directory);
        }
        // All that takes room is on the disk before a name changes.
        let mut index = Pending::create(self.path.clone())?;
        index.write(&self.index()?)?;
        index.sync()?;
        self.rename()?;
        sync_directory(&self.directory)?;
        index.rename()?;
        index.kept = true;
        self.keep();
        sync_directory(&self.directory)?;
        self.remove_old_shards();
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Error> {
        self.done.iter_mut().try_for_each(Pending::rename)
    }

    /// From here on an error is one of the directory, and what it has is whole.
    fn keep(&mut self) {
        self.done.iter_mut().for_each(|file| file.kept = true);
    }

    fn index(&self) -> Result<Vec<u8>, Error> {
        let mut metadata: BTreeMap<&str, serde_json::Value> =
            self.metadata.iter().map(|(key, text)| (key.as_str(), text.as_str().into())).collect();
        metadata.insert(TOTAL_SIZE, self.total.into());
        let weights: BTreeMap<&str, _> = self
            .shards
            .iter()
            .flat_map(|(range, path)| {
                self.tensors[range.clone()].iter().map(move |t| (t.name.as_str(), path.file_name()))
            })
            .map(|(name, file)| (name, file.and_then(|file| file.to_str()).unwrap_or_default()))
            .collect();
        let index = serde_json::json!({ "metadata": metadata, "weight_map": weights });
        serde_json::to_vec_pretty(&index).map_err(|error| Error::io("write", &self.path)(error.into()))
    }

    /// Files of saves before this one, whole or not, named by an index or by none: their names are those of this index alone.
    fn remove_old_shards(&self) {
        let end = [".safetensors", INDEX_END].concat();
        let Some(stem) = self.path.file_name().and_then(|name| name.to_str()?.strip_suffix(&end)) else {
            return;
        };
        // They only take room: what cannot be removed now can be later.
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let partial = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL_END));
            let new = self.shards.iter().any(|(_, shard)| shard.file_name() == path.file_name());
            if !new && generation(stem, partial.unwrap_or(name)).is_some() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Runs of tensors that take at most `most` bytes together, or are a single one.
fn ranges(tensors: &[Planned], most: u64) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0u64;
    for (i, tensor) in tensors.iter().enumerate() {
        bytes = bytes.saturating_add(tensor.bytes);
        match ranges.last_mut() {
            Some(range) if bytes <= most => range.end = i + 1,
            _ => {
                ranges.push(i..i + 1);
                bytes = tensor.bytes;
            }
        }
    }
    ranges
}

/// Every save has names of its own, so that the files of the one before are whole until the index names the new ones. With the generation at the end no name is one that Hugging Face gives, and
/// none is that of an index with another stem.
fn shard_name(stem: &str, generation: u64, i: usize, of: usize) -> String {
    format!("{stem}-{i:05}-of-{of:05}-{generation}.safetensors")
}

/// The generation of a shard, if `name` is one that [`shard_name`] gives: what it would not write is somebody else's.
fn generation(stem: &str, name: &str) -> Option<u64> {
    let rest = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".safetensors")?;
    let mut parts = rest.split('-');
    let (i, _of, of) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?.parse().ok()?);
    let generation = parts.next()?.parse().ok()?;
    let ours = (1..=of).contains(&i) && of <= MAX_SHARDS && shard_name(stem, generation, i, of) == name;
    ours.then_some(generation)
}

/// A generation that no file has: the one behind the last, and the first that is free where there is none behind it.
fn free_generation(directory: &Path, stem: &str) -> Result<u64, Error> {
    let entries = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let named = |entry: fs::DirEntry| generation(stem, entry.file_name().to_str()?);
    let taken: BTreeSet<u64> = entries.flatten().filter_map(named).collect();
    let next = taken.last().map_or(Some(1), |last| last.checked_add(1));
    // There are not as many files as numbers.
    Ok(next.or_else(|| (1..u64::MAX).find(|free| !taken.contains(free))).unwrap_or(u64::MAX))
}

fn header(path: &Path, tensors: &[Planned], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let mut text = vec![0; LENGTH_BYTES as usize];
    serde_json::to_writer(&mut text, &Header { tensors, metadata }).map_err(|error| Error::Io {
        what: "write",
        path: path.to_owned(),
        source: error.into(),
    })?;
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    let len = text.len() as u64 - LENGTH_BYTES;
    text[..LENGTH_BYTES as usize].copy_from_slice(&len.to_le_bytes());
    Ok(text)
}

fn bounded(path: &Path, what: &'static str, found: u64) -> Result<(), Error> {
    let bound = MAX_HEADER;
    if found <= bound {
        return Ok(());
    }
    Err(Error::Malformed { path: path.to_owned(), reason: Malformed::TooLarge { what, found, bound } })
}

struct Header<'a> {
    tensors: &'a [Planned],
    metadata: &'a BTreeMap<String, String>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        let mut start = 0;
        for Planned { name, dtype, shape, bytes } in self.tensors {
            let end = start + *bytes as usize;
            let shape = shape.iter().map(|&d| d as usize).collect();
            map.serialize_entry(name, &TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) })?;
            start = end;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        /// What has been done to which name, in this order.
        static LOG: RefCell<Vec<(&'static str, String)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn log(what: &'static str, path: &Path) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().into();
        LOG.with_borrow_mut(|log| log.push((what, name)));
    }

    fn save(directory: &Path, name: &str, shard_bytes: Option<u64>) -> Vec<(&'static str, String)> {
        let tensor = |name: &str| Planned { name: name.into(), dtype: Dtype::U8, shape: vec![8], bytes: 8 };
        let tensors = vec![tensor("a"), tensor("b")];
        let mut writer =
            Writer::create(&directory.join(name), tensors, BTreeMap::new(), shard_bytes).unwrap();
        writer.write(&[0; 8]).unwrap();
        writer.write(&[0; 8]).unwrap();
        writer.finish().unwrap();
        LOG.take()
    }

    /// No crash of the machine can show whether the disk was waited for: before a name stands for a file the file is there, and before the index the names of its shards.
    #[test]
    #[cfg(unix)]
    fn the_disk_has_each_thing_before_what_builds_on_it() {
        let directory = std::env::temp_dir().join(format!("wgpu-optim-flush-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let itself = directory.file_name().unwrap().to_str().unwrap();
        let want = |all: &[(&'static str, &str)]| -> Vec<_> {
            all.iter().map(|(what, name)| (*what, (*name).to_owned())).collect()
        };
        let one = save(&directory, "run.safetensors", None);
        assert_eq!(
            one,
            want(&[("flush", ".run.safetensors.partial"), ("rename", "run.safetensors"), ("flush", itself)])
        );
        let several = save(&directory, "run.safetensors.index.json", Some(8));
        assert_eq!(
            several,
            want(&[
                ("flush", ".run-00001-of-00002-1.safetensors.partial"),
                ("flush", ".run-00002-of-00002-1.safetensors.partial"),
                ("flush", ".run.safetensors.index.json.partial"),
                ("rename", "run-00001-of-00002-1.safetensors"),
                ("rename", "run-00002-of-00002-1.safetensors"),
                ("flush", itself),
                ("rename", "run.safetensors.index.json"),
                ("flush", itself),
            ])
        );
        fs::remove_dir_all(directory).unwrap();
    }
}

//! A file that replaces another once it is complete, and the flushing of files and directories.

use super::stream::{BUFFER, write_all};
use crate::error::checkpoint::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

/// Bytes after which the disk begins to write while more are made.
const FLUSHED: u64 = 64 << 20;
/// The end of a file's name until it is complete.
pub(super) const PARTIAL_END: &str = ".partial";

/// Waits until the disk has the file or directory at `_path`.
fn flush(file: &File, _path: &Path) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(test)]
    tests::log("flush", _path);
    Ok(())
}

/// Renames a file to the name of another, which it replaces.
fn replace(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    #[cfg(test)]
    tests::log("rename", to);
    Ok(())
}

/// Creates the file at `path`. Removes a leftover of an interrupted save. A symbolic link is removed too and
/// never followed, so no other file is written.
fn create_anew(path: &Path) -> io::Result<File> {
    match File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            File::create_new(path)
        }
        created => created,
    }
}

/// A file under a temporary name until it is complete; removed if it is not kept.
pub(super) struct Pending {
    file: BufWriter<File>,
    /// The current path of the file.
    at: PathBuf,
    target: PathBuf,
    /// Bytes since the last flush began, and the thread that waits for it.
    unflushed: u64,
    flushing: Option<JoinHandle<io::Result<()>>>,
    pub(super) kept: bool,
}

impl Pending {
    pub(super) fn create(target: PathBuf) -> Result<Self, Error> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(PARTIAL_END);
        let at = target.with_file_name(name);
        let file = create_anew(&at).map_err(Error::io("create", &at))?;
        let file = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { file, at, target, unflushed: 0, flushing: None, kept: false })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.flush_beside(bytes.len())
            .and_then(|()| write_all(&mut self.file, bytes))
            .map_err(Error::io("write", &self.at))
    }

    /// Flushes the bytes written so far while more are made, on a thread of its own if possible.
    fn flush_beside(&mut self, more: usize) -> io::Result<()> {
        self.unflushed += more as u64;
        if self.unflushed < FLUSHED || self.flushing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.flushed()?;
        self.unflushed = 0;
        let file = self.file.get_ref().try_clone()?;
        self.flushing = thread::Builder::new().spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Waits for the thread that flushes. No other call sees its error.
    fn flushed(&mut self) -> io::Result<()> {
        let result = self.flushing.take().map(JoinHandle::join);
        result.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| Err(io::Error::other("a thread has ended")))
    }

    /// Overwrites the first bytes. Nothing is appended after that.
    pub(super) fn restart(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let restarted = self.file.rewind().and_then(|()| write_all(&mut self.file, bytes));
        restarted.map_err(Error::io("write", &self.at))
    }

    /// Flushes the file to the disk.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        self.flushed().and_then(|()| self.file.flush()).map_err(Error::io("write", &self.at))?;
        flush(self.file.get_ref(), &self.at).map_err(Error::io("write", &self.at))
    }

    pub(super) fn rename(&mut self) -> Result<(), Error> {
        replace(&self.at, &self.target).map_err(Error::io("replace", &self.target))?;
        self.at.clone_from(&self.target);
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            // The next save removes a file that cannot be removed now.
            let _ = fs::remove_file(&self.at);
        }
    }
}

/// Flushes the names in a directory to the disk.
pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    // Elsewhere a directory cannot be opened, and the file system decides about the rename.
    if cfg!(unix) {
        File::open(path).and_then(|directory| flush(&directory, path)).map_err(Error::io("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Planned, Writer};
    use super::*;
    use safetensors::Dtype;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    thread_local! {
        /// The names that were flushed and renamed, in this order.
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

    /// A test cannot crash the machine, so it checks the order: a file is flushed before its rename, and
    /// shards before their index.
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

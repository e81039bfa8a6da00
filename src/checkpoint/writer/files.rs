//! The files of a save: written beside the files that they replace, and renamed together.

use super::super::limits::INDEX_END;
use super::Output;
use super::pending::{PARTIAL_END, Pending, sync_directory};
use super::shards::{free_generation, generation, shard_name};
use crate::error::checkpoint::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// One file, or several with an index.
pub(super) struct Files {
    /// The path of the file, or of the index.
    path: PathBuf,
    directory: PathBuf,
    /// The final paths of the files.
    targets: Vec<PathBuf>,
    done: Vec<Pending>,
    current: Option<Pending>,
}

impl Files {
    /// Begins the one file at `path`.
    pub(super) fn one(path: &Path) -> Result<Self, Error> {
        let name = file_name(path);
        if name.is_empty() || name.ends_with(INDEX_END) {
            let bound = "must be there, and not end in \".index.json\" as an index's";
            return Err(Error::Name { path: path.to_owned(), what: "one file", bound });
        }
        Ok(Self::new(path, directory(path), vec![path.to_owned()]))
    }

    /// Begins `of` files beside the index at `path`.
    pub(super) fn several(path: &Path, of: usize) -> Result<Self, Error> {
        let Some(stem) = stem(path).filter(|stem| !stem.is_empty()) else {
            let what = "the index of several files";
            let bound = "must end in \".safetensors.index.json\", behind a name";
            return Err(Error::Name { path: path.to_owned(), what, bound });
        };
        let directory = directory(path);
        let generation = free_generation(&directory, stem)?;
        let targets = (0..of).map(|i| directory.join(shard_name(stem, generation, i + 1, of))).collect();
        Ok(Self::new(path, directory, targets))
    }

    fn new(path: &Path, directory: PathBuf, targets: Vec<PathBuf>) -> Self {
        Self { path: path.to_owned(), directory, targets, done: Vec::new(), current: None }
    }

    /// The names of the files, in their order.
    pub(super) fn names(&self) -> Vec<String> {
        self.targets.iter().map(|target| file_name(target).to_owned()).collect()
    }

    fn close(&mut self) -> Result<(), Error> {
        if let Some(mut file) = self.current.take() {
            file.sync()?;
            self.done.push(file);
        }
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Error> {
        self.done.iter_mut().try_for_each(Pending::rename)
    }

    /// Keeps the files: from here on an error concerns the directory, and its files are complete.
    fn keep(&mut self) {
        self.done.iter_mut().for_each(|file| file.kept = true);
    }

    /// Removes the files of earlier saves, complete or not, by their names, which belong to this index only.
    fn remove_old_shards(&self) {
        let Some(stem) = stem(&self.path) else { return };
        // They only take room: a file that cannot be removed now can be removed later.
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = file_name(&path);
            let partial = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL_END));
            let new = self.targets.iter().any(|target| target.file_name() == path.file_name());
            if !new && generation(stem, partial.unwrap_or(name)).is_some() {
                let _ = fs::remove_file(path);
            }
        }
    }
}

impl Output for Files {
    fn begin(&mut self) -> Result<(), Error> {
        self.close()?;
        if let Some(target) = self.targets.get(self.done.len()) {
            self.current = Some(Pending::create(target.clone())?);
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.current.as_mut().map_or(Ok(()), |file| file.write(bytes))
    }

    fn restart(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.current.as_mut().map_or(Ok(()), |file| file.restart(bytes))
    }

    fn finish(&mut self, index: Option<&[u8]>) -> Result<(), Error> {
        self.close()?;
        let Some(text) = index else {
            self.rename()?;
            self.keep();
            return sync_directory(&self.directory);
        };
        // All content is on the disk before a name changes.
        let mut index = Pending::create(self.path.clone())?;
        index.write(text)?;
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
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The name of an index without its end.
fn stem(path: &Path) -> Option<&str> {
    file_name(path).strip_suffix(INDEX_END)?.strip_suffix(".safetensors")
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

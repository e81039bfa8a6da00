//! Locations of checkpoints in errors.

use std::fmt;
use std::path::{Path, PathBuf};

/// The location of a checkpoint in an [`Error`](super::Error).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or a directory.
    Path(PathBuf),
    /// A reader or writer of the caller, which has no name.
    Stream,
}

impl Location {
    /// The path; a stream has none.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Stream => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{path:?}"),
            Self::Stream => f.write_str("<stream>"),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::Path(path.clone())
    }
}

impl From<&Self> for Location {
    fn from(location: &Self) -> Self {
        location.clone()
    }
}

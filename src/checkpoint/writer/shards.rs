//! Several files of one checkpoint: their tensors and names.

use super::super::limits::MAX_SHARDS;
use super::Planned;
use crate::error::checkpoint::Error;
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Runs of tensors of at most `most` bytes together; a larger tensor is a run of its own.
pub(super) fn ranges(tensors: &[Planned], most: u64) -> Vec<Range<usize>> {
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

/// The name of a shard.
///
/// Every save has new names, so the files of the previous save are complete until the index names the new
/// ones. With the generation at the end, no name equals a name of Hugging Face or of an index with another
/// stem.
pub(super) fn shard_name(stem: &str, generation: u64, i: usize, of: usize) -> String {
    format!("{stem}-{i:05}-of-{of:05}-{generation}.safetensors")
}

/// The generation of a shard, if [`shard_name`] could have made `name`. Other names belong to other programs.
pub(super) fn generation(stem: &str, name: &str) -> Option<u64> {
    let rest = name.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(".safetensors")?;
    let mut parts = rest.split('-');
    let (i, _of, of) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?.parse().ok()?);
    let generation = parts.next()?.parse().ok()?;
    let ours = (1..=of).contains(&i) && of <= MAX_SHARDS && shard_name(stem, generation, i, of) == name;
    ours.then_some(generation)
}

/// A generation that no file has: the one after the last, or the first free one if there is none after the
/// last.
pub(super) fn free_generation(directory: &Path, stem: &str) -> Result<u64, Error> {
    let entries = fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let named = |entry: fs::DirEntry| generation(stem, entry.file_name().to_str()?);
    let taken: BTreeSet<u64> = entries.flatten().filter_map(named).collect();
    let next = taken.last().map_or(Some(1), |last| last.checked_add(1));
    // There are fewer files than numbers.
    Ok(next.or_else(|| (1..u64::MAX).find(|free| !taken.contains(free))).unwrap_or(u64::MAX))
}

//! The texts of a checkpoint: the header of a file, and the index of several.

use super::super::limits::{LENGTH_BYTES, MAX_HEADER, TOTAL_SIZE};
use super::Planned;
use crate::error::checkpoint::{Error, Location, Malformed};
use safetensors::Dtype;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;

/// The header is padded to a multiple of this, so that data are aligned.
const ALIGNMENT: usize = 8;

/// The header of a file, after its length.
pub(super) fn header(
    location: &Location,
    tensors: &[Planned],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, Error> {
    let mut text = 0u64.to_le_bytes().to_vec();
    serde_json::to_writer(&mut text, &Header { tensors, metadata })
        .map_err(|error| Error::io("write", location)(error.into()))?;
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    let len = text.len() as u64 - LENGTH_BYTES;
    text[..size_of::<u64>()].copy_from_slice(&len.to_le_bytes());
    Ok(text)
}

/// The index of files by name, each with its tensors. All tensors together take `total` bytes.
pub(super) fn index<'a>(
    location: &Location,
    files: impl Iterator<Item = (&'a str, &'a [Planned])>,
    metadata: &BTreeMap<String, String>,
    total: u64,
) -> Result<Vec<u8>, Error> {
    let mut texts: BTreeMap<&str, serde_json::Value> =
        metadata.iter().map(|(key, text)| (key.as_str(), text.as_str().into())).collect();
    texts.insert(TOTAL_SIZE, total.into());
    let weights: BTreeMap<&str, &str> =
        files.flat_map(|(file, tensors)| tensors.iter().map(move |t| (t.name.as_str(), file))).collect();
    let index = serde_json::json!({ "metadata": texts, "weight_map": weights });
    serde_json::to_vec_pretty(&index).map_err(|error| Error::io("write", location)(error.into()))
}

/// Refuses `found` bytes of `what` beyond the limit of a load.
pub(super) fn bounded(location: &Location, what: &'static str, found: u64) -> Result<(), Error> {
    let bound = MAX_HEADER;
    if found <= bound {
        return Ok(());
    }
    Err(Error::Malformed { location: location.clone(), reason: Malformed::TooLarge { what, found, bound } })
}

struct Header<'a> {
    tensors: &'a [Planned],
    metadata: &'a BTreeMap<String, String>,
}

/// The form of a tensor. The type of the `safetensors` crate counts in `usize`, which has 32 bits in a
/// browser.
#[derive(serde::Serialize)]
struct Entry<'a> {
    dtype: Dtype,
    shape: &'a [u64],
    data_offsets: (u64, u64),
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        let mut start = 0;
        for Planned { name, dtype, shape, bytes } in self.tensors {
            let end = start + bytes;
            map.serialize_entry(name, &Entry { dtype: *dtype, shape, data_offsets: (start, end) })?;
            start = end;
        }
        map.end()
    }
}

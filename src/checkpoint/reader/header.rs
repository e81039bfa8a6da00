//! The header of one file: its parser, and the checks of its tensors before the first is read.

use super::super::limits::{HEADERS, LENGTH_BYTES, MAX_DIMENSIONS, MAX_HEADER};
use super::input::Input;
use super::metadata::Texts;
use super::{Stored, parse};
use crate::error::checkpoint::{Error, Malformed};
use crate::narrow::to_usize;
use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// Reads and checks the header of file number `file`; returns its metadata, and its tensors by name.
///
/// `header_bytes` counts the header bytes of earlier files; the file's own are added.
pub(super) fn read(
    input: &mut Input<'_>,
    file: u32,
    header_bytes: &mut u64,
) -> Result<(BTreeMap<String, String>, Vec<Stored>), Error> {
    let len = input.len();
    if len < LENGTH_BYTES {
        return Err(input.malformed(Malformed::Truncated { len, expected: LENGTH_BYTES }));
    }
    let mut bytes = 0u64.to_le_bytes();
    input.read_at(0, &mut bytes)?;
    let own = u64::from_le_bytes(bytes);
    let (found, bound) = (header_bytes.saturating_add(own), MAX_HEADER);
    if found > bound {
        return Err(input.malformed(Malformed::TooLarge { what: HEADERS, found, bound }));
    }
    *header_bytes = found;
    let data = LENGTH_BYTES + own;
    if len < data {
        return Err(input.malformed(Malformed::Truncated { len, expected: data }));
    }
    let mut text = vec![0; to_usize(own)];
    input.read_at(LENGTH_BYTES, &mut text)?;
    let header: Header = parse("the header", &text).map_err(|reason| input.malformed(reason))?;
    drop(text);
    let tensors = tensors(header.entries, file, data, len).map_err(|reason| input.malformed(reason))?;
    Ok((header.metadata, tensors))
}

/// The tensors of a file of `len` bytes, with data from byte `data` on.
fn tensors(
    mut entries: Vec<(String, Entry)>,
    file: u32,
    data: u64,
    len: u64,
) -> Result<Vec<Stored>, Malformed> {
    entries.sort_unstable_by_key(|(_, entry)| entry.data_offsets);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut end = 0u64;
    for (name, entry) in entries {
        let (found, stop) = entry.data_offsets;
        if found != end || stop < found {
            return Err(Malformed::Offset { name, found, expected: end });
        }
        let elements = entry.shape.0.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(entry.dtype.bitsize() as u64));
        let bytes = stop - found;
        if bits.is_none() || bits != bytes.checked_mul(8) {
            let expected = bits.map(|bits| bits.div_ceil(8));
            return Err(Malformed::Size { name, found: bytes, expected });
        }
        end = stop;
        // No overflow: the data end at the file's length, which is checked below.
        let offset = data.saturating_add(found);
        tensors.push(Stored { name, dtype: entry.dtype, shape: entry.shape.0, bytes, file, offset });
    }
    let expected = data.saturating_add(end);
    if len < expected {
        return Err(Malformed::Truncated { len, expected });
    }
    if len > expected {
        return Err(Malformed::Trailing { len, expected });
    }
    sort(&mut tensors)?;
    Ok(tensors)
}

/// Sorts tensors by name; refuses equal names.
pub(super) fn sort(tensors: &mut [Stored]) -> Result<(), Malformed> {
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(Malformed::Duplicate { name: pair[0].name.clone() }),
        None => Ok(()),
    }
}

/// A file's header. The types of the `safetensors` crate would accept two tensors of one name, and take
/// unbounded memory.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    entries: Vec<(String, Entry)>,
}

/// A tensor. Other fields, which other tools may write, are ignored.
#[derive(serde::Deserialize)]
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

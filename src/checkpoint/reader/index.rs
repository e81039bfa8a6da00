//! The index of several files: its parser, and the check that it and the files have the same tensors.

use super::super::limits::{MAX_HEADER, MAX_SHARDS, TOTAL_SIZE};
use super::input::Input;
use super::metadata::Texts;
use super::{Stored, parse};
use crate::error::checkpoint::{Error, Malformed};
use crate::narrow::to_usize;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// Reads the text of an index.
pub(super) fn read(input: &mut Input<'_>) -> Result<Vec<u8>, Error> {
    let (found, bound) = (input.len(), MAX_HEADER);
    if found > bound {
        return Err(input.malformed(Malformed::TooLarge { what: "an index", found, bound }));
    }
    let mut text = vec![0; to_usize(found)];
    input.read_at(0, &mut text)?;
    Ok(text)
}

/// The files and the metadata of an index.
#[derive(Default)]
pub(super) struct Shards {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) names: Vec<String>,
    /// An error other than the parser's.
    wrong: Option<Malformed>,
}

impl Shards {
    /// Parses the files of an index, and its metadata.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let mut shards: Self = parse("the index", text)?;
        match shards.wrong.take() {
            Some(wrong) => Err(wrong),
            None => Ok(shards),
        }
    }

    /// Checks the size in the index `text`. It is a number and not a text, so the digest does not cover it.
    pub(super) fn check_size(text: &[u8], tensors: &[Stored]) -> Result<(), Malformed> {
        #[derive(serde::Deserialize)]
        struct Index {
            metadata: Metadata,
        }
        #[derive(serde::Deserialize)]
        struct Metadata {
            total_size: u64,
        }
        let found = parse::<Index>("the index", text)?.metadata.total_size;
        if found == tensors.iter().map(|tensor| tensor.bytes).sum::<u64>() {
            return Ok(());
        }
        let (field, bound) = (TOTAL_SIZE, "the bytes of all tensors");
        Err(Malformed::Value { field, value: found.to_string(), bound })
    }

    /// Checks that the index `text` names each of `tensors`, which are sorted by name, once and in its file.
    ///
    /// The index is parsed again for this check, so that its names need no list beside the tensors' list.
    pub(super) fn check(&self, text: &[u8], tensors: &[Stored]) -> Result<(), Malformed> {
        let mut named = vec![false; tensors.len()];
        let mut wrong = None;
        let mut each = |name: String, shard: String| {
            let at = tensors.binary_search_by(|tensor| tensor.name.cmp(&name)).ok();
            let at = at.filter(|&i| self.names[tensors[i].file as usize] == shard);
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
        Fields(&mut each).deserialize(&mut serde_json::Deserializer::from_slice(text)).map_err(json)?;
        let unnamed = named.iter().position(|named| !named).map(|i| {
            let Stored { name, file, .. } = &tensors[i];
            Malformed::Shard { name: name.clone(), shard: self.names[*file as usize].clone() }
        });
        wrong.or(unnamed).map_or(Ok(()), Err)
    }
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

/// Reads an index: calls its function with the name and file of each tensor, and returns the metadata.
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
                    return Err(A::Error::custom(format_args!("{key} occurs twice")));
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

//! The record of a run in a checkpoint: a JSON text in the metadata of the file.

use super::digest;
use super::reader::Reader;
use crate::error::checkpoint::{Error, Location, Malformed};
use crate::layout::Layout;
use crate::narrow::to_u32;
use crate::options::Options;
use crate::schedule::Schedule;
use crate::state::{Counters, LossScaleState};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};
use std::fmt;

/// The key of the record in the metadata.
pub(super) const KEY: &str = "wgpu_optim";
/// Version of the record's form.
pub(super) const VERSION: u32 = 1;
/// Largest size of the text of one group's hyperparameters, of its schedule, or of the options. The parsed
/// form takes a few times as much.
const MAX_TEXT: usize = 64 << 10;
/// Largest size of the record. The parsed form takes up to five times as much memory.
const MAX_RECORD: usize = 6 << 20;
/// Largest number of steps. Counts in f64 are exact up to it, and one more does not overflow.
const MAX_STEPS: u64 = 1 << 53;
/// An option of earlier files that allowed a gradient scale. Now every step may have one.
const FORMER_OPTION: &str = "divide";
/// Largest number of groups of a record.
const MAX_GROUPS: usize = 1 << 16;

/// The record of a run in a checkpoint.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    version: u32,
    /// The digits of the [digest](super#guarantees); none in earlier files and files of other programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
    /// The program that wrote the checkpoint.
    pub writer: String,
    /// The name of the first group's rule.
    pub rule: String,
    /// The number of recorded steps.
    pub steps: u64,
    /// The number of taken steps.
    pub taken: u64,
    /// The dynamic loss scale, if there is one.
    pub loss_scale: Option<LossScaleState>,
    /// [`Options`] as JSON; none in files of other programs.
    pub options: Option<Json>,
    /// The groups, in the order of the layout.
    pub groups: Groups,
}

/// A group of a checkpoint.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRecord {
    /// The group's name.
    pub name: String,
    /// The name of the group's rule, if it differs from [`Metadata::rule`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The fields of the rule as JSON; a missing field has its default.
    pub hyperparameters: Json,
    /// The factor of the group's learning rate, a [`Schedule`](crate::Schedule), as JSON; none if it is a
    /// function of the program.
    pub lr_factor: Option<Json>,
    /// The number that the rule carries from step to step.
    #[serde(with = "bits")]
    pub carry: f64,
    /// Steps that the group has taken, if they differ from [`Metadata::taken`] because the group was frozen
    /// or joined late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<u64>,
    /// Whether the group is frozen.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub frozen: bool,
    /// The group's tensors.
    pub tensors: Places,
}

/// Unparsed JSON of bounded size.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    fn of<T: Serialize>(value: &T) -> Option<Self> {
        to_raw_value(value).ok().map(Self)
    }

    /// The JSON text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    pub(super) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.text())
    }

    /// The object without the former option, which has no effect any more.
    fn without_former_option(self) -> Self {
        if !self.text().contains(FORMER_OPTION) {
            return self;
        }
        let without = |mut fields: Map<String, Value>| {
            fields.remove(FORMER_OPTION)?;
            Self::of(&fields)
        };
        // Text that is not an object is refused when it is parsed.
        self.parse().ok().and_then(without).unwrap_or(self)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let len = text.get().len();
        if len > MAX_TEXT {
            return Err(D::Error::custom(format_args!(
                "{len} bytes of hyperparameters, schedule or options, must be at most {MAX_TEXT}"
            )));
        }
        Ok(Self(text))
    }
}

/// An f64 as the sixteen hexadecimal digits of its bits, which also preserves NaN.
mod bits {
    use super::*;

    #[cfg_attr(
        target_pointer_width = "64",
        expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")
    )]
    pub(super) fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:016x}", x.to_bits()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        let bits = if text.len() == 16 { u64::from_str_radix(&text, 16).ok() } else { None };
        bits.map(f64::from_bits).ok_or_else(|| D::Error::custom("a carry is sixteen hexadecimal digits"))
    }
}

/// Tensors by name, with their places in the flat space.
///
/// The names lie in one text: a list of `String`s would take many times the memory of its source.
#[derive(Clone, Debug, Default)]
pub struct Places {
    names: String,
    /// The end of each name, and the first element of its tensor.
    ends: Vec<(u32, u64)>,
}

impl Places {
    fn push(&mut self, name: &str, offset: u64) {
        self.names.push_str(name);
        // A header has fewer bytes than u32 counts.
        self.ends.push((to_u32(self.names.len()), offset));
    }

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Iterates over name and first element of each tensor.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        let start = |i: usize| if i == 0 { 0 } else { self.ends[i - 1].0 as usize };
        self.ends
            .iter()
            .enumerate()
            .map(move |(i, &(end, offset))| (&self.names[start(i)..end as usize], offset))
    }
}

impl Serialize for Places {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Places;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("places of tensors by their names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Places, A::Error> {
                let mut places = Places::default();
                while let Some((name, offset)) = map.next_entry::<std::borrow::Cow<'_, str>, _>()? {
                    places.push(&name, offset);
                }
                Ok(places)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The groups of a record.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct Groups(pub Vec<GroupRecord>);

impl<'de> Deserialize<'de> for Groups {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Groups;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_GROUPS} groups")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Groups, A::Error> {
                let mut groups = Vec::new();
                while let Some(group) = seq.next_element()? {
                    if groups.len() == MAX_GROUPS {
                        return Err(A::Error::invalid_length(groups.len() + 1, &self));
                    }
                    groups.push(group);
                }
                Ok(Groups(groups))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

impl Metadata {
    /// Makes the record of an optimizer.
    ///
    /// # Errors
    /// An [`Error::NotSaved`] for a rule with hyperparameters that cannot be written.
    pub(super) fn new(layout: &Layout, options: &Options, counters: &Counters) -> Result<Self, Error> {
        let rule = layout.groups()[0].rule().name();
        let mut groups = Vec::new();
        for (group, carry) in layout.groups().iter().zip(&counters.carries) {
            let own = group.rule();
            let json = own.to_json().and_then(|json| RawValue::from_string(json).ok());
            let (name, taken) = (own.name(), carry.taken);
            groups.push(GroupRecord {
                name: group.name().into(),
                rule: (name != rule).then(|| name.into()),
                hyperparameters: json.map(Json).ok_or(Error::NotSaved { rule: name })?,
                lr_factor: Json::of(group.factor()),
                carry: carry.rule,
                taken: (taken != counters.taken).then_some(taken),
                frozen: group.is_frozen(),
                tensors: Places::default(),
            });
        }
        for tensor in layout.tensors() {
            groups[tensor.group].tensors.push(&tensor.name, tensor.offset);
        }
        Ok(Self {
            version: VERSION,
            crc32c: Some(digest::ZEROS.into()),
            writer: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
            rule: rule.into(),
            steps: counters.steps,
            taken: counters.taken,
            loss_scale: counters.loss_scale,
            options: Json::of(options),
            groups: Groups(groups),
        })
    }

    /// Reads the record of a checkpoint.
    ///
    /// # Errors
    /// An [`Error`] if the metadata belongs to no optimizer, is of a later version or is malformed.
    pub fn read(reader: &Reader) -> Result<Self, Error> {
        let location = reader.location();
        let none = || Error::NotACheckpoint { location: location.clone(), key: KEY };
        Self::parse(location, reader.metadata().get(KEY).ok_or_else(none)?)
    }

    fn parse(location: &Location, text: &str) -> Result<Self, Error> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let malformed = |reason| Error::Malformed { location: location.clone(), reason };
        bounded(text.len()).map_err(malformed)?;
        let json = |error: serde_json::Error| Malformed::Json {
            what: "the checkpoint's metadata",
            reason: error.to_string(),
        };
        // A later version may have different fields.
        let Version { version } = serde_json::from_str(text).map_err(json).map_err(malformed)?;
        if version > VERSION {
            return Err(Error::Version { location: location.clone(), found: version, bound: VERSION });
        }
        let mut record: Self = serde_json::from_str(text).map_err(json).map_err(malformed)?;
        record.options = record.options.map(Json::without_former_option);
        if record.steps > MAX_STEPS {
            let (field, value) = ("steps", record.steps.to_string());
            return Err(malformed(Malformed::Value { field, value, bound: "at most 2^53" }));
        }
        if record.taken > record.steps {
            let (field, value) = ("taken", record.taken.to_string());
            return Err(malformed(Malformed::Value { field, value, bound: "at most the steps recorded" }));
        }
        for group in &record.groups.0 {
            if let Some(taken) = group.taken.filter(|&taken| taken > record.steps) {
                let (field, value) = ("taken of a group", taken.to_string());
                return Err(malformed(Malformed::Value {
                    field,
                    value,
                    bound: "at most the steps recorded",
                }));
            }
        }
        Ok(record)
    }

    /// The text of the record for a checkpoint at `location`. An error if the record could not be read again.
    pub(super) fn text(&self, location: &Location) -> Result<String, Error> {
        let text = serde_json::to_string(self).map_err(|error| Error::io("write", location)(error.into()))?;
        let read = Self::parse(location, &text)?;
        // Texts that a load parses later; the parser bounds their depth.
        let factors = read.groups.0.iter().filter_map(|group| group.lr_factor.as_ref());
        let looked = factors.map(|json| json.parse::<Schedule>().map(drop));
        let options = read.options.iter().map(|json| json.parse::<Options>().map(drop));
        looked.chain(options).collect::<Result<(), _>>().map_err(|error| {
            let (what, reason) = ("the checkpoint's metadata", error.to_string());
            Error::Malformed { location: location.clone(), reason: Malformed::Json { what, reason } }
        })?;
        Ok(text)
    }
}

fn bounded(len: usize) -> Result<(), Malformed> {
    let (found, bound) = (len as u64, MAX_RECORD as u64);
    if len <= MAX_RECORD {
        Ok(())
    } else {
        Err(Malformed::TooLarge { what: "the checkpoint's metadata", found, bound })
    }
}

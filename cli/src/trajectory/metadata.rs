//! The metadata of a trajectory: text to typed values.

use super::Error;
use crate::rules::configure;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use wgpu_optim::AnyRule;

/// The known value of the key `format`.
pub const FORMAT: &str = "optim-trajectory/1";

/// The clip of gradients, after division by the loss scale and before the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Scales by `min(1, X / (norm + 1e-6))`, the norm taken over all tensors.
    GlobalNorm(f64),
    /// Clamps to `[-X, X]`.
    Value(f64),
}

/// A parameter group with the names of its tensors.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) rule: AnyRule,
    pub(super) lr_factor: f64,
    pub(super) params: Vec<String>,
}

/// A parameter group in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupEntry {
    name: String,
    params: Vec<String>,
    overrides: Option<Map<String, Value>>,
    optimizer: Option<Map<String, Value>>,
    lr_factor: Option<f64>,
}

impl GroupEntry {
    /// The group, if the file's rule is `default`.
    fn resolve(mut self, default: Option<&Optimizer>) -> Result<Group, Error> {
        let lr_factor = self.take_factor()?;
        let rule = match (self.optimizer, self.overrides) {
            (Some(_), Some(_)) => return Err(Error::TwoRules { group: self.name }),
            (Some(own), None) => Optimizer::take("groups", own).and_then(|own| own.rule()),
            (None, overrides) => {
                let default = default.ok_or(Error::MissingMetadata { key: "optimizer" })?;
                let mut hyper = default.hyper.clone();
                hyper.extend(overrides.unwrap_or_default());
                configure(&default.name, &hyper)
            }
        };
        match rule {
            Ok(rule) => Ok(Group { name: self.name, rule, lr_factor, params: self.params }),
            Err(error) => Err(Error::Group { group: self.name, source: Box::new(error) }),
        }
    }

    /// Takes the factor from its place: beside the name or among the overrides.
    fn take_factor(&mut self) -> Result<f64, Error> {
        let inside = self.overrides.as_mut().and_then(|overrides| overrides.remove("lr_factor"));
        match (inside, self.lr_factor) {
            (Some(_), Some(_)) => Err(Error::TwoFactors { group: self.name.clone() }),
            (Some(value), None) => {
                serde_json::from_value(value).map_err(|source| Error::Json { key: "groups", source })
            }
            (None, factor) => Ok(factor.unwrap_or(1.0)),
        }
    }
}

/// A rule by name, with unparsed hyperparameters.
struct Optimizer {
    name: String,
    hyper: Map<String, Value>,
}

impl Optimizer {
    /// The rule of an object in the metadata of `key`.
    fn take(key: &'static str, mut hyper: Map<String, Value>) -> Result<Self, Error> {
        match hyper.remove("rule") {
            Some(Value::String(name)) => Ok(Self { name, hyper }),
            other => {
                hyper.extend(other.map(|other| ("rule".to_owned(), other)));
                let bound = "a JSON object with the name of the rule as \"rule\"";
                Err(Error::Metadata { key, value: Value::Object(hyper).to_string(), bound })
            }
        }
    }

    fn rule(&self) -> Result<AnyRule, Error> {
        configure(&self.name, &self.hyper)
    }
}

/// All metadata of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) source: Option<String>,
    /// The rule of all tensors, if there are no groups.
    pub(super) rule: Option<AnyRule>,
    pub(super) groups: Option<Vec<Group>>,
    pub(super) clip: Option<Clip>,
    pub(super) skip_nonfinite: bool,
    pub(super) unread: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClipEntry {
    global_norm: Option<f64>,
    value: Option<f64>,
}

fn json<T: for<'de> Deserialize<'de>>(key: &'static str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|source| Error::Json { key, source })
}

impl Metadata {
    pub(super) fn parse(metadata: Option<&HashMap<String, String>>) -> Result<Self, Error> {
        let get = |key: &'static str| metadata.and_then(|m| m.get(key)).map(String::as_str);
        let need = |key| get(key).ok_or(Error::MissingMetadata { key });
        let format = need("format")?;
        if format != FORMAT {
            return Err(Error::Format { found: format.into(), expected: FORMAT });
        }
        let known = ["format", "source", "optimizer", "clip", "groups", "skip_nonfinite"];
        let mut unread: Vec<_> = metadata.into_iter().flat_map(HashMap::keys).cloned().collect();
        unread.retain(|key| !known.contains(&key.as_str()));
        unread.sort_unstable();
        let optimizer = match get("optimizer") {
            Some(text) => Some(Optimizer::take("optimizer", json("optimizer", text)?)?),
            None => None,
        };
        // Checked even if every group has its own rule.
        let rule = optimizer.as_ref().map(Optimizer::rule).transpose()?;
        let entries = get("groups").map(|text| json::<Vec<GroupEntry>>("groups", text)).transpose()?;
        let resolve = |entry: GroupEntry| entry.resolve(optimizer.as_ref());
        let groups = entries.map(|entries| entries.into_iter().map(resolve).collect::<Result<_, _>>());
        Ok(Self {
            unread,
            source: get("source").map(Into::into),
            rule,
            groups: groups.transpose()?,
            clip: get("clip").map(clip).transpose()?,
            skip_nonfinite: match get("skip_nonfinite") {
                None | Some("false") => false,
                Some("true") => true,
                Some(other) => {
                    let bound = "true or false";
                    return Err(Error::Metadata { key: "skip_nonfinite", value: other.into(), bound });
                }
            },
        })
    }
}

fn clip(text: &str) -> Result<Clip, Error> {
    let entry: ClipEntry = json("clip", text)?;
    let clip = match (entry.global_norm, entry.value) {
        (Some(bound), None) => Clip::GlobalNorm(bound),
        (None, Some(bound)) => Clip::Value(bound),
        _ => {
            let bound = "a JSON object with either \"global_norm\" or \"value\"";
            return Err(Error::Metadata { key: "clip", value: text.into(), bound });
        }
    };
    let (Clip::GlobalNorm(x) | Clip::Value(x)) = clip;
    if x.is_finite() && x >= 0.0 {
        Ok(clip)
    } else {
        Err(Error::Value { field: "clip".into(), value: x, bound: "finite and at least 0" })
    }
}

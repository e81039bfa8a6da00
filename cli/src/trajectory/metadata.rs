//! The metadata of a trajectory: text to typed values.

use super::Error;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The one value of the key `format` that is known.
pub const FORMAT: &str = "optim-trajectory/1";

/// How gradients are clipped, before the update and after the loss scale has been divided out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Scales by `min(1, X / (norm + 1e-6))`, the norm taken over all tensors.
    GlobalNorm(f64),
    /// Clamps to `[-X, X]`.
    Value(f64),
}

/// A parameter group as the file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupEntry {
    pub(super) name: String,
    pub(super) params: Vec<String>,
    #[serde(default)]
    pub(super) overrides: Map<String, Value>,
    #[serde(default)]
    lr_factor: Option<f64>,
}

impl GroupEntry {
    /// Takes the factor from where it stands: beside the name or among the overrides.
    pub(super) fn take_factor(&mut self) -> Result<f64, Error> {
        match (self.overrides.remove("lr_factor"), self.lr_factor) {
            (Some(_), Some(_)) => Err(Error::TwoFactors { group: self.name.clone() }),
            (Some(value), None) => {
                serde_json::from_value(value).map_err(|source| Error::Json { key: "groups", source })
            }
            (None, factor) => Ok(factor.unwrap_or(1.0)),
        }
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) source: Option<String>,
    pub(super) rule: String,
    pub(super) hyper: Map<String, Value>,
    pub(super) clip: Option<Clip>,
    pub(super) groups: Option<Vec<GroupEntry>>,
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
        let text = need("optimizer")?;
        let mut hyper: Map<String, Value> = json("optimizer", text)?;
        let rule = match hyper.remove("rule") {
            Some(Value::String(rule)) => rule,
            _ => {
                let bound = "a JSON object with the name of the rule as \"rule\"";
                return Err(Error::Metadata { key: "optimizer", value: text.into(), bound });
            }
        };
        Ok(Self {
            unread,
            source: get("source").map(Into::into),
            rule,
            hyper,
            clip: get("clip").map(clip).transpose()?,
            groups: get("groups").map(|text| json("groups", text)).transpose()?,
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

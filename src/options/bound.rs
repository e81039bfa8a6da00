//! The bound of a norm in serialised form: JSON has no infinite numbers.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const INFINITE: &str = "inf";

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number or \"inf\"")]
enum Form {
    Number(f64),
    Text(String),
}

#[cfg_attr(
    target_pointer_width = "64",
    expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")
)]
pub(super) fn serialize<S: Serializer>(bound: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if *bound == f64::INFINITY { INFINITE.serialize(serializer) } else { bound.serialize(serializer) }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    match Form::deserialize(deserializer)? {
        Form::Number(bound) => Ok(bound),
        Form::Text(text) if text == INFINITE => Ok(f64::INFINITY),
        Form::Text(text) => Err(de::Error::invalid_value(de::Unexpected::Str(&text), &"a number or \"inf\"")),
    }
}

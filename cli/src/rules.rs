//! Rules from the names and hyperparameters of JSON.

use crate::trajectory::Error;
use serde_json::{Map, Value};
use wgpu_optim::AnyRule;

/// The rule `name` with the hyperparameters of a JSON object; missing ones have their defaults.
///
/// # Errors
/// [`Error::UnknownRule`], which lists the known rules. [`Error::Hyperparameter`] for a name that the rule
/// lacks or a value of another type.
pub fn configure(name: &str, hyper: &Map<String, Value>) -> Result<AnyRule, Error> {
    let default = AnyRule::by_name(name)
        .map_err(|_| Error::UnknownRule { rule: name.into(), known: AnyRule::NAMES.join(", ") })?;
    // One at a time: serde names an unknown field, but not a field with a bad value.
    for (field, value) in hyper {
        let single = [(field.clone(), value.clone())].into_iter().collect();
        parse(name, single).map_err(|source| Error::Hyperparameter {
            rule: default.name(),
            name: field.clone(),
            value: value.to_string(),
            source,
        })?;
    }
    parse(name, hyper.clone()).map_err(|source| Error::Json { key: "optimizer", source })
}

/// The serde form of a rule.
fn parse(name: &str, hyper: Map<String, Value>) -> Result<AnyRule, serde_json::Error> {
    let form = [(name.to_owned(), Value::Object(hyper))].into_iter().collect();
    serde_json::from_value(Value::Object(form))
}

/// The hyperparameters of a rule as JSON.
#[must_use]
pub fn hyperparameters(rule: AnyRule) -> Map<String, Value> {
    let Ok(mut form) = serde_json::to_value(rule) else { unreachable!("numbers and flags have a JSON form") };
    match form.get_mut(rule.name()).map(Value::take) {
        Some(Value::Object(hyper)) => hyper,
        other => unreachable!("a rule's form has an object under its name, not {other:?}"),
    }
}

/// The rule with another value of a hyperparameter, or unchanged if it has none of that name.
#[must_use]
pub fn with_hyperparameter(rule: AnyRule, name: &str, value: impl Into<Value>) -> AnyRule {
    let mut hyper = hyperparameters(rule);
    match hyper.get_mut(name) {
        Some(old) => *old = value.into(),
        None => return rule,
    }
    configure(rule.name(), &hyper).unwrap_or(rule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu_optim::{Adadelta, AdamW, Lion};

    #[test]
    fn json_and_back() {
        for rule in AnyRule::all() {
            let hyper = hyperparameters(rule);
            assert!(!hyper.is_empty(), "{}", rule.name());
            assert_eq!(configure(rule.name(), &hyper).expect("its own form"), rule);
        }
    }

    #[test]
    fn one_hyperparameter_changes() {
        let decayed = with_hyperparameter(AdamW::default().into(), "weight_decay", 0.5);
        assert_eq!(decayed, AdamW { weight_decay: 0.5, ..AdamW::default() }.into());
        for rule in [AnyRule::from(Adadelta::default()), Lion::default().into()] {
            assert_eq!(with_hyperparameter(rule, "momentum", 0.5), rule);
        }
    }
}

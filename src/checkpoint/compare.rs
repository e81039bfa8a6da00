//! Comparison of a checkpoint's rules, hyperparameters and options with an optimizer's.

use super::fit::{Mismatches, clipped};
use super::metadata::{GroupRecord, Metadata};
use super::{Differing, Formats, Load};
use crate::error::checkpoint::Mismatch;
use crate::layout::{Group, Layout};
use crate::options::{Options, Rounding};
use crate::rules::DynRule;
use crate::schedule::Schedule;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Options that set the storage of numbers.
const FORMATS: [&str; 5] = ["params", "grads", "states", "f32_states_below", "master"];

/// The rule of a group in a checkpoint.
fn rule_of<'a>(record: &'a Metadata, saved: &'a GroupRecord) -> &'a str {
    saved.rule.as_deref().unwrap_or(&record.rule)
}

/// Lists every pair of different rules once.
pub(super) fn rules(
    layout: &Layout,
    record: &Metadata,
    groups: &HashMap<&str, &GroupRecord>,
    wrong: &mut Mismatches,
) {
    let mut listed: Vec<(&str, &str)> = Vec::new();
    for group in layout.groups() {
        // A group that the file lacks is another mismatch, unless all groups have another rule.
        let saved = groups.get(group.name());
        let found = saved.map_or(record.rule.as_str(), |saved| rule_of(record, saved));
        let expected = group.rule().name();
        let mixed = record.groups.0.iter().any(|saved| saved.rule.is_some()) || layout.rules().len() > 1;
        if found != expected && (saved.is_some() || !mixed) && !listed.contains(&(found, expected)) {
            listed.push((found, expected));
            wrong.add(|| Mismatch::Rule { found: clipped(found), expected });
        }
    }
}

/// Compares the values of a group. With [`Differing::Take`] `layout` takes the file's values.
pub(super) fn group(
    group: &Group,
    record: &Metadata,
    saved: &GroupRecord,
    differing: Differing,
    layout: &mut Layout,
    wrong: &mut Mismatches,
) {
    // Another rule is a mismatch by itself, for any values.
    if differing == Differing::Ignore || rule_of(record, saved) != group.rule().name() {
        return;
    }
    let name = group.name();
    let differs = |field: &str, found: String, expected: String| Mismatch::Hyperparameter {
        group: name.into(),
        field: field.into(),
        found,
        expected,
    };
    match group.rule().read_json(saved.hyperparameters.text()) {
        None => {}
        Some(Ok(rule)) if rule == *group.rule() => {}
        Some(Ok(rule)) if differing == Differing::Take => {
            if let Err(error) = layout.set_rule(name, rule) {
                let ours = format!("{:?}", group.rule());
                wrong.add(|| differs("hyperparameters", error.to_string(), ours));
            }
        }
        Some(Ok(rule)) => {
            let [found, expected] = [fields(&rule), fields(group.rule())];
            for (field, found, expected) in different(&found, &expected) {
                wrong.add(|| differs(field, found, expected));
            }
        }
        Some(Err(error)) => {
            let (error, ours) = (clipped(&error.to_string()), format!("{:?}", group.rule()));
            wrong.add(|| differs("hyperparameters", error, ours));
        }
    }
    factor(group, saved, differing, layout, wrong);
    if saved.frozen != group.is_frozen() {
        if differing == Differing::Take {
            layout.set_frozen(name, saved.frozen).expect("the layout has its own groups");
        } else {
            let [found, expected] = [saved.frozen, group.is_frozen()].map(|frozen| frozen.to_string());
            wrong.add(|| differs("frozen", found, expected));
        }
    }
}

/// Compares a group's factor of the learning rate.
fn factor(
    group: &Group,
    saved: &GroupRecord,
    differing: Differing,
    layout: &mut Layout,
    wrong: &mut Mismatches,
) {
    let ours = serde_json::to_string(group.factor());
    let found = saved.lr_factor.as_ref().map(|json| (json.text(), json.parse::<Schedule>()));
    let same = match (&found, &ours) {
        // A function of the program can be neither saved nor compared.
        (None, Err(_)) => true,
        (Some((_, Ok(found))), Ok(_)) => found == group.factor(),
        _ => false,
    };
    if same {
        return;
    }
    let function = || "a function".to_owned();
    // The text may have numbers with any number of digits.
    let text = match &found {
        None => function(),
        Some((_, Ok(found))) => serde_json::to_string(found).unwrap_or_else(|_| function()),
        Some((text, Err(_))) => clipped(text),
    };
    let differs = |found: String, expected: String| Mismatch::Hyperparameter {
        group: group.name().into(),
        field: "lr_factor".into(),
        found,
        expected,
    };
    let expected = ours.unwrap_or_else(|_| function());
    match found {
        Some((_, Ok(found))) if differing == Differing::Take => {
            if let Err(error) = layout.set_lr_factor(group.name(), found) {
                wrong.add(|| differs(error.to_string(), expected));
            }
        }
        _ => wrong.add(|| differs(text, expected)),
    }
}

/// The hyperparameters of a rule by name.
fn fields(rule: &DynRule) -> Map<String, Value> {
    let json = rule.to_json().and_then(|json| serde_json::from_str(&json).ok());
    json.unwrap_or_default()
}

/// The fields of a struct.
fn object<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Fields that differ, with both values.
fn different<'a>(
    found: &'a Map<String, Value>,
    expected: &'a Map<String, Value>,
) -> impl Iterator<Item = (&'a str, String, String)> {
    let fields = expected.iter().filter(|(field, value)| found.get(*field) != Some(value));
    fields.map(|(field, value)| {
        let found = found.get(field).map_or_else(|| "absent".into(), Value::to_string);
        (field.as_str(), found, value.to_string())
    })
}

/// Compares the options. With [`Differing::Take`] `taken` gets the clip's bound of the file.
pub(super) fn options(
    options: &Options,
    record: &Metadata,
    load: &Load,
    taken: &mut Options,
    wrong: &mut Mismatches,
) {
    let stochastic = options.storage().stochastic;
    let judged = load.options != Differing::Ignore;
    let Some(json) = &record.options else {
        if stochastic && judged {
            wrong.add(|| Mismatch::Seed);
        }
        return;
    };
    let saved: Options = match json.parse() {
        Ok(saved) => saved,
        Err(error) => {
            let differs = || Mismatch::Option {
                field: "all".into(),
                found: clipped(&error.to_string()),
                expected: format!("{options:?}"),
            };
            // Formats are compared for the tensors, not for the options.
            if judged {
                wrong.add(differs);
            }
            return;
        }
    };
    if let (Differing::Take, Some(clip)) = (load.options, saved.clip) {
        // A clip of another kind does not change, and is a mismatch below.
        let _ = taken.set_clip(clip);
    }
    let [found, expected] = [object(&saved), object(&*taken)];
    for (field, found, expected) in different(&found, &expected) {
        let policy = if FORMATS.contains(&field) { load.formats == Formats::Same } else { judged };
        if policy && field == "rounding" && saved.rounding == Rounding::Nearest && stochastic {
            wrong.add(|| Mismatch::Seed);
        } else if policy {
            wrong.add(|| Mismatch::Option { field: field.into(), found, expected });
        }
    }
}

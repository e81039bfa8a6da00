//! Hyperparameters that the checks and the measurements use.

use crate::rules::configure;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use wgpu_optim::Rule;

/// A configuration of a rule, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// What to call it.
    pub name: &'static str,
    /// JSON of the hyperparameters that differ from the defaults.
    json: &'static str,
}

const DEFAULT: Preset = Preset { name: "default", json: "{}" };

impl Preset {
    /// The rule so configured; where it lacks one of the hyperparameters, its defaults.
    #[must_use]
    pub fn rule<R: Rule + Default + DeserializeOwned>(self) -> R {
        self.with::<R>("{}")
    }

    /// The same with the hyperparameters of `json` on top, if the rule has them.
    pub(crate) fn with<R: Rule + Default + DeserializeOwned>(self, json: &str) -> R {
        let object = |json| serde_json::from_str::<Map<String, Value>>(json).unwrap_or_default();
        let base = object(self.json);
        let mut all = base.clone();
        all.extend(object(json));
        configure(&all).or_else(|_| configure(&base)).unwrap_or_default()
    }
}

/// What `verify` checks: the defaults, and for some rules what takes other branches of the update.
#[must_use]
pub fn variants(rule: &str) -> Vec<Preset> {
    let preset = |name, json| Preset { name, json };
    let more = match rule {
        "sgd" => vec![
            preset("momentum", r#"{"momentum": 0.9}"#),
            preset("nesterov", r#"{"momentum": 0.9, "nesterov": true, "weight_decay": 0.01}"#),
            preset("dampened ascent", r#"{"momentum": 0.9, "dampening": 0.3, "maximize": true}"#),
            preset("classic", r#"{"momentum": 0.9, "form": "classic"}"#),
            preset("averaged", r#"{"momentum": 0.9, "form": "averaged", "nesterov": true}"#),
        ],
        "adam" => vec![
            preset("L2 ascent", r#"{"weight_decay": 0.01, "maximize": true}"#),
            preset("amsgrad", r#"{"amsgrad": true, "beta2": 0.9, "eps_corrected": false}"#),
        ],
        "adamw" => vec![
            preset("ascent", r#"{"beta2": 0.95, "weight_decay": 0.1, "maximize": true}"#),
            preset("amsgrad", r#"{"amsgrad": true, "amsgrad_corrected": true, "beta2": 0.9}"#),
        ],
        "adagrad" => {
            vec![preset("optax", r#"{"initial_accumulator_value": 0.1, "eps": 0.0, "eps_root": 1e-7}"#)]
        }
        "rmsprop" => vec![
            preset("centered", r#"{"centered": true, "momentum": 0.9, "alpha": 0.9}"#),
            preset("optax", r#"{"alpha": 0.9, "eps": 0.0, "eps_root": 1e-8}"#),
        ],
        "adamax" => vec![preset("Keras", r#"{"eps": 1e-7, "eps_after_max": true}"#)],
        "nadam" => vec![preset("decoupled", r#"{"weight_decay": 0.01, "decoupled_weight_decay": true}"#)],
        "radam" => vec![preset("rectified", r#"{"beta2": 0.9, "rectification_threshold": 4.0}"#)],
        "adan" => vec![
            preset("decay", r#"{"weight_decay": 0.02}"#),
            preset("optax", r#"{"complement_beta2": true, "no_prox": true, "eps_root": 1e-8}"#),
        ],
        "lamb" => vec![preset("decay", r#"{"weight_decay": 0.01, "maximize": true}"#)],
        "lars" => vec![
            preset("nesterov", r#"{"weight_decay": 1e-4, "nesterov": true, "eps": 1e-8}"#),
            preset("optax", r#"{"weight_decay": 1e-4, "joint_norm": true, "form": "classic"}"#),
        ],
        _ => Vec::new(),
    };
    [vec![DEFAULT], more].concat()
}

/// What `bench` measures: the defaults, but SGD with the momentum that it is mostly used with.
#[must_use]
pub fn bench(rule: &str) -> Preset {
    if rule == "sgd" { Preset { name: "momentum 0.9", json: r#"{"momentum": 0.9}"# } } else { DEFAULT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{BuiltIn, RuleVisitor, by_name, names};

    struct Check(Preset);
    impl RuleVisitor for Check {
        type Output = ();
        fn visit<R: BuiltIn>(self) {
            let object = serde_json::from_str(self.0.json).expect("a JSON object");
            let rule = configure::<R>(&object).unwrap_or_else(|e| panic!("{} {}: {e}", R::NAME, self.0.name));
            assert_eq!(rule.validate(), Ok(()));
            assert_eq!(self.0.rule::<R>(), rule);
        }
    }

    #[test]
    fn presets_are_what_the_rules_take() {
        for rule in names() {
            for preset in variants(rule).into_iter().chain([bench(rule)]) {
                by_name(rule, Check(preset)).expect("a known rule");
            }
        }
    }
}

//! Hyperparameters that the checks and the measurements use.

use wgpu_optim::rules::MomentumForm;
use wgpu_optim::{Adagrad, Adam, AdamW, Adamax, Adan, AnyRule, Lamb, Lars, NAdam, RAdam, RmsProp, Sgd};

/// A configured rule with a name for the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// The configuration's name.
    pub name: &'static str,
    /// The rule.
    pub rule: AnyRule,
}

fn preset(name: &'static str, rule: impl Into<AnyRule>) -> Preset {
    Preset { name, rule: rule.into() }
}

/// The configurations for `verify`: `rule` unchanged, and for some rules configurations that take other
/// branches of the update.
#[must_use]
pub fn variants(rule: AnyRule) -> Vec<Preset> {
    let mut presets = vec![preset("default", rule)];
    presets.extend(more(rule));
    presets
}

fn more(rule: AnyRule) -> Vec<Preset> {
    match rule {
        AnyRule::Sgd(plain) => {
            let momentum = Sgd { momentum: 0.9, ..plain };
            vec![
                preset("momentum", momentum),
                preset("nesterov", Sgd { nesterov: true, weight_decay: 0.01, ..momentum }),
                preset("dampened ascent", Sgd { dampening: 0.3, maximize: true, ..momentum }),
                preset("classic", Sgd { form: MomentumForm::Classic, ..momentum }),
                preset("averaged", Sgd { form: MomentumForm::Averaged, nesterov: true, ..momentum }),
            ]
        }
        AnyRule::Adam(plain) => vec![
            preset("L2 ascent", Adam { weight_decay: 0.01, maximize: true, ..plain }),
            preset("amsgrad", Adam { amsgrad: true, beta2: 0.9, eps_corrected: false, ..plain }),
        ],
        AnyRule::AdamW(plain) => vec![
            preset("ascent", AdamW { beta2: 0.95, weight_decay: 0.1, maximize: true, ..plain }),
            preset("amsgrad", AdamW { amsgrad: true, amsgrad_corrected: true, beta2: 0.9, ..plain }),
        ],
        AnyRule::Adagrad(plain) => {
            vec![preset(
                "optax",
                Adagrad { initial_accumulator_value: 0.1, eps: 0.0, eps_root: 1e-7, ..plain },
            )]
        }
        AnyRule::RmsProp(plain) => vec![
            preset("centered", RmsProp { centered: true, momentum: 0.9, alpha: 0.9, ..plain }),
            preset("optax", RmsProp { alpha: 0.9, eps: 0.0, eps_root: 1e-8, ..plain }),
        ],
        AnyRule::Adamax(plain) => {
            vec![preset("Keras", Adamax { eps: 1e-7, eps_after_max: true, ..plain })]
        }
        AnyRule::NAdam(plain) => {
            vec![preset("decoupled", NAdam { weight_decay: 0.01, decoupled_weight_decay: true, ..plain })]
        }
        AnyRule::RAdam(plain) => {
            vec![preset("rectified", RAdam { beta2: 0.9, rectification_threshold: 4.0, ..plain })]
        }
        AnyRule::Adan(plain) => vec![
            preset("decay", Adan { weight_decay: 0.02, ..plain }),
            preset("optax", Adan { complement_beta2: true, no_prox: true, eps_root: 1e-8, ..plain }),
        ],
        AnyRule::Lamb(plain) => {
            vec![preset("decay", Lamb { weight_decay: 0.01, maximize: true, ..plain })]
        }
        AnyRule::Lars(plain) => vec![
            preset("nesterov", Lars { weight_decay: 1e-4, nesterov: true, eps: 1e-8, ..plain }),
            preset(
                "optax",
                Lars { weight_decay: 1e-4, joint_norm: true, form: MomentumForm::Classic, ..plain },
            ),
        ],
        _ => Vec::new(),
    }
}

/// The configuration for `bench`: `rule` unchanged, except SGD, which gets its most common momentum.
#[must_use]
pub fn bench(rule: AnyRule) -> Preset {
    match rule {
        AnyRule::Sgd(plain) => preset("momentum 0.9", Sgd { momentum: 0.9, ..plain }),
        rule => preset("default", rule),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_differ() {
        for rule in AnyRule::all() {
            let presets = variants(rule);
            for preset in presets.iter().chain([&bench(rule)]) {
                assert_eq!(preset.rule.name(), rule.name());
                assert_eq!(preset.rule.validate(), Ok(()), "{} {}", rule.name(), preset.name);
            }
            for (i, preset) in presets.iter().enumerate() {
                let alike = presets[..i].iter().find(|other| other.rule == preset.rule);
                assert_eq!(alike, None, "{}", rule.name());
            }
        }
    }
}

//! Every option of every built-in rule.

use wgpu_optim::rules::MomentumForm;
use wgpu_optim::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, CpuRule, DynRule, Lamb, Lars, Lion, NAdam,
    RAdam, RmsProp, Sgd, for_each_rule,
};

/// Every option of a rule, by name. A rule of the list without this fails to compile.
pub trait Cases: CpuRule {
    /// Their names, and the rule with them.
    fn cases() -> Vec<(&'static str, Self)>;
}

/// A rule with options that a test tries.
#[derive(Clone, Debug)]
pub struct Case {
    /// The case's name.
    pub name: &'static str,
    /// The rule.
    pub rule: DynRule,
}

/// Every case of every built-in rule.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    macro_rules! all {
        ($($rule:ty),*) => {
            $(
                let own = <$rule>::cases().into_iter();
                cases.extend(own.map(|(name, rule)| Case { name, rule: rule.into() }));
            )*
        };
    }
    for_each_rule!(all);
    cases
}

/// The cases of one rule.
#[must_use]
pub fn cases_of(rule: &str) -> Vec<Case> {
    cases().into_iter().filter(|case| case.rule.name() == rule).collect()
}

impl Cases for Sgd {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        let momentum = Self { momentum: 0.9, ..plain };
        vec![
            ("plain", plain),
            ("weight decay", Self { weight_decay: 0.1, ..plain }),
            ("maximize", Self { maximize: true, ..plain }),
            ("momentum", momentum),
            ("dampening", Self { dampening: 0.3, ..momentum }),
            ("nesterov", Self { nesterov: true, ..momentum }),
            ("nesterov and all", Self { nesterov: true, maximize: true, weight_decay: 0.1, ..momentum }),
            ("dampening and all", Self { dampening: 0.3, maximize: true, weight_decay: 0.1, ..momentum }),
            ("classic", Self { form: MomentumForm::Classic, ..momentum }),
            ("classic nesterov", Self { form: MomentumForm::Classic, nesterov: true, ..momentum }),
            ("averaged", Self { form: MomentumForm::Averaged, weight_decay: 0.1, ..momentum }),
            ("averaged nesterov", Self { form: MomentumForm::Averaged, nesterov: true, ..momentum }),
        ]
    }
}

impl Cases for Adam {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("weight decay", Self { weight_decay: 0.1, ..plain }),
            ("maximize", Self { maximize: true, ..plain }),
            ("no averages", Self { beta1: 0.0, beta2: 0.0, ..plain }),
            ("large eps", Self { eps: 0.1, beta2: 0.95, ..plain }),
            ("decoupled", Self { weight_decay: 0.1, decoupled_weight_decay: true, ..plain }),
            ("uncorrected eps", Self { eps: 1e-3, eps_corrected: false, ..plain }),
            ("amsgrad", Self { amsgrad: true, beta2: 0.5, ..plain }),
            ("amsgrad corrected", Self { amsgrad: true, amsgrad_corrected: true, beta2: 0.9, ..plain }),
        ]
    }
}

impl Cases for AdamW {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("no decay", Self { weight_decay: 0.0, ..plain }),
            ("maximize", Self { maximize: true, weight_decay: 0.3, ..plain }),
            ("llm", Self { beta2: 0.95, weight_decay: 0.1, ..plain }),
            ("uncorrected eps", Self { eps: 1e-3, eps_corrected: false, ..plain }),
            ("amsgrad", Self { amsgrad: true, beta2: 0.5, ..plain }),
            ("amsgrad corrected", Self { amsgrad: true, amsgrad_corrected: true, beta2: 0.9, ..plain }),
        ]
    }
}

impl Cases for Adagrad {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("decays", Self { weight_decay: 0.1, lr_decay: 0.5, ..plain }),
            ("maximize", Self { maximize: true, ..plain }),
            ("eps inside", Self { initial_accumulator_value: 0.1, eps: 0.0, eps_root: 1e-7, ..plain }),
        ]
    }
}

impl Cases for RmsProp {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("momentum", Self { momentum: 0.9, ..plain }),
            ("centered", Self { centered: true, alpha: 0.9, ..plain }),
            ("eps inside", Self { eps: 0.0, eps_root: 1e-8, alpha: 0.9, ..plain }),
            ("all", Self { momentum: 0.5, centered: true, weight_decay: 0.1, maximize: true, ..plain }),
        ]
    }
}

impl Cases for Adadelta {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { rho: 0.5, eps: 1e-3, weight_decay: 0.1, maximize: true }),
            ("tiny eps", Self { eps: 1e-12, ..plain }),
        ]
    }
}

impl Cases for Adamax {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { beta1: 0.5, beta2: 0.7, eps: 1e-3, weight_decay: 0.1, maximize: true, ..plain }),
            ("eps after", Self { eps: 1e-3, eps_after_max: true, ..plain }),
        ]
    }
}

impl Cases for NAdam {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { weight_decay: 0.1, momentum_decay: 0.1, maximize: true, ..plain }),
            ("decoupled", Self { weight_decay: 0.1, decoupled_weight_decay: true, ..plain }),
        ]
    }
}

impl Cases for RAdam {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            // ρₜ passes 4 at the third step.
            ("rectified", Self { beta2: 0.95, rectification_threshold: 4.0, eps: 1e-4, ..plain }),
            ("all", Self { weight_decay: 0.1, eps_corrected: true, maximize: true, beta2: 0.9, ..plain }),
            ("decoupled", Self { weight_decay: 0.1, decoupled_weight_decay: true, ..plain }),
        ]
    }
}

impl Cases for Lion {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("all", Self { beta1: 0.5, beta2: 0.8, weight_decay: 0.3, maximize: true }),
            ("no decay", Self { weight_decay: 0.0, ..plain }),
        ]
    }
}

impl Cases for AdaBelief {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            (
                "all",
                Self { beta1: 0.5, beta2: 0.8, eps: 1e-6, eps_root: 1e-8, weight_decay: 0.3, maximize: true },
            ),
        ]
    }
}

impl Cases for Adan {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("decay", Self { weight_decay: 0.3, ..plain }),
            ("no prox", Self { weight_decay: 0.3, no_prox: true, maximize: true, ..plain }),
            ("complement", Self { complement_beta2: true, eps_root: 1e-8, ..plain }),
        ]
    }
}

impl Cases for Lamb {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        vec![
            ("default", plain),
            ("decay", Self { weight_decay: 0.1, ..plain }),
            ("not adapted", Self { adapt_undecayed: false, ..plain }),
            ("all", Self { beta1: 0.5, beta2: 0.8, eps: 1e-3, weight_decay: 0.3, maximize: true, ..plain }),
        ]
    }
}

impl Cases for Lars {
    fn cases() -> Vec<(&'static str, Self)> {
        let plain = Self::default();
        let decay = Self { weight_decay: 0.1, trust_coefficient: 0.02, ..plain };
        vec![
            ("default", plain),
            ("plain", Self { momentum: 0.0, ..plain }),
            ("nesterov", Self { nesterov: true, eps: 0.1, ..decay }),
            ("joint", Self { joint_norm: true, form: MomentumForm::Classic, ..decay }),
            ("dampening and all", Self { dampening: 0.3, maximize: true, ..decay }),
        ]
    }
}

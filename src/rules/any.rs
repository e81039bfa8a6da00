//! An enum over all built-in rules, for configurations that choose a rule by name.

use super::dynamic::DynRule;
use crate::error::RuleError;

macro_rules! any_rule {
    ($($root:tt :: $rule:ident),* $(,)?) => {
        /// Any built-in rule with its hyperparameters, chosen at run time.
        ///
        /// Its serde form is an object with the rule's name: `{"adamw": {"beta2": 0.95}}`. Missing
        /// hyperparameters have their defaults. An unknown rule or hyperparameter is an error that lists the
        /// known ones.
        ///
        /// ```
        /// # #[cfg(feature = "checkpoint")] {
        /// use wgpu_optim::{AdamW, AnyRule, Group};
        /// let rule: AnyRule = serde_json::from_str(r#"{"adamw": {"beta2": 0.95}}"#)?;
        /// assert_eq!(rule, AnyRule::from(AdamW { beta2: 0.95, ..AdamW::default() }));
        /// let group = Group::new("all", rule).tensor("w", [64, 32]);
        ///
        /// let error = serde_json::from_str::<AnyRule>(r#"{"adamx": {}}"#).unwrap_err();
        /// assert!(error.to_string().contains("`adamw`"));
        /// # }
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
        #[non_exhaustive]
        pub enum AnyRule {
            $(
                #[doc = concat!("The rule [`", stringify!($rule), "`](crate::", stringify!($rule), ").")]
                $rule(super::$rule)
            ),*
        }

        $(
            impl From<super::$rule> for AnyRule {
                fn from(rule: super::$rule) -> Self {
                    Self::$rule(rule)
                }
            }
        )*

        impl From<AnyRule> for DynRule {
            fn from(rule: AnyRule) -> Self {
                match rule {
                    $(AnyRule::$rule(rule) => rule.into()),*
                }
            }
        }

        impl AnyRule {
            /// The names of all built-in rules.
            pub const NAMES: &'static [&'static str] = &[$(<super::$rule as super::Rule>::NAME),*];

            /// Every built-in rule with its defaults.
            #[must_use]
            pub fn all() -> Vec<Self> {
                vec![$(Self::$rule(super::$rule::default())),*]
            }

            /// A built-in rule as a value of this type; `None` for other rules.
            #[must_use]
            pub fn of(rule: &DynRule) -> Option<Self> {
                $(
                    if let Some(rule) = rule.downcast_ref::<super::$rule>() {
                        return Some(Self::$rule(rule.clone()));
                    }
                )*
                None
            }

            /// The rule's name.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$rule(_) => <super::$rule as super::Rule>::NAME),*
                }
            }

            /// The rule with `momentum` as the hyperparameter that a momentum schedule sets; `None` if the
            /// rule has none.
            #[must_use]
            pub fn with_momentum(&self, momentum: f64) -> Option<Self> {
                match self {
                    $(Self::$rule(rule) => crate::Rule::with_momentum(rule, momentum).map(Self::$rule)),*
                }
            }

            /// Checks the hyperparameters.
            ///
            /// # Errors
            /// A [`RuleError`] if a hyperparameter is out of range, or two of them exclude each other.
            pub fn validate(&self) -> Result<(), RuleError> {
                match self {
                    $(Self::$rule(rule) => super::Rule::validate(rule)),*
                }
            }
        }
    };
}
crate::for_each_rule!(any_rule);

impl AnyRule {
    /// The rule called `name` with its defaults.
    ///
    /// # Errors
    /// A [`RuleError::Unknown`], which lists the known rules.
    pub fn by_name(name: &str) -> Result<Self, RuleError> {
        let found = Self::NAMES.iter().position(|known| *known == name);
        let unknown = || RuleError::Unknown { name: name.into(), known: Self::NAMES.join(", ") };
        found.map(|i| Self::all()[i]).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn momentum_goes_where_the_rule_has_it() {
        let driven = AnyRule::from(crate::Sgd::default()).with_momentum(0.5);
        assert_eq!(driven, Some(crate::Sgd { momentum: 0.5, ..crate::Sgd::default() }.into()));
        let driven = AnyRule::from(crate::AdamW::default()).with_momentum(0.5);
        assert_eq!(driven, Some(crate::AdamW { beta1: 0.5, ..crate::AdamW::default() }.into()));
        assert_eq!(AnyRule::from(crate::Adadelta::default()).with_momentum(0.5), None);
    }

    #[test]
    fn every_rule_is_found_by_its_name() {
        for (rule, name) in AnyRule::all().into_iter().zip(AnyRule::NAMES) {
            assert_eq!(rule.name(), *name);
            assert_eq!(AnyRule::by_name(name).unwrap(), rule);
            let dynamic = DynRule::from(rule);
            assert_eq!(dynamic.name(), *name);
            assert_eq!(AnyRule::of(&dynamic), Some(rule));
            assert!(format!("{rule:?}").ends_with(&format!("({dynamic:?})")), "{dynamic:?}");
            assert_eq!(rule.validate(), Ok(()));
        }
        let error = AnyRule::by_name("adamx").unwrap_err().to_string();
        assert!(
            error.contains("\"adamx\"") && AnyRule::NAMES.iter().all(|name| error.contains(name)),
            "{error}"
        );
    }
}

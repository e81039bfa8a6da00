//! From a rule's name to its type, through the library's own list.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use wgpu_optim::{Rule, Twin};

use crate::trajectory::Error;

/// What every rule of the library's list is.
pub trait BuiltIn: Twin + Default + Serialize + DeserializeOwned {}
impl<R: Twin + Default + Serialize + DeserializeOwned> BuiltIn for R {}

/// What to do with a rule once its name is known.
pub trait RuleVisitor {
    /// What comes out.
    type Output;
    /// Does it for rule `R`.
    fn visit<R: BuiltIn>(self) -> Self::Output;
}

/// Calls `visitor` with the rule called `name`; `None` if there is no such rule.
pub fn by_name<V: RuleVisitor>(name: &str, visitor: V) -> Option<V::Output> {
    macro_rules! dispatch {
        ($($rule:ty),*) => {{
            $(if name == <$rule>::NAME { return Some(visitor.visit::<$rule>()); })*
            None
        }};
    }
    wgpu_optim::for_each_rule!(dispatch)
}

/// The names of all rules.
#[must_use]
pub fn names() -> Vec<&'static str> {
    macro_rules! names {
        ($($rule:ty),*) => { vec![$(<$rule>::NAME),*] };
    }
    wgpu_optim::for_each_rule!(names)
}

/// The rule with the hyperparameters of a JSON object; what it leaves out has the default.
///
/// # Errors
/// [`Error::Hyperparameter`] for a name that the rule lacks or a value of another type.
pub fn configure<R: Rule + DeserializeOwned>(hyper: &Map<String, Value>) -> Result<R, Error> {
    // One at a time first: serde names an unknown field, but not the field whose value it cannot take.
    for (name, value) in hyper {
        let single: Map<_, _> = [(name.clone(), value.clone())].into_iter().collect();
        serde_json::from_value::<R>(Value::Object(single)).map_err(|source| Error::Hyperparameter {
            rule: R::NAME,
            name: name.clone(),
            value: value.to_string(),
            source,
        })?;
    }
    serde_json::from_value(Value::Object(hyper.clone()))
        .map_err(|source| Error::Json { key: "optimizer", source })
}

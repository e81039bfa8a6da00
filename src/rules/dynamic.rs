//! Any rule as a value of one type, as groups hold it and engines call it.

use super::fields::Fields;
use super::rule::{CpuRule, Rule};
use super::spec::RuleSpec;
use crate::error::RuleError;
use core::any::Any;
use core::fmt;
use std::sync::Arc;

/// A rule of any type with its hyperparameters.
///
/// Every [`CpuRule`] converts to it, and so do [`AnyRule`](crate::AnyRule) and [`GpuOnly`].
///
/// ```
/// use wgpu_optim::{AdamW, DynRule};
/// let rule = DynRule::from(AdamW { beta2: 0.95, ..AdamW::default() });
/// assert_eq!(rule.name(), "adamw");
/// assert_eq!(rule.downcast_ref::<AdamW>().unwrap().beta2, 0.95);
/// ```
#[derive(Clone)]
pub struct DynRule(Arc<dyn Erased>);

/// A rule without a CPU implementation, for the GPU only.
///
/// The CPU engine, the reference and the checker refuse it with [`RuleError::NoCpu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuOnly<R>(
    /// The rule.
    pub R,
);

/// The reason for which a step's scalars were refused.
pub(crate) enum Refusal {
    /// The rule has no momentum to replace.
    NoMomentum,
    /// A hyperparameter is out of range with the step's momentum.
    Hyperparameter { field: &'static str, value: f64, bound: &'static str },
    /// The momentum needs a state slot that is not kept.
    Slot,
}

trait Erased: Any + fmt::Debug + Send + Sync {
    fn spec(&self) -> &RuleSpec;
    fn validate(&self) -> Result<(), RuleError>;
    fn keeps_slot(&self, slot: usize) -> bool;
    fn scalars(
        &self,
        momentum: Option<f64>,
        kept: &[bool],
        lr: f64,
        t: u64,
        carry: &mut f64,
        out: &mut [f64],
    ) -> Result<(), Refusal>;
    fn rule(&self) -> &dyn Any;
    fn same(&self, other: &dyn Any) -> bool;
    #[cfg(feature = "checkpoint")]
    fn to_json(&self) -> Option<String>;
    #[cfg(feature = "checkpoint")]
    fn read_json(&self, text: &str) -> Option<Result<DynRule, serde_json::Error>>;
}

#[derive(Clone)]
struct Held<R> {
    spec: RuleSpec,
    rule: R,
}

impl<R: fmt::Debug> fmt::Debug for Held<R> {
    /// Only the hyperparameters: the description contains the shader's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)
    }
}

impl<R: Rule> Erased for Held<R> {
    fn spec(&self) -> &RuleSpec {
        &self.spec
    }

    fn validate(&self) -> Result<(), RuleError> {
        self.spec.check_names()?;
        self.rule.validate()
    }

    fn keeps_slot(&self, slot: usize) -> bool {
        self.rule.keeps_slot(slot)
    }

    fn scalars(
        &self,
        momentum: Option<f64>,
        kept: &[bool],
        lr: f64,
        t: u64,
        carry: &mut f64,
        out: &mut [f64],
    ) -> Result<(), Refusal> {
        let with_momentum;
        let rule = match momentum {
            None => &self.rule,
            Some(momentum) => {
                with_momentum = self.rule.with_momentum(momentum).ok_or(Refusal::NoMomentum)?;
                // A schedule may set momentum 0, which some configurations (Nesterov) exclude.
                match with_momentum.validate() {
                    Err(RuleError::Hyperparameter { field, value, bound, .. }) => {
                        return Err(Refusal::Hyperparameter { field, value, bound });
                    }
                    _ if (0..kept.len()).any(|s| with_momentum.keeps_slot(s) && !kept[s]) => {
                        return Err(Refusal::Slot);
                    }
                    _ => &with_momentum,
                }
            }
        };
        let scalars = rule.scalars(lr, t, carry);
        for (i, out) in out.iter_mut().enumerate().take(self.spec.scalars.len()) {
            *out = scalars.get(i);
        }
        Ok(())
    }

    fn rule(&self) -> &dyn Any {
        &self.rule
    }

    fn same(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<R>() == Some(&self.rule)
    }

    #[cfg(feature = "checkpoint")]
    fn to_json(&self) -> Option<String> {
        (R::SAVED?.write)(&self.rule).ok()
    }

    #[cfg(feature = "checkpoint")]
    fn read_json(&self, text: &str) -> Option<Result<DynRule, serde_json::Error>> {
        let rule = (R::SAVED?.read)(text);
        Some(rule.map(|rule| DynRule(Arc::new(Self { spec: self.spec, rule }))))
    }
}

impl<R: CpuRule> From<R> for DynRule {
    fn from(rule: R) -> Self {
        let spec = RuleSpec::of::<R>(Some((R::loops(), R::MAX_ULPS)));
        Self(Arc::new(Held { spec, rule }))
    }
}

impl<R: Rule> From<GpuOnly<R>> for DynRule {
    fn from(GpuOnly(rule): GpuOnly<R>) -> Self {
        Self(Arc::new(Held { spec: RuleSpec::of::<R>(None), rule }))
    }
}

impl fmt::Debug for DynRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for DynRule {
    /// Whether both are of one type and have the same hyperparameters.
    fn eq(&self, other: &Self) -> bool {
        self.0.same(other.0.rule())
    }
}

impl DynRule {
    /// The rule's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.spec().name
    }

    /// The description of the rule's type.
    #[must_use]
    pub fn spec(&self) -> &RuleSpec {
        self.0.spec()
    }

    /// Checks names and hyperparameters.
    ///
    /// # Errors
    /// A [`RuleError`] if a hyperparameter is out of range, or names or hyperparameters exclude each other.
    pub fn validate(&self) -> Result<(), RuleError> {
        self.0.validate()
    }

    /// Whether this configuration keeps state slot `slot`, an index into [`RuleSpec::slots`]; false for an
    /// index beyond.
    #[must_use]
    pub fn keeps_slot(&self, slot: usize) -> bool {
        slot < self.spec().slots.len() && self.0.keeps_slot(slot)
    }

    /// The rule as a value of its own type.
    #[must_use]
    pub fn downcast_ref<R: Rule>(&self) -> Option<&R> {
        self.0.rule().downcast_ref()
    }

    /// Writes the scalars of step `t` to `out` and advances `carry`; see [`Rule::scalars`]. It does not
    /// allocate.
    pub(crate) fn scalars(
        &self,
        momentum: Option<f64>,
        kept: &[bool],
        lr: f64,
        t: u64,
        carry: &mut f64,
        out: &mut [f64],
    ) -> Result<(), Refusal> {
        self.0.scalars(momentum, kept, lr, t, carry, out)
    }

    /// The hyperparameters as a JSON object; `None` for a rule that cannot be saved.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn to_json(&self) -> Option<String> {
        self.0.to_json()
    }

    /// A rule of the same type from a JSON object; `None` for a rule that cannot be saved.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn read_json(&self, text: &str) -> Option<Result<Self, serde_json::Error>> {
        self.0.read_json(text)
    }
}

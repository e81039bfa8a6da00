//! The description of a rule: everything that does not depend on its hyperparameters.

use super::fields::Fields;
use super::loops::Loops;
use super::names::{AVERAGE_WEIGHT, GROUP_FACTOR, RESERVED_SLOTS};
use super::rule::Rule;
use crate::error::RuleError;
use core::any::TypeId;

/// The phases of a rule's update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// One phase: each element by itself.
    ElementWise,
    /// Two phases: norms and trust ratio of each tensor, then the update.
    LayerWise,
}

/// The description of a rule: everything that does not depend on its hyperparameters.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RuleSpec {
    /// The name used in files, on the command line and in errors.
    pub name: &'static str,
    /// PyTorch's default learning rate.
    pub default_lr: f64,
    /// The shader text.
    pub wgsl: &'static str,
    /// Names of the state slots.
    pub slots: &'static [&'static str],
    /// Names of the scalars of a step.
    pub scalars: &'static [&'static str],
    /// The scalar that is the trust ratio of a layer-wise rule.
    pub trust_ratio: Option<&'static str>,
    /// Scalars that the trust ratio of a layer-wise rule adds to a norm.
    pub norm_scalars: &'static [&'static str],
    /// State slots that the update direction of a layer-wise rule reads.
    pub direction_slots: &'static [&'static str],
    /// The largest error of one step, in ulps; `None` for a rule without a CPU implementation.
    pub max_ulps: Option<f64>,
    pub(crate) loops: Option<&'static Loops>,
    /// The rule's type: rules of one type share kernels and loops.
    pub(crate) id: TypeId,
    /// Whether the text is this crate's own and needs no checks by wgpu.
    #[cfg(any(feature = "gpu", test))]
    pub(crate) trusted: bool,
}

impl RuleSpec {
    pub(super) fn of<R: Rule>(loops: Option<(&'static Loops, f64)>) -> Self {
        Self {
            name: R::NAME,
            default_lr: R::DEFAULT_LR,
            wgsl: R::WGSL,
            slots: <R::State<f32> as Fields<f32>>::NAMES,
            scalars: <R::Scalars<f32> as Fields<f32>>::NAMES,
            trust_ratio: R::TRUST_RATIO,
            norm_scalars: R::NORM_SCALARS,
            direction_slots: R::DIRECTION_SLOTS,
            max_ulps: loops.map(|(_, max_ulps)| max_ulps),
            loops: loops.map(|(loops, _)| loops),
            id: TypeId::of::<R>(),
            #[cfg(any(feature = "gpu", test))]
            trusted: is_built_in::<R>(),
        }
    }

    /// The phases of the rule's update.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.trust_ratio.is_some() { Kind::LayerWise } else { Kind::ElementWise }
    }

    pub(crate) fn is_layer_wise(&self) -> bool {
        self.kind() == Kind::LayerWise
    }

    /// The index of the trust ratio among the scalars.
    ///
    /// # Panics
    /// If the rule is not layer-wise.
    pub(crate) fn trust_ratio_field(&self) -> usize {
        let ratio = self.trust_ratio.expect("the rule is layer-wise");
        let found = self.scalars.iter().position(|name| *name == ratio);
        found.expect("`check_names` has found the trust ratio among the scalars")
    }

    /// The index of a state slot.
    pub(crate) fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|slot| *slot == name)
    }

    /// The loops of the CPU implementation.
    pub(crate) fn cpu(&self) -> Result<&'static Loops, RuleError> {
        self.loops.ok_or(RuleError::NoCpu { rule: self.name })
    }

    /// Refuses names that conflict with each other or with the kernel around the rule.
    pub(crate) fn check_names(&self) -> Result<(), RuleError> {
        let conflict = |conflict| Err(RuleError::Conflict { rule: self.name, conflict });
        if self.scalars.is_empty() {
            return conflict("a rule has at least one scalar");
        }
        if self.trust_ratio.is_some_and(|ratio| !self.scalars.contains(&ratio)) {
            return conflict("TRUST_RATIO has to be the name of a scalar");
        }
        if self.norm_scalars.iter().any(|name| !self.scalars.contains(name)) {
            return conflict("NORM_SCALARS have to be names of scalars");
        }
        if self.direction_slots.iter().any(|slot| !self.slots.contains(slot)) {
            return conflict("DIRECTION_SLOTS have to be names of state slots");
        }
        if self.slots.iter().any(|slot| RESERVED_SLOTS.contains(slot)) {
            return conflict("no slot is called p, g, param, ema, master or remainder");
        }
        if [GROUP_FACTOR, AVERAGE_WEIGHT].iter().any(|name| self.scalars.contains(name)) {
            return conflict("no scalar is called gradient_factor or average_weight");
        }
        Ok(())
    }
}

/// Whether `R` is in the list of [`for_each_rule!`](crate::for_each_rule).
#[cfg(any(feature = "gpu", test))]
fn is_built_in<R: Rule>() -> bool {
    macro_rules! listed {
        ($($rule:ty),*) => { [$(TypeId::of::<$rule>()),*].contains(&TypeId::of::<R>()) };
    }
    crate::for_each_rule!(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float::Float;
    use crate::{Sgd, rules::SgdScalars, rules::SgdState};

    /// User-defined shader text is compiled with wgpu's checks of indices and loops: memory safety depends on
    /// this test.
    #[test]
    fn only_the_rules_of_the_list_are_built_in() {
        macro_rules! all {
            ($($rule:ty),*) => { [$(RuleSpec::of::<$rule>(None).trusted),*] };
        }
        assert!(crate::for_each_rule!(all).iter().all(|&trusted| trusted));

        /// A user-defined rule with a built-in rule's name and text.
        #[derive(Clone, Debug, PartialEq)]
        struct Own;
        impl Rule for Own {
            const NAME: &'static str = "sgd";
            const DEFAULT_LR: f64 = 1.0;
            const WGSL: &'static str = Sgd::WGSL;
            type Scalars<T: Float> = SgdScalars<T>;
            type State<T: Float> = SgdState<T>;
            fn validate(&self) -> Result<(), RuleError> {
                Ok(())
            }
            fn scalars(&self, lr: f64, t: u64, carry: &mut f64) -> SgdScalars<f64> {
                Sgd::default().scalars(lr, t, carry)
            }
        }
        assert!(!RuleSpec::of::<Own>(None).trusted);
    }
}

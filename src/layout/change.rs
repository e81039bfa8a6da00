//! Values of groups that may change between steps.

use super::{Layout, RuleUse};
use crate::error::ChangeError;
use crate::rules::DynRule;
use crate::schedule::Schedule;

impl Layout {
    /// The index of a group.
    fn group(&self, name: &str) -> Result<usize, ChangeError> {
        let unknown = || ChangeError::UnknownGroup { group: name.into() };
        self.groups.iter().position(|group| group.name == name).ok_or_else(unknown)
    }

    /// Gives a group other hyperparameters of its rule.
    pub(crate) fn set_rule(&mut self, group: &str, rule: DynRule) -> Result<(), ChangeError> {
        let g = self.group(group)?;
        let RuleUse { spec, kept } = &self.rules[self.rule_of[g]];
        if rule.spec().id != spec.id {
            let (found, expected) = (rule.name(), spec.name);
            return Err(ChangeError::OtherRule { group: group.into(), found, expected });
        }
        rule.validate()?;
        let missing = (0..kept.len()).find(|&slot| rule.keeps_slot(slot) && !kept[slot]);
        if let Some(slot) = missing {
            return Err(ChangeError::SlotNotKept { group: group.into(), slot: spec.slots[slot] });
        }
        self.groups[g].rule = rule;
        Ok(())
    }

    /// Gives a group another factor of the learning rate.
    pub(crate) fn set_lr_factor(&mut self, group: &str, factor: Schedule) -> Result<(), ChangeError> {
        let g = self.group(group)?;
        let refuse = |reason| ChangeError::Factor { group: group.into(), reason };
        factor.validate().map_err(refuse)?;
        self.groups[g].lr_factor = factor;
        Ok(())
    }

    /// Freezes or thaws a group; returns whether that changed anything.
    pub(crate) fn set_frozen(&mut self, group: &str, frozen: bool) -> Result<bool, ChangeError> {
        let g = self.group(group)?;
        Ok(core::mem::replace(&mut self.groups[g].frozen, frozen) != frozen)
    }
}

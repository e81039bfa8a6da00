//! Tensors that join a group with another number of taken steps.

use crate::layout::{Carry, Layout};
use crate::options::{Ema, Options};
use std::collections::BTreeMap;

/// Number of steps with compared scalars. Bias corrections differ at once; a rule that switches at a step
/// shows it if the step is among them.
const STEPS: u64 = 1 << 16;
/// Momentum of a schedule, for rules with a momentum.
const MOMENTUM: f64 = 0.5;

/// The counts and carries from which each group of a layout continues, and the tensors that may join.
pub(crate) struct Ages<'a> {
    layout: &'a Layout,
    ema: Option<Ema>,
    carries: &'a [&'a [Carry]],
    /// For each group, the index of the carry from which it continues, or none if it starts at zero.
    pub(crate) groups: Vec<Option<usize>>,
    /// Results of earlier comparisons.
    known: BTreeMap<(usize, Option<usize>), bool>,
}

impl<'a> Ages<'a> {
    /// `carries` has an entry for every possible count of skipped steps. `tensors` has the group of each
    /// tensor and the index of its carry, or none if its state is new.
    pub(crate) fn new(
        layout: &'a Layout,
        options: &Options,
        carries: &'a [&'a [Carry]],
        tensors: impl Iterator<Item = (usize, Option<usize>)>,
    ) -> Self {
        let mut groups = vec![None; layout.groups().len()];
        tensors.for_each(|(group, from)| groups[group] = groups[group].or(from));
        Self { layout, ema: options.ema, carries, groups, known: BTreeMap::new() }
    }

    /// Checks whether new state, or state with the carry at `from`, has the same updates as the group's own.
    /// If not, returns the number of steps that the group has taken.
    pub(crate) fn join(&mut self, group: usize, from: Option<usize>) -> Result<(), u64> {
        let Some(others) = self.groups[group].filter(|others| from != Some(*others)) else { return Ok(()) };
        let Self { layout, ema, carries, known, .. } = self;
        let alike = *known.entry((group, from)).or_insert_with(|| {
            carries.iter().all(|carries| {
                let own = from.map_or(Carry::default(), |from| carries[from]);
                alike(layout, group, *ema, [own, carries[others]])
            })
        });
        if alike { Ok(()) } else { Err(carries.first().map_or(0, |carries| carries[others].taken)) }
    }
}

/// Whether both carries give the same scalars in the group's next steps.
fn alike(layout: &Layout, group: usize, ema: Option<Ema>, carries: [Carry; 2]) -> bool {
    let [a, b] = carries;
    let averages = |ema: Ema| (1..=STEPS).all(|t| ema.weight(a.taken + t) == ema.weight(b.taken + t));
    a == b
        || ema.is_none_or(averages) && {
            let rule = layout.groups()[group].rule();
            let kept = &layout.rules()[layout.rule_index(group)].kept;
            [None, Some(MOMENTUM)].into_iter().all(|momentum| {
                let mut carried = carries.map(|carry| carry.rule);
                let mut both = carries.map(|_| vec![0.0; rule.spec().scalars.len()]);
                (1..=STEPS).all(|t| {
                    for ((carry, carried), scalars) in carries.iter().zip(&mut carried).zip(&mut both) {
                        // A rule that refuses this momentum refuses it at any count.
                        let _ = rule.scalars(momentum, kept, 1.0, carry.taken + t, carried, scalars);
                    }
                    let [a, b] = &both;
                    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
                })
            })
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adagrad, Adam, AnyRule, Group, Lion, RAdam, Sgd};

    /// Whether new state may join the rule's group after a number of steps.
    fn joins(rule: impl Into<AnyRule>, ema: Option<Ema>, steps: u64) -> bool {
        let rule = rule.into();
        let layout = Layout::new([Group::new("g", rule).tensor("w", [1])]).unwrap();
        let mut carry = Carry::default();
        let mut scratch = vec![0.0; layout.most_scalars()];
        for t in 0..steps {
            let mut carries = [carry];
            layout.scalars(1.0.into(), t, &mut carries, &mut scratch, |_, _, _| ()).unwrap();
            [carry] = carries;
        }
        alike(&layout, 0, ema, [Carry::default(), carry])
    }

    /// The expectation comes from the documentation of each rule: whether its formulas contain t or a first
    /// step.
    #[test]
    fn rules_that_count_are_told_from_those_that_do_not() {
        let momentum = Sgd { momentum: 0.9, ..Sgd::default() };
        let uncounted = ["sgd", "rmsprop", "adadelta", "adagrad", "lion", "lars"];
        for rule in AnyRule::all() {
            assert_eq!(joins(rule, None, 3), uncounted.contains(&rule.name()), "{}", rule.name());
            assert!(joins(rule, None, 0), "{}", rule.name());
        }
        assert!(joins(momentum, None, 3) && joins(Sgd { nesterov: true, ..momentum }, None, 3));
        assert!(!joins(Sgd { dampening: 0.3, ..momentum }, None, 3));
        assert!(!joins(Adagrad { initial_accumulator_value: 4.0, ..Adagrad::default() }, None, 1));
        assert!(!joins(Adagrad { lr_decay: 1e-3, ..Adagrad::default() }, None, 1));
        // Bias corrections that have rounded to 1 differed at first.
        assert!(!joins(Adam::default(), None, 100_000));
        // With a momentum from the step, there may be a first velocity.
        assert!(!joins(Adam { beta1: 0.0, beta2: 0.0, ..Adam::default() }, None, 3));
        // Only the step from which RAdam is rectified depends on the count.
        let late =
            RAdam { beta1: 0.0, eps_corrected: false, rectification_threshold: 500.0, ..RAdam::default() };
        assert!(!joins(late, None, 1));
        for debias in [false, true] {
            assert!(!joins(Lion::default(), Some(Ema { decay: 0.9, debias }), 1));
            assert!(joins(Lion::default(), Some(Ema { decay: 0.0, debias }), 1));
        }
    }
}

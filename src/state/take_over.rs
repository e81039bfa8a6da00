//! The takeover of state by an optimizer for another layout: the check, and the carries of its groups.

use crate::error::{StateError, StateMismatch};
use crate::formats::Format;
use crate::layout::{Carry, Layout, Tensor};
use crate::options::Options;
use crate::state::ages::Ages;
use crate::state::lead;

/// For each group of the new optimizer, the old group that gives it count and carried number, or none if all
/// of its tensors are new.
pub(crate) struct TakeOver {
    pub(crate) groups: Vec<Option<usize>>,
    /// Tensors of both layouts, as pairs of old and new index in the order of the flat space.
    pub(crate) tensors: Vec<(usize, usize)>,
}

/// Compares the tensors of two optimizers. `carries` has the carries of the old groups, for every possible
/// count of skipped steps.
pub(crate) fn compare(
    old: (&Layout, &Options),
    new: (&Layout, &Options),
    carries: &[&[Carry]],
) -> Result<TakeOver, StateError> {
    let mut wrong = Vec::new();
    let ((from, from_options), (to, to_options)) = (old, new);
    let places: std::collections::HashMap<&str, usize> =
        from.by_offset().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect();
    let old_tensors: Vec<&Tensor> = from.by_offset().collect();
    let mut tensors = Vec::new();
    let found = |tensor: &Tensor| places.get(tensor.name.as_str()).copied();
    let group_of = |tensor: &Tensor| found(tensor).map(|i| old_tensors[i].group);
    let joining = to.by_offset().map(|tensor| (tensor.group, group_of(tensor)));
    let mut ages = Ages::new(to, to_options, carries, joining);
    for (j, tensor) in to.by_offset().enumerate() {
        if let Err(steps) = ages.join(tensor.group, group_of(tensor)) {
            let group = to.groups()[tensor.group].name().into();
            wrong.push(StateMismatch::Age { tensor: tensor.name.clone(), group, steps });
        }
        let Some(i) = found(tensor) else { continue };
        let before = wrong.len();
        compare_tensor((from, old_tensors[i]), (to, tensor), carries, &mut wrong);
        if wrong.len() == before {
            compare_formats((old_tensors[i], from_options), (tensor, to_options), &mut wrong);
        }
        tensors.push((i, j));
    }
    if !wrong.is_empty() {
        return Err(StateError::Mismatches(wrong));
    }
    Ok(TakeOver { groups: ages.groups, tensors })
}

fn compare_tensor(
    (from, old): (&Layout, &Tensor),
    (to, new): (&Layout, &Tensor),
    carries: &[&[Carry]],
    wrong: &mut Vec<StateMismatch>,
) {
    let tensor = || new.name.clone();
    if old.shape != new.shape {
        let (found, expected) = (old.shape.clone(), new.shape.clone());
        wrong.push(StateMismatch::Shape { tensor: tensor(), found, expected });
    }
    let [found, expected] = [from.kept_slots(old).collect::<Vec<_>>(), to.kept_slots(new).collect()];
    if found != expected {
        wrong.push(StateMismatch::Slots { tensor: tensor(), found, expected });
    }
    let [rule, wanted] = [from.rule_of(old), to.rule_of(new)].map(|rule| (rule.spec.name, rule.spec.id));
    // A carry of one rule has no meaning for another rule.
    let carried = carries.iter().any(|carries| carries[old.group].rule != 0.0);
    if rule != wanted && carried {
        wrong.push(StateMismatch::Rule { tensor: tensor(), found: rule.0, expected: wanted.0 });
    }
}

fn compare_formats(
    (old, from): (&Tensor, &Options),
    (new, to): (&Tensor, &Options),
    wrong: &mut Vec<StateMismatch>,
) {
    let mut differ = |slot, found: &'static str, expected: &'static str| {
        wrong.push(StateMismatch::Format { tensor: new.name.clone(), slot, found, expected });
    };
    let [found, expected] = [from.states_of(old.len), to.states_of(new.len)];
    if found != expected {
        differ("states", found.name(), expected.name());
    } else if found == Format::Q8 && lead(old.offset) != lead(new.offset) {
        differ("states", "q8 in blocks that begin elsewhere", "q8");
    }
    let [found, expected] = [from, to].map(|options| options.storage().master().map_or("none", |of| of.0));
    if found != expected {
        differ("master", found, expected);
    }
    let [found, expected] = [from, to].map(|options| if options.ema.is_some() { "kept" } else { "none" });
    if found != expected {
        differ("ema", found, expected);
    }
}

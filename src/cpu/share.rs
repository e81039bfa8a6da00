//! The tensors of one rule: their state, and the passes over them.

use super::norms::Sums;
use super::passes::{self, Part, Pass, sweep};
use super::state::Numbers;
use super::tasks::{Plan, Task};
use super::tensors::Checked;
use crate::error::{OptionsError, OutOfMemory, RuleError};
use crate::float::Float;
use crate::formats::Format;
use crate::layout::{Layout, Tensor};
use crate::options::{Clip, Options, Rounding, Storage};
use crate::random::step_key;
use crate::rules::RuleSpec;
use crate::rules::loops::{Factor, Loops, MAX_SLOTS};
use crate::rules::names::EMA;
use core::ops::Range;

/// The factor 2⁻⁸⁰ of norms beyond f32, as on the GPU.
const LARGE_UNIT: f64 = f64::from_bits((1_023 - 80) << 52);

/// The tensors of one rule.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// The rule's place in the layout.
    pub(super) rule: usize,
    pub(super) spec: RuleSpec,
    loops: &'static Loops,
    pub(super) plan: Plan,
    /// The state of each kind of tensors, per slot of the rule.
    state: Vec<[Numbers; 2]>,
    master: Numbers,
    ema: Numbers,
    /// Sets of scalars, one after the other, each with a factor of the gradients and a weight of the average.
    scalars: Vec<f32>,
    factors: Vec<Factor>,
    weights: Vec<f32>,
    /// Sums of the tensor ranges.
    pub(super) sums: Vec<Sums>,
}

/// Everything else that a pass needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'a> {
    pub(super) options: &'a Options,
    /// The number of the step, from 1, without skipped steps.
    pub(super) t: u64,
    pub(super) dispatched: bool,
}

/// Sets of scalars, factors of the gradients and weights of the averages.
type AllScalars<'m> = (&'m [f32], &'m [Factor], &'m [f32]);

/// The place of state.
enum Kept {
    Slot(usize),
    Master,
    Ema,
}

impl Share {
    pub(super) fn new(layout: &Layout, options: &Options, rule: usize) -> Result<Self, OptionsError> {
        let used = &layout.rules()[rule];
        let (spec, count) = (used.spec, used.spec.slots.len());
        let loops = spec.cpu()?;
        if count > MAX_SLOTS {
            return Err(RuleError::TooManySlots { rule: spec.name, slots: count, bound: MAX_SLOTS }.into());
        }
        let mut plan = Plan::new(layout, options, rule)?;
        // Slots take the places from 1 on; the caller's parameters and gradients take place 0.
        let numbers = |format: Option<Format>, nth: usize| {
            format.map_or(Ok(Numbers::None), |format| Numbers::zeros(plan.len, format, nth))
        };
        let [large, small] = plan.kept;
        let state = |slot: usize| {
            if !used.kept[slot] {
                return Ok([Numbers::None, Numbers::None]);
            }
            let nth = slot + 1;
            Ok([Numbers::zeros(large, options.states, nth)?, Numbers::zeros(small, Format::F32, nth)?])
        };
        let state = (0..count).map(state).collect::<Result<_, OutOfMemory>>()?;
        let master = numbers(options.storage().master().map(|(_, format)| format), count + 1)?;
        let ema = numbers(options.ema.map(|_| Format::F32), count + 2)?;
        plan.divide(layout)?;
        let sets = plan.groups.len();
        Ok(Self {
            rule,
            spec,
            loops,
            state,
            master,
            ema,
            scalars: vec![0.0; sets * spec.scalars.len()],
            factors: vec![Factor::new(0.0); sets],
            weights: vec![0.0; sets],
            sums: vec![[0.0; 2]; plan.tensor_ranges.len()],
            plan,
        })
    }

    /// Divides the work again, after groups were frozen or thawed.
    pub(super) fn divide(&mut self, layout: &Layout) -> Result<(), OutOfMemory> {
        self.plan.divide(layout)?;
        self.sums.clear();
        self.sums.resize(self.plan.tensor_ranges.len(), [0.0; 2]);
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.state.iter().flatten().chain([&self.master, &self.ema]).map(Numbers::bytes).sum()
    }

    /// The numbers of a slot for one of the tensors, and their place; `None` for an unknown slot.
    pub(super) fn numbers(
        &self,
        slot: &str,
        tensor: &Tensor,
        options: &Options,
    ) -> Option<(&Numbers, Range<usize>)> {
        let (kept, (kind, state, all)) = (self.place(slot, options)?, self.plan.places(tensor, options));
        Some(match kept {
            Kept::Slot(nth) => (&self.state[nth][kind], state),
            Kept::Master => (&self.master, all),
            Kept::Ema => (&self.ema, all),
        })
    }

    pub(super) fn numbers_mut(
        &mut self,
        slot: &str,
        tensor: &Tensor,
        options: &Options,
    ) -> Option<(&mut Numbers, Range<usize>)> {
        let (kept, (kind, state, all)) = (self.place(slot, options)?, self.plan.places(tensor, options));
        Some(match kept {
            Kept::Slot(nth) => (&mut self.state[nth][kind], state),
            Kept::Master => (&mut self.master, all),
            Kept::Ema => (&mut self.ema, all),
        })
    }

    fn place(&self, slot: &str, options: &Options) -> Option<Kept> {
        if let Some(nth) = self.spec.slot(slot) {
            return Some(Kept::Slot(nth));
        }
        match options.storage().master() {
            Some((name, _)) if name == slot => Some(Kept::Master),
            _ if slot == EMA && options.ema.is_some() => Some(Kept::Ema),
            _ => None,
        }
    }

    /// The tasks in chunks of a number of tasks, and the ranges of the flat space that they update.
    #[cfg(feature = "gpu")]
    pub(super) fn chunks(&self, tasks: usize) -> impl Iterator<Item = (Range<usize>, Vec<Range<usize>>)> {
        let plan = &self.plan;
        (0..plan.tasks.len()).step_by(tasks).map(move |first| {
            let tasks = first..plan.tasks.len().min(first.saturating_add(tasks));
            let mut ranges: Vec<Range<usize>> = Vec::new();
            for (range, _) in self.ranges(tasks.clone()) {
                match ranges.last_mut().filter(|last| last.end == range.start) {
                    Some(last) => last.end = range.end,
                    None => ranges.push(range),
                }
            }
            (tasks, ranges)
        })
    }

    /// The ranges of the flat space that tasks update, tensor by tensor, and their spans.
    #[cfg(feature = "gpu")]
    pub(super) fn ranges(&self, tasks: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let plan = &self.plan;
        let tensor_ranges =
            plan.tasks[tasks].iter().flat_map(|task| &plan.tensor_ranges[task.tensor_ranges.clone()]);
        tensor_ranges.map(|tensor_range| {
            let span = &plan.spans[tensor_range.span];
            let start = span.flat + tensor_range.start - span.start;
            (start..start + tensor_range.end - tensor_range.start, tensor_range.span)
        })
    }

    /// Fills each set of scalars, its factor and its weight of the average, from its group.
    pub(super) fn set_scalars(
        &mut self,
        scalars: impl Fn(usize, usize) -> f32,
        factor: impl Fn(usize) -> Factor,
        weight: impl Fn(usize) -> f32,
    ) {
        let count = self.spec.scalars.len();
        for (nth, &group) in self.plan.groups.iter().enumerate() {
            (self.factors[nth], self.weights[nth]) = (factor(group), weight(group));
            for (i, to) in self.scalars[nth * count..][..count].iter_mut().enumerate() {
                *to = scalars(group, i);
            }
        }
    }

    /// Adds each tensor range's first sum to its group's.
    pub(super) fn add_sums(&self, mut add: impl FnMut(usize, f64)) {
        for (tensor_range, [sum, _]) in self.plan.tensor_ranges.iter().zip(&self.sums) {
            add(self.plan.groups[tensor_range.scalars], *sum);
        }
    }

    /// Sums the squares of the gradients of `tasks`.
    pub(super) fn scan(&mut self, around: Around<'_>, tensors: &mut Checked<'_>, tasks: Range<usize>) {
        if tasks.is_empty() {
            return;
        }
        let grads = around.options.grads;
        let scan = if around.dispatched { passes::scan } else { passes::scan_plainly };
        let (_, plan, part) = self.parts(tensors, tasks.start);
        sweep(plan, tasks, part, false, &|task, part| scan(plan, grads, task, part));
    }

    /// Sums the squares of parameters and update directions, for a layer-wise rule.
    pub(super) fn layer_norms(
        &mut self,
        around: Around<'_>,
        tensors: &mut Checked<'_>,
        tasks: Range<usize>,
        backwards: bool,
    ) {
        self.sweep(around, tensors, tasks, backwards, false, passes::layer_norms);
    }

    /// Updates tasks, or does the rest of a skipped step.
    pub(super) fn update(
        &mut self,
        around: Around<'_>,
        tensors: &mut Checked<'_>,
        tasks: Range<usize>,
        backwards: bool,
        skip: bool,
    ) {
        if !skip {
            self.sweep(around, tensors, tasks, backwards, true, passes::update);
        } else if around.options.zero_gradients || around.options.norms {
            self.sweep(around, tensors, tasks, backwards, true, passes::rest);
        }
    }

    /// Sets the tensors' trust ratios, from the sums of the tensor ranges. Each tensor has one or several
    /// tensor ranges, or none if its group is frozen.
    #[allow(clippy::cast_possible_truncation, reason = "norms are rounded to f32")]
    pub(super) fn set_trust_ratios(&mut self) {
        let (field, count) = (self.spec.trust_ratio_field(), self.spec.scalars.len());
        let mut tensor_ranges = self.plan.tensor_ranges.iter().zip(&self.sums).peekable();
        for (nth, scalars) in self.scalars.chunks_exact_mut(count).enumerate() {
            let mut sums = [0.0; 2];
            while let Some((_, part)) = tensor_ranges.next_if(|(tensor_range, _)| tensor_range.scalars == nth)
            {
                sums[0] += part[0];
                sums[1] += part[1];
            }
            let norms = sums.map(f64::sqrt);
            if !norms.iter().any(|norm| norm.is_finite() && *norm > f32::MAX.into()) {
                let [p_norm, u_norm] = norms.map(|norm| norm as f32);
                scalars[field] = (self.loops.trust_ratio)(scalars, p_norm, u_norm);
                continue;
            }
            // A norm that is not 0 stays above 0.
            let in_units = |norm: f64| {
                if norm > 0.0 { ((norm * LARGE_UNIT) as f32).max(f32::MIN_POSITIVE) } else { norm as f32 }
            };
            let [p_norm, u_norm] = norms.map(in_units);
            let mut with_norms = scalars.to_vec();
            let added = |name: &&str| self.spec.norm_scalars.contains(name);
            let places = with_norms.iter_mut().zip(self.spec.scalars).filter(|(_, name)| added(name));
            places.for_each(|(x, _)| *x *= LARGE_UNIT as f32);
            scalars[field] = (self.loops.trust_ratio)(&with_norms, p_norm, u_norm);
        }
    }

    /// All memory from a task on, and the plan that divides it.
    fn parts<'m, 'a>(
        &'m mut self,
        tensors: &'m mut Checked<'a>,
        first: usize,
    ) -> (AllScalars<'m>, &'m Plan, Part<'m, 'a>) {
        let Task { start, kept, tensor_ranges } = &self.plan.tasks[first];
        let from = |numbers: &'m mut Numbers, start: usize| {
            let cells = numbers.cells();
            // A slot that is not kept has no elements to leave out.
            let at = start.min(cells.len());
            cells.split_at(at).1
        };
        let mut state: [[_; MAX_SLOTS]; 2] = Default::default();
        for (slot, [large, small]) in self.state.iter_mut().enumerate() {
            (state[0][slot], state[1][slot]) = (from(large, kept[0]), from(small, kept[1]));
        }
        let part = Part {
            start: *start,
            kept: *kept,
            tensor_range: tensor_ranges.start,
            memory: tensors.memory(self.rule),
            state,
            master: from(&mut self.master, *start),
            ema: from(&mut self.ema, *start),
            sums: &mut self.sums[tensor_ranges.start..],
        };
        ((&self.scalars, &self.factors, &self.weights), &self.plan, part)
    }

    /// A pass over tasks; `last` is the one that ends the step.
    fn sweep(
        &mut self,
        around: Around<'_>,
        tensors: &mut Checked<'_>,
        tasks: Range<usize>,
        backwards: bool,
        last: bool,
        leaf: impl Fn(&Pass<'_>, &Task, &mut Part<'_, '_>) + Sync,
    ) {
        if tasks.is_empty() {
            return;
        }
        let Around { options, t, dispatched } = around;
        let storage = options.storage();
        // For tensors of each kind.
        let storages = [storage, Storage { states: Format::F32, ..storage }];
        let seed = if let Rounding::Stochastic { seed } = options.rounding { seed } else { 0 };
        let (loops, slots) = (self.loops, self.spec.slots.len());
        let ((scalars, factors, weights), plan, part) = self.parts(tensors, tasks.start);
        let pass = Pass {
            plan,
            loops,
            dispatched,
            slots,
            storage: storages,
            scalars,
            factors,
            bound: if let Some(Clip::Value(bound)) = options.clip {
                f32::from_f64(bound)
            } else {
                f32::INFINITY
            },
            zero: last && options.zero_gradients,
            weights: options.ema.map(|_| weights),
            norms: last && options.norms,
            in_place: storages.map(|of| [of.params, of.grads, of.states] == [Format::F32; 3]),
            key: storage.stochastic.then(|| step_key(seed, t)),
        };
        sweep(plan, tasks, part, backwards, &|task, part| leaf(&pass, task, part));
    }
}

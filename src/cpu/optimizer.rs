//! The engine in f32. State is in host memory. A step takes at most two passes over memory, or three for a
//! layer-wise rule.

use super::control::Decision;
use super::share::{Around, Share};
use super::tensors::{Checked, State, StateMut, Tensors};
use super::threads;
use crate::error::{ChangeError, OptionsError, StateError, StepError};
use crate::float::Float;
use crate::layout::{Carry, Layout};
use crate::options::{Clip, Options};
use crate::report::Report;
use crate::rules::DynRule;
use crate::schedule::Schedule;
use crate::step::Step;
use core::ops::Range;

/// Applies the rules of a layout to its tensors in host memory.
///
/// It has the options, state names and errors of the GPU optimizer. A step returns its report at once: the
/// caller knows then whether the step was skipped.
///
/// ```
/// use wgpu_optim::{AdamW, Clip, Group, Layout, Options, cpu};
/// let layout = Layout::packed([Group::new("all", AdamW::default()).tensor("w", [3]).tensor("b", [1])])?;
/// let options = Options { clip: Some(Clip::GlobalNorm(1.0)), zero_gradients: true, ..Options::default() };
/// let mut optimizer = cpu::Optimizer::with_options(layout, options)?;
/// let (mut params, mut grads) = ([1.0, 2.0, 3.0, 4.0], [10.0, 0.0, -10.0, 0.1]);
/// optimizer.step(cpu::Tensors::flat(&mut params, &mut grads), 1e-3)?;
/// assert_eq!(grads, [0.0; 4]);
///
/// // The step over slices of single tensors.
/// let (w, b) = params.split_at_mut(3);
/// let (dw, db) = grads.split_at_mut(3);
/// optimizer.step(cpu::Tensors::each([("w", w, dw), ("b", b, db)]), 1e-3)?;
/// assert_eq!(optimizer.state("exp_avg", "b")?.unwrap().as_f32().unwrap().len(), 1);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Optimizer {
    pub(super) layout: Layout,
    pub(super) options: Options,
    /// One share per rule of the layout.
    pub(super) shares: Vec<Share>,
    pub(super) carries: Vec<Carry>,
    pub(super) steps: u64,
    pub(super) skipped: u64,
    pub(super) loss_scale: f32,
    pub(super) good_steps: u32,
    dispatched: bool,
    // Working memory of a step, so that a step does not allocate.
    pub(super) next: Vec<Carry>,
    scratch: Vec<f64>,
    /// Scalars of the groups. Each group has the number of the rule with the most scalars.
    pub(super) scalars: Vec<f32>,
    pub(super) group_sums: Vec<f64>,
}

impl Optimizer {
    /// Allocates zeroed state for `layout`.
    ///
    /// # Errors
    /// An [`OptionsError`] if memory is lacking, or if a user-defined rule cannot run on the CPU.
    pub fn new(layout: Layout) -> Result<Self, OptionsError> {
        Self::with_options(layout, Options::default())
    }

    /// Allocates zeroed state for `layout`, with options for everything around the update.
    ///
    /// # Errors
    /// The errors of [`new`](Self::new), and an [`OptionsError`] if an option is out of range.
    pub fn with_options(layout: Layout, options: Options) -> Result<Self, OptionsError> {
        options.validate()?;
        let share = |rule| Share::new(&layout, &options, rule);
        let shares = (0..layout.rules().len()).map(share).collect::<Result<_, _>>()?;
        let groups = layout.groups().len();
        Ok(Self {
            shares,
            carries: vec![Carry::default(); groups],
            steps: 0,
            skipped: 0,
            loss_scale: options.loss_scale.map_or(1.0, |scale| f32::from_f64(scale.initial)),
            good_steps: 0,
            dispatched: true,
            next: vec![Carry::default(); groups],
            scratch: vec![0.0; layout.most_scalars()],
            scalars: vec![0.0; groups * layout.most_scalars()],
            group_sums: vec![0.0; groups],
            options,
            layout,
        })
    }

    /// The layout of the optimizer's tensors.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The options of the optimizer.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The number of steps so far, including skipped ones.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The dynamic loss scale. The engine multiplies its loss by it before the backward pass. `None` without
    /// [`Options::loss_scale`].
    #[must_use]
    pub fn loss_scale(&self) -> Option<f32> {
        self.options.loss_scale.map(|_| self.loss_scale)
    }

    /// Restores a saved loss scale: [`Report::next_loss_scale`] and [`Report::good_steps`].
    ///
    /// # Errors
    /// A [`ChangeError`] if the scale is not from [`min`](crate::LossScale::min) to
    /// [`max`](crate::LossScale::max), if `good_steps` is not below
    /// [`growth_interval`](crate::LossScale::growth_interval), or without [`Options::loss_scale`]. Nothing
    /// changes then.
    pub fn set_loss_scale(&mut self, scale: f64, good_steps: u32) -> Result<(), ChangeError> {
        self.options.check_loss_scale(scale, good_steps)?;
        (self.loss_scale, self.good_steps) = (f32::from_f64(scale), good_steps);
        Ok(())
    }

    /// Sets the hyperparameters of a group's rule, from the next step on.
    ///
    /// # Errors
    /// A [`ChangeError`] if the group is unknown, if the rule is of another type or refused, or if it needs a
    /// state slot that is not kept. Nothing changes then.
    pub fn set_rule(&mut self, group: &str, rule: impl Into<DynRule>) -> Result<(), ChangeError> {
        self.layout.set_rule(group, rule.into())
    }

    /// Sets a group's factor of the learning rate, from the next step on.
    ///
    /// # Errors
    /// A [`ChangeError`] if the group is unknown or the schedule is refused. Nothing changes then.
    pub fn set_lr_factor(&mut self, group: &str, factor: impl Into<Schedule>) -> Result<(), ChangeError> {
        self.layout.set_lr_factor(group, factor.into())
    }

    /// Sets the bound of the clip, from the next step on.
    ///
    /// # Errors
    /// A [`ChangeError`] if the clip is of another kind than [`Options::clip`], or its bound is out of range.
    /// Nothing changes then.
    pub fn set_clip(&mut self, clip: Clip) -> Result<(), ChangeError> {
        self.options.set_clip(clip)
    }

    /// Freezes a group.
    ///
    /// Until it is [thawed](Self::unfreeze), a step neither reads nor writes the group, and no norm includes
    /// it. The group's count of steps rests too, like the count of a PyTorch parameter with `grad` set to
    /// `None`.
    ///
    /// # Errors
    /// A [`ChangeError`] if the group is unknown or memory is lacking.
    pub fn freeze(&mut self, group: &str) -> Result<(), ChangeError> {
        self.set_frozen(group, true)
    }

    /// Ends the freezing of a group.
    ///
    /// # Errors
    /// A [`ChangeError`] if the group is unknown or memory is lacking.
    pub fn unfreeze(&mut self, group: &str) -> Result<(), ChangeError> {
        self.set_frozen(group, false)
    }

    fn set_frozen(&mut self, group: &str, frozen: bool) -> Result<(), ChangeError> {
        if self.layout.set_frozen(group, frozen)? {
            self.shares.iter_mut().try_for_each(|share| share.divide(&self.layout))?;
        }
        Ok(())
    }

    /// Bytes of host memory held as optimizer state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.shares.iter().map(Share::bytes).sum()
    }

    /// State slot `slot` of `tensor` in its stored form; `None` if no group of the tensor's rule keeps the
    /// slot.
    ///
    /// The name is PyTorch's, `"ema"`, `"master"` or `"remainder"`.
    ///
    /// # Errors
    /// A [`StateError`] if the layout lacks the tensor, or the tensor's rule the slot.
    pub fn state(&self, slot: &str, tensor: &str) -> Result<Option<State<'_>>, StateError> {
        let tensor = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let share = &self.shares[self.layout.rule_index(tensor.group)];
        let found = share.numbers(slot, tensor, &self.options);
        let (numbers, range) = found.ok_or_else(|| unknown_slot(slot, &tensor.name))?;
        Ok(numbers.get(range))
    }

    /// State slot `slot` of `tensor` in its stored form, for writing.
    ///
    /// # Errors
    /// The errors of [`state`](Self::state).
    pub fn state_mut(&mut self, slot: &str, tensor: &str) -> Result<Option<StateMut<'_>>, StateError> {
        let tensor = self.layout.find(tensor, |tensor| StateError::UnknownTensor { tensor })?;
        let share = &mut self.shares[self.layout.rule_index(tensor.group)];
        let found = share.numbers_mut(slot, tensor, &self.options);
        let (numbers, range) = found.ok_or_else(|| unknown_slot(slot, &tensor.name))?;
        Ok(numbers.get_mut(range))
    }

    /// Turns the choice of [instructions](crate::cpu#instructions) off: steps use the instructions that the
    /// program is compiled for.
    ///
    /// Results have the same bits, and NaN payloads then also agree on all processors of an architecture.
    /// Steps take longer. The setting also serves tools that do not know all instructions of the processor.
    #[must_use]
    pub fn baseline_instructions(self) -> Self {
        Self { dispatched: false, ..self }
    }

    /// Takes one step, or skips it according to the options. Returns a report if the options ask for one.
    ///
    /// `step` is a learning rate, or a [`Step`]. Once warm, a step with flat slices allocates nothing of its
    /// own (rayon's queues may grow). [`steps`](Self::steps) counts it.
    ///
    /// # Errors
    /// A [`StepError`] if the slices are not those of the layout and the options, or if an argument is out of
    /// range. Nothing changes then.
    pub fn step(&mut self, tensors: Tensors<'_>, step: impl Into<Step>) -> Result<Option<Report>, StepError> {
        let shares = &self.shares;
        let mut tensors = tensors.checked(&self.layout, |rule| &shares[rule].plan, &self.options)?;
        let unscale = self.begin(step.into())?;
        let tasks: usize = self.shares.iter().map(|share| share.plan.tasks.len()).sum();
        let report = if tasks <= 1 {
            self.run(&mut tensors, unscale)
        } else {
            threads::within(|| self.run(&mut tensors, unscale))
        };
        Ok(self.options.reports().then_some(report))
    }

    /// Computes the scalars of a step; returns the factor of the gradients before clipping. Nothing has
    /// changed yet.
    pub(crate) fn begin(&mut self, step: Step) -> Result<f64, StepError> {
        let unscale = step.unscale()? / f64::from(self.loss_scale);
        let (scalars, stride) = (&mut self.scalars, self.layout.most_scalars());
        self.next.copy_from_slice(&self.carries);
        self.layout.scalars(step, self.steps, &mut self.next, &mut self.scratch, |group, _, exact| {
            let own = scalars[group * stride..].iter_mut().zip(exact);
            own.for_each(|(to, &x)| *to = f32::from_f64(x));
        })?;
        Ok(unscale)
    }

    /// All passes of a step that has begun.
    fn run(&mut self, tensors: &mut Checked<'_>, unscale: f64) -> Report {
        let looked = self.options.looks_first();
        if looked {
            for rule in 0..self.shares.len() {
                self.scan(tensors, rule, self.tasks(rule));
            }
        }
        let Decision { skip, mut report } = self.decide(unscale);
        for rule in 0..self.shares.len() {
            // A pass after another one goes backwards.
            let mut again = looked;
            if self.is_layer_wise(rule) && !skip {
                self.layer_norms(tensors, rule, self.tasks(rule), again);
                self.set_trust_ratios(rule);
                again = !again;
            }
            self.update(tensors, rule, self.tasks(rule), again, skip);
        }
        self.end(skip, &mut report);
        report
    }

    /// All tasks of a rule.
    pub(crate) fn tasks(&self, rule: usize) -> Range<usize> {
        0..self.shares[rule].plan.tasks.len()
    }

    pub(crate) fn is_layer_wise(&self, rule: usize) -> bool {
        self.shares[rule].spec.is_layer_wise()
    }

    fn around<'a>(&self, options: &'a Options) -> Around<'a> {
        Around { options, t: self.steps + 1 - self.skipped, dispatched: self.dispatched }
    }

    /// Sums the squares of the gradients of some tasks.
    pub(crate) fn scan(&mut self, tensors: &mut Checked<'_>, rule: usize, tasks: Range<usize>) {
        let options = self.options;
        let around = self.around(&options);
        self.shares[rule].scan(around, tensors, tasks);
    }

    /// Sums the squares for the trust ratios of a layer-wise rule.
    pub(crate) fn layer_norms(
        &mut self,
        tensors: &mut Checked<'_>,
        rule: usize,
        tasks: Range<usize>,
        backwards: bool,
    ) {
        let options = self.options;
        let around = self.around(&options);
        self.shares[rule].layer_norms(around, tensors, tasks, backwards);
    }

    /// Sets the trust ratios of a layer-wise rule, after all of its tasks have been scanned.
    pub(crate) fn set_trust_ratios(&mut self, rule: usize) {
        self.shares[rule].set_trust_ratios();
    }

    /// Updates some tasks, or does the rest of a skipped step.
    pub(crate) fn update(
        &mut self,
        tensors: &mut Checked<'_>,
        rule: usize,
        tasks: Range<usize>,
        backwards: bool,
        skip: bool,
    ) {
        let options = self.options;
        let around = self.around(&options);
        self.shares[rule].update(around, tensors, tasks, backwards, skip);
    }

    /// Ends a step that has been taken or skipped.
    pub(crate) fn end(&mut self, skip: bool, report: &mut Report) {
        if self.options.norms {
            let sums = || self.shares.iter().flat_map(|share| &share.sums);
            let norm = |which: usize| f32::from_f64(sums().map(|sums| sums[which]).sum::<f64>().sqrt());
            (report.param_norm, report.update_norm) = (Some(norm(0)), Some(norm(1)));
        }
        if !skip {
            self.carries.copy_from_slice(&self.next);
        }
        self.steps += 1;
    }
}

fn unknown_slot(slot: &str, tensor: &str) -> StateError {
    StateError::UnknownSlot { tensor: tensor.into(), slot: slot.into() }
}

/// Offloaded state: gradients arrive in chunks of tasks, one after the other.
#[cfg(feature = "gpu")]
impl Optimizer {
    /// The rules' tasks in chunks of a number of tasks, with the ranges of the flat space that they update.
    pub(crate) fn chunks(
        &self,
        tasks: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>, Vec<Range<usize>>)> {
        let shares = self.shares.iter().enumerate();
        shares.flat_map(move |(rule, share)| {
            share.chunks(tasks).map(move |(tasks, ranges)| (rule, tasks, ranges))
        })
    }

    /// The slices of some tasks of a rule: flat parameters, and gradients of only these tasks, one range
    /// after the other.
    pub(crate) fn pieces<'a>(
        &self,
        rule: usize,
        tasks: Range<usize>,
        params: &'a mut [f32],
        grads: &'a [f32],
    ) -> Checked<'a> {
        let plan = &self.shares[rule].plan;
        let first = &plan.tensor_ranges[plan.tasks[tasks.start].tensor_ranges.start];
        let (start, span) = (first.start, first.span);
        Checked::tasks(start, span, self.shares[rule].ranges(tasks), params, grads)
    }
}

//! The engine in f32: state in host memory, and a step in two passes over memory at most, of a layer-wise rule three.

use super::blocks::{Block, Plan};
use super::kernel::{self, MAX_SLOTS, Part, Pass, Row, Sums};
use super::tensors::{Cells, Checked, State, StateMut, Tensors};
use super::threads;
#[cfg(feature = "checkpoint")]
use crate::checkpoint::{Counters, LossScaleState};
use crate::error::Error;
use crate::format::{Format, step_key};
use crate::kernel::Storage;
use crate::layout::Layout;
use crate::options::{Clip, EMA, Options, Rounding};
use crate::q8;
use crate::report::Report;
use crate::rules::{Fields, Step, Twin, ratio_field, slots};
use core::ops::Range;

/// Added to a norm before it divides a bound, as PyTorch's `clip_grad_norm_` does.
const NORM_EPS: f64 = 1e-6;

/// Applies rule `R` to the tensors of a layout in host memory.
///
/// The same options, names of state and errors as on the GPU, and nothing is late: a step that is skipped is known to be so when the call returns.
///
/// ```
/// use wgpu_optim::{AdamW, Clip, Group, Layout, Options, cpu};
/// let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [3]).tensor("b", [1])])?;
/// let options = Options { clip: Some(Clip::GlobalNorm(1.0)), zero_gradients: true, ..Options::default() };
/// let mut optimizer = cpu::Optimizer::with_options(layout, options)?;
/// let (mut params, mut grads) = ([1.0, 2.0, 3.0, 4.0], [10.0, 0.0, -10.0, 0.1]);
/// optimizer.step(cpu::Tensors::flat(&mut params, &mut grads), 1e-3)?;
/// assert_eq!(grads, [0.0; 4]);
///
/// // The same with slices of single tensors.
/// let (w, b) = params.split_at_mut(3);
/// let (dw, db) = grads.split_at_mut(3);
/// optimizer.step(cpu::Tensors::each([("w", w, dw), ("b", b, db)]), 1e-3)?;
/// assert_eq!(optimizer.state("exp_avg", "b")?.unwrap().as_f32().unwrap().len(), 1);
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Optimizer<R: Twin> {
    layout: Layout<R>,
    options: Options,
    plan: Plan,
    /// One a slot of the rule, of each kind of tensors.
    state: Vec<[Numbers; 2]>,
    master: Numbers,
    ema: Numbers,
    carries: Vec<f64>,
    steps: u64,
    skipped: u64,
    loss_scale: f32,
    good_steps: u32,
    vectorised: bool,
    /// What a step works with, so that it allocates nothing: next carries, scalars of the groups, rows, sums of the segments and of the groups.
    next: Vec<f64>,
    scalars: Vec<R::Scalars<f32>>,
    rows: Vec<Row<R::Scalars<f32>>>,
    sums: Vec<Sums>,
    group_sums: Vec<f64>,
}

/// Numbers of all elements, as they are stored.
#[derive(Clone, Debug)]
enum Numbers {
    None,
    F32(Vec<f32>),
    U16(Vec<u16>),
    Q8(Vec<u8>, Vec<u32>),
}

impl Numbers {
    fn zeros(len: usize, format: Format) -> Result<Self, Error> {
        fn zeros<T: Copy + Default>(len: usize) -> Result<Vec<T>, Error> {
            let mut zeros = Vec::new();
            let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
            zeros.try_reserve_exact(len).map_err(|_| Error::Memory { bytes })?;
            zeros.resize(len, T::default());
            Ok(zeros)
        }
        match format.bytes() {
            4 => zeros(len).map(Self::F32),
            2 => zeros(len).map(Self::U16),
            _ => Ok(Self::Q8(zeros(len)?, zeros(len / q8::BLOCK)?)),
        }
    }

    fn cells(&mut self) -> Cells<'_> {
        match self {
            Self::None => Cells::None,
            Self::F32(x) => Cells::Write4(x),
            Self::U16(x) => Cells::Write2(x),
            Self::Q8(x, scales) => Cells::Write1(x, scales),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::F32(x) => 4 * x.len() as u64,
            Self::U16(x) => 2 * x.len() as u64,
            Self::Q8(x, scales) => x.len() as u64 + 4 * scales.len() as u64,
        }
    }
}

/// Parts of the work that a thread has, if there is enough: so many that none waits long for another at the end.
const SHARES: usize = 32;

/// What has been decided about a step.
pub(crate) struct Decision {
    pub(crate) skip: bool,
    pub(crate) report: Report,
}

impl<R: Twin> Optimizer<R> {
    /// Zeroed state for `layout`.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough memory for it, [`Error::TooManySlots`] for a rule of one's own.
    pub fn new(layout: Layout<R>) -> Result<Self, Error> {
        Self::with_options(layout, Options::default())
    }

    /// [`new`](Self::new) with what stands around the update.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::Options`], [`Error::Format`].
    pub fn with_options(layout: Layout<R>, options: Options) -> Result<Self, Error> {
        options.validate()?;
        let count = slots::<R>().len();
        if count > MAX_SLOTS {
            return Err(Error::TooManySlots { rule: R::NAME, slots: count, bound: MAX_SLOTS });
        }
        let mut plan = Plan::new(&layout, &options)?;
        let numbers = |format: Option<Format>| {
            format.map_or(Ok(Numbers::None), |format| Numbers::zeros(plan.len, format))
        };
        let [large, small] = plan.kept;
        let state = |slot| {
            if !layout.keeps_slot(slot) {
                return Ok([Numbers::None, Numbers::None]);
            }
            Ok([Numbers::zeros(large, options.states)?, Numbers::zeros(small, Format::F32)?])
        };
        let state = (0..count).map(state).collect::<Result<_, Error>>()?;
        let master = numbers(options.storage().master().map(|(_, format)| format))?;
        let ema = numbers(options.ema.map(|_| Format::F32))?;
        plan.divide()?;
        let groups = layout.groups().len();
        Ok(Self {
            state,
            master,
            ema,
            carries: vec![0.0; groups],
            steps: 0,
            skipped: 0,
            loss_scale: options.loss_scale.map_or(1.0, |scale| scale.initial as f32),
            good_steps: 0,
            vectorised: true,
            next: vec![0.0; groups],
            scalars: Vec::with_capacity(groups),
            rows: Vec::with_capacity(plan.groups.len()),
            sums: vec![[0.0; 2]; plan.segments.len()],
            group_sums: vec![0.0; groups],
            plan,
            options,
            layout,
        })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &Layout<R> {
        &self.layout
    }

    /// What stands around the update.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Steps so far, skipped ones included.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The dynamic loss scale, by which the engine multiplies its loss before the backward pass. `None` without [`Options::loss_scale`].
    #[must_use]
    pub fn loss_scale(&self) -> Option<f32> {
        self.options.loss_scale.map(|_| self.loss_scale)
    }

    /// Goes on with a saved loss scale: [`Report::next_loss_scale`] and [`Report::good_steps`].
    ///
    /// # Errors
    /// [`Error::Options`] for a scale not from [`min`](crate::LossScale::min) to [`max`](crate::LossScale::max), for `good_steps` not below
    /// [`growth_interval`](crate::LossScale::growth_interval), and without [`Options::loss_scale`]; nothing changes then.
    pub fn set_loss_scale(&mut self, scale: f64, good_steps: u32) -> Result<(), Error> {
        self.options.check_loss_scale(scale, good_steps)?;
        (self.loss_scale, self.good_steps) = (scale as f32, good_steps);
        Ok(())
    }

    /// Bytes of host memory held as optimizer state.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.state.iter().flatten().chain([&self.master, &self.ema]).map(Numbers::bytes).sum()
    }

    /// Slot `slot` (by its PyTorch name, `"ema"`, `"master"` or `"remainder"`) of `tensor`; `None` if no group's configuration keeps it.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn state(&self, slot: &str, tensor: &str) -> Result<Option<State<'_>>, Error> {
        let place = self.place(slot)?;
        let span = &self.plan.spans[self.plan.span_of(self.layout.tensor(tensor)?)];
        let (numbers, range) = match place {
            Kept::Slot(nth) => (&self.state[nth][span.kind], span.state()),
            Kept::Master => (&self.master, span.start..span.end()),
            Kept::Ema => (&self.ema, span.start..span.end()),
        };
        Ok(match numbers {
            Numbers::None => None,
            Numbers::F32(x) => Some(State::F32(&x[range])),
            Numbers::U16(x) => Some(State::U16(&x[range])),
            Numbers::Q8(x, scales) => Some(State::Q8(&x[range.clone()], &scales[scales_of(range)])),
        })
    }

    /// The same, to be written.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn state_mut(&mut self, slot: &str, tensor: &str) -> Result<Option<StateMut<'_>>, Error> {
        let place = self.place(slot)?;
        let span = &self.plan.spans[self.plan.span_of(self.layout.tensor(tensor)?)];
        let (numbers, range) = match place {
            Kept::Slot(nth) => (&mut self.state[nth][span.kind], span.state()),
            Kept::Master => (&mut self.master, span.start..span.end()),
            Kept::Ema => (&mut self.ema, span.start..span.end()),
        };
        Ok(match numbers {
            Numbers::None => None,
            Numbers::F32(x) => Some(StateMut::F32(&mut x[range])),
            Numbers::U16(x) => Some(StateMut::U16(&mut x[range])),
            Numbers::Q8(x, scales) => {
                Some(StateMut::Q8(&mut x[range.clone()], &mut scales[scales_of(range)]))
            }
        })
    }

    /// Blocks, so many at a time, and the ranges of the flat space that they are.
    #[cfg(feature = "gpu")]
    pub(crate) fn chunks(&self, blocks: usize) -> impl Iterator<Item = (Range<usize>, Vec<Range<usize>>)> {
        let plan = &self.plan;
        (0..plan.blocks.len()).step_by(blocks).map(move |first| {
            let blocks = first..plan.blocks.len().min(first.saturating_add(blocks));
            let mut ranges: Vec<Range<usize>> = Vec::new();
            for segment in plan.blocks[blocks.clone()].iter().flat_map(|b| &plan.segments[b.segments.clone()])
            {
                let span = &plan.spans[segment.span];
                let start = span.flat + segment.start - span.start;
                let end = start + segment.end - segment.start;
                match ranges.last_mut().filter(|last| last.end == start) {
                    Some(last) => last.end = end,
                    None => ranges.push(start..end),
                }
            }
            (blocks, ranges)
        })
    }

    /// Whether the state of a tensor, by its place in the order of the flat space, stays f32 as it is small.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn is_small(&self, tensor: usize) -> bool {
        self.plan.spans[tensor].kind == 1
    }

    fn place(&self, slot: &str) -> Result<Kept, Error> {
        if let Some(nth) = slots::<R>().iter().position(|name| *name == slot) {
            return Ok(Kept::Slot(nth));
        }
        match self.options.storage().master() {
            Some((name, _)) if name == slot => Ok(Kept::Master),
            _ if slot == EMA && self.options.ema.is_some() => Ok(Kept::Ema),
            _ => Err(Error::Unknown { what: "slot", name: slot.into() }),
        }
    }

    /// Turns the choice of instructions off for the passes, not for what they call to convert formats, for tests: results are the same.
    #[doc(hidden)]
    #[must_use]
    pub fn without_dispatch(self) -> Self {
        Self { vectorised: false, ..self }
    }

    /// What is counted and carried.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn counters(&self) -> Counters {
        let state = LossScaleState { scale: self.loss_scale, good_steps: self.good_steps };
        Counters {
            steps: self.steps,
            taken: self.steps - self.skipped,
            carries: self.carries.clone(),
            loss_scale: self.options.loss_scale.map(|_| state),
        }
    }

    /// Goes on from `counters`, which have a carry for each group.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn restore(&mut self, counters: &Counters) {
        (self.steps, self.skipped) = (counters.steps, counters.steps - counters.taken);
        self.carries.clone_from(&counters.carries);
        let first = self.options.loss_scale.map_or(1.0, |scale| scale.initial as f32);
        let state = counters.loss_scale.unwrap_or(LossScaleState { scale: first, good_steps: 0 });
        (self.loss_scale, self.good_steps) = (state.scale, state.good_steps);
    }

    /// Takes one step, or skips it as the options say; the report is there if they ask for one.
    ///
    /// `step` is a learning rate, or a [`Step`]. Once warm it allocates nothing of its own for flat slices (rayon's queues may grow). `steps()` counts it.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::Length`], [`Error::Unknown`] or [`Error::Duplicate`] for tensors that are not the layout's, [`Error::Format`] for slices of another type,
    /// [`Error::ReadOnly`] for gradients that cannot be set to zero, [`Error::Step`], [`Error::Options`] for the divisor, [`Error::ScalarOverflow`];
    /// nothing changes then.
    pub fn step(&mut self, tensors: Tensors<'_>, step: impl Into<Step>) -> Result<Option<Report>, Error> {
        let mut tensors = tensors.checked(&self.layout, &self.plan, &self.options)?;
        let unscale = self.begin(step.into())?;
        let report = if self.plan.blocks.len() == 1 {
            self.run(&mut tensors, unscale)
        } else {
            threads::within(|| self.run(&mut tensors, unscale))
        };
        Ok(self.options.reports().then_some(report))
    }

    /// The scalars of a step; returns what gradients are multiplied by. Nothing has changed yet.
    pub(crate) fn begin(&mut self, step: Step) -> Result<f64, Error> {
        let unscale = step.unscale(self.options.divide)? / f64::from(self.loss_scale);
        let (taken, scalars) = (self.steps - self.skipped, &mut self.scalars);
        self.next.copy_from_slice(&self.carries);
        scalars.clear();
        self.layout.scalars(step, self.steps, taken + 1, &mut self.next, |_, exact| {
            scalars.push(R::Scalars::<f32>::from_fn(|i| exact.get(i) as f32));
        })?;
        Ok(unscale)
    }

    /// All passes of a step that has begun.
    fn run(&mut self, tensors: &mut Checked<'_>, unscale: f64) -> Report {
        let (all, mut again) = (0..self.plan.blocks.len(), false);
        if self.options.looks_first() {
            self.look(tensors, all.clone());
            again = true;
        }
        let Decision { skip, mut report } = self.decide(unscale);
        if R::RATIO.is_some() && !skip {
            self.measure(tensors, all.clone(), again);
            self.set_ratios();
            again = !again;
        }
        self.update(tensors, all, again, skip);
        self.end(skip, &mut report);
        report
    }

    /// Squares of the gradients of `blocks`.
    pub(crate) fn look(&mut self, tensors: &mut Checked<'_>, blocks: Range<usize>) {
        let grads = self.options.grads;
        let look = if self.vectorised { kernel::look } else { kernel::look_plainly };
        let (plan, part) = self.parts(tensors, blocks.start);
        sweep(plan, blocks, part, false, &|block, part| look(plan, grads, block, part));
    }

    /// Squares that the ratios of a layer-wise rule are of.
    pub(crate) fn measure(&mut self, tensors: &mut Checked<'_>, blocks: Range<usize>, backwards: bool) {
        let measure = if self.vectorised { kernel::measure::<R> } else { kernel::measure_plainly::<R> };
        self.sweep(tensors, blocks, backwards, false, &|pass, block, part| measure(pass, block, part));
    }

    /// The update, or what is left of it in a step that is skipped.
    pub(crate) fn update(
        &mut self,
        tensors: &mut Checked<'_>,
        blocks: Range<usize>,
        backwards: bool,
        skip: bool,
    ) {
        if !skip {
            let update = if self.vectorised { kernel::update::<R> } else { kernel::update_plainly::<R> };
            self.sweep(tensors, blocks, backwards, true, &|pass, block, part| update(pass, block, part));
        } else if self.options.zero_gradients || self.options.norms {
            self.sweep(tensors, blocks, backwards, true, &|pass, block, part| {
                kernel::rest(pass, block, part);
            });
        }
    }

    /// The step has been taken, or skipped.
    pub(crate) fn end(&mut self, skip: bool, report: &mut Report) {
        if self.options.norms {
            let norm = |which: usize| self.sums.iter().map(|sums| sums[which]).sum::<f64>().sqrt() as f32;
            (report.param_norm, report.update_norm) = (Some(norm(0)), Some(norm(1)));
        }
        if !skip {
            self.carries.copy_from_slice(&self.next);
        }
        self.steps += 1;
    }

    /// Between the gradients and the update: clip factors, skip, loss scale, rows.
    pub(crate) fn decide(&mut self, unscale: f64) -> Decision {
        let looked = self.options.looks_first();
        let mut total = 0.0;
        self.group_sums.fill(0.0);
        if looked {
            for (segment, [sum, _]) in self.plan.segments.iter().zip(&self.sums) {
                total += sum;
                self.group_sums[self.plan.groups[segment.row]] += sum;
            }
        }
        // A sum is finite where all it is of are.
        let finite = f64::is_finite(total);
        let norm = |sum: f64| sum.sqrt() * unscale;
        let bounded = |sum: f64, bound: f64| {
            let factor = bound / (norm(sum) + NORM_EPS);
            // What is no number makes all of them that, as in PyTorch.
            if factor < 1.0 || factor.is_nan() { factor } else { 1.0 }
        };
        let clip = self.options.clip;
        let factor = |sum: f64| match clip {
            Some(Clip::GlobalNorm(bound)) => bounded(total, bound),
            Some(Clip::GroupNorm(bound)) => bounded(sum, bound),
            _ => 1.0,
        };
        let (plan, scalars, sums) = (&self.plan, &self.scalars, &self.group_sums);
        self.rows.clear();
        self.rows.extend(
            plan.groups.iter().map(|&group| Row {
                scalars: scalars[group],
                factor: (unscale * factor(sums[group])) as f32,
            }),
        );
        let clip_factor =
            sums.iter().map(|&sum| factor(sum)).fold(1.0, |a, b| if b < a || b.is_nan() { b } else { a });
        let skip = self.options.skips() && !finite;
        self.skipped += u64::from(skip);
        let used = self.loss_scale;
        if let Some(scale) = &self.options.loss_scale {
            if finite {
                self.good_steps += 1;
                if self.good_steps == scale.growth_interval {
                    self.loss_scale = (used * scale.growth_factor as f32).min(scale.max as f32);
                    self.good_steps = 0;
                }
            } else {
                self.loss_scale = (used * scale.backoff_factor as f32).max(scale.min as f32);
                self.good_steps = 0;
            }
        }
        let report = Report {
            step: self.steps,
            finite,
            skipped: self.skipped,
            grad_norm: norm(total) as f32,
            clip_factor: clip_factor as f32,
            loss_scale: used,
            next_loss_scale: self.loss_scale,
            good_steps: self.good_steps,
            param_norm: None,
            update_norm: None,
        };
        Decision { skip, report }
    }

    /// The rows' ratios, from the sums of the segments, of which each row has one or several.
    pub(crate) fn set_ratios(&mut self) {
        let Some(field) = ratio_field::<R>() else { return };
        let mut segments = self.plan.segments.iter().zip(&self.sums).peekable();
        for (nth, row) in self.rows.iter_mut().enumerate() {
            let mut sums = [0.0; 2];
            while let Some((_, part)) = segments.next_if(|(segment, _)| segment.row == nth) {
                sums[0] += part[0];
                sums[1] += part[1];
            }
            let [p_norm, u_norm] = sums.map(|sum| sum.sqrt() as f32);
            let s = row.scalars;
            let ratio = R::ratio(&s, p_norm, u_norm);
            row.scalars = R::Scalars::<f32>::from_fn(|i| if i == field { ratio } else { s.get(i) });
        }
    }

    /// All memory from a block on, and what divides it.
    fn parts<'m, 'a>(&'m mut self, tensors: &'m mut Checked<'a>, first: usize) -> (&'m Plan, Part<'m, 'a>) {
        let Block { start, kept, segments } = &self.plan.blocks[first];
        let from = |numbers: &'m mut Numbers, start: usize| {
            let cells = numbers.cells();
            // What is not kept has no elements to leave out.
            let at = start.min(cells.len());
            cells.split_at(at).1
        };
        let mut state: [[Cells<'m>; MAX_SLOTS]; 2] = Default::default();
        for (slot, [large, small]) in self.state.iter_mut().enumerate() {
            (state[0][slot], state[1][slot]) = (from(large, kept[0]), from(small, kept[1]));
        }
        let part = Part {
            start: *start,
            kept: *kept,
            segment: segments.start,
            memory: tensors.memory(),
            state,
            master: from(&mut self.master, *start),
            ema: from(&mut self.ema, *start),
            sums: &mut self.sums[segments.start..],
        };
        (&self.plan, part)
    }

    /// A pass over blocks, maybe backwards; `last` is the one that ends the step.
    fn sweep(
        &mut self,
        tensors: &mut Checked<'_>,
        blocks: Range<usize>,
        backwards: bool,
        last: bool,
        leaf: &(impl Fn(&Pass<'_, R::Scalars<f32>>, &Block, &mut Part<'_, '_>) + Sync),
    ) {
        let options = self.options;
        let storage = options.storage();
        // Of tensors of each kind.
        let storages = [storage, Storage { states: Format::F32, ..storage }];
        let t = self.steps + 1 - self.skipped;
        let seed = if let Rounding::Stochastic { seed } = options.rounding { seed } else { 0 };
        let rows = core::mem::take(&mut self.rows);
        let (plan, part) = self.parts(tensors, blocks.start);
        let pass = Pass {
            plan,
            storage: storages,
            rows: &rows,
            bound: if let Some(Clip::Value(bound)) = options.clip { bound as f32 } else { f32::INFINITY },
            zero: last && options.zero_gradients,
            average: options.ema.map(|ema| ema.weight(t) as f32),
            norms: last && options.norms,
            in_place: storages.map(|of| [of.params, of.grads, of.states] == [Format::F32; 3]),
            key: storage.stochastic.then(|| step_key(seed, t)),
        };
        sweep(plan, blocks, part, backwards, &|block, part| leaf(&pass, block, part));
        self.rows = rows;
    }
}

/// The blocks of elements that have scales.
fn scales_of(range: Range<usize>) -> Range<usize> {
    range.start / q8::BLOCK..range.end.div_ceil(q8::BLOCK)
}

/// Where state is.
enum Kept {
    Slot(usize),
    Master,
    Ema,
}

/// Hands blocks to `leaf`, several that follow each other as one, those of one half to other threads if there are any. `backwards` from the last ones: where a pass has been before, what it read
/// last is in the cache still.
fn sweep(
    plan: &Plan,
    blocks: Range<usize>,
    part: Part<'_, '_>,
    backwards: bool,
    leaf: &(impl Fn(&Block, &mut Part<'_, '_>) + Sync),
) {
    fn halve(
        plan: &Plan,
        blocks: &[Block],
        mut part: Part<'_, '_>,
        leaf: &(impl Fn(&Block, &mut Part<'_, '_>) + Sync),
        backwards: bool,
        grain: usize,
    ) {
        if blocks.len() <= grain {
            if let (Some(first), Some(last)) = (blocks.first(), blocks.last()) {
                let segments = first.segments.start..last.segments.end;
                leaf(&Block { segments, ..first.clone() }, &mut part);
            }
            return;
        }
        let (first, second) = blocks.split_at(blocks.len() / 2);
        let (part, rest) = part.split(plan, &second[0]);
        let first = || halve(plan, first, part, leaf, backwards, grain);
        let second = || halve(plan, second, rest, leaf, backwards, grain);
        if backwards { threads::join(second, first) } else { threads::join(first, second) }
    }
    // A thread that looks for work waits for all it has written: not after every block.
    let grain = (blocks.len() / (threads::count() * SHARES)).max(1);
    halve(plan, &plan.blocks[blocks], part, leaf, backwards, grain);
}

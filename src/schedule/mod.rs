//! Learning-rate schedules: functions of the step, as values that are put together, compared and saved.
//!
//! ```
//! use wgpu_optim::{Group, Layout, Sgd, cpu, schedule};
//! let lr = schedule::cosine(0.1, 0.001, 90).warmup(10).then(100, 0.001);
//!
//! let layout = Layout::new([Group::new("all", Sgd::default()).tensor("w", [2])])?;
//! let mut optimizer = cpu::Optimizer::<Sgd>::new(layout)?;
//! let mut params = [1.0, 2.0];
//! for t in 0..200 {
//!     optimizer.step(cpu::Tensors::flat(&mut params, &[0.5, -0.5]), lr.at(t)?)?;
//! }
//! # Ok::<(), wgpu_optim::Error>(())
//! ```
//!
//! They are put together by sequence, warm-up and product:
//!
//! ```
//! use wgpu_optim::{Schedule, schedule};
//! // Warm-up, stable, decay: 100 steps up, 700 at the peak, 200 down to 0, where it stays.
//! let wsd = Schedule::from(3e-4).then(700, schedule::linear(3e-4, 0.0, 200)).warmup(100);
//! assert_eq!((wsd.at(50)?.lr, wsd.at(800)?.lr, wsd.at(5_000)?.lr), (1.5e-4, 3e-4, 0.0));
//!
//! // A closure is a schedule too.
//! let jagged = wsd.times(|t: u64| if t % 10 == 0 { 0.5 } else { 1.0 });
//! assert_eq!((jagged.at(700)?.lr, jagged.at(701)?.lr), (1.5e-4, 3e-4));
//! # Ok::<(), wgpu_optim::Error>(())
//! ```
//!
//! With feature `serde` a schedule is read from and written to what a configuration file has for it:
//!
//! ```
//! # #[cfg(feature = "serde")] {
//! let json = r#"{"warmup": {"steps": 10, "schedule": {"cosine": {"start": 0.1, "end": 0.001, "steps": 90}}}}"#;
//! let lr: wgpu_optim::Schedule = serde_json::from_str(json)?;
//! assert_eq!(lr, wgpu_optim::schedule::cosine(0.1, 0.001, 90).warmup(10));
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`ReduceOnPlateau`] depends on what training comes to, so it is no function of the step and stands apart.

mod one_cycle;
mod plateau;

pub use one_cycle::{Anneal, OneCycle};
pub use plateau::{Mode, ReduceOnPlateau, ThresholdMode};

use crate::error::Error;
use crate::rules::Step;
use core::f64::consts::FRAC_PI_2;
use core::fmt;
use std::sync::Arc;

/// A learning rate, or a factor of one, as a function of the step.
///
/// `t` counts the steps already taken, so it is 0 for the first step, as PyTorch's `last_epoch` is. Values are PyTorch's closed forms at every
/// step, also past the end; each variant says where it differs. Every value has to be finite and at least 0.
///
/// A schedule is plain data, and making one checks nothing: [`at`](Self::at) checks what it uses, and [`validate`](Self::validate) all of
/// it. The functions of [this module](self) and the methods below write the variants with fewer braces.
///
/// With feature `serde`: the variant's name in snake case with its fields, and unknown names are refused. [`Custom`](Self::Custom) does not
/// serialise, nor does what contains it: that is an error of the serializer.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Schedule {
    /// The same at every step. (PyTorch's `ConstantLR` changes once: `Schedule::from(lr / 3.0).then(5, lr)`.)
    Constant(f64),
    /// A line from `start` to `end`: `start + (end − start) · min(t / steps, 1)`; `end` from then on. PyTorch: `LinearLR`.
    Linear {
        /// At step 0.
        start: f64,
        /// At step `steps` and later.
        end: f64,
        /// At least 1.
        steps: u64,
    },
    /// `end + (start − end) · (1 − min(t / steps, 1))^power`; `end` from `steps` on. PyTorch: `PolynomialLR`, whose end is 0.
    Polynomial {
        /// At step 0.
        start: f64,
        /// At step `steps` and later.
        end: f64,
        /// At least 1.
        steps: u64,
        /// Above 0. 1 is a line; more falls early, less falls late.
        power: f64,
    },
    /// `start · gammaᵗ`, without an end. PyTorch: `ExponentialLR`.
    Exponential {
        /// At step 0.
        start: f64,
        /// Factor of every step, at least 0.
        gamma: f64,
    },
    /// `start · gamma^⌊t / every⌋`, without an end. PyTorch: `StepLR`.
    Step {
        /// Before the first change.
        start: f64,
        /// Factor of every change, at least 0.
        gamma: f64,
        /// Steps from change to change, at least 1.
        every: u64,
    },
    /// `start · gamma^n`, where `n` of the milestones are at most `t`. PyTorch: `MultiStepLR`, which also takes them unsorted.
    MultiStep {
        /// Before the first milestone.
        start: f64,
        /// Factor of every milestone, at least 0.
        gamma: f64,
        /// In ascending order; one that is there twice counts twice.
        milestones: Vec<u64>,
    },
    /// `peak · min((t + 1) / warmup, √(warmup / (t + 1)))`: up in a line, then down without an end.
    ///
    /// With `peak = 1 / √(d_model · warmup)` it is the schedule of *Attention Is All You Need* (Vaswani et al., 2017), often called Noam, whose
    /// steps count from 1. PyTorch has none; there it is a `LambdaLR`.
    InverseSqrt {
        /// At the end of the warm-up, step `warmup − 1`.
        peak: f64,
        /// Steps, at least 1.
        warmup: u64,
    },
    /// Half a cosine: `end + ½ (start − end) (1 + cos(π t / steps))`. PyTorch: `CosineAnnealingLR`.
    ///
    /// Past `steps` the cosine goes on, as in PyTorch: it climbs back to `start` at `2 · steps`, and so on. To stay at the end, say so:
    /// `cosine(start, end, steps).then(steps, end)`.
    Cosine {
        /// At step 0.
        start: f64,
        /// At step `steps`.
        end: f64,
        /// Half a period, at least 1.
        steps: u64,
    },
    /// Half cosines from `start` towards `end`, one after the other, each `period_factor` times as long as the one before; without an end.
    /// PyTorch: `CosineAnnealingWarmRestarts`. The last step of a period stops short of `end`: the next one is at `start` again.
    ///
    /// Reference: Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, ICLR 2017.
    CosineRestarts {
        /// At the first step of every period.
        start: f64,
        /// What every period falls towards.
        end: f64,
        /// Steps of the first period, at least 1.
        period: u64,
        /// At least 1.
        period_factor: u64,
    },
    /// Up and down once, the momentum the other way; with an end. PyTorch: `OneCycleLR`.
    OneCycle(OneCycle),
    /// A line from 0 to the schedule's first value, then the schedule, from its step 0: `t / steps · schedule(0)` before step `steps`, then
    /// `schedule(t − steps)`. So it is `steps` longer than the schedule.
    ///
    /// PyTorch: `SequentialLR` with a `LambdaLR`, since its `LinearLR` cannot start at 0.
    Warmup {
        /// Length; 0 for none.
        steps: u64,
        /// What comes after.
        schedule: Box<Schedule>,
    },
    /// One schedule after the other: `schedules[i]` from `milestones[i − 1]` on, where its own steps begin at 0. PyTorch: `SequentialLR`.
    Sequence {
        /// At least one.
        schedules: Vec<Schedule>,
        /// One fewer, each larger than the one before, the first at least 1.
        milestones: Vec<u64>,
    },
    /// The product of the values at the same step; of none it is 1. Momentum is that of the first factor that has one. PyTorch:
    /// `ChainedScheduler`.
    Product(Vec<Schedule>),
    /// A schedule whose momentum is another schedule's value.
    WithMomentum {
        /// The learning rate; a momentum of its own is replaced.
        schedule: Box<Schedule>,
        /// Its value becomes [`Step::momentum`].
        momentum: Box<Schedule>,
    },
    /// A function of the user's own, from any closure by [`From`]. PyTorch: `LambdaLR`.
    #[cfg_attr(feature = "serde", serde(skip))]
    Custom(Custom),
}

/// A closure as a schedule. It is equal to its clones only.
#[derive(Clone)]
pub struct Custom(Arc<dyn Fn(u64) -> f64 + Send + Sync>);

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Custom(..)")
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl From<f64> for Schedule {
    fn from(value: f64) -> Self {
        Self::Constant(value)
    }
}

impl From<OneCycle> for Schedule {
    fn from(cycle: OneCycle) -> Self {
        Self::OneCycle(cycle)
    }
}

impl<F: Fn(u64) -> f64 + Send + Sync + 'static> From<F> for Schedule {
    fn from(function: F) -> Self {
        Self::Custom(Custom(Arc::new(function)))
    }
}

/// [`Schedule::Linear`].
#[must_use]
pub fn linear(start: f64, end: f64, steps: u64) -> Schedule {
    Schedule::Linear { start, end, steps }
}

/// [`Schedule::Polynomial`].
#[must_use]
pub fn polynomial(start: f64, end: f64, steps: u64, power: f64) -> Schedule {
    Schedule::Polynomial { start, end, steps, power }
}

/// [`Schedule::Exponential`].
#[must_use]
pub fn exponential(start: f64, gamma: f64) -> Schedule {
    Schedule::Exponential { start, gamma }
}

/// [`Schedule::Step`].
#[must_use]
pub fn step(start: f64, gamma: f64, every: u64) -> Schedule {
    Schedule::Step { start, gamma, every }
}

/// [`Schedule::MultiStep`].
#[must_use]
pub fn multi_step(start: f64, gamma: f64, milestones: impl Into<Vec<u64>>) -> Schedule {
    Schedule::MultiStep { start, gamma, milestones: milestones.into() }
}

/// [`Schedule::InverseSqrt`].
#[must_use]
pub fn inverse_sqrt(peak: f64, warmup: u64) -> Schedule {
    Schedule::InverseSqrt { peak, warmup }
}

/// [`Schedule::Cosine`].
#[must_use]
pub fn cosine(start: f64, end: f64, steps: u64) -> Schedule {
    Schedule::Cosine { start, end, steps }
}

/// [`Schedule::CosineRestarts`].
#[must_use]
pub fn cosine_restarts(start: f64, end: f64, period: u64, period_factor: u64) -> Schedule {
    Schedule::CosineRestarts { start, end, period, period_factor }
}

/// [`Schedule::OneCycle`] with PyTorch's defaults; for others, [`OneCycle`] is a struct that converts.
#[must_use]
pub fn one_cycle(max_lr: f64, total_steps: u64) -> Schedule {
    OneCycle { max_lr, total_steps, ..OneCycle::default() }.into()
}

impl Schedule {
    /// This schedule before step `milestone`, from there on `next`, whose own steps then begin at 0.
    ///
    /// Several in a row make one [`Sequence`](Self::Sequence), so all milestones count from the same beginning and have to ascend.
    #[must_use]
    pub fn then(self, milestone: u64, next: impl Into<Self>) -> Self {
        let (mut schedules, mut milestones) = match self {
            Self::Sequence { schedules, milestones } => (schedules, milestones),
            first => (vec![first], Vec::new()),
        };
        schedules.push(next.into());
        milestones.push(milestone);
        Self::Sequence { schedules, milestones }
    }

    /// The [product](Self::Product) with `factor`.
    #[must_use]
    pub fn times(self, factor: impl Into<Self>) -> Self {
        let mut factors = match self {
            Self::Product(factors) => factors,
            first => vec![first],
        };
        factors.push(factor.into());
        Self::Product(factors)
    }

    /// [`Warmup`](Self::Warmup) of `steps` steps before this schedule, which it delays by as many.
    #[must_use]
    pub fn warmup(self, steps: u64) -> Self {
        Self::Warmup { steps, schedule: Box::new(self) }
    }

    /// Drives the [momentum](Step::momentum) as well, by another schedule.
    ///
    /// ```
    /// use wgpu_optim::schedule;
    /// let lr = schedule::linear(0.1, 0.0, 100).with_momentum(schedule::linear(0.85, 0.95, 100));
    /// assert_eq!(lr.at(100)?.momentum, Some(0.95));
    /// # Ok::<(), wgpu_optim::Error>(())
    /// ```
    #[must_use]
    pub fn with_momentum(self, momentum: impl Into<Self>) -> Self {
        Self::WithMomentum { schedule: Box::new(self), momentum: Box::new(momentum.into()) }
    }

    /// The kind's name: how errors and serialised forms call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant(_) => "constant",
            Self::Linear { .. } => "linear",
            Self::Polynomial { .. } => "polynomial",
            Self::Exponential { .. } => "exponential",
            Self::Step { .. } => "step",
            Self::MultiStep { .. } => "multi_step",
            Self::InverseSqrt { .. } => "inverse_sqrt",
            Self::Cosine { .. } => "cosine",
            Self::CosineRestarts { .. } => "cosine_restarts",
            Self::OneCycle(_) => OneCycle::NAME,
            Self::Warmup { .. } => "warmup",
            Self::Sequence { .. } => "sequence",
            Self::Product(_) => "product",
            Self::WithMomentum { .. } => "with_momentum",
            Self::Custom(_) => "custom",
        }
    }

    /// The learning rate, and the momentum where the schedule has one, after `t` steps: what the step to be taken is handed.
    ///
    /// It allocates nothing.
    ///
    /// # Errors
    /// [`Error::Schedule`] for a field out of range, or a value that is not finite or negative: growth and products can overflow, and a
    /// closure returns what it likes. [`Error::PastEnd`] past the end of a [`OneCycle`].
    pub fn at(&self, t: u64) -> Result<Step, Error> {
        self.check()?;
        let lr = match self {
            Self::Constant(value) => *value,
            Self::Linear { start, end, steps } => {
                let (left, done) = shares(t.min(*steps), *steps);
                mix(*start, *end, left, done)
            }
            Self::Polynomial { start, end, steps, power } => {
                let (left, done) = shares(t.min(*steps), *steps);
                mix(*start, *end, left.powf(*power), -(power * (-done).ln_1p()).exp_m1())
            }
            Self::Exponential { start, gamma } => start * gamma.powf(t as f64),
            Self::Step { start, gamma, every } => start * gamma.powf((t / every) as f64),
            Self::MultiStep { start, gamma, milestones } => {
                let passed = milestones.partition_point(|&milestone| milestone <= t);
                start * gamma.powf(passed as f64)
            }
            Self::InverseSqrt { peak, warmup } => {
                let progress = (t as f64 + 1.0) / *warmup as f64;
                peak * progress.min(progress.sqrt().recip())
            }
            Self::Cosine { start, end, steps } => {
                let (half_periods, t) = (t / steps, t % steps);
                let (left, done) = shares(if half_periods % 2 == 0 { t } else { steps - t }, *steps);
                mix(*start, *end, half_cosine(left), half_cosine(done))
            }
            Self::CosineRestarts { start, end, period, period_factor } => {
                let (t, period) = within_period(t, *period, *period_factor);
                let (left, done) = shares(t, period);
                mix(*start, *end, half_cosine(left), half_cosine(done))
            }
            Self::Custom(Custom(function)) => function(t),
            // The rest passes on a momentum.
            Self::OneCycle(cycle) => return self.within_range(cycle.at(t)?),
            Self::Warmup { steps, schedule } => {
                return match t.checked_sub(*steps) {
                    Some(t) => schedule.at(t),
                    None => {
                        let first = schedule.at(0)?;
                        Ok(Step { lr: first.lr * (t as f64 / *steps as f64), ..first })
                    }
                };
            }
            Self::Sequence { schedules, milestones } => {
                let i = milestones.partition_point(|&milestone| milestone <= t);
                let begin = if i == 0 { 0 } else { milestones[i - 1] };
                return schedules[i].at(t - begin);
            }
            Self::Product(factors) => {
                let product = factors.iter().try_fold(Step::from(1.0), |product, factor| {
                    let Step { lr, momentum, .. } = factor.at(t)?;
                    Ok(Step { lr: product.lr * lr, momentum: product.momentum.or(momentum), ..product })
                });
                return self.within_range(product?);
            }
            Self::WithMomentum { schedule, momentum } => {
                let momentum = Some(momentum.at(t)?.lr);
                return Ok(Step { momentum, ..schedule.at(t)? });
            }
        };
        self.within_range(lr.into())
    }

    fn within_range(&self, step: Step) -> Result<Step, Error> {
        Fields(self.name()).non_negative("value", step.lr)?;
        Ok(step)
    }

    /// Checks every field of the schedule and of all that it is made of. What depends on the step, such as what a closure returns, only
    /// [`at`](Self::at) can check.
    ///
    /// # Errors
    /// [`Error::Schedule`].
    pub fn validate(&self) -> Result<(), Error> {
        self.check()?;
        match self {
            Self::Warmup { schedule, .. } => schedule.validate(),
            Self::WithMomentum { schedule, momentum } => schedule.validate().and(momentum.validate()),
            Self::Sequence { schedules, .. } | Self::Product(schedules) => {
                schedules.iter().try_for_each(Self::validate)
            }
            _ => Ok(()),
        }
    }

    /// Checks the schedule's own fields.
    fn check(&self) -> Result<(), Error> {
        let fields = Fields(self.name());
        match self {
            Self::Constant(value) => fields.non_negative("value", *value),
            Self::Linear { start, end, steps } | Self::Cosine { start, end, steps } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("end", *end)?;
                fields.at_least_1("steps", *steps)
            }
            Self::Polynomial { start, end, steps, power } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("end", *end)?;
                fields.at_least_1("steps", *steps)?;
                fields.positive("power", *power)
            }
            Self::Exponential { start, gamma } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("gamma", *gamma)
            }
            Self::Step { start, gamma, every } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("gamma", *gamma)?;
                fields.at_least_1("every", *every)
            }
            Self::MultiStep { start, gamma, milestones } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("gamma", *gamma)?;
                match milestones.windows(2).find(|pair| pair[1] < pair[0]) {
                    Some(pair) => Err(fields.refuse("milestones", pair[1] as f64, "in ascending order")),
                    None => Ok(()),
                }
            }
            Self::InverseSqrt { peak, warmup } => {
                fields.non_negative("peak", *peak)?;
                fields.at_least_1("warmup", *warmup)
            }
            Self::CosineRestarts { start, end, period, period_factor } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("end", *end)?;
                fields.at_least_1("period", *period)?;
                fields.at_least_1("period_factor", *period_factor)
            }
            Self::OneCycle(cycle) => cycle.validate(),
            Self::Sequence { schedules, milestones } => {
                if schedules.len() != milestones.len() + 1 {
                    let bound = "one fewer than schedules";
                    return Err(fields.refuse("number of milestones", milestones.len() as f64, bound));
                }
                let mut least = 1;
                for &milestone in milestones {
                    if milestone < least {
                        let bound = "at least 1 and in strictly ascending order";
                        return Err(fields.refuse("milestones", milestone as f64, bound));
                    }
                    least = milestone.saturating_add(1);
                }
                Ok(())
            }
            Self::Warmup { .. } | Self::Product(_) | Self::WithMomentum { .. } | Self::Custom(_) => Ok(()),
        }
    }
}

/// The parts of `steps` that lie ahead of step `t` and behind it. One minus the other loses digits where it is small.
fn shares(t: u64, steps: u64) -> (f64, f64) {
    ((steps - t) as f64 / steps as f64, t as f64 / steps as f64)
}

/// `½ (1 − cos(π x))`: no difference of nearly equal numbers where it is small.
fn half_cosine(x: f64) -> f64 {
    (FRAC_PI_2 * x).sin().powi(2)
}

/// The value between `start` and `end` with weight `left` on the one and `done` on the other, which add up to 1. What is added has one sign, so
/// nothing cancels; both ends are exact.
fn mix(start: f64, end: f64, left: f64, done: f64) -> f64 {
    if done == 0.0 {
        start
    } else if left == 0.0 {
        end
    } else if start >= end {
        end + (start - end) * left
    } else {
        start + (end - start) * done
    }
}

/// How far step `t` is in its period, and how long that one is.
fn within_period(mut t: u64, mut period: u64, factor: u64) -> (u64, u64) {
    if factor == 1 {
        return (t % period, period);
    }
    // At least doubling: 64 rounds at most.
    while t >= period {
        t -= period;
        period = period.saturating_mul(factor);
    }
    (t, period)
}

/// Checks of the fields of the schedule that it has the name of.
#[derive(Clone, Copy)]
struct Fields(&'static str);

impl Fields {
    fn refuse(self, field: &'static str, value: f64, bound: &'static str) -> Error {
        Error::Schedule { schedule: self.0, field, value, bound }
    }

    fn finite(self, field: &'static str, value: f64, good: bool, bound: &'static str) -> Result<(), Error> {
        if good && value.is_finite() { Ok(()) } else { Err(self.refuse(field, value, bound)) }
    }

    fn non_negative(self, field: &'static str, value: f64) -> Result<(), Error> {
        self.finite(field, value, value >= 0.0, "finite and at least 0")
    }

    fn positive(self, field: &'static str, value: f64) -> Result<(), Error> {
        self.finite(field, value, value > 0.0, "finite and above 0")
    }

    fn at_least_1(self, field: &'static str, value: u64) -> Result<(), Error> {
        if value >= 1 { Ok(()) } else { Err(self.refuse(field, value as f64, "at least 1")) }
    }
}

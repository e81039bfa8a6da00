//! Learning-rate schedules: functions of the step that a program can combine, compare and save.
//!
//! ```
//! use wgpu_optim::{Group, Layout, Sgd, cpu, schedule};
//! let lr = schedule::cosine(0.1, 0.001, 90).warmup(10).then(100, 0.001);
//!
//! let layout = Layout::new([Group::new("all", Sgd::default()).tensor("w", [2])])?;
//! let mut optimizer = cpu::Optimizer::new(layout)?;
//! let mut params = [1.0, 2.0];
//! for t in 0..200 {
//!     optimizer.step(cpu::Tensors::flat(&mut params, &[0.5, -0.5]), lr.at(t)?)?;
//! }
//! # Ok::<(), wgpu_optim::Error>(())
//! ```
//!
//! Sequence, warm-up and product combine schedules:
//!
//! ```
//! use wgpu_optim::{Schedule, schedule};
//! // Warm-up, stable, decay: 100 steps up, 700 at the peak, 200 down to 0, which it keeps.
//! let wsd = Schedule::from(3e-4).then(700, schedule::linear(3e-4, 0.0, 200)).warmup(100);
//! assert_eq!((wsd.at(50)?.lr, wsd.at(800)?.lr, wsd.at(5_000)?.lr), (1.5e-4, 3e-4, 0.0));
//!
//! // A closure converts to a schedule.
//! let jagged = wsd.times(|t: u64| if t % 10 == 0 { 0.5 } else { 1.0 });
//! assert_eq!((jagged.at(700)?.lr, jagged.at(701)?.lr), (1.5e-4, 3e-4));
//! # Ok::<(), wgpu_optim::Error>(())
//! ```
//!
//! With feature `serde` a configuration file can contain a schedule:
//!
//! ```
//! # #[cfg(feature = "serde")] {
//! let json = r#"{"warmup": {"steps": 10, "schedule":
//!     {"cosine": {"start": 0.1, "end": 0.001, "steps": 90}}}}"#;
//! let lr: wgpu_optim::Schedule = serde_json::from_str(json)?;
//! assert_eq!(lr, wgpu_optim::schedule::cosine(0.1, 0.001, 90).warmup(10));
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`ReduceOnPlateau`] depends on a metric of the training. It is therefore not a function of the step, and
//! not a [`Schedule`].

mod check;
mod compose;
mod kinds;
mod one_cycle;
mod plateau;
mod value;

pub use kinds::{
    cosine, cosine_restarts, exponential, inverse_sqrt, linear, multi_step, one_cycle, polynomial, step,
};
pub use one_cycle::{Anneal, OneCycle};
pub use plateau::{Mode, ReduceOnPlateau, ThresholdMode};

use core::fmt;
use std::sync::Arc;

/// A learning rate, or a factor of one, as a function of the step.
///
/// `t` counts the steps already taken: it is 0 for the first step, like PyTorch's `last_epoch`. Values equal
/// PyTorch's closed forms at every step, also past the end; each variant documents its deviations. Every
/// value must be finite and at least 0.
///
/// A schedule is plain data, and its construction checks nothing. [`at`](Self::at) checks the fields that it
/// uses; [`validate`](Self::validate) checks all fields. The functions of [this module](self) and the methods
/// below are shorter ways to write the variants.
///
/// With feature `serde` a schedule is the variant's name in snake case with its fields; unknown names are
/// errors. The serializer returns an error for [`Custom`](Self::Custom) and for a schedule that contains it.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Schedule {
    /// One value at every step.
    ///
    /// PyTorch's `ConstantLR` changes once: `Schedule::from(lr / 3.0).then(5, lr)`.
    Constant(f64),
    /// A line from `start` to `end`: `start + (end − start) · min(t / steps, 1)`. PyTorch: `LinearLR`.
    Linear {
        /// The value at step 0.
        start: f64,
        /// The value from step `steps` on.
        end: f64,
        /// The length in steps, at least 1.
        steps: u64,
    },
    /// A power of the remaining share: `end + (start − end) · (1 − min(t / steps, 1))^power`. PyTorch:
    /// `PolynomialLR`.
    ///
    /// PyTorch's end is always 0.
    Polynomial {
        /// The value at step 0.
        start: f64,
        /// The value from step `steps` on.
        end: f64,
        /// The length in steps, at least 1.
        steps: u64,
        /// The exponent, at least 0. 1 is a line; a larger exponent falls early, a smaller one late, and 0
        /// never.
        power: f64,
    },
    /// A factor per step, without an end: `start · gammaᵗ`. PyTorch: `ExponentialLR`.
    Exponential {
        /// The value at step 0.
        start: f64,
        /// The factor per step, at least 0.
        gamma: f64,
    },
    /// A factor every `every` steps, without an end: `start · gamma^⌊t / every⌋`. PyTorch: `StepLR`.
    Step {
        /// The value before the first change.
        start: f64,
        /// The factor per change, at least 0.
        gamma: f64,
        /// The steps between two changes, at least 1.
        every: u64,
    },
    /// A factor per milestone: `start · gamma^n`, where `n` milestones are at most `t`. PyTorch:
    /// `MultiStepLR`.
    MultiStep {
        /// The value before the first milestone.
        start: f64,
        /// The factor per milestone, at least 0.
        gamma: f64,
        /// The steps of the changes, in any order. A milestone that occurs twice counts twice.
        milestones: Vec<u64>,
    },
    /// A line up, then a fall without an end: `peak · min((t + 1) / warmup, √(warmup / (t + 1)))`.
    ///
    /// `peak = 1 / √(d_model · warmup)` is the schedule of Vaswani et al., *Attention Is All You Need*, 2017,
    /// also called Noam; the paper counts steps from 1. PyTorch has no class for it; there it is a
    /// `LambdaLR`.
    InverseSqrt {
        /// The value at the end of the warm-up, step `warmup − 1`.
        peak: f64,
        /// The length of the warm-up in steps, at least 1.
        warmup: u64,
    },
    /// Half a cosine: `end + ½ (start − end) (1 + cos(π t / steps))`. PyTorch: `CosineAnnealingLR`.
    ///
    /// Past `steps` the cosine continues, as in PyTorch: it is `start` again at step `2 · steps`. This
    /// schedule keeps the end instead: `cosine(start, end, steps).then(steps, end)`.
    Cosine {
        /// The value at step 0.
        start: f64,
        /// The value at step `steps`.
        end: f64,
        /// Half a period in steps, at least 1.
        steps: u64,
    },
    /// Half cosines from `start` towards `end`, repeated without an end. PyTorch:
    /// `CosineAnnealingWarmRestarts`.
    ///
    /// Each period is `period_factor` times as long as the one before. The last step of a period does not
    /// reach `end`; the next step is at `start` again.
    ///
    /// Reference: Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts*, ICLR 2017.
    CosineRestarts {
        /// The value at the first step of every period.
        start: f64,
        /// The value that every period falls towards.
        end: f64,
        /// The length of the first period in steps, at least 1.
        period: u64,
        /// The ratio of a period's length to the previous one, at least 1.
        period_factor: u64,
    },
    /// One rise and one fall, while the momentum moves the opposite way; with an end. PyTorch: `OneCycleLR`.
    OneCycle(OneCycle),
    /// A line from 0 to a schedule's first value, then the schedule from its step 0.
    ///
    /// The value is `t / steps · schedule(0)` before step `steps`, then `schedule(t − steps)`. So the whole
    /// is `steps` steps longer than the schedule. In PyTorch it is a `SequentialLR` with a `LambdaLR`, since
    /// `LinearLR` cannot start at 0.
    Warmup {
        /// The length of the warm-up in steps; 0 is no warm-up.
        steps: u64,
        /// The schedule after the warm-up.
        schedule: Box<Self>,
    },
    /// One schedule after the other. PyTorch: `SequentialLR`.
    ///
    /// `schedules[i]` starts at step `milestones[i − 1]`, which is its own step 0. Of the schedules that
    /// start at the same step, the last one applies. So with a first milestone of 0, the first schedule has
    /// no steps. Deviation: in that case PyTorch takes the value of step 0 from the first schedule.
    Sequence {
        /// The schedules, at least one.
        schedules: Vec<Self>,
        /// The first steps of all schedules but the first, in ascending order.
        milestones: Vec<u64>,
    },
    /// The product of the schedules' values at a step; an empty product is 1. PyTorch: `ChainedScheduler`.
    ///
    /// The momentum is that of the first schedule with a momentum.
    Product(Vec<Self>),
    /// A schedule with another schedule's value as momentum.
    WithMomentum {
        /// The schedule of the learning rate. Its own momentum is replaced.
        schedule: Box<Self>,
        /// The schedule of [`Step::momentum`](crate::Step::momentum).
        momentum: Box<Self>,
    },
    /// A function of the user; every suitable closure converts by [`From`]. PyTorch: `LambdaLR`.
    #[cfg_attr(feature = "serde", serde(skip))]
    Custom(Custom),
}

impl Schedule {
    /// The kind's name in errors and in serialised form.
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
}

/// A closure in a schedule. It equals its clones only.
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

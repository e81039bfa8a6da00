//! Functions that make each kind of schedule.

use super::{OneCycle, Schedule};

/// Makes a line: [`Schedule::Linear`].
#[must_use]
pub fn linear(start: f64, end: f64, steps: u64) -> Schedule {
    Schedule::Linear { start, end, steps }
}

/// Makes a polynomial: [`Schedule::Polynomial`].
#[must_use]
pub fn polynomial(start: f64, end: f64, steps: u64, power: f64) -> Schedule {
    Schedule::Polynomial { start, end, steps, power }
}

/// Makes an exponential: [`Schedule::Exponential`].
#[must_use]
pub fn exponential(start: f64, gamma: f64) -> Schedule {
    Schedule::Exponential { start, gamma }
}

/// Makes a factor at regular steps: [`Schedule::Step`].
#[must_use]
pub fn step(start: f64, gamma: f64, every: u64) -> Schedule {
    Schedule::Step { start, gamma, every }
}

/// Makes a factor at milestones: [`Schedule::MultiStep`].
#[must_use]
pub fn multi_step(start: f64, gamma: f64, milestones: impl Into<Vec<u64>>) -> Schedule {
    Schedule::MultiStep { start, gamma, milestones: milestones.into() }
}

/// Makes a warm-up and an inverse square root: [`Schedule::InverseSqrt`].
#[must_use]
pub fn inverse_sqrt(peak: f64, warmup: u64) -> Schedule {
    Schedule::InverseSqrt { peak, warmup }
}

/// Makes half a cosine: [`Schedule::Cosine`].
#[must_use]
pub fn cosine(start: f64, end: f64, steps: u64) -> Schedule {
    Schedule::Cosine { start, end, steps }
}

/// Makes half cosines with restarts: [`Schedule::CosineRestarts`].
#[must_use]
pub fn cosine_restarts(start: f64, end: f64, period: u64, period_factor: u64) -> Schedule {
    Schedule::CosineRestarts { start, end, period, period_factor }
}

/// Makes one cycle with PyTorch's defaults: [`Schedule::OneCycle`].
///
/// For other settings, convert an [`OneCycle`].
#[must_use]
pub fn one_cycle(max_lr: f64, total_steps: u64) -> Schedule {
    OneCycle { max_lr, total_steps, ..OneCycle::default() }.into()
}

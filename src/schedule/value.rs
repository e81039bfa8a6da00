//! The value of a schedule at a step.

use super::check::Fields;
use super::{Custom, Schedule};
use crate::error::ScheduleError;
use crate::step::Step;
use core::f64::consts::FRAC_PI_2;

impl Schedule {
    /// Returns the learning rate for the step after `t` steps, and the momentum if the schedule has one.
    ///
    /// It does not allocate.
    ///
    /// # Errors
    /// A [`ScheduleError`] if a field is out of range, if the value is negative or not finite (as after an
    /// overflow or from a closure), or past the end of a [`OneCycle`](super::OneCycle).
    pub fn at(&self, t: u64) -> Result<Step, ScheduleError> {
        self.check()?;
        let lr = match self {
            Self::Constant(value) => *value,
            Self::Linear { start, end, steps } => {
                let (left, done) = shares(t.min(*steps), *steps);
                mix(*start, *end, left, done)
            }
            Self::Polynomial { start, end, steps, power } => {
                let (left, done) = shares(t.min(*steps), *steps);
                // 0 · −∞ at the end of a power of 0 is 0.
                let done = if *power == 0.0 { 0.0 } else { -(power * (-done).ln_1p()).exp_m1() };
                mix(*start, *end, left.powf(*power), done)
            }
            Self::Exponential { start, gamma } => decayed(*start, *gamma, t as f64),
            Self::Step { start, gamma, every } => decayed(*start, *gamma, (t / every) as f64),
            Self::MultiStep { start, gamma, milestones } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= t).count();
                decayed(*start, *gamma, passed as f64)
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
            // The kinds below return a momentum as well.
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
                let product = factors.iter().try_fold(
                    Step::from(1.0),
                    |product, factor| -> Result<Step, ScheduleError> {
                        let Step { lr, momentum, .. } = factor.at(t)?;
                        // 0 · ∞ after an overflow is 0.
                        let lr = if product.lr == 0.0 || lr == 0.0 { 0.0 } else { product.lr * lr };
                        Ok(Step { lr, momentum: product.momentum.or(momentum), ..product })
                    },
                );
                return self.within_range(product?);
            }
            Self::WithMomentum { schedule, momentum } => {
                let momentum = Some(momentum.at(t)?.lr);
                return Ok(Step { momentum, ..schedule.at(t)? });
            }
        };
        self.within_range(lr.into())
    }

    fn within_range(&self, step: Step) -> Result<Step, ScheduleError> {
        Fields(self.name()).non_negative("value", step.lr)?;
        Ok(step)
    }
}

/// Returns the shares of `steps` after step `t` and before it.
///
/// Both are quotients, since one minus the other would lose digits of a small share.
fn shares(t: u64, steps: u64) -> (f64, f64) {
    ((steps - t) as f64 / steps as f64, t as f64 / steps as f64)
}

/// Returns `start · gamma^n`, and 0 for a `start` of 0 even if the power overflows.
fn decayed(start: f64, gamma: f64, n: f64) -> f64 {
    if start == 0.0 { 0.0 } else { start * gamma.powf(n) }
}

/// Returns `½ (1 − cos(π x))`, without the difference of nearly equal numbers at small `x`.
pub(super) fn half_cosine(x: f64) -> f64 {
    (FRAC_PI_2 * x).sin().powi(2)
}

/// Interpolates between `start` with weight `left` and `end` with weight `done`; the weights add up to 1.
///
/// The result is exact at both ends. Both terms of the sum have one sign, so no digits cancel.
pub(super) fn mix(start: f64, end: f64, left: f64, done: f64) -> f64 {
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

/// Returns the step within the period of step `t`, and the length of that period.
fn within_period(mut t: u64, mut period: u64, factor: u64) -> (u64, u64) {
    if factor == 1 {
        return (t % period, period);
    }
    // Every round at least doubles the period, so there are at most 64.
    while t >= period {
        t -= period;
        period = period.saturating_mul(factor);
    }
    (t, period)
}

//! Schedules: PyTorch's values, loops that compute the formulas, and refused fields.

mod golden;
mod groups;
mod properties;
mod recipes;
mod refused;

use crate::common::{assert_same_bits, single};
use cpu_harness::CpuRun;
use harness::{Gpu, GpuRun};
use proptest::prelude::*;
use serde_json::Value;
use wgpu_optim::check::Snapshot;
use wgpu_optim::schedule::{Anneal, Mode, OneCycle, ReduceOnPlateau, ThresholdMode};
use wgpu_optim::{
    Adam, AdamW, AnyRule, Group, Layout, Options, Schedule, ScheduleError, Sgd, Step, StepError, cpu,
    schedule,
};

fn lr(schedule: &Schedule, t: u64) -> f64 {
    schedule.at(t).unwrap_or_else(|error| panic!("{schedule:?} at {t}: {error}")).lr
}

/// Relative to what is wanted; 0 for equal zeros.
fn deviation(got: f64, want: f64) -> f64 {
    if got == want { 0.0 } else { (got - want).abs() / want.abs() }
}

fn values(schedule: &Schedule, steps: impl Iterator<Item = u64>) -> Vec<f64> {
    steps.map(|t| lr(schedule, t)).collect()
}

/// A metric of −1 with a threshold of 0.1: the margin is 0.1, so the bar is −1.1 downwards and −0.9 upwards.
#[test]
fn a_relative_margin_is_a_share_of_the_magnitude() {
    let halving = ReduceOnPlateau { lr: 1.0, factor: 0.5, patience: 0, threshold: 0.1, ..Default::default() };
    let rates = |mode, threshold_mode, metrics: [f64; 4]| {
        let mut plateau = ReduceOnPlateau { mode, threshold_mode, ..halving };
        metrics.map(|metric| plateau.observe(metric).unwrap())
    };
    let (relative, signed) = (ThresholdMode::Relative, ThresholdMode::SignedRelative);
    // Better, worse, within the margin, beyond it.
    assert_eq!(rates(Mode::Min, relative, [-1.0, -0.95, -1.05, -1.2]), [1.0, 0.5, 0.25, 0.25]);
    assert_eq!(rates(Mode::Max, relative, [-1.0, -1.05, -0.95, -0.8]), [1.0, 0.5, 0.25, 0.25]);
    // PyTorch's bars are −0.9 downwards and −1.1 upwards: a metric that gets worse by 0.05 passes them.
    assert_eq!(rates(Mode::Min, signed, [-1.0, -0.95, -0.9, -0.5]), [1.0, 1.0, 1.0, 0.5]);
    assert_eq!(rates(Mode::Max, signed, [-1.0, -1.05, -1.1, -2.0]), [1.0, 1.0, 1.0, 0.5]);
    // The margin at a best metric of 0 is 0.
    for threshold_mode in [relative, signed] {
        assert_eq!(rates(Mode::Min, threshold_mode, [0.0, 0.0, -1e-9, 0.0]), [1.0, 0.5, 0.5, 0.25]);
    }
}

/// Compares values near the end of a long fall with 40 digits: PyTorch's recursion and 1 + cos lose digits
/// near zero.
#[test]
fn small_values_keep_their_digits() {
    let million = 1_000_000;
    let cases = [
        (schedule::cosine(1.0, 0.0, million), million - 1, LAST_OF_A_MILLION),
        (schedule::linear(1.0, 0.0, million), million - 1, 1e-6),
        (schedule::polynomial(1.0, 0.0, million, 2.0), million - 1, 1e-12),
        (schedule::polynomial(0.0, 1.0, million, 2.0), 1, 1.999999e-6),
        (schedule::cosine(0.0, 1.0, million), 1, LAST_OF_A_MILLION),
    ];
    for (schedule, t, want) in cases {
        let found = deviation(lr(&schedule, t), want);
        assert!(found <= 1e-15, "{schedule:?}: {found:e}");
    }
}

/// sin²(π / 2 / 10⁶).
const LAST_OF_A_MILLION: f64 = 2.467_401_100_270_310_3e-12;

/// Lists every value by hand: a segment between equal milestones, or before a milestone of 0, has no steps.
#[test]
fn segments_without_steps_are_skipped() {
    let check = |schedule: Schedule, want: &[f64]| {
        assert_eq!(schedule.validate(), Ok(()), "{schedule:?}");
        assert_eq!(values(&schedule, 0..want.len() as u64), want, "{schedule:?}");
    };
    let line = schedule::linear(1.0, 0.0, 4);
    check(Schedule::from(9.0).then(0, line.clone()), &[1.0, 0.75, 0.5, 0.25, 0.0, 0.0]);
    check(Schedule::from(9.0).then(2, 8.0).then(2, line.clone()), &[9.0, 9.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
    check(Schedule::from(9.0).then(0, 8.0).then(0, 7.0).then(3, line.clone()), &[7.0, 7.0, 7.0, 1.0, 0.75]);
    check(Schedule::from(9.0).then(0, line).warmup(2), &[0.0, 0.5, 1.0, 0.75, 0.5]);
}

/// Phases of length 0, where PyTorch divides by zero, are at their end.
#[test]
fn phases_without_length_are_over() {
    let cycle = OneCycle { max_lr: 1.0, total_steps: 10, ..OneCycle::default() };
    let first = Schedule::from(OneCycle { pct_start: 0.1, ..cycle });
    assert_eq!(first.at(0).unwrap(), Step::from(1.0).with_momentum(0.85));
    let last = Schedule::from(OneCycle { pct_start: 1.0, ..cycle });
    assert_eq!(lr(&last, 9), 1.0);
    assert_eq!(lr(&last, 10), 1.0 / 25.0 / 1e4);
    let single = Schedule::from(OneCycle { total_steps: 1, ..cycle });
    assert_eq!(lr(&single, 0), 1.0 / 25.0 / 1e4);
}

#[test]
fn a_closure_is_a_schedule() {
    let halves = Schedule::from(|t: u64| 0.5f64.powi(t as i32));
    assert_eq!(halves.clone().times(4.0).warmup(2).at(3).unwrap(), Step::from(2.0));
    assert_eq!(halves.clone(), halves);
    assert_ne!(halves, Schedule::from(|_: u64| 1.0));
    assert_eq!(format!("{halves:?}"), "Custom(Custom(..))");
}

/// PyTorch counts milestones by step, in whatever order they come.
#[test]
fn milestones_come_in_any_order() {
    let (sorted, mixed) = ([17, 90, 90, 250], [90, 250, 17, 90]);
    for t in 0..300 {
        let passed = sorted.iter().filter(|&&milestone| milestone <= t).count();
        let want = [0.5, 0.25, 0.125, 0.0625, 0.03125][passed];
        assert_eq!(lr(&schedule::multi_step(0.5, 0.5, mixed), t), want, "t = {t}");
        assert_eq!(lr(&schedule::multi_step(0.5, 0.5, sorted), t), want, "t = {t}");
    }
    assert_eq!(schedule::multi_step(1.0, 0.1, [5, 9, 8]).validate(), Ok(()));
}

/// The power 0 of the remaining share is 1, also at the end, in PyTorch and optax.
#[test]
fn a_power_of_0_never_falls() {
    for (start, end) in [(1.0, 0.25), (0.25, 1.0), (1.0, 0.0)] {
        for t in [0, 1, 9, 10, 11, u64::MAX] {
            assert_eq!(lr(&schedule::polynomial(start, end, 10, 0.0), t), start, "t = {t}");
        }
    }
}

//! One rise and one fall of the learning rate, with the momentum moving the opposite way.

use super::check::Fields;
use super::value::{half_cosine, mix};
use crate::error::ScheduleError;
use crate::step::Step;

/// A rise to `max_lr` and a fall far below the first learning rate, while the momentum moves the opposite
/// way.
///
/// With `initial = max_lr / div_factor` and `min = initial / final_div_factor`:
///
/// | phase | ends at step | learning rate | momentum |
/// | --- | --- | --- | --- |
/// | 1 | `pct_start · total_steps − 1` | `initial` to `max_lr` | `max_momentum` to `base_momentum` |
/// | 2 | `total_steps − 1` | `max_lr` to `min` | `base_momentum` to `max_momentum` |
///
/// and with `three_phase`:
///
/// | phase | ends at step | learning rate | momentum |
/// | --- | --- | --- | --- |
/// | 1 | `pct_start · total_steps − 1` | `initial` to `max_lr` | `max_momentum` to `base_momentum` |
/// | 2 | `2 · pct_start · total_steps − 2` | `max_lr` to `initial` | `base_momentum` to `max_momentum` |
/// | 3 | `total_steps − 1` | `initial` to `min` | `max_momentum` |
///
/// A phase can end at a fraction of a step. A step belongs to the first phase that does not end before it,
/// else to the last phase. In a phase, learning rate and momentum follow the curve [`anneal`](Self::anneal).
///
/// Semantics and defaults are those of `torch.optim.lr_scheduler.OneCycleLR`. The last step of a cycle is
/// `total_steps − 1`. As in PyTorch, step `total_steps` has a value too, which continues the last phase's
/// curve. Later steps are [`ScheduleError::PastEnd`].
///
/// There are two deviations. A phase of length 0 is at its end, where PyTorch divides by zero. A negative
/// learning rate, which a line has at step `total_steps`, is [`ScheduleError::Field`].
///
/// ```
/// use wgpu_optim::{Schedule, schedule::{Anneal, OneCycle}};
/// let cycle = OneCycle { max_lr: 0.1, total_steps: 100, anneal: Anneal::Linear, ..OneCycle::default() };
/// let lr = Schedule::from(cycle);
/// assert_eq!((lr.at(0)?.lr, lr.at(0)?.momentum), (0.004, Some(0.95)));
/// assert_eq!((lr.at(29)?.lr, lr.at(29)?.momentum), (0.1, Some(0.85)));
/// assert!(lr.at(101).is_err());
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
///
/// Reference: Smith and Topin, *Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
/// Rates*, 2018.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct OneCycle {
    /// The highest learning rate, above 0. The default 0 is an error, so it must be set.
    pub max_lr: f64,
    /// Steps per cycle, at least 1. The default 0 is an error, so it must be set.
    pub total_steps: u64,
    /// The share of the steps with a rising learning rate, `[0, 1]`. Default 0.3.
    pub pct_start: f64,
    /// The curve within a phase. Default [`Anneal::Cos`].
    pub anneal: Anneal,
    /// Whether the cycle sets the momentum too (β₁ for the Adam family). Default true.
    pub cycle_momentum: bool,
    /// The momentum at `max_lr`, `[0, ∞)`; a rule may require less. Default 0.85.
    pub base_momentum: f64,
    /// The momentum at both ends, `[0, ∞)`; a rule may require less. Default 0.95.
    pub max_momentum: f64,
    /// The ratio of `max_lr` to the first learning rate, above 0. Default 25.
    pub div_factor: f64,
    /// The ratio of the first learning rate to the last, above 0. Default 10⁴.
    pub final_div_factor: f64,
    /// Whether a phase as long as the rise returns to the first learning rate before the final fall. Default
    /// false.
    pub three_phase: bool,
}

/// The curve of a phase of [`OneCycle`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cos,
    /// A line.
    Linear,
}

impl Default for OneCycle {
    fn default() -> Self {
        Self {
            max_lr: 0.0,
            total_steps: 0,
            pct_start: 0.3,
            anneal: Anneal::Cos,
            cycle_momentum: true,
            base_momentum: 0.85,
            max_momentum: 0.95,
            div_factor: 25.0,
            final_div_factor: 1e4,
            three_phase: false,
        }
    }
}

/// A phase of the cycle.
struct Phase {
    /// The step at the phase's end, which can be a fraction as in PyTorch.
    end: f64,
    lr: [f64; 2],
    momentum: [f64; 2],
}

impl OneCycle {
    pub(super) const NAME: &'static str = "one_cycle";

    pub(super) fn validate(&self) -> Result<(), ScheduleError> {
        let fields = Fields(Self::NAME);
        fields.positive("max_lr", self.max_lr)?;
        fields.at_least_1("total_steps", self.total_steps)?;
        let share = (0.0..=1.0).contains(&self.pct_start);
        fields.finite("pct_start", self.pct_start, share, "in [0, 1]")?;
        fields.non_negative("base_momentum", self.base_momentum)?;
        fields.non_negative("max_momentum", self.max_momentum)?;
        fields.positive("div_factor", self.div_factor)?;
        fields.positive("final_div_factor", self.final_div_factor)
    }

    /// Returns the learning rate and momentum for the step after `t` steps. The caller has checked the
    /// fields.
    pub(super) fn at(&self, t: u64) -> Result<Step, ScheduleError> {
        if t > self.total_steps {
            return Err(ScheduleError::PastEnd { schedule: Self::NAME, step: t, bound: self.total_steps });
        }
        let (max, steps, t) = (self.max_lr, self.total_steps as f64, t as f64);
        let initial = max / self.div_factor;
        let min = initial / self.final_div_factor;
        let (low, high) = (self.base_momentum, self.max_momentum);
        let peak = self.pct_start * steps - 1.0;
        let rise = Phase { end: peak, lr: [initial, max], momentum: [high, low] };
        let fall = Phase { end: steps - 1.0, lr: [max, min], momentum: [low, high] };
        let (begin, phase) = if t <= peak {
            (0.0, rise)
        } else if !self.three_phase {
            (peak, fall)
        } else {
            let back =
                Phase { end: 2.0 * self.pct_start * steps - 2.0, lr: [max, initial], momentum: [low, high] };
            if t <= back.end {
                (peak, back)
            } else {
                (back.end, Phase { lr: [initial, min], momentum: [high, high], ..fall })
            }
        };
        let length = phase.end - begin;
        let (left, done) =
            if length == 0.0 { (0.0, 1.0) } else { ((phase.end - t) / length, (t - begin) / length) };
        let (left, done) = match self.anneal {
            Anneal::Cos => (half_cosine(left), half_cosine(done)),
            Anneal::Linear => (left, done),
        };
        let value = |[start, end]: [f64; 2]| mix(start, end, left, done);
        Ok(Step { momentum: self.cycle_momentum.then(|| value(phase.momentum)), ..value(phase.lr).into() })
    }
}

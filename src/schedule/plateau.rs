//! Reduction of the learning rate by a metric.

use super::check::Fields;
use crate::error::ScheduleError;

/// A learning rate that falls when a metric stops improving.
///
/// After every validation, [`observe`](Self::observe) takes the metric and returns the learning rate from
/// then on:
///
/// ```text
/// better than best:  best = metric, num_bad_epochs = 0
/// else:              num_bad_epochs += 1
/// cooling down:      cooldown_counter −= 1, num_bad_epochs = 0
/// num_bad_epochs > patience:
///     lr = max(factor · lr, min_lr)         (unless that is less than eps lower)
///     cooldown_counter = cooldown, num_bad_epochs = 0
/// ```
///
/// Semantics and defaults are those of `torch.optim.lr_scheduler.ReduceLROnPlateau`. NaN is never an
/// improvement, as in PyTorch. There are two deviations. An infinity is no improvement either; PyTorch would
/// keep it as the best metric, which no later metric improves on. The margin for a negative best metric is a
/// share of its magnitude; [`ThresholdMode::SignedRelative`] is PyTorch's margin.
///
/// The struct contains all state. To resume a run, serialise it (feature `serde`) and read it back:
///
/// ```
/// use wgpu_optim::schedule::ReduceOnPlateau;
/// let mut plateau = ReduceOnPlateau { lr: 0.1, patience: 1, ..ReduceOnPlateau::default() };
/// for (loss, lr) in [(3.0, 0.1), (2.0, 0.1), (2.1, 0.1), (2.2, 0.1 * 0.1)] {
///     assert_eq!(plateau.observe(loss)?, lr);
/// }
/// # #[cfg(feature = "serde")] {
/// let saved = serde_json::to_string(&plateau)?;
/// assert_eq!(serde_json::from_str::<ReduceOnPlateau>(&saved)?, plateau);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct ReduceOnPlateau {
    /// The current learning rate, `[0, ∞)`; at first the initial one. Default 1e-3, like most of PyTorch's
    /// optimizers.
    pub lr: f64,
    /// The direction of an improvement. Default [`Mode::Min`].
    pub mode: Mode,
    /// The factor per reduction, `[0, 1)`. Default 0.1.
    pub factor: f64,
    /// The number of epochs in a row without improvement before the next one reduces. Default 10.
    pub patience: u64,
    /// The margin by which an improvement must exceed the best metric, `[0, ∞)`. Default 1e-4.
    pub threshold: f64,
    /// The unit of the threshold. Default [`ThresholdMode::Relative`].
    pub threshold_mode: ThresholdMode,
    /// The number of epochs after a reduction that never count as bad. Default 0.
    pub cooldown: u64,
    /// The lower bound of reductions, `[0, ∞)`. Default 0.
    pub min_lr: f64,
    /// The size up to which a reduction is not made, `[0, ∞)`. Default 1e-8.
    pub eps: f64,
    /// State: the best metric so far, at first `None`.
    pub best: Option<f64>,
    /// State: the number of epochs in a row without improvement.
    pub num_bad_epochs: u64,
    /// State: the number of epochs left in the cooldown.
    pub cooldown_counter: u64,
}

/// The direction in which a metric improves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Mode {
    /// A lower metric is better, as for a loss.
    #[default]
    Min,
    /// A higher metric is better, as for an accuracy.
    Max,
}

/// The bar that a metric must pass to count as an improvement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ThresholdMode {
    /// A share of the best metric's magnitude: `best ∓ threshold · |best|`.
    ///
    /// For a positive best metric it equals PyTorch's `"rel"`.
    #[default]
    Relative,
    /// A share of the best metric with its sign: `best · (1 ∓ threshold)`. PyTorch: `"rel"`.
    ///
    /// For a negative best metric the bar lies on the wrong side: an equal metric counts as an improvement,
    /// so a metric that has stopped improving never reduces the learning rate.
    SignedRelative,
    /// A number in the metric's unit: `best ∓ threshold`. PyTorch: `"abs"`.
    Absolute,
}

impl Default for ReduceOnPlateau {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            mode: Mode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Relative,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
            best: None,
            num_bad_epochs: 0,
            cooldown_counter: 0,
        }
    }
}

impl ReduceOnPlateau {
    /// Takes an epoch's metric and returns the learning rate from then on.
    ///
    /// # Errors
    /// A [`ScheduleError`] if a field is out of range. The state does not change then.
    pub fn observe(&mut self, metric: f64) -> Result<f64, ScheduleError> {
        self.validate()?;
        if self.is_better(metric) {
            self.best = Some(metric);
            self.num_bad_epochs = 0;
        } else {
            self.num_bad_epochs = self.num_bad_epochs.saturating_add(1);
        }
        if self.cooldown_counter > 0 {
            self.cooldown_counter -= 1;
            self.num_bad_epochs = 0;
        }
        if self.num_bad_epochs > self.patience {
            let reduced = (self.lr * self.factor).max(self.min_lr);
            if self.lr - reduced > self.eps {
                self.lr = reduced;
            }
            self.cooldown_counter = self.cooldown;
            self.num_bad_epochs = 0;
        }
        Ok(self.lr)
    }

    fn is_better(&self, metric: f64) -> bool {
        let Some(best) = self.best else { return metric.is_finite() };
        // Products as in PyTorch, so that the last digit of the bar is PyTorch's.
        let bar = match (self.mode, self.threshold_mode) {
            (Mode::Min, ThresholdMode::Relative) => best * (1.0 - best.signum() * self.threshold),
            (Mode::Max, ThresholdMode::Relative) => best * (1.0 + best.signum() * self.threshold),
            (Mode::Min, ThresholdMode::SignedRelative) => best * (1.0 - self.threshold),
            (Mode::Max, ThresholdMode::SignedRelative) => best * (1.0 + self.threshold),
            (Mode::Min, ThresholdMode::Absolute) => best - self.threshold,
            (Mode::Max, ThresholdMode::Absolute) => best + self.threshold,
        };
        metric.is_finite() && if self.mode == Mode::Min { metric < bar } else { metric > bar }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// A [`ScheduleError`] if a field is out of range.
    pub fn validate(&self) -> Result<(), ScheduleError> {
        let fields = Fields("reduce_on_plateau");
        fields.non_negative("lr", self.lr)?;
        fields.finite("factor", self.factor, (0.0..1.0).contains(&self.factor), "in [0, 1)")?;
        fields.non_negative("threshold", self.threshold)?;
        fields.non_negative("min_lr", self.min_lr)?;
        fields.non_negative("eps", self.eps)?;
        self.best.map_or(Ok(()), |best| fields.finite("best", best, true, "finite"))
    }
}

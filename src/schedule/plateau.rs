use super::Fields;
use crate::error::Error;

/// Lowers the learning rate when a metric has stopped getting better.
///
/// After every validation, [`observe`](Self::observe) takes the metric and answers with the learning rate to go on with:
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
/// Semantics and defaults are those of `torch.optim.lr_scheduler.ReduceLROnPlateau`. NaN is never better, as there. Deviation: nor is an
/// infinity, which PyTorch would keep as a best that nothing beats, where it lies on the good side.
///
/// All state is in the struct. To save it, serialise it (feature `serde`); to go on, read it back:
///
/// ```
/// use wgpu_optim::schedule::ReduceOnPlateau;
/// let mut plateau = ReduceOnPlateau { lr: 0.1, patience: 1, ..ReduceOnPlateau::default() };
/// let lr: Vec<_> = [3.0, 2.0, 2.1, 2.2].map(|loss| plateau.observe(loss)).into_iter().collect::<Result<_, _>>()?;
/// assert_eq!(lr, [0.1, 0.1, 0.1, 0.1 * 0.1]);
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
    /// The learning rate, `[0, ∞)`: the first one to begin with, then the current one. Default 1e-3, as most of PyTorch's optimizers have it.
    pub lr: f64,
    /// Which way is better. Default [`Mode::Min`].
    pub mode: Mode,
    /// Factor of a reduction, `[0, 1)`. Default 0.1.
    pub factor: f64,
    /// Epochs in a row without improvement that are tolerated. Default 10.
    pub patience: u64,
    /// By how much a better metric has to be better, `[0, ∞)`. Default 1e-4.
    pub threshold: f64,
    /// What the threshold is measured against. Default [`ThresholdMode::Relative`].
    pub threshold_mode: ThresholdMode,
    /// Epochs after a reduction in which nothing is held against the metric. Default 0.
    pub cooldown: u64,
    /// No reduction goes below it, `[0, ∞)`. Default 0.
    pub min_lr: f64,
    /// A reduction by no more than this is not made, `[0, ∞)`. Default 1e-8.
    pub eps: f64,
    /// State: the best metric so far, `None` at first.
    pub best: Option<f64>,
    /// State: epochs in a row without improvement.
    pub num_bad_epochs: u64,
    /// State: what is left of the cooldown.
    pub cooldown_counter: u64,
}

/// Which way a metric gets better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Mode {
    /// A loss.
    #[default]
    Min,
    /// An accuracy.
    Max,
}

/// What a metric has to beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ThresholdMode {
    /// `best · (1 ∓ threshold)`. PyTorch: `"rel"`.
    #[default]
    Relative,
    /// `best ∓ threshold`. PyTorch: `"abs"`.
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
    /// Takes an epoch's metric and returns the learning rate to go on with.
    ///
    /// # Errors
    /// [`Error::Schedule`] for a field out of range; the state is then as before.
    pub fn observe(&mut self, metric: f64) -> Result<f64, Error> {
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
        let bar = match (self.mode, self.threshold_mode) {
            (Mode::Min, ThresholdMode::Relative) => best * (1.0 - self.threshold),
            (Mode::Min, ThresholdMode::Absolute) => best - self.threshold,
            (Mode::Max, ThresholdMode::Relative) => best * (1.0 + self.threshold),
            (Mode::Max, ThresholdMode::Absolute) => best + self.threshold,
        };
        metric.is_finite() && if self.mode == Mode::Min { metric < bar } else { metric > bar }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Schedule`].
    pub fn validate(&self) -> Result<(), Error> {
        let fields = Fields("reduce_on_plateau");
        fields.non_negative("lr", self.lr)?;
        fields.finite("factor", self.factor, (0.0..1.0).contains(&self.factor), "in [0, 1)")?;
        fields.non_negative("threshold", self.threshold)?;
        fields.non_negative("min_lr", self.min_lr)?;
        fields.non_negative("eps", self.eps)?;
        self.best.map_or(Ok(()), |best| fields.finite("best", best, true, "finite"))
    }
}

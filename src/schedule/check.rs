//! Checks of a schedule's fields.

use super::Schedule;
use crate::error::ScheduleError;

impl Schedule {
    /// Checks every field of the schedule and of the schedules inside it.
    ///
    /// Values that depend on the step, such as those of a closure, are checked by [`at`](Self::at) only.
    ///
    /// # Errors
    /// A [`ScheduleError`] if a field is out of range.
    pub fn validate(&self) -> Result<(), ScheduleError> {
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
    pub(super) fn check(&self) -> Result<(), ScheduleError> {
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
                fields.non_negative("power", *power)
            }
            Self::Exponential { start, gamma } | Self::MultiStep { start, gamma, .. } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("gamma", *gamma)
            }
            Self::Step { start, gamma, every } => {
                fields.non_negative("start", *start)?;
                fields.non_negative("gamma", *gamma)?;
                fields.at_least_1("every", *every)
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
                fields.ascending("milestones", milestones)
            }
            Self::Warmup { .. } | Self::Product(_) | Self::WithMomentum { .. } | Self::Custom(_) => Ok(()),
        }
    }
}

/// Checks of single fields, for the schedule of this name.
#[derive(Clone, Copy)]
pub(super) struct Fields(pub(super) &'static str);

impl Fields {
    fn refuse(self, field: &'static str, value: f64, bound: &'static str) -> ScheduleError {
        ScheduleError::Field { schedule: self.0, field, value, bound }
    }

    pub(super) fn finite(
        self,
        field: &'static str,
        value: f64,
        good: bool,
        bound: &'static str,
    ) -> Result<(), ScheduleError> {
        if good && value.is_finite() { Ok(()) } else { Err(self.refuse(field, value, bound)) }
    }

    pub(super) fn non_negative(self, field: &'static str, value: f64) -> Result<(), ScheduleError> {
        self.finite(field, value, value >= 0.0, "finite and at least 0")
    }

    pub(super) fn positive(self, field: &'static str, value: f64) -> Result<(), ScheduleError> {
        self.finite(field, value, value > 0.0, "finite and above 0")
    }

    pub(super) fn at_least_1(self, field: &'static str, value: u64) -> Result<(), ScheduleError> {
        if value >= 1 { Ok(()) } else { Err(self.refuse(field, value as f64, "at least 1")) }
    }

    /// Accepts equal neighbours.
    fn ascending(self, field: &'static str, values: &[u64]) -> Result<(), ScheduleError> {
        match values.windows(2).find(|pair| pair[1] < pair[0]) {
            Some(pair) => Err(self.refuse(field, pair[1] as f64, "in ascending order")),
            None => Ok(()),
        }
    }
}

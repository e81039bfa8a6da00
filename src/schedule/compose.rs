//! Methods that combine schedules.

use super::Schedule;

impl Schedule {
    /// Continues with `next` from step `milestone` on, which is step 0 of `next`.
    ///
    /// Several calls extend one [`Sequence`](Self::Sequence). So all milestones count from the same step 0,
    /// and none may be smaller than the one before. Of equal milestones, the last one applies.
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

    /// Multiplies by `factor`: the [product](Self::Product) of both values at every step.
    #[must_use]
    pub fn times(self, factor: impl Into<Self>) -> Self {
        let mut factors = match self {
            Self::Product(factors) => factors,
            first => vec![first],
        };
        factors.push(factor.into());
        Self::Product(factors)
    }

    /// Adds a [warm-up](Self::Warmup) of `steps` steps before this schedule, and delays the schedule by them.
    #[must_use]
    pub fn warmup(self, steps: u64) -> Self {
        Self::Warmup { steps, schedule: Box::new(self) }
    }

    /// Sets the [momentum](crate::Step::momentum) by another schedule.
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
}

//! How far the device's count of steps may be behind the host's.
//!
//! A skipped step does not count for the rule, and only the device knows at once that it was skipped. The host therefore sends a step's scalars
//! several times: as if no step had been skipped that it does not know of, as if one had, and so on, one set for every step that has been
//! recorded and not yet reported. The device picks the set for its own count. All sets are computed in f64, so that a run with skipped
//! steps is bit for bit the run without them.

/// The counts of skipped steps that are possible.
#[derive(Clone, Debug)]
pub(crate) struct Lags {
    /// The least: what has been reported.
    first: u64,
    /// How many there are.
    count: usize,
    groups: usize,
    /// The groups' carries for each.
    carries: Vec<f64>,
    next: Vec<f64>,
}

impl Lags {
    pub(crate) fn new(groups: usize) -> Self {
        Self { first: 0, count: 1, groups, carries: vec![0.0; groups], next: Vec::with_capacity(2 * groups) }
    }

    /// The least number of steps that may have been skipped.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// How many numbers are possible.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The groups' carries if `skipped` steps have been skipped, or as many of those that are possible as come nearest.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn carries(&self, skipped: u64) -> &[f64] {
        let set = skipped.saturating_sub(self.first).min(self.count as u64 - 1) as usize;
        &self.carries[set * self.groups..][..self.groups]
    }

    /// Starts anew: with `skipped` steps, and no other number.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn restore(&mut self, skipped: u64, carries: &[f64]) {
        (self.first, self.count) = (skipped, 1);
        self.carries.clear();
        self.carries.extend_from_slice(carries);
    }

    /// Has `set` compute the scalars for every possible number of skipped steps, from the groups' carries, which it advances. Nothing changes before
    /// [`commit`](Self::commit).
    ///
    /// `Ok(false)` if a carry depends on which steps were skipped and not on how many alone: then no set is certain to be right.
    pub(crate) fn prepare<E>(
        &mut self,
        mut set: impl FnMut(usize, u64, &mut [f64]) -> Result<(), E>,
    ) -> Result<bool, E> {
        self.next.clear();
        self.next.extend_from_slice(&self.carries);
        let sets = self.next.chunks_exact_mut(self.groups).enumerate();
        sets.zip(self.first..).try_for_each(|((i, carries), skipped)| set(i, skipped, carries))?;
        // As many steps taken: this one and one fewer before it, or all of those before it.
        Ok(self.next[self.groups..] == self.carries[..self.carries.len() - self.groups])
    }

    /// The prepared step has been recorded; it may be skipped itself if `skips`.
    pub(crate) fn commit(&mut self, skips: bool) {
        if skips {
            // One more skipped than the most so far: with the carries from before the step.
            let last = self.carries.len() - self.groups;
            self.next.extend_from_slice(&self.carries[last..]);
            self.count += 1;
        }
        std::mem::swap(&mut self.carries, &mut self.next);
    }

    /// The device has skipped `skipped` steps up to one that `since` more were recorded after.
    pub(crate) fn confirm(&mut self, skipped: u64, since: u64) {
        let passed = skipped.saturating_sub(self.first).min(self.count as u64 - 1);
        self.first += passed;
        self.count = (self.count - passed as usize).min(since as usize + 1);
        self.carries.drain(..passed as usize * self.groups);
        self.carries.truncate(self.count * self.groups);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries that tell how many steps were taken.
    fn step(lags: &mut Lags) -> Vec<(u64, f64)> {
        let mut seen = Vec::new();
        let done: Result<bool, ()> = lags.prepare(|_, skipped, carries| {
            carries[0] += 1.0;
            seen.push((skipped, carries[0]));
            Ok(())
        });
        assert_eq!(done, Ok(true));
        lags.commit(true);
        seen
    }

    #[test]
    fn what_depends_on_which_steps_were_skipped_is_found() {
        let mut lags = Lags::new(1);
        let mut certain = |factor: f64| {
            let done: Result<bool, ()> = lags.prepare(|_, _, carries| {
                carries[0] = if carries[0] == 0.0 { 1.0 } else { carries[0] } * factor;
                Ok(())
            });
            lags.commit(true);
            done.unwrap()
        };
        assert!(certain(0.5) && certain(0.5));
        assert!(!certain(0.25));
    }

    #[test]
    fn every_possible_count_has_its_carries() {
        let mut lags = Lags::new(1);
        assert_eq!(step(&mut lags), [(0, 1.0)]);
        assert_eq!(step(&mut lags), [(0, 2.0), (1, 1.0)]);
        assert_eq!(step(&mut lags), [(0, 3.0), (1, 2.0), (2, 1.0)]);
        // The first step was skipped; two have been recorded since.
        lags.confirm(1, 2);
        assert_eq!(step(&mut lags), [(1, 3.0), (2, 2.0), (3, 1.0)]);
        // And no other.
        lags.confirm(1, 0);
        assert_eq!(step(&mut lags), [(1, 4.0)]);
        assert_eq!((lags.first(), lags.count()), (1, 2));
        lags.confirm(1, 0);
        assert_eq!((lags.first(), lags.count()), (1, 1));
    }

    #[test]
    fn without_skipping_there_is_one() {
        let mut lags = Lags::new(2);
        for t in 1..5 {
            let done: Result<bool, ()> = lags.prepare(|i, skipped, carries| {
                assert_eq!((i, skipped), (0, 0));
                carries[1] += 1.0;
                assert_eq!(carries[1], f64::from(t));
                Ok(())
            });
            done.unwrap();
            lags.commit(false);
        }
    }
}

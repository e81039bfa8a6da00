//! Pending skips: how far the device's count of steps may be behind the host's.
//!
//! A skipped step does not count for the rule, and only the device knows at once that it was skipped. The
//! host therefore sends several candidates for a step's scalars: for no skipped step among the unreported
//! ones, for one skipped step, and so on up to all of them. The device picks the candidate for its own count.
//! All candidates are computed in f64. A run with skipped steps thus equals, bit for bit, the run that never
//! saw them.

use crate::layout::Carry;
use crate::narrow::to_usize;

/// The possible counts of skipped steps.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    /// The least count: the reported number.
    first: u64,
    /// The number of possible counts.
    count: usize,
    groups: usize,
    /// The groups' carries for each possible count.
    carries: Vec<Carry>,
    next: Vec<Carry>,
}

impl Pending {
    pub(crate) fn new(groups: usize) -> Self {
        let (carries, next) = (vec![Carry::default(); groups], Vec::with_capacity(2 * groups));
        Self { first: 0, count: 1, groups, carries, next }
    }

    /// The least number of steps that may have been skipped.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The number of possible counts.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The groups' carries for `skipped` skipped steps, or for the nearest possible count.
    pub(crate) fn carries(&self, skipped: u64) -> &[Carry] {
        let candidate = skipped.saturating_sub(self.first).min(self.count as u64 - 1);
        let candidate = to_usize(candidate);
        &self.carries[candidate * self.groups..][..self.groups]
    }

    /// Restarts with `skipped` steps as the only possible count.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn restore(&mut self, skipped: u64, carries: &[Carry]) {
        (self.first, self.count) = (skipped, 1);
        self.carries.clear();
        self.carries.extend_from_slice(carries);
    }

    /// Restarts with other counts and carries.
    pub(crate) fn replace(&mut self, first: u64, count: usize, carries: Vec<Carry>) {
        (self.first, self.count, self.carries) = (first, count, carries);
    }

    /// Calls `write` for every possible count of skipped steps; it computes scalars from the groups' carries
    /// and advances these. Nothing changes before [`commit`](Self::commit).
    ///
    /// Returns `Ok(Some(group))` if a carry of this group depends on which steps were skipped, not only on
    /// their number: then no candidate is certain to be right.
    pub(crate) fn prepare<E>(
        &mut self,
        mut write: impl FnMut(usize, u64, &mut [Carry]) -> Result<(), E>,
    ) -> Result<Option<Uncertain>, E> {
        self.next.clear();
        self.next.extend_from_slice(&self.carries);
        let candidates = self.next.chunks_exact_mut(self.groups).enumerate();
        candidates.zip(self.first..).try_for_each(|((i, carries), skipped)| write(i, skipped, carries))?;
        // Two ways to the same count of taken steps: this step and one fewer before it, or all steps before
        // it.
        let paths = self.next[self.groups..].iter().zip(&self.carries[..self.carries.len() - self.groups]);
        let different = paths.enumerate().find(|(_, (one, other))| one != other);
        Ok(different
            .map(|(i, (one, other))| Uncertain { group: i % self.groups, age: one.taken != other.taken }))
    }

    /// Accepts the prepared step as recorded; it may be skipped itself if `skips`.
    pub(crate) fn commit(&mut self, skips: bool) {
        if skips {
            // One more skipped step than the largest count so far: its carries are those before the step.
            let last = self.carries.len() - self.groups;
            self.next.extend_from_slice(&self.carries[last..]);
            self.count += 1;
        }
        std::mem::swap(&mut self.carries, &mut self.next);
    }

    /// Takes a report: the device skipped `skipped` steps up to a step, and `since` steps were recorded after
    /// it.
    pub(crate) fn confirm(&mut self, skipped: u64, since: u64) {
        let count = self.count as u64;
        let passed = skipped.saturating_sub(self.first).min(count - 1);
        self.first += passed;
        self.count = to_usize((count - passed).min(since.saturating_add(1)));
        self.carries.drain(..to_usize(passed) * self.groups);
        self.carries.truncate(self.count * self.groups);
    }
}

/// A group with scalars that depend on which steps were skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uncertain {
    pub(crate) group: usize,
    /// True if the group's count of steps is uncertain, because it was frozen or thawed; false if the rule's
    /// carry is.
    pub(crate) age: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries that encode the number of taken steps.
    fn step(pending: &mut Pending) -> Vec<(u64, f64)> {
        let mut seen = Vec::new();
        let done: Result<Option<Uncertain>, ()> = pending.prepare(|_, skipped, carries| {
            carries[0].rule += 1.0;
            seen.push((skipped, carries[0].rule));
            Ok(())
        });
        assert_eq!(done, Ok(None));
        pending.commit(true);
        seen
    }

    #[test]
    fn what_depends_on_which_steps_were_skipped_is_found() {
        let mut pending = Pending::new(1);
        let mut certain = |factor: f64| {
            let done: Result<Option<Uncertain>, ()> = pending.prepare(|_, _, carries| {
                let carry = &mut carries[0].rule;
                *carry = if *carry == 0.0 { 1.0 } else { *carry } * factor;
                Ok(())
            });
            pending.commit(true);
            done.unwrap().is_none()
        };
        assert!(certain(0.5) && certain(0.5));
        assert!(!certain(0.25));
    }

    #[test]
    fn every_possible_count_has_its_carries() {
        let mut pending = Pending::new(1);
        assert_eq!(step(&mut pending), [(0, 1.0)]);
        assert_eq!(step(&mut pending), [(0, 2.0), (1, 1.0)]);
        assert_eq!(step(&mut pending), [(0, 3.0), (1, 2.0), (2, 1.0)]);
        // The first step was skipped; two have been recorded since.
        pending.confirm(1, 2);
        assert_eq!(step(&mut pending), [(1, 3.0), (2, 2.0), (3, 1.0)]);
        // No other count is possible.
        pending.confirm(1, 0);
        assert_eq!(step(&mut pending), [(1, 4.0)]);
        assert_eq!((pending.first(), pending.count()), (1, 2));
        pending.confirm(1, 0);
        assert_eq!((pending.first(), pending.count()), (1, 1));
    }

    #[test]
    fn without_skipping_there_is_one() {
        let mut pending = Pending::new(2);
        for t in 1..5 {
            let done: Result<Option<Uncertain>, ()> = pending.prepare(|i, skipped, carries| {
                assert_eq!((i, skipped), (0, 0));
                carries[1].rule += 1.0;
                assert_eq!(carries[1].rule, f64::from(t));
                Ok(())
            });
            done.unwrap();
            pending.commit(false);
        }
    }
}

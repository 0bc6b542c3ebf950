//! How long the latest batches took to become durable: enough of them for percentiles, in bounded memory.

use std::collections::VecDeque;
use std::time::Duration;

/// The batches that count: the latest ones.
const KEPT: usize = 1024;

/// The times of the latest batches, in 8 KiB.
///
/// Always: `sorted` holds what `latest` holds, in rising order.
#[derive(Debug, Clone, Default)]
pub(super) struct Timings {
    /// The oldest first.
    latest: VecDeque<u32>,
    sorted: Vec<u32>,
}

impl Timings {
    pub(super) fn add(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if self.latest.len() == KEPT
            && let Some(oldest) = self.latest.pop_front()
        {
            self.sorted.remove(self.place(oldest));
        }
        self.latest.push_back(micros);
        self.sorted.insert(self.place(micros), micros);
    }

    /// Where this time stands in `sorted`, or would.
    fn place(&self, micros: u32) -> usize {
        self.sorted.partition_point(|one| *one < micros)
    }

    /// The time that so many of a hundred batches did not exceed; `None` before the first batch. Cheap enough to ask
    /// for at any time.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1) - 1;
        let micros = self.sorted.get(rank)?;
        Some(Duration::from_micros(u64::from(*micros)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latest_batches() {
        let micros = |micros| Some(Duration::from_micros(micros));
        let mut timings = Timings::default();
        assert_eq!(timings.percentile(50), None);
        timings.add(Duration::from_micros(3));
        assert_eq!(timings.percentile(50), micros(3));
        assert_eq!(timings.percentile(99), micros(3));
        let mut timings = Timings::default();
        for micros in (1..=100).rev() {
            timings.add(Duration::from_micros(micros));
        }
        assert_eq!(timings.percentile(50), micros(50));
        assert_eq!(timings.percentile(99), micros(99));
        // In the order of their coming, the old ones no longer count.
        for nth in 1..=KEPT {
            timings.add(Duration::from_micros(1_000));
            let left = 100_usize.saturating_sub((nth + 100).saturating_sub(KEPT));
            let longest_of_the_old = timings.sorted.iter().filter(|one| **one <= 100).count();
            assert_eq!(longest_of_the_old, left, "after {nth}");
            assert_eq!(timings.sorted.len(), (100 + nth).min(KEPT));
        }
        assert_eq!(timings.percentile(1), micros(1_000));
        assert_eq!(timings.percentile(99), micros(1_000));
    }
}

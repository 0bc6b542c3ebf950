//! How long the latest batches took to become durable: enough of them for percentiles, in bounded memory.

use std::time::Duration;

/// The batches that count: the latest ones.
const KEPT: usize = 1024;

/// The times of the latest batches, in a ring of 4 KiB.
#[derive(Debug, Clone, Default)]
pub(super) struct Timings {
    micros: Vec<u32>,
    next: usize,
}

impl Timings {
    pub(super) fn add(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if self.micros.len() < KEPT {
            self.micros.push(micros);
        } else {
            self.micros[self.next] = micros;
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// The time that `percent` of a hundred batches did not exceed; `None` before the first batch.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted
            .get(rank - 1)
            .map(|micros| Duration::from_micros(u64::from(*micros)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latest_batches() {
        let mut timings = Timings::default();
        assert_eq!(timings.percentile(50), None);
        for micros in 1..=100 {
            timings.add(Duration::from_micros(micros));
        }
        assert_eq!(timings.percentile(50), Some(Duration::from_micros(50)));
        assert_eq!(timings.percentile(99), Some(Duration::from_micros(99)));
        for _ in 0..KEPT {
            timings.add(Duration::from_micros(7));
        }
        assert_eq!(
            timings.percentile(99),
            Some(Duration::from_micros(7)),
            "the old ones no longer count"
        );
    }
}

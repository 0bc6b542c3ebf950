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

    /// For each `percent`, in rising order, the time that so many of a hundred batches did not exceed; `None`
    /// before the first batch.
    ///
    /// Selects and does not sort: some thousand steps, and cheap enough to ask for at any time.
    pub(super) fn percentiles<const N: usize>(&self, percents: [usize; N]) -> [Option<Duration>; N] {
        let mut micros = self.micros.clone();
        let mut found = [None; N];
        // What is below a rank that was selected is behind us: the next one is searched in the rest.
        let mut below = 0;
        for (found, percent) in found.iter_mut().zip(percents) {
            let rank = (micros.len() * percent).div_ceil(100).max(1) - 1;
            if rank >= micros.len() || rank < below {
                continue;
            }
            let (_, nth, _) = micros[below..].select_nth_unstable(rank - below);
            *found = Some(Duration::from_micros(u64::from(*nth)));
            below = rank;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_latest_batches() {
        let micros = |micros| Some(Duration::from_micros(micros));
        let mut timings = Timings::default();
        assert_eq!(timings.percentiles([50, 99]), [None, None]);
        timings.add(Duration::from_micros(3));
        assert_eq!(timings.percentiles([50, 99]), [micros(3), micros(3)]);
        let mut timings = Timings::default();
        for micros in (1..=100).rev() {
            timings.add(Duration::from_micros(micros));
        }
        assert_eq!(timings.percentiles([50, 99]), [micros(50), micros(99)]);
        for _ in 0..KEPT {
            timings.add(Duration::from_micros(7));
        }
        assert_eq!(
            timings.percentiles([99]),
            [micros(7)],
            "the old ones no longer count"
        );
    }
}

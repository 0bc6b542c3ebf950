//! How long to wait before a peer that could not be reached is tried again.
//!
//! Pure: the owner brings the failure and the random number, and keeps the time.
//!
//! Always: the first delay is at most `first`, each failure at most doubles it, none exceeds `max`; the
//! jitter takes away up to half, so that nodes that lost each other together do not come back in step.

use std::time::Duration;

/// The bounds of the delays between attempts to reach a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffSettings {
    /// The longest delay after the first failure. 20 ms by default: a restarted process is found at once.
    pub first: Duration,
    /// The longest delay after many failures. 1 s by default: below every election timeout, so that a peer
    /// that came back is heard before anyone calls an election.
    pub max: Duration,
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            max: Duration::from_secs(1),
        }
    }
}

/// Counts the failures in a row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure: how long to leave the peer alone. `random` is any u64.
    pub(crate) fn failed(&mut self, settings: &BackoffSettings, random: u64) -> Duration {
        let doubled = settings.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let longest = doubled.min(settings.max);
        let half = longest / 2;
        half + within(half, random)
    }

    /// The peer was reached: the next failure is a first one.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// A duration from zero to `span`, both included, chosen by a random number.
pub(crate) fn within(span: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    match nanos.checked_add(1) {
        Some(choices) => Duration::from_nanos(random % choices),
        None => Duration::from_nanos(random),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_delay_lies_between_half_its_bound_and_its_bound(randoms in prop::collection::vec(any::<u64>(), 1..40)) {
            let settings = BackoffSettings::default();
            let mut backoff = Backoff::default();
            let mut bound = settings.first;
            for random in randoms {
                let delay = backoff.failed(&settings, random);
                prop_assert!(delay >= bound / 2 && delay <= bound, "{delay:?} for the bound {bound:?}");
                bound = (bound * 2).min(settings.max);
            }
        }
    }

    #[test]
    fn success_starts_again_at_the_first_delay() {
        let settings = BackoffSettings::default();
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            backoff.failed(&settings, u64::MAX);
        }
        backoff.succeeded();
        assert!(backoff.failed(&settings, u64::MAX) <= settings.first);
    }
}

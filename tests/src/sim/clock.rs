//! A host's clocks: they run fast or slow, and the wall clock is off besides.

use std::time::Duration;

use quorate_kv::env::Instant;
use quorate_kv::model::LogTime;

/// Where every monotonic clock begins, so that "now less a lease" is a moment too: a day after its zero.
const START: u64 = 24 * 60 * 60 * 1_000_000_000;

/// Where every wall clock begins: 2026-01-01.
const WALL_START_MILLIS: u64 = 1_767_225_600_000;

/// A host's clocks, as functions of the simulation's time.
#[derive(Debug, Clone)]
pub(super) struct HostClock {
    /// Since when it runs at this rate: the simulation's nanoseconds, and its own then.
    anchor: (u64, u64),
    /// Its nanoseconds in a million of the simulation's.
    parts_per_million: u64,
    /// What its wall clock shows beyond its monotonic one, in milliseconds.
    wall_offset_millis: i64,
}

impl Default for HostClock {
    fn default() -> Self {
        HostClock {
            anchor: (0, START),
            parts_per_million: 1_000_000,
            wall_offset_millis: 0,
        }
    }
}

impl HostClock {
    pub(super) fn monotonic(&self, now: u64) -> Instant {
        let (since, own) = self.anchor;
        let passed = u128::from(now - since) * u128::from(self.parts_per_million) / 1_000_000;
        Instant::from_nanos(own.saturating_add(passed as u64))
    }

    /// When, on the simulation's clock, this one reaches a moment; never before it does.
    pub(super) fn when(&self, moment: Instant) -> u64 {
        let (since, own) = self.anchor;
        let ahead = moment.as_nanos().saturating_sub(own);
        let ahead = (u128::from(ahead) * 1_000_000).div_ceil(u128::from(self.parts_per_million));
        since.saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }

    /// How long this clock must run from `now` on until so much of the simulation's time has passed for certain.
    pub(super) fn lasting(&self, now: u64, time: Duration) -> Duration {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let end = self.monotonic(now.saturating_add(time));
        // Several moments of the simulation may be one of this clock's.
        end.since(self.monotonic(now)) + Duration::from_nanos(1)
    }

    pub(super) fn wall(&self, now: u64) -> LogTime {
        let shown = WALL_START_MILLIS + (self.monotonic(now).as_nanos() - START) / 1_000_000;
        LogTime::from_millis(shown.saturating_add_signed(self.wall_offset_millis))
    }

    pub(super) fn set_rate(&mut self, now: u64, parts_per_million: u64) {
        assert!(
            parts_per_million > 0,
            "a clock that stands still never wakes anyone"
        );
        self.anchor = (now, self.monotonic(now).as_nanos());
        self.parts_per_million = parts_per_million;
    }

    pub(super) fn shift_wall(&mut self, by: Duration, back: bool) {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.wall_offset_millis += if back { -millis } else { millis };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_reached_early_at_any_rate() {
        for rate in [900_000, 999_999, 1_000_000, 1_000_001, 1_100_000] {
            let mut clock = HostClock::default();
            clock.set_rate(12_345, rate);
            for ahead in [0, 1, 7, 999, 1_000_003, 86_400_000_000_007] {
                let deadline = clock.monotonic(12_345) + Duration::from_nanos(ahead);
                let when = clock.when(deadline);
                assert!(clock.monotonic(when) >= deadline, "rate {rate}, {ahead} ns ahead");
                assert!(
                    when == 12_345 || clock.monotonic(when - 1) < deadline,
                    "rate {rate}, {ahead} ns ahead"
                );
            }
        }
    }

    /// The story: a disk's time passed by the clock of its host. Where that ran fast, a sync was told done before it was,
    /// and a loss of power in between took what had been told durable.
    #[test]
    fn what_takes_the_simulations_time_is_never_over_early_by_a_hosts_clock() {
        for rate in [900_000, 999_999, 1_000_000, 1_000_001, 1_100_000] {
            let mut clock = HostClock::default();
            clock.set_rate(12_345, rate);
            for time in [1, 7, 999, 1_000_003, 86_400_000_000_007] {
                let now = 54_321;
                let lasting = clock.lasting(now, Duration::from_nanos(time));
                let over = clock.when(clock.monotonic(now) + lasting);
                assert!(over >= now + time, "rate {rate}, {time} ns: over at {over}");
                assert!(over <= now + time + 3, "rate {rate}, {time} ns: over at {over}");
            }
        }
    }

    #[test]
    fn a_change_of_rate_does_not_move_the_clock() {
        let mut clock = HostClock::default();
        let before = clock.monotonic(5_000_000);
        clock.set_rate(5_000_000, 1_100_000);
        assert_eq!(clock.monotonic(5_000_000), before);
        assert_eq!(
            clock.monotonic(6_000_000).since(before),
            Duration::from_nanos(1_100_000)
        );
    }
}

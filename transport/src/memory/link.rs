//! One direction between two places: when a message that is sent now arrives.
//!
//! Pure: time and random numbers are handed in.
//!
//! Always: a more urgent class never waits for a less urgent one; what a closed link holds back is
//! delivered after it opened again, unless the connection broke first.

use std::time::Duration;

use crate::Class;
use crate::backoff::within;

/// How one direction of a link behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSettings {
    /// The shortest time that a message travels.
    pub latency_min: Duration,
    /// The longest, without losses; each message draws its own between the two.
    pub latency_max: Duration,
    /// How many of a million messages are lost. Streams are reliable: a lost message comes late, and all
    /// that follow it in its stream with it.
    pub loss_per_million: u32,
    /// How much later a lost message arrives, for each time that it is lost.
    pub retransmission: Duration,
    /// The bandwidth; `None` for no limit. Shared by the classes in the order of their urgency.
    pub bytes_per_second: Option<u64>,
}

impl Default for LinkSettings {
    /// No delay, no loss, no limit.
    fn default() -> Self {
        Self {
            latency_min: Duration::ZERO,
            latency_max: Duration::ZERO,
            loss_per_million: 0,
            retransmission: Duration::from_millis(50),
            bytes_per_second: None,
        }
    }
}

impl LinkSettings {
    /// A link with a latency between two bounds, without loss.
    pub fn latency(min: Duration, max: Duration) -> Self {
        Self {
            latency_min: min,
            latency_max: max,
            ..Self::default()
        }
    }
}

/// Whether messages get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// They do.
    Open,
    /// None does since `held`; connections break when the cut has lasted for the idle timeout.
    Cut { held: Duration, since: Duration },
    /// None does since `held`, but connections live on.
    Paused { held: Duration },
}

/// One direction between two places.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) settings: LinkSettings,
    pub(super) passage: Passage,
    /// By class: when all traffic at least as urgent that was sent so far is through.
    busy_until: [Duration; 4],
}

impl Link {
    pub(super) fn new(settings: LinkSettings) -> Self {
        Self {
            settings,
            passage: Passage::Open,
            busy_until: [Duration::ZERO; 4],
        }
    }

    /// Since when nothing gets through.
    pub(super) fn held(&self) -> Option<Duration> {
        match self.passage {
            Passage::Open => None,
            Passage::Cut { held, .. } | Passage::Paused { held } => Some(held),
        }
    }

    /// Up to which moment arrivals are visible now.
    pub(super) fn horizon(&self, now: Duration) -> Duration {
        self.held().map_or(now, |held| held.min(now))
    }

    /// When a connection that uses this link breaks, if the link stays as it is.
    pub(super) fn breaks_at(&self, idle_timeout: Duration) -> Option<Duration> {
        match self.passage {
            Passage::Cut { since, .. } => Some(since + idle_timeout),
            Passage::Open | Passage::Paused { .. } => None,
        }
    }

    /// The time that a message without weight travels.
    pub(super) fn latency(&self, random: &mut dyn FnMut() -> u64) -> Duration {
        let LinkSettings {
            latency_min: min,
            latency_max: max,
            ..
        } = self.settings;
        match max.checked_sub(min) {
            Some(span) if !span.is_zero() => min + within(span, random()),
            _ => min,
        }
    }

    /// Whether the next datagram is lost.
    pub(super) fn loses(&self, random: &mut dyn FnMut() -> u64) -> bool {
        let loss = u64::from(self.settings.loss_per_million);
        loss > 0 && random() % 1_000_000 < loss
    }

    /// When a word without weight that is sent `now` arrives, if the link stays as it is.
    pub(super) fn word(&self, now: Duration, random: &mut dyn FnMut() -> u64) -> Duration {
        self.after_the_close(now + self.latency(random))
    }

    /// What is sent over a closed link comes after the close, even where no time passes under way.
    fn after_the_close(&self, arrival: Duration) -> Duration {
        match self.held() {
            Some(held) => arrival.max(held + Duration::from_nanos(1)),
            None => arrival,
        }
    }

    /// When a message of `size` bytes that is sent `now` arrives, if the link stays open.
    pub(super) fn arrival(
        &mut self,
        class: Class,
        size: usize,
        now: Duration,
        random: &mut dyn FnMut() -> u64,
    ) -> Duration {
        let mut arrival = self.through_at(class, size, now) + self.latency(random);
        // Sixteen losses in a row stand for a link that should have been cut instead.
        for _ in 0..16 {
            if !self.loses(random) {
                break;
            }
            arrival += self.settings.retransmission;
        }
        self.after_the_close(arrival)
    }

    /// When the last byte leaves, given all that at least as urgent messages have claimed already.
    fn through_at(&mut self, class: Class, size: usize, now: Duration) -> Duration {
        let Some(rate) = self.settings.bytes_per_second else {
            return now;
        };
        let nanos = size as u128 * 1_000_000_000 / u128::from(rate.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let rank = class.rank();
        let start = self.busy_until[rank].max(now);
        self.busy_until[rank] = start + takes;
        for less_urgent in &mut self.busy_until[rank + 1..] {
            *less_urgent = start.max(*less_urgent) + takes;
        }
        start + takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_control_message_does_not_wait_for_bulk_and_bulk_waits_for_control() {
        let settings = LinkSettings {
            bytes_per_second: Some(1_000),
            ..LinkSettings::default()
        };
        let mut link = Link::new(settings);
        let mut random = || 0;
        assert_eq!(link.arrival(Class::Bulk, 1_000, at(0), &mut random), at(1_000));
        assert_eq!(link.arrival(Class::Control, 10, at(0), &mut random), at(10));
        assert_eq!(link.arrival(Class::Control, 10, at(0), &mut random), at(20));
        assert_eq!(link.arrival(Class::Bulk, 1_000, at(0), &mut random), at(2_020));
    }

    #[test]
    fn a_lost_message_comes_late() {
        let settings = LinkSettings {
            loss_per_million: 500_000,
            ..LinkSettings::latency(at(1), at(1))
        };
        let mut link = Link::new(settings);
        let mut draws = [0, 0, 999_999].into_iter();
        let mut random = || draws.next().unwrap();
        assert_eq!(link.arrival(Class::Append, 1, at(0), &mut random), at(101));
    }

    #[test]
    fn a_cut_link_shows_what_arrived_before_the_cut() {
        let mut link = Link::new(LinkSettings::default());
        link.passage = Passage::Cut {
            held: at(5),
            since: at(5),
        };
        assert_eq!(link.horizon(at(3)), at(3));
        assert_eq!(link.horizon(at(9)), at(5));
        assert_eq!(link.breaks_at(at(100)), Some(at(105)));
        let sent_at_the_moment_of_the_cut = link.arrival(Class::Control, 1, at(5), &mut || 0);
        assert!(sent_at_the_moment_of_the_cut > link.horizon(at(9)));
    }
}

//! Raft's timing: four profiles, each a promise, and the rules that a configuration must keep.
//!
//! The promise is the time without a leader: how long after the leader's last sign of life another one serves. openraft's
//! settings follow from it. openraft lets nobody stand for election before a lease, which is its `election_timeout_max`
//! (E2 below), has passed since the last heartbeat, and then adds a random time between its two timeouts (E1 and E2):
//!
//! ```text
//! last heartbeat       lease ends      the first may stand     all have stood          another one serves
//! |--------------------|---------------|.......................|-----------------------|
//! 0                    E2              E1 + E2                 2 E2
//!                                      = failover_min                                 <= failover_max
//! ```
//!
//! What is left after 2 E2 is for a tick, the question whether a vote would be won, the votes and their syncs, and the new
//! leader's first entry; and for a second try where two stood at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Heartbeats, and the promise that is made of them. Checked when a node is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How often a leader makes itself heard. At least 5 ms.
    pub heartbeat: Duration,
    /// For so long after a leader's last sign of life nobody stands for election: at least five heartbeats, so that a
    /// few late ones cost none. (The end of its process is more than silence, and is not waited out.)
    pub failover_min: Duration,
    /// After so long another one serves: at least two heartbeats above [`failover_min`](Self::failover_min).
    pub failover_max: Duration,
}

/// A starting point for [`Timing`]; the node measures and warns where it does not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Heartbeats of 200 ms; another leader within 2 to 4 s. For a laptop and tests.
    #[default]
    Development,
    /// 400 ms; 4 to 6 s. For load that was not measured.
    Production,
    /// 150 ms; 1.5 to 3 s. For one datacentre.
    LowLatency,
    /// 800 ms; 8 to 12 s. Across regions. The transport's connections must live longer than they do by default: see
    /// [`Timing::idle_timeout_min`].
    HighLatency,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Profile; 4] = [
        Profile::Development,
        Profile::Production,
        Profile::LowLatency,
        Profile::HighLatency,
    ];

    /// Its name, as in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Development => "development",
            Profile::Production => "production",
            Profile::LowLatency => "low-latency",
            Profile::HighLatency => "high-latency",
        }
    }

    /// Its times.
    pub fn timing(self) -> Timing {
        let (heartbeat, min, max) = match self {
            Profile::Development => (200, 2_000, 4_000),
            Profile::Production => (400, 4_000, 6_000),
            Profile::LowLatency => (150, 1_500, 3_000),
            Profile::HighLatency => (800, 8_000, 12_000),
        };
        Timing {
            heartbeat: Duration::from_millis(heartbeat),
            failover_min: Duration::from_millis(min),
            failover_max: Duration::from_millis(max),
        }
    }
}

impl From<Profile> for Timing {
    fn from(profile: Profile) -> Timing {
        profile.timing()
    }
}

/// Times that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTiming {
    /// A lost heartbeat or two would cost an election.
    #[error(
        "failover_min is {min:?}, which is less than 5 heartbeats of {heartbeat:?}: a few late heartbeats would cost an \
         election; use at least {:?}, or heartbeats of at most {:?}", least_failover(*heartbeat), *min / 5
    )]
    TooFewHeartbeats {
        /// The heartbeat given.
        heartbeat: Duration,
        /// The least failover time given.
        min: Duration,
    },
    /// All followers would stand at once.
    #[error(
        "failover_max is {max:?}, which is less than two heartbeats of {heartbeat:?} above failover_min of {min:?}: \
         followers would stand for election at the same moment, and no time would be left to elect one; use at least \
         {:?}", least_failover_max(*heartbeat, *min)
    )]
    NoSpread {
        /// The heartbeat given.
        heartbeat: Duration,
        /// The least failover time given.
        min: Duration,
        /// The greatest failover time given.
        max: Duration,
    },
    /// Less than openraft's clock can tell.
    #[error("the heartbeat is {heartbeat:?}; the least is 5 ms")]
    TooFast {
        /// The heartbeat given.
        heartbeat: Duration,
    },
}

/// A few late heartbeats are no reason to stand for election.
fn least_failover(heartbeat: Duration) -> Duration {
    heartbeat.saturating_mul(5)
}

fn least_failover_max(heartbeat: Duration, min: Duration) -> Duration {
    min.saturating_add(heartbeat.saturating_mul(2))
}

impl Timing {
    /// How long the transport's connections must live without a sign of the peer, at least: a leader that hears nobody
    /// leads on for its lease, and then tells the others, who may hear it, that they need not wait for it. Over a
    /// connection that was given up before it cannot tell them, and they wait for a second lease.
    pub fn idle_timeout_min(&self) -> Duration {
        self.lease() + 2 * self.heartbeat
    }

    /// Checks the rules: `failover_min >= 5 × heartbeat` and `failover_max >= failover_min + 2 × heartbeat`.
    pub fn check(&self) -> Result<(), InvalidTiming> {
        let Timing {
            heartbeat,
            failover_min: min,
            failover_max: max,
        } = *self;
        if heartbeat < Duration::from_millis(5) {
            return Err(InvalidTiming::TooFast { heartbeat });
        }
        if min < least_failover(heartbeat) {
            return Err(InvalidTiming::TooFewHeartbeats { heartbeat, min });
        }
        if max < least_failover_max(heartbeat, min) {
            return Err(InvalidTiming::NoSpread { heartbeat, min, max });
        }
        Ok(())
    }

    /// How long a leader may go without a word of its quorum, and a follower grants no vote after a heartbeat: E2, which is
    /// also the longest that a follower waits after it before it stands.
    pub(crate) fn lease(&self) -> Duration {
        self.failover_min / 2 + self.jitter()
    }

    /// How long a heartbeat's answer is waited for, which need not come before the next heartbeat leaves: half a lease, so
    /// that a leader whose followers answer in time keeps its quorum. openraft wants it below E1, and looks at its timers each
    /// 13/64 of it: that is to be no more than a quarter of the time that is left for an election.
    pub(crate) fn answer_patience(&self) -> Duration {
        let below_e1 = self
            .election_timeout_min()
            .saturating_sub(Duration::from_millis(1));
        let left = self.failover_max.saturating_sub(self.lease() * 2);
        let of_ticks = left.saturating_mul(16) / 13;
        (self.lease() / 2).min(below_e1).min(of_ticks)
    }

    /// The shortest time that a follower waits after the lease before it stands: E1. Votes are asked for so long.
    pub(crate) fn election_timeout_min(&self) -> Duration {
        self.failover_min / 2 - self.jitter()
    }

    /// Two fifths of what lies between the bounds are for followers to stand apart from each other; no more than that
    /// which leaves a good part of the time to both the lease and the wait after it.
    fn jitter(&self) -> Duration {
        let spread = self.failover_max.saturating_sub(self.failover_min);
        (spread / 5).min(self.failover_min / 4)
    }

    /// What measured times say against this configuration: one sentence with the figures, if any.
    ///
    /// A heartbeat's round trip and a vote's sync must fit into the time without an election several times over, or
    /// elections follow from nothing but load.
    pub fn warning(&self, round_trip: Duration, sync_p99: Duration) -> Option<String> {
        let cost = round_trip.saturating_add(sync_p99);
        let fits = |timing: &Timing| {
            cost.saturating_mul(10) <= timing.failover_min && round_trip <= timing.heartbeat
        };
        if fits(self) {
            return None;
        }
        let better = Profile::ALL.into_iter().find(|p| fits(&p.timing()));
        let advice = better.map_or(
            "no profile fits; look at the disk and the network".to_owned(),
            |p| format!("the profile {} would fit", p.name()),
        );
        Some(format!(
            "the measured round trip ({round_trip:?}) and sync ({sync_p99:?} at p99) are too slow for \
             failover_min {:?} with heartbeat {:?}: {advice}",
            self.failover_min, self.heartbeat
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(heartbeat: u64, min: u64, max: u64) -> Timing {
        let ms = Duration::from_millis;
        Timing {
            heartbeat: ms(heartbeat),
            failover_min: ms(min),
            failover_max: ms(max),
        }
    }

    #[test]
    fn a_heartbeat_of_ages_is_refused_in_words() {
        let timing = Timing {
            heartbeat: Duration::MAX,
            ..timing(50, 500, 1_000)
        };
        let refused = timing.check().expect_err("no promise is that long");
        assert!(
            matches!(refused, InvalidTiming::TooFewHeartbeats { .. }),
            "{refused}"
        );
    }

    #[test]
    fn every_profile_keeps_its_own_rules() {
        for profile in Profile::ALL {
            assert_eq!(profile.timing().check(), Ok(()), "{}", profile.name());
        }
    }

    /// The story: openraft's election timeouts were set to what was promised, and lease and timeout added up to twice that.
    #[test]
    fn the_waits_of_openraft_add_up_to_the_promise() {
        let profiles = Profile::ALL.map(Profile::timing);
        // A spread wider than all that comes before it, and the narrowest.
        for timing in profiles.into_iter().chain([
            timing(200, 2_000, 60_000),
            timing(200, 1_000, 1_400),
            timing(200, 10_000, 10_400),
            timing(5, 60_000, 60_010),
        ]) {
            assert_eq!(timing.check(), Ok(()));
            let (shortest, lease) = (timing.election_timeout_min(), timing.lease());
            assert_eq!(
                shortest + lease,
                timing.failover_min,
                "{timing:?}: nobody stands before"
            );
            assert!(shortest > timing.heartbeat && shortest < lease, "{timing:?}");
            let patience = timing.answer_patience();
            assert!(
                patience > timing.heartbeat,
                "{timing:?}: answers have {patience:?}"
            );
            assert!(
                patience < shortest && patience <= lease / 2,
                "{timing:?}: {patience:?}"
            );
            let left = timing.failover_max - lease * 2;
            let tick = patience * 13 / 64;
            assert!(
                tick <= left / 4,
                "{timing:?}: a tick of {tick:?}, with {left:?} left"
            );
            assert!(
                left >= timing.heartbeat,
                "{timing:?}: {left:?} are left to elect one"
            );
        }
        let development = Profile::Development.timing();
        let ms = Duration::from_millis;
        assert_eq!(
            (development.election_timeout_min(), development.lease()),
            (ms(600), ms(1_400))
        );
    }

    #[test]
    fn inconsistent_times_are_refused_with_the_values() {
        let message = |t: Timing| t.check().map_err(|e| e.to_string()).unwrap_err();
        let few = message(timing(200, 999, 3000));
        assert!(
            few.contains("999ms") && few.contains("at least 1s") && few.contains("at most 199.8ms"),
            "{few}"
        );
        let narrow = message(timing(200, 2000, 2399));
        assert!(
            narrow.contains("2.399s") && narrow.contains("at least 2.4s"),
            "{narrow}"
        );
        assert!(message(timing(1, 2000, 4000)).contains("5 ms"));
    }

    #[test]
    fn a_slow_link_gets_a_warning_that_names_a_profile_that_fits() {
        let low = Profile::LowLatency.timing();
        assert_eq!(
            low.warning(Duration::from_millis(1), Duration::from_millis(2)),
            None
        );
        let warning = low
            .warning(Duration::from_millis(200), Duration::from_millis(10))
            .unwrap();
        assert!(
            warning.contains("200ms") && warning.contains("production"),
            "{warning}"
        );
    }
}

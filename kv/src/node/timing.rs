//! Raft's timing: four profiles, and the rules that a configuration must keep.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Heartbeats and election timeouts. Checked when a node is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How often a leader makes itself heard.
    pub heartbeat: Duration,
    /// A follower that hears nothing for a random time between this
    pub election_timeout_min: Duration,
    /// and this stands for election.
    pub election_timeout_max: Duration,
}

/// A starting point for [`Timing`]; the node measures and warns where it does not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// 200 ms; 2 to 4 s. For a laptop and tests.
    #[default]
    Development,
    /// 400 ms; 4 to 6 s. For load that was not measured.
    Production,
    /// 150 ms; 1.5 to 3 s. For one datacentre.
    LowLatency,
    /// 800 ms; 8 to 12 s. Across regions.
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
            election_timeout_min: Duration::from_millis(min),
            election_timeout_max: Duration::from_millis(max),
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
        "election_timeout_min is {min:?}, which is less than 5 heartbeats of {heartbeat:?}: a few late heartbeats \
         would cost an election; use at least {:?}", least_election_timeout(*heartbeat)
    )]
    TooFewHeartbeats {
        /// The heartbeat given.
        heartbeat: Duration,
        /// The least election timeout given.
        min: Duration,
    },
    /// All followers would stand at once.
    #[error(
        "election_timeout_max is {max:?}, which is not above election_timeout_min of {min:?}: followers would stand \
         for election at the same moment"
    )]
    NoSpread {
        /// The least election timeout given.
        min: Duration,
        /// The greatest election timeout given.
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
fn least_election_timeout(heartbeat: Duration) -> Duration {
    heartbeat.saturating_mul(5)
}

impl Timing {
    /// Checks the rules: `election_timeout_min >= 5 × heartbeat` and `max > min`.
    pub fn check(&self) -> Result<(), InvalidTiming> {
        let Timing {
            heartbeat,
            election_timeout_min: min,
            election_timeout_max: max,
        } = *self;
        if heartbeat < Duration::from_millis(5) {
            return Err(InvalidTiming::TooFast { heartbeat });
        }
        if min < least_election_timeout(heartbeat) {
            return Err(InvalidTiming::TooFewHeartbeats { heartbeat, min });
        }
        if max <= min {
            return Err(InvalidTiming::NoSpread { min, max });
        }
        Ok(())
    }

    /// What measured times say against this configuration: one sentence with the figures, if any.
    ///
    /// A heartbeat's round trip and a vote's sync must fit into the election timeout several times over, or
    /// elections follow from nothing but load.
    pub fn warning(&self, round_trip: Duration, sync_p99: Duration) -> Option<String> {
        let cost = round_trip.saturating_add(sync_p99);
        let fits = |timing: &Timing| {
            cost.saturating_mul(10) <= timing.election_timeout_min && round_trip <= timing.heartbeat
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
             election_timeout_min {:?} with heartbeat {:?}: {advice}",
            self.election_timeout_min, self.heartbeat
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
            election_timeout_min: ms(min),
            election_timeout_max: ms(max),
        }
    }

    #[test]
    fn a_heartbeat_of_ages_is_refused_in_words() {
        let timing = Timing {
            heartbeat: Duration::MAX,
            ..timing(50, 500, 1_000)
        };
        let refused = timing.check().expect_err("no election timeout is that long");
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

    #[test]
    fn inconsistent_times_are_refused_with_the_values() {
        let message = |t: Timing| t.check().map_err(|e| e.to_string()).unwrap_err();
        assert!(
            message(timing(200, 999, 3000)).contains("999ms")
                && message(timing(200, 999, 3000)).contains("1s")
        );
        assert!(message(timing(200, 2000, 2000)).contains("not above"));
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

//! A node's settings: plain data, checked once when the node is built.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::memory::MemoryParts;
use super::timing::{InvalidTiming, Profile, Timing};
use crate::log::LogSettings;
use crate::machine::{MachineSettings, Tuning};
use crate::model::{Limit, Limits, ReplicatedLimits};
use crate::raft::ApplyBounds;

/// All settings of a node, with defaults that are safe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Heartbeats and the promised failover time; the development profile by default.
    pub timing: Timing,
    /// Limits of keys, values and transactions; the same on every node.
    pub limits: Limits,
    /// Entries after which the log may be purged behind a durable state: 1 or more; 50,000 by default. A
    /// follower further behind than this and [`log_entries_kept`](Self::log_entries_kept) gets a snapshot.
    pub snapshot_entries: u64,
    /// Entries that stay in the log behind that point for followers to catch up from; 100,000 by default, and
    /// fewer where [`log_bytes_kept`](Self::log_bytes_kept) allows no more.
    pub log_entries_kept: u64,
    /// The disk that the node's files may take, in bytes: 1 GiB to 1 PiB, or 0 for what the disk has, which is the default. From
    /// 95 % on, by this or by what is free, a leader refuses what may write, until less than 80 % is used; from 75 % on the
    /// state file shrinks where it is twice as long as what it holds.
    pub disk_bytes_max: u64,
    /// The disk that the log may take, in bytes of whole segments: two segments at least; 1 GiB by default, or an eighth of
    /// [`disk_bytes_max`](Self::disk_bytes_max) where that is less. More is purged each time the state was made durable, so that
    /// half as much comes on top, and what is written in a tenth of a second.
    pub log_bytes_kept: Option<u64>,
    /// The memory that the node may take, in bytes: 256 MiB by default, 1 TiB at most. [`memory`](Self::memory) says how it is
    /// parted; each part that has a setting of its own, below, is a share of it where that is not given.
    pub memory_bytes: u64,
    /// Memory for recent entries, in bytes; a share of [`memory_bytes`](Self::memory_bytes) by default.
    pub log_cache_bytes: Option<u64>,
    /// The full size of a log segment in bytes; 64 MiB by default. Two segments at least stand on disk. A new log's first has a
    /// 512th part of it, and each later one is twice as long as the one before.
    pub log_segment_bytes: u64,
    /// Memory for what was read of the state file, in bytes; a share of [`memory_bytes`](Self::memory_bytes) by default. An eighth
    /// holds records, so that gets of them wait for no thread; the rest holds pages.
    pub state_cache_bytes: Option<u64>,
    /// How much may be applied, in bytes of memory, until the next checkpoint begins: 4 KiB to 1 TiB; a share of
    /// [`memory_bytes`](Self::memory_bytes) by default. It takes up to 2.5 times as much; the smaller it is, the oftener the same
    /// pages of the state file are written.
    pub state_layer_bytes: Option<u64>,
    /// The state file is made durable at the latest after this long; 5 s by default. The log holds the rest:
    /// this bounds the replay after a crash, not what may be lost, which is nothing.
    pub durable_interval: Duration,
    /// How long the scrubber takes to read the whole state file and all log segments but the newest from the disk, and to
    /// compare them with what was written: 0 for never, or 1 s to 365 days; 1 day by default. What has rotted there ends the
    /// node's part. It costs the disk's reads, evenly over this time, at most 25 MiB a second and half of the disk's time: more than
    /// that takes longer.
    pub scrub_interval: Duration,
    /// How often the node compares the hash of its state with the others': 100 ms to 1 day; 10 s by default. A node whose state
    /// differs from that of most voters leaves service.
    pub compare_interval: Duration,
    /// The state file is copied into a smaller one by itself where it is longer than so many times what its keys and values count,
    /// history included (each key twice, and 64 bytes more for each version), and by 64 MiB at least: 2 to 100, or 0 for never; 3
    /// by default. It takes the disk's room for a second file meanwhile.
    pub shrink_at: u32,
    /// How many entries a learner may be behind to get a vote: any number; 1,000 by default. It catches up while others
    /// are voted on, so that a large one makes the cluster lean on a node that is not there yet.
    pub promote_lag_max: u64,
    /// Proposals that may be on their way at once: 1 to 1,024; 4 by default. What waits longer shares an
    /// entry, so a small number makes large batches under load and costs a lone client nothing.
    pub proposals_in_flight: usize,
    /// Memory for commands that wait to be proposed, in bytes: 1 MiB to 4 GiB; a share of [`memory_bytes`](Self::memory_bytes) by
    /// default. Who finds it full waits, up to 10 s, and is then told that nothing was proposed.
    pub proposals_bytes_max: Option<u64>,
    /// Memory for the calls of clients, in bytes, from when they are read until their answers have left, the answers of
    /// writes included: 64 KiB to 4 GiB; a share of [`memory_bytes`](Self::memory_bytes) by default. One client has half of it
    /// at most, and one of its streams a quarter of that. Of a stream that finds no room nothing more is read until there is some.
    pub calls_bytes_max: Option<u64>,
    /// Memory for answers to reads, in bytes, until they have left, those above 64 KiB until their clients have acknowledged
    /// all of them: 64 KiB to 4 GiB; a share of [`memory_bytes`](Self::memory_bytes) by default, a quarter of it for reads of a few
    /// keys alone. Parted as the calls' is. A read that finds no room waits.
    pub answers_bytes_max: Option<u64>,
    /// The longest that a read may take, whatever its caller's patience: the wait for the state that it asks for, and all
    /// slices of a long one together; 10 ms to 1 hour; 60 s by default. A read under way keeps memory.
    pub read_time_max: Duration,
    /// For how long history is kept: a leader gives up by itself what is older; 1 s to 365 days, or 0 for ever; 10 minutes by
    /// default. A read at a revision before that is refused with the oldest that there is. Like all that follow it belongs to
    /// the replicated state: what the first leader of a new cluster was given counts, on every node, until it is changed by
    /// [`Client::set_limits`](crate::client::Client::set_limits).
    pub history_kept: Duration,
    /// So many of the newest revisions are kept all the same, however old they are; 10,000 by default.
    pub history_revisions_kept: u64,
    /// The most bytes that keys and values may have, history included, where each version of a key counts its key twice, its
    /// value and 64 bytes: 4 KiB to 1 PiB, or 0 for no limit; 8 GiB by default. At 95 % of it what would grow is refused, until
    /// less than 80 % is used.
    pub store_bytes_max: u64,
    /// How long a client's session outlives its last write, by the log's time: 1 s to 30 days; 1 hour by default. Who
    /// asks for longer gets this.
    pub session_ttl: Duration,
    /// The most sessions of the cluster at once: 1 to 1,000,000; 10,000 by default.
    pub sessions_max: u64,
    /// How long a session must not have written to make room for another when there are as many as may be: 1 s to
    /// 30 days; 1 minute by default. With more than [`session_ttl`](Self::session_ttl) none makes room before it expires. A
    /// client whose session made room and that then sends a write again does not hear its outcome, so it must be longer than clients wait for an answer.
    pub session_idle: Duration,
    /// The most bytes that the answers of one session may have which its client has not said it has: 64 KiB to 1 GiB;
    /// 8 MiB by default. The disk holds up to so many for each session.
    pub unanswered_bytes_max: u64,
    /// The most bytes that the reads of one transaction return: 1 KiB to 16 MiB; 4 MiB by default.
    pub response_bytes_max: u64,
    /// The most keys that one transaction may look at: 1,000 to 16,777,216; 200,000 by default. See
    /// [`ReplicatedLimits`] for how they are counted. It bounds how long one transaction holds up all others.
    pub keys_looked_at_max: u64,
    /// The most keys that one transaction may change: 1,000 to 16,777,216; 131,072 by default.
    pub keys_changed_max: u64,
    /// How much is done at a time; for tests.
    #[doc(hidden)]
    #[serde(skip)]
    pub tuning: Tuning,
    /// Room for entries that wait to be applied; for tests.
    #[doc(hidden)]
    #[serde(skip)]
    pub apply_queue_bytes: Option<u64>,
    /// The limits that users do not set; for tests.
    #[doc(hidden)]
    #[serde(skip)]
    pub other_limits: ReplicatedLimits,
}

impl Default for Settings {
    fn default() -> Self {
        let limits = ReplicatedLimits::default();
        Self {
            timing: Profile::Development.timing(),
            limits: Limits::default(),
            snapshot_entries: 50_000,
            log_entries_kept: 100_000,
            disk_bytes_max: 0,
            log_bytes_kept: None,
            memory_bytes: super::memory::DEFAULT_BYTES,
            log_cache_bytes: None,
            log_segment_bytes: LogSettings::default().segment_bytes,
            state_cache_bytes: None,
            state_layer_bytes: None,
            durable_interval: Duration::from_secs(5),
            scrub_interval: Duration::from_secs(86_400),
            compare_interval: Duration::from_secs(10),
            shrink_at: 3,
            promote_lag_max: 1_000,
            proposals_in_flight: 4,
            proposals_bytes_max: None,
            calls_bytes_max: None,
            answers_bytes_max: None,
            read_time_max: Duration::from_secs(60),
            history_kept: Duration::from_millis(limits.history_kept_millis),
            history_revisions_kept: limits.history_revisions_kept,
            store_bytes_max: limits.store_bytes_max,
            session_ttl: Duration::from_millis(limits.session_ttl_millis_max),
            sessions_max: limits.sessions_max,
            session_idle: Duration::from_millis(limits.session_idle_millis),
            unanswered_bytes_max: limits.unanswered_bytes_max,
            response_bytes_max: limits.response_bytes_max,
            keys_looked_at_max: limits.keys_looked_at_max,
            keys_changed_max: limits.keys_changed_max,
            tuning: Tuning::default(),
            apply_queue_bytes: None,
            other_limits: limits,
        }
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// The times contradict each other.
    #[error(transparent)]
    Timing(#[from] InvalidTiming),
    /// A number is outside its range.
    #[error("{setting} is {value}; it must be {bounds}")]
    OutOfRange {
        /// The setting's name.
        setting: &'static str,
        /// The value given.
        value: u64,
        /// The range allowed.
        bounds: &'static str,
    },
    /// The parts that are given, and what the others need at least, are more than the budget.
    #[error(
        "memory_bytes is {memory_bytes}, and the parts of it need {least} at least: give it more, or the parts that are set \
         themselves less"
    )]
    TooLittleMemory {
        /// The budget.
        memory_bytes: u64,
        /// What it must be.
        least: u64,
    },
}

impl Settings {
    /// Checks every setting and tells all that are wrong.
    pub fn check(&self) -> Result<(), Vec<InvalidSettings>> {
        let mut wrong = Vec::new();
        if let Err(error) = self.timing.check() {
            wrong.push(error.into());
        }
        let mut range = |setting, value: u64, allowed: std::ops::RangeInclusive<u64>, bounds| {
            if !allowed.contains(&value) {
                wrong.push(InvalidSettings::OutOfRange {
                    setting,
                    value,
                    bounds,
                });
            }
        };
        range(
            "snapshot_entries",
            self.snapshot_entries,
            1..=u64::MAX,
            "at least 1",
        );
        range(
            "proposals_in_flight",
            self.proposals_in_flight as u64,
            1..=1024,
            "1 to 1,024",
        );
        const GIB: u64 = 1 << 30;
        for (setting, bytes, min, bounds) in [
            (
                "proposals_bytes_max",
                self.proposals_bytes_max,
                1 << 20,
                "1 MiB to 4 GiB",
            ),
            // Little room makes callers wait, and does no other harm.
            (
                "calls_bytes_max",
                self.calls_bytes_max,
                64 << 10,
                "64 KiB to 4 GiB",
            ),
            (
                "answers_bytes_max",
                self.answers_bytes_max,
                64 << 10,
                "64 KiB to 4 GiB",
            ),
        ] {
            if let Some(bytes) = bytes {
                range(setting, bytes, min..=4 * GIB, bounds);
            }
        }
        if self.shrink_at > 0 {
            range(
                "shrink_at",
                self.shrink_at.into(),
                2..=100,
                "0 for never, or 2 to 100",
            );
        }
        range(
            "compare_interval",
            millis(self.compare_interval),
            100..=86_400_000,
            "100 ms to 1 day",
        );
        range(
            "read_time_max",
            u64::try_from(self.read_time_max.as_millis()).unwrap_or(u64::MAX),
            10..=3_600_000,
            "10 ms to 1 hour",
        );
        if !self.scrub_interval.is_zero() {
            range(
                "scrub_interval",
                millis(self.scrub_interval),
                1_000..=365 * 86_400_000,
                "0 for never, or 1,000 ms to 365 days",
            );
        }
        // What the cluster may be told later it may be given at first, and nothing else.
        let of = |limit: Limit| limit.bounds().min..=limit.bounds().max;
        if !self.history_kept.is_zero() {
            range(
                "history_kept",
                millis(self.history_kept),
                of(Limit::HistoryKept),
                "0 for ever, or 1,000 ms to 365 days",
            );
        }
        if self.store_bytes_max > 0 {
            range(
                "store_bytes_max",
                self.store_bytes_max,
                of(Limit::StoreBytesMax),
                "0 for no limit, or 4 KiB to 1 PiB",
            );
        }
        range(
            "sessions_max",
            self.sessions_max,
            of(Limit::SessionsMax),
            "1 to 1,000,000",
        );
        range(
            "session_ttl",
            millis(self.session_ttl),
            of(Limit::SessionTtl),
            "1,000 ms to 30 days",
        );
        range(
            "session_idle",
            millis(self.session_idle),
            of(Limit::SessionIdle),
            "1,000 ms to 30 days",
        );
        range(
            "unanswered_bytes_max",
            self.unanswered_bytes_max,
            of(Limit::UnansweredBytesMax),
            "64 KiB to 1 GiB",
        );
        range(
            "response_bytes_max",
            self.response_bytes_max,
            of(Limit::ResponseBytesMax),
            "1 KiB to 16 MiB",
        );
        for (setting, value, limit) in [
            (
                "keys_looked_at_max",
                self.keys_looked_at_max,
                Limit::KeysLookedAtMax,
            ),
            ("keys_changed_max", self.keys_changed_max, Limit::KeysChangedMax),
        ] {
            range(setting, value, of(limit), "1,000 to 16,777,216");
        }
        range(
            "log_segment_bytes",
            self.log_segment_bytes,
            65_536..=1 << 30,
            "64 KiB to 1 GiB",
        );
        if self.disk_bytes_max > 0 {
            range(
                "disk_bytes_max",
                self.disk_bytes_max,
                1 << 30..=1 << 50,
                "0 for what the disk has, or 1 GiB to 1 PiB",
            );
        }
        range(
            "log_bytes_kept",
            self.log_bytes_kept(),
            self.log_segment_bytes.saturating_mul(2)..=u64::MAX,
            "at least two segments of log_segment_bytes",
        );
        range(
            "limits.key_bytes_max",
            self.limits.key_bytes_max as u64,
            1..=32_768,
            "1 to 32,768",
        );
        range(
            "limits.txn_ops_max",
            self.limits.txn_ops_max as u64,
            1..=1 << 24,
            "1 to 16,777,216",
        );
        range(
            "limits.txn_bytes_max",
            self.limits.txn_bytes_max as u64,
            1024..=24 << 20,
            "1 KiB to 24 MiB",
        );
        range(
            "limits.value_bytes_max",
            self.limits.value_bytes_max as u64,
            1..=self.limits.txn_bytes_max as u64,
            "at least 1 and at most limits.txn_bytes_max",
        );
        // What can be written must be able to be read, alone in its batch.
        let record_max = MachineSettings::default().record_bytes_max();
        range(
            "limits.value_bytes_max",
            self.limits.value_bytes_max as u64,
            0..=record_max.saturating_sub(self.limits.key_bytes_max as u64),
            "at most the 16 MiB that one batch of reads returns, less limits.key_bytes_max and 64 bytes",
        );
        if let Some(bytes) = self.state_layer_bytes {
            range("state_layer_bytes", bytes, 4_096..=1 << 40, "4 KiB to 1 TiB");
        }
        range("memory_bytes", self.memory_bytes, 0..=1 << 40, "1 TiB at most");
        if let Err(too_little) = MemoryParts::of(self) {
            wrong.push(too_little);
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// How [`memory_bytes`](Self::memory_bytes) is parted; an error where it is too little for the parts that are given.
    pub fn memory(&self) -> Result<MemoryParts, InvalidSettings> {
        MemoryParts::of(self)
    }

    /// The disk that the log may take, in bytes.
    pub fn log_bytes_kept(&self) -> u64 {
        /// Where nothing else is said.
        const USUAL: u64 = 1 << 30;
        self.log_bytes_kept.unwrap_or(match self.disk_bytes_max {
            0 => USUAL,
            max => USUAL.min(max / 8),
        })
    }

    /// What the replicated state is to say, where this node is the first leader.
    pub(crate) fn replicated(&self) -> ReplicatedLimits {
        ReplicatedLimits {
            sessions_max: self.sessions_max,
            session_ttl_millis_max: millis(self.session_ttl),
            session_idle_millis: millis(self.session_idle),
            unanswered_bytes_max: self.unanswered_bytes_max,
            response_bytes_max: self.response_bytes_max,
            keys_looked_at_max: self.keys_looked_at_max,
            keys_changed_max: self.keys_changed_max,
            history_kept_millis: millis(self.history_kept),
            history_revisions_kept: self.history_revisions_kept,
            store_bytes_max: self.store_bytes_max,
            ..self.other_limits
        }
    }

    pub(crate) fn raft(&self, memory: &MemoryParts) -> RaftSettings {
        RaftSettings {
            snapshot_entries: self.snapshot_entries,
            log_entries_kept: self.log_entries_kept,
            log_bytes_kept: self.log_bytes_kept(),
            apply: ApplyBounds {
                bytes: memory.state_layer(),
                queue_bytes: memory.apply_queue,
                ..ApplyBounds::default()
            },
            durable_interval: self.durable_interval,
            promote_lag_max: self.promote_lag_max,
            compare_interval: self.compare_interval,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The part of the settings that Raft's glue takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RaftSettings {
    pub snapshot_entries: u64,
    pub log_entries_kept: u64,
    pub log_bytes_kept: u64,
    pub apply: ApplyBounds,
    pub durable_interval: Duration,
    pub promote_lag_max: u64,
    pub compare_interval: Duration,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quorate_transport::memory::{MemoryNetwork, TokioClock};
    use quorate_transport::{ClusterId, Identity};

    use super::*;
    use crate::Node;
    use crate::model::{Key, Op, Txn};

    const MIB: usize = 1024 * 1024;

    fn with_values_of(bytes: usize) -> Settings {
        let mut settings = Settings::default();
        settings.limits.txn_bytes_max = 24 * MIB;
        settings.limits.value_bytes_max = bytes;
        settings
    }

    /// With the default keys: what a batch of reads returns, less a key and what a record counts for.
    const LARGEST: usize = 16 * MIB - 4096 - 64;

    /// Values of up to 24 MiB could be written, and never be read.
    #[test]
    fn values_that_could_be_written_and_not_read_are_refused_by_name() {
        let refused = with_values_of(LARGEST + 1).check().unwrap_err();
        assert_eq!(
            refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [format!(
                "limits.value_bytes_max is {}; it must be at most the 16 MiB that one batch of reads returns, less \
                 limits.key_bytes_max and 64 bytes",
                LARGEST + 1
            )]
        );
        with_values_of(LARGEST).check().unwrap();
        let mut longer_keys = with_values_of(LARGEST);
        longer_keys.limits.key_bytes_max += 1;
        assert!(longer_keys.check().is_err());
        longer_keys.limits.value_bytes_max -= 1;
        longer_keys.check().unwrap();
    }

    #[test]
    fn memory_for_calls_and_answers_has_a_least_and_a_most_that_are_told_by_name() {
        let with = |bytes| {
            let settings = Settings {
                memory_bytes: 16 << 30,
                calls_bytes_max: Some(bytes),
                answers_bytes_max: Some(bytes),
                ..Settings::default()
            };
            settings.check()
        };
        for bytes in [64 << 10, 4 << 30] {
            with(bytes).unwrap();
        }
        for bytes in [(64 << 10) - 1, (4 << 30) + 1] {
            let refused = with(bytes).unwrap_err();
            let told = ["calls_bytes_max", "answers_bytes_max"]
                .map(|name| format!("{name} is {bytes}; it must be 64 KiB to 4 GiB"));
            let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
            assert_eq!(refused, told);
        }
    }

    #[test]
    fn the_log_has_an_eighth_of_the_disk_that_the_node_may_take_and_a_gibibyte_at_most() {
        const GIB: u64 = 1 << 30;
        let with = |disk_bytes_max, log_bytes_kept| {
            let settings = Settings {
                disk_bytes_max,
                log_bytes_kept,
                ..Settings::default()
            };
            settings.check().unwrap();
            settings.log_bytes_kept()
        };
        assert_eq!(with(0, None), GIB);
        assert_eq!(with(64 * GIB, None), GIB);
        assert_eq!(with(4 * GIB, None), GIB / 2);
        assert_eq!(with(4 * GIB, Some(2 * GIB)), 2 * GIB);
    }

    #[test]
    fn a_layer_and_the_disk_have_a_least_and_a_most_that_are_told_by_name() {
        let with = |layer, disk_bytes_max| {
            let settings = Settings {
                memory_bytes: 1 << 40,
                state_layer_bytes: Some(layer),
                disk_bytes_max,
                log_bytes_kept: Some(1 << 30),
                ..Settings::default()
            };
            settings.check()
        };
        with(4_096, 1 << 30).unwrap();
        with(4_096, 1 << 50).unwrap();
        let refused = with(4_095, (1 << 30) - 1).unwrap_err();
        assert_eq!(
            refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "disk_bytes_max is 1073741823; it must be 0 for what the disk has, or 1 GiB to 1 PiB",
                "state_layer_bytes is 4095; it must be 4 KiB to 1 TiB",
            ]
        );
    }

    #[test]
    fn times_that_may_be_none_have_a_least_and_a_most_that_are_told_by_name() {
        let with = |time| {
            let settings = Settings {
                scrub_interval: time,
                history_kept: time,
                ..Settings::default()
            };
            settings.check()
        };
        const YEAR: u64 = 365 * 86_400_000;
        for millis in [0, 1_000, YEAR] {
            with(Duration::from_millis(millis)).unwrap();
        }
        for millis in [1, 999, YEAR + 1] {
            let refused = with(Duration::from_millis(millis)).unwrap_err();
            let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
            let told = [("scrub_interval", "never"), ("history_kept", "ever")].map(|(name, none)| {
                format!("{name} is {millis}; it must be 0 for {none}, or 1,000 ms to 365 days")
            });
            assert_eq!(refused, told);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_largest_value_under_the_longest_key_is_written_and_read() {
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(7)));
        let cluster = ClusterId::new("test").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let node = Node::builder()
            .cluster("test")
            .data_dir(dir.path())
            .settings(with_values_of(LARGEST))
            .transport(network.transport(Identity::node(cluster, 1), "node:1"))
            .start()
            .await
            .unwrap();
        let client = node.client().with_deadline(Duration::from_secs(60));
        let key = Key::new(vec![b'k'; 4096]).unwrap();
        let value = bytes::Bytes::from(vec![7; LARGEST]);
        client
            .commit(Txn::new([Op::put(key.clone(), value.clone())]))
            .await
            .unwrap();
        let read = client.get(key).await.unwrap().expect("it was written");
        assert!(read.value == value);
        let records = client.range(..).await.unwrap().records;
        assert!(records.len() == 1 && records[0].record.value == value);
        node.shutdown().await;
    }
}

//! A node's settings: plain data, checked once when the node is built.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::log::LogSettings;
use crate::machine::Tuning;
use crate::model::{Limits, ReplicatedLimits};
use crate::timing::{Profile, Timing};

/// The budget of a node that is told nothing.
const MEMORY_BYTES: u64 = 256 << 20;

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
            memory_bytes: MEMORY_BYTES,
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

impl Settings {
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
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! The limits that decide what `apply` answers: part of the replicated state, the same on every node.

use serde::{Deserialize, Serialize};

/// The limits that decide answers.
///
/// They are part of the replicated state: an empty state has the [`Default`], the first leader sets those of its
/// settings with [`Command::SetLimits`](super::Command::SetLimits), snapshots carry them and the state hash covers
/// them. Were they read from each node's settings, two nodes that were configured differently would answer the same
/// entry differently.
///
/// **What a transaction costs.** It is counted in keys, over the logical state, so that every node counts the same. A
/// condition or an operation on one key looks at one key. A condition or an operation on a range looks at
/// [`RANGE_KEYS`](Self::RANGE_KEYS) keys, and at each key that it visits, which counts once more for each whole KiB that it
/// has: a count up to the operand and one more, "any" up to the first key that passes, "all" up to the first that does not, a
/// range read up to its limit and one more, a range delete the same. Where a value is looked at, that counts as
/// [`VALUE_KEYS`](Self::VALUE_KEYS) keys more, and another for each whole KiB. A transaction changes each key that it writes or
/// deletes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReplicatedLimits {
    /// The most sessions; 10,000 by default.
    pub sessions_max: u64,
    /// The longest time to live of a session, in milliseconds of the log's time; an hour by default. Who asks for more
    /// gets this.
    pub session_ttl_millis_max: u64,
    /// How long a session must have been idle to make room for another when there are as many as may be, in milliseconds of
    /// the log's time; a minute by default. Longer than any client waits for an answer.
    pub session_idle_millis: u64,
    /// While the log's time stands still (a leader's clock was ahead for a while), a session is idle after so many entries
    /// without a command of its own instead; 10,000 by default.
    pub session_idle_entries: u64,
    /// The most writes of one session whose answers are remembered: those that the client has not said it has; 4,096 by
    /// default.
    pub unanswered_max: u64,
    /// The most bytes that the remembered answers of one session have in all; 8 MiB by default.
    pub unanswered_bytes_max: u64,
    /// The most bytes that the reads of one transaction return, where a record counts its key, its value and 64 bytes;
    /// 4 MiB by default.
    pub response_bytes_max: u64,
    /// The most keys that one transaction may look at; 200,000 by default: more than it may name
    /// ([`Limits::txn_ops_max`](super::Limits::txn_ops_max)).
    pub keys_looked_at_max: u64,
    /// The most keys that one transaction may change; 131,072 by default.
    pub keys_changed_max: u64,
    /// An entry carries many transactions. Their ranges together may visit, delete and return as much as so many
    /// transactions may: 1 or more, 2 by default. What exceeds that is refused and may be tried again. Keys that are named
    /// are bounded by the entry's size.
    pub entry_budget: u64,
}

impl Default for ReplicatedLimits {
    fn default() -> Self {
        Self {
            sessions_max: 10_000,
            session_ttl_millis_max: 60 * 60 * 1000,
            session_idle_millis: 60 * 1000,
            session_idle_entries: 10_000,
            unanswered_max: 4_096,
            unanswered_bytes_max: 8 * 1024 * 1024,
            response_bytes_max: 4 * 1024 * 1024,
            keys_looked_at_max: 200_000,
            keys_changed_max: 131_072,
            entry_budget: 2,
        }
    }
}

/// A limit with which a store would not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit {limit} is {value}; it must be {min} to {max}")]
pub struct InvalidLimit {
    /// Its name.
    pub limit: &'static str,
    /// The value given.
    pub value: u64,
    /// The least that it may be.
    pub min: u64,
    /// The most that it may be.
    pub max: u64,
}

impl ReplicatedLimits {
    /// What a condition or an operation on a range costs beside the keys that it visits, in keys looked at.
    pub const RANGE_KEYS: u64 = 8;
    /// What it costs to look at a value, or for one, in keys looked at.
    pub const VALUE_KEYS: u64 = 4;
    /// A value, and a key that a range visits, cost one key more for each so many whole bytes.
    pub const BYTES_PER_KEY: u64 = 1024;

    /// Checks that a store works with these limits.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let Self {
            sessions_max,
            session_ttl_millis_max,
            // Any: 0 is never to wait.
            session_idle_millis: _,
            session_idle_entries: _,
            unanswered_max,
            unanswered_bytes_max,
            response_bytes_max,
            keys_looked_at_max,
            keys_changed_max,
            entry_budget,
        } = *self;
        let all = [
            ("sessions_max", sessions_max, 1, 1_000_000),
            ("session_ttl_millis_max", session_ttl_millis_max, 1, u64::MAX),
            ("unanswered_max", unanswered_max, 1, u64::MAX),
            ("unanswered_bytes_max", unanswered_bytes_max, 1, u64::MAX),
            ("response_bytes_max", response_bytes_max, 1, u64::MAX),
            ("keys_looked_at_max", keys_looked_at_max, 1, u64::MAX),
            ("keys_changed_max", keys_changed_max, 1, u64::MAX),
            ("entry_budget", entry_budget, 1, 1_000),
        ];
        for (limit, value, min, max) in all {
            if !(min..=max).contains(&value) {
                return Err(InvalidLimit {
                    limit,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

//! What a state machine may be told, and the limits that its state carries from then on.

use super::wire::{Malformed, Row, put_u64};

/// Settings of one node's state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineSettings {
    /// Memory for pages of the state file, in bytes; 256 MiB by default. Half of it at most
    /// holds pages that are not written yet; what exceeds that goes to the file before its time.
    pub cache_bytes: usize,
    /// Reads the whole file when it is opened and verifies every page's checksum, so that rot on the disk
    /// is found before it is served. On by default; costs about a second for each GiB.
    pub verify_on_open: bool,
    /// The most bytes that one batch of reads returns, where a record counts its key, its value and 64 bytes; 16 MiB by
    /// default.
    pub read_bytes_max: u64,
    /// The most sessions of the cluster; 10,000 by default. Counts when the state is created: see [`ReplicatedLimits`].
    pub sessions_max: u64,
    /// The most writes of one session whose answers are remembered; 4,096 by default. Counts when the state
    /// is created.
    pub unanswered_max: u64,
    /// The most bytes that the reads of one transaction return, where a record counts its key, its value and 64 bytes;
    /// 4 MiB by default. Counts when the state is created.
    pub response_bytes_max: u64,
    /// How much is done at a time.
    #[doc(hidden)]
    pub tuning: Tuning,
}

/// How much is done at a time: sizes that decide no answer's content, only how work is cut. Not for users: tests draw
/// them small, so that what happens at their borders happens often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct Tuning {
    /// Keys that a scan takes at a time of what is in memory: 1 or more; 256 by default.
    pub chunk_keys: usize,
    /// A page of a range ends at so many bytes of answer; 1 MiB by default.
    pub page_bytes_max: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            chunk_keys: 256,
            page_bytes_max: 1024 * 1024,
        }
    }
}

impl Default for MachineSettings {
    fn default() -> Self {
        Self {
            cache_bytes: 256 * 1024 * 1024,
            verify_on_open: true,
            read_bytes_max: 16 * 1024 * 1024,
            sessions_max: 10_000,
            unanswered_max: 4_096,
            response_bytes_max: 4 * 1024 * 1024,
            tuning: Tuning::default(),
        }
    }
}

/// The limits that decide what `apply` answers.
///
/// They are part of the replicated state: written when the state is created, carried by every snapshot,
/// covered by the state hash. Were they read from each node's settings, two nodes that were configured
/// differently would answer the same entry differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicatedLimits {
    /// The most sessions.
    pub sessions_max: u64,
    /// The most remembered answers of one session.
    pub unanswered_max: u64,
    /// The most bytes that one transaction reads.
    pub response_bytes_max: u64,
}

impl ReplicatedLimits {
    pub(super) fn of(settings: &MachineSettings) -> Self {
        Self {
            sessions_max: settings.sessions_max,
            unanswered_max: settings.unanswered_max,
            response_bytes_max: settings.response_bytes_max,
        }
    }

    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        put_u64(out, self.sessions_max);
        put_u64(out, self.unanswered_max);
        put_u64(out, self.response_bytes_max);
    }

    pub(super) fn decode_from(row: &mut Row<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            sessions_max: row.u64()?,
            unanswered_max: row.u64()?,
            response_bytes_max: row.u64()?,
        })
    }
}

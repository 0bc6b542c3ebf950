//! What a log has done.

use std::time::Duration;

use crate::model::LogPosition;

/// What the log has done since it was opened, and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogStatistics {
    /// The last position known to be durable.
    pub durable: Option<LogPosition>,
    /// Batches that were written: all that waited at the time, behind one sync.
    pub batches: u64,
    /// Calls that were answered by those batches.
    pub jobs: u64,
    /// Entries that were written.
    pub entries: u64,
    /// The most entries of one batch.
    pub batch_entries_max: u64,
    /// Syncs of the log's files; a batch needs one, and another for each segment it ends.
    pub syncs: u64,
    /// Bytes that were written, padding included.
    pub bytes: u64,
    /// How long the last batch took, from its first byte to its answer.
    pub last_write: Duration,
    /// The median of the latest 1,024 batches' times; `None` before the first.
    pub write_p50: Option<Duration>,
    /// What 99 of 100 of them did not exceed.
    pub write_p99: Option<Duration>,
    /// Segments that were ended because they were full.
    pub rolls: u64,
    /// Segments that were not ready when they were needed: the batch waited until they were made.
    pub segments_made_late: u64,
    /// Segment files freed by purging, to be used again.
    pub segments_retired: u64,
    /// Segment files of the log.
    pub segments: u64,
    /// Entries in memory.
    pub cache_entries: u64,
    /// Bytes that they take.
    pub cache_bytes: u64,
}

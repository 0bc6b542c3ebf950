//! The part of a node's settings that Raft's glue takes.

use std::time::Duration;

use super::turns::ApplyBounds;

/// See the module.
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

//! Where the machine stands after what it has applied.

use bytes::Bytes;

use crate::machine::rows::system::System;
use crate::model::{LogPosition, LogTime, Revision, StateHash};

/// Where the machine stands after the last entry that it applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The last entry applied; `None` before the first.
    pub position: Option<LogPosition>,
    /// The last membership applied, and where it stands in the log.
    pub membership: Option<(LogPosition, Bytes)>,
    /// The store's revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// The hash of the replicated state.
    pub state_hash: StateHash,
    /// The greatest stamp of the proposals applied.
    pub log_time: LogTime,
}

impl Applied {
    pub(in crate::machine) fn of(system: &System) -> Self {
        Self {
            position: system.standing.position,
            membership: system.membership.clone(),
            revision: system.standing.revision,
            oldest: system.standing.oldest,
            state_hash: system.standing.state_hash(&system.limits),
            log_time: system.standing.log_time,
        }
    }
}

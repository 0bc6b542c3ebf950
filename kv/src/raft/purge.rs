//! How far the log is to go, where it takes more of the disk than it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::LogIndex;

/// The last entry that is to go for lack of room, with a snapshot that has it. Cheap to clone; a clone is the same.
///
/// Only ever a request: an old value makes a peer that is far behind take a snapshot, which it needs anyway.
#[derive(Debug, Clone, Default)]
pub(crate) struct PurgeWanted(Arc<AtomicU64>);

impl PurgeWanted {
    pub(super) fn set(&self, upto: LogIndex) {
        // Zero is none: the log begins with the entry that made the group, which is never all that is to go.
        self.0.store(upto.number(), Ordering::Relaxed);
    }

    pub(super) fn upto(&self) -> Option<LogIndex> {
        let upto = self.0.load(Ordering::Relaxed);
        (upto > 0).then(|| LogIndex::new(upto))
    }
}

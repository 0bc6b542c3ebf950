//! What openraft takes for a snapshot.

use crate::machine::{ReceivedSnapshot, SnapshotSource};

/// A snapshot on its way: pinned at the sender, or received whole and verified.
pub(crate) enum SnapshotData {
    /// A state pinned for reading.
    Source(Box<SnapshotSource>),
    /// A file that waits to be installed.
    Received(ReceivedSnapshot),
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SnapshotData::Source(_) => "SnapshotData::Source",
            SnapshotData::Received(_) => "SnapshotData::Received",
        })
    }
}

//! The steps at which a simulated node may crash or meet an error of the disk: one list, for the log and for
//! Raft's glue on it.
//!
//! Each stands between two steps whose order durability depends on. Outside the simulator a step costs one read
//! of a thread-local flag; see [`crate::env::crash_point`].
//!
//! Always: every step of the list is passed somewhere, and an error that it answers is handled as the disk's.

use std::io;

use crate::env;

/// Writes the enum, its list and its names together, so that none can lack in one of them.
macro_rules! crash_points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A step; see the module.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum CrashPoint {
            $($(#[doc = $doc])+ $point,)+
        }

        impl CrashPoint {
            /// As the simulator knows it.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }

        /// The names of all crash points of the log and of Raft's glue, in the order of a log's life.
        pub const CRASH_POINTS: &[&str] = &[$($name,)+];

        #[cfg(test)]
        const ALL: &[CrashPoint] = &[$(CrashPoint::$point,)+];
    };
}

crash_points! {
    /// A new log's first batch is written, its file neither synced nor named.
    CreateWritten = "log.create.written",
    /// A new log's first segment has its name; the directory's own name may not be durable.
    CreateNamed = "log.create.named",
    /// Recovery: what an interrupted preparation left was removed, the directory not synced.
    UnfinishedRemoved = "log.recovery.unfinished_removed",
    /// Recovery: what no batch proves durable was written again, and not synced.
    RecoveryRewritten = "log.recovery.rewritten",
    /// Recovery: all that was found is durable, and nothing says so yet.
    RecoverySynced = "log.recovery.synced",
    /// Recovery: the mark of the opening is durable.
    RecoveryMarked = "log.recovery.marked",
    /// A batch of entries, votes, truncations and purges is gathered, nothing of it written.
    BatchGathered = "log.batch.gathered",
    /// It is written, and not synced.
    BatchWritten = "log.batch.written",
    /// The same, of a batch that is longer than a sector, so that a loss of power may tear it.
    LongBatchWritten = "log.batch.long_written",
    /// It is durable, and nobody was told.
    BatchSynced = "log.batch.synced",
    /// A segment has its durable end, and the next one holds nothing.
    SegmentEnded = "log.segment.ended",
    /// A new segment's file is filled with zeros and has no header.
    SegmentZeroed = "log.segment.zeroed",
    /// A new segment's file is durable, under its temporary name.
    SegmentSynced = "log.segment.synced",
    /// It has its name, which is not durable.
    SegmentNamed = "log.segment.named",
    /// A freed segment has its new header, not synced.
    SegmentHeadedAnew = "log.segment.headed_anew",
    /// A freed segment is durably empty, and the log does not use it yet.
    SegmentRecycled = "log.segment.recycled",
    /// A freed segment is about to be removed.
    SegmentUnneeded = "log.segment.unneeded",
    /// Raft's vote is durable, and Raft was not told.
    VoteSaved = "raft.vote.saved",
    /// Raft's truncation is durable; Raft does not wait for it.
    Truncated = "raft.log.truncated",
    /// Raft asks for a purge: the state behind it is durable.
    PurgeAsked = "raft.log.purge_asked",
    /// The purge is durable; Raft does not wait for it.
    Purged = "raft.log.purged",
    /// A change of members is applied, and Raft was not told.
    MembershipApplied = "raft.membership.applied",
}

impl CrashPoint {
    /// The node is here. An error is to be handled as the disk's: the node may be dead already.
    #[inline]
    pub(crate) fn reached(self) -> io::Result<()> {
        env::crash_point(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The text of all source files below a directory, but for this one.
    fn source(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                source(&path, text);
            } else if !path.ends_with("crash_points.rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("a source file"));
            }
        }
    }

    #[test]
    fn every_crash_point_of_the_list_is_passed_somewhere_and_no_two_have_one_name() {
        let mut text = String::new();
        source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let unused: Vec<_> = ALL
            .iter()
            .filter(|point| !text.contains(&format!("CrashPoint::{point:?}")))
            .collect();
        assert!(unused.is_empty(), "nobody passes {unused:?}");
        let mut names = CRASH_POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CRASH_POINTS.len());
    }
}

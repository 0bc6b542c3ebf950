//! A tap on what a node applies, and on what its log promises: for checkers, which compare nodes entry by entry and
//! hold each to its word.

use std::fmt::Debug;

use crate::machine::{Applied, Entry, EntryOutcome};
use crate::model::{LogIndex, LogPosition, NodeId, Term};

/// Hears everything that a node's state machine applies, in order, on the thread that applies; and what its log is
/// asked for and tells durable, on the threads that ask and tell.
///
/// Must not block: nothing goes on meanwhile. After a restart the stream goes on behind the state that was
/// durable, so entries may come again.
pub trait Tap: Send + Sync + Debug {
    /// Entries were applied together: their outcomes, one for each, and where the state stands behind the last.
    /// Called before any of them is answered.
    fn applied(&self, entries: &[Entry], outcomes: &[EntryOutcome], after: &Applied);

    /// A received snapshot of the state behind `position` is about to take the state's place.
    ///
    /// A process that ends between this and [`installed`](Self::installed) leaves either state to the next one.
    fn installing(&self, position: Option<LogPosition>);

    /// A snapshot took the state's place.
    fn installed(&self, after: &Applied);

    /// The log was opened, asked, or told Raft that something is durable.
    fn log(&self, event: LogEvent);
}

/// What happened between a node's Raft and its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEvent {
    /// A process found its log so.
    Opened {
        /// The vote, once there was one.
        vote: Option<LogVote>,
        /// The last entry, or the purge point.
        last: Option<LogPosition>,
        /// Up to where the log was purged.
        purged: Option<LogPosition>,
    },
    /// Entries up to this one are to be appended, behind all that was asked for before.
    Appending(LogPosition),
    /// The entries of an [`Appending`](Self::Appending) are told durable; these come in the order of those.
    Durable(LogPosition),
    /// The entries behind this one are to go, behind all that was asked for before.
    Truncating(Option<LogIndex>),
    /// A vote is told durable.
    Voted(LogVote),
    /// A purge is told durable.
    Purged(LogPosition),
}

/// A vote, ordered as Raft orders votes: none is ever followed by a smaller one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogVote {
    /// The term.
    pub term: Term,
    /// Whom it is for.
    pub node: NodeId,
    /// Whether that node is known to lead.
    pub leads: bool,
}

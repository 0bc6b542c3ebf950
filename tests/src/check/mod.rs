//! The rule book: what must be true of a cluster's life, and who says so when it is not.
//!
//! Pure: recorded events in, violations out. The store gives every write a revision, so nothing is searched: one
//! order, the log's, must explain everything, and each rule is checked in time linear in the history (times a
//! logarithm).
//!
//! In reading order: [`model`] says what the store means, [`taps`] gathers what each node applied and lets no
//! two differ, [`ledger`] what each log promised, [`history`] is what callers asked and were told, [`ground`] is the one order of all transactions
//! (from the taps, or in [`rebuild`] from the answers where there are no taps), [`judge`] holds the two against
//! each other, [`metadata`], [`membership`] and [`raft`] look at rows, at members and at statuses, and [`second`] asks another checker.
//! [`workload`] makes the calls.
//!
//! Always: a check never asks the product's own machinery what is right; a broken rule is told with its name and
//! the events that break it.

pub mod ground;
pub mod history;
pub mod judge;
pub mod ledger;
pub mod membership;
pub mod metadata;
pub mod model;
pub mod raft;
pub mod rebuild;
pub mod recording;
pub mod second;
pub mod taps;
pub mod workload;

use std::fmt;

/// A rule of the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// All nodes apply the same entry at the same place.
    SameEntries,
    /// All nodes answer an entry in the same way.
    SameOutcomes,
    /// All nodes are in the same state behind the same entry.
    SameState,
    /// A node applies every entry once and in order; it jumps only to a snapshot, and goes back only at a start.
    NoGap,
    /// A node starts no further back than what its log has purged, nor further ahead than it ever was.
    DurableStart,
    /// What a log told durable, votes before all, is there when its node starts again; no entry is there whose leader
    /// the vote does not know.
    DurableLog,
    /// A member is one directory for as long as it is a member, and all members name one cluster.
    OneDirectory,
    /// No change of voters is left in the middle.
    NoJointLeft,
    /// A node that gets a vote has the log, but for the few entries that it may lack.
    PromotedNear,
    /// A change of members of which somebody was told that nothing was changed does not happen.
    OperatorTold,
    /// The product's answer to each entry is the model's.
    Replay,
    /// A write that was acknowledged is in the order, with the answer that its caller got.
    Acknowledged,
    /// No write runs twice.
    Once,
    /// What was refused or failed for certain never ran.
    NeverRan,
    /// What began after another had been answered comes after it.
    RealTime,
    /// Nothing is answered before it happened, nor happens before it was asked.
    NotFromTheFuture,
    /// A read returns what was there at its revision.
    ReadsTheState,
    /// A read keeps the bound that its caller gave.
    KeepsTheBound,
    /// A call is answered in its own kind, and with an error that can be true.
    PlainAnswer,
    /// Reads of a closure are what was there when its writes committed.
    Isolation,
    /// The leader is in the ISR, the ISR within the replicas, and whatever else makes a row sound.
    SoundRows,
    /// Counts and rows agree.
    Counts,
    /// A batch is there whole or not at all.
    WholeBatches,
    /// Epochs rise by the rules, and never fall.
    Epochs,
    /// An update by somebody who saw an older state is refused.
    Fencing,
    /// Rows that callers were told are the rows that are there.
    ToldRows,
    /// A node never goes back to an earlier leader. (A term may have several, in the order of their ids.)
    LeadersForward,
    /// Term, applied, revision and purged never fall while a process lives. (What a node knows to be committed it has
    /// from its leader, and a new leader may know less.)
    Monotone,
    /// Nothing is purged that the durable state does not cover, applied that was not committed, and so on.
    LogOrder,
    /// What is read back at the end is what the order made.
    FinalState,
    /// Another checker agrees.
    SecondOpinion,
}

/// A rule that was broken, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

impl Violation {
    /// A violation.
    pub fn new(rule: Rule, what: impl Into<String>) -> Self {
        let what = what.into();
        Self { rule, what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

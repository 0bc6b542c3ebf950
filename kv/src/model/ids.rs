//! Numbers that are not to be confused with each other.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a number that came from a file, a peer or a user.
            pub const fn new(number: u64) -> Self {
                Self(number)
            }

            /// The bare number, for encoding and for people.
            pub const fn number(self) -> u64 {
                self.0
            }

            /// The one that follows. Saturates, which 2⁶⁴ steps never reach.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number! {
    /// The store's order: starts at 1 and rises by exactly 1 with each transaction that changes something.
    Revision, ""
}
number! {
    /// Raft's order: the place of an entry in the log. One entry carries one or more transactions.
    LogIndex, ""
}
number! {
    /// A period of Raft with at most one leader for each of its candidates.
    Term, ""
}
number! {
    /// A member of the Raft group. Never reused for another machine or another data directory.
    NodeId, ""
}
number! {
    /// A lease that keys may be attached to.
    LeaseId, ""
}
number! {
    /// The number of a write within its session; the first is 1.
    Sequence, ""
}

/// A client's session, within which a retried write is recognised: 128 bits, drawn at random for each session, so that no
/// session of one store is ever taken for one of another, nor for one of the same store as it was once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(u128);

impl SessionId {
    /// Before all others.
    pub const ZERO: SessionId = SessionId(0);

    /// Wraps a number that was drawn, or came from a file or a peer.
    pub const fn new(number: u128) -> Self {
        Self(number)
    }

    /// The bare number, for encoding.
    pub const fn number(self) -> u128 {
        self.0
    }

    /// The one that follows, the first one after the last.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Revision {
    /// The revision of the empty store.
    pub const FIRST: Revision = Revision(1);
}

impl Sequence {
    /// The first write of a session.
    pub const FIRST: Sequence = Sequence(1);
}

/// The place of an entry in the log and the leader that wrote it: what Raft calls a log id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub leader: NodeId,
    /// The entry's index.
    pub index: LogIndex,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.term, self.leader, self.index)
    }
}

/// Time as the log knows it: milliseconds since 1970, stamped by the proposer, never falling from entry to entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogTime(u64);

impl LogTime {
    /// The beginning of time.
    pub const ZERO: LogTime = LogTime(0);

    /// From milliseconds since 1970.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0
    }
}

/// The hash of a node's replicated state at a revision: equal on all nodes, or one of them is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StateHash(pub u128);

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

//! What a Raft entry carries.

use serde::{Deserialize, Serialize};

use super::{Key, LogTime, Sequence, SessionId, Txn, TxnResponse};

/// One entry's content: the commands that waited together, and the proposer's time.
///
/// Each command is a transaction of its own with its own revision; they only share the entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The proposer's wall clock. `apply` uses the greater of this and the last one.
    pub stamp: LogTime,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

/// A command to the state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A transaction, outside any session when `session` is `None` (then a retry is a new transaction).
    Txn {
        /// Who asks, and for the how manieth time.
        session: Option<SessionRef>,
        /// What is asked.
        txn: Txn,
    },
    /// Opens a session and answers its id.
    OpenSession {
        /// How long the session outlives its last command, in milliseconds of the log's time.
        ttl_millis: u64,
    },
    /// Ends a session; a missing one is no error.
    CloseSession {
        /// The session.
        session: SessionId,
    },
}

/// The place of a write within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// The session.
    pub id: SessionId,
    /// The write's number; the same for each retry of it.
    pub sequence: Sequence,
    /// Every write below this number was answered to the client, so its answer may be forgotten.
    pub answered_below: Sequence,
}

/// A command's deterministic answer: the same on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Of a transaction.
    Txn(Result<TxnResponse, TxnRefused>),
    /// Of [`Command::OpenSession`].
    SessionOpened(Result<SessionId, TxnRefused>),
    /// Of [`Command::CloseSession`].
    SessionClosed,
}

/// Why the state machine refused a transaction. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum TxnRefused {
    /// A put with `OnlyIfAbsent` found the key.
    #[error("operation {op}: the key {key} exists already")]
    KeyExists {
        /// The operation's index in its branch.
        op: u32,
        /// The key.
        key: Key,
    },
    /// An add or a max found a value that is not 8 bytes.
    #[error("operation {op}: the value of {key} is not a number: it has {size} bytes, a number has 8")]
    NotANumber {
        /// The operation's index in its branch.
        op: u32,
        /// The key.
        key: Key,
        /// The value's size.
        size: u64,
    },
    /// An add left the range of a 64-bit number.
    #[error("operation {op}: adding {delta} to {found} overflows")]
    Overflow {
        /// The operation's index in its branch.
        op: u32,
        /// The number found.
        found: i64,
        /// What was to be added.
        delta: i64,
    },
    /// A range delete met more keys than its limit.
    #[error("operation {op}: the range holds more than {limit} keys")]
    RangeTooLarge {
        /// The operation's index in its branch.
        op: u32,
        /// The limit given.
        limit: u32,
    },
    /// A put names a lease that does not exist.
    #[error("operation {op}: no lease {lease}")]
    NoSuchLease {
        /// The operation's index in its branch.
        op: u32,
        /// The lease.
        lease: super::LeaseId,
    },
    /// The answer would exceed the limit of a response.
    #[error("operation {op}: the transaction's reads exceed {limit} bytes")]
    ResponseTooLarge {
        /// The operation at which the limit was passed.
        op: u32,
        /// The limit in bytes.
        limit: u64,
    },
    /// The session is unknown: it expired or was closed. Whether an earlier attempt of this write took
    /// effect is not known any more; this attempt did not.
    #[error("session {session} has expired or was closed")]
    SessionExpired {
        /// The session.
        session: SessionId,
    },
    /// The write's number is one that the client had said was answered.
    #[error("session {session}: write {sequence} was already answered and forgotten")]
    SequenceForgotten {
        /// The session.
        session: SessionId,
        /// The number.
        sequence: Sequence,
    },
    /// Too many sessions, or too many unanswered writes in one.
    #[error("too many {what}: the limit is {limit}")]
    TooMany {
        /// Sessions, or unanswered writes.
        what: TooManyOf,
        /// The limit.
        limit: u64,
    },
}

/// What there were too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TooManyOf {
    /// Sessions of the cluster.
    Sessions,
    /// Writes of one session that the client has not said were answered.
    UnansweredWrites,
}

impl std::fmt::Display for TooManyOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TooManyOf::Sessions => "sessions",
            TooManyOf::UnansweredWrites => "unanswered writes in the session",
        })
    }
}

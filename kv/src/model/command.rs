//! What a Raft entry carries.

use serde::{Deserialize, Serialize};

use super::{
    Key, LimitChange, LogTime, Place, ReplicatedLimits, Revision, Sequence, SessionId, Txn, TxnResponse,
};

/// One entry's content: the commands that waited together, and the proposer's time.
///
/// Each command is a transaction of its own with its own revision; they only share the entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The proposer's wall clock. `apply` uses the greater of this and the last one.
    pub stamp: LogTime,
    /// How many bytes the proposer found used, where the store is nearly full. A transaction of this entry that would let what
    /// lives grow is refused then.
    pub full_at: Option<u64>,
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
        /// The id that the session is to have, or, where a session has it, the first one behind it that none has. The node that
        /// proposes the command draws it, whatever the caller said: an opening that comes twice is two sessions, so that no
        /// session that ended is ever there again, without its answers.
        id: SessionId,
        /// How long the session is to outlive its last command, in milliseconds of the log's time; no longer than
        /// [`ReplicatedLimits::session_ttl_millis_max`], which the answer says.
        ttl_millis: u64,
    },
    /// Ends a session; a missing one is no error.
    CloseSession {
        /// The session.
        session: SessionId,
    },
    /// Changes limits of the cluster, and answers those that stand then. They count from the next command on.
    SetLimits {
        /// Nothing is changed unless this version stands: 0 before they were ever set. Any, where it is `None`.
        expected: Option<u64>,
        /// What is to be changed; nothing, where one is not known or out of its range.
        changes: Vec<LimitChange>,
    },
    /// Gives up the history before a revision: no read below it is served from here on. One that has not come yet, or that
    /// is not later than what was given up before, changes nothing.
    Compact {
        /// The oldest revision that is to stay readable.
        revision: Revision,
    },
}

impl Command {
    /// Opens a session, as a client asks for it: the node that proposes the command draws the id.
    pub fn open_session(ttl_millis: u64) -> Self {
        Command::OpenSession {
            id: SessionId::ZERO,
            ttl_millis,
        }
    }
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
    SessionOpened(Result<SessionOpened, TxnRefused>),
    /// Of [`Command::CloseSession`].
    SessionClosed,
    /// Of [`Command::SetLimits`].
    LimitsSet(LimitsSet),
    /// Of [`Command::Compact`].
    Compacted(Compacted),
}

/// A session that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOpened {
    /// Its id.
    pub session: SessionId,
    /// How long it outlives its last command, in milliseconds of the log's time: what was asked for, or the most that
    /// there is.
    pub ttl_millis: u64,
}

/// What became of [`Command::SetLimits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsSet {
    /// They were changed. Otherwise another version stood, or what was asked for is not known, out of its range, or nothing.
    pub changed: bool,
    /// The version that stands now.
    pub version: u64,
    /// The limits that stand now.
    pub limits: ReplicatedLimits,
}

/// What became of [`Command::Compact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// The oldest revision that can be read now.
    pub oldest: Revision,
    /// The store's revision.
    pub revision: Revision,
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
    /// The transaction looks at, changes or answers more than one may: see [`ReplicatedLimits`].
    #[error("{place}: the transaction exceeds the limit of {limit} {what}; do it in several")]
    TooMuchWork {
        /// The condition or operation at which the limit was passed.
        place: Place,
        /// What there was too much of.
        what: Work,
        /// The limit.
        limit: u64,
    },
    /// The transactions before this one in its log entry had used up what an entry may cost. The same transaction may
    /// succeed when it is sent again.
    #[error("the transactions that share a log entry exceed the {what} that one may have; try again")]
    EntrySpent {
        /// What there was too much of.
        what: Work,
    },
    /// The answer is larger than what a session may have remembered in all.
    #[error("the answer has {size} bytes, a session remembers {limit} at most: read less in one transaction")]
    AnswerTooLarge {
        /// Its encoded size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The session is unknown: it expired, was closed, or made room for another. Whether an earlier attempt of this write took
    /// effect is not known any more; this attempt did not.
    #[error("session {session} has expired, was closed, or made room for another")]
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
    /// Too many sessions of which none is idle, or too many answers that one has not said it has. There may be room when
    /// it is tried again.
    #[error("too many {what}: the limit is {limit}; try again later")]
    TooMany {
        /// Sessions, or unanswered writes.
        what: TooManyOf,
        /// The limit.
        limit: u64,
    },
    /// The store is nearly full, and the transaction would let what lives grow: by more than 64 bytes for each key that is there
    /// before and after it. There may be room when it is tried again.
    #[error(
        "the store is nearly full: {used} of {limit} bytes are used, and this would add {wanted} to what lives"
    )]
    NoSpace {
        /// What was used when it was proposed, in bytes, history included.
        used: u64,
        /// The limit, `store_bytes_max`.
        limit: u64,
        /// By how many bytes what lives would have grown.
        wanted: u64,
    },
}

impl TxnRefused {
    /// Whether the same command may be accepted when it is sent again, in the same session and with the same number. Such
    /// a refusal is not remembered: the number stays free.
    pub fn is_retryable(&self) -> bool {
        match self {
            TxnRefused::TooMany { .. } | TxnRefused::EntrySpent { .. } | TxnRefused::NoSpace { .. } => true,
            TxnRefused::KeyExists { .. }
            | TxnRefused::NotANumber { .. }
            | TxnRefused::Overflow { .. }
            | TxnRefused::RangeTooLarge { .. }
            | TxnRefused::NoSuchLease { .. }
            | TxnRefused::ResponseTooLarge { .. }
            | TxnRefused::TooMuchWork { .. }
            | TxnRefused::AnswerTooLarge { .. }
            | TxnRefused::SessionExpired { .. }
            | TxnRefused::SequenceForgotten { .. } => false,
        }
    }
}

/// What a transaction costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Keys that it looks at.
    KeysLookedAt,
    /// Keys that it writes or deletes.
    KeysChanged,
    /// Bytes that its reads return.
    AnswerBytes,
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Work::KeysLookedAt => "keys looked at",
            Work::KeysChanged => "keys changed",
            Work::AnswerBytes => "bytes answered",
        })
    }
}

/// What there were too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TooManyOf {
    /// Sessions of the cluster.
    Sessions,
    /// Writes of one session that the client has not said were answered.
    UnansweredWrites,
    /// Bytes of the answers to these.
    UnansweredBytes,
}

impl std::fmt::Display for TooManyOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TooManyOf::Sessions => "sessions",
            TooManyOf::UnansweredWrites => "unanswered writes in the session",
            TooManyOf::UnansweredBytes => "bytes of answers to unanswered writes in the session",
        })
    }
}

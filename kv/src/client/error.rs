//! What a client's call may end with.

use std::time::Duration;

use crate::model::{InvalidRead, InvalidTxn, NodeId, Revision, TxnRefused};

/// Why a call gave no result. Every error answers [`is_retryable`](Self::is_retryable) and
/// [`may_have_committed`](Self::may_have_committed).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes given are no key.
    #[error(transparent)]
    InvalidKey(#[from] crate::model::InvalidKey),
    /// The transaction is outside the limits; nothing was sent.
    #[error(transparent)]
    InvalidTxn(#[from] InvalidTxn),
    /// The read is outside the limits; nothing was sent.
    #[error(transparent)]
    InvalidRead(#[from] InvalidRead),
    /// A row of a typed table cannot be read or written in the table's codec; nothing was sent, or nothing but the read.
    #[error("{}{reason}", key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
    InvalidValue {
        /// The key in the store; `None` where one key was asked for, which its caller knows.
        key: Option<crate::model::Key>,
        /// What is wrong.
        reason: String,
    },
    /// The state machine refused the transaction; nothing was changed.
    #[error(transparent)]
    Refused(#[from] TxnRefused),
    /// The request was refused, for a reason that a retry does not change; nothing was changed.
    #[error("{reason}")]
    Rejected {
        /// The node that refused it, as the client calls it: its address, or "this node". `None`: the client itself, or a node that
        /// answered with something else than was asked for.
        node: Option<String>,
        /// Why.
        reason: String,
    },
    /// A change of members waits for the node in question: it must be started, answer, or catch up first. The request is
    /// sound, nothing was changed, and the same request succeeds later.
    #[error("{reason}")]
    MemberNotReady {
        /// The node that refused it: the leader.
        node: Option<String>,
        /// What the node in question lacks, and what to do.
        reason: String,
    },
    /// Whether the call took effect is not known.
    #[error(transparent)]
    OutcomeUnknown(#[from] OutcomeUnknown),
    /// The write was carried out, once, and its answer is too large to be sent.
    #[error(
        "the write was carried out, but its answer has {size} bytes and a message holds {limit}: ask for less in one \
         transaction, and read what it would have answered"
    )]
    AnswerTooLarge {
        /// The answer's size in bytes.
        size: u64,
        /// What an answer may have.
        limit: u64,
    },
    /// No node answered in time; nothing was changed.
    #[error("no answer within {deadline:?}: {last}")]
    Unavailable {
        /// The time that the caller gave.
        deadline: Duration,
        /// The node whose answer, or silence, says most about the reason. `None`: no node was asked.
        node: Option<String>,
        /// What says most about the reason: that a node refused this client, before that one did not answer, before
        /// that one could not be reached. It names the node.
        last: String,
    },
    /// Every node that is known refuses this client, or is not of its cluster, by their certificates; nothing was
    /// changed, and nothing will change by asking again.
    #[error("{reason}")]
    NotAdmitted {
        /// One of the nodes.
        node: Option<String>,
        /// Which node, and why.
        reason: String,
    },
    /// The revision asked for is older than the history that is kept.
    #[error("the history before revision {oldest} is gone")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision asked for did not come in time.
    #[error("revision {asked} has not come; {} is at {current}", Asked(.node))]
    NotYet {
        /// The node that was asked, as the client calls it: its address, or "this node".
        node: Option<String>,
        /// The revision asked for.
        asked: Revision,
        /// Where the node was.
        current: Revision,
    },
    /// Nobody confirmed in time that the node's state is as new as the caller demands: it is cut off from a quorum, or
    /// has not applied enough yet. Nothing was read.
    #[error(
        "no quorum confirmed in time that the state of {} is new enough; it may be {} old",
        Asked(.node),
        lag.map_or("any time".to_owned(), |l| format!("{l:?}"))
    )]
    TooStale {
        /// The node that was asked, as the client calls it: its address, or "this node".
        node: Option<String>,
        /// How old it may be, where that is known.
        lag: Option<Duration>,
    },
    /// The node gave the read up: it took longer than one read may.
    #[error(
        "{} gave the read up after {limit:?}, the longest that one may take: ask for less at once, in pages",
        Asked(.node)
    )]
    ReadTooLong {
        /// The node that was asked, as the client calls it: its address, or "this node".
        node: Option<String>,
        /// The longest that a read may take there.
        limit: Duration,
    },
    /// The store uses nearly as many bytes as it may, and the transaction would let it grow; nothing was changed. Deletes, reads and
    /// whatever gives history up go on: they make room. So do transactions that leave what lives as it is: that write over keys, which
    /// grow by no more than 64 bytes each.
    #[error(
        "the store is nearly full: {used} of {limit} bytes are used, and this may add {wanted}; what grows is refused from 95 % on \
         until less than 80 % are used: delete keys and give up history (quorate kv compact), or raise store_bytes_max \
         (quorate config set)"
    )]
    NoSpace {
        /// What keys and values count, history included, in bytes.
        used: u64,
        /// The limit of the cluster, `store_bytes_max`.
        limit: u64,
        /// What the transaction would add to what lives or to its history, in bytes; the most that it may, where it was not
        /// proposed.
        wanted: u64,
    },
    /// The leader's disk is nearly full, or its directory takes nearly as many bytes as it may, and the transaction may write;
    /// nothing was changed. Deletes, reads and whatever makes room go on.
    #[error(
        "the disk of the leader{} is nearly full: {used} of {limit} bytes are used; delete keys and shrink the state \
         (quorate shrink), make room on its disk, raise disk_bytes_max there, or let another node lead",
        node.as_ref().map(|node| format!(" ({node})")).unwrap_or_default()
    )]
    DiskFull {
        /// The leader, as the client calls it: its address, or "this node".
        node: Option<String>,
        /// What the files of the leader take of its disk, in bytes.
        used: u64,
        /// What they may: `disk_bytes_max`, or what the disk has for them, where that is less.
        limit: u64,
    },
    /// Leadership was to go to one node, and an election gave it to another.
    #[error("node {asked} was to lead, but node {leader} took over")]
    LedByAnother {
        /// The node that was to lead.
        asked: NodeId,
        /// The node that leads.
        leader: NodeId,
    },
    /// The limit cannot be this; nothing was changed.
    #[error(transparent)]
    InvalidLimit(#[from] crate::model::InvalidLimit),
    /// A [`Transaction`](super::Transaction) was used after its closure had returned; nothing was read or written.
    #[error("the transaction's closure has returned: its handle can neither read nor write any more")]
    TransactionEnded,
}

/// A change was asked for, and its answer never came: it may have taken effect, once, or not, or may yet.
///
/// Its own type, so that it is never taken for a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("whether it was carried out is not known: {reason}")]
pub struct OutcomeUnknown {
    /// The last node that was asked and may have carried it out, as the client calls it: its address, or "this node".
    pub node: Option<String>,
    /// What was met.
    pub reason: String,
}

impl Error {
    /// The same call may succeed later. After [`OutcomeUnknown`] a repeated write may be a second one.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unavailable { .. }
            | Error::NotYet { .. }
            | Error::TooStale { .. }
            | Error::MemberNotReady { .. }
            | Error::NoSpace { .. }
            | Error::DiskFull { .. } => true,
            Error::OutcomeUnknown(_) | Error::LedByAnother { .. } => true,
            Error::Refused(refused) => refused.is_retryable(),
            Error::InvalidKey(_)
            | Error::InvalidTxn(_)
            | Error::InvalidRead(_)
            | Error::InvalidLimit(_)
            | Error::InvalidValue { .. }
            | Error::Rejected { .. }
            | Error::AnswerTooLarge { .. }
            | Error::NotAdmitted { .. }
            | Error::ReadTooLong { .. }
            | Error::TransactionEnded
            | Error::Compacted { .. } => false,
        }
    }

    /// The call may have taken effect, or may yet. Where this is false, nothing was changed and nothing will be.
    pub fn may_have_committed(&self) -> bool {
        match self {
            Error::OutcomeUnknown(_) | Error::AnswerTooLarge { .. } => true,
            Error::InvalidKey(_)
            | Error::InvalidTxn(_)
            | Error::InvalidRead(_)
            | Error::InvalidLimit(_)
            | Error::InvalidValue { .. }
            | Error::Refused(_)
            | Error::Rejected { .. }
            | Error::MemberNotReady { .. }
            | Error::Unavailable { .. }
            | Error::NotAdmitted { .. }
            | Error::Compacted { .. }
            | Error::NotYet { .. }
            | Error::TooStale { .. }
            | Error::ReadTooLong { .. }
            | Error::NoSpace { .. }
            | Error::DiskFull { .. }
            | Error::LedByAnother { .. }
            | Error::TransactionEnded => false,
        }
    }
}

impl Error {
    /// The node that the error comes from, as the client calls it: its address, or "this node". `None`: no node was asked, every
    /// node would say the same, since the state machine decided it, or it is not known which one it was.
    pub fn node(&self) -> Option<&str> {
        match self {
            Error::Rejected { node, .. }
            | Error::MemberNotReady { node, .. }
            | Error::OutcomeUnknown(OutcomeUnknown { node, .. })
            | Error::Unavailable { node, .. }
            | Error::NotAdmitted { node, .. }
            | Error::NotYet { node, .. }
            | Error::TooStale { node, .. }
            | Error::ReadTooLong { node, .. }
            | Error::DiskFull { node, .. } => node.as_deref(),
            Error::InvalidKey(_)
            | Error::InvalidTxn(_)
            | Error::InvalidRead(_)
            | Error::InvalidLimit(_)
            | Error::InvalidValue { .. }
            | Error::Refused(_)
            | Error::AnswerTooLarge { .. }
            | Error::Compacted { .. }
            | Error::NoSpace { .. }
            | Error::LedByAnother { .. }
            | Error::TransactionEnded => None,
        }
    }

    /// A refusal of the client itself.
    pub(super) fn rejected(reason: impl Into<String>) -> Self {
        Error::Rejected {
            node: None,
            reason: reason.into(),
        }
    }
}

/// The node that was asked, in a sentence.
struct Asked<'a>(&'a Option<String>);

impl std::fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            // Its name is a sentence's part already.
            Some(node) if node == super::endpoint::THIS_NODE => f.write_str(node),
            Some(node) => write!(f, "node {node}"),
            None => f.write_str("the node"),
        }
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

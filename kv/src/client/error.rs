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
    /// The state machine refused the transaction; nothing was changed.
    #[error(transparent)]
    Refused(#[from] TxnRefused),
    /// The node refused the request; nothing was changed.
    #[error("{reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
    /// Whether the write took effect is not known.
    #[error(transparent)]
    OutcomeUnknown(#[from] OutcomeUnknown),
    /// No node answered in time; nothing was changed.
    #[error("no answer within {deadline:?}: {last}")]
    Unavailable {
        /// The time that the caller gave.
        deadline: Duration,
        /// What the last attempt met.
        last: String,
    },
    /// The revision asked for is older than the history that is kept.
    #[error("the history before revision {oldest} is gone")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision asked for did not come in time.
    #[error("revision {asked} has not come; the node is at {current}")]
    NotYet {
        /// The revision asked for.
        asked: Revision,
        /// Where the node was.
        current: Revision,
    },
    /// The node is further behind than the caller accepts.
    #[error("the node was last level with its leader {} ago", lag.map_or("an unknown time".to_owned(), |l| format!("{l:?}")))]
    TooStale {
        /// How long ago it was level, where it knows.
        lag: Option<Duration>,
    },
    /// Leadership was to go to one node, and an election gave it to another.
    #[error("node {asked} was to lead, but node {leader} took over")]
    LedByAnother {
        /// The node that was to lead.
        asked: NodeId,
        /// The node that leads.
        leader: NodeId,
    },
}

/// A write was sent, and its answer never came: it may have taken effect, once, or not, or may yet.
///
/// Its own type, so that it is never taken for a failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the outcome of the write is not known: {reason}")]
pub struct OutcomeUnknown {
    /// What was met.
    pub reason: String,
}

impl Error {
    /// The same call may succeed later. After [`OutcomeUnknown`] a repeated write may be a second one.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unavailable { .. } | Error::NotYet { .. } | Error::TooStale { .. } => true,
            Error::OutcomeUnknown(_) | Error::LedByAnother { .. } => true,
            Error::InvalidKey(_)
            | Error::InvalidTxn(_)
            | Error::InvalidRead(_)
            | Error::Refused(_)
            | Error::Rejected { .. }
            | Error::Compacted { .. } => false,
        }
    }

    /// The write may have taken effect.
    pub fn may_have_committed(&self) -> bool {
        matches!(self, Error::OutcomeUnknown(_))
    }
}

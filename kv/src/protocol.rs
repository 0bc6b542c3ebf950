//! What clients and nodes say to each other. `docs/formats/clients.md` lists the bytes.
//!
//! A client's stream is pipelined: calls bear numbers, replies come in any order. In-process clients use the
//! same words without the bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::{ReadClass, Shrunk};
use crate::model::{
    self, Command, Consistency, InvalidLimit, InvalidRead, InvalidTxn, NodeId, Outcome, ReadOp, ReadResponse,
    Revision,
};
use crate::status::Status;

/// A numbered request. Numbers are unique within a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub id: u64,
    pub request: Request,
}

/// The reply to the call of that number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub id: u64,
    pub response: Response,
}

/// What a client asks of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Propose a command.
    Write(Command),
    /// Read.
    Read {
        #[serde(deserialize_with = "model::steps")]
        reads: Vec<ReadOp>,
        consistency: Consistency,
        /// How long the node may wait for the state that the consistency asks for.
        wait: Duration,
        /// How long the caller waits for the answer in all: nobody needs a later one.
        time: Duration,
    },
    /// Tell about yourself.
    Status,
    /// Copy your state file into one without free pages.
    Shrink,
    /// Change the membership or the leadership.
    Admin(Admin),
    /// Nobody waits any more for the answer to the read of this number, on the same stream. Not answered.
    GiveUp { call: u64 },
    /// Propose a command of a session of which an earlier attempt may have been carried out: the log says whether it was, and
    /// then its answer, so a full store does not refuse it.
    WriteAgain(Command),
}

impl Request {
    /// Whether it may take so long that its caller may give it up: a read of many keys, or one that waits for a state.
    pub(crate) fn may_be_given_up(&self) -> bool {
        match self {
            Request::Read {
                reads, consistency, ..
            } => *consistency != Consistency::Linearizable || ReadClass::of(reads) == ReadClass::Scan,
            Request::Write(_)
            | Request::WriteAgain(_)
            | Request::Status
            | Request::Shrink
            | Request::Admin(_)
            | Request::GiveUp { .. } => false,
        }
    }
}

/// A change of the group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Admin {
    /// Add a node without a vote.
    AddLearner { id: NodeId, address: String },
    /// Give a learner a vote.
    Promote { id: NodeId },
    /// Take a node out.
    Remove { id: NodeId },
    /// Hand leadership to this voter, or to the one whose log is furthest.
    MoveLeader { to: Option<NodeId> },
}

/// What a node answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Response {
    Written(Outcome),
    Read(ReadResponse),
    Status(Box<Status>),
    Shrunk(Shrunk),
    Done,
    Failed(Failure),
    /// No answer yet: a sign of life, while the call goes on or waits for its turn.
    Working,
    /// No answer yet: there is no room for this call, and none that was sent after it has been looked at. A sign of life
    /// for all of them.
    Waiting,
}

impl Response {
    /// Whether the answer is still to come.
    pub(crate) fn is_sign(&self) -> bool {
        matches!(self, Response::Working | Response::Waiting)
    }
}

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// It does not lead; nothing was proposed.
    NotLeader { leader: Option<(NodeId, String)> },
    /// Begun, but whether it is carried out is not known.
    Unknown {
        leader: Option<(NodeId, String)>,
        reason: String,
    },
    /// No quorum confirmed the read; nothing was read.
    NoQuorum,
    /// The state asked for did not come in time.
    NotYet { asked: Revision, current: Revision },
    /// The revision is older than the history that is kept.
    Compacted { oldest: Revision },
    /// Nobody confirmed in time that the node's state is as new as the caller demands; how old it may be, where known.
    TooStale { lag: Option<Duration> },
    /// Outside the limits of this node.
    Invalid(String),
    /// Refused for a reason that a retry does not change.
    Refused(String),
    /// The node is stopping or has stopped; nothing was proposed.
    Stopped(String),
    /// Leadership was to go to one node, and another took it.
    LedByAnother { asked: NodeId, leader: NodeId },
    /// There was no room for the request in time; nothing was proposed or read.
    Busy(String),
    /// The write was carried out, and its answer is larger than a message.
    AnswerTooLarge { size: u64, limit: u64 },
    /// The read took longer than one may, and was given up.
    ReadTooLong { limit: Duration },
    /// The transaction may add more than what is left of the store's limit; nothing was proposed.
    NoSpace { used: u64, limit: u64, wanted: u64 },
    /// The leader's disk is nearly full, and the transaction may write; nothing was proposed.
    DiskFull { used: u64, limit: u64 },
    /// A change of members waits for the node in question; nothing was changed.
    MemberNotReady(String),
}

impl Failure {
    /// Nobody says what became of it.
    pub(crate) fn unknown(reason: impl Into<String>) -> Self {
        Failure::Unknown {
            leader: None,
            reason: reason.into(),
        }
    }
}

impl From<InvalidTxn> for Failure {
    fn from(error: InvalidTxn) -> Self {
        Failure::Invalid(error.to_string())
    }
}

impl From<InvalidLimit> for Failure {
    fn from(error: InvalidLimit) -> Self {
        Failure::Invalid(error.to_string())
    }
}

impl From<InvalidRead> for Failure {
    fn from(error: InvalidRead) -> Self {
        Failure::Invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Key, ReadResult};

    /// `docs/formats/clients.md` shows these bytes.
    #[test]
    fn the_documented_example_has_these_bytes() {
        let call = Call {
            id: 1,
            request: Request::Read {
                reads: vec![ReadOp::Get(Key::from("a"))],
                consistency: Consistency::Linearizable,
                wait: Duration::from_secs(2),
                time: Duration::from_secs(3),
            },
        };
        let bytes = [1, 1, 1, 1, 0, 1, b'a', 0, 2, 0, 3, 0];
        assert_eq!(model::encode(&call), bytes);
        let reply = Reply {
            id: 1,
            response: Response::Read(ReadResponse {
                revision: Revision::new(5),
                results: vec![ReadResult::Get(None)],
            }),
        };
        assert_eq!(model::encode(&reply), [1, 1, 1, 5, 1, 0, 0]);
    }
}

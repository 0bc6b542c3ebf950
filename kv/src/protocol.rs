//! What clients and nodes say to each other. `docs/formats/clients.md` lists the bytes.
//!
//! A client's stream is pipelined: calls bear numbers, replies come in any order. In-process clients use the
//! same words without the bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{
    self, Command, Consistency, InvalidRead, InvalidTxn, NodeId, Outcome, ReadOp, ReadResponse, Revision,
};
use crate::node::Status;

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
    /// Read, waiting for the state that the consistency asks for at most this long.
    Read {
        #[serde(deserialize_with = "model::steps")]
        reads: Vec<ReadOp>,
        consistency: Consistency,
        wait: Duration,
    },
    /// Tell about yourself.
    Status,
    /// Change the membership or the leadership.
    Admin(Admin),
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
    Done,
    Failed(Failure),
}

/// Why a node did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// It does not lead; nothing was proposed.
    NotLeader { leader: Option<(NodeId, String)> },
    /// Proposed, but whether it commits is not known.
    Unknown { leader: Option<(NodeId, String)> },
    /// No quorum confirmed the read; nothing was read.
    NoQuorum,
    /// The state asked for did not come in time.
    NotYet { asked: Revision, current: Revision },
    /// The revision is older than the history that is kept.
    Compacted { oldest: Revision },
    /// The node last knew itself level with the leader longer ago than the caller accepts.
    TooStale { lag: Option<Duration> },
    /// Outside the limits of this node.
    Invalid(String),
    /// Refused for a reason that a retry does not change.
    Refused(String),
    /// The node is stopping or has stopped; nothing was proposed.
    Stopped(String),
    /// Leadership was to go to one node, and another took it.
    LedByAnother { asked: NodeId, leader: NodeId },
}

impl From<InvalidTxn> for Failure {
    fn from(error: InvalidTxn) -> Self {
        Failure::Invalid(error.to_string())
    }
}

impl From<InvalidRead> for Failure {
    fn from(error: InvalidRead) -> Self {
        Failure::Invalid(error.to_string())
    }
}

//! How a change of members did not come about, or perhaps did.

use crate::model::NodeId;

/// How a change of members or a transfer of leadership did not come about, or perhaps did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum MembershipError {
    /// Nothing was changed.
    #[error("this node does not lead")]
    NotLeader { leader: Option<(NodeId, String)> },
    /// Nothing was changed, and asking again changes nothing.
    #[error("{0}")]
    Refused(String),
    /// Nothing was changed; the node in question must be started, answer or catch up first.
    #[error("{0}")]
    NotReady(String),
    /// Nothing was changed; another change is under way.
    #[error("{0}")]
    Busy(String),
    /// It was begun, and may take effect yet, whole or in part.
    #[error("{0}")]
    Unknown(String),
    #[error("node {asked} was to lead, but node {leader} took over")]
    LedByAnother { asked: NodeId, leader: NodeId },
    /// Nothing was changed.
    #[error("the node has stopped: {0}")]
    Stopped(String),
}

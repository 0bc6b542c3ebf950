//! What a node sees of the group at a glance.

use std::time::Duration;

use openraft::ServerState;
use quorate_transport::Address;

use crate::identity::{ClusterUuid, MemberUuid};
use crate::model::{LogIndex, NodeId, Term};

/// One member as the membership and the metrics know it.
#[derive(Debug, Clone)]
pub(crate) struct MemberState {
    pub id: NodeId,
    pub address: Option<Address>,
    /// Which directory it is; `None` for one that was not introduced yet.
    pub member: Option<MemberUuid>,
    pub voter: bool,
    /// How far the leader knows this member's log; `None` on followers and where nothing is known yet.
    pub matched: Option<LogIndex>,
    /// How long ago the leader sent the last message that this member answered; `None` on followers, for the leader
    /// itself, and where it never answered.
    pub answered: Option<Duration>,
}

/// A glance at the Raft part.
#[derive(Debug, Clone)]
pub(crate) struct RaftState {
    /// The cluster that the node belongs to, once it knows that it does.
    pub cluster: Option<ClusterUuid>,
    pub term: Term,
    pub role: Part,
    pub leader: Option<NodeId>,
    pub last_log: Option<LogIndex>,
    pub committed: Option<LogIndex>,
    pub purged: Option<LogIndex>,
    pub members: Vec<MemberState>,
    /// Whether a quorum follows the leader, as far as was heard within a leader's lease. A leader that is cut off knows
    /// then that it leads nobody; a follower, that its leader may lead nobody.
    pub has_quorum: bool,
    /// How long ago a quorum last confirmed a leader, counted from the question. `None` before the first time, and on a
    /// sole voter, which asks nobody.
    pub confirmed: Option<Duration>,
    pub stopped: Option<String>,
}

/// A node's present part in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

impl Part {
    pub(super) fn of(state: ServerState, is_stopped: bool) -> Self {
        match state {
            _ if is_stopped => Part::Stopped,
            ServerState::Leader => Part::Leader,
            ServerState::Follower => Part::Follower,
            ServerState::Candidate => Part::Candidate,
            ServerState::Learner => Part::Learner,
            ServerState::Shutdown => Part::Stopped,
        }
    }
}

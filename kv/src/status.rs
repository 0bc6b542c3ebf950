//! What a node tells about itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::machine::Holds;
use crate::model::{LogIndex, LogPosition, NodeId, Revision, StateHash, Term};

/// A node's part in the group at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Serves writes.
    Leader,
    /// Follows a leader, with a vote.
    Follower,
    /// Stands for election.
    Candidate,
    /// Follows without a vote.
    Learner,
    /// Was shut down or ended by a fault.
    Stopped,
}

impl std::fmt::Display for NodeRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeRole::Leader => "leader",
            NodeRole::Follower => "follower",
            NodeRole::Candidate => "candidate",
            NodeRole::Learner => "learner",
            NodeRole::Stopped => "stopped",
        })
    }
}

/// A member of the group, as one node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// Which directory it is; `None` for one that was away when the cluster was formed and has not appeared yet.
    pub uuid: Option<Uuid>,
    /// Whether it has a vote.
    pub voter: bool,
    /// Entries that the leader has and this member was not yet known to have; told by leaders only.
    pub lag_entries: Option<u64>,
    /// The smoothed round trip to it.
    pub round_trip: Option<Duration>,
    /// How long ago the leader sent the last message that it answered; told by leaders, of others.
    pub answered: Option<Duration>,
}

/// A node's account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// Tells the cluster from any other that ever had this name; `None` as long as the node belongs to none.
    pub cluster_uuid: Option<Uuid>,
    /// The node.
    pub node: NodeId,
    /// Tells its data directory from any other that ever had this id.
    pub uuid: Uuid,
    /// The release that it runs.
    pub version: String,
    /// Its part.
    pub role: NodeRole,
    /// Its term.
    pub term: Term,
    /// The leader that it follows or is. A node that is cut off goes on naming the last one: see [`quorum`](Self::quorum).
    pub leader: Option<NodeId>,
    /// Whether a quorum follows a leader, as far as this node has heard within a leader's lease, somewhat more than half of `failover_min`. A leader that
    /// has lost its quorum says no.
    pub quorum: bool,
    /// How long ago a quorum was asked that has confirmed a leader since. `None` where none ever has, and on a sole voter,
    /// which asks nobody.
    pub confirmed: Option<Duration>,
    /// The revision that it has applied.
    pub revision: Revision,
    /// The oldest revision that can be read there: what was before is given up.
    pub oldest: Revision,
    /// The hash of its state at that revision and applied index.
    pub state_hash: StateHash,
    /// The length of its state file, in bytes.
    pub file_bytes: u64,
    /// How much its state holds.
    pub holds: Holds,
    /// The most bytes that it may hold, history included; `None` for any.
    pub store_bytes_max: Option<u64>,
    /// It holds so many that what would grow is refused, until there is room.
    pub is_full: bool,
    /// What its files take of its disk, in bytes, as looked at last; `None` before that, and where the disk does not say.
    pub disk_bytes: Option<u64>,
    /// What they may take: [`Settings::disk_bytes_max`](crate::node::Settings::disk_bytes_max), or what the disk has for them where that
    /// is less.
    pub disk_bytes_max: Option<u64>,
    /// They take so many that what may write is refused where it leads, until there is room.
    pub disk_is_full: bool,
    /// What its state hashed to behind the agreed entries applied last, the oldest first: all nodes have the same at the same
    /// position. A node that has started of late knows few or none.
    pub hashes: Vec<(LogPosition, StateHash)>,
    /// The last entry in its log.
    pub last_log: Option<LogIndex>,
    /// The last entry that it knows to be committed.
    pub committed: Option<LogIndex>,
    /// The last entry that it has applied.
    pub applied: Option<LogIndex>,
    /// The log before this entry is gone.
    pub purged: Option<LogIndex>,
    /// How old its state may be: everything that was acknowledged anywhere before so long ago is in it. `None` where
    /// nobody has confirmed that yet. In a healthy cluster some three heartbeats at most on a follower, one on the leader;
    /// it grows where no quorum is heard of, on the leader too.
    pub lag: Option<Duration>,
    /// The median time of the log's syncs so far, in microseconds.
    pub sync_p50_micros: Option<u64>,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// Why it stopped, if it did.
    pub fault: Option<String>,
}

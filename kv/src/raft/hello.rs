//! Who is at the other end: what two nodes tell each other first on every stream, and what they make of it.
//!
//! A certificate proves an id. It does not prove that the directory behind the id is the one that voted and acknowledged
//! under it: a directory that was lost as a whole comes back empty, with the same certificate. So each side says which
//! directory it is, which cluster it belongs to, and whom it knows the other one to be.
//!
//! [`judge`] is a pure function of the two hellos, and both sides have both.
//!
//! Always: of two nodes, one of which has the other one recorded as another directory and knows better, neither takes
//! anything from the other; nor of two that belong to two clusters. Whoever was recorded never was another one: a
//! membership names a directory's uuid from its first entry on, or names none, and then that member has never taken part.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::{ClusterUuid, MemberUuid};
use crate::model::{self, DecodeError};
use crate::planted::{self, Bug};

/// The protocols between nodes that this release speaks.
pub(crate) const VERSIONS: Versions = Versions { oldest: 1, newest: 1 };

/// What a greeting begins with, in every release.
const MAGIC: &[u8; 4] = b"QRTH";

/// A range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Versions {
    pub oldest: u16,
    pub newest: u16,
}

impl Versions {
    /// The newest that both speak.
    fn common(self, other: Versions) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// The first message on a stream between nodes, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The sender's id.
    pub node: u64,
    /// Its directory.
    pub member: MemberUuid,
    /// Drawn at the start of its process.
    pub process: u64,
    /// The cluster that it belongs to: told by a membership that it knows to be committed.
    pub cluster: Option<ClusterUuid>,
    /// The membership that is in force for it; `None` for one that has none, or none in which anybody was introduced.
    pub records: Option<Records>,
    /// Whether that membership names this very directory.
    pub is_member: bool,
    /// As whom it knows the receiver.
    pub you: Known,
    /// What it waits for, where it has no log yet.
    pub stage: Stage,
}

/// A membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Records {
    /// The cluster that it names: one that is being formed, as long as it is not committed.
    pub cluster: ClusterUuid,
    /// Its place in the log.
    pub at: u64,
    /// It is known to be committed.
    pub settled: bool,
}

/// As whom a node knows another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Known {
    /// Its id is no member's.
    Stranger,
    /// A member that was not introduced yet.
    Unmet,
    /// That directory.
    Is(MemberUuid),
}

/// What a node without a log waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// To form a cluster with the peers that it was given.
    New,
    /// To be added to a cluster. It may have heard of a leader already.
    Joining,
    /// Nothing: it has a log, or has voted.
    Formed,
    /// Others: it has written the entry that forms a cluster, or voted, and knows of nobody who took that up.
    Forming,
}

impl Hello {
    /// Whether the directory has never taken part in a cluster: it has no log, and nobody counts on a vote of its.
    pub(crate) fn is_fresh(&self) -> bool {
        matches!(self.stage, Stage::New | Stage::Joining) && self.cluster.is_none() && self.records.is_none()
    }

    /// Whether a cluster that lists the node and never met it may take this directory in. One that began to form a cluster
    /// of which nobody heard has accepted nothing of anybody: what it wrote gives way, as of two that form at once.
    pub(crate) fn may_be_introduced(&self) -> bool {
        self.is_fresh() || self.stage == Stage::Forming && self.cluster.is_none()
    }

    /// How much its word counts: a node that knows a committed membership before one that does not, then the later
    /// membership.
    fn authority(&self) -> (bool, Option<(u64, bool)>) {
        let records = self.records.map(|records| (records.at, records.settled));
        (self.cluster.is_some(), records)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSIONS.oldest.to_le_bytes());
        bytes.extend_from_slice(&VERSIONS.newest.to_le_bytes());
        model::encode_onto(self, &mut bytes);
        bytes
    }

    /// Reads a greeting of any release; where there is no common version, what follows the versions is not looked at.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NotAHello> {
        let malformed = || {
            NotAHello::Malformed(DecodeError::Malformed {
                reason: "it does not begin as a greeting does".to_owned(),
            })
        };
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let (oldest, rest) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
        let (newest, rest) = rest.split_first_chunk::<2>().ok_or_else(malformed)?;
        if magic != MAGIC {
            return Err(malformed());
        }
        let theirs = Versions {
            oldest: u16::from_le_bytes(*oldest),
            newest: u16::from_le_bytes(*newest),
        };
        if VERSIONS.common(theirs).is_none() {
            return Err(NotAHello::NoCommonVersion(theirs));
        }
        model::decode(rest).map_err(NotAHello::Malformed)
    }
}

/// A first message that is no greeting of a release that this one can speak with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAHello {
    #[error("its greeting cannot be read: {0}")]
    Malformed(DecodeError),
    #[error(
        "it speaks versions {} to {} of the protocol between nodes, this release versions {} to {}: run releases \
         that have one in common", .0.oldest, .0.newest, VERSIONS.oldest, VERSIONS.newest
    )]
    NoCommonVersion(Versions),
}

/// What one side makes of two hellos.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Each is who the other one takes it for.
    Fits,
    /// Not now. It changes by itself, or when somebody is added.
    NotYet(Lacks),
    /// The peer is not to be spoken with.
    Refused(Wrong),
    /// This node is not to be spoken with: its own fault, for good.
    Own(Wrong),
}

/// What is missing before two nodes speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    /// Neither belongs to a cluster.
    Cluster,
    /// The one is a member that was not introduced to the other yet.
    Introduction,
    /// The one is no member of the other's cluster.
    Membership,
    /// The one is another directory than the other one knows, which may not know the latest.
    Agreement,
}

/// Why two nodes never speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    Cluster,
    Directory,
    Removed,
}

impl Wrong {
    /// In the labels of metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Wrong::Cluster => "another_cluster",
            Wrong::Directory => "another_directory",
            Wrong::Removed => "removed",
        }
    }
}

/// What `mine` makes of a peer that has sent `theirs`. Each was made for the other.
pub(crate) fn judge(mine: &Hello, theirs: &Hello) -> Verdict {
    if planted::is(Bug::WipedNodeRejoins) {
        return Verdict::Fits;
    }
    if let (Some(my), Some(their)) = (mine.cluster, theirs.cluster)
        && my != their
    {
        return Verdict::Refused(Wrong::Cluster);
    }
    let (my, their) = (mine.authority(), theirs.authority());
    if mine.records.is_none() && theirs.records.is_none() {
        return Verdict::NotYet(Lacks::Cluster);
    }
    if my >= their {
        let said = word(mine, theirs);
        let of_peer = match said {
            Word::Fits => Verdict::Fits,
            Word::Lacks(lacks) => Verdict::NotYet(lacks),
            Word::Wrong(wrong) => Verdict::Refused(wrong),
        };
        if of_peer != Verdict::Fits || my > their {
            return of_peer;
        }
    }
    match word(theirs, mine) {
        Word::Fits => Verdict::Fits,
        Word::Lacks(lacks) => Verdict::NotYet(lacks),
        // What is not committed may yet come to nothing, and who waits to be added may be added later.
        Word::Wrong(wrong) if is_lasting(mine, theirs) => Verdict::Own(wrong),
        Word::Wrong(_) => Verdict::NotYet(Lacks::Agreement),
    }
}

/// Whether what a peer says against this node stands for good.
fn is_lasting(mine: &Hello, theirs: &Hello) -> bool {
    let is_settled = theirs.cluster.is_some() && theirs.records.is_some_and(|records| records.settled);
    is_settled && mine.stage != Stage::Joining && theirs.authority() > mine.authority()
}

/// What one node says of another.
enum Word {
    Fits,
    Lacks(Lacks),
    Wrong(Wrong),
}

fn word(speaker: &Hello, other: &Hello) -> Word {
    match speaker.you {
        Known::Is(member) if member == other.member => Word::Fits,
        Known::Is(_) => Word::Wrong(Wrong::Directory),
        Known::Unmet => Word::Lacks(Lacks::Introduction),
        Known::Stranger => {
            let is_settled = speaker.records.is_some_and(|records| records.settled);
            match (other.is_member, speaker.cluster.is_some()) {
                (true, true) if is_settled => Word::Wrong(Wrong::Removed),
                // A node that has not heard of the latest members takes what those send it, as Raft has it; and whose
                // leaving is not committed may stay.
                (true, true) => Word::Fits,
                (true, false) | (false, _) => Word::Lacks(Lacks::Membership),
            }
        }
    }
}

/// A finding of [`judge`] in words that say what to do; nothing where both fit.
pub(crate) fn in_words(verdict: Verdict, mine: &Hello, theirs: &Hello) -> Option<String> {
    let (own, peer) = (mine.node, theirs.node);
    let replace = |id: u64| {
        format!("remove node {id} from the cluster, and add an empty directory under a new node id (--join)")
    };
    Some(match verdict {
        Verdict::Fits => return None,
        Verdict::NotYet(Lacks::Cluster) => {
            format!("neither this node nor node {peer} belongs to a cluster yet")
        }
        Verdict::NotYet(Lacks::Introduction) => {
            format!("node {own} and node {peer} were not introduced yet: a leader does that")
        }
        Verdict::NotYet(Lacks::Membership) => format!(
            "one of node {own} and node {peer} is no member of the other one's cluster: start it with --join, and add \
             it with `member add`"
        ),
        Verdict::NotYet(Lacks::Agreement) => format!(
            "node {peer} does not know this directory ({}) as node {own}'s: where it is new, {}",
            mine.member,
            replace(own)
        ),
        Verdict::Refused(Wrong::Cluster) => format!(
            "node {peer} belongs to the cluster {}, and this node to {}: two clusters of one name. Keep the one whose \
             data counts, and start the others' nodes with empty directories under new node ids",
            Text(theirs.cluster),
            Text(mine.cluster)
        ),
        Verdict::Refused(Wrong::Directory) => format!(
            "node {peer} is another directory ({}) than the one that the cluster knows under this id: what it had \
             promised and acknowledged is gone. It is refused: {}",
            theirs.member,
            replace(peer)
        ),
        Verdict::Refused(Wrong::Removed) => {
            format!("node {peer} was removed from the cluster, and is refused: stop it")
        }
        Verdict::Own(Wrong::Cluster) => format!(
            "most of the others belong to the cluster {}, and this node to {}: two clusters of one name. Keep the one \
             whose data counts, and start the others' nodes with empty directories under new node ids",
            Text(theirs.cluster),
            Text(mine.cluster)
        ),
        Verdict::Own(Wrong::Directory) => format!(
            "node {peer} of the cluster {} knows node {own} as another directory: what that one had promised and \
             acknowledged is not in this one ({}), so it must not take part under this id. Stop it; {}",
            Text(theirs.cluster),
            mine.member,
            replace(own)
        ),
        Verdict::Own(Wrong::Removed) => format!(
            "node {own} was removed from the cluster {}, says node {peer}. Its directory is needed no more; to take it \
             in again, add an empty directory under a new node id",
            Text(theirs.cluster)
        ),
    })
}

/// A cluster's uuid, where there is one.
struct Text(Option<ClusterUuid>);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(uuid) => uuid.fmt(f),
            None => f.write_str("that is being formed"),
        }
    }
}

#[cfg(test)]
mod tests;

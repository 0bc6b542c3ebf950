//! `quorate status`: every node of the cluster, as it tells about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Cell, Color};
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{LogPosition, NodeId, StateHash};
use quorate_kv::node::{NodeRole, Status};
use serde::Serialize;
use uuid::Uuid;

use crate::cli::Reach;
use crate::failure::Failure;
use crate::output::{Output, Report, maybe, number, table};
use crate::raw;
use crate::reach::Reached;
use crate::text::{duration, short, size};

/// Runs the command.
pub async fn run(reach: Reach, output: Output) -> Result<(), Failure> {
    // Who wants to know what is wrong should not wait long for it.
    const PATIENCE: Duration = Duration::from_secs(3);
    let client = Reached::find(&reach)?
        .client()?
        .with_deadline(reach.deadline.min(PATIENCE));
    match ClusterReport::new(client.statuses().await) {
        Ok(report) => output.show(&report),
        Err(silent) => Err(why(&client, silent).await),
    }
}

/// Why no node answers. Asked as every other command asks, the client says which kind of failure it is: whether this client is
/// admitted by none, or nobody is there.
async fn why(client: &Client, silent: Failure) -> Failure {
    match client.status().await {
        Err(error @ Error::NotAdmitted { .. }) => error.into(),
        _ => silent,
    }
}

/// Where the members of the cluster are, as the node knows that knows best; none where it belongs to no cluster yet.
pub(crate) async fn member_addresses(client: &Client) -> Result<Vec<String>, Failure> {
    let statuses = client.statuses().await;
    match best_view(answered(&statuses)) {
        Some(view) => Ok(view.members.iter().map(|member| member.address.clone()).collect()),
        None => Err(why(client, nobody(&statuses)).await),
    }
}

fn answered(statuses: &BTreeMap<String, Result<Status, String>>) -> Vec<&Status> {
    statuses
        .values()
        .filter_map(|status| status.as_ref().ok())
        .collect()
}

/// No node answers: each with its reason.
fn nobody(statuses: &BTreeMap<String, Result<Status, String>>) -> Failure {
    let reason = |(address, status): (&String, &Result<_, String>)| {
        let reason = status.as_ref().err()?;
        Some(format!("{address}: {reason}"))
    };
    Failure::unavailable("no node answers").details(statuses.iter().filter_map(reason))
}

/// The cluster at a moment.
#[derive(Debug, Serialize)]
pub struct ClusterReport {
    cluster: String,
    /// Tells it from any other that ever had this name.
    cluster_uuid: Option<Uuid>,
    /// Who leads with a quorum behind it.
    leader: Option<u64>,
    /// Whether there is such a leader, as its nodes have heard within a leader's lease.
    quorum: bool,
    standing: Standing,
    nodes: Vec<NodeReport>,
}

/// Whether the cluster serves, and if not, whether it can help itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    /// A leader has a quorum.
    Serving,
    /// A majority of the voters is there, and nobody leads it yet.
    Electing,
    /// Too few voters are there to elect anybody.
    NoQuorum,
    /// None of the nodes that answered belongs to a cluster yet.
    NotFormed,
}

/// Whether a node has a leader with a quorum behind it.
fn is_served(status: &Status) -> bool {
    status.quorum && status.leader.is_some()
}

/// Which of those that answered knows the cluster best. Of two that call themselves leader the one with the higher term is it;
/// one that has lost its quorum is none. Whom others follow that are reached leads too, where it is not reached itself.
fn best_view<'a>(answered: impl IntoIterator<Item = &'a Status>) -> Option<&'a Status> {
    let leads = |s: &Status| s.role == NodeRole::Leader;
    answered.into_iter().max_by_key(|s| {
        (
            is_served(s),
            is_served(s) && leads(s),
            s.cluster_uuid.is_some(),
            s.term,
        )
    })
}

/// What the cluster knows of a node that answers: by its id, its directory's uuid and its cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belonging {
    Member,
    /// A member that was away when the cluster was formed, and has not been met yet.
    NotMet,
    /// It belongs to no cluster, and this one does not know its id.
    Waits,
    /// It belongs to no cluster, and nor does any node that answered.
    NotFormed,
    /// The cluster knows its id as another directory.
    AnotherDirectory,
    AnotherCluster,
    /// It was of this cluster, which does not know its id any more.
    Removed,
}

impl Belonging {
    fn of(status: &Status, view: &Status) -> Self {
        if view.cluster_uuid.is_none() && status.cluster_uuid.is_none() {
            return Belonging::NotFormed;
        }
        if status
            .cluster_uuid
            .is_some_and(|uuid| Some(uuid) != view.cluster_uuid)
        {
            return Belonging::AnotherCluster;
        }
        match view.members.iter().find(|member| member.id == status.node) {
            Some(member) if member.uuid == Some(status.uuid) => Belonging::Member,
            Some(member) if member.uuid.is_some() => Belonging::AnotherDirectory,
            Some(_) => Belonging::NotMet,
            None if status.cluster_uuid.is_none() => Belonging::Waits,
            None => Belonging::Removed,
        }
    }

    /// In place of its role, where it has none.
    fn word(self) -> Option<&'static str> {
        match self {
            Belonging::Member => None,
            Belonging::NotMet => Some("waits to be met"),
            Belonging::Waits => Some("waits to be added"),
            Belonging::NotFormed => Some("waits for a cluster"),
            Belonging::AnotherDirectory | Belonging::AnotherCluster | Belonging::Removed => Some("no member"),
        }
    }

    /// What to say of this node below the table.
    fn line(self, id: u64, address: &str, state: &NodeState) -> Option<String> {
        Some(match self {
            Belonging::Member => return None,
            Belonging::NotMet => {
                format!(
                    "node {id} is a member that the cluster has not met yet: the next leader that reaches it takes it in"
                )
            }
            Belonging::Waits => format!(
                "node {id} waits to be added, and is no member of this cluster: quorate member add {id} {address}"
            ),
            Belonging::NotFormed => format!(
                "node {id} belongs to no cluster yet: it waits for its peers, or to be added (quorate member add)"
            ),
            Belonging::AnotherDirectory => format!(
                "node {id} is no member of this cluster, which knows node {id} as another directory than its own, {}",
                short(state.uuid)
            ),
            Belonging::AnotherCluster => {
                let uuid = state
                    .cluster_uuid
                    .map_or_else(String::new, |uuid| format!(", {uuid}"));
                format!("node {id} belongs to another cluster of this name{uuid}")
            }
            Belonging::Removed => format!("node {id} is no member of this cluster any more: it was removed"),
        })
    }
}

/// One node.
#[derive(Debug, Serialize)]
struct NodeReport {
    id: Option<u64>,
    address: String,
    reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    state: Option<NodeState>,
}

#[derive(Debug, Serialize)]
struct NodeState {
    /// Tells its data directory from any other that ever had this id.
    uuid: Uuid,
    /// The cluster that it belongs to, which may be another one of the same name.
    cluster_uuid: Option<Uuid>,
    /// Whether it is a member of the cluster, which also knows its directory or has met none under its id.
    member: bool,
    #[serde(skip)]
    belonging: Belonging,
    version: String,
    role: NodeRole,
    voter: bool,
    term: u64,
    revision: u64,
    /// The oldest revision that can be read there.
    oldest_revision: u64,
    state_hash: String,
    /// The length of the state file.
    state_file_bytes: u64,
    /// Keys that exist.
    records: u64,
    /// What they count: the key twice, the value and 64 bytes each.
    live_bytes: u64,
    /// What the versions before them count that the node still has.
    history_bytes: u64,
    /// What both may count together; null for any.
    store_bytes_max: Option<u64>,
    /// What would grow is refused.
    full: bool,
    /// What its files take of its disk; null where that is not known.
    disk_bytes: Option<u64>,
    /// What they may take: `disk_bytes_max`, or what the disk has for them where that is less.
    disk_bytes_max: Option<u64>,
    /// They take so much that what would grow is refused where it leads.
    disk_full: bool,
    /// What the state hashed to at the entries at which nodes compare, the oldest first.
    state_hashes: Vec<HashAt>,
    last_log: Option<u64>,
    committed: Option<u64>,
    applied: Option<u64>,
    purged: Option<u64>,
    /// Entries behind the leader, as the leader knows it.
    lag_entries: Option<u64>,
    /// How old its state may be.
    lag_micros: Option<u64>,
    fsync_p50_micros: Option<u64>,
    fault: Option<String>,
}

/// What a state hashed to behind an entry.
#[derive(Debug, Serialize)]
struct HashAt {
    term: u64,
    index: u64,
    hash: String,
}

impl HashAt {
    fn of((position, hash): &(LogPosition, StateHash)) -> Self {
        Self {
            term: position.term.number(),
            index: position.index.number(),
            hash: hash.to_string(),
        }
    }
}

impl ClusterReport {
    /// From what the nodes told, by address. When none answered, the cluster is unavailable.
    pub fn new(statuses: BTreeMap<String, Result<Status, String>>) -> Result<Self, Failure> {
        let answered = answered(&statuses);
        let Some(view) = best_view(answered.iter().copied()) else {
            return Err(nobody(&statuses));
        };
        let leader = view.leader.filter(|_| is_served(view));
        let voters: Vec<_> = view.members.iter().filter(|m| m.voter).map(|m| m.id).collect();
        let is_up = |id: &&NodeId| {
            answered.iter().any(|s| {
                s.node == **id && s.role != NodeRole::Stopped && Belonging::of(s, view) == Belonging::Member
            })
        };
        let standing = if leader.is_some() {
            Standing::Serving
        } else if view.cluster_uuid.is_none() {
            Standing::NotFormed
        } else if voters.iter().filter(is_up).count() * 2 > voters.len() {
            Standing::Electing
        } else {
            Standing::NoQuorum
        };
        let mut nodes: Vec<NodeReport> = Vec::new();
        for (address, status) in &statuses {
            let node = match status {
                Ok(status) => NodeReport::answered(address, status, view),
                Err(reason) => NodeReport::silent(address, reason, view),
            };
            // A node may be known under the address that it was added with and the one it was asked at.
            let twin = |other: &&mut NodeReport| other.id.is_some() && other.id == node.id;
            match nodes.iter_mut().find(twin) {
                Some(other) if !other.reachable => *other = node,
                Some(_) => {}
                None => nodes.push(node),
            }
        }
        nodes.sort_by_key(|node| (node.id.is_none(), node.id));
        Ok(Self {
            cluster: view.cluster.clone(),
            cluster_uuid: view.cluster_uuid,
            leader: leader.map(|id| id.number()),
            quorum: standing == Standing::Serving,
            standing,
            nodes,
        })
    }
}

impl NodeState {
    /// Its part in the cluster, in a word or a few.
    fn part(&self) -> String {
        match (self.belonging.word(), self.role) {
            (Some(word), role) if role != NodeRole::Stopped => word.to_owned(),
            (None, NodeRole::Follower) if !self.voter => NodeRole::Learner.to_string(),
            (_, role) => role.to_string(),
        }
    }
}

impl NodeReport {
    fn answered(address: &str, status: &Status, view: &Status) -> Self {
        let index = |index: Option<quorate_kv::model::LogIndex>| index.map(|index| index.number());
        let belonging = Belonging::of(status, view);
        let is_member = matches!(belonging, Belonging::Member | Belonging::NotMet);
        let member = view
            .members
            .iter()
            .find(|member| is_member && member.id == status.node);
        let own = status.members.iter().find(|member| member.id == status.node);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let address = if address.is_empty() {
            own.map_or("", |m| m.address.as_str())
        } else {
            address
        };
        Self {
            id: Some(status.node.number()),
            address: address.to_owned(),
            reachable: true,
            error: None,
            state: Some(NodeState {
                uuid: status.uuid,
                cluster_uuid: status.cluster_uuid,
                member: is_member,
                belonging,
                version: status.version.clone(),
                role: status.role,
                voter: member.is_some_and(|member| member.voter),
                term: status.term.number(),
                revision: status.revision.number(),
                oldest_revision: status.oldest.number(),
                state_hash: status.state_hash.to_string(),
                state_file_bytes: status.file_bytes,
                records: status.holds.records,
                live_bytes: status.holds.live_bytes,
                history_bytes: status.holds.history_bytes,
                store_bytes_max: status.store_bytes_max,
                full: status.is_full,
                disk_bytes: status.disk_bytes,
                disk_bytes_max: status.disk_bytes_max,
                disk_full: status.disk_is_full,
                state_hashes: status.hashes.iter().map(HashAt::of).collect(),
                last_log: index(status.last_log),
                committed: index(status.committed),
                applied: index(status.applied),
                purged: index(status.purged),
                lag_entries: member.and_then(|member| member.lag_entries),
                lag_micros: status.lag.map(micros),
                fsync_p50_micros: status.sync_p50_micros,
                fault: status.fault.clone(),
            }),
        }
    }

    fn silent(address: &str, reason: &str, view: &Status) -> Self {
        let member = view.members.iter().find(|member| member.address == address);
        Self {
            id: member.map(|member| member.id.number()),
            address: address.to_owned(),
            reachable: false,
            error: Some(reason.to_owned()),
            state: None,
        }
    }
}

impl Report for ClusterReport {
    fn text(&self) -> String {
        let mut table = table([
            "node",
            "address",
            "role",
            "term",
            "revision",
            "applied",
            "behind",
            "caught up",
            "fsync p50",
        ]);
        for node in &self.nodes {
            let id = maybe(node.id);
            let address = Cell::new(&node.address);
            let Some(state) = &node.state else {
                table.add_row(vec![id, address, Cell::new("unreachable").fg(Color::Red)]);
                continue;
            };
            let role = Cell::new(state.part());
            let role = match state.role {
                _ if !state.member => role.fg(Color::Yellow),
                NodeRole::Leader => role.fg(Color::Green),
                NodeRole::Stopped => role.fg(Color::Red),
                NodeRole::Candidate => role.fg(Color::Yellow),
                NodeRole::Follower | NodeRole::Learner => role,
            };
            let ago = |micros: u64| format!("{} ago", duration(Duration::from_micros(micros)));
            table.add_row(vec![
                id,
                address,
                role,
                number(state.term),
                number(state.revision),
                maybe(state.applied),
                maybe(state.lag_entries),
                match state.role {
                    NodeRole::Leader => number("-"),
                    _ => maybe(state.lag_micros.map(ago)),
                },
                maybe(state.fsync_p50_micros.map(|micros| format!("{micros} µs"))),
            ]);
        }
        let faults: String = self
            .nodes
            .iter()
            .filter_map(|node| Some((node.id?, node.state.as_ref()?.fault.as_ref()?)))
            .map(|(id, fault)| format!("\nnode {id} has stopped: {fault}"))
            .collect();
        let silent: String = self
            .nodes
            .iter()
            .filter_map(|node| {
                node.error
                    .as_ref()
                    .map(|reason| format!("\n{}: {reason}", node.address))
            })
            .collect();
        let full = self.leader.and_then(|leader| {
            let node = self.nodes.iter().find(|node| node.id == Some(leader))?;
            let state = node.state.as_ref().filter(|state| state.full)?;
            Some(format!(
                "\nthe store is nearly full: {} of {} are used; what grows is refused until there is room",
                size(state.live_bytes + state.history_bytes),
                size(state.store_bytes_max?)
            ))
        });
        let disks_full: String = self
            .nodes
            .iter()
            .filter_map(|node| {
                let state = node.state.as_ref().filter(|state| state.disk_full)?;
                Some(format!(
                    "\nthe disk of node {} is nearly full: {} of {} are used; where it leads, what may write is refused",
                    node.id?,
                    size(state.disk_bytes?),
                    size(state.disk_bytes_max?)
                ))
            })
            .collect();
        let leader = match self.leader {
            Some(leader) => format!("node {leader} leads"),
            None => "nobody leads".to_owned(),
        };
        let standing = match self.standing {
            Standing::Serving => "quorum",
            Standing::Electing => "electing",
            Standing::NoQuorum => "no quorum",
            Standing::NotFormed => "not formed yet",
        };
        let strangers: String = self
            .nodes
            .iter()
            .filter_map(|node| {
                let state = node.state.as_ref()?;
                state.belonging.line(node.id?, &node.address, state)
            })
            .map(|line| format!("\n{line}"))
            .collect();
        let uuid = self.cluster_uuid.map(|uuid| format!(", uuid {}", short(uuid)));
        format!(
            "cluster {}: {leader}, {standing}{}\n{table}{full}{disks_full}{silent}{strangers}{faults}",
            self.cluster,
            uuid.unwrap_or_default(),
            full = full.unwrap_or_default()
        )
    }

    /// A node on each line: what the table shows of it, with numbers as JSON has them.
    fn raw(&self) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        for node in &self.nodes {
            let state = node.state.as_ref();
            let shown = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
            let part = state.map_or_else(|| "unreachable".to_owned(), NodeState::part);
            raw::line(
                &mut lines,
                [
                    shown(node.id),
                    node.address.clone(),
                    part,
                    shown(state.map(|state| state.term)),
                    shown(state.map(|state| state.revision)),
                    shown(state.and_then(|state| state.applied)),
                    shown(state.and_then(|state| state.lag_entries)),
                    shown(state.and_then(|state| state.lag_micros)),
                    shown(state.and_then(|state| state.fsync_p50_micros)),
                ],
            );
        }
        Some(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_kv::model::{Revision, Term};
    use quorate_kv::node::MemberStatus;

    fn directory(node: u64) -> Uuid {
        Uuid::from_u128(node.into())
    }

    /// One of three voters.
    fn status(node: u64, role: NodeRole, term: u64, leader: Option<u64>, quorum: bool) -> Status {
        let member = |id| MemberStatus {
            id: NodeId::new(id),
            address: format!("node-{id}:7001"),
            uuid: Some(directory(id)),
            voter: true,
            lag_entries: None,
            round_trip: None,
            answered: None,
        };
        Status {
            cluster: "test".to_owned(),
            cluster_uuid: Some(Uuid::from_u128(100)),
            uuid: directory(node),
            node: NodeId::new(node),
            version: "0".to_owned(),
            role,
            term: Term::new(term),
            leader: leader.map(NodeId::new),
            quorum,
            confirmed: None,
            revision: Revision::FIRST,
            oldest: Revision::FIRST,
            state_hash: StateHash(0),
            file_bytes: 0,
            holds: Default::default(),
            store_bytes_max: None,
            is_full: false,
            disk_bytes: None,
            disk_bytes_max: None,
            disk_is_full: false,
            hashes: Vec::new(),
            last_log: None,
            committed: None,
            applied: None,
            purged: None,
            lag: None,
            sync_p50_micros: None,
            members: (1..=3).map(member).collect(),
            fault: None,
        }
    }

    fn report(statuses: impl IntoIterator<Item = Status>) -> ClusterReport {
        let told = statuses
            .into_iter()
            .map(|s| (format!("node-{}:7001", s.uuid), Ok(s)));
        ClusterReport::new(told.collect()).expect("somebody answered")
    }

    /// A node that belongs to no cluster.
    fn newcomer(node: u64) -> Status {
        Status {
            cluster_uuid: None,
            members: Vec::new(),
            ..status(node, NodeRole::Learner, 0, None, false)
        }
    }

    /// The story: a node that nobody had added, and one that was refused, were shown as "learner, term 0".
    #[test]
    fn a_node_that_is_no_member_is_told_for_what_it_is() {
        let leader = || status(1, NodeRole::Leader, 3, Some(1), true);
        let (mut lost, mut elsewhere, mut removed) = (
            newcomer(2),
            leader(),
            status(5, NodeRole::Follower, 2, None, false),
        );
        lost.uuid = directory(22);
        elsewhere.node = NodeId::new(3);
        elsewhere.uuid = directory(33);
        elsewhere.term = Term::new(1);
        elsewhere.cluster_uuid = Some(Uuid::from_u128(200));
        removed.uuid = directory(55);
        let cases = [
            (newcomer(4), "waits to be added", "quorate member add 4"),
            (lost, "no member", "knows node 2 as another directory"),
            (elsewhere, "no member", "node 3 belongs to another cluster"),
            (
                removed,
                "no member",
                "node 5 is no member of this cluster any more",
            ),
        ];
        for (stranger, word, line) in cases {
            let report = report([leader(), stranger]);
            let text = report.text();
            assert!(text.contains(word) && text.contains(line), "{text}");
            assert!(!text.contains("learner"), "{text}");
            assert_eq!(report.leader, Some(1));
            let members = report
                .nodes
                .iter()
                .map(|node| node.state.as_ref().unwrap().member);
            assert_eq!(members.collect::<Vec<_>>(), [true, false], "{text}");
        }
    }

    #[test]
    fn nodes_of_no_cluster_wait_for_one() {
        let report = report([newcomer(1), newcomer(2)]);
        assert_eq!((report.leader, report.standing), (None, Standing::NotFormed));
        let text = report.text();
        assert!(
            text.contains("not formed yet") && text.contains("waits for a cluster"),
            "{text}"
        );
    }

    /// It has no vote that counts before a leader has met it.
    #[test]
    fn a_voter_that_the_cluster_has_not_met_makes_no_quorum() {
        let mut one = status(1, NodeRole::Follower, 3, None, false);
        one.members[2].uuid = None;
        let report = report([one, newcomer(3)]);
        assert_eq!(report.standing, Standing::NoQuorum);
        assert!(
            report
                .text()
                .contains("node 3 is a member that the cluster has not met yet")
        );
    }

    #[test]
    fn a_cluster_has_no_quorum_only_when_it_can_elect_nobody() {
        use NodeRole::{Candidate, Follower, Leader, Stopped};
        let cases = [
            (
                "all is well",
                vec![
                    status(1, Leader, 3, Some(1), true),
                    status(2, Follower, 3, Some(1), true),
                    status(3, Follower, 3, Some(1), true),
                ],
                (Some(1), Standing::Serving),
            ),
            (
                "the leader is not reached, and those who are follow it",
                vec![status(2, Follower, 3, Some(1), true)],
                (Some(1), Standing::Serving),
            ),
            (
                "the leader died, two of three are electing",
                vec![
                    status(2, Candidate, 4, None, false),
                    status(3, Follower, 3, Some(1), false),
                ],
                (None, Standing::Electing),
            ),
            (
                "the leader is cut off from two that elect another",
                vec![
                    status(1, Leader, 3, Some(1), false),
                    status(2, Follower, 3, Some(1), false),
                    status(3, Follower, 3, Some(1), false),
                ],
                (None, Standing::Electing),
            ),
            (
                "one that was deposed does not know it yet",
                vec![
                    status(1, Leader, 3, Some(1), true),
                    status(2, Leader, 4, Some(2), true),
                ],
                (Some(2), Standing::Serving),
            ),
            (
                "a leader is left alone",
                vec![status(1, Leader, 3, Some(1), false)],
                (None, Standing::NoQuorum),
            ),
            (
                "two of three, one of which has stopped",
                vec![
                    status(1, Follower, 3, Some(2), false),
                    status(2, Stopped, 3, Some(2), false),
                ],
                (None, Standing::NoQuorum),
            ),
        ];
        for (case, statuses, (leader, standing)) in cases {
            let told = statuses
                .into_iter()
                .map(|s| (format!("node-{}:7001", s.node), Ok(s)));
            let report = ClusterReport::new(told.collect()).expect("somebody answered");
            assert_eq!((report.leader, report.standing), (leader, standing), "{case}");
            assert_eq!(report.quorum, standing == Standing::Serving, "{case}");
        }
    }
}

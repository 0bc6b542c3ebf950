//! How a cluster comes about, how its members are introduced to each other, and how one that was removed learns it.
//!
//! The membership with which a cluster is formed names the cluster, by a uuid drawn for it, and every member's directory that
//! whoever forms it has heard of. So the one entry that makes a cluster also says who is in it, and no vote and no
//! acknowledgment was ever asked of somebody else. Two nodes that form at once make two such entries, with two uuids;
//! Raft keeps the one and discards the other before anything is built on it.
//!
//! A new directory forms a cluster only with others that are as new. One that is told of a cluster by any peer waits: the
//! cluster takes it in, or refuses it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use openraft::{ChangeMembers, ServerState};
use tokio::sync::Mutex;

use super::acquaintance::{Acquaintance, Own, cluster_of, known};
use super::freshness::{Freshness, committed_by_leader};
use super::hello::{Hello, Known, Stage};
use super::membership_error::MembershipError;
use super::node::RaftNode;
use super::state::Part;
use super::state_machine::Raft;
use super::types::{Introduced, Member, StoredMembership};
use crate::env;
use crate::fault::{Fault, Faults};
use crate::identity::{ClusterUuid, MemberUuid};
use crate::model::NodeId;

/// How long all peers are waited for before a majority forms the cluster without the rest: many times what a node takes to
/// start and to answer, so that one that belongs to a cluster and runs has said so.
const GRACE: Duration = Duration::from_secs(5);
/// How often a new node asks its peers.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// The lowest id forms the cluster at once; the others each give those before them this long to do so, so that one
/// candidate stands and the first election needs no second round. Any of them suffices.
const TURN: Duration = Duration::from_millis(700);
/// How often a leader looks for members that were not introduced yet.
const INTRODUCE_EVERY: Duration = Duration::from_millis(500);
/// How often it looks whether an entry of its own term is committed, until one is.
const ESTABLISHED_LOOK: Duration = Duration::from_millis(20);
/// How often a node that hears of no leader greets the other members: they may know that it was removed.
const GREET_EVERY: Duration = Duration::from_secs(1);

impl RaftNode {
    /// Says what the node waits for, as long as it has no log.
    pub(crate) fn waits_for(&self, is_joining: bool, members: &BTreeMap<NodeId, Member>) {
        let listed = match is_joining {
            true => BTreeSet::new(),
            false => members.keys().map(|id| id.number()).collect(),
        };
        self.acquaintance.waits_for(is_joining, listed);
    }

    /// Forms a cluster of this node alone, if its log is empty.
    pub(crate) async fn form_alone(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), MembershipError> {
        self.form(members, &BTreeMap::new()).await
    }

    /// Forms the cluster, if this node's log is empty; `met` are the other members that may take part.
    async fn form(
        &self,
        members: &BTreeMap<NodeId, Member>,
        met: &BTreeMap<u64, MemberUuid>,
    ) -> Result<(), MembershipError> {
        let (own, cluster) = (self.acquaintance.own(), ClusterUuid::draw());
        let members: BTreeMap<u64, Member> = members
            .iter()
            .map(|(id, member)| {
                let id = id.number();
                let uuid = match id == own.node {
                    true => Some(own.member),
                    false => met.get(&id).copied(),
                };
                let introduced = uuid.map(|member| Introduced { member, cluster });
                let address = member.address.clone();
                (id, Member { address, introduced })
            })
            .collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error)) => Err(MembershipError::Refused(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(MembershipError::Stopped(fatal.to_string())),
        }
    }

    /// Forms the cluster with the peers, once that may be done and it is this node's turn; ends as well when another has
    /// formed it, or the node stops.
    pub(crate) async fn form_in_turn(&self, members: BTreeMap<NodeId, Member>) {
        let (own, began) = (self.acquaintance.own().node, env::now());
        let peers: Vec<_> = members
            .iter()
            .filter(|(id, _)| id.number() != own)
            .map(|(id, member)| member.peer(id.number()))
            .collect();
        let mut is_its_turn = false;
        loop {
            let answers = self.acquaintance.greet_all(peers.iter().cloned()).await;
            let is_grace_over = began.elapsed() >= GRACE;
            let pause = match may_form(members.len(), &answers, is_grace_over) {
                None => ASK_EVERY,
                Some(met) => {
                    let before_us = met.keys().filter(|id| **id < own).count();
                    if before_us == 0 || is_its_turn {
                        if let Err(error) = self.form(&members, &met).await {
                            tracing::warn!(%error, "the cluster was not formed by this node");
                        }
                        return;
                    }
                    is_its_turn = true;
                    TURN * u32::try_from(before_us).unwrap_or(u32::MAX)
                }
            };
            let begun = self.wait_for(|state| {
                state.last_log.is_some() || state.leader.is_some() || state.role == Part::Stopped
            });
            if env::timeout(pause, begun).await.is_ok() {
                return;
            }
        }
    }
}

/// With whom a new node may form a cluster of `size` members, itself included: with all others, where all are as new; with a
/// majority when the rest has not answered for long. Never where anybody says that there is one.
fn may_form(
    size: usize,
    answers: &BTreeMap<u64, Hello>,
    is_grace_over: bool,
) -> Option<BTreeMap<u64, MemberUuid>> {
    if answers.values().any(|hello| !hello.is_fresh()) {
        return None;
    }
    let is_with_us = |hello: &&Hello| hello.stage == Stage::New && hello.you != Known::Stranger;
    let met: BTreeMap<u64, MemberUuid> = answers
        .values()
        .filter(is_with_us)
        .map(|hello| (hello.node, hello.member))
        .collect();
    let count = met.len() + 1;
    (count == size || is_grace_over && count * 2 > size).then_some(met)
}

/// Has a leader introduce the members that were away when the cluster was formed, as soon as they appear.
pub(super) async fn introduce(raft: Raft, acquaintance: Acquaintance, changing: Arc<Mutex<()>>) {
    let mut changes = raft.server_metrics();
    let now = raft.server_metrics();
    let unmet = || {
        let metrics = now.borrow_watched();
        let membership = &metrics.membership_config;
        let is_settled = metrics.membership_config == metrics.committed_membership_config;
        if metrics.state != ServerState::Leader || !is_settled {
            return BTreeMap::new();
        }
        unmet(membership)
    };
    // A change of who may vote, before anything of the own term is committed, could be made beside that of a leader before:
    // each with a majority of its own.
    let states = raft.metrics();
    let is_established = || committed_by_leader(&states.borrow_watched()).is_some();
    loop {
        let waiting = unmet();
        if waiting.is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        if !is_established() {
            env::sleep(ESTABLISHED_LOOK).await;
            continue;
        }
        let peers = waiting.iter().map(|(id, (member, _))| member.peer(*id));
        let answers = acquaintance.greet_all(peers).await;
        let change = changing.lock().await;
        let fresh: BTreeMap<u64, Member> = unmet()
            .into_iter()
            .filter_map(|(id, (member, cluster))| {
                // What was heard earlier may be of a directory that is gone.
                let hello = answers.get(&id).filter(|hello| hello.may_be_introduced())?;
                if !hello.is_fresh() {
                    env::mark("raft.introduced_forming");
                }
                let introduced = Some(Introduced {
                    member: hello.member,
                    cluster,
                });
                Some((id, Member { introduced, ..member }))
            })
            .collect();
        if !fresh.is_empty() && is_established() {
            let ids: Vec<u64> = fresh.keys().copied().collect();
            match raft.change_membership(ChangeMembers::SetNodes(fresh), true).await {
                Ok(_) => tracing::info!(nodes = ?ids, "members were introduced to the cluster"),
                Err(RaftError::Fatal(_)) => return,
                // Another change is on its way, or we lead no more.
                Err(error) => tracing::debug!(%error, "members were not introduced"),
            }
        }
        drop(change);
        env::sleep(INTRODUCE_EVERY).await;
    }
}

/// The members that a membership does not know, and the cluster that it names.
fn unmet(membership: &StoredMembership) -> BTreeMap<u64, (Member, ClusterUuid)> {
    let Some(cluster) = cluster_of(membership) else {
        return BTreeMap::new();
    };
    let members = membership.membership().nodes();
    members
        .filter(|(_, member)| member.introduced.is_none())
        .map(|(id, member)| (*id, (member.clone(), cluster)))
        .collect()
}

/// Greets all other members at the start, so that they hear of this process; and again as long as nobody is heard to lead,
/// since they may know what this node does not: that it was removed, or is taken for another directory.
pub(super) async fn keep_acquainted(raft: Raft, acquaintance: Acquaintance, freshness: Arc<Freshness>) {
    let own = acquaintance.own().node;
    let lease = Duration::from_millis(raft.config().election_timeout_max);
    let mut metrics = raft.server_metrics();
    loop {
        let peers: Vec<_> = {
            let metrics = metrics.borrow_watched();
            let members = metrics.membership_config.membership().nodes();
            members
                .filter(|(id, _)| **id != own)
                .map(|(id, member)| member.peer(*id))
                .collect()
        };
        if peers.is_empty() {
            if metrics.changed().await.is_err() {
                return;
            }
            continue;
        }
        acquaintance.greet_all(peers).await;
        loop {
            env::sleep(GREET_EVERY).await;
            let leads = metrics.borrow_and_update().state == ServerState::Leader;
            let is_led = freshness.confirmed_at().is_some_and(|at| at.elapsed() <= lease);
            if !leads && !is_led {
                break;
            }
        }
    }
}

/// Ends the node when it has applied that it is no member any more.
pub(super) async fn stop_when_removed(raft: Raft, own: Own, faults: Faults) {
    let mut changes = raft.server_metrics();
    let mut was_member = false;
    loop {
        {
            let metrics = changes.borrow_watched();
            let committed = &metrics.committed_membership_config;
            match known(committed, own.node) {
                Known::Is(member) if member == own.member => was_member = true,
                Known::Unmet => {}
                Known::Is(_) | Known::Stranger => {
                    if was_member && let Some(cluster) = cluster_of(committed) {
                        faults.raise(Fault::Refused {
                            detail: format!(
                                "node {} was removed from the cluster {cluster}. Its directory is needed no more; to \
                                 take it in again, add an empty directory under a new node id",
                                own.node
                            ),
                        });
                        return;
                    }
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;

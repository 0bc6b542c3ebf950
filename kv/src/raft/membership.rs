//! Changes of the members: one at a time, to their end, and told for what they are.
//!
//! A change of voters is two entries (a joint configuration, then the new one), taking a voter out is three. What has
//! become an entry may take effect, whatever comes after; so a change that does not end well counts as refused only where
//! none of its entries was made.
//!
//! A change waits for a majority as long as it takes, and goes on when its caller goes: it is the cluster's. One that its
//! leader left in the middle is finished by the next (`finish_joint`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, ServerState};
use quorate_transport::{Address, Peer};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::hello::Hello;
use super::membership_error::MembershipError;
use super::node::{RaftNode, leader};
use super::state::MemberState;
use super::state_machine::Raft;
use super::types::{Introduced, LogId, Member, Membership, TypeConfig};
use crate::env;
use crate::identity::{ClusterUuid, MemberUuid};
use crate::model::{LogIndex, NodeId};
use crate::planted::{self, Bug};

/// What the core holds to be the members at a moment.
struct Members {
    /// Where they stand in the log; the entry may not be committed.
    position: Option<LogId>,
    membership: Membership,
    leads: bool,
}

impl Members {
    async fn of(raft: &Raft) -> Result<Self, MembershipError> {
        let looked = raft.with_raft_state(|state| {
            let effective = state.membership_state.effective();
            Self {
                position: *effective.log_id(),
                membership: effective.membership().clone(),
                leads: state.server_state == ServerState::Leader,
            }
        });
        looked.await.map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    fn address(&self, id: NodeId) -> Option<&Address> {
        let member = self.membership.get_node(&id.number())?;
        member.address.as_ref()
    }

    /// The cluster that it names.
    fn cluster(&self) -> Option<ClusterUuid> {
        let mut members = self.membership.nodes();
        members.find_map(|(_, member)| Some(member.introduced?.cluster))
    }

    fn votes(&self, id: NodeId) -> bool {
        self.membership.voter_ids().any(|voter| voter == id.number())
    }
}

impl RaftNode {
    /// Adds a node that receives the log but has no vote. Returns when it is in the membership; one that is there
    /// already, at the same address, is.
    pub(crate) async fn add_learner(&self, id: NodeId, address: Address) -> Result<(), MembershipError> {
        if id.number() == 0 {
            return Err(MembershipError::Refused(
                "0 is no node id: the first is 1".to_owned(),
            ));
        }
        let members = Members::of(&self.raft).await?;
        if !members.leads {
            return Err(self.does_not_lead());
        }
        let introduced = Some(self.introduction(&members, id, &address).await?);
        let _change = self.begin_change().await?;
        let members = Members::of(&self.raft).await?;
        if !members.leads {
            return Err(self.does_not_lead());
        }
        check_address(&members, id, &address)?;
        let known = members.membership.get_node(&id.number());
        let is_unmet = known.is_some_and(|member| member.introduced.is_none());
        let address = Some(address);
        let nodes = BTreeMap::from([(id.number(), Member { address, introduced })]);
        let change = match is_unmet {
            true => ChangeMembers::SetNodes(nodes),
            // openraft leaves a node that it knows as it is, and says that it is done.
            false => ChangeMembers::AddNodes(nodes),
        };
        self.carry_out(&members, [(change, true)]).await
    }

    fn does_not_lead(&self) -> MembershipError {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics
            .current_leader
            .and_then(|id| metrics.membership_config.membership().get_node(&id).cloned());
        MembershipError::NotLeader {
            leader: leader(metrics.current_leader, member),
        }
    }

    /// Asks the node at an address which directory it is, and whether that may be added under this id.
    async fn introduction(
        &self,
        members: &Members,
        id: NodeId,
        address: &Address,
    ) -> Result<Introduced, MembershipError> {
        check_address(members, id, address)?;
        let Some(cluster) = members.cluster() else {
            return Err(MembershipError::Busy("the cluster is being formed".to_owned()));
        };
        let known = members.membership.get_node(&id.number());
        let known = known.and_then(|member| member.introduced);
        let peer = Peer {
            node_id: Some(id.number()),
            address: address.clone(),
        };
        match (self.acquaintance.greet(&peer).await, known) {
            (Ok(hello), known) => may_join(id, address, cluster, known, &hello)
                .map(|member| Introduced { member, cluster })
                .map_err(MembershipError::Refused),
            // It is a member already, and down at present.
            (Err(_), Some(known)) => Ok(known),
            (Err(error), None) => Err(MembershipError::NotReady(format!(
                "node {id} does not answer at {address}, so nobody knows which directory it is: start it there, with \
                 --join, and add it then ({error})"
            ))),
        }
    }

    /// Gives a learner a vote, if it is near and was heard lately: the others could be too few without it.
    pub(crate) async fn promote(&self, id: NodeId) -> Result<(), MembershipError> {
        let _change = self.begin_change().await?;
        let members = Members::of(&self.raft).await?;
        // One that votes already may do so by an entry that is not committed: it is asked for again, and waited for.
        if members.leads && !members.votes(id) && !planted::is(Bug::PromoteUnheard) {
            let state = self.state();
            let patience = self.timing.failover_min;
            let member = state.members.iter().find(|member| member.id == id);
            may_vote(id, member, state.last_log, self.promote_lag_max, patience)?;
        }
        let promote = ChangeMembers::AddVoterIds(BTreeSet::from([id.number()]));
        self.carry_out(&members, [(promote, true)]).await
    }

    /// Takes a node out, whatever its part; one that is not there is out.
    pub(crate) async fn remove(&self, id: NodeId) -> Result<(), MembershipError> {
        let _change = self.begin_change().await?;
        let members = Members::of(&self.raft).await?;
        let ids = BTreeSet::from([id.number()]);
        let forget = (ChangeMembers::RemoveNodes(ids.clone()), false);
        if members.votes(id) {
            // First without a vote, so that it hears of that while it still receives the log.
            let take_vote = (ChangeMembers::RemoveVoters(ids), true);
            return self.carry_out(&members, [take_vote, forget]).await;
        }
        self.carry_out(&members, [forget]).await
    }

    /// Waits for the change that is under way, but not for ever: one that reaches no majority ends when there is one.
    async fn begin_change(&self) -> Result<OwnedMutexGuard<()>, MembershipError> {
        let patience = self.timing.failover_min;
        let begun = env::timeout(patience, Arc::clone(&self.changing).lock_owned()).await;
        begun.map_err(|_| {
            MembershipError::Busy(
                "another change of members is under way, and waits for a majority of the voters".to_owned(),
            )
        })
    }

    /// Makes the changes one after the other, each to its end.
    async fn carry_out(
        &self,
        before: &Members,
        changes: impl IntoIterator<Item = (ChangeMembers<u64, Member>, bool)>,
    ) -> Result<(), MembershipError> {
        for (change, retain) in changes {
            if let Err(error) = self.raft.change_membership(change, retain).await {
                return Err(self.outcome(before, error).await);
            }
        }
        Ok(())
    }

    /// What is known of a change that was not told to be done.
    async fn outcome(
        &self,
        before: &Members,
        error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
    ) -> MembershipError {
        let now = Members::of(&self.raft).await;
        let moved = now.map_or(true, |now| now.position != before.position);
        outcome(error, moved)
    }
}

/// What is known of a change that ended with an error. `moved`: the members do not stand where they stood in the log before
/// it, or nobody can tell.
fn outcome(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>, moved: bool) -> MembershipError {
    let begun = |error: &dyn std::fmt::Display| {
        MembershipError::Unknown(format!(
            "the change was begun, and may take effect yet, whole or in part: {error}"
        ))
    };
    match error {
        // Its entry may be in the log of this node, which stopped meanwhile, or in others'.
        RaftError::Fatal(fatal) => begun(&fatal),
        RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)) => begun(&error),
        RaftError::APIError(error) if moved => begun(&error),
        RaftError::APIError(error) => refused(error),
    }
}

/// Refuses a member at another address than the one that is known.
fn check_address(members: &Members, id: NodeId, address: &Address) -> Result<(), MembershipError> {
    match members.address(id).filter(|known| *known != address) {
        None => Ok(()),
        Some(known) => Err(MembershipError::Refused(format!(
            "node {id} is a member at {known} already, and an address is never changed in place: to move it to \
             {address}, add an empty node under a new id there, and remove node {id}"
        ))),
    }
}

/// Which directory may be added under an id, as the node there says; or why none.
///
/// One that has taken part in this very cluster may be added again: it has forgotten nothing.
fn may_join(
    id: NodeId,
    address: &Address,
    cluster: ClusterUuid,
    known: Option<Introduced>,
    hello: &Hello,
) -> Result<MemberUuid, String> {
    if let Some(known) = known.filter(|known| known.member != hello.member) {
        return Err(format!(
            "node {id} is a member already, and its directory is {}; at {address} is another one, {}: add that one under \
             a new id, or remove node {id} first",
            known.member, hello.member
        ));
    }
    let theirs = hello.cluster.or(hello.records.map(|records| records.cluster));
    match theirs.filter(|theirs| *theirs != cluster) {
        Some(theirs) => Err(format!(
            "the directory of node {id} at {address} belongs to the cluster {theirs}, and this is {cluster}: start the \
             node with an empty directory and --join"
        )),
        None => Ok(hello.member),
    }
}

/// An error of a change none of whose entries was made.
fn refused(error: ClientWriteError<TypeConfig>) -> MembershipError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => MembershipError::NotLeader {
            leader: leader(forward.leader_id, forward.leader_node),
        },
        ClientWriteError::ChangeMembershipError(
            error @ (ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)),
        ) => MembershipError::Busy(error.to_string()),
        error => MembershipError::Refused(error.to_string()),
    }
}

/// Whether a node without a vote may get one, as far as its leader knows it; or why not.
fn may_vote(
    id: NodeId,
    member: Option<&MemberState>,
    last: Option<LogIndex>,
    lag_max: u64,
    patience: Duration,
) -> Result<(), MembershipError> {
    let Some(member) = member else {
        let reason = format!("node {id} is no member; add it as a learner first");
        return Err(MembershipError::Refused(reason));
    };
    let not_ready = |reason| Err(MembershipError::NotReady(reason));
    let address = member.address.as_ref().map_or("no address", Address::as_str);
    match member.answered {
        None => {
            return not_ready(format!(
                "node {id} at {address} has never answered: start it there, with --join, and try again"
            ));
        }
        Some(silence) if silence > patience => {
            return not_ready(format!(
                "node {id} at {address} has not answered for {silence:.1?}; a vote is given to a node that answered \
                 within the last {patience:?}: see that it runs and is reached, and try again"
            ));
        }
        Some(_) => {}
    }
    let Some(matched) = member.matched else {
        return not_ready(format!(
            "node {id} has received nothing of the log yet, or is receiving a snapshot; try again when it has caught up"
        ));
    };
    let lag = last.map_or(0, |last| last.number().saturating_sub(matched.number()));
    if lag > lag_max {
        return not_ready(format!(
            "node {id} is {lag} entries behind; a vote is given to a node that is at most {lag_max} behind: try again \
             when it has caught up"
        ));
    }
    Ok(())
}

/// How long a refused change rests before it is asked for again.
const FINISH_PAUSE: Duration = Duration::from_millis(100);

/// Finishes a change of voters that a leader began and did not end.
///
/// Such a change goes through a joint configuration, which needs both majorities; a leader that crashed in
/// between leaves it to its successor (Raft, section 6), and openraft leaves it to us.
pub(super) async fn finish_joint(raft: Raft, changing: Arc<Mutex<()>>) {
    let mut changes = raft.server_metrics();
    let now = raft.server_metrics();
    let unfinished = || {
        let metrics = now.borrow_watched();
        let joint = metrics.membership_config.membership().get_joint_config().len() > 1;
        let committed = metrics.membership_config == metrics.committed_membership_config;
        metrics.state == ServerState::Leader && joint && committed && !planted::is(Bug::JointAbandoned)
    };
    loop {
        if unfinished() {
            let change = changing.lock().await;
            if !unfinished() {
                continue;
            }
            let nothing_new = ChangeMembers::AddVoterIds(BTreeSet::new());
            let finished = raft.change_membership(nothing_new, true).await;
            drop(change);
            match finished {
                Ok(_) => {
                    env::mark("raft.joint_finished");
                    tracing::info!("a change of voters that another leader had begun is finished");
                }
                Err(RaftError::Fatal(_)) => return,
                // Another change is on its way, or we lead no more, or a quorum is out of reach: of that, what is
                // watched may say nothing.
                Err(error) => {
                    tracing::debug!(%error, "the joint configuration stands");
                    env::sleep(FINISH_PAUSE).await;
                    continue;
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::StorageError;
    use openraft::errors::{
        EmptyMembership, ErrorSource as _, Fatal, ForwardToLeader, InProgress, LearnerNotFound,
        NodeMetadataChanged, UncommittedLeaderLog, UnsupportedMembershipTransition,
    };
    use openraft::impls::BoxedErrorSource;

    use super::*;
    use crate::raft::types::LeaderId;

    /// The story: a learner that had never answered counted as near while the log was short. One node gave a vote to a
    /// port where nobody listened, answered that nothing was changed, and the cluster was lost for good.
    #[test]
    fn a_vote_is_given_to_who_was_heard_lately_and_is_near() {
        let learner = |answered: Option<u64>, matched: Option<u64>| MemberState {
            id: NodeId::new(2),
            address: Some("node-2:7001".parse().expect("an address")),
            member: None,
            voter: false,
            matched: matched.map(LogIndex::new),
            answered: answered.map(Duration::from_millis),
        };
        let judge = |member: Option<MemberState>| {
            let last = Some(LogIndex::new(1_010));
            may_vote(
                NodeId::new(2),
                member.as_ref(),
                last,
                1_000,
                Duration::from_secs(2),
            )
        };
        assert_eq!(judge(Some(learner(Some(3), Some(10)))), Ok(()));
        let cases = [
            ("no member", None, "no member"),
            ("never heard", Some(learner(None, None)), "never answered"),
            (
                "heard, and nothing matched",
                Some(learner(Some(3), None)),
                "nothing of the log",
            ),
            (
                "silent for long",
                Some(learner(Some(2_001), Some(1_010))),
                "has not answered for 2.0s",
            ),
            (
                "far behind",
                Some(learner(Some(3), Some(9))),
                "1001 entries behind",
            ),
        ];
        for (case, member, expected) in cases {
            // A node that is no member becomes one by another request; the others are waited for.
            let waits = member.is_some();
            let refused = judge(member).expect_err(case);
            assert_eq!(matches!(refused, MembershipError::NotReady(_)), waits, "{case}");
            let refused = refused.to_string();
            assert!(
                refused.contains(expected) && refused.contains("node 2"),
                "{case}: {refused}"
            );
        }
    }

    /// "Nothing was changed" is said of a change only where that is certain: a node that stops in the middle of one may have
    /// made its entry, which the next leader carries out.
    #[test]
    fn a_change_that_ended_with_an_error_counts_as_refused_only_where_it_made_no_entry() {
        type Failed = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;
        type Told = fn(&MembershipError) -> bool;
        let forward = || ForwardToLeader::new(2, Member::default());
        let change = |error: ChangeMembershipError<LeaderId, u64>| {
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error))
        };
        let id = LogId::new(LeaderId { term: 3, node_id: 2 }, 7);
        let is_unknown: Told = |outcome| matches!(outcome, MembershipError::Unknown(_));
        let is_refused: Told = |outcome| matches!(outcome, MembershipError::Refused(_));
        let is_busy: Told = |outcome| matches!(outcome, MembershipError::Busy(_));
        let is_led_elsewhere: Told = |outcome| {
            let node = NodeId::new(2);
            matches!(outcome, MembershipError::NotLeader { leader: Some((id, _)) } if *id == node)
        };
        let disk = StorageError::write_logs(BoxedErrorSource::from_string("the disk failed"));
        // What ended it, and what that says where the members still stand where they stood.
        let cases: [(Failed, Told); 11] = [
            (RaftError::Fatal(Fatal::Stopped), is_unknown),
            (RaftError::Fatal(Fatal::Panicked), is_unknown),
            (RaftError::Fatal(Fatal::StorageError(disk)), is_unknown),
            (
                RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward())),
                is_unknown,
            ),
            (
                RaftError::APIError(ClientWriteError::ForwardToLeader(forward())),
                is_led_elsewhere,
            ),
            (
                change(ChangeMembershipError::InProgress(InProgress {
                    committed: None,
                    membership_log_id: Some(id),
                })),
                is_busy,
            ),
            (
                change(ChangeMembershipError::UncommittedLeaderLog(
                    UncommittedLeaderLog {
                        committed: None,
                        leader_log_id: id,
                    },
                )),
                is_busy,
            ),
            (
                change(ChangeMembershipError::EmptyMembership(EmptyMembership {})),
                is_refused,
            ),
            (
                change(ChangeMembershipError::LearnerNotFound(LearnerNotFound {
                    node_id: 4,
                })),
                is_refused,
            ),
            (
                change(ChangeMembershipError::NodeMetadataChanged(NodeMetadataChanged {
                    node_id: 4,
                })),
                is_refused,
            ),
            (
                change(ChangeMembershipError::UnsupportedMembershipTransition(
                    UnsupportedMembershipTransition {
                        previous: Vec::new(),
                        proposed: Vec::new(),
                    },
                )),
                is_refused,
            ),
        ];
        for (error, expected) in cases {
            let told = outcome(error.clone(), false);
            assert!(expected(&told), "{error:?}: {told:?}");
            // An entry was made, of this change or of its first part.
            let told = outcome(error.clone(), true);
            assert!(is_unknown(&told), "{error:?}, the members moved: {told:?}");
        }
    }
}

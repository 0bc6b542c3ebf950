//! A running member of the group, as the rest of the crate sees it: propose, read index, leadership, and what the
//! metrics say. What else it does stands in the files that are about that: `membership`, `forming`, `serve`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::ClientWriteError;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::Mutex;

use super::acquaintance::{Acquaintance, cluster_of};
use super::broken_off::BrokenOff;
use super::freshness::{Freshness, confirmed_by_quorum};
use super::intake::Intakes;
use super::membership_error::MembershipError;
use super::read_index::{ReadIndexError, ReadRounds};
use super::state::{MemberState, Part, RaftState};
use super::state_machine::{Raft, StateMachine};
use super::succession::Witness;
use super::types::{Callback, LogId, Member, ProposalData, TypeConfig};
use crate::env::{self, Instant};
use crate::fault::Faults;
use crate::identity::MemberUuid;
use crate::log::Log;
use crate::machine::EntryOutcome;
use crate::model::{LogIndex, NodeId, Term};
use crate::tasks::Tasks;
use crate::timing::Timing;

/// A running member of the group.
pub(crate) struct RaftNode {
    pub(super) id: NodeId,
    pub(super) raft: Raft,
    pub(super) machine: StateMachine,
    pub(super) log: Log,
    pub(super) acquaintance: Acquaintance,
    pub(super) freshness: Arc<Freshness>,
    pub(super) rounds: ReadRounds,
    pub(super) witness: Witness,
    /// Held through a change of members, which takes two entries: one change at a time, and nobody takes one
    /// under way for one that was left behind.
    pub(super) changing: Arc<Mutex<()>>,
    pub(super) promote_lag_max: u64,
    /// What is taken in of leaders' streams.
    pub(super) intakes: Intakes,
    /// What came of a snapshot whose stream broke.
    pub(super) broken_off: BrokenOff,
    pub(super) timing: Timing,
    pub(super) faults: Faults,
    pub(super) tasks: Tasks,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What became of a proposal.
#[derive(Debug)]
pub(crate) enum Proposed {
    /// Committed and applied.
    Applied {
        /// The answers, one for each command.
        outcome: EntryOutcome,
    },
    /// This node does not lead; nothing was proposed.
    NotLeader { leader: Option<(NodeId, String)> },
    /// Leadership was lost on the way: the entry may commit yet, or never.
    Unknown { leader: Option<(NodeId, String)> },
}

impl RaftNode {
    pub(crate) fn machine(&self) -> &StateMachine {
        &self.machine
    }

    /// Which directory the node's is.
    pub(crate) fn member(&self) -> MemberUuid {
        self.acquaintance.own().member
    }

    pub(crate) async fn is_formed(&self) -> Result<bool, MembershipError> {
        self.raft
            .is_initialized()
            .await
            .map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    /// Stands for election now, without waiting for a timeout.
    pub(crate) async fn elect(&self) {
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::debug!(%error, "no election: Raft has stopped");
        }
    }

    /// Proposes an entry. `answer` is called from the apply thread, or with the reason why not. Cancel safe:
    /// an entry that was handed over goes its way.
    pub(crate) async fn propose(&self, data: ProposalData, answer: impl FnOnce(Proposed) + Send + 'static) {
        let responder = Callback::new(move |result: openraft::raft::ClientWriteResult<TypeConfig>| {
            answer(match result {
                Ok(response) => Proposed::Applied {
                    outcome: response.data,
                },
                Err(ClientWriteError::ForwardToLeader(forward)) => Proposed::NotLeader {
                    leader: leader(forward.leader_id, forward.leader_node),
                },
                Err(ClientWriteError::LogEntryDiscarded(forward)) => Proposed::Unknown {
                    leader: leader(forward.leader_id, forward.leader_node),
                },
                Err(_) => Proposed::Unknown { leader: None },
            });
        });
        // Here and not in the core, which must not wait: see `intake`. A leader's entries on their way to its own disk
        // exceed the log's bound by what may be proposed at once (`Settings::proposals_in_flight`).
        self.log.wait_for_room().await;
        // On an error the responder was dropped, and what it holds says so to those who wait.
        if let Err(error) = self.raft.client_write_ff(data, Some(responder)).await {
            tracing::debug!(%error, "nothing was proposed: Raft has stopped");
        }
    }

    /// The index that a linearizable read on this node must have applied; a follower asks its leader.
    pub(crate) async fn read_index(&self) -> Result<Option<LogIndex>, ReadIndexError> {
        self.rounds.index().await
    }

    /// The moment before which everything that was acknowledged anywhere is in the state here. `None` where nobody has
    /// confirmed one yet.
    pub(crate) fn level_at(&self) -> Option<Instant> {
        let applied = self.machine.applied().borrow().position.map(|p| p.index);
        let metrics = self.raft.metrics();
        if let Some((at, index)) = confirmed_by_quorum(&metrics.borrow_watched()) {
            self.freshness.confirm(at, Some(index));
        }
        self.freshness.level_at(applied)
    }

    /// Has [`level_at`](Self::level_at) confirmed anew, and does not wait.
    pub(crate) fn refresh_level(&self) {
        self.rounds.refresh();
    }

    /// How old the state here may be, as far as is known without asking; nothing on a sole voter that leads.
    pub(crate) fn lag(&self) -> Option<Duration> {
        if self.is_sole_leader() {
            return Some(Duration::ZERO);
        }
        self.level_at().map(Instant::elapsed)
    }

    /// Whether this node leads, and its own vote is all that it takes.
    fn is_sole_leader(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state == ServerState::Leader
            && metrics
                .membership_config
                .membership()
                .voter_ids()
                .all(|voter| voter == self.id.number())
    }

    /// Hands leadership to a voter. Returns when the request was made; watch [`state`](Self::state) for it.
    pub(crate) async fn transfer_leader(&self, to: NodeId) -> Result<(), MembershipError> {
        let transfer = self.raft.trigger().transfer_leader(to.number()).await;
        transfer.map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    /// How long a leader may go without a word of its quorum.
    pub(super) fn lease(&self) -> Duration {
        self.timing.lease()
    }

    /// What [`state`](Self::state) calls the role, and nothing else of it: for each command.
    pub(crate) fn role(&self) -> Part {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_stopped = self.faults.is_raised() || metrics.running_state.is_err();
        Part::of(metrics.state, is_stopped)
    }

    /// A glance at the metrics.
    pub(crate) fn state(&self) -> RaftState {
        let is_sole_leader = self.is_sole_leader();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<LogId>| id.as_ref().map(|id| LogIndex::new(id.index));
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, member)| MemberState {
            id: NodeId::new(*id),
            address: member.address.clone(),
            member: member.introduced.map(|introduced| introduced.member),
            voter: voters.contains(id),
            matched: metrics
                .replication
                .as_ref()
                .and_then(|r| r.get(id))
                .and_then(index),
            answered: metrics
                .heartbeat
                .as_ref()
                .and_then(|answered| answered.get(id)?.as_ref())
                .filter(|_| *id != self.id.number())
                .map(|sent| sent.elapsed()),
        });
        let confirmed_at = match metrics.state {
            ServerState::Leader => metrics.last_quorum_acked.as_ref().map(|acked| **acked),
            _ => self.freshness.confirmed_at(),
        };
        let confirmed = confirmed_at.filter(|_| !is_sole_leader).map(Instant::elapsed);
        let fault = self.faults.first().map(|fault| fault.to_string());
        let stopped = fault.or(metrics.running_state.as_ref().err().map(ToString::to_string));
        RaftState {
            cluster: cluster_of(&metrics.committed_membership_config),
            term: Term::new(metrics.current_term),
            role: Part::of(metrics.state, stopped.is_some()),
            leader: metrics.current_leader.map(NodeId::new),
            last_log: metrics.last_log_index.map(LogIndex::new),
            // The leader's word for the cluster may be ahead of this log, and falls with a new leader.
            committed: index(&metrics.local_committed),
            purged: index(&metrics.purged),
            members: members.collect(),
            has_quorum: is_sole_leader || confirmed.is_some_and(|age| age <= self.lease()),
            confirmed,
            stopped,
        }
    }

    /// Waits until the metrics change. Cancel safe.
    pub(crate) async fn wait_for(&self, mut condition: impl FnMut(&RaftState) -> bool) {
        let mut changes = self.raft.metrics();
        loop {
            if condition(&self.state()) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Changes of part, leader, term and members.
    pub(crate) fn server_changes(&self) -> env::watch::Receiver<RaftServerMetrics<TypeConfig>> {
        self.raft.server_metrics()
    }

    /// Waits until this node leads no more, and for two heartbeats of nobody else who does. Cancel safe.
    pub(crate) async fn lost_leadership(&self) {
        let mut server = self.raft.server_metrics();
        let led = |server: &env::watch::Receiver<RaftServerMetrics<TypeConfig>>| {
            let metrics = server.borrow_watched();
            (
                (metrics.state == ServerState::Leader).then_some(metrics.vote),
                metrics.current_leader,
            )
        };
        let (mut leading, _) = led(&server);
        loop {
            if server.changed().await.is_err() {
                return std::future::pending().await;
            }
            let (now, _) = led(&server);
            if leading.is_some() && now.is_none() {
                let heard = async { while led(&server).1.is_none() && server.changed().await.is_ok() {} };
                if env::timeout(self.timing.heartbeat * 2, heard).await.is_err() {
                    return;
                }
            }
            leading = led(&server).0;
        }
    }

    /// Waits until this node's part has ended; [`state`](Self::state) says why. Cancel safe.
    pub(crate) async fn ended(&self) {
        // Not the metrics: they change several times with every entry, and whoever waits would be woken each time.
        let mut server = self.raft.server_metrics();
        let core = async { while server.changed().await.is_ok() {} };
        tokio::select! {
            biased;
            _ = self.faults.raised() => {}
            () = core => {}
        }
    }

    /// Makes the state durable, so that the next start replays nothing. Answers whether it is.
    pub(crate) async fn make_durable(&self) -> bool {
        let durable = self.machine.make_durable().await;
        if let Err(fault) = &durable {
            tracing::warn!(%fault, "the state was not made durable at the stop; the log will replay the rest");
        }
        durable.is_ok()
    }

    /// Stops Raft, waits for its tasks and closes the files.
    pub(crate) async fn abort(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft's task did not end well");
        }
        self.tasks.end().await;
        self.machine.close().await;
        if let Err(fault) = self.log.close().await {
            tracing::warn!(%fault, "the log was not closed in order; it will be recovered at the next start");
        }
    }
}

/// Who leads, by id and address.
pub(super) fn leader(id: Option<u64>, member: Option<Member>) -> Option<(NodeId, String)> {
    id.zip(member)
        .map(|(id, member)| (NodeId::new(id), member.address_text()))
}

//! The next leader where the process of the last one has ended: long before any timeout, and for nothing but such an end.
//!
//! Each voter that follows a leader watches its process (`Transport::ended`), which tells an end on a host that lives from
//! silence of any kind. One that finds it ended asks the other voters what they found, and stands for election once a
//! majority of the voters has found the same and its own log is the longest among them. Its request for votes is marked as
//! that of a leader that hands over, so that it is granted though the lease of the old leader is not over: openraft's
//! `handle_transfer_leader`, called at the candidate itself. Where it comes to nothing, the timeouts do the rest.
//!
//! Always: a witness that errs alone changes nothing, not even its own lease (openraft's would stay lifted for the whole
//! term). What is found ended stays so: a process that starts anew never leads in the name of one before it.
//!
//! Why that is safe, even if all witnesses err. A lease decides here when somebody may stand, and never who is elected or
//! what is committed: a vote is given once in a term and to no shorter log, and a linearizable read asks a quorum and trusts
//! no lease (`heartbeat`). A leader that was wrongly taken for dead is deposed as by any other election.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use openraft::raft::TransferLeaderRequest;
use quorate_transport::{Peer, Transport};

use super::acquaintance::Acquaintance;
use super::freshness::Freshness;
use super::network::ask_control;
use super::state_machine::Raft;
use super::types::{LogId, TypeConfig, Vote};
use super::wire::{ControlRequest, ControlResponse};
use crate::env::{self, watch};
use crate::planted::{self, Bug};

/// How long a voter that is asked waits for its own watch to find the end, which may be due a moment later there.
const FIND_MAX: Duration = Duration::from_millis(300);
/// How long the answers are waited for, and for those that come after a majority has answered.
const ANSWERS_MAX: Duration = Duration::from_millis(450);
const LATER_ANSWERS_MAX: Duration = Duration::from_millis(50);
/// So often, and with such a pause, the others are asked. One whose log is shorter leaves the better one time to stand.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(150);

/// What this node found of the leader that it follows. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Witness(watch::Sender<Option<Vote>>);

impl Default for Witness {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl Witness {
    /// The process that led by this vote has ended.
    fn found(&self, vote: Vote) {
        self.0.send_replace(Some(vote));
    }

    /// Answers a voter that asks whether this node, by its own evidence, has found the process ended that led by a vote.
    pub(super) async fn answer(&self, raft: &Raft, vote: Vote) -> ControlResponse {
        let mut found = self.0.subscribe();
        let found = found.wait_for(|found| *found == Some(vote));
        let ended = matches!(env::timeout(FIND_MAX, found).await, Ok(Ok(_)));
        let looked = raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()));
        match looked.await {
            Ok((own, last)) => ControlResponse::LeaderEnded {
                ended: ended && own == vote,
                last,
            },
            Err(stopped) => ControlResponse::Stopped(stopped.to_string()),
        }
    }
}

/// Watches the leader's process, and stands in its place.
pub(super) struct Succession {
    pub raft: Raft,
    pub own_id: u64,
    pub transport: Arc<dyn Transport>,
    pub acquaintance: Acquaintance,
    pub witness: Witness,
    pub freshness: Arc<Freshness>,
    pub heartbeat: Duration,
}

/// A leader that this node follows, with a vote of its own to give to another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Led {
    vote: Vote,
    peer: Peer,
}

fn led(metrics: &RaftServerMetrics<TypeConfig>) -> Option<Led> {
    let membership = metrics.membership_config.membership();
    let leader = metrics.vote.leader_id().node_id;
    let follows =
        metrics.state == ServerState::Follower && metrics.vote.is_committed() && leader != metrics.id;
    if !follows || !membership.voter_ids().any(|voter| voter == metrics.id) {
        return None;
    }
    Some(Led {
        vote: metrics.vote,
        peer: membership.get_node(&leader)?.peer(leader),
    })
}

/// What is to be done about a leader whose process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// This node is the one to stand.
    Stand,
    /// Too few have found it, or another one is to stand.
    Wait,
}

/// Judges by what the voters answered that found the process ended, this node's own answer among them: how far the log of
/// each goes. Where several logs go as far, the lowest id stands first, and the next with each further try.
fn judge(
    own: u64,
    configs: &[BTreeSet<u64>],
    witnesses: &BTreeMap<u64, Option<LogId>>,
    attempt: usize,
) -> Verdict {
    let longest = witnesses.values().max().copied().flatten();
    let own_last = witnesses.get(&own).copied().flatten();
    let before = witnesses
        .iter()
        .filter(|(id, last)| **id < own && **last == longest);
    if is_quorum(configs, witnesses) && own_last == longest && before.count() <= attempt {
        return Verdict::Stand;
    }
    Verdict::Wait
}

/// Whether a majority of the voters has found it; of both configurations, while they change.
fn is_quorum(configs: &[BTreeSet<u64>], witnesses: &BTreeMap<u64, Option<LogId>>) -> bool {
    if planted::is(Bug::EndByOneWitness) {
        return !witnesses.is_empty();
    }
    configs.iter().all(|voters| {
        let found = voters.iter().filter(|voter| witnesses.contains_key(voter));
        found.count() * 2 > voters.len()
    })
}

impl Succession {
    /// Ends with Raft's own task.
    pub(super) async fn run(self) {
        let mut server = self.raft.server_metrics();
        let mut watched = None;
        loop {
            let leader = led(&server.borrow_and_update());
            let changed = async {
                loop {
                    server.changed().await.ok()?;
                    if led(&server.borrow_watched()) != leader {
                        return Some(());
                    }
                }
            };
            let anew = leader.clone().filter(|led| watched != Some(led.vote));
            let succeeded = async {
                match &anew {
                    Some(led) => self.succeed(led).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = changed => {
                    if changed.is_none() {
                        return;
                    }
                }
                () = succeeded => watched = leader.map(|led| led.vote),
            }
        }
    }

    /// Waits for the end of the leader's process, and for another leader; gives up after some tries.
    async fn succeed(&self, led: &Led) {
        self.ended(&led.peer).await;
        env::mark("raft.leader_ended");
        let leader = led.vote.leader_id();
        tracing::info!(
            leader = leader.node_id,
            term = leader.term,
            address = %led.peer.address,
            "the leader's process has ended"
        );
        self.witness.found(led.vote);
        for attempt in 0..TRIES {
            if attempt > 0 {
                env::sleep(PAUSE).await;
            }
            let looked = self.raft.with_raft_state(|state| {
                let membership = state.membership_state.effective().membership().clone();
                (*state.vote_ref(), state.log_ids.last().copied(), membership)
            });
            let Ok((vote, last, membership)) = looked.await else {
                return;
            };
            if vote != led.vote {
                return;
            }
            let configs = membership.get_joint_config();
            let others = membership
                .voter_ids()
                .filter(|voter| *voter != self.own_id && *voter != leader.node_id);
            let others = others.filter_map(|voter| Some((voter, membership.get_node(&voter)?.peer(voter))));
            let witnesses = self.witnesses(led.vote, last, configs, others.collect()).await;
            match judge(self.own_id, configs, &witnesses, attempt) {
                Verdict::Wait => continue,
                Verdict::Stand => {
                    env::mark("raft.succeeds_ended");
                    tracing::info!(
                        leader = leader.node_id,
                        term = leader.term,
                        witnesses = ?witnesses.keys(),
                        "a majority of the voters found the leader's process ended: this node stands for election"
                    );
                    let request = TransferLeaderRequest::new(led.vote, self.own_id, last);
                    if let Err(error) = self.raft.handle_transfer_leader(request).await {
                        tracing::debug!(%error, "no election: Raft has stopped");
                    }
                    return;
                }
            }
        }
    }

    async fn ended(&self, leader: &Peer) {
        if planted::is(Bug::LeaseEndedBySilence) {
            let is_silent = || {
                let confirmed = self.freshness.confirmed_at();
                confirmed.is_none_or(|at| at.elapsed() > self.heartbeat * 5)
            };
            loop {
                env::sleep(self.heartbeat).await;
                if is_silent() {
                    return;
                }
            }
        }
        self.transport.ended(leader).await;
    }

    /// Asks the other voters; answers those that have found the process ended, this node among them, and where the log of
    /// each ends.
    async fn witnesses(
        &self,
        vote: Vote,
        own_last: Option<LogId>,
        configs: &[BTreeSet<u64>],
        others: Vec<(u64, Peer)>,
    ) -> BTreeMap<u64, Option<LogId>> {
        let mut witnesses = BTreeMap::from([(self.own_id, own_last)]);
        let mut answers: FuturesUnordered<_> = others
            .iter()
            .map(|(id, peer)| async move {
                let mut stream = None;
                let request = |_: &_| ControlRequest::LeaderEnded { vote };
                match ask_control(&self.acquaintance, peer, &mut stream, request).await {
                    Ok(ControlResponse::LeaderEnded { ended: true, last }) => Some((*id, last)),
                    _ => None,
                }
            })
            .collect();
        let mut until = env::now() + ANSWERS_MAX;
        while let Ok(Some(answer)) = env::timeout_at(until, answers.next()).await {
            witnesses.extend(answer);
            if is_quorum(configs, &witnesses) {
                until = until.min(env::now() + LATER_ANSWERS_MAX);
            }
        }
        witnesses
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::log_id;
    use super::*;
    use crate::model::{LogIndex, LogPosition, NodeId, Term};

    fn log(index: u64) -> Option<LogId> {
        Some(log_id(LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        }))
    }

    /// What is shown, the voters, who has found the end with which last index, the attempt, and who is to stand.
    type Case<'a> = (&'a str, &'a [BTreeSet<u64>], &'a [(u64, u64)], usize, &'a [u64]);

    /// Node 1 led.
    #[test]
    fn one_of_those_with_the_longest_log_stands_once_a_majority_has_found_the_end() {
        let three = [BTreeSet::from([1, 2, 3])];
        let five = [BTreeSet::from([1, 2, 3, 4, 5])];
        let joint = [BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        let cases: &[Case<'_>] = &[
            ("one witness of three", &three, &[(2, 7)], 4, &[]),
            ("both that are left", &three, &[(2, 7), (3, 7)], 0, &[2]),
            ("the first does not stand", &three, &[(2, 7), (3, 7)], 1, &[2, 3]),
            ("the longest log", &three, &[(2, 6), (3, 7)], 4, &[3]),
            ("two of five", &five, &[(2, 7), (3, 7)], 4, &[]),
            ("three of five", &five, &[(2, 5), (4, 7), (5, 7)], 0, &[4]),
            (
                "half of a joint change",
                &joint,
                &[(2, 7), (3, 7), (4, 7)],
                4,
                &[],
            ),
            ("both halves", &joint, &[(2, 7), (3, 7), (4, 7), (5, 8)], 0, &[5]),
        ];
        for (case, configs, found, attempt, stand) in cases {
            let witnesses = found.iter().map(|(id, index)| (*id, log(*index))).collect();
            let standing: Vec<u64> = found
                .iter()
                .map(|(id, _)| *id)
                .filter(|id| judge(*id, configs, &witnesses, *attempt) == Verdict::Stand)
                .collect();
            assert_eq!(&standing, stand, "{case}");
        }
    }

    #[test]
    fn a_cluster_with_an_empty_log_has_a_successor_too() {
        let witnesses = BTreeMap::from([(2, None), (3, None)]);
        let configs = [BTreeSet::from([1, 2, 3])];
        assert_eq!(judge(2, &configs, &witnesses, 0), Verdict::Stand);
    }
}

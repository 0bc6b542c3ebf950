//! A leader that hears of no quorum steps down.
//!
//! openraft's leader goes on for as long as nobody tells it of another, and its heartbeats keep whoever still hears it from
//! electing another: four nodes whose leader reached one of them alone had no leader for as long as that lasted. Here a
//! leader whose quorum has been silent for its lease ends its own leadership. It accepts a vote in the name of nobody (node
//! 0 of the next term), which openraft refuses while a quorum answers, and which any real candidate outranks, since leaders
//! of one term are ordered by their ids. Then it tells the others, who may hear it though it does not hear them, that their
//! lease is over: as a leader does that hands over, to nobody.
//!
//! Before that it asks the voters itself, in words that pass no Raft on the other side and wait for no disk: where they answer
//! those, it is not the network that is silent, stepping down would mend nothing, and the next leader would do it too.
//!
//! Always: silence is counted in looks that this node really made, so that a process that was paused itself gives its
//! quorum as much time as it gives itself. A sole voter never steps down.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::{TransferLeaderRequest, VoteRequest};

use super::acquaintance::Acquaintance;
use super::network::ask_control;
use super::state_machine::Raft;
use super::types::{LogId, Membership, Vote};
use super::wire::ControlRequest;
use crate::env::{self, Instant};
use crate::planted::{self, Bug};

/// The node that no member is: a vote in its name is nobody's.
const NOBODY: u64 = 0;

/// How long a leader has gone without a word of its quorum, as far as it looked.
#[derive(Debug, Default)]
struct Silence {
    lasts: Duration,
    looked: Option<Instant>,
    /// When a question was sent that a quorum has answered.
    acked: Option<Instant>,
    /// The voters were asked, and no majority answered.
    is_certain: bool,
    /// Since the last acknowledgement only greetings were answered, once at least.
    was_met: bool,
    /// That was told.
    was_told: bool,
}

impl Silence {
    /// Looks, as is done every `tick`; answers how long it has been silent. A look that comes late counts as one in time.
    fn look(&mut self, now: Instant, acked: Option<Instant>, tick: Duration) -> Duration {
        let since = self.looked.map_or(Duration::ZERO, |looked| now.since(looked));
        self.looked = Some(now);
        if acked != self.acked {
            (self.acked, self.is_certain, self.was_met) = (acked, false, false);
            // What was answered just now may have been asked a while ago.
            self.lasts = acked.map_or(Duration::ZERO, |acked| now.since(acked).min(tick));
        } else {
            self.lasts += since.min(tick * 2);
        }
        self.lasts
    }

    /// Whether it is time to ask the voters, who have the other half of the lease to answer.
    fn is_long(&self, lease: Duration) -> bool {
        self.lasts > lease / 2
    }
}

/// Watches over a node's own leadership.
pub(super) struct StepDown {
    pub raft: Raft,
    pub own_id: u64,
    pub acquaintance: Acquaintance,
    pub heartbeat: Duration,
    /// How long a quorum may be silent.
    pub lease: Duration,
    /// How long the voters have to answer, as with a heartbeat.
    pub answer_patience: Duration,
    /// How long the others are tried to be told.
    pub patience: Duration,
}

/// A leadership that is to end.
struct Leadership {
    vote: Vote,
    last: Option<LogId>,
    membership: Membership,
}

impl StepDown {
    /// Ends with Raft's own task.
    pub(super) async fn run(self) {
        let mut server = self.raft.server_metrics();
        loop {
            let leading = {
                let metrics = server.borrow_and_update();
                (metrics.state == ServerState::Leader).then_some(metrics.vote)
            };
            if let Some(vote) = leading {
                self.watch(vote).await;
            }
            if server.changed().await.is_err() {
                return;
            }
        }
    }

    /// Watches while this node leads by this vote, and ends that when it hears of no quorum any more. Not dropped when it
    /// leads no more: the others are still to be told.
    async fn watch(&self, vote: Vote) {
        let tick = self.heartbeat / 2;
        let server = self.raft.server_metrics();
        let mut silence = Silence::default();
        loop {
            env::sleep(tick).await;
            let acked = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                // Of the same channel as what `run` waits for: neither tells what the other does not yet.
                let server = server.borrow_watched();
                let leads = server.state == ServerState::Leader && server.vote == vote;
                if !leads || metrics.running_state.is_err() {
                    return;
                }
                let others = metrics.membership_config.membership().voter_ids();
                if others.into_iter().all(|voter| voter == self.own_id) {
                    silence = Silence::default();
                    continue;
                }
                metrics.last_quorum_acked.as_ref().map(|acked| **acked)
            };
            let silent = silence.look(env::now(), acked, tick);
            if !silence.is_long(self.lease) || planted::is(Bug::NoStepDown) {
                continue;
            }
            if !silence.is_certain && self.is_answered().await {
                env::mark("raft.only_greetings_are_answered");
                // One answer that was lost on its way says nothing of the profile.
                let is_again = silence.was_met;
                if is_again && !silence.was_told {
                    tracing::warn!(
                        patience_ms = u64::try_from(self.answer_patience.as_millis()).unwrap_or(u64::MAX),
                        "a majority of the voters answers, but not to heartbeats in time: their processors or disks are \
                         too slow, or the network is, for this timing profile"
                    );
                }
                silence = Silence {
                    acked: silence.acked,
                    was_met: true,
                    was_told: silence.was_told || is_again,
                    ..Silence::default()
                };
                continue;
            }
            // openraft counts its lease by itself, and may find it over a little later: they are not asked again for that.
            silence.is_certain = true;
            if let Some(leadership) = self.end(vote).await {
                env::mark("raft.stepped_down");
                tracing::info!(
                    term = vote.leader_id().term,
                    silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
                    "this node leads no more: it has heard of no majority of the voters for a leader's lease"
                );
                self.release(&leadership).await;
                return;
            }
        }
    }

    /// Whether a majority of the voters answers a greeting in time, which is within the other half of the lease.
    async fn is_answered(&self) -> bool {
        let membership = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().clone()
        };
        let others = membership.voter_ids().filter(|voter| *voter != self.own_id);
        let greetings = others.filter_map(|voter| {
            let peer = membership.get_node(&voter)?.peer(voter);
            Some(async move {
                let greeted = env::timeout(self.answer_patience, self.acquaintance.greet(&peer)).await;
                matches!(greeted, Ok(Ok(_))).then_some(voter)
            })
        });
        let answered = future::join_all(greetings).await;
        let heard: BTreeSet<u64> = answered.into_iter().flatten().chain([self.own_id]).collect();
        is_quorum(membership.get_joint_config(), &heard)
    }

    /// Ends a leadership, unless a quorum has answered after all.
    async fn end(&self, vote: Vote) -> Option<Leadership> {
        let looked = self.raft.with_raft_state(|state| Leadership {
            vote: *state.vote_ref(),
            last: state.log_ids.last().copied(),
            membership: state.membership_state.effective().membership().clone(),
        });
        let leadership = looked.await.ok().filter(|leadership| leadership.vote == vote)?;
        let nobodys = Vote::new(vote.leader_id().term + 1, NOBODY);
        let request = VoteRequest::new(nobodys, leadership.last);
        let answer = self.raft.vote(request).await.ok()?;
        answer.vote_granted.then_some(leadership)
    }

    /// Tells the other voters that they need not wait for this leader any more, once and to those that can be told.
    async fn release(&self, leadership: &Leadership) {
        let membership = &leadership.membership;
        // To this node itself, which they take for no reason to stand at once.
        let request = TransferLeaderRequest::new(leadership.vote, self.own_id, leadership.last);
        let others = membership.voter_ids().filter(|voter| *voter != self.own_id);
        let told = others.filter_map(|voter| {
            let peer = membership.get_node(&voter)?.peer(voter);
            let request = request.clone();
            Some(async move {
                let mut stream = None;
                let tell = |_: &_| ControlRequest::TransferLeader(request.clone());
                let asked = ask_control(&self.acquaintance, &peer, &mut stream, tell);
                // Who cannot be told waits for its lease to end.
                let _untold = env::timeout(self.patience, asked).await;
            })
        });
        future::join_all(told).await;
    }
}

/// Whether these nodes are a majority of the voters, and of both sets of them while they change.
fn is_quorum(joint: &[BTreeSet<u64>], heard: &BTreeSet<u64>) -> bool {
    let is_majority = |voters: &BTreeSet<u64>| voters.intersection(heard).count() * 2 > voters.len();
    joint.iter().all(is_majority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_the_voters_change_a_quorum_is_a_majority_of_both_sets() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let (old, new) = (set(&[1, 2, 3]), set(&[1, 2, 3, 4]));
        assert!(is_quorum(std::slice::from_ref(&old), &set(&[1, 2])));
        assert!(
            !is_quorum(std::slice::from_ref(&new), &set(&[1, 2])),
            "two of four are no majority"
        );
        assert!(!is_quorum(&[old.clone(), new.clone()], &set(&[1, 2])));
        assert!(!is_quorum(&[new.clone(), old.clone()], &set(&[1, 2])));
        assert!(is_quorum(&[old, new], &set(&[1, 2, 4])));
    }

    const TICK: Duration = Duration::from_millis(100);

    #[test]
    fn silence_is_counted_from_the_last_answer_in_looks_that_were_made() {
        let start = env::now();
        let at = |millis| start + Duration::from_millis(millis);
        let ms = Duration::from_millis;
        let mut silence = Silence::default();
        assert_eq!(silence.look(at(0), None, TICK), ms(0));
        assert_eq!(
            silence.look(at(100), None, TICK),
            ms(100),
            "nobody has answered yet"
        );
        assert_eq!(silence.look(at(200), Some(at(170)), TICK), ms(30));
        assert_eq!(silence.look(at(300), Some(at(170)), TICK), ms(130));
        // The process was paused: what it did not look at, it does not count.
        assert_eq!(silence.look(at(60_000), Some(at(170)), TICK), ms(330));
        assert_eq!(silence.look(at(60_100), Some(at(60_050)), TICK), ms(50));
    }

    /// So a leader that is cut off, and whose greetings have the other half of the lease, leads on for a lease and two looks
    /// at most.
    #[test]
    fn a_quorum_that_fell_silent_is_noticed_within_half_a_lease_and_two_looks() {
        const LEASE: Duration = Duration::from_millis(1_450);
        let start = env::now();
        // The last question that was answered is sent at any time between two looks, and its answer takes its time.
        for asked in (0..100).map(Duration::from_millis) {
            for round_trip in [1, 50, 99].map(Duration::from_millis) {
                let mut silence = Silence::default();
                let before = start - TICK;
                let noticed = (0..100).map(|nth| TICK * nth).find(|now| {
                    let acked = if *now < asked + round_trip {
                        before
                    } else {
                        start + asked
                    };
                    silence.look(start + *now, Some(acked), TICK);
                    silence.is_long(LEASE)
                });
                let after = noticed.expect("it is noticed") - asked;
                let bound = LEASE / 2..=LEASE / 2 + TICK * 2;
                assert!(
                    bound.contains(&after),
                    "asked at {asked:?}, answered {round_trip:?} later, noticed after {after:?}"
                );
            }
        }
    }
}

//! How old this node's state may be: the bound of a stale read, and what a node tells of itself.
//!
//! A *confirmation* says: what the cluster had acknowledged anywhere before a moment of this node's own clock stands at or
//! below an index. It comes of a question whose round trip began at that moment: a read round of this node (as a leader,
//! to a quorum; as a follower, to a leader that asks its quorum), or heartbeats, which carry such a question along
//! (`Echoes`). No message proves anything by arriving: its sender may have been deposed when it sent it, or the
//! message may have been on its way for long.
//!
//! Always: whoever applied up to a confirmation's index has everything that was acknowledged before its moment; the
//! moments that are answered here never go back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use openraft::{RaftMetrics, ServerState};

use super::types::{LeaderId, LogId, TypeConfig};
use crate::env::{self, Instant};
use crate::model::LogIndex;
use crate::planted::{self, Bug};

/// Confirmations that wait to be applied: more only make the bound of a node that is behind a little finer.
const PENDING_MAX: usize = 16;

/// What this node's state has in it.
#[derive(Debug, Default)]
pub(super) struct Freshness(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Confirmations whose index was not applied when last looked at, by their moments.
    pending: Vec<Confirmation>,
    level_at: Option<Instant>,
    confirmed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Confirmation {
    at: Instant,
    index: Option<LogIndex>,
}

impl Freshness {
    /// What was acknowledged anywhere before `at` stands at or below `index`.
    pub(super) fn confirm(&self, at: Instant, index: Option<LogIndex>) {
        let mut state = self.state();
        state.confirmed_at = state.confirmed_at.max(Some(at));
        let place = state.pending.partition_point(|known| known.at <= at);
        state.pending.insert(place, Confirmation { at, index });
        if state.pending.len() > PENDING_MAX {
            // The oldest is applied first, and the newest is the best; of those between, one more or less is no matter.
            state.pending.remove(PENDING_MAX / 2);
        }
    }

    /// A message came of a node that led once. Proves nothing.
    pub(super) fn heard(&self, commit: Option<LogIndex>) {
        if planted::is(Bug::LagByAnyMessage) && commit.is_some() {
            self.confirm(env::now(), commit);
        }
    }

    /// The moment before which everything acknowledged is in a state that has applied up to `applied`.
    pub(super) fn level_at(&self, applied: Option<LogIndex>) -> Option<Instant> {
        let mut state = self.state();
        let reached = state.pending.iter().filter(|known| applied >= known.index);
        let level_at = reached.map(|known| known.at).max().max(state.level_at);
        state.level_at = level_at;
        state.pending.retain(|known| Some(known.at) > level_at);
        level_at
    }

    /// The moment of the newest confirmation, whether its index is applied or not.
    pub(super) fn confirmed_at(&self) -> Option<Instant> {
        self.state().confirmed_at
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a quorum last confirmed a leader, by its own clock, and what was committed then or later. `None` on others, and
/// until something of the leader's own term is committed: before that it may not know of all that is.
///
/// Sound also where the metrics are old, or the node leads no more: who answered the leader had accepted no later one when
/// the question was sent, which is the moment here.
pub(super) fn confirmed_by_quorum(metrics: &RaftMetrics<TypeConfig>) -> Option<(Instant, LogIndex)> {
    let committed = committed_by_leader(metrics)?;
    let asked_at = metrics.last_quorum_acked.as_ref()?;
    Some((**asked_at, LogIndex::new(committed.index)))
}

/// What is committed, on a leader that has committed something of its own term. `None` on others.
pub(super) fn committed_by_leader(metrics: &RaftMetrics<TypeConfig>) -> Option<LogId> {
    let own = LeaderId {
        term: metrics.current_term,
        node_id: metrics.id,
    };
    let committed = metrics
        .cluster_committed
        .filter(|committed| committed.leader_id == own);
    committed.filter(|_| metrics.state == ServerState::Leader)
}

/// Answers that are remembered on each side of a stream of heartbeats. One in three heartbeats confirms, so that
/// these reach back far enough.
const ECHOES_MAX: usize = 16;

/// The answers on one stream of heartbeats, and when each left or came: both sides count them.
///
/// The leader tells with a heartbeat how many of the answers that it got on this stream came *before* a moment at which
/// a quorum confirmed its leadership, and its commit index as of then. So what was acknowledged before the last of
/// them left stands at or below that index. The times are each node's own, and no message has any in it.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    answers: u64,
    times: VecDeque<(u64, Instant)>,
}

impl Echoes {
    /// The next answer leaves, or has come.
    pub(super) fn answer(&mut self, at: Instant) {
        self.answers += 1;
        self.times.push_back((self.answers, at));
        if self.times.len() > ECHOES_MAX {
            self.times.pop_front();
        }
    }

    /// At the leader: how many answers came before a moment. `None` where none of those that are remembered did.
    pub(super) fn before(&self, moment: Instant) -> Option<u64> {
        let before = self.times.iter().rev().find(|(_, came)| *came < moment);
        before.map(|(answers, _)| *answers)
    }

    /// At the follower: when so many answers had left, the last of them as the latest.
    pub(super) fn left_at(&self, answers: u64) -> Option<Instant> {
        let left = self.times.iter().find(|(count, _)| *count == answers);
        left.map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn moments() -> impl Fn(u64) -> Instant {
        let start = env::now();
        move |millis| start + Duration::from_millis(millis)
    }

    fn index(number: u64) -> Option<LogIndex> {
        Some(LogIndex::new(number))
    }

    #[test]
    fn a_state_is_as_old_as_the_newest_confirmation_that_it_has_applied() {
        let (at, freshness) = (moments(), Freshness::default());
        assert_eq!(freshness.level_at(index(7)), None, "nobody has told anything");
        freshness.confirm(at(10), index(5));
        freshness.confirm(at(30), index(9));
        // Rounds overlap: an older one may end later.
        freshness.confirm(at(20), index(7));
        assert_eq!(freshness.confirmed_at(), Some(at(30)));
        assert_eq!(freshness.level_at(index(4)), None);
        assert_eq!(freshness.level_at(index(5)), Some(at(10)));
        assert_eq!(freshness.level_at(index(8)), Some(at(20)));
        assert_eq!(freshness.level_at(index(9)), Some(at(30)));
        freshness.confirm(at(15), index(2));
        assert_eq!(freshness.level_at(index(9)), Some(at(30)), "it never goes back");
    }

    #[test]
    fn a_cluster_that_has_committed_nothing_is_level_without_an_entry() {
        let (at, freshness) = (moments(), Freshness::default());
        freshness.confirm(at(1), None);
        assert_eq!(freshness.level_at(None), Some(at(1)));
    }

    #[test]
    fn messages_alone_prove_nothing() {
        let freshness = Freshness::default();
        freshness.heard(index(3));
        assert_eq!(freshness.level_at(index(3)), None);
    }

    #[test]
    fn an_echo_goes_back_to_the_last_answer_before_the_confirmation() {
        let at = moments();
        let (mut leader, mut follower) = (Echoes::default(), Echoes::default());
        for round in 1..=3 {
            follower.answer(at(round * 100));
            leader.answer(at(round * 100 + 5));
        }
        assert_eq!(
            leader.before(at(105)),
            None,
            "it came at the same time, not before"
        );
        assert_eq!(leader.before(at(106)), Some(1));
        assert_eq!(leader.before(at(300)), Some(2));
        assert_eq!(follower.left_at(2), Some(at(200)));
        // Answers that another stream had, or that are long forgotten, confirm nothing.
        assert_eq!(Echoes::default().left_at(2), None);
        for round in 4..100 {
            follower.answer(at(round * 100));
        }
        assert_eq!(follower.left_at(2), None);
        assert_eq!(follower.left_at(99), Some(at(9_900)));
    }

    /// A new leader has the commit index of the one before, which may be behind what that one acknowledged.
    #[test]
    fn a_leader_confirms_nothing_before_something_of_its_own_term_is_committed() {
        let own = LeaderId { term: 4, node_id: 2 };
        let committed = |leader, index| Some(LogId::new(leader, index));
        let asked_at = env::now();
        let of = |change: &dyn Fn(&mut RaftMetrics<TypeConfig>)| {
            let mut metrics = RaftMetrics::new_initial(2);
            metrics.current_term = 4;
            metrics.state = ServerState::Leader;
            metrics.last_quorum_acked = Some(asked_at.into());
            metrics.cluster_committed = committed(own, 9);
            // What this node itself knows of is no matter.
            metrics.local_committed = committed(own, 8);
            metrics.last_applied = committed(own, 7);
            change(&mut metrics);
            confirmed_by_quorum(&metrics)
        };
        assert_eq!(of(&|_| {}), Some((asked_at, LogIndex::new(9))));
        let older = LeaderId { term: 3, node_id: 1 };
        let own_before = LeaderId { term: 3, node_id: 2 };
        let of_another = LeaderId { term: 4, node_id: 1 };
        for leader in [older, own_before, of_another] {
            let told = of(&|metrics| metrics.cluster_committed = committed(leader, 9));
            assert_eq!(told, None, "committed by {leader:?}");
        }
        assert_eq!(of(&|metrics| metrics.cluster_committed = None), None);
        assert_eq!(
            of(&|metrics| metrics.last_quorum_acked = None),
            None,
            "no quorum has answered"
        );
        for state in [
            ServerState::Learner,
            ServerState::Follower,
            ServerState::Candidate,
        ] {
            assert_eq!(of(&|metrics| metrics.state = state), None, "{state:?}");
        }
    }

    proptest! {
        /// However confirmations come, and however many are dropped: a level is never claimed that no confirmation at or
        /// below the applied index has given, and with all applied it is the newest.
        #[test]
        fn no_level_is_claimed_that_was_not_confirmed(
            confirmations in prop::collection::vec((0u64..200, 0u64..50), 1..60), applied in 0u64..60,
        ) {
            let (at, freshness) = (moments(), Freshness::default());
            for (moment, number) in &confirmations {
                freshness.confirm(at(*moment), index(*number));
            }
            let allowed = confirmations.iter().filter(|(_, number)| *number <= applied).map(|(moment, _)| *moment).max();
            let claimed = freshness.level_at(index(applied));
            prop_assert!(claimed <= allowed.map(&at));
            if applied >= 50 {
                prop_assert_eq!(claimed, allowed.map(at));
            }
        }
    }
}

//! What the cluster is in the middle of: the coverage table's columns.

use std::fmt;

use quorate_kv::model::{LogIndex, Term};
use quorate_kv::node::NodeRole;
use serde::{Deserialize, Serialize};

use super::Seen;
use crate::sim::World;

/// A phase. Several may hold at once: a follower may receive a snapshot while the members change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nobody leads.
    NoLeader,
    /// A node stands for election.
    Electing,
    /// A leader has not yet committed an entry of its term.
    FreshLeader,
    /// A leader serves.
    Steady,
    /// The members change.
    Membership,
    /// A snapshot is sent, or received and installed.
    Snapshot,
    /// A follower cuts off entries that were not committed.
    Truncating,
    /// A log is purged behind a durable state.
    Purging,
    /// A node has started again and applies what its log holds.
    Replay,
    /// Leadership is handed on.
    Transfer,
}

impl Phase {
    /// All, in the order of the table.
    pub const ALL: [Phase; 10] = [
        Phase::NoLeader,
        Phase::Electing,
        Phase::FreshLeader,
        Phase::Steady,
        Phase::Membership,
        Phase::Snapshot,
        Phase::Truncating,
        Phase::Purging,
        Phase::Replay,
        Phase::Transfer,
    ];

    /// Those that are short or rare, for which a fault may be made to wait; those more than once that come of writes and
    /// are over soon, since clients also rest.
    pub const WORTH_WAITING_FOR: [Phase; 14] = [
        Phase::NoLeader,
        Phase::Electing,
        Phase::FreshLeader,
        Phase::Membership,
        Phase::Snapshot,
        Phase::Snapshot,
        Phase::Snapshot,
        Phase::Truncating,
        Phase::Purging,
        Phase::Purging,
        Phase::Purging,
        Phase::Purging,
        Phase::Replay,
        Phase::Transfer,
    ];

    /// As plans write it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::NoLeader => "no-leader",
            Phase::Electing => "electing",
            Phase::FreshLeader => "fresh-leader",
            Phase::Steady => "steady",
            Phase::Membership => "membership",
            Phase::Snapshot => "snapshot",
            Phase::Truncating => "truncating",
            Phase::Purging => "purging",
            Phase::Replay => "replay",
            Phase::Transfer => "transfer",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A leader that has not committed anything of its term, as far as it has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fresh {
    pub(super) term: Term,
    /// What it must commit to be fresh no longer.
    pub(super) until: Option<LogIndex>,
}

/// The phases that hold now, by what the nodes that run have told and by what they are in the middle of.
pub(super) fn now(seen: &Seen, world: &World) -> Vec<Phase> {
    let running = || {
        let all = seen.latest.iter().filter(|(n, _)| !seen.silent.contains(n));
        all.map(|(_, status)| status)
    };
    let term = running().map(|s| s.term).max();
    let leader = running().find(|s| s.role == NodeRole::Leader && Some(s.term) == term);
    let mut phases = Vec::new();
    if leader.is_none() {
        phases.push(Phase::NoLeader);
    }
    // A term that rose without a leader is an election too: a candidate's part is a matter of milliseconds.
    let risen = leader.is_none() && term.is_some_and(|t| t.number() > seen.led_term);
    if risen || running().any(|s| s.role == NodeRole::Candidate) {
        phases.push(Phase::Electing);
    }
    if let Some(leader) = leader {
        let fresh = seen.fresh.is_some_and(|fresh| fresh.term == leader.term);
        phases.push(if fresh { Phase::FreshLeader } else { Phase::Steady });
    }
    let in_any = |spans: &[&str]| spans.iter().any(|span| world.is_in_span(span));
    let others = [
        (Phase::Membership, seen.changing_members),
        (Phase::Snapshot, in_any(&["snapshot.send", "snapshot.receive"])),
        (Phase::Truncating, in_any(&["raft.truncate"])),
        (Phase::Purging, in_any(&["raft.purge"])),
        (Phase::Replay, !seen.replaying.is_empty()),
        (Phase::Transfer, seen.moving_leader),
    ];
    phases.extend(
        others
            .into_iter()
            .filter(|(_, holds)| *holds)
            .map(|(phase, _)| phase),
    );
    phases
}

//! From one state of a partition to the next: who leads, and which epochs rise.
//!
//! The only place that raises an epoch.
//!
//! Always: a change raises the partition epoch by exactly 1, and no change raises nothing; the leader epoch
//! rises by 1 exactly when the leader is set (to another broker, to none, from none, or anew) or the replicas
//! lost a member, and only together with the partition epoch.

use quorate_kv::model::LogTime;

use crate::ids::BrokerId;
use crate::rows::{Partition, Recovery};

/// Whether a change that ends with the same leader still sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaderSet {
    /// The leader is set when it differs.
    IfDifferent,
    /// The leader is another life of the same broker: what was addressed to the old one must be fenced.
    Anew,
}

/// The row after a change; `None` when nothing changed. `after` is `before` with new fields, but old epochs
/// and times.
pub(crate) fn next(
    before: &Partition,
    mut after: Partition,
    leader: LeaderSet,
    now: LogTime,
) -> Option<Partition> {
    let lost_replica = before.replicas.iter().any(|r| !after.replicas.contains(r));
    let leader_set = before.leader != after.leader || leader == LeaderSet::Anew || lost_replica;
    if *before == after && !leader_set {
        return None;
    }
    if leader_set {
        after.leader_epoch = before.leader_epoch.next();
    }
    after.partition_epoch = before.partition_epoch.next();
    after.modified_at = now.max(before.modified_at);
    Some(after)
}

/// Who leads by a clean election: the present leader if it may go on, else the first valid replica in the
/// order of preference, else nobody. Valid is who is acceptable and in the ISR, or, while the ISR is empty,
/// among the eligible leaders.
pub(crate) fn elect(partition: &Partition, acceptable: impl Fn(BrokerId) -> bool) -> Option<BrokerId> {
    let candidates = if partition.isr.is_empty() {
        &partition.eligible_leaders
    } else {
        &partition.isr
    };
    let valid = |broker: &BrokerId| candidates.contains(broker) && acceptable(*broker);
    let present = partition.leader.filter(valid);
    present.or_else(|| partition.replicas.iter().copied().find(valid))
}

/// What a partition becomes when `broker` left its ISR (it was fenced, or a new process took its id). The
/// last member stays in the ISR, with no leader: only it may come back.
pub(crate) fn without(
    before: &Partition,
    broker: BrokerId,
    acceptable: impl Fn(BrokerId) -> bool,
    now: LogTime,
) -> Option<Partition> {
    let mut after = before.clone();
    if before.isr != [broker] {
        after.isr.retain(|member| *member != broker);
    }
    after.leader = elect(&after, |member| member != broker && acceptable(member));
    next(before, after, LeaderSet::IfDifferent, now)
}

/// What a leaderless partition becomes when `broker` may lead again.
pub(crate) fn with(
    before: &Partition,
    acceptable: impl Fn(BrokerId) -> bool,
    now: LogTime,
) -> Option<Partition> {
    if before.leader.is_some() {
        return None;
    }
    let mut after = before.clone();
    after.leader = elect(&after, acceptable);
    next(before, after, LeaderSet::IfDifferent, now)
}

/// What a partition becomes when its leader is named from outside the ISR: it alone is in sync from now on,
/// and what only others had is lost.
pub(crate) fn unclean(before: &Partition, leader: BrokerId) -> Partition {
    Partition {
        isr: vec![leader],
        leader: Some(leader),
        recovery: Recovery::Recovering,
        eligible_leaders: Vec::new(),
        last_known_leaders: Vec::new(),
        ..before.clone()
    }
}

//! The rule of failover: while a majority of the voters run and reach each other, and nothing else troubles them, for longer
//! than is promised, one of them leads and knows that it does.
//!
//! Looks every so often; a look that finds trouble begins the time anew. What counts as trouble is more than what a cluster
//! must bear, so that the rule never errs: then nothing is demanded.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use quorate_kv::env;
use quorate_kv::node::NodeRole;

use super::Cluster;
use crate::sim::world::lock;

/// How often it looks.
const ROUND: Duration = Duration::from_millis(20);
/// What is added to the promise: clocks run differently, disks take their time, votes may be split, and connections that
/// broke are made anew with pauses in between.
const SLACK: Duration = Duration::from_secs(5);

/// Looks until the faults are over.
pub(super) async fn watch(cluster: Cluster, over: Rc<Cell<bool>>) {
    let promise = cluster.plan.settings().timing.failover_max * 2 + SLACK;
    let mut calm: Option<(BTreeSet<u32>, Duration)> = None;
    while !over.get() {
        env::sleep(ROUND).await;
        let now = cluster.sim.now();
        let majority = majority(&cluster);
        if cluster.troubled.get() > now {
            calm = None;
            continue;
        }
        let since = match (majority, &calm) {
            (None, _) => {
                calm = None;
                continue;
            }
            (Some(majority), Some((same, since))) if majority == *same => *since,
            (Some(majority), _) => {
                calm = Some((majority, now));
                now
            }
        };
        if led(&cluster) {
            calm = calm.map(|(majority, _)| (majority, now));
            continue;
        }
        if now - since > promise {
            let voters = cluster.fleet.borrow().voters.clone();
            let told = format!(
                "of the voters {voters:?} these run and reach each other since {:.3} s, and nobody leads them at {:.3} s, \
                 which is more than {promise:?} later",
                since.as_secs_f64(),
                now.as_secs_f64(),
            );
            let mut seen = lock(&cluster.seen);
            seen.unled.get_or_insert(told);
            return;
        }
    }
}

/// Whether somebody leads whom a quorum follows.
fn led(cluster: &Cluster) -> bool {
    let seen = lock(&cluster.seen);
    let leads = |status: &quorate_kv::node::Status| status.role == NodeRole::Leader && status.quorum;
    seen.latest.values().any(leads)
}

/// Voters that run and all reach each other, if they are a majority: the one from the lowest number on.
fn majority(cluster: &Cluster) -> Option<BTreeSet<u32>> {
    let fleet = cluster.fleet.borrow();
    let (voters, up) = {
        let seen = lock(&cluster.seen);
        if seen.changing_members || seen.moving_leader {
            return None;
        }
        let up = |number: &u32| {
            let host = cluster.sim.host(*number);
            let speaks = seen.latest.contains_key(number) && !seen.stopped.contains_key(number);
            host.is_alive() && !host.is_paused() && speaks && !seen.replaying.contains_key(number)
        };
        let up: Vec<u32> = fleet.voters.iter().copied().filter(up).collect();
        (fleet.voters.len(), up)
    };
    let reach = |a: u32, b: u32| {
        a == b || cluster.watch.holder(a, b).is_none() && cluster.watch.holder(b, a).is_none()
    };
    // With so few voters, to begin with each of them finds any group that is whole.
    let groups = up.iter().map(|first| {
        let mut group = BTreeSet::from([*first]);
        for next in &up {
            if group.iter().all(|one| reach(*one, *next)) {
                group.insert(*next);
            }
        }
        group
    });
    groups.into_iter().find(|group| group.len() * 2 > voters)
}

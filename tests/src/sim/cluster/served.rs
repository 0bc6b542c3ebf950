//! Two rules of failover, judged while the faults go on.
//!
//! *Failover*: while a majority of the voters run and reach each other, and nothing else troubles them, for longer than is
//! promised, one of them leads and knows that it does.
//!
//! *Cause*: nobody is elected without a reason: not while nothing happens, not for a pause or a cut that is shorter than the
//! time without an election, and not for one node's word that its leader's process has ended.
//!
//! Both look every so often. What counts as trouble, or as a cause, is more than what a cluster must bear, so that the rules
//! never err: then nothing is demanded.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use quorate_kv::env;
use quorate_kv::node::NodeRole;

use super::Cluster;
use super::fault::Fault;
use crate::sim::world::lock;

/// How often it looks.
const ROUND: Duration = Duration::from_millis(20);
/// What is added to the promise: clocks run differently, disks take their time, votes may be split, and connections that
/// broke are made anew with pauses in between.
const SLACK: Duration = Duration::from_secs(5);
/// Of ten heartbeats without which nobody stands, a fault may take so many.
const SHORT_HEARTBEATS: u32 = 6;

/// How long nodes that form a cluster wait for one that is not there, and a little.
const FORMING: Duration = Duration::from_secs(6);

/// What goes on that a failover need not bear, or that is a reason for one.
#[derive(Debug, Default)]
pub(super) struct Excuses {
    /// Until then there are faults besides cuts, pauses and ends.
    troubled: Cell<Duration>,
    /// Until then an election has a cause.
    cause: Cell<Duration>,
    /// Until then a short fault may add up with another.
    short: Cell<Duration>,
    /// Nodes that were told of an end that was none.
    misled: RefCell<BTreeSet<u32>>,
}

impl Excuses {
    /// A fault strikes now.
    pub(super) fn strike(&self, cluster: &Cluster, fault: &Fault) {
        let now = cluster.sim.now();
        match fault {
            Fault::DiskStall { lasts, .. } | Fault::DiskFull { lasts, .. } => self.trouble(now + *lasts),
            Fault::SlowNetwork { lasts, .. } | Fault::HalfOpen { lasts, .. } => {
                self.trouble(now + *lasts);
                self.cause(cluster, now + *lasts);
            }
            Fault::RotUnderNode { .. } => {
                // It stops at some moment of these, by itself.
                let until = now + super::operator::ROTTING_MAX;
                self.trouble(until);
                self.cause(cluster, until);
            }
            Fault::PromoteAndLeave { away } => self.trouble(now + *away),
            Fault::AddLearner
            | Fault::Promote
            | Fault::Remove { .. }
            | Fault::Replace { .. }
            | Fault::BitRot { .. }
            | Fault::WipeWhole { .. }
            | Fault::ReuseId { .. }
            | Fault::CrashPoint { .. }
            | Fault::Panic { .. }
            | Fault::DiskError { .. } => self.trouble(now),
            Fault::Pause { lasts, .. }
            | Fault::Isolate { lasts, .. }
            | Fault::Partition { lasts, .. }
            | Fault::Bridge { lasts, .. }
            | Fault::CutOneWay { lasts, .. } => {
                let timing = cluster.plan.settings().timing;
                let is_short = *lasts <= timing.heartbeat * SHORT_HEARTBEATS && now > self.short.get();
                self.short
                    .set(self.short.get().max(now + *lasts + timing.failover_max));
                if !is_short {
                    self.cause(cluster, now + *lasts);
                }
            }
            Fault::Flap { times, lasts, .. } => self.cause(cluster, now + *lasts * (2 * *times)),
            // Whether anybody is down is looked at.
            Fault::Kill { .. } | Fault::PowerLoss { .. } | Fault::MoveLeader => self.cause(cluster, now),
            Fault::FalseEnd { .. } | Fault::ClockJump { .. } | Fault::ClockAhead { .. } => {}
        }
    }

    /// The operator changes something, perhaps between two looks.
    pub(super) fn operate(&self, cluster: &Cluster) {
        self.cause(cluster, cluster.sim.now());
    }

    /// A node is told that its leader's process has ended, which is not so.
    pub(super) fn misled(&self, cluster: &Cluster, number: u32) {
        let mut misled = self.misled.borrow_mut();
        misled.insert(number);
        // What one has found stays found for as long as the leader leads.
        if misled.len() > 1 {
            self.cause(cluster, cluster.sim.now());
        }
    }

    fn trouble(&self, until: Duration) {
        self.troubled.set(self.troubled.get().max(until + SLACK));
    }

    fn cause(&self, cluster: &Cluster, until: Duration) {
        let margin = cluster.plan.settings().timing.failover_max * 3 + SLACK;
        self.cause.set(self.cause.get().max(until + margin));
    }
}

/// Looks until the faults are over.
pub(super) async fn watch(cluster: Cluster, over: Rc<Cell<bool>>) {
    // A profile's heartbeats must have the time to be answered; with links as slow as these nothing is promised.
    if cluster.plan.links.latency_max * 3 > cluster.plan.tuning.heartbeat {
        return;
    }
    let failover = cluster.plan.settings().timing.failover_max * 2 + SLACK;
    let mut calm: Option<(BTreeSet<u32>, Duration)> = None;
    let mut last_led = None;
    let mut hung = 0;
    while !over.get() {
        env::sleep(ROUND).await;
        let now = cluster.sim.now();
        if is_restless(&cluster) {
            cluster.excuses.cause(&cluster, now);
        }
        let led_last = lock(&cluster.seen)
            .leaders
            .last_key_value()
            .map(|(term, led)| (*term, *led));
        if led_last != last_led {
            // A leader whose disk hung for as long as a failover may take has handed over; a stall comes with any sync.
            let marks = cluster.sim.world().marks();
            let now_hung = marks.get("leader.disk_hangs").copied().unwrap_or_default();
            if std::mem::replace(&mut hung, now_hung) < now_hung {
                cluster.excuses.cause(&cluster, now);
            }
            if let (Some((old, (before, _))), Some((new, (number, _)))) = (last_led, led_last)
                && now > cluster.excuses.cause.get()
            {
                let told = format!(
                    "Cause: node {number} was elected in term {new} in the place of node {before}, which led in term {old}, \
                     at {:.3} s, and nothing had happened",
                    now.as_secs_f64(),
                );
                lock(&cluster.seen).unled.get_or_insert(told);
                return;
            }
            if last_led.is_none() {
                // The cluster is formed, and what is promised of one that is counts from here on.
                calm = None;
            }
            last_led = led_last;
        }
        // Forming takes longer, while one of the nodes is not there.
        let promise = match last_led {
            Some(_) => failover,
            None => failover + FORMING,
        };
        let majority = majority(&cluster).filter(|_| cluster.excuses.troubled.get() <= now);
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
        } else if now - since > promise {
            let voters = cluster.fleet.borrow().voters.clone();
            let told = format!(
                "Failover: of the voters {voters:?} a majority runs and reaches each other since {:.3} s, and nobody leads \
                 them at {:.3} s, which is more than {promise:?} later",
                since.as_secs_f64(),
                now.as_secs_f64(),
            );
            lock(&cluster.seen).unled.get_or_insert(told);
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

/// Whether a voter is down or the one that led last, or the operator changes something.
fn is_restless(cluster: &Cluster) -> bool {
    let fleet = cluster.fleet.borrow();
    let seen = lock(&cluster.seen);
    let is_down = |number: &u32| {
        !cluster.sim.host(*number).is_alive()
            || !seen.latest.contains_key(number)
            || seen.stopped.contains_key(number)
            || seen.stops.contains_key(number)
    };
    // It may have got its vote by a promotion whose outcome the operator does not know yet.
    let led = seen.leaders.last_key_value().map(|(_, (number, _))| number);
    seen.changing_members || seen.moving_leader || fleet.voters.iter().chain(led).any(is_down)
}

/// Voters that run and all reach each other, if they are a majority: the first such group.
fn majority(cluster: &Cluster) -> Option<BTreeSet<u32>> {
    let fleet = cluster.fleet.borrow();
    let up: Vec<u32> = {
        let seen = lock(&cluster.seen);
        if seen.changing_members || seen.moving_leader {
            return None;
        }
        let up = |number: &u32| {
            let host = cluster.sim.host(*number);
            let speaks = seen.latest.contains_key(number) && !seen.stopped.contains_key(number);
            host.is_alive() && !host.is_paused() && speaks && !seen.replaying.contains_key(number)
        };
        fleet.voters.iter().copied().filter(up).collect()
    };
    let reach = |a: u32, b: u32| cluster.watch.holder(a, b).is_none() && cluster.watch.holder(b, a).is_none();
    // Each in turn begins a group, and all that fit into it come along: with so few voters that suffices.
    let groups = up.iter().map(|first| {
        let mut group = BTreeSet::from([*first]);
        for next in &up {
            if group.iter().all(|one| one == next || reach(*one, *next)) {
                group.insert(*next);
            }
        }
        group
    });
    let mut groups = groups.filter(|group| group.len() * 2 > fleet.voters.len());
    groups.next()
}

//! Brings about the faults of a plan, one after the other, and starts again whoever fell.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use quorate_kv::env;
use quorate_transport::memory::LinkSettings;

use super::fault::{Fault, FaultEvent, Kind, Reach, Target};
use super::operator::Change;
use super::served;
use super::{Cluster, address};
use crate::sim::world::lock;
use crate::sim::{CrashAction, Host};

/// How often somebody looks for nodes that fell.
const ROUND: Duration = Duration::from_millis(20);

/// How often a fault that waits for a phase looks whether it has come: a purge may take less than a millisecond.
const GLANCE: Duration = Duration::from_micros(300);

/// Lets the faults of the plan happen, for as long as it says.
pub(super) async fn run(cluster: &Cluster) {
    let end = cluster.sim.now() + cluster.plan.faulty;
    let over = Rc::new(Cell::new(false));
    let caring = care(cluster.clone(), Rc::clone(&over));
    cluster.sim.spawn_local("caretaker", caring);
    let watching = served::watch(cluster.clone(), Rc::clone(&over));
    cluster.sim.spawn_local("failover", watching);
    for (number, event) in cluster.plan.schedule.iter().enumerate() {
        wait(cluster, event, end).await;
        if cluster.sim.now() >= end || cluster.broken().is_some() {
            break;
        }
        strike(cluster, number as u64, event);
    }
    while cluster.sim.now() < end && cluster.broken().is_none() {
        env::sleep(ROUND.min(end.saturating_sub(cluster.sim.now()))).await;
    }
    over.set(true);
}

/// Waits for an event's time and phase.
async fn wait(cluster: &Cluster, event: &FaultEvent, end: Duration) {
    env::sleep(event.at.saturating_sub(cluster.sim.now())).await;
    let Some(phase) = event.when else { return };
    let patience = end.min(cluster.sim.now() + FaultEvent::PATIENCE);
    while cluster.sim.now() < patience && !cluster.watch.phases().contains(&phase) {
        env::sleep(GLANCE).await;
    }
}

fn strike(cluster: &Cluster, number: u64, event: &FaultEvent) {
    let fault = &event.fault;
    cluster.excuses.strike(cluster, fault);
    match fault {
        Fault::Kill { target, down } => {
            if let Some((number, host)) = host(cluster, *target) {
                cluster.fleet.borrow_mut().set_down(number, *down);
                host.kill();
            }
        }
        Fault::PowerLoss {
            target,
            reach,
            loss,
            down,
        } => {
            for number in reached(cluster, *target, *reach) {
                cluster.fleet.borrow_mut().set_down(number, *down);
                cluster.sim.host(number).power_off(*loss);
            }
        }
        Fault::Pause { target, lasts } => pause(cluster, *target, *lasts),
        Fault::Isolate { target, lasts } => {
            if let Some((cut_off, _)) = host(cluster, *target) {
                cut_off_from_all(cluster, Kind::Isolate, number, &[cut_off], *lasts);
            }
        }
        Fault::Partition {
            target,
            others,
            lasts,
        } => {
            let group = group(cluster, *target, *others as usize + 1);
            cut_off_from_all(cluster, Kind::Partition, number, &group, *lasts);
        }
        Fault::Bridge { target, lasts } => {
            // Behind it comes the one that it still reaches.
            if let [cut_off, reached] = group(cluster, *target, 2)[..] {
                let running = cluster.fleet.borrow().running();
                let others = running
                    .into_iter()
                    .filter(|other| ![cut_off, reached].contains(other));
                let links: Vec<_> = others
                    .flat_map(|other| [(cut_off, other), (other, cut_off)])
                    .collect();
                cut(cluster, Kind::Bridge, number, &links, *lasts);
            }
        }
        Fault::FalseEnd { target } => {
            if let Some((misled, host)) = host(cluster, *target)
                && host.is_alive()
            {
                cluster.watch.took_effect(Kind::FalseEnd);
                cluster.tell(format!(
                    "node {misled} is told that its leader's process has ended"
                ));
                cluster.excuses.misled(cluster, misled);
                cluster.false_ends(misled).notify_waiters();
            }
        }
        Fault::CutOneWay { from, to, lasts } => {
            cut(
                cluster,
                Kind::CutOneWay,
                number,
                &pair(cluster, *from, *to),
                *lasts,
            );
        }
        Fault::HalfOpen { from, to, lasts } => {
            cut(
                cluster,
                Kind::HalfOpen,
                number,
                &pair(cluster, *to, *from),
                *lasts,
            );
        }
        Fault::Flap { target, times, lasts } => flap(cluster, number, *target, *times, *lasts),
        Fault::SlowNetwork {
            latency,
            loss_per_million,
            lasts,
        } => slow(cluster, number, *latency, *loss_per_million, *lasts),
        Fault::CrashPoint {
            target,
            point,
            passes,
            loss,
            down,
        } => {
            if let Some((number, host)) = host(cluster, *target) {
                cluster.fleet.borrow_mut().set_down(number, *down);
                host.arm(point.as_str(), *passes, CrashAction::SwitchOff(*loss));
            }
        }
        Fault::DiskError {
            target,
            point,
            passes,
        } => {
            if let Some((_, host)) = host(cluster, *target) {
                host.arm(point.as_str(), *passes, CrashAction::Error);
            }
        }
        Fault::Panic {
            target,
            point,
            passes,
        } => {
            if let Some((_, host)) = host(cluster, *target) {
                host.arm(point.as_str(), *passes, CrashAction::Panic);
            }
        }
        Fault::DiskStall {
            target,
            passes,
            lasts,
        } => {
            if let Some((_, host)) = host(cluster, *target) {
                host.arm("disk.sync", *passes, CrashAction::Delay(*lasts));
            }
        }
        Fault::DiskFull { target, lasts } => {
            if let Some((_, host)) = host(cluster, *target) {
                let mut full = host.disk().profile();
                full.capacity = 0;
                host.disk().set_profile(full);
                let usual = cluster.plan.disk_profile();
                later(cluster, *lasts, move |cluster| {
                    // All disks were made good when the faults ended.
                    if !cluster.is_healed() {
                        host.disk().set_profile(usual);
                    }
                });
            }
        }
        Fault::ClockJump { target, by, back } => {
            if let Some((_, host)) = host(cluster, *target)
                && host.is_alive()
            {
                cluster.watch.took_effect(Kind::ClockJump);
                host.shift_wall_clock(*by, *back);
            }
        }
        Fault::ClockAhead { target, by, lasts } => {
            if let Some((_, host)) = host(cluster, *target)
                && host.is_alive()
            {
                cluster.watch.took_effect(Kind::ClockAhead);
                host.shift_wall_clock(*by, false);
                let by = *by;
                // Also when the faults have ended: a clock that was set right stays so.
                later(cluster, *lasts, move |_| host.shift_wall_clock(by, true));
            }
        }
        Fault::AddLearner => cluster.operator.ask(Change::AddLearner),
        Fault::Promote => cluster.operator.ask(Change::Promote),
        Fault::PromoteAndLeave { away } => cluster.operator.ask(Change::PromoteAndLeave(*away)),
        Fault::Remove { target } => cluster.operator.ask(Change::Remove(*target)),
        Fault::Replace { target } => cluster.operator.ask(Change::Replace(*target)),
        Fault::BitRot { target } => cluster.operator.ask(Change::BitRot(*target)),
        Fault::RotUnderNode { target } => cluster.operator.ask(Change::RotUnderNode(*target)),
        Fault::WipeWhole { target } => cluster.operator.ask(Change::WipeWhole(*target)),
        Fault::ReuseId { target } => cluster.operator.ask(Change::ReuseId(*target)),
        Fault::MoveLeader => cluster.operator.ask(Change::MoveLeader),
    }
}

/// Whom a target means now.
fn host(cluster: &Cluster, target: Target) -> Option<(u32, Host)> {
    let leader = lock(&cluster.seen).leader();
    let number = cluster.fleet.borrow().find(target, leader)?;
    Some((number, cluster.sim.host(number)))
}

/// A target and so many others behind it, going round.
fn group(cluster: &Cluster, target: Target, count: usize) -> Vec<u32> {
    let running = cluster.fleet.borrow().running();
    let Some((first, _)) = host(cluster, target) else {
        return Vec::new();
    };
    let at = running.iter().position(|n| *n == first).unwrap_or_default();
    let behind = running.iter().cycle().skip(at);
    behind.take(count.min(running.len())).copied().collect()
}

fn reached(cluster: &Cluster, target: Target, reach: Reach) -> Vec<u32> {
    let all = cluster.fleet.borrow().running().len();
    let count = match reach {
        Reach::One => 1,
        Reach::Minority => (all.saturating_sub(1) / 2).max(1),
        Reach::Majority => all / 2 + 1,
        Reach::All => all,
    };
    group(cluster, target, count)
}

fn later(cluster: &Cluster, time: Duration, what: impl FnOnce(&Cluster) + 'static) {
    let cluster = cluster.clone();
    cluster.sim.clone().spawn_local("later", async move {
        env::sleep(time).await;
        what(&cluster);
    });
}

fn pause(cluster: &Cluster, target: Target, lasts: Duration) {
    let Some((number, host)) = host(cluster, target) else {
        return;
    };
    if !host.is_alive() {
        return;
    }
    // It counts when it held something up, in the phase in which it began.
    let phases = cluster.watch.phases();
    host.pause();
    lock(&cluster.seen).silent.insert(number);
    later(cluster, lasts, move |cluster| {
        lock(&cluster.seen).silent.remove(&number);
        if host.is_paused() {
            if host.tasks_held() > 0 {
                cluster.watch.took_effect_in(Kind::Pause, &phases);
            }
            host.resume();
        }
    });
}

/// Cuts a group of nodes off from all others.
fn cut_off_from_all(cluster: &Cluster, kind: Kind, fault: u64, group: &[u32], lasts: Duration) {
    let mut links = Vec::new();
    for other in cluster.fleet.borrow().running() {
        if !group.contains(&other) {
            links.extend(group.iter().flat_map(|one| [(*one, other), (other, *one)]));
        }
    }
    cut(cluster, kind, fault, &links, lasts);
}

fn pair(cluster: &Cluster, from: Target, to: Target) -> Vec<(u32, u32)> {
    let from = host(cluster, from).map(|(n, _)| n);
    let to = host(cluster, to).map(|(n, _)| n);
    let pair = from.zip(to).filter(|(from, to)| from != to);
    pair.into_iter().collect()
}

/// Holds links up for a while.
fn cut(cluster: &Cluster, kind: Kind, fault: u64, links: &[(u32, u32)], lasts: Duration) {
    for (from, to) in links {
        cluster.watch.hold(*from, *to, kind, fault);
        hold(cluster, *from, *to, kind);
    }
    if !links.is_empty() {
        let told: Vec<_> = links.iter().map(|(from, to)| format!("{from} to {to}")).collect();
        cluster.tell(format!("{kind}: held up for {lasts:?}: {}", told.join(", ")));
        later(cluster, lasts, move |cluster| release(cluster, fault));
    }
}

fn hold(cluster: &Cluster, from: u32, to: u32, kind: Kind) {
    let (from, to) = (address(from), address(to));
    match kind {
        // Nothing breaks, however long it lasts.
        Kind::HalfOpen => cluster.network.pause(&from, &to),
        _ => cluster.network.cut_one_way(&from, &to),
    }
}

/// Opens the links that a fault holds up, and no other's.
fn release(cluster: &Cluster, fault: u64) {
    if cluster.is_healed() {
        return;
    }
    for (from, to) in cluster.watch.release(fault) {
        cluster.network.heal(&address(from), &address(to));
        // Links are opened in both directions.
        if let Some(kind) = cluster.watch.holder(to, from) {
            hold(cluster, to, from, kind);
        }
    }
}

fn flap(cluster: &Cluster, fault: u64, target: Target, times: u32, lasts: Duration) {
    let Some((cut_off, _)) = host(cluster, target) else {
        return;
    };
    let cluster = cluster.clone();
    cluster.sim.clone().spawn_local("flaps", async move {
        for _ in 0..times {
            if cluster.is_healed() {
                return;
            }
            cut_off_from_all(&cluster, Kind::Flap, fault, &[cut_off], lasts);
            env::sleep(lasts * 2).await;
        }
    });
}

fn slow(cluster: &Cluster, fault: u64, latency: Duration, loss_per_million: u32, lasts: Duration) {
    let usual = cluster.plan.link_settings();
    let slow = LinkSettings {
        latency_max: latency.max(usual.latency_max),
        loss_per_million: loss_per_million.max(usual.loss_per_million),
        ..usual.clone()
    };
    cluster.network.set_links(slow);
    cluster.watch.slow(Some(fault));
    cluster.tell(format!("slow-network: up to {latency:?} for {lasts:?}"));
    later(cluster, lasts, move |cluster| {
        if !cluster.is_healed() {
            cluster.network.set_links(usual);
            cluster.watch.slow(None);
        }
    });
}

/// Starts again hosts that went down, and nodes that an error of the disk stopped, until the faults are over.
async fn care(cluster: Cluster, over: Rc<Cell<bool>>) {
    while !over.get() {
        let running = cluster.fleet.borrow().running();
        for number in running {
            let host = cluster.sim.host(number);
            let stopped = lock(&cluster.seen).stopped.contains_key(&number);
            if host.is_alive() && stopped {
                cluster.counts.borrow_mut().restarts_after_faults += 1;
                host.kill_unseen();
            }
            if !host.is_alive() {
                start_later(&cluster, number);
            }
        }
        env::sleep(ROUND).await;
    }
}

fn start_later(cluster: &Cluster, number: u32) {
    let down = {
        let mut fleet = cluster.fleet.borrow_mut();
        if !fleet.starting.insert(number) {
            return;
        }
        fleet.take_down(number)
    };
    later(cluster, down, move |cluster| {
        cluster.fleet.borrow_mut().starting.remove(&number);
        // All of them were started when the faults ended; and a host may have lost its disk meanwhile, whose node must
        // never come back under its id.
        let is_wanted = cluster.fleet.borrow().running().contains(&number);
        if is_wanted && !cluster.is_healed() && !cluster.sim.host(number).is_alive() {
            cluster.start(number);
        }
    });
}

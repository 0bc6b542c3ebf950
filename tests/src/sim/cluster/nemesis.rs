//! The faults of a run, in the order that its seed draws.

use std::time::Duration;

use quorate_kv::env;
use quorate_kv::node::NodeRole;

use super::{Cluster, address};
use crate::sim::world::lock;
use crate::sim::{CrashAction, PowerLoss, Rng};

/// How often each fault was brought about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Processes killed.
    pub kills: u64,
    /// Hosts that lost power.
    pub power_losses: u64,
    /// Hosts paused.
    pub pauses: u64,
    /// Partitions and cuts.
    pub cuts: u64,
    /// Crash points armed.
    pub crash_points: u64,
    /// Disk errors armed.
    pub disk_errors: u64,
    /// Disk stalls armed.
    pub disk_stalls: u64,
    /// Nodes started again after they had stopped by themselves.
    pub restarts_after_faults: u64,
}

/// Where a node may crash or suffer an error: the disk's calls, and the steps that the code has named.
const POINTS: [&str; 8] = [
    "disk.write",
    "disk.sync",
    "disk.sync",
    "disk.sync_dir",
    "disk.rename",
    "disk.set_len",
    "disk.open",
    "log.*",
];

/// Lets faults happen for as long as the plan says.
pub(super) async fn run(cluster: &Cluster) {
    let mut random = cluster.sim.rng("nemesis");
    let end = cluster.sim.now() + cluster.plan.faulty;
    let mut cut_until = None;
    while cluster.sim.now() < end && cluster.broken().is_none() {
        let every = cluster.plan.fault_every;
        env::sleep(random.duration(every / 10, every * 2)).await;
        restart_the_fallen(cluster, &mut random);
        if cut_until.is_some_and(|until| cluster.sim.now() >= until) {
            cluster.network.heal_all();
            cut_until = None;
        }
        let host = random.between(1, u64::from(cluster.plan.nodes)) as u32;
        match random.below(7) {
            0 if cluster.plan.faults.kill => {
                cluster.sim.host(host).kill();
                cluster.faults.borrow_mut().kills += 1;
                start_later(cluster, &mut random, host);
            }
            1 if cluster.plan.faults.power => {
                for host in some_hosts(cluster, &mut random) {
                    cluster.sim.host(host).power_off(PowerLoss::Drawn);
                    cluster.faults.borrow_mut().power_losses += 1;
                    start_later(cluster, &mut random, host);
                }
            }
            2 if cluster.plan.faults.pause => {
                cluster.faults.borrow_mut().pauses += 1;
                let paused = cluster.sim.host(host);
                paused.pause();
                let election = cluster.plan.settings.timing.election_timeout_max;
                let time = random.duration(Duration::ZERO, election * 3);
                cluster.sim.spawn_local("resumes", async move {
                    env::sleep(time).await;
                    paused.resume();
                });
            }
            3 if cluster.plan.faults.cut => {
                cluster.faults.borrow_mut().cuts += 1;
                cut(cluster, &mut random, host);
                cut_until = Some(cluster.sim.now() + random.duration(Duration::ZERO, Duration::from_secs(5)));
            }
            4 if cluster.plan.faults.crash_points => {
                let action = CrashAction::SwitchOff(*random.pick(&[PowerLoss::Drawn, PowerLoss::LoseAll]));
                cluster.faults.borrow_mut().crash_points += 1;
                cluster
                    .sim
                    .host(host)
                    .arm(*random.pick(&POINTS), random.below(20), action);
            }
            5 if cluster.plan.faults.disk_errors => {
                cluster.faults.borrow_mut().disk_errors += 1;
                let host = cluster.sim.host(host);
                host.arm(*random.pick(&POINTS), random.below(20), CrashAction::Error);
            }
            6 if cluster.plan.faults.disk_stalls => {
                cluster.faults.borrow_mut().disk_stalls += 1;
                let time = random.duration(Duration::from_millis(1), Duration::from_secs(2));
                cluster
                    .sim
                    .host(host)
                    .arm("disk.sync", random.below(20), CrashAction::Delay(time));
            }
            _ => {}
        }
    }
}

/// One host, a minority, a majority, or all.
fn some_hosts(cluster: &Cluster, random: &mut Rng) -> Vec<u32> {
    let mut hosts: Vec<u32> = cluster.numbers().collect();
    random.shuffle(&mut hosts);
    let count = match random.below(4) {
        0 => hosts.len(),
        1 => hosts.len() / 2 + 1,
        _ => 1,
    };
    hosts.truncate(count);
    hosts
}

/// Starts a host again: at once, within an election timeout, or late.
fn start_later(cluster: &Cluster, random: &mut Rng, host: u32) {
    let time = match random.below(3) {
        0 => Duration::ZERO,
        1 => random.duration(Duration::ZERO, cluster.plan.settings.timing.election_timeout_min),
        _ => random.duration(Duration::from_secs(1), Duration::from_secs(5)),
    };
    let cluster = cluster.clone();
    cluster.sim.clone().spawn_local("starts", async move {
        env::sleep(time).await;
        // It may have been started, and switched off again, in the meantime.
        if !cluster.sim.host(host).is_alive() {
            cluster.start(host);
        }
    });
}

/// Hosts that crashed at a crash point, and nodes that an error of the disk stopped.
fn restart_the_fallen(cluster: &Cluster, random: &mut Rng) {
    for number in cluster.numbers() {
        let host = cluster.sim.host(number);
        let stopped = lock(&cluster.seen).stopped.contains_key(&number);
        if host.is_alive() && stopped {
            cluster.faults.borrow_mut().restarts_after_faults += 1;
            host.kill();
        }
        if !host.is_alive() {
            start_later(cluster, random, number);
        }
    }
}

fn cut(cluster: &Cluster, random: &mut Rng, host: u32) {
    let network = &cluster.network;
    let mut hosts: Vec<String> = cluster.numbers().map(address).collect();
    let leader = {
        let seen = lock(&cluster.seen);
        let leads = |(_, s): &(&u32, &quorate_kv::node::Status)| s.role == NodeRole::Leader;
        seen.latest.iter().rfind(leads).map(|(number, _)| *number)
    };
    match random.below(4) {
        0 => network.isolate(&address(leader.unwrap_or(host))),
        1 => {
            random.shuffle(&mut hosts);
            let (a, b) = hosts.split_at(random.index(hosts.len() + 1));
            let a: Vec<&str> = a.iter().map(String::as_str).collect();
            let b: Vec<&str> = b.iter().map(String::as_str).collect();
            network.partition(&[&a, &b]);
        }
        2 => {
            let other = random.pick(&hosts);
            network.cut_one_way(&address(host), other);
        }
        _ => {
            let other = random.pick(&hosts);
            network.half_open(&address(host), other);
        }
    }
}

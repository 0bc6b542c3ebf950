//! Small scenarios: plans of the simulator with no chance in their faults, and what is demanded of them.
//!
//! Where a rule can be broken by a planted bug ([`Bug`]), the plan runs with it, and the rule must catch it; then without
//! it, and must hold.
//!
//! The seeds are the first ones from 0. Another order of tasks may hide a planted bug from one seed, so that up
//! to [`SEEDS`] are tried until one fails.

use std::time::Duration;

use quorate_kv::planted::{self, Bug};

use super::PowerLoss;
use super::cluster::{
    self, Disks, Failure, Fault, FaultEvent, Links, Phase, Plan, Reach, Report, Small, Target, Tuning,
};

/// So many seeds a planted bug may stay hidden from.
pub const SEEDS: u64 = 20;
/// At least so many seeds must hold without it.
pub const CLEAN_SEEDS: u64 = 3;

/// A bug in this thread, until the end of the scope.
struct Planted;

impl Planted {
    fn new(bug: Bug) -> Self {
        const { assert!(planted::AVAILABLE, "this build has no planted bugs") };
        planted::plant(Some(bug));
        Self
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        planted::plant(None);
    }
}

/// Runs the plan's first seeds with the bug until one is caught by one of these rules, given with a part of what
/// they say; then as many without it, which must hold. Answers the reports of those.
#[track_caller]
pub fn caught_when_on_and_held_when_off(
    bug: Bug,
    rules: &[(&str, &str)],
    plan: impl Fn(u64) -> Plan,
) -> Vec<Report> {
    let caught = (0..SEEDS).find_map(|seed| {
        let _on = Planted::new(bug);
        Some((seed, cluster::run_plan(&plan(seed)).failure?))
    });
    let Some((seed, failure)) = caught else {
        panic!("{bug} was on in {SEEDS} seeds, and nothing noticed");
    };
    let is_expected = |(rule, part): &(&str, &str)| failure.rule == *rule && failure.detail.contains(part);
    assert!(
        rules.iter().any(is_expected),
        "{bug}, seed {seed}, is caught by another rule than expected: {failure}"
    );
    held(seed.max(CLEAN_SEEDS - 1) + 1, plan)
}

/// Runs the plan's first seeds with the bug; whether rules notice it is the caller's to judge.
pub fn with(bug: Bug, seeds: u64, plan: impl Fn(u64) -> Plan) -> Vec<Report> {
    let _on = Planted::new(bug);
    (0..seeds).map(|seed| cluster::run_plan(&plan(seed))).collect()
}

/// Runs the plan's first seeds, which must hold.
#[track_caller]
pub fn held(seeds: u64, plan: impl Fn(u64) -> Plan) -> Vec<Report> {
    let run = |seed| {
        let report = cluster::run_plan(&plan(seed));
        let failure: Option<&Failure> = report.failure.as_ref();
        assert!(failure.is_none(), "seed {seed}: {}", report.failure.expect("one"));
        report
    };
    (0..seeds).map(run).collect()
}

/// How often a rare path was passed in all of them.
pub fn marks(reports: &[Report], name: &str) -> u64 {
    reports.iter().filter_map(|report| report.marks.get(name)).sum()
}

/// Milliseconds.
pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A small quick cluster: elections within 200 to 400 ms, syncs within 3 ms, messages within 2 ms.
pub fn plan(seed: u64, nodes: u32, schedule: Vec<FaultEvent>) -> Plan {
    let last = schedule.iter().map(|event| event.at).max().unwrap_or_default();
    Plan {
        version: Plan::VERSION,
        note: String::new(),
        seed,
        nodes,
        clients: 3,
        sharing: 1,
        readers: 0,
        keys: 4,
        pause_max: ms(20),
        busy_max: Duration::ZERO,
        rest_max: Duration::ZERO,
        faulty: last + ms(500),
        clock_rates: vec![1_000_000; nodes as usize],
        tuning: Tuning {
            heartbeat: ms(20),
            snapshot_entries: 50_000,
            log_entries_kept: 1000,
            log_bytes_kept: 1 << 30,
            log_cache_bytes: 1 << 20,
            durable_interval: ms(1000),
            promote_lag_max: 50,
            proposals_in_flight: 4,
            small: Small::default(),
            state_cache_bytes: 1 << 20,
            scrub_interval: Duration::ZERO,
        },
        links: Links {
            latency_min: ms(1),
            latency_max: ms(2),
            loss_per_million: 0,
        },
        disks: Disks {
            sync_max: ms(3),
            stall_permille: 0,
            garbage_in_log: false,
        },
        schedule,
    }
}

/// Not before that time.
pub fn at(millis: u64, fault: Fault) -> FaultEvent {
    FaultEvent {
        at: ms(millis),
        when: None,
        fault,
    }
}

/// Not before that time, and then when the cluster is in that phase.
pub fn when(millis: u64, phase: Phase, fault: Fault) -> FaultEvent {
    FaultEvent {
        when: Some(phase),
        ..at(millis, fault)
    }
}

/// The next sync takes so long.
pub fn stall(target: Target, millis: u64) -> Fault {
    Fault::DiskStall {
        target,
        passes: 0,
        lasts: ms(millis),
    }
}

/// Hosts lose power and whatever was not synced, and come back at once.
pub fn power(target: Target, reach: Reach) -> Fault {
    Fault::PowerLoss {
        target,
        reach,
        loss: PowerLoss::LoseAll,
        down: Duration::ZERO,
    }
}

/// A node is cut off from the others, not from clients.
pub fn isolate(target: Target, millis: u64) -> Fault {
    Fault::Isolate {
        target,
        lasts: ms(millis),
    }
}

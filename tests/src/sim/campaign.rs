//! Many seeds: run on several threads, one simulation on each, and summed up.
//!
//! Always: what a campaign reports follows from its seeds, whatever the threads do, but for the wall time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use quorate_kv::planted::{self, Bug};

use super::cluster::{self, Coverage, Failure, Kind, Phase, Plan, REQUIRED_FROM_SEEDS, Report};

/// What to run.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The seeds.
    pub seeds: Range<u64>,
    /// How many simulations at once.
    pub jobs: usize,
    /// No seed is begun after so long.
    pub time_max: Option<Duration>,
    /// Faults of this kind alone.
    pub only: Option<Kind>,
    /// With a bug planted.
    pub bug: Option<Bug>,
    /// No seed is begun after the first that failed.
    pub stop_at_failure: bool,
}

/// A seed that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// Why.
    pub failure: Failure,
}

/// What a campaign was like.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many seeds were run.
    pub seeds: u64,
    /// Those that failed, by seed.
    pub failed: Vec<Failed>,
    /// Virtual time of all together.
    pub simulated: Duration,
    /// Real time.
    pub wall: Duration,
    /// Polls of tasks.
    pub polls: u64,
    /// Writes acknowledged.
    pub written: u64,
    /// Reads answered.
    pub read: u64,
    /// Writes whose outcome stayed unknown.
    pub unknown: u64,
    /// Operations that failed for certain.
    pub refused: u64,
    /// Leaders that came up.
    pub elections: u64,
    /// Nodes started again after they had stopped by themselves.
    pub restarts_after_faults: u64,
    /// Times the power was lost, and bytes of writes with it.
    pub power_losses_with_lost_bytes: u64,
    /// Bytes that were lost so.
    pub bytes_lost: u64,
    /// What met the cluster in which phase.
    pub coverage: Coverage,
    /// How often each rare path was passed.
    pub marks: BTreeMap<&'static str, u64>,
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.simulated += report.time;
        self.polls += report.polls;
        self.written += report.operations.written;
        self.read += report.operations.read;
        self.unknown += report.operations.unknown;
        self.refused += report.operations.failed;
        self.elections += report.counts.elections;
        self.restarts_after_faults += report.counts.restarts_after_faults;
        self.power_losses_with_lost_bytes += report.disks.power_losses_with_lost_bytes;
        self.bytes_lost += report.disks.bytes_lost;
        self.coverage.add(&report.coverage);
        for (mark, count) in report.marks {
            *self.marks.entry(mark).or_default() += count;
        }
        if let Some(failure) = report.failure {
            let seed = report.seed;
            self.failed.push(Failed { seed, failure });
        }
    }

    /// Operations that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.written + self.read
    }

    /// Hosts that went down: killed, without power, or at a crash point.
    pub fn crashes(&self) -> u64 {
        let kinds = [Kind::Kill, Kind::PowerLoss, Kind::CrashPoint];
        kinds.map(|kind| self.coverage.total(kind)).iter().sum()
    }

    /// How often a rare path was passed.
    pub fn mark(&self, name: &str) -> u64 {
        self.marks.get(name).copied().unwrap_or_default()
    }

    /// The required cells that are empty; `None` when the campaign was too small, or too narrow, to tell.
    pub fn empty_cells(&self, campaign: &Campaign) -> Option<Vec<(Kind, Phase)>> {
        let tells = self.seeds >= REQUIRED_FROM_SEEDS && campaign.only.is_none() && campaign.bug.is_none();
        tells.then(|| self.coverage.empty_cells())
    }
}

impl Campaign {
    /// A campaign over these seeds, on all cores.
    pub fn of(seeds: Range<u64>) -> Self {
        Campaign {
            seeds,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            time_max: None,
            only: None,
            bug: None,
            stop_at_failure: false,
        }
    }

    /// The plan of one of its seeds.
    pub fn plan(&self, seed: u64) -> Plan {
        match self.only {
            Some(kind) => Plan::of_seed_with_only(seed, kind),
            None => Plan::of_seed(seed),
        }
    }

    /// Runs the seeds; `each` hears of every one as it ends, in no order.
    pub fn run(&self, mut each: impl FnMut(&Report)) -> Summary {
        let started = Instant::now();
        let next = AtomicU64::new(self.seeds.start);
        let stop = AtomicBool::new(false);
        let (tx, rx) = mpsc::channel();
        let mut summary = Summary::default();
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let (tx, next, stop) = (tx.clone(), &next, &stop);
                scope.spawn(move || {
                    planted::plant(self.bug);
                    let in_time = || self.time_max.is_none_or(|max| started.elapsed() < max);
                    while !stop.load(Ordering::Relaxed) && in_time() {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end {
                            return;
                        }
                        let report = cluster::run_plan(&self.plan(seed));
                        if report.failure.is_some() && self.stop_at_failure {
                            stop.store(true, Ordering::Relaxed);
                        }
                        if tx.send(report).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(tx);
            for report in rx {
                each(&report);
                summary.add(report);
            }
        });
        summary.failed.sort_by_key(|failed| failed.seed);
        summary.wall = started.elapsed();
        summary
    }
}

//! Reduces a plan that fails to a small one that still does.
//!
//! The schedule first, by delta debugging (Zeller, Hildebrandt 2002): halves, quarters, ... are left out as
//! long as the run still breaks the same rule; then time, clients, nodes, rates and sizes. What is left out
//! changes what the run draws, so each candidate is tried with a few seeds.
//!
//! Always: the result fails by the same rule as the plan that was handed in.

use std::time::{Duration, Instant};

use super::cluster::{self, Failure, FaultEvent, Plan};

/// With so many seeds a candidate is tried before it counts as sound.
const TRIES: u64 = 3;

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Runs at most.
    pub runs_max: u64,
    /// Real time at most.
    pub time_max: Duration,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            runs_max: 2_000,
            time_max: Duration::from_secs(20 * 60),
        }
    }
}

/// A plan that was reduced.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// What is left.
    pub plan: Plan,
    /// How it fails.
    pub failure: Failure,
    /// How many runs it took.
    pub runs: u64,
}

struct Shrinker<'a> {
    best: Plan,
    failure: Failure,
    runs: u64,
    started: Instant,
    effort: Effort,
    told: &'a mut dyn FnMut(u64, &Plan),
}

/// Reduces a plan; `told` hears of every smaller one. `None` when the plan does not fail.
pub fn shrink(plan: &Plan, effort: Effort, told: &mut dyn FnMut(u64, &Plan)) -> Option<Shrunk> {
    let failure = cluster::run_plan(plan).failure?;
    let mut shrinker = Shrinker {
        best: plan.clone(),
        failure,
        runs: 1,
        started: Instant::now(),
        effort,
        told,
    };
    shrinker.work();
    Some(Shrunk {
        plan: shrinker.best,
        failure: shrinker.failure,
        runs: shrinker.runs,
    })
}

impl Shrinker<'_> {
    fn work(&mut self) {
        loop {
            let before = self.best.clone();
            self.shorten();
            self.schedule();
            self.simplify();
            if self.best == before || self.is_over() {
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.runs >= self.effort.runs_max || self.started.elapsed() >= self.effort.time_max
    }

    /// Takes a candidate if it fails as the plan did, with one of a few seeds.
    fn take(&mut self, candidate: Plan) -> bool {
        if candidate == self.best {
            return false;
        }
        for try_ in 0..TRIES {
            if self.is_over() {
                return false;
            }
            let mut candidate = candidate.clone();
            candidate.seed = candidate.seed.wrapping_add(try_) & (u64::MAX >> 1);
            self.runs += 1;
            let failed = cluster::run_plan(&candidate).failure;
            if let Some(failure) = failed
                && failure.rule == self.failure.rule
            {
                (self.told)(self.runs, &candidate);
                self.best = candidate;
                self.failure = failure;
                return true;
            }
        }
        false
    }

    fn try_change(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        self.take(candidate)
    }

    /// Less time, as long as something happens in it.
    fn shorten(&mut self) {
        while self.try_change(|plan| {
            plan.faulty /= 2;
            plan.schedule.retain(|event| event.at < plan.faulty);
        }) {}
        self.try_change(|plan| {
            let last = plan.schedule.last().map_or(Duration::ZERO, |event| event.at);
            plan.faulty = plan.faulty.min(last + Duration::from_secs(1));
        });
    }

    /// Delta debugging over the events.
    fn schedule(&mut self) {
        self.try_change(|plan| plan.schedule.clear());
        let mut parts = 2;
        while self.best.schedule.len() > 1 && !self.is_over() {
            let events = self.best.schedule.clone();
            let parts_now = parts.min(events.len());
            let part = events.len().div_ceil(parts_now);
            let without = |chunk: usize| -> Vec<FaultEvent> {
                let kept = events.chunks(part).enumerate().filter(|(i, _)| *i != chunk);
                kept.flat_map(|(_, events)| events.to_vec()).collect()
            };
            let chunks = events.len().div_ceil(part);
            let smaller = (0..chunks).any(|chunk| {
                let kept = without(chunk);
                self.try_change(|plan| plan.schedule = kept)
            });
            if smaller {
                parts = parts.saturating_sub(1).max(2);
            } else if part == 1 {
                return;
            } else {
                parts = parts_now * 2;
            }
        }
    }

    /// Everything else: fewer, slower, more usual.
    fn simplify(&mut self) {
        for nodes in 1..self.best.nodes {
            if self.try_change(|plan| {
                plan.nodes = nodes;
                plan.clock_rates.truncate(nodes as usize);
            }) {
                break;
            }
        }
        self.try_change(|plan| plan.rest_max = Duration::ZERO);
        while self.best.readers > 0 && self.try_change(|plan| plan.readers /= 2) {}
        while self.best.clients > 1 && self.try_change(|plan| plan.clients /= 2) {}
        self.try_change(|plan| plan.clock_rates.iter_mut().for_each(|rate| *rate = 1_000_000));
        self.try_change(|plan| plan.links.loss_per_million = 0);
        self.try_change(|plan| plan.links.latency_max = plan.links.latency_min);
        self.try_change(|plan| plan.disks.stall_permille = 0);
        self.try_change(|plan| plan.disks.garbage_in_log = false);
        self.try_change(|plan| plan.keys = 1);
        self.try_change(|plan| plan.tuning.snapshot_entries = 50_000);
        self.try_change(|plan| plan.tuning.log_entries_kept = 1_000);
        self.try_change(|plan| plan.tuning.promote_lag_max = 1_000);
        self.try_change(|plan| plan.tuning.proposals_in_flight = 1);
        self.try_change(|plan| plan.schedule.iter_mut().for_each(|event| event.when = None));
        while self.best.pause_max < Duration::from_millis(400) && self.try_change(|plan| plan.pause_max *= 2)
        {
        }
    }
}

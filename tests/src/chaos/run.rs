//! One run: a cluster of processes starts, suffers under load, heals, and is judged.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::Instant;

use super::nemesis::{Action, Nemesis};
use super::proxy::Relays;
use super::workload::{Notes, Verdict, Workload};
use crate::processes::Processes;
use crate::sim::Rng;

/// Each has its client, hence its session.
const WORKERS: usize = 6;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// How long the cluster suffers.
    pub time: Duration,
    /// Decides what happens, to whom, and how long.
    pub seed: u64,
    /// Whether strace can be used, for failing disks.
    pub strace: bool,
}

/// What a run tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something is done to the cluster.
    Acts(String),
    /// The faults are over; something is judged, and is so far.
    Judges {
        /// What.
        what: &'static str,
        /// How much of it is done,
        done: u64,
        /// and how much there is.
        all: u64,
    },
}

/// What came of it, where all was sound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How long it took,
    pub seconds: f64,
    /// and how much of it the judgement.
    pub judging_seconds: f64,
    /// Nodes of the cluster.
    pub nodes: u64,
    /// The seed.
    pub seed: u64,
    /// How often one node was killed alone, for its own sake.
    pub kills_of_one: u64,
    /// How often all nodes were killed at once.
    pub kills_of_all: u64,
    /// Processes that got SIGKILL, whyever.
    pub processes_killed: u64,
    /// What was done, how often.
    pub actions: BTreeMap<Action, u64>,
    /// What could not be done, since a tool is missing.
    pub not_done: Vec<Action>,
    /// Writes that were acknowledged, each found once.
    pub acknowledged: u64,
    /// Reads, each explained.
    pub reads: u64,
    /// Writes of unknown outcome, each found at most once.
    pub unknown: u64,
    /// Calls that ended without effect: no answer in time.
    pub unavailable: u64,
    /// Keys for which another checker found an order as well.
    pub second_opinions: u64,
    /// The longest time that a worker waited for an answer.
    pub longest_gap_seconds: f64,
    /// What that worker asked for meanwhile, and was told, where it waited for more than half a minute.
    pub longest_gap: Vec<String>,
    /// The revision at which all nodes were equal in the end.
    pub revision: u64,
}

/// What a worker did while it waited for so long is told.
const LONG_GAP: Duration = Duration::from_secs(30);

/// Lets the cluster suffer, and judges it. The processes are prepared and none runs yet; when something fails, the
/// history is left beside their files.
pub async fn run(plan: Plan, processes: &mut Processes, tell: &(dyn Fn(Event) + Sync)) -> Result<Report> {
    let begun = Instant::now();
    let end = begun + plan.time;
    let relays = Relays::start(processes.listening(), &processes.pids(), plan.seed).await?;
    processes.reach_at(relays.reached().clone());
    for id in processes.ids() {
        processes.start(id)?;
    }
    processes.leader().await?;
    let clients: Result<Vec<_>> = (0..WORKERS).map(|_| processes.client()).collect();
    let workload = Workload::start(clients?, plan.seed);

    let mut nemesis = Nemesis {
        processes,
        relays: &relays,
        rng: Rng::new(plan.seed).fork("nemesis"),
        done: BTreeMap::new(),
        strace: plan.strace,
    };
    let mut suffered = Ok(());
    while suffered.is_ok() && Instant::now() < end {
        suffered = nemesis.act(|what| tell(Event::Acts(what.to_owned()))).await;
    }
    let actions = nemesis.done;
    relays.heal();
    let notes = workload.stop().await?;
    let judging = Instant::now();
    let judged = match suffered {
        Ok(()) => judge(processes, &notes, tell).await,
        Err(error) => Err(error),
    };
    let (revision, verdict) = match judged {
        Ok(judged) => judged,
        Err(error) => {
            let history = processes.keep_files().join("history.txt");
            notes.write(&history).context("keeping the history")?;
            return Err(error);
        }
    };
    let judging_seconds = judging.elapsed().as_secs_f64();
    for id in processes.ids() {
        processes.stop(id).await?;
    }
    let done = |action| actions.get(&action).copied().unwrap_or(0);
    Ok(Report {
        seconds: begun.elapsed().as_secs_f64(),
        judging_seconds,
        nodes: processes.ids().len() as u64,
        seed: plan.seed,
        kills_of_one: done(Action::Kill),
        kills_of_all: done(Action::KillAll),
        processes_killed: processes.killed(),
        not_done: Action::without(plan.strace),
        acknowledged: verdict.acknowledged,
        reads: verdict.reads,
        unknown: verdict.unknown,
        unavailable: verdict.unavailable,
        second_opinions: verdict.second_opinions,
        longest_gap_seconds: verdict.longest_gap.as_secs_f64(),
        longest_gap: match verdict.longest_gap > LONG_GAP {
            true => notes.in_the_longest_gap(),
            false => Vec::new(),
        },
        revision,
        actions,
    })
}

/// All nodes become equal, and everything that was told is explained.
async fn judge(
    processes: &mut Processes,
    notes: &Notes,
    tell: &(dyn Fn(Event) + Sync),
) -> Result<(u64, Verdict)> {
    let status = processes.agreement().await?;
    let tell = |what, done, all| tell(Event::Judges { what, done, all });
    let verdict = notes.check(&processes.client()?, &tell).await?;
    Ok((status.revision.number(), verdict))
}

//! Lets a cluster of processes suffer under load, and checks that nothing acknowledged was lost or done twice.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate_tests::chaos::nemesis::{Action, Nemesis, can_trace};
use quorate_tests::chaos::proxy::Relays;
use quorate_tests::chaos::workload::{Verdict, Workload};
use quorate_tests::processes::Processes;
use quorate_tests::sim::Rng;
use serde::Serialize;
use tokio::time::Instant;

/// Each has its client, hence its session.
const WORKERS: usize = 6;

/// Real processes under load: killed, paused, restarted, cut off, behind a bad network, on failing disks. In the
/// end every acknowledged write must be there once, in an order that time allows, and all nodes must be equal.
#[derive(Parser)]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Decides what happens, to whom, and how long. Threads and disks stay their own masters, so a seed does not
    /// repeat a run exactly.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The result as JSON, on one line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Json {
    seconds: f64,
    nodes: u64,
    seed: u64,
    actions: BTreeMap<Action, u64>,
    acknowledged: u64,
    reads: u64,
    unknown: u64,
    unavailable: u64,
    longest_gap_seconds: f64,
    revision: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(
        args.minutes > 0.0,
        "--minutes is more than 0, not {}",
        args.minutes
    );
    let strace = can_trace();
    if !strace {
        eprintln!("strace is missing or may not trace: no disk fails in this run");
    }
    let mut processes = Processes::prepare(args.nodes)?;
    let result = run(&args, &mut processes, strace).await;
    if result.is_err() {
        let files = processes.keep_files().display();
        eprintln!("the nodes' files and logs are kept in {files}");
    }
    result
}

async fn run(args: &Args, processes: &mut Processes, strace: bool) -> Result<ExitCode> {
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(args.minutes * 60.0);

    let relays = Relays::start(processes.listening(), &processes.pids(), args.seed).await?;
    processes.reach_at(relays.reached().clone());
    for id in processes.ids() {
        processes.start(id)?;
    }
    processes.leader().await?;
    let clients: Result<Vec<_>> = (0..WORKERS).map(|_| processes.client()).collect();
    let workload = Workload::start(clients?, args.seed);

    let bar = progress_bar();
    let mut nemesis = Nemesis {
        processes,
        relays: &relays,
        rng: Rng::new(args.seed).fork("nemesis"),
        done: BTreeMap::new(),
        strace,
    };
    while Instant::now() < end {
        let at = begun.elapsed().as_secs();
        nemesis
            .act(|what| {
                bar.set_message(what.to_owned());
                bar.suspend(|| eprintln!("{at:>5} s  {what}"));
            })
            .await?;
    }
    let actions = nemesis.done;
    bar.finish_and_clear();

    relays.heal();
    let notes = workload.stop().await?;
    let status = processes.agreement().await?;
    let verdict = notes.check(&processes.client()?).await?;
    for id in processes.ids() {
        processes.stop(id).await?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        let Verdict {
            acknowledged,
            reads,
            unknown,
            unavailable,
            longest_gap,
        } = verdict;
        let json = Json {
            seconds,
            nodes: args.nodes,
            seed: args.seed,
            actions,
            acknowledged,
            reads,
            unknown,
            unavailable,
            longest_gap_seconds: longest_gap.as_secs_f64(),
            revision: status.revision.number(),
        };
        println!("{}", serde_json::to_string(&json)?);
    } else {
        let actions: Vec<String> = actions
            .iter()
            .map(|(action, times)| format!("{action} {times}"))
            .collect();
        println!(
            "{seconds:.0} s, {} nodes, seed {}: {}",
            args.nodes,
            args.seed,
            actions.join(", ")
        );
        println!(
            "sound: {} acknowledged writes found once, {} reads explained, {} of unknown outcome at most once, \
             {} without an answer; the longest wait of a worker was {:.1} s; all nodes equal at revision {}",
            verdict.acknowledged,
            verdict.reads,
            verdict.unknown,
            verdict.unavailable,
            verdict.longest_gap.as_secs_f64(),
            status.revision,
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(100));
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar
}

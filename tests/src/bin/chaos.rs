//! Lets a cluster of processes suffer under load, and checks that nothing acknowledged was lost or done twice.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use quorate_tests::chaos::nemesis::{Action, can_trace};
use quorate_tests::chaos::run::{Event, Plan, Report, run};
use quorate_tests::processes::Processes;
use quorate_tests::terminal;

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

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    ensure!(
        args.minutes > 0.0,
        "--minutes is more than 0, not {}",
        args.minutes
    );
    let plan = Plan {
        time: Duration::try_from_secs_f64(args.minutes * 60.0)?,
        seed: args.seed,
        strace: can_trace(),
    };
    let not_done = names(&Action::without(plan.strace));
    if !not_done.is_empty() {
        eprintln!("strace is missing or may not trace; this run has no {not_done}");
    }
    let mut processes = Processes::prepare(args.nodes)?;
    let begun = std::time::Instant::now();
    let bar = terminal::spinner();
    let tell = |event| match event {
        Event::Acts(what) => {
            bar.set_message(what.clone());
            let at = begun.elapsed().as_secs();
            bar.suspend(|| eprintln!("{at:>5} s  {what}"));
        }
        Event::Judges { what, done, all } => {
            bar.set_message(format!("judging {what}: {done} of {all}"));
            // For who reads a log: the beginning, and each tenth.
            if done == 0 || done.is_multiple_of(all.div_ceil(10).max(1)) {
                let at = begun.elapsed().as_secs();
                bar.suspend(|| eprintln!("{at:>5} s  judging {what}: {done} of {all}"));
            }
        }
    };
    let result = run(plan, &mut processes, &tell).await;
    bar.finish_and_clear();
    match result {
        Ok(report) if args.json => println!("{}", serde_json::to_string(&report)?),
        Ok(report) => print(&report),
        Err(error) => {
            let files = processes.keep_files().display();
            eprintln!("the nodes' files and logs and the history are kept in {files}");
            return Err(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    for (action, times) in &report.actions {
        table.add_row([action.to_string(), times.to_string()]);
    }
    for action in &report.not_done {
        table.add_row([action.to_string(), "not done".to_owned()]);
    }
    println!("{table}\n");
    println!(
        "{:.0} s, {:.0} of them judging; {} nodes, seed {}; killed: {} times one node, {} times all at once, \
         {} processes in all",
        report.seconds,
        report.judging_seconds,
        report.nodes,
        report.seed,
        report.kills_of_one,
        report.kills_of_all,
        report.processes_killed,
    );
    println!(
        "sound: {} acknowledged writes found once, {} reads explained, {} of unknown outcome at most once, \
         {} without an answer; another checker agrees on {} keys; the longest wait of a worker was {:.1} s; \
         all nodes equal at revision {}",
        report.acknowledged,
        report.reads,
        report.unknown,
        report.unavailable,
        report.second_opinions,
        report.longest_gap_seconds,
        report.revision,
    );
    if !report.longest_gap.is_empty() {
        println!("what that worker asked for and was told, in seconds since the beginning:");
    }
    for call in &report.longest_gap {
        println!("  {call}");
    }
}

fn names(actions: &[Action]) -> String {
    let names: Vec<String> = actions.iter().map(ToString::to_string).collect();
    names.join(", ")
}

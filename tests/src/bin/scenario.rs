//! Runs the ancestor's scenario over and over, and counts what fails.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate_tests::scenario::{self, Operation, Options, Report, Tally};
use quorate_tests::terminal;
use serde::Serialize;

/// Brokers, topics, partitions one by one and as a batch, a new leader, a new ISR: over and over, each step read
/// back from every node, while leaders are killed. Ends with failure when anything failed or an error reached
/// the caller.
#[derive(Parser)]
struct Args {
    /// How many runs.
    #[arg(long, default_value_t = 100)]
    runs: u64,
    /// A new cluster for each run, instead of one for all.
    #[arg(long)]
    fresh: bool,
    /// The part of the runs in which the leader is killed, from 0 to 1.
    #[arg(long, value_name = "PART", default_value_t = 0.0)]
    kill_leader: f64,
    /// Nodes of a cluster.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Decides in which runs the leader is killed, and when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The result as JSON, on one line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Json {
    runs: u64,
    kills: u64,
    failures: BTreeMap<Operation, usize>,
    visible_retries: u64,
    hidden_retries: u64,
    seconds: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    anyhow::ensure!(
        (0.0..=1.0).contains(&args.kill_leader),
        "--kill-leader is a part from 0 to 1, not {}",
        args.kill_leader
    );
    terminal::log();
    let options = Options {
        runs: args.runs,
        fresh: args.fresh,
        kill_permille: (args.kill_leader * 1000.0).round() as u64,
        nodes: args.nodes,
        seed: args.seed,
    };
    let bar = progress_bar(args.runs);
    let mut told = 0;
    let report = scenario::run(&options, &mut |report| {
        bar.set_position(report.runs);
        bar.set_message(format!(
            "{} kills, {} failures, {} visible retries",
            report.kills,
            report.failures(),
            report.visible_retries
        ));
        // Each failure when it happens: a long run may be interrupted.
        let failures = report.operations.iter();
        let failures: Vec<String> = failures
            .flat_map(|(operation, tally)| {
                tally
                    .failures
                    .iter()
                    .map(move |why| format!("{operation}: {why}"))
            })
            .collect();
        for failure in failures.iter().skip(told) {
            bar.suspend(|| eprintln!("{failure}"));
        }
        told = failures.len();
    })
    .await?;
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string(&json(&report))?);
    } else {
        print(&args, &report);
    }
    let sound = report.failures() == 0 && report.visible_retries == 0;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn progress_bar(runs: u64) -> ProgressBar {
    let bar = ProgressBar::new(runs);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40.cyan/dim} {pos}/{len} runs  {msg}  {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn json(report: &Report) -> Json {
    let failures = |operation: Operation| {
        let tally = report.operations.get(&operation);
        (operation, tally.map_or(0, |tally| tally.failures.len()))
    };
    Json {
        runs: report.runs,
        kills: report.kills,
        failures: Operation::ALL.into_iter().map(failures).collect(),
        visible_retries: report.visible_retries,
        hidden_retries: report.hidden_retries,
        seconds: report.took.as_secs_f64(),
    }
}

fn print(args: &Args, report: &Report) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["operation", "calls", "failures", "p50", "p99", "slowest"]);
    for operation in Operation::ALL {
        let tally = report.operations.get(&operation).cloned().unwrap_or_default();
        table.add_row(row(operation, tally));
    }
    for column in 1..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    println!(
        "{} runs on {} of {} nodes, {} leaders killed, {:.1} s: {} failures, {} errors reached the caller, \
         {} attempts were repeated by the client",
        report.runs,
        if args.fresh {
            "a new cluster each"
        } else {
            "one cluster"
        },
        args.nodes,
        report.kills,
        report.took.as_secs_f64(),
        report.failures(),
        report.visible_retries,
        report.hidden_retries,
    );
}

fn row(operation: Operation, mut tally: Tally) -> [String; 6] {
    tally.took.sort_unstable();
    let at = |part: usize| {
        let place = tally.took.len().saturating_sub(1) * part / 100;
        let took: Duration = tally.took.get(place).copied().unwrap_or_default();
        format!("{:.1} ms", took.as_secs_f64() * 1e3)
    };
    [
        operation.to_string(),
        (tally.took.len() + tally.failures.len()).to_string(),
        tally.failures.len().to_string(),
        at(50),
        at(99),
        at(100),
    ]
}

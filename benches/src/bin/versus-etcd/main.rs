//! How does Quorate compare with etcd, on this machine, under the same work?
//!
//! Starts three `quorate serve` and three `etcd`, each a process with files of its own, mutual TLS on loopback and its default
//! settings, and loads them in turns: lone puts, transactions of 100 puts by 8 clients, puts and linearizable gets by 64.
//! Ends with a table of ratios and a plot.
//!
//! Both sides are asked by one program over one connection each (`--connections`): Quorate by its client, which finds the leader,
//! etcd by its gRPC at the leader, so that no request takes a hop that the other's do not.
//!
//! `cargo run --release -p quorate-benches --bin versus-etcd [-- --json]`, after `cargo build --release -p quorate`

mod etcd;
mod load;
mod ours;
mod plot;
mod programs;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};
use quorate_benches::facts;
use serde::Serialize;

use self::load::{Load, Measured, Store};

/// Three nodes of Quorate and three of etcd under the same work, in turns.
#[derive(Debug, Parser)]
#[command(name = "versus-etcd", max_term_width = 110)]
struct Args {
    /// Show the figures as JSON
    #[arg(long)]
    json: bool,
    /// How often each load is run on each side
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    turns: u32,
    /// How long each run measures, after a second of warm-up
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Connections that the callers share, on either side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,
    /// Worker threads of each node of Quorate, in place of its default, one, which looks for the next datagram before it sleeps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    workers: Option<u32>,
    /// The etcd program; by default the one on PATH
    #[arg(long, env = "ETCD", value_name = "FILE")]
    etcd: Option<PathBuf>,
    /// The quorate program; by default the one beside this one, or the one on PATH
    #[arg(long, env = "QUORATE", value_name = "FILE")]
    quorate: Option<PathBuf>,
    /// Where the nodes' files are made and removed; by default $QUORATE_BENCH_DIR, or the temporary directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the plot is written
    #[arg(long, value_name = "FILE", default_value = "versus-etcd.svg")]
    plot: PathBuf,
}

/// What a comparison gave.
#[derive(Debug, Serialize)]
struct Report {
    quorate: String,
    etcd: String,
    machine: Vec<String>,
    value_bytes: usize,
    connections: u32,
    /// Of each node of Quorate, where that is not its default.
    workers: Option<u32>,
    turns: u32,
    seconds: u32,
    rows: Vec<Row>,
}

/// One load. Of lone puts the figure is the median latency in microseconds, of all others it is operations a second.
#[derive(Debug, Serialize)]
struct Row {
    load: &'static str,
    unit: &'static str,
    quorate: Vec<f64>,
    etcd: Vec<f64>,
    quorate_median: f64,
    etcd_median: f64,
    /// How many times as fast Quorate is: the median over the turns, each of which compares two runs that followed each other.
    ratio: f64,
    ratios: Vec<f64>,
    /// The ratio that is aimed at.
    goal: Option<f64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let etcd = programs::etcd(args.etcd.as_deref())?;
    let quorate = programs::quorate(args.quorate.as_deref())?;
    let dir = args.dir.clone().unwrap_or_else(facts::directory);
    let files = tempfile::Builder::new()
        .prefix("quorate-versus-")
        .tempdir_in(&dir)
        .with_context(|| format!("no directory can be made in {}", dir.display()))?;
    let machine = facts::describe(files.path())?;
    // One thread asks either side; the nodes need the rest of the machine.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let rows = runtime.block_on(async {
        let ours = ours::Cluster::start(&quorate, &files.path().join("quorate"), args.workers).await?;
        let theirs = etcd::Cluster::start(&etcd, &files.path().join("etcd")).await?;
        compare(args, &ours, &theirs).await
    })?;
    let report = Report {
        quorate: programs::version(&quorate, "quorate"),
        etcd: programs::version(&etcd, "etcd"),
        machine,
        value_bytes: load::VALUE_BYTES,
        connections: args.connections,
        workers: args.workers,
        turns: args.turns,
        seconds: args.seconds,
        rows,
    };
    plot::write(&args.plot, &report)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", text(&report));
        println!("the plot is in {}", args.plot.display());
    }
    Ok(())
}

async fn compare(args: &Args, ours: &ours::Cluster, theirs: &etcd::Cluster) -> Result<Vec<Row>> {
    let connections = args.connections as usize;
    let sides: [Arc<Vec<Store>>; 2] = [
        Arc::new(ours.connect(connections).await?),
        Arc::new(theirs.connect(connections).await?),
    ];
    for stores in &sides {
        load::fill(&stores[0]).await?;
    }
    let time = Duration::from_secs(u64::from(args.seconds));
    let mut figures = Load::ALL.map(|_| [Vec::new(), Vec::new()]);
    for turn in 0..args.turns {
        for (load, figures) in Load::ALL.into_iter().zip(&mut figures) {
            // Who is first may find a disk that has had time to rest.
            let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
            for side in order {
                let measured = load::run(load, &sides[side], time).await;
                let measured =
                    measured.with_context(|| format!("{} of {}", load.name(), ["quorate", "etcd"][side]))?;
                if !args.json {
                    eprintln!(
                        "turn {} of {}: {:<8} {}: {}",
                        turn + 1,
                        args.turns,
                        ["quorate", "etcd"][side],
                        load.name(),
                        measured
                    );
                }
                figures[side].push(figure(load, &measured));
            }
        }
    }
    Ok(Load::ALL
        .into_iter()
        .zip(figures)
        .map(|(load, [ours, theirs])| row(load, ours, theirs))
        .collect())
}

fn figure(load: Load, measured: &Measured) -> f64 {
    match load {
        Load::LonePut => measured.p50.as_secs_f64() * 1e6,
        Load::Transactions | Load::Puts | Load::Gets => measured.rate,
    }
}

fn row(load: Load, ours: Vec<f64>, theirs: Vec<f64>) -> Row {
    let faster = |(ours, theirs): (&f64, &f64)| match load {
        Load::LonePut => theirs / ours,
        Load::Transactions | Load::Puts | Load::Gets => ours / theirs,
    };
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(faster).collect();
    Row {
        load: load.name(),
        unit: load.unit(),
        quorate_median: median(&ours),
        etcd_median: median(&theirs),
        ratio: median(&ratios),
        quorate: ours,
        etcd: theirs,
        ratios,
        goal: load.goal(),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[middle],
        _ => sorted
            .get(middle.wrapping_sub(1))
            .map_or(f64::NAN, |below| (below + sorted[middle]) / 2.0),
    }
}

fn text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "load",
        "quorate",
        "etcd",
        "times as fast",
        "over the turns",
        "goal",
    ]);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for row in &report.rows {
        let figure = |value: f64| match row.unit {
            "µs" => format!("{:.2} ms", value / 1e3),
            unit => format!("{value:.0} {unit}"),
        };
        let spread = row
            .ratios
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), ratio| {
                (low.min(*ratio), high.max(*ratio))
            });
        let goal = row.goal.map_or("-".to_owned(), |goal| {
            let is_met = if row.ratio >= goal { "met" } else { "not met" };
            format!("{goal}: {is_met}")
        });
        table.add_row([
            Cell::new(row.load),
            right(figure(row.quorate_median)),
            right(figure(row.etcd_median)),
            right(format!("{:.2}", row.ratio)),
            right(format!("{:.2} to {:.2}", spread.0, spread.1)),
            right(goal),
        ]);
    }
    let mut lines = vec![
        match report.workers {
            None => "Three nodes each, mutual TLS on loopback, default settings".to_owned(),
            Some(workers) => format!(
                "Three nodes each, mutual TLS on loopback, default settings but {workers} worker thread(s) of Quorate"
            ),
        },
        format!("{} against {}", report.quorate, report.etcd),
        format!(
            "values of {} bytes, {} turns of {} s, {} connection(s) each",
            report.value_bytes, report.turns, report.seconds, report.connections
        ),
    ];
    lines.extend(report.machine.iter().cloned());
    lines.push(table.to_string());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_says_how_many_times_as_fast_quorate_is() {
        let rates = row(Load::Puts, vec![300.0, 500.0, 400.0], vec![100.0, 100.0, 400.0]);
        assert_eq!((rates.ratios, rates.ratio), (vec![3.0, 5.0, 1.0], 3.0));
        let latencies = row(Load::LonePut, vec![500.0, 400.0], vec![1_000.0, 1_600.0]);
        assert_eq!((latencies.ratios, latencies.ratio), (vec![2.0, 4.0], 3.0));
        assert_eq!(latencies.goal, Some(2.0));
    }
}

//! Runs seeds of the simulator.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use quorate_tests::sim::cluster::{self, Plan, Report};
use quorate_tests::sim::{Simulation, selftest};
use serde_json::json;

/// Runs seeds of the deterministic simulator. A seed that fails is printed with the line that repeats it.
#[derive(Parser)]
struct Args {
    /// The seeds from A to B, B left out.
    #[arg(long, value_parser = seeds, default_value = "0..20", value_name = "A..B")]
    seeds: Range<u64>,
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print every event: with one seed only.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Print a line of JSON for each seed.
    #[arg(long, conflicts_with = "trace")]
    json: bool,
    /// Run every seed twice and compare their hashes.
    #[arg(long)]
    twice: bool,
    /// What to run.
    #[arg(long, value_enum, default_value_t = World::Cluster)]
    world: World,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum World {
    /// A cluster with clients and faults.
    Cluster,
    /// The simulator alone.
    Selftest,
}

fn seeds(text: &str) -> anyhow::Result<Range<u64>> {
    let (first, end) = text.split_once("..").context("seeds are written A..B")?;
    Ok(first.parse()?..end.parse()?)
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.trace {
        return trace(args.seed.unwrap_or_default(), args.world);
    }
    if args.world == World::Selftest {
        bail!("the self-test is run with --seed and --trace");
    }
    let seeds = args.seed.map_or(args.seeds, |seed| seed..seed + 1);
    let started = Instant::now();
    let (mut total, mut failed, mut polls, mut time) = (0_u64, 0_u64, 0, 0.0);
    for seed in seeds {
        let report = cluster::run(&Simulation::new(seed), &Plan::of_seed(seed));
        let mut failure = report.failure.clone();
        if args.twice {
            let again = cluster::run(&Simulation::new(seed), &Plan::of_seed(seed));
            if (again.events, again.hash) != (report.events, report.hash) {
                failure.get_or_insert("the seed ran differently when it was repeated".to_owned());
            }
        }
        total += 1;
        failed += u64::from(failure.is_some());
        polls += report.polls;
        time += report.time.as_secs_f64();
        if args.json {
            println!("{}", json(&report));
        }
        if let Some(failure) = failure {
            eprintln!("seed {seed} FAILED: {failure}\n  repeat: simulate --seed {seed} --trace");
        }
    }
    let real = started.elapsed().as_secs_f64();
    eprintln!(
        "{total} seeds, {failed} failed; {:.0} seeds a minute, {:.0} polls a second, {:.0} times real time",
        total as f64 / real * 60.0,
        polls as f64 / real,
        time / real
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn trace(seed: u64, world: World) -> anyhow::Result<ExitCode> {
    let sim = Simulation::new(seed);
    sim.world().keep_whole_trace();
    let failure = match world {
        World::Cluster => {
            let plan = Plan::of_seed(seed);
            println!("{plan:#?}");
            cluster::run(&sim, &plan).failure
        }
        World::Selftest => selftest::run(&sim).err().map(|halt| halt.to_string()),
    };
    for line in sim.world().trace() {
        println!("{line}");
    }
    println!("{:016x}", sim.hash());
    Ok(match failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    })
}

fn json(report: &Report) -> serde_json::Value {
    let Report {
        seed,
        failure,
        time,
        polls,
        events,
        hash,
        operations,
        faults,
        term,
        revision,
        disks,
        crash_points,
    } = report;
    json!({
        "seed": seed,
        "failure": failure,
        "virtual_seconds": time.as_secs_f64(),
        "polls": polls,
        "events": events,
        "hash": format!("{hash:016x}"),
        "written": operations.written,
        "read": operations.read,
        "unknown": operations.unknown,
        "failed": operations.failed,
        "kills": faults.kills,
        "power_losses": faults.power_losses,
        "pauses": faults.pauses,
        "cuts": faults.cuts,
        "crash_points_armed": faults.crash_points,
        "disk_errors_armed": faults.disk_errors,
        "disk_stalls_armed": faults.disk_stalls,
        "restarts_after_faults": faults.restarts_after_faults,
        "term": term,
        "revision": revision,
        "syncs": disks.syncs,
        "power_losses_with_pending": disks.power_losses_with_pending,
        "bytes_lost": disks.bytes_lost,
        "writes_torn": disks.writes_torn,
        "names_lost": disks.names_lost,
        "crash_points": crash_points,
    })
}

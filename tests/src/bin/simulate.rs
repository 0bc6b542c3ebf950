//! Runs seeds of the deterministic simulator, replays one, shrinks one, or sees whether it finds planted bugs.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use comfy_table::modifiers::UTF8_ROUND_CORNERS;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, Table};
use indicatif::{ProgressBar, ProgressStyle};
use quorate_kv::planted::{self, Bug};
use quorate_tests::sim::Simulation;
use quorate_tests::sim::campaign::{Campaign, Summary};
use quorate_tests::sim::cluster::{self, Kind, Phase, Plan, REQUIRED_FROM_SEEDS};
use quorate_tests::sim::shrink::{self, Effort, Shrunk};
use serde_json::json;

/// A simulation is a great many small allocations, most of them of tasks and messages that end soon.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs seeds of the deterministic simulator: clusters of real nodes in virtual time, with faults from the
/// seed and a judgement at the end. A seed that fails is printed with the line that repeats it.
#[derive(Parser)]
struct Args {
    /// The seeds from A to B, B left out.
    #[arg(long, value_parser = seeds, value_name = "A..B", default_value = "0..20")]
    seeds: Range<u64>,
    /// How many simulations at once; as many as there are cores by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Begin no seed after so many minutes.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Faults of this kind alone; --list names them.
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// The result as one JSON object, and nothing else on the standard output.
    #[arg(long)]
    json: bool,
    /// One seed.
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Replay a plan from its file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "seed", "only"])]
    plan: Option<PathBuf>,
    /// Print what happened: who led, what was cut, asked, answered, lost. For one seed or plan.
    #[arg(long, conflicts_with = "json")]
    trace: bool,
    /// Reduce a run that fails to a small plan, and write it under tests/plans (or where --to says).
    #[arg(long, conflicts_with_all = ["trace", "json"])]
    shrink: bool,
    /// Where --shrink writes the plan.
    #[arg(long, value_name = "FILE", requires = "shrink")]
    to: Option<PathBuf>,
    /// With --trace: every event with its hash, polls and messages too.
    #[arg(long, requires = "trace")]
    events: bool,
    /// Switch on a planted bug, or each in turn (all); --list names them.
    #[arg(long, value_name = "NAME", value_parser = plant)]
    plant: Option<Plant>,
    /// Name the kinds of faults and the planted bugs.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy)]
enum Plant {
    One(Bug),
    All,
}

fn seeds(text: &str) -> anyhow::Result<Range<u64>> {
    let (first, end) = text
        .split_once("..")
        .context("seeds are written A..B, as 0..1000")?;
    let number = |text: &str| {
        text.parse::<u64>()
            .with_context(|| format!("{text:?} is no number"))
    };
    let seeds = number(first)?..number(end)?;
    ensure!(
        !seeds.is_empty(),
        "the range {text} is empty: B must be greater than A, and is left out"
    );
    Ok(seeds)
}

fn plant(name: &str) -> anyhow::Result<Plant> {
    match name {
        "all" => Ok(Plant::All),
        name => Ok(Plant::One(name.parse()?)),
    }
}

fn main() -> ExitCode {
    // Whoever calls it wants to know what was wrong, not where in this program it was noticed.
    carry_out(&Args::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn carry_out(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    if args.plant.is_some() && !planted::AVAILABLE {
        bail!("this build has no planted bugs: build it with quorate-kv's feature `planted`");
    }
    if let Some(minutes) = args.minutes {
        ensure!(
            minutes > 0.0 && minutes <= 1e6,
            "--minutes is {minutes}; it must be above 0 and at most 1,000,000"
        );
    }
    if let Some(Plant::One(bug)) = args.plant {
        planted::plant(Some(bug));
    }
    let single = match (&args.plan, args.seed) {
        (Some(path), _) => Some(Plan::read(path)?),
        (None, Some(seed)) => Some(campaign(args, seed..seed + 1).plan(seed)),
        (None, None) => None,
    };
    match single {
        Some(_) if matches!(args.plant, Some(Plant::All)) => {
            bail!("--plant all is for a range of seeds: leave --seed and --plan away")
        }
        Some(plan) if args.shrink => shrink(&plan, args),
        Some(plan) if args.trace => trace(&plan, args.events),
        Some(plan) => Ok(replay(&plan, args)),
        None if args.trace || args.shrink => {
            bail!("--trace and --shrink are for one run: name it with --seed or --plan")
        }
        None => match args.plant {
            Some(Plant::All) => Ok(plant_all(args)),
            _ => Ok(run(args)),
        },
    }
}

fn campaign(args: &Args, seeds: Range<u64>) -> Campaign {
    let of = Campaign::of(seeds);
    Campaign {
        jobs: args.jobs.map_or(of.jobs, usize::from),
        time_max: args
            .minutes
            .map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        only: args.only,
        bug: match args.plant {
            Some(Plant::One(bug)) => Some(bug),
            _ => None,
        },
        stop_at_failure: args.plant.is_some(),
        ..of
    }
}

fn list() {
    println!("Kinds of faults, for --only:");
    for kind in Kind::ALL {
        println!("  {kind:<14} {}", kind.about());
    }
    println!("\nPlanted bugs, for --plant:");
    for bug in Bug::ALL {
        println!("  {:<26} {}", bug.name(), bug.about());
    }
}

/// A campaign.
fn run(args: &Args) -> ExitCode {
    let campaign = campaign(args, args.seeds.clone());
    let bar = progress(args.seeds.end - args.seeds.start);
    let mut failed = 0;
    let summary = campaign.run(|report| {
        bar.inc(1);
        if let Some(failure) = &report.failure {
            failed += 1;
            bar.set_message(format!("{failed} failed"));
            if !args.json {
                bar.suspend(|| {
                    println!("seed {} FAILED: {failure}", report.seed);
                    println!(
                        "  repeat: simulate --seed {}{} --trace",
                        report.seed,
                        repeat(args)
                    );
                });
            }
        }
    });
    bar.finish_and_clear();
    let empty = summary.empty_cells(&campaign);
    if args.json {
        println!("{}", to_json(&summary, empty.as_deref()));
    } else {
        print_summary(&summary, empty.as_deref(), args);
    }
    // With a bug planted, finding it is success.
    let good = match campaign.bug {
        Some(_) => !summary.failed.is_empty(),
        None => summary.failed.is_empty() && empty.is_none_or(|cells| cells.is_empty()),
    };
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn repeat(args: &Args) -> String {
    let mut flags = String::new();
    if let Some(kind) = args.only {
        flags += &format!(" --only {kind}");
    }
    if let Some(Plant::One(bug)) = args.plant {
        flags += &format!(" --plant {bug}");
    }
    flags
}

fn progress(seeds: u64) -> ProgressBar {
    let bar = ProgressBar::new(seeds);
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} seeds, {elapsed} gone, {eta} left {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn print_summary(summary: &Summary, empty: Option<&[(Kind, Phase)]>, args: &Args) {
    println!("{}", coverage_table(summary, empty.unwrap_or_default()));
    let marks: Vec<_> = summary
        .marks
        .iter()
        .map(|(mark, n)| format!("{mark} {n}"))
        .collect();
    println!("Rare paths: {}", marks.join(", "));
    println!(
        "Operations: {} writes and {} reads acknowledged, {} unknown, {} refused",
        summary.written, summary.read, summary.unknown, summary.refused
    );
    println!(
        "Events: {} elections, {} crashes, {} losses of power took {} bytes, {} restarts of nodes that had stopped",
        summary.elections,
        summary.crashes(),
        summary.power_losses_with_lost_bytes,
        summary.bytes_lost,
        summary.restarts_after_faults
    );
    let (wall, simulated) = (summary.wall.as_secs_f64(), summary.simulated.as_secs_f64());
    println!(
        "{} seeds, {} failed; {simulated:.0} s simulated in {wall:.0} s, {:.0} times real time; {:.0} seeds a minute",
        summary.seeds,
        summary.failed.len(),
        simulated / wall,
        summary.seeds as f64 / wall * 60.0
    );
    if summary.seeds < args.seeds.end - args.seeds.start {
        println!("Not all seeds were run: the campaign ended early.");
    }
    for failed in &summary.failed {
        println!("  seed {}: {}", failed.seed, failed.failure.rule);
    }
    match empty {
        None => println!(
            "Required cells were not judged: that takes {REQUIRED_FROM_SEEDS} seeds with all faults and no planted bug."
        ),
        Some([]) => println!("No required cell is empty."),
        Some(cells) => {
            let cells: Vec<_> = cells.iter().map(|(k, p)| format!("{k} x {p}")).collect();
            println!("FAILED: required cells are empty: {}", cells.join(", "));
        }
    }
}

fn coverage_table(summary: &Summary, empty: &[(Kind, Phase)]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .apply_modifier(UTF8_ROUND_CORNERS);
    let mut header = vec![Cell::new("took effect in"), Cell::new("any")];
    header.extend(Phase::ALL.map(|phase| Cell::new(phase.name())));
    table.set_header(header);
    for kind in Kind::ALL {
        let number = |n: u64| match n {
            0 => Cell::new("·"),
            n => Cell::new(n),
        };
        let mut row = vec![Cell::new(kind.name()), number(summary.coverage.total(kind))];
        row.extend(Phase::ALL.map(|phase| {
            match empty.contains(&(kind, phase)) {
                true => Cell::new("EMPTY").fg(Color::Red),
                false => number(summary.coverage.cell(kind, phase)),
            }
            .set_alignment(CellAlignment::Right)
        }));
        row[1] = row[1].clone().set_alignment(CellAlignment::Right);
        table.add_row(row);
    }
    table
}

fn to_json(summary: &Summary, empty: Option<&[(Kind, Phase)]>) -> serde_json::Value {
    let coverage: serde_json::Map<_, _> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let row: serde_json::Map<_, _> = Phase::ALL
                .into_iter()
                .map(|phase| (phase.name().to_owned(), summary.coverage.cell(kind, phase).into()))
                .collect();
            (kind.name().to_owned(), row.into())
        })
        .collect();
    let failed = summary.failed.iter().map(|f| {
        json!({
            "seed": f.seed,
            "rule": f.failure.rule,
            "detail": f.failure.detail,
        })
    });
    let cells = empty
        .unwrap_or_default()
        .iter()
        .map(|(kind, phase)| format!("{kind} x {phase}"));
    json!({
        "seeds": summary.seeds,
        "failed": failed.collect::<Vec<_>>(),
        "simulated_seconds": summary.simulated.as_secs_f64(),
        "wall_seconds": summary.wall.as_secs_f64(),
        "acked": summary.acknowledged(),
        "unknown": summary.unknown,
        "elections": summary.elections,
        "crashes": summary.crashes(),
        "power_losses_with_lost_bytes": summary.power_losses_with_lost_bytes,
        "snapshots_installed": summary.mark("snapshot.installed"),
        "truncations": summary.mark("raft.truncate"),
        "empty_cells": cells.collect::<Vec<_>>(),
        "cells_judged": empty.is_some(),
        "written": summary.written,
        "read": summary.read,
        "refused": summary.refused,
        "bytes_lost": summary.bytes_lost,
        "polls": summary.polls,
        "marks": summary.marks,
        "coverage": coverage,
    })
}

/// One run without its trace.
fn replay(plan: &Plan, args: &Args) -> ExitCode {
    let report = cluster::run_plan(plan);
    let operations = report.operations;
    if args.json {
        println!(
            "{}",
            json!({
                "seed": plan.seed,
                "failed": report.failure.as_ref().map(|f| json!({"rule": f.rule, "detail": f.detail})),
                "simulated_seconds": report.time.as_secs_f64(),
                "acked": operations.written + operations.read,
                "unknown": operations.unknown,
                "events": report.events,
                "hash": format!("{:016x}", report.hash),
            })
        );
    } else {
        println!(
            "{} faults over {:?}, {} nodes; {:.1} s simulated, {} writes and {} reads acknowledged, {} unknown; hash {:016x} \
             over {} events",
            plan.schedule.len(),
            plan.faulty,
            plan.nodes,
            report.time.as_secs_f64(),
            operations.written,
            operations.read,
            operations.unknown,
            report.hash,
            report.events
        );
    }
    verdict(report.failure.as_ref(), args.json)
}

fn verdict(failure: Option<&cluster::Failure>, quiet: bool) -> ExitCode {
    match failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            if !quiet {
                println!("FAILED: {failure}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Reduces a run that fails, and writes what is left.
fn shrink(plan: &Plan, args: &Args) -> anyhow::Result<ExitCode> {
    let mut effort = Effort::default();
    if let Some(minutes) = args.minutes {
        effort.time_max = Duration::from_secs_f64(minutes * 60.0);
    }
    let mut told = |runs, plan: &Plan| {
        eprintln!(
            "{runs:>5} runs: {} faults over {:.1} s, {} nodes, {} clients, {} readers",
            plan.schedule.len(),
            plan.faulty.as_secs_f64(),
            plan.nodes,
            plan.clients,
            plan.readers
        );
    };
    let Some(shrunk) = shrink::shrink(plan, effort, &mut told) else {
        bail!("the run does not fail, so there is nothing to shrink");
    };
    let Shrunk {
        mut plan,
        failure,
        runs,
    } = shrunk;
    plan.note = match args.plant {
        Some(Plant::One(bug)) => format!("with {bug} planted it broke the rule {}", failure.rule),
        _ => format!("it broke the rule {}", failure.rule),
    };
    let path = match &args.to {
        Some(path) => path.clone(),
        None => {
            let rule: String = failure.rule.to_lowercase().replace(' ', "-");
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
            dir.join(format!("{rule}-{}.toml", plan.seed))
        }
    };
    plan.write(&path)?;
    println!(
        "after {runs} runs: {} faults left. {failure}",
        plan.schedule.len()
    );
    println!("written: {}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Plants every bug in turn, and tells how many seeds it takes to find it.
fn plant_all(args: &Args) -> ExitCode {
    /// From so many starting seeds each bug is looked for.
    const STARTS: u64 = 3;
    let seeds_max = args.seeds.end - args.seeds.start;
    let bar = progress(Bug::ALL.len() as u64 * STARTS);
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .apply_modifier(UTF8_ROUND_CORNERS);
    table.set_header([
        "planted bug",
        "seeds until found",
        "median",
        "at most",
        "rule that found it",
    ]);
    let (mut missed, mut late, mut results) = (0, 0, Vec::new());
    for bug in Bug::ALL {
        if has_a_scene(bug) {
            results.push(json!({ "bug": bug.name(), "scene": SCENES }));
            table.add_row([
                Cell::new(bug),
                Cell::new("-"),
                Cell::new("-"),
                Cell::new("-"),
                Cell::new(SCENES),
            ]);
            bar.inc(STARTS);
            continue;
        }
        let median_max = median_max(bug).min(seeds_max);
        let (mut took, mut rules) = (Vec::new(), BTreeSet::new());
        for start in 0..STARTS {
            let first = args.seeds.start + start * seeds_max;
            let found = Campaign {
                bug: Some(bug),
                stop_at_failure: true,
                ..campaign(args, first..first + seeds_max)
            }
            .run(|_| ());
            took.push(found.failed.first().map(|failed| failed.seed - first + 1));
            rules.extend(found.failed.first().map(|failed| failed.failure.rule.clone()));
            bar.inc(1);
        }
        // What was not found took longer than all that were.
        took.sort_by_key(|seeds| seeds.unwrap_or(u64::MAX));
        let median = took[took.len() / 2];
        missed += u64::from(median.is_none());
        late += u64::from(median.is_some_and(|seeds| seeds > median_max));
        let told = |seeds: &Option<u64>| seeds.map_or(format!("> {seeds_max}"), |n| n.to_string());
        let each: Vec<_> = took.iter().map(told).collect();
        if !io::stderr().is_terminal() {
            // A run of an hour that says nothing may as well hang.
            eprintln!("{bug}: {}", each.join(", "));
        }
        let rules: Vec<_> = rules.into_iter().collect();
        results.push(json!({
            "bug": bug.name(),
            "seeds": took,
            "median": median,
            "median_max": median_max,
            "rules": rules,
        }));
        table.add_row([
            Cell::new(bug),
            Cell::new(each.join(", ")),
            match median {
                Some(seeds) if seeds <= median_max => Cell::new(seeds),
                Some(seeds) => Cell::new(seeds).fg(Color::Red),
                None => Cell::new("MISSED").fg(Color::Red),
            },
            Cell::new(median_max),
            Cell::new(rules.join(", ")),
        ]);
    }
    bar.finish_and_clear();
    if args.json {
        println!(
            "{}",
            json!({ "seeds_max": seeds_max, "planted": results, "missed": missed, "late": late })
        );
    } else {
        println!("{table}");
        println!(
            "{missed} of {} planted bugs were missed within {seeds_max} seeds, {late} took more than they may",
            Bug::ALL.len()
        );
    }
    if missed + late == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Where the bugs are found that seeds seldom meet: each in a scene made for it, and the gate runs all of them.
const SCENES: &str = "a scene: tests/tests/promises.rs, succession.rs";

/// Whether a bug takes a coincidence that seeds seldom make, and has a scene that makes it.
fn has_a_scene(bug: Bug) -> bool {
    matches!(
        bug,
        Bug::HeartbeatOkWithHigherVote
            | Bug::LagByAnyMessage
            | Bug::RoundJoinedLate
            | Bug::EndByOneWitness
            | Bug::LeaseEndedBySilence
            | Bug::NoStepDown
    )
}

/// The median of seeds that a bug may take: some twice to three times what it took when this was written (the
/// table in docs/testing.md), so that a simulator that has become worse at finding it is noticed.
fn median_max(bug: Bug) -> u64 {
    match bug {
        // These take a batch that is torn, or a sync that fails, and then the second start of the same node.
        Bug::TornTailKept | Bug::SyncErrorIgnored => 80,
        _ => 20,
    }
}

/// One run with its trace.
fn trace(plan: &Plan, events: bool) -> anyhow::Result<ExitCode> {
    let sim = Simulation::new(plan.seed);
    sim.world().keep_whole_trace();
    let traced = cluster::run_traced(&sim, plan);
    let written = if events {
        let end = format!("{:016x}", traced.report.hash);
        write_lines(sim.world().trace().into_iter().chain([end]))
    } else {
        write_lines([plan.to_text()?].into_iter().chain(traced.timeline))
    };
    match written {
        // Whoever reads it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
        other => other.context("the trace could not be written")?,
    }
    Ok(verdict(traced.report.failure.as_ref(), false))
}

fn write_lines(lines: impl Iterator<Item = String>) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

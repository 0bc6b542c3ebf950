//! How long is a cluster without a leader, for each way in which a leader can end; and is anything taken for an end that is
//! none?

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use quorate_kv::node::Profile;
use quorate_tests::failover::{End, Line, Load, Plan, measure, watch};
use quorate_tests::terminal;

/// Real processes, whose leader is killed, stopped, cut off or asked to stop: the time until a put succeeds again.
#[derive(Parser)]
struct Args {
    /// The nodes' timing profile.
    #[arg(long, default_value = "development", value_parser = profile)]
    profile: Profile,
    /// How often the leader ends in each way.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=9))]
    nodes: u64,
    /// Only these ways, by the first words of their names.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Beside busy loops on all processors, writes, lost packets, and slow syncs where strace can be used. No end of a
    /// process is seen through the relays that lose the packets.
    #[arg(long)]
    load: bool,
    /// End nothing, and count elections for so long.
    #[arg(long)]
    minutes: Option<f64>,
    /// The result as JSON, on one line.
    #[arg(long)]
    json: bool,
}

fn profile(name: &str) -> Result<Profile, String> {
    let known = || Profile::ALL.map(Profile::name).join(", ");
    let found = Profile::ALL.into_iter().find(|profile| profile.name() == name);
    found.ok_or_else(|| format!("there are {}", known()))
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let load = if args.load { Load::all() } else { Load::Off };
    if load == (Load::On { strace: false }) {
        eprintln!("strace is missing or may not trace; the syncs of this run are not slow");
    }
    let plan = Plan {
        nodes: args.nodes,
        profile: args.profile,
        load,
    };
    let ends: Vec<End> = End::ALL
        .into_iter()
        .filter(|end| args.only.is_empty() || args.only.iter().any(|only| end.name().starts_with(only)))
        .collect();
    ensure!(
        !ends.is_empty(),
        "--only names no way in which a leader ends; there are: {}",
        End::ALL.map(End::name).join(", ")
    );
    let bar = terminal::spinner();
    let mut lines = Vec::new();
    if let Some(minutes) = args.minutes {
        ensure!(minutes > 0.0, "--minutes is more than 0, not {minutes}");
        let time = Duration::try_from_secs_f64(minutes * 60.0)?;
        let tell = |passed: Duration, elections: u64| {
            bar.set_message(format!("{} s: {elections} elections", passed.as_secs()));
        };
        lines.push(watch(plan, time, &tell).await?);
    } else {
        for end in ends {
            let tell = |run: u64, took: Duration| {
                let message = format!("{end}: run {run} of {}: {} ms", args.runs, took.as_millis());
                // For who reads a log.
                if !std::io::stderr().is_terminal() {
                    eprintln!("{message}");
                }
                bar.set_message(message);
            };
            lines.push(measure(plan, end, args.runs, &tell).await?);
        }
    }
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string(&lines)?);
    } else {
        print(args.profile, &lines);
    }
    let broken = |line: &Line| line.max_ms > line.promised_ms || line.false_elections > 0;
    Ok(ExitCode::from(u8::from(lines.iter().any(broken))))
}

fn print(profile: Profile, lines: &[Line]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "kind",
        "runs",
        "p50_ms",
        "p99_ms",
        "max_ms",
        "promised_ms",
        "false_elections",
    ]);
    for column in 1..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in lines {
        table.add_row([
            line.kind.clone(),
            line.runs.to_string(),
            line.p50_ms.to_string(),
            line.p99_ms.to_string(),
            line.max_ms.to_string(),
            line.promised_ms.to_string(),
            line.false_elections.to_string(),
        ]);
    }
    println!("profile {}\n{table}", profile.name());
}

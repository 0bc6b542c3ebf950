//! How much memory does a node take while many clients each ask for the largest answers?
//!
//! One process of the server with the settings that users get, filled with large values; then so many clients, each with a
//! name and a connection of its own, that each want several batches of reads of nearly 16 MiB, all at once. Answers with
//! the memory of the process before and at its highest. Fails where an answer is wrong or missing, or where the memory
//! has grown by more than the node's budgets for calls and answers and what a connection may cost.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::{Table, presets};
use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use quorate_kv::Client;
use quorate_kv::model::{Key, ReadOp, ReadResult};
use quorate_kv::node::Settings;
use quorate_tests::processes::Processes;
use quorate_tests::terminal;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Values of one batch: with their keys just below what a batch of reads returns.
const VALUES: u64 = 15;
const VALUE_BYTES: usize = 1 << 20;
/// What a connection of a client costs a node at most, and all handshakes that are under way, and an answer that a thread
/// makes a message of (docs/configuration.md).
const CONNECTION_BYTES: u64 = 150 << 10;
const HANDSHAKES_BYTES: u64 = 256 * (64 << 10);
const ANSWER_BYTES: u64 = 16 << 20;
const MIB: u64 = 1 << 20;

/// Measures a node's memory under a crowd of clients that each ask for the largest answers.
#[derive(Parser)]
struct Args {
    /// Clients, each with a connection of its own; a node takes 1,024.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1024))]
    clients: u64,
    /// Batches that each client asks for at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    batches: u64,
    /// How long a batch may take altogether, in seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    deadline: u64,
    /// The result as JSON, on one line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    clients: u64,
    answers: u64,
    answers_mib: u64,
    seconds: f64,
    retries: u64,
    before_mib: u64,
    highest_mib: u64,
    grown_mib: u64,
    budget_mib: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    terminal::log();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let mut processes = Processes::prepare_with(1, "")?;
    processes.start(1)?;
    processes.leader().await?;
    let pid = processes.pid(1).context("the node does not run")?;

    let writer = processes.client()?;
    for number in 0..VALUES {
        writer.put(key(number)?, vec![b'v'; VALUE_BYTES]).await?;
    }
    // What it costs to serve one is there before.
    ask(&writer, &AtomicU64::new(0)).await?;
    // Its place is needed.
    drop(writer);
    let before = memory(pid, "VmRSS")?;
    // The highest is counted from here.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;

    let deadline = Duration::from_secs(args.deadline);
    let clients = (0..args.clients).map(|number| {
        let client = processes.client_named(&format!("client-{number}"))?;
        Ok(client.with_deadline(deadline))
    });
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let bar = terminal::spinner();
    let answered = AtomicU64::new(0);
    let began = Instant::now();
    let asked = clients
        .iter()
        .flat_map(|client| (0..args.batches).map(|_| ask(client, &answered)));
    tokio::select! {
        done = try_join_all(asked) => {
            done?;
        }
        failed = show(pid, &answered, &bar) => return Err(failed),
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let highest = memory(pid, "VmHWM")?;
    let memory = Settings::default().memory()?;
    let threads = u64::try_from(std::thread::available_parallelism()?.get())?;
    let budgets = memory.calls + memory.answers + HANDSHAKES_BYTES + threads * ANSWER_BYTES;
    let answers = answered.load(Ordering::Relaxed);
    let report = Report {
        clients: args.clients,
        answers,
        answers_mib: answers * VALUES * u64::try_from(VALUE_BYTES)? / MIB,
        seconds,
        retries: clients.iter().map(Client::retries).sum(),
        before_mib: before / MIB,
        highest_mib: highest / MIB,
        grown_mib: highest.saturating_sub(before) / MIB,
        budget_mib: (budgets + args.clients * CONNECTION_BYTES) / MIB,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    ensure!(
        processes.stop(1).await?.success(),
        "the node failed:\n{}",
        processes.log(1)
    );
    Ok(ExitCode::from(u8::from(report.grown_mib > report.budget_mib)))
}

/// Tells how far it is, until the node's memory cannot be read any more, and why.
async fn show(pid: u32, answered: &AtomicU64, bar: &ProgressBar) -> anyhow::Error {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match memory(pid, "VmRSS") {
            Ok(now) => bar.set_message(format!(
                "{} answers, {} MiB",
                answered.load(Ordering::Relaxed),
                now / MIB
            )),
            Err(error) => return error,
        }
    }
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.add_row(["clients".to_owned(), report.clients.to_string()]);
    table.add_row([
        "answers".to_owned(),
        format!(
            "{} ({} MiB) in {:.1} s",
            report.answers, report.answers_mib, report.seconds
        ),
    ]);
    table.add_row(["attempts repeated".to_owned(), report.retries.to_string()]);
    table.add_row(["memory before".to_owned(), format!("{} MiB", report.before_mib)]);
    table.add_row(["at its highest".to_owned(), format!("{} MiB", report.highest_mib)]);
    table.add_row(["grown by".to_owned(), format!("{} MiB", report.grown_mib)]);
    table.add_row(["budget".to_owned(), format!("{} MiB", report.budget_mib)]);
    println!("{table}");
}

fn key(number: u64) -> Result<Key> {
    Ok(Key::new(format!("large/{number:02}"))?)
}

/// Asks for one batch of the largest size, and demands every byte of it.
async fn ask(client: &Client, answered: &AtomicU64) -> Result<()> {
    let reads = (0..VALUES).map(|number| Ok(ReadOp::Get(key(number)?)));
    let reads = reads.collect::<Result<Vec<_>>>()?;
    let response = client.read(reads).await?;
    let whole = |result: &ReadResult| match result {
        ReadResult::Get(Some(record)) => record.value.len() == VALUE_BYTES,
        _ => false,
    };
    let answers = response.results.iter().filter(|result| whole(result)).count();
    ensure!(
        answers as u64 == VALUES,
        "{answers} of {VALUES} values came whole"
    );
    answered.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A figure in bytes of a process's memory, by its name in `/proc/PID/status`.
fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the node has ended")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.with_context(|| format!("no {name}"))?.trim().parse()?;
    Ok(kib * 1024)
}

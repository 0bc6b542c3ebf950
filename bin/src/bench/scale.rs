//! `quorate bench --scale N`: what becomes of a cluster that grows to N keys.
//!
//! Three nodes as processes, with the settings that users get. Each row is measured on the store as the rows before have left
//! it; what is compared with another figure is measured in the same run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use comfy_table::Cell;
use quorate_kv::Client;
use quorate_kv::model::{KeyRange, Limit};
use quorate_kv::node::Status;
use serde::Serialize;

use super::load::Load;
use super::processes::Processes;
use crate::cli::{BenchArgs, BenchOp};
use crate::failure::Failure;
use crate::output::{Output, Report, number, table};
use crate::text::{duration, size, thousands};

/// The value of a key, in bytes.
const VALUE: usize = 100;
/// The small store that the large one is compared with.
const FEW: u64 = 10_000;
/// Puts of one measurement.
const PUTS: u64 = 40_000;
/// And of the one on a store that has settled, so that several checkpoints are in it.
const PUTS_SETTLED: u64 = 200_000;
/// Puts of one transaction of the bulk load, and its callers.
const BULK: u32 = 1_000;
const BULK_CALLERS: u32 = 8;
/// A read later than this beside the bulk load counts as late.
const LATE: Duration = Duration::from_millis(200);
/// How long history and free room are waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs it.
pub(super) async fn run(args: &BenchArgs, keys: u64, output: Output) -> Result<(), Failure> {
    let count = args.nodes.unwrap_or(3);
    let mut processes = Processes::start(count, args).await?;
    let reached = processes.reached(args.reach.deadline)?;
    let client = reached.client()?;
    let empty_disk_bytes = processes.disk_bytes(0);

    client.set_limits([(Limit::StoreBytesMax, 0)]).await?;
    let few = load(args, BenchOp::Put, FEW, 64, PUTS, 1);
    Load::prepare(
        &load(args, BenchOp::Txn, FEW, BULK_CALLERS, FEW / u64::from(BULK), BULK),
        &reached,
        output,
    )
    .await?
    .run()
    .await?;
    let puts_few = rate(&few, &reached, output).await?;

    let term = client.status().await?.term;
    let beside = Beside::start(reached.client()?);
    let bulk = load(
        args,
        BenchOp::Txn,
        keys,
        BULK_CALLERS,
        keys.div_ceil(BULK.into()),
        BULK,
    );
    let bulk = Load::prepare(&bulk, &reached, output).await?.run().await?;
    let late_reads = beside.end().await;
    let leader_changes = client.status().await?.term.number().saturating_sub(term.number());
    if let Some(error) = bulk.first_error {
        return Err(Failure::failed(format!("the bulk load met: {error}")));
    }

    let puts = |total| load(args, BenchOp::Put, keys, 64, total, 1);
    let puts_behind = rate(&puts(PUTS), &reached, output).await?;
    let settled = processes.settled(PATIENCE).await;
    let puts_many = rate(&puts(PUTS_SETTLED), &reached, output).await?;
    let begun = Instant::now();
    let counted = count_all(&client).await?;
    let count_seconds = begun.elapsed().as_secs_f64();
    let memory = processes.memory();

    let live = history_gone(&client).await?;
    let file = live.file_bytes;
    let shrunk = client.clone().with_deadline(PATIENCE).shrink().await;
    let shrunk = shrunk
        .into_values()
        .filter_map(Result::ok)
        .map(|shrunk| shrunk.after)
        .max();
    // What a user counts: keys and values alone.
    let values = VALUE as u64 * live.holds.records;
    let keys_twice = live
        .holds
        .live_bytes
        .saturating_sub(64 * live.holds.records + values);
    let plain = values + keys_twice / 2;

    let restart_seconds = processes.restart_killed(0, args).await?.as_secs_f64();
    let report = ScaleReport {
        nodes: count,
        keys: counted,
        value_bytes: VALUE,
        empty_disk_bytes,
        puts_few,
        puts_many,
        puts_behind,
        settled_seconds: settled.map(|settled| settled.as_secs_f64()),
        bulk_records: (bulk.ok * u64::from(BULK)) as f64 / bulk.took.as_secs_f64(),
        bulk_p50_us: bulk.latencies.value_at_quantile(0.5),
        bulk_p99_us: bulk.latencies.value_at_quantile(0.99),
        bulk_max_us: bulk.latencies.max(),
        leader_changes,
        late_reads,
        count_seconds,
        restart_seconds,
        memory_bytes: memory.map(|memory| memory.now),
        memory_peak_bytes: memory.map(|memory| memory.peak),
        file_bytes: file,
        shrunk_file_bytes: shrunk,
        live_bytes: plain,
    };
    processes.stop().await;
    output.show(&report)
}

/// A load like the one that was asked for.
fn load(args: &BenchArgs, op: BenchOp, keys: u64, clients: u32, total: u64, ops_per_txn: u32) -> BenchArgs {
    BenchArgs {
        op,
        keys,
        clients,
        total,
        warm_up: 0,
        value_size: VALUE,
        ops_per_txn: (op == BenchOp::Txn).then_some(ops_per_txn),
        ..args.clone()
    }
}

/// Operations a second.
async fn rate(args: &BenchArgs, reached: &crate::reach::Reached, output: Output) -> Result<f64, Failure> {
    let load = Load::prepare(args, reached, output).await?;
    let measured = load.run().await?;
    load.close().await;
    match measured.first_error {
        Some(error) => Err(Failure::failed(format!("a put met: {error}"))),
        None => Ok(measured.ok as f64 / measured.took.as_secs_f64()),
    }
}

/// Reads a key again and again beside a load.
struct Beside {
    is_over: Arc<AtomicBool>,
    late: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Beside {
    fn start(client: Client) -> Self {
        let (is_over, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, counted) = (Arc::clone(&is_over), Arc::clone(&late));
        let task = tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let read = client.get("bench/ready").await;
                if read.is_err() || begun.elapsed() > LATE {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { is_over, late, task }
    }

    /// How many were late, or failed.
    async fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.task.await;
        self.late.load(Ordering::Relaxed)
    }
}

async fn count_all(client: &Client) -> Result<u64, Failure> {
    let count = client.count(KeyRange::prefix("bench/")).deadline(PATIENCE);
    Ok(count.await?)
}

/// Gives all history up, and waits until its rows are gone.
async fn history_gone(client: &Client) -> Result<Status, Failure> {
    client.set_limits([(Limit::HistoryRevisionsKept, 0)]).await?;
    let revision = client.revision().await?;
    client.compact(revision).await?;
    let begun = Instant::now();
    loop {
        let status = client.status().await?;
        // A deletion or two may be younger.
        if status.holds.history_bytes < 1 << 20 {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            return Err(Failure::failed(format!("history did not go within {PATIENCE:?}")));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The figures.
#[derive(Debug, Serialize)]
struct ScaleReport {
    nodes: u64,
    keys: u64,
    value_bytes: usize,
    /// Of one node before its first key.
    empty_disk_bytes: u64,
    /// Puts a second of 64 clients at 10,000 keys.
    puts_few: f64,
    /// And at all of them, once the nodes had nothing else to do.
    puts_many: f64,
    /// Right behind the bulk load, while its runs are merged.
    puts_behind: f64,
    /// How long the nodes were busy behind that; null where the system does not tell, or it did not end.
    settled_seconds: Option<f64>,
    /// Records a second of the bulk load.
    bulk_records: f64,
    bulk_p50_us: u64,
    bulk_p99_us: u64,
    bulk_max_us: u64,
    /// Terms that began while it ran.
    leader_changes: u64,
    /// Reads beside it that took longer than 0.2 s, or failed.
    late_reads: u64,
    count_seconds: f64,
    /// From the start of a node that was killed until it answers a read.
    restart_seconds: f64,
    /// Of the node that has most; null where the system does not tell.
    memory_bytes: Option<u64>,
    memory_peak_bytes: Option<u64>,
    /// After all history was given up.
    file_bytes: u64,
    shrunk_file_bytes: Option<u64>,
    /// Keys and values.
    live_bytes: u64,
}

impl Report for ScaleReport {
    fn text(&self) -> String {
        let mut table = table(["", "measured", ""]);
        let mut row = |what: &str, measured: String, note: String| {
            table.add_row(vec![Cell::new(what), number(measured), Cell::new(note)]);
        };
        let rate = |rate: f64| format!("{}/s", thousands(rate as u64));
        let micros = |micros| duration(Duration::from_micros(micros));
        let times = |bytes: u64| {
            format!(
                "{:.1} times keys and values",
                bytes as f64 / (self.live_bytes as f64).max(1.0)
            )
        };
        let bytes = |bytes: Option<u64>| bytes.map_or("-".to_owned(), size);
        row(
            "disk of an empty node",
            size(self.empty_disk_bytes),
            String::new(),
        );
        row(
            "puts at 10,000 keys",
            rate(self.puts_few),
            "64 callers".to_owned(),
        );
        let of_few = |rate: f64| format!("1/{:.2} of that at 10,000", self.puts_few / rate.max(1e-9));
        let keys = thousands(self.keys);
        let settled = match self.settled_seconds {
            Some(seconds) => format!("the nodes were at rest {seconds:.0} s later"),
            None => "the nodes were not seen at rest".to_owned(),
        };
        row(
            &format!("puts at {keys} keys"),
            rate(self.puts_many),
            match self.settled_seconds {
                Some(_) => format!("{few}, once the nodes were at rest", few = of_few(self.puts_many)),
                None => of_few(self.puts_many),
            },
        );
        row(
            "the same right behind the load",
            rate(self.puts_behind),
            format!("{}; {settled}", of_few(self.puts_behind)),
        );
        row(
            "bulk load",
            format!("{} records/s", thousands(self.bulk_records as u64)),
            format!(
                "{BULK} puts a transaction, {BULK_CALLERS} callers; p50 {}, p99 {}, max {}",
                micros(self.bulk_p50_us),
                micros(self.bulk_p99_us),
                micros(self.bulk_max_us)
            ),
        );
        row(
            "beside it",
            format!("{} late reads", self.late_reads),
            format!(
                "{} leader changes; late is longer than {LATE:?}",
                self.leader_changes
            ),
        );
        row(
            "count of all keys",
            format!("{:.2} s", self.count_seconds),
            String::new(),
        );
        row(
            "start after kill -9",
            format!("{:.2} s", self.restart_seconds),
            "until the node answers a read".to_owned(),
        );
        row(
            "memory of a node",
            bytes(self.memory_bytes),
            format!("peak {}", bytes(self.memory_peak_bytes)),
        );
        row("state file", size(self.file_bytes), times(self.file_bytes));
        row(
            "the same, shrunk",
            bytes(self.shrunk_file_bytes),
            self.shrunk_file_bytes.map_or(String::new(), times),
        );
        format!(
            "{} nodes, {} keys of {} B values\n{table}",
            self.nodes,
            thousands(self.keys),
            self.value_bytes
        )
    }
}

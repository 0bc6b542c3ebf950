//! How long does a follower take to answer a heartbeat while the cluster takes a bulk load?
//!
//! Three nodes in this process over QUIC, callers that put many keys a transaction. Answers with the percentiles of
//! the times as the leader saw them, apart for the time without and with the load, and how long the transactions
//! took. `--slow-sync` makes every sync of every disk take so much longer, as on a disk that cannot keep up.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use metrics::{Counter, Gauge, HistogramFn, KeyName, Metadata, Recorder, SharedString, Unit};
use quorate_kv::env::disk::LockGuard;
use quorate_kv::env::{Disk, File, RealDisk};
use quorate_kv::model::{Key, Op, Txn};
use quorate_kv::node::Settings;
use quorate_tests::cluster::Cluster;
use serde::Serialize;

/// Measures the answers to heartbeats beside a bulk load.
#[derive(Parser)]
struct Args {
    /// How long the load lasts.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Callers that each wait for their transaction before the next.
    #[arg(long, default_value_t = 8)]
    callers: u64,
    /// Puts of one transaction.
    #[arg(long, default_value_t = 1000)]
    puts: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 100)]
    value_size: usize,
    /// How many keys there are; written in an order without locality.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// What every sync takes longer.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    slow_sync: u64,
    /// The result as JSON, on one line.
    #[arg(long)]
    json: bool,
}

/// Times of one kind, in milliseconds.
#[derive(Debug, Serialize)]
struct Times {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Times {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| micros as f64 / 1e3;
        Self {
            count: histogram.len(),
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            max_ms: ms(histogram.max()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    heartbeats_idle: Times,
    heartbeats_beside_load: Times,
    transactions: Times,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.keys > 0 && args.puts > 0, "--keys and --puts are 1 at least");
    let answers = Arc::new(Answers::default());
    metrics::set_global_recorder(OneMetric(Arc::clone(&answers)))
        .map_err(|_| anyhow::anyhow!("another recorder is installed"))?;
    let mut cluster = Cluster::prepare(3, Settings::default())?;
    cluster.set_disk(Arc::new(SlowDisk {
        sync: Duration::from_millis(args.slow_sync),
    }));
    for id in 1..=3 {
        cluster.start_node(id).await?;
    }
    cluster.leader().await?;
    answers.take();
    tokio::time::sleep(Duration::from_secs(args.seconds.min(5))).await;
    let idle = answers.take();
    let transactions = load(&cluster, &args).await?;
    let report = Report {
        heartbeats_idle: Times::of(&idle),
        heartbeats_beside_load: Times::of(&answers.take()),
        transactions: Times::of(&transactions),
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report:#?}");
    }
    cluster.shutdown().await
}

/// Puts until the time is over; how long each transaction took.
async fn load(cluster: &Cluster, args: &Args) -> anyhow::Result<Histogram<u64>> {
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for caller in 0..args.callers {
        let (client, over) = (cluster.client()?, Arc::clone(&over));
        let (puts, keys, value) = (args.puts, args.keys, vec![b'v'; args.value_size]);
        callers.push(tokio::spawn(async move {
            let mut took = Histogram::<u64>::new(3)?;
            let mut next = caller;
            while !over.load(Ordering::Relaxed) {
                let mut ops = Vec::new();
                for _ in 0..puts {
                    // A prime stride, so that neighbours in time are none in the order of keys.
                    next = next.wrapping_add(7_919);
                    let number = next.wrapping_mul(2_654_435_761) % keys;
                    ops.push(Op::put(Key::from(format!("bulk/{number:012}")), value.clone()));
                }
                let started = Instant::now();
                // A slow disk may cost a deadline: what is measured are the heartbeats.
                let _outcome = client.commit(Txn::new(ops)).await;
                took.record(u64::try_from(started.elapsed().as_micros())?)?;
            }
            anyhow::Ok(took)
        }));
    }
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    over.store(true, Ordering::Relaxed);
    let mut all = Histogram::<u64>::new(3)?;
    for caller in callers {
        all.add(caller.await??)?;
    }
    Ok(all)
}

/// The times of the answers to heartbeats, in microseconds.
#[derive(Debug)]
struct Answers(Mutex<Histogram<u64>>);

impl Default for Answers {
    fn default() -> Self {
        Self(Mutex::new(empty()))
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

impl Answers {
    fn take(&self) -> Histogram<u64> {
        std::mem::replace(
            &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner),
            empty(),
        )
    }
}

impl HistogramFn for Answers {
    fn record(&self, seconds: f64) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Grows by itself; nothing is longer than its range.
        let _recorded = times.record((seconds * 1e6) as u64);
    }
}

/// Hears one metric of all.
struct OneMetric(Arc<Answers>);

impl Recorder for OneMetric {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &metrics::Key, _: &Metadata<'_>) -> metrics::Histogram {
        match key.name() {
            "quorate_heartbeat_seconds" => metrics::Histogram::from_arc(Arc::clone(&self.0)),
            _ => metrics::Histogram::noop(),
        }
    }
}

/// The operating system's files, whose syncs take longer.
#[derive(Debug)]
struct SlowDisk {
    sync: Duration,
}

#[derive(Debug)]
struct SlowFile {
    file: Arc<dyn File>,
    sync: Duration,
}

impl Disk for SlowDisk {
    fn open(&self, path: &Path, create: bool) -> std::io::Result<Arc<dyn File>> {
        Ok(Arc::new(SlowFile {
            file: RealDisk.open(path, create)?,
            sync: self.sync,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.create_dir_all(path)
    }

    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        RealDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> std::io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> std::io::Result<Box<dyn LockGuard>> {
        RealDisk.lock(path)
    }
}

impl File for SlowFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[&[u8]], offset: u64) -> std::io::Result<()> {
        self.file.write_all_vectored_at(bufs, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        std::thread::sleep(self.sync);
        self.file.sync_data()
    }

    fn drop_cached(&self) {
        self.file.drop_cached();
    }
}

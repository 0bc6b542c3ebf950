//! What does an append to the log cost above the disk itself?
//!
//! By the number of entries of 256 bytes in a batch: an append that is told durable, beside a bare write and
//! fdatasync of as many bytes over a zeroed file. Ends with the ratios.
//!
//! `cargo bench -p quorate-benches --bench log_append`

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode};
use quorate_benches::facts;
use quorate_kv::env::{RealDisk, oneshot};
use quorate_kv::log::{Log, LogEntry, LogSettings};
use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};
use tokio::runtime::Runtime;

const ENTRY_BYTES: usize = 256;
const BATCHES: [usize; 4] = [1, 8, 64, 512];
/// The bare file, written from its start to its end and over again.
const FLOOR_BYTES: usize = 32 << 20;

fn main() -> Result<()> {
    println!("What does an append to the log cost above the disk itself?\n");
    let dir = tempfile::Builder::new()
        .prefix("quorate-bench-")
        .tempdir_in(facts::directory())?;
    for fact in facts::describe(dir.path())? {
        println!("{fact}");
    }
    let runtime = Runtime::new()?;
    let _inside = runtime.enter();
    let settings = LogSettings::default().create();
    let log = Log::open(Arc::new(RealDisk), &dir.path().join("log"), settings)?;
    let mut floor = Floor::new(&dir.path().join("floor"))?;
    let mut next = 0;
    let mut medians = Vec::new();
    let mut criterion = Criterion::default().configure_from_args();
    for entries in BATCHES {
        let (mut logs, mut floors) = (Vec::new(), Vec::new());
        let mut group = criterion.benchmark_group("log_append");
        group.sampling_mode(SamplingMode::Flat).sample_size(20);
        group.warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(2));
        group.bench_function(BenchmarkId::new("log", entries), |bencher| {
            bencher.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let took = runtime.block_on(append(&log, next, entries));
                    next += entries as u64;
                    let took = took.unwrap_or_else(|error| panic!("an append failed: {error:#}"));
                    logs.push(took);
                    total += took;
                }
                total
            });
        });
        group.bench_function(BenchmarkId::new("floor", entries), |bencher| {
            bencher.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let took = floor.write(entries * ENTRY_BYTES);
                    let took = took.unwrap_or_else(|error| panic!("a write failed: {error:#}"));
                    floors.push(took);
                    total += took;
                }
                total
            });
        });
        group.finish();
        logs.sort_unstable();
        floors.sort_unstable();
        medians.push((entries, logs, floors));
    }
    println!("\nmicroseconds     log p50   log p99  bare p50  bare p99   ratio of the medians");
    for (entries, log, floor) in medians {
        let at = |sorted: &[Duration], part| facts::micros(facts::quantile(sorted, part));
        let (log50, floor50) = (at(&log, 0.5), at(&floor, 0.5));
        println!(
            "{entries:>4} entries {log50:>11.0} {:>9.0} {floor50:>9.0} {:>9.0} {:>8.2}",
            at(&log, 0.99),
            at(&floor, 0.99),
            log50 / floor50
        );
    }
    runtime.block_on(log.close())?;
    Ok(())
}

async fn append(log: &Log, first: u64, count: usize) -> Result<Duration> {
    let payload = Bytes::from(vec![7; ENTRY_BYTES]);
    let entry = |index| LogEntry {
        position: LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        },
        payload: payload.clone(),
    };
    let entries = (first..first + count as u64).map(entry).collect();
    let begun = Instant::now();
    let (told, durable) = oneshot::channel();
    let callback = Box::new(move |result| {
        let _gone = told.send(result);
    });
    log.append(entries, callback)?;
    durable.await.map_err(|_| anyhow!("the log ended"))??;
    Ok(begun.elapsed())
}

/// A zeroed file and where it is written next.
struct Floor {
    file: File,
    at: usize,
    bytes: Vec<u8>,
}

impl Floor {
    fn new(path: &std::path::Path) -> Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(&vec![0; FLOOR_BYTES])?;
        file.sync_all()?;
        Ok(Self {
            file,
            at: 0,
            bytes: vec![7; 1 << 20],
        })
    }

    fn write(&mut self, size: usize) -> Result<Duration> {
        if self.at + size > FLOOR_BYTES {
            self.at = 0;
        }
        let begun = Instant::now();
        self.file.write_all_at(&self.bytes[..size], self.at as u64)?;
        self.file.sync_data()?;
        self.at += size;
        Ok(begun.elapsed())
    }
}

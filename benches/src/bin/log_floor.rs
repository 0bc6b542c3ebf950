//! What does the log cost above the disk itself?
//!
//! In one run, on one disk: a bare write and fdatasync over a zeroed file, against an append that is told
//! durable, for 1 and for 64 entries of 256 bytes. Both write the same number of bytes, in turns, so that a
//! disk that slows down slows both. Ends with the ratio of the medians.
//!
//! `cargo run --release -p quorate-benches --bin log_floor -- [directory]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use quorate_kv::env::{Disk, File, RealDisk, now, oneshot};
use quorate_kv::log::{Log, LogEntry, LogSettings};
use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};

const ENTRY_BYTES: usize = 256;
const WARM_UP: usize = 200;
const ROUNDS: usize = 3000;
const FLOOR_BYTES: u64 = 64 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let under: PathBuf = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = under.join(format!("log-floor-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure(&dir).await;
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    result
}

async fn measure(dir: &Path) -> anyhow::Result<()> {
    let floor = Floor::new(&dir.join("floor"))?;
    let log = Log::open(
        Arc::new(RealDisk),
        &dir.join("log"),
        LogSettings::default().create(),
    )?;
    println!(
        "{} rounds in {}, entries of {ENTRY_BYTES} bytes, microseconds",
        ROUNDS,
        dir.display()
    );
    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>12} {:>8}",
        "entries", "floor p50", "log p50", "floor p99", "log p99", "p50"
    );
    let mut next = 0;
    let mut at = 0;
    for entries in [1, 64] {
        let mut floors = Vec::with_capacity(ROUNDS);
        let mut logs = Vec::with_capacity(ROUNDS);
        for round in 0..WARM_UP + ROUNDS {
            let before = log.statistics().bytes;
            let started = now();
            append(&log, next, entries).await?;
            let took = started.elapsed();
            next += entries as u64;
            let bytes = (log.statistics().bytes - before) as usize;
            let floor_took = floor.write(&mut at, bytes)?;
            if round >= WARM_UP {
                logs.push(took);
                floors.push(floor_took);
            }
        }
        floors.sort_unstable();
        logs.sort_unstable();
        let us = |sorted: &[Duration], part: f64| {
            let place = ((sorted.len() - 1) as f64 * part) as usize;
            sorted[place].as_secs_f64() * 1e6
        };
        let (f50, l50) = (us(&floors, 0.5), us(&logs, 0.5));
        let (f99, l99) = (us(&floors, 0.99), us(&logs, 0.99));
        println!(
            "{entries:>8} {f50:>12.1} {l50:>12.1} {f99:>12.1} {l99:>12.1} {:>8.2}",
            l50 / f50
        );
    }
    println!("{:?}", log.statistics());
    log.close().await?;
    Ok(())
}

async fn append(log: &Log, first: u64, count: usize) -> anyhow::Result<()> {
    let payload = Bytes::from(vec![7; ENTRY_BYTES]);
    let entries = (first..first + count as u64)
        .map(|index| LogEntry {
            position: LogPosition {
                term: Term::new(1),
                leader: NodeId::new(1),
                index: LogIndex::new(index),
            },
            payload: payload.clone(),
        })
        .collect();
    let (tx, rx) = oneshot::channel();
    let told = Box::new(move |result| {
        let _gone = tx.send(result);
    });
    log.append(entries, told)?;
    rx.await??;
    Ok(())
}

/// A zeroed file, written from its start to its end and over again.
struct Floor {
    file: Arc<dyn File>,
    bytes: Vec<u8>,
}

impl Floor {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let file = RealDisk.open(path, true)?;
        file.write_all_at(&vec![0; FLOOR_BYTES as usize], 0)?;
        file.sync_data()?;
        Ok(Self {
            file,
            bytes: vec![7; 1 << 20],
        })
    }

    fn write(&self, at: &mut u64, bytes: usize) -> anyhow::Result<Duration> {
        let bytes = &self.bytes[..bytes.min(self.bytes.len())];
        if *at + bytes.len() as u64 > FLOOR_BYTES {
            *at = 0;
        }
        let started = now();
        self.file.write_all_at(bytes, *at)?;
        self.file.sync_data()?;
        *at += bytes.len() as u64;
        Ok(started.elapsed())
    }
}

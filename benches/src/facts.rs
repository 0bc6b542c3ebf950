//! What a figure means nothing without: the machine, the disk, the price of a sync.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Where the files of a benchmark stand: `$QUORATE_BENCH_DIR`, else the temporary directory.
pub fn directory() -> PathBuf {
    std::env::var_os("QUORATE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// The facts, as one line of text for each.
pub fn describe(dir: &Path) -> Result<Vec<String>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let model = first_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    let sync = sync_cost(dir)?;
    Ok(vec![
        format!(
            "machine: {processors} processors ({model}), Linux {}, load {load} at the start",
            kernel.trim()
        ),
        format!("disk: {}", filesystem(dir)),
        format!(
            "4 KiB written over a zeroed file and synced (fdatasync): p50 {:.0} µs, p99 {:.0} µs",
            micros(quantile(&sync, 0.50)),
            micros(quantile(&sync, 0.99))
        ),
    ])
}

fn first_value(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The type of the file system that a directory is on.
fn filesystem(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut found = ("", "an unknown file system");
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(at), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        if dir.starts_with(at) && at.len() >= found.0.len() {
            found = (at, kind);
        }
    }
    match found.1 {
        "tmpfs" => "tmpfs, that is memory: a sync costs nothing here".to_owned(),
        kind => kind.to_owned(),
    }
}

/// What a write of 4 KiB over a zeroed file and its fdatasync take, sorted.
pub fn sync_cost(dir: &Path) -> Result<Vec<Duration>> {
    const ROUNDS: usize = 200;
    const BLOCK: usize = 4096;
    let path = dir.join(format!("quorate-bench-sync-{}", std::process::id()));
    let measured = (|| {
        let mut file = File::create(&path)?;
        file.write_all(&vec![0; BLOCK * ROUNDS])?;
        file.sync_all()?;
        let mut took = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            let begun = Instant::now();
            file.write_all_at(&[7; BLOCK], (round * BLOCK) as u64)?;
            file.sync_data()?;
            took.push(begun.elapsed());
        }
        took.sort_unstable();
        Ok(took)
    })();
    std::fs::remove_file(&path)?;
    measured
}

/// The value below which this part of the sorted values lies; zero of none.
pub fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let place = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(place).copied().unwrap_or_default()
}

/// For people.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

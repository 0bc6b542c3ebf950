//! The common workload on real processes: each worker has its clients, hence its sessions.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_kv::Client;
use tokio::task::JoinSet;

use super::history::{self, Progress, Sound};
use crate::check::history::History;
use crate::check::judge::told;
use crate::check::taps::Clock;
use crate::check::workload::{Book, Clients, Ended, Style, Worker};
use crate::sim::Rng;

/// Keys that all write and read.
const KEYS: u64 = 8;
/// The pause between two calls: short, and there is one, so that a cluster without a leader is not flooded.
const PAUSE_MAX: Duration = Duration::from_millis(4);

/// Load that runs.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
    book: Book,
}

/// What all workers noted.
#[derive(Debug)]
pub struct Notes {
    history: History,
    /// Calls that ended without effect: no answer in time.
    pub unavailable: u64,
    /// The longest time between two answered calls of one worker.
    pub longest_gap: Duration,
}

/// What the check at the end found sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Writes that were acknowledged, each found once.
    pub acknowledged: u64,
    /// Reads, each explained.
    pub reads: u64,
    /// Writes of unknown outcome, each found at most once.
    pub unknown: u64,
    /// Calls that ended without effect: no answer in time.
    pub unavailable: u64,
    /// Keys for which another checker found an order as well.
    pub second_opinions: u64,
    /// The longest time that a worker waited for an answer.
    pub longest_gap: Duration,
}

impl Workload {
    /// Starts a worker for each client. Where there are several, each also uses its neighbour's now and then.
    pub fn start(clients: impl IntoIterator<Item = Client>, seed: u64) -> Self {
        let clients: Vec<Client> = clients.into_iter().collect();
        let (stop, book) = (Arc::new(AtomicBool::new(false)), Book::default());
        let origin = Instant::now();
        let clock: Clock = Arc::new(move || origin.elapsed());
        let style = Style {
            keys: KEYS,
            pause_max: PAUSE_MAX,
            deadline: Duration::from_secs(2),
            hurried: true,
            meta_every: 6,
        };
        let mut workers = JoinSet::new();
        for (number, main) in (0..).zip(&clients) {
            let clients = Clients {
                main: main.clone(),
                other: clients[(number as usize + 1) % clients.len()].clone(),
                // The limits of real processes are the simulator's, where they are exceeded on the nodes too.
                lax: main.clone(),
            };
            let random = Rng::new(seed).fork(&format!("worker {number}"));
            let worker = Worker::new(number, style, clients, random, Arc::clone(&clock), book.clone());
            let mut worker = worker.tidy();
            let stop = Arc::clone(&stop);
            workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    worker.step().await;
                }
            });
        }
        Self { stop, workers, book }
    }

    /// Ends the load and gathers what was seen.
    pub async fn stop(mut self) -> Result<Notes> {
        // A flag that each worker looks at between calls; nothing else is ordered by it.
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended?;
        }
        Ok(Notes {
            history: self.book.history(),
            unavailable: self.book.total(Ended::Failed),
            longest_gap: self.book.longest_gap(),
        })
    }
}

impl Notes {
    /// Reads everything back and demands that it is explained; an error lists what is not.
    pub async fn check(&self, client: &Client, tell: Progress<'_>) -> Result<Verdict> {
        let Sound {
            acknowledged,
            reads,
            unknown,
            second_opinions,
            ..
        } = history::check(&self.history, client, tell).await?;
        Ok(Verdict {
            acknowledged,
            reads,
            unknown,
            unavailable: self.unavailable,
            second_opinions,
            longest_gap: self.longest_gap,
        })
    }

    /// Writes down every call of the store, one on a line, in the order of the answers.
    pub fn write(&self, file: &Path) -> Result<()> {
        let mut file = BufWriter::new(File::create(file)?);
        for call in &self.history.calls {
            writeln!(file, "{}", told(call))?;
        }
        Ok(file.flush()?)
    }
}

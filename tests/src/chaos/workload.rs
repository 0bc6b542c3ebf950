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
use crate::check::workload::{Book, Clients, Ended, Gap, Style, Worker};
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
    pub longest_gap: Gap,
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
            compacts: false,
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
            longest_gap: self.longest_gap.lasted,
        })
    }

    /// What the worker that waited the longest asked for meanwhile, and was told.
    pub fn in_the_longest_gap(&self) -> Vec<String> {
        /// What a person reads of an answer.
        const TOLD_MAX: usize = 300;
        let Gap {
            lasted,
            until,
            client,
        } = self.longest_gap;
        let from = until.saturating_sub(lasted);
        let told = |called: Duration, answered: Duration, what: String| {
            let what: String = what.chars().take(TOLD_MAX).collect();
            format!(
                "{:.3} to {:.3}: {what}",
                called.as_secs_f64(),
                answered.as_secs_f64()
            )
        };
        let calls = self.history.calls.iter();
        let calls = calls.filter(|call| call.id.client == client).map(|call| {
            let what = format!("{:?} {:?}", call.answer, call.request);
            (call.called, call.answered, what)
        });
        let meta = self.history.meta.iter();
        let meta = meta.filter(|call| call.id.client == client).map(|call| {
            let what = format!("{:?} {:?}", call.answer.as_ref().map(drop), call.request);
            (call.called, call.answered, what)
        });
        let mut all: Vec<_> = calls
            .chain(meta)
            .filter(|(called, answered, _)| *answered >= from && *called <= until)
            .collect();
        all.sort_by_key(|(called, ..)| *called);
        all.into_iter()
            .map(|(called, answered, what)| told(called, answered, what))
            .collect()
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

//! Writers and readers that note what they saw.
//!
//! Each writer alone writes its keys: new keys, pairs of keys in one transaction, and a counter; all of them write
//! and read a few shared keys. Every value is written once, so what is found later tells which write it came from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{
    Consistency, Key, KeyRange, KeyValue, Op, RangeRead, ReadOp, ReadResult, Revision, Txn,
};
use tokio::task::JoinSet;

use super::history::{self, Deed, Event, Last};
use crate::sim::Rng;

/// Keys that all write and read.
const SHARED: u64 = 4;
/// Everything here is below this prefix.
const PREFIX: &str = "chaos/";
/// The pause after an error that says that nothing happened, so that a cluster without a leader is not flooded.
const PAUSE: Duration = Duration::from_millis(20);

/// Load that runs.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    workers: JoinSet<Result<Notes>>,
}

/// What one worker noted, or all of them together.
#[derive(Debug, Default)]
pub struct Notes {
    /// Every call that wrote or read, and may have done so.
    pub events: Vec<Event>,
    /// Of each counter: additions acknowledged, and additions of unknown outcome.
    pub counters: BTreeMap<String, (i64, i64)>,
    /// Calls that ended without effect: no answer in time.
    pub unavailable: u64,
    /// Writes of unknown outcome.
    pub unknown: u64,
    /// The longest time between two acknowledged calls of one worker.
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
    /// Calls that ended without effect.
    pub unavailable: u64,
    /// The longest time that a worker waited for an acknowledgement.
    pub longest_gap: Duration,
}

impl Workload {
    /// Starts a worker for each client.
    pub fn start(clients: impl IntoIterator<Item = Client>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let origin = Instant::now();
        let mut workers = JoinSet::new();
        for (id, client) in clients.into_iter().enumerate() {
            let worker = Worker {
                id,
                client,
                origin,
                rng: Rng::new(seed).fork(&format!("worker {id}")),
                notes: Notes::default(),
                next: 0,
                last_answer: origin,
            };
            let stop = Arc::clone(&stop);
            workers.spawn(worker.work(stop));
        }
        Self { stop, workers }
    }

    /// Ends the load and gathers what was seen.
    pub async fn stop(mut self) -> Result<Notes> {
        // A flag that each worker polls between calls; nothing else is ordered by it.
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Notes::default();
        while let Some(notes) = self.workers.join_next().await {
            let notes = notes??;
            all.events.extend(notes.events);
            all.counters.extend(notes.counters);
            all.unavailable += notes.unavailable;
            all.unknown += notes.unknown;
            all.longest_gap = all.longest_gap.max(notes.longest_gap);
        }
        Ok(all)
    }
}

struct Worker {
    id: usize,
    client: Client,
    origin: Instant,
    rng: Rng,
    notes: Notes,
    next: u64,
    last_answer: Instant,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Result<Notes> {
        while !stop.load(Ordering::Relaxed) {
            self.next += 1;
            let (own, shared) = (
                format!("{PREFIX}own/{}/{}", self.id, self.next),
                format!("{PREFIX}shared/{}", self.rng.below(SHARED)),
            );
            match self.rng.below(10) {
                0..=3 => self.write(vec![own]).await?,
                4 => self.write(vec![format!("{own}a"), format!("{own}b")]).await?,
                5 => self.write(vec![own, shared]).await?,
                6 => self.write(vec![shared]).await?,
                7 => self.add().await?,
                _ => self.read(shared).await?,
            }
        }
        Ok(self.notes)
    }

    async fn write(&mut self, keys: Vec<String>) -> Result<()> {
        let value = format!("{}.{}", self.id, self.next);
        let put = |key: &String| Ok(Op::put(Key::try_from(key.as_str())?, value.clone()));
        let ops: Result<Vec<Op>> = keys.iter().map(put).collect();
        let begun = self.origin.elapsed();
        let result = self.client.txn(Txn::new(ops?)).await;
        let Some(revision) = self.judge(result.map(|response| response.revision)).await? else {
            return Ok(());
        };
        self.note(begun, keys, Deed::Write { value, revision });
        Ok(())
    }

    async fn add(&mut self) -> Result<()> {
        let key = format!("{PREFIX}counter/{}", self.id);
        let add = Op::Add {
            key: Key::try_from(key.as_str())?,
            delta: 1,
        };
        let result = self.client.txn(Txn::new([add])).await;
        if let Some(revision) = self.judge(result.map(|response| response.revision)).await? {
            let (acknowledged, unknown) = self.notes.counters.entry(key).or_default();
            match revision {
                Some(_) => *acknowledged += 1,
                None => *unknown += 1,
            }
        }
        Ok(())
    }

    async fn read(&mut self, key: String) -> Result<()> {
        let get = vec![ReadOp::Get(Key::try_from(key.as_str())?)];
        let begun = self.origin.elapsed();
        let result = self.client.read(get, Consistency::Linearizable).await;
        let Some(Some(response)) = self.judge(result).await? else {
            return Ok(());
        };
        let found = match response.results.into_iter().next() {
            Some(ReadResult::Get(Some(record))) => Some((text(&record.value)?, record.mod_revision)),
            Some(ReadResult::Get(None)) => None,
            other => bail!("a get was answered with {other:?}"),
        };
        let at = response.revision;
        self.note(begun, vec![key], Deed::Read { found, at });
        Ok(())
    }

    /// `None`: nothing happened. `Some(None)`: nobody knows.
    async fn judge<T>(&mut self, result: Result<T, Error>) -> Result<Option<Option<T>>> {
        match result {
            Ok(answer) => {
                let now = Instant::now();
                self.notes.longest_gap = self.notes.longest_gap.max(now - self.last_answer);
                self.last_answer = now;
                Ok(Some(Some(answer)))
            }
            Err(Error::OutcomeUnknown(_)) => {
                self.notes.unknown += 1;
                Ok(Some(None))
            }
            Err(Error::Unavailable { .. }) => {
                self.notes.unavailable += 1;
                tokio::time::sleep(PAUSE).await;
                Ok(None)
            }
            // Nothing here is invalid or may be refused.
            Err(error) => Err(anyhow!(error).context(format!("worker {}, call {}", self.id, self.next))),
        }
    }

    fn note(&mut self, begun: Duration, keys: Vec<String>, deed: Deed) {
        let ended = self.origin.elapsed();
        self.notes.events.push(Event {
            begun,
            ended,
            keys,
            deed,
        });
    }
}

impl Notes {
    /// Reads everything back and demands that it is explained; an error lists what is not.
    pub async fn check(&self, client: &Client) -> Result<Verdict> {
        let (mut last, mut counters) = (BTreeMap::new(), BTreeMap::new());
        for KeyValue { key, record } in read_all(client).await? {
            let key = String::from_utf8(key.as_bytes().to_vec())?;
            if key.starts_with(&format!("{PREFIX}counter/")) {
                let bytes: [u8; 8] = record.value[..].try_into().context("a counter has 8 bytes")?;
                counters.insert(key, i64::from_be_bytes(bytes));
            } else {
                let found = Last {
                    value: text(&record.value)?,
                    revision: record.mod_revision,
                    version: record.version,
                };
                last.insert(key, found);
            }
        }
        let mut wrong = history::check(&self.events, &last);
        for (key, (acknowledged, unknown)) in &self.counters {
            let found = counters.get(key).copied().unwrap_or_default();
            if !(*acknowledged..=acknowledged + unknown).contains(&found) {
                wrong.push(format!(
                    "{key} is {found}: {acknowledged} additions were acknowledged, {unknown} are unknown"
                ));
            }
        }
        if !wrong.is_empty() {
            const SHOWN: usize = 20;
            let shown = wrong[..wrong.len().min(SHOWN)].join("\n  ");
            bail!("{} faults, the first ones:\n  {shown}", wrong.len());
        }
        let acknowledged = |event: &&Event| {
            matches!(
                event.deed,
                Deed::Write {
                    revision: Some(_),
                    ..
                }
            )
        };
        let reads = |event: &&Event| matches!(event.deed, Deed::Read { .. });
        let additions: i64 = self.counters.values().map(|(acknowledged, _)| acknowledged).sum();
        Ok(Verdict {
            acknowledged: self.events.iter().filter(acknowledged).count() as u64 + additions.unsigned_abs(),
            reads: self.events.iter().filter(reads).count() as u64,
            unknown: self.unknown,
            unavailable: self.unavailable,
            longest_gap: self.longest_gap,
        })
    }
}

/// All records of the workload, at one revision.
async fn read_all(client: &Client) -> Result<Vec<KeyValue>> {
    let mut all: Vec<KeyValue> = Vec::new();
    let whole = KeyRange::prefix(PREFIX);
    let mut at: Option<Revision> = None;
    loop {
        let range = match all.last() {
            None => whole.clone(),
            Some(last) => {
                let mut after = last.key.as_bytes().to_vec();
                after.push(0);
                KeyRange::new(after, whole.end().context("a prefix has an end")?.to_vec())
            }
        };
        let consistency = at.map_or(Consistency::Linearizable, Consistency::At);
        let read = ReadOp::Range(RangeRead::new(range).limit(10_000));
        let response = client.read(vec![read], consistency).await?;
        at = Some(response.revision);
        match response.results.into_iter().next() {
            Some(ReadResult::Range { records, more, .. }) => {
                all.extend(records);
                if !more {
                    return Ok(all);
                }
            }
            other => bail!("a range was answered with {other:?}"),
        }
    }
}

fn text(value: &[u8]) -> Result<String> {
    Ok(std::str::from_utf8(value)?.to_owned())
}

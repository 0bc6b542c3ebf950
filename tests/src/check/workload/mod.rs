//! What callers do: every public operation of the store's client and of the metadata's, on few keys, with
//! retries, deadlines that pass, limits exceeded and epochs that are stale on purpose.
//!
//! The same workload runs in the simulator and on real processes. [`surface`] lists what it exercises, and a test
//! holds the list against the source.

mod generate;
mod meta;
mod scribe;
pub mod surface;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use quorate_kv::Client;
use quorate_kv::client::{Error, TransactError, Transacted, Transaction};
use quorate_kv::env;
use quorate_kv::model::{
    Consistency, Key, KeyRange, KeyValue, Limit, Limits, Op, OpResult, RangeRead, ReadOp, ReadResponse,
    ReadResult, Record, Revision, Txn,
};

pub use generate::{Generator, key};
pub use scribe::{Book, Ended, Gap, Recorded, Scribe, Tally, ended};

use super::history::{Answer, CallId, Request, tag};
use super::taps::Clock;
use crate::sim::Rng;
use meta::MetaWorker;

/// The clients of one caller. Each has a session of its own.
#[derive(Debug, Clone)]
pub struct Clients {
    /// The one that it mostly uses.
    pub main: Client,
    /// One that asks the nodes in another order, and is used now and then.
    pub other: Client,
    /// One with larger limits than the store's, so that the nodes have to refuse.
    pub lax: Client,
}

/// What a caller is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// How many keys all callers share.
    pub keys: u64,
    /// The longest pause between two calls.
    pub pause_max: Duration,
    /// The shortest deadline of most calls; the longest is eight times as long.
    pub deadline: Duration,
    /// Some calls have deadlines that are too short, so that nobody knows what becomes of them.
    pub hurried: bool,
    /// Some calls give up history. Not where what it was is looked up in the end.
    pub compacts: bool,
    /// One call in so many is the metadata's; none for 0.
    pub meta_every: u64,
}

/// The limits of a client that lets too much through.
pub fn lax_limits() -> Limits {
    let mut limits = Limits::default();
    limits.key_bytes_max *= 2;
    limits.value_bytes_max *= 2;
    limits
}

/// One caller at work.
pub struct Worker {
    style: Style,
    clients: Clients,
    draw: Generator,
    scribe: Scribe,
    meta: MetaWorker,
    last_answer: Duration,
}

impl Worker {
    /// The caller of this number, which no other in the same book may have.
    pub fn new(number: u32, style: Style, clients: Clients, random: Rng, clock: Clock, book: Book) -> Self {
        let scribe = Scribe::new(number, clock, book);
        let last_answer = scribe.now();
        let meta = MetaWorker::new(scribe.clone(), random.fork("metadata"));
        let draw = Generator::new(random, style.keys);
        Self {
            style,
            clients,
            draw,
            scribe,
            meta,
            last_answer,
        }
    }

    /// The same, leaving nothing behind that would grow with the length of the run.
    pub fn tidy(mut self) -> Self {
        self.draw = self.draw.tidy();
        self
    }

    /// Pauses, and makes one call (or a few that belong together).
    pub async fn step(&mut self) {
        let pause = self.draw.random().duration(Duration::ZERO, self.style.pause_max);
        env::sleep(pause).await;
        let client = self.client();
        if self.draw.random().one_in(self.style.meta_every) {
            if self.meta.step(&client).await == Ended::Done {
                self.answered();
            }
            return;
        }
        match self.draw.random().below(44) {
            39 if self.style.compacts && self.draw.random().one_in(2) => self.compact(&client).await,
            38 if self.style.compacts && self.draw.random().one_in(4) => self.limits(&client).await,
            40..=42 if self.style.hurried => self.give_up(&client).await,
            // Whose calls are under way loses what makes them exactly-once, and must be told so.
            43 if self.style.hurried => {
                client.close().await;
                self.scribe.tally("close", Ended::Done);
            }
            0..=3 | 40.. => self.put(&client).await,
            4..=5 => self.delete(&client).await,
            6..=9 => self.get(&client).await,
            10..=11 => self.get_with(&client).await,
            12..=13 => self.range(&client).await,
            14..=19 => self.read(&client).await,
            20..=21 => self.transact(&client).await,
            22 => self.too_large(&client).await,
            23..=30 => {
                let id = self.scribe.number();
                let txn = self.draw.plain_txn(id);
                self.txn(&client, id, txn).await;
            }
            _ => {
                let id = self.scribe.number();
                let txn = self.draw.txn(id);
                self.txn(&client, id, txn).await;
            }
        }
    }

    /// Pauses, and reads what must not be old: of who only does this nothing is written.
    pub async fn look(&mut self) {
        let pause = self.draw.random().duration(Duration::ZERO, self.style.pause_max);
        env::sleep(pause).await;
        let client = self.client();
        let consistency = self.draw.fresh_consistency();
        match self.draw.random().one_in(4) {
            true => self.get_at(&client, consistency).await,
            false => self.read_at(&client, consistency).await,
        }
    }

    /// A client with the deadline of this call.
    fn client(&mut self) -> Client {
        let random = self.draw.random();
        let client = if random.one_in(8) {
            &self.clients.other
        } else {
            &self.clients.main
        };
        let longest = self.style.deadline * 8;
        let deadline = if !self.style.hurried {
            // Where nothing fails, no call may run out of time, also not one that loses many races.
            longest * 4
        } else if random.one_in(20) {
            random.duration(Duration::from_millis(1), self.style.deadline / 4)
        } else {
            random.duration(self.style.deadline, longest)
        };
        client.with_deadline(deadline)
    }

    fn answered(&mut self) {
        let now = self.scribe.now();
        self.scribe.waited(now.saturating_sub(self.last_answer));
        self.last_answer = now;
    }

    /// Writes a call down, counts it, and lets the next draws know of it.
    fn end(&mut self, method: &'static str, id: CallId, called: Duration, request: Request, answer: Answer) {
        self.scribe.tally(method, ended(&answer));
        match &answer {
            Answer::Txn(response) => self.draw.met(response.revision),
            Answer::Written(revision) => self.draw.met(*revision),
            Answer::Read(response) => self.draw.met(response.revision),
            Answer::Compacted(oldest) | Answer::Failed(Error::Compacted { oldest }) => {
                self.draw.given_up_before(*oldest);
            }
            _ => {}
        }
        if ended(&answer) == Ended::Done {
            self.answered();
        }
        self.scribe.note(id, None, called, request, answer);
    }

    async fn txn(&mut self, client: &Client, id: CallId, txn: Txn) {
        let txn = tag(txn, id);
        let called = self.scribe.now();
        let answer = match client.commit(txn.clone()).await {
            Ok(response) => {
                let branch = if response.succeeded {
                    &txn.then
                } else {
                    &txn.otherwise
                };
                for (op, result) in branch.iter().zip(&response.results) {
                    if let (Op::Delete { key }, OpResult::Deleted { count: 1, .. }) = (op, result) {
                        self.draw.gone(key.clone(), response.revision);
                    }
                }
                Answer::Txn(response)
            }
            Err(error) => Answer::of_error(error),
        };
        self.end("commit", id, called, Request::Txn(txn), answer);
    }

    /// Calls, and does not wait for the answer.
    async fn give_up(&mut self, client: &Client) {
        let patience = self
            .draw
            .random()
            .duration(Duration::ZERO, self.style.deadline / 10);
        if self.draw.random().one_in(3) {
            let (reads, consistency) = (self.draw.reads(), self.draw.consistency());
            let called = client.read(reads).consistency(consistency);
            // Nothing is known of it, answered or not.
            drop(env::timeout(patience, called).await);
            return;
        }
        let id = self.scribe.number();
        let (key, value) = (self.draw.shared(), self.draw.value(id));
        let called = self.scribe.now();
        let result = env::timeout(patience, client.put(key.clone(), value.clone())).await;
        let answer = match result {
            Ok(result) => result.map_or_else(Answer::of_error, Answer::Written),
            Err(env::Elapsed) => Answer::Unknown("the caller gave it up".to_owned()),
        };
        self.end("put", id, called, Request::Put { key, value }, answer);
    }

    async fn put(&mut self, client: &Client) {
        let id = self.scribe.number();
        let (key, value) = (self.draw.shared(), self.draw.value(id));
        let called = self.scribe.now();
        let result = client.put(key.clone(), value.clone()).await;
        let answer = result.map_or_else(Answer::of_error, Answer::Written);
        self.end("put", id, called, Request::Put { key, value }, answer);
    }

    /// A delete bears its call's number in its key, which is made first; or was not, now and then.
    async fn delete(&mut self, client: &Client) {
        let (making, id) = (self.scribe.number(), self.scribe.number());
        let key = key(format!("own/{id}"));
        if !self.draw.random().one_in(4) {
            self.txn(
                client,
                making,
                Txn::new([Op::create(key.clone(), making.value(0))]),
            )
            .await;
        }
        let called = self.scribe.now();
        let result = client.delete(key.clone()).await;
        let answer = result.map_or_else(Answer::of_error, Answer::Deleted);
        self.end("delete", id, called, Request::Delete { key }, answer);
    }

    async fn compact(&mut self, client: &Client) {
        let (id, revision) = (self.scribe.number(), self.draw.compaction());
        let called = self.scribe.now();
        let answer = match client.compact(revision).await {
            Ok(oldest) => Answer::Compacted(oldest),
            Err(error) => Answer::of_error(error),
        };
        self.end("compact", id, called, Request::Compact(revision), answer);
    }

    /// Looks at the limits, or changes those of history.
    async fn limits(&mut self, client: &Client) {
        let (id, called) = (self.scribe.number(), self.scribe.now());
        let random = self.draw.random();
        let changes = match random.below(3) {
            0 => vec![(Limit::HistoryKept, *random.pick(&[1_000, 2_000, 20_000]))],
            1 => vec![
                (Limit::HistoryRevisionsKept, *random.pick(&[0, 5, 50, 10_000])),
                (Limit::HistoryKept, *random.pick(&[0, 1_000, 3_000])),
            ],
            _ => Vec::new(),
        };
        let (method, result) = match changes.is_empty() {
            true => ("limits", client.limits().await),
            false => ("set_limits", client.set_limits(changes.clone()).await),
        };
        let answer = result.map_or_else(Answer::of_error, |stand| Answer::Limits(Box::new(stand)));
        self.end(method, id, called, Request::SetLimits(changes), answer);
    }

    async fn get(&mut self, client: &Client) {
        let (id, key, called) = (self.scribe.number(), self.draw.shared(), self.scribe.now());
        let result = client.get(key.clone()).await;
        let answer = result.map_or_else(Answer::of_error, Answer::Record);
        let consistency = Consistency::Linearizable;
        self.end("get", id, called, Request::Get { key, consistency }, answer);
    }

    async fn get_with(&mut self, client: &Client) {
        let consistency = self.draw.consistency();
        self.get_at(client, consistency).await;
    }

    async fn get_at(&mut self, client: &Client, consistency: Consistency) {
        let key = self.draw.shared();
        let (id, called) = (self.scribe.number(), self.scribe.now());
        let result = client.get(key.clone()).consistency(consistency).await;
        let answer = result.map_or_else(Answer::of_error, Answer::Record);
        self.end("get", id, called, Request::Get { key, consistency }, answer);
    }

    async fn range(&mut self, client: &Client) {
        // Small ranges: where the answer's revision is not looked at, each state that it may be of is.
        let range = KeyRange::prefix(*self.draw.random().pick(&["num/", "kv/1", "kv/2"]));
        let (id, called) = (self.scribe.number(), self.scribe.now());
        let result = client.range(range.clone()).await;
        let result = result.map(|page| {
            let found = ReadResult::Range {
                count: page.records.len() as u64,
                more: page.rest.is_some(),
                records: page.records,
            };
            (page.revision, found)
        });
        if self.draw.random().one_in(2) {
            let answer = result.map(|(revision, found)| ReadResponse {
                revision,
                results: vec![found],
            });
            let request = Request::Read {
                reads: vec![ReadOp::Range(RangeRead::new(range))],
                consistency: Consistency::Linearizable,
            };
            let answer = answer.map_or_else(Answer::of_error, Answer::Read);
            return self.end("range", id, called, request, answer);
        }
        let answer = result.map_or_else(Answer::of_error, |(_, found)| Answer::Records(found));
        self.end("range", id, called, Request::Range(range), answer);
    }

    async fn read(&mut self, client: &Client) {
        let consistency = self.draw.consistency();
        self.read_at(client, consistency).await;
    }

    async fn read_at(&mut self, client: &Client, consistency: Consistency) {
        let reads = self.draw.reads();
        let (id, called) = (self.scribe.number(), self.scribe.now());
        let result = client.read(reads.clone()).consistency(consistency).await;
        let answer = result.map_or_else(Answer::of_error, Answer::Read);
        self.end("read", id, called, Request::Read { reads, consistency }, answer);
    }

    /// Reads keys and a range, and writes what depends on them. Each attempt is a call of its own: of all but
    /// the last nothing is told, and their guards should have failed.
    async fn transact(&mut self, client: &Client) {
        let keys: Vec<Key> = (0..self.draw.random().between(1, 2))
            .map(|_| self.draw.shared())
            .collect();
        let range = self.draw.random().one_in(2).then(|| KeyRange::prefix("num/"));
        let target = self.draw.shared();
        let attempts: Arc<Mutex<Vec<Attempt>>> = Arc::default();
        let scribe = &self.scribe;
        let result = client
            .try_transact(|transaction: Transaction| {
                let (id, called) = (scribe.number(), scribe.now());
                let attempt = Attempt {
                    id,
                    called,
                    ..Attempt::default()
                };
                let (keys, range, target) = (keys.clone(), range.clone(), target.clone());
                let attempts = Arc::clone(&attempts);
                lock(&attempts).push(attempt);
                async move {
                    let of_key = async |key: Key| {
                        let record = transaction.record(key.clone()).await?;
                        last(&attempts, |attempt| attempt.keys.push((key, record)));
                        Ok::<_, Error>(())
                    };
                    if let Some(range) = range {
                        // At once: each could choose a revision for all of them.
                        let of_range = async {
                            let records = transaction.records(range.clone()).await?;
                            last(&attempts, |attempt| attempt.ranges.push((range, records)));
                            Ok(())
                        };
                        try_join(of_range, try_join_all(keys.into_iter().map(of_key))).await?;
                    } else {
                        for key in keys {
                            of_key(key).await?;
                        }
                    }
                    let (value, none) = (id.value(0), key("none"));
                    let sequenced = Op::PutSequence {
                        prefix: key("seq/0/"),
                        value: value.clone(),
                    };
                    let ops = [
                        Op::put(target.clone(), value.clone()),
                        sequenced.clone(),
                        Op::delete(none.clone()),
                    ];
                    last(&attempts, |attempt| attempt.ops.extend(ops));
                    transaction.put(target, value)?;
                    transaction.op(sequenced)?;
                    transaction.delete(none)
                }
            })
            .await;
        let mut attempts = std::mem::take(&mut *lock(&attempts));
        let Some(final_one) = attempts.pop() else {
            return;
        };
        for attempt in attempts {
            let Attempt {
                id,
                called,
                keys,
                ranges,
                ops,
            } = attempt;
            let answer = Answer::Unknown("another attempt followed".to_owned());
            self.scribe
                .note(id, None, called, Request::Transact { keys, ranges, ops }, answer);
        }
        let Attempt {
            id,
            called,
            keys,
            ranges,
            ops,
        } = final_one;
        let answer = match result {
            Ok(Transacted {
                response: Some(response),
                ..
            }) => Answer::Txn(response),
            Ok(other) => Answer::Unknown(format!("it wrote nothing: {other:?}")),
            // A closure that did not return wrote nothing.
            Err(TransactError::Aborted(error)) => match error {
                Error::OutcomeUnknown(unknown) => Answer::Unknown(unknown.reason),
                error => Answer::Failed(error),
            },
            // Its last attempt may stand in the log with a guard that did not hold: it ran, and wrote nothing.
            Err(TransactError::Client(error @ (Error::Unavailable { .. } | Error::OutcomeUnknown(_)))) => {
                Answer::Unknown(error.to_string())
            }
            Err(TransactError::Client(error)) => Answer::of_error(error),
            Err(other) => Answer::Unknown(other.to_string()),
        };
        self.end(
            "transact",
            id,
            called,
            Request::Transact { keys, ranges, ops },
            answer,
        );
    }

    /// What no store takes: refused by the client that knows the limits, or by the node where it does not.
    async fn too_large(&mut self, client: &Client) {
        let id = self.scribe.number();
        let called = self.scribe.now();
        let lax = self.draw.random().one_in(2);
        let result = if lax {
            let value = id.value(Limits::default().value_bytes_max);
            let txn = Txn::new([Op::put(self.draw.shared(), value)]);
            let client = self.clients.lax.with_deadline(self.style.deadline * 4);
            client.commit(tag(txn, id)).await
        } else {
            let txn = self.draw.oversized(id, &Limits::default());
            client.commit(tag(txn, id)).await
        };
        let answer = result.map_or_else(Answer::of_error, Answer::Txn);
        // Only its number matters, that it would have grown the store, and that it never ran.
        let small = Txn::new([Op::put(key("too-large"), id.value(0))]);
        let request = Request::Txn(tag(small, id));
        self.end(
            if lax {
                "txn beyond the node's limits"
            } else {
                "txn beyond the limits"
            },
            id,
            called,
            request,
            answer,
        );
    }
}

/// One attempt of a closure.
#[derive(Debug)]
struct Attempt {
    id: CallId,
    called: Duration,
    keys: Vec<(Key, Option<Record>)>,
    ranges: Vec<(KeyRange, Vec<KeyValue>)>,
    ops: Vec<Op>,
}

impl Default for Attempt {
    fn default() -> Self {
        Self {
            id: CallId { client: 0, number: 0 },
            called: Duration::ZERO,
            keys: Vec::new(),
            ranges: Vec::new(),
            ops: Vec::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last(attempts: &Mutex<Vec<Attempt>>, change: impl FnOnce(&mut Attempt)) {
    if let Some(attempt) = lock(attempts).last_mut() {
        change(attempt);
    }
}

/// Reads everything at one revision, page by page.
pub async fn read_all(client: &Client, at: Option<Revision>) -> Result<(Revision, Vec<KeyValue>), Error> {
    let mut all: Vec<KeyValue> = Vec::new();
    let mut at = at;
    loop {
        let range = match all.last() {
            None => KeyRange::all(),
            Some(last) => KeyRange::starting_at([last.key.as_bytes(), b"\0"].concat()),
        };
        let consistency = at.map_or(Consistency::Linearizable, Consistency::At);
        let read = ReadOp::Range(RangeRead::new(range).limit(u32::MAX));
        let response = client.read(vec![read]).consistency(consistency).await?;
        at = Some(response.revision);
        match response.results.into_iter().next() {
            Some(ReadResult::Range { records, more, .. }) => {
                all.extend(records);
                if !more {
                    return Ok((response.revision, all));
                }
            }
            other => {
                return Err(Error::Rejected {
                    node: None,
                    reason: format!("a range was answered with {other:?}"),
                });
            }
        }
    }
}

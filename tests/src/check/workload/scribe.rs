//! Numbers calls and writes them down: who calls through here cannot forget to.
//!
//! Also a [`Store`], so that what the metadata's client asks of the store is numbered and judged as any other
//! call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_kv::Client;
use quorate_kv::model::{Consistency, ReadOp, ReadResponse, Txn, TxnResponse};
use quorate_meta::{Store, StoreError};

use crate::check::history::{Answer, Call, CallId, History, MetaCall, Request, tag};
use crate::check::taps::Clock;

/// How the calls of one kind ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered.
    pub done: u64,
    /// Refused by the store's or the metadata's rules, or by a limit.
    pub refused: u64,
    /// Failed for certain.
    pub failed: u64,
    /// Nobody knows.
    pub unknown: u64,
}

/// What one call of a kind came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Answered.
    Done,
    /// Refused by the rules or by a limit.
    Refused,
    /// Failed for certain.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// What all callers of a run saw. Cheap to clone; clones are one book.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    history: History,
    tallies: BTreeMap<&'static str, Tally>,
    longest_gap: Gap,
}

/// A time in which a caller had no answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// How long.
    pub lasted: Duration,
    /// When it ended.
    pub until: Duration,
    /// Whose.
    pub client: u32,
}

impl Book {
    /// What was written so far.
    pub fn history(&self) -> History {
        self.pages().history.clone()
    }

    /// How the calls of each kind ended so far, by the name of the method that was called.
    pub fn tallies(&self) -> BTreeMap<&'static str, Tally> {
        self.pages().tallies.clone()
    }

    /// How many calls of all kinds ended so.
    pub fn total(&self, ended: Ended) -> u64 {
        let count = |tally: &Tally| match ended {
            Ended::Done => tally.done,
            Ended::Refused => tally.refused,
            Ended::Failed => tally.failed,
            Ended::Unknown => tally.unknown,
        };
        self.pages().tallies.values().map(count).sum()
    }

    /// The longest that a caller waited from one answer to the next.
    pub fn longest_gap(&self) -> Gap {
        self.pages().longest_gap
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One caller's pen.
#[derive(Clone)]
pub struct Scribe {
    client: u32,
    clock: Clock,
    book: Book,
    next: Arc<AtomicU64>,
}

impl Scribe {
    /// The pen of the caller of this number, which no other may have.
    pub fn new(client: u32, clock: Clock, book: Book) -> Self {
        let next = Arc::default();
        Self {
            client,
            clock,
            book,
            next,
        }
    }

    /// The number of the next call.
    pub fn number(&self) -> CallId {
        let (client, number) = (self.client, self.next.fetch_add(1, Ordering::Relaxed));
        CallId { client, number }
    }

    /// The time.
    pub fn now(&self) -> Duration {
        (self.clock)()
    }

    /// Writes down a call that ends now.
    pub fn note(
        &self,
        id: CallId,
        parent: Option<CallId>,
        called: Duration,
        request: Request,
        answer: Answer,
    ) {
        let answered = self.now();
        let call = Call {
            id,
            parent,
            called,
            answered,
            request,
            answer,
        };
        self.book.pages().history.calls.push(call);
    }

    /// Writes down a call of the metadata's client.
    pub fn note_meta(&self, call: MetaCall) {
        self.book.pages().history.meta.push(call);
    }

    /// Counts how a call of a method ended.
    pub fn tally(&self, method: &'static str, ended: Ended) {
        let mut pages = self.book.pages();
        let tally = pages.tallies.entry(method).or_default();
        *match ended {
            Ended::Done => &mut tally.done,
            Ended::Refused => &mut tally.refused,
            Ended::Failed => &mut tally.failed,
            Ended::Unknown => &mut tally.unknown,
        } += 1;
    }

    /// Notes how long the caller had no answer.
    pub fn waited(&self, gap: Duration) {
        let mut pages = self.book.pages();
        if gap > pages.longest_gap.lasted {
            pages.longest_gap = Gap {
                lasted: gap,
                until: self.now(),
                client: self.client,
            };
        }
    }
}

/// How an answer counts.
pub fn ended(answer: &Answer) -> Ended {
    use quorate_kv::client::Error as E;
    match answer {
        Answer::Txn(_)
        | Answer::Written(_)
        | Answer::Deleted(_)
        | Answer::Read(_)
        | Answer::Record(_)
        | Answer::Records(_)
        | Answer::Compacted(_)
        | Answer::Limits(_) => Ended::Done,
        Answer::Refused(_)
        | Answer::Failed(E::InvalidKey(_) | E::InvalidTxn(_) | E::InvalidRead(_) | E::Rejected { .. }) => {
            Ended::Refused
        }
        Answer::Failed(_) => Ended::Failed,
        Answer::Unknown(_) => Ended::Unknown,
    }
}

/// The store as one call of the metadata's client sees it.
#[derive(Clone)]
pub struct Recorded {
    /// The client that asks.
    pub client: Client,
    /// Who writes it down.
    pub scribe: Scribe,
    /// The call on whose behalf.
    pub parent: CallId,
}

impl Store for Recorded {
    fn one_operation(&self) -> Option<Self> {
        Some(Self {
            client: self.client.for_one_operation(),
            ..self.clone()
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, StoreError> {
        let (id, called) = (self.scribe.number(), self.scribe.now());
        let txn = tag(txn, id);
        let result = self.client.commit(txn.clone()).await;
        let answer = match &result {
            Ok(response) => Answer::Txn(response.clone()),
            Err(error) => Answer::of_error(error.clone()),
        };
        self.scribe
            .note(id, Some(self.parent), called, Request::Txn(txn), answer);
        result.map_err(StoreError::from)
    }

    async fn read(&self, reads: Vec<ReadOp>, consistency: Consistency) -> Result<ReadResponse, StoreError> {
        let (id, called) = (self.scribe.number(), self.scribe.now());
        let result = self.client.read(reads.clone()).consistency(consistency).await;
        let answer = match &result {
            Ok(response) => Answer::Read(response.clone()),
            Err(error) => Answer::of_error(error.clone()),
        };
        self.scribe.note(
            id,
            Some(self.parent),
            called,
            Request::Read { reads, consistency },
            answer,
        );
        result.map_err(StoreError::from)
    }
}

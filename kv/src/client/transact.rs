//! Optimistic transactions: a closure that reads and writes, run again when what it read has changed.
//!
//! Always: all reads of an attempt are at one revision, however the closure makes them: one of them, linearizable,
//! decides it, and the others are made at it. Whatever a read told the closure is part of the guard before the closure
//! hears it. An attempt that has ended takes nothing more in.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::backoff::Backoff;
use super::{Client, Error, Time};
use crate::model::{
    Compare, Consistency, Guard, Key, KeyRange, KeyTest, KeyValue, Op, RangeRead, RangeTest, ReadOp,
    ReadResponse, ReadResult, Record, Revision, Txn, TxnResponse, Value,
};
use crate::planted::{self, Bug};

/// Reads and writes of one attempt. Reads see one revision, however many are made at once, and the attempt's own writes
/// are not read back.
///
/// A clone is the same attempt. Once the closure has returned, every method answers [`Error::TransactionEnded`], also
/// that of a clone in a task of its own, and a read that was under way then.
#[derive(Clone, Debug)]
pub struct Transaction {
    attempt: Arc<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    client: Client,
    time: Time,
    /// The revision that one read saw; all others are made at it.
    revision: OnceCell<Revision>,
    /// `None` once the closure has returned.
    recorded: Mutex<Option<Recorded>>,
}

/// What the closure was told, and what it asked for.
#[derive(Debug, Default)]
struct Recorded {
    keys: BTreeMap<Key, Option<Revision>>,
    ranges: Vec<(KeyRange, u64)>,
    ops: Vec<Op>,
    /// A call that failed: what a read would have told is no part of the guard, and what was to be written is missing.
    failed: Option<Error>,
}

/// Why a transaction closure was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactError<E> {
    /// The closure gave up.
    #[error("the transaction was given up: {0}")]
    Aborted(E),
    /// The client's error: of the commit, or of a read or a write that failed though the closure went on without it.
    #[error(transparent)]
    Client(#[from] Error),
}

impl Client {
    /// Runs `attempt` until what it read is unchanged at the moment of its commit.
    ///
    /// Its reads become guards: a key by its revision, a range by its count and by the revisions of all its
    /// keys, so that no phantom slips in. They may be made one after the other or at once. Nothing is written before it
    /// returns `Ok`, and nothing where one of its reads or writes had failed, whatever the closure made of that. The deadline is for all attempts together, their
    /// reads included.
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn transact<T, E, F, Fut>(&self, mut attempt: F) -> Result<(T, TxnResponse), TransactError<E>>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let time = self.time();
        let mut pause = Backoff::of_conflicts();
        loop {
            let transaction = Transaction::begin(self.clone(), time);
            let result = attempt(transaction.clone()).await;
            let again = match (result, transaction.end()) {
                // What it was told is whole, and what it would still have read is gone: the next one reads newer.
                (_, Err(Error::Compacted { oldest })) => {
                    format!("the history before revision {oldest} went while the transaction read it")
                }
                (Err(given_up), _) => return Err(TransactError::Aborted(given_up)),
                (Ok(_), Err(read)) => return Err(read.into()),
                (Ok(result), Ok(txn)) => {
                    let response = self.inner.txn(txn, time).await?;
                    if response.succeeded {
                        return Ok((result, response));
                    }
                    "what the transaction read has changed".to_owned()
                }
            };
            if !pause.wait(false, time.end).await {
                return Err(time.is_over(again).into());
            }
        }
    }
}

impl Transaction {
    fn begin(client: Client, time: Time) -> Self {
        let attempt = Attempt {
            client,
            time,
            revision: OnceCell::new(),
            recorded: Mutex::new(Some(Recorded::default())),
        };
        Self {
            attempt: Arc::new(attempt),
        }
    }

    /// Reads a key. Cancel safe.
    pub async fn get<K>(&self, key: K) -> Result<Option<Record>, Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        let key = self.key(key)?;
        let record = match self.read(ReadOp::Get(key.clone())).await? {
            ReadResult::Get(record) => record,
            ReadResult::Range { .. } => return Err(self.fails(mixed_up("a get", "a range"))),
        };
        let seen = record.as_ref().map(|record| record.mod_revision);
        self.record(|recorded| recorded.keys.insert(key, seen))?;
        Ok(record)
    }

    /// Reads a range whole, page by page. Cancel safe.
    pub async fn range(&self, range: KeyRange) -> Result<Vec<KeyValue>, Error> {
        let mut found: Vec<KeyValue> = Vec::new();
        let mut rest = range.clone();
        loop {
            let read = self.read(ReadOp::Range(RangeRead::new(rest))).await?;
            let ReadResult::Range { records, more, .. } = read else {
                return Err(self.fails(mixed_up("a range", "a get")));
            };
            found.extend(records);
            let Some(last) = found.last().filter(|_| more) else {
                break;
            };
            let mut start = last.key.as_bytes().to_vec();
            start.push(0);
            rest = match range.end() {
                Some(end) => KeyRange::new(start, end.to_vec()),
                None => KeyRange::from(start),
            };
        }
        let count = found.len() as u64;
        self.record(|recorded| recorded.ranges.push((range, count)))?;
        Ok(found)
    }

    /// Writes a key when the transaction commits.
    pub fn put<K>(&self, key: K, value: impl Into<Value>) -> Result<(), Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.op(Op::put(self.key(key)?, value))
    }

    /// Deletes a key when the transaction commits.
    pub fn delete<K>(&self, key: K) -> Result<(), Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        self.op(Op::delete(self.key(key)?))
    }

    fn key<K>(&self, key: K) -> Result<Key, Error>
    where
        K: TryInto<Key>,
        Error: From<K::Error>,
    {
        key.try_into().map_err(|error| self.fails(error.into()))
    }

    /// Any operation, when the transaction commits.
    pub fn op(&self, op: Op) -> Result<(), Error> {
        self.record(|recorded| recorded.ops.push(op))
    }

    /// One read, at the revision of this attempt.
    async fn read(&self, read: ReadOp) -> Result<ReadResult, Error> {
        let read_at = async |consistency| {
            let Attempt { client, time, .. } = &*self.attempt;
            client.inner.read(vec![read.clone()], consistency, *time).await
        };
        self.record(|_| ())?;
        let mut decided: Option<ReadResponse> = None;
        let response = async {
            if planted::is(Bug::TransactReadsApart) && !self.attempt.revision.initialized() {
                let response = read_at(Consistency::Linearizable).await?;
                // Another one that was made at once may have been faster.
                let _ = self.attempt.revision.set(response.revision);
                return Ok(response);
            }
            // One at a time: who waits here is made at the revision of whoever went before, or decides it where that
            // one failed or was dropped.
            let revision = self.attempt.revision.get_or_try_init(|| async {
                let response = read_at(Consistency::Linearizable).await?;
                let revision = response.revision;
                decided = Some(response);
                Ok::<_, Error>(revision)
            });
            let revision = *revision.await?;
            match decided {
                Some(response) => Ok(response),
                None => read_at(Consistency::At(revision)).await,
            }
        };
        let result = response.await.and_then(|response| {
            let first = response.results.into_iter().next();
            first.ok_or_else(|| mixed_up("a read", "nothing"))
        });
        result.map_err(|error| self.fails(error))
    }

    /// The attempt goes on without what a read would have told, or a write would have done: it must not commit.
    fn fails(&self, error: Error) -> Error {
        // After its end it commits nothing anyway. The first one tells why.
        let _ended = self.record(|recorded| {
            recorded.failed.get_or_insert_with(|| error.clone());
        });
        error
    }

    fn record<T>(&self, record: impl FnOnce(&mut Recorded) -> T) -> Result<(), Error> {
        let mut recorded = self.lock();
        record(recorded.as_mut().ok_or(Error::TransactionEnded)?);
        Ok(())
    }

    /// Ends the attempt: what it asked for, guarded by what it was told; or the read that failed.
    fn end(&self) -> Result<Txn, Error> {
        let recorded = self.lock().take().unwrap_or_default();
        let Recorded {
            keys,
            ranges,
            ops,
            failed,
        } = recorded;
        if let Some(error) = failed {
            return Err(error);
        }
        let revision = self.attempt.revision.get().copied();
        let keys = keys
            .into_iter()
            .map(|(key, revision)| Guard::unchanged(key, revision));
        let ranges = ranges.into_iter().flat_map(|(range, count)| {
            let unchanged = KeyTest::ModRevision(Compare::LessOrEqual, revision);
            [
                Guard::range(range.clone(), RangeTest::Count(Compare::Equal, count)),
                Guard::range(range, RangeTest::All(unchanged)),
            ]
        });
        Ok(Txn::new(ops).when(Guard::all(keys.chain(ranges))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Recorded>> {
        self.attempt
            .recorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn mixed_up(asked: &str, answered: &str) -> Error {
    Error::Rejected {
        reason: format!("{asked} was answered with {answered}"),
    }
}

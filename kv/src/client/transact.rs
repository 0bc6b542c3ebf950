//! Optimistic transactions: a closure that reads and writes, run again when what it read has changed.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Backoff, Client, Error, Setback};
use crate::env;
use crate::model::{
    Compare, Consistency, Guard, Key, KeyRange, KeyTest, KeyValue, Op, RangeRead, RangeTest, ReadOp,
    ReadResult, Record, Revision, Txn, TxnResponse, Value,
};

/// Reads and writes of one attempt. Reads see one revision and the attempt's own writes are not read back.
#[derive(Clone, Debug)]
pub struct Transaction {
    client: Client,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The revision that the first read saw; all later ones are made at it.
    revision: Option<Revision>,
    keys: BTreeMap<Key, Option<Revision>>,
    ranges: Vec<(KeyRange, u64)>,
    ops: Vec<Op>,
}

/// Why a transaction closure was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactError<E> {
    /// The closure gave up.
    #[error("the transaction was given up: {0}")]
    Aborted(E),
    /// The client's error.
    #[error(transparent)]
    Client(#[from] Error),
}

impl Client {
    /// Runs `attempt` until what it read is unchanged at the moment of its commit.
    ///
    /// Its reads become guards: a key by its revision, a range by its count and by the revisions of all its
    /// keys, so that no phantom slips in. Nothing is written before it returns `Ok`.
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn transact<T, E, F, Fut>(&self, mut attempt: F) -> Result<(T, TxnResponse), TransactError<E>>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let end = env::now() + self.deadline;
        let mut pause = Backoff::of_conflicts();
        loop {
            let transaction = Transaction {
                client: self.clone(),
                state: Arc::default(),
            };
            let result = attempt(transaction.clone())
                .await
                .map_err(TransactError::Aborted)?;
            // The deadline is the caller's for all attempts together.
            let rest = self.with_deadline(end.since(env::now()));
            let response = rest.txn(transaction.into_txn()).await?;
            if response.succeeded {
                return Ok((result, response));
            }
            let setback = Setback {
                reason: "what the transaction read has changed".to_owned(),
                redirected: false,
            };
            if !pause.wait(&setback, end).await {
                let error = Error::Unavailable {
                    deadline: self.deadline,
                    last: setback.reason,
                };
                return Err(error.into());
            }
        }
    }
}

impl Transaction {
    /// Reads a key.
    pub async fn get(&self, key: Key) -> Result<Option<Record>, Error> {
        let read = self.read(ReadOp::Get(key.clone())).await?;
        let ReadResult::Get(record) = read else {
            return Err(Error::Rejected {
                reason: "a get was answered with a range".to_owned(),
            });
        };
        self.lock()
            .keys
            .insert(key, record.as_ref().map(|r| r.mod_revision));
        Ok(record)
    }

    /// Reads a range whole, page by page.
    pub async fn range(&self, range: KeyRange) -> Result<Vec<KeyValue>, Error> {
        let mut found: Vec<KeyValue> = Vec::new();
        let mut rest = range.clone();
        loop {
            let read = self.read(ReadOp::Range(RangeRead::new(rest.clone()))).await?;
            let ReadResult::Range { records, more, .. } = read else {
                return Err(Error::Rejected {
                    reason: "a range was answered with a get".to_owned(),
                });
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
        self.lock().ranges.push((range, found.len() as u64));
        Ok(found)
    }

    /// Writes a key when the transaction commits.
    pub fn put(&self, key: Key, value: impl Into<Value>) {
        self.op(Op::put(key, value));
    }

    /// Deletes a key when the transaction commits.
    pub fn delete(&self, key: Key) {
        self.op(Op::delete(key));
    }

    /// Any operation, when the transaction commits.
    pub fn op(&self, op: Op) {
        self.lock().ops.push(op);
    }

    async fn read(&self, read: ReadOp) -> Result<ReadResult, Error> {
        let consistency = match self.lock().revision {
            Some(revision) => Consistency::At(revision),
            None => Consistency::Linearizable,
        };
        let response = self.client.read(vec![read], consistency).await?;
        self.lock().revision.get_or_insert(response.revision);
        response.results.into_iter().next().ok_or(Error::Rejected {
            reason: "an empty answer".to_owned(),
        })
    }

    fn into_txn(self) -> Txn {
        let mut state = self.lock();
        let State {
            revision,
            keys,
            ranges,
            ops,
        } = std::mem::take(&mut *state);
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
        Txn::new(ops).when(Guard::all(keys.chain(ranges)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

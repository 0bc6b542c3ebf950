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
use super::own::Own;
use super::read::mixed_up;
use super::{Client, Error, Time};
use crate::model::{
    Compare, Consistency, Guard, IntoValue, Key, KeyRange, KeyTest, KeyValue, Op, Order, Place, RangeExcess,
    RangeRead, RangeTest, ReadOp, ReadResponse, ReadResult, Record, Revision, Txn, TxnResponse, Value,
    check_op,
};
use crate::planted::{self, Bug};

/// Reads and writes of one attempt of a [`transact`](Client::transact).
///
/// Reads see one revision of the store, however many are made at once, and over it what the attempt itself has written so far.
/// Writes are recorded, and made when the closure has returned.
///
/// ```no_run
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// let taken = client
///     .transact(async |t| {
///         let waiting = t.prefix("waiting/").await?;
///         for (key, _) in &waiting {
///             t.delete(key)?;
///         }
///         t.add("taken", waiting.len() as i64)?;
///         Ok(waiting)
///     })
///     .await?;
/// println!("{} jobs, which nobody else has taken", taken.len());
/// # Ok(()) }
/// ```
///
/// The errors of its reads are those of a [`Read`](super::Read). Whatever the closure makes of one, the transaction commits nothing then.
///
/// A clone is the same attempt. Once the closure has returned nothing is read or written any more: what was in order until then answers
/// [`Error::TransactionEnded`], also of a clone in a task of its own, and a read that was under way.
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
    /// What the operations make of the store, for the attempt's own reads.
    own: Own,
    /// A call that failed: what a read would have told is no part of the guard, and what was to be written is missing.
    failed: Option<Error>,
}

/// What a transaction closure came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transacted<T> {
    /// What the closure returned.
    pub output: T,
    /// The revision that its writes made, or, where it wrote nothing, the revision that it read; `None` where it did neither.
    pub revision: Option<Revision>,
    /// What its operations answered, in the order in which they were recorded; `None` where it wrote nothing.
    pub response: Option<TxnResponse>,
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
    /// Runs `attempt` until what it read is unchanged at the moment of its commit: a read-modify-write that loses no update.
    ///
    /// Its reads become guards: a key by its revision, a range by its count and by the revisions of all its keys, so that no phantom
    /// slips in. They may be made one after the other or at once. Nothing is written before it returns `Ok`, and nothing where one
    /// of its reads or writes had failed, whatever the closure made of that. One that wrote nothing is not sent: its reads were of
    /// one revision. The deadline is for all attempts together, their reads included.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let left = client
    ///     .transact(async |t| {
    ///         let left = t.get("stock").await?.map_or(0, |stock| stock.len());
    ///         t.put("stock", vec![b'.'; left.saturating_sub(1)])?;
    ///         Ok(left)
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// A closure that gives up with an error of its own is for [`try_transact`](Self::try_transact).
    ///
    /// Durable on a majority when it returns, and carried out exactly once, however often the closure ran: let it do nothing else that
    /// counts.
    ///
    /// # Errors
    /// Those of a [`Write`](super::Write) and of a [`Read`](super::Read), and what the closure returned. [`Error::Unavailable`] where others
    /// changed what it read, each time, until the deadline: nothing was changed.
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn transact<T, F, Fut>(&self, attempt: F) -> Result<T, Error>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        match self.try_transact(attempt).await {
            Ok(transacted) => Ok(transacted.output),
            Err(TransactError::Aborted(error) | TransactError::Client(error)) => Err(error),
        }
    }

    /// The same for a closure that may give up with an error of its own, and with the revision in the answer.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use quorate_kv::client::{Error, TransactError};
    ///
    /// #[derive(Debug, thiserror::Error)]
    /// enum Withdrawal {
    ///     #[error("only {0} are left")]
    ///     TooLittle(i64),
    ///     #[error(transparent)]
    ///     Store(#[from] Error),
    /// }
    ///
    /// let withdrawn = client
    ///     .try_transact(async |t| {
    ///         let left = t.record("account").await?.and_then(|record| record.number()).unwrap_or(0);
    ///         if left < 7 {
    ///             return Err(Withdrawal::TooLittle(left));
    ///         }
    ///         t.put("account", left - 7)?;
    ///         Ok(left - 7)
    ///     })
    ///     .await;
    /// match withdrawn {
    ///     Ok(done) => println!("{} are left, at revision {:?}", done.output, done.revision),
    ///     Err(TransactError::Aborted(why)) => println!("{why}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`TransactError::Aborted`] with the closure's own: nothing was changed. Else [`TransactError::Client`], as for
    /// [`transact`](Self::transact).
    ///
    /// Cancel safety: a dropped call may still commit.
    pub async fn try_transact<T, E, F, Fut>(&self, mut attempt: F) -> Result<Transacted<T>, TransactError<E>>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let time = self.time();
        let mut pause = Backoff::of_conflicts();
        loop {
            let transaction = Transaction::begin(self.clone(), time);
            let result = attempt(transaction.clone()).await;
            let read_at = transaction.attempt.revision.get().copied();
            let again = match (result, transaction.end()) {
                // What it was told is whole, and what it would still have read is gone: the next one reads newer.
                (_, Err(Error::Compacted { oldest })) => {
                    format!("the history before revision {oldest} went while the transaction read it")
                }
                (Err(given_up), _) => return Err(TransactError::Aborted(given_up)),
                (Ok(_), Err(read)) => return Err(read.into()),
                (Ok(output), Ok(txn)) if txn.then.is_empty() => {
                    return Ok(Transacted {
                        output,
                        revision: read_at,
                        response: None,
                    });
                }
                (Ok(output), Ok(txn)) => {
                    let response = self.inner.txn(txn, time).await?;
                    if response.succeeded {
                        return Ok(Transacted {
                            output,
                            revision: Some(response.revision),
                            response: Some(response),
                        });
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

    /// The value of a key, with what this attempt has written so far; `None` where there is no such key. Cancel safe.
    ///
    /// # Errors
    /// A number that the attempt added to and that is none is refused here, as the commit would be.
    pub async fn get(&self, key: impl Into<Key>) -> Result<Option<Value>, Error> {
        let key = key.into();
        let mut own = None;
        self.note(|recorded| own = Some(recorded.own.of(&key)))?;
        let own = own.unwrap_or_default();
        let below = match own.hides_what_is_below() {
            true => None,
            false => self.record_of(&key).await?.map(|record| record.value),
        };
        own.over(below)
            .map_err(|refused| self.fails(refused.of(key).into()))
    }

    /// The record of a key as it was before this attempt, with its revisions. Cancel safe.
    pub async fn record(&self, key: impl Into<Key>) -> Result<Option<Record>, Error> {
        self.record_of(&key.into()).await
    }

    async fn record_of(&self, key: &Key) -> Result<Option<Record>, Error> {
        let record = match self.read(ReadOp::Get(key.clone())).await? {
            ReadResult::Get(record) => record,
            ReadResult::Range { .. } => return Err(self.fails(mixed_up("a get", "a range"))),
        };
        let seen = record.as_ref().map(|record| record.mod_revision);
        self.note(|recorded| recorded.keys.insert(key.clone(), seen))?;
        Ok(record)
    }

    /// The keys and values of a range, all of them, with what this attempt has written so far. Cancel safe.
    pub async fn range(&self, range: impl Into<KeyRange>) -> Result<Vec<(Key, Value)>, Error> {
        let range = range.into();
        let below = self.records(&range).await?;
        let mut found = BTreeMap::new();
        for KeyValue { key, record } in below {
            found.insert(key, Some(record.value));
        }
        let mut own = Vec::new();
        self.note(|recorded| own = recorded.own.within(&range, found.keys()))?;
        for (key, own) in own {
            let below = found.remove(&key).flatten();
            let value = own
                .over(below)
                .map_err(|refused| self.fails(refused.of(key.clone()).into()))?;
            found.insert(key, value);
        }
        let found = found.into_iter();
        Ok(found.filter_map(|(key, value)| Some((key, value?))).collect())
    }

    /// The same for the keys that begin with `prefix`. Cancel safe.
    pub async fn prefix(&self, prefix: impl Into<Key>) -> Result<Vec<(Key, Value)>, Error> {
        self.range(KeyRange::prefix(prefix)).await
    }

    /// The records of a range as they were before this attempt, with their revisions. Cancel safe.
    pub async fn records(&self, range: impl Into<KeyRange>) -> Result<Vec<KeyValue>, Error> {
        let range = range.into();
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
            rest = range.behind(last.key.as_bytes(), Order::Ascending);
        }
        let count = found.len() as u64;
        self.note(|recorded| recorded.ranges.push((range, count)))?;
        Ok(found)
    }

    /// Writes a key when the transaction commits.
    pub fn put(&self, key: impl Into<Key>, value: impl IntoValue) -> Result<(), Error> {
        self.op(Op::put(key, value))
    }

    /// Adds to a number when the transaction commits. It is not read, so that others may add to it meanwhile.
    pub fn add(&self, key: impl Into<Key>, delta: i64) -> Result<(), Error> {
        self.op(Op::add(key, delta))
    }

    /// Deletes a key when the transaction commits.
    pub fn delete(&self, key: impl Into<Key>) -> Result<(), Error> {
        self.op(Op::delete(key))
    }

    /// Deletes all keys of a range when the transaction commits. It is not read, so that what others put into it meanwhile goes too.
    pub fn delete_range(&self, range: impl Into<KeyRange>) -> Result<(), Error> {
        self.op(Op::delete_range(range, u32::MAX))
    }

    /// Any operation, when the transaction commits. The key of a [`PutSequence`](Op::PutSequence) is not known before, so it is not
    /// read back.
    ///
    /// # Errors
    /// One that is outside the limits is refused here already, and the transaction commits nothing then. A delete that may leave some of its range ([`Op::delete_some_of`]) is refused: what a later read should find is not known.
    pub fn op(&self, op: Op) -> Result<(), Error> {
        if let Op::DeleteRange {
            excess: RangeExcess::Leave,
            ..
        } = op
        {
            return Err(self.fails(Error::rejected(
                "a delete that may leave some of its range has no place in a transaction with reads",
            )));
        }
        let limits = &self.attempt.client.inner.limits;
        let mut checked = Ok(());
        self.note(|recorded| {
            checked = check_op(Place::Then(recorded.ops.len()), &op, limits).map(drop);
            if checked.is_ok() {
                recorded.own.take(&op);
                recorded.ops.push(op);
            }
        })?;
        checked.map_err(|refused| self.fails(refused.into()))
    }

    /// One read, at the revision of this attempt.
    async fn read(&self, read: ReadOp) -> Result<ReadResult, Error> {
        let read_at = async |consistency| {
            let Attempt { client, time, .. } = &*self.attempt;
            client.inner.read(vec![read.clone()], consistency, *time).await
        };
        self.note(|_| ())?;
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
    pub(crate) fn fails(&self, error: Error) -> Error {
        // After its end it commits nothing anyway. The first one tells why.
        let _ended = self.note(|recorded| {
            recorded.failed.get_or_insert_with(|| error.clone());
        });
        error
    }

    fn note<T>(&self, note: impl FnOnce(&mut Recorded) -> T) -> Result<(), Error> {
        let mut recorded = self.lock();
        note(recorded.as_mut().ok_or(Error::TransactionEnded)?);
        Ok(())
    }

    /// Ends the attempt: what it asked for, guarded by what it was told; or the read that failed.
    fn end(&self) -> Result<Txn, Error> {
        let recorded = self.lock().take().unwrap_or_default();
        let Recorded {
            keys,
            ranges,
            ops,
            own: _,
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

//! Writes: transactions, from the one-key calls to those that are put together step by step.
//!
//! Always: a call sends nothing before it is awaited; awaited, it happens once, however often it had to be sent.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Client, Error, OutcomeUnknown, Time};
use crate::model::{
    Guard, IntoValue, Key, KeyRange, Op, OpResult, Record, Revision, Txn, TxnResponse, Value,
};

/// A write that is made when it is awaited.
///
/// Durable on a majority when it returns, and carried out exactly once. Options count until it is first polled. Cancel safety: a call that
/// is dropped may still commit.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// use quorate_kv::client::Error;
///
/// match client.put("greeting", "hello").deadline(Duration::from_secs(2)).await {
///     Ok(revision) => println!("written at revision {revision}"),
///     // It may have happened. A put of the same value may be repeated; an addition may not.
///     Err(Error::OutcomeUnknown(unknown)) => println!("{unknown}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// - [`Error::InvalidTxn`]: a key or a value is outside the limits. Nothing was sent.
/// - [`Error::Refused`]: the store refused it: an existing key where none may be, an addition to what is no number, too much work.
/// - [`Error::NoSpace`], [`Error::DiskFull`]: it would let the store grow, and there is no room.
/// - [`Error::Unavailable`], [`Error::NotAdmitted`]: nobody took it before the deadline, or nobody ever will.
/// - [`Error::OutcomeUnknown`], [`Error::AnswerTooLarge`]: it may have been carried out, or it was. After all others nothing was
///   changed and nothing will be.
#[must_use = "a call does nothing until it is awaited"]
pub struct Write<'c, T> {
    client: &'c Client,
    txn: Txn,
    deadline: Duration,
    answer: Answer<T>,
    /// What was found wrong while it was described.
    refused: Option<Error>,
    under_way: UnderWay<'c, T>,
}

/// A call that was begun.
type UnderWay<'c, T> = Option<BoxFuture<'c, Result<T, Error>>>;

/// Makes of the transaction's answer what was asked for.
type Answer<T> = fn(TxnResponse) -> Result<T, Error>;

impl<T> fmt::Debug for Write<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write")
            .field("txn", &self.txn)
            .finish_non_exhaustive()
    }
}

impl<T> Write<'_, T> {
    /// How long this call may take, retries included; as long as the client says where nothing is given.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl<'c> Write<'c, Revision> {
    /// Answers also the record that the key had before.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let put = client.put("owner", "me").with_previous().await?;
    /// if let Some(previous) = put.previous {
    ///     println!("it was {:?} until revision {}", previous.value, put.revision);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn with_previous(self) -> Write<'c, Replaced> {
        self.with_get(|response| {
            let previous = first_record(&response)?;
            let revision = response.revision;
            Ok(Replaced { revision, previous })
        })
    }
}

impl<'c> Write<'c, bool> {
    /// Answers what was deleted; `None` where there was nothing.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// if let Some(owner) = client.delete("owner").with_previous().await? {
    ///     println!("it was {:?}", owner.text());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn with_previous(self) -> Write<'c, Option<Record>> {
        self.with_get(|response| first_record(&response))
    }
}

impl<'c, T> Write<'c, T> {
    /// The same call, which fails with this error and sends nothing.
    pub(crate) fn refused(mut self, error: Error) -> Self {
        self.refused = Some(error);
        self
    }

    /// The same with a read of the key before it is written.
    fn with_get<U>(self, answer: Answer<U>) -> Write<'c, U> {
        let mut txn = self.txn;
        let key = match txn.then.first() {
            Some(Op::Put { key, .. } | Op::Delete { key }) => Some(key.clone()),
            _ => None,
        };
        txn.then.splice(0..0, key.map(Op::get));
        Write {
            client: self.client,
            txn,
            deadline: self.deadline,
            answer,
            refused: self.refused,
            under_way: None,
        }
    }
}

impl<'c, T: 'c> Future for Write<'c, T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self {
            client,
            txn,
            deadline,
            answer,
            refused,
            under_way,
        } = &mut *self;
        if let Some(refused) = refused {
            return Poll::Ready(Err(refused.clone()));
        }
        let under_way = under_way.get_or_insert_with(|| {
            let (client, txn, answer) = (*client, std::mem::take(txn), *answer);
            let time = client.time_of(*deadline);
            Box::pin(async move { answer(client.inner.txn(txn, time).await?) })
        });
        under_way.as_mut().poll(context)
    }
}

/// What a put answers that was asked for what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replaced {
    /// The revision of the put.
    pub revision: Revision,
    /// The record that it wrote over; `None` where the key is new.
    pub previous: Option<Record>,
}

/// What a conditional put answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the value may not have been written"]
pub enum Swap {
    /// The value was written, at this revision.
    Written(Revision),
    /// Nothing was written: the key is not as was expected, but this; `None` where it does not exist.
    Differs(Option<Record>),
}

impl Swap {
    /// Whether the value was written.
    pub fn is_written(&self) -> bool {
        matches!(self, Swap::Written(_))
    }
}

/// What a key is expected to be before it is written: its value, its revision, or that it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// The key does not exist.
    Missing,
    /// It has this value.
    Value(Value),
    /// It was last written at this revision: nobody has written it since, not even the same value.
    Revision(Revision),
}

impl Expected {
    fn guard(self, key: Key) -> Guard {
        match self {
            Expected::Missing => Guard::missing(key),
            Expected::Value(value) => Guard::value(key, value),
            Expected::Revision(revision) => Guard::unchanged(key, revision),
        }
    }
}

impl<V: IntoValue> From<V> for Expected {
    fn from(value: V) -> Self {
        Expected::Value(value.into_value())
    }
}

impl From<Revision> for Expected {
    fn from(revision: Revision) -> Self {
        Expected::Revision(revision)
    }
}

impl From<&Record> for Expected {
    fn from(record: &Record) -> Self {
        Expected::Revision(record.mod_revision)
    }
}

impl From<Option<&Record>> for Expected {
    fn from(record: Option<&Record>) -> Self {
        record.map_or(Expected::Missing, Expected::from)
    }
}

/// A transaction that is put together step by step, and made when it is awaited.
///
/// Its operations happen in the order written, all or none, where all its guards hold; else what [`or_else`](Self::or_else) says.
/// Exactly once; durable on a majority when it returns. Cancel safety: a call that is dropped may still commit.
///
/// ```no_run
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// use quorate_kv::model::{Guard, Op};
///
/// let answer = client
///     .txn()
///     .when(Guard::missing("jobs/7/owner"))
///     .put("jobs/7/owner", "me")
///     .add("jobs/owned", 1)
///     .or_else([Op::get("jobs/7/owner")])
///     .await?;
/// if !answer.succeeded {
///     println!("it is taken: {:?}", answer.results);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a call does nothing until it is awaited"]
pub struct TxnCall<'c> {
    /// Without its guard.
    write: Write<'c, TxnResponse>,
    guards: Vec<Guard>,
}

impl TxnCall<'_> {
    /// It happens only where this holds; of several guards all must.
    pub fn when(mut self, guard: Guard) -> Self {
        self.guards.push(guard);
        self
    }

    /// Writes a key.
    pub fn put(self, key: impl Into<Key>, value: impl IntoValue) -> Self {
        self.op(Op::put(key, value))
    }

    /// Adds to a number.
    pub fn add(self, key: impl Into<Key>, delta: i64) -> Self {
        self.op(Op::add(key, delta))
    }

    /// Deletes a key; a missing one is no error.
    pub fn delete(self, key: impl Into<Key>) -> Self {
        self.op(Op::delete(key))
    }

    /// Reads a key, as the operations before have left it.
    pub fn get(self, key: impl Into<Key>) -> Self {
        self.op(Op::get(key))
    }

    /// Any operation.
    pub fn op(mut self, op: Op) -> Self {
        self.write.txn.then.push(op);
        self
    }

    /// Any operations.
    pub fn ops(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.write.txn.then.extend(ops);
        self
    }

    /// What happens where a guard does not hold; nothing by default.
    pub fn or_else(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.write.txn.otherwise.extend(ops);
        self
    }

    /// How long this call may take, retries included; as long as the client says where nothing is given.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.write.deadline = deadline;
        self
    }

    /// The transaction as a value, for [`Client::commit`].
    pub fn build(mut self) -> Txn {
        self.join();
        self.write.txn
    }

    fn join(&mut self) {
        let mut guards = std::mem::take(&mut self.guards);
        match guards.len() {
            0 => {}
            1 => self.write.txn.guard = guards.swap_remove(0),
            _ => self.write.txn.guard = Guard::all(guards),
        }
    }
}

impl Future for TxnCall<'_> {
    type Output = Result<TxnResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.join();
        Pin::new(&mut self.write).poll(context)
    }
}

/// A delete of all keys of a range, made when it is awaited. Answers how many went.
///
/// Durable on a majority when it returns; one transaction, unless [`in_steps`](Self::in_steps) is asked for. Cancel safety: a call that is dropped may still
/// commit; in steps, some or all of them. The errors are those of a [`Write`].
#[must_use = "a call does nothing until it is awaited"]
pub struct DeleteRange<'c> {
    client: &'c Client,
    range: KeyRange,
    deadline: Duration,
    in_steps: bool,
    /// It is of an empty prefix.
    refused: bool,
    under_way: UnderWay<'c, u64>,
}

impl fmt::Debug for DeleteRange<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeleteRange")
            .field("range", &self.range)
            .field("in_steps", &self.in_steps)
            .finish_non_exhaustive()
    }
}

/// How many keys one step deletes.
const STEP: u32 = 1_000;

impl DeleteRange<'_> {
    /// How long the whole call may take, retries included; as long as the client says where nothing is given.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Deletes the lowest keys first, 1,000 in a transaction: for ranges of any size. Others see a part of the range gone, and what
    /// is put into it meanwhile may go too. After an error in a later step the outcome is unknown ([`Error::OutcomeUnknown`] with how many
    /// went): call it again.
    pub fn in_steps(mut self) -> Self {
        self.in_steps = true;
        self
    }
}

impl Future for DeleteRange<'_> {
    type Output = Result<u64, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self {
            client,
            range,
            deadline,
            in_steps,
            refused,
            under_way,
        } = &mut *self;
        if *refused {
            let reason = "an empty prefix is that of all keys: delete_range(..) deletes those";
            return Poll::Ready(Err(Error::rejected(reason)));
        }
        let under_way = under_way.get_or_insert_with(|| {
            Box::pin(delete(
                client,
                range.clone(),
                *in_steps,
                client.time_of(*deadline),
            ))
        });
        under_way.as_mut().poll(context)
    }
}

async fn delete(client: &Client, range: KeyRange, in_steps: bool, time: Time) -> Result<u64, Error> {
    let mut deleted = 0;
    loop {
        let op = match in_steps {
            true => Op::delete_some_of(&range, STEP),
            false => Op::delete_range(&range, u32::MAX),
        };
        let response = match client.inner.txn(Txn::new([op]), time).await {
            Ok(response) => response,
            // The steps before this one stand.
            Err(error) if deleted > 0 => {
                return Err(unknown(format!("{deleted} keys were deleted, and then: {error}")));
            }
            Err(error) => return Err(error),
        };
        let Some(OpResult::Deleted { count, more }) = response.results.first() else {
            return Err(answered_otherwise("a delete"));
        };
        deleted += count;
        if !more {
            return Ok(deleted);
        }
    }
}

impl Client {
    fn write<T>(&self, txn: Txn, answer: Answer<T>) -> Write<'_, T> {
        Write {
            client: self,
            txn,
            deadline: self.deadline,
            answer,
            refused: None,
            under_way: None,
        }
    }

    /// Begins a transaction, to which guards and operations are added. See [`TxnCall`].
    pub fn txn(&self) -> TxnCall<'_> {
        TxnCall {
            write: self.commit(Txn::default()),
            guards: Vec::new(),
        }
    }

    /// Runs a transaction that was put together before.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::{Guard, Op, Txn};
    ///
    /// let keys = ["a", "b", "c"];
    /// let txn = Txn::new(keys.map(|key| Op::put(key, "new"))).when(Guard::all(keys.map(Guard::missing)));
    /// let answer = client.commit(txn).await?;
    /// println!("all three, at revision {}: {}", answer.revision, answer.succeeded);
    /// # Ok(()) }
    /// ```
    pub fn commit(&self, txn: Txn) -> Write<'_, TxnResponse> {
        self.write(txn, Ok)
    }

    /// Writes a key. Answers the revision.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let id = 7;
    /// client.put(format!("jobs/{id}"), b"\x01\x02").await?;
    /// # Ok(()) }
    /// ```
    pub fn put(&self, key: impl Into<Key>, value: impl IntoValue) -> Write<'_, Revision> {
        self.write(Txn::new([Op::put(key, value)]), |response| Ok(response.revision))
    }

    /// Writes a key that must not exist.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let mine = client.put_if_absent("owner", "me").await?.is_written();
    /// # let _ = mine;
    /// # Ok(()) }
    /// ```
    pub fn put_if_absent(&self, key: impl Into<Key>, value: impl IntoValue) -> Write<'_, Swap> {
        self.compare_and_swap(key, Expected::Missing, value)
    }

    /// Writes a key where it is as expected: by its value, its revision or its record, or [`Expected::Missing`].
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::client::Swap;
    ///
    /// match client.compare_and_swap("state", "idle", "busy").await? {
    ///     Swap::Written(revision) => println!("written at revision {revision}"),
    ///     Swap::Differs(current) => println!("it is {current:?}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn compare_and_swap(
        &self,
        key: impl Into<Key>,
        expected: impl Into<Expected>,
        value: impl IntoValue,
    ) -> Write<'_, Swap> {
        let key = key.into();
        let guard = expected.into().guard(key.clone());
        let txn = Txn::new([Op::put(&key, value)])
            .when(guard)
            .or_else([Op::get(key)]);
        self.write(txn, |response| match response.succeeded {
            true => Ok(Swap::Written(response.revision)),
            false => first_record(&response).map(Swap::Differs),
        })
    }

    /// Deletes a key. Answers whether it existed.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let existed = client.delete("owner").await?;
    /// # let _ = existed;
    /// # Ok(()) }
    /// ```
    pub fn delete(&self, key: impl Into<Key>) -> Write<'_, bool> {
        self.write(Txn::new([Op::delete(key)]), |response| {
            Ok(matches!(
                response.results.first(),
                Some(OpResult::Deleted { count: 1.., .. })
            ))
        })
    }

    /// Deletes all keys of a range, all or none. Answers how many there were.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// client.delete_range("log/2025".."log/2026").await?;
    /// client.delete_prefix("cache/").in_steps().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`TxnRefused::TooMuchWork`](crate::model::TxnRefused::TooMuchWork) for a range of more keys than one transaction may delete:
    /// delete it [`in_steps`](DeleteRange::in_steps).
    pub fn delete_range(&self, range: impl Into<KeyRange>) -> DeleteRange<'_> {
        DeleteRange {
            client: self,
            range: range.into(),
            deadline: self.deadline,
            in_steps: false,
            refused: false,
            under_way: None,
        }
    }

    /// Deletes the keys that begin with `prefix`, as [`delete_range`](Self::delete_range) does. An empty prefix is refused, for it
    /// is that of all keys: `delete_range(..)` deletes those.
    pub fn delete_prefix(&self, prefix: impl Into<Key>) -> DeleteRange<'_> {
        let prefix = prefix.into();
        let refused = prefix.is_empty();
        DeleteRange {
            refused,
            ..self.delete_range(KeyRange::prefix(prefix))
        }
    }

    /// Adds to a number, and answers what it is then. A missing key counts as 0.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let visits = client.add("visits", 1).await?;
    /// let record = client.get("visits").await?.expect("it was just written");
    /// assert!(record.number() >= Some(visits));
    /// # Ok(()) }
    /// ```
    pub fn add(&self, key: impl Into<Key>, delta: i64) -> Write<'_, i64> {
        self.write(Txn::new([Op::add(key, delta)]), |response| {
            match response.results.first() {
                Some(OpResult::Number(number)) => Ok(*number),
                _ => Err(answered_otherwise("an addition")),
            }
        })
    }
}

/// What the get that a transaction begins with has found.
fn first_record(response: &TxnResponse) -> Result<Option<Record>, Error> {
    match response.results.first() {
        Some(OpResult::Get(record)) => Ok(record.clone()),
        _ => Err(answered_otherwise("a get in a transaction")),
    }
}

/// The transaction was carried out, but not told as it must be.
fn answered_otherwise(asked: &str) -> Error {
    unknown(format!("{asked} was answered with something else"))
}

fn unknown(reason: String) -> Error {
    OutcomeUnknown { node: None, reason }.into()
}

//! Reads: calls that are described first and made when they are awaited.
//!
//! Always: a call asks nothing before it is awaited, and what it reads is of one revision.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, StreamExt as _, try_unfold};

use super::{Client, Error, Time};
use crate::env::{self, GiveWay};
use crate::model::{
    Consistency, InvalidRead, Key, KeyRange, KeyValue, Order, RangeRead, ReadOp, ReadResponse, ReadResult,
    Record, Revision, check_reads,
};

/// How a read is made.
#[derive(Clone, Copy, Debug)]
struct How {
    consistency: Consistency,
    deadline: Duration,
}

impl How {
    /// The bounds of a stale read; none where it is another one.
    fn bounds(&self) -> (Option<Revision>, Option<Duration>) {
        match self.consistency {
            Consistency::Stale {
                min_revision,
                max_lag,
            } => (min_revision, max_lag),
            Consistency::Linearizable | Consistency::At(_) => (None, None),
        }
    }
}

/// The options that all reads have.
macro_rules! read_options {
    () => {
        /// Reads what the node that is asked has applied, however old: the fastest read, which asks no other node.
        pub fn stale(self) -> Self {
            self.consistency(Consistency::Stale {
                min_revision: None,
                max_lag: None,
            })
        }

        /// A stale read that is at most so old: everything that was acknowledged anywhere this long before the node took
        /// the read is in what it sees.
        pub fn max_lag(self, bound: Duration) -> Self {
            let (min_revision, _) = self.how.bounds();
            self.consistency(Consistency::Stale {
                min_revision,
                max_lag: Some(bound),
            })
        }

        /// A stale read that sees at least this revision: what this client has written, say. The node waits for it within the
        /// deadline.
        pub fn min_revision(self, revision: Revision) -> Self {
            let (_, max_lag) = self.how.bounds();
            self.consistency(Consistency::Stale {
                min_revision: Some(revision),
                max_lag,
            })
        }

        /// Reads the state as it was at this revision, exactly. The node waits for a revision to come, within the deadline;
        /// one that was compacted is refused with [`Error::Compacted`].
        pub fn at(self, revision: Revision) -> Self {
            self.consistency(Consistency::At(revision))
        }

        /// Reads with this consistency; with the client's where none is given.
        pub fn consistency(mut self, consistency: Consistency) -> Self {
            self.how.consistency = consistency;
            self
        }

        /// How long this call may take, retries included; as long as the client says where nothing is given.
        pub fn deadline(mut self, deadline: Duration) -> Self {
            self.how.deadline = deadline;
            self
        }
    };
}

/// A read that is made when it is awaited.
///
/// Linearizable, unless an option or the client says otherwise. Options count until it is first polled. Cancel safe.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// let record = client.get("greeting").await?;
/// let nearby = client.get("greeting").max_lag(Duration::from_millis(200)).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// - [`Error::InvalidRead`]: a key is outside the limits. Nothing was sent.
/// - [`Error::Unavailable`], [`Error::NotAdmitted`]: nobody answered before the deadline, or nobody ever will.
/// - [`Error::TooStale`]: nobody confirmed that the state is as new as [`max_lag`](Self::max_lag) asks for.
/// - [`Error::NotYet`], [`Error::Compacted`]: the revision that was asked for has not come, or its history is gone.
/// - [`Error::ReadTooLong`]: it took longer than one read may.
#[must_use = "a call does nothing until it is awaited"]
pub struct Read<'c, T> {
    client: &'c Client,
    reads: Vec<ReadOp>,
    how: How,
    answer: Answer<T>,
    /// What was found wrong while it was described.
    refused: Option<InvalidRead>,
    at: At<'c>,
}

/// Makes of the node's answer what was asked for.
pub(crate) type Answer<T> = fn(ReadResponse) -> Result<T, Error>;

/// How far a read is. What the node in this process has in memory is answered without any more memory.
enum At<'c> {
    Described,
    Begun(Time, GiveWay),
    Asking(BoxFuture<'c, Result<ReadResponse, Error>>),
}

impl<T> Read<'_, T> {
    read_options!();
}

impl<T> fmt::Debug for Read<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read")
            .field("reads", &self.reads)
            .field("how", &self.how)
            .finish_non_exhaustive()
    }
}

impl<T> Future for Read<'_, T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.at {
                At::Described => {
                    let time = this.client.time_of(this.how.deadline);
                    this.at = At::Begun(time, env::give_way());
                }
                At::Begun(time, give_way) => {
                    ready!(Pin::new(give_way).poll(context));
                    let (inner, consistency, time) = (&this.client.inner, this.how.consistency, *time);
                    let checked = this.refused.map_or(Ok(()), Err);
                    if let Err(refused) = checked.and_then(|()| check_reads(&this.reads, &inner.limits)) {
                        return Poll::Ready(Err(refused.into()));
                    }
                    if let Some(response) = inner.read_here(&this.reads, consistency, time) {
                        return Poll::Ready((this.answer)(response));
                    }
                    let reads = std::mem::take(&mut this.reads);
                    this.at = At::Asking(Box::pin(inner.ask_to_read(reads, consistency, time)));
                }
                At::Asking(asking) => {
                    let response = ready!(asking.as_mut().poll(context));
                    return Poll::Ready(response.and_then(this.answer));
                }
            }
        }
    }
}

/// A read of a range: awaited, it answers one [`Page`]; as a [`stream`](Self::stream), all records.
///
/// Its options, its errors and its cancel safety are those of a [`Read`].
///
/// ```no_run
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// let page = client.prefix("jobs/").limit(10).await?;
/// let newest = client.range("events/".."events0").descending().limit(1).await?;
///
/// let mut all = client.prefix("jobs/").stream();
/// while let Some(found) = all.next().await {
///     let found = found?;
///     println!("{} = {:?}", found.key, found.record.value);
/// }
/// # Ok(()) }
/// ```
#[must_use = "a call does nothing until it is awaited"]
pub struct Range<'c> {
    client: &'c Client,
    /// Its limit is that of a page.
    read: RangeRead,
    limit: Option<u32>,
    how: How,
    asking: Option<BoxFuture<'c, Result<Page, Error>>>,
}

impl fmt::Debug for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Range")
            .field("read", &self.read)
            .field("how", &self.how)
            .finish_non_exhaustive()
    }
}

impl Range<'_> {
    read_options!();

    /// At most so many records; 1,000 by default for a page, all for a stream. A page also ends at 1 MiB, where a record counts its
    /// key, its value and 64 bytes.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The highest key first.
    pub fn descending(mut self) -> Self {
        self.read.order = Order::Descending;
        self
    }

    /// Leaves the values out: they come back empty.
    pub fn keys_only(mut self) -> Self {
        self.read.keys_only = true;
        self
    }

    /// All records, page by page, at the revision of the first page: what is written meanwhile is not in it.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let mut newest_first = client.prefix("events/").descending().limit(5_000).stream();
    /// while let Some(event) = newest_first.next().await {
    ///     println!("{}", event?.key);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// Each page has the deadline of a call. Cancel safe: a stream that is dropped asks no more.
    ///
    /// # Errors
    /// The stream ends with its first error: [`Error::Compacted`] where reading took longer than history is kept.
    pub fn stream(self) -> Records {
        self.stream_within(None)
    }

    /// The same, all pages together within the deadline of one call.
    pub(crate) fn stream_at_once(self) -> Records {
        let time = self.client.time_of(self.how.deadline);
        self.stream_within(Some(time))
    }

    fn stream_within(self, time: Option<Time>) -> Records {
        let rest = Rest {
            client: self.client.clone(),
            read: self.read,
            how: self.how,
            time,
            left: self.limit,
            page: VecDeque::new(),
            is_over: false,
        };
        Records {
            stream: try_unfold(rest, Rest::next).boxed(),
        }
    }
}

impl Future for Range<'_> {
    type Output = Result<Page, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self {
            client,
            read,
            limit,
            how,
            asking,
        } = &mut *self;
        let asking = asking.get_or_insert_with(|| {
            let time = client.time_of(how.deadline);
            let read = read.clone().limit(limit.unwrap_or(RangeRead::LIMIT));
            Box::pin(page(client, read, how.consistency, time))
        });
        asking.as_mut().poll(context)
    }
}

async fn page(client: &Client, read: RangeRead, consistency: Consistency, time: Time) -> Result<Page, Error> {
    let reads = vec![ReadOp::Range(read.clone())];
    let response = client.inner.read(reads, consistency, time).await?;
    let revision = response.revision;
    let (records, more) = match one(response)? {
        ReadResult::Range { records, more, .. } => (records, more),
        ReadResult::Get(_) => return Err(mixed_up("a range", "a get")),
    };
    let rest = more.then(|| match records.last() {
        Some(last) => read.range.behind(last.key.as_bytes(), read.order),
        // Of none that were asked for.
        None => read.range,
    });
    Ok(Page {
        records,
        revision,
        rest,
    })
}

/// A part of a range: not all of it where [`rest`](Self::rest) says so. [`Range::stream`] gives all.
///
/// ```no_run
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// let first = client.prefix("jobs/").limit(100).await?;
/// if let Some(rest) = &first.rest {
///     let second = client.range(rest).at(first.revision).limit(100).await?;
///     println!("{} and {} records of one state", first.records.len(), second.records.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The records, in the order asked for.
    pub records: Vec<KeyValue>,
    /// The revision that they are of.
    pub revision: Revision,
    /// What of the range comes behind this page; `None` at the end. Read it with [`at`](Range::at) this page's revision, so that the
    /// pages are of one state, and in the same order ([`descending`](Range::descending)).
    pub rest: Option<KeyRange>,
}

impl IntoIterator for Page {
    type Item = KeyValue;
    type IntoIter = std::vec::IntoIter<KeyValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.records.into_iter()
    }
}

/// The records of a range, one after the other, all of one revision. Made by [`Range::stream`].
pub struct Records {
    stream: BoxStream<'static, Result<KeyValue, Error>>,
}

impl Records {
    /// The next record; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<KeyValue, Error>> {
        self.stream.next().await
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

impl Stream for Records {
    type Item = Result<KeyValue, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context)
    }
}

/// What a stream has still to give.
struct Rest {
    client: Client,
    read: RangeRead,
    how: How,
    /// Of all pages; of each its own where there is none.
    time: Option<Time>,
    /// How many records may still come, where that was said.
    left: Option<u32>,
    page: VecDeque<KeyValue>,
    is_over: bool,
}

impl Rest {
    async fn next(mut self) -> Result<Option<(KeyValue, Self)>, Error> {
        loop {
            if self.left == Some(0) {
                return Ok(None);
            }
            if let Some(record) = self.page.pop_front() {
                self.left = self.left.map(|left| left - 1);
                return Ok(Some((record, self)));
            }
            if self.is_over {
                return Ok(None);
            }
            self.read.limit = self.left.unwrap_or(RangeRead::LIMIT).min(RangeRead::LIMIT);
            let time = self
                .time
                .unwrap_or_else(|| self.client.time_of(self.how.deadline));
            let page = page(&self.client, self.read.clone(), self.how.consistency, time).await?;
            self.how.consistency = Consistency::At(page.revision);
            self.page = page.records.into();
            match page.rest {
                Some(rest) => self.read.range = rest,
                None => self.is_over = true,
            }
        }
    }
}

impl Client {
    pub(crate) fn reads<T>(&self, reads: Vec<ReadOp>, answer: Answer<T>) -> Read<'_, T> {
        Read {
            client: self,
            reads,
            how: self.how(),
            answer,
            refused: None,
            at: At::Described,
        }
    }

    fn how(&self) -> How {
        How {
            consistency: self.consistency,
            deadline: self.deadline,
        }
    }

    /// Reads a key: its record, or `None` where there is no such key.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// if let Some(record) = client.get("greeting").await? {
    ///     println!("{:?}, written at revision {}", record.value, record.mod_revision);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn get(&self, key: impl Into<Key>) -> Read<'_, Option<Record>> {
        self.reads(vec![ReadOp::Get(key.into())], record_of)
    }

    /// Whether a key exists. Its value is not sent.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// if !client.exists("schema").await? {
    ///     client.put("schema", 1).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn exists(&self, key: impl Into<Key>) -> Read<'_, bool> {
        let key = key.into();
        let mut read = RangeRead::new(KeyRange::key(&key)).limit(1);
        read.keys_only = true;
        // A range has no bounds of its own, the key that it is of has.
        let refused = check_reads(&[ReadOp::Get(key)], &self.inner.limits).err();
        let read = self.reads(vec![ReadOp::Range(read)], |response| match one(response)? {
            ReadResult::Range { records, .. } => Ok(!records.is_empty()),
            ReadResult::Get(_) => Err(mixed_up("a range", "a get")),
        });
        Read { refused, ..read }
    }

    /// How many keys there are in a range.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::KeyRange;
    ///
    /// let all = client.count(..).await?;
    /// let jobs = client.count(KeyRange::prefix("jobs/")).await?;
    /// # Ok(()) }
    /// ```
    pub fn count(&self, range: impl Into<KeyRange>) -> Read<'_, u64> {
        let mut read = RangeRead::new(range);
        read.count_only = true;
        self.reads(vec![ReadOp::Range(read)], |response| match one(response)? {
            ReadResult::Range { count, .. } => Ok(count),
            ReadResult::Get(_) => Err(mixed_up("a range", "a get")),
        })
    }

    /// Reads a range: `"a".."c"`, `"a"..`, `..`, or a [`KeyRange`].
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// for found in client.range("events/2025".."events/2026").keys_only().await? {
    ///     println!("{}", found.key);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn range(&self, range: impl Into<KeyRange>) -> Range<'_> {
        Range {
            client: self,
            read: RangeRead::new(range),
            limit: None,
            how: self.how(),
            asking: None,
        }
    }

    /// Reads the keys that begin with `prefix`.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// for found in client.prefix("jobs/").await? {
    ///     println!("{}: {:?}", found.key, found.record.text());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn prefix(&self, prefix: impl Into<Key>) -> Range<'_> {
        self.range(KeyRange::prefix(prefix))
    }

    /// The store's revision: that of its newest change. Now, unless the client's consistency is another one.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// let before = client.revision().await?;
    /// client.delete_prefix("tmp/").await?;
    /// // Exactly as it was.
    /// let deleted = client.prefix("tmp/").at(before).await?;
    /// # let _ = deleted;
    /// # Ok(()) }
    /// ```
    pub fn revision(&self) -> Read<'_, Revision> {
        self.reads(Vec::new(), |response| Ok(response.revision))
    }

    /// Runs reads that all see one revision.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::model::{RangeRead, ReadOp, ReadResult};
    ///
    /// let reads = [ReadOp::Get("owner".into()), ReadOp::Range(RangeRead::new("jobs/".."jobs0"))];
    /// let answer = client.read(reads).await?;
    /// if let [ReadResult::Get(owner), ReadResult::Range { records, .. }] = &answer.results[..] {
    ///     println!("{owner:?} has {} jobs at revision {}", records.len(), answer.revision);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn read(&self, reads: impl IntoIterator<Item = ReadOp>) -> Read<'_, ReadResponse> {
        self.reads(reads.into_iter().collect(), Ok)
    }
}

/// What the only get of a batch has found.
pub(crate) fn record_of(response: ReadResponse) -> Result<Option<Record>, Error> {
    match one(response)? {
        ReadResult::Get(record) => Ok(record),
        ReadResult::Range { .. } => Err(mixed_up("a get", "a range")),
    }
}

/// The result of the only read of a batch.
fn one(response: ReadResponse) -> Result<ReadResult, Error> {
    let first = response.results.into_iter().next();
    first.ok_or_else(|| mixed_up("a read", "nothing"))
}

pub(super) fn mixed_up(asked: &str, answered: &str) -> Error {
    Error::rejected(format!("{asked} was answered with {answered}"))
}

//! A table in the hands of a client, and of a transaction.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::key::{EncodeKey, EncodePrefix, TableKey, TableRange};
use super::{Table, ValueCodec, decode, encode};
use crate::client::record_of;
use crate::client::{Client, DeleteRange, Error, Range, Read, Records, Swap, Transaction, Write};
use crate::model::{KeyRange, KeyValue, ReadOp, Revision};

/// A row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry<K, V> {
    /// Its key.
    pub key: K,
    /// Its value.
    pub value: V,
    /// The revision that last wrote it.
    pub mod_revision: Revision,
}

/// A table and the client that asks. Made by [`Client::table`].
///
/// Order, durability and errors of its calls are those of a [`Read`] and of a [`Write`], and [`Error::InvalidValue`]: a value that the codec
/// cannot write (nothing is sent then), or a row that it cannot read.
pub struct Rows<'c, K, V, C> {
    client: &'c Client,
    table: Table<K, V, C>,
}

impl<K, V, C> fmt::Debug for Rows<'_, K, V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A table, to be read and written by this client.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::table::Table;
    ///
    /// const SEEN: Table<(String, u64), String> = Table::new("seen/");
    ///
    /// let seen = client.table(SEEN);
    /// seen.put(("ann", 3), &"at the door".to_owned()).await?;
    /// for row in seen.prefix(("ann",)).descending().limit(10).await? {
    ///     println!("{:?}: {}, since revision {}", row.key, row.value, row.mod_revision);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn table<K, V, C>(&self, table: Table<K, V, C>) -> Rows<'_, K, V, C> {
        Rows { client: self, table }
    }
}

impl<'c, K: TableKey, V, C: ValueCodec<V>> Rows<'c, K, V, C> {
    /// The value of a key; `None` where there is no such key. Cancel safe.
    pub fn get(&self, key: impl EncodeKey<K>) -> Read<'c, Option<V>> {
        let get = ReadOp::Get(self.table.key(key));
        self.client.reads(vec![get], |response| {
            let value = record_of(response)?.map(|record| decode::<V, C>(None, &record.value));
            value.transpose()
        })
    }

    /// Whether a key exists. Cancel safe.
    pub fn exists(&self, key: impl EncodeKey<K>) -> Read<'c, bool> {
        self.client.exists(self.table.key(key))
    }

    /// How many keys there are in a range. Cancel safe.
    pub fn count(&self, range: impl TableRange<K>) -> Read<'c, u64> {
        self.client.count(self.table.key_range(range))
    }

    /// The rows of a range, in the order of their keys: all of them, of one revision. Cancel safe.
    pub fn range(&self, range: impl TableRange<K>) -> RowRange<'c, K, V, C> {
        self.rows(self.table.key_range(range))
    }

    /// The rows of which the first fields of the key are these. Cancel safe.
    pub fn prefix(&self, fields: impl EncodePrefix<K>) -> RowRange<'c, K, V, C> {
        self.rows(self.table.prefix_range(fields))
    }

    fn rows(&self, range: KeyRange) -> RowRange<'c, K, V, C> {
        RowRange {
            range: Some(self.client.range(range)),
            table: self.table,
            under_way: None,
        }
    }

    /// Writes a row. Answers the revision. Cancel safety: a dropped call may still commit.
    pub fn put(&self, key: impl EncodeKey<K>, value: &V) -> Write<'c, Revision> {
        let key = self.table.key(key);
        match encode::<V, C>(&key, value) {
            Ok(value) => self.client.put(key, value),
            Err(refused) => self.client.put(key, "").refused(refused),
        }
    }

    /// Writes a row that must not exist. Cancel safety: a dropped call may still commit.
    pub fn put_if_absent(&self, key: impl EncodeKey<K>, value: &V) -> Write<'c, Swap> {
        let key = self.table.key(key);
        match encode::<V, C>(&key, value) {
            Ok(value) => self.client.put_if_absent(key, value),
            Err(refused) => self.client.put_if_absent(key, "").refused(refused),
        }
    }

    /// Deletes a row. Answers whether it existed. Cancel safety: a dropped call may still commit.
    pub fn delete(&self, key: impl EncodeKey<K>) -> Write<'c, bool> {
        self.client.delete(self.table.key(key))
    }

    /// Deletes the rows of a range. Answers how many there were. Cancel safety: a dropped call may still commit.
    pub fn delete_range(&self, range: impl TableRange<K>) -> DeleteRange<'c> {
        self.client.delete_range(self.table.key_range(range))
    }
}

/// What a read of rows comes to.
type Found<K, V> = Result<Vec<Entry<K, V>>, Error>;

/// A read of rows, made when it is awaited.
#[must_use = "a call does nothing until it is awaited"]
pub struct RowRange<'c, K, V, C> {
    /// Until it is begun.
    range: Option<Range<'c>>,
    table: Table<K, V, C>,
    under_way: Option<BoxFuture<'c, Found<K, V>>>,
}

impl<K, V, C> fmt::Debug for RowRange<'_, K, V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowRange")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl<'c, K, V, C> RowRange<'c, K, V, C> {
    /// At most so many rows.
    pub fn limit(self, limit: u32) -> Self {
        self.with(|range| range.limit(limit))
    }

    /// The highest key first.
    pub fn descending(self) -> Self {
        self.with(Range::descending)
    }

    /// From the state of the node that is asked, however old it is. See [`Range::stale`].
    pub fn stale(self) -> Self {
        self.with(Range::stale)
    }

    /// From a state that is at most so old. See [`Range::max_lag`].
    pub fn max_lag(self, bound: Duration) -> Self {
        self.with(|range| range.max_lag(bound))
    }

    /// As the rows were at this revision. See [`Range::at`].
    pub fn at(self, revision: Revision) -> Self {
        self.with(|range| range.at(revision))
    }

    /// The same with any options of a [`Range`]: `.with(|range| range.deadline(second))`. Without values
    /// ([`keys_only`](Range::keys_only)) most codecs read no row.
    pub fn with(mut self, options: impl FnOnce(Range<'c>) -> Range<'c>) -> Self {
        self.range = self.range.map(options);
        self
    }
}

impl<'c, K, V, C> Future for RowRange<'c, K, V, C>
where
    K: TableKey + Send + 'c,
    V: Send + 'c,
    C: ValueCodec<V> + 'c,
{
    type Output = Found<K, V>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let table = self.table;
        if let Some(range) = self.range.take() {
            self.under_way = Some(Box::pin(all(table, range.stream_at_once())));
        }
        match &mut self.under_way {
            Some(under_way) => under_way.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

async fn all<K: TableKey, V, C: ValueCodec<V>>(
    table: Table<K, V, C>,
    mut records: Records,
) -> Result<Vec<Entry<K, V>>, Error> {
    let mut found = Vec::new();
    while let Some(record) = records.next().await {
        found.push(entry(&table, record?)?);
    }
    Ok(found)
}

fn entry<K: TableKey, V, C: ValueCodec<V>>(
    table: &Table<K, V, C>,
    KeyValue { key, record }: KeyValue,
) -> Result<Entry<K, V>, Error> {
    Ok(Entry {
        key: table.decode_key(&key)?,
        value: decode::<V, C>(Some(&key), &record.value)?,
        mod_revision: record.mod_revision,
    })
}

/// A table within a [`transact`](Client::transact). Made by [`Transaction::table`].
///
/// Its errors are those of the [`Transaction`], and [`Error::InvalidValue`]: a value that the codec cannot write, or a row that it cannot read.
/// Whatever the closure makes of one, the transaction commits nothing then.
pub struct TransactionRows<'t, K, V, C> {
    transaction: &'t Transaction,
    table: Table<K, V, C>,
}

impl<K, V, C> fmt::Debug for TransactionRows<'_, K, V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionRows")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Transaction {
    /// A table, to be read and written by this attempt.
    ///
    /// ```no_run
    /// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
    /// use quorate_kv::table::Table;
    ///
    /// const STOCK: Table<String, u32> = Table::new("stock/");
    ///
    /// let left = client
    ///     .transact(async |t| {
    ///         let stock = t.table(STOCK);
    ///         let left = stock.get("apples").await?.unwrap_or(0).saturating_sub(1);
    ///         stock.put("apples", &left)?;
    ///         Ok(left)
    ///     })
    ///     .await?;
    /// # let _ = left;
    /// # Ok(()) }
    /// ```
    pub fn table<K, V, C>(&self, table: Table<K, V, C>) -> TransactionRows<'_, K, V, C> {
        TransactionRows {
            transaction: self,
            table,
        }
    }
}

impl<K: TableKey, V, C: ValueCodec<V>> TransactionRows<'_, K, V, C> {
    /// The value of a key, with what this attempt has written so far. Cancel safe.
    pub async fn get(&self, key: impl EncodeKey<K>) -> Result<Option<V>, Error> {
        let key = self.table.key(key);
        let value = self.transaction.get(&key).await?;
        let value = value.map(|value| decode::<V, C>(Some(&key), &value)).transpose();
        value.map_err(|error| self.transaction.fails(error))
    }

    /// The keys and values of a range, with what this attempt has written so far. Cancel safe.
    pub async fn range(&self, range: impl TableRange<K>) -> Result<Vec<(K, V)>, Error> {
        self.rows(self.table.key_range(range)).await
    }

    /// The same of the rows of which the first fields of the key are these. Cancel safe.
    pub async fn prefix(&self, fields: impl EncodePrefix<K>) -> Result<Vec<(K, V)>, Error> {
        self.rows(self.table.prefix_range(fields)).await
    }

    async fn rows(&self, range: KeyRange) -> Result<Vec<(K, V)>, Error> {
        let found = self.transaction.range(range).await?.into_iter();
        let rows =
            found.map(|(key, value)| Ok((self.table.decode_key(&key)?, decode::<V, C>(Some(&key), &value)?)));
        let rows: Result<_, Error> = rows.collect();
        rows.map_err(|error| self.transaction.fails(error))
    }

    /// Writes a row when the transaction commits.
    pub fn put(&self, key: impl EncodeKey<K>, value: &V) -> Result<(), Error> {
        let put = self.table.put(key, value);
        self.transaction
            .op(put.map_err(|error| self.transaction.fails(error))?)
    }

    /// Deletes a row when the transaction commits.
    pub fn delete(&self, key: impl EncodeKey<K>) -> Result<(), Error> {
        self.transaction.op(self.table.delete(key))
    }
}

//! Typed tables: keys and values of Rust types under a prefix of their own.
//!
//! A [`Table`] is a constant: a prefix, the type of its keys, the type of its values, and how these become bytes. The bytes of keys
//! are in the order of the keys, so a range of keys is a range of the store, and of a tuple also the keys that begin alike.
//!
//! ```no_run
//! # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
//! use quorate_kv::table::Table;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct User {
//!     name: String,
//! }
//!
//! const USERS: Table<u64, User> = Table::new("users/");
//! const LOGINS: Table<(u64, String), ()> = Table::new("logins/");
//!
//! let users = client.table(USERS);
//! users.put(7, &User { name: "Ann".into() }).await?;
//! let ann = users.get(7).await?;
//! let first_hundred = users.range(..100).await?;
//!
//! // Several tables in one transaction.
//! client
//!     .transact(async |t| {
//!         if t.table(USERS).get(7).await?.is_some() {
//!             t.table(LOGINS).put((7, "laptop"), &())?;
//!         }
//!         Ok(())
//!     })
//!     .await?;
//! let of_ann = client.table(LOGINS).prefix((7,)).await?;
//! # Ok(()) }
//! ```
//!
//! Always: what is read in a table was written in its codec, or the read fails, and of a range says which key; two tables of which no prefix
//! begins with the other's share no key.

mod key;
mod rows;
mod value;

use std::fmt;
use std::marker::PhantomData;

pub use key::{EncodeKey, EncodePrefix, MalformedKey, Position, TableKey, TableRange};
pub use rows::{Entry, RowRange, Rows, TransactionRows};
pub use value::{Json, Postcard, Raw, ValueCodec};

use crate::client::Error;
use crate::model::{Guard, Key, KeyRange, Op};

/// A table: the keys that begin with a prefix, of a type of their own, and values of another.
///
/// `C` is how values become bytes: [`Json`] by default, which `quorate kv get` can show and to which fields can be added;
/// [`Postcard`] is smaller and faster; [`Raw`] is for bytes.
///
/// A table also makes guards and operations, for a transaction of several steps:
///
/// ```no_run
/// # async fn run(client: quorate_kv::Client) -> Result<(), quorate_kv::client::Error> {
/// use quorate_kv::table::{Postcard, Table};
///
/// const PLACES: Table<(String, u32), bool, Postcard> = Table::with_codec("places/");
///
/// let answer = client
///     .txn()
///     .when(PLACES.missing(("hall", 7)))
///     .op(PLACES.put(("hall", 7), &true)?)
///     .add("places taken", 1)
///     .await?;
/// println!("it was free: {}", answer.succeeded);
/// # Ok(()) }
/// ```
pub struct Table<K, V, C = Json> {
    prefix: &'static str,
    of: PhantomData<fn(K, V, C)>,
}

impl<K, V, C> Clone for Table<K, V, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V, C> Copy for Table<K, V, C> {}

impl<K, V, C> fmt::Debug for Table<K, V, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("prefix", &self.prefix).finish()
    }
}

impl<K, V> Table<K, V> {
    /// The table of the keys that begin with `prefix`, with values in JSON. End the prefix with a character that no other table's has
    /// there, such as `users/`.
    pub const fn new(prefix: &'static str) -> Self {
        Self::with_codec(prefix)
    }
}

impl<K, V, C> Table<K, V, C> {
    /// The same with values in another codec: `Table::<u64, User, Postcard>::with_codec("users/")`.
    pub const fn with_codec(prefix: &'static str) -> Self {
        Self {
            prefix,
            of: PhantomData,
        }
    }

    /// What its keys begin with.
    pub const fn prefix(&self) -> &'static str {
        self.prefix
    }
}

impl<K: TableKey, V, C: ValueCodec<V>> Table<K, V, C> {
    /// The store's key of a key of the table: for guards and operations.
    pub fn key(&self, key: impl EncodeKey<K>) -> Key {
        key::of_table(self.prefix, &key)
    }

    /// The store's range of a range of the table's keys.
    pub fn key_range(&self, range: impl TableRange<K>) -> KeyRange {
        range.of_table(self.prefix)
    }

    /// The store's range of the keys of which the first fields are these.
    pub fn prefix_range(&self, fields: impl EncodePrefix<K>) -> KeyRange {
        let mut bytes = self.prefix.as_bytes().to_vec();
        fields.encode_prefix(&mut bytes);
        KeyRange::prefix(bytes)
    }

    /// A put, for a transaction.
    ///
    /// # Errors
    /// [`Error::InvalidValue`] for a value that the codec cannot write.
    pub fn put(&self, key: impl EncodeKey<K>, value: &V) -> Result<Op, Error> {
        let key = self.key(key);
        let value = encode::<V, C>(&key, value)?;
        Ok(Op::put(key, value))
    }

    /// A delete, for a transaction.
    pub fn delete(&self, key: impl EncodeKey<K>) -> Op {
        Op::delete(self.key(key))
    }

    /// Holds when the key exists.
    pub fn exists(&self, key: impl EncodeKey<K>) -> Guard {
        Guard::exists(self.key(key))
    }

    /// Holds when the key does not exist.
    pub fn missing(&self, key: impl EncodeKey<K>) -> Guard {
        Guard::missing(self.key(key))
    }

    fn decode_key(&self, key: &Key) -> Result<K, Error> {
        let bytes = key.as_bytes().strip_prefix(self.prefix.as_bytes());
        let mut rest = bytes.ok_or_else(|| malformed(key, "it does not begin with the table's prefix"))?;
        let decoded =
            K::decode(&mut rest, Position::Last).map_err(|error| malformed(key, &error.to_string()))?;
        match rest.is_empty() {
            true => Ok(decoded),
            false => Err(malformed(key, "bytes follow the key")),
        }
    }
}

fn malformed(key: &Key, reason: &str) -> Error {
    Error::InvalidValue {
        key: Some(key.clone()),
        reason: format!("the key is none of the table: {reason}"),
    }
}

fn encode<V, C: ValueCodec<V>>(key: &Key, value: &V) -> Result<crate::model::Value, Error> {
    C::encode(value).map_err(|error| Error::InvalidValue {
        key: Some(key.clone()),
        reason: format!("the value cannot be written: {error}"),
    })
}

fn decode<V, C: ValueCodec<V>>(key: Option<&Key>, bytes: &crate::model::Value) -> Result<V, Error> {
    C::decode(bytes).map_err(|error| Error::InvalidValue {
        key: key.cloned(),
        reason: format!("the value cannot be read: {error}"),
    })
}

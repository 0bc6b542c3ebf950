//! Operations of a transaction and their results.

use serde::{Deserialize, Serialize};

use super::codec;
use super::{IntoValue, Key, KeyRange, KeyValue, LeaseId, RangeRead, Record, Value};

/// One step of a transaction. Steps run in the written order and read the writes of earlier ones.
///
/// ```
/// use quorate_kv::model::{Op, Txn};
///
/// let txn = Txn::new([
///     Op::put_sequence("events/", "opened"), // events/00000000000000000001
///     Op::create("door", "open"),            // refused as a whole where it exists
///     Op::add("opened", 1),
///     Op::max("longest", 30),
///     Op::delete_range("waiting/".."waiting0", 100),
///     Op::get("opened"),                     // with the addition
/// ]);
/// assert_eq!(txn.then.len(), 6);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        #[serde(deserialize_with = "codec::shared")]
        value: Value,
        /// Whether an existing key may be written.
        mode: PutMode,
        /// What becomes of the key's lease.
        lease: LeaseChange,
    },
    /// Deletes a key; a missing one is no error.
    Delete {
        /// The key.
        key: Key,
    },
    /// Deletes the keys of a range, at most `limit` of them, the lowest first.
    DeleteRange {
        /// The range.
        range: KeyRange,
        /// The most keys to delete.
        limit: u32,
        /// What becomes of a range that holds more.
        excess: RangeExcess,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: Key,
    },
    /// Reads a range.
    Range(RangeRead),
    /// Adds to a number. A number is a value of exactly 8 bytes, big-endian two's complement; a missing key
    /// counts as 0. An overflow or another value aborts the transaction.
    Add {
        /// The key.
        key: Key,
        /// What to add.
        delta: i64,
    },
    /// Raises a number to at least `operand`; a missing key becomes `operand`.
    Max {
        /// The key.
        key: Key,
        /// The least it will be.
        operand: i64,
    },
    /// Writes a key that is `prefix` followed by the next number of the prefix's sequence, in 20 decimal
    /// digits, so that the keys sort. The first number is 1; a number is never given twice, also when its
    /// key was deleted.
    PutSequence {
        /// The prefix: 1 byte to the longest key less 20.
        prefix: Key,
        /// The value.
        #[serde(deserialize_with = "codec::shared")]
        value: Value,
    },
}

/// What becomes of a range delete whose range holds more keys than its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RangeExcess {
    /// The transaction is refused.
    #[default]
    Refuse,
    /// As many as the limit says are deleted, the lowest, and the answer says that there are more: a large range is
    /// deleted in several transactions.
    Leave,
}

/// Whether a put may overwrite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PutMode {
    /// Creates or overwrites.
    #[default]
    Upsert,
    /// Aborts the transaction when the key exists.
    OnlyIfAbsent,
}

/// What a put does to the key's lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseChange {
    /// The key has no lease afterwards.
    #[default]
    Detach,
    /// The key keeps the lease that it has.
    Keep,
    /// The key is attached to this lease.
    Attach(LeaseId),
}

/// What an operation answered, in the place of the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResult {
    /// Of a put: whether the key existed.
    Put {
        /// The key existed before.
        existed: bool,
    },
    /// Of a delete or a range delete: how many keys went.
    Deleted {
        /// The number of keys deleted.
        count: u64,
        /// The range holds more: only of a range delete with [`RangeExcess::Leave`].
        more: bool,
    },
    /// Of a get.
    Get(Option<Record>),
    /// Of a range.
    Range {
        /// The records found, in the order asked for. Empty for a count.
        records: Vec<KeyValue>,
        /// How many keys there are in the range, where counting was asked for; else how many were returned.
        count: u64,
        /// The range holds more keys than were returned.
        more: bool,
    },
    /// Of an add or a max: the number now.
    Number(i64),
    /// Of a sequence put: the key that was written.
    Sequenced {
        /// The key.
        key: Key,
    },
}

/// The decimal digits that a sequence adds to its prefix.
pub(crate) const SEQUENCE_DIGITS: usize = 20;

impl Op {
    /// Writes a key, whether it exists or not.
    pub fn put(key: impl Into<Key>, value: impl IntoValue) -> Self {
        Op::Put {
            key: key.into(),
            value: value.into_value(),
            mode: PutMode::Upsert,
            lease: LeaseChange::Detach,
        }
    }

    /// Writes a key that must not exist: the whole transaction is refused where it does.
    pub fn create(key: impl Into<Key>, value: impl IntoValue) -> Self {
        Op::Put {
            key: key.into(),
            value: value.into_value(),
            mode: PutMode::OnlyIfAbsent,
            lease: LeaseChange::Detach,
        }
    }

    /// Adds to a number, and answers what it is then.
    pub fn add(key: impl Into<Key>, delta: i64) -> Self {
        Op::Add {
            key: key.into(),
            delta,
        }
    }

    /// Raises a number to at least `operand`, and answers what it is then.
    pub fn max(key: impl Into<Key>, operand: i64) -> Self {
        Op::Max {
            key: key.into(),
            operand,
        }
    }

    /// Writes a key that is `prefix` and the next number of its sequence, and answers the key.
    pub fn put_sequence(prefix: impl Into<Key>, value: impl IntoValue) -> Self {
        Op::PutSequence {
            prefix: prefix.into(),
            value: value.into_value(),
        }
    }

    /// Deletes a key; a missing one is no error.
    pub fn delete(key: impl Into<Key>) -> Self {
        Op::Delete { key: key.into() }
    }

    /// Deletes all keys of a range, of which there may be so many: the transaction is refused where there are more.
    pub fn delete_range(range: impl Into<KeyRange>, limit: u32) -> Self {
        Op::DeleteRange {
            range: range.into(),
            limit,
            excess: RangeExcess::Refuse,
        }
    }

    /// Deletes so many keys of a range, the lowest. Repeated while the answer says that there are more, it deletes a range of any size
    /// in transactions of a bounded one.
    pub fn delete_some_of(range: impl Into<KeyRange>, limit: u32) -> Self {
        Op::DeleteRange {
            range: range.into(),
            limit,
            excess: RangeExcess::Leave,
        }
    }

    /// Reads a key.
    pub fn get(key: impl Into<Key>) -> Self {
        Op::Get { key: key.into() }
    }

    /// Reads up to 1,000 records of a range.
    pub fn range(range: impl Into<KeyRange>) -> Self {
        Op::Range(RangeRead::new(range))
    }
}

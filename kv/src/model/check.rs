//! The gate: limits that are checked before anything is proposed.

use serde::{Deserialize, Serialize};

use super::{Condition, Key, KeyTest, LeaseChange, Op, RangeTest, ReadOp, SEQUENCE_DIGITS, Txn};

/// The limits of a store. All nodes of a cluster and their clients must be given the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// The longest key in bytes: 1 to 32,768; 4,096 by default.
    pub key_bytes_max: usize,
    /// The longest value in bytes; 1 MiB by default. A node refuses one that together with a key is more than one batch of reads
    /// returns, which is 16 MiB.
    pub value_bytes_max: usize,
    /// The largest transaction, encoded, in bytes; 16 MiB by default.
    pub txn_bytes_max: usize,
    /// The most operations and conditions of one transaction together; 131,072 by default.
    pub txn_ops_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes_max: 4 * 1024,
            value_bytes_max: 1024 * 1024,
            txn_bytes_max: 16 * 1024 * 1024,
            txn_ops_max: 131_072,
        }
    }
}

/// Where in a transaction something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// A condition of the guard.
    Condition(usize),
    /// An operation of `then`.
    Then(usize),
    /// An operation of `otherwise`.
    Otherwise(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Condition(i) => write!(f, "condition {i}"),
            Place::Then(i) => write!(f, "operation {i}"),
            Place::Otherwise(i) => write!(f, "operation {i} of the else branch"),
        }
    }
}

/// A transaction that is outside the limits or malformed. Nothing was proposed; a retry fails the same way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTxn {
    /// A key has no bytes.
    #[error("{place}: the key is empty; a key has 1 to {limit} bytes")]
    EmptyKey {
        /// Where.
        place: Place,
        /// The longest that it may be.
        limit: usize,
    },
    /// A key is too long.
    #[error("{place}: the key has {size} bytes, the limit is {limit}")]
    KeyTooLong {
        /// Where.
        place: Place,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A value is too large.
    #[error("{place}: the value has {size} bytes, the limit is {limit}")]
    ValueTooLarge {
        /// Where.
        place: Place,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many operations and conditions.
    #[error("the transaction has {count} operations and conditions, the limit is {limit}")]
    TooManyOps {
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Too large as a whole.
    #[error("the transaction has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Its encoded size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The guard's nodes do not form a tree.
    #[error("the guard is not one well-formed tree")]
    MalformedGuard,
}

/// A read that is outside the limits. Nothing was asked; a retry fails the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRead {
    /// A key has no bytes.
    #[error("read {index}: the key is empty; a key has 1 to {limit} bytes")]
    EmptyKey {
        /// Which read.
        index: usize,
        /// The longest that it may be.
        limit: usize,
    },
    /// A key is too long.
    #[error("read {index}: the key has {size} bytes, the limit is {limit}")]
    KeyTooLong {
        /// Which read.
        index: usize,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Too many reads in one batch.
    #[error("the batch has {count} reads, the limit is {limit}")]
    TooManyReads {
        /// How many.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

/// A transaction within the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedTxn {
    txn: Txn,
    size: usize,
}

impl CheckedTxn {
    /// Checks a transaction.
    pub fn check(txn: Txn, limits: &Limits) -> Result<Self, InvalidTxn> {
        let count = txn.guard.nodes().len() + txn.then.len() + txn.otherwise.len();
        if count > limits.txn_ops_max {
            return Err(InvalidTxn::TooManyOps {
                count,
                limit: limits.txn_ops_max,
            });
        }
        if !txn.guard.is_well_formed() {
            return Err(InvalidTxn::MalformedGuard);
        }
        let mut size = 0;
        for (i, condition) in txn.guard.conditions().enumerate() {
            size += check_condition(Place::Condition(i), condition, limits)?;
        }
        for (i, op) in txn.then.iter().enumerate() {
            size += check_op(Place::Then(i), op, limits)?;
        }
        for (i, op) in txn.otherwise.iter().enumerate() {
            size += check_op(Place::Otherwise(i), op, limits)?;
        }
        if size > limits.txn_bytes_max {
            return Err(InvalidTxn::TooLarge {
                size,
                limit: limits.txn_bytes_max,
            });
        }
        Ok(Self { txn, size })
    }

    /// The transaction.
    pub fn txn(&self) -> &Txn {
        &self.txn
    }

    /// Its size in bytes as the limits count it: at least its encoded size.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Gives up the transaction.
    pub fn into_inner(self) -> Txn {
        self.txn
    }
}

/// Checks a batch of reads.
pub(crate) fn check_reads(reads: &[ReadOp], limits: &Limits) -> Result<(), InvalidRead> {
    if reads.len() > limits.txn_ops_max {
        return Err(InvalidRead::TooManyReads {
            count: reads.len(),
            limit: limits.txn_ops_max,
        });
    }
    for (index, read) in reads.iter().enumerate() {
        let limit = limits.key_bytes_max;
        match read {
            ReadOp::Get(key) if key.is_empty() => return Err(InvalidRead::EmptyKey { index, limit }),
            ReadOp::Get(key) if key.len() > limit => {
                let size = key.len();
                return Err(InvalidRead::KeyTooLong { index, size, limit });
            }
            ReadOp::Get(_) | ReadOp::Range(_) => {}
        }
    }
    Ok(())
}

/// What an operation or condition costs beside its keys and values, at most, in encoded bytes.
const OVERHEAD: usize = 16;

fn check_key(place: Place, key: &Key, limits: &Limits) -> Result<usize, InvalidTxn> {
    let (size, limit) = (key.len(), limits.key_bytes_max);
    match size {
        0 => Err(InvalidTxn::EmptyKey { place, limit }),
        _ if size > limit => Err(InvalidTxn::KeyTooLong { place, size, limit }),
        _ => Ok(size),
    }
}

fn check_value(place: Place, size: usize, limits: &Limits) -> Result<usize, InvalidTxn> {
    let limit = limits.value_bytes_max;
    if size > limit {
        Err(InvalidTxn::ValueTooLarge { place, size, limit })
    } else {
        Ok(size)
    }
}

fn check_test(place: Place, test: &KeyTest, limits: &Limits) -> Result<usize, InvalidTxn> {
    match test {
        KeyTest::Value(_, value) => check_value(place, value.len(), limits),
        KeyTest::Version(..)
        | KeyTest::CreateRevision(..)
        | KeyTest::ModRevision(..)
        | KeyTest::Lease(..)
        | KeyTest::Exists(_) => Ok(0),
    }
}

fn check_condition(place: Place, condition: &Condition, limits: &Limits) -> Result<usize, InvalidTxn> {
    let size = match condition {
        Condition::Key { key, test } => check_key(place, key, limits)? + check_test(place, test, limits)?,
        Condition::Range { range, test } => {
            let test = match test {
                RangeTest::Any(test) | RangeTest::All(test) => check_test(place, test, limits)?,
                RangeTest::Count(..) => 0,
            };
            range.size() + test
        }
    };
    Ok(size + OVERHEAD)
}

/// Checks one operation; answers its size in bytes as the limits count it.
pub(crate) fn check_op(place: Place, op: &Op, limits: &Limits) -> Result<usize, InvalidTxn> {
    let size = match op {
        Op::Put {
            key, value, lease, ..
        } => {
            let lease = usize::from(matches!(lease, LeaseChange::Attach(_))) * 8;
            check_key(place, key, limits)? + check_value(place, value.len(), limits)? + lease
        }
        Op::Delete { key } | Op::Get { key } | Op::Add { key, .. } | Op::Max { key, .. } => {
            check_key(place, key, limits)?
        }
        Op::DeleteRange { range, .. } => range.size(),
        Op::Range(read) => read.range.size(),
        Op::PutSequence { prefix, value } => {
            check_key(place, prefix, limits)?;
            // The number's digits count as part of the key.
            let size = prefix.len() + SEQUENCE_DIGITS;
            if size > limits.key_bytes_max {
                return Err(InvalidTxn::KeyTooLong {
                    place,
                    size,
                    limit: limits.key_bytes_max,
                });
            }
            size + check_value(place, value.len(), limits)?
        }
    };
    Ok(size + OVERHEAD)
}

//! Reads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::order::Order;
use super::{Key, KeyRange, Record, Revision};

/// How fresh a read must be.
///
/// A call says it by its options, such as [`max_lag`](crate::client::Read::max_lag); a client for all of its reads:
///
/// ```no_run
/// # fn run(client: quorate_kv::Client) {
/// use std::time::Duration;
///
/// use quorate_kv::model::Consistency;
///
/// let nearby = client.with_consistency(Consistency::Stale {
///     min_revision: None,
///     max_lag: Some(Duration::from_secs(1)),
/// });
/// # let _ = nearby;
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began (ReadIndex; readers share a round).
    #[default]
    Linearizable,
    /// What the node that is asked has applied, within the bounds given.
    Stale {
        /// The node waits until it has applied at least this revision.
        min_revision: Option<Revision>,
        /// Everything that was acknowledged anywhere up to this long before the read came to the node is in what it sees.
        /// The node asks, as for a linearizable read, where it does not know that; the read is refused where nobody
        /// confirms it within the deadline. With 0 it sees as much as a linearizable read.
        max_lag: Option<Duration>,
    },
    /// The state as it was at this revision, exactly. Waits, within the deadline, for a revision to come.
    At(Revision),
}

/// A read of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRead {
    /// The range.
    pub range: KeyRange,
    /// The most records to return.
    pub limit: u32,
    /// Which end comes first.
    pub order: Order,
    /// Leave the values out (they come back empty).
    pub keys_only: bool,
    /// Return no records, only the count.
    pub count_only: bool,
}

impl RangeRead {
    /// How many records a read returns where it does not say.
    pub const LIMIT: u32 = 1_000;

    /// Up to 1,000 records of a range, ascending.
    pub fn new(range: impl Into<KeyRange>) -> Self {
        Self {
            range: range.into(),
            limit: Self::LIMIT,
            order: Order::Ascending,
            keys_only: false,
            count_only: false,
        }
    }

    /// The same with another limit.
    #[must_use]
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = limit;
        self
    }
}

/// One read of a batch; all reads of a batch see one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOp {
    /// A key.
    Get(Key),
    /// A range.
    Range(RangeRead),
}

impl ReadOp {
    /// The most keys that it looks at; [`u64::MAX`] for a count, which looks at all keys of its range.
    pub fn keys_max(&self) -> u64 {
        match self {
            ReadOp::Get(_) => 1,
            ReadOp::Range(read) if read.count_only => u64::MAX,
            // One more tells whether there are more.
            ReadOp::Range(read) => u64::from(read.limit) + 1,
        }
    }
}

/// A key and its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// Its record.
    pub record: Record,
}

impl KeyValue {
    /// The value as text, where it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        self.record.text()
    }

    /// The value as a number, where it is one: 8 bytes, as [`Op::Add`](super::Op::Add) keeps it.
    pub fn number(&self) -> Option<i64> {
        self.record.number()
    }
}

/// The answer to one [`ReadOp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadResult {
    /// Of a get.
    Get(Option<Record>),
    /// Of a range. A page also ends at 1 MiB (a record counts its key, its value and 64 bytes): `more` tells, and the
    /// next page starts after the last key.
    Range {
        /// The records, in the order asked for.
        records: Vec<KeyValue>,
        /// How many keys there are in the range for a count; else how many were returned.
        count: u64,
        /// The range holds more keys than were returned.
        more: bool,
    },
}

/// The answer to a batch of reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadResponse {
    /// The revision that all of them saw.
    pub revision: Revision,
    /// One result for each read.
    pub results: Vec<ReadResult>,
}

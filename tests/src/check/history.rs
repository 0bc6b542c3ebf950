//! What callers asked, and what they were told.
//!
//! Every write bears the number of its call inside the transaction, so that the log itself tells which call an
//! entry belongs to, however often it was sent and whatever became of its answer. A transaction says it in a
//! condition that always holds ([`tag`]); a plain put in its value, a plain delete in its key.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::client::Error;
use quorate_kv::model::{
    Condition, Consistency, Guard, Key, KeyRange, KeyValue, Limit, Op, ReadOp, ReadResponse, ReadResult,
    Record, ReplicatedLimits, Revision, Txn, TxnRefused, TxnResponse,
};
use quorate_meta::{
    Broker, CreateTopic, GrowTopic, IsrUpdate, LeaderUpdate, NewPartition, Partition, Topic, TopicId,
};

/// The number of a call: the client's, and the client's how manieth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The client.
    pub client: u32,
    /// Its call.
    pub number: u64,
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}/{};", self.client, self.number)
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Below this prefix there is never a key: a condition that one is missing always holds.
const MARKS: &str = "~call/";
/// A value's or a key's own mark begins within so many bytes.
const MARK_WITHIN: usize = 64;

impl CallId {
    /// The value that only this call writes, with so many bytes behind the mark.
    pub fn value(self, padding: usize) -> Bytes {
        let mut value = self.to_string().into_bytes();
        value.resize(value.len() + padding, b'.');
        value.into()
    }

    /// The number in a text that bears one.
    pub(super) fn find(text: &[u8]) -> Option<Self> {
        let text = &text[..text.len().min(MARK_WITHIN)];
        let start = text.iter().position(|byte| *byte == b'#')? + 1;
        let end = start + text[start..].iter().position(|byte| *byte == b';')?;
        let (client, number) = std::str::from_utf8(&text[start..end]).ok()?.split_once('/')?;
        Some(Self {
            client: client.parse().ok()?,
            number: number.parse().ok()?,
        })
    }

    /// The call that a transaction belongs to.
    pub fn of(txn: &Txn) -> Option<Self> {
        let marks = txn.guard.conditions().filter_map(|condition| match condition {
            Condition::Key { key, .. } if key.as_bytes().starts_with(MARKS.as_bytes()) => {
                Self::find(key.as_bytes())
            }
            Condition::Key { .. } | Condition::Range { .. } => None,
        });
        let ops = || txn.then.iter().chain(&txn.otherwise);
        let values = ops().filter_map(|op| match op {
            Op::Put { value, .. } | Op::PutSequence { value, .. } => Self::find(value),
            Op::Delete { .. }
            | Op::DeleteRange { .. }
            | Op::Get { .. }
            | Op::Range(_)
            | Op::Add { .. }
            | Op::Max { .. } => None,
        });
        let keys = ops().filter_map(|op| match op {
            Op::Delete { key } => Self::find(key.as_bytes()),
            _ => None,
        });
        marks.chain(values).chain(keys).next()
    }
}

/// The same transaction with the number of its call.
pub fn tag(txn: Txn, id: CallId) -> Txn {
    let mark = Key::new(format!("{MARKS}{id}")).expect("a short key");
    let guard = Guard::all([txn.guard, Guard::missing(mark)]);
    Txn { guard, ..txn }
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number.
    pub id: CallId,
    /// The call on behalf of which it was made, for those that a metadata operation makes.
    pub parent: Option<CallId>,
    /// When it was made.
    pub called: Duration,
    /// When it was answered.
    pub answered: Duration,
    /// What was asked.
    pub request: Request,
    /// What was told.
    pub answer: Answer,
}

/// What was asked.
#[derive(Debug, Clone)]
pub enum Request {
    /// `Client::txn`.
    Txn(Txn),
    /// `Client::put`.
    Put {
        /// The key.
        key: Key,
        /// The value.
        value: Bytes,
    },
    /// `Client::delete`.
    Delete {
        /// The key.
        key: Key,
    },
    /// `Client::transact`: one attempt, and what its closure read.
    Transact {
        /// Keys and what was there.
        keys: Vec<(Key, Option<Record>)>,
        /// Ranges and what was there.
        ranges: Vec<(KeyRange, Vec<KeyValue>)>,
        /// What it wrote.
        ops: Vec<Op>,
    },
    /// `Client::read`.
    Read {
        /// The reads.
        reads: Vec<ReadOp>,
        /// How fresh.
        consistency: Consistency,
    },
    /// `Client::get`.
    Get {
        /// The key.
        key: Key,
        /// How fresh.
        consistency: Consistency,
    },
    /// `Client::range`.
    Range(KeyRange),
    /// `Client::compact`.
    Compact(Revision),
    /// `Client::set_limits`, and `Client::limits` where nothing is to change.
    SetLimits(Vec<(Limit, u64)>),
}

impl Request {
    /// Whether it may change something.
    pub fn writes(&self) -> bool {
        match self {
            Request::Txn(_) | Request::Put { .. } | Request::Delete { .. } | Request::Transact { .. } => true,
            Request::Read { .. }
            | Request::Get { .. }
            | Request::Range(_)
            | Request::Compact(_)
            | Request::SetLimits(_) => false,
        }
    }
}

/// What was told.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To a transaction.
    Txn(TxnResponse),
    /// To a put.
    Written(Revision),
    /// To a delete: whether the key existed.
    Deleted(bool),
    /// To a batch of reads.
    Read(ReadResponse),
    /// To a get.
    Record(Option<Record>),
    /// To a range.
    Records(ReadResult),
    /// To a compaction: the oldest revision that can be read.
    Compacted(Revision),
    /// To a change of limits: those that stand.
    Limits(Box<ReplicatedLimits>),
    /// The state machine refused it.
    Refused(TxnRefused),
    /// It failed for certain, and changed nothing.
    Failed(Error),
    /// It may have happened, may yet, or never.
    Unknown(String),
}

impl Answer {
    /// What an error of the client says.
    pub fn of_error(error: Error) -> Self {
        match error {
            Error::OutcomeUnknown(unknown) => Answer::Unknown(unknown.reason),
            error if error.may_have_committed() => Answer::Unknown(error.to_string()),
            Error::Refused(refused) => Answer::Refused(refused),
            error => Answer::Failed(error),
        }
    }
}

/// A call of the metadata's client. What it asked of the store are [`Call`]s that name it as their parent.
#[derive(Debug, Clone)]
pub struct MetaCall {
    /// Its number.
    pub id: CallId,
    /// When it was made.
    pub called: Duration,
    /// When it was answered.
    pub answered: Duration,
    /// What was asked.
    pub request: MetaRequest,
    /// What was told.
    pub answer: Result<Rows, MetaFailure>,
}

/// What was asked of the metadata.
#[derive(Debug, Clone)]
pub enum MetaRequest {
    /// To create topics.
    CreateTopics(Vec<CreateTopic>),
    /// To create partitions.
    CreatePartitions(Vec<NewPartition>),
    /// To let topics grow.
    Grow(Vec<GrowTopic>),
    /// To change leaders.
    UpdateLeaders(Vec<LeaderUpdate>),
    /// To change ISRs.
    UpdateIsrs(Vec<IsrUpdate>),
    /// To delete topics.
    DeleteTopics(Vec<TopicId>),
    /// To change brokers, or to read; the calls of the store say the rest.
    Other(&'static str),
}

/// Rows that were told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Brokers.
    pub brokers: Vec<Broker>,
    /// Topics.
    pub topics: Vec<Topic>,
    /// Partitions.
    pub partitions: Vec<Partition>,
}

/// Why a call of the metadata gave no rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaFailure {
    /// It may have happened.
    pub may_have_committed: bool,
    /// The rules refuse it.
    pub refused: bool,
    /// A row was unreadable.
    pub corrupt: bool,
    /// What was said.
    pub why: String,
}

/// Everything that callers saw.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Calls of the store, in the order of their answers.
    pub calls: Vec<Call>,
    /// Calls of the metadata's client, in the order of their answers.
    pub meta: Vec<MetaCall>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_tells_which_call_it_belongs_to() {
        let id = CallId {
            client: 3,
            number: 17,
        };
        let key = || Key::from("k");
        let tagged = tag(Txn::new([Op::delete(key())]).when(Guard::exists(key())), id);
        assert_eq!(CallId::of(&tagged), Some(id));
        assert_eq!(CallId::of(&Txn::new([Op::put(key(), id.value(1_000))])), Some(id));
        let own = Key::from(format!("own/{id}"));
        assert_eq!(CallId::of(&Txn::new([Op::delete(own)])), Some(id));
        assert_eq!(CallId::of(&Txn::new([Op::put(key(), "served again")])), None);
    }
}

//! The words everyone speaks: keys, revisions, records, guards, operations, transactions.
//!
//! Plain values with no clock, no network and no task. A [`CheckedTxn`] is within its limits by construction,
//! and nobody below checks again; a [`Key`] from a file or a peer has 1 byte to [`Key::BYTES_MAX`].

mod check;
mod codec;
mod command;
mod guard;
mod ids;
mod key;
mod limits;
mod op;
mod order;
mod read;
mod record;
#[cfg(test)]
mod tests;
mod txn;
mod value;

pub use check::{CheckedTxn, InvalidRead, InvalidTxn, Limits, Place};
pub(crate) use check::{check_op, check_reads};
pub use codec::{DecodeError, decode, encode, encode_onto};
pub(crate) use codec::{decode_front, decode_limited, decode_shared, own, steps};
pub use command::{
    Command, Compacted, LimitsSet, Outcome, Proposal, SessionOpened, SessionRef, TooManyOf, TxnRefused, Work,
};
pub use guard::{Compare, Condition, FailedCondition, Found, Guard, GuardNode, KeyTest, RangeTest};
pub use ids::{
    LeaseId, LogIndex, LogPosition, LogTime, NodeId, Revision, Sequence, SessionId, StateHash, Term,
};
pub use key::{InvalidKey, Key, KeyRange};
pub use limits::{Bounds, InvalidLimit, Limit, LimitChange, ReplicatedLimits, Unit, UnknownLimit};
pub(crate) use op::SEQUENCE_DIGITS;
pub use op::{LeaseChange, Op, OpResult, PutMode, RangeExcess};
pub use order::Order;
pub use read::{Consistency, KeyValue, RangeRead, ReadOp, ReadResponse, ReadResult};
pub use record::Record;
pub use txn::{Txn, TxnResponse};
pub(crate) use value::number;
pub use value::{IntoValue, Value};

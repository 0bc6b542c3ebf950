//! Why an operation did not happen, with the values that decided it.
//!
//! Every error answers whether the same call may succeed later (`is_retryable`) and whether it may have
//! happened all the same (`may_have_committed`). A refusal names every offending item of its batch, and
//! nothing of the batch was done.

use std::fmt;

use quorate_kv::model::{InvalidTxn, Key};

use crate::name::InvalidTopicName;
use crate::refusal::Refusal;
use crate::rows::{CorruptRow, InvalidEndpoint};
use crate::store::StoreError;

/// Why an operation failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The rules refuse it: every offending item with its reason. Nothing was changed, but for steps that come first in
    /// commits of their own: a broker may be fenced, cordoned or swept.
    Refused(Vec<Refusal>),
    /// Text that was given for a topic's name is none. Nothing was sent.
    Name(InvalidTopicName),
    /// Text that was given for an endpoint is none. Nothing was sent.
    Endpoint(InvalidEndpoint),
    /// It does not fit into one transaction. Nothing was changed, but for such steps.
    TooLarge(TooLarge),
    /// Others changed the same rows each time, or what a step had done. Nothing was changed, but for such steps.
    Conflict(Conflict),
    /// A row is unreadable. Nothing was changed.
    Corrupt(CorruptRow),
    /// The store failed, or nobody knows whether it did; see [`StoreError::may_have_committed`].
    Store(StoreError),
}

/// A request that exceeds what one transaction of the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{asked} {what} in one transaction, the limit is {limit}")]
#[non_exhaustive]
pub struct TooLarge {
    /// Of what.
    pub what: Size,
    /// How much was asked for.
    pub asked: u64,
    /// How much the store takes.
    pub limit: u64,
}

/// What a transaction has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Size {
    /// Operations and conditions.
    Operations,
    /// Bytes of the whole transaction.
    Bytes,
    /// Bytes of one row.
    RowBytes,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Size::Operations => "operations",
            Size::Bytes => "bytes",
            Size::RowBytes => "bytes of one row",
        })
    }
}

impl TooLarge {
    pub(crate) fn bytes(asked: u64, limit: usize) -> Self {
        Self {
            what: Size::Bytes,
            asked,
            limit: limit as u64,
        }
    }

    pub(crate) fn operations(asked: u64, limit: usize) -> Self {
        Self {
            what: Size::Operations,
            asked,
            limit: limit as u64,
        }
    }
}

/// The decision was made again as often as is allowed, and each time others had changed what it used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("others changed what it needs in each of {attempts} attempts{}{}", if .rows.is_empty() { "" } else { ", last " }, List(.rows))]
#[non_exhaustive]
pub struct Conflict {
    /// How often it was tried.
    pub attempts: u32,
    /// The rows that had moved at the last attempt that lost a race; none where steps were undone each time.
    pub rows: Vec<Key>,
}

/// Items for people: the first few, and how many more there are.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (at, item) in self.0.iter().take(SHOWN).enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{item}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(items) => write!(f, "refused: {}", List(items)),
            Error::Name(e) => e.fmt(f),
            Error::Endpoint(e) => e.fmt(f),
            Error::TooLarge(e) => e.fmt(f),
            Error::Conflict(e) => e.fmt(f),
            Error::Corrupt(e) => e.fmt(f),
            Error::Store(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Store(e) => e.source(),
            Error::Corrupt(e) => e.source(),
            Error::Refused(_)
            | Error::Name(_)
            | Error::Endpoint(_)
            | Error::TooLarge(_)
            | Error::Conflict(_) => None,
        }
    }
}

impl Error {
    /// Whether the same call may succeed later. Of a batch: whether no refusal is final.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Refused(items) => items.iter().all(Refusal::is_retryable),
            Error::Name(_) | Error::Endpoint(_) | Error::TooLarge(_) | Error::Corrupt(_) => false,
            Error::Conflict(_) => true,
            Error::Store(e) => e.is_retryable(),
        }
    }

    /// Whether it may have happened all the same.
    pub fn may_have_committed(&self) -> bool {
        match self {
            Error::Store(e) => e.may_have_committed(),
            Error::Refused(_)
            | Error::Name(_)
            | Error::Endpoint(_)
            | Error::TooLarge(_)
            | Error::Conflict(_)
            | Error::Corrupt(_) => false,
        }
    }

    /// The refused items; none when the error is another one.
    pub fn refusals(&self) -> &[Refusal] {
        match self {
            Error::Refused(items) => items,
            _ => &[],
        }
    }
}

impl From<Vec<Refusal>> for Error {
    fn from(refusals: Vec<Refusal>) -> Self {
        Error::Refused(refusals)
    }
}

impl From<InvalidTopicName> for Error {
    fn from(e: InvalidTopicName) -> Self {
        Error::Name(e)
    }
}

impl From<InvalidEndpoint> for Error {
    fn from(e: InvalidEndpoint) -> Self {
        Error::Endpoint(e)
    }
}

impl From<TooLarge> for Error {
    fn from(e: TooLarge) -> Self {
        Error::TooLarge(e)
    }
}

impl From<CorruptRow> for Error {
    fn from(e: CorruptRow) -> Self {
        Error::Corrupt(e)
    }
}

impl From<StoreError> for Error {
    fn from(e: StoreError) -> Self {
        Error::Store(e)
    }
}

impl From<InvalidTxn> for Error {
    fn from(e: InvalidTxn) -> Self {
        let (what, asked, limit) = match e {
            InvalidTxn::TooManyOps { count, limit } => (Size::Operations, count, limit),
            InvalidTxn::TooLarge { size, limit } => (Size::Bytes, size, limit),
            InvalidTxn::KeyTooLong { size, limit, .. } | InvalidTxn::ValueTooLarge { size, limit, .. } => {
                (Size::RowBytes, size, limit)
            }
            // What else there will be is no size; it is ours to have built a valid transaction.
            other => return Error::Store(StoreError::new(other, false, false)),
        };
        Error::TooLarge(TooLarge {
            what,
            asked: asked as u64,
            limit: limit as u64,
        })
    }
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Text that was given for a topic's name is none. Nothing was sent.
    #[error(transparent)]
    Name(#[from] InvalidTopicName),
    /// A row is unreadable.
    #[error(transparent)]
    Corrupt(#[from] CorruptRow),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ReadError {
    /// Whether the same read may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ReadError::Name(_) | ReadError::Corrupt(_) => false,
            ReadError::Store(e) => e.is_retryable(),
        }
    }

    /// A read changes nothing.
    pub fn may_have_committed(&self) -> bool {
        false
    }
}

impl From<ReadError> for Error {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Name(e) => Error::Name(e),
            ReadError::Corrupt(e) => Error::Corrupt(e),
            ReadError::Store(e) => Error::Store(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_lists_the_rows_that_moved_where_some_did() {
        let told = |rows| Conflict { attempts: 16, rows }.to_string();
        let text = "others changed what it needs in each of 16 attempts";
        assert_eq!(told(Vec::new()), text);
        assert_eq!(told(vec![Key::from("b/1")]), format!("{text}, last b/1"));
    }
}

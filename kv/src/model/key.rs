//! Keys and ranges of keys.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec::Shared;
use super::{IntoValue, Order};

/// A key: bytes, ordered bytewise.
///
/// Made from anything that is text or bytes, borrowed or owned: `"a"`, `b"a"`, a `String`, a `Vec<u8>`, `Bytes`, a reference
/// to any of them, a [`Cow`].
///
/// A store takes keys of 1 byte to [`Limits::key_bytes_max`](super::Limits::key_bytes_max). Another one is refused by the call that
/// reads or writes it, before anything is sent: as [`InvalidTxn`](super::InvalidTxn) or [`InvalidRead`](super::InvalidRead).
/// [`Key::new`] tells at once. As the bound or the prefix of a range any bytes will do.
///
/// ```
/// use quorate_kv::model::Key;
///
/// let name = String::from("jobs/7");
/// assert_eq!(Key::from(&name), Key::from("jobs/7"));
/// assert_eq!(Key::from(b"jobs/7").as_bytes(), name.as_bytes());
/// assert!(Key::new("").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Shared", into = "Bytes")]
pub struct Key(Bytes);

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKey {
    /// A key has at least one byte.
    #[error("the key is empty; a key has 1 to {} bytes", Key::BYTES_MAX)]
    Empty,
    /// Longer than any store can be configured for.
    #[error("the key has {size} bytes, the format's limit is {}", Key::BYTES_MAX)]
    TooLong {
        /// Its size in bytes.
        size: usize,
    },
}

impl Key {
    /// The longest key that the formats carry.
    pub const BYTES_MAX: usize = 32 * 1024;

    /// A key that a store may be configured for: of 1 byte to [`Key::BYTES_MAX`].
    pub fn new(key: impl Into<Key>) -> Result<Self, InvalidKey> {
        let key = key.into();
        match key.len() {
            0 => Err(InvalidKey::Empty),
            size if size > Self::BYTES_MAX => Err(InvalidKey::TooLong { size }),
            _ => Ok(key),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes, and so is no key of any store.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As text, where it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Gives up the bytes without copying.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl TryFrom<Shared> for Key {
    type Error = InvalidKey;
    fn try_from(bytes: Shared) -> Result<Self, InvalidKey> {
        Key::new(bytes.0)
    }
}

/// From what a value is made of too.
macro_rules! from_bytes {
    ($($bytes:ty),*) => {$(
        impl From<$bytes> for Key {
            fn from(bytes: $bytes) -> Self {
                Self(bytes.into_value())
            }
        }
    )*};
}

from_bytes!(&str, &String, String, Box<str>, Cow<'_, str>);
from_bytes!(&[u8], &Vec<u8>, Vec<u8>, Box<[u8]>, Cow<'_, [u8]>, &Bytes, Bytes);

impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}

impl<const N: usize> From<[u8; N]> for Key {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes.into_value())
    }
}

impl<const N: usize> From<&[u8; N]> for Key {
    fn from(bytes: &[u8; N]) -> Self {
        Self(bytes.into_value())
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Bytes {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// A half-open range of keys, `start <= key < end`, possibly unbounded on either side.
///
/// Made from Rust's ranges of anything that is a key, or by [`prefix`](KeyRange::prefix). `end <= start` is an empty range and no
/// error.
///
/// ```
/// use quorate_kv::model::KeyRange;
///
/// assert!(KeyRange::from("a".."c").contains(b"b"));
/// assert!(KeyRange::from("a"..="c").contains(b"c"));
/// assert_eq!(KeyRange::from(..), KeyRange::all());
/// assert!(KeyRange::prefix("jobs/").contains(b"jobs/7"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

impl KeyRange {
    /// All keys.
    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: None,
        }
    }

    /// From `start` (inclusive) to `end` (exclusive).
    pub fn new(start: impl Into<Key>, end: impl Into<Key>) -> Self {
        Self {
            start: start.into().0,
            end: Some(end.into().0),
        }
    }

    /// From `start` (inclusive) on.
    pub fn starting_at(start: impl Into<Key>) -> Self {
        Self {
            start: start.into().0,
            end: None,
        }
    }

    /// The keys that begin with `prefix`; all keys, if it is empty.
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        let start = prefix.into().0;
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if let Some(next) = last.checked_add(1) {
                end.push(next);
                return Self {
                    start,
                    end: Some(end.into()),
                };
            }
        }
        Self { start, end: None }
    }

    /// The range between two bounds.
    pub fn between(bounds: impl RangeBounds<Key>) -> Self {
        Self {
            start: first_at(bounds.start_bound()),
            end: match bounds.end_bound() {
                Bound::Unbounded => None,
                Bound::Included(key) => Some(successor(&key.0)),
                Bound::Excluded(key) => Some(key.0.clone()),
            },
        }
    }

    /// What comes behind one of its keys, in this order: where reading goes on after a page that ended with the key.
    #[must_use]
    pub fn behind(&self, last: &[u8], order: Order) -> Self {
        match order {
            Order::Ascending => Self {
                start: successor(last),
                end: self.end.clone(),
            },
            Order::Descending => Self {
                start: self.start.clone(),
                end: Some(Bytes::copy_from_slice(last)),
            },
        }
    }

    /// One key alone.
    pub fn key(key: &Key) -> Self {
        Self {
            start: key.0.clone(),
            end: Some(successor(&key.0)),
        }
    }

    /// The first key that is inside; empty bytes when unbounded.
    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// The first key that is outside, if the range is bounded above.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// Whether `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// Whether no key can lie inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }

    /// As the bounds that ordered maps take. Call only when not [`is_empty`](Self::is_empty).
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = self.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (Bound::Included(&self.start[..]), end)
    }

    /// Its encoded size in bytes, about.
    pub fn size(&self) -> usize {
        self.start.len() + self.end.as_ref().map_or(0, Bytes::len)
    }
}

/// The lowest key that a lower bound lets in.
fn first_at(bound: Bound<&Key>) -> Bytes {
    match bound {
        Bound::Unbounded => Bytes::new(),
        Bound::Included(key) => key.0.clone(),
        Bound::Excluded(key) => successor(&key.0),
    }
}

/// The key that comes next after one.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

impl From<&KeyRange> for KeyRange {
    fn from(range: &KeyRange) -> Self {
        range.clone()
    }
}

impl From<RangeFull> for KeyRange {
    fn from(_: RangeFull) -> Self {
        Self::all()
    }
}

impl<K: Into<Key>> From<Range<K>> for KeyRange {
    fn from(range: Range<K>) -> Self {
        Self::new(range.start, range.end)
    }
}

impl<K: Into<Key>> From<RangeFrom<K>> for KeyRange {
    fn from(range: RangeFrom<K>) -> Self {
        Self::starting_at(range.start)
    }
}

impl<K: Into<Key>> From<RangeTo<K>> for KeyRange {
    fn from(range: RangeTo<K>) -> Self {
        Self::between(..range.end.into())
    }
}

impl<K: Into<Key>> From<RangeInclusive<K>> for KeyRange {
    fn from(range: RangeInclusive<K>) -> Self {
        let (start, end) = range.into_inner();
        Self::between(start.into()..=end.into())
    }
}

impl<K: Into<Key>> From<RangeToInclusive<K>> for KeyRange {
    fn from(range: RangeToInclusive<K>) -> Self {
        Self::between(..=range.end.into())
    }
}

impl<K: Into<Key>> From<(Bound<K>, Bound<K>)> for KeyRange {
    fn from((start, end): (Bound<K>, Bound<K>)) -> Self {
        Self::between((start.map(K::into), end.map(K::into)))
    }
}

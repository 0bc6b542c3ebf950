//! Keys and ranges of keys.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::codec::Shared;

/// A value: 0 bytes to 1 MiB by default.
pub type Value = Bytes;

/// A key: 1 byte to [`Key::BYTES_MAX`], ordered bytewise. A store's [`super::Limits`] may allow less.
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

    /// A key of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, InvalidKey> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(InvalidKey::Empty),
            size if size > Self::BYTES_MAX => Err(InvalidKey::TooLong { size }),
            _ => Ok(Self(bytes)),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a key is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
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

impl TryFrom<Bytes> for Key {
    type Error = InvalidKey;
    fn try_from(bytes: Bytes) -> Result<Self, InvalidKey> {
        Key::new(bytes)
    }
}

impl TryFrom<&str> for Key {
    type Error = InvalidKey;
    fn try_from(text: &str) -> Result<Self, InvalidKey> {
        Key::new(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl TryFrom<String> for Key {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        Key::new(text.into_bytes())
    }
}

impl TryFrom<&[u8]> for Key {
    type Error = InvalidKey;
    fn try_from(bytes: &[u8]) -> Result<Self, InvalidKey> {
        Key::new(Bytes::copy_from_slice(bytes))
    }
}

impl TryFrom<Vec<u8>> for Key {
    type Error = InvalidKey;
    fn try_from(bytes: Vec<u8>) -> Result<Self, InvalidKey> {
        Key::new(bytes)
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
/// `end <= start` is an empty range and no error.
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
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: Some(end.into()),
        }
    }

    /// From `start` (inclusive) on.
    pub fn from(start: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: None,
        }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
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

    /// One key alone.
    pub fn key(key: &Key) -> Self {
        let mut end = key.as_bytes().to_vec();
        end.push(0);
        Self {
            start: key.0.clone(),
            end: Some(end.into()),
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

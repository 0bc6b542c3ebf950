//! Bytes for what outlives a process or leaves it: a format version, then postcard.
//!
//! Postcard's wire format is specified (<https://postcard.jamesmunns.com/wire-format>); `docs/formats.md`
//! lists each message. Decoding demands that every byte is used, and never allocates beyond the input's
//! size for what the input only claims.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version that this release writes.
const FORMAT_VERSION: u8 = 1;

/// Bytes that are not a message of a known version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Nothing there.
    #[error("the message is empty")]
    Empty,
    /// Written by another release.
    #[error("format version {found} is unknown, this release reads version {FORMAT_VERSION}")]
    UnknownVersion {
        /// The version found.
        found: u8,
    },
    /// Not a message of this type.
    #[error("the message is malformed: {reason}")]
    Malformed {
        /// What the decoder met.
        reason: String,
    },
    /// Bytes follow the message.
    #[error("{count} bytes follow the message")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
}

/// Encodes a message behind its format version.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut buffer = Vec::new();
    encode_onto(message, &mut buffer);
    buffer
}

/// The same, behind what `buffer` holds already.
pub fn encode_onto<T: Serialize>(message: &T, buffer: &mut Vec<u8>) {
    buffer.push(FORMAT_VERSION);
    #[allow(
        clippy::expect_used,
        reason = "a vector grows, and no type of ours refuses to be serialized"
    )]
    postcard::to_extend(message, Appending(buffer)).expect("postcard writes any of our types to a vector");
}

/// Decodes a message that [`encode`] made.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (&version, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != FORMAT_VERSION {
        return Err(DecodeError::UnknownVersion { found: version });
    }
    let (message, rest) = postcard::take_from_bytes(rest).map_err(|e| DecodeError::Malformed {
        reason: e.to_string(),
    })?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(DecodeError::TrailingBytes { count: rest.len() })
    }
}

/// A vector that postcard appends to without taking it.
struct Appending<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appending<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, iter: I) {
        self.0.extend(iter);
    }
}

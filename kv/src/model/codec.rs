//! Bytes for what outlives a process or leaves it: a format version, then postcard.
//!
//! Postcard's wire format is specified (<https://postcard.jamesmunns.com/wire-format>); `docs/formats.md`
//! lists each message. Decoding demands that every byte is used, and never allocates beyond the input's
//! size for what the input only claims.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

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
    /// More steps than its receiver takes, however few bytes they need.
    #[error("the message has more operations, conditions and reads than the limit of {limit}")]
    TooManySteps {
        /// The limit.
        limit: usize,
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

/// Decodes what a message begins with, and answers what follows.
pub(crate) fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let (&version, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if version != FORMAT_VERSION {
        return Err(DecodeError::UnknownVersion { found: version });
    }
    postcard::take_from_bytes(rest).map_err(|e| DecodeError::Malformed {
        reason: e.to_string(),
    })
}

/// Decodes a message that [`encode`] made.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (message, rest) = decode_front(bytes)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(DecodeError::TrailingBytes { count: rest.len() })
    }
}

/// A message of which parts may stay in memory for long. A small one shares its buffer with whatever arrived in the same
/// packets, and would keep all of that; a large one is its buffer.
pub(crate) fn own(message: Bytes) -> Bytes {
    const SHARED_MAX: usize = 64 * 1024;
    if message.len() <= SHARED_MAX {
        Bytes::copy_from_slice(&message)
    } else {
        message
    }
}

/// The same, without copying keys and values: those of the message share the memory of `bytes`, and keep all of it
/// alive.
pub(crate) fn decode_shared<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, DecodeError> {
    /// Forgets the source, however decoding ends.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            SOURCE.set(None);
        }
    }
    SOURCE.set(Some(bytes.clone()));
    let _reset = Reset;
    decode(bytes)
}

/// The same for a message with at most so many operations, conditions and reads together. Each takes a hundred times the
/// memory of the byte or two that it may have in a message: what is too many is not held first and counted then.
pub(crate) fn decode_limited<T: DeserializeOwned>(bytes: &Bytes, steps_max: usize) -> Result<T, DecodeError> {
    /// Lifts the limit, however decoding ends.
    struct Lift;
    impl Drop for Lift {
        fn drop(&mut self) {
            STEPS.set(Steps::Unlimited);
        }
    }
    STEPS.set(Steps::Left(steps_max));
    let _lift = Lift;
    let decoded = decode_shared(bytes);
    match STEPS.get() {
        Steps::TooMany => Err(DecodeError::TooManySteps { limit: steps_max }),
        Steps::Unlimited | Steps::Left(_) => decoded,
    }
}

/// What [`decode_limited`] still lets a message have.
#[derive(Debug, Clone, Copy)]
enum Steps {
    Unlimited,
    Left(usize),
    TooMany,
}

thread_local! {
    /// What is being decoded by [`decode_shared`]: serde hands visitors slices, and a slice does not say whose
    /// memory it is part of.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
    /// What the message may still have that is being decoded.
    static STEPS: Cell<Steps> = const { Cell::new(Steps::Unlimited) };
}

/// For `deserialize_with`: a sequence whose elements count as steps.
pub(crate) fn steps<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Counted<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Counted<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            /// What is reserved for what the message only claims.
            const RESERVED_BYTES_MAX: usize = 64 * 1024;
            let claimed = elements.size_hint().unwrap_or_default();
            let mut all = Vec::with_capacity(claimed.min(RESERVED_BYTES_MAX / size_of::<T>().max(1)));
            while let Some(element) = elements.next_element()? {
                match STEPS.get() {
                    Steps::Unlimited => {}
                    Steps::Left(0) | Steps::TooMany => {
                        STEPS.set(Steps::TooMany);
                        return Err(A::Error::custom("too many steps"));
                    }
                    Steps::Left(left) => STEPS.set(Steps::Left(left - 1)),
                }
                all.push(element);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(Counted(PhantomData))
}

/// Bytes of a message that may be a part of its memory.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Bytes);

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        shared(deserializer).map(Shared)
    }
}

/// For `deserialize_with`: bytes that may be a part of the message's memory.
pub(super) fn shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    struct Slices;
    impl<'de> Visitor<'de> for Slices {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("bytes")
        }

        fn visit_borrowed_bytes<E>(self, slice: &'de [u8]) -> Result<Bytes, E> {
            Ok(SOURCE.with_borrow(|source| match source {
                Some(source) if is_part(source, slice) => source.slice_ref(slice),
                _ => Bytes::copy_from_slice(slice),
            }))
        }

        fn visit_bytes<E>(self, slice: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(slice))
        }

        fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
            Ok(bytes.into())
        }

        // Formats for people write bytes as a list of numbers.
        fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Bytes, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = numbers.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes.into())
        }
    }
    deserializer.deserialize_bytes(Slices)
}

fn is_part(whole: &[u8], part: &[u8]) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

/// A vector that postcard appends to without taking it.
struct Appending<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Appending<'_> {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, iter: I) {
        self.0.extend(iter);
    }
}

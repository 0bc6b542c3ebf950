//! What stands on a stream: a header of two bytes from the opener, then messages with their lengths.
//!
//! Pure: bytes in, messages out. `docs/formats/transport.md` has the same, byte by byte.
//!
//! Always: a length is checked before anything is allocated for it, and memory is taken only as bytes
//! arrive; a message is handed out whole; where a chunk holds whole messages they share its memory.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::Class;

/// The default limit of a message: 32 MiB, well above the largest entry and below what hurts to hold twice.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// The version of the header and of the framing that we speak.
pub(crate) const STREAM_VERSION: u8 = 1;

/// Bytes of the header: version, class.
pub(crate) const HEADER_BYTES: usize = 2;

/// Bytes before each message: its length, big-endian.
const LENGTH_BYTES: usize = 4;

/// A message up to this size is copied next to its neighbours, so that many leave in one write; a larger one
/// is handed on as it is, since there the copy costs more than the write.
const COPIED_BYTES_MAX: usize = 8 << 10;

/// The memory of a message that has not arrived whole is at most so many times what has arrived of it.
const GROWTH: usize = 8;

/// A header that we do not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("stream version {found} is not spoken here, only {STREAM_VERSION}")]
    Version { found: u8 },
    #[error("there is no class of traffic {found}")]
    Class { found: u8 },
}

/// A message that is longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer announced a message of {size} bytes, the limit is {limit}")]
pub(crate) struct Oversized {
    pub(crate) size: usize,
    pub(crate) limit: usize,
}

/// The first bytes of a stream.
pub(crate) fn header(class: Class) -> [u8; HEADER_BYTES] {
    // Written out, not cast: the numbers are a format.
    let class = match class {
        Class::Control => 0,
        Class::Append => 1,
        Class::Client => 2,
        Class::Bulk => 3,
    };
    [STREAM_VERSION, class]
}

/// Understands the first bytes of a stream.
pub(crate) fn parse_header(bytes: [u8; HEADER_BYTES]) -> Result<Class, HeaderError> {
    let [version, class] = bytes;
    if version != STREAM_VERSION {
        return Err(HeaderError::Version { found: version });
    }
    match class {
        0 => Ok(Class::Control),
        1 => Ok(Class::Append),
        2 => Ok(Class::Client),
        3 => Ok(Class::Bulk),
        found => Err(HeaderError::Class { found }),
    }
}

/// Turns messages into few chunks to write, in order, and empties the vector. The caller checked the sizes:
/// each fits a u32.
pub(crate) fn encode(messages: &mut Vec<Bytes>, chunks: &mut Vec<Bytes>) {
    let copied = |message: &Bytes| match message.len() {
        length if length <= COPIED_BYTES_MAX => LENGTH_BYTES + length,
        _ => LENGTH_BYTES,
    };
    let mut buffer = BytesMut::with_capacity(messages.iter().map(copied).sum());
    for message in messages.drain(..) {
        debug_assert!(
            u32::try_from(message.len()).is_ok(),
            "a message of {} bytes",
            message.len()
        );
        buffer.put_u32(message.len() as u32);
        if message.len() <= COPIED_BYTES_MAX {
            buffer.extend_from_slice(&message);
        } else {
            chunks.push(buffer.split().freeze());
            chunks.push(message);
        }
    }
    if !buffer.is_empty() {
        chunks.push(buffer.freeze());
    }
}

/// Finds the messages in the chunks of a stream.
#[derive(Debug)]
pub(crate) struct Decoder {
    limit: usize,
    /// The beginning of a message whose end has not arrived, with its length in front. Empty between messages.
    partial: BytesMut,
}

impl Decoder {
    /// A decoder at the beginning of a message, for messages of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            partial: BytesMut::new(),
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.partial.is_empty()
    }

    /// The length of the message that has begun and not ended, where it is known.
    pub(crate) fn announced(&self) -> Option<usize> {
        let prefix = self.partial.first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_be_bytes(*prefix) as usize)
    }

    /// Takes the next chunk, and hands out all messages that end in it. After an error the stream is useless.
    pub(crate) fn push(&mut self, mut chunk: Bytes, messages: &mut Vec<Bytes>) -> Result<(), Oversized> {
        while !chunk.is_empty() {
            if self.partial.is_empty()
                && let Some(length) = self.length(&chunk)?
                && chunk.len() - LENGTH_BYTES >= length
            {
                chunk.advance(LENGTH_BYTES);
                messages.push(chunk.split_to(length));
                continue;
            }
            let missing = match self.length(&self.partial)? {
                Some(length) => LENGTH_BYTES + length - self.partial.len(),
                None => LENGTH_BYTES - self.partial.len(),
            };
            let part = chunk.split_to(missing.min(chunk.len()));
            // At once for the whole message, where that is not many times what has arrived: an announcement alone takes
            // no memory, and most messages are allocated once.
            let arrived = self.partial.len() + part.len();
            if self.partial.capacity() < arrived {
                self.partial
                    .reserve(missing.min(GROWTH * arrived - self.partial.len()));
            }
            self.partial.extend_from_slice(&part);
            if let Some(length) = self.length(&self.partial)?
                && self.partial.len() == LENGTH_BYTES + length
            {
                let mut message = std::mem::take(&mut self.partial).freeze();
                message.advance(LENGTH_BYTES);
                messages.push(message);
            }
        }
        Ok(())
    }

    /// The length that stands at the beginning, checked; `None` while it is not complete.
    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, Oversized> {
        let Some(prefix) = bytes.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(*prefix) as usize;
        if size > self.limit {
            return Err(Oversized {
                size,
                limit: self.limit,
            });
        }
        Ok(Some(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut chunks = Vec::new();
        let mut messages = messages
            .iter()
            .map(|message| Bytes::from(message.clone()))
            .collect();
        encode(&mut messages, &mut chunks);
        assert!(messages.is_empty());
        chunks.concat()
    }

    proptest! {
        #[test]
        fn messages_survive_any_way_of_cutting_the_stream(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in prop::collection::vec(1_usize..97, 1..40),
        ) {
            let wire = Bytes::from(wire(&messages));
            let mut decoder = Decoder::new(300);
            let mut decoded = Vec::new();
            let (mut rest, mut cuts) = (wire, cuts.into_iter().cycle());
            while !rest.is_empty() {
                let cut = cuts.next().unwrap().min(rest.len());
                decoder.push(rest.split_to(cut), &mut decoded).unwrap();
                prop_assert!(decoder.partial.len() < LENGTH_BYTES + 300);
            }
            prop_assert!(decoder.is_between_messages());
            prop_assert_eq!(decoded, messages);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_within_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::new(64);
            let mut decoded = Vec::new();
            let result = decoder.push(Bytes::from(bytes), &mut decoded);
            prop_assert!(decoded.iter().all(|message| message.len() <= 64));
            if let Err(oversized) = result {
                prop_assert!(oversized.size > 64);
            }
        }

        #[test]
        fn a_header_is_understood_or_refused(bytes in any::<[u8; 2]>()) {
            match parse_header(bytes) {
                Ok(class) => prop_assert_eq!(header(class), bytes),
                Err(HeaderError::Version { found }) => prop_assert_eq!(found, bytes[0]),
                Err(HeaderError::Class { found }) => prop_assert_eq!(found, bytes[1]),
            }
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory_before_its_bytes_arrive() {
        let mut decoder = Decoder::new(1 << 30);
        let mut decoded = Vec::new();
        decoder
            .push(Bytes::from_static(&[0x3F, 0xFF, 0xFF, 0xFF, 1]), &mut decoded)
            .unwrap();
        assert!(
            decoder.partial.capacity() < 1_024,
            "{}",
            decoder.partial.capacity()
        );
        assert!(decoded.is_empty() && !decoder.is_between_messages());
    }

    #[test]
    fn a_length_above_the_limit_is_refused_with_the_figures() {
        let mut decoder = Decoder::new(10);
        let refused = decoder.push(Bytes::from_static(&[0, 0, 0, 11]), &mut Vec::new());
        assert_eq!(refused, Err(Oversized { size: 11, limit: 10 }));
    }

    #[test]
    fn small_messages_leave_in_one_chunk_and_large_ones_are_not_copied() {
        let large = Bytes::from(vec![7; COPIED_BYTES_MAX + 1]);
        let mut messages: Vec<Bytes> = vec!["a".into(), "b".into(), large.clone(), "c".into(), Bytes::new()];
        let mut chunks = Vec::new();
        encode(&mut messages, &mut chunks);
        assert_eq!(chunks.len(), 3);
        assert_eq!(&chunks[0][..], b"\0\0\0\x01a\0\0\0\x01b\0\0\x20\x01");
        assert_eq!(chunks[1].as_ptr(), large.as_ptr());
        assert_eq!(&chunks[2][..], b"\0\0\0\x01c\0\0\0\0");
    }

    #[test]
    fn a_whole_message_shares_the_memory_of_its_chunk() {
        let chunk = Bytes::from_static(b"\0\0\0\x05hello");
        let mut messages = Vec::new();
        Decoder::new(5).push(chunk.clone(), &mut messages).unwrap();
        assert_eq!(messages[0].as_ptr(), chunk[4..].as_ptr());
    }
}

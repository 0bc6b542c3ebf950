//! One chunk of a snapshot: the frame around its payload.
//!
//! Format version (1 byte, 1), flags (1 byte, bit 0: the last chunk), the snapshot's tag (8 bytes: XXH3-64 of
//! its head, so that chunks of two snapshots never mix), the chunk's number (4 bytes, from 0), the payload,
//! and XXH3-64 of all that (8 bytes). Numbers are big-endian.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::machine::rows::wire::{Malformed, Row};

const FORMAT_VERSION: u8 = 1;
const LAST: u8 = 1;
const CHECKSUM_BYTES: usize = 8;

/// A chunk whose checksum was right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    pub(super) last: bool,
    pub(super) snapshot: u64,
    pub(super) number: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Chunk<'a> {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(14 + self.payload.len() + CHECKSUM_BYTES);
        out.push(FORMAT_VERSION);
        out.push(if self.last { LAST } else { 0 });
        out.extend_from_slice(&self.snapshot.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(self.payload);
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_be_bytes());
        out.into()
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (framed, checksum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(Malformed("the chunk is shorter than its checksum"))?;
        if u64::from_be_bytes(*checksum) != xxh3_64(framed) {
            return Err(Malformed("the chunk's checksum is wrong"));
        }
        let mut row = Row::new(framed);
        if row.u8()? != FORMAT_VERSION {
            return Err(Malformed("the chunk is of an unknown format version"));
        }
        let last = match row.u8()? {
            0 => false,
            LAST => true,
            _ => return Err(Malformed("the chunk has unknown flags")),
        };
        Ok(Self {
            last,
            snapshot: row.u64()?,
            number: u32::from_be_bytes(row.array()?),
            payload: row.rest(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_chunk_reads_back_and_every_damage_is_refused(
            last: bool, snapshot: u64, number: u32, payload in prop::collection::vec(any::<u8>(), 0..200),
            at: prop::sample::Index, bits in 1u8..=255, cut: prop::sample::Index, more in 1usize..9,
        ) {
            let chunk = Chunk { last, snapshot, number, payload: &payload };
            let bytes = chunk.encode().to_vec();
            prop_assert_eq!(Chunk::decode(&bytes), Ok(chunk));
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= bits;
            prop_assert!(Chunk::decode(&flipped).is_err());
            prop_assert!(Chunk::decode(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(Chunk::decode(&[&bytes[..], &vec![0; more]].concat()).is_err());
        }

        #[test]
        fn bytes_whose_checksum_is_right_are_the_one_form_of_a_chunk_or_refused(
            mut framed in prop::collection::vec(any::<u8>(), 0..40), version in 0u8..3, flags in 0u8..4,
        ) {
            for (byte, value) in framed.iter_mut().zip([version, flags]) {
                *byte = value;
            }
            let checksum = xxh3_64(&framed);
            let bytes = [&framed[..], &checksum.to_be_bytes()].concat();
            if let Ok(chunk) = Chunk::decode(&bytes) {
                prop_assert_eq!(&chunk.encode()[..], &bytes[..]);
            }
        }
    }
}

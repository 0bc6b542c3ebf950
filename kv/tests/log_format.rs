//! The bytes of the log, as a broken disk may return them: the decoders are taken from the source, and shown records
//! that were damaged and bytes that never were a record.

use proptest::prelude::*;
use proptest::sample::Index;
use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term, decode, encode};

// What the decoders know of the crate.
mod model {
    pub use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};
}

#[path = "../src/log/format.rs"]
#[allow(dead_code, reason = "the log uses the rest")]
mod format;

use format::{
    Anchor, BATCH_HEADER, BadHeader, BadRecord, BatchHeader, Head, PAYLOAD_BYTES_MAX, RECORD_HEADER,
    RecordHeader, RecordKind, SECTOR, SegmentHeader, claimed_payload_bytes, decode_record, encode_record,
};

const KINDS: [RecordKind; 8] = [
    RecordKind::Entry,
    RecordKind::Vote,
    RecordKind::Committed,
    RecordKind::Truncate,
    RecordKind::Clear,
    RecordKind::Purge,
    RecordKind::Head,
    RecordKind::Seal,
];

fn position() -> impl Strategy<Value = LogPosition> {
    any::<[u64; 3]>().prop_map(|[term, leader, index]| LogPosition {
        term: Term::new(term),
        leader: NodeId::new(leader),
        index: LogIndex::new(index),
    })
}

fn segment() -> impl Strategy<Value = SegmentHeader> {
    any::<[u64; 3]>().prop_map(|[log_id, generation, bytes]| SegmentHeader {
        log_id,
        generation,
        bytes,
    })
}

/// A record and its bytes.
fn record() -> impl Strategy<Value = (u32, RecordHeader, Vec<u8>)> {
    let payload = prop::collection::vec(any::<u8>(), 0..100);
    let kind = prop::sample::select(&KINDS[..]);
    (any::<u32>(), any::<u32>(), kind, position(), payload).prop_map(
        |(salt, opening, kind, position, payload)| {
            let mut bytes = Vec::new();
            encode_record(salt, opening, kind, position, &payload, &mut bytes);
            let header = RecordHeader {
                kind,
                opening,
                position,
                payload_bytes: payload.len() as u32,
            };
            (salt, header, bytes)
        },
    )
}

proptest! {
    #[test]
    fn a_segments_header_reads_back_and_damage_is_refused(header in segment(), at in 0usize..64, bits in 1u8..=255) {
        let sector = header.encode();
        prop_assert_eq!(SegmentHeader::decode(&sector), Ok(header));
        let mut flipped = sector;
        flipped[at] ^= bits;
        prop_assert_eq!(SegmentHeader::decode(&flipped), Err(BadHeader::Unreadable));
    }

    #[test]
    fn any_sector_is_refused_or_read_as_what_stands_in_it(
        mut sector in prop::collection::vec(any::<u8>(), SECTOR as usize), version in 0u32..3, ours: bool,
    ) {
        // With the right magic and checksum, or hardly any would be looked at.
        if ours {
            sector[..8].copy_from_slice(b"QUORALOG");
            sector[8..12].copy_from_slice(&version.to_le_bytes());
            let crc = crc32c::crc32c(&sector[..60]);
            sector[60..64].copy_from_slice(&crc.to_le_bytes());
        }
        let sector: [u8; SECTOR as usize] = sector.try_into().unwrap();
        match SegmentHeader::decode(&sector) {
            Ok(header) => {
                prop_assert!(ours && version == 1);
                prop_assert_eq!(&header.encode()[16..40], &sector[16..40]);
            }
            Err(BadHeader::Version(found)) => prop_assert!(ours && found == version && version != 1),
            Err(BadHeader::Unreadable) => prop_assert!(!ours),
        }
    }

    #[test]
    fn a_batchs_header_reads_back_at_its_place_alone_and_damage_is_refused(
        salt: u32, other_salt: u32, numbers: [u64; 2], counts: [u32; 3], at in 0usize..BATCH_HEADER, bits in 1u8..=255,
        cut in 0usize..BATCH_HEADER,
    ) {
        let offset = (numbers[0] % (1 << 40)) / SECTOR * SECTOR;
        let header = BatchHeader {
            offset,
            durable: numbers[1],
            body_bytes: counts[0],
            records: counts[1],
            opening: counts[2],
        };
        let mut bytes = vec![0; BATCH_HEADER];
        header.encode(salt, &mut bytes);
        prop_assert_eq!(BatchHeader::decode(salt, &bytes, offset), Some(header));
        prop_assert!(header.end() > offset && header.end().is_multiple_of(SECTOR));
        prop_assert_eq!(BatchHeader::decode(salt, &bytes, offset + SECTOR), None);
        if other_salt != salt {
            prop_assert_eq!(BatchHeader::decode(other_salt, &bytes, offset), None);
        }
        prop_assert_eq!(BatchHeader::decode(salt, &bytes[..cut], offset), None);
        bytes[at] ^= bits;
        prop_assert_eq!(BatchHeader::decode(salt, &bytes, offset), None);
    }

    #[test]
    fn a_record_reads_back_whatever_follows_and_damage_is_refused(
        (salt, header, bytes) in record(), other_salt: u32, behind: Vec<u8>, at: Index, bits in 1u8..=255, cut: Index,
    ) {
        prop_assert_eq!(header.record_bytes(), bytes.len());
        prop_assert_eq!(claimed_payload_bytes(&bytes), Some(bytes.len() - RECORD_HEADER));
        prop_assert_eq!(decode_record(salt, &[&bytes[..], &behind].concat()), Ok(header));
        if other_salt != salt {
            prop_assert_eq!(decode_record(other_salt, &bytes), Err(BadRecord::Unreadable));
        }
        prop_assert_eq!(decode_record(salt, &bytes[..cut.index(bytes.len())]), Err(BadRecord::Unreadable));
        let mut flipped = bytes.clone();
        flipped[at.index(bytes.len())] ^= bits;
        prop_assert_eq!(decode_record(salt, &flipped), Err(BadRecord::Unreadable));
    }

    #[test]
    fn any_bytes_are_refused_or_a_record_within_them(salt: u32, mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..12, size in 0u32..80) {
        if bytes.len() >= RECORD_HEADER {
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            bytes[12] = kind;
            let end = (RECORD_HEADER + size as usize).min(bytes.len());
            let crc = crc32c::crc32c_append(salt, &bytes[4..end]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
        }
        match decode_record(salt, &bytes) {
            Ok(header) => {
                prop_assert!(header.record_bytes() <= bytes.len());
                prop_assert!((1..=8).contains(&kind));
            }
            Err(BadRecord::UnknownKind(found)) => prop_assert!(found == kind && !(1..=8).contains(&kind)),
            Err(BadRecord::Unreadable) => prop_assert!(bytes.len() < RECORD_HEADER + size as usize),
        }
        if let Some(claimed) = claimed_payload_bytes(&bytes) {
            prop_assert!(claimed <= PAYLOAD_BYTES_MAX);
        }
    }

    #[test]
    fn a_head_records_payload_reads_back_and_a_part_of_it_is_none(
        sequence: u64, previous: Option<u64>, purged in prop::option::of(position()), last in prop::option::of(position()),
        vote: Option<Vec<u8>>, committed: Option<Vec<u8>>, cut: Index,
    ) {
        let state = Anchor {
            purged,
            last,
            vote: vote.map(Into::into),
            committed: committed.map(Into::into),
        };
        let head = Head { sequence, previous, state };
        let bytes = encode(&head);
        prop_assert_eq!(decode::<Head>(&bytes), Ok(head));
        prop_assert!(decode::<Head>(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(decode::<Head>(&[&bytes[..], &[0]].concat()).is_err());
    }
}

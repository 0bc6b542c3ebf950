//! What stands in a segment of the log. The decoders are taken from the source: they need nothing else of the crate.
//! The first byte says which, and whether the checksum is made right, without which hardly anything gets further.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_kv::model::{decode, encode};

mod model {
    pub use quorate_kv::model::{LogIndex, LogPosition, NodeId, Term};
}

#[path = "../../kv/src/log/format.rs"]
#[allow(dead_code)]
mod format;

use format::{
    BATCH_HEADER, BatchHeader, Head, RECORD_HEADER, SECTOR, SegmentHeader, claimed_payload_bytes, decode_record,
    encode_record,
};

const SALT: u32 = 0x5eed;
const PLACE: u64 = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else {
        return;
    };
    let mend = which & 0x80 != 0;
    quorate_fuzz::within_bounds(bytes, || match which % 4 {
        0 => segment(bytes, mend),
        1 => batch(bytes, mend),
        2 => record(bytes, mend),
        _ => head(bytes),
    });
});

fn segment(bytes: &[u8], mend: bool) {
    let mut sector = [0; SECTOR as usize];
    let size = bytes.len().min(sector.len());
    sector[..size].copy_from_slice(&bytes[..size]);
    if mend {
        let crc = crc32c::crc32c(&sector[..60]);
        sector[60..64].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(header) = SegmentHeader::decode(&sector) {
        let written = header.encode();
        assert_eq!(SegmentHeader::decode(&written), Ok(header));
        assert_eq!((&written[..12], &written[16..40]), (&sector[..12], &sector[16..40]));
    }
}

fn batch(bytes: &[u8], mend: bool) {
    let mut bytes = bytes.to_vec();
    if mend && bytes.len() >= BATCH_HEADER {
        bytes[8..16].copy_from_slice(&PLACE.to_le_bytes());
        let crc = crc32c::crc32c_append(SALT, &bytes[4..BATCH_HEADER]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
    if let Some(header) = BatchHeader::decode(SALT, &bytes, PLACE) {
        assert_eq!(header.offset, PLACE);
        assert!(header.end() > PLACE && header.end() % SECTOR == 0);
        let mut written = vec![0; BATCH_HEADER];
        header.encode(SALT, &mut written);
        assert_eq!(written[4..36], bytes[4..36]);
        assert_eq!(BatchHeader::decode(SALT, &written, PLACE), Some(header));
    }
}

fn record(bytes: &[u8], mend: bool) {
    let mut bytes = bytes.to_vec();
    if mend && let Some(claimed) = claimed_payload_bytes(&bytes) {
        let end = (RECORD_HEADER + claimed).min(bytes.len());
        let crc = crc32c::crc32c_append(SALT, &bytes[4..end]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(header) = decode_record(SALT, &bytes) {
        let payload = &bytes[RECORD_HEADER..header.record_bytes()];
        let mut written = Vec::new();
        encode_record(SALT, header.opening, header.kind, header.position, payload, &mut written);
        assert_eq!(decode_record(SALT, &written), Ok(header));
        assert_eq!((&written[4..13], &written[16..]), (&bytes[4..13], &bytes[16..header.record_bytes()]));
    }
}

fn head(bytes: &[u8]) {
    if let Ok(head) = decode::<Head>(bytes) {
        let written = encode(&head);
        assert!(written == bytes || written.len() < bytes.len());
        assert_eq!(decode::<Head>(&written), Ok(head));
    }
}

//! The bytes of a segment: its header, its batches, their records. `docs/formats/log.md` draws them.
//!
//! Pure functions between bytes and values; knows no file.
//!
//! Always: whatever a checksum covers is salted with its segment's header, so that bytes of another life of
//! the file, or of another file, never verify; a batch also names its own offset, so that a copy never
//! verifies elsewhere.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::{LogIndex, LogPosition, NodeId, Term};

/// The format that this release writes and reads.
pub(super) const FORMAT_VERSION: u32 = 1;
/// What the system keeps of a file in memory, and brings to the disk, as one.
pub(super) const PAGE: u64 = 4096;
/// Where the first batch of a segment starts: the header has a page of its own, so that writing the header
/// anew never touches a page that holds records.
pub(super) const FIRST_BATCH: u64 = PAGE;
/// Batches start at multiples of this, so that writing one never touches a sector that holds durable bytes.
pub(super) const SECTOR: u64 = 512;
/// The length of a batch's header.
pub(super) const BATCH_HEADER: usize = 48;
/// The length of a record's header.
pub(super) const RECORD_HEADER: usize = 40;
/// The longest payload of a record. Far above what the store's limits let through (16 MiB and a little).
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 30;

const SEGMENT_MAGIC: [u8; 8] = *b"QUORALOG";
const SEGMENT_HEADER: usize = 64;
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"QBAT");

/// What a segment's first sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Drawn when the log was made; the same in all its segments.
    pub log_id: u64,
    /// This life of the file. Never given twice in one log.
    pub generation: u64,
    /// The file's length.
    pub bytes: u64,
}

/// Why a first sector is not a header of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// It does not verify: torn while it was written anew, or rotten.
    Unreadable,
    /// Of another release.
    Version(u32),
}

impl SegmentHeader {
    /// The header's sector.
    pub fn encode(&self) -> [u8; SECTOR as usize] {
        let mut sector = [0; SECTOR as usize];
        put(&mut sector, 0, &SEGMENT_MAGIC);
        put(&mut sector, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut sector, 16, &self.log_id.to_le_bytes());
        put(&mut sector, 24, &self.generation.to_le_bytes());
        put(&mut sector, 32, &self.bytes.to_le_bytes());
        put(&mut sector, 60, &self.salt().to_le_bytes());
        sector
    }

    /// Reads a header's sector.
    pub fn decode(sector: &[u8; SECTOR as usize]) -> Result<Self, BadHeader> {
        let crc = crc32c::crc32c(&sector[..60]);
        if sector[..8] != SEGMENT_MAGIC || crc != u32_at(sector, 60) {
            return Err(BadHeader::Unreadable);
        }
        let version = u32_at(sector, 8);
        if version != FORMAT_VERSION {
            return Err(BadHeader::Version(version));
        }
        Ok(Self {
            log_id: u64_at(sector, 16),
            generation: u64_at(sector, 24),
            bytes: u64_at(sector, 32),
        })
    }

    /// What the checksums of this life start from: the header's own checksum. Two generations that differ in
    /// their low 32 bits differ in it for certain, since a CRC-32 tells all such bursts apart.
    pub fn salt(&self) -> u32 {
        let mut bytes = [0; SEGMENT_HEADER];
        put(&mut bytes, 0, &SEGMENT_MAGIC);
        put(&mut bytes, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.log_id.to_le_bytes());
        put(&mut bytes, 24, &self.generation.to_le_bytes());
        put(&mut bytes, 32, &self.bytes.to_le_bytes());
        crc32c::crc32c(&bytes[..60])
    }
}

/// What stands before the records of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Where this batch starts in its segment.
    pub offset: u64,
    /// Up to where the segment was known to be durable when this batch was written: who finds this batch
    /// knows that whatever stands before that offset was once whole.
    pub durable: u64,
    /// How many bytes of records follow, without the padding.
    pub body_bytes: u32,
    /// How many records follow.
    pub records: u32,
    /// How often the log was opened for writing: what an interrupted write left behind bears a smaller one.
    pub opening: u32,
}

impl BatchHeader {
    /// Writes the header over the first bytes of `batch`.
    pub fn encode(&self, salt: u32, batch: &mut [u8]) {
        put(batch, 4, &BATCH_MAGIC.to_le_bytes());
        put(batch, 8, &self.offset.to_le_bytes());
        put(batch, 16, &self.durable.to_le_bytes());
        put(batch, 24, &self.body_bytes.to_le_bytes());
        put(batch, 28, &self.records.to_le_bytes());
        put(batch, 32, &self.opening.to_le_bytes());
        put(batch, 36, &[0; 12]);
        let crc = crc32c::crc32c_append(salt, &batch[4..BATCH_HEADER]);
        put(batch, 0, &crc.to_le_bytes());
    }

    /// Reads the header of a batch that would start at `offset`; `None` when there is none.
    pub fn decode(salt: u32, bytes: &[u8], offset: u64) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEADER)?;
        // The magic comes first: it spares the checksum for whatever is not a batch.
        if u32_at(bytes, 4) != BATCH_MAGIC
            || u64_at(bytes, 8) != offset
            || u32_at(bytes, 0) != crc32c::crc32c_append(salt, &bytes[4..])
        {
            return None;
        }
        Some(Self {
            offset,
            durable: u64_at(bytes, 16),
            body_bytes: u32_at(bytes, 24),
            records: u32_at(bytes, 28),
            opening: u32_at(bytes, 32),
        })
    }

    /// Where the next batch would start.
    pub fn end(&self) -> u64 {
        sector_up(self.offset + BATCH_HEADER as u64 + u64::from(self.body_bytes))
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// An entry of Raft's log.
    Entry,
    /// The vote, an opaque blob.
    Vote,
    /// How far the log is known to be committed, an opaque blob.
    Committed,
    /// The entries after the position are gone, replaced by what follows.
    Truncate,
    /// All entries are gone, of a log that was never purged.
    Clear,
    /// The entries up to the position are gone, behind a snapshot.
    Purge,
    /// The state of the log at this place, an [`Anchor`]: first in each segment and after each opening.
    Head,
    /// The log continues in the segment with generation `index`.
    Seal,
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::Committed => 3,
            Self::Truncate => 4,
            Self::Purge => 5,
            Self::Head => 6,
            Self::Seal => 7,
            Self::Clear => 8,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Committed,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Head,
            7 => Self::Seal,
            8 => Self::Clear,
            _ => return None,
        })
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub kind: RecordKind,
    pub opening: u32,
    pub position: LogPosition,
    pub payload_bytes: u32,
}

impl RecordHeader {
    /// How long the record is, header and payload.
    pub fn record_bytes(&self) -> usize {
        RECORD_HEADER + self.payload_bytes as usize
    }
}

/// The position of a record that is not about an entry.
pub(super) const NO_POSITION: LogPosition = LogPosition {
    term: Term::new(0),
    leader: NodeId::new(0),
    index: LogIndex::new(0),
};

/// The position field of a record that carries one number only.
pub(super) fn number_only(number: u64) -> LogPosition {
    LogPosition {
        index: LogIndex::new(number),
        ..NO_POSITION
    }
}

/// Appends a record to `out`. The payload is at most [`PAYLOAD_BYTES_MAX`] long.
pub(super) fn encode_record(
    salt: u32,
    opening: u32,
    kind: RecordKind,
    position: LogPosition,
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let mut header = [0; RECORD_HEADER];
    // The caller checked the length against `PAYLOAD_BYTES_MAX`.
    put(&mut header, 4, &(payload.len() as u32).to_le_bytes());
    put(&mut header, 8, &opening.to_le_bytes());
    header[12] = kind.code();
    put(&mut header, 16, &position.index.number().to_le_bytes());
    put(&mut header, 24, &position.term.number().to_le_bytes());
    put(&mut header, 32, &position.leader.number().to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(salt, &header[4..]), payload);
    put(&mut header, 0, &crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
}

/// What the length field of a record's header claims; to be believed only as far as to read that much.
pub(super) fn claimed_payload_bytes(header: &[u8]) -> Option<usize> {
    let header = header.get(..RECORD_HEADER)?;
    let bytes = u32_at(header, 4) as usize;
    (bytes <= PAYLOAD_BYTES_MAX).then_some(bytes)
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadRecord {
    /// The bytes end before the record, or the checksum differs.
    Unreadable,
    /// The checksum is right and the kind is unknown: of another release.
    UnknownKind(u8),
}

/// Reads the record at the start of `bytes`.
pub(super) fn decode_record(salt: u32, bytes: &[u8]) -> Result<RecordHeader, BadRecord> {
    let payload_bytes = claimed_payload_bytes(bytes).ok_or(BadRecord::Unreadable)?;
    let record = bytes
        .get(..RECORD_HEADER + payload_bytes)
        .ok_or(BadRecord::Unreadable)?;
    if u32_at(record, 0) != crc32c::crc32c_append(salt, &record[4..]) {
        return Err(BadRecord::Unreadable);
    }
    let kind = RecordKind::from_code(record[12]).ok_or(BadRecord::UnknownKind(record[12]))?;
    Ok(RecordHeader {
        kind,
        opening: u32_at(record, 8),
        position: LogPosition {
            index: LogIndex::new(u64_at(record, 16)),
            term: Term::new(u64_at(record, 24)),
            leader: NodeId::new(u64_at(record, 32)),
        },
        payload_bytes: payload_bytes as u32,
    })
}

/// The log's state at some place of it, so that a reader may start there: the payload of a head record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Anchor {
    /// Everything up to it is gone, behind a snapshot.
    pub purged: Option<LogPosition>,
    /// The last entry, or `purged` when there is none.
    pub last: Option<LogPosition>,
    /// The vote.
    pub vote: Option<Bytes>,
    /// How far the log is known to be committed.
    pub committed: Option<Bytes>,
}

/// A head record's payload: the segment's place in the chain, and the log's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The segment's place in the log: 1 for the first, and rising by one.
    pub sequence: u64,
    /// The generation of the segment before; none for the log's first.
    pub previous: Option<u64>,
    /// The state.
    pub state: Anchor,
}

impl Anchor {
    /// Whether both tell of the same log. What is committed may be told later than it was saved.
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.purged == other.purged && self.last == other.last && self.vote == other.vote
    }
}

/// Rounds up to the next multiple of [`SECTOR`].
pub(super) fn sector_up(offset: u64) -> u64 {
    offset.next_multiple_of(SECTOR)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

// The callers have checked the length: every offset here lies within a header.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

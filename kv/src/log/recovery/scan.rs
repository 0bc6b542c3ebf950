//! Reads one segment from its start: what its batches say, and where the last whole one ends.
//!
//! A batch counts whole or not at all. Memory: a window of the file, 4 bytes for each entry, and what one
//! batch says.

use std::path::Path;
use std::sync::Arc;

use super::super::format::{
    self, Anchor, BATCH_HEADER, BadRecord, BatchHeader, FIRST_BATCH, Head, RECORD_HEADER, RecordKind, SECTOR,
};
use super::super::open_error::{LogOpenError, corrupt, disk_error};
use super::super::segment::Segment;
use super::super::view::Runs;
use crate::model::LogPosition;

/// How much of the file is read at once.
const WINDOW_BYTES: usize = 1 << 20;
/// The same for a scrub, beside which others work.
const SCRUB_BYTES: usize = 256 << 10;

/// What a segment holds.
pub(super) enum SegmentContent {
    /// No whole batch.
    Nothing,
    /// At least one.
    Batches(Box<Scan>),
}

/// What the whole batches of a segment come to.
#[derive(Debug)]
pub(super) struct Scan {
    pub segment: Arc<Segment>,
    pub sequence: u64,
    pub previous: Option<u64>,
    /// The log's state before this segment.
    pub head: Anchor,
    /// The log's state after it.
    pub end: Anchor,
    /// The generation of the segment that follows, if this one was ended.
    pub sealed: Option<u64>,
    /// Where the last whole batch ends.
    pub cursor: u64,
    /// Up to where the segment is known to be durable: the furthest that any of its batches says.
    pub proven: u64,
    /// The greatest opening met.
    pub opening: u32,
    first: u64,
    /// Where the entries of this segment stand that were not truncated within it, from `first` on.
    pub offsets: Vec<u32>,
    runs: Runs,
}

/// The head with which a segment starts, if its first batch seems to be there.
pub(super) fn peek(segment: &Segment) -> Result<Option<Head>, LogOpenError> {
    let mut window = Window::new(segment);
    let Some(_) = window.batch(FIRST_BATCH)? else {
        return Ok(None);
    };
    let record = match window.record(FIRST_BATCH + BATCH_HEADER as u64)? {
        Ok(record) if record.header.kind == RecordKind::Head => record,
        Ok(_) | Err(BadRecord::Unreadable) => return Ok(None),
        Err(BadRecord::UnknownKind(kind)) => return Err(unknown_kind(segment, FIRST_BATCH, kind)),
    };
    head_of(segment, FIRST_BATCH, record.payload).map(Some)
}

/// How far a segment that was ended was verified.
pub(in crate::log) enum Verified {
    /// Up to there, where the next batch begins, which is of no earlier opening than this.
    UpTo(u64, u32),
    /// To its end.
    Ended,
    /// What stands there is no whole batch.
    Broken(u64),
}

/// Verifies the batches of a segment that was ended from `from` on, as far as one window goes, or one batch. Reads from the
/// disk.
pub(in crate::log) fn verify(segment: &Segment, from: u64, opening: u32) -> Result<Verified, LogOpenError> {
    let mut window = Window::of_disk(segment);
    let (mut cursor, mut opening) = (from, opening);
    let mut said = Vec::new();
    while cursor < from + SCRUB_BYTES as u64 {
        let whole = match window.batch(cursor)? {
            Some(batch) if batch.opening >= opening && window.whole(&batch, &mut said)? => batch,
            _ => return Ok(Verified::Broken(cursor)),
        };
        if said.iter().any(|said| matches!(said.what, What::Seal(_))) {
            return Ok(Verified::Ended);
        }
        cursor = whole.end();
        opening = whole.opening;
    }
    Ok(Verified::UpTo(cursor, opening))
}

/// What a segment comes to that may be damaged in several places.
pub(super) struct Survey {
    /// Where batches that were durable are not whole.
    pub holes: Vec<u64>,
    /// Where the last whole batch ends.
    pub end: u64,
    pub sealed: bool,
}

/// Reads a segment to its end, over what is not whole in it.
pub(super) fn survey(segment: &Segment) -> Result<Survey, LogOpenError> {
    let mut window = Window::of_disk(segment);
    let mut survey = Survey {
        holes: Vec::new(),
        end: FIRST_BATCH,
        sealed: false,
    };
    let (mut at, mut opening, mut said) = (FIRST_BATCH, 0, Vec::new());
    while at < segment.header.bytes {
        let hole = (at > survey.end).then_some(survey.end);
        let whole = match window.batch(at)? {
            // Behind a hole only a batch that knew of what was there counts; what a torn one left behind does not.
            Some(batch) if batch.opening >= opening && hole.is_none_or(|hole| batch.durable > hole) => {
                window.whole(&batch, &mut said)?.then_some(batch)
            }
            _ => None,
        };
        let Some(batch) = whole else {
            at += SECTOR;
            continue;
        };
        survey.holes.extend(hole);
        at = batch.end();
        (survey.end, opening) = (at, batch.opening);
        survey.sealed = said.iter().any(|said| matches!(said.what, What::Seal(_)));
        if survey.sealed {
            break;
        }
    }
    Ok(survey)
}

/// Reads a segment up to its end, or to the first batch that is not whole.
pub(super) fn scan(segment: &Arc<Segment>) -> Result<SegmentContent, LogOpenError> {
    let mut window = Window::new(segment);
    let mut scan: Option<Box<Scan>> = None;
    let mut said = Vec::new();
    let mut cursor = FIRST_BATCH;
    while let Some(batch) = window.batch(cursor)? {
        let opening = scan.as_ref().map_or(0, |scan| scan.opening);
        if batch.opening < opening || !window.whole(&batch, &mut said)? {
            break;
        }
        for statement in said.drain(..) {
            match (&mut scan, statement) {
                (Some(scan), statement) => scan.take(statement)?,
                (
                    None,
                    Said {
                        what: What::Head(head),
                        ..
                    },
                ) => scan = Some(Box::new(Scan::start(segment, head))),
                (None, other) => {
                    return Err(corrupt(
                        &segment.path,
                        other.offset,
                        "the segment does not start with a head",
                    ));
                }
            }
        }
        cursor = batch.end();
        if let Some(scan) = &mut scan {
            scan.cursor = cursor;
            scan.proven = scan.proven.max(batch.durable);
            scan.opening = batch.opening;
            if scan.sealed.is_some() {
                break;
            }
        }
    }
    Ok(scan.map_or(SegmentContent::Nothing, SegmentContent::Batches))
}

impl Scan {
    fn start(segment: &Arc<Segment>, head: Head) -> Self {
        Self {
            segment: segment.clone(),
            sequence: head.sequence,
            previous: head.previous,
            head: head.state.clone(),
            end: head.state,
            sealed: None,
            cursor: FIRST_BATCH,
            proven: FIRST_BATCH,
            opening: 0,
            first: 0,
            offsets: Vec::new(),
            runs: Runs::default(),
        }
    }

    /// A segment that follows on `before`, and of which nothing was written whole.
    pub fn empty(segment: Arc<Segment>, before: &Scan) -> Self {
        let head = Head {
            sequence: before.sequence + 1,
            previous: Some(before.segment.header.generation),
            state: before.end.clone(),
        };
        Self {
            opening: before.opening,
            ..Self::start(&segment, head)
        }
    }

    /// The indexes of the entries: the first, and the one after the last.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        (!self.offsets.is_empty()).then(|| (self.first, self.first + self.offsets.len() as u64))
    }

    /// Forgets the entries from `end` on, which later segments replaced.
    pub fn clip(&mut self, end: u64) {
        let kept = end.saturating_sub(self.first);
        self.offsets.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
    }

    /// The positions of the entries.
    pub fn positions(&self) -> impl Iterator<Item = LogPosition> + '_ {
        let (first, end) = self.bounds().unwrap_or((0, 0));
        (first..end).filter_map(|index| self.runs.position(index))
    }

    /// Looks behind the last whole batch for one that says that more was durable.
    pub fn proof_of_more(&self) -> Result<Option<BatchHeader>, LogOpenError> {
        let mut window = Window::new(&self.segment);
        let mut offset = self.cursor + SECTOR;
        while offset < self.segment.header.bytes {
            if let Some(batch) = window.batch(offset)?
                && batch.durable > self.cursor
                && batch.opening >= self.opening
            {
                return Ok(Some(batch));
            }
            offset += SECTOR;
        }
        Ok(None)
    }

    /// Whether a batch begins behind the last whole one, which is torn.
    pub fn goes_on_torn(&self) -> Result<bool, LogOpenError> {
        if self.sealed.is_some() {
            return Ok(false);
        }
        let torn = Window::new(&self.segment).batch(self.cursor)?;
        Ok(torn.is_some_and(|torn| torn.opening >= self.opening))
    }

    /// Where the log would go on if a torn batch were left where it is: for the planted bug.
    pub fn end_of_torn(&self) -> Result<u64, LogOpenError> {
        let torn = Window::new(&self.segment).batch(self.cursor)?;
        Ok(torn.map_or(self.cursor, |torn| torn.end()))
    }

    /// Writes what is not proven to be durable once more, as it was read. Does not sync.
    ///
    /// After a sync has failed the operating system may count the pages as clean and still answer reads from
    /// them: a later sync then succeeds and writes nothing. Written anew they are dirty, and the next sync is
    /// about them. Where the bytes were durable all along, each sector is overwritten by itself: a device that
    /// writes sectors whole, as each append relies upon, loses nothing.
    pub fn rewrite_unproven(&self) -> Result<(), LogOpenError> {
        let (file, path) = (&self.segment.file, &self.segment.path);
        let mut bytes = Vec::new();
        let mut from = self.proven;
        while from < self.cursor {
            let step = (self.cursor - from).min(WINDOW_BYTES as u64);
            bytes.resize(step as usize, 0);
            file.read_exact_at(&mut bytes, from)
                .map_err(disk_error("read log", path))?;
            file.write_all_at(&bytes, from)
                .map_err(disk_error("write log again", path))?;
            from += step;
        }
        Ok(())
    }

    fn take(&mut self, said: Said) -> Result<(), LogOpenError> {
        match said.what {
            What::Entry(position) => self.entry(position, said.offset)?,
            What::Vote(vote) => self.end.vote = Some(vote),
            What::Committed(committed) => self.end.committed = Some(committed),
            What::Truncate(last) => self.truncate(last, said.offset)?,
            What::Purge(upto) => {
                self.end.purged = Some(upto);
                if self.end.last.is_none_or(|last| last.index <= upto.index) {
                    self.end.last = Some(upto);
                    self.offsets.clear();
                }
            }
            What::Head(head) => {
                let agrees = head.state.agrees_with(&self.end);
                if !agrees || head.sequence != self.sequence || head.previous != self.previous {
                    let detail = format!("the state here is {:?}, and should be {:?}", head, self.end);
                    return Err(corrupt(&self.segment.path, said.offset, detail));
                }
                self.end.committed = head.state.committed;
            }
            What::Seal(next) => self.sealed = Some(next),
        }
        Ok(())
    }

    fn entry(&mut self, position: LogPosition, offset: u64) -> Result<(), LogOpenError> {
        let index = position.index.number();
        if self.end.last.is_some_and(|last| last.index.number() + 1 != index) {
            let detail = format!("entry {position} follows on {:?}", self.end.last);
            return Err(corrupt(&self.segment.path, offset, detail));
        }
        if self.offsets.is_empty() {
            self.first = index;
        }
        self.offsets.push(offset as u32);
        self.runs.push(position);
        self.end.last = Some(position);
        Ok(())
    }

    fn truncate(&mut self, last: Option<LogPosition>, offset: u64) -> Result<(), LogOpenError> {
        let purged = self.end.purged.map(|purged| purged.index);
        if last.map(|last| last.index) < purged {
            let detail = format!("a truncation to {last:?}, below the purge point {purged:?}");
            return Err(corrupt(&self.segment.path, offset, detail));
        }
        let from = last.map_or(0, |last| last.index.number() + 1);
        self.clip(from);
        self.runs.truncate(from);
        self.end.last = last;
        Ok(())
    }
}

/// What a record says, and where.
struct Said {
    offset: u64,
    what: What,
}

enum What {
    Entry(LogPosition),
    Vote(bytes::Bytes),
    Committed(bytes::Bytes),
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
    Head(Head),
    Seal(u64),
}

fn head_of(segment: &Segment, offset: u64, payload: &[u8]) -> Result<Head, LogOpenError> {
    // It verified, so it is as it was written: by another release, then.
    crate::model::decode(payload).map_err(|e| corrupt(&segment.path, offset, format!("head record: {e}")))
}

fn unknown_kind(segment: &Segment, offset: u64, kind: u8) -> LogOpenError {
    corrupt(
        &segment.path,
        offset,
        format!("a record of unknown kind {kind}: written by a later release?"),
    )
}

/// A part of a segment in memory.
struct Window<'a> {
    segment: &'a Segment,
    start: u64,
    bytes: Vec<u8>,
    /// How much is read at once.
    length: usize,
    /// Whether it is read from the disk, and not from what the system has of it in memory.
    of_disk: bool,
}

struct RecordAt<'a> {
    header: format::RecordHeader,
    payload: &'a [u8],
}

impl<'a> Window<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self {
            segment,
            start: 0,
            bytes: Vec::new(),
            length: WINDOW_BYTES,
            of_disk: false,
        }
    }

    fn of_disk(segment: &'a Segment) -> Self {
        Self {
            length: SCRUB_BYTES,
            of_disk: true,
            ..Self::new(segment)
        }
    }

    /// The bytes from `offset` on, at least `wanted` of them unless the segment ends before.
    fn at(&mut self, offset: u64, wanted: usize) -> Result<&[u8], LogOpenError> {
        let path: &Path = &self.segment.path;
        let left = usize::try_from(self.segment.header.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = wanted.min(left);
        let is_inside =
            offset >= self.start && offset + wanted as u64 <= self.start + self.bytes.len() as u64;
        if !is_inside {
            self.bytes.resize(self.length.max(wanted).min(left), 0);
            self.start = offset;
            let file = &self.segment.file;
            match self.of_disk {
                true => file.read_from_disk_at(&mut self.bytes, offset),
                false => file.read_exact_at(&mut self.bytes, offset),
            }
            .map_err(disk_error("read log", path))?;
        }
        Ok(&self.bytes[(offset - self.start) as usize..])
    }

    /// The header of a batch at `offset`, if it verifies and leads nowhere out of the segment.
    fn batch(&mut self, offset: u64) -> Result<Option<BatchHeader>, LogOpenError> {
        let salt = self.segment.salt;
        let bytes = self.segment.header.bytes;
        let header = BatchHeader::decode(salt, self.at(offset, BATCH_HEADER)?, offset);
        Ok(header.filter(|batch| batch.end() <= bytes && batch.durable <= batch.offset))
    }

    /// The record at `offset`, if it verifies.
    fn record(&mut self, offset: u64) -> Result<Result<RecordAt<'_>, BadRecord>, LogOpenError> {
        let salt = self.segment.salt;
        let Some(payload) = format::claimed_payload_bytes(self.at(offset, RECORD_HEADER)?) else {
            return Ok(Err(BadRecord::Unreadable));
        };
        let bytes = self.at(offset, RECORD_HEADER + payload)?;
        Ok(format::decode_record(salt, bytes).map(|header| RecordAt {
            header,
            payload: &bytes[RECORD_HEADER..header.record_bytes()],
        }))
    }

    /// Reads the records of a batch into `said`; `false`, and nothing said, when not all of them verify.
    fn whole(&mut self, batch: &BatchHeader, said: &mut Vec<Said>) -> Result<bool, LogOpenError> {
        said.clear();
        let segment = self.segment;
        let mut offset = batch.offset + BATCH_HEADER as u64;
        let end = offset + u64::from(batch.body_bytes);
        for _ in 0..batch.records {
            let record = match self.record(offset)? {
                Ok(record) => record,
                Err(BadRecord::Unreadable) => {
                    said.clear();
                    return Ok(false);
                }
                Err(BadRecord::UnknownKind(kind)) => return Err(unknown_kind(segment, offset, kind)),
            };
            let RecordAt { header, payload } = record;
            let position = header.position;
            let what = match header.kind {
                RecordKind::Entry => What::Entry(position),
                RecordKind::Vote => What::Vote(bytes::Bytes::copy_from_slice(payload)),
                RecordKind::Committed => What::Committed(bytes::Bytes::copy_from_slice(payload)),
                RecordKind::Truncate => What::Truncate(Some(position)),
                RecordKind::Clear => What::Truncate(None),
                RecordKind::Purge => What::Purge(position),
                RecordKind::Head => What::Head(head_of(segment, offset, payload)?),
                RecordKind::Seal => What::Seal(position.index.number()),
            };
            let length = header.record_bytes() as u64;
            if header.opening != batch.opening || offset + length > end {
                said.clear();
                return Ok(false);
            }
            said.push(Said { offset, what });
            offset += length;
        }
        if offset != end {
            said.clear();
            return Ok(false);
        }
        Ok(true)
    }
}

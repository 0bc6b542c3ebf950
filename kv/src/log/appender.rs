//! Appends records to the log: gathers them into a batch, writes it once, syncs it, and goes on to the next
//! segment when one is full. All calls block.
//!
//! Used by the writer's thread, and while the log is opened.
//!
//! Always: nothing is written behind what is not durable yet, except within one batch; a segment is ended,
//! and that is durable, before the first byte goes into the next; each segment starts with the log's state.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::crash_points::CrashPoint;
use super::format::{
    self, Anchor, BATCH_HEADER, BatchHeader, FIRST_BATCH, Head, NO_POSITION, PAGE, RECORD_HEADER, RecordKind,
    SECTOR, SegmentHeader, number_only, sector_up,
};
use super::segment::{self, Maker, Material, RawFile, Segment, prepare};
use super::settings::LogSettings;
use super::view::{Change, Written};
use crate::env::Disk;
use crate::fault::Fault;
use crate::model::LogPosition;
use crate::planted::{self, Bug};

/// How much memory the batch buffer keeps between batches: more than a busy batch takes, and little enough to
/// leave behind after a burst.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// How many files freed by purging wait for their next life; further ones are removed. Purging frees a few at
/// once, and one is needed at a time.
const POOL_FILES: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Appender {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    log_id: u64,
    next_generation: u64,
    next_number: u64,
    opening: u32,
    tail: Tail,
    /// As of the last record in the buffer.
    state: Anchor,
    /// Whether `state.committed` is newer than any record.
    committed_waits: bool,
    /// The batch being gathered; empty, or room for the header and then records.
    buffer: Vec<u8>,
    records: u32,
    changes: Vec<Change>,
    written: Written,
    pool: VecDeque<RawFile>,
    maker: Option<Maker>,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Tail {
    pub segment: Arc<Segment>,
    pub sequence: u64,
    pub previous: Option<u64>,
    /// Where the next batch goes.
    pub cursor: u64,
    /// Up to where it is durable.
    pub durable: u64,
}

/// What an appender continues.
pub(super) struct Continue {
    pub log_id: u64,
    pub next_generation: u64,
    pub next_number: u64,
    pub opening: u32,
    pub tail: Tail,
    pub state: Anchor,
    /// Files that nobody needs.
    pub pool: Vec<RawFile>,
}

impl Appender {
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, settings: &LogSettings, from: Continue) -> Self {
        Self {
            disk,
            dir,
            segment_bytes: settings.segment_bytes,
            log_id: from.log_id,
            next_generation: from.next_generation,
            next_number: from.next_number,
            opening: from.opening,
            tail: from.tail,
            state: from.state,
            committed_waits: false,
            buffer: Vec::new(),
            records: 0,
            changes: Vec::new(),
            written: Written::default(),
            pool: from.pool.into(),
            maker: None,
        }
    }

    /// Takes a maker, which from now on keeps the next segment ready.
    pub fn attach(&mut self, maker: Maker) {
        self.maker = Some(maker);
        self.tidy();
    }

    /// Lets the maker go: no segment is asked for any more.
    pub fn detach(&mut self) {
        self.maker = None;
    }

    /// Adds an entry.
    pub fn entry(&mut self, position: LogPosition, payload: &[u8]) -> Result<(), Fault> {
        let offset = self.put(RecordKind::Entry, position, payload)?;
        self.state.last = Some(position);
        self.written.entries += 1;
        let index = position.index.number();
        match self.changes.last_mut() {
            Some(Change::Entries { first, offsets }) if *first + offsets.len() as u64 == index => {
                offsets.push(offset);
            }
            _ => self.changes.push(Change::Entries {
                first: index,
                offsets: vec![offset],
            }),
        }
        Ok(())
    }

    /// Adds the vote.
    pub fn vote(&mut self, vote: bytes::Bytes) -> Result<(), Fault> {
        self.put(RecordKind::Vote, NO_POSITION, &vote)?;
        self.state.vote = Some(vote);
        Ok(())
    }

    /// Notes what is committed, to be written with whatever is written next.
    pub fn committed(&mut self, committed: bytes::Bytes) {
        self.state.committed = Some(committed);
        self.committed_waits = true;
    }

    /// Adds a truncation: the entries from `from` on are gone, and `last` is the last.
    pub fn truncate(&mut self, from: u64, last: Option<LogPosition>) -> Result<(), Fault> {
        match last {
            Some(last) => self.put(RecordKind::Truncate, last, &[])?,
            None => self.put(RecordKind::Clear, NO_POSITION, &[])?,
        };
        self.state.last = last;
        self.changes.push(Change::Truncated { from });
        Ok(())
    }

    /// Adds a purge: the entries up to `upto` are gone.
    pub fn purge(&mut self, upto: LogPosition) -> Result<(), Fault> {
        self.put(RecordKind::Purge, upto, &[])?;
        self.state.purged = Some(upto);
        if self.state.last.is_none_or(|last| last.index <= upto.index) {
            self.state.last = Some(upto);
        }
        self.changes.push(Change::Purged {
            upto: upto.index.number(),
        });
        Ok(())
    }

    /// Adds the log's whole state: the mark that the log was opened, or closed, here.
    pub fn head(&mut self) -> Result<(), Fault> {
        let head = self.encoded_head(self.tail.sequence, self.tail.previous);
        if self.fits(head.len()) {
            self.encode(RecordKind::Head, NO_POSITION, &head);
        } else {
            // The next segment starts with a head of its own.
            self.roll(0)?;
        }
        self.committed_waits = false;
        Ok(())
    }

    /// Writes and syncs what was added. After an error the appender must not be used any more.
    pub fn commit(&mut self) -> Result<(), Fault> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if self.committed_waits {
            self.put_committed()?;
        }
        self.write_and_sync()
    }

    /// Takes what became durable since the last call, and what it cost.
    pub fn take_changes(&mut self) -> (Vec<Change>, Written, Option<LogPosition>) {
        (
            std::mem::take(&mut self.changes),
            std::mem::take(&mut self.written),
            self.state.last,
        )
    }

    /// Takes files that nobody needs any more, for their next life.
    pub fn recycle(&mut self, files: Vec<RawFile>) {
        self.pool.extend(files);
        self.tidy();
    }

    fn put_committed(&mut self) -> Result<(), Fault> {
        if let Some(committed) = self.state.committed.clone() {
            self.put(RecordKind::Committed, NO_POSITION, &committed)?;
        }
        self.committed_waits = false;
        Ok(())
    }

    /// Adds a record to the batch, and answers its offset in the segment.
    fn put(&mut self, kind: RecordKind, position: LogPosition, payload: &[u8]) -> Result<u32, Fault> {
        if payload.len() > format::PAYLOAD_BYTES_MAX {
            let detail = format!("{kind:?} {position} of {} bytes", payload.len());
            return Err(Fault::invariant("a record's payload is at most 1 GiB", detail));
        }
        if !self.fits(payload.len()) {
            self.roll(payload.len())?;
        }
        Ok(self.encode(kind, position, payload))
    }

    /// Whether a record has room in this segment, and the segment's end after it.
    fn fits(&self, payload_bytes: usize) -> bool {
        let batch = self.buffer.len().max(BATCH_HEADER) + RECORD_HEADER + payload_bytes;
        sector_up(self.tail.cursor + batch as u64) + SECTOR <= self.tail.segment.header.bytes
    }

    fn encode(&mut self, kind: RecordKind, position: LogPosition, payload: &[u8]) -> u32 {
        if self.buffer.is_empty() {
            self.buffer.resize(BATCH_HEADER, 0);
        }
        let offset = self.tail.cursor + self.buffer.len() as u64;
        let salt = self.tail.segment.salt;
        format::encode_record(salt, self.opening, kind, position, payload, &mut self.buffer);
        self.records += 1;
        // A segment is at most a few GiB long: see `roll`.
        offset as u32
    }

    fn write_and_sync(&mut self) -> Result<(), Fault> {
        let header = BatchHeader {
            offset: self.tail.cursor,
            durable: self.tail.durable,
            body_bytes: (self.buffer.len() - BATCH_HEADER) as u32,
            records: self.records,
            opening: self.opening,
        };
        let segment = &self.tail.segment;
        CrashPoint::BatchGathered
            .reached()
            .map_err(|e| Fault::disk("write log", segment.path.display(), e))?;
        header.encode(segment.salt, &mut self.buffer);
        let padded = sector_up(self.buffer.len() as u64) as usize;
        let next = self.tail.cursor + padded as u64;
        self.buffer
            .resize((self.write_end(next) - self.tail.cursor) as usize, 0);
        segment
            .file
            .write_all_at(&self.buffer, self.tail.cursor)
            .and_then(|()| CrashPoint::BatchWritten.reached())
            .and_then(|()| match padded as u64 > SECTOR {
                true => CrashPoint::LongBatchWritten.reached(),
                false => Ok(()),
            })
            .map_err(|e| Fault::disk("write log", segment.path.display(), e))?;
        segment
            .file
            .sync_data()
            .or_else(|e| {
                if planted::is(Bug::SyncErrorIgnored) {
                    Ok(())
                } else {
                    Err(e)
                }
            })
            .and_then(|()| CrashPoint::BatchSynced.reached())
            .map_err(|e| Fault::disk("sync log", segment.path.display(), e))?;
        self.tail.cursor = next;
        self.tail.durable = self.tail.cursor;
        self.written.bytes += padded as u64;
        self.written.syncs += 1;
        self.records = 0;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    /// Up to where a batch is written that ends at `next`: where it enters a page, to that page's end, with zeros. The
    /// system, which forgot the page once it was zeroed, would else have to read what is not written of it.
    fn write_end(&self, next: u64) -> u64 {
        let entered = self.tail.cursor.next_multiple_of(PAGE);
        if next <= entered {
            return next;
        }
        next.next_multiple_of(PAGE).min(self.tail.segment.header.bytes)
    }

    /// Ends the segment and starts the next, which has room for a record of `payload_bytes`.
    fn roll(&mut self, payload_bytes: usize) -> Result<(), Fault> {
        let head = self.encoded_head(self.tail.sequence + 1, Some(self.tail.segment.header.generation));
        let batch = BATCH_HEADER + RECORD_HEADER + head.len() + RECORD_HEADER + payload_bytes;
        let next = Arc::new(self.next_segment(segment::bytes_for(batch as u64))?);
        self.encode(RecordKind::Seal, number_only(next.header.generation), &[]);
        self.write_and_sync()?;
        CrashPoint::SegmentEnded
            .reached()
            .map_err(|e| Fault::disk("end segment", self.tail.segment.path.display(), e))?;
        self.tail = Tail {
            sequence: self.tail.sequence + 1,
            previous: Some(self.tail.segment.header.generation),
            cursor: FIRST_BATCH,
            durable: FIRST_BATCH,
            segment: next.clone(),
        };
        self.encode(RecordKind::Head, NO_POSITION, &head);
        self.committed_waits = false;
        self.changes.push(Change::Rolled(next));
        self.written.rolls += 1;
        self.tidy();
        Ok(())
    }

    fn encoded_head(&self, sequence: u64, previous: Option<u64>) -> Vec<u8> {
        crate::model::encode(&Head {
            sequence,
            previous,
            state: self.state.clone(),
        })
    }

    fn next_segment(&mut self, bytes_min: u64) -> Result<Segment, Fault> {
        if let Some(ready) = self.maker.as_ref().and_then(|maker| maker.take(bytes_min)) {
            return Ok(ready);
        }
        self.written.segments_made_late += 1;
        let mut bytes = self.next_bytes();
        while bytes < bytes_min.min(self.segment_bytes) {
            bytes = segment::next_bytes(bytes, self.segment_bytes);
        }
        let (material, header) = self.material(bytes.max(bytes_min));
        prepare(&*self.disk, &self.dir, material, header)
    }

    /// Keeps one segment ready, and only so many files waiting as are of use.
    fn tidy(&mut self) {
        let Some(maker) = self.maker.clone() else {
            return;
        };
        let next = self.next_bytes();
        // A long entry made the log grow past the segment that was ready. Nothing refers to that yet.
        let passed = maker.take_shorter(next);
        self.pool.extend(passed.map(|segment| segment.raw()));
        if !maker.is_provided() {
            let (material, header) = self.material(next);
            if let Err(Some(Material::Recycled(raw))) = maker.ask(material, header) {
                self.pool.push_back(raw);
            }
        }
        // Segments grow: a shorter one than the next is of no use any more.
        let usable = |raw: &RawFile| raw.bytes == self.segment_bytes;
        let mut kept = VecDeque::new();
        for raw in self.pool.drain(..) {
            if (usable(&raw) && kept.len() < POOL_FILES) || !maker.remove(raw.path.clone()) {
                kept.push_back(raw);
            }
        }
        self.pool = kept;
    }

    /// The length of the segment behind the tail.
    fn next_bytes(&self) -> u64 {
        segment::next_bytes(self.tail.segment.header.bytes, self.segment_bytes)
    }

    /// What to make a segment of, under a generation of its own.
    fn material(&mut self, bytes: u64) -> (Material, SegmentHeader) {
        let header = SegmentHeader {
            log_id: self.log_id,
            generation: self.next_generation,
            bytes,
        };
        self.next_generation += 1;
        let recycled = self.pool.iter().position(|raw| raw.bytes == bytes);
        let material = match recycled.and_then(|at| self.pool.remove(at)) {
            Some(raw) => Material::Recycled(raw),
            None => {
                let number = self.next_number;
                self.next_number += 1;
                Material::New { number }
            }
        };
        (material, header)
    }
}

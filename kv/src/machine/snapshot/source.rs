//! The sending side: a pinned state, read table by table.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use redb::{OwnedRange, ReadTransaction};
use xxhash_rust::xxh3::xxh3_64;

use super::chunk::Chunk;
use super::{CHUNK_BYTES, SnapshotMeta, TRAILER, put_head};
use crate::fault::Fault;
use crate::machine::file::database::OpenState;
use crate::machine::file::heads::{self, Heads};
use crate::machine::file::runs::{self, AllBlocks, Runs};
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::system::System;
use crate::machine::rows::tables::{SYSTEM, Table};
use crate::machine::rows::wire::{put_u64, put_varint};
use crate::model::Revision;
use crate::planted::{self, Bug};

/// The rows of a table that is being read.
enum Reading {
    Table(Box<OwnedRange<&'static [u8], &'static [u8]>>),
    Heads(Box<Heads<AllBlocks, Arc<StateFile>>>),
}

/// A state that stays as it was, and keeps its pages of the file alive, until the last of its sources and of its other
/// holders is dropped.
pub struct PinnedState {
    meta: SnapshotMeta,
    /// The head of its stream, and what the head hashes to.
    head: Vec<u8>,
    tag: u64,
    runs: Runs,
    /// Up to where its history was forgotten.
    since: Revision,
    // Before `state`: the transaction ends before its database may close.
    txn: ReadTransaction,
    state: Arc<OpenState>,
}

impl fmt::Debug for PinnedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedState")
            .field("meta", &self.meta)
            .finish_non_exhaustive()
    }
}

impl PinnedState {
    /// What it is.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    fn chunk_bytes(&self) -> usize {
        self.state.tuning.snapshot_chunk_bytes.clamp(1, CHUNK_BYTES)
    }
}

/// A pinned state, to be sent chunk by chunk, however long that takes.
pub struct SnapshotSource {
    number: u32,
    /// Bytes of the stream that are in no chunk yet.
    pending: Vec<u8>,
    rows: u64,
    /// The table that is being read.
    reading: Option<(Table, Reading)>,
    /// The tables that come next, the last first.
    waiting: Vec<Table>,
    finished: bool,
    pinned: Arc<PinnedState>,
}

/// Whether a snapshot carries a table.
fn is_sent(table: Table) -> bool {
    !(planted::is(Bug::SessionsNotInSnapshot) && matches!(table, Table::Sessions | Table::Answers))
}

impl fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSource")
            .field("meta", &self.pinned.meta)
            .field("number", &self.number)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl SnapshotSource {
    pub(in crate::machine) fn new(state: Arc<OpenState>, txn: ReadTransaction) -> Result<Self, Fault> {
        let file = &state.file;
        let table = txn
            .open_table(SYSTEM)
            .map_err(step(file, "opening the system table of"))?;
        let system = System::read(file, &table)?;
        let mut head = Vec::new();
        put_head(&mut head, &system);
        let pinned = PinnedState {
            meta: SnapshotMeta::of(&system),
            tag: xxh3_64(&head),
            head,
            runs: Runs::read(file, &table)?,
            since: system.standing.history.since,
            txn,
            state,
        };
        Ok(Self::of(Arc::new(pinned)))
    }

    /// The same stream from its beginning.
    pub fn of(pinned: Arc<PinnedState>) -> Self {
        let mut pending = Vec::with_capacity(pinned.chunk_bytes() + 4096);
        pending.extend_from_slice(&pinned.head);
        Self {
            number: 0,
            pending,
            rows: 0,
            reading: None,
            waiting: Table::ALL
                .into_iter()
                .rev()
                .filter(|table| is_sent(*table))
                .collect(),
            finished: false,
            pinned,
        }
    }

    /// What the snapshot is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.pinned.meta
    }

    /// What each of its chunks bears, and no chunk of another snapshot: the hash of its head. Streams of one tag are the same
    /// bytes, whoever sends them.
    pub fn tag(&self) -> u64 {
        self.pinned.tag
    }

    /// The state that it reads.
    pub fn pinned(&self) -> Arc<PinnedState> {
        Arc::clone(&self.pinned)
    }

    /// Leaves out the chunks before that number, which the receiver has. They are read all the same. Blocks on the disk.
    pub fn skip_to(&mut self, number: u32) -> Result<(), Fault> {
        while self.number < number && self.next_chunk()?.is_some() {}
        Ok(())
    }

    /// The next chunk, of 1 MiB at most; `None` after the last. Blocks on the disk.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.finished {
            return Ok(None);
        }
        // The head is never cut.
        let chunk_bytes = match self.number {
            0 => self.pinned.chunk_bytes().max(self.pinned.head.len()),
            _ => self.pinned.chunk_bytes(),
        };
        while self.pending.len() < chunk_bytes && self.read_more()? {}
        let size = self.pending.len().min(chunk_bytes);
        // Nothing more to read, and everything read fits.
        let last = self.reading.is_none() && self.waiting.is_empty() && size == self.pending.len();
        let chunk = Chunk {
            last,
            snapshot: self.pinned.tag,
            number: self.number,
            payload: &self.pending[..size],
        };
        let bytes = chunk.encode();
        self.pending.drain(..size);
        self.finished = last;
        self.number = self.number.checked_add(1).ok_or_else(|| {
            Fault::invariant("a snapshot has fewer than 2^32 chunks", "their numbers ran out")
        })?;
        Ok(Some(bytes))
    }

    /// Appends a row, or the trailer, to what is pending; whether there may be more.
    fn read_more(&mut self) -> Result<bool, Fault> {
        let file = &self.pinned.state.file;
        if let Some((table, rows)) = &mut self.reading {
            let (pending, table) = (&mut self.pending, *table);
            let mut put = |key: &[u8], value: &[u8]| {
                pending.push(table.tag());
                put_varint(pending, key.len() as u64);
                pending.extend_from_slice(key);
                put_varint(pending, value.len() as u64);
                pending.extend_from_slice(value);
                self.rows += 1;
            };
            let is_row = match rows {
                Reading::Table(rows) => {
                    let row = rows.next().transpose().map_err(storage(file))?;
                    row.map(|(key, value)| put(key.value(), value.value())).is_some()
                }
                Reading::Heads(heads) => {
                    let row = heads.next()?;
                    if let Some(row) = &row
                        && heads::is_of(table, row.head(), self.pinned.since)
                            .map_err(|e| file.malformed(&e))?
                    {
                        put(row.key(), row.head());
                    }
                    row.is_some()
                }
            };
            match is_row {
                true => {}
                false => {
                    self.reading = None;
                    if self.waiting.is_empty() {
                        self.pending.push(TRAILER);
                        put_u64(&mut self.pending, self.rows);
                        self.pending
                            .extend_from_slice(&self.pinned.meta.hash.0.to_be_bytes());
                    }
                }
            }
            return Ok(true);
        }
        let Some(table) = self.waiting.pop() else {
            return Ok(false);
        };
        let txn = &self.pinned.txn;
        let rows = if table.is_of_heads() {
            Reading::Heads(Box::new(runs::heads(file, txn, &self.pinned.runs)?))
        } else {
            let rows = txn
                .open_table(table.definition())
                .map_err(step(file, "opening a table of"))?;
            let all = rows.range_owned::<&[u8]>(..).map_err(storage(file))?;
            Reading::Table(Box::new(all))
        };
        self.reading = Some((table, rows));
        Ok(true)
    }
}

//! The receiving side: a new state file beside the one in use, filled chunk by chunk.

use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{CursorError, CursorMut, Database, Durability, WriteTransaction};
use xxhash_rust::xxh3::xxh3_64;

use super::chunk::Chunk;
use super::{SnapshotMeta, TRAILER, read_head};
use crate::env::Disk;
use crate::fault::Fault;
use crate::machine::file::backend::Backend;
use crate::machine::file::blocks::BLOCK_BYTES;
use crate::machine::file::blocks::BlockBound;
use crate::machine::file::database::{
    self, RECEIVING_CACHE_BYTES, UNFINISHED_PREFIX, open_database, write_frame, write_system,
};
use crate::machine::file::runs::{self, Runs, Writing};
use crate::machine::rows::chain::Fold;
use crate::machine::rows::counters::Counters;
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::head::Head;
use crate::machine::rows::row_hash::hash_of_logical_row;
use crate::machine::rows::system::System;
use crate::machine::rows::tables::Table;
use crate::machine::rows::times::{self, Stood};
use crate::machine::rows::wire::{Malformed, Row};
use crate::machine::upkeep::verify;

/// No row of ours is larger: a sender that claims one is broken, and is not believed.
const ROW_BYTES_MAX: u64 = 1 << 30;

/// The runs that the heads go to, of the keys that exist and of those that do not.
const EXISTING: u64 = 1;
const DELETED: u64 = 2;

/// So many keys have a filter that is as good as any; nobody says beforehand how many come. 16 MiB while a snapshot is received.
const FILTER_KEYS: u64 = 13_000_000;

/// Why a snapshot was not received. The state in use is as it was.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A chunk is not what the sender's state file held.
    #[error("chunk {number} is corrupt: {detail}")]
    Corrupt {
        /// The number of the chunk expected.
        number: u32,
        /// What is wrong.
        detail: String,
    },
    /// A chunk of the right snapshot came in the wrong place.
    #[error("chunk {found} came where chunk {expected} was expected")]
    OutOfOrder {
        /// The number expected.
        expected: u32,
        /// The number found.
        found: u32,
    },
    /// A chunk of another snapshot.
    #[error("chunk {number} belongs to another snapshot")]
    AnotherSnapshot {
        /// The chunk's number.
        number: u32,
    },
    /// The end came before the last chunk.
    #[error("the snapshot ended after {chunks} chunks, before its last")]
    Incomplete {
        /// How many came.
        chunks: u32,
    },
    /// The whole does not have the hash that its head says.
    #[error("the snapshot's rows hash to {found}, its head says {expected}")]
    WrongHash {
        /// By the head.
        expected: String,
        /// By the rows.
        found: String,
    },
    /// An error came before: nothing that follows is taken.
    #[error("an earlier chunk was refused")]
    Refused,
    /// This node's disk failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Receives a snapshot into a new file. Dropped before the end, it removes the file.
pub struct SnapshotSink {
    // First: when this is dropped before the end, nothing more is written to the file.
    unfinished: Unfinished,
    // Before `database`: the transaction ends before its database may close.
    txn: Option<WriteTransaction>,
    existing: Writing,
    deleted: Writing,
    database: Option<Database>,
    file: StateFile,
    expected: u32,
    head: Option<(u64, System)>,
    /// Bytes of the stream that do not make a whole item yet.
    pending: Vec<u8>,
    last_table: Option<Table>,
    rows: u64,
    rows_hash: u128,
    /// The chain of the versions so far, once the head has come.
    fold: Option<Fold>,
    counters: Counters,
    /// The last row of `times`.
    stood: Option<Stood>,
    state: Receiving,
}

impl fmt::Debug for SnapshotSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSink")
            .field("path", &self.unfinished.path)
            .field("expected", &self.expected)
            .field("rows", &self.rows)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// How far the stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Rows,
    /// The trailer was read.
    Complete,
    Refused,
}

/// A snapshot that is whole and has the right hash, in a file of its own, durable. Dropped instead of
/// installed, it removes the file.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    pub(in crate::machine) meta: SnapshotMeta,
    pub(in crate::machine) unfinished: Unfinished,
}

impl ReceivedSnapshot {
    /// What the snapshot is of.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }
}

/// The file, which goes when this is dropped.
#[derive(Debug)]
pub(in crate::machine) struct Unfinished {
    disk: Arc<dyn Disk>,
    pub(in crate::machine) path: PathBuf,
    backend: Arc<Backend>,
    keep: bool,
}

impl Unfinished {
    /// The file bears its final name now.
    pub(in crate::machine) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.keep {
            self.backend.give_up();
            // Where this fails, opening the machine removes the file.
            let _ = database::remove(&*self.disk, &self.path);
        }
    }
}

/// Where the rows of a table go: to the end of a run, or of the table itself.
enum End<'t> {
    Run(CursorMut<'t, BlockBound, &'static [u8]>, &'t mut Writing),
    Table(CursorMut<'t, &'static [u8], &'static [u8]>),
}

impl SnapshotSink {
    /// Begins to receive a snapshot beside the state file of `dir`.
    pub fn begin(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, SnapshotError> {
        // The first name that is free, so that two receptions never share a file. What an earlier process left
        // behind was removed when the machine was opened.
        let mut number = 0u32;
        let path = loop {
            let path = dir.join(format!("{UNFINISHED_PREFIX}{number}"));
            if !disk
                .exists(&path)
                .map_err(|e| Fault::disk("looking for", path.display(), e))?
            {
                break path;
            }
            number = number.wrapping_add(1);
        };
        Self::begin_in(disk, path)
    }

    /// The same in a file of this name, which nobody else uses.
    pub(in crate::machine) fn begin_as(
        disk: Arc<dyn Disk>,
        dir: &Path,
        name: &str,
    ) -> Result<Self, SnapshotError> {
        let path = dir.join(format!("{UNFINISHED_PREFIX}{name}"));
        Self::begin_in(disk, path)
    }

    fn begin_in(disk: Arc<dyn Disk>, path: PathBuf) -> Result<Self, SnapshotError> {
        let (database, backend) =
            open_database(&*disk, &path, RECEIVING_CACHE_BYTES, false, true).map_err(Fault::from)?;
        let file = backend.name().clone();
        let unfinished = Unfinished {
            disk,
            path,
            backend,
            keep: false,
        };
        // One transaction takes the whole snapshot: pages that it replaces are free at once, so that the file
        // comes out dense. Pages beyond the cache go to the disk as they come.
        let mut txn = database
            .begin_write()
            .map_err(step(&file, "beginning a transaction on"))?;
        txn.set_durability(Durability::Immediate)
            .map_err(step(&file, "beginning a transaction on"))?;
        txn.set_quick_repair(true);
        Ok(Self {
            unfinished,
            txn: Some(txn),
            existing: Writing::of(FILTER_KEYS, BLOCK_BYTES),
            deleted: Writing::of(FILTER_KEYS / 16, BLOCK_BYTES),
            database: Some(database),
            file,
            expected: 0,
            head: None,
            pending: Vec::new(),
            last_table: None,
            rows: 0,
            rows_hash: 0,
            fold: None,
            counters: Counters::ZERO,
            stood: None,
            state: Receiving::Rows,
        })
    }

    /// The number of the chunk that it takes next: so many it has.
    pub fn next(&self) -> u32 {
        self.expected
    }

    /// Takes the next chunk. After an error nothing more is taken: receive again from the start.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), SnapshotError> {
        let taken = self.take(chunk);
        if taken.is_err() {
            self.state = Receiving::Refused;
        }
        taken
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        match self.state {
            Receiving::Rows => {}
            Receiving::Complete => return Err(self.corrupt("it follows the last chunk")),
            Receiving::Refused => return Err(SnapshotError::Refused),
        }
        let chunk = Chunk::decode(bytes).map_err(|e| self.corrupt(e.0))?;
        if let Some((snapshot, _)) = self.head
            && chunk.snapshot != snapshot
        {
            let number = chunk.number;
            return Err(SnapshotError::AnotherSnapshot { number });
        }
        if chunk.number != self.expected {
            return Err(SnapshotError::OutOfOrder {
                expected: self.expected,
                found: chunk.number,
            });
        }
        let mut stream = std::mem::take(&mut self.pending);
        stream.extend_from_slice(chunk.payload);
        let mut used = 0;
        if self.head.is_none() {
            let mut row = Row::new(&stream);
            let system = read_head(&mut row).map_err(|e| self.corrupt(e.0))?;
            used = stream.len() - row.rest().len();
            if xxh3_64(&stream[..used]) != chunk.snapshot {
                return Err(self.corrupt("its head does not have the snapshot's tag"));
            }
            let history = system.standing.history;
            self.fold = Some(Fold::after(history.since, history.chain));
            self.head = Some((chunk.snapshot, system));
        }
        used += self.take_items(&stream[used..])?;
        stream.drain(..used);
        self.pending = stream;
        if chunk.last != (self.state == Receiving::Complete) {
            return Err(self.corrupt("the last chunk and the trailer do not come together"));
        }
        if chunk.last && !self.pending.is_empty() {
            return Err(self.corrupt("bytes follow the trailer"));
        }
        self.expected = self.expected.saturating_add(1);
        Ok(())
    }

    /// Takes the whole items at the front of the stream; how many bytes they have.
    fn take_items(&mut self, stream: &[u8]) -> Result<usize, SnapshotError> {
        let mut rest = stream;
        while let Some(&tag) = rest.first() {
            if tag == TRAILER {
                if let Some(trailer) = Trailer::read(&rest[1..]) {
                    self.check(&trailer)?;
                    rest = &rest[1 + Trailer::BYTES..];
                }
                break;
            }
            let table = Table::of_tag(tag).ok_or_else(|| self.corrupt("a row is of an unknown table"))?;
            if self.last_table.is_some_and(|last| table < last) {
                return Err(self.corrupt("its tables are out of order"));
            }
            self.last_table = Some(table);
            let taken = self.take_rows(table, rest)?;
            if taken == 0 {
                break;
            }
            rest = &rest[taken..];
        }
        Ok(stream.len() - rest.len())
    }

    /// Takes the whole rows of one table at the front of the stream; how many bytes they have.
    fn take_rows(&mut self, table: Table, stream: &[u8]) -> Result<usize, SnapshotError> {
        let number = self.expected;
        let corrupt = |e: Malformed| SnapshotError::Corrupt {
            number,
            detail: e.0.into(),
        };
        let Some(txn) = &self.txn else {
            return Err(SnapshotError::Refused);
        };
        let heads = match table {
            Table::Current => Some((EXISTING, &mut self.existing)),
            Table::Deleted => Some((DELETED, &mut self.deleted)),
            _ => None,
        };
        let (mut blocks, mut rows) = (None, None);
        let mut end = match heads {
            Some((run, writing)) => {
                let blocks = blocks.insert(runs::open_within(&self.file, txn, run)?);
                let end = blocks.upper_bound_mut(Bound::<&[u8]>::Unbounded);
                End::Run(end.map_err(storage(&self.file))?, writing)
            }
            None => {
                let table = txn.open_table(table.definition());
                let rows = rows.insert(table.map_err(step(&self.file, "opening a table of"))?);
                let end = rows.upper_bound_mut(Bound::<&[u8]>::Unbounded);
                End::Table(end.map_err(storage(&self.file))?)
            }
        };
        let mut scratch = Vec::new();
        let mut rest = stream;
        while rest.first() == Some(&table.tag()) {
            let Some((key, value, after)) = split_row(&rest[1..]).map_err(corrupt)? else {
                break;
            };
            let unordered = || corrupt(Malformed("a row comes twice, or out of order"));
            match &mut end {
                End::Run(_, writing) if !writing.is_next(key) => return Err(unordered()),
                End::Run(..) => {}
                End::Table(end) => match end.insert_before(key, value) {
                    Ok(()) => {}
                    Err(CursorError::UnorderedKey) => return Err(unordered()),
                    Err(error) => return Err(storage(&self.file)(error).into()),
                },
            }
            if table.is_logical() {
                let hash = hash_of_logical_row(&mut scratch, table, key, value).map_err(corrupt)?;
                self.rows_hash = self.rows_hash.wrapping_add(hash);
            }
            match table {
                Table::Current => verify::count_head(&mut self.counters, key, value).map_err(corrupt)?,
                Table::Deleted => {
                    // It is looked up before those that exist.
                    let (_, record) = Head::decode_newest(value).map_err(corrupt)?;
                    if record.is_some() {
                        return Err(corrupt(Malformed("a key that exists is among the deleted")));
                    }
                }
                Table::Versions => {
                    verify::count_version(&mut self.counters, key, value).map_err(corrupt)?;
                    if let Some(fold) = &mut self.fold {
                        fold.row(key, value).map_err(corrupt)?;
                    }
                }
                Table::Times => {
                    let stood = times::read(key, value).map_err(corrupt)?;
                    times::follows(self.stood.replace(stood), stood).map_err(corrupt)?;
                }
                Table::Sequences => self.counters.sequence_begins(key.len()),
                _ => {}
            }
            // By now it was found to be a head.
            if let End::Run(end, writing) = &mut end {
                writing.put(&self.file, end, key, value)?;
            }
            self.rows += 1;
            rest = after;
        }
        let closed = match end {
            End::Run(mut end, writing) => {
                writing.close_block(&self.file, &mut end)?;
                end.close()
            }
            End::Table(end) => end.close(),
        };
        closed.map_err(storage(&self.file))?;
        Ok(stream.len() - rest.len())
    }

    fn check(&mut self, trailer: &Trailer) -> Result<(), SnapshotError> {
        let Some((_, system)) = &self.head else {
            return Err(self.corrupt("the trailer comes before the head"));
        };
        if trailer.rows != self.rows {
            return Err(self.corrupt("the trailer counts other rows than came"));
        }
        let expected = system.standing.state_hash(&system.limits);
        let mut found = system.standing;
        found.rows_hash = self.rows_hash;
        if let Some(fold) = self.fold.take() {
            (found.revision, found.chain) = fold.end();
        }
        let found = found.state_hash(&system.limits);
        if found != expected || trailer.hash != expected.0 {
            return Err(SnapshotError::WrongHash {
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        if self.counters != system.standing.counters {
            let (found, expected) = (self.counters, system.standing.counters);
            return Err(self.corrupt(format!("its rows are {found}, its head says {expected}")));
        }
        if self
            .stood
            .is_some_and(|(_, revision)| revision > system.standing.revision)
        {
            return Err(self.corrupt("a time has a revision that is not there yet"));
        }
        self.state = Receiving::Complete;
        Ok(())
    }

    /// Ends the reception: the file is whole, has the right hash and is durable when this returns.
    pub fn finish(self) -> Result<ReceivedSnapshot, SnapshotError> {
        let finished = self.finish_while(&|| true)?;
        finished.ok_or(SnapshotError::Refused)
    }

    /// The same, as long as that is wanted: `None` where it is not any more.
    pub(in crate::machine) fn finish_while(
        mut self,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<ReceivedSnapshot>, SnapshotError> {
        let head = match self.state {
            Receiving::Refused => return Err(SnapshotError::Refused),
            Receiving::Rows => None,
            Receiving::Complete => self.head.take(),
        };
        let (Some((_, system)), Some(txn), Some(database)) = (head, self.txn.take(), self.database.take())
        else {
            return Err(SnapshotError::Incomplete {
                chunks: self.expected,
            });
        };
        let file = &self.file;
        let since = system.standing.history.since;
        if let Some(wrong) = verify::cold_values(file, &txn, EXISTING, since, goes_on)? {
            return Err(self.corrupt(wrong));
        }
        if !goes_on() {
            return Ok(None);
        }
        write_frame(file, &txn)?;
        write_system(file, &txn, &system)?;
        let mut listed = Runs::NONE;
        for (run, writing) in [(EXISTING, self.existing), (DELETED, self.deleted)] {
            let number = listed.number();
            debug_assert_eq!(number, run);
            if let Some((run, _)) = writing.finish(file, &txn, number)? {
                listed.list.push(run);
            }
        }
        listed.write(file, &txn)?;
        txn.commit().map_err(step(file, "committing to"))?;
        database.close().map_err(step(file, "closing"))?;
        Ok(Some(ReceivedSnapshot {
            meta: SnapshotMeta::of(&system),
            unfinished: self.unfinished,
        }))
    }

    fn corrupt(&self, detail: impl Into<String>) -> SnapshotError {
        SnapshotError::Corrupt {
            number: self.expected,
            detail: detail.into(),
        }
    }
}

/// The stream's last item.
struct Trailer {
    rows: u64,
    hash: u128,
}

impl Trailer {
    const BYTES: usize = 24;

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut row = Row::new(bytes);
        Some(Self {
            rows: row.u64().ok()?,
            hash: row.u128().ok()?,
        })
    }
}

/// A row's key and value, and what follows.
type SplitRow<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits a row off a stream; `None` when the stream ends inside it.
fn split_row(bytes: &[u8]) -> Result<Option<SplitRow<'_>>, Malformed> {
    let mut row = Row::new(bytes);
    let mut sized = || {
        let mut ahead = row.clone();
        match ahead.varint() {
            Ok(size) if size > ROW_BYTES_MAX => return Err(Malformed("a row claims an absurd size")),
            Ok(_) => {}
            // Ten bytes hold any varint: with so many at hand the error is in the bytes.
            Err(e) if row.rest().len() >= 10 => return Err(e),
            Err(_) => return Ok(None),
        }
        // Too few bytes are no error here: the rest comes with the next chunk.
        Ok(row.sized().ok())
    };
    let Some(key) = sized()? else { return Ok(None) };
    let Some(value) = sized()? else { return Ok(None) };
    Ok(Some((key, value, row.rest())))
}

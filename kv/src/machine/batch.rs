//! The state as one `apply` sees it: the tables of one write transaction under what the batch has changed.
//!
//! Changes gather in memory, in order, and go to the tables once, sorted, when the batch ends: a key that a
//! batch writes a hundred times is looked up once and written once. A transaction that is refused is undone
//! here, and the tables never know of it.
//!
//! Always: a slot's `now` is the key's record after the last transaction that ended, or inside one, after its
//! last operation; `before` is that at the start of the transaction that last wrote the key.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use redb::{ReadableTable, WriteTransaction};

use super::changes::{ChangeKind, ChangeRows};
use super::current::{RecordRef, RecordRow};
use super::error::{StateFile, step, storage};
use super::sessions::{Sessions, answer_key, session_key};
use super::tables::Table;
use super::wire::hash_row;
use super::{history, sequences};
use crate::fault::Fault;
use crate::model::{Key, KeyRange, Order, Revision, Sequence, SessionId};

type Rows<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// A key that the batch has looked at.
#[derive(Debug)]
struct Slot {
    now: Option<RecordRow>,
    before: Option<RecordRow>,
    /// The transaction that last wrote it; 0 for none.
    writer: u64,
    /// Differs, or may differ, from the table.
    dirty: bool,
}

/// What one `apply` has changed so far.
pub(super) struct Batch<'t> {
    file: &'t StateFile,
    txn: &'t WriteTransaction,
    current: Rows<'t>,
    slots: BTreeMap<Bytes, Slot>,
    history: Vec<(Vec<u8>, RecordRow)>,
    changes: Vec<([u8; 12], Vec<u8>)>,
    /// The last number of each prefix looked at, and whether the batch gave it.
    counters: BTreeMap<Bytes, (u64, bool)>,
    /// Answers to be written.
    answers: BTreeMap<(SessionId, Sequence), Vec<u8>>,
    /// Answers to be removed from the table, where they are there.
    forgotten: BTreeSet<(SessionId, Sequence)>,
    /// Sessions whose row is to be written, or removed where they are no more.
    sessions: BTreeSet<SessionId>,

    /// The number of the transaction under way or ended last.
    writer: u64,
    /// The keys that it wrote, in the order of its first writes.
    touched: Vec<Bytes>,
    /// The counters that it advanced, with what they were.
    advanced: Vec<(Bytes, (u64, bool))>,
}

impl<'t> Batch<'t> {
    pub(super) fn new(file: &'t StateFile, txn: &'t WriteTransaction) -> Result<Self, Fault> {
        Ok(Self {
            file,
            txn,
            current: open(file, txn, Table::Current)?,
            slots: BTreeMap::new(),
            history: Vec::new(),
            changes: Vec::new(),
            counters: BTreeMap::new(),
            answers: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            sessions: BTreeSet::new(),
            writer: 0,
            touched: Vec::new(),
            advanced: Vec::new(),
        })
    }

    pub(super) fn file(&self) -> &'t StateFile {
        self.file
    }

    // What a transaction does.

    /// The record of a key now.
    pub(super) fn get(&mut self, key: &Key) -> Result<Option<RecordRef<'_>>, Fault> {
        let file = self.file;
        let slot = load(file, &self.current, &mut self.slots, Bytes::from(key.clone()))?;
        slot.now
            .as_ref()
            .map(RecordRow::record)
            .transpose()
            .map_err(|e| file.malformed(&e))
    }

    /// Writes or deletes a key.
    pub(super) fn set(&mut self, key: &Key, row: Option<RecordRow>) -> Result<(), Fault> {
        let key = Bytes::from(key.clone());
        let slot = load(self.file, &self.current, &mut self.slots, key.clone())?;
        if slot.writer != self.writer {
            slot.writer = self.writer;
            slot.before = slot.now.clone();
            self.touched.push(key);
        }
        slot.now = row;
        Ok(())
    }

    /// Visits the records of a range, the batch's own writes included, until `visit` breaks.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        mut visit: impl FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        let malformed = |e| self.file.malformed(&e);
        let mut slots = self.slots.range::<[u8], _>(range.bounds());
        let mut rows = self
            .current
            .range::<&[u8]>(range.bounds())
            .map_err(storage(self.file))?;
        let mut next_slot = || match order {
            Order::Ascending => slots.next(),
            Order::Descending => slots.next_back(),
        };
        let mut next_row = || {
            let row = match order {
                Order::Ascending => rows.next(),
                Order::Descending => rows.next_back(),
            };
            row.transpose().map_err(storage(self.file))
        };
        let mut slot = next_slot();
        let mut row = next_row()?;
        loop {
            // Which of the two stands first; a slot hides the row of its key.
            let first = match (&slot, &row) {
                (None, None) => return Ok(()),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((key, _)), Some((row_key, _))) => match order {
                    Order::Ascending => key[..].cmp(row_key.value()),
                    Order::Descending => row_key.value().cmp(&key[..]),
                },
            };
            if first.is_le() {
                if first.is_eq() {
                    row = next_row()?;
                }
                if let Some((key, found)) = slot
                    && let Some(found) = &found.now
                    && visit(key, found.record().map_err(malformed)?).is_break()
                {
                    return Ok(());
                }
                slot = next_slot();
            } else {
                if let Some((key, found)) = &row
                    && visit(key.value(), RecordRef::decode(found.value()).map_err(malformed)?).is_break()
                {
                    return Ok(());
                }
                row = next_row()?;
            }
        }
    }

    /// Gives the next number of a prefix's sequence.
    pub(super) fn next_number(&mut self, prefix: &Key) -> Result<u64, Fault> {
        let file = self.file;
        let prefix = Bytes::from(prefix.clone());
        let counter = match self.counters.entry(prefix.clone()) {
            Entry::Occupied(counter) => counter.into_mut(),
            Entry::Vacant(vacant) => {
                let table = open(file, self.txn, Table::Sequences)?;
                let row = table.get(&prefix[..]).map_err(storage(file))?;
                let last = row.map_or(Ok(0), |row| sequences::decode(row.value()));
                vacant.insert((last.map_err(|e| file.malformed(&e))?, false))
            }
        };
        self.advanced.push((prefix, *counter));
        let number = counter.0.checked_add(1).ok_or_else(|| {
            Fault::invariant(
                "a sequence has numbers left",
                "2^64 numbers were given under one prefix",
            )
        })?;
        *counter = (number, true);
        Ok(number)
    }

    /// Begins a transaction. The one before was ended or undone.
    pub(super) fn begin(&mut self) {
        self.writer += 1;
    }

    /// Ends the transaction as `revision`; whether it changed anything.
    pub(super) fn end(&mut self, revision: Revision) -> Result<bool, Fault> {
        self.advanced.clear();
        if self.touched.is_empty() {
            return Ok(false);
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        let mut changes = ChangeRows::new(&mut self.changes, revision);
        for key in touched.drain(..) {
            let Some(slot) = self.slots.get_mut(&key) else {
                return Err(Fault::invariant(
                    "a touched key has a slot",
                    key.escape_ascii().to_string(),
                ));
            };
            let before = slot.before.take();
            let kind = match (&before, &slot.now) {
                (None, None) => continue,
                (None, Some(_)) => ChangeKind::Created,
                (Some(_), None) => ChangeKind::Deleted,
                (Some(_), Some(now)) => {
                    let now = now.record().map_err(|e| self.file.malformed(&e))?;
                    if now.create_revision == revision {
                        ChangeKind::Created
                    } else {
                        ChangeKind::Written
                    }
                }
            };
            slot.dirty = true;
            changes.push(kind, &key);
            if let Some(before) = before {
                self.history.push((history::row_key(&key, revision), before));
            }
        }
        let changed = changes.finish();
        self.touched = touched;
        Ok(changed)
    }

    /// Undoes the transaction.
    pub(super) fn undo(&mut self) {
        for key in self.touched.drain(..) {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.now = slot.before.take();
                slot.writer = 0;
            }
        }
        for (prefix, counter) in self.advanced.drain(..).rev() {
            self.counters.insert(prefix, counter);
        }
    }

    // What a session does.

    /// A remembered answer.
    pub(super) fn answer(&self, id: SessionId, sequence: Sequence) -> Result<Option<Vec<u8>>, Fault> {
        if let Some(answer) = self.answers.get(&(id, sequence)) {
            return Ok(Some(answer.clone()));
        }
        let table = open(self.file, self.txn, Table::Answers)?;
        let key = answer_key(id, sequence);
        let row = table.get(&key[..]).map_err(storage(self.file))?;
        Ok(row.map(|row| row.value().to_vec()))
    }

    pub(super) fn remember(&mut self, id: SessionId, sequence: Sequence, answer: Vec<u8>) {
        self.answers.insert((id, sequence), answer);
    }

    pub(super) fn forget(&mut self, id: SessionId, sequences: impl IntoIterator<Item = Sequence>) {
        for sequence in sequences {
            // An answer that came and went within the batch never reaches the table.
            if self.answers.remove(&(id, sequence)).is_none() {
                self.forgotten.insert((id, sequence));
            }
        }
    }

    /// The session's row will be written or removed.
    pub(super) fn session_changed(&mut self, id: SessionId) {
        self.sessions.insert(id);
    }

    // The end.

    /// Writes everything to the tables; the new sum of the rows' hashes.
    pub(super) fn flush(mut self, sessions: &Sessions, rows_hash: u128) -> Result<u128, Fault> {
        let (file, txn) = (self.file, self.txn);
        let mut writer = Writer {
            file,
            rows_hash,
            scratch: Vec::new(),
        };
        for (key, slot) in &self.slots {
            if slot.dirty {
                let now = slot.now.as_ref().map(RecordRow::bytes);
                writer.set(Table::Current, &mut self.current, key, now)?;
            }
        }
        if !self.history.is_empty() {
            // Keys are distinct: a key ends at most one record in a revision.
            self.history.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            let mut table = open(file, txn, Table::History)?;
            for (key, row) in &self.history {
                writer.set(Table::History, &mut table, key, Some(row.bytes()))?;
            }
        }
        if !self.changes.is_empty() {
            let mut table = open(file, txn, Table::Changes)?;
            for (key, value) in &self.changes {
                writer.set(Table::Changes, &mut table, key, Some(value))?;
            }
        }
        if self.counters.values().any(|(_, given)| *given) {
            let mut table = open(file, txn, Table::Sequences)?;
            for (prefix, (number, given)) in &self.counters {
                if *given {
                    let row = sequences::encode(*number);
                    writer.set(Table::Sequences, &mut table, prefix, Some(&row))?;
                }
            }
        }
        if !self.sessions.is_empty() {
            let mut table = open(file, txn, Table::Sessions)?;
            for id in &self.sessions {
                let row = sessions.get(*id).map(|session| session.encode());
                writer.set(Table::Sessions, &mut table, &session_key(*id), row.as_deref())?;
            }
        }
        if !self.answers.is_empty() || !self.forgotten.is_empty() {
            let mut table = open(file, txn, Table::Answers)?;
            for (id, sequence) in &self.forgotten {
                writer.set(Table::Answers, &mut table, &answer_key(*id, *sequence), None)?;
            }
            for ((id, sequence), answer) in &self.answers {
                writer.set(
                    Table::Answers,
                    &mut table,
                    &answer_key(*id, *sequence),
                    Some(answer),
                )?;
            }
        }
        Ok(writer.rows_hash)
    }
}

/// Writes rows and keeps the sum of their hashes: what leaves a table is subtracted as it was found there.
struct Writer<'t> {
    file: &'t StateFile,
    rows_hash: u128,
    scratch: Vec<u8>,
}

impl Writer<'_> {
    fn set(
        &mut self,
        table: Table,
        rows: &mut Rows<'_>,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Fault> {
        let old = match value {
            Some(value) => {
                let hash = hash_row(&mut self.scratch, table, key, value);
                self.rows_hash = self.rows_hash.wrapping_add(hash);
                rows.insert(key, value)
            }
            None => rows.remove(key),
        };
        if let Some(old) = old.map_err(storage(self.file))? {
            let hash = hash_row(&mut self.scratch, table, key, old.value());
            self.rows_hash = self.rows_hash.wrapping_sub(hash);
        }
        Ok(())
    }
}

fn open<'t>(file: &StateFile, txn: &'t WriteTransaction, table: Table) -> Result<Rows<'t>, Fault> {
    txn.open_table(table.definition())
        .map_err(step(file, "opening a table of"))
}

/// The slot of a key, read from the table at the first look.
fn load<'s>(
    file: &StateFile,
    current: &Rows<'_>,
    slots: &'s mut BTreeMap<Bytes, Slot>,
    key: Bytes,
) -> Result<&'s mut Slot, Fault> {
    match slots.entry(key) {
        Entry::Occupied(slot) => Ok(slot.into_mut()),
        Entry::Vacant(vacant) => {
            let row = current.get(&vacant.key()[..]).map_err(storage(file))?;
            let now = row
                .map(|row| RecordRow::read(row.value()))
                .transpose()
                .map_err(|e| file.malformed(&e))?;
            Ok(vacant.insert(Slot {
                now,
                before: None,
                writer: 0,
                dirty: false,
            }))
        }
    }
}

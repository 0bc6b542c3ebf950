//! The state as one `apply` sees it: the state that stands, under what the batch has changed.
//!
//! Changes gather here and become part of the newest layer all at once, when the batch ends. A transaction that
//! is refused is undone here, and nobody else ever knows of it.
//!
//! Always: a slot's head is the key's after the last transaction that ended; its draft is what the transaction
//! under way made of the key.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::error::StateFile;
use super::head::{Head, Meta};
use super::layer::{Additions, Found, Held};
use super::layered::{Item, Layered, Stream, Values};
use super::sequences;
use super::sessions::{Forgotten, Sessions, answer_key, session_key};
use super::tables::Table;
use super::version::{self, ChangeKind, RecordRef, Version};
use super::wire::hash_row;
use crate::fault::Fault;
use crate::model::{Key, KeyRange, Order, Revision, Sequence, SessionId};

/// A revision behind all others: everything in the layers is seen.
const NOW: Revision = Revision::new(u64::MAX);

/// A key that the batch has looked at.
#[derive(Debug)]
struct Slot {
    /// Its head before the batch.
    original: Option<Head>,
    head: Option<Head>,
    /// The value of `head`, once it was looked at.
    value: Option<Bytes>,
    /// What the transaction of this number made of it.
    draft: Option<(u64, Option<Draft>)>,
}

/// A record that a transaction under way has made.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) meta: Meta,
    pub(super) value: Bytes,
}

/// What one `apply` has changed so far.
pub(super) struct Batch<'s> {
    state: &'s Layered,
    slots: BTreeMap<Bytes, Slot>,
    /// The last number of each prefix looked at: before the batch, and now.
    counters: BTreeMap<Bytes, (u64, u64)>,
    additions: Additions,
    /// The sum of the hashes of all rows, sessions' and heads' that are still to change apart.
    rows_hash: u128,
    scratch: Vec<u8>,

    /// The number of the transaction under way or ended last.
    writer: u64,
    /// The revision that it makes, if it changes anything.
    revision: Revision,
    /// The keys that it wrote, in the order of its first writes.
    touched: Vec<Bytes>,
    /// The counters that it advanced, with what they were.
    advanced: Vec<(Bytes, u64)>,
}

impl<'s> Batch<'s> {
    pub(super) fn new(state: &'s Layered, rows_hash: u128) -> Self {
        Self {
            state,
            slots: BTreeMap::new(),
            counters: BTreeMap::new(),
            additions: Additions::default(),
            rows_hash,
            scratch: Vec::new(),
            writer: 0,
            revision: Revision::FIRST,
            touched: Vec::new(),
            advanced: Vec::new(),
        }
    }

    pub(super) fn file(&self) -> &'s StateFile {
        self.state.base.file()
    }

    // What a transaction does.

    /// The record of a key now; without its value, where that is not needed.
    pub(super) fn get(&mut self, key: &Key, values: Values) -> Result<Option<RecordRef<'_>>, Fault> {
        let (state, writer, revision) = (self.state, self.writer, self.revision);
        let slot = self.slot(key)?;
        let Some(meta) = slot.meta(writer) else {
            return Ok(None);
        };
        if slot.is_draft(writer) {
            let Some((_, Some(draft))) = &slot.draft else {
                return Ok(None);
            };
            return Ok(Some(RecordRef {
                meta,
                mod_revision: revision,
                value: &draft.value,
            }));
        }
        let Some(head) = &slot.head else { return Ok(None) };
        if slot.value.is_none() && values == Values::Read {
            slot.value = Some(state.base.value(head.revision, key.as_bytes())?);
        }
        Ok(Some(RecordRef {
            meta,
            mod_revision: head.revision,
            value: slot.value.as_deref().unwrap_or_default(),
        }))
    }

    /// Writes or deletes a key.
    pub(super) fn set(&mut self, key: &Key, draft: Option<Draft>) -> Result<(), Fault> {
        let writer = self.writer;
        let slot = self.slot(key)?;
        let is_first = !slot.is_draft(writer);
        slot.draft = Some((writer, draft));
        if is_first {
            self.touched.push(Bytes::from(key.clone()));
        }
        Ok(())
    }

    /// Visits the records of a range, the batch's own writes included, until `visit` breaks.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        values: Values,
        visit: impl FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if range.is_empty() {
            return Ok(());
        }
        let own = self.slots.range::<[u8], _>(range.bounds());
        let own: Stream<'_> = match order {
            Order::Ascending => Box::new(own.filter_map(|(key, slot)| self.own(key, slot))),
            Order::Descending => Box::new(own.rev().filter_map(|(key, slot)| self.own(key, slot))),
        };
        self.state.scan(range, order, NOW, values, Some(own), visit)
    }

    /// What the batch itself has made of a key.
    fn own(&self, key: &Bytes, slot: &Slot) -> Option<Result<(Bytes, Item), Fault>> {
        let found = if slot.is_draft(self.writer) {
            let (_, draft) = slot.draft.clone()?;
            Found {
                revision: self.revision,
                meta: draft.as_ref().map(|draft| draft.meta),
                value: draft.map(|draft| draft.value).unwrap_or_default(),
            }
        } else if slot.head != slot.original {
            let head = slot.head.as_ref()?;
            Found {
                revision: head.revision,
                meta: head.meta,
                value: slot.value.clone().unwrap_or_default(),
            }
        } else {
            return None;
        };
        Some(Ok((key.clone(), Item::Here(found))))
    }

    /// Gives the next number of a prefix's sequence.
    pub(super) fn next_number(&mut self, prefix: &Key) -> Result<u64, Fault> {
        let prefix = Bytes::from(prefix.clone());
        let counter = match self.counters.entry(prefix.clone()) {
            Entry::Occupied(counter) => counter.into_mut(),
            Entry::Vacant(vacant) => {
                let last = self.state.sequence(&prefix)?;
                vacant.insert((last, last))
            }
        };
        self.advanced.push((prefix, counter.1));
        counter.1 = counter.1.checked_add(1).ok_or_else(|| {
            Fault::invariant(
                "a sequence has numbers left",
                "2^64 numbers were given under one prefix",
            )
        })?;
        Ok(counter.1)
    }

    /// Begins a transaction, which makes `revision` if it changes anything. The one before was ended or undone.
    pub(super) fn begin(&mut self, revision: Revision) {
        self.writer += 1;
        self.revision = revision;
    }

    /// Ends the transaction; whether it changed anything.
    pub(super) fn end(&mut self) -> Result<bool, Fault> {
        self.advanced.clear();
        if self.touched.is_empty() {
            return Ok(false);
        }
        let revision = self.revision;
        let mut changed = false;
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        for key in touched.drain(..) {
            let Some(slot) = self.slots.get_mut(&key) else {
                return Err(Fault::invariant(
                    "a touched key has a slot",
                    key.escape_ascii().to_string(),
                ));
            };
            let Some((_, draft)) = slot.draft.take() else {
                continue;
            };
            let before = slot.head.take();
            let existed = before.as_ref().is_some_and(|head| head.meta.is_some());
            let kind = match &draft {
                None if !existed => {
                    slot.head = before;
                    continue;
                }
                None => ChangeKind::Deleted,
                Some(draft) if draft.meta.create_revision == revision => ChangeKind::Created,
                Some(_) => ChangeKind::Written,
            };
            changed = true;
            let (meta, value) = draft.map_or((None, Bytes::new()), |draft| (Some(draft.meta), draft.value));
            let head = Head::after(before.as_ref(), revision, meta);
            let version = Version {
                kind,
                meta,
                link: head.link(before.as_ref()),
                value: &value,
            };
            let row = version.encode();
            let row_key = version::row_key(revision, &key);
            let hash = hash_row(&mut self.scratch, Table::Versions, &row_key, &row);
            self.rows_hash = self.rows_hash.wrapping_add(hash);
            slot.head = Some(head.clone());
            slot.value = Some(value);
            self.additions.versions.push((key, Held { head, row }));
        }
        self.touched = touched;
        Ok(changed)
    }

    /// Undoes the transaction.
    pub(super) fn undo(&mut self) {
        for key in self.touched.drain(..) {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.draft = None;
            }
        }
        for (prefix, number) in self.advanced.drain(..).rev() {
            if let Some(counter) = self.counters.get_mut(&prefix) {
                counter.1 = number;
            }
        }
    }

    /// The slot of a key, looked up in the state at the first look.
    fn slot(&mut self, key: &Key) -> Result<&mut Slot, Fault> {
        match self.slots.entry(Bytes::from(key.clone())) {
            Entry::Occupied(slot) => Ok(slot.into_mut()),
            Entry::Vacant(vacant) => {
                let slot = match self.state.held(key.as_bytes(), NOW) {
                    Some(held) => {
                        let found = held.found().map_err(|e| self.state.base.file().malformed(&e))?;
                        Slot::standing(Some(held.head), Some(found.value))
                    }
                    None => Slot::standing(self.state.base.head(key.as_bytes())?, None),
                };
                Ok(vacant.insert(slot))
            }
        }
    }

    // What a session does.

    /// A remembered answer.
    pub(super) fn answer(&self, id: SessionId, sequence: Sequence) -> Result<Option<Bytes>, Fault> {
        match self.additions.answers.get(&(id, sequence)) {
            Some(answer) => Ok(answer.clone()),
            None => self.state.answer(id, sequence),
        }
    }

    /// Remembers an answer; the hash of its row.
    pub(super) fn remember(&mut self, id: SessionId, sequence: Sequence, answer: Vec<u8>) -> u128 {
        let key = answer_key(id, sequence);
        let hash = hash_row(&mut self.scratch, Table::Answers, &key, &answer);
        self.rows_hash = self.rows_hash.wrapping_add(hash);
        self.additions.answers.insert((id, sequence), Some(answer.into()));
        hash
    }

    pub(super) fn forget(&mut self, id: SessionId, forgotten: Forgotten) {
        for (sequence, hash) in forgotten {
            self.rows_hash = self.rows_hash.wrapping_sub(hash);
            // An answer that came and went within the batch never reaches the layer.
            match self.additions.answers.entry((id, sequence)) {
                Entry::Occupied(known) if known.get().is_some() => {
                    known.remove();
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(vacant) => {
                    vacant.insert(None);
                }
            }
        }
    }

    /// A session that was there before has ended: the hash of its row.
    pub(super) fn session_ended(&mut self, hash: u128) {
        self.rows_hash = self.rows_hash.wrapping_sub(hash);
    }

    // The end.

    /// What the batch adds to the newest layer, and the new sum of the rows' hashes.
    pub(super) fn finish(mut self, sessions: &mut Sessions) -> (Additions, u128) {
        let (mut sum, scratch) = (self.rows_hash, &mut self.scratch);
        let mut count = |table, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>| {
            if let Some(old) = old {
                sum = sum.wrapping_sub(hash_row(scratch, table, key, old));
            }
            if let Some(new) = new {
                sum = sum.wrapping_add(hash_row(scratch, table, key, new));
            }
        };
        for (key, slot) in &self.slots {
            if slot.head == slot.original {
                continue;
            }
            for (head, is_new) in [(&slot.original, false), (&slot.head, true)] {
                if let Some(head) = head {
                    let table = if head.meta.is_some() {
                        Table::Current
                    } else {
                        Table::Deleted
                    };
                    let row = head.encode();
                    let row = Some(&row[..]);
                    if is_new {
                        count(table, key, None, row);
                    } else {
                        count(table, key, row, None);
                    }
                }
            }
        }
        for (prefix, (original, now)) in self.counters {
            if original != now {
                let (old, new) = (sequences::encode(original), sequences::encode(now));
                // The row of a sequence that gave no number is not there.
                let old = (original > 0).then_some(&old[..]);
                count(Table::Sequences, &prefix, old, Some(&new));
                self.additions.sequences.push((prefix, now));
            }
        }
        for id in sessions.take_changed() {
            let row = sessions.get_mut(id).map(|session| {
                let row = session.encode();
                let hash = hash_row(&mut self.scratch, Table::Sessions, &session_key(id), &row);
                let before = std::mem::replace(&mut session.row_hash, hash);
                sum = sum.wrapping_add(hash).wrapping_sub(before);
                row
            });
            self.additions.sessions.push((id, row));
        }
        (self.additions, sum)
    }
}

impl Slot {
    fn standing(head: Option<Head>, value: Option<Bytes>) -> Self {
        Self {
            original: head.clone(),
            head,
            value,
            draft: None,
        }
    }

    /// Whether the transaction under way has written the key.
    fn is_draft(&self, writer: u64) -> bool {
        self.draft.as_ref().is_some_and(|(by, _)| *by == writer)
    }

    fn meta(&self, writer: u64) -> Option<Meta> {
        match &self.draft {
            Some((by, draft)) if *by == writer => draft.as_ref().map(|draft| draft.meta),
            _ => self.head.as_ref()?.meta,
        }
    }
}

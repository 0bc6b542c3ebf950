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

use super::changed::Changed;
use super::gaps::{Gaps, GoneBy, Segment};
use super::work::Growth;
use crate::fault::Fault;
use crate::machine::file::sight::Values;
use crate::machine::layers::keys::{Hashed, Keys};
use crate::machine::layers::layer::{Additions, LayerVersion, Look, Seen};
use crate::machine::layers::layered::{Layered, Looks, NOW, in_chunks};
use crate::machine::rows::chain::{Chain, Change};
use crate::machine::rows::counters::{Counters, version_bytes};
use crate::machine::rows::error::StateFile;
use crate::machine::rows::head::{Head, Meta, ValueDigest};
use crate::machine::rows::row_hash::{begin_hash, end_hash, hash_row};
use crate::machine::rows::sequences;
use crate::machine::rows::sessions::{Forgotten, Remembered, Sessions, answer_key, session_key};
use crate::machine::rows::system::Standing;
use crate::machine::rows::tables::Table;
use crate::machine::rows::times::Stood;
use crate::machine::rows::version::RecordRef;
use crate::model::{Key, KeyRange, Order, Revision, Sequence, SessionId};

/// A value that was looked at is kept for the next look where it has at most so many bytes.
const VALUE_KEPT_MAX: usize = 1024;

/// A key that the batch has looked at.
#[derive(Debug)]
struct Slot {
    /// Its key's.
    hash: u64,
    head: Option<Head>,
    /// Its head before the batch, once the batch has changed it.
    original: Option<Option<Head>>,
    /// The value of `head`, once it was looked at and found to be short, or was written by the batch.
    value: Option<Bytes>,
    /// What the transaction under way made of it, a deletion being `None`. Taken at the transaction's end.
    draft: Option<Option<Draft>>,
}

/// A key's place in the batch: looked up once for each operation.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct SlotId(u32);

/// A record that a transaction under way has made.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Draft {
    pub(in crate::machine) meta: Meta,
    pub(in crate::machine) value: Bytes,
}

/// The digests and counts of a state, which each change carries on.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Sums {
    pub(in crate::machine) rows_hash: u128,
    pub(in crate::machine) chain: Chain,
    pub(in crate::machine) counters: Counters,
}

/// What one `apply` has changed so far.
pub(in crate::machine) struct Batch<'s> {
    state: &'s Layered,
    gaps: Gaps,
    /// Keys that ranges have visited or gone by.
    pub(in crate::machine) visited: u64,
    /// A value that was looked at and is too long to be kept.
    looked_at: Bytes,
    /// By the key's place.
    slots: Vec<Slot>,
    keys: Keys,
    /// The places that have an original or a draft.
    changed: Changed,
    /// The last number of each prefix looked at: before the batch, and now.
    counters: BTreeMap<Bytes, (u64, u64)>,
    additions: Additions,
    /// The sum of the hashes of all rows of the replicated state, sessions' and heads' that are still to change apart.
    rows_hash: u128,
    /// Over all revisions that have ended.
    chain: Chain,
    /// After all revisions that have ended.
    held: Counters,
    /// The oldest revision that can be read: a deletion up to there is no part of a key's history any more, whether its row
    /// is still here or not.
    pub(in crate::machine) oldest: Revision,
    scratch: Vec<u8>,

    /// The revision that the transaction under way makes, if it changes anything.
    revision: Revision,
    /// The slots that it wrote, in the order of its first writes.
    touched: Vec<u32>,
    /// The counters that it advanced, with what they were.
    advanced: Vec<(Bytes, u64)>,
}

impl<'s> Batch<'s> {
    /// `gaps` are those of the state, which [`finish`](Self::finish) gives back.
    pub(in crate::machine) fn new(state: &'s Layered, standing: &Standing, gaps: Gaps) -> Self {
        Self {
            state,
            gaps,
            visited: 0,
            looked_at: Bytes::new(),
            slots: Vec::new(),
            keys: Keys::default(),
            changed: Changed::default(),
            counters: BTreeMap::new(),
            additions: Additions::default(),
            rows_hash: standing.rows_hash,
            chain: standing.chain,
            held: standing.counters,
            oldest: standing.oldest,
            scratch: Vec::new(),
            revision: Revision::FIRST,
            touched: Vec::new(),
            advanced: Vec::new(),
        }
    }

    pub(in crate::machine) fn file(&self) -> &'s StateFile {
        self.state.base.file()
    }

    /// Takes note of an entry whose parts the versions to come are.
    pub(in crate::machine) fn entry(&mut self, bytes: &Bytes) {
        self.additions.entry_bytes += bytes.len() as u64;
    }

    // What a transaction does.

    /// Looks a key up, in the state at the first time.
    pub(in crate::machine) fn look_up(&mut self, key: &Key) -> Result<SlotId, Fault> {
        let hashed = Hashed::new(key.as_bytes());
        if let Some(place) = self.keys.find(hashed) {
            return Ok(SlotId(place));
        }
        let head = self.state.head(hashed)?;
        self.slots.push(Slot {
            hash: hashed.hash,
            head,
            original: None,
            value: None,
            draft: None,
        });
        Ok(SlotId(self.keys.add(hashed.hash, key.clone().into())))
    }

    /// The record of a key now; without its value, where that is not needed.
    pub(in crate::machine) fn get(
        &mut self,
        SlotId(place): SlotId,
        values: Values,
    ) -> Result<Option<RecordRef<'_>>, Fault> {
        let slot = &mut self.slots[place as usize];
        if let Some(draft) = &slot.draft {
            return Ok(draft.as_ref().map(|draft| RecordRef {
                meta: draft.meta,
                mod_revision: self.revision,
                value: &draft.value,
            }));
        }
        let Some(head) = &slot.head else { return Ok(None) };
        let Some((meta, digest)) = head.record else {
            return Ok(None);
        };
        let mod_revision = head.revision;
        let mut is_kept = true;
        if slot.value.is_none() && values == Values::Read {
            let value = self.state.value(mod_revision, self.keys.key(place), digest)?;
            // What one apply has looked at must not fill the memory.
            is_kept = value.len() <= VALUE_KEPT_MAX;
            match is_kept {
                true => slot.value = Some(value),
                false => self.looked_at = value,
            }
        }
        let value = match is_kept {
            true => slot.value.as_deref().unwrap_or_default(),
            false => &self.looked_at,
        };
        Ok(Some(RecordRef {
            meta,
            mod_revision,
            value,
        }))
    }

    /// Whether the transaction under way has written or deleted a key already.
    pub(in crate::machine) fn is_touched(&self, SlotId(place): SlotId) -> bool {
        self.slots[place as usize].draft.is_some()
    }

    /// Writes or deletes a key.
    pub(in crate::machine) fn set(&mut self, SlotId(place): SlotId, draft: Option<Draft>) {
        if draft.is_some() {
            self.gaps.fill(self.keys.key(place));
        }
        let slot = &mut self.slots[place as usize];
        if slot.draft.replace(draft).is_none() {
            self.touched.push(place);
            if slot.original.is_none() {
                self.changed.add(place);
            }
        }
    }

    /// Visits the records of a range, the batch's own writes included, until `visit` breaks.
    pub(in crate::machine) fn scan(
        &mut self,
        range: &KeyRange,
        order: Order,
        values: Values,
        mut visit: impl FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let tuning = self.state.base.state.tuning;
        self.changed.sort(&self.keys);
        let mut rest = Some(range.clone()).filter(|range| !range.is_empty());
        while let Some(range) = rest.take() {
            let Some(Segment {
                here,
                then,
                is_between,
            }) = self.gaps.segment(range, order)
            else {
                return Ok(());
            };
            rest = then;
            let mut gone_by = GoneBy::new(order, tuning.gap_keys);
            let (mut found, mut is_empty, mut is_over, mut visited) = (Vec::new(), true, false, 0);
            let own: Looks<'_> = Box::new(in_chunks(&here, order, tuning.chunk_keys, |bounds, count| {
                self.changed
                    .first_of(bounds, order, count, |place| self.own(place))
            }));
            self.state.scan(&here, order, NOW, values, Some(own), |sight| {
                visited += sight.steps;
                let Some(record) = sight.record else {
                    gone_by.key(sight.key);
                    return ControlFlow::Continue(());
                };
                is_empty = false;
                found.extend(gone_by.up_to(sight.key));
                let flow = visit(sight.key, record);
                is_over = flow.is_break();
                flow
            })?;
            self.visited += visited;
            match is_empty && is_between {
                true => found.push(gone_by.all_of(&here)),
                false if !is_over => found.extend(gone_by.up_to_end_of(&here)),
                false => {}
            }
            for run in found {
                self.gaps.add(run);
            }
            if is_over {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the batch itself has made of a key that it has changed.
    fn own(&self, place: u32) -> Look {
        let slot = &self.slots[place as usize];
        let found = match &slot.draft {
            Some(draft) => Some(Seen {
                revision: self.revision,
                meta: draft.as_ref().map(|draft| draft.meta),
                value: draft
                    .as_ref()
                    .map(|draft| draft.value.clone())
                    .unwrap_or_default(),
            }),
            None => slot.head.as_ref().map(|head| Seen {
                revision: head.revision,
                meta: head.meta(),
                value: slot.value.clone().unwrap_or_default(),
            }),
        };
        Look { found, steps: 1 }
    }

    /// Gives the next number of a prefix's sequence.
    pub(in crate::machine) fn next_number(&mut self, prefix: &Key) -> Result<u64, Fault> {
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
    pub(in crate::machine) fn begin(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Makes room for so many keys to come.
    pub(in crate::machine) fn reserve(&mut self, keys: usize) {
        self.slots.reserve(keys);
        self.keys.reserve(keys);
        self.touched.reserve(keys);
        self.changed.reserve(keys);
    }

    /// Whether the transaction under way has changed anything so far.
    pub(in crate::machine) fn has_changed(&self) -> bool {
        let mut slots = self.touched.iter().map(|place| &self.slots[*place as usize]);
        slots.any(|slot| {
            let existed = slot.head.as_ref().is_some_and(|head| head.record.is_some());
            existed || matches!(slot.draft, Some(Some(_)))
        })
    }

    /// What the transaction under way makes of what the store holds.
    pub(in crate::machine) fn growth(&self) -> Growth {
        let (mut comes, mut goes, mut kept) = (0u64, 0u64, 0u64);
        for place in &self.touched {
            let (slot, key) = (&self.slots[*place as usize], self.keys.key(*place).len());
            let before = slot.head.as_ref().and_then(|head| head.record);
            if let Some((_, digest)) = before {
                goes = goes.saturating_add(version_bytes(key, digest.size()));
            }
            if let Some(Some(draft)) = &slot.draft {
                comes = comes.saturating_add(version_bytes(key, draft.value.len() as u64));
                kept += u64::from(before.is_some());
            }
        }
        // A sequence that gives its first number has a row from then on.
        for (prefix, _) in self.advanced.iter().filter(|(_, last)| *last == 0) {
            comes = comes.saturating_add(version_bytes(prefix.len(), sequences::ROW_BYTES));
        }
        Growth { comes, goes, kept }
    }

    /// Ends the transaction.
    pub(in crate::machine) fn end(&mut self) {
        self.advanced.clear();
        if self.touched.is_empty() {
            return;
        }
        let revision = self.revision;
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable_by_key(|place| self.keys.key(*place));
        self.additions.versions.reserve(touched.len());
        let mut link = None;
        for place in touched.drain(..) {
            let (slot, key) = (&mut self.slots[place as usize], self.keys.key(place));
            let Some(draft) = slot.draft.take() else {
                continue;
            };
            let before = slot.head.take();
            let existed = before.as_ref().is_some_and(|head| head.record.is_some());
            if draft.is_none() && !existed {
                slot.head = before;
                continue;
            }
            let record = draft
                .as_ref()
                .map(|draft| (draft.meta, ValueDigest::of(&draft.value)));
            let value = draft.map(|draft| draft.value).unwrap_or_default();
            let older = before
                .as_ref()
                .filter(|before| before.record.is_some() || before.revision > self.oldest);
            let held = LayerVersion {
                head: Head::after(older, revision, record),
                previous: older.map(|older| older.revision),
                value,
            };
            if let Some((_, digest)) = before.as_ref().and_then(|before| before.record) {
                self.held.ends(key.len(), digest.size());
            }
            if record.is_some() {
                self.held.lives(key.len(), held.value.len() as u64);
            }
            self.held.version_comes(key.len(), held.value.len() as u64);
            let kind = held.kind();
            let link = link.get_or_insert_with(|| self.chain.link(revision));
            link.add(Change { key, kind, record });
            slot.original.get_or_insert(before);
            slot.head = Some(held.head.clone());
            slot.value = Some(held.value.clone());
            self.additions.versions.push((key.clone(), slot.hash, held));
        }
        if let Some(link) = link {
            self.chain = link.end();
        }
        self.touched = touched;
        self.changed_in_the_end();
    }

    /// Undoes the transaction.
    pub(in crate::machine) fn undo(&mut self) {
        for place in self.touched.drain(..) {
            let slot = &mut self.slots[place as usize];
            slot.draft = None;
            if slot.head.as_ref().is_some_and(|head| head.record.is_some()) {
                self.gaps.fill(self.keys.key(place));
            }
        }
        self.changed_in_the_end();
        for (prefix, number) in self.advanced.drain(..).rev() {
            if let Some(counter) = self.counters.get_mut(&prefix) {
                counter.1 = number;
            }
        }
    }

    /// The transaction under way has ended or was undone.
    fn changed_in_the_end(&mut self) {
        let slots = &self.slots;
        self.changed
            .end(&self.keys, |place| slots[place as usize].original.is_some());
    }

    /// The revision made last was the first at a time that has a row of its own.
    pub(in crate::machine) fn stood(&mut self, stood: Stood) {
        self.additions.times.push(stood);
    }

    // What a session does.

    /// A remembered answer.
    pub(in crate::machine) fn answer(
        &self,
        id: SessionId,
        sequence: Sequence,
    ) -> Result<Option<Bytes>, Fault> {
        match self.additions.answers.get((id, sequence)) {
            Some(answer) => Ok(answer),
            None => self.state.answer(id, sequence),
        }
    }

    /// Remembers an answer.
    pub(in crate::machine) fn remember(
        &mut self,
        id: SessionId,
        sequence: Sequence,
        answer: Vec<u8>,
    ) -> Remembered {
        let key = answer_key(id, sequence);
        let hash = hash_row(&mut self.scratch, Table::Answers, &key, &answer);
        self.rows_hash = self.rows_hash.wrapping_add(hash);
        let bytes = answer.len() as u64;
        self.additions.answers.remember((id, sequence), answer.into());
        Remembered { hash, bytes }
    }

    pub(in crate::machine) fn forget(&mut self, id: SessionId, forgotten: Forgotten) {
        for (sequence, answer) in forgotten {
            self.rows_hash = self.rows_hash.wrapping_sub(answer.hash);
            self.additions.answers.forget((id, sequence));
        }
    }

    /// A session that was there before has ended: the hash of its row.
    pub(in crate::machine) fn session_ended(&mut self, hash: u128) {
        self.rows_hash = self.rows_hash.wrapping_sub(hash);
    }

    // The end.

    /// What the batch adds to the newest layer, and what it makes of the sums and of the gaps of the state.
    pub(in crate::machine) fn finish(mut self, sessions: &mut Sessions) -> (Additions, Sums, Gaps) {
        let (mut sum, scratch) = (self.rows_hash, &mut self.scratch);
        let mut record_hash = |key: &[u8], head: &Option<Head>| {
            let Some(head) = head.as_ref().filter(|head| head.record.is_some()) else {
                return 0;
            };
            begin_hash(scratch, Table::Current, key.len());
            scratch.extend_from_slice(key);
            head.put_record(scratch);
            end_hash(scratch)
        };
        for (place, slot) in (0..).zip(&self.slots) {
            if let Some(original) = &slot.original {
                let key = self.keys.key(place);
                sum = sum.wrapping_sub(record_hash(key, original));
                sum = sum.wrapping_add(record_hash(key, &slot.head));
            }
        }
        let mut last_hash = |prefix: &[u8], last| match last {
            // The row of a sequence that gave no number is not there.
            0 => 0,
            last => hash_row(scratch, Table::Sequences, prefix, &sequences::encode(last)),
        };
        for (prefix, (original, now)) in self.counters {
            if original != now {
                if original == 0 {
                    self.held.sequence_begins(prefix.len());
                }
                sum = sum.wrapping_sub(last_hash(&prefix, original));
                sum = sum.wrapping_add(last_hash(&prefix, now));
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
        let sums = Sums {
            rows_hash: sum,
            chain: self.chain,
            counters: self.held,
        };
        (self.additions, sums, self.gaps)
    }
}

//! A layer: what was applied since a checkpoint began, in memory, until the next one has written it to the
//! state file.
//!
//! Every version of a key is kept, so that a reader that pinned a revision goes on seeing that revision while
//! newer ones arrive. One thread adds, any thread reads; the lock is held for a look-up, for a few hundred
//! keys of a range, or for the insertion of what one `apply` made, and never over I/O.
//!
//! Always: the versions of a key stand in the order of their revisions; nothing is removed or changed but the
//! rows of sessions, answers and sequences, which only the thread that applies reads.
//!
//! Values are slices of the entries that wrote them, and keep them alive, so that applying copies none: the
//! bytes of whole entries are what a layer counts.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, TryLockError};

use bytes::Bytes;

use super::answers::Answers;
use super::keys::{Hashed, Keys};
use crate::machine::rows::head::{Head, Meta};
use crate::machine::rows::sequences;
use crate::machine::rows::sessions::{answer_key, session_key};
use crate::machine::rows::tables::Table;
use crate::machine::rows::times::{self, Stood};
use crate::machine::rows::version::{self, ChangeKind, RecordRef, Version};
use crate::model::{LogTime, Order, Revision, Sequence, SessionId};

/// Bytes that a version takes in memory beside the entry that wrote it: nodes of the trees, and what they hold.
const OVERHEAD_BYTES: u64 = 256;

/// A version of a key in memory.
#[derive(Clone, Debug)]
pub(in crate::machine) struct LayerVersion {
    pub(in crate::machine) head: Head,
    /// The version before, in whatever layer or file.
    pub(in crate::machine) previous: Option<Revision>,
    /// Empty for a deletion.
    pub(in crate::machine) value: Bytes,
}

/// What a scan finds of a key.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Seen {
    pub(in crate::machine) revision: Revision,
    /// `None`: the key is deleted.
    pub(in crate::machine) meta: Option<Meta>,
    pub(in crate::machine) value: Bytes,
}

/// What a layer says of a key to who reads a revision.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Look {
    /// `None`: nothing, as all its versions here are newer.
    pub(in crate::machine) found: Option<Seen>,
    /// How many versions were looked at, at least 1.
    pub(in crate::machine) steps: u64,
}

/// Somebody adds to a layer.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Busy;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::machine) struct Layer(RwLock<Content>);

#[derive(Debug, Default)]
struct Content {
    keys: Keys,
    /// By the key's place: the number of its newest version.
    newest: Vec<u32>,
    versions: Versions,
    /// Sessions whose row changed; `None` where it went.
    sessions: BTreeMap<SessionId, Option<Vec<u8>>>,
    /// What became of answers since the older layer, or the file.
    answers: Answers,
    /// The last number of each sequence that went on.
    sequences: BTreeMap<Bytes, u64>,
    times: Vec<Stood>,
    bytes: u64,
}

/// What one `apply` adds to a layer.
#[derive(Debug, Default)]
pub(in crate::machine) struct Additions {
    /// With the hashes of their keys; in the order of revisions, and in a revision of keys.
    pub(in crate::machine) versions: Vec<(Bytes, u64, LayerVersion)>,
    /// Bytes of the entries whose parts the versions are.
    pub(in crate::machine) entry_bytes: u64,
    pub(in crate::machine) sessions: Vec<(SessionId, Option<Vec<u8>>)>,
    pub(in crate::machine) answers: Answers,
    pub(in crate::machine) sequences: Vec<(Bytes, u64)>,
    /// In order.
    pub(in crate::machine) times: Vec<Stood>,
}

impl LayerVersion {
    /// What it is to a reader. The value shares its memory.
    pub(in crate::machine) fn found(&self) -> Seen {
        Seen {
            revision: self.head.revision,
            meta: self.head.meta(),
            value: self.value.clone(),
        }
    }

    /// What became of its key.
    pub(in crate::machine) fn kind(&self) -> ChangeKind {
        match self.head.meta() {
            None => ChangeKind::Deleted,
            Some(meta) if meta.create_revision == self.head.revision => ChangeKind::Created,
            Some(_) => ChangeKind::Written,
        }
    }

    /// What it is in `versions`.
    pub(in crate::machine) fn version(&self) -> Version<'_> {
        Version {
            kind: self.kind(),
            meta: self.head.meta(),
            link: self.head.link(self.previous),
            value: &self.value,
        }
    }
}

/// Versions in the order of their arrival, by number, in pieces: a vector would be copied whole as it grows.
#[derive(Debug, Default)]
struct Versions(Vec<Vec<Kept>>);

/// A version in its layer.
#[derive(Debug)]
struct Kept {
    held: LayerVersion,
    /// The place of its key.
    place: u32,
    /// The key's version before, where that is in the layer.
    older: Option<Older>,
}

/// The way from a version of a key to its older ones in the layer. The jumps are those of a skew-binary list (Myers, "An
/// applicative random-access stack", 1983): the way to any older version takes steps logarithmic in their count. A reader
/// of an old revision would go by all newer versions of a key that is written all the time, with the lock held.
#[derive(Clone, Copy, Debug)]
struct Older {
    /// The number of the version before.
    number: u32,
    /// The number of one that is older yet, or of the version before.
    jump: u32,
    /// How many versions there are before.
    depth: u32,
}

impl Versions {
    const PIECE: usize = 1024;

    /// The number of the version.
    fn push(&mut self, kept: Kept) -> u32 {
        if self.0.last().is_none_or(|piece| piece.len() == Self::PIECE) {
            self.0.push(Vec::with_capacity(Self::PIECE));
        }
        let before = (self.0.len() - 1) * Self::PIECE;
        let piece = self.0.last_mut().map_or(0, |piece| {
            piece.push(kept);
            piece.len() - 1
        });
        (before + piece) as u32
    }

    fn get(&self, number: u32) -> &Kept {
        &self.0[number as usize / Self::PIECE][number as usize % Self::PIECE]
    }

    fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.0.iter().flatten()
    }

    /// The way to the version of a number, which is a key's newest so far, for the next.
    fn older(&self, number: u32) -> Older {
        let depth = |number| self.get(number).older.map_or(0, |older| older.depth);
        let before = self.get(number).older;
        // Two jumps of one length make one of twice that and one.
        let twice = before.and_then(|older| {
            let next = self.get(older.jump).older?;
            (older.depth - depth(older.jump) == next.depth - depth(next.jump)).then_some(next.jump)
        });
        Older {
            number,
            jump: twice.unwrap_or(number),
            depth: before.map_or(0, |older| older.depth) + 1,
        }
    }
}

impl Content {
    fn push(&mut self, key: Bytes, hash: u64, held: LayerVersion) {
        let found = self.keys.find(Hashed { key: &key, hash });
        let place = found.unwrap_or_else(|| {
            // A copy, close to the other keys: look-ups compare it, and the entry lies anywhere.
            self.bytes += key.len() as u64;
            self.keys.add(hash, Bytes::copy_from_slice(&key))
        });
        let older = found.map(|place| self.versions.older(self.newest[place as usize]));
        let number = self.versions.push(Kept { held, place, older });
        match found {
            Some(place) => self.newest[place as usize] = number,
            None => self.newest.push(number),
        }
    }

    /// The newest version at or before `at` of the key at a place; counts the versions looked at.
    fn at(&self, place: u32, at: Revision, steps: &mut u64) -> Option<&LayerVersion> {
        let mut kept = self.versions.get(self.newest[place as usize]);
        *steps += 1;
        while kept.held.head.revision > at {
            let older = kept.older?;
            *steps += 1;
            let jump = self.versions.get(older.jump);
            kept = match jump.held.head.revision > at {
                true => jump,
                false => self.versions.get(older.number),
            };
        }
        Some(&kept.held)
    }

    fn find(&self, key: Hashed<'_>, at: Revision) -> Option<&LayerVersion> {
        self.at(self.keys.find(key)?, at, &mut 0)
    }
}

impl Layer {
    fn read(&self) -> RwLockReadGuard<'_, Content> {
        // A panic in the middle of an insertion would leave versions that no reader has pinned yet.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what one `apply` made.
    pub(in crate::machine) fn add(&self, additions: Additions) {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let content = &mut *content;
        content.bytes += additions.entry_bytes + OVERHEAD_BYTES * additions.versions.len() as u64;
        for (key, hash, held) in additions.versions {
            content.push(key, hash, held);
        }
        content.sessions.extend(additions.sessions);
        let (answers, bytes) = content.answers.add(additions.answers);
        content.bytes += bytes + OVERHEAD_BYTES * answers;
        content.sequences.extend(additions.sequences);
        content.times.extend(additions.times);
    }

    /// Bytes of memory, near enough.
    pub(in crate::machine) fn bytes(&self) -> u64 {
        self.read().bytes
    }

    /// The head of a key as it was at `at`.
    pub(in crate::machine) fn head(&self, key: Hashed<'_>, at: Revision) -> Option<Head> {
        Some(self.read().find(key, at)?.head.clone())
    }

    /// The newest version of a key at or before `at`.
    pub(in crate::machine) fn get(&self, key: Hashed<'_>, at: Revision) -> Option<LayerVersion> {
        self.read().find(key, at).cloned()
    }

    /// What a reader finds of a key at `at`, where nobody adds just now: who must not wait does not.
    pub(in crate::machine) fn look_now(&self, key: Hashed<'_>, at: Revision) -> Result<Option<Seen>, Busy> {
        let content = match self.0.try_read() {
            Ok(content) => content,
            Err(TryLockError::Poisoned(content)) => content.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Busy),
        };
        Ok(content.find(key, at).map(LayerVersion::found))
    }

    /// Goes through what each key has become, in no order that means anything: its record, or that it has none. For a layer
    /// to which nothing is added any more: the lock is held meanwhile.
    pub(in crate::machine) fn newest<T>(
        &self,
        go_through: impl for<'k> FnOnce(&mut dyn Iterator<Item = (&'k [u8], Option<RecordRef<'k>>)>) -> T,
    ) -> T {
        let content = self.read();
        let mut keys = (0..).zip(&content.newest).map(|(place, newest)| {
            let held = &content.versions.get(*newest).held;
            let record = held.head.meta().map(|meta| RecordRef {
                meta,
                mod_revision: held.head.revision,
                value: &held.value,
            });
            (&content.keys.key(place)[..], record)
        });
        go_through(&mut keys)
    }

    /// The next keys of a range in order, with what they are at `at`, those that are not there yet included: `count` of them
    /// at most; fewer only at the range's end.
    pub(in crate::machine) fn next_keys(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        order: Order,
        at: Revision,
        count: usize,
    ) -> Vec<(Bytes, Look)> {
        /// So many keys are put in order before others get their turn.
        const SORTED_AT_ONCE: usize = 1024;
        loop {
            let content = self.read();
            if content.keys.sort(SORTED_AT_ONCE) {
                return content.keys.first_of(bounds, order, count, |place| {
                    let mut steps = 0;
                    let held = content.at(place, at, &mut steps);
                    let found = held.map(LayerVersion::found);
                    Look { found, steps }
                });
            }
        }
    }

    /// An answer, where the layer knows of it: `Some(None)` is one forgotten.
    pub(in crate::machine) fn answer(&self, id: SessionId, sequence: Sequence) -> Option<Option<Bytes>> {
        self.read().answers.get((id, sequence))
    }

    /// The last number of a sequence, where it went on.
    pub(in crate::machine) fn sequence(&self, prefix: &[u8]) -> Option<u64> {
        self.read().sequences.get(prefix).copied()
    }

    /// The last row of `times` that is not later than a time.
    pub(in crate::machine) fn stood(&self, time: LogTime) -> Option<Stood> {
        let content = self.read();
        let later = content.times.partition_point(|(at, _)| *at <= time);
        content.times[..later].last().copied()
    }

    /// The places of all keys, in the order of the keys.
    pub(in crate::machine) fn order(&self) -> Vec<u32> {
        self.read().keys.in_order()
    }

    /// Visits the newest heads, in the order of their keys; `order` is the layer's [`order`](Self::order). For a layer to which
    /// nothing is added any more: the lock is held meanwhile.
    pub(in crate::machine) fn visit_heads<E>(
        &self,
        order: &[u32],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let content = self.read();
        let mut row = Vec::new();
        for place in order {
            let number = content.newest[*place as usize];
            row.clear();
            content.versions.get(number).held.head.encode_into(&mut row);
            visit(content.keys.key(*place), &row)?;
        }
        Ok(())
    }

    /// Visits what a checkpoint writes to a table, or removes, in the order of the rows; `order` is the layer's
    /// [`order`](Self::order). For a layer to which nothing is added any more: the lock is held meanwhile.
    pub(in crate::machine) fn visit_rows<E>(
        &self,
        table: Table,
        order: &[u32],
        mut visit: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let content = self.read();
        match table {
            Table::Current | Table::Deleted => {
                let mut row = Vec::new();
                for place in order {
                    let head = &content.versions.get(content.newest[*place as usize]).held.head;
                    let here = head.record.is_some() == (table == Table::Current);
                    row.clear();
                    head.encode_into(&mut row);
                    visit(content.keys.key(*place), here.then_some(&row[..]))?;
                }
            }
            Table::Versions => {
                // They came in the order of revisions, and those of a revision in the order of keys.
                let (mut row_key, mut row) = (Vec::new(), Vec::new());
                for Kept { held, place, .. } in content.versions.iter() {
                    version::put_row_key(&mut row_key, held.head.revision, content.keys.key(*place));
                    row.clear();
                    held.version().encode_into(&mut row);
                    visit(&row_key, Some(&row))?;
                }
            }
            // No lease can be granted yet.
            Table::Leases => {}
            Table::Sessions => {
                for (id, row) in &content.sessions {
                    visit(&session_key(*id), row.as_deref())?;
                }
            }
            Table::Answers => {
                for ((id, sequence), answer) in content.answers.iter() {
                    visit(&answer_key(id, sequence), answer.map(|answer| &answer[..]))?;
                }
            }
            Table::Sequences => {
                for (prefix, last) in &content.sequences {
                    visit(prefix, Some(&sequences::encode(*last)))?;
                }
            }
            Table::Times => {
                for (time, revision) in &content.times {
                    visit(&times::key(*time), Some(&times::value(*revision)))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key that is written all the time, and another now and then.
    fn hot(versions: u64) -> Layer {
        let layer = Layer::default();
        let (mut last, mut other) = (None, None);
        for number in 0..versions {
            let add = |name: &'static [u8], last: &mut Option<Head>| {
                let head = Head::after(last.as_ref(), Revision::new(2 * number + 2), None);
                let held = LayerVersion {
                    previous: last.as_ref().map(|head| head.revision),
                    value: Bytes::new(),
                    head: head.clone(),
                };
                let key = Bytes::from_static(name);
                *last = Some(head);
                (key.clone(), Hashed::new(&key).hash, held)
            };
            let mut versions = vec![add(b"hot", &mut last)];
            if number.is_multiple_of(7) {
                versions.push(add(b"other", &mut other));
            }
            layer.add(Additions {
                versions,
                ..Additions::default()
            });
        }
        layer
    }

    /// A reader of an old revision went by all newer versions one by one, with the lock held.
    #[test]
    fn any_version_of_a_key_is_found_in_few_steps() {
        let layer = hot(5_000);
        for at in 0..10_010 {
            let content = layer.read();
            let mut steps = 0;
            let held = content.at(0, Revision::new(at), &mut steps);
            let expected = (at >= 2).then_some(Revision::new((at / 2 * 2).min(10_000)));
            assert_eq!(held.map(|held| held.head.revision), expected, "at {at}");
            assert!(steps <= 3 * 13, "{steps} steps at {at}, of 2^13 versions at most");
        }
        let of_other = layer.get(Hashed::new(b"other"), Revision::new(20)).unwrap();
        assert_eq!(of_other.head.revision, Revision::new(16));
    }

    #[test]
    fn keys_of_a_range_that_are_not_there_yet_are_among_the_few_that_are_asked_for() {
        let layer = hot(3);
        let all = (Bound::Unbounded, Bound::Unbounded);
        let next = |at, count| {
            let keys = layer.next_keys(all, Order::Ascending, Revision::new(at), count);
            keys.into_iter()
                .map(|(key, look)| (key, look.found.map(|found| found.revision.number())))
                .collect::<Vec<_>>()
        };
        let (hot, other) = (Bytes::from_static(b"hot"), Bytes::from_static(b"other"));
        assert_eq!(next(1, 1), [(hot.clone(), None)]);
        assert_eq!(next(1, 9), [(hot.clone(), None), (other.clone(), None)]);
        assert_eq!(next(5, 9), [(hot, Some(4)), (other, Some(2))]);
    }
}

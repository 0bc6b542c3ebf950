//! What the state file says of keys that were looked up of late, in memory: so that who must not wait for a disk is
//! answered all the same.
//!
//! The database caches pages, but tells nobody which, and a read that its storage refuses in the place of waiting ends the
//! whole database. So this cache is ours, and of records. They were checked when they were read of the file, as every read
//! of it is; a key that the file does not have is here too. What a checkpoint writes comes along, as far as there is room.
//!
//! No part of it is locked for longer than a look-up or an insertion, and who finds one locked need not wait: he is told that
//! nothing is known.
//!
//! Always: what is told of a key is what the file has at the revision that was asked for; no more bytes are held than the
//! bound; which key goes for another depends on nothing that differs from process to process.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use bytes::Bytes;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::machine::layers::keys::Hashed;
use crate::machine::rows::version::RecordRef;
use crate::model::{Record, Revision};

/// Parts with a lock each.
const PARTS: usize = 16;
/// What a key takes beside its bytes and its value's: its place, both allocations, and what it is found by.
const OVERHEAD_BYTES: usize = 256;
/// Larger values are not kept: who waits for no disk does not copy them either.
pub(in crate::machine) const VALUE_BYTES_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(in crate::machine) struct Recent(Box<[Mutex<Part>]>);

/// Some of the keys.
#[derive(Debug)]
struct Part {
    /// Of the file at which revision this tells. `None`: of none, while a checkpoint's keys come along.
    at: Option<Revision>,
    /// The places of the keys.
    places: HashTable<usize>,
    kept: Vec<Kept>,
    /// Where is looked next for one that goes.
    hand: usize,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Kept {
    hash: u64,
    key: Bytes,
    /// `None`: the file does not have the key.
    record: Option<Record>,
    /// It was asked for since the hand came by.
    is_used: bool,
}

impl Kept {
    fn bytes(&self) -> usize {
        bytes_of(&self.key, self.record.as_ref().map(|record| record.value.len()))
    }
}

fn bytes_of(key: &[u8], value: Option<usize>) -> usize {
    OVERHEAD_BYTES + key.len() + value.unwrap_or(0)
}

impl Recent {
    /// An empty one, which takes so many bytes of memory and tells nothing before [`follow`](Self::follow) was called.
    pub(in crate::machine) fn new(bytes_max: usize) -> Self {
        let part = || {
            Mutex::new(Part {
                at: None,
                places: HashTable::new(),
                kept: Vec::new(),
                hand: 0,
                bytes: 0,
                bytes_max: bytes_max / PARTS,
            })
        };
        Self((0..PARTS).map(|_| part()).collect())
    }

    /// Not by the hash that differs from process to process.
    fn part(&self, key: &[u8]) -> &Mutex<Part> {
        &self.0[xxh3_64(key) as usize % PARTS]
    }

    /// What the file at a revision has of a key (`Some(None)`: nothing), where that is known and nobody else looks just now.
    pub(in crate::machine) fn get(&self, key: Hashed<'_>, at: Revision) -> Option<Option<Record>> {
        let mut part = match self.part(key.key).try_lock() {
            Ok(part) => part,
            Err(TryLockError::Poisoned(part)) => part.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if part.at != Some(at) {
            return None;
        }
        let place = part.find(key)?;
        let kept = &mut part.kept[place];
        kept.is_used = true;
        Some(kept.record.clone())
    }

    /// Keeps what the file at a revision has of a key, in the place of others that were not asked for. Nothing where the file
    /// is at another one by now.
    pub(in crate::machine) fn keep(&self, key: Hashed<'_>, at: Revision, record: Option<&Record>) {
        let mut part = locked(self.part(key.key));
        if part.at == Some(at) && part.find(key).is_none() {
            let value = record.map(|record| record.value.len());
            part.insert(key, value, || record.cloned(), Room::Made);
        }
    }

    /// The file came to this revision, and in these keys, once each, it is another. Nothing is told meanwhile.
    pub(in crate::machine) fn follow<'k>(
        &self,
        to: Revision,
        written: impl Iterator<Item = (&'k [u8], Option<RecordRef<'k>>)>,
    ) {
        self.each_part(|part| part.at = None);
        for (key, record) in written {
            let key = Hashed::new(key);
            locked(self.part(key.key)).replace(key, record);
        }
        self.each_part(|part| part.at = Some(to));
    }

    fn each_part(&self, mut change: impl FnMut(&mut Part)) {
        self.0.iter().for_each(|part| change(&mut locked(part)));
    }
}

fn locked(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    // Nothing in here panics but for memory, and then the program ends.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether others go for a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Made,
    Left,
}

impl Part {
    fn find(&self, key: Hashed<'_>) -> Option<usize> {
        let is_it = |place: &usize| {
            let kept = &self.kept[*place];
            kept.hash == key.hash && kept.key == key.key
        };
        self.places.find(key.hash, is_it).copied()
    }

    /// A key that is not here, with a value of this size.
    fn insert(
        &mut self,
        key: Hashed<'_>,
        value: Option<usize>,
        record: impl FnOnce() -> Option<Record>,
        room: Room,
    ) {
        let bytes = bytes_of(key.key, value);
        if value.is_some_and(|value| value > VALUE_BYTES_MAX) || bytes > self.bytes_max {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            if room == Room::Left {
                return;
            }
            self.make_room();
        }
        let place = self.kept.len();
        self.kept.push(Kept {
            hash: key.hash,
            key: Bytes::copy_from_slice(key.key),
            record: record(),
            is_used: false,
        });
        self.bytes += bytes;
        let kept = &self.kept;
        self.places
            .insert_unique(key.hash, place, |place| kept[*place].hash);
    }

    /// Takes away the next one that was not asked for since the hand came by.
    fn make_room(&mut self) {
        loop {
            if self.hand >= self.kept.len() {
                self.hand = 0;
            }
            let Some(kept) = self.kept.get_mut(self.hand) else {
                return;
            };
            if !std::mem::take(&mut kept.is_used) {
                return self.remove(self.hand);
            }
            self.hand += 1;
        }
    }

    fn remove(&mut self, place: usize) {
        let gone = self.kept.swap_remove(place);
        self.bytes -= gone.bytes();
        if let Ok(found) = self.places.find_entry(gone.hash, |at| *at == place) {
            found.remove();
        }
        // The last one has its place now.
        let last = self.kept.len();
        if let Some(moved) = self.kept.get(place)
            && let Some(at) = self.places.find_mut(moved.hash, |at| *at == last)
        {
            *at = place;
        }
    }

    /// What a key has become. One that is not here comes only where there is room left.
    fn replace(&mut self, key: Hashed<'_>, record: Option<RecordRef<'_>>) {
        let was_used = match self.find(key) {
            Some(place) => {
                let was_used = self.kept[place].is_used;
                self.remove(place);
                was_used
            }
            None => false,
        };
        let value = record.map(|record| record.value.len());
        let copied = || record.map(|record| record.to_record(true));
        self.insert(key, value, copied, Room::Left);
        if was_used && let Some(place) = self.find(key) {
            self.kept[place].is_used = true;
        }
    }

    #[cfg(test)]
    fn check(&self) {
        assert_eq!(self.bytes, self.kept.iter().map(Kept::bytes).sum::<usize>());
        assert!(self.bytes <= self.bytes_max);
        assert_eq!(self.places.len(), self.kept.len());
        for (place, kept) in self.kept.iter().enumerate() {
            let key = Hashed {
                key: &kept.key,
                hash: kept.hash,
            };
            assert_eq!(self.find(key), Some(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::machine::rows::head::Meta;

    fn record(number: u64, size: usize) -> Record {
        Record {
            value: vec![b'v'; size].into(),
            create_revision: Revision::new(number),
            mod_revision: Revision::new(number),
            version: 1,
            lease: None,
        }
    }

    fn as_ref(record: &Record) -> RecordRef<'_> {
        RecordRef {
            meta: Meta {
                create_revision: record.create_revision,
                version: record.version,
                lease: record.lease,
            },
            mod_revision: record.mod_revision,
            value: &record.value,
        }
    }

    fn at_revision(at: u64, bytes_max: usize) -> Recent {
        let recent = Recent::new(bytes_max);
        recent.follow(Revision::new(at), std::iter::empty());
        recent
    }

    #[derive(Clone, Debug)]
    enum Step {
        Get(u8),
        /// A reader of the newest base, or of one before it.
        Keep(u8, bool),
        /// A checkpoint wrote these keys; without a value it deleted the key.
        Follow(BTreeMap<u8, Option<usize>>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let written = prop::collection::btree_map(0u8..40, prop::option::of(0usize..700), 0..12);
        prop_oneof![
            6 => (0u8..40).prop_map(Step::Get),
            6 => (0u8..40, prop::bool::weighted(0.9)).prop_map(|(key, newest)| Step::Keep(key, newest)),
            1 => written.prop_map(Step::Follow),
        ]
    }

    proptest! {
        #[test]
        fn what_is_told_of_a_key_is_what_the_file_has_and_the_bytes_are_within_their_bound(
            steps in prop::collection::vec(step(), 1..200), parts_hold in 1usize..4,
        ) {
            let mut at = 1;
            let recent = at_revision(at, PARTS * parts_hold * 600);
            let (mut file, mut before) = (BTreeMap::<u8, Record>::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Get(key) => {
                        let told = recent.get(Hashed::new(&[key]), Revision::new(at));
                        prop_assert!(told.is_none_or(|told| told.as_ref() == file.get(&key)));
                        // Of the file as it was nothing is told any more.
                        prop_assert_eq!(recent.get(Hashed::new(&[key]), Revision::new(at - 1)), None);
                    }
                    Step::Keep(key, true) => {
                        recent.keep(Hashed::new(&[key]), Revision::new(at), file.get(&key));
                        let value = file.get(&key).map(|record| record.value.len());
                        let fits = bytes_of(&[key], value) <= parts_hold * 600;
                        let told = recent.get(Hashed::new(&[key]), Revision::new(at));
                        prop_assert_eq!(told.is_some(), fits);
                    }
                    Step::Keep(key, false) => {
                        recent.keep(Hashed::new(&[key]), Revision::new(at - 1), before.get(&key));
                    }
                    Step::Follow(written) => {
                        at += 1;
                        before = file.clone();
                        for (key, size) in &written {
                            match size {
                                Some(size) => file.insert(*key, record(at, *size)),
                                None => file.remove(key),
                            };
                        }
                        let keys: Vec<[u8; 1]> = written.keys().map(|key| [*key]).collect();
                        let written = keys.iter().map(|key| (&key[..], file.get(&key[0]).map(as_ref)));
                        recent.follow(Revision::new(at), written);
                    }
                }
                recent.0.iter().for_each(|part| locked(part).check());
            }
        }
    }

    #[test]
    fn a_key_that_is_asked_for_stays_where_others_come_and_go() {
        let recent = at_revision(1, PARTS * 4 * 400);
        let keep = |number: u32| {
            let key = number.to_be_bytes();
            recent.keep(Hashed::new(&key), Revision::new(1), Some(&record(1, 100)));
        };
        keep(0);
        for number in 1..1_000 {
            let asked = recent.get(Hashed::new(&0u32.to_be_bytes()), Revision::new(1));
            assert!(asked.is_some(), "it went for {number}");
            keep(number);
        }
    }

    #[test]
    fn who_finds_it_locked_is_told_nothing() {
        let recent = at_revision(1, 1 << 20);
        let key = Hashed::new(b"key");
        recent.keep(key, Revision::new(1), None);
        assert_eq!(recent.get(key, Revision::new(1)), Some(None));
        let looks = locked(recent.part(b"key"));
        assert_eq!(recent.get(key, Revision::new(1)), None);
        drop(looks);
        assert_eq!(recent.get(key, Revision::new(1)), Some(None));
    }
}

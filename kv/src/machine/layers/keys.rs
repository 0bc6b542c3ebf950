//! A set of keys in the order of their arrival: found by hash, and sorted when someone first asks for a range.
//!
//! Most batches and many layers are never asked for a range; so nobody pays for the order of keys, which costs a dozen
//! comparisons in scattered memory for each, before it is needed.
//!
//! Sorting needs no more than a shared reference, so that whoever reads a range keeps nobody from looking keys up.
//!
//! Always: a key has one place, which never changes; nothing depends on the order of the hash table, which
//! differs from process to process, and is never gone through.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hashbrown::HashTable;

use crate::model::Order;

/// Random for each process, so that nobody can choose keys that collide.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A key with its hash, which is computed once for all look-ups.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Hashed<'k> {
    pub(in crate::machine) key: &'k [u8],
    pub(in crate::machine) hash: u64,
}

impl<'k> Hashed<'k> {
    pub(in crate::machine) fn new(key: &'k [u8]) -> Self {
        let hash = HASHER.hash_one(key);
        Self { key, hash }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::machine) struct Keys {
    /// By place.
    keys: Vec<Bytes>,
    places: HashTable<Hash>,
    /// The first so many keys, sorted, with their places.
    sorted: Mutex<BTreeMap<Bytes, u32>>,
}

#[derive(Clone, Copy, Debug)]
struct Hash {
    hash: u64,
    place: u32,
}

impl Keys {
    fn sorted(&self) -> MutexGuard<'_, BTreeMap<Bytes, u32>> {
        // A panic between two insertions leaves a whole map of fewer keys, the first ones still.
        self.sorted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key at a place.
    pub(in crate::machine) fn key(&self, place: u32) -> &Bytes {
        &self.keys[place as usize]
    }

    /// The place of a key.
    pub(in crate::machine) fn find(&self, key: Hashed<'_>) -> Option<u32> {
        let found = self.places.find(key.hash, |at| {
            at.hash == key.hash && self.keys[at.place as usize] == key.key
        })?;
        Some(found.place)
    }

    /// Makes room for so many keys to come.
    pub(in crate::machine) fn reserve(&mut self, count: usize) {
        self.keys.reserve(count);
        self.places.reserve(count, |at| at.hash);
    }

    /// Gives a key that has none the next place.
    pub(in crate::machine) fn add(&mut self, hash: u64, key: Bytes) -> u32 {
        // A layer has some 100,000 keys, a batch no more than one apply has operations: far below 2^32.
        let place = self.keys.len() as u32;
        self.keys.push(key);
        self.places
            .insert_unique(hash, Hash { hash, place }, |at| at.hash);
        place
    }

    /// Sorts so many more keys at most; whether all are sorted now. For who holds a lock meanwhile: the first range of many
    /// keys would keep others from it for long.
    pub(in crate::machine) fn sort(&self, count: usize) -> bool {
        let mut sorted = self.sorted();
        let known = sorted.len();
        for (place, key) in self.keys.iter().enumerate().skip(known).take(count) {
            sorted.insert(key.clone(), place as u32);
        }
        sorted.len() == self.keys.len()
    }

    /// The first `count` of a range, in the order asked for, with what `look` answers for their places; fewer only where the
    /// range holds no more. All must be [sorted](Self::sort): others are left out.
    pub(in crate::machine) fn first_of<T>(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        order: Order,
        count: usize,
        look: impl Fn(u32) -> T,
    ) -> Vec<(Bytes, T)> {
        first_of(&self.sorted(), bounds, order, count, look)
    }

    /// All places, in the order of their keys.
    pub(in crate::machine) fn in_order(&self) -> Vec<u32> {
        let sorted = self.sorted();
        if sorted.len() == self.keys.len() {
            return sorted.values().copied().collect();
        }
        drop(sorted);
        let mut places: Vec<u32> = (0..self.keys.len() as u32).collect();
        places.sort_unstable_by_key(|place| self.key(*place));
        places
    }
}

/// The first `count` of a range of sorted keys, in the order asked for, with what `look` answers for their places.
pub(in crate::machine) fn first_of<T>(
    sorted: &BTreeMap<Bytes, u32>,
    bounds: (Bound<&[u8]>, Bound<&[u8]>),
    order: Order,
    count: usize,
    look: impl Fn(u32) -> T,
) -> Vec<(Bytes, T)> {
    let range = sorted.range::<[u8], _>(bounds);
    let look = |(key, place): (&Bytes, &u32)| {
        #[cfg(test)]
        GONE_THROUGH.set(GONE_THROUGH.get() + 1);
        (key.clone(), look(*place))
    };
    match order {
        Order::Ascending => range.take(count).map(look).collect(),
        Order::Descending => range.rev().take(count).map(look).collect(),
    }
}

#[cfg(test)]
thread_local! {
    /// How many places ranges have gone through on this thread.
    pub(in crate::machine) static GONE_THROUGH: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_keep_their_places_and_are_in_order_whenever_they_were_sorted(
            steps in proptest::collection::vec((proptest::collection::vec(0u8..4, 1..4), 0usize..4), 0..60),
            start in proptest::collection::vec(0u8..4, 0..3),
        ) {
            let mut keys = Keys::default();
            let mut model: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for (key, sort) in steps {
                let hashed = Hashed::new(&key);
                prop_assert_eq!(keys.find(hashed), model.get(&key).copied());
                model
                    .entry(key.clone())
                    .or_insert_with(|| keys.add(hashed.hash, Bytes::copy_from_slice(&key)));
                // Some at a time, or all at once.
                let all_sorted = keys.sort(sort);
                prop_assert!(!all_sorted || keys.in_order().len() == model.len());
                if sort == 3 {
                    keys.sort(usize::MAX);
                    let all = keys.first_of((Bound::Unbounded, Bound::Unbounded), Order::Ascending, usize::MAX, |_| ());
                    prop_assert_eq!(all.len(), model.len());
                }
                prop_assert_eq!(keys.in_order(), model.values().copied().collect::<Vec<_>>());
            }
            // Three at most, from either end.
            keys.sort(usize::MAX);
            let bounds = (Bound::Excluded(&start[..]), Bound::Unbounded);
            let model_range = model.range::<[u8], _>(bounds).map(|(key, place)| (key.clone().into(), *place));
            let mut expected: Vec<(Bytes, u32)> = model_range.collect();
            let found = |order| keys.first_of(bounds, order, 3, |place| place);
            prop_assert_eq!(&found(Order::Ascending)[..], &expected[..expected.len().min(3)]);
            expected.reverse();
            prop_assert_eq!(&found(Order::Descending)[..], &expected[..expected.len().min(3)]);
            for (key, place) in &model {
                prop_assert_eq!(keys.find(Hashed::new(key)), Some(*place));
                prop_assert_eq!(&keys.key(*place)[..], &key[..]);
            }
        }
    }
}

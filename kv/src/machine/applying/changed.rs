//! The keys that a batch has changed, in order: what ranges must see beside the state that stands.
//!
//! A batch looks up many more keys than it changes, and nobody pays for these again: a range of a transaction may come by
//! what was changed alone. 12,500 ranges over 100,000 keys that were only named took most of a minute.
//!
//! Most batches are never asked for a range; so keys are put in order when someone first asks.
//!
//! Always: a place is here at most once; between two transactions, those are here that the batch has changed, and no others.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::machine::layers::keys::{self, Keys};
use crate::model::Order;

/// See the module.
#[derive(Debug, Default, Clone)]
pub(in crate::machine) struct Changed {
    /// In the order of their first changes; those of the transaction under way from `begun` on.
    places: Vec<u32>,
    begun: usize,
    /// The first so many of them.
    sorted: BTreeMap<Bytes, u32>,
}

impl Changed {
    /// Makes room for so many to come.
    pub(in crate::machine) fn reserve(&mut self, count: usize) {
        self.places.reserve(count);
    }

    /// Takes in a place that is not here.
    pub(in crate::machine) fn add(&mut self, place: u32) {
        self.places.push(place);
    }

    /// The transaction under way is over. Of what it took in stays what has really changed.
    pub(in crate::machine) fn end(&mut self, keys: &Keys, has_changed: impl Fn(u32) -> bool) {
        let known = self.sorted.len();
        let mut kept = self.begun;
        for number in self.begun..self.places.len() {
            let place = self.places[number];
            if has_changed(place) {
                // What stays moves to the front, so that the first ones remain those that are sorted.
                self.places.swap(kept, number);
                kept += 1;
            } else if number < known {
                self.sorted.remove(keys.key(place));
            }
        }
        self.places.truncate(kept);
        self.begun = kept;
    }

    /// Puts all in order.
    pub(in crate::machine) fn sort(&mut self, keys: &Keys) {
        for place in &self.places[self.sorted.len()..] {
            self.sorted.insert(keys.key(*place).clone(), *place);
        }
    }

    /// The first `count` of a range that [`sort`](Self::sort) has put in order, in the order asked for.
    pub(in crate::machine) fn first_of<T>(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        order: Order,
        count: usize,
        look: impl Fn(u32) -> T,
    ) -> Vec<(Bytes, T)> {
        keys::first_of(&self.sorted, bounds, order, count, look)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::machine::layers::keys::Hashed;

    #[derive(Debug, Clone)]
    enum Step {
        /// A place is changed, if it was not before.
        Change(u32),
        Sort,
        /// The transaction ends, and these of its places have really changed.
        End(BTreeSet<u32>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..8).prop_map(Step::Change),
            1 => Just(Step::Sort),
            1 => prop::collection::btree_set(0u32..8, 0..8).prop_map(Step::End),
        ]
    }

    proptest! {
        #[test]
        fn what_has_changed_is_found_in_order_and_nothing_else(steps in prop::collection::vec(step(), 0..40)) {
            let mut keys = Keys::default();
            // In another order than their places.
            let name = |place: u32| Bytes::from(vec![b'a' + (place * 5 % 8) as u8]);
            for place in 0..8 {
                let key = name(place);
                keys.add(Hashed::new(&key).hash, key.clone());
            }
            let mut changed = Changed::default();
            let (mut before, mut now) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Change(place) => {
                        if !before.contains(&place) && now.insert(place) {
                            changed.add(place);
                        }
                    }
                    Step::Sort => changed.sort(&keys),
                    Step::End(real) => {
                        before.extend(now.intersection(&real));
                        now.clear();
                        changed.end(&keys, |place| real.contains(&place));
                    }
                }
                let mut changed = changed.clone();
                changed.sort(&keys);
                let mut expected: Vec<_> = before.union(&now).map(|place| (name(*place), *place)).collect();
                expected.sort();
                let all = (Bound::Unbounded, Bound::Unbounded);
                prop_assert_eq!(&changed.first_of(all, Order::Ascending, 9, |place| place), &expected);
                expected.reverse();
                expected.truncate(3);
                prop_assert_eq!(&changed.first_of(all, Order::Descending, 3, |place| place), &expected);
            }
        }
    }
}

//! Where no key exists: runs of deleted keys that scans have gone by, so that they go by once.
//!
//! Deleted keys stand in layers until a checkpoint has written them, and hide what the file says until then. A
//! transaction pays for keys that exist, as its cost must not depend on checkpoints: without this, 100,000 conditions on
//! a range of 100,000 deleted keys would cost little and take hours.
//!
//! Always: no key exists in a gap, in the state as the batch under way sees it; gaps neither overlap nor touch. What
//! scans answer does not depend on which gaps are known.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;

use crate::model::{KeyRange, Order};

/// Gaps take so much memory at most. When there are more, all are forgotten: finding as many took longer than finding
/// those anew that are met again.
const BYTES_MAX: usize = 16 << 20;
/// What a gap takes beside its keys.
const OVERHEAD_BYTES: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// By their first key: the first key behind, or none where nothing is.
    gaps: BTreeMap<Bytes, Option<Bytes>>,
    /// What they take.
    bytes: usize,
}

fn size(start: &Bytes, end: Option<&Bytes>) -> usize {
    start.len() + end.map_or(0, Bytes::len) + OVERHEAD_BYTES
}

/// A part of a range that no gap touches, and what follows it behind the next gap.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) here: KeyRange,
    pub(super) then: Option<KeyRange>,
}

impl Gaps {
    /// The first part of a range, in the order asked for, that is outside of gaps; `None` where all of it is in one.
    pub(super) fn segment(&self, range: KeyRange, order: Order) -> Option<Segment> {
        if self.gaps.is_empty() {
            return Some(Segment {
                here: range,
                then: None,
            });
        }
        match order {
            Order::Ascending => self.ascending(range),
            Order::Descending => self.descending(range),
        }
    }

    fn ascending(&self, range: KeyRange) -> Option<Segment> {
        let end = range.end().map(Bytes::copy_from_slice);
        let from = |start: Bytes| match &end {
            Some(end) => KeyRange::new(start, end.clone()),
            None => KeyRange::from(start),
        };
        // The gap that the range begins in.
        let before = self
            .gaps
            .range::<[u8], _>((Unbounded, Included(range.start())))
            .next_back();
        let start = match before {
            Some((_, None)) => return None,
            Some((_, Some(behind))) if &behind[..] > range.start() => behind.clone(),
            _ => Bytes::copy_from_slice(range.start()),
        };
        let rest = from(start.clone());
        if rest.is_empty() {
            return None;
        }
        let next = self
            .gaps
            .range::<[u8], _>((Included(&start[..]), Unbounded))
            .next();
        match next.filter(|(gap, _)| end.as_ref().is_none_or(|end| *gap < end)) {
            None => Some(Segment {
                here: rest,
                then: None,
            }),
            Some((gap, behind)) => Some(Segment {
                here: KeyRange::new(start, gap.clone()),
                then: behind.clone().map(from).filter(|rest| !rest.is_empty()),
            }),
        }
    }

    fn descending(&self, range: KeyRange) -> Option<Segment> {
        let start = Bytes::copy_from_slice(range.start());
        let up_to = |end: Bytes| KeyRange::new(start.clone(), end);
        // The gap that the range ends in, or the last before its end.
        let mut rest = range;
        loop {
            let before = match rest.end() {
                Some(end) => self.gaps.range::<[u8], _>((Unbounded, Excluded(end))).next_back(),
                None => self.gaps.iter().next_back(),
            };
            let Some((gap, behind)) =
                before.filter(|(_, behind)| behind.as_ref().is_none_or(|behind| *behind > start))
            else {
                return Some(Segment {
                    here: rest,
                    then: None,
                });
            };
            let reaches_end = match (behind, rest.end()) {
                (None, _) => true,
                (Some(behind), Some(end)) => &behind[..] >= end,
                (Some(_), None) => false,
            };
            if reaches_end {
                rest = up_to(gap.clone());
                if rest.is_empty() {
                    return None;
                }
                continue;
            }
            // It ends within, as the one without an end reaches all ends.
            let behind = behind.clone().unwrap_or_default();
            let here = match rest.end() {
                Some(end) => KeyRange::new(behind, Bytes::copy_from_slice(end)),
                None => KeyRange::from(behind),
            };
            let then = Some(up_to(gap.clone())).filter(|rest| !rest.is_empty());
            return Some(Segment { here, then });
        }
    }

    /// Takes in that no key exists in a range (not an empty one).
    pub(super) fn add(&mut self, start: Bytes, end: Option<Bytes>) {
        if self.bytes >= BYTES_MAX {
            *self = Self::default();
        }
        let (mut start, mut end) = (start, end);
        // What it overlaps or touches becomes one with it.
        while let Some((first, last)) = self.touching(&start, end.as_ref()) {
            self.remove(&first);
            start = start.min(first);
            end = match (end, last) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        self.insert(start, end);
    }

    fn insert(&mut self, start: Bytes, end: Option<Bytes>) {
        self.bytes += size(&start, end.as_ref());
        self.gaps.insert(start, end);
    }

    fn remove(&mut self, start: &Bytes) {
        if let Some(end) = self.gaps.remove(start) {
            self.bytes -= size(start, end.as_ref());
        }
    }

    fn touching(&self, start: &Bytes, end: Option<&Bytes>) -> Option<(Bytes, Option<Bytes>)> {
        let mut before = match end {
            Some(end) => self.gaps.range::<Bytes, _>(..=end),
            None => self.gaps.range::<Bytes, _>(..),
        };
        let (first, last) = before.next_back()?;
        let touches = last.as_ref().is_none_or(|last| last >= start);
        touches.then(|| (first.clone(), last.clone()))
    }

    /// A key exists from now on.
    pub(super) fn fill(&mut self, key: &[u8]) {
        if self.gaps.is_empty() {
            return;
        }
        let Some((first, last)) = self.gaps.range::<[u8], _>((Unbounded, Included(key))).next_back() else {
            return;
        };
        if last.as_ref().is_some_and(|last| &last[..] <= key) {
            return;
        }
        let (first, last) = (first.clone(), last.clone());
        self.remove(&first);
        if &first[..] < key {
            self.insert(first, Some(Bytes::copy_from_slice(key)));
        }
        let behind = after(key);
        if last.as_ref().is_none_or(|last| behind < *last) {
            self.insert(behind, last);
        }
    }
}

/// The first key behind another.
pub(super) fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The deleted keys that a scan goes by, one behind the other.
#[derive(Debug)]
pub(super) struct GoneBy {
    order: Order,
    count: usize,
    /// Fewer are not worth to be known: going by them costs no more than beginning anew behind them.
    count_min: usize,
    first: Bytes,
}

impl GoneBy {
    pub(super) fn new(order: Order, count_min: usize) -> Self {
        Self {
            order,
            count: 0,
            count_min,
            first: Bytes::new(),
        }
    }

    /// A deleted key.
    pub(super) fn key(&mut self, key: &[u8]) {
        if self.count == 0 {
            self.first = Bytes::copy_from_slice(key);
        }
        self.count += 1;
    }

    /// A key that exists: the gap before it.
    pub(super) fn up_to(&mut self, key: &[u8]) -> Option<(Bytes, Option<Bytes>)> {
        self.is_worth_it().then(|| match self.order {
            Order::Ascending => (self.first.clone(), Some(Bytes::copy_from_slice(key))),
            Order::Descending => (after(key), Some(after(&self.first))),
        })
    }

    /// The end of the range: the gap before it.
    pub(super) fn up_to_end_of(&mut self, range: &KeyRange) -> Option<(Bytes, Option<Bytes>)> {
        self.is_worth_it().then(|| match self.order {
            Order::Ascending => (self.first.clone(), range.end().map(Bytes::copy_from_slice)),
            Order::Descending => (Bytes::copy_from_slice(range.start()), Some(after(&self.first))),
        })
    }

    fn is_worth_it(&mut self) -> bool {
        std::mem::take(&mut self.count) >= self.count_min
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Add(Vec<u8>, Option<Vec<u8>>),
        Fill(Vec<u8>),
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..3, 1..4)
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (key(), prop::option::of(key())).prop_map(|(start, end)| Act::Add(start, end)),
            key().prop_map(Act::Fill),
        ]
    }

    /// All keys of the alphabet.
    fn keys() -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = vec![Vec::new()];
        for _ in 0..3 {
            let longer = all
                .iter()
                .flat_map(|key| (0..3).map(|byte| [&key[..], &[byte]].concat()));
            all = all
                .iter()
                .cloned()
                .chain(longer)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
        }
        all.retain(|key| !key.is_empty());
        all
    }

    proptest! {
        #[test]
        fn segments_are_what_is_left_of_a_range_without_the_gaps(
            acts in prop::collection::vec(act(), 0..12), start in prop::option::of(key()), end in prop::option::of(key()),
            descending: bool,
        ) {
            let mut gaps = Gaps::default();
            let mut outside: BTreeSet<Vec<u8>> = keys().into_iter().collect();
            for act in acts {
                match act {
                    Act::Add(start, end) if end.as_ref().is_none_or(|end| start < *end) => {
                        outside.retain(|key| *key < start || end.as_ref().is_some_and(|end| key >= end));
                        gaps.add(start.into(), end.map(Bytes::from));
                    }
                    Act::Add(..) => {}
                    Act::Fill(key) => {
                        gaps.fill(&key);
                        outside.insert(key);
                    }
                }
                let bytes: usize = gaps.gaps.iter().map(|(start, end)| size(start, end.as_ref())).sum();
                prop_assert_eq!(gaps.bytes, bytes);
                let all: Vec<_> = gaps.gaps.iter().collect();
                for pair in all.windows(2) {
                    prop_assert!(pair[0].1.as_ref().is_some_and(|end| end < pair[1].0), "{:?}", gaps);
                }
                for (start, end) in all {
                    prop_assert!(end.as_ref().is_none_or(|end| start < end), "{:?}", gaps);
                }
            }
            let order = if descending { Order::Descending } else { Order::Ascending };
            let start = start.unwrap_or_default();
            let range = match end {
                Some(end) => KeyRange::new(start, end),
                None => KeyRange::from(start),
            };
            let mut expected: Vec<Vec<u8>> =
                outside.into_iter().filter(|key| range.contains(key)).collect();
            if descending {
                expected.reverse();
            }
            let mut found = Vec::new();
            let mut rest = Some(range).filter(|range| !range.is_empty());
            while let Some(range) = rest.take() {
                let Some(Segment { here, then }) = gaps.segment(range, order) else { break };
                let mut inside: Vec<_> = keys().into_iter().filter(|key| here.contains(key)).collect();
                if descending {
                    inside.reverse();
                }
                found.extend(inside);
                rest = then;
            }
            prop_assert_eq!(found, expected, "{:?}", gaps);
        }
    }
}

//! Where no key exists: runs of deleted keys that scans have gone by, so that they go by once.
//!
//! Deleted keys stand in layers until a checkpoint has written them, and hide what the file says until then. A
//! transaction pays for keys that exist, as its cost must not depend on checkpoints: without this, 100,000 conditions on
//! a range of 100,000 deleted keys would cost little and take hours.
//!
//! Writes cut gaps into pieces. Of the deleted keys in a gap some are marked, evenly: a piece that has no mark holds too few
//! to be worth a look-up of its own, and is forgotten. So there are never more gaps than marks, nor more marks than deleted
//! keys were gone by.
//!
//! Always: no key exists in a gap, in the state as the batch under way sees it; gaps neither overlap nor touch; each mark
//! lies in a gap, and in each gap lies a mark; all take [`BYTES_MAX`] at most. What scans answer does not depend on which gaps
//! are known.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use bytes::Bytes;

use crate::model::{KeyRange, Order};

/// Gaps and marks take so much memory at most. When there are more, every other mark is forgotten, and the gaps that have
/// none then: those that are passed most slowly remain.
const BYTES_MAX: usize = 16 << 20;
/// What a gap or a mark takes beside its keys.
const OVERHEAD_BYTES: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::machine) struct Gaps {
    /// By their first key: the first key behind, or none where nothing is.
    gaps: BTreeMap<Bytes, Option<Bytes>>,
    /// Some of the deleted keys in them.
    marks: BTreeSet<Bytes>,
    /// What they take.
    bytes: usize,
}

fn size(start: &Bytes, end: Option<&Bytes>) -> usize {
    start.len() + end.map_or(0, Bytes::len) + OVERHEAD_BYTES
}

fn size_of_mark(mark: &Bytes) -> usize {
    mark.len() + OVERHEAD_BYTES
}

/// A part of a range that no gap touches, and what follows it behind the next gap.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::machine) struct Segment {
    pub(in crate::machine) here: KeyRange,
    pub(in crate::machine) then: Option<KeyRange>,
    /// A gap ends where it begins, and another begins where it ends.
    pub(in crate::machine) is_between: bool,
}

/// A range that no key exists in, with some of the deleted keys in it.
#[derive(Debug)]
pub(in crate::machine) struct Run {
    start: Bytes,
    end: Option<Bytes>,
    marks: Vec<Bytes>,
}

impl Gaps {
    /// The first part of a range, in the order asked for, that is outside of gaps; `None` where all of it is in one.
    pub(in crate::machine) fn segment(&self, range: KeyRange, order: Order) -> Option<Segment> {
        if self.gaps.is_empty() {
            return Some(Segment {
                here: range,
                then: None,
                is_between: false,
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
            None => KeyRange::starting_at(start),
        };
        // The gap that the range begins in.
        let before = self
            .gaps
            .range::<[u8], _>((Unbounded, Included(range.start())))
            .next_back();
        let (start, is_behind) = match before {
            Some((_, None)) => return None,
            Some((_, Some(behind))) if &behind[..] >= range.start() => (behind.clone(), true),
            _ => (Bytes::copy_from_slice(range.start()), false),
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
                is_between: false,
            }),
            Some((gap, behind)) => Some(Segment {
                here: KeyRange::new(start, gap.clone()),
                then: behind.clone().map(from).filter(|rest| !rest.is_empty()),
                is_between: is_behind,
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
                    is_between: false,
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
            let is_between = rest.end().is_some_and(|end| self.gaps.contains_key(end));
            let here = match rest.end() {
                Some(end) => KeyRange::new(behind, Bytes::copy_from_slice(end)),
                None => KeyRange::starting_at(behind),
            };
            let then = Some(up_to(gap.clone())).filter(|rest| !rest.is_empty());
            return Some(Segment {
                here,
                then,
                is_between,
            });
        }
    }

    /// Takes in that no key exists in a range (not an empty one).
    pub(in crate::machine) fn add(&mut self, run: Run) {
        let Run {
            mut start,
            mut end,
            marks,
        } = run;
        // What it overlaps or touches becomes one with it.
        while let Some((first, last)) = self.touching(&start, end.as_ref()) {
            self.remove(&first);
            start = start.min(first);
            end = match (end, last) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        for mark in marks {
            let bytes = size_of_mark(&mark);
            if self.marks.insert(mark) {
                self.bytes += bytes;
            }
        }
        self.insert(start, end);
        self.forget_some();
    }

    /// Takes in a gap, if there is a mark in it.
    fn insert(&mut self, start: Bytes, end: Option<Bytes>) {
        if self.is_marked(&start, end.as_ref()) {
            self.bytes += size(&start, end.as_ref());
            self.gaps.insert(start, end);
        }
    }

    fn is_marked(&self, start: &Bytes, end: Option<&Bytes>) -> bool {
        let first = self.marks.range::<Bytes, _>(start..).next();
        first.is_some_and(|mark| end.is_none_or(|end| mark < end))
    }

    fn remove(&mut self, start: &Bytes) {
        if let Some(end) = self.gaps.remove(start) {
            self.bytes -= size(start, end.as_ref());
        }
    }

    /// Takes no more memory than it may.
    fn forget_some(&mut self) {
        while self.bytes > BYTES_MAX {
            let mut is_kept = true;
            self.marks.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
            let mut gaps = std::mem::take(&mut self.gaps);
            gaps.retain(|start, end| self.is_marked(start, end.as_ref()));
            self.gaps = gaps;
            self.bytes = self.count_bytes();
        }
    }

    fn count_bytes(&self) -> usize {
        let gaps = self.gaps.iter().map(|(start, end)| size(start, end.as_ref()));
        gaps.sum::<usize>() + self.marks.iter().map(size_of_mark).sum::<usize>()
    }

    #[cfg(test)]
    pub(in crate::machine) fn len(&self) -> usize {
        self.gaps.len()
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
    pub(in crate::machine) fn fill(&mut self, key: &[u8]) {
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
        if let Some(mark) = self.marks.take(key) {
            self.bytes -= size_of_mark(&mark);
        }
        if &first[..] < key {
            self.insert(first, Some(Bytes::copy_from_slice(key)));
        }
        let behind = after(key);
        if last.as_ref().is_none_or(|last| behind < *last) {
            self.insert(behind, last);
        }
        self.forget_some();
    }
}

/// The first key behind another.
pub(in crate::machine) fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The deleted keys that a scan goes by, one behind the other.
#[derive(Debug)]
pub(in crate::machine) struct GoneBy {
    order: Order,
    count: usize,
    /// Fewer are not worth to be known: going by them costs no more than beginning anew behind them. Of each so many one is
    /// marked.
    count_min: usize,
    first: Bytes,
    marks: Vec<Bytes>,
}

impl GoneBy {
    pub(in crate::machine) fn new(order: Order, count_min: usize) -> Self {
        Self {
            order,
            count: 0,
            count_min: count_min.max(1),
            first: Bytes::new(),
            marks: Vec::new(),
        }
    }

    /// A deleted key.
    pub(in crate::machine) fn key(&mut self, key: &[u8]) {
        if self.count == 0 {
            self.first = Bytes::copy_from_slice(key);
        }
        self.count += 1;
        if self.count.is_multiple_of(self.count_min) {
            self.marks.push(Bytes::copy_from_slice(key));
        }
    }

    /// A key that exists: the run before it.
    pub(in crate::machine) fn up_to(&mut self, key: &[u8]) -> Option<Run> {
        let marks = self.take_marks();
        (!marks.is_empty()).then(|| {
            let (start, end) = match self.order {
                Order::Ascending => (self.first.clone(), Some(Bytes::copy_from_slice(key))),
                Order::Descending => (after(key), Some(after(&self.first))),
            };
            Run { start, end, marks }
        })
    }

    /// The end of the range: the run before it.
    pub(in crate::machine) fn up_to_end_of(&mut self, range: &KeyRange) -> Option<Run> {
        let marks = self.take_marks();
        (!marks.is_empty()).then(|| {
            let (start, end) = match self.order {
                Order::Ascending => (self.first.clone(), range.end().map(Bytes::copy_from_slice)),
                Order::Descending => (Bytes::copy_from_slice(range.start()), Some(after(&self.first))),
            };
            Run { start, end, marks }
        })
    }

    /// The end of a range in which no key exists: all of it is a run, however few were gone by. For one between two gaps,
    /// which it makes one: else a scan would begin anew between them for ever.
    pub(in crate::machine) fn all_of(&mut self, range: &KeyRange) -> Run {
        Run {
            start: Bytes::copy_from_slice(range.start()),
            end: range.end().map(Bytes::copy_from_slice),
            marks: self.take_marks(),
        }
    }

    fn take_marks(&mut self) -> Vec<Bytes> {
        self.count = 0;
        std::mem::take(&mut self.marks)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        /// A run, whose deleted keys one in so many are marked of.
        Add(Vec<u8>, Option<Vec<u8>>, usize),
        Fill(Vec<u8>),
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..3, 1..4)
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (key(), prop::option::of(key()), 1usize..4)
                .prop_map(|(start, end, nth)| Act::Add(start, end, nth)),
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
            // Where keys may exist, or too few deleted ones are to be known.
            let mut outside: BTreeSet<Vec<u8>> = keys().into_iter().collect();
            let mut exist = outside.clone();
            for act in acts {
                match act {
                    Act::Add(start, end, nth) if end.as_ref().is_none_or(|end| start < *end) => {
                        let is_in = |key: &Vec<u8>| *key >= start && end.as_ref().is_none_or(|end| key < end);
                        let all: Vec<_> = keys().into_iter().filter(is_in).collect();
                        let marks: Vec<Bytes> = all.iter().skip(nth - 1).step_by(nth).cloned().map(Bytes::from).collect();
                        if marks.is_empty() {
                            continue;
                        }
                        exist.retain(|key| !is_in(key));
                        outside.retain(|key| !is_in(key));
                        gaps.add(Run { start: start.into(), end: end.map(Bytes::from), marks });
                    }
                    Act::Add(..) => {}
                    Act::Fill(key) => {
                        gaps.fill(&key);
                        exist.insert(key);
                    }
                }
                // Pieces without a mark are forgotten.
                let is_in_gap = |key: &Vec<u8>| {
                    gaps.gaps.iter().any(|(start, end)| key >= start && end.as_ref().is_none_or(|end| key < end))
                };
                outside = keys().into_iter().filter(|key| !is_in_gap(key)).collect();
                prop_assert!(exist.is_subset(&outside), "{:?}", gaps);
                prop_assert_eq!(gaps.bytes, gaps.count_bytes());
                for (start, end) in &gaps.gaps {
                    prop_assert!(gaps.is_marked(start, end.as_ref()), "{:?}", gaps);
                }
                for mark in &gaps.marks {
                    prop_assert!(is_in_gap(&mark.to_vec()), "{:?}", gaps);
                }
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
                None => KeyRange::starting_at(start),
            };
            let mut expected: Vec<Vec<u8>> =
                outside.into_iter().filter(|key| range.contains(key)).collect();
            if descending {
                expected.reverse();
            }
            let mut found = Vec::new();
            let mut rest = Some(range).filter(|range| !range.is_empty());
            while let Some(range) = rest.take() {
                let Some(Segment { here, then, is_between }) = gaps.segment(range, order) else { break };
                let ends_gap = gaps.gaps.values().flatten().any(|end| end == here.start());
                let begins_gap = here.end().is_some_and(|end| gaps.gaps.contains_key(end));
                prop_assert!(!is_between || ends_gap && begins_gap, "{here:?} in {gaps:?}");
                // One in the middle of what was asked for is known to be.
                prop_assert!(is_between || then.is_none() || found.is_empty(), "{here:?} in {gaps:?}");
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

    #[test]
    fn gaps_take_no_more_memory_than_they_may_and_those_that_hide_much_remain() {
        let name = |i: usize, more: &str| Bytes::from(format!("a{i:06}{}{more}", "k".repeat(1_000)));
        let mut gaps = Gaps::default();
        let marks = (0..20_000).map(|i| name(i, "")).collect();
        let (start, end) = (Bytes::from_static(b"a"), Some(Bytes::from_static(b"b")));
        gaps.add(Run { start, end, marks });
        assert!(gaps.bytes <= BYTES_MAX);
        assert_eq!(gaps.len(), 1, "it is known all the same");
        assert!(gaps.marks.len() >= 5_000);
        // What is written into it cuts it in ever more pieces.
        for i in 0..20_000 {
            gaps.fill(&name(i, &"x".repeat(3_000)));
            assert!(gaps.bytes <= BYTES_MAX && gaps.len() <= gaps.marks.len());
        }
        assert_eq!(gaps.bytes, gaps.count_bytes());
        assert!(gaps.len() > 500, "{}", gaps.len());
    }
}

//! The writes whose callers were not told which revision they made, by the keys that they can change.
//!
//! Always: a write that changes something changes one of [`Untold::keys`] (as long as the model stands where it is),
//! so that asking for these tells whether any of them ran.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::model::{Key, KeyRange, Op, Record, Txn, TxnResponse};

use super::{Answer, Call, CallId, Model};
use crate::check::history::Request;

/// A transaction as its caller knows it.
pub(super) struct Known<'h> {
    pub(super) call: &'h Call,
    pub(super) txn: Txn,
    /// The whole answer, where it was told.
    pub(super) response: Option<&'h TxnResponse>,
}

impl<'h> Known<'h> {
    /// The transaction of a call; none of one that reads.
    pub(super) fn of(call: &'h Call) -> Option<Self> {
        let txn = match &call.request {
            Request::Txn(txn) => txn.clone(),
            Request::Put { key, value } => Txn::new([Op::put(key.clone(), value.clone())]),
            Request::Delete { key } => Txn::new([Op::delete(key.clone())]),
            // That its guard held is what the rule of isolation looks at.
            Request::Transact { ops, .. } => Txn::new(ops.clone()),
            Request::Read { .. }
            | Request::Get { .. }
            | Request::Range(_)
            | Request::Compact(_)
            | Request::SetLimits(_) => {
                return None;
            }
        };
        let response = match &call.answer {
            Answer::Txn(response) => Some(response),
            _ => None,
        };
        Some(Self { call, txn, response })
    }

    fn is_acknowledged(&self) -> bool {
        !matches!(self.call.answer, Answer::Unknown(_))
    }
}

/// Which keys a transaction can change, whichever branch it takes.
#[derive(Debug, Default)]
struct Footprint {
    keys: BTreeSet<Key>,
    /// How many keys of a sequence, by its prefix.
    sequences: BTreeMap<Key, u64>,
    ranges: Vec<KeyRange>,
}

impl Footprint {
    fn of(txn: &Txn) -> Self {
        let mut footprint = Self::default();
        for op in txn.then.iter().chain(&txn.otherwise) {
            match op {
                Op::Put { key, .. } | Op::Delete { key } | Op::Add { key, .. } | Op::Max { key, .. } => {
                    footprint.keys.insert(key.clone());
                }
                Op::PutSequence { prefix, .. } => {
                    *footprint.sequences.entry(prefix.clone()).or_default() += 1;
                }
                Op::DeleteRange { range, .. } => footprint.ranges.push(range.clone()),
                Op::Get { .. } | Op::Range(_) => {}
            }
        }
        footprint
    }
}

/// A range's bounds, which can be ordered.
type Bounds = (Bytes, Option<Bytes>);

fn bounds(range: &KeyRange) -> Bounds {
    let end = range.end().map(Bytes::copy_from_slice);
    (Bytes::copy_from_slice(range.start()), end)
}

#[derive(Default)]
struct Sequence {
    /// No write appends more than this.
    most: u64,
    writes: BTreeSet<usize>,
}

/// The writes, numbered in the order of their calls.
pub(super) struct Untold<'h> {
    /// Those that were not called yet by the time that is looked at; the next one to be called stands last.
    waiting: Vec<Known<'h>>,
    next: usize,
    open: BTreeMap<usize, Known<'h>>,
    acknowledged: BTreeSet<usize>,
    by_call: BTreeMap<CallId, usize>,
    by_key: BTreeMap<Key, BTreeSet<usize>>,
    by_sequence: BTreeMap<Key, Sequence>,
    by_range: BTreeMap<Bounds, (KeyRange, BTreeSet<usize>)>,
}

impl<'h> Untold<'h> {
    pub(super) fn new(mut waiting: Vec<Known<'h>>) -> Self {
        waiting.sort_by_key(|known| std::cmp::Reverse(known.call.called));
        Self {
            waiting,
            next: 0,
            open: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            by_call: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_sequence: BTreeMap::new(),
            by_range: BTreeMap::new(),
        }
    }

    /// From now on also those are looked at that were called by then.
    pub(super) fn called_by(&mut self, by: Duration) {
        while let Some(known) = self.waiting.pop_if(|known| known.call.called <= by) {
            self.open(known);
        }
    }

    fn open(&mut self, known: Known<'h>) {
        let number = self.next;
        self.next += 1;
        let footprint = Footprint::of(&known.txn);
        for key in footprint.keys {
            self.by_key.entry(key).or_default().insert(number);
        }
        for (prefix, count) in footprint.sequences {
            let sequence = self.by_sequence.entry(prefix).or_default();
            sequence.most = sequence.most.max(count);
            sequence.writes.insert(number);
        }
        for range in footprint.ranges {
            let (_, writes) = self
                .by_range
                .entry(bounds(&range))
                .or_insert_with(|| (range, BTreeSet::new()));
            writes.insert(number);
        }
        if known.is_acknowledged() {
            self.acknowledged.insert(number);
        }
        self.by_call.insert(known.call.id, number);
        self.open.insert(number, known);
    }

    /// How many are left that no revision was found for.
    pub(super) fn left(&self) -> usize {
        self.open.len() + self.waiting.len()
    }

    /// No revision was found for it yet.
    pub(super) fn is_open(&self, number: usize) -> bool {
        self.open.contains_key(&number)
    }

    pub(super) fn get(&self, number: usize) -> &Known<'h> {
        &self.open[&number]
    }

    /// Its revision was found.
    pub(super) fn take(&mut self, number: usize) -> Known<'h> {
        let known = self.open.remove(&number).expect("it was a candidate");
        self.acknowledged.remove(&number);
        self.by_call.remove(&known.call.id);
        let footprint = Footprint::of(&known.txn);
        for key in footprint.keys {
            if let Some(writes) = self.by_key.get_mut(&key) {
                writes.remove(&number);
                if writes.is_empty() {
                    self.by_key.remove(&key);
                }
            }
        }
        for prefix in footprint.sequences.keys() {
            if let Some(sequence) = self.by_sequence.get_mut(prefix) {
                sequence.writes.remove(&number);
            }
        }
        for range in footprint.ranges {
            if let Some((_, writes)) = self.by_range.get_mut(&bounds(&range)) {
                writes.remove(&number);
            }
        }
        known
    }

    /// The keys that the acknowledged ones name.
    pub(super) fn keys_of_acknowledged(&self) -> Vec<Key> {
        let named = |number: &usize| Footprint::of(&self.open[number].txn).keys;
        self.acknowledged.iter().flat_map(named).collect()
    }

    /// Keys of which every write that changes something, from where the model stands, changes one.
    pub(super) fn keys(&self, model: &Model) -> Vec<Key> {
        let sequences = self.by_sequence.iter();
        let sequences = sequences.filter(|(_, sequence)| !sequence.writes.is_empty());
        let sequenced = sequences.flat_map(|(prefix, sequence)| model.next_of(prefix, sequence.most));
        let ranges = self.by_range.values().filter(|(_, writes)| !writes.is_empty());
        // A sweep that finds anything finds the first key.
        let swept = ranges.filter_map(|(range, _)| model.first_within(range));
        let keys: BTreeSet<Key> = self
            .by_key
            .keys()
            .cloned()
            .chain(sequenced)
            .chain(swept)
            .collect();
        keys.into_iter().collect()
    }

    /// Those that can have made such changes: those whose mark the new records bear, and the others, in the order of
    /// their calls.
    pub(super) fn candidates(
        &self,
        changed: &BTreeMap<Key, Option<Record>>,
        model: &Model,
    ) -> (Vec<usize>, Vec<usize>) {
        let marked = |record: &Record| self.by_call.get(&CallId::find(&record.value)?).copied();
        let new = changed.values().flatten();
        let new = new.filter(|record| record.mod_revision > model.revision());
        let signed: BTreeSet<usize> = new.filter_map(marked).collect();
        let mut others = BTreeSet::new();
        for key in changed.keys() {
            others.extend(self.by_key.get(key).into_iter().flatten());
            let of_sequence = |(prefix, _): &(&Key, &Sequence)| key.as_bytes().starts_with(prefix.as_bytes());
            let sequences = self.by_sequence.iter().filter(of_sequence);
            others.extend(sequences.flat_map(|(_, sequence)| &sequence.writes));
            let sweeping = |(range, _): &&(KeyRange, BTreeSet<usize>)| range.contains(key.as_bytes());
            let ranges = self.by_range.values().filter(sweeping);
            others.extend(ranges.flat_map(|(_, writes)| writes));
        }
        (signed.into_iter().collect(), others.into_iter().collect())
    }
}

//! What transactions cost, counted a second time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_kv::model::{Key, Order, Place, RangeRead, Record, ReplicatedLimits, TxnRefused, Work};

/// What a record takes in an answer beside its key and its value.
const RECORD_BYTES: u64 = 64;
/// What a range costs beside the keys that it visits.
const RANGE_KEYS: u64 = 8;
/// What a look at a value costs.
const VALUE_KEYS: u64 = 4;

/// What a record counts for in an answer.
pub(super) fn answer_bytes(key: &Key, record: &Record) -> u64 {
    (key.len() + record.value.len()) as u64 + RECORD_BYTES
}

/// What the transactions of one entry have used together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shared {
    looked_at: u64,
    changed: u64,
    answered: u64,
    pub(super) given_again: u64,
    /// What the proposer found used of a store that is nearly full.
    pub(super) full_at: Option<u64>,
}

impl Shared {
    pub(super) fn new(full_at: Option<u64>) -> Self {
        Self {
            full_at,
            ..Self::default()
        }
    }
}

/// What one transaction has used. Every method says what stops it, if anything does.
#[derive(Debug)]
pub(super) struct Bill {
    limits: ReplicatedLimits,
    pub(super) shared: Shared,
    looked_at: u64,
    answered: u64,
    changed: BTreeSet<Bytes>,
}

impl Bill {
    pub(super) fn new(limits: ReplicatedLimits, shared: Shared) -> Self {
        Self {
            limits,
            shared,
            looked_at: 0,
            answered: 0,
            changed: BTreeSet::new(),
        }
    }

    fn of_entry(&self, limit: u64) -> u64 {
        limit.saturating_mul(self.limits.entry_budget)
    }

    /// A key that is named: the entry's size pays for it.
    pub(super) fn named(&mut self, place: Place) -> Result<(), TxnRefused> {
        self.looked_at += 1;
        self.within_looked_at(place)
    }

    fn within_looked_at(&self, place: Place) -> Result<(), TxnRefused> {
        let (limit, what) = (self.limits.keys_looked_at_max, Work::KeysLookedAt);
        match self.looked_at > limit {
            true => Err(TxnRefused::TooMuchWork { place, what, limit }),
            false => Ok(()),
        }
    }

    /// So many keys of which the entry knows nothing.
    fn keys(&mut self, place: Place, keys: u64) -> Result<(), TxnRefused> {
        self.looked_at += keys;
        self.within_looked_at(place)?;
        let all = self.of_entry(self.limits.keys_looked_at_max);
        if self.shared.looked_at + keys > all {
            // What was looked at in vain is used up too.
            self.shared.looked_at = all;
            let what = Work::KeysLookedAt;
            return Err(TxnRefused::EntrySpent { what });
        }
        self.shared.looked_at += keys;
        Ok(())
    }

    /// The value of a key that is named.
    pub(super) fn value(&mut self, place: Place, record: Option<&Record>) -> Result<(), TxnRefused> {
        self.keys(place, VALUE_KEYS)?;
        self.keys(place, record.map_or(0, kib))
    }

    /// A range, of which these records are visited.
    pub(super) fn range<'r>(
        &mut self,
        place: Place,
        visited: impl Iterator<Item = (&'r Bytes, &'r Record)>,
        with_values: bool,
    ) -> Result<(), TxnRefused> {
        self.keys(place, RANGE_KEYS)?;
        for (key, record) in visited {
            let value = if with_values { VALUE_KEYS + kib(record) } else { 0 };
            self.keys(place, 1 + key.len() as u64 / 1024 + value)?;
        }
        Ok(())
    }

    pub(super) fn change(&mut self, place: Place, key: &Bytes) -> Result<bool, TxnRefused> {
        let is_new = self.changed.insert(key.clone());
        let (limit, what) = (self.limits.keys_changed_max, Work::KeysChanged);
        match self.changed.len() as u64 > limit {
            true => Err(TxnRefused::TooMuchWork { place, what, limit }),
            false => Ok(is_new),
        }
    }

    pub(super) fn change_in_range(&mut self, place: Place, key: &Bytes) -> Result<(), TxnRefused> {
        if self.change(place, key)? {
            if self.shared.changed >= self.of_entry(self.limits.keys_changed_max) {
                let what = Work::KeysChanged;
                return Err(TxnRefused::EntrySpent { what });
            }
            self.shared.changed += 1;
        }
        Ok(())
    }

    /// The bytes that can be answered yet.
    pub(super) fn answer_left(&self) -> u64 {
        let limit = self.limits.response_bytes_max;
        let of_entry = self.of_entry(limit).saturating_sub(self.shared.answered);
        (limit - self.answered).min(of_entry)
    }

    pub(super) fn answer(
        &mut self,
        bytes: u64,
        too_much: impl FnOnce(u64) -> TxnRefused,
    ) -> Result<(), TxnRefused> {
        let limit = self.limits.response_bytes_max;
        self.answered += bytes;
        if self.answered > limit {
            return Err(too_much(limit));
        }
        if self.shared.answered + bytes > self.of_entry(limit) {
            let what = Work::AnswerBytes;
            return Err(TxnRefused::EntrySpent { what });
        }
        self.shared.answered += bytes;
        Ok(())
    }
}

/// What a record counts of the quota.
pub(super) fn counted(key: &Bytes, record: &Record) -> u64 {
    (2 * key.len() + record.value.len()) as u64 + RECORD_BYTES
}

/// What a sequence counts of it, once it has given a number.
pub(super) fn row_of_sequence(prefix: &Bytes) -> u64 {
    (2 * prefix.len() + size_of::<u64>()) as u64 + RECORD_BYTES
}

/// A value costs one key more for each whole KiB.
fn kib(record: &Record) -> u64 {
    record.value.len() as u64 / 1024
}

/// The records that a range read looks at: those that it returns, and one more that tells that there are more. What
/// exceeds the bytes that may be answered is the last.
pub(super) fn visited<'r>(
    inside: &BTreeMap<&'r Bytes, &'r Record>,
    read: &RangeRead,
    bytes_max: u64,
) -> Vec<(&'r Bytes, &'r Record)> {
    let mut all: Vec<(&Bytes, &Record)> = inside.iter().map(|(key, record)| (*key, *record)).collect();
    if read.order == Order::Descending {
        all.reverse();
    }
    let (mut visited, mut bytes) = (Vec::new(), 0);
    for (key, record) in all {
        visited.push((key, record));
        if read.count_only {
            continue;
        }
        let value = if read.keys_only { 0 } else { record.value.len() };
        bytes += (key.len() + value) as u64 + RECORD_BYTES;
        if visited.len() as u64 > u64::from(read.limit) || bytes > bytes_max {
            break;
        }
    }
    visited
}

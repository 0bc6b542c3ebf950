//! What an attempt of a transaction has written itself, for its own reads.
//!
//! Always: what is read over the store is what the commit will make of it, if the commit is not refused; but for keys of sequences, which
//! only the commit names.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Key, KeyRange, Op, TxnRefused, Value, number};

/// What the operations so far make of the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    keys: BTreeMap<Key, Change>,
    /// Ranges that were deleted, whatever was in them. What is in `keys` came later, or had it counted in.
    deleted: Vec<KeyRange>,
}

/// What becomes of one key.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    base: Base,
    numbers: Vec<Number>,
}

#[derive(Clone, Debug, Default)]
enum Base {
    /// What was there before.
    #[default]
    Below,
    /// This, whatever was there before.
    Set(Option<Value>),
}

#[derive(Clone, Copy, Debug)]
enum Number {
    Add(i64),
    Max(i64),
}

/// Why a number cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoNumber {
    Bytes { size: u64 },
    Overflow { found: i64, delta: i64 },
}

impl NoNumber {
    pub(super) fn of(self, key: Key) -> TxnRefused {
        // The operation that the commit would name is not known to a read.
        match self {
            NoNumber::Bytes { size } => TxnRefused::NotANumber { op: 0, key, size },
            NoNumber::Overflow { found, delta } => TxnRefused::Overflow { op: 0, found, delta },
        }
    }
}

impl Change {
    fn set(value: Option<Value>) -> Self {
        Self {
            base: Base::Set(value),
            numbers: Vec::new(),
        }
    }

    /// Of a key that no operation names, by the ranges that were deleted.
    fn of_ranges(deleted: &[KeyRange], key: &Key) -> Self {
        match deleted.iter().any(|range| range.contains(key.as_bytes())) {
            true => Self::set(None),
            false => Self::default(),
        }
    }

    /// What was there before does not matter.
    pub(super) fn hides_what_is_below(&self) -> bool {
        matches!(self.base, Base::Set(_))
    }

    /// The value over what was there before.
    pub(super) fn over(self, below: Option<Value>) -> Result<Option<Value>, NoNumber> {
        let base = match self.base {
            Base::Below => below,
            Base::Set(value) => value,
        };
        if self.numbers.is_empty() {
            return Ok(base);
        }
        let begin = match &base {
            None => None,
            Some(value) => Some(number(value).ok_or(NoNumber::Bytes {
                size: value.len() as u64,
            })?),
        };
        let sum = self
            .numbers
            .into_iter()
            .try_fold(begin, |found, change| match change {
                Number::Add(delta) => {
                    let found = found.unwrap_or(0);
                    let sum = found.checked_add(delta);
                    sum.map(Some).ok_or(NoNumber::Overflow { found, delta })
                }
                Number::Max(operand) => Ok(Some(found.map_or(operand, |found| found.max(operand)))),
            });
        Ok(sum?.map(|number| Value::copy_from_slice(&number.to_be_bytes())))
    }
}

impl Own {
    /// Takes an operation in.
    pub(super) fn take(&mut self, op: &Op) {
        match op {
            Op::Put { key, value, .. } => self.set(key, Some(value.clone())),
            Op::Delete { key } => self.set(key, None),
            Op::Add { key, delta } => self.change(key, Number::Add(*delta)),
            Op::Max { key, operand } => self.change(key, Number::Max(*operand)),
            Op::DeleteRange { range, .. } => {
                let inside = self
                    .keys
                    .iter_mut()
                    .filter(|(key, _)| range.contains(key.as_bytes()));
                inside.for_each(|(_, change)| *change = Change::set(None));
                self.deleted.push(range.clone());
            }
            Op::Get { .. } | Op::Range(_) | Op::PutSequence { .. } => {}
        }
    }

    fn set(&mut self, key: &Key, value: Option<Value>) {
        self.keys.insert(key.clone(), Change::set(value));
    }

    fn change(&mut self, key: &Key, number: Number) {
        let of_ranges = || Change::of_ranges(&self.deleted, key);
        let change = self.keys.entry(key.clone()).or_insert_with(of_ranges);
        change.numbers.push(number);
    }

    /// What becomes of a key.
    pub(super) fn of(&self, key: &Key) -> Change {
        let of_ranges = || Change::of_ranges(&self.deleted, key);
        self.keys.get(key).cloned().unwrap_or_else(of_ranges)
    }

    /// What becomes of the keys of a range: of those that were found in it, and of those that come new.
    pub(super) fn within<'k>(
        &'k self,
        range: &KeyRange,
        found: impl Iterator<Item = &'k Key>,
    ) -> Vec<(Key, Change)> {
        let new = self.keys.keys().filter(|key| range.contains(key.as_bytes()));
        let keys: BTreeSet<&Key> = found.chain(new).collect();
        keys.into_iter().map(|key| (key.clone(), self.of(key))).collect()
    }
}

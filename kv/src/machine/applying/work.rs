//! What a transaction has used of its budget, and the transactions of an entry of theirs.
//!
//! The budget bounds how long a transaction holds everybody else up, on every node and again at each replay; see
//! [`ReplicatedLimits`] for what is counted. An entry carries as many transactions as fit into its bytes. The keys that
//! they name are bounded by these; what their ranges visit and delete, the values that they look at and what they
//! return is not, so that the entry has a budget of its own for that.
//!
//! Always: what is counted depends on the logical state and on the transactions of the entry, and never on layers,
//! checkpoints, or how entries are cut into calls of `apply`.

use crate::machine::rows::counters::{ROOM_PERCENT, is_used};
use crate::model::{Place, ReplicatedLimits, TxnRefused, Work};
use crate::planted::{self, Bug};

/// A key that is written over may grow by so many bytes in a store that is nearly full: a record has numbers and lists in it that
/// take a byte more now and then.
const GROWTH_OF_A_KEY: u64 = 64;

/// What a transaction makes of what the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::machine) struct Growth {
    /// What the records that it writes count, and the sequences that it begins.
    pub(in crate::machine) comes: u64,
    /// What the records counted that it writes over or deletes.
    pub(in crate::machine) goes: u64,
    /// Keys that it writes and that were there before.
    pub(in crate::machine) kept: u64,
}

/// What the transactions of an entry have used together.
#[derive(Debug, Default)]
pub(in crate::machine) struct EntryWork {
    looked_at: u64,
    changed: u64,
    answer_bytes: u64,
    /// Bytes of answers that were remembered and are given again.
    given_again: u64,
    /// What the proposer found used of a store that is nearly full.
    full_at: Option<u64>,
}

impl EntryWork {
    pub(in crate::machine) fn new(full_at: Option<u64>) -> Self {
        Self {
            full_at,
            ..Self::default()
        }
    }

    /// Refuses the transaction under way where the store is nearly full, and it lets what lives grow or goes beyond the limit.
    pub(in crate::machine) fn grow(
        &self,
        limits: &ReplicatedLimits,
        growth: impl FnOnce() -> Growth,
    ) -> Result<(), TxnRefused> {
        let limit = limits.store_bytes_max;
        let Some(used) = self
            .full_at
            .filter(|_| limit > 0 && !planted::is(Bug::FullStoreGrows))
        else {
            return Ok(());
        };
        let Growth { comes, goes, kept } = growth();
        let refused = |wanted| Err(TxnRefused::NoSpace { used, limit, wanted });
        // What it writes over stays, as history.
        if comes > 0 && used.saturating_add(comes) > limit {
            return refused(comes);
        }
        // Since it was proposed the limit may have been raised.
        let is_full = is_used(used, limit, ROOM_PERCENT);
        let grows = comes.saturating_sub(goes);
        match is_full && grows > kept.saturating_mul(GROWTH_OF_A_KEY) {
            true => refused(grows),
            false => Ok(()),
        }
    }

    /// An answer of so many bytes is given again. The first always is: whatever its size, who asks for it alone gets it.
    pub(in crate::machine) fn give_again(
        &mut self,
        bytes: u64,
        limits: &ReplicatedLimits,
    ) -> Result<(), TxnRefused> {
        if self.given_again == 0 {
            self.given_again = bytes;
            return Ok(());
        }
        let limit = of_entry(limits.unanswered_bytes_max, limits);
        spend(&mut self.given_again, bytes, limit, Work::AnswerBytes)
    }
}

/// What an entry may use where one transaction may use `one`.
fn of_entry(one: u64, limits: &ReplicatedLimits) -> u64 {
    one.saturating_mul(limits.entry_budget)
}

/// What one transaction has used.
#[derive(Debug)]
pub(in crate::machine) struct Meter<'e> {
    limits: ReplicatedLimits,
    entry: &'e mut EntryWork,
    looked_at: u64,
    changed: u64,
    answer_bytes: u64,
}

impl<'e> Meter<'e> {
    pub(in crate::machine) fn new(limits: &ReplicatedLimits, entry: &'e mut EntryWork) -> Self {
        Self {
            limits: *limits,
            entry,
            looked_at: 0,
            changed: 0,
            answer_bytes: 0,
        }
    }

    /// What was used so far: keys looked at, and bytes returned.
    pub(in crate::machine) fn used(&self) -> (u64, u64) {
        (self.looked_at, self.answer_bytes)
    }

    /// A key that the transaction names is looked at.
    pub(in crate::machine) fn name(&mut self, place: Place) -> Result<(), TxnRefused> {
        self.look(place, 1, 0)
    }

    /// The value of a key that the transaction names is about to be looked at, whether it exists or not.
    pub(in crate::machine) fn value(&mut self, place: Place) -> Result<(), TxnRefused> {
        let keys = ReplicatedLimits::VALUE_KEYS;
        self.look(place, keys, keys)
    }

    /// It was there, and has so many bytes.
    pub(in crate::machine) fn value_bytes(&mut self, place: Place, bytes: usize) -> Result<(), TxnRefused> {
        let keys = whole_kib(bytes);
        self.look(place, keys, keys)
    }

    /// A range is begun.
    pub(in crate::machine) fn range(&mut self, place: Place) -> Result<(), TxnRefused> {
        let keys = ReplicatedLimits::RANGE_KEYS;
        self.look(place, keys, keys)
    }

    /// A key of a range is visited that has so many bytes, and its value looked at where there is one. A key that is named
    /// is in the entry; this one may be gathered in memory, as a range delete's are.
    pub(in crate::machine) fn visit(
        &mut self,
        place: Place,
        key: usize,
        value: Option<usize>,
    ) -> Result<(), TxnRefused> {
        let value = value.map_or(0, |bytes| ReplicatedLimits::VALUE_KEYS + whole_kib(bytes));
        let keys = 1 + whole_kib(key) + value;
        self.look(place, keys, keys)
    }

    fn look(&mut self, place: Place, keys: u64, of_entries: u64) -> Result<(), TxnRefused> {
        self.looked_at = self.looked_at.saturating_add(keys);
        let limit = self.limits.keys_looked_at_max;
        within(self.looked_at, limit, place, Work::KeysLookedAt)?;
        if of_entries == 0 {
            // Nothing of the entry's is asked for, also where more is spent than may be: the limits were lowered within it.
            return Ok(());
        }
        let all = of_entry(limit, &self.limits);
        let spent = spend(&mut self.entry.looked_at, of_entries, all, Work::KeysLookedAt);
        if spent.is_err() {
            // It was looked at all the same, and is not to be had again and again.
            self.entry.looked_at = all;
        }
        spent
    }

    /// A key that the transaction has not changed before is changed.
    pub(in crate::machine) fn change(&mut self, place: Place) -> Result<(), TxnRefused> {
        self.changed += 1;
        within(
            self.changed,
            self.limits.keys_changed_max,
            place,
            Work::KeysChanged,
        )
    }

    /// The same, of a key of a range.
    pub(in crate::machine) fn change_in_range(&mut self, place: Place) -> Result<(), TxnRefused> {
        self.change(place)?;
        let all = of_entry(self.limits.keys_changed_max, &self.limits);
        spend(&mut self.entry.changed, 1, all, Work::KeysChanged)
    }

    /// Bytes that the operation of this number may return yet: no more need to be gathered to know that they are too
    /// many.
    pub(in crate::machine) fn answer_bytes_left(&self) -> u64 {
        let limit = self.limits.response_bytes_max;
        let of_entry = of_entry(limit, &self.limits).saturating_sub(self.entry.answer_bytes);
        limit.saturating_sub(self.answer_bytes).min(of_entry)
    }

    /// An operation returns so many bytes.
    pub(in crate::machine) fn answer(&mut self, op: u32, bytes: u64) -> Result<(), TxnRefused> {
        self.answer_bytes = self.answer_bytes.saturating_add(bytes);
        let limit = self.limits.response_bytes_max;
        if self.answer_bytes > limit {
            return Err(TxnRefused::ResponseTooLarge { op, limit });
        }
        let all = of_entry(limit, &self.limits);
        spend(&mut self.entry.answer_bytes, bytes, all, Work::AnswerBytes)
    }

    /// So many bytes are told of what was found where a condition failed.
    pub(in crate::machine) fn tell(&mut self, place: Place, bytes: usize) -> Result<(), TxnRefused> {
        self.answer_bytes = self.answer_bytes.saturating_add(bytes as u64);
        let limit = self.limits.response_bytes_max;
        within(self.answer_bytes, limit, place, Work::AnswerBytes)?;
        let all = of_entry(limit, &self.limits);
        spend(&mut self.entry.answer_bytes, bytes as u64, all, Work::AnswerBytes)
    }
}

fn whole_kib(bytes: usize) -> u64 {
    bytes as u64 / ReplicatedLimits::BYTES_PER_KEY
}

fn within(used: u64, limit: u64, place: Place, what: Work) -> Result<(), TxnRefused> {
    if used > limit {
        Err(TxnRefused::TooMuchWork { place, what, limit })
    } else {
        Ok(())
    }
}

fn spend(used: &mut u64, more: u64, limit: u64, what: Work) -> Result<(), TxnRefused> {
    let all = used.saturating_add(more);
    if all > limit {
        return Err(TxnRefused::EntrySpent { what });
    }
    *used = all;
    Ok(())
}

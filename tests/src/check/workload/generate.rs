//! Draws transactions and reads: every operation, condition and consistency that there is, on few keys, near
//! what has just happened.

use std::time::Duration;

use bytes::Bytes;
use quorate_kv::model::{
    Compare, Condition, Consistency, Guard, Key, KeyRange, KeyTest, LeaseChange, LeaseId, Limits, Op, Order,
    PutMode, RangeRead, RangeTest, ReadOp, Revision, Txn,
};

use crate::check::history::CallId;
use crate::sim::Rng;

/// Draws for one caller.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Rng,
    keys: u64,
    swept: u32,
    /// Revisions and keys that were met lately, the last one last.
    seen: Vec<Revision>,
    deleted: Vec<(Key, Revision)>,
    /// The oldest revision that can be read, as far as was told.
    oldest: Option<Revision>,
    values: Vec<Bytes>,
}

/// So much is remembered of what was met.
const REMEMBERED: usize = 16;
/// The numbers of a sequence are deleted again, so many at once at most. A sequence that grows longer is refused,
/// and stays.
const SWEPT: u32 = 64;

/// A key by its name.
pub fn key(name: impl Into<Key>) -> Key {
    Key::new(name).expect("a legal key")
}

impl Generator {
    /// Draws from this stream, on so many shared keys.
    pub fn new(random: Rng, keys: u64) -> Self {
        Self {
            random,
            keys: keys.max(1),
            swept: SWEPT,
            seen: Vec::new(),
            deleted: Vec::new(),
            oldest: None,
            values: Vec::new(),
        }
    }

    /// The same, where no sequence grows longer than a sweep can take: for runs so long that everything that is left
    /// would be read more and more often.
    pub fn tidy(mut self) -> Self {
        self.swept = u32::MAX;
        self
    }

    /// The stream, for what its owner draws beside.
    pub fn random(&mut self) -> &mut Rng {
        &mut self.random
    }

    /// A revision was told.
    pub fn met(&mut self, revision: Revision) {
        remember(&mut self.seen, revision);
    }

    /// The history before this revision was given up.
    pub fn given_up_before(&mut self, oldest: Revision) {
        self.oldest = self.oldest.max(Some(oldest));
    }

    /// A key was deleted by this revision.
    pub fn gone(&mut self, key: Key, revision: Revision) {
        remember(&mut self.deleted, (key, revision));
    }

    /// A shared key.
    pub fn shared(&mut self) -> Key {
        let number = self.random.below(self.keys);
        if !self.deleted.is_empty() && self.random.one_in(4) {
            return self.random.pick(&self.deleted).0.clone();
        }
        key(format!("kv/{number}"))
    }

    fn number(&mut self) -> Key {
        let number = self.random.below(self.keys.min(4));
        key(format!("num/{number}"))
    }

    fn sequence(&mut self) -> Key {
        let number = self.random.below(self.keys.min(3));
        key(format!("seq/{number}/"))
    }

    /// A value of this call alone.
    pub fn value(&mut self, call: CallId) -> Bytes {
        let value = call.value(*self.random.pick(&[0, 0, 10, 10, 1_000, 20_000]));
        remember(&mut self.values, value.clone());
        value
    }

    /// A range: some of the shared keys, all of them, those of a sequence, none, or everything.
    pub fn range(&mut self) -> KeyRange {
        match self.random.below(8) {
            0 => KeyRange::prefix("num/"),
            1 => KeyRange::prefix(self.sequence().into_bytes()),
            2 => KeyRange::key(&self.shared()),
            3 => KeyRange::new(self.shared().into_bytes(), self.shared().into_bytes()),
            4 => KeyRange::starting_at(self.shared().into_bytes()),
            5 => KeyRange::all(),
            _ => KeyRange::prefix("kv/"),
        }
    }

    fn range_read(&mut self) -> RangeRead {
        let mut read = RangeRead::new(self.range()).limit(*self.random.pick(&[0, 1, 2, 10, 1_000, u32::MAX]));
        if self.random.one_in(2) {
            read.order = Order::Descending;
        }
        read.keys_only = self.random.one_in(3);
        read.count_only = self.random.one_in(5);
        read
    }

    fn compare(&mut self) -> Compare {
        use Compare as C;
        *self.random.pick(&[
            C::Equal,
            C::NotEqual,
            C::Less,
            C::LessOrEqual,
            C::Greater,
            C::GreaterOrEqual,
        ])
    }

    /// A revision near what was met, or none.
    fn some_revision(&mut self) -> Option<Revision> {
        if self.seen.is_empty() || self.random.one_in(6) {
            return None;
        }
        let near = self.random.pick(&self.seen).number();
        Some(Revision::new(near + self.random.below(3)))
    }

    fn test(&mut self) -> KeyTest {
        let compare = self.compare();
        match self.random.below(6) {
            0 => {
                let known = (!self.values.is_empty()).then(|| self.random.pick(&self.values).clone());
                KeyTest::Value(compare, known.unwrap_or_default())
            }
            1 => KeyTest::Version(compare, self.random.below(4)),
            2 => KeyTest::CreateRevision(compare, self.some_revision()),
            3 => KeyTest::ModRevision(compare, self.some_revision()),
            4 => KeyTest::Lease(compare, self.random.one_in(2).then(|| LeaseId::new(1))),
            _ => KeyTest::Exists(self.random.one_in(2)),
        }
    }

    fn condition(&mut self) -> Condition {
        if self.random.one_in(3) {
            let range = self.range();
            let test = match self.random.below(3) {
                0 => RangeTest::Any(self.test()),
                1 => RangeTest::All(self.test()),
                _ => RangeTest::Count(self.compare(), *self.random.pick(&[0, 1, 2, 5, 100, u64::MAX])),
            };
            Condition::Range { range, test }
        } else {
            let key = self.shared();
            let test = self.test();
            Condition::Key { key, test }
        }
    }

    /// A tree of conditions, no deeper than this.
    fn guard(&mut self, depth: u32) -> Guard {
        if depth == 0 || self.random.one_in(2) {
            return Guard::condition(self.condition());
        }
        let children = self.random.below(4);
        match self.random.below(3) {
            0 => Guard::all((0..children).map(|_| self.guard(depth - 1)).collect::<Vec<_>>()),
            1 => Guard::any((0..children).map(|_| self.guard(depth - 1)).collect::<Vec<_>>()),
            _ => Guard::not(self.guard(depth - 1)),
        }
    }

    /// Any operation.
    pub fn op(&mut self, call: CallId) -> Op {
        match self.random.below(16) {
            0..=3 => self.put(call, PutMode::Upsert),
            4 => self.put(call, PutMode::OnlyIfAbsent),
            5..=6 => Op::Delete { key: self.shared() },
            7 => match self.random.below(4) {
                0 => Op::delete_range(KeyRange::prefix(self.sequence().into_bytes()), self.swept),
                1 => Op::delete_range(KeyRange::prefix("kv/"), *self.random.pick(&[0, 1, 1_000])),
                2 => Op::delete_some_of(KeyRange::prefix("kv/"), *self.random.pick(&[0, 1, 2])),
                _ => Op::delete_range(KeyRange::key(&self.shared()), 1),
            },
            8 => Op::Get { key: self.shared() },
            9 => {
                let mut read = self.range_read();
                // What a transaction returns is remembered for its retries: small answers.
                read.keys_only = true;
                Op::Range(read)
            }
            10..=11 => Op::Add {
                key: self.some_number(),
                delta: *self.random.pick(&[1, 1, 1, -3, i64::MAX]),
            },
            12 => Op::Max {
                key: self.some_number(),
                operand: *self.random.pick(&[0, 10, 1_000_000, i64::MIN]),
            },
            _ => Op::PutSequence {
                prefix: self.sequence(),
                value: call.value(0),
            },
        }
    }

    /// A number's key, or seldom one whose value is none.
    fn some_number(&mut self) -> Key {
        if self.random.one_in(12) {
            self.shared()
        } else {
            self.number()
        }
    }

    fn put(&mut self, call: CallId, mode: PutMode) -> Op {
        let key = if self.random.one_in(20) {
            self.number()
        } else {
            self.shared()
        };
        let lease = match self.random.below(16) {
            0 => LeaseChange::Attach(LeaseId::new(1 + self.random.below(3))),
            1..=4 => LeaseChange::Keep,
            _ => LeaseChange::Detach,
        };
        Op::Put {
            key,
            value: self.value(call),
            mode,
            lease,
        }
    }

    /// A transaction: with or without a guard, with one or two branches, of one operation or several.
    pub fn txn(&mut self, call: CallId) -> Txn {
        let branch = |this: &mut Self| -> Vec<Op> {
            let count = match this.random.below(6) {
                0 => 0,
                1..=3 => 1,
                4 => 2,
                _ => this.random.between(3, 8),
            };
            (0..count).map(|_| this.op(call)).collect()
        };
        let txn = Txn::new(branch(self));
        if self.random.one_in(2) {
            return txn;
        }
        let guard = self.guard(3);
        let otherwise = branch(self);
        txn.when(guard).or_else(otherwise)
    }

    /// A transaction of single writes, as most callers make them.
    pub fn plain_txn(&mut self, call: CallId) -> Txn {
        let op = self.op(call);
        Txn::new([op])
    }

    /// A transaction that the limits refuse.
    pub fn oversized(&mut self, call: CallId, limits: &Limits) -> Txn {
        let value = |size: usize| call.value(size);
        match self.random.below(16) {
            0..=4 => Txn::new([Op::put(self.shared(), value(limits.value_bytes_max + 1))]),
            5..=8 => Txn::new([Op::put("", value(0))]),
            9..=13 => Txn::new([Op::put(key(vec![b'k'; limits.key_bytes_max + 1]), value(0))]),
            // Large ones are seldom drawn: each takes as long as a hundred other calls.
            14 => {
                let get = Op::get(self.shared());
                Txn::new(vec![get; limits.txn_ops_max + 1])
            }
            _ => {
                let largest = value(limits.value_bytes_max - 64);
                let puts = limits.txn_bytes_max / limits.value_bytes_max + 1;
                Txn::new(vec![Op::put(self.shared(), largest); puts])
            }
        }
    }

    /// Some reads of one batch.
    pub fn reads(&mut self) -> Vec<ReadOp> {
        let count = *self.random.pick(&[1, 1, 1, 2, 4]);
        (0..count)
            .map(|_| {
                if self.random.one_in(2) {
                    ReadOp::Range(self.range_read())
                } else if self.random.one_in(4) {
                    ReadOp::Get(self.number())
                } else {
                    ReadOp::Get(self.shared())
                }
            })
            .collect()
    }

    /// One that bounds how old an answer may be, in real time or by nothing.
    pub fn fresh_consistency(&mut self) -> Consistency {
        match self.random.below(3) {
            0 => Consistency::Linearizable,
            _ => self.bounded_in_time(),
        }
    }

    fn bounded_in_time(&mut self) -> Consistency {
        Consistency::Stale {
            min_revision: None,
            max_lag: Some(Duration::from_millis(*self.random.pick(&[0, 10, 200, 5_000]))),
        }
    }

    /// How fresh: the present, with a bound, without one; the newest revision met, one about a delete, the
    /// oldest, or one that has not come yet.
    pub fn consistency(&mut self) -> Consistency {
        match self.random.below(10) {
            0..=3 => Consistency::Linearizable,
            4 => Consistency::Stale {
                min_revision: None,
                max_lag: None,
            },
            5 => Consistency::Stale {
                min_revision: self.seen.last().copied(),
                max_lag: None,
            },
            6 => self.bounded_in_time(),
            _ => Consistency::At(self.at()),
        }
    }

    /// The revision up to which history is given up: mostly an old one, so that there is something to read.
    pub fn compaction(&mut self) -> Revision {
        let newest = self.seen.last().map_or(1, |revision| revision.number());
        let at = match self.random.below(8) {
            0 => newest + self.random.between(1, 4),
            1 => newest,
            2..=4 => newest.saturating_sub(self.random.below(20)),
            _ => newest.saturating_sub(self.random.below(200)),
        };
        Revision::new(at.max(1))
    }

    fn at(&mut self) -> Revision {
        let newest = self.seen.last().map_or(1, |revision| revision.number());
        let at = match self.random.below(12) {
            0 => 1,
            1 => newest + self.random.between(1, 4),
            2..=5 if !self.deleted.is_empty() => {
                let deleted = self.random.pick(&self.deleted).1.number();
                // Just before, at, and just behind the delete.
                (deleted + self.random.below(3)).saturating_sub(1)
            }
            6..=8 => newest.saturating_sub(self.random.below(20)),
            // What may have been forgotten ends there.
            9..=10 => {
                let oldest = self.oldest.map_or(newest, Revision::number);
                (oldest + self.random.below(4)).saturating_sub(1)
            }
            _ => newest,
        };
        Revision::new(at.max(1))
    }
}

fn remember<T>(list: &mut Vec<T>, new: T) {
    if list.len() == REMEMBERED {
        list.remove(0);
    }
    list.push(new);
}

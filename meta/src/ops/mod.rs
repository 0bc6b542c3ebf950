//! The operations: each a pure function from what it read to a transaction whose guard pins what it read.
//!
//! An [`Operation`] names its reads, decides on the [`Image`] that they gave, and says what it answers once
//! the transaction has committed. Nothing in here waits or asks for the time: `now` and ids come from outside.
//!
//! Always: a decision validates everything before it plans anything, and refuses with every offending item;
//! every row that the decision used is pinned at its revision, or its absence is; a plan that changes nothing
//! has no operations, and commits nothing; what needs another commit before it names that commit
//! ([`Decision::First`]), and is decided anew behind it.

pub mod brokers;
mod creation;
pub mod partitions;
mod target;
pub mod topics;
pub mod updates;

use std::collections::{BTreeMap, BTreeSet};

use quorate_kv::model::{
    CheckedTxn, Guard, Key, KeyRange, Limits, LogTime, Op, RangeRead, ReadOp, Revision, Txn, TxnResponse,
};

use crate::error::{Error, TooLarge};
use crate::ids::{BrokerId, PartitionIndex, TopicId};
use crate::image::Image;
use crate::keys::Keys;
use crate::rows::{Broker, Partition, Topic};
use target::SetFlags;

/// What a decision depends on beside what was read.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// The proposer's clock: the only time that a row carries.
    pub now: LogTime,
    /// The store's limits, which one transaction must not exceed.
    pub limits: Limits,
}

/// Something that can be decided on an image.
pub trait Operation {
    /// What the caller learns once it has committed.
    type Answer: Answer;

    /// Whether it could fit into one transaction at all, by arithmetic on the request alone: before anything is read
    /// or built for it.
    fn check(&self, keys: &Keys, limits: &Limits) -> Result<(), TooLarge> {
        let _ = (keys, limits);
        Ok(())
    }

    /// The rows that the decision needs.
    fn reads(&self, keys: &Keys) -> Vec<ReadOp>;

    /// Rows that it needs as well, now that `image` has the first ones. Read at the same revision.
    fn more_reads(&self, image: &Image) -> Vec<ReadOp> {
        let _ = image;
        Vec::new()
    }

    /// Decides. `image` has every row that was asked for and exists.
    fn decide(&self, image: &Image, context: &Context) -> Result<Decision<Self::Answer>, Error>;
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Decision<A> {
    /// Commit this.
    Commit(Plan<A>),
    /// Do these first, each with commits of its own, and decide again on what there is then.
    First(Vec<Step>),
}

/// What comes before an operation's own commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A broker's flags are set.
    SetFlags(SetFlags),
    /// A broker's partitions are brought in line with its flags, to the last one.
    Sweep(BrokerId),
}

/// An answer that learns the revision of its commit.
pub trait Answer {
    /// The transaction committed as `revision`.
    fn committed(&mut self, revision: Revision);
}

/// The transaction that carries an operation out, and what it answers then.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Plan<A> {
    /// The transaction, within the store's limits; without operations when there is nothing to do.
    pub txn: CheckedTxn,
    /// The rows that the guard pins, in the order of its conditions.
    pub pinned: Vec<Key>,
    /// The answer, except for the revision of the commit.
    pub answer: A,
}

impl<A: Answer> Plan<A> {
    fn new(pins: Pins, then: Vec<Op>, answer: A, limits: &Limits) -> Result<Self, Error> {
        let (guard, pinned) = pins.into_guard();
        Ok(Self {
            txn: CheckedTxn::check(Txn::new(then).when(guard), limits)?,
            pinned,
            answer,
        })
    }

    /// Whether there is nothing to do: the answer stands without a commit.
    pub fn is_empty(&self) -> bool {
        self.txn.txn().then.is_empty()
    }
}

impl<A> Decision<A> {
    /// The plan, where nothing comes first.
    pub fn plan(self) -> Option<Plan<A>> {
        match self {
            Decision::Commit(plan) => Some(plan),
            Decision::First(_) => None,
        }
    }
}

/// The rows that had moved between the read and the commit. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRace {
    /// Their keys.
    pub rows: Vec<Key>,
}

/// What the response to a plan's transaction means.
pub fn interpret<A: Answer>(mut answer: A, pinned: &[Key], response: &TxnResponse) -> Result<A, LostRace> {
    if response.succeeded {
        answer.committed(response.revision);
        return Ok(answer);
    }
    let row = |index: u32| {
        usize::try_from(index)
            .ok()
            .and_then(|index| pinned.get(index))
            .cloned()
    };
    Err(LostRace {
        rows: response
            .failed
            .iter()
            .filter_map(|failed| row(failed.index))
            .collect(),
    })
}

/// The rows that a decision used, each once, with the revision that it saw (`None`: the row was missing).
#[derive(Debug)]
struct Pins {
    keys: Keys,
    rows: BTreeMap<Key, Option<Revision>>,
}

impl Pins {
    /// None yet, of the rows of this image.
    fn of(image: &Image) -> Self {
        Self {
            keys: image.keys().clone(),
            rows: BTreeMap::new(),
        }
    }

    fn missing(&mut self, key: Key) {
        self.rows.insert(key, None);
    }

    fn topic(&mut self, topic: &Topic) {
        self.rows
            .insert(self.keys.topic(&topic.name), Some(topic.revision));
    }

    fn broker(&mut self, broker: &Broker) {
        self.rows
            .insert(self.keys.broker(broker.id), Some(broker.revision));
    }

    /// Pins a broker as the image has it, or its absence.
    fn broker_in(&mut self, image: &Image, id: BrokerId) {
        let revision = image.brokers.get(&id).map(|broker| broker.revision);
        self.rows.insert(self.keys.broker(id), revision);
    }

    fn partition(&mut self, partition: &Partition) {
        let key = self.keys.partition(partition.topic, partition.index);
        self.rows.insert(key, Some(partition.revision));
    }

    fn into_guard(self) -> (Guard, Vec<Key>) {
        let conditions = self.rows.iter().map(|(key, revision)| match revision {
            Some(_) => Guard::unchanged(key.clone(), *revision),
            None => Guard::missing(key.clone()),
        });
        let guard = Guard::all(conditions);
        (guard, self.rows.into_keys().collect())
    }
}

/// Partition rows that a decision replaces: pins the old one and writes the new one.
fn replace(pins: &mut Pins, then: &mut Vec<Op>, before: &Partition, after: &Partition) {
    pins.partition(before);
    then.push(Op::put(
        pins.keys.partition(after.topic, after.index),
        after.encode(),
    ));
}

/// How many partitions one transaction of a sweep takes: a pin and a write each, with room for the brokers
/// that are pinned, and bytes for several times the size of usual rows.
fn sweep_partitions_max(limits: &Limits) -> usize {
    (limits.txn_ops_max / 4).min(limits.txn_bytes_max / 512).max(1)
}

/// A partition's place in the whole store, as requests name it.
pub(crate) type PartitionKey = (TopicId, PartitionIndex);

/// A read of a whole range. The reader follows its pages.
pub(crate) fn read_all(range: KeyRange) -> ReadOp {
    ReadOp::Range(RangeRead::new(range).limit(u32::MAX))
}

/// Reads all brokers, or these.
fn read_brokers(keys: &Keys, reads: &mut Vec<ReadOp>, some: &BTreeSet<BrokerId>, all: bool) {
    if all {
        reads.push(read_all(keys.brokers()));
    } else {
        reads.extend(some.iter().map(|id| ReadOp::Get(keys.broker(*id))));
    }
}

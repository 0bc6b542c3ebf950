//! A second opinion: porcupine searches for an order of its own.
//!
//! For a few keys of a history, with no more operations each than a search can take; it knows nothing of
//! revisions, only of values and of time.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};
use quorate_kv::model::{Consistency, Key, KeyRange, Op, OpResult, ReadOp, ReadResult};

use super::history::{Answer, Call, Request};
use super::model::within;
use super::{Rule, Violation};

/// The most operations of one key that are searched.
pub const OPERATIONS_MAX: usize = 60;
/// The most keys that are searched: of a history with more, every second one, or third, and so on.
pub const KEYS_MAX: usize = 2_000;

/// One key, as porcupine knows it: a register that may be empty.
#[derive(Debug, Clone)]
struct Register;

/// What was done to the key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Done {
    /// It was set, or emptied.
    Set(Option<Bytes>),
    /// It was looked at.
    Saw(Option<Bytes>),
}

impl Model for Register {
    type State = Option<Bytes>;
    type Op = Done;
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, op: &Self::Op) -> (bool, Self::State) {
        match op {
            Done::Set(value) => (true, value.clone()),
            Done::Saw(value) => (value == state, state.clone()),
        }
    }
}

/// How the keys of a history were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opinion {
    /// Keys for which an order was found.
    pub sound: usize,
    /// Keys with too many operations, or for which none was found in time.
    pub undecided: usize,
    /// Keys for which there is none.
    pub violations: Vec<Violation>,
}

/// What was done to each key, in the order of the answers; nothing for a key that has no history of its own.
#[derive(Debug, Default)]
struct Projection(BTreeMap<Bytes, Option<Vec<Timed>>>);

/// When something was asked, when it was answered, and what it did.
type Timed = (Duration, Duration, Done);

/// Looks at the first operations of every key, or of [`KEYS_MAX`] of them.
pub fn opinion(calls: &[Call], timeout: Duration) -> Opinion {
    let mut projection = Projection::default();
    for call in calls {
        for key in keys_of(call) {
            projection.0.entry(key.into()).or_insert_with(|| Some(Vec::new()));
        }
    }
    for call in calls {
        projection.take(call);
    }
    let step = projection.0.len().div_ceil(KEYS_MAX).max(1);
    let mut opinion = Opinion::default();
    for (key, operations) in projection.0.into_iter().step_by(step) {
        let Some(mut operations) = operations else {
            opinion.undecided += 1;
            continue;
        };
        if operations.len() > OPERATIONS_MAX {
            // The first ones, up to a moment at which none is under way, are a history of their own.
            operations.sort_by_key(|(called, ..)| *called);
            let quiet = |at: &usize| {
                operations[..*at]
                    .iter()
                    .all(|(_, answered, _)| *answered < operations[*at].0)
            };
            match (1..=OPERATIONS_MAX).rev().find(quiet) {
                Some(end) => operations.truncate(end),
                None => {
                    opinion.undecided += 1;
                    continue;
                }
            }
        }
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let history: Vec<Operation<Register>> = operations
            .into_iter()
            .map(|(called, answered, op)| Operation {
                client_id: None,
                call_time: nanos(called),
                return_time: nanos(answered),
                op,
                metadata: None,
            })
            .collect();
        match check_operations_timeout(&history, timeout) {
            CheckResult::Ok => opinion.sound += 1,
            CheckResult::Unknown => opinion.undecided += 1,
            CheckResult::Illegal => {
                let what = format!(
                    "no order explains what was done to {}: {history:?}",
                    key.escape_ascii()
                );
                opinion.violations.push(Violation::new(Rule::SecondOpinion, what));
            }
        }
    }
    opinion
}

/// The keys that a call names.
fn keys_of(call: &Call) -> Vec<Key> {
    let of_op = |op: &Op| match op {
        Op::Put { key, .. } | Op::Delete { key } | Op::Add { key, .. } | Op::Max { key, .. } => {
            Some(key.clone())
        }
        Op::DeleteRange { .. } | Op::Get { .. } | Op::Range(_) | Op::PutSequence { .. } => None,
    };
    match &call.request {
        Request::Txn(txn) => txn.then.iter().chain(&txn.otherwise).filter_map(of_op).collect(),
        Request::Transact { ops, .. } => ops.iter().filter_map(of_op).collect(),
        Request::Put { key, .. } | Request::Delete { key } | Request::Get { key, .. } => vec![key.clone()],
        Request::Read { reads, .. } => {
            let gets = reads.iter().filter_map(|read| match read {
                ReadOp::Get(key) => Some(key.clone()),
                ReadOp::Range(_) => None,
            });
            gets.collect()
        }
        Request::Range(_) | Request::Compact(_) | Request::SetLimits(_) => Vec::new(),
    }
}

impl Projection {
    fn done(&mut self, call: &Call, key: &Key, done: Done) {
        if let Some(Some(operations)) = self.0.get_mut(key.as_bytes()) {
            operations.push((call.called, call.answered, done));
        }
    }

    /// It may have happened, or not: a search would have to try both.
    fn spoil(&mut self, key: &Key) {
        self.0.insert(key.clone().into(), None);
    }

    fn inside(&self, range: &KeyRange) -> Vec<Key> {
        let inside = within(&self.0, range).map(|(key, _)| Key::new(key.clone()));
        inside.map(|key| key.expect("it was a key")).collect()
    }

    fn take(&mut self, call: &Call) {
        match (&call.request, &call.answer) {
            (Request::Put { key, value }, Answer::Written(_)) => {
                self.done(call, key, Done::Set(Some(value.clone())))
            }
            (Request::Delete { key }, Answer::Deleted(_)) => self.done(call, key, Done::Set(None)),
            (
                Request::Get {
                    key,
                    consistency: Consistency::Linearizable,
                },
                Answer::Record(record),
            ) => {
                self.done(
                    call,
                    key,
                    Done::Saw(record.as_ref().map(|record| record.value.clone())),
                );
            }
            (
                Request::Read {
                    reads,
                    consistency: Consistency::Linearizable,
                },
                Answer::Read(response),
            ) => {
                for (read, result) in reads.iter().zip(&response.results) {
                    if let (ReadOp::Get(key), ReadResult::Get(record)) = (read, result) {
                        self.done(
                            call,
                            key,
                            Done::Saw(record.as_ref().map(|record| record.value.clone())),
                        );
                    }
                }
            }
            (Request::Txn(txn), Answer::Txn(response)) => {
                let branch = if response.succeeded {
                    &txn.then
                } else {
                    &txn.otherwise
                };
                self.ran(call, branch, &response.results);
            }
            (Request::Transact { ops, .. }, Answer::Txn(response)) => self.ran(call, ops, &response.results),
            (Request::Put { key, .. } | Request::Delete { key }, Answer::Unknown(_)) => self.spoil(key),
            (Request::Txn(txn), Answer::Unknown(_)) => {
                for op in txn.then.iter().chain(&txn.otherwise) {
                    self.may_have_run(op);
                }
            }
            (Request::Transact { ops, .. }, Answer::Unknown(_)) => {
                ops.iter().for_each(|op| self.may_have_run(op))
            }
            _ => {}
        }
    }

    /// The last write of each key is what came of it.
    fn ran(&mut self, call: &Call, ops: &[Op], results: &[OpResult]) {
        let mut last: BTreeMap<Key, Option<Bytes>> = BTreeMap::new();
        for (op, result) in ops.iter().zip(results) {
            match (op, result) {
                (Op::Put { key, value, .. }, _) => drop(last.insert(key.clone(), Some(value.clone()))),
                (Op::Delete { key }, _) => drop(last.insert(key.clone(), None)),
                (Op::Add { key, .. } | Op::Max { key, .. }, OpResult::Number(number)) => {
                    let value = Bytes::copy_from_slice(&number.to_be_bytes());
                    last.insert(key.clone(), Some(value));
                }
                // Whatever was in the range, nothing is any more, unless some was left: which is not told.
                (Op::DeleteRange { range, .. }, OpResult::Deleted { more: false, .. }) => {
                    last.extend(self.inside(range).into_iter().map(|key| (key, None)))
                }
                (Op::DeleteRange { range, .. }, _) => {
                    for key in self.inside(range) {
                        last.remove(&key);
                        self.spoil(&key);
                    }
                }
                _ => {}
            }
        }
        for (key, value) in last {
            self.done(call, &key, Done::Set(value));
        }
    }

    fn may_have_run(&mut self, op: &Op) {
        match op {
            Op::Put { key, .. } | Op::Delete { key } | Op::Add { key, .. } | Op::Max { key, .. } => {
                self.spoil(key)
            }
            Op::DeleteRange { range, .. } => {
                for key in self.inside(range) {
                    self.spoil(&key);
                }
            }
            Op::Get { .. } | Op::Range(_) | Op::PutSequence { .. } => {}
        }
    }
}

//! Runs one transaction: its guard on the state before it, then the operations of one branch.
//!
//! Always: a refused transaction leaves the batch as it was; one that changes something is one revision.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::batch::{Batch, Draft};
use super::head::Meta;
use super::layered::Values;
use super::range::{Gathered, answer_bytes};
use super::settings::ReplicatedLimits;
use super::version::RecordRef;
use crate::fault::Fault;
use crate::model::{
    Condition, FailedCondition, Found, Key, KeyRange, KeyTest, LeaseChange, LeaseId, LogIndex, Op, OpResult,
    Order, PutMode, RangeTest, Revision, Txn, TxnRefused, TxnResponse,
};
use crate::planted::{self, Bug};

/// A failed condition tells a value of at most so many bytes.
const FOUND_VALUE_BYTES_MAX: usize = 1024;

/// How an operation ended: its result, or the refusal of the whole transaction.
type Ran = Result<OpResult, TxnRefused>;

/// Runs a transaction on a store that is at `revision`.
pub(super) fn execute(
    batch: &mut Batch<'_>,
    txn: Txn,
    revision: Revision,
    log_index: LogIndex,
    limits: &ReplicatedLimits,
) -> Result<Result<TxnResponse, TxnRefused>, Fault> {
    batch.begin(revision.next());
    let mut failed = Vec::new();
    let succeeded = txn.guard.evaluate(|index, condition| {
        let found = check(batch, condition)?;
        let holds = found.is_none();
        if let Some(found) = found
            && failed.len() < TxnResponse::FAILED_MAX
        {
            failed.push(FailedCondition { index, found });
        }
        Ok::<_, Fault>(holds)
    })?;
    if succeeded {
        failed.clear();
    }

    let ops = if succeeded { txn.then } else { txn.otherwise };
    batch.reserve(ops.len());
    let mut run = Run {
        batch,
        revision: revision.next(),
        bytes_left: limits.response_bytes_max,
        bytes_max: limits.response_bytes_max,
    };
    let mut results = Vec::with_capacity(ops.len());
    for (index, op) in ops.into_iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        match run.op(index, op)? {
            Ok(result) => results.push(result),
            Err(refused) if planted::is(Bug::RefusedTxnInPart) => {
                batch.end();
                return Ok(Err(refused));
            }
            Err(refused) => {
                batch.undo();
                return Ok(Err(refused));
            }
        }
    }
    let changed = batch.end();
    Ok(Ok(TxnResponse {
        revision: if changed { revision.next() } else { revision },
        log_index,
        succeeded,
        failed,
        results,
    }))
}

/// Checks one condition: nothing when it holds, else what was found.
fn check(batch: &mut Batch<'_>, condition: &Condition) -> Result<Option<Found>, Fault> {
    match condition {
        Condition::Key { key, test } => {
            let slot = batch.look_up(key)?;
            let record = batch.get(slot, values_for(test))?;
            Ok(if passes(record, test) {
                None
            } else {
                Some(record.map_or(Found::Missing, |record| found(record, test)))
            })
        }
        Condition::Range { range, test } => check_range(batch, range, test),
    }
}

fn check_range(batch: &Batch<'_>, range: &KeyRange, test: &RangeTest) -> Result<Option<Found>, Fault> {
    match test {
        RangeTest::Any(test) => {
            let mut any = false;
            batch.scan(range, Order::Ascending, values_for(test), |sight| {
                any = sight.record.is_some_and(|record| passes(Some(record), test));
                if any {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            Ok(if any { None } else { Some(Found::None) })
        }
        RangeTest::All(test) => {
            let mut spoiler = None;
            batch.scan(range, Order::Ascending, values_for(test), |sight| {
                if sight.record.is_none_or(|record| passes(Some(record), test)) {
                    return ControlFlow::Continue(());
                }
                spoiler = Some(sight.key.to_vec());
                ControlFlow::Break(())
            })?;
            match spoiler {
                None => Ok(None),
                Some(key) => match Key::new(key) {
                    Ok(key) => Ok(Some(Found::Key(key))),
                    Err(e) => Err(batch
                        .file()
                        .corrupt(format!("a row of current has no valid key: {e}"))),
                },
            }
        }
        RangeTest::Count(compare, operand) => {
            // One more than the operand decides each comparison.
            let enough = operand.saturating_add(1);
            let mut count = 0u64;
            batch.scan(range, Order::Ascending, Values::Skip, |sight| {
                count += u64::from(sight.record.is_some());
                if count >= enough {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            Ok(if compare.holds(&count, operand) {
                None
            } else {
                Some(Found::Count(count))
            })
        }
    }
}

/// A test reads a value only if it is about one.
fn values_for(test: &KeyTest) -> Values {
    match test {
        KeyTest::Value(..) => Values::Read,
        KeyTest::Version(..)
        | KeyTest::CreateRevision(..)
        | KeyTest::ModRevision(..)
        | KeyTest::Lease(..)
        | KeyTest::Exists(_) => Values::Skip,
    }
}

/// Whether a key's record, or its absence, passes a test.
fn passes(record: Option<RecordRef<'_>>, test: &KeyTest) -> bool {
    match test {
        KeyTest::Value(compare, value) => match record {
            Some(record) => compare.holds(record.value, &value[..]),
            None => *compare == crate::model::Compare::NotEqual,
        },
        KeyTest::Version(compare, version) => compare.holds(&record.map_or(0, |r| r.meta.version), version),
        KeyTest::CreateRevision(compare, revision) => {
            compare.holds(&record.map(|r| r.meta.create_revision), revision)
        }
        KeyTest::ModRevision(compare, revision) => compare.holds(&record.map(|r| r.mod_revision), revision),
        KeyTest::Lease(compare, lease) => compare.holds(&record.and_then(|r| r.meta.lease), lease),
        KeyTest::Exists(exists) => record.is_some() == *exists,
    }
}

fn found(record: RecordRef<'_>, test: &KeyTest) -> Found {
    let tell_value = matches!(test, KeyTest::Value(..)) && record.value.len() <= FOUND_VALUE_BYTES_MAX;
    let record = record.to_record(tell_value);
    Found::Record {
        value: tell_value.then_some(record.value),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        lease: record.lease,
    }
}

/// A branch being run.
struct Run<'b, 's> {
    batch: &'b mut Batch<'s>,
    /// The revision that the transaction makes if it changes anything.
    revision: Revision,
    bytes_left: u64,
    bytes_max: u64,
}

impl Run<'_, '_> {
    fn op(&mut self, op: u32, step: Op) -> Result<Ran, Fault> {
        match step {
            Op::Put {
                key,
                value,
                mode,
                lease,
            } => self.put(op, &key, value, mode, lease),
            Op::Delete { key } => {
                let slot = self.batch.look_up(&key)?;
                let existed = self.batch.get(slot, Values::Skip)?.is_some();
                if existed {
                    self.batch.set(slot, None);
                }
                Ok(Ok(OpResult::Deleted {
                    count: u64::from(existed),
                }))
            }
            Op::DeleteRange { range, limit } => self.delete_range(op, &range, limit),
            Op::Get { key } => {
                let slot = self.batch.look_up(&key)?;
                let record = self.batch.get(slot, Values::Read)?;
                let record = record.map(|record| record.to_record(true));
                let bytes = record
                    .as_ref()
                    .map_or(0, |r| answer_bytes(key.len(), r.value.len()));
                Ok(self.spend(op, bytes).map(|()| OpResult::Get(record)))
            }
            Op::Range(read) => {
                let budget = self.bytes_left;
                let mut gathered = Gathered::new(&read, u64::MAX);
                let values = Gathered::values(&read);
                self.batch.scan(&read.range, read.order, values, |sight| {
                    let Some(record) = sight.record else {
                        return ControlFlow::Continue(());
                    };
                    let flow = gathered.visit(sight.key, record);
                    if gathered.bytes > budget {
                        ControlFlow::Break(())
                    } else {
                        flow
                    }
                })?;
                Ok(self.spend(op, gathered.bytes).map(|()| OpResult::Range {
                    records: gathered.records,
                    count: gathered.count,
                    more: gathered.more,
                }))
            }
            Op::Add { key, delta } => self.change_number(op, &key, |found| {
                found
                    .unwrap_or(0)
                    .checked_add(delta)
                    .map(Some)
                    .ok_or(TxnRefused::Overflow {
                        op,
                        found: found.unwrap_or(0),
                        delta,
                    })
            }),
            Op::Max { key, operand } => {
                self.change_number(op, &key, |found| Ok((found < Some(operand)).then_some(operand)))
            }
            Op::PutSequence { prefix, value } => {
                let number = self.batch.next_number(&prefix)?;
                let mut key = prefix.as_bytes().to_vec();
                key.extend_from_slice(format!("{number:020}").as_bytes());
                let key = Key::new(key).map_err(|e| {
                    // The gate leaves room for the digits.
                    self.batch
                        .file()
                        .corrupt(format!("a committed sequence put makes no key: {e}"))
                })?;
                let put = self.put(op, &key, value, PutMode::Upsert, LeaseChange::Detach)?;
                Ok(put.map(|_| OpResult::Sequenced { key }))
            }
        }
    }

    fn put(
        &mut self,
        op: u32,
        key: &Key,
        value: Bytes,
        mode: PutMode,
        lease: LeaseChange,
    ) -> Result<Ran, Fault> {
        if let LeaseChange::Attach(lease) = lease {
            // No lease exists yet: none can be granted in this release.
            return Ok(Err(TxnRefused::NoSuchLease { op, lease }));
        }
        let slot = self.batch.look_up(key)?;
        let old = self.batch.get(slot, Values::Skip)?;
        if old.is_some() && mode == PutMode::OnlyIfAbsent {
            let key = key.clone();
            return Ok(Err(TxnRefused::KeyExists { op, key }));
        }
        let existed = old.is_some();
        let lease = match lease {
            LeaseChange::Keep => old.and_then(|old| old.meta.lease),
            LeaseChange::Detach | LeaseChange::Attach(_) => None,
        };
        let draft = written(old, self.revision, lease, value);
        self.batch.set(slot, Some(draft));
        Ok(Ok(OpResult::Put { existed }))
    }

    fn delete_range(&mut self, op: u32, range: &KeyRange, limit: u32) -> Result<Ran, Fault> {
        let mut keys = Vec::new();
        let mut over = false;
        self.batch.scan(range, Order::Ascending, Values::Skip, |sight| {
            if sight.record.is_none() {
                return ControlFlow::Continue(());
            }
            over = keys.len() as u64 >= u64::from(limit);
            if over {
                return ControlFlow::Break(());
            }
            keys.push(sight.key.to_vec());
            ControlFlow::Continue(())
        })?;
        if over {
            return Ok(Err(TxnRefused::RangeTooLarge { op, limit }));
        }
        let count = keys.len() as u64;
        for key in keys {
            let key = Key::new(key).map_err(|e| {
                self.batch
                    .file()
                    .corrupt(format!("a row of current has no valid key: {e}"))
            })?;
            let slot = self.batch.look_up(&key)?;
            self.batch.set(slot, None);
        }
        Ok(Ok(OpResult::Deleted { count }))
    }

    /// Changes a number to what `change` answers, where it answers one. The key keeps its lease.
    fn change_number(
        &mut self,
        op: u32,
        key: &Key,
        change: impl FnOnce(Option<i64>) -> Result<Option<i64>, TxnRefused>,
    ) -> Result<Ran, Fault> {
        let slot = self.batch.look_up(key)?;
        let old = self.batch.get(slot, Values::Read)?;
        let found = match old {
            None => None,
            Some(record) => match <[u8; 8]>::try_from(record.value) {
                Ok(bytes) => Some(i64::from_be_bytes(bytes)),
                Err(_) => {
                    let (key, size) = (key.clone(), record.value.len() as u64);
                    return Ok(Err(TxnRefused::NotANumber { op, key, size }));
                }
            },
        };
        let number = match change(found) {
            Err(refused) => return Ok(Err(refused)),
            Ok(Some(number)) => number,
            Ok(None) => return Ok(Ok(OpResult::Number(found.unwrap_or(0)))),
        };
        let lease = old.and_then(|old| old.meta.lease);
        let value = Bytes::copy_from_slice(&number.to_be_bytes());
        let draft = written(old, self.revision, lease, value);
        self.batch.set(slot, Some(draft));
        Ok(Ok(OpResult::Number(number)))
    }

    fn spend(&mut self, op: u32, bytes: u64) -> Result<(), TxnRefused> {
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None => Err(self.too_large(op)),
        }
    }

    fn too_large(&self, op: u32) -> TxnRefused {
        let limit = self.bytes_max;
        TxnRefused::ResponseTooLarge { op, limit }
    }
}

/// The record that a write at `revision` makes of what the key held.
fn written(old: Option<RecordRef<'_>>, revision: Revision, lease: Option<LeaseId>, value: Bytes) -> Draft {
    let (create_revision, version) = match old {
        None => (revision, 1),
        // Written before by the same transaction: one revision is one version.
        Some(old) if old.mod_revision == revision => (old.meta.create_revision, old.meta.version),
        Some(old) => (old.meta.create_revision, old.meta.version.saturating_add(1)),
    };
    Draft {
        meta: Meta {
            create_revision,
            version,
            lease,
        },
        value,
    }
}

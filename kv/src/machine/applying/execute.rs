//! Runs one transaction: its guard on the state before it, then the operations of one branch.
//!
//! Always: a refused transaction leaves the batch as it was; one that changes something is one revision; nothing is looked
//! at that was not paid for (see `work`), but for one value.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::batch::{Batch, Draft, SlotId};
use super::work::{EntryWork, Meter};
use crate::fault::Fault;
use crate::machine::file::sight::Values;
use crate::machine::reading::range::{Gathered, answer_bytes};
use crate::machine::rows::head::Meta;
use crate::machine::rows::version::RecordRef;
use crate::model::{
    self, Condition, FailedCondition, Found, InvalidKey, Key, KeyRange, KeyTest, LeaseChange, LeaseId,
    LogIndex, Op, OpResult, Order, Outcome, Place, PutMode, RangeExcess, RangeRead, RangeTest,
    ReplicatedLimits, Revision, SEQUENCE_DIGITS, TooManyOf, Txn, TxnRefused, TxnResponse,
};
use crate::planted::{self, Bug};

/// A failed condition tells a value of at most so many bytes.
const FOUND_VALUE_BYTES_MAX: usize = 1024;

/// Why a step of a transaction was not carried out.
enum Stop {
    /// The whole transaction is refused.
    Refused(TxnRefused),
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<TxnRefused> for Stop {
    fn from(refused: TxnRefused) -> Self {
        Stop::Refused(refused)
    }
}

/// What the answers of a session may still have.
#[derive(Clone, Copy, Debug)]
pub(in crate::machine) struct Room {
    /// Bytes beside the answers that are remembered.
    pub(in crate::machine) left: u64,
    /// Bytes of all.
    pub(in crate::machine) max: u64,
}

/// A transaction that was run or refused.
pub(in crate::machine) struct Executed {
    pub(in crate::machine) answer: Result<TxnResponse, TxnRefused>,
    /// The outcome as the session remembers it; `None` outside of a session, and for a refusal that is not remembered.
    pub(in crate::machine) remembered: Option<Vec<u8>>,
    /// Keys that it looked at.
    pub(in crate::machine) looked_at: u64,
    /// Bytes that its reads returned.
    pub(in crate::machine) answer_bytes: u64,
}

/// Runs a transaction on a store that is at `revision`; in a session with `room` for its answer, where it has one.
pub(in crate::machine) fn execute(
    batch: &mut Batch<'_>,
    txn: Txn,
    (revision, log_index): (Revision, LogIndex),
    limits: &ReplicatedLimits,
    entry: &mut EntryWork,
    room: Option<Room>,
) -> Result<Executed, Fault> {
    batch.begin(revision.next());
    let mut meter = Meter::new(limits, entry);
    let run = run(batch, txn, (revision, log_index), &mut meter);
    let (looked_at, answer_bytes) = meter.used();
    let run = run.and_then(|response| {
        entry.grow(limits, || batch.growth())?;
        Ok(response)
    });
    let mut answer = match run {
        Ok(response) => Ok(response),
        Err(Stop::Refused(refused)) => Err(refused),
        Err(Stop::Fault(fault)) => return Err(fault),
    };
    let mut remembered = None;
    if let Some(room) = room {
        (answer, remembered) = remember(answer, room);
    }
    match &answer {
        Ok(_) => batch.end(),
        Err(_) if planted::is(Bug::RefusedTxnInPart) => batch.end(),
        Err(_) => batch.undo(),
    }
    Ok(Executed {
        answer,
        remembered,
        looked_at,
        answer_bytes,
    })
}

/// What a session answers and remembers: a refusal where there is no room for the answer.
fn remember(
    answer: Result<TxnResponse, TxnRefused>,
    room: Room,
) -> (Result<TxnResponse, TxnRefused>, Option<Vec<u8>>) {
    if answer.as_ref().is_err_and(TxnRefused::is_retryable) {
        return (answer, None);
    }
    let mut outcome = Outcome::Txn(answer);
    let mut bytes = model::encode(&outcome);
    if bytes.len() as u64 > room.max {
        outcome = Outcome::Txn(Err(TxnRefused::AnswerTooLarge {
            size: bytes.len() as u64,
            limit: room.max,
        }));
        bytes = model::encode(&outcome);
    }
    let answer = match outcome {
        Outcome::Txn(answer) => answer,
        Outcome::SessionOpened(_)
        | Outcome::SessionClosed
        | Outcome::LimitsSet(_)
        | Outcome::Compacted(_) => return no_room(room),
    };
    if bytes.len() as u64 > room.left && !planted::is(Bug::AnswerBytesNotCounted) {
        return no_room(room);
    }
    (answer, Some(bytes))
}

fn no_room(room: Room) -> (Result<TxnResponse, TxnRefused>, Option<Vec<u8>>) {
    let what = TooManyOf::UnansweredBytes;
    let refused = TxnRefused::TooMany {
        what,
        limit: room.max,
    };
    (Err(refused), None)
}

fn run(
    batch: &mut Batch<'_>,
    txn: Txn,
    (revision, log_index): (Revision, LogIndex),
    meter: &mut Meter<'_>,
) -> Result<TxnResponse, Stop> {
    let mut failed = Vec::new();
    let succeeded = txn.guard.evaluate(|index, condition| {
        let found = check(batch, condition, Place::Condition(index as usize), meter)?;
        let holds = found.is_none();
        if let Some(found) = found
            && failed.len() < TxnResponse::FAILED_MAX
        {
            meter.tell(Place::Condition(index as usize), found_bytes(&found))?;
            failed.push(FailedCondition { index, found });
        }
        Ok::<_, Stop>(holds)
    })?;
    if succeeded {
        failed.clear();
    }

    let ops = if succeeded { txn.then } else { txn.otherwise };
    batch.reserve(ops.len());
    let mut run = Run {
        batch,
        revision: revision.next(),
        meter,
    };
    let mut results = Vec::with_capacity(ops.len());
    for (index, op) in ops.into_iter().enumerate() {
        let at = At {
            op: u32::try_from(index).unwrap_or(u32::MAX),
            place: match succeeded {
                true => Place::Then(index),
                false => Place::Otherwise(index),
            },
        };
        results.push(run.op(at, op)?);
    }
    Ok(TxnResponse {
        revision: match batch.has_changed() {
            true => revision.next(),
            false => revision,
        },
        log_index,
        succeeded,
        failed,
        results,
    })
}

/// What is told of the state's own bytes.
fn found_bytes(found: &Found) -> usize {
    match found {
        Found::Record { value, .. } => value.as_ref().map_or(0, Bytes::len),
        Found::Key(key) => key.len(),
        Found::Missing | Found::Count(_) | Found::None => 0,
    }
}

/// Checks one condition: nothing when it holds, else what was found.
fn check(
    batch: &mut Batch<'_>,
    condition: &Condition,
    place: Place,
    meter: &mut Meter<'_>,
) -> Result<Option<Found>, Stop> {
    match condition {
        Condition::Key { key, test } => {
            meter.name(place)?;
            let slot = batch.look_up(key)?;
            let values = values_for(test);
            if values == Values::Read {
                meter.value(place)?;
            }
            let record = batch.get(slot, values)?;
            if values == Values::Read {
                meter.value_bytes(place, record.map_or(0, |record| record.value.len()))?;
            }
            Ok(if passes(record, test) {
                None
            } else {
                Some(record.map_or(Found::Missing, |record| found(record, test)))
            })
        }
        Condition::Range { range, test } => check_range(batch, range, test, place, meter),
    }
}

fn check_range(
    batch: &mut Batch<'_>,
    range: &KeyRange,
    test: &RangeTest,
    place: Place,
    meter: &mut Meter<'_>,
) -> Result<Option<Found>, Stop> {
    let values = match test {
        RangeTest::Any(test) | RangeTest::All(test) => values_for(test),
        RangeTest::Count(..) => Values::Skip,
    };
    let mut visits = Visits::begin(meter, place, values)?;
    let found = match test {
        RangeTest::Any(test) => {
            let mut any = false;
            batch.scan(range, Order::Ascending, values, |key, record| {
                visits.pay(key, record)?;
                any = passes(Some(record), test);
                stop_if(any)
            })?;
            if any { None } else { Some(Found::None) }
        }
        RangeTest::All(test) => {
            let mut spoiler = None;
            batch.scan(range, Order::Ascending, values, |key, record| {
                visits.pay(key, record)?;
                if !passes(Some(record), test) {
                    spoiler = Some(key.to_vec());
                }
                stop_if(spoiler.is_some())
            })?;
            match spoiler.map(Key::new) {
                None => None,
                Some(Ok(key)) => Some(Found::Key(key)),
                Some(Err(e)) => return Err(no_key(batch, &e).into()),
            }
        }
        RangeTest::Count(compare, operand) => {
            // One more than the operand decides each comparison.
            let enough = operand.saturating_add(1);
            let mut count = 0u64;
            batch.scan(range, Order::Ascending, values, |key, record| {
                visits.pay(key, record)?;
                count += 1;
                stop_if(count >= enough)
            })?;
            match compare.holds(&count, operand) {
                true => None,
                false => Some(Found::Count(count)),
            }
        }
    };
    visits.end()?;
    Ok(found)
}

fn stop_if(enough: bool) -> ControlFlow<()> {
    match enough {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

fn no_key(batch: &Batch<'_>, error: &InvalidKey) -> Fault {
    let file = batch.file();
    file.corrupt(format!("a row of current has no valid key: {error}"))
}

/// The keys that a range visits, each paid for before anything is made of it.
struct Visits<'m, 'e> {
    meter: &'m mut Meter<'e>,
    place: Place,
    values: Values,
    refused: Option<TxnRefused>,
}

impl<'m, 'e> Visits<'m, 'e> {
    fn begin(meter: &'m mut Meter<'e>, place: Place, values: Values) -> Result<Self, TxnRefused> {
        // A planted bug: a guard costs nothing.
        if !(planted::is(Bug::GuardsCostNothing) && matches!(place, Place::Condition(_))) {
            meter.range(place)?;
        }
        Ok(Self {
            meter,
            place,
            values,
            refused: None,
        })
    }

    /// Breaks where the budget does not reach: `end` says so.
    fn pay(&mut self, key: &[u8], record: RecordRef<'_>) -> ControlFlow<()> {
        if planted::is(Bug::GuardsCostNothing) && matches!(self.place, Place::Condition(_)) {
            return ControlFlow::Continue(());
        }
        let value = (self.values == Values::Read).then_some(record.value.len());
        match self.meter.visit(self.place, key.len(), value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(refused) => {
                self.refused = Some(refused);
                ControlFlow::Break(())
            }
        }
    }

    fn end(self) -> Result<(), TxnRefused> {
        self.refused.map_or(Ok(()), Err)
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

/// Where an operation stands.
#[derive(Clone, Copy)]
struct At {
    /// Its number in its branch.
    op: u32,
    place: Place,
}

/// A branch being run.
struct Run<'b, 's, 'm, 'e> {
    batch: &'b mut Batch<'s>,
    /// The revision that the transaction makes if it changes anything.
    revision: Revision,
    meter: &'m mut Meter<'e>,
}

impl Run<'_, '_, '_, '_> {
    fn op(&mut self, at: At, step: Op) -> Result<OpResult, Stop> {
        match step {
            Op::Put {
                key,
                value,
                mode,
                lease,
            } => self.put(at, &key, value, mode, lease),
            Op::Delete { key } => {
                self.meter.name(at.place)?;
                let slot = self.batch.look_up(&key)?;
                let existed = self.batch.get(slot, Values::Skip)?.is_some();
                if existed {
                    self.set(at, slot, None)?;
                }
                Ok(OpResult::Deleted {
                    count: u64::from(existed),
                    more: false,
                })
            }
            Op::DeleteRange { range, limit, excess } => self.delete_range(at, &range, limit, excess),
            Op::Get { key } => {
                let slot = self.look_up_for_value(at, &key)?;
                let record = self.batch.get(slot, Values::Read)?;
                self.meter
                    .value_bytes(at.place, record.map_or(0, |record| record.value.len()))?;
                let bytes = record.map_or(0, |record| answer_bytes(key.len(), record.value.len()));
                self.meter.answer(at.op, bytes)?;
                Ok(OpResult::Get(record.map(|record| record.to_record(true))))
            }
            Op::Range(read) => self.range(at, &read),
            Op::Add { key, delta } => self.change_number(at, &key, |found| {
                found
                    .unwrap_or(0)
                    .checked_add(delta)
                    .map(Some)
                    .ok_or(TxnRefused::Overflow {
                        op: at.op,
                        found: found.unwrap_or(0),
                        delta,
                    })
            }),
            Op::Max { key, operand } => {
                self.change_number(at, &key, |found| Ok((found < Some(operand)).then_some(operand)))
            }
            Op::PutSequence { prefix, value } => {
                let number = self.batch.next_number(&prefix)?;
                let mut key = prefix.as_bytes().to_vec();
                key.extend_from_slice(format!("{number:0SEQUENCE_DIGITS$}").as_bytes());
                let key = Key::new(key).map_err(|e| {
                    // The gate leaves room for the digits.
                    self.batch
                        .file()
                        .corrupt(format!("a committed sequence put makes no key: {e}"))
                })?;
                self.put(at, &key, value, PutMode::Upsert, LeaseChange::Detach)?;
                Ok(OpResult::Sequenced { key })
            }
        }
    }

    fn put(
        &mut self,
        at: At,
        key: &Key,
        value: Bytes,
        mode: PutMode,
        lease: LeaseChange,
    ) -> Result<OpResult, Stop> {
        self.meter.name(at.place)?;
        if let LeaseChange::Attach(lease) = lease {
            // No lease exists yet: none can be granted in this release.
            return Err(TxnRefused::NoSuchLease { op: at.op, lease }.into());
        }
        let slot = self.batch.look_up(key)?;
        let old = self.batch.get(slot, Values::Skip)?;
        if old.is_some() && mode == PutMode::OnlyIfAbsent {
            let (op, key) = (at.op, key.clone());
            return Err(TxnRefused::KeyExists { op, key }.into());
        }
        let existed = old.is_some();
        let lease = match lease {
            LeaseChange::Keep => old.and_then(|old| old.meta.lease),
            LeaseChange::Detach | LeaseChange::Attach(_) => None,
        };
        let draft = written(old, self.revision, lease, value);
        self.set(at, slot, Some(draft))?;
        Ok(OpResult::Put { existed })
    }

    /// Writes or deletes a key that the transaction names.
    fn set(&mut self, at: At, slot: SlotId, draft: Option<Draft>) -> Result<(), TxnRefused> {
        if !self.batch.is_touched(slot) {
            self.meter.change(at.place)?;
        }
        self.batch.set(slot, draft);
        Ok(())
    }

    fn look_up_for_value(&mut self, at: At, key: &Key) -> Result<SlotId, Stop> {
        self.meter.name(at.place)?;
        self.meter.value(at.place)?;
        Ok(self.batch.look_up(key)?)
    }

    fn range(&mut self, at: At, read: &RangeRead) -> Result<OpResult, Stop> {
        let bytes_left = self.meter.answer_bytes_left();
        let mut gathered = Gathered::new(read, u64::MAX);
        let values = Gathered::values(read);
        let mut visits = Visits::begin(self.meter, at.place, values)?;
        self.batch.scan(&read.range, read.order, values, |key, record| {
            visits.pay(key, record)?;
            gathered.visit(key, record)?;
            stop_if(gathered.bytes > bytes_left)
        })?;
        visits.end()?;
        self.meter.answer(at.op, gathered.bytes)?;
        Ok(OpResult::Range {
            records: gathered.records,
            count: gathered.count,
            more: gathered.more,
        })
    }

    fn delete_range(
        &mut self,
        at: At,
        range: &KeyRange,
        limit: u32,
        excess: RangeExcess,
    ) -> Result<OpResult, Stop> {
        let mut keys = Vec::new();
        let mut more = false;
        let mut visits = Visits::begin(self.meter, at.place, Values::Skip)?;
        self.batch
            .scan(range, Order::Ascending, Values::Skip, |key, record| {
                visits.pay(key, record)?;
                more = keys.len() as u64 >= u64::from(limit);
                if !more {
                    keys.push(key.to_vec());
                }
                stop_if(more)
            })?;
        visits.end()?;
        if more && excess == RangeExcess::Refuse {
            return Err(TxnRefused::RangeTooLarge { op: at.op, limit }.into());
        }
        let count = keys.len() as u64;
        for key in keys {
            let key = Key::new(key).map_err(|e| no_key(self.batch, &e))?;
            let slot = self.batch.look_up(&key)?;
            if !self.batch.is_touched(slot) {
                self.meter.change_in_range(at.place)?;
            }
            self.batch.set(slot, None);
        }
        Ok(OpResult::Deleted { count, more })
    }

    /// Changes a number to what `change` answers, where it answers one. The key keeps its lease.
    fn change_number(
        &mut self,
        at: At,
        key: &Key,
        change: impl FnOnce(Option<i64>) -> Result<Option<i64>, TxnRefused>,
    ) -> Result<OpResult, Stop> {
        let slot = self.look_up_for_value(at, key)?;
        let old = self.batch.get(slot, Values::Read)?;
        self.meter
            .value_bytes(at.place, old.map_or(0, |record| record.value.len()))?;
        let found = match old {
            None => None,
            Some(record) => match model::number(record.value) {
                Some(number) => Some(number),
                None => {
                    let (op, key, size) = (at.op, key.clone(), record.value.len() as u64);
                    return Err(TxnRefused::NotANumber { op, key, size }.into());
                }
            },
        };
        let Some(number) = change(found)? else {
            return Ok(OpResult::Number(found.unwrap_or(0)));
        };
        let lease = old.and_then(|old| old.meta.lease);
        let value = Bytes::copy_from_slice(&number.to_be_bytes());
        let draft = written(old, self.revision, lease, value);
        self.set(at, slot, Some(draft))?;
        Ok(OpResult::Number(number))
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

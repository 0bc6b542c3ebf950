//! The specification as slow and obvious code: a whole copy of the state for each revision.
//!
//! Shares no code with the machine beyond the model's words.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::model::{
    Command, Compacted, Compare, Condition, FailedCondition, Found, Guard, GuardNode, Key, KeyRange, KeyTest,
    KeyValue, LeaseChange, LimitsSet, LogIndex, LogTime, Op, OpResult, Order, Outcome, Place, Proposal,
    PutMode, RangeExcess, RangeRead, RangeTest, ReadOp, ReadResult, Record, ReplicatedLimits, Revision,
    SessionId, SessionOpened, SessionRef, TooManyOf, Txn, TxnRefused, TxnResponse, Work, encode,
};

type State = BTreeMap<Key, Record>;

#[derive(Clone)]
struct Session {
    ttl: u64,
    last: u64,
    last_entry: u64,
    answered_below: u64,
    answers: BTreeMap<u64, Outcome>,
}

/// What a record takes in an answer.
fn size(key: &Key, value: &Bytes) -> u64 {
    key.len() as u64 + value.len() as u64 + 64
}

/// What a record counts of the quota.
fn counted(key: &Key, record: &Record) -> u64 {
    2 * key.len() as u64 + record.value.len() as u64 + 64
}

/// What the commands of the entry under way have used together.
#[derive(Clone, Copy, Default)]
struct Entry {
    index: u64,
    looked_at: u64,
    changed: u64,
    answered: u64,
    given_again: u64,
    full_at: Option<u64>,
}

/// What a transaction has used.
struct Cost<'a> {
    limits: ReplicatedLimits,
    entry: &'a mut Entry,
    looked_at: u64,
    answered: u64,
    changed: BTreeSet<Key>,
}

type Paid = Result<(), TxnRefused>;

impl Cost<'_> {
    /// Looks at so many keys, of which the entry pays for some.
    fn look(&mut self, place: Place, keys: u64, of_entry: u64) -> Paid {
        let (limit, what) = (self.limits.keys_looked_at_max, Work::KeysLookedAt);
        self.looked_at += keys;
        if self.looked_at > limit {
            return Err(TxnRefused::TooMuchWork { place, what, limit });
        }
        let all = limit * self.limits.entry_budget;
        if of_entry > 0 && self.entry.looked_at + of_entry > all {
            self.entry.looked_at = all;
            return Err(TxnRefused::EntrySpent { what });
        }
        self.entry.looked_at += of_entry;
        Ok(())
    }

    /// Looks at the value of a key by its name.
    fn value(&mut self, place: Place, record: Option<&Record>) -> Paid {
        let kib = record.map_or(0, |r| r.value.len() as u64 / 1024);
        self.look(place, 4, 4)?;
        self.look(place, kib, kib)
    }

    /// Goes through the records of a range.
    fn range<'r>(
        &mut self,
        place: Place,
        visited: impl IntoIterator<Item = (&'r Key, &'r Record)>,
        with_values: bool,
    ) -> Paid {
        self.look(place, 8, 8)?;
        for (key, record) in visited {
            let value = match with_values {
                true => 4 + record.value.len() as u64 / 1024,
                false => 0,
            };
            let keys = 1 + key.len() as u64 / 1024 + value;
            self.look(place, keys, keys)?;
        }
        Ok(())
    }

    fn change(&mut self, place: Place, key: &Key, in_range: bool) -> Paid {
        let (limit, what) = (self.limits.keys_changed_max, Work::KeysChanged);
        if !self.changed.insert(key.clone()) {
            return Ok(());
        }
        if self.changed.len() as u64 > limit {
            return Err(TxnRefused::TooMuchWork { place, what, limit });
        }
        if in_range {
            if self.entry.changed >= limit * self.limits.entry_budget {
                return Err(TxnRefused::EntrySpent { what });
            }
            self.entry.changed += 1;
        }
        Ok(())
    }

    fn answer(&mut self, bytes: u64, beyond: impl FnOnce(u64) -> TxnRefused) -> Paid {
        let limit = self.limits.response_bytes_max;
        self.answered += bytes;
        if self.answered > limit {
            return Err(beyond(limit));
        }
        if self.entry.answered + bytes > limit * self.limits.entry_budget {
            let what = Work::AnswerBytes;
            return Err(TxnRefused::EntrySpent { what });
        }
        self.entry.answered += bytes;
        Ok(())
    }
}

/// The slow store.
pub(super) struct Slow {
    limits: ReplicatedLimits,
    limits_version: u64,
    entry: Entry,
    /// A page of a read ends at so many bytes.
    page_bytes_max: u64,
    /// The state at each revision; the first is that of revision 1.
    pub(super) states: Vec<State>,
    sequences: BTreeMap<Key, u64>,
    sessions: BTreeMap<SessionId, Session>,
    pub(super) time: u64,
    /// The oldest revision that can be read.
    pub(super) oldest: u64,
}

impl Slow {
    pub(super) fn new(page_bytes_max: u64) -> Self {
        Self {
            limits: ReplicatedLimits::default(),
            limits_version: 0,
            entry: Entry::default(),
            page_bytes_max,
            states: vec![State::new()],
            sequences: BTreeMap::new(),
            sessions: BTreeMap::new(),
            time: 0,
            oldest: 1,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        Revision::new(self.states.len() as u64)
    }

    pub(super) fn apply(&mut self, index: LogIndex, proposal: &Proposal) -> Vec<Outcome> {
        self.time = self.time.max(proposal.stamp.millis());
        self.entry = Entry {
            index: index.number(),
            full_at: proposal.full_at,
            ..Entry::default()
        };
        let now = self.time;
        self.sessions.retain(|_, s| s.last.saturating_add(s.ttl) >= now);
        proposal
            .commands
            .iter()
            .map(|command| self.command(index, command))
            .collect()
    }

    pub(super) fn time(&self) -> LogTime {
        LogTime::from_millis(self.time)
    }

    fn command(&mut self, index: LogIndex, command: &Command) -> Outcome {
        match command {
            Command::OpenSession { id, ttl_millis } => Outcome::SessionOpened(self.open(*id, *ttl_millis)),
            Command::SetLimits { expected, changes } => {
                let mut changed = false;
                if *expected == Some(self.limits_version)
                    && let Ok(limits) = self.limits.with(changes)
                {
                    self.limits = limits;
                    self.limits_version += 1;
                    changed = true;
                }
                Outcome::LimitsSet(LimitsSet {
                    changed,
                    version: self.limits_version,
                    limits: self.limits,
                })
            }
            Command::Compact { revision } => {
                if revision.number() <= self.states.len() as u64 {
                    self.oldest = self.oldest.max(revision.number());
                }
                Outcome::Compacted(Compacted {
                    oldest: Revision::new(self.oldest),
                    revision: self.revision(),
                })
            }
            Command::CloseSession { session } => {
                self.sessions.remove(session);
                Outcome::SessionClosed
            }
            Command::Txn { session: None, txn } => Outcome::Txn(self.txn(index, txn)),
            Command::Txn {
                session: Some(session),
                txn,
            } => self.in_session(index, *session, txn),
        }
    }

    fn open(&mut self, mut id: SessionId, ttl_millis: u64) -> Result<SessionOpened, TxnRefused> {
        let limits = self.limits;
        while self.sessions.len() as u64 >= limits.sessions_max {
            let by_use = |(id, session): &(&SessionId, &Session)| (session.last_entry, **id);
            let (&oldest, session) = self.sessions.iter().min_by_key(by_use).unwrap();
            let by_time = self.time - session.last >= limits.session_idle_millis;
            let stands_still = self.time == session.last;
            let by_order = self.entry.index - session.last_entry >= limits.session_idle_entries;
            if !(by_time || (stands_still && by_order)) {
                return Err(TxnRefused::TooMany {
                    what: TooManyOf::Sessions,
                    limit: limits.sessions_max,
                });
            }
            self.sessions.remove(&oldest);
        }
        while self.sessions.contains_key(&id) {
            id = id.next();
        }
        let ttl = ttl_millis.min(limits.session_ttl_millis_max);
        let session = Session {
            ttl,
            last: self.time,
            last_entry: self.entry.index,
            answered_below: 1,
            answers: BTreeMap::new(),
        };
        self.sessions.insert(id, session);
        Ok(SessionOpened {
            session: id,
            ttl_millis: ttl,
        })
    }

    fn in_session(&mut self, index: LogIndex, session: SessionRef, txn: &Txn) -> Outcome {
        let SessionRef {
            id,
            sequence,
            answered_below,
        } = session;
        let Some(mut found) = self.sessions.get(&id).cloned() else {
            return Outcome::Txn(Err(TxnRefused::SessionExpired { session: id }));
        };
        found.last = self.time;
        found.last_entry = self.entry.index;
        found.answered_below = found.answered_below.max(answered_below.number());
        let below = found.answered_below;
        found.answers.retain(|sequence, _| *sequence >= below);
        let outcome = if sequence.number() < below {
            Outcome::Txn(Err(TxnRefused::SequenceForgotten {
                session: id,
                sequence,
            }))
        } else if let Some(first) = found.answers.get(&sequence.number()) {
            let bytes = encode(first).len() as u64;
            let given = self.entry.given_again;
            let max = self.limits.unanswered_bytes_max * self.limits.entry_budget;
            if given > 0 && given + bytes > max {
                let what = Work::AnswerBytes;
                Outcome::Txn(Err(TxnRefused::EntrySpent { what }))
            } else {
                self.entry.given_again += bytes;
                first.clone()
            }
        } else if found.answers.len() as u64 >= self.limits.unanswered_max {
            Outcome::Txn(Err(TxnRefused::TooMany {
                what: TooManyOf::UnansweredWrites,
                limit: self.limits.unanswered_max,
            }))
        } else {
            // On a copy, until it is known whether the answer can be remembered.
            let before = (self.states.len(), self.sequences.clone());
            let mut outcome = Outcome::Txn(self.txn(index, txn));
            let limit = self.limits.unanswered_bytes_max;
            let held: u64 = found.answers.values().map(|a| encode(a).len() as u64).sum();
            let size = encode(&outcome).len() as u64;
            let again = matches!(&outcome, Outcome::Txn(Err(refused)) if refused.is_retryable());
            if size > limit && !again {
                outcome = Outcome::Txn(Err(TxnRefused::AnswerTooLarge { size, limit }));
            }
            let what = TooManyOf::UnansweredBytes;
            if !again && held + encode(&outcome).len() as u64 > limit {
                outcome = Outcome::Txn(Err(TxnRefused::TooMany { what, limit }));
            } else if !again {
                found.answers.insert(sequence.number(), outcome.clone());
            }
            if matches!(outcome, Outcome::Txn(Err(_))) {
                self.states.truncate(before.0);
                self.sequences = before.1;
            }
            outcome
        };
        self.sessions.insert(id, found);
        outcome
    }

    fn txn(&mut self, log_index: LogIndex, txn: &Txn) -> Result<TxnResponse, TxnRefused> {
        let before = self.states.last().unwrap().clone();
        let mut cost = Cost {
            limits: self.limits,
            entry: &mut self.entry,
            looked_at: 0,
            answered: 0,
            changed: BTreeSet::new(),
        };
        let mut failed = Vec::new();
        for (index, condition) in txn.guard.conditions().enumerate() {
            let place = Place::Condition(index);
            pay_for_condition(&mut cost, &before, place, condition)?;
            if let Some(found) = fails(&before, condition) {
                let bytes = match &found {
                    Found::Record { value: Some(v), .. } => v.len(),
                    Found::Key(key) => key.len(),
                    _ => 0,
                };
                cost.answer(bytes as u64, |limit| TxnRefused::TooMuchWork {
                    place,
                    what: Work::AnswerBytes,
                    limit,
                })?;
                let index = index as u32;
                failed.push(FailedCondition { index, found });
            }
        }
        let succeeded = holds(&before, &txn.guard);
        let revision = Revision::new(self.states.len() as u64 + 1);
        let mut run = Run {
            before: &before,
            now: before.clone(),
            revision,
            sequences: self.sequences.clone(),
            deleted: BTreeSet::new(),
            cost,
        };
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let mut results = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let place = match succeeded {
                true => Place::Then(index),
                false => Place::Otherwise(index),
            };
            results.push(run.op(index as u32, place, op)?);
        }
        let (now, sequences) = (run.now, run.sequences);
        let limit = self.limits.store_bytes_max;
        if let Some(used) = self.entry.full_at
            && limit > 0
        {
            let counts =
                |state: &State| -> u64 { state.iter().map(|(key, record)| counted(key, record)).sum() };
            let begun = sequences
                .keys()
                .filter(|prefix| !self.sequences.contains_key(*prefix));
            let begun: u64 = begun.map(|prefix| 2 * prefix.len() as u64 + 8 + 64).sum();
            let wanted = (counts(&now) + begun).saturating_sub(counts(&before));
            let written: State = now
                .iter()
                .filter(|(key, record)| before.get(*key) != Some(*record))
                .map(|(key, record)| (key.clone(), record.clone()))
                .collect();
            let kept = written.keys().filter(|key| before.contains_key(*key)).count() as u64;
            let comes = counts(&written) + begun;
            if comes > 0 && used + comes > limit {
                let wanted = comes;
                return Err(TxnRefused::NoSpace { used, limit, wanted });
            }
            if used * 100 >= limit * 80 && wanted > 64 * kept {
                return Err(TxnRefused::NoSpace { used, limit, wanted });
            }
        }
        self.sequences = sequences;
        if now != before {
            self.states.push(now);
        }
        Ok(TxnResponse {
            revision: self.revision(),
            log_index,
            succeeded,
            failed: if succeeded { Vec::new() } else { failed },
            results,
        })
    }

    /// Reads the state of a revision, which exists.
    pub(super) fn read(&self, op: &ReadOp, at: Revision) -> ReadResult {
        let state = &self.states[at.number() as usize - 1];
        match op {
            ReadOp::Get(key) => ReadResult::Get(state.get(key).cloned()),
            ReadOp::Range(read) => {
                let (records, count, more) = range(state, read, self.page_bytes_max);
                ReadResult::Range { records, count, more }
            }
        }
    }
}

struct Run<'a> {
    before: &'a State,
    now: State,
    revision: Revision,
    sequences: BTreeMap<Key, u64>,
    deleted: BTreeSet<Key>,
    cost: Cost<'a>,
}

fn pay_for_condition(cost: &mut Cost<'_>, state: &State, place: Place, condition: &Condition) -> Paid {
    match condition {
        Condition::Key { key, test } => {
            cost.look(place, 1, 0)?;
            match test {
                KeyTest::Value(..) => cost.value(place, state.get(key)),
                _ => Ok(()),
            }
        }
        Condition::Range { range, test } => {
            let up_to = |stop: &dyn Fn(&Record) -> bool| {
                let all: Vec<_> = inside(state, range).collect();
                let end = all
                    .iter()
                    .position(|(_, record)| stop(record))
                    .map_or(all.len(), |at| at + 1);
                all[..end].to_vec()
            };
            let with_values = matches!(
                test,
                RangeTest::Any(KeyTest::Value(..)) | RangeTest::All(KeyTest::Value(..))
            );
            let visited = match test {
                RangeTest::Any(test) => up_to(&|record| passes(Some(record), test)),
                RangeTest::All(test) => up_to(&|record| !passes(Some(record), test)),
                RangeTest::Count(_, operand) => inside(state, range).take(*operand as usize + 1).collect(),
            };
            cost.range(place, visited, with_values)
        }
    }
}

impl Run<'_> {
    fn answer(&mut self, op: u32, bytes: u64) -> Paid {
        self.cost
            .answer(bytes, |limit| TxnRefused::ResponseTooLarge { op, limit })
    }

    fn write(&mut self, key: &Key, value: Bytes) {
        let anew = !self.before.contains_key(key) || self.deleted.contains(key);
        let record = Record {
            value,
            create_revision: if anew {
                self.revision
            } else {
                self.before[key].create_revision
            },
            mod_revision: self.revision,
            version: if anew { 1 } else { self.before[key].version + 1 },
            lease: None,
        };
        self.now.insert(key.clone(), record);
    }

    fn delete(&mut self, key: &Key) -> bool {
        self.deleted.insert(key.clone());
        self.now.remove(key).is_some()
    }

    fn number(&self, op: u32, key: &Key) -> Result<Option<i64>, TxnRefused> {
        let Some(record) = self.now.get(key) else {
            return Ok(None);
        };
        let bytes: [u8; 8] = record.value[..].try_into().map_err(|_| TxnRefused::NotANumber {
            op,
            key: key.clone(),
            size: record.value.len() as u64,
        })?;
        Ok(Some(i64::from_be_bytes(bytes)))
    }

    fn op(&mut self, op: u32, place: Place, step: &Op) -> Result<OpResult, TxnRefused> {
        Ok(match step {
            Op::Put {
                key,
                value,
                mode,
                lease,
            } => {
                self.cost.look(place, 1, 0)?;
                if let LeaseChange::Attach(lease) = lease {
                    return Err(TxnRefused::NoSuchLease { op, lease: *lease });
                }
                let existed = self.now.contains_key(key);
                if existed && *mode == PutMode::OnlyIfAbsent {
                    return Err(TxnRefused::KeyExists { op, key: key.clone() });
                }
                self.cost.change(place, key, false)?;
                self.write(key, value.clone());
                OpResult::Put { existed }
            }
            Op::Delete { key } => {
                self.cost.look(place, 1, 0)?;
                if self.now.contains_key(key) {
                    self.cost.change(place, key, false)?;
                }
                OpResult::Deleted {
                    count: u64::from(self.delete(key)),
                    more: false,
                }
            }
            Op::DeleteRange { range, limit, excess } => {
                let all: Vec<(&Key, &Record)> = inside(&self.now, range).collect();
                let limit = *limit as usize;
                self.cost
                    .range(place, all.iter().take(limit + 1).copied(), false)?;
                let more = all.len() > limit;
                if more && *excess == RangeExcess::Refuse {
                    let limit = limit as u32;
                    return Err(TxnRefused::RangeTooLarge { op, limit });
                }
                let keys: Vec<Key> = all.into_iter().take(limit).map(|(key, _)| key.clone()).collect();
                for key in &keys {
                    self.cost.change(place, key, true)?;
                    self.delete(key);
                }
                let count = keys.len() as u64;
                OpResult::Deleted { count, more }
            }
            Op::Get { key } => {
                let record = self.now.get(key).cloned();
                self.cost.look(place, 1, 0)?;
                self.cost.value(place, record.as_ref())?;
                self.answer(op, record.as_ref().map_or(0, |r| size(key, &r.value)))?;
                OpResult::Get(record)
            }
            Op::Range(read) => {
                self.read_range(op, place, read)?;
                let (records, count, more) = range(&self.now, read, u64::MAX);
                let bytes = records.iter().map(|kv| size(&kv.key, &kv.record.value)).sum();
                self.answer(op, bytes)?;
                OpResult::Range { records, count, more }
            }
            Op::Add { key, delta } => {
                self.cost.look(place, 1, 0)?;
                self.cost.value(place, self.now.get(key))?;
                let found = self.number(op, key)?.unwrap_or(0);
                let number = found.checked_add(*delta).ok_or(TxnRefused::Overflow {
                    op,
                    found,
                    delta: *delta,
                })?;
                self.cost.change(place, key, false)?;
                self.write(key, Bytes::copy_from_slice(&number.to_be_bytes()));
                OpResult::Number(number)
            }
            Op::Max { key, operand } => {
                self.cost.look(place, 1, 0)?;
                self.cost.value(place, self.now.get(key))?;
                match self.number(op, key)? {
                    Some(found) if found >= *operand => OpResult::Number(found),
                    _ => {
                        self.cost.change(place, key, false)?;
                        self.write(key, Bytes::copy_from_slice(&operand.to_be_bytes()));
                        OpResult::Number(*operand)
                    }
                }
            }
            Op::PutSequence { prefix, value } => {
                self.cost.look(place, 1, 0)?;
                let next = self.sequences.get(prefix).copied().unwrap_or(0) + 1;
                self.sequences.insert(prefix.clone(), next);
                let mut key = prefix.as_bytes().to_vec();
                key.extend(format!("{next:020}").bytes());
                let key = Key::new(key).unwrap();
                self.cost.change(place, &key, false)?;
                self.write(&key, value.clone());
                OpResult::Sequenced { key }
            }
        })
    }

    /// Pays for a range read, whose answer ends the transaction as soon as it is too large.
    fn read_range(&mut self, op: u32, place: Place, read: &RangeRead) -> Paid {
        let mut all: Vec<(&Key, &Record)> = inside(&self.now, &read.range).collect();
        if read.order == Order::Descending {
            all.reverse();
        }
        let with_values = !read.keys_only && !read.count_only;
        if read.count_only {
            return self.cost.range(place, all, false);
        }
        let limits = self.cost.limits;
        let of_entry =
            (limits.response_bytes_max * limits.entry_budget).saturating_sub(self.cost.entry.answered);
        let left = of_entry.min(limits.response_bytes_max - self.cost.answered);
        let (mut bytes, mut visited) = (0, 0);
        for (nth, (key, record)) in all.iter().enumerate() {
            visited = nth + 1;
            if nth == read.limit as usize {
                break;
            }
            let value = if with_values {
                record.value.clone()
            } else {
                Bytes::new()
            };
            bytes += size(key, &value);
            if bytes > left {
                // What comes after is not looked at any more: it is refused.
                self.cost
                    .range(place, all[..visited].iter().copied(), with_values)?;
                return self
                    .cost
                    .answer(bytes, |limit| TxnRefused::ResponseTooLarge { op, limit });
            }
        }
        self.cost
            .range(place, all[..visited].iter().copied(), with_values)
    }
}

fn range(state: &State, read: &RangeRead, bytes_max: u64) -> (Vec<KeyValue>, u64, bool) {
    let mut all: Vec<KeyValue> = inside(state, &read.range)
        .map(|(key, record)| KeyValue {
            key: key.clone(),
            record: record.clone(),
        })
        .collect();
    if read.count_only {
        return (Vec::new(), all.len() as u64, false);
    }
    if read.order == Order::Descending {
        all.reverse();
    }
    if read.keys_only {
        all.iter_mut().for_each(|kv| kv.record.value = Bytes::new());
    }
    // As many as there is room for, but one at least where any is asked for.
    let bytes = all.iter().scan(0, |sum, kv| {
        *sum += size(&kv.key, &kv.record.value);
        Some(*sum)
    });
    let room = bytes.take_while(|bytes| *bytes <= bytes_max).count().max(1);
    let taken = room.min(read.limit as usize);
    let more = all.len() > taken;
    all.truncate(taken);
    let count = all.len() as u64;
    (all, count, more)
}

fn inside<'s>(state: &'s State, range: &'s KeyRange) -> impl Iterator<Item = (&'s Key, &'s Record)> {
    state.iter().filter(|(key, _)| range.contains(key.as_bytes()))
}

fn compare<T: Ord + ?Sized>(compare: Compare, found: &T, operand: &T) -> bool {
    let order = found.cmp(operand);
    match compare {
        Compare::Equal => order.is_eq(),
        Compare::NotEqual => order.is_ne(),
        Compare::Less => order.is_lt(),
        Compare::LessOrEqual => order.is_le(),
        Compare::Greater => order.is_gt(),
        Compare::GreaterOrEqual => order.is_ge(),
    }
}

fn passes(record: Option<&Record>, test: &KeyTest) -> bool {
    match test {
        KeyTest::Value(c, v) => record.map_or(*c == Compare::NotEqual, |r| compare(*c, &r.value, v)),
        KeyTest::Version(c, v) => compare(*c, &record.map_or(0, |r| r.version), v),
        KeyTest::CreateRevision(c, v) => compare(*c, &record.map(|r| r.create_revision), v),
        KeyTest::ModRevision(c, v) => compare(*c, &record.map(|r| r.mod_revision), v),
        KeyTest::Lease(c, v) => compare(*c, &record.and_then(|r| r.lease), v),
        KeyTest::Exists(exists) => *exists == record.is_some(),
    }
}

/// What a condition found instead, if it fails.
fn fails(state: &State, condition: &Condition) -> Option<Found> {
    match condition {
        Condition::Key { key, test } => {
            let record = state.get(key);
            if passes(record, test) {
                return None;
            }
            Some(record.map_or(Found::Missing, |r| Found::Record {
                value: (matches!(test, KeyTest::Value(..)) && r.value.len() <= 1024).then(|| r.value.clone()),
                create_revision: r.create_revision,
                mod_revision: r.mod_revision,
                version: r.version,
                lease: r.lease,
            }))
        }
        Condition::Range { range, test } => match test {
            RangeTest::Any(test) => {
                let any = inside(state, range).any(|(_, r)| passes(Some(r), test));
                (!any).then_some(Found::None)
            }
            RangeTest::All(test) => inside(state, range)
                .find(|(_, r)| !passes(Some(r), test))
                .map(|(key, _)| Found::Key(key.clone())),
            RangeTest::Count(c, operand) => {
                let count = inside(state, range).count() as u64;
                (!compare(*c, &count, operand)).then_some(Found::Count(count.min(operand + 1)))
            }
        },
    }
}

fn holds(state: &State, guard: &Guard) -> bool {
    let mut nodes = guard.nodes().iter();
    if guard.nodes().is_empty() {
        true
    } else {
        tree(state, &mut nodes)
    }
}

fn tree(state: &State, nodes: &mut std::slice::Iter<'_, GuardNode>) -> bool {
    match nodes.next().unwrap() {
        GuardNode::Condition(condition) => fails(state, condition).is_none(),
        GuardNode::Not => !tree(state, nodes),
        GuardNode::All(n) => (0..*n)
            .map(|_| tree(state, nodes))
            .collect::<Vec<_>>()
            .into_iter()
            .all(|x| x),
        GuardNode::Any(n) => (0..*n)
            .map(|_| tree(state, nodes))
            .collect::<Vec<_>>()
            .into_iter()
            .any(|x| x),
    }
}

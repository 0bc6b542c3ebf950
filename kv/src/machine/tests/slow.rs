//! The specification as slow and obvious code: a whole copy of the state for each revision.
//!
//! Shares no code with the machine beyond the model's words.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::machine::ReplicatedLimits;
use crate::model::{
    Command, Compare, Condition, FailedCondition, Found, Guard, GuardNode, Key, KeyRange, KeyTest, KeyValue,
    LeaseChange, LogIndex, LogTime, Op, OpResult, Order, Outcome, Proposal, PutMode, RangeRead, RangeTest,
    ReadOp, ReadResult, Record, Revision, SessionId, SessionRef, TooManyOf, Txn, TxnRefused, TxnResponse,
};

type State = BTreeMap<Key, Record>;

#[derive(Clone)]
struct Session {
    ttl: u64,
    last: u64,
    answered_below: u64,
    answers: BTreeMap<u64, Outcome>,
}

/// What a record takes in an answer.
fn size(key: &Key, value: &Bytes) -> u64 {
    key.len() as u64 + value.len() as u64 + 64
}

/// The slow store.
pub(super) struct Slow {
    limits: ReplicatedLimits,
    /// A page of a read ends at so many bytes.
    page_bytes_max: u64,
    /// The state at each revision; the first is that of revision 1.
    pub(super) states: Vec<State>,
    sequences: BTreeMap<Key, u64>,
    sessions: BTreeMap<SessionId, Session>,
    last_session: u64,
    pub(super) time: u64,
}

impl Slow {
    pub(super) fn new(limits: ReplicatedLimits, page_bytes_max: u64) -> Self {
        Self {
            limits,
            page_bytes_max,
            states: vec![State::new()],
            sequences: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            time: 0,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        Revision::new(self.states.len() as u64)
    }

    pub(super) fn apply(&mut self, index: LogIndex, proposal: &Proposal) -> Vec<Outcome> {
        self.time = self.time.max(proposal.stamp.millis());
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
            Command::OpenSession { ttl_millis } => {
                if self.sessions.len() as u64 >= self.limits.sessions_max {
                    return Outcome::SessionOpened(Err(TxnRefused::TooMany {
                        what: TooManyOf::Sessions,
                        limit: self.limits.sessions_max,
                    }));
                }
                self.last_session += 1;
                let id = SessionId::new(self.last_session);
                let session = Session {
                    ttl: *ttl_millis,
                    last: self.time,
                    answered_below: 1,
                    answers: BTreeMap::new(),
                };
                self.sessions.insert(id, session);
                Outcome::SessionOpened(Ok(id))
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
        found.answered_below = found.answered_below.max(answered_below.number());
        let below = found.answered_below;
        found.answers.retain(|sequence, _| *sequence >= below);
        let outcome = if sequence.number() < below {
            Outcome::Txn(Err(TxnRefused::SequenceForgotten {
                session: id,
                sequence,
            }))
        } else if let Some(first) = found.answers.get(&sequence.number()) {
            first.clone()
        } else if found.answers.len() as u64 >= self.limits.unanswered_max {
            Outcome::Txn(Err(TxnRefused::TooMany {
                what: TooManyOf::UnansweredWrites,
                limit: self.limits.unanswered_max,
            }))
        } else {
            let outcome = Outcome::Txn(self.txn(index, txn));
            found.answers.insert(sequence.number(), outcome.clone());
            outcome
        };
        self.sessions.insert(id, found);
        outcome
    }

    fn txn(&mut self, log_index: LogIndex, txn: &Txn) -> Result<TxnResponse, TxnRefused> {
        let before = self.states.last().unwrap().clone();
        let mut failed = Vec::new();
        for (index, condition) in txn.guard.conditions().enumerate() {
            if let Some(found) = fails(&before, condition) {
                let index = index as u32;
                failed.push(FailedCondition { index, found });
            }
        }
        let succeeded = holds(&before, &txn.guard);
        let mut run = Run {
            before: &before,
            now: before.clone(),
            revision: self.revision().next(),
            sequences: self.sequences.clone(),
            deleted: BTreeSet::new(),
            left: self.limits.response_bytes_max,
            limit: self.limits.response_bytes_max,
        };
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        let mut results = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            results.push(run.op(index as u32, op)?);
        }
        let (now, sequences) = (run.now, run.sequences);
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
    left: u64,
    limit: u64,
}

impl Run<'_> {
    fn spend(&mut self, op: u32, bytes: u64) -> Result<(), TxnRefused> {
        if bytes > self.left {
            return Err(TxnRefused::ResponseTooLarge {
                op,
                limit: self.limit,
            });
        }
        self.left -= bytes;
        Ok(())
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

    fn op(&mut self, op: u32, step: &Op) -> Result<OpResult, TxnRefused> {
        Ok(match step {
            Op::Put {
                key,
                value,
                mode,
                lease,
            } => {
                if let LeaseChange::Attach(lease) = lease {
                    return Err(TxnRefused::NoSuchLease { op, lease: *lease });
                }
                let existed = self.now.contains_key(key);
                if existed && *mode == PutMode::OnlyIfAbsent {
                    return Err(TxnRefused::KeyExists { op, key: key.clone() });
                }
                self.write(key, value.clone());
                OpResult::Put { existed }
            }
            Op::Delete { key } => OpResult::Deleted {
                count: u64::from(self.delete(key)),
            },
            Op::DeleteRange { range, limit } => {
                let keys: Vec<Key> = self
                    .now
                    .keys()
                    .filter(|k| range.contains(k.as_bytes()))
                    .cloned()
                    .collect();
                if keys.len() > *limit as usize {
                    return Err(TxnRefused::RangeTooLarge { op, limit: *limit });
                }
                for key in &keys {
                    self.delete(key);
                }
                OpResult::Deleted {
                    count: keys.len() as u64,
                }
            }
            Op::Get { key } => {
                let record = self.now.get(key).cloned();
                self.spend(op, record.as_ref().map_or(0, |r| size(key, &r.value)))?;
                OpResult::Get(record)
            }
            Op::Range(read) => {
                let (records, count, more) = range(&self.now, read, u64::MAX);
                let bytes = records.iter().map(|kv| size(&kv.key, &kv.record.value)).sum();
                self.spend(op, bytes)?;
                OpResult::Range { records, count, more }
            }
            Op::Add { key, delta } => {
                let found = self.number(op, key)?.unwrap_or(0);
                let number = found.checked_add(*delta).ok_or(TxnRefused::Overflow {
                    op,
                    found,
                    delta: *delta,
                })?;
                self.write(key, Bytes::copy_from_slice(&number.to_be_bytes()));
                OpResult::Number(number)
            }
            Op::Max { key, operand } => match self.number(op, key)? {
                Some(found) if found >= *operand => OpResult::Number(found),
                _ => {
                    self.write(key, Bytes::copy_from_slice(&operand.to_be_bytes()));
                    OpResult::Number(*operand)
                }
            },
            Op::PutSequence { prefix, value } => {
                let next = self.sequences.get(prefix).copied().unwrap_or(0) + 1;
                self.sequences.insert(prefix.clone(), next);
                let mut key = prefix.as_bytes().to_vec();
                key.extend(format!("{next:020}").bytes());
                let key = Key::new(key).unwrap();
                self.write(&key, value.clone());
                OpResult::Sequenced { key }
            }
        })
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

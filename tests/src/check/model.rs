//! The store's semantics a second time: slow, obvious, and written from the words of the guarantees, so that it
//! agrees with the product only where both are right.
//!
//! Plain ordered maps, every version of every key kept for ever. It shares the product's words (`kv::model`'s
//! values and their codec) and none of its machinery: guards are walked recursively, comparisons are written
//! out, a transaction works on a copy of what it touches.
//!
//! Always: [`Model::run`] changes nothing, [`Model::apply`] is the only thing that does; a refused transaction
//! leaves no trace; `keys` holds each version once, in the order of revisions.

mod bill;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use bill::{Bill, Shared, answer_bytes, counted, row_of_sequence, visited};
use bytes::Bytes;
use quorate_kv::machine::{Entry, EntryOutcome, Payload};
use quorate_kv::model::{
    self, Command, Compacted, Compare, Condition, FailedCondition, Found, Guard, GuardNode, Key, KeyRange,
    KeyTest, KeyValue, LeaseChange, LimitChange, LimitsSet, LogIndex, LogPosition, LogTime, Op, OpResult,
    Order, Outcome, Place, Proposal, PutMode, RangeExcess, RangeRead, RangeTest, ReadOp, ReadResult, Record,
    ReplicatedLimits, Revision, Sequence, SessionId, SessionOpened, SessionRef, TooManyOf, Txn, TxnRefused,
    TxnResponse, Work,
};

/// A page of a range read ends at so many bytes of answer, where a node is not told otherwise.
pub const PAGE_BYTES: u64 = 1 << 20;
/// A failed condition tells a value of at most so many bytes.
const FOUND_VALUE_BYTES: usize = 1 << 10;

/// A version of a key: what it became, by which revision. `None`: it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The revision.
    pub revision: Revision,
    /// The record, or nothing.
    pub record: Option<Record>,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Model {
    limits: ReplicatedLimits,
    limits_version: u64,
    page_bytes: u64,
    revision: Revision,
    oldest: Revision,
    log_time: LogTime,
    position: Option<LogPosition>,
    now: BTreeMap<Bytes, Record>,
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// The keys that each revision changed.
    changes: BTreeMap<Revision, Vec<Key>>,
    sequences: BTreeMap<Bytes, u64>,
    sessions: BTreeMap<SessionId, Session>,
}

#[derive(Debug, Clone)]
struct Session {
    ttl_millis: u64,
    used_at: LogTime,
    used_by: LogIndex,
    answered_below: Sequence,
    /// With their sizes.
    answers: BTreeMap<Sequence, (Outcome, u64)>,
}

/// How a transaction's outcome came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It ran.
    Ran,
    /// It had run before, and the first answer was given again.
    Remembered,
    /// Its session, or the want of one, kept it from running.
    Kept,
}

/// A transaction of an entry, and what became of it.
#[derive(Debug, Clone)]
pub struct Step {
    /// What was asked.
    pub txn: Txn,
    /// The session and the number that it came with.
    pub session: Option<SessionRef>,
    /// Whether it ran.
    pub how: How,
    /// The answer.
    pub outcome: Result<TxnResponse, TxnRefused>,
    /// Whether it made a revision.
    pub changed: bool,
}

/// What a transaction would do.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The answer.
    pub outcome: Result<TxnResponse, TxnRefused>,
    writes: BTreeMap<Bytes, Option<Record>>,
    sequences: BTreeMap<Bytes, u64>,
    /// What the transactions of its entry have used with it.
    shared: Shared,
}

impl Ran {
    /// What becomes of the keys that it changes; nothing where it is refused.
    pub fn changes(&self, model: &Model) -> BTreeMap<Key, Option<Record>> {
        let changes = self
            .writes
            .iter()
            .filter(|(key, record)| record.is_some() || model.now.contains_key(*key));
        let key = |key: &Bytes| Key::new(key.clone()).expect("it was a key");
        changes
            .map(|(name, record)| (key(name), record.clone()))
            .collect()
    }
}

impl Default for Model {
    fn default() -> Self {
        Self::new(PAGE_BYTES)
    }
}

impl Model {
    /// An empty store, on nodes whose pages of a range end at so many bytes.
    pub fn new(page_bytes: u64) -> Self {
        Self {
            limits: ReplicatedLimits::default(),
            limits_version: 0,
            page_bytes,
            revision: Revision::FIRST,
            oldest: Revision::FIRST,
            log_time: LogTime::ZERO,
            position: None,
            now: BTreeMap::new(),
            keys: BTreeMap::new(),
            changes: BTreeMap::new(),
            sequences: BTreeMap::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// The store's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read.
    pub fn oldest(&self) -> Revision {
        self.oldest
    }

    /// The log's time.
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// The last entry.
    pub fn position(&self) -> Option<LogPosition> {
        self.position
    }

    /// The keys that a revision changed, in order; none for the first revision and for those to come.
    pub fn changed_by(&self, revision: Revision) -> &[Key] {
        self.changes.get(&revision).map_or(&[], Vec::as_slice)
    }

    /// Every version of a key, the oldest first.
    pub fn versions(&self, key: &Key) -> &[Version] {
        self.keys.get(key.as_bytes()).map_or(&[], Vec::as_slice)
    }

    /// The record of a key as of a revision.
    pub fn at(&self, key: &Key, revision: Revision) -> Option<&Record> {
        newest(self.versions(key), revision)
    }

    /// The first key of a range that is there now.
    pub fn first_within(&self, range: &KeyRange) -> Option<Key> {
        let (key, _) = within(&self.now, range).next()?;
        Some(Key::new(key.clone()).expect("it was a key"))
    }

    /// The next keys of a sequence.
    pub fn next_of(&self, prefix: &Key, count: u64) -> Vec<Key> {
        let last = self.sequences.get(prefix.as_bytes()).copied().unwrap_or(0);
        let numbers = (1..=count).map(|nth| last + nth);
        numbers.map(|number| sequenced(prefix, number)).collect()
    }

    /// All records of a range as of a revision, ascending. Goes through every key that ever was in it.
    pub fn range_at(&self, range: &KeyRange, revision: Revision) -> Vec<KeyValue> {
        let standing = self.standing(range, revision);
        standing.map(|(key, record)| pair(key, record)).collect()
    }

    fn standing(
        &self,
        range: &KeyRange,
        revision: Revision,
    ) -> impl DoubleEndedIterator<Item = (&Bytes, &Record)> {
        let inside = within(&self.keys, range);
        inside.filter_map(move |(key, versions)| Some((key, newest(versions, revision)?)))
    }

    /// What a read answers at a revision.
    pub fn read(&self, read: &ReadOp, at: Revision) -> ReadResult {
        match read {
            ReadOp::Get(key) => ReadResult::Get(self.at(key, at).cloned()),
            ReadOp::Range(read) => page(self.standing(&read.range, at), read, self.page_bytes).into(),
        }
    }

    /// The store as it stood, from its beginning on.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            model: self,
            at: Revision::new(0),
            standing: BTreeMap::new(),
        }
    }

    /// Applies an entry: its outcome, and each of its transactions. An entry that does not follow the last one
    /// or cannot be decoded is an error.
    pub fn apply(&mut self, entry: &Entry) -> Result<(EntryOutcome, Vec<Step>), String> {
        let index = entry.position.index;
        let expected = self.position.map(|last| last.index.next());
        if expected.is_some_and(|expected| index != expected) {
            return Err(format!("entry {index} follows {:?}", self.position));
        }
        let leader = |position: LogPosition| (position.term, position.leader);
        if self
            .position
            .is_some_and(|last| leader(entry.position) < leader(last))
        {
            return Err(format!(
                "the leader goes back from {:?} to {}",
                self.position, entry.position
            ));
        }
        self.position = Some(entry.position);
        let bytes = match &entry.payload {
            Payload::Blank => return Ok((EntryOutcome::Blank, Vec::new())),
            Payload::Membership(_) => return Ok((EntryOutcome::Membership, Vec::new())),
            Payload::Proposal(bytes) => bytes,
        };
        let proposal: Proposal =
            model::decode(bytes).map_err(|e| format!("entry {index} cannot be decoded: {e}"))?;
        if proposal.stamp > self.log_time {
            self.log_time = proposal.stamp;
        }
        let now = self.log_time;
        self.sessions
            .retain(|_, session| after(session.used_at, session.ttl_millis) >= now);
        let (mut outcomes, mut steps) = (Vec::new(), Vec::new());
        let mut shared = Shared::new(proposal.full_at);
        for command in proposal.commands {
            match command {
                Command::Txn { session, txn } => {
                    let step = self.step(index, session, txn, &mut shared);
                    outcomes.push(Outcome::Txn(step.outcome.clone()));
                    steps.push(step);
                }
                Command::OpenSession { id, ttl_millis } => {
                    outcomes.push(Outcome::SessionOpened(self.open(id, ttl_millis, index)))
                }
                Command::SetLimits { expected, changes } => {
                    outcomes.push(Outcome::LimitsSet(self.set_limits(expected, &changes)));
                }
                Command::Compact { revision } => {
                    if revision <= self.revision() {
                        self.oldest = self.oldest.max(revision);
                    }
                    outcomes.push(Outcome::Compacted(Compacted {
                        oldest: self.oldest,
                        revision: self.revision(),
                    }));
                }
                Command::CloseSession { session } => {
                    self.sessions.remove(&session);
                    outcomes.push(Outcome::SessionClosed);
                }
            }
        }
        Ok((EntryOutcome::Proposal(outcomes), steps))
    }

    fn set_limits(&mut self, expected: Option<u64>, changes: &[LimitChange]) -> LimitsSet {
        let mut changed = false;
        if !changes.is_empty()
            && expected.unwrap_or(self.limits_version) == self.limits_version
            && let Ok(limits) = self.limits.with(changes)
        {
            self.limits = limits;
            self.limits_version += 1;
            changed = true;
        }
        LimitsSet {
            changed,
            version: self.limits_version,
            limits: self.limits,
        }
    }

    fn open(
        &mut self,
        mut id: SessionId,
        ttl_millis: u64,
        index: LogIndex,
    ) -> Result<SessionOpened, TxnRefused> {
        let limit = self.limits.sessions_max;
        while self.sessions.len() as u64 >= limit {
            let used = |(id, session): &(&SessionId, &Session)| (session.used_by, **id);
            let oldest = self.sessions.iter().min_by_key(used);
            let (id, session) = oldest.expect("there are as many as may be");
            if !self.is_idle(session, index) {
                let what = TooManyOf::Sessions;
                return Err(TxnRefused::TooMany { what, limit });
            }
            let id = *id;
            self.sessions.remove(&id);
        }
        while self.sessions.contains_key(&id) {
            id = SessionId::new(id.number().wrapping_add(1));
        }
        let ttl_millis = ttl_millis.min(self.limits.session_ttl_millis_max);
        let session = Session {
            ttl_millis,
            used_at: self.log_time,
            used_by: index,
            answered_below: Sequence::FIRST,
            answers: BTreeMap::new(),
        };
        self.sessions.insert(id, session);
        Ok(SessionOpened {
            session: id,
            ttl_millis,
        })
    }

    fn is_idle(&self, session: &Session, index: LogIndex) -> bool {
        let waited = self.log_time.millis() - session.used_at.millis();
        let entries = index.number() - session.used_by.number();
        // Where time stands still entries count.
        waited >= self.limits.session_idle_millis
            || (waited == 0 && entries >= self.limits.session_idle_entries)
    }

    fn step(&mut self, index: LogIndex, session: Option<SessionRef>, txn: Txn, shared: &mut Shared) -> Step {
        let before = self.revision;
        let (how, outcome) = match session {
            None => (How::Ran, self.run_in(&txn, index, shared)),
            Some(reference) => match self.remembered(reference, index, shared) {
                Some((how, outcome)) => (how, outcome),
                None => (How::Ran, self.run_for_session(reference, &txn, index, shared)),
            },
        };
        let how = match &outcome {
            Err(refused) if refused.is_retryable() => How::Kept,
            _ => how,
        };
        Step {
            txn,
            session,
            how,
            outcome,
            changed: self.revision != before,
        }
    }

    /// Runs a session's write, if there is room for its answer.
    fn run_for_session(
        &mut self,
        reference: SessionRef,
        txn: &Txn,
        index: LogIndex,
        shared: &mut Shared,
    ) -> Result<TxnResponse, TxnRefused> {
        let max = self.limits.unanswered_bytes_max;
        let held = |model: &Self| -> u64 {
            let session = &model.sessions[&reference.id];
            session.answers.values().map(|(_, size)| size).sum()
        };
        let mut ran = self.run_with(txn, index, *shared);
        *shared = ran.shared;
        if ran.outcome.as_ref().is_err_and(TxnRefused::is_retryable) {
            return ran.outcome;
        }
        let size = |outcome: &Result<TxnResponse, TxnRefused>| {
            model::encode(&Outcome::Txn(outcome.clone())).len() as u64
        };
        let whole = size(&ran.outcome);
        if whole > max {
            ran.outcome = Err(TxnRefused::AnswerTooLarge {
                size: whole,
                limit: max,
            });
        }
        let bytes = size(&ran.outcome);
        if held(self) + bytes > max {
            let what = TooManyOf::UnansweredBytes;
            return Err(TxnRefused::TooMany { what, limit: max });
        }
        let outcome = self.keep(ran);
        if let Some(session) = self.sessions.get_mut(&reference.id) {
            let answer = Outcome::Txn(outcome.clone());
            session.answers.insert(reference.sequence, (answer, bytes));
        }
        outcome
    }

    /// What keeps a session's write from running, if anything does.
    fn remembered(
        &mut self,
        reference: SessionRef,
        index: LogIndex,
        shared: &mut Shared,
    ) -> Option<(How, Result<TxnResponse, TxnRefused>)> {
        let SessionRef {
            id,
            sequence,
            answered_below,
        } = reference;
        let (now, limit) = (self.log_time, self.limits.unanswered_max);
        let again_max = self
            .limits
            .unanswered_bytes_max
            .saturating_mul(self.limits.entry_budget);
        let kept = |refused| Some((How::Kept, Err(refused)));
        let Some(session) = self.sessions.get_mut(&id) else {
            return kept(TxnRefused::SessionExpired { session: id });
        };
        session.used_at = now;
        session.used_by = index;
        if answered_below > session.answered_below {
            session.answered_below = answered_below;
            session.answers.retain(|number, _| *number >= answered_below);
        }
        if sequence < session.answered_below {
            return kept(TxnRefused::SequenceForgotten {
                session: id,
                sequence,
            });
        }
        match session.answers.get(&sequence) {
            Some((Outcome::Txn(first), size)) => {
                let given = shared.given_again;
                if given > 0 && given + size > again_max {
                    let what = Work::AnswerBytes;
                    return kept(TxnRefused::EntrySpent { what });
                }
                shared.given_again += size;
                Some((How::Remembered, first.clone()))
            }
            Some((
                Outcome::SessionOpened(_)
                | Outcome::SessionClosed
                | Outcome::LimitsSet(_)
                | Outcome::Compacted(_),
                _,
            ))
            | None => {
                if session.answers.len() as u64 >= limit {
                    let what = TooManyOf::UnansweredWrites;
                    return kept(TxnRefused::TooMany { what, limit });
                }
                None
            }
        }
    }

    /// Runs a transaction that has an entry to itself, and keeps what it did.
    pub fn run_now(&mut self, txn: &Txn, index: LogIndex) -> Result<TxnResponse, TxnRefused> {
        self.run_in(txn, index, &mut Shared::default())
    }

    /// The same of one that shares its entry.
    fn run_in(&mut self, txn: &Txn, index: LogIndex, shared: &mut Shared) -> Result<TxnResponse, TxnRefused> {
        let ran = self.run_with(txn, index, *shared);
        *shared = ran.shared;
        self.keep(ran)
    }

    /// Keeps what a transaction did.
    fn keep(&mut self, ran: Ran) -> Result<TxnResponse, TxnRefused> {
        let Ok(response) = &ran.outcome else {
            return ran.outcome;
        };
        self.sequences.extend(ran.sequences);
        if response.revision != self.revision {
            self.revision = response.revision;
            for (key, record) in ran.writes {
                if record.is_none() && !self.now.contains_key(&key) {
                    continue;
                }
                match &record {
                    Some(record) => self.now.insert(key.clone(), record.clone()),
                    None => self.now.remove(&key),
                };
                let changed = Key::new(key.clone()).expect("it was a key");
                self.changes.entry(self.revision).or_default().push(changed);
                let revision = self.revision;
                self.keys
                    .entry(key)
                    .or_default()
                    .push(Version { revision, record });
            }
        }
        ran.outcome
    }

    /// What a transaction that has an entry to itself would do now.
    pub fn run(&self, txn: &Txn, index: LogIndex) -> Ran {
        self.run_with(txn, index, Shared::default())
    }

    fn run_with(&self, txn: &Txn, index: LogIndex, shared: Shared) -> Ran {
        let mut bill = Bill::new(self.limits, shared);
        let mut failed = Vec::new();
        let refused = |refused, shared| Ran {
            outcome: Err(refused),
            writes: BTreeMap::new(),
            sequences: BTreeMap::new(),
            shared,
        };
        let succeeded = match self.guard_holds(&txn.guard, &mut failed, &mut bill) {
            Ok(succeeded) => succeeded,
            Err(stopped) => return refused(stopped, bill.shared),
        };
        if succeeded {
            failed.clear();
        }
        let mut attempt = Attempt {
            model: self,
            revision: self.revision.next(),
            writes: BTreeMap::new(),
            sequences: BTreeMap::new(),
            bill,
        };
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let mut results = Vec::new();
        for (number, op) in branch.iter().enumerate() {
            let place = match succeeded {
                true => Place::Then(number),
                false => Place::Otherwise(number),
            };
            match attempt.op(number as u32, place, op) {
                Ok(result) => results.push(result),
                Err(stopped) => return refused(stopped, attempt.bill.shared),
            }
        }
        let shared = attempt.bill.shared;
        let Attempt {
            writes, sequences, ..
        } = attempt;
        if let Err(stopped) = self.finds_room(&writes, &sequences, shared) {
            return refused(stopped, shared);
        }
        let changes =
            |(key, record): (&Bytes, &Option<Record>)| record.is_some() || self.now.contains_key(key);
        let changed = writes.iter().any(changes);
        let response = TxnResponse {
            revision: if changed {
                self.revision.next()
            } else {
                self.revision
            },
            log_index: index,
            succeeded,
            failed,
            results,
        };
        Ran {
            outcome: Ok(response),
            writes,
            sequences,
            shared,
        }
    }

    /// A store that is nearly full takes what leaves it as large as it is; a key that was there may grow a little.
    fn finds_room(
        &self,
        writes: &BTreeMap<Bytes, Option<Record>>,
        sequences: &BTreeMap<Bytes, u64>,
        shared: Shared,
    ) -> Result<(), TxnRefused> {
        /// Of a key that was there before and is there after it.
        const GROWTH_MAX: u64 = 64;
        let limit = self.limits.store_bytes_max;
        let Some(used) = shared.full_at.filter(|_| limit > 0) else {
            return Ok(());
        };
        let (mut before, mut after, mut allowed) = (0, 0, 0);
        for prefix in sequences
            .keys()
            .filter(|prefix| !self.sequences.contains_key(*prefix))
        {
            after += row_of_sequence(prefix);
        }
        for (key, record) in writes {
            let was = self.now.get(key);
            before += was.map_or(0, |was| counted(key, was));
            after += record.as_ref().map_or(0, |record| counted(key, record));
            if was.is_some() && record.is_some() {
                allowed += GROWTH_MAX;
            }
        }
        let no_space = |wanted| Err(TxnRefused::NoSpace { used, limit, wanted });
        // What was there stays as history.
        if after > 0 && used + after > limit {
            return no_space(after);
        }
        match used * 5 >= limit * 4 && after > before + allowed {
            true => no_space(after - before),
            false => Ok(()),
        }
    }

    fn guard_holds(
        &self,
        guard: &Guard,
        failed: &mut Vec<FailedCondition>,
        bill: &mut Bill,
    ) -> Result<bool, TxnRefused> {
        let mut nodes = guard.nodes().iter();
        let mut next = 0;
        // A guard without nodes always holds.
        Ok(nodes.len() == 0 || self.node_holds(&mut nodes, &mut next, failed, bill)?)
    }

    /// Every condition is looked at, also where the answer is clear already: all that failed are told.
    fn node_holds(
        &self,
        nodes: &mut std::slice::Iter<'_, GuardNode>,
        next: &mut u32,
        failed: &mut Vec<FailedCondition>,
        bill: &mut Bill,
    ) -> Result<bool, TxnRefused> {
        match nodes.next() {
            None => Ok(false),
            Some(GuardNode::All(count)) => {
                let mut holds = true;
                for _ in 0..*count {
                    holds &= self.node_holds(nodes, next, failed, bill)?;
                }
                Ok(holds)
            }
            Some(GuardNode::Any(count)) => {
                let mut holds = false;
                for _ in 0..*count {
                    holds |= self.node_holds(nodes, next, failed, bill)?;
                }
                Ok(holds)
            }
            Some(GuardNode::Not) => Ok(!self.node_holds(nodes, next, failed, bill)?),
            Some(GuardNode::Condition(condition)) => {
                let index = *next;
                *next += 1;
                let place = Place::Condition(index as usize);
                self.pay(condition, place, bill)?;
                let Some(found) = self.spoils(condition) else {
                    return Ok(true);
                };
                if failed.len() < TxnResponse::FAILED_MAX {
                    let told = match &found {
                        Found::Record { value, .. } => value.as_ref().map_or(0, Bytes::len),
                        Found::Key(key) => key.len(),
                        Found::Missing | Found::Count(_) | Found::None => 0,
                    };
                    let what = Work::AnswerBytes;
                    bill.answer(told as u64, |limit| TxnRefused::TooMuchWork {
                        place,
                        what,
                        limit,
                    })?;
                    failed.push(FailedCondition { index, found });
                }
                Ok(false)
            }
        }
    }

    /// What a condition costs.
    fn pay(&self, condition: &Condition, place: Place, bill: &mut Bill) -> Result<(), TxnRefused> {
        let is_of_value = |test: &KeyTest| matches!(test, KeyTest::Value(..));
        match condition {
            Condition::Key { key, test } => {
                bill.named(place)?;
                if is_of_value(test) {
                    bill.value(place, self.now.get(key.as_bytes()))?;
                }
                Ok(())
            }
            Condition::Range { range, test } => {
                let inside = within(&self.now, range);
                match test {
                    RangeTest::Any(test) => {
                        let passing = inside.clone().position(|(_, record)| passes(Some(record), test));
                        let visited = passing.map_or(usize::MAX, |at| at + 1);
                        bill.range(place, inside.take(visited), is_of_value(test))
                    }
                    RangeTest::All(test) => {
                        let spoiling = inside.clone().position(|(_, record)| !passes(Some(record), test));
                        let visited = spoiling.map_or(usize::MAX, |at| at + 1);
                        bill.range(place, inside.take(visited), is_of_value(test))
                    }
                    RangeTest::Count(_, operand) => {
                        let enough = usize::try_from(*operand).unwrap_or(usize::MAX).saturating_add(1);
                        bill.range(place, inside.take(enough), false)
                    }
                }
            }
        }
    }

    /// What speaks against a condition.
    fn spoils(&self, condition: &Condition) -> Option<Found> {
        match condition {
            Condition::Key { key, test } => {
                let record = self.now.get(key.as_bytes());
                if passes(record, test) {
                    return None;
                }
                Some(match record {
                    None => Found::Missing,
                    Some(record) => Found::Record {
                        value: (matches!(test, KeyTest::Value(..))
                            && record.value.len() <= FOUND_VALUE_BYTES)
                            .then(|| record.value.clone()),
                        create_revision: record.create_revision,
                        mod_revision: record.mod_revision,
                        version: record.version,
                        lease: record.lease,
                    },
                })
            }
            Condition::Range { range, test } => {
                let inside: Vec<_> = within(&self.now, range).collect();
                match test {
                    RangeTest::Any(test) => {
                        let any = inside.iter().any(|(_, record)| passes(Some(record), test));
                        if any { None } else { Some(Found::None) }
                    }
                    RangeTest::All(test) => {
                        let spoiler = inside.iter().find(|(_, record)| !passes(Some(record), test));
                        spoiler.map(|(key, _)| Found::Key(Key::new((*key).clone()).expect("it was a key")))
                    }
                    RangeTest::Count(compare, operand) => {
                        let count = inside.len() as u64;
                        // Counting stops where the answer is certain: one above the operand.
                        let told = count.min(operand.saturating_add(1));
                        (!compares(*compare, &count, operand)).then_some(Found::Count(told))
                    }
                }
            }
        }
    }
}

fn sequenced(prefix: &Key, number: u64) -> Key {
    let key = [prefix.as_bytes(), format!("{number:020}").as_bytes()].concat();
    Key::new(key).expect("the gate leaves room for the digits")
}

fn after(time: LogTime, millis: u64) -> LogTime {
    LogTime::from_millis(time.millis().saturating_add(millis))
}

fn newest(versions: &[Version], revision: Revision) -> Option<&Record> {
    let older = versions.partition_point(|version| version.revision <= revision);
    versions[..older].last()?.record.as_ref()
}

pub(super) fn within<'m, T>(
    map: &'m BTreeMap<Bytes, T>,
    range: &KeyRange,
) -> impl DoubleEndedIterator<Item = (&'m Bytes, &'m T)> + Clone {
    let end = match range.end() {
        // A range that ends before it starts holds nothing.
        Some(end) => Bound::Excluded(end.max(range.start())),
        None => Bound::Unbounded,
    };
    map.range::<[u8], _>((Bound::Included(range.start()), end))
}

fn owned((key, record): (&Bytes, &Record)) -> (Bytes, Record) {
    (key.clone(), record.clone())
}

fn borrowed((key, record): &(Bytes, Record)) -> (&Bytes, &Record) {
    (key, record)
}

fn pair(key: &Bytes, record: &Record) -> KeyValue {
    KeyValue {
        key: Key::new(key.clone()).expect("it was a key"),
        record: record.clone(),
    }
}

fn compares<T: Ord + ?Sized>(compare: Compare, found: &T, operand: &T) -> bool {
    use Compare as C;
    match found.cmp(operand) {
        Ordering::Less => matches!(compare, C::Less | C::LessOrEqual | C::NotEqual),
        Ordering::Equal => matches!(compare, C::Equal | C::LessOrEqual | C::GreaterOrEqual),
        Ordering::Greater => matches!(compare, C::Greater | C::GreaterOrEqual | C::NotEqual),
    }
}

fn passes(record: Option<&Record>, test: &KeyTest) -> bool {
    match (test, record) {
        (KeyTest::Value(compare, value), Some(record)) => compares(*compare, &record.value[..], &value[..]),
        (KeyTest::Value(compare, _), None) => *compare == Compare::NotEqual,
        (KeyTest::Version(compare, version), record) => {
            compares(*compare, &record.map_or(0, |record| record.version), version)
        }
        (KeyTest::CreateRevision(compare, revision), record) => {
            compares(*compare, &record.map(|record| record.create_revision), revision)
        }
        (KeyTest::ModRevision(compare, revision), record) => {
            compares(*compare, &record.map(|record| record.mod_revision), revision)
        }
        (KeyTest::Lease(compare, lease), record) => {
            compares(*compare, &record.and_then(|record| record.lease), lease)
        }
        (KeyTest::Exists(exists), record) => *exists == record.is_some(),
    }
}

#[derive(Debug)]
struct Page {
    records: Vec<KeyValue>,
    count: u64,
    more: bool,
    bytes: u64,
}

impl From<Page> for ReadResult {
    fn from(page: Page) -> Self {
        let Page {
            records, count, more, ..
        } = page;
        ReadResult::Range { records, count, more }
    }
}

/// Cuts the records of a range, which come ascending, to what was asked for.
fn page<'r>(
    found: impl DoubleEndedIterator<Item = (&'r Bytes, &'r Record)>,
    read: &RangeRead,
    bytes_max: u64,
) -> Page {
    let mut page = Page {
        records: Vec::new(),
        count: 0,
        more: false,
        bytes: 0,
    };
    if read.count_only {
        page.count = found.count() as u64;
        return page;
    }
    let found: Box<dyn Iterator<Item = _>> = match read.order {
        Order::Ascending => Box::new(found),
        Order::Descending => Box::new(found.rev()),
    };
    for (key, record) in found {
        let mut one = pair(key, record);
        if read.keys_only {
            one.record.value = Bytes::new();
        }
        let size = answer_bytes(&one.key, &one.record);
        let full = page.count > 0 && page.bytes + size > bytes_max;
        if full || page.count == u64::from(read.limit) {
            page.more = true;
            break;
        }
        page.bytes += size;
        page.count += 1;
        page.records.push(one);
    }
    page
}

/// The store at one revision after another: a range costs what stood in it, and not what ever was there.
///
/// Always: `standing` is what [`Model::at`] says of every key at the revision `at`.
#[derive(Debug, Clone)]
pub struct Walk<'m> {
    model: &'m Model,
    at: Revision,
    standing: BTreeMap<Bytes, &'m Record>,
}

impl Walk<'_> {
    /// What a read answers at a revision, which is that of the last read or a later one.
    ///
    /// # Panics
    /// For an earlier revision.
    pub fn read(&mut self, read: &ReadOp, at: Revision) -> ReadResult {
        self.advance(at);
        match read {
            // A key's versions are found without the walk.
            ReadOp::Get(_) => self.model.read(read, at),
            ReadOp::Range(read) => {
                let standing = within(&self.standing, &read.range);
                page(
                    standing.map(|(key, record)| (key, *record)),
                    read,
                    self.model.page_bytes,
                )
                .into()
            }
        }
    }

    fn advance(&mut self, to: Revision) {
        assert!(self.at <= to, "a walk goes back from {} to {to}", self.at);
        let since = (Bound::Excluded(self.at), Bound::Included(to));
        for (revision, changed) in self.model.changes.range(since) {
            for key in changed {
                let name = Bytes::from(key.clone());
                match self.model.at(key, *revision) {
                    Some(record) => self.standing.insert(name, record),
                    None => self.standing.remove(&name),
                };
            }
        }
        self.at = to;
    }
}

/// A branch that runs, on a copy of what it touches.
struct Attempt<'m> {
    model: &'m Model,
    revision: Revision,
    writes: BTreeMap<Bytes, Option<Record>>,
    sequences: BTreeMap<Bytes, u64>,
    bill: Bill,
}

impl Attempt<'_> {
    fn get(&self, key: &Key) -> Option<Record> {
        match self.writes.get(key.as_bytes()) {
            Some(own) => own.clone(),
            None => self.model.now.get(key.as_bytes()).cloned(),
        }
    }

    fn range(&self, range: &KeyRange) -> BTreeMap<&Bytes, &Record> {
        let mut seen: BTreeMap<&Bytes, Option<&Record>> = BTreeMap::new();
        seen.extend(within(&self.model.now, range).map(|(key, record)| (key, Some(record))));
        seen.extend(within(&self.writes, range).map(|(key, record)| (key, record.as_ref())));
        let standing = seen.into_iter().filter_map(|(key, record)| Some((key, record?)));
        standing.collect()
    }

    fn write(&mut self, key: &Key, value: Bytes, keep_lease: bool) {
        let old = self.get(key);
        let (create_revision, version) = match &old {
            None => (self.revision, 1),
            // Several writes of one transaction are one change.
            Some(own) if own.mod_revision == self.revision => (own.create_revision, own.version),
            Some(old) => (old.create_revision, old.version + 1),
        };
        let record = Record {
            value,
            create_revision,
            mod_revision: self.revision,
            version,
            lease: old.filter(|_| keep_lease).and_then(|old| old.lease),
        };
        self.writes.insert(Bytes::from(key.clone()), Some(record));
    }

    fn erase(&mut self, key: &Key) {
        self.writes.insert(Bytes::from(key.clone()), None);
    }

    fn number(&self, op: u32, key: &Key) -> Result<Option<i64>, TxnRefused> {
        let Some(record) = self.get(key) else {
            return Ok(None);
        };
        let bytes: Result<[u8; 8], _> = record.value[..].try_into();
        bytes
            .map(|bytes| Some(i64::from_be_bytes(bytes)))
            .map_err(|_| TxnRefused::NotANumber {
                op,
                key: key.clone(),
                size: record.value.len() as u64,
            })
    }

    fn answer(&mut self, op: u32, bytes: u64) -> Result<(), TxnRefused> {
        self.bill
            .answer(bytes, |limit| TxnRefused::ResponseTooLarge { op, limit })
    }

    /// Changes a key that the transaction names.
    fn change(&mut self, place: Place, key: &Key) -> Result<(), TxnRefused> {
        self.bill.change(place, &Bytes::from(key.clone())).map(drop)
    }

    fn op(&mut self, number: u32, place: Place, op: &Op) -> Result<OpResult, TxnRefused> {
        match op {
            Op::Put {
                key,
                value,
                mode,
                lease,
            } => {
                self.bill.named(place)?;
                if let LeaseChange::Attach(lease) = *lease {
                    // There are no leases yet.
                    return Err(TxnRefused::NoSuchLease { op: number, lease });
                }
                let existed = self.get(key).is_some();
                if existed && *mode == PutMode::OnlyIfAbsent {
                    let key = key.clone();
                    return Err(TxnRefused::KeyExists { op: number, key });
                }
                self.change(place, key)?;
                self.write(key, value.clone(), *lease == LeaseChange::Keep);
                Ok(OpResult::Put { existed })
            }
            Op::Delete { key } => {
                self.bill.named(place)?;
                let existed = self.get(key).is_some();
                if existed {
                    self.change(place, key)?;
                    self.erase(key);
                }
                let (count, more) = (u64::from(existed), false);
                Ok(OpResult::Deleted { count, more })
            }
            Op::DeleteRange { range, limit, excess } => {
                let limit = *limit;
                let at_most = limit as usize;
                let inside = self.range(range);
                let more = inside.len() > at_most;
                let found: Vec<Bytes> = inside.keys().take(at_most).map(|key| (*key).clone()).collect();
                let visited = inside.into_iter().take(at_most.saturating_add(1));
                let visited: Vec<(Bytes, Record)> = visited.map(owned).collect();
                self.bill.range(place, visited.iter().map(borrowed), false)?;
                if more && *excess == RangeExcess::Refuse {
                    return Err(TxnRefused::RangeTooLarge { op: number, limit });
                }
                let count = found.len() as u64;
                for key in found {
                    self.bill.change_in_range(place, &key)?;
                    self.writes.insert(key, None);
                }
                Ok(OpResult::Deleted { count, more })
            }
            Op::Get { key } => {
                let record = self.get(key);
                self.bill.named(place)?;
                self.bill.value(place, record.as_ref())?;
                self.answer(number, record.as_ref().map_or(0, |r| answer_bytes(key, r)))?;
                Ok(OpResult::Get(record))
            }
            Op::Range(read) => {
                let inside = self.range(&read.range);
                let visited = visited(&inside, read, self.bill.answer_left()).into_iter();
                let visited: Vec<(Bytes, Record)> = visited.map(owned).collect();
                let page = page(inside.into_iter(), read, u64::MAX);
                let with_values = !read.keys_only && !read.count_only;
                self.bill
                    .range(place, visited.iter().map(borrowed), with_values)?;
                self.answer(number, page.bytes)?;
                let (records, count, more) = (page.records, page.count, page.more);
                Ok(OpResult::Range { records, count, more })
            }
            Op::Add { key, delta } => {
                self.look_at_value(place, key)?;
                let found = self.number(number, key)?.unwrap_or(0);
                let (op, delta) = (number, *delta);
                let sum = found.checked_add(delta);
                let sum = sum.ok_or(TxnRefused::Overflow { op, found, delta })?;
                self.change(place, key)?;
                self.write(key, Bytes::copy_from_slice(&sum.to_be_bytes()), true);
                Ok(OpResult::Number(sum))
            }
            Op::Max { key, operand } => {
                self.look_at_value(place, key)?;
                match self.number(number, key)? {
                    Some(found) if found >= *operand => Ok(OpResult::Number(found)),
                    Some(_) | None => {
                        self.change(place, key)?;
                        self.write(key, Bytes::copy_from_slice(&operand.to_be_bytes()), true);
                        Ok(OpResult::Number(*operand))
                    }
                }
            }
            Op::PutSequence { prefix, value } => {
                self.bill.named(place)?;
                let prefix_bytes = Bytes::from(prefix.clone());
                let own = self.sequences.get(&prefix_bytes);
                let last = own.or_else(|| self.model.sequences.get(&prefix_bytes));
                let next = last.map_or(1, |last| last + 1);
                self.sequences.insert(prefix_bytes, next);
                let key = sequenced(prefix, next);
                self.change(place, &key)?;
                self.write(&key, value.clone(), false);
                Ok(OpResult::Sequenced { key })
            }
        }
    }

    fn look_at_value(&mut self, place: Place, key: &Key) -> Result<(), TxnRefused> {
        let record = self.get(key);
        self.bill.named(place)?;
        self.bill.value(place, record.as_ref())
    }
}

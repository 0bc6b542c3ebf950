//! The store's semantics a second time: slow, obvious, and written from the words of the guarantees, so that it
//! agrees with the product only where both are right.
//!
//! Plain ordered maps, every version of every key kept for ever. It shares the product's words (`kv::model`'s
//! values and their codec) and none of its machinery: guards are walked recursively, comparisons are written
//! out, a transaction works on a copy of what it touches.
//!
//! Always: [`Model::run`] changes nothing, [`Model::apply`] is the only thing that does; a refused transaction
//! leaves no trace; `keys` holds each version once, in the order of revisions.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use quorate_kv::machine::{Entry, EntryOutcome, MachineSettings, Payload};
use quorate_kv::model::{
    self, Command, Compare, Condition, FailedCondition, Found, Guard, GuardNode, Key, KeyRange, KeyTest,
    KeyValue, LeaseChange, LogIndex, LogPosition, LogTime, Op, OpResult, Order, Outcome, Proposal, PutMode,
    RangeRead, RangeTest, ReadOp, ReadResult, Record, Revision, Sequence, SessionId, SessionRef, TooManyOf,
    Txn, TxnRefused, TxnResponse,
};

/// A page of a range read ends at so many bytes of answer.
const PAGE_BYTES: usize = 1 << 20;
/// What a record takes in an answer beside its key and its value.
const RECORD_BYTES: usize = 64;
/// A failed condition tells a value of at most so many bytes.
const FOUND_VALUE_BYTES: usize = 1 << 10;

/// The limits that decide an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most sessions.
    pub sessions: u64,
    /// The most remembered answers of one session.
    pub unanswered: u64,
    /// The most bytes that one transaction reads.
    pub response_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let settings = MachineSettings::default();
        Self {
            sessions: settings.sessions_max,
            unanswered: settings.unanswered_max,
            response_bytes: settings.response_bytes_max,
        }
    }
}

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
    limits: Limits,
    revision: Revision,
    log_time: LogTime,
    position: Option<LogPosition>,
    now: BTreeMap<Bytes, Record>,
    keys: BTreeMap<Bytes, Vec<Version>>,
    /// The keys that each revision changed.
    changes: BTreeMap<Revision, Vec<Key>>,
    sequences: BTreeMap<Bytes, u64>,
    sessions: BTreeMap<SessionId, Session>,
    sessions_opened: u64,
}

#[derive(Debug, Clone)]
struct Session {
    ttl_millis: u64,
    deadline: LogTime,
    answered_below: Sequence,
    answers: BTreeMap<Sequence, Outcome>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// The answer.
    pub outcome: Result<TxnResponse, TxnRefused>,
    writes: BTreeMap<Bytes, Option<Record>>,
    sequences: BTreeMap<Bytes, u64>,
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
        Self::new(Limits::default())
    }
}

impl Model {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            revision: Revision::FIRST,
            log_time: LogTime::ZERO,
            position: None,
            now: BTreeMap::new(),
            keys: BTreeMap::new(),
            changes: BTreeMap::new(),
            sequences: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sessions_opened: 0,
        }
    }

    /// The store's revision.
    pub fn revision(&self) -> Revision {
        self.revision
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
            ReadOp::Range(read) => page(self.standing(&read.range, at), read, PAGE_BYTES).into(),
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
        self.sessions.retain(|_, session| session.deadline >= now);
        let (mut outcomes, mut steps) = (Vec::new(), Vec::new());
        for command in proposal.commands {
            match command {
                Command::Txn { session, txn } => {
                    let step = self.step(index, session, txn);
                    outcomes.push(Outcome::Txn(step.outcome.clone()));
                    steps.push(step);
                }
                Command::OpenSession { ttl_millis } => {
                    outcomes.push(Outcome::SessionOpened(self.open(ttl_millis)))
                }
                Command::CloseSession { session } => {
                    self.sessions.remove(&session);
                    outcomes.push(Outcome::SessionClosed);
                }
            }
        }
        Ok((EntryOutcome::Proposal(outcomes), steps))
    }

    fn open(&mut self, ttl_millis: u64) -> Result<SessionId, TxnRefused> {
        if self.sessions.len() as u64 >= self.limits.sessions {
            return Err(TxnRefused::TooMany {
                what: TooManyOf::Sessions,
                limit: self.limits.sessions,
            });
        }
        self.sessions_opened += 1;
        let id = SessionId::new(self.sessions_opened);
        let session = Session {
            ttl_millis,
            deadline: after(self.log_time, ttl_millis),
            answered_below: Sequence::FIRST,
            answers: BTreeMap::new(),
        };
        self.sessions.insert(id, session);
        Ok(id)
    }

    fn step(&mut self, index: LogIndex, session: Option<SessionRef>, txn: Txn) -> Step {
        let before = self.revision;
        let (how, outcome) = match session {
            None => (How::Ran, self.run_now(&txn, index)),
            Some(reference) => match self.remembered(reference) {
                Some((how, outcome)) => (how, outcome),
                None => {
                    let outcome = self.run_now(&txn, index);
                    if let Some(session) = self.sessions.get_mut(&reference.id) {
                        let answer = Outcome::Txn(outcome.clone());
                        session.answers.insert(reference.sequence, answer);
                    }
                    (How::Ran, outcome)
                }
            },
        };
        Step {
            txn,
            session,
            how,
            outcome,
            changed: self.revision != before,
        }
    }

    /// What keeps a session's write from running, if anything does.
    fn remembered(&mut self, reference: SessionRef) -> Option<(How, Result<TxnResponse, TxnRefused>)> {
        let SessionRef {
            id,
            sequence,
            answered_below,
        } = reference;
        let (now, limit) = (self.log_time, self.limits.unanswered);
        let kept = |refused| Some((How::Kept, Err(refused)));
        let Some(session) = self.sessions.get_mut(&id) else {
            return kept(TxnRefused::SessionExpired { session: id });
        };
        session.deadline = after(now, session.ttl_millis);
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
            Some(Outcome::Txn(first)) => Some((How::Remembered, first.clone())),
            Some(Outcome::SessionOpened(_) | Outcome::SessionClosed) | None => {
                if session.answers.len() as u64 >= limit {
                    let what = TooManyOf::UnansweredWrites;
                    return kept(TxnRefused::TooMany { what, limit });
                }
                None
            }
        }
    }

    /// Runs a transaction and keeps what it did.
    pub fn run_now(&mut self, txn: &Txn, index: LogIndex) -> Result<TxnResponse, TxnRefused> {
        let ran = self.run(txn, index);
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

    /// What a transaction would do now.
    pub fn run(&self, txn: &Txn, index: LogIndex) -> Ran {
        let mut failed = Vec::new();
        let succeeded = self.guard_holds(&txn.guard, &mut failed);
        if succeeded {
            failed.clear();
        }
        failed.truncate(TxnResponse::FAILED_MAX);
        let mut attempt = Attempt {
            model: self,
            revision: self.revision.next(),
            writes: BTreeMap::new(),
            sequences: BTreeMap::new(),
            read_bytes: 0,
        };
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let mut results = Vec::new();
        for (number, op) in (0..).zip(branch) {
            match attempt.op(number, op) {
                Ok(result) => results.push(result),
                Err(refused) => {
                    return Ran {
                        outcome: Err(refused),
                        writes: BTreeMap::new(),
                        sequences: BTreeMap::new(),
                    };
                }
            }
        }
        let Attempt {
            writes, sequences, ..
        } = attempt;
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
        }
    }

    fn guard_holds(&self, guard: &Guard, failed: &mut Vec<FailedCondition>) -> bool {
        let mut nodes = guard.nodes().iter();
        let mut next = 0;
        // A guard without nodes always holds.
        nodes.len() == 0 || self.node_holds(&mut nodes, &mut next, failed)
    }

    /// Every condition is looked at, also where the answer is clear already: all that failed are told.
    fn node_holds(
        &self,
        nodes: &mut std::slice::Iter<'_, GuardNode>,
        next: &mut u32,
        failed: &mut Vec<FailedCondition>,
    ) -> bool {
        match nodes.next() {
            None => false,
            Some(GuardNode::All(count)) => {
                let mut holds = true;
                for _ in 0..*count {
                    holds &= self.node_holds(nodes, next, failed);
                }
                holds
            }
            Some(GuardNode::Any(count)) => {
                let mut holds = false;
                for _ in 0..*count {
                    holds |= self.node_holds(nodes, next, failed);
                }
                holds
            }
            Some(GuardNode::Not) => !self.node_holds(nodes, next, failed),
            Some(GuardNode::Condition(condition)) => {
                let index = *next;
                *next += 1;
                match self.spoils(condition) {
                    None => true,
                    Some(found) => {
                        failed.push(FailedCondition { index, found });
                        false
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
) -> impl DoubleEndedIterator<Item = (&'m Bytes, &'m T)> {
    let end = match range.end() {
        // A range that ends before it starts holds nothing.
        Some(end) => Bound::Excluded(end.max(range.start())),
        None => Bound::Unbounded,
    };
    map.range::<[u8], _>((Bound::Included(range.start()), end))
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
    bytes: usize,
}

impl From<Page> for ReadResult {
    fn from(page: Page) -> Self {
        let Page {
            records, count, more, ..
        } = page;
        ReadResult::Range { records, count, more }
    }
}

fn answer_bytes(key: &Key, record: &Record) -> usize {
    key.len() + record.value.len() + RECORD_BYTES
}

/// Cuts the records of a range, which come ascending, to what was asked for.
fn page<'r>(
    found: impl DoubleEndedIterator<Item = (&'r Bytes, &'r Record)>,
    read: &RangeRead,
    bytes_max: usize,
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
                page(standing.map(|(key, record)| (key, *record)), read, PAGE_BYTES).into()
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
    read_bytes: u64,
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

    fn spend(&mut self, op: u32, bytes: usize) -> Result<(), TxnRefused> {
        self.read_bytes += bytes as u64;
        let limit = self.model.limits.response_bytes;
        if self.read_bytes > limit {
            return Err(TxnRefused::ResponseTooLarge { op, limit });
        }
        Ok(())
    }

    fn op(&mut self, number: u32, op: &Op) -> Result<OpResult, TxnRefused> {
        match op {
            Op::Put {
                key,
                value,
                mode,
                lease,
            } => {
                if let LeaseChange::Attach(lease) = *lease {
                    // There are no leases yet.
                    return Err(TxnRefused::NoSuchLease { op: number, lease });
                }
                let existed = self.get(key).is_some();
                if existed && *mode == PutMode::OnlyIfAbsent {
                    let key = key.clone();
                    return Err(TxnRefused::KeyExists { op: number, key });
                }
                self.write(key, value.clone(), *lease == LeaseChange::Keep);
                Ok(OpResult::Put { existed })
            }
            Op::Delete { key } => {
                let existed = self.get(key).is_some();
                self.erase(key);
                let count = u64::from(existed);
                Ok(OpResult::Deleted { count })
            }
            Op::DeleteRange { range, limit } => {
                let found: Vec<Bytes> = self.range(range).into_keys().cloned().collect();
                let (count, limit) = (found.len() as u64, *limit);
                if count > u64::from(limit) {
                    return Err(TxnRefused::RangeTooLarge { op: number, limit });
                }
                self.writes.extend(found.into_iter().map(|key| (key, None)));
                Ok(OpResult::Deleted { count })
            }
            Op::Get { key } => {
                let record = self.get(key);
                self.spend(number, record.as_ref().map_or(0, |r| answer_bytes(key, r)))?;
                Ok(OpResult::Get(record))
            }
            Op::Range(read) => {
                let page = page(self.range(&read.range).into_iter(), read, usize::MAX);
                self.spend(number, page.bytes)?;
                let (records, count, more) = (page.records, page.count, page.more);
                Ok(OpResult::Range { records, count, more })
            }
            Op::Add { key, delta } => {
                let found = self.number(number, key)?.unwrap_or(0);
                let (op, delta) = (number, *delta);
                let sum = found.checked_add(delta);
                let sum = sum.ok_or(TxnRefused::Overflow { op, found, delta })?;
                self.write(key, Bytes::copy_from_slice(&sum.to_be_bytes()), true);
                Ok(OpResult::Number(sum))
            }
            Op::Max { key, operand } => match self.number(number, key)? {
                Some(found) if found >= *operand => Ok(OpResult::Number(found)),
                Some(_) | None => {
                    self.write(key, Bytes::copy_from_slice(&operand.to_be_bytes()), true);
                    Ok(OpResult::Number(*operand))
                }
            },
            Op::PutSequence { prefix, value } => {
                let prefix_bytes = Bytes::from(prefix.clone());
                let own = self.sequences.get(&prefix_bytes);
                let last = own.or_else(|| self.model.sequences.get(&prefix_bytes));
                let next = last.map_or(1, |last| last + 1);
                self.sequences.insert(prefix_bytes, next);
                let key = sequenced(prefix, next);
                self.write(&key, value.clone(), false);
                Ok(OpResult::Sequenced { key })
            }
        }
    }
}

//! The model and the state machine, fed the same entries, must answer the same and hold the same at every revision.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::{Entry, Machine, MachineSettings, OpenMode, Payload};
use quorate_kv::model::{
    Command, KeyRange, LimitChange, LogIndex, LogPosition, LogTime, NodeId, Proposal, RangeRead, ReadOp,
    ReplicatedLimits, Revision, Sequence, SessionId, SessionRef, Term, encode,
};
use quorate_tests::check::history::CallId;
use quorate_tests::check::model::Model;
use quorate_tests::check::workload::Generator;
use quorate_tests::sim::Rng;

/// Entries with everything that a proposal can carry: sessions that open, close, expire and are exceeded, writes
/// that are retried, forgotten and out of session.
struct Entries {
    random: Rng,
    draw: Generator,
    index: u64,
    time: u64,
    calls: u64,
    sessions: u64,
    /// Writes that were made, to be retried.
    made: Vec<Command>,
    limits_set: u64,
}

impl Entries {
    fn new(seed: u64) -> Self {
        let random = Rng::new(seed);
        let keys = *random.clone().pick(&[1, 5, 20]);
        Self {
            draw: Generator::new(random.fork("draw"), keys),
            random,
            index: 0,
            time: 1_000,
            calls: 0,
            sessions: 0,
            made: Vec::new(),
            limits_set: 0,
        }
    }

    fn next(&mut self, revision: Revision) -> Entry {
        self.draw.met(revision);
        let position = LogPosition {
            term: Term::new(1 + self.index / 50),
            leader: NodeId::new(1),
            index: LogIndex::new(self.index),
        };
        self.index += 1;
        let payload = match self.random.below(20) {
            0 => Payload::Blank,
            1 => Payload::Membership(Bytes::from_static(b"members")),
            _ => {
                // The clock of another proposer may be behind.
                self.time = (self.time + self.random.below(2_000)).saturating_sub(self.random.below(500));
                let count = self.random.between(1, 4);
                let commands = (0..count).map(|_| self.command()).collect();
                let stamp = LogTime::from_millis(self.time);
                Payload::Proposal(Bytes::from(encode(&Proposal {
                    stamp,
                    full_at: None,
                    commands,
                })))
            }
        };
        Entry { position, payload }
    }

    /// Small enough to be met.
    fn limits(&mut self) -> ReplicatedLimits {
        let mut limits = ReplicatedLimits::default();
        let mut one_of = |those: &[u64]| *self.random.pick(those);
        limits.sessions_max = one_of(&[1, 4]);
        limits.session_ttl_millis_max = one_of(&[1_000, 10_000]);
        limits.session_idle_millis = one_of(&[0, 500, 5_000]);
        limits.session_idle_entries = one_of(&[1, 10, 10_000]);
        limits.unanswered_max = one_of(&[2, 5]);
        limits.unanswered_bytes_max = one_of(&[300, 2_000, 100_000]);
        limits.response_bytes_max = one_of(&[300, 30_000]);
        limits.keys_looked_at_max = one_of(&[20, 100, 1_000]);
        limits.keys_changed_max = one_of(&[2, 10, 1_000]);
        limits.entry_budget = one_of(&[1, 2, 4]);
        limits
    }

    fn command(&mut self) -> Command {
        // Limits are set early, and now and then again; some come too late for the version that they name.
        if self.random.one_in(if self.limits_set == 0 { 4 } else { 60 }) {
            let version = self.limits_set;
            self.limits_set += u64::from(!self.random.one_in(4));
            let mut changes = self.limits().to_changes();
            if self.limits_set > 1 && self.random.one_in(2) {
                // Some of them, and now and then one that is refused.
                changes.retain(|_| self.random.one_in(3));
                if self.random.one_in(8) {
                    changes.push(LimitChange { tag: 200, value: 1 });
                }
            }
            let expected = (!self.random.one_in(5)).then_some(version);
            return Command::SetLimits { expected, changes };
        }
        match self.random.below(14) {
            0 => {
                self.sessions += 1;
                let ttl_millis = *self.random.pick(&[0, 100, 5_000, 1 << 40, u64::MAX]);
                // Now and then one that is taken.
                let id = self.session();
                Command::OpenSession { id, ttl_millis }
            }
            1 => Command::CloseSession {
                session: self.session(),
            },
            2..=3 if !self.made.is_empty() => self.random.pick(&self.made).clone(),
            _ => {
                self.calls += 1;
                let txn = self.draw.txn(CallId {
                    client: 1,
                    number: self.calls,
                });
                let session = (!self.random.one_in(4)).then(|| SessionRef {
                    id: self.session(),
                    sequence: Sequence::new(self.random.between(1, 12)),
                    answered_below: Sequence::new(self.random.between(1, 6)),
                });
                let command = Command::Txn { session, txn };
                self.made.push(command.clone());
                command
            }
        }
    }

    fn session(&mut self) -> SessionId {
        SessionId::new(u128::from(self.random.between(1, self.sessions.max(1) + 1)))
    }
}

fn compare(seed: u64, entries: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut settings = MachineSettings::default();
    settings.cache_bytes = 1 << 20;
    settings.tuning.page_bytes_max = 2_000;
    settings.tuning.apply_keys = 100;
    settings.tuning.gap_keys = 2;
    let (mut machine, reader) =
        Machine::open(Arc::new(RealDisk), dir.path(), OpenMode::Create, settings).expect("a new machine");
    let (mut model, mut source) = (Model::new(2_000), Entries::new(seed));
    let mut pending = Vec::new();
    let mut expected = Vec::new();
    for number in 0..entries {
        let entry = source.next(model.revision());
        let (outcome, _) = model.apply(&entry).expect("entries in order");
        pending.push(entry);
        expected.push(outcome);
        // The machine takes them in batches of any size.
        if source.random.one_in(3) || number + 1 == entries {
            let outcomes = machine.apply(std::mem::take(&mut pending)).expect("no fault");
            for (found, expected) in outcomes.iter().zip(&expected) {
                assert_eq!(found, expected, "seed {seed}");
            }
            assert_eq!(outcomes.len(), expected.len());
            expected.clear();
            let applied = machine.applied();
            assert_eq!(
                (applied.revision, applied.log_time),
                (model.revision(), model.log_time()),
                "seed {seed}"
            );
        }
    }
    let view = reader.view().expect("a view");
    let (mut at, mut walk) = (Revision::FIRST, model.walk());
    while at <= model.revision() {
        let mut reads = source.draw.reads();
        reads.push(ReadOp::Range(RangeRead::new(KeyRange::all()).limit(u32::MAX)));
        let found = view
            .read(&reads, Some(at))
            .expect("no fault")
            .expect("not refused");
        for (read, found) in reads.iter().zip(found) {
            assert_eq!(found, model.read(read, at), "seed {seed}, {read:?} at {at}");
            assert_eq!(
                found,
                walk.read(read, at),
                "seed {seed}, {read:?} at {at}, walked to"
            );
        }
        at = at.next();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_machine_answers_every_entry_and_every_read_as_the_model_does(seed: u64) {
        compare(seed, 120);
    }
}

#[test]
fn the_model_alone_explains_a_story_told_by_hand() {
    use quorate_kv::model::{Key, Op, Txn};
    let key = |name: &str| Key::from(name);
    let mut model = Model::default();
    let index = LogIndex::new(1);
    let put = |value: &'static str| Txn::new([Op::put(key("a"), value)]);
    let revision = |model: &mut Model, txn: Txn| model.run_now(&txn, index).expect("not refused").revision;

    assert_eq!(revision(&mut model, put("1")), Revision::new(2));
    assert_eq!(revision(&mut model, put("2")), Revision::new(3));
    let record = model
        .at(&key("a"), Revision::new(3))
        .expect("it was written")
        .clone();
    assert_eq!((record.create_revision, record.version), (Revision::new(2), 2));

    // What changes nothing makes no revision.
    assert_eq!(
        revision(&mut model, Txn::new([Op::delete(key("b"))])),
        Revision::new(3)
    );
    let made_and_gone = Txn::new([Op::put(key("b"), "x"), Op::delete(key("b"))]);
    assert_eq!(revision(&mut model, made_and_gone), Revision::new(3));

    // After a delete, also within one transaction, everything begins anew.
    let anew = Txn::new([Op::delete(key("a")), Op::put(key("a"), "3")]);
    assert_eq!(revision(&mut model, anew), Revision::new(4));
    let record = model.at(&key("a"), Revision::new(4)).expect("it was written");
    assert_eq!((record.create_revision, record.version), (Revision::new(4), 1));
    assert_eq!(model.at(&key("a"), Revision::new(2)).expect("history").value, "1");
    assert_eq!(model.at(&key("a"), Revision::FIRST), None);
}

//! Laws that hold for every script of commands, checked against the slow store.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::disk::MemoryDisk;
use super::slow::Slow;
use super::*;
use crate::machine::Checkpoint;
use crate::machine::rows::head::Head;
use crate::machine::rows::tables::Table;
use crate::machine::rows::version::{self, ChangeKind, Version};
use crate::machine::{Applied, ReadBudget, ReadRefused, Step as ReadStep, Tuning, View};
use crate::model::{
    Compare, Condition, Guard, KeyRange, KeyTest, LeaseChange, LeaseId, Op, Order, PutMode, RangeExcess,
    RangeRead, RangeTest, ReadOp, ReplicatedLimits, Revision, Sequence, SessionId, SessionRef,
};

fn tight() -> MachineSettings {
    MachineSettings {
        cache_bytes: 1024 * 1024,
        tuning: Tuning {
            chunk_keys: 2,
            gap_keys: 1,
            apply_keys: 20,
            apply_answer_bytes: 200,
            page_bytes_max: 200,
            snapshot_chunk_bytes: 40,
            forget_rows: 2,
            hash_entries: 3,
            time_spacing_millis: 2,
            run_rows: 2,
            rest_rows: 2,
            runs_merged: 2,
            merge_rows: 2,
            block_bytes: 60,
            ..Tuning::default()
        },
        ..MachineSettings::default()
    }
}

/// Small limits, so that scripts meet them.
fn any_limits() -> impl Strategy<Value = ReplicatedLimits> {
    let sessions = (1u64..4, 1u64..40, 0u64..20, 0u64..6);
    let answers = (1u64..4, 40u64..400, 100u64..500);
    let work = (1u64..60, 1u64..8, 1u64..3);
    let store = prop_oneof![1 => Just(0u64), 3 => 4_096u64..4_400];
    (sessions, answers, work, store).prop_map(|(sessions, answers, work, store)| ReplicatedLimits {
        sessions_max: sessions.0,
        session_ttl_millis_max: sessions.1,
        session_idle_millis: sessions.2,
        session_idle_entries: sessions.3,
        unanswered_max: answers.0,
        unanswered_bytes_max: answers.1,
        response_bytes_max: answers.2,
        keys_looked_at_max: work.0,
        keys_changed_max: work.1,
        entry_budget: work.2,
        store_bytes_max: store,
        ..ReplicatedLimits::default()
    })
}

/// Keys that are prefixes of each other, with zeros and ends of range in them.
const KEYS: [&[u8]; 9] = [
    b"a",
    b"a\0",
    b"a\0\0",
    b"a\0b",
    b"ab",
    b"b",
    b"\0",
    b"\xff",
    b"\xff\xff",
];

fn any_key() -> impl Strategy<Value = Key> {
    select(&KEYS[..]).prop_map(Key::from)
}

fn any_value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just(Bytes::new()),
        select(&["x", "y", "a longer value"][..]).prop_map(|v| Bytes::from_static(v.as_bytes())),
        (-2i64..3).prop_map(|n| Bytes::copy_from_slice(&n.to_be_bytes())),
    ]
}

fn any_range() -> impl Strategy<Value = KeyRange> {
    let bytes = || any_key().prop_map(Key::into_bytes);
    prop_oneof![
        2 => Just(KeyRange::all()),
        1 => bytes().prop_map(KeyRange::starting_at),
        1 => bytes().prop_map(KeyRange::prefix),
        1 => any_key().prop_map(|key| KeyRange::key(&key)),
        2 => (bytes(), bytes()).prop_map(|(a, b)| KeyRange::new(a, b)),
    ]
}

fn any_read() -> impl Strategy<Value = RangeRead> {
    (
        any_range(),
        0u32..6,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(range, limit, descending, keys_only, count_only)| RangeRead {
            range,
            limit,
            order: if descending {
                Order::Descending
            } else {
                Order::Ascending
            },
            keys_only,
            count_only,
        })
}

fn any_op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![5 => Just(PutMode::Upsert), 1 => Just(PutMode::OnlyIfAbsent)];
    let lease = prop_oneof![
        10 => Just(LeaseChange::Detach),
        5 => Just(LeaseChange::Keep),
        1 => Just(LeaseChange::Attach(LeaseId::new(1))),
    ];
    let delta = || prop_oneof![9 => -2i64..3, 1 => Just(i64::MAX)];
    prop_oneof![
        8 => (any_key(), any_value(), mode, lease)
            .prop_map(|(key, value, mode, lease)| Op::Put { key, value, mode, lease }),
        3 => any_key().prop_map(Op::delete),
        1 => (any_range(), 0u32..8, any::<bool>()).prop_map(|(range, limit, leave)| Op::DeleteRange {
            range,
            limit,
            excess: if leave { RangeExcess::Leave } else { RangeExcess::Refuse },
        }),
        1 => any_key().prop_map(Op::get),
        2 => any_read().prop_map(Op::Range),
        2 => (any_key(), delta()).prop_map(|(key, delta)| Op::Add { key, delta }),
        2 => (any_key(), delta()).prop_map(|(key, operand)| Op::Max { key, operand }),
        1 => (any_key(), any_value()).prop_map(|(prefix, value)| Op::PutSequence { prefix, value }),
    ]
}

fn any_compare() -> impl Strategy<Value = Compare> {
    select(
        &[
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
        ][..],
    )
}

fn any_test() -> impl Strategy<Value = KeyTest> {
    let revision = || proptest::option::of((0u64..8).prop_map(Revision::new));
    prop_oneof![
        (any_compare(), any_value()).prop_map(|(c, v)| KeyTest::Value(c, v)),
        (any_compare(), 0u64..4).prop_map(|(c, v)| KeyTest::Version(c, v)),
        (any_compare(), revision()).prop_map(|(c, v)| KeyTest::CreateRevision(c, v)),
        (any_compare(), revision()).prop_map(|(c, v)| KeyTest::ModRevision(c, v)),
        (any_compare(), proptest::option::of(Just(LeaseId::new(1)))).prop_map(|(c, v)| KeyTest::Lease(c, v)),
        any::<bool>().prop_map(KeyTest::Exists),
    ]
}

fn any_guard() -> impl Strategy<Value = Guard> {
    let range_test = prop_oneof![
        any_test().prop_map(RangeTest::Any),
        any_test().prop_map(RangeTest::All),
        (any_compare(), 0u64..5).prop_map(|(c, n)| RangeTest::Count(c, n)),
    ];
    let leaf = prop_oneof![
        3 => (any_key(), any_test()).prop_map(|(key, test)| Guard::key(key, test)),
        1 => (any_range(), range_test)
            .prop_map(|(range, test)| Guard::condition(Condition::Range { range, test })),
    ];
    let tree = leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Guard::all),
            vec(inner.clone(), 0..3).prop_map(Guard::any),
            inner.prop_map(Guard::not),
        ]
    });
    prop_oneof![2 => Just(Guard::always()), 3 => tree]
}

fn any_txn() -> impl Strategy<Value = Txn> {
    (any_guard(), vec(any_op(), 0..6), vec(any_op(), 0..3)).prop_map(|(guard, then, otherwise)| Txn {
        guard,
        then,
        otherwise,
    })
}

fn set_limits(version: u64, limits: &ReplicatedLimits) -> Command {
    Command::SetLimits {
        expected: Some(version),
        changes: limits.to_changes(),
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let session = (0u128..5, 1u64..7, 0u64..6).prop_map(|(id, sequence, answered_below)| SessionRef {
        id: SessionId::new(id),
        sequence: Sequence::new(sequence),
        answered_below: Sequence::new(answered_below),
    });
    prop_oneof![
        6 => any_txn().prop_map(|txn| Command::Txn { session: None, txn }),
        6 => (session, any_txn()).prop_map(|(session, txn)| Command::Txn { session: Some(session), txn }),
        2 => (0u128..4, 0u64..30).prop_map(|(id, ttl_millis)| Command::OpenSession { id: SessionId::new(id), ttl_millis }),
        1 => (0u128..5).prop_map(|id| Command::CloseSession { session: SessionId::new(id) }),
        1 => (0u64..3, any_limits()).prop_map(|(version, limits)| set_limits(version, &limits)),
        2 => (0u64..12).prop_map(|revision| Command::Compact { revision: Revision::new(revision) }),
    ]
}

/// Entries, with stamps that mostly rise.
fn script(entries: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Entry>> {
    // Of a store that may have some 4 KiB, where it has a limit.
    let full_at = prop::option::weighted(0.3, 3_000u64..5_000);
    let payload = prop_oneof![
        8 => (0u64..12, full_at, vec(any_command(), 1..5)).prop_map(Some),
        1 => Just(None),
    ];
    // Mostly with small limits from the beginning.
    let limits = prop::option::weighted(0.8, any_limits());
    (limits, vec(payload, entries)).prop_map(|(limits, payloads)| {
        let mut time = 0;
        let limits = limits.map(|limits| Some((0, None, vec![set_limits(0, &limits)])));
        let payloads = limits.into_iter().chain(payloads).zip(1..);
        payloads
            .map(|(payload, index)| match payload {
                Some((step, full_at, commands)) => {
                    time += step;
                    proposal_when_full(index, time.saturating_sub(3), full_at, commands)
                }
                None => Entry {
                    position: position(index),
                    payload: Payload::Membership(Bytes::from(format!("members at {index}"))),
                },
            })
            .collect()
    })
}

fn open(disk: &MemoryDisk, mode: OpenMode) -> (Machine, Reader) {
    Machine::open(Arc::new(disk.clone()), dir(), mode, tight()).unwrap()
}

/// What happens to the checkpoint between two calls of `apply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// One begins, if none is under way.
    Begin,
    /// The one under way is written and ends.
    End,
    /// One is made, here and now.
    Whole,
    /// A step of forgetting, if nothing is under way.
    Forget,
    /// A step of merging, if nothing is under way.
    Merge,
    /// The same as where nothing is written.
    MergeAtRest,
    /// The file begins to be copied into a smaller one, if nothing is under way.
    Shrink,
}

fn any_step() -> impl Strategy<Value = Step> {
    select(vec![
        Step::Nothing,
        Step::Nothing,
        Step::Begin,
        Step::End,
        Step::Whole,
        Step::Forget,
        Step::Merge,
        Step::MergeAtRest,
        Step::Shrink,
    ])
}

fn take(step: Step, machine: &mut Machine, under_way: &mut Option<Checkpoint>) {
    match step {
        Step::Nothing => {}
        Step::Begin => {
            let begun = machine.begin_checkpoint();
            assert!(begun.is_none() || under_way.is_none(), "one at a time");
            *under_way = under_way.take().or(begun);
        }
        Step::End => {
            if let Some(checkpoint) = under_way.take() {
                machine.end_checkpoint(checkpoint.write()).unwrap();
            }
        }
        Step::Whole => {
            take(Step::End, machine, under_way);
            machine.make_durable().unwrap();
            assert_eq!(machine.durable(), machine.applied().position);
        }
        Step::Forget | Step::Merge | Step::MergeAtRest => {
            let begun = match step {
                Step::Forget => machine.begin_forgetting(),
                Step::MergeAtRest => machine.begin_merging_at_rest(),
                _ => machine.begin_merging(),
            };
            if let Some(step) = begun {
                assert!(
                    under_way.is_none() && machine.begin_checkpoint().is_none(),
                    "one at a time"
                );
                machine.end_checkpoint(step.write()).unwrap();
            }
        }
        Step::Shrink => {
            if let Some(copy) = machine.begin_shrinking().unwrap() {
                assert!(under_way.is_none(), "one at a time");
                *under_way = Some(copy);
            }
        }
    }
}

/// Forgets all that may be forgotten, and merges what is to be merged.
fn forget_all(machine: &mut Machine) {
    machine.make_durable().unwrap();
    while let Some(step) = machine
        .begin_forgetting()
        .or_else(|| machine.begin_merging_at_rest())
    {
        machine.end_checkpoint(step.write()).unwrap();
    }
}

/// The rows of a table.
fn rows(reader: &Reader, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let published = reader.shared.get();
    let base = &published.state.base;
    let mut found = Vec::new();
    base.for_each_row(table, |key, row| {
        found.push((key.to_vec(), row.to_vec()));
        Ok(())
    })
    .unwrap();
    found
}

/// Applies one entry after another: the outcomes, and where the machine stood after each.
fn one_by_one(entries: &[Entry], steps: &[Step]) -> (Vec<EntryOutcome>, Vec<Applied>, Machine, Reader) {
    let (mut machine, reader) = open(&MemoryDisk::default(), OpenMode::Create);
    let mut outcomes = Vec::new();
    let mut standings = Vec::new();
    let mut under_way = None;
    let mut steps = steps.iter();
    for entry in entries {
        outcomes.extend(machine.apply(vec![entry.clone()]).unwrap());
        standings.push(machine.applied().clone());
        let step = steps.next().copied().unwrap_or(Step::Nothing);
        take(step, &mut machine, &mut under_way);
    }
    (outcomes, standings, machine, reader)
}

fn slow_outcomes(entries: &[Entry]) -> (Vec<EntryOutcome>, Slow) {
    let mut slow = Slow::new(tight().tuning.page_bytes_max);
    let outcomes = entries
        .iter()
        .map(|entry| match &entry.payload {
            Payload::Proposal(bytes) => {
                let proposal = crate::model::decode(bytes).unwrap();
                EntryOutcome::Proposal(slow.apply(entry.position.index, &proposal))
            }
            Payload::Membership(_) => EntryOutcome::Membership,
            Payload::Blank => EntryOutcome::Blank,
        })
        .collect();
    (outcomes, slow)
}

/// A revision, what it did to a key, and the value that it wrote.
type Changed = (Revision, ChangeKind, Vec<u8>, Vec<u8>);

/// What the table of versions says of each revision, and the values that they wrote.
fn changes_of(reader: &Reader) -> Vec<Changed> {
    let rows = rows(reader, Table::Versions);
    let changes = rows.iter().map(|(key, row)| {
        let (revision, key) = version::read_key(key).unwrap();
        let version = Version::decode(row).unwrap();
        (revision, version.kind, key.to_vec(), version.value.to_vec())
    });
    changes.collect()
}

/// Of all changes, those that are left once the rest is forgotten: the later ones, and what a read at the oldest readable
/// revision finds.
fn kept(changes: &[Changed], oldest: Revision) -> Vec<Changed> {
    let kept = changes
        .iter()
        .enumerate()
        .filter(|(at, (revision, kind, key, _))| {
            let mut later = changes[at + 1..].iter().take_while(|later| later.0 <= oldest);
            *revision > oldest || *kind != ChangeKind::Deleted && !later.any(|later| later.2 == *key)
        });
    kept.map(|(_, change)| change.clone()).collect()
}

fn expected_changes(slow: &Slow) -> Vec<Changed> {
    let mut expected = Vec::new();
    for (states, revision) in slow.states.windows(2).zip(2u64..) {
        let (old, new) = (&states[0], &states[1]);
        let revision = Revision::new(revision);
        let keys: std::collections::BTreeSet<&Key> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let kind = match (old.get(key), new.get(key)) {
                (old, new) if old == new => continue,
                (_, Some(new)) if new.create_revision == revision => ChangeKind::Created,
                (_, Some(_)) => ChangeKind::Written,
                (_, None) => ChangeKind::Deleted,
            };
            let value = new.get(key).map(|record| record.value.to_vec());
            expected.push((revision, kind, key.as_bytes().to_vec(), value.unwrap_or_default()));
        }
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_machine_answers_as_the_slow_store_does_also_at_every_revision_that_was(
        entries in script(1..14),
        steps in vec(any_step(), 14),
        reads in vec(any_read(), 6),
    ) {
        let (outcomes, standings, mut machine, reader) = one_by_one(&entries, &steps);
        let (expected, slow) = slow_outcomes(&entries);
        for ((outcome, expected), entry) in outcomes.iter().zip(&expected).zip(&entries) {
            prop_assert_eq!(outcome, expected, "entry {:?}", entry);
        }
        let last = standings.last().unwrap();
        prop_assert_eq!(last.revision, slow.revision());
        prop_assert_eq!(last.log_time, slow.time());

        let mut ops: Vec<ReadOp> = reads.into_iter().map(ReadOp::Range).collect();
        ops.extend(KEYS.iter().map(|bytes| ReadOp::Get(Key::from(*bytes))));
        let view = reader.view().unwrap();
        let oldest = Revision::new(slow.oldest);
        for revision in (1..slow.oldest).map(Revision::new) {
            let refused = view.read(&ops, Some(revision)).unwrap();
            prop_assert_eq!(refused, Err(ReadRefused::Compacted { asked: revision, oldest }));
        }
        for revision in (slow.oldest..=slow.revision().number()).map(Revision::new) {
            let found = view.read(&ops, Some(revision)).unwrap().unwrap();
            for (op, found) in ops.iter().zip(found) {
                prop_assert_eq!(found, slow.read(op, revision), "{:?} at {}", op, revision);
            }
        }
        let now = view.read(&ops, None).unwrap().unwrap();
        prop_assert_eq!(now, view.read(&ops, Some(slow.revision())).unwrap().unwrap());
        prop_assert_eq!(machine.verify_hash().unwrap(), last.state_hash);
        prop_assert_eq!(view.applied().state_hash, last.state_hash);

        // The same once all of it is in the file, and once what no read can ask for has gone from there.
        if !machine.checkpoint_under_way() {
            let is_as_before = |stored: View| {
                prop_assert_eq!(stored.verify_hash().unwrap(), last.state_hash);
                for revision in (slow.oldest..=slow.revision().number()).map(Revision::new) {
                    let found = view.read(&ops, Some(revision)).unwrap().unwrap();
                    prop_assert_eq!(stored.read(&ops, Some(revision)).unwrap().unwrap(), found);
                }
                Ok(())
            };
            machine.make_durable().unwrap();
            is_as_before(reader.view().unwrap())?;
            forget_all(&mut machine);
            is_as_before(reader.view().unwrap())?;
            prop_assert_eq!(changes_of(&reader), kept(&expected_changes(&slow), oldest));
            for (key, head) in rows(&reader, Table::Deleted) {
                let (revision, _) = Head::decode_newest(&head).unwrap();
                prop_assert!(revision > oldest, "the head of {:?}, deleted at {}", key, revision);
            }
        }
    }

    #[test]
    fn a_batch_of_reads_is_of_one_revision_however_it_is_cut_into_steps_and_whatever_is_applied_in_between(
        entries in script(2..14),
        steps in vec(any_step(), 14),
        reads in vec(any_read(), 1..4),
        begin_after in 1usize..13,
        at in any::<prop::sample::Index>(),
        budgets in vec((0u64..4, 0u64..30, any::<bool>()), 1..40),
    ) {
        let (_, slow) = slow_outcomes(&entries);
        let (mut machine, reader) = open(&MemoryDisk::default(), OpenMode::Create);
        let mut under_way = None;
        let mut work = entries.iter().zip(&steps);
        let mut go_on = |machine: &mut Machine| {
            if let Some((entry, step)) = work.next() {
                machine.apply(vec![entry.clone()]).unwrap();
                take(*step, machine, &mut under_way);
            }
        };
        for _ in 0..begin_after.min(entries.len() - 1) {
            go_on(&mut machine);
        }
        let mut ops: Vec<ReadOp> = reads.into_iter().map(ReadOp::Range).collect();
        ops.push(ReadOp::Get(Key::from(KEYS[0])));
        let mut view = reader.view().unwrap();
        let (oldest, newest) = (view.applied().oldest.number(), view.applied().revision.number());
        let at = Revision::new(oldest + at.index((newest - oldest + 1) as usize) as u64);
        let mut scan = view.begin(ops.clone(), Some(at)).unwrap();
        let mut budgets = budgets.into_iter();
        let results = loop {
            let (keys, bytes, on_a_newer_view) = budgets.next().unwrap_or((1, u64::MAX, false));
            if on_a_newer_view {
                go_on(&mut machine);
                view = reader.view().unwrap();
            }
            match scan.step(&view, ReadBudget { keys, bytes }).unwrap() {
                ReadStep::More(rest) => scan = rest,
                ReadStep::Done(answered) => break answered.results,
                // It was given up in the middle.
                ReadStep::Refused(ReadRefused::Compacted { asked, oldest }) => {
                    prop_assert!(asked == at && at < oldest && oldest.number() <= slow.oldest);
                    return Ok(());
                }
                ReadStep::Refused(refused) => panic!("{refused}"),
            }
        };
        for (op, found) in ops.iter().zip(results) {
            prop_assert_eq!(found, slow.read(op, at), "{:?} at {}", op, at);
        }
    }

    #[test]
    fn what_memory_tells_is_what_the_slow_store_has_whatever_checkpoints_write_and_older_views_read(
        entries in script(1..14),
        steps in vec(any_step(), 14),
        looks in vec((0usize..KEYS.len(), any::<bool>(), any::<bool>()), 14),
    ) {
        let (_, slow) = slow_outcomes(&entries);
        let (mut machine, reader) = open(&MemoryDisk::default(), OpenMode::Create);
        let (mut under_way, mut older) = (None, reader.view().unwrap());
        for ((entry, step), (by_key, keeps, reads)) in entries.iter().zip(&steps).zip(looks) {
            machine.apply(vec![entry.clone()]).unwrap();
            take(*step, &mut machine, &mut under_way);
            let view = reader.view().unwrap();
            let get = [ReadOp::Get(Key::from(KEYS[by_key]))];
            // A reader that pinned an older state must leave nothing of it to others.
            older.read(&get, None).unwrap().unwrap();
            if reads {
                view.read(&get, None).unwrap().unwrap();
            }
            let now = view.applied().revision;
            let told = view.recall(&get, None, ReadBudget::UNLIMITED);
            prop_assert!(told.is_some() || !reads || under_way.is_some(), "it was just read");
            for (of, at) in [(&view, now), (&older, older.applied().revision)] {
                for at in (1..=at.number()).map(Revision::new) {
                    if let Some((revision, told)) = of.recall(&get, Some(at), ReadBudget::UNLIMITED) {
                        prop_assert_eq!(revision, at);
                        prop_assert_eq!(&told[0], &slow.read(&get[0], at), "{:?} at {}", &get, at);
                    }
                }
            }
            if !keeps {
                older = view;
            }
        }
    }

    #[test]
    fn however_entries_are_cut_into_batches_state_answers_and_hash_are_the_same(
        entries in script(1..24),
        sizes in vec((1usize..9, any_step()), 24),
    ) {
        let (outcomes, standings, ..) = one_by_one(&entries, &[]);
        let (mut machine, _reader) = open(&MemoryDisk::default(), OpenMode::Create);
        let (mut at, mut found, mut under_way) = (0, Vec::new(), None);
        for (size, step) in sizes {
            let end = (at + size).min(entries.len());
            if at == end {
                break;
            }
            found.extend(machine.apply(entries[at..end].to_vec()).unwrap());
            at = end;
            prop_assert_eq!(machine.applied(), &standings[at - 1]);
            take(step, &mut machine, &mut under_way);
        }
        prop_assert_eq!(&found, &outcomes[..at]);
        prop_assert_eq!(machine.verify_hash().unwrap(), standings[at - 1].state_hash);
    }

    #[test]
    fn after_any_crash_the_state_is_that_of_some_entry_not_before_the_durable_one_and_replay_leads_to_the_same(
        entries in script(1..24),
        steps in vec((1usize..6, 0u8..8, any::<u64>()), 24),
    ) {
        let (_, standings, ..) = one_by_one(&entries, &[]);
        let disk = MemoryDisk::default();
        let (mut machine, _reader) = open(&disk, OpenMode::Create);
        let mut at = 0;
        for (size, step, seed) in steps {
            let end = (at + size).min(entries.len());
            machine.apply(entries[at..end].to_vec()).unwrap();
            at = end;
            match step {
                0 | 1 => {
                    machine.make_durable().unwrap();
                    prop_assert_eq!(machine.durable(), machine.applied().position);
                }
                2 => {
                    // A restart of the process: it keeps what was durable.
                    let durable = machine.durable();
                    drop(machine);
                    (machine, _) = open(&disk, OpenMode::Existing);
                    prop_assert!(machine.durable() >= durable);
                    prop_assert_eq!(machine.durable(), machine.applied().position);
                    at = machine.applied().position.map_or(0, |p| p.index.number() as usize);
                }
                3 | 4 => {
                    let durable = machine.durable();
                    let mut bits = seed;
                    disk.lose_power(|| {
                        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        seed % 3 != 0 && bits >> 63 == 1
                    });
                    drop(machine);
                    (machine, _) = open(&disk, OpenMode::Existing);
                    prop_assert!(machine.applied().position >= durable);
                    at = machine.applied().position.map_or(0, |p| p.index.number() as usize);
                }
                5 => {
                    if let Some(step) = machine.begin_forgetting() {
                        machine.end_checkpoint(step.write()).unwrap();
                    }
                }
                6 => {
                    let copy = machine.begin_shrinking().unwrap().expect("nothing is under way");
                    machine.end_checkpoint(copy.write()).unwrap();
                    prop_assert!(machine.take_shrunk().unwrap().is_ok());
                }
                _ => {
                    // A copy that was made, and whose place nobody came to give it.
                    let copy = machine.begin_shrinking().unwrap().expect("nothing is under way");
                    let end = copy.write();
                    drop(machine);
                    drop(end);
                    (machine, _) = open(&disk, OpenMode::Existing);
                    at = machine.applied().position.map_or(0, |p| p.index.number() as usize);
                }
            }
            if at > 0 {
                prop_assert_eq!(machine.applied(), &standings[at - 1]);
            }
        }
        machine.apply(entries[at..].to_vec()).unwrap();
        prop_assert_eq!(machine.applied(), standings.last().unwrap());
        prop_assert_eq!(machine.verify_hash().unwrap(), standings.last().unwrap().state_hash);
    }
}

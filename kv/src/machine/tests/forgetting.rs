//! Forgetting: what no read can ask for goes, and nothing else is ever told of it.

use std::collections::BTreeMap;

use super::disk::MemoryDisk;
use super::*;
use crate::machine::rows::tables::Table;
use crate::machine::{ReadBudget, ReadRefused, ReceivedSnapshot, SnapshotError, Step};
use crate::model::{Compacted, KeyRange, Op, RangeRead, ReadOp, ReadResult, Revision};

/// A store that forgets so many rows in a step.
fn store(forget_rows: usize) -> Store {
    store_on(&Arc::default(), OpenMode::Create, forget_rows)
}

fn store_on(disk: &Arc<MemoryDisk>, mode: OpenMode, forget_rows: usize) -> Store {
    let disk: Arc<dyn Disk> = Arc::<MemoryDisk>::clone(disk);
    let mut settings = settings();
    settings.tuning.forget_rows = forget_rows;
    Store::with(disk, mode, settings)
}

/// Has a store receive a snapshot.
fn receive(target: &Store, chunks: &[Vec<u8>]) -> Result<ReceivedSnapshot, SnapshotError> {
    let mut sink = Machine::snapshot_sink(Arc::clone(&target.disk), dir()).unwrap();
    for chunk in chunks {
        sink.write(chunk)?;
    }
    sink.finish()
}

fn chunks(source: &Store) -> Vec<Vec<u8>> {
    let mut snapshot = source.reader.snapshot().unwrap();
    std::iter::from_fn(|| snapshot.next_chunk().unwrap().map(|chunk| chunk.to_vec())).collect()
}

/// A chunk with another byte, as a sender would send it whose state has that.
fn with_byte(chunk: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut changed = chunk.to_vec();
    changed[at] = byte;
    let end = changed.len() - 8;
    let sum = xxhash_rust::xxh3::xxh3_64(&changed[..end]);
    changed[end..].copy_from_slice(&sum.to_be_bytes());
    changed
}

fn compact(store: &mut Store, revision: u64) -> Compacted {
    let revision = Revision::new(revision);
    match store.one(0, Command::Compact { revision }) {
        Outcome::Compacted(compacted) => compacted,
        other => panic!("a compaction answered {other:?}"),
    }
}

/// The steps that it took.
fn forget(store: &mut Store) -> usize {
    store.machine.make_durable().unwrap();
    let mut steps = 0;
    while let Some(step) = store.machine.begin_forgetting() {
        store.machine.end_checkpoint(step.write()).unwrap();
        steps += 1;
    }
    steps
}

/// Keys that are written all the time, now and then, deleted and made anew, in a pattern: one revision.
fn write(store: &mut Store, number: u64) {
    let hot = Op::put(key("hot"), value(&number.to_string()));
    let other = match number % 7 {
        0 | 3 => Op::put(key("comes and goes"), value(&number.to_string())),
        1 | 4 => Op::delete(key("comes and goes")),
        2 => Op::put(key("seldom"), value(&number.to_string())),
        _ => Op::put(key(&format!("once {number}")), value("")),
    };
    store.txn(Txn::new([hot, other])).unwrap();
}

fn rows(store: &Store, table: Table) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let published = store.reader.shared.get();
    let base = &published.state.base;
    let mut found = BTreeMap::new();
    base.for_each_row(table, |key, row| {
        found.insert(key.to_vec(), row.to_vec());
        Ok(())
    })
    .unwrap();
    found
}

/// All of the store as it was at a revision, by a scan and key by key.
fn read(store: &Store, at: u64) -> Result<Vec<ReadResult>, ReadRefused> {
    let mut ops = vec![ReadOp::Range(RangeRead::new(KeyRange::all()))];
    ops.extend(["hot", "seldom", "comes and goes"].map(|name| ReadOp::Get(key(name))));
    store
        .reader
        .view()
        .unwrap()
        .read(&ops, Some(Revision::new(at)))
        .unwrap()
}

/// The story: the state's hash covered history, so that no node could forget any of it at its own pace.
#[test]
fn a_node_that_forgets_and_one_that_does_not_have_one_hash_and_answer_the_same() {
    for rows_in_a_step in [1, 5, 1000] {
        let (mut forgets, mut keeps, mut steps) = (store(rows_in_a_step), store(1), 0);
        for number in 1..=60 {
            write(&mut forgets, number);
            write(&mut keeps, number);
            if number % 5 == 0 {
                for store in [&mut forgets, &mut keeps] {
                    compact(store, number - 4);
                }
            }
            // Now and then what may go is still in memory, or half of it.
            if number % 3 == 0 {
                steps += forget(&mut forgets);
            }
        }
        keeps.machine.make_durable().unwrap();
        // One for each revision where a row is a step, and one for each compaction where all are.
        let expected = [(1, 55), (5, 22), (1000, 11)];
        assert!(
            expected.contains(&(rows_in_a_step, steps)),
            "{rows_in_a_step} rows, {steps} steps"
        );
        for store in [&forgets, &keeps] {
            store.verify();
            store.reader.view().unwrap().verify_hash().unwrap();
        }
        assert_eq!(forgets.machine.applied(), keeps.machine.applied());
        let oldest = 56;
        for at in 1..=61 {
            let found = read(&forgets, at);
            assert_eq!(found, read(&keeps, at), "at {at}");
            let refused = ReadRefused::Compacted {
                asked: Revision::new(at),
                oldest: Revision::new(oldest),
            };
            assert_eq!(found.is_err(), at < oldest);
            assert!(found.is_ok() || found == Err(refused), "at {at}");
        }
        // Where a key's history begins is the same too, so that the two send the same snapshot of what they have.
        assert_eq!(rows(&forgets, Table::Current), rows(&keeps, Table::Current));
        let (few, all) = (rows(&forgets, Table::Versions), rows(&keeps, Table::Versions));
        // The first deletion met nothing.
        assert_eq!(all.len(), 119);
        // Of the five revisions behind the oldest all rows; of it and before, the newest of each key that was there.
        let once = (1..=55).filter(|number| matches!(number % 7, 5 | 6)).count();
        assert_eq!(few.len(), 2 * 5 + once + 2, "{rows_in_a_step} rows in a step");
        assert!(few.iter().all(|(key, row)| all[key] == *row));
    }
}

#[test]
fn what_is_compacted_cannot_be_read_at_once_and_an_unknown_revision_changes_nothing() {
    let mut store = store(10);
    for number in 1..=9 {
        write(&mut store, number);
    }
    let answer = |oldest| Compacted {
        oldest: Revision::new(oldest),
        revision: Revision::new(10),
    };
    assert_eq!(compact(&mut store, 11), answer(1), "it has not come yet");
    assert_eq!(compact(&mut store, 5), answer(5));
    assert_eq!(compact(&mut store, 4), answer(5), "it was given up before");
    assert!(read(&store, 4).is_err() && read(&store, 5).is_ok());
    assert_eq!(
        compact(&mut store, 10),
        answer(10),
        "the present can be read always"
    );
    let now = read(&store, 10).unwrap();
    forget(&mut store);
    assert_eq!(read(&store, 10).unwrap(), now);
    assert_eq!(store.machine.begin_forgetting().map(drop), None);
    store.verify();
}

#[test]
fn a_key_made_anew_after_its_deletion_was_forgotten_begins_its_history() {
    let mut heads = Vec::new();
    for forgets_first in [true, false] {
        let mut store = store(10);
        store.txn(Txn::new([Op::put(key("k"), value("1"))])).unwrap();
        store.txn(Txn::new([Op::delete(key("k"))])).unwrap();
        store.txn(Txn::new([Op::put(key("x"), value(""))])).unwrap();
        compact(&mut store, 4);
        if forgets_first {
            forget(&mut store);
            assert_eq!(rows(&store, Table::Deleted), BTreeMap::new());
        }
        store.txn(Txn::new([Op::put(key("k"), value("2"))])).unwrap();
        forget(&mut store);
        let at = |revision| read(&store, revision).unwrap();
        let keys = |found: &ReadResult| match found {
            ReadResult::Range { count, .. } => *count,
            other => panic!("{other:?}"),
        };
        assert_eq!((keys(&at(4)[0]), keys(&at(5)[0])), (1, 2));
        heads.push(rows(&store, Table::Current));
        store.verify();
    }
    assert_eq!(heads[0], heads[1], "whether its row was gone already or not");
}

/// Found by the simulator (seed 90090): the version that created the key anew has a record before it, and no deletion.
#[test]
fn what_a_transaction_deleted_and_made_anew_was_there_before() {
    let mut store = store(10);
    store.txn(Txn::new([Op::put(key("k"), value("1"))])).unwrap();
    let anew = [Op::delete(key("k")), Op::put(key("k"), value("2"))];
    store.txn(Txn::new(anew)).unwrap();
    store.txn(Txn::new([Op::put(key("k"), value("3"))])).unwrap();
    compact(&mut store, 2);
    forget(&mut store);
    for (at, expected) in [(2, "1"), (3, "2"), (4, "3")] {
        let found = read(&store, at).unwrap();
        let ReadResult::Range { records, .. } = &found[0] else {
            panic!("{found:?}");
        };
        let values: Vec<_> = records.iter().map(|pair| pair.record.value.clone()).collect();
        assert_eq!(values, [value(expected)], "at {at}");
        let view = store.reader.view().unwrap();
        let got = view
            .read(&[ReadOp::Get(key("k"))], Some(Revision::new(at)))
            .unwrap()
            .unwrap();
        assert!(
            matches!(&got[0], ReadResult::Get(Some(record)) if record.value == expected),
            "{got:?}"
        );
    }
}

/// The checkpoint that is under way when a snapshot replaces the state comes to nothing; so does a step.
#[test]
fn a_snapshot_of_a_store_that_forgets_is_taken_and_goes_on_forgetting() {
    let mut source = store(1);
    for number in 1..=30 {
        write(&mut source, number);
    }
    compact(&mut source, 25);
    source.machine.make_durable().unwrap();
    // Half of the way.
    for _ in 0..10 {
        let step = source.machine.begin_forgetting().unwrap();
        source.machine.end_checkpoint(step.write()).unwrap();
    }
    let mut target = store(1);
    for number in 1..=20 {
        write(&mut target, number);
    }
    compact(&mut target, 15);
    target.machine.make_durable().unwrap();
    let stale = target.machine.begin_forgetting().unwrap();
    let received = receive(&target, &chunks(&source)).unwrap();
    target.machine.install(received).unwrap();
    let _its_file_is_gone = target.machine.end_checkpoint(stale.write());
    target.index = source.index;
    target.verify();
    assert!(forget(&mut target) > 0);
    forget(&mut source);
    for table in [Table::Versions, Table::Current, Table::Deleted] {
        assert_eq!(rows(&target, table), rows(&source, table));
    }
    for at in 25..=31 {
        assert_eq!(read(&target, at), read(&source, at));
    }
    write(&mut target, 31);
    target.verify();
}

#[test]
fn after_a_crash_in_the_middle_a_step_is_done_or_not_and_forgetting_goes_on() {
    for seed in 0..40u64 {
        let disk = Arc::new(MemoryDisk::default());
        let mut store = store_on(&disk, OpenMode::Create, 3);
        for number in 1..=20 {
            write(&mut store, number);
        }
        compact(&mut store, 18);
        store.machine.make_durable().unwrap();
        let whole: Vec<_> = (18..=21).map(|at| read(&store, at)).collect();
        for _ in 0..seed % 7 {
            let step = store.machine.begin_forgetting().unwrap();
            store.machine.end_checkpoint(step.write()).unwrap();
        }
        // Written, and its end never taken.
        let _written = store
            .machine
            .begin_forgetting()
            .map(super::super::Checkpoint::write);
        let mut bits = seed;
        disk.lose_power(|| {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bits >> 63 == 1
        });
        drop(store);
        let mut store = store_on(&disk, OpenMode::Existing, 3);
        assert_eq!(store.index, 21);
        store.verify();
        forget(&mut store);
        store.verify();
        let again: Vec<_> = (18..=21).map(|at| read(&store, at)).collect();
        assert_eq!(again, whole, "seed {seed}");
        // Deleted by revision 19, which is later than the oldest that can be read.
        assert_eq!(rows(&store, Table::Deleted).len(), 1);
    }
}

/// A count or a range that takes longer than history is kept: what is the present is not given up.
#[test]
fn a_read_of_the_present_begins_anew_when_its_revision_is_given_up() {
    let mut store = store(10);
    for number in 1..=20 {
        write(&mut store, number);
    }
    let all = vec![ReadOp::Range(RangeRead::new(KeyRange::all()).limit(u32::MAX))];
    let a_key = ReadBudget { keys: 1, bytes: 1 };
    let first = store.reader.view().unwrap();
    let of_present = first.begin(all.clone(), None).unwrap();
    let of_revision = first.begin(all.clone(), Some(Revision::new(21))).unwrap();
    let Step::More(of_present) = of_present.step(&first, a_key).unwrap() else {
        panic!("there is more than a key");
    };
    write(&mut store, 21);
    compact(&mut store, 22);
    forget(&mut store);
    let now = store.reader.view().unwrap();
    match of_present.step(&now, ReadBudget::UNLIMITED).unwrap() {
        Step::Done(answered) => {
            assert_eq!(answered.revision, Revision::new(22));
            assert_eq!(answered.results, now.read(&all, None).unwrap().unwrap());
        }
        other => panic!("{other:?}"),
    }
    let refused = of_revision.step(&now, ReadBudget::UNLIMITED).unwrap();
    assert!(
        matches!(refused, Step::Refused(ReadRefused::Compacted { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_step_ends_when_it_has_read_enough_however_few_rows_that_are() {
    let mut store = store(1_000_000);
    for number in 0..20u8 {
        let large = Op::put(key("k"), vec![number; 1_000_000]);
        store.txn(Txn::new([large])).unwrap();
    }
    compact(&mut store, 21);
    // More than four megabytes are five rows.
    assert_eq!(forget(&mut store), 4);
    assert_eq!(rows(&store, Table::Versions).len(), 1);
}

/// Rows are looked at in stretches of a thousand, and a revision may have many of them.
#[test]
fn a_step_goes_through_a_revision_of_thousands_of_keys_and_ends_behind_it() {
    let mut store = store(1);
    let name = |number: u32| key(&format!("k{number:04}"));
    let all = |value: &'static str| {
        Txn::new((0..2_500).map(|number| Op::put(name(number), Bytes::from_static(value.as_bytes()))))
    };
    store.txn(all("old")).unwrap();
    store.txn(all("new")).unwrap();
    store
        .txn(Txn::new((0..2_100).map(|number| Op::delete(name(number)))))
        .unwrap();
    store.txn(Txn::new([Op::put(key("x"), value(""))])).unwrap();
    compact(&mut store, 5);
    assert_eq!(forget(&mut store), 4, "one for each revision");
    assert_eq!(rows(&store, Table::Versions).len(), 401);
    assert_eq!(rows(&store, Table::Deleted).len(), 0);
    store.verify();
    store.reader.view().unwrap().verify_hash().unwrap();
}

/// The value of a key that nobody has written since the history begins: the chain does not tell of it, its head does.
#[test]
fn a_snapshot_whose_sender_has_lost_or_changed_an_old_value_is_refused() {
    let mut source = store(1000);
    source
        .txn(Txn::new([Op::put(key("cold"), value("as it was"))]))
        .unwrap();
    for number in 1..=5 {
        write(&mut source, number);
    }
    compact(&mut source, 7);
    forget(&mut source);
    let whole = chunks(&source);
    let target = store(10);
    receive(&target, &whole).unwrap();
    let at = whole[0]
        .windows(9)
        .position(|window| window == b"as it was")
        .unwrap();
    let refused = receive(&target, &[with_byte(&whole[0], at, b'A')]);
    assert!(
        matches!(&refused, Err(SnapshotError::Corrupt { detail, .. }) if detail.contains("cold")),
        "{refused:?}"
    );
}

/// A sender whose history is not what was written: no sum over the present shows it.
#[test]
fn a_snapshot_whose_versions_are_not_those_of_the_chain_is_refused() {
    let mut source = store(10);
    for number in 1..=5 {
        write(&mut source, number);
    }
    source.machine.make_durable().unwrap();
    let whole = chunks(&source);
    // The value of an old version of the hot key: "2" becomes "7".
    let at = whole[0]
        .windows(8)
        .position(|window| window == 3u64.to_be_bytes())
        .unwrap();
    let value_at = at + whole[0][at..].iter().position(|byte| *byte == b'2').unwrap();
    let target = store(10);
    let refused = receive(&target, &[with_byte(&whole[0], value_at, b'7')]);
    assert!(
        matches!(refused, Err(SnapshotError::WrongHash { .. })),
        "{refused:?}"
    );
    receive(&target, &whole).unwrap();
}

/// The story: heads of deleted keys stood in the way of every scan until a merge came by for other reasons, which in a store
/// that had become quiet was never.
#[test]
fn heads_of_deleted_keys_go_once_their_history_has_whatever_the_sizes_of_runs() {
    let mut settings = settings();
    settings.tuning.run_rows = 10;
    let mut store = Store::with(Arc::<MemoryDisk>::default(), OpenMode::Create, settings);
    let name = |number: u64| key(&format!("k{number:04}"));
    store
        .txn(Txn::new((0..400).map(|number| Op::put(name(number), value("")))))
        .unwrap();
    store.machine.make_durable().unwrap();
    for number in 0..300 {
        store.txn(Txn::new([Op::delete(name(number))])).unwrap();
    }
    store.machine.make_durable().unwrap();
    assert!(
        store.machine.begin_merging().is_none(),
        "what is deleted has its history yet"
    );
    let last = store.machine.applied().revision.number();
    compact(&mut store, last);
    forget(&mut store);
    let mut steps = 0;
    while let Some(step) = store.machine.begin_merging() {
        store.machine.end_checkpoint(step.write()).unwrap();
        steps += 1;
        assert!(steps < 100, "merging does not end");
    }
    assert!(steps > 0);
    assert_eq!(store.machine.runs(), 1);
    let published = store.reader.shared.get();
    let heads = published
        .state
        .base
        .heads(&KeyRange::all(), crate::model::Order::Ascending);
    let mut heads = heads.unwrap();
    let mut count = 0;
    while heads.next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 100, "of those that exist");
    store.verify();
}

/// By the log's time: what the entries bring.
#[test]
fn the_revision_that_stood_at_a_time_is_told_from_memory_and_from_the_file_as_far_back_as_history_goes() {
    let mut store = Store::new();
    let put_at = |store: &mut Store, millis: u64| {
        let txn = Txn::new([Op::put(key("a"), value("1"))]);
        store.one(millis, Command::Txn { session: None, txn });
        store.machine.applied().revision
    };
    let at = |store: &Store, millis: u64| {
        let view = store.reader.view().unwrap();
        view.revision_at(LogTime::from_millis(millis)).unwrap()
    };
    assert_eq!(at(&store, 10_000), None, "nothing was made");
    let first = put_at(&mut store, 5_000);
    put_at(&mut store, 5_999);
    let second = put_at(&mut store, 6_000);
    let third = put_at(&mut store, 60_000);
    let told =
        |store: &Store| [4_999, 5_000, 5_999, 6_000, 59_999, 60_000, u64::MAX].map(|time| at(store, time));
    let expected = [
        None,
        Some(first),
        Some(first),
        Some(second),
        Some(second),
        Some(third),
        Some(third),
    ];
    assert_eq!(told(&store), expected);
    store.machine.make_durable().unwrap();
    assert_eq!(told(&store), expected, "from the file");
    let mut store = store.reopened(settings());
    assert_eq!(told(&store), expected, "after a start");
    compact(&mut store, second.number());
    forget(&mut store);
    let oldest = Some(second);
    let expected = [None, None, None, oldest, oldest, Some(third), Some(third)];
    assert_eq!(told(&store), expected, "what is forgotten is told of no more");
}

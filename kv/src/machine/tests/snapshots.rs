//! Snapshots: what arrives is what was sent, or nothing.

use super::disk::MemoryDisk;
use super::*;
use crate::machine::{SnapshotError, SnapshotSink};
use crate::model::{
    Compare, Guard, KeyRange, Op, OpResult, RangeRead, RangeTest, ReadOp, Revision, Sequence, SessionId,
    SessionRef,
};

/// A store with something in every table, rows larger than a chunk among them.
fn filled() -> Store {
    let mut store = Store::new();
    store.one(5, Command::open_session(1_000));
    for i in 0..30u64 {
        let session = SessionRef {
            id: SessionId::ZERO,
            sequence: Sequence::new(i + 1),
            answered_below: Sequence::new(i.saturating_sub(5)),
        };
        let txn = Txn::new([
            Op::put(key(&format!("k{}", i % 7)), vec![i as u8; 60_000]),
            Op::PutSequence {
                prefix: key("q"),
                value: value("v"),
            },
        ]);
        store.one(
            i,
            Command::Txn {
                session: Some(session),
                txn,
            },
        );
    }
    store
        .txn(Txn::new([
            Op::delete(key("k3")),
            Op::put(key("large"), vec![1; 3_000_000]),
        ]))
        .unwrap();
    store.index += 1;
    let membership = Payload::Membership(Bytes::from_static(b"members"));
    store
        .machine
        .apply(vec![Entry {
            position: position(store.index),
            payload: membership,
        }])
        .unwrap();
    store.machine.make_durable().unwrap();
    store
}

fn chunks(reader: &Reader) -> Vec<Bytes> {
    let mut source = reader.snapshot().unwrap();
    std::iter::from_fn(|| source.next_chunk().unwrap()).collect()
}

fn begin(store: &Store) -> SnapshotSink {
    Machine::snapshot_sink(Arc::clone(&store.disk), dir()).unwrap()
}

fn reads() -> Vec<ReadOp> {
    vec![
        ReadOp::Range(RangeRead::new(KeyRange::all())),
        ReadOp::Get(key("k3")),
        ReadOp::Get(key("large")),
    ]
}

#[test]
fn an_installed_snapshot_reads_as_its_source_at_every_revision() {
    let mut source = filled();
    let mut target = Store::new();
    target
        .txn(Txn::new([Op::put(key("old"), value("state"))]))
        .unwrap();
    let pinned = target.reader.view().unwrap();

    let mut sink = begin(&target);
    for chunk in chunks(&source.reader) {
        assert!(chunk.len() <= 1024 * 1024, "{} bytes", chunk.len());
        sink.write(&chunk).unwrap();
    }
    let received = sink.finish().unwrap();
    assert_eq!(received.meta().position, source.machine.applied().position);
    assert_eq!(
        target.machine.applied().revision,
        Revision::new(2),
        "nothing is replaced before the install"
    );
    target.machine.install(received).unwrap();

    assert_eq!(target.machine.applied(), source.machine.applied());
    assert_eq!(target.machine.durable(), source.machine.applied().position);
    target.verify();
    let (a, b) = (source.reader.view().unwrap(), target.reader.view().unwrap());
    for revision in (1..=a.applied().revision.number()).map(Revision::new) {
        assert_eq!(
            a.read(&reads(), Some(revision)).unwrap(),
            b.read(&reads(), Some(revision)).unwrap()
        );
    }
    let old = pinned.read(&[ReadOp::Get(key("old"))], None).unwrap().unwrap();
    assert!(
        format!("{old:?}").contains("state"),
        "a view that was pinned before reads the old state"
    );
    drop(pinned);

    // Both go on alike, retries of the source's session included.
    target.index = source.index;
    let retry = |index| {
        let session = SessionRef {
            id: SessionId::ZERO,
            sequence: Sequence::new(30),
            answered_below: Sequence::new(1),
        };
        let txn = Txn::new([Op::put(key("again"), value(""))]);
        let fresh = Txn::new([Op::PutSequence {
            prefix: key("q"),
            value: value(""),
        }]);
        vec![
            Command::Txn {
                session: Some(session),
                txn,
            },
            Command::Txn {
                session: None,
                txn: fresh,
            },
            Command::open_session(index),
        ]
    };
    assert_eq!(source.apply(40, retry(1)), target.apply(40, retry(1)));
    assert_eq!(target.machine.applied(), source.machine.applied());

    target.machine.make_durable().unwrap();
    let Store {
        disk,
        machine,
        reader,
        ..
    } = target;
    drop((machine, reader));
    let (machine, _) = reopen(&disk);
    assert_eq!(
        machine.applied(),
        source.machine.applied(),
        "also after a restart"
    );
}

#[test]
fn an_installed_snapshot_survives_the_loss_of_power_at_once() {
    let source = filled();
    let disk = MemoryDisk::default();
    let mut target = Store::on(Arc::new(disk.clone()));
    let mut sink = begin(&target);
    chunks(&source.reader)
        .iter()
        .for_each(|chunk| sink.write(chunk).unwrap());
    target.machine.install(sink.finish().unwrap()).unwrap();
    disk.lose_power(|| false);
    drop((target.machine, target.reader));
    let (machine, _) = reopen(&target.disk);
    assert_eq!(machine.applied(), source.machine.applied());
}

#[test]
fn a_reception_that_power_cut_short_leaves_the_old_state() {
    let source = filled();
    let disk = MemoryDisk::default();
    let mut target = Store::on(Arc::new(disk.clone()));
    target
        .txn(Txn::new([Op::put(key("old"), value("state"))]))
        .unwrap();
    target.machine.make_durable().unwrap();
    let before = target.machine.applied().clone();
    let mut sink = begin(&target);
    chunks(&source.reader)
        .iter()
        .for_each(|chunk| sink.write(chunk).unwrap());
    let received = sink.finish().unwrap();
    disk.lose_power(|| true);
    drop((received, target.machine, target.reader));
    let (machine, _) = reopen(&target.disk);
    assert_eq!(machine.applied(), &before);
}

#[test]
fn a_snapshot_is_of_the_last_checkpoint_and_stays_as_it_was_while_entries_are_applied() {
    let mut store = filled();
    let before = store.machine.applied().clone();
    store.txn(Txn::new([Op::delete(key("k1"))])).unwrap();
    let mut source = store.reader.snapshot().unwrap();
    let meta = source.meta().clone();
    assert_eq!(meta.position, before.position);
    assert_eq!(meta.membership, before.membership);
    let mut target = Store::new();
    let mut sink = begin(&target);
    while let Some(chunk) = source.next_chunk().unwrap() {
        sink.write(&chunk).unwrap();
        store
            .txn(Txn::new([
                Op::put(key("k1"), value("later")),
                Op::delete(key("k2")),
            ]))
            .unwrap();
        store.machine.make_durable().unwrap();
    }
    target.machine.install(sink.finish().unwrap()).unwrap();
    assert_eq!(target.machine.applied().state_hash, meta.hash);
    target.verify();
}

#[test]
fn a_snapshot_that_is_not_ahead_is_dropped_and_the_state_kept() {
    let mut store = filled();
    let stale = chunks(&store.reader);
    store.txn(Txn::new([Op::put(key("newer"), value("1"))])).unwrap();
    let before = store.machine.applied().clone();
    let mut sink = begin(&store);
    stale.iter().for_each(|chunk| sink.write(chunk).unwrap());
    store.machine.install(sink.finish().unwrap()).unwrap();
    assert_eq!(store.machine.applied(), &before);
    store.verify();
}

#[test]
fn the_empty_state_can_be_sent() {
    let empty = Store::new();
    let target = Store::new();
    let mut sink = begin(&target);
    chunks(&empty.reader)
        .iter()
        .for_each(|chunk| sink.write(chunk).unwrap());
    assert_eq!(sink.finish().unwrap().meta().position, None);
}

#[test]
fn every_kind_of_damage_is_refused_and_leaves_state_and_directory_as_they_were() {
    type Check = fn(&SnapshotError) -> bool;
    let source = filled();
    let good = chunks(&source.reader);
    let other = {
        let mut other = filled();
        other.txn(Txn::new([Op::put(key("x"), value("1"))])).unwrap();
        other.machine.make_durable().unwrap();
        chunks(&other.reader)
    };
    assert!(good.len() >= 4, "{} chunks", good.len());
    let flipped = |at: usize, byte: usize| {
        let mut all = good.clone();
        let mut chunk = all[at].to_vec();
        let byte = byte % chunk.len();
        chunk[byte] ^= 1;
        all[at] = chunk.into();
        all
    };
    let edited = |edit: fn(&mut Vec<Bytes>)| {
        let mut all = good.clone();
        edit(&mut all);
        all
    };
    let corrupt: Check = |e| matches!(e, SnapshotError::Corrupt { .. });
    let order: Check = |e| matches!(e, SnapshotError::OutOfOrder { .. });
    let cases: Vec<(&str, Vec<Bytes>, Check)> = vec![
        ("a flipped bit of the version", flipped(0, 0), corrupt),
        ("a flipped bit of the head", flipped(0, 40), corrupt),
        ("a flipped bit of a number", flipped(1, 11), corrupt),
        ("a flipped bit of a row", flipped(1, 5_000), corrupt),
        ("a flipped bit of a checksum", flipped(2, usize::MAX), corrupt),
        (
            "a chunk cut short",
            edited(|c| c[1] = c[1].slice(..c[1].len() - 1)),
            corrupt,
        ),
        ("an empty chunk", edited(|c| c[1] = Bytes::new()), corrupt),
        ("a chunk left out", edited(|c| drop(c.remove(1))), order),
        ("a chunk twice", edited(|c| c.insert(1, c[1].clone())), order),
        ("two chunks exchanged", edited(|c| c.swap(1, 2)), order),
        ("the first chunk left out", edited(|c| drop(c.remove(0))), order),
        (
            "a chunk after the last",
            edited(|c| c.push(c[0].clone())),
            corrupt,
        ),
        ("the last chunk left out", edited(|c| drop(c.pop())), |e| {
            matches!(e, SnapshotError::Incomplete { .. })
        }),
        ("no chunk", Vec::new(), |e| {
            matches!(e, SnapshotError::Incomplete { chunks: 0 })
        }),
        (
            "a chunk of another snapshot",
            vec![good[0].clone(), other[1].clone()],
            |e| matches!(e, SnapshotError::AnotherSnapshot { .. }),
        ),
    ];
    let disk = MemoryDisk::default();
    let mut target = Store::on(Arc::new(disk.clone()));
    target
        .txn(Txn::new([Op::put(key("old"), value("state"))]))
        .unwrap();
    let before = target.machine.applied().clone();
    for (name, chunks, expected) in cases {
        let mut sink = begin(&target);
        let refused = chunks.iter().try_for_each(|chunk| sink.write(chunk)).err();
        let refused = match refused {
            Some(error) => {
                assert!(
                    sink.write(&good[0]).is_err(),
                    "{name}: nothing is taken after an error"
                );
                assert!(sink.finish().is_err(), "{name}");
                error
            }
            None => sink.finish().expect_err(name),
        };
        assert!(expected(&refused), "{name}: {refused:?}");
        let state = [
            "/node/state.redb",
            "/node/state.redb.sums-a",
            "/node/state.redb.sums-b",
        ];
        assert_eq!(disk.names(), state, "{name}: the file is gone");
        assert_eq!(target.machine.applied(), &before, "{name}");
        target.verify();
    }
}

#[test]
fn a_snapshot_of_another_history_is_told_by_its_place() {
    use crate::model::{LogIndex, LogPosition, NodeId, Term};

    let at = |term, index| LogPosition {
        term: Term::new(term),
        leader: NodeId::new(1),
        index: LogIndex::new(index),
    };
    let cases = [
        ("the same", at(2, 5), at(2, 5), true),
        ("later in the same term", at(2, 5), at(2, 9), true),
        ("later in a later term", at(2, 5), at(3, 9), true),
        ("another entry at the same place", at(2, 5), at(3, 5), false),
        ("earlier of a later term", at(2, 5), at(3, 4), false),
        ("later of an earlier term", at(2, 5), at(1, 9), false),
    ];
    for (case, one, other, expected) in cases {
        assert_eq!(
            crate::machine::owner::are_of_one_history(one, other),
            expected,
            "{case}"
        );
        assert_eq!(
            crate::machine::owner::are_of_one_history(other, one),
            expected,
            "{case}"
        );
    }
}

/// The write of the checkpoint failed, since its file had been replaced; redb answered nobody any more; and a read of a view
/// that was pinned before ended the node's part.
#[test]
fn a_view_stays_readable_though_a_snapshot_replaces_its_state_while_a_checkpoint_is_written() {
    use std::sync::Mutex;
    let source = filled();
    // More than the cache holds, so that the view's reads go to the file.
    let disk = MemoryDisk::default();
    let mut target = Store::on(Arc::new(disk.clone()));
    let content = |i: usize| vec![i as u8; 1_500_000];
    for i in 0..6 {
        let put = Op::put(key(&format!("k{i}")), content(i));
        target.txn(Txn::new([put])).unwrap();
    }
    target.machine.make_durable().unwrap();
    for i in 0..6 {
        let put = Op::put(key(&format!("k{i}")), content(i + 10));
        target.txn(Txn::new([put])).unwrap();
    }
    let mut sink = begin(&target);
    for chunk in chunks(&source.reader) {
        sink.write(&chunk).unwrap();
    }
    let received = sink.finish().unwrap();
    let pinned = target.reader.view().unwrap();
    let whole = pinned.applied().revision;
    let checkpoint = target.machine.begin_checkpoint().unwrap();

    let Store {
        mut index,
        machine,
        reader,
        ..
    } = target;
    let machine = Arc::new(Mutex::new(machine));
    let installing = Arc::clone(&machine);
    disk.meanwhile(&dir().join("state.redb"), move || {
        installing.lock().unwrap().install(received).unwrap();
    });
    let end = checkpoint.write();
    let mut machine = Arc::into_inner(machine)
        .expect("it was installed")
        .into_inner()
        .unwrap();
    assert_eq!(machine.applied(), source.machine.applied());
    machine.end_checkpoint(end).unwrap();

    // The state of before the checkpoint, and that of the revisions before.
    for (older, at) in [(10, None), (10, Some(whole)), (0, Some(Revision::new(7)))] {
        for i in 0..6 {
            let get = ReadOp::Get(key(&format!("k{i}")));
            let read = pinned.read(&[get], at).unwrap().unwrap();
            let [crate::model::ReadResult::Get(Some(record))] = &read[..] else {
                panic!("k{i} at {at:?}: {read:?}");
            };
            assert!(record.value == content(i + older), "k{i} at {at:?}");
        }
    }
    pinned.verify_hash().unwrap();
    drop(pinned);

    // And the new state goes on.
    assert_eq!(machine.durable(), source.machine.applied().position);
    index = index.max(source.index) + 1;
    let txn = Txn::new([Op::put(key("new"), value("1"))]);
    let entry = proposal(index, 0, vec![Command::Txn { session: None, txn }]);
    machine.apply(vec![entry]).unwrap();
    machine.make_durable().unwrap();
    machine.verify_hash().unwrap();
    let read = reader.view().unwrap().read(&[ReadOp::Get(key("new"))], None);
    assert!(read.unwrap().is_ok());
}

/// What scans had gone by in the old state was taken to be without keys in the new one, and a transaction's range missed them.
#[test]
fn what_a_snapshot_brings_is_found_by_ranges_that_went_by_deleted_keys_before() {
    const KEYS: usize = 20;
    let name = |i: usize| key(&format!("k{i:02}"));
    let put_all = || Txn::new((0..KEYS).map(|i| Op::put(name(i), value("1"))));
    let counted = |count| Guard::range(KeyRange::prefix("k"), RangeTest::Count(Compare::Equal, count));
    let range = || Txn::new([Op::Range(RangeRead::new(KeyRange::prefix("k")))]);

    let mut target = Store::new();
    target.txn(put_all()).unwrap();
    let deletes = (0..KEYS).map(|i| Op::delete(name(i)));
    target.txn(Txn::new(deletes)).unwrap();
    let none = target.txn(range().when(counted(0))).unwrap();
    assert!(none.succeeded, "{none:?}");
    assert_eq!(target.machine.gaps.len(), 1, "the deleted keys were gone by");

    // The same history, and what came after it.
    let mut source = Store::new();
    source.index = target.index;
    source.txn(put_all()).unwrap();
    source.machine.make_durable().unwrap();
    let mut sink = begin(&target);
    for chunk in chunks(&source.reader) {
        sink.write(&chunk).unwrap();
    }
    target.machine.install(sink.finish().unwrap()).unwrap();
    target.index = source.index;

    let all = target.txn(range().when(counted(KEYS as u64))).unwrap();
    assert!(all.succeeded, "{:?}", all.failed);
    let [OpResult::Range { records, .. }] = &all.results[..] else {
        panic!("{all:?}");
    };
    let keys: Vec<Key> = records.iter().map(|record| record.key.clone()).collect();
    assert_eq!(keys, (0..KEYS).map(name).collect::<Vec<_>>());
    target.verify();
}

//! Shrinking: the state file becomes as small as what it holds, and nobody else notices.

use super::*;
use crate::machine::{NotShrunk, Shrunk};
use crate::model::{KeyRange, Op, RangeRead, ReadOp, ReadResult, Revision};

/// A store whose file is much larger than what it holds.
fn large() -> Store {
    let mut store = Store::new();
    for number in 0..100 {
        store
            .txn(Txn::new([Op::put(key(&format!("k{number}")), vec![7; 30_000])]))
            .unwrap();
        if number % 10 == 0 {
            store.machine.make_durable().unwrap();
        }
    }
    store
        .txn(Txn::new([Op::delete_some_of(KeyRange::all(), 95)]))
        .unwrap();
    let revision = store.machine.applied().revision;
    store.one(0, Command::Compact { revision });
    store.machine.make_durable().unwrap();
    while let Some(step) = store.machine.begin_forgetting() {
        store.machine.end_checkpoint(step.write()).unwrap();
    }
    store
}

fn all(store: &Store) -> Vec<ReadResult> {
    let all = ReadOp::Range(RangeRead::new(KeyRange::all()));
    store.reader.view().unwrap().read(&[all], None).unwrap().unwrap()
}

fn unfinished(store: &Store) -> usize {
    let names = store.disk.list(dir()).unwrap();
    let is_unfinished = |path: &&std::path::PathBuf| path.to_string_lossy().contains("unfinished");
    names.iter().filter(is_unfinished).count()
}

#[test]
fn a_file_that_gave_much_up_becomes_as_small_as_what_it_holds_while_entries_are_applied() {
    let mut store = large();
    let before = store.machine.file_bytes();
    let old_view = store.reader.view().unwrap();
    let was = all(&store);
    let copy = store
        .machine
        .begin_shrinking()
        .unwrap()
        .expect("nothing is under way");
    assert!(store.machine.is_shrinking());
    assert!(store.machine.begin_checkpoint().is_none(), "one at a time");
    assert!(store.machine.begin_forgetting().is_none(), "one at a time");
    // What is applied meanwhile is in memory, and stays there.
    store
        .txn(Txn::new([Op::put(key("meanwhile"), value("1"))]))
        .unwrap();
    let applied = store.machine.applied().clone();
    store.machine.end_checkpoint(copy.write()).unwrap();
    let Some(Ok(Shrunk { before: told, after })) = store.machine.take_shrunk() else {
        panic!("it was not shrunk");
    };
    assert_eq!((told, after), (before, store.machine.file_bytes()));
    assert!(before > 3_000_000 && after < 600_000, "{before} to {after}");
    assert_eq!(store.machine.applied(), &applied);
    assert_eq!(unfinished(&store), 0);
    store.verify();
    // Whoever pinned the old file goes on reading it.
    let ops = [ReadOp::Range(RangeRead::new(KeyRange::all()))];
    assert_eq!(old_view.read(&ops, None).unwrap().unwrap(), was);
    store.machine.make_durable().unwrap();
    store.txn(Txn::new([Op::delete(key("k99"))])).unwrap();
    let there = all(&store);
    store.machine.make_durable().unwrap();
    store.verify();
    drop(old_view);
    let store = store.reopened(settings());
    assert_eq!(all(&store), there);
    store.verify();
}

#[test]
fn a_copy_that_is_cancelled_leaves_the_file_as_it_was() {
    let mut store = large();
    let (before, was) = (store.machine.file_bytes(), all(&store));
    let copy = store
        .machine
        .begin_shrinking()
        .unwrap()
        .expect("nothing is under way");
    store.machine.cancel_shrinking();
    store.machine.end_checkpoint(copy.write()).unwrap();
    assert_eq!(store.machine.take_shrunk(), Some(Err(NotShrunk::Interrupted)));
    assert_eq!(store.machine.take_shrunk(), None, "it is told once");
    assert!(!store.machine.is_shrinking());
    assert_eq!((store.machine.file_bytes(), unfinished(&store)), (before, 0));
    assert_eq!(all(&store), was);
    store.txn(Txn::new([Op::put(key("later"), value("1"))])).unwrap();
    store.machine.make_durable().unwrap();
    store.verify();
}

/// The story: the copy of a state that a snapshot had replaced meanwhile must not take the snapshot's place.
#[test]
fn a_copy_of_a_state_that_a_snapshot_replaced_is_thrown_away() {
    let mut ahead = large();
    let mut store = large();
    let copy = store
        .machine
        .begin_shrinking()
        .unwrap()
        .expect("nothing is under way");
    let end = copy.write();
    ahead.txn(Txn::new([Op::put(key("ahead"), value("1"))])).unwrap();
    ahead.machine.make_durable().unwrap();
    let mut source = ahead.reader.snapshot().unwrap();
    let mut sink = Machine::snapshot_sink(Arc::clone(&store.disk), dir()).unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        sink.write(&chunk).unwrap();
    }
    store.machine.install(sink.finish().unwrap()).unwrap();
    // Seed 700080: the next copy had the same name, and lost its files as the first was thrown away.
    let next = store
        .machine
        .begin_shrinking()
        .unwrap()
        .expect("that one is over");
    let next = next.write();
    store.machine.end_checkpoint(end).unwrap();
    assert_eq!(store.machine.take_shrunk(), Some(Err(NotShrunk::Interrupted)));
    store.machine.end_checkpoint(next).unwrap();
    assert!(matches!(store.machine.take_shrunk(), Some(Ok(_))));
    assert_eq!(all(&store), all(&ahead));
    assert_eq!(unfinished(&store), 0);
    store.verify();
    let store = store.reopened(settings());
    assert_eq!(all(&store), all(&ahead));
    assert_eq!(store.machine.applied().revision, Revision::new(103));
}

#[test]
fn no_copy_begins_where_the_disk_has_no_room_for_a_second_file_and_for_the_log() {
    let disk = Arc::new(disk::MemoryDisk::default());
    let mut store = Store::with_a_key(&disk);
    let wanted = store.machine.file_bytes() + (64 << 20);
    disk.say_free(wanted - 1);
    let refused = store.machine.begin_shrinking().err();
    let free = wanted - 1;
    assert_eq!(refused, Some(NotShrunk::NoRoom { free, wanted }));
    assert!(!store.machine.is_shrinking());
    assert_eq!(unfinished(&store), 0);
    disk.say_free(wanted);
    let copy = store.machine.begin_shrinking().unwrap().expect("it has room");
    store.machine.end_checkpoint(copy.write()).unwrap();
    assert!(matches!(store.machine.take_shrunk(), Some(Ok(_))));
    store.verify();
}

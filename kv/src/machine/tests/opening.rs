//! What is opened, what is refused, and what a fault leaves behind.

use super::disk::MemoryDisk;
use super::*;
use crate::fault::Fault;
use crate::machine::file::database;
use crate::machine::{Applied, MachineOpenError};
use crate::model::{Op, ReadOp, ReadResult, Revision};

const STATE: &str = "/node/state.redb";

fn with_entries() -> (MemoryDisk, Applied) {
    let disk = MemoryDisk::default();
    let mut store = Store::on(Arc::new(disk.clone()));
    for i in 0..50 {
        store
            .txn(Txn::new([Op::put(key(&format!("k{i}")), vec![i as u8; 500])]))
            .unwrap();
    }
    store.machine.make_durable().unwrap();
    let applied = store.machine.applied().clone();
    (disk, applied)
}

fn open(disk: &MemoryDisk, mode: OpenMode) -> Result<(Machine, Reader), MachineOpenError> {
    Machine::open(Arc::new(disk.clone()), dir(), mode, settings())
}

#[test]
fn a_missing_or_empty_state_file_is_an_error_and_never_a_new_database() {
    let disk = MemoryDisk::default();
    let missing = |disk: &MemoryDisk| match open(disk, OpenMode::Existing) {
        Err(MachineOpenError::Missing { path }) => assert_eq!(path, Path::new(STATE)),
        other => panic!("a missing file answered {other:?}"),
    };
    missing(&disk);
    let (disk, _) = with_entries();
    disk.tamper(Path::new(STATE), Vec::clear);
    missing(&disk);
    disk.tamper(Path::new(STATE), |bytes| {
        assert!(bytes.is_empty(), "it was left as it was")
    });
}

#[test]
fn a_file_that_is_no_whole_state_file_is_refused_and_left_as_it_is() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 4] = [
        ("text", |bytes| *bytes = b"not a database".to_vec()),
        ("zeros", |bytes| bytes.fill(0)),
        ("cut to a page", |bytes| bytes.truncate(4096)),
        ("cut to half", |bytes| bytes.truncate(bytes.len() / 2)),
    ];
    for (name, damage) in cases {
        let (disk, _) = with_entries();
        disk.tamper(Path::new(STATE), damage);
        match open(&disk, OpenMode::Existing) {
            Err(MachineOpenError::Corrupt { path, .. }) => assert_eq!(path, Path::new(STATE), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn rot_anywhere_in_the_file_is_found_when_it_is_opened_or_read_or_does_not_touch_the_state() {
    let (disk, applied) = with_entries();
    let mut size = 0;
    disk.tamper(Path::new(STATE), |bytes| size = bytes.len());
    let (mut found, mut read, mut told) = (0, 0, String::new());
    for at in (0..size).step_by(997) {
        let (disk, _) = with_entries();
        disk.tamper(Path::new(STATE), |bytes| {
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 0x10;
        });
        match open(&disk, OpenMode::Existing) {
            Err(error @ (MachineOpenError::Corrupt { .. } | MachineOpenError::Fault(_))) => {
                found += 1;
                told = error.to_string();
            }
            Err(other) => panic!("a flipped bit at {at}: {other:?}"),
            Ok((machine, reader)) => {
                assert!(machine.applied().revision <= applied.revision);
                match reader.view().unwrap().verify_hash() {
                    Err(fault) => {
                        assert!(
                            matches!(fault, Fault::Corrupt { .. }),
                            "a flipped bit at {at}: {fault}"
                        );
                        read += 1;
                    }
                    // A page that nothing uses; or redb fell back to the commit before, which is whole.
                    Ok(hash) => assert_eq!(hash, machine.applied().state_hash, "a flipped bit at {at}"),
                }
            }
        }
    }
    // With debug assertions redb goes through all pages in use when it opens a file; what a release finds later,
    // `backend` tests.
    assert!(
        found + read > 0,
        "{found} met what opening reads, {read} other pages in use; the last: {told}"
    );
}

#[test]
fn another_database_is_no_state_file() {
    let disk = MemoryDisk::default();
    let dyn_disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (other, _) = database::open_database(&*dyn_disk, Path::new(STATE), 1 << 20, false, true).unwrap();
    other.begin_write().unwrap().commit().unwrap();
    other.close().unwrap();
    match open(&disk, OpenMode::Existing) {
        Err(MachineOpenError::Corrupt { detail, .. }) => {
            assert!(detail.contains("not a state file"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_state_of_a_later_format_is_refused_with_its_version() {
    let (disk, _) = with_entries();
    {
        let (database, _) = database::open_database(&disk, Path::new(STATE), 1 << 20, false, false).unwrap();
        let txn = database.begin_write().unwrap();
        let mut table = txn.open_table(crate::machine::rows::tables::SYSTEM).unwrap();
        let mut row = crate::machine::rows::system::format_row();
        row[9] = 77;
        table
            .insert(crate::machine::rows::system::FORMAT, &row[..])
            .unwrap();
        drop(table);
        txn.commit().unwrap();
    }
    match open(&disk, OpenMode::Existing) {
        Err(MachineOpenError::UnknownFormat { found: 77, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn creating_where_a_state_is_opens_it_only_if_it_is_still_empty() {
    let disk = MemoryDisk::default();
    drop(open(&disk, OpenMode::Create).unwrap());
    drop(open(&disk, OpenMode::Create).unwrap());
    let (disk, _) = with_entries();
    match open(&disk, OpenMode::Create) {
        Err(MachineOpenError::Exists { path }) => assert_eq!(path, Path::new(STATE)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_creation_that_power_cut_short_leaves_nothing_or_a_whole_empty_state() {
    let disk = MemoryDisk::default();
    let (machine, reader) = open(&disk, OpenMode::Create).unwrap();
    disk.lose_power(|| false);
    drop((machine, reader));
    let (machine, _) = open(&disk, OpenMode::Existing).unwrap();
    assert_eq!(machine.applied().revision, Revision::FIRST);
    assert_eq!(machine.applied().position, None);
}

#[test]
fn what_receptions_left_behind_is_removed_when_the_machine_opens() {
    let (disk, _) = with_entries();
    let leftover = Path::new("/node/state.unfinished-3");
    disk.open(leftover, true)
        .unwrap()
        .write_all_at(b"half", 0)
        .unwrap();
    drop(open(&disk, OpenMode::Existing).unwrap());
    assert_eq!(
        disk.names(),
        [STATE, "/node/state.redb.sums-a", "/node/state.redb.sums-b"]
    );
}

#[test]
fn an_entry_that_cannot_be_decoded_stops_the_machine_and_keeps_nothing_of_the_batch() {
    let mut store = Store::new();
    store.txn(Txn::new([Op::put(key("a"), value("1"))])).unwrap();
    let before = store.machine.applied().clone();
    let good = proposal(
        2,
        0,
        vec![Command::Txn {
            session: None,
            txn: Txn::new([Op::delete(key("a"))]),
        }],
    );
    let bad = Entry {
        position: position(3),
        payload: Payload::Proposal(Bytes::from_static(b"\x01garbage")),
    };
    let fault = store.machine.apply(vec![good.clone(), bad]).unwrap_err();
    assert!(matches!(fault, Fault::Corrupt { .. }), "{fault}");
    assert!(
        store.machine.apply(vec![good]).is_err(),
        "a machine that met a fault does nothing any more"
    );
    assert!(store.machine.make_durable().is_err());
    let view = store.reader.view().unwrap();
    assert_eq!(view.applied().position, before.position);
    assert_eq!(view.applied().state_hash, before.state_hash);
    let read = view.read(&[ReadOp::Get(key("a"))], None).unwrap().unwrap();
    assert!(matches!(&read[..], [ReadResult::Get(Some(_))]), "{read:?}");
}

#[test]
fn what_was_applied_is_durable_only_after_it_was_made_so() {
    let mut store = Store::new();
    assert_eq!(store.machine.durable(), None);
    store.txn(Txn::new([Op::put(key("a"), value("1"))])).unwrap();
    assert_eq!(store.machine.durable(), None);
    assert_eq!(store.machine.entries_since_checkpoint(), 1);
    assert!(store.machine.bytes_since_checkpoint() > 0);
    store.machine.make_durable().unwrap();
    assert_eq!(store.machine.durable(), Some(position(1)));
    assert_eq!(
        (
            store.machine.entries_since_checkpoint(),
            store.machine.bytes_since_checkpoint()
        ),
        (0, 0)
    );
}

#[test]
fn a_dropped_machine_writes_nothing_more_even_when_a_view_outlives_it() {
    let disk = MemoryDisk::default();
    let mut store = Store::on(Arc::new(disk.clone()));
    store.txn(Txn::new([Op::put(key("a"), value("1"))])).unwrap();
    store.machine.make_durable().unwrap();
    store.txn(Txn::new([Op::put(key("a"), value("2"))])).unwrap();
    let view = store.reader.view().unwrap();
    drop((store.machine, store.reader));
    let (mut machine, reader) = reopen(&store.disk);
    assert_eq!(
        machine.applied().position,
        Some(position(1)),
        "what was durable, no more"
    );
    let put = Command::Txn {
        session: None,
        txn: Txn::new([Op::put(key("b"), value("3"))]),
    };
    machine.apply(vec![proposal(2, 0, vec![put])]).unwrap();
    machine.make_durable().unwrap();
    let mut before = Vec::new();
    disk.tamper(Path::new(STATE), |bytes| before = bytes.clone());
    // The last view closes the first machine's database, under the feet of the second.
    drop(view);
    disk.tamper(Path::new(STATE), |bytes| {
        assert!(*bytes == before, "the file changed")
    });
    let hash = reader.view().unwrap().verify_hash().unwrap();
    assert_eq!(hash, machine.applied().state_hash);
}

#[test]
fn the_membership_is_kept_with_its_place_in_the_log() {
    let mut store = Store::new();
    let hash = store.machine.applied().state_hash;
    let members = Bytes::from_static(b"1, 2, 3");
    let entries = vec![
        Entry {
            position: position(1),
            payload: Payload::Membership(members.clone()),
        },
        Entry {
            position: position(2),
            payload: Payload::Blank,
        },
    ];
    assert_eq!(
        store.machine.apply(entries).unwrap(),
        [EntryOutcome::Membership, EntryOutcome::Blank]
    );
    store.machine.make_durable().unwrap();
    let Store { machine, .. } = store.reopened(settings());
    assert_eq!(machine.applied().membership, Some((position(1), members)));
    assert_eq!(machine.applied().position, Some(position(2)));
    assert_eq!(
        machine.applied().state_hash,
        hash,
        "neither is part of the replicated tables"
    );
}

/// The last view of a state closes its database, on a thread of the program that embeds the node.
#[test]
fn a_panic_while_a_database_is_closed_reaches_none_of_its_readers() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let memory = MemoryDisk::default();
    let mut store = Store::on(Arc::new(memory.clone()));
    store.txn(Txn::new([Op::put(key("k"), value("v"))])).unwrap();
    store.machine.make_durable().unwrap();
    drop(store);
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let loaded = crate::machine::file::opening::load(&disk, dir(), &settings()).unwrap();
    let met = Arc::new(AtomicBool::new(false));
    let meeting = Arc::clone(&met);
    memory.meanwhile(Path::new(STATE), move || {
        meeting.store(true, Ordering::SeqCst);
        panic!("a lock of the database is poisoned");
    });
    drop(loaded);
    assert!(met.load(Ordering::SeqCst), "closing it writes");
    reopen(&disk).0.verify_hash().unwrap();
}

/// Nodes compare what they have at agreed entries, and each is fed in cuts of its own.
#[test]
fn the_hashes_that_are_kept_are_those_behind_agreed_entries_however_entries_are_cut() {
    let mut settings = settings();
    settings.tuning.hash_entries = 5;
    let entries = |range: std::ops::RangeInclusive<u64>| {
        let put = |index: u64| {
            let txn = Txn::new([crate::model::Op::put(key(&format!("k{index}")), value("v"))]);
            proposal(index, 0, vec![Command::Txn { session: None, txn }])
        };
        range.map(put).collect::<Vec<_>>()
    };
    let start = || {
        let disk: Arc<dyn Disk> = Arc::<disk::MemoryDisk>::default();
        Machine::open(disk, dir(), OpenMode::Create, settings.clone()).unwrap()
    };
    let (mut single, single_reader) = start();
    let mut expected = Vec::new();
    for index in 1..=22 {
        single.apply(entries(index..=index)).unwrap();
        if index % 5 == 0 {
            let applied = single.applied();
            expected.push((applied.position.unwrap(), applied.state_hash));
        }
    }
    assert_eq!(single_reader.view().unwrap().hashes(), expected);
    for cuts in [
        vec![1..=22],
        vec![1..=7, 8..=9, 10..=22],
        vec![1..=5, 6..=20, 21..=22],
    ] {
        let (mut machine, reader) = start();
        for cut in cuts.clone() {
            machine.apply(entries(cut)).unwrap();
        }
        assert_eq!(reader.view().unwrap().hashes(), expected, "{cuts:?}");
    }
}

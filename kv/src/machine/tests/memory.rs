//! What memory tells of the state without the file: nothing else than the file does, and nothing of what it would have to
//! look for there.

use super::disk::MemoryDisk;
use super::*;
use crate::machine::file::database::FILE_NAME;
use crate::machine::{ReadBudget, View};
use crate::model::{Op, ReadOp, ReadResult, Revision};

const KEYS: usize = 300;

fn name(i: usize) -> Key {
    key(&format!("k{i:04}"))
}

fn content(i: usize) -> Vec<u8> {
    vec![i as u8 | 1; 600]
}

/// Room for some records, and for some pages, of all that there are.
fn narrow() -> MachineSettings {
    MachineSettings {
        cache_bytes: 160 * 1024,
        ..settings()
    }
}

/// A state that has all keys in its file alone.
fn filled(disk: &MemoryDisk) -> (Machine, Reader) {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut machine, _) = Machine::open(Arc::clone(&disk), dir(), OpenMode::Create, narrow()).unwrap();
    let txn = Txn::new((0..KEYS).map(|i| Op::put(name(i), content(i))));
    machine
        .apply(vec![proposal(1, 0, vec![Command::Txn { session: None, txn }])])
        .unwrap();
    machine.make_durable().unwrap();
    drop(machine);
    Machine::open(disk, dir(), OpenMode::Existing, narrow()).unwrap()
}

fn recalled(view: &View, reads: &[ReadOp], at: Option<Revision>) -> Option<Vec<ReadResult>> {
    let recalled = view.recall(reads, at, ReadBudget::UNLIMITED);
    recalled.map(|(_, results)| results)
}

fn get(i: usize) -> [ReadOp; 1] {
    [ReadOp::Get(name(i))]
}

#[test]
fn what_memory_does_not_have_is_not_looked_for_on_the_disk_and_is_there_once_it_was_read() {
    let disk = MemoryDisk::default();
    let (_machine, reader) = filled(&disk);
    let view = reader.view().unwrap();
    let reads = || disk.reads(&dir().join(FILE_NAME));
    let mut of_the_disk = 0;
    // A key that never was is known not to be there, too.
    for i in 0..=KEYS {
        let before = reads();
        assert_eq!(recalled(&view, &get(i), None), None, "key {i}");
        assert_eq!(reads(), before, "nobody waits for the disk");
        let read = view.read(&get(i), None).unwrap().unwrap();
        assert_eq!(read == [ReadResult::Get(None)], i == KEYS);
        of_the_disk += u64::from(reads() > before);
        let before = reads();
        assert_eq!(recalled(&view, &get(i), None), Some(read));
        assert_eq!(reads(), before);
    }
    assert!(of_the_disk > 0, "the pages did not all fit into memory");
}

#[test]
fn what_was_written_since_the_checkpoint_is_in_memory_and_a_checkpoint_leaves_there_what_has_room() {
    let mut store = Store::new();
    for (at, text) in ["one", "two"].into_iter().enumerate() {
        store.txn(Txn::new([Op::put(key("k"), value(text))])).unwrap();
        let read = [ReadOp::Get(key("k"))];
        let is_told = |view: &View| {
            let told = recalled(view, &read, None).expect("memory has it");
            assert!(matches!(&told[..], [ReadResult::Get(Some(record))] if record.value == value(text)));
        };
        is_told(&store.reader.view().unwrap());
        let before = store.reader.view().unwrap();
        let checkpoint = store
            .machine
            .begin_checkpoint()
            .expect("there is something to write");
        is_told(&store.reader.view().unwrap());
        let end = checkpoint.write();
        // The file has another revision now than these views read, which have it in a layer.
        is_told(&before);
        is_told(&store.reader.view().unwrap());
        store.machine.end_checkpoint(end).unwrap();
        is_told(&store.reader.view().unwrap());
        is_told(&before);
        assert_eq!(
            store.reader.view().unwrap().applied().revision.number(),
            at as u64 + 2
        );
    }
    let deleted = Txn::new([Op::delete(key("k"))]);
    store.txn(deleted).unwrap();
    store.machine.make_durable().unwrap();
    let view = store.reader.view().unwrap();
    assert_eq!(
        recalled(&view, &[ReadOp::Get(key("k"))], None),
        Some(vec![ReadResult::Get(None)])
    );
}

#[test]
fn more_keys_or_bytes_than_a_budget_has_are_not_told_nor_what_the_file_alone_can_answer() {
    let mut store = Store::new();
    for i in 0..4 {
        store.txn(Txn::new([Op::put(name(i), content(i))])).unwrap();
    }
    let view = store.reader.view().unwrap();
    let reads: Vec<ReadOp> = (0..4).map(|i| ReadOp::Get(name(i))).collect();
    let told = |keys, bytes| view.recall(&reads, None, ReadBudget { keys, bytes }).is_some();
    let bytes = 4 * (5 + 600 + 64);
    assert!(told(4, bytes));
    assert!(!told(3, bytes) && !told(4, bytes - 1));
    let range = [ReadOp::Range(crate::model::RangeRead::new(
        crate::model::KeyRange::all(),
    ))];
    assert_eq!(recalled(&view, &range, None), None);
    let at = |revision| recalled(&view, &reads[..3], Some(Revision::new(revision)));
    assert!(at(5).is_some() && at(4).is_some());
    assert_eq!(at(3), None, "whether the file has the third key is not known");
    assert_eq!(at(6), None, "it is not there yet");
    // Once the file has them, what was before is the file's to tell.
    store.machine.make_durable().unwrap();
    let view = store.reader.view().unwrap();
    let at = |revision| recalled(&view, &reads[..3], Some(Revision::new(revision)));
    assert!(at(5).is_some());
    assert_eq!(at(4), None);
}

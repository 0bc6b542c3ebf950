//! What rots under an open state is found when it is read, and by the scrubber; it is never served.

use super::disk::MemoryDisk;
use super::*;
use crate::fault::Fault;
use crate::machine::Scrubber;
use crate::machine::file::database::FILE_NAME;
use crate::model::{KeyRange, Op, RangeRead, ReadOp, ReadResult};

const KEYS: usize = 300;
const PAGE: usize = 4096;

/// A durable state of many pages, of which redb keeps so many bytes in memory.
fn filled(disk: &MemoryDisk, cache_bytes: usize) -> (Machine, Reader) {
    let settings = MachineSettings {
        cache_bytes,
        ..settings()
    };
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut machine, _) =
        Machine::open(Arc::clone(&disk), dir(), OpenMode::Create, settings.clone()).unwrap();
    let puts = (0..KEYS).map(|i| Op::put(key(&name(i)), content(i)));
    let txn = Txn::new(puts);
    let fill = proposal(1, 0, vec![Command::Txn { session: None, txn }]);
    machine.apply(vec![fill]).unwrap();
    machine.make_durable().unwrap();
    drop(machine);
    Machine::open(disk, dir(), OpenMode::Existing, settings).unwrap()
}

fn name(i: usize) -> String {
    format!("k{i:04}")
}

fn content(i: usize) -> Vec<u8> {
    vec![i as u8 | 1; 600]
}

fn tamper(disk: &MemoryDisk, change: impl FnOnce(&mut Vec<u8>)) {
    disk.tamper(&dir().join(FILE_NAME), change);
}

fn size(disk: &MemoryDisk) -> usize {
    let mut size = 0;
    tamper(disk, |bytes| size = bytes.len());
    size
}

fn flip(disk: &MemoryDisk, at: usize) {
    tamper(disk, |bytes| bytes[at] ^= 0x20);
}

fn all() -> ReadOp {
    ReadOp::Range(RangeRead::new(KeyRange::all()))
}

/// Whether a fault names the page of that byte.
fn is_at(fault: &Fault, at: usize) -> bool {
    match fault {
        Fault::Corrupt { path, offset, .. } => {
            path.ends_with(FILE_NAME) && *offset as usize == at / PAGE * PAGE
        }
        _ => false,
    }
}

/// redb verifies pages when it opens a file and not when it reads one: a flipped bit of a value was served.
#[test]
fn what_rots_under_an_open_state_is_found_when_it_is_read_and_never_served() {
    let (mut found, mut unused) = (0, 0);
    let disk = MemoryDisk::default();
    drop(filled(&disk, 0));
    for at in (PAGE..size(&disk)).step_by(3_001) {
        let disk = MemoryDisk::default();
        let (_machine, reader) = filled(&disk, 0);
        flip(&disk, at);
        match reader.view().unwrap().read(&[all()], None) {
            Err(fault) => {
                assert!(is_at(&fault, at), "a bit at {at}: {fault}");
                // What comes after tells the same, and not that something failed before.
                let again = reader.view().unwrap().read(&[ReadOp::Get(key("k0001"))], None);
                assert!(again.is_err_and(|fault| is_at(&fault, at)));
                found += 1;
            }
            Ok(results) => {
                let results = results.unwrap();
                let [ReadResult::Range { records, .. }] = &results[..] else {
                    panic!("{results:?}");
                };
                assert_eq!(records.len(), KEYS);
                for (i, record) in records.iter().enumerate() {
                    assert_eq!(
                        record.record.value,
                        content(i),
                        "served from a page with a flipped bit at {at}"
                    );
                }
                unused += 1;
            }
        }
    }
    assert!(
        found > 20 && unused > 0,
        "{found} met what is read, {unused} did not"
    );
}

/// Scrubs a whole pass; answers how much it read.
fn scrub(scrubber: &mut Scrubber) -> Result<u64, Fault> {
    let mut bytes = 0;
    loop {
        let scrubbed = scrubber.step()?;
        bytes += scrubbed.bytes;
        if scrubbed.left == 0 {
            return Ok(bytes);
        }
    }
}

#[test]
fn the_scrubber_finds_what_rots_where_the_page_is_in_memory_and_where_nobody_reads_it() {
    let disk = MemoryDisk::default();
    drop(filled(&disk, 1 << 20));
    let (mut found, mut free) = (0, 0);
    for at in (PAGE..size(&disk)).step_by(3_001) {
        let disk = MemoryDisk::default();
        let (_machine, reader) = filled(&disk, 16 << 20);
        // All that is in use is in memory now.
        reader.view().unwrap().read(&[all()], None).unwrap().unwrap();
        let mut scrubber = reader.scrubber();
        assert_eq!(scrub(&mut scrubber).unwrap(), size(&disk) as u64);
        flip(&disk, at);
        reader.view().unwrap().read(&[all()], None).unwrap().unwrap();
        match scrub(&mut scrubber) {
            Err(fault) => {
                assert!(is_at(&fault, at), "a bit at {at}: {fault}");
                let again = scrubber.step();
                assert!(again.is_err() || at > 256 * 1024, "{again:?}");
                found += 1;
            }
            // Never written nor read since the file was opened: nothing leads to it.
            Ok(_) => {
                let disk: Arc<dyn Disk> = Arc::new(disk);
                reopen(&disk).0.verify_hash().unwrap();
                free += 1;
            }
        }
    }
    assert!(found > 20, "{found} were found, {free} were not");
}

#[test]
fn a_scrub_beside_checkpoints_takes_no_write_for_rot() {
    let disk = MemoryDisk::default();
    let (mut machine, reader) = filled(&disk, 1 << 20);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scrubbing = scope.spawn(|| {
            let (mut scrubber, mut passes) = (reader.scrubber(), 0);
            while !done.load(std::sync::atomic::Ordering::SeqCst) || passes == 0 {
                scrub(&mut scrubber).unwrap();
                passes += 1;
            }
            passes
        });
        for index in 2..120 {
            let puts = (0..40).map(|i| Op::put(key(&name(i)), content(i + index as usize)));
            let txn = Txn::new(puts);
            machine
                .apply(vec![proposal(
                    index,
                    0,
                    vec![Command::Txn { session: None, txn }],
                )])
                .unwrap();
            machine.make_durable().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(scrubbing.join().unwrap() > 0);
    });
    machine.verify_hash().unwrap();
}

#[test]
fn a_pass_begins_anew_on_the_state_that_a_snapshot_put_in_place() {
    let (disk, other) = (MemoryDisk::default(), MemoryDisk::default());
    let (machine, source) = filled(&other, 1 << 20);
    let dyn_disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut receiving, reader) = create(&dyn_disk);
    let mut scrubber = reader.scrubber();
    let of_empty = scrub(&mut scrubber).unwrap();
    let mut sink = Machine::snapshot_sink(dyn_disk, dir()).unwrap();
    let mut snapshot = source.snapshot().unwrap();
    while let Some(chunk) = snapshot.next_chunk().unwrap() {
        sink.write(&chunk).unwrap();
    }
    receiving.install(sink.finish().unwrap()).unwrap();
    assert_eq!(receiving.applied().state_hash, machine.applied().state_hash);
    let of_snapshot = scrub(&mut scrubber).unwrap();
    assert!(
        of_snapshot >= 300 * 600 && of_snapshot > of_empty,
        "{of_snapshot}"
    );
    // And its rot is found.
    let at = (PAGE..size(&disk)).find(|at| {
        let mut byte = 0;
        tamper(&disk, |bytes| byte = bytes[*at]);
        byte == content(7)[0]
    });
    let at = at.expect("a value in the file");
    flip(&disk, at);
    assert!(scrub(&mut scrubber).is_err_and(|fault| is_at(&fault, at)));
}

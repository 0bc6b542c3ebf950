//! The reserve: what it takes, and when it is given up.

use super::*;
use crate::machine::file::reserve::wanted;
use crate::machine::{NotShrunk, Reserve};

const MIB: u64 = 1 << 20;

fn reserve(disk: &Arc<disk::MemoryDisk>) -> Reserve {
    Reserve::of(Arc::<disk::MemoryDisk>::clone(disk), dir())
}

/// Takes all that belongs to a file, piece by piece, where so much stays free.
fn keep(reserve: &Reserve, file: u64, free: u64) -> u64 {
    let mut bytes = reserve.bytes().unwrap();
    loop {
        let more = reserve.keep(file, free).unwrap();
        assert!(more - bytes <= 4 * MIB, "a piece at a time");
        if more == bytes {
            return bytes;
        }
        bytes = more;
    }
}

#[test]
fn a_large_state_file_has_a_reserve_of_its_half_within_bounds_and_a_small_one_has_none() {
    for (file, expected) in [
        (0, 0),
        (16 * MIB - 1, 0),
        (16 * MIB, 16 * MIB),
        (48 * MIB, 24 * MIB),
        (160 * MIB, 80 * MIB),
        (163 * MIB, 80 * MIB),
        (1 << 40, 512 * MIB),
    ] {
        assert_eq!(wanted(file), expected, "of {file} bytes");
    }
}

#[test]
fn it_grows_with_the_file_and_never_where_less_than_twice_what_it_lacks_and_32_mib_are_free() {
    let disk = Arc::new(disk::MemoryDisk::default());
    let reserve = reserve(&disk);
    assert_eq!(keep(&reserve, 128 * MIB, (128 + 32) * MIB - 1), 0);
    assert_eq!(keep(&reserve, 128 * MIB, (128 + 32) * MIB), 64 * MIB);
    assert_eq!(keep(&reserve, 160 * MIB, (32 + 32) * MIB - 1), 64 * MIB);
    assert_eq!(keep(&reserve, 160 * MIB, (32 + 32) * MIB), 80 * MIB);
    assert_eq!(
        keep(&reserve, 64 * MIB, 1 << 40),
        80 * MIB,
        "it is not made smaller"
    );
    disk.lose_power(|| false);
    assert_eq!(reserve.bytes().unwrap(), 80 * MIB, "it is durable");
}

#[test]
fn who_starts_on_a_disk_that_is_nearly_full_gives_it_up_and_nobody_else() {
    let disk = Arc::new(disk::MemoryDisk::default());
    let reserve = reserve(&disk);
    keep(&reserve, 128 * MIB, 1 << 40);
    disk.say_free(32 * MIB);
    reserve.give_up_if_full().unwrap();
    assert_eq!(reserve.bytes().unwrap(), 64 * MIB);
    disk.say_free(32 * MIB - 1);
    reserve.give_up_if_full().unwrap();
    assert_eq!(reserve.bytes().unwrap(), 0);
    reserve.give_up_if_full().unwrap();
}

#[test]
fn a_copy_that_finds_no_room_beside_the_reserve_takes_its_room() {
    let disk = Arc::new(disk::MemoryDisk::default());
    let mut store = Store::with_a_key(&disk);
    let reserve = store.machine.reserve().clone();
    keep(&reserve, 128 * MIB, 1 << 40);
    // A small file and 16 MiB beside it.
    disk.say_free(0);
    let copy = store.machine.begin_shrinking().unwrap().expect("it has room");
    assert_eq!(reserve.bytes().unwrap(), 0, "given up");
    store.machine.end_checkpoint(copy.write()).unwrap();
    assert!(matches!(store.machine.take_shrunk(), Some(Ok(_))));
    // The next one finds neither.
    let refused = store.machine.begin_shrinking().err();
    assert!(
        matches!(refused, Some(NotShrunk::NoRoom { free: 0, .. })),
        "{refused:?}"
    );
    store.verify();
}

#[test]
fn a_reserve_that_does_not_suffice_is_kept() {
    let disk = Arc::new(disk::MemoryDisk::default());
    let reserve = reserve(&disk);
    keep(&reserve, 128 * MIB, 1 << 40);
    let asked = |free, file| {
        disk.say_free(free);
        crate::machine::upkeep::shrink::make_room(&*disk, dir(), file, 40 * MIB, &reserve)
    };
    // What holds 40 MiB makes a file of 96 at most, and 16 stay free: 112, of which 64 are the reserve's.
    let refused = asked(48 * MIB - 1, 1 << 30);
    let free = 48 * MIB - 1;
    assert_eq!(
        refused,
        Err(NotShrunk::NoRoom {
            free,
            wanted: 160 * MIB
        })
    );
    assert_eq!(reserve.bytes().unwrap(), 64 * MIB);
    assert_eq!(asked(160 * MIB, 1 << 30), Ok(()), "there is room without it");
    assert_eq!(reserve.bytes().unwrap(), 64 * MIB);
    assert_eq!(asked(48 * MIB, 1 << 30), Ok(()));
    assert_eq!(reserve.bytes().unwrap(), 0);
}

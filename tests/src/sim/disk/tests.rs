use std::path::Path;

use quorate_kv::env::Disk as _;

use super::*;

fn path() -> &'static Path {
    Path::new("/data/file")
}

/// A disk with `/data/file`, whose name is durable.
fn disk_with_file(seed: u64) -> (SimDisk, Arc<dyn env::File>) {
    let disk = SimDisk::standalone(seed);
    disk.create_dir_all(Path::new("/data")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let file = disk.open(path(), true).unwrap();
    disk.sync_dir(Path::new("/data")).unwrap();
    (disk, file)
}

fn after(disk: &SimDisk, power: PowerLoss) -> Option<Vec<u8>> {
    disk.crash(power);
    disk.bytes(path())
}

const EVERY_POWER_LOSS: [PowerLoss; 7] = [
    PowerLoss::KeepAll,
    PowerLoss::LoseAll,
    PowerLoss::Prefix,
    PowerLoss::Sectors { kept_permille: 500 },
    PowerLoss::HeaderOnly,
    PowerLoss::AllButOne,
    PowerLoss::Drawn,
];

#[test]
fn what_was_synced_survives_every_power_loss() {
    for power in EVERY_POWER_LOSS {
        for seed in 0..50 {
            let (disk, file) = disk_with_file(seed);
            file.write_all_at(&[7; 3000], 0).unwrap();
            file.sync_data().unwrap();
            file.write_all_at(&[9; 3000], 3000).unwrap();
            let bytes = after(&disk, power).expect("the name was synced");
            assert_eq!(bytes[..3000], [7; 3000], "{power:?}, seed {seed}");
        }
    }
}

#[test]
fn what_was_not_synced_is_lost_where_the_power_loss_says_so() {
    let (disk, file) = disk_with_file(0);
    file.write_all_at(&[7; 100], 0).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(&[9; 100], 0).unwrap();
    file.write_all_at(&[9; 100], 100).unwrap();
    assert_eq!(after(&disk, PowerLoss::LoseAll), Some(vec![7; 100]));
    assert_eq!(disk.stats().bytes_lost, 200);
}

#[test]
fn a_torn_write_leaves_whole_sectors_of_old_and_new() {
    let mut torn = 0;
    for seed in 0..40 {
        let (disk, file) = disk_with_file(seed);
        file.write_all_at(&[1; 4096], 0).unwrap();
        file.sync_data().unwrap();
        // Not aligned: its first and last sectors are parts.
        file.write_all_at(&[2; 3000], 100).unwrap();
        let bytes = after(&disk, PowerLoss::Sectors { kept_permille: 500 }).unwrap();
        assert_eq!(bytes.len(), 4096);
        assert!(
            bytes[..100].iter().chain(&bytes[3100..]).all(|b| *b == 1),
            "seed {seed}"
        );
        for sector in bytes[100..3100].chunk_by(|a, b| a == b) {
            assert!(sector[0] == 1 || sector[0] == 2);
        }
        for (i, sector) in bytes.chunks(512).enumerate().filter(|(i, _)| (1..6).contains(i)) {
            assert!(
                sector.iter().all(|b| *b == sector[0]),
                "sector {i} is torn, seed {seed}"
            );
        }
        torn += u64::from(bytes.contains(&1) && bytes[512..3072].contains(&2));
    }
    assert!(torn > 30, "{torn} of 40");
}

#[test]
fn a_prefix_ends_within_a_write_that_has_more_than_a_sector() {
    let mut torn = 0;
    for seed in 0..40 {
        let (disk, file) = disk_with_file(seed);
        file.write_all_at(&[1; 8192], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 2048], 0).unwrap();
        file.write_all_at(&[3; 2048], 4096).unwrap();
        let bytes = after(&disk, PowerLoss::Prefix).unwrap();
        let kept = |from: usize, by| bytes[from..from + 2048].iter().take_while(|b| **b == by).count();
        let (first, second) = (kept(0, 2), kept(4096, 3));
        assert!(
            first % 512 == 0 && second % 512 == 0,
            "seed {seed}: {first}, {second}"
        );
        assert!(second == 0 || first == 2048, "seed {seed}: {first}, {second}");
        let changed = bytes.iter().filter(|b| **b != 1).count();
        assert_eq!(changed, first + second, "seed {seed}");
        torn += u64::from(changed % 2048 != 0);
    }
    assert!(torn > 10, "{torn} of 40");
}

#[test]
fn growth_can_be_lost_with_its_bytes_or_kept_without_them() {
    let (mut lost, mut zeros, mut whole) = (0, 0, 0);
    for seed in 0..60 {
        let (disk, file) = disk_with_file(seed);
        file.write_all_at(&[5; 512], 0).unwrap();
        match after(&disk, PowerLoss::Sectors { kept_permille: 500 }).unwrap() {
            bytes if bytes.is_empty() => lost += 1,
            bytes if bytes == [0; 512] => zeros += 1,
            bytes if bytes == [5; 512] => whole += 1,
            bytes => panic!("neither: {bytes:?}"),
        }
    }
    assert!(
        lost > 5 && zeros > 5 && whole > 5,
        "lost {lost}, zeros {zeros}, whole {whole}"
    );
}

#[test]
fn a_name_is_lost_until_its_directory_is_synced() {
    let (disk, _) = disk_with_file(0);
    let other = Path::new("/data/other");
    disk.open(other, true).unwrap().sync_data().unwrap();
    assert!(disk.exists(other).unwrap());
    disk.crash(PowerLoss::LoseAll);
    let disk = disk.reopened();
    assert!(!disk.exists(other).unwrap());
    assert!(disk.exists(path()).unwrap());
}

#[test]
fn a_rename_is_whole_before_its_directory_is_synced_and_after() {
    let to = Path::new("/data/renamed");
    for (synced, power) in [
        (false, PowerLoss::LoseAll),
        (false, PowerLoss::KeepAll),
        (true, PowerLoss::LoseAll),
    ] {
        let (disk, file) = disk_with_file(0);
        file.write_all_at(b"bytes", 0).unwrap();
        file.sync_data().unwrap();
        disk.rename(path(), to).unwrap();
        if synced {
            disk.sync_dir(Path::new("/data")).unwrap();
        }
        disk.crash(power);
        let renamed = synced || power == PowerLoss::KeepAll;
        let (there, gone) = if renamed { (to, path()) } else { (path(), to) };
        assert_eq!(
            disk.bytes(there).as_deref(),
            Some(&b"bytes"[..]),
            "synced {synced}, {power:?}"
        );
        assert_eq!(disk.bytes(gone), None, "synced {synced}, {power:?}");
    }
}

#[test]
fn a_directory_that_is_lost_takes_its_files_along() {
    let disk = SimDisk::standalone(0);
    disk.create_dir_all(Path::new("/data/log")).unwrap();
    disk.open(Path::new("/data/log/1"), true).unwrap();
    disk.sync_dir(Path::new("/data/log")).unwrap();
    disk.crash(PowerLoss::LoseAll);
    assert_eq!(disk.files(), Vec::<PathBuf>::new());
}

#[test]
fn the_death_of_a_process_loses_nothing_and_makes_nothing_durable() {
    let (disk, file) = disk_with_file(0);
    file.write_all_at(b"bytes", 0).unwrap();
    assert_eq!(
        after(&disk, PowerLoss::ProcessOnly).as_deref(),
        Some(&b"bytes"[..])
    );
    assert_eq!(after(&disk, PowerLoss::LoseAll).as_deref(), Some(&b""[..]));
}

#[test]
fn handles_from_before_a_crash_do_nothing() {
    let (disk, file) = disk_with_file(0);
    let held = disk.lock(Path::new("/data/lock")).unwrap();
    disk.crash(PowerLoss::ProcessOnly);
    assert!(file.write_all_at(b"late", 0).is_err());
    assert!(file.sync_data().is_err());
    assert!(disk.open(path(), false).is_err());
    let reopened = disk.reopened();
    assert_eq!(reopened.bytes(path()).as_deref(), Some(&b""[..]));
    let again = reopened
        .lock(Path::new("/data/lock"))
        .expect("the crash released it");
    drop(held);
    let third = reopened.lock(Path::new("/data/lock"));
    assert_eq!(
        third.unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "the old guard released another's lock"
    );
    drop(again);
    reopened.lock(Path::new("/data/lock")).unwrap();
}

#[test]
fn a_full_disk_refuses_growth_and_lets_overwrite_and_read() {
    let (disk, file) = disk_with_file(0);
    file.write_all_at(&[1; 1000], 0).unwrap();
    disk.set_profile(DiskProfile {
        capacity: 1200,
        ..DiskProfile::default()
    });
    let refused = file.write_all_at(&[2; 300], 1000).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    file.write_all_at(&[2; 200], 1000).unwrap();
    file.write_all_at(&[3; 500], 0).unwrap();
    file.set_len(100).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 99).unwrap();
    assert_eq!(byte, [3]);
}

fn fail_every_sync(disk: &SimDisk) {
    disk.set_profile(DiskProfile {
        sync_error_per_million: 1_000_000,
        ..disk.profile()
    });
}

/// A disk with a file of zeros, over which ones were written and a sync has failed; it is good again.
fn disk_with_a_failed_sync(seed: u64) -> (SimDisk, Arc<dyn env::File>) {
    let (disk, file) = disk_with_file(seed);
    file.write_all_at(&[0; 512], 0).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(&[1; 512], 0).unwrap();
    let good = disk.profile();
    fail_every_sync(&disk);
    assert!(file.sync_data().is_err());
    disk.set_profile(good);
    (disk, file)
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one() {
    let mut lost = 0;
    for seed in 0..30 {
        let (disk, file) = disk_with_a_failed_sync(seed);
        file.sync_data().unwrap();
        lost += u64::from(after(&disk, PowerLoss::KeepAll).unwrap() == [0; 512]);
    }
    assert!((5..25).contains(&lost), "{lost} of 30");
}

#[test]
fn what_a_failed_sync_lost_is_read_until_the_system_forgets_it_and_never_after() {
    let mut lost = 0;
    for seed in 0..30 {
        let (disk, file) = disk_with_a_failed_sync(seed);
        let mut read = [7; 512];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, [1; 512]);
        // What is not durable yet is not forgotten.
        file.write_all_at(&[2; 512], 512).unwrap();
        file.drop_cached();
        file.read_exact_at(&mut read, 512).unwrap();
        assert_eq!(read, [2; 512]);
        file.read_exact_at(&mut read, 0).unwrap();
        lost += u64::from(read == [0; 512]);
        assert_eq!(after(&disk, PowerLoss::KeepAll).unwrap()[..512], read);
    }
    assert!((5..25).contains(&lost), "{lost} of 30");
}

/// The story: an owner does several syncs within one piece of work, whose disk time passes afterwards. When the last
/// of them failed, what the earlier ones had covered was lost too, which no disk does; a log and a state file were
/// then found corrupt that were not.
#[test]
fn a_failed_sync_loses_nothing_that_an_earlier_one_covered() {
    for seed in 0..30 {
        let (disk, file) = disk_with_file(seed);
        let world = Arc::clone(&disk.shared.world);
        world.begin_charge();
        file.write_all_at(&[1; 2048], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 2048], 2048).unwrap();
        fail_every_sync(&disk);
        assert!(file.sync_data().is_err());
        let bytes = after(&disk, PowerLoss::LoseAll).unwrap();
        assert_eq!(bytes[..2048], [1; 2048], "seed {seed}");
    }
}

/// The story: seed 4663. A failed sync had lost the growth of the state file; the next process wrote into it and synced,
/// and lost it all at the next loss of power. fdatasync(2) makes that durable "which is needed to allow a subsequent data
/// retrieval", and names the file's size.
#[test]
fn what_is_written_and_synced_in_a_growth_that_a_failed_sync_lost_is_durable() {
    let mut lost = 0;
    for seed in 0..30 {
        let (disk, file) = disk_with_file(seed);
        let good = disk.profile();
        fail_every_sync(&disk);
        file.set_len(4096).unwrap();
        assert!(file.sync_data().is_err());
        disk.set_profile(good);
        file.write_all_at(&[7; 512], 1024).unwrap();
        file.sync_data().unwrap();
        let bytes = after(&disk, PowerLoss::LoseAll).unwrap();
        assert!(bytes.len() >= 1536, "seed {seed}: {} bytes", bytes.len());
        assert_eq!(bytes[..1024], [0; 1024], "seed {seed}");
        assert_eq!(bytes[1024..1536], [7; 512], "seed {seed}");
        lost += u64::from(bytes.len() == 1536);
    }
    assert!((5..25).contains(&lost), "{lost} of 30");
}

#[test]
fn a_flipped_bit_is_one_bit() {
    let (disk, file) = disk_with_file(0);
    file.write_all_at(&[0; 1000], 0).unwrap();
    file.sync_data().unwrap();
    let at = disk.flip_bit(path()).unwrap();
    let bytes = disk.bytes(path()).unwrap();
    assert_eq!(bytes[at as usize].count_ones(), 1);
    assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    assert_eq!(
        after(&disk, PowerLoss::LoseAll),
        Some(bytes),
        "it is on the disk itself"
    );
}

#[test]
fn garbage_stays_within_the_bytes_of_lost_writes() {
    let mut seen = false;
    for seed in 0..60 {
        let (disk, file) = disk_with_file(seed);
        disk.set_profile(DiskProfile {
            garbage_in: vec!["file"],
            ..DiskProfile::default()
        });
        file.write_all_at(&[1; 2048], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 700], 700).unwrap();
        let bytes = after(&disk, PowerLoss::Sectors { kept_permille: 300 }).unwrap();
        assert!(
            bytes[..700].iter().chain(&bytes[1400..]).all(|b| *b == 1),
            "seed {seed}"
        );
        seen |= bytes[700..1400].iter().any(|b| *b > 2);
    }
    assert!(seen, "no garbage in 60 power losses");
}

#[test]
fn the_images_of_three_writes_are_all_their_subsets() {
    let (disk, file) = disk_with_file(0);
    file.set_len(3).unwrap();
    file.sync_data().unwrap();
    for i in 0..3 {
        file.write_all_at(&[1], i).unwrap();
    }
    assert_eq!(disk.pending_operations(), 3);
    let images: BTreeSet<Vec<u8>> = disk
        .survivors()
        .iter()
        .map(|s| {
            SimDisk::of_image(&disk.after_power_loss(s))
                .bytes(path())
                .unwrap()
        })
        .collect();
    assert_eq!(images.len(), 8, "{images:?}");
    assert_eq!(
        disk.bytes(path()),
        Some(vec![1; 3]),
        "the disk itself is as it was"
    );
}

//! What a node's files take of its disk, looked at every so often; and the reserve, which is kept for when the disk is full.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::front::Front;
use super::space::Used;
use crate::env::{self, Disk};
use crate::machine::Reserve;

/// How often it is looked at. What is written between two looks comes on top: a small disk may be full before a look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the files in these directories use, of so many bytes at most (0: of what the disk has). `None` where the disk does not
/// say. Blocks.
fn look(disk: &dyn Disk, dirs: &[PathBuf], max: u64) -> io::Result<Option<Used>> {
    let mut bytes = 0u64;
    for dir in dirs {
        let Some(taken) = disk.taken_bytes(dir)? else {
            return Ok(None);
        };
        bytes = bytes.saturating_add(taken);
    }
    let free = disk.free_bytes(dirs.first().map_or(Path::new("."), PathBuf::as_path))?;
    let has = free.map(|free| bytes.saturating_add(free));
    let max = [has, (max > 0).then_some(max)].into_iter().flatten().min();
    Ok(Some(Used {
        bytes,
        history: 0,
        max,
    }))
}

/// Takes more of the reserve where there is plenty; gives it up where the node may not take so much, since nobody else takes that
/// room then.
fn keep_reserve(reserve: &Reserve, file_bytes: u64, used: Used, disk_bytes_max: u64) -> io::Result<()> {
    let Some(max) = used.max else { return Ok(()) };
    let is_of_budget = disk_bytes_max > 0 && max == disk_bytes_max;
    match is_of_budget && used.is_tight() {
        true => reserve.give_up().map(drop),
        false => reserve.keep(file_bytes, max.saturating_sub(used.bytes)).map(drop),
    }
}

/// Runs until it is dropped, with the node's tasks.
pub(super) async fn watch(front: Arc<Front>, disk: Arc<dyn Disk>, dirs: Vec<PathBuf>) {
    let mut is_told = false;
    loop {
        let (asked, of, max) = (Arc::clone(&disk), dirs.clone(), front.settings.disk_bytes_max);
        let machine = front.raft.machine();
        let (reserve, reader) = (machine.reserve().clone(), machine.reader().clone());
        // A state that cannot be looked at has stopped the node.
        let Ok(view) = reader.view() else {
            return;
        };
        // Also who does not lead knows whether the store is full: it may lead next.
        front.space().is_full(Used::of(&view));
        let file_bytes = view.file_bytes();
        drop(view);
        let looked = env::spawn_blocking(move || {
            let used = look(&*asked, &of, max);
            let reserved = match &used {
                Ok(Some(used)) => keep_reserve(&reserve, file_bytes, *used, max),
                Ok(None) | Err(_) => Ok(()),
            };
            (used, reserved)
        });
        let Ok((used, reserved)) = looked.await else {
            return;
        };
        if let Ok(Some(used)) = used {
            front.space().note_disk(used);
        }
        // It serves without knowing; what the disk then refuses ends it cleanly.
        if let Some(error) = used.err().or(reserved.err())
            && !std::mem::replace(&mut is_told, true)
        {
            tracing::warn!(%error, "what this node takes of its disk cannot be looked at, or its reserve not be kept");
        }
        env::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::RealDisk;

    #[test]
    fn what_files_take_is_counted_and_what_they_may_take_is_the_lesser_of_both_limits() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["log", "state"].map(|part| dir.path().join(part));
        for part in &dirs {
            std::fs::create_dir(part).unwrap();
            std::fs::write(part.join("file"), vec![7; 1 << 20]).unwrap();
        }
        // A length takes nothing by itself.
        std::fs::File::create(dirs[0].join("long"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let used = |max| look(&RealDisk, &dirs, max).unwrap().expect("a real disk tells");
        let bytes = used(0).bytes;
        assert!((2 << 20..4 << 20).contains(&bytes), "{bytes}");
        let has = used(0).max.expect("a real disk tells what is free");
        assert!(has > bytes);
        assert_eq!(used(3 << 20).max, Some(3 << 20));
        assert!(used(u64::MAX).max < Some(u64::MAX), "the disk has less");
    }

    #[test]
    fn the_reserve_goes_where_the_budget_is_what_is_short_and_stays_where_the_disk_is() {
        const GIB: u64 = 1 << 30;
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(Arc::new(RealDisk), dir.path());
        let used = |bytes, max| Used {
            bytes,
            history: 0,
            max: Some(max),
        };
        let keep = |used, budget| keep_reserve(&reserve, 64 << 20, used, budget).unwrap();
        keep(used(0, GIB), GIB);
        assert!(reserve.bytes().unwrap() > 0, "there is plenty");
        keep(used(GIB - 1, GIB), 2 * GIB);
        assert!(
            reserve.bytes().unwrap() > 0,
            "others fill the disk: it is for that"
        );
        keep(used(GIB - 1, GIB), 0);
        assert!(reserve.bytes().unwrap() > 0);
        keep(used(GIB / 4 * 3, GIB), GIB);
        assert_eq!(reserve.bytes().unwrap(), 0);
    }
}

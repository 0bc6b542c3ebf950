//! Appending, reading, truncating, purging; and all of it again after opening.

use super::*;
use crate::log::crash_disk::{CrashDisk, Event};

#[tokio::test]
async fn what_was_appended_is_read_before_and_after_opening_again() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    assert_eq!(log.last(), None);
    append(&log, entries(1, 0..10)).await?;
    assert_eq!(log.last(), Some(position(1, 9)));
    assert_eq!(all(&log).await, entries(1, 0..10));
    log.close().await?;

    let log = reopen(dir.path());
    assert_eq!(log.last(), Some(position(1, 9)));
    assert_eq!(all(&log).await, entries(1, 0..10));
    append(&log, entries(2, 10..12)).await?;
    let read = log.read(index(8)..index(11), usize::MAX).await?;
    assert_eq!(read, [entries(1, 8..10), entries(2, 10..11)].concat());
    Ok(())
}

#[tokio::test]
async fn a_truncated_tail_is_replaced() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    append(&log, entries(1, 0..1000)).await?;
    truncate_after(&log, Some(index(4))).await?;
    assert_eq!(log.last(), Some(position(1, 4)));
    append(&log, entries(2, 5..8)).await?;
    let expected = [entries(1, 0..5), entries(2, 5..8)].concat();
    assert_eq!(all(&log).await, expected);
    log.close().await?;
    let log = reopen(dir.path());
    assert_eq!(all(&log).await, expected);
    truncate_after(&log, None).await?;
    assert_eq!(log.last(), None);
    log.close().await?;
    let log = reopen(dir.path());
    assert_eq!(log.last(), None);
    assert_eq!(all(&log).await, vec![]);
    Ok(())
}

#[tokio::test]
async fn votes_survive_the_recycling_of_the_segments_that_held_them() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    log.save_vote(Bytes::from_static(b"vote 1")).await?;
    log.save_committed(Bytes::from_static(b"committed 1"))?;
    for round in 0..40 {
        append(&log, entries(1, round * 100..(round + 1) * 100)).await?;
        purge(&log, position(1, round * 100 + 50)).await?;
    }
    let statistics = log.statistics();
    assert!(statistics.segments_retired > 20, "{statistics:?}");
    assert!(statistics.segments <= 3, "{statistics:?}");
    log.close().await?;
    let files = std::fs::read_dir(dir.path())?.count();
    assert!(files <= 9, "{files} files for {statistics:?}");

    let log = reopen(dir.path());
    assert_eq!(log.vote().as_deref(), Some(&b"vote 1"[..]));
    assert_eq!(log.committed().as_deref(), Some(&b"committed 1"[..]));
    assert_eq!(log.purged(), Some(position(1, 3950)));
    assert_eq!(all(&log).await, entries(1, 3951..4000));
    Ok(())
}

#[tokio::test]
async fn entries_that_left_the_cache_are_read_from_disk() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = LogSettings {
        cache_bytes_max: 1000,
        ..small().create()
    };
    let log = Log::open(Arc::new(RealDisk), dir.path(), settings)?;
    for number in 0..500 {
        append(&log, vec![entry_of(1, number, 200)]).await?;
    }
    let statistics = log.statistics();
    assert!(statistics.cache_bytes <= 1000, "{statistics:?}");
    let expected: Vec<_> = (0..500).map(|number| entry_of(1, number, 200)).collect();
    assert_eq!(all(&log).await, expected);
    let read = log.read(index(17)..index(400), 450).await?;
    assert_eq!(read, expected[17..19]);
    let read = log.read(index(17)..index(400), 0).await?;
    assert_eq!(read, expected[17..18]);
    let read = log.read(index(450)..index(1000), usize::MAX).await?;
    assert_eq!(read, expected[450..]);
    assert_eq!(log.read(index(500)..index(1000), 10).await?, vec![]);
    Ok(())
}

#[tokio::test]
async fn a_purge_beyond_the_last_entry_lets_the_log_go_on_behind_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    append(&log, entries(1, 0..10)).await?;
    purge(&log, position(5, 100)).await?;
    assert_eq!(log.last(), Some(position(5, 100)));
    append(&log, entries(6, 101..103)).await?;
    assert_eq!(all(&log).await, entries(6, 101..103));
    log.close().await?;
    let log = reopen(dir.path());
    assert_eq!(log.purged(), Some(position(5, 100)));
    assert_eq!(log.last(), Some(position(6, 102)));
    assert_eq!(all(&log).await, entries(6, 101..103));
    assert_eq!(log.position(index(100)), Some(position(5, 100)));
    assert_eq!(log.position(index(101)), Some(position(6, 101)));
    assert_eq!(log.position(index(99)), None);
    Ok(())
}

#[tokio::test]
async fn an_entry_longer_than_a_segment_gets_one_of_its_own() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    let expected = vec![
        entry(1, 0),
        entry_of(1, 1, 100_000),
        entry(1, 2),
        entry_of(1, 3, 17_000),
    ];
    append(&log, expected.clone()).await?;
    assert_eq!(all(&log).await, expected);
    log.close().await?;
    let log = reopen(dir.path());
    assert_eq!(all(&log).await, expected);
    Ok(())
}

#[tokio::test]
async fn completions_are_told_in_order_and_share_syncs() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    let (completion, told) = recorder();
    for number in 0..200 {
        log.append(vec![entry(1, number)], completion(number))?;
    }
    log.save_vote(Bytes::from_static(b"vote")).await?;
    let order: Vec<u64> = told
        .try_iter()
        .map(|(number, result)| result.map(|()| number))
        .collect::<Result<_, _>>()?;
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    let statistics = log.statistics();
    assert!(statistics.syncs < 200, "{statistics:?}");
    assert_eq!(statistics.durable, Some(position(1, 199)));
    Ok(())
}

#[tokio::test]
async fn a_log_is_made_once_and_then_must_be_there() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let open = |settings| Log::open(Arc::new(RealDisk), &dir.path().join("log"), settings);
    assert!(matches!(open(small()), Err(LogOpenError::Missing { .. })));
    open(small().create())?.close().await?;
    // Nothing was ever written: an interrupted start may be repeated.
    let log = open(small().create())?;
    log.save_vote(Bytes::from_static(b"vote")).await?;
    log.close().await?;
    assert!(matches!(
        open(small().create()),
        Err(LogOpenError::NotEmpty { .. })
    ));
    open(small())?;
    Ok(())
}

/// Else the system would read from the disk, while somebody waits for the write, what is not written of the page.
#[tokio::test]
async fn a_page_is_written_whole_by_the_write_that_enters_it() -> anyhow::Result<()> {
    const PAGE: u64 = 4096;
    let disk = CrashDisk::default();
    let settings = LogSettings {
        // Not a whole number of pages.
        segment_bytes: SMALL + 512,
        ..LogSettings::default()
    };
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), settings.create())?;
    log.maker.idle().await;
    let made = disk.history().len();
    for (number, bytes) in (0..200).zip([40, 300, 3_000, 9_000, 10, 512, 1_900].into_iter().cycle()) {
        append(&log, vec![entry_of(1, number, bytes)]).await?;
    }
    log.close().await?;
    let (mut within, mut entering) = (0, 0);
    for event in disk.history().into_iter().skip(made) {
        let Event::Write { offset, bytes, .. } = event else {
            continue;
        };
        // Zeros and headers are the maker's.
        if offset == 0 {
            continue;
        }
        let end = offset + bytes.len() as u64;
        if end <= offset.next_multiple_of(PAGE) {
            within += 1;
        } else {
            entering += 1;
            assert!(
                end.is_multiple_of(PAGE) || end == SMALL + 512,
                "{offset} to {end}"
            );
        }
    }
    assert!(
        within > 50 && entering > 50,
        "{within} within a page, {entering} into another"
    );
    Ok(())
}

/// The lengths of a log's files.
fn lengths(dir: &Path) -> anyhow::Result<Vec<u64>> {
    let mut lengths = Vec::new();
    for file in std::fs::read_dir(dir)? {
        lengths.push(file?.metadata()?.len());
    }
    lengths.sort_unstable();
    Ok(lengths)
}

#[tokio::test]
async fn an_empty_log_takes_little_disk() -> anyhow::Result<()> {
    for (full, expected) in [
        (LogSettings::default().segment_bytes, [128 << 10, 256 << 10]),
        (1 << 30, [2 << 20, 4 << 20]),
        (1 << 20, [8 << 10, 16 << 10]),
        (SMALL, [8 << 10, SMALL]),
    ] {
        let dir = tempfile::tempdir()?;
        let settings = LogSettings {
            segment_bytes: full,
            ..LogSettings::default()
        };
        for settings in [settings.clone().create(), settings.clone(), settings] {
            let log = Log::open(Arc::new(RealDisk), dir.path(), settings)?;
            log.maker.idle().await;
            log.close().await?;
            assert_eq!(lengths(dir.path())?, expected, "segments of {full}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn segments_grow_with_use_to_their_full_length_and_stay_there() -> anyhow::Result<()> {
    const FULL: u64 = 128 << 10;
    let dir = tempfile::tempdir()?;
    let settings = LogSettings {
        segment_bytes: FULL,
        ..LogSettings::default()
    };
    let mut log = Log::open(Arc::new(RealDisk), dir.path(), settings.clone().create())?;
    let (mut used, mut late) = (std::collections::BTreeMap::new(), 0);
    for number in 0..1000 {
        log.maker.idle().await;
        append(&log, vec![entry_of(1, number, 1000)]).await?;
        {
            let view = log.shared.view();
            let ended = view.ended();
            used.extend(ended.map(|segment| (segment.header.generation, segment.header.bytes)));
        }
        if number > 100 {
            purge(&log, position(1, number - 100)).await?;
        }
        // They grow on where they were, and what was made ready is not made anew.
        if number % 50 == 0 {
            log.maker.idle().await;
            late += log.statistics().segments_made_late;
            log.close().await?;
            log = Log::open(Arc::new(RealDisk), dir.path(), settings.clone())?;
        }
    }
    let used: Vec<u64> = used.into_values().collect();
    let growth: Vec<u64> = (13..17).map(|power| 1 << power).collect();
    assert_eq!(used[..4], growth, "{used:?}");
    assert!(
        used.len() > 8 && used[4..].iter().all(|bytes| *bytes == FULL),
        "{used:?}"
    );
    assert_eq!(late + log.statistics().segments_made_late, 0);
    log.close().await?;
    let left = lengths(dir.path())?;
    assert!(
        left.iter().all(|bytes| *bytes == FULL),
        "the outgrown are gone: {left:?}"
    );
    Ok(())
}

/// Entries that do not fit into what is ready would each wait until a segment is made, were the ready one kept for later.
#[tokio::test]
async fn a_ready_segment_that_a_long_entry_outgrew_makes_room_for_one_that_is_long_enough()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = LogSettings {
        segment_bytes: 256 << 10,
        ..LogSettings::default()
    };
    let log = Log::open(Arc::new(RealDisk), dir.path(), settings.create())?;
    for number in 0..20 {
        log.maker.idle().await;
        append(&log, vec![entry_of(1, number, 40_000)]).await?;
    }
    let statistics = log.statistics();
    assert_eq!(statistics.segments_made_late, 1, "{statistics:?}");
    assert!(statistics.rolls > 3, "{statistics:?}");
    Ok(())
}

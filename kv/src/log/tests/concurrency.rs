//! Callers that do not wait for each other.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::crash_disk::{CrashDisk, Failures};
use super::*;

/// Readers that lag behind while the log is purged, truncated and its segments are written anew: what they
/// get is consecutive, of the right index, and never corruption.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_see_consecutive_entries_while_segments_are_recycled_under_them() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = LogSettings {
        cache_bytes_max: 2000,
        ..small().create()
    };
    let log = Log::open(Arc::new(RealDisk), dir.path(), settings)?;
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|lag| {
            let (log, done) = (log.clone(), done.clone());
            crate::env::spawn("reader", async move {
                let mut read_in_all = 0;
                while !done.load(Ordering::Relaxed) {
                    let from = log.purged().map_or(0, |purged| purged.index.number() + 1);
                    let range = index(from + lag * 10)..index(u64::MAX);
                    let read = log.read(range, 20_000).await.expect("no fault");
                    read_in_all += read.len();
                    for (one, next) in read.iter().zip(read.iter().skip(1)) {
                        assert_eq!(one.position.index.next(), next.position.index);
                        assert!(
                            one.position.term <= next.position.term,
                            "{} {}",
                            one.position,
                            next.position
                        );
                    }
                    for found in &read {
                        let (term, number) = (found.position.term.number(), found.position.index.number());
                        assert_eq!(*found, entry_of(term, number, 500));
                    }
                    tokio::task::yield_now().await;
                }
                read_in_all
            })
        })
        .collect();
    let mut next = 0;
    for term in 1..150 {
        let appended: Vec<_> = (next..next + 20)
            .map(|number| entry_of(term, number, 500))
            .collect();
        append(&log, appended).await?;
        next += 20;
        if term % 3 == 0 {
            next -= 7;
            truncate_after(&log, Some(index(next - 1))).await?;
        }
        if term % 4 == 0 && next > 60 {
            let upto = log.position(index(next - 60)).expect("an entry of the log");
            purge(&log, upto).await?;
        }
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.await? > 0, "each reader read something");
    }
    assert!(log.statistics().segments_retired > 10, "{:?}", log.statistics());
    Ok(())
}

/// A log whose queue holds 64 KiB, on a disk whose syncs can be held.
fn with_a_small_queue() -> anyhow::Result<(CrashDisk, Log)> {
    let disk = CrashDisk::default();
    let settings = LogSettings {
        queue_bytes_max: 64 << 10,
        segment_bytes: 1 << 20,
        ..LogSettings::default().create()
    };
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), settings)?;
    Ok((disk, log))
}

#[tokio::test]
async fn nothing_waits_for_room_but_who_asks_for_it_and_nothing_is_lost() -> anyhow::Result<()> {
    let (disk, log) = with_a_small_queue()?;
    // The first sync stands still until it is let go.
    let held = disk.hold_syncs();
    let (completion, told) = recorder();
    log.wait_for_room().await;
    for number in 0..30 {
        log.append(vec![entry_of(1, number, 3000)], completion(number))?;
    }
    // Longer than the whole queue: it goes through all the same.
    log.append(vec![entry_of(1, 30, 200_000)], completion(30))?;
    log.truncate_after(Some(index(25)), completion(31))?;
    log.purge(position(1, 10), completion(32))?;
    assert_eq!(log.last(), Some(position(1, 25)));
    assert!(told.try_recv().is_err(), "the disk has made nothing durable");
    let room = log.wait_for_room();
    let mut room = std::pin::pin!(room);
    assert!(futures_util::poll!(&mut room).is_pending());
    drop(held);
    room.await;
    log.save_vote(Bytes::from_static(b"vote")).await?;
    let told = told
        .try_iter()
        .map(|(number, result)| result.map(|()| number))
        .collect::<Result<Vec<_>, _>>()?;
    assert_eq!(told, (0..=32).collect::<Vec<_>>());
    assert_eq!(all(&log).await.len(), 15);
    Ok(())
}

/// The queue falls to its bound exactly, on its way to nothing: whoever waits is told then, and perhaps never after.
#[tokio::test]
async fn who_waits_for_room_has_it_when_the_queue_is_at_its_bound() -> anyhow::Result<()> {
    let (disk, log) = with_a_small_queue()?;
    let held = disk.hold_syncs();
    let (completion, _told) = recorder();
    // Each counts a kibibyte, the least that a job counts.
    for number in 0..80 {
        log.append(vec![entry_of(1, number, 10)], completion(number))?;
    }
    let mut room = std::pin::pin!(log.wait_for_room());
    assert!(futures_util::poll!(&mut room).is_pending());
    drop(held);
    crate::env::timeout(std::time::Duration::from_secs(30), room).await?;
    Ok(())
}

#[tokio::test]
async fn a_log_that_has_stopped_keeps_nobody_waiting_for_room() -> anyhow::Result<()> {
    let (disk, log) = with_a_small_queue()?;
    let held = disk.hold_syncs();
    let (completion, _told) = recorder();
    log.append(vec![entry_of(1, 0, 200_000)], completion(0))?;
    disk.fail(Failures {
        syncs_from: Some(0),
        ..Failures::default()
    });
    drop(held);
    log.wait_for_room().await;
    assert!(matches!(
        log.save_vote(Bytes::new()).await,
        Err(Fault::Disk { .. })
    ));
    Ok(())
}

#[tokio::test]
async fn a_log_dropped_by_everybody_still_answers_what_it_was_asked() -> anyhow::Result<()> {
    let disk = CrashDisk::default();
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), small().create())?;
    let (tx, rx) = oneshot::channel();
    log.append(entries(1, 0..3), Box::new(move |result| drop(tx.send(result))))?;
    drop(log);
    rx.await??;
    Ok(())
}

#[tokio::test]
async fn a_closed_log_answers_that_it_has_stopped() -> anyhow::Result<()> {
    let disk = CrashDisk::default();
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), small().create())?;
    append(&log, entries(1, 0..3)).await?;
    log.close().await?;
    let (completion, told) = recorder();
    let late = log.append(entries(1, 3..4), completion(1));
    assert!(matches!(late, Err(Fault::Stopped { .. })), "{late:?}");
    assert!(matches!(told.try_recv()?, (1, Err(Fault::Stopped { .. }))));
    assert!(matches!(log.close().await, Err(Fault::Stopped { .. })));
    Ok(())
}

#[tokio::test]
async fn a_roll_finds_the_next_segment_ready() -> anyhow::Result<()> {
    let disk = CrashDisk::default();
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), small().create())?;
    for number in 0..60 {
        log.maker.idle().await;
        append(&log, vec![entry_of(1, number, 1000)]).await?;
    }
    let statistics = log.statistics();
    assert!(statistics.rolls >= 5, "{statistics:?}");
    assert_eq!(statistics.segments_made_late, 0, "{statistics:?}");
    assert_eq!(statistics.syncs, 60 + statistics.rolls, "{statistics:?}");
    Ok(())
}

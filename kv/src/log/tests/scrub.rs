//! What rots in a segment that is no longer written to is found by a scrub, wherever in its batches it is.

use std::path::PathBuf;

use super::*;
use crate::log::LogScrubber;

/// A log of some segments, and the files of those that are no longer written to.
async fn filled(dir: &Path) -> anyhow::Result<(Log, Vec<PathBuf>)> {
    let log = create(dir);
    log.save_vote(Bytes::from_static(b"a vote")).await?;
    for round in 0..12 {
        append(&log, entries(1, round * 50..(round + 1) * 50)).await?;
    }
    let view = log.shared.view();
    let ended = view.ended().map(|segment| segment.path.clone()).collect();
    drop(view);
    Ok((log, ended))
}

/// Scrubs a whole pass; answers how much it went through.
fn scrub(scrubber: &mut LogScrubber) -> Result<u64, Fault> {
    let mut bytes = 0;
    loop {
        let scrubbed = scrubber.step()?;
        bytes += scrubbed.bytes;
        if scrubbed.left == 0 {
            return Ok(bytes);
        }
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn rot_in_a_segment_that_was_ended_is_found_with_file_and_place() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (log, ended) = filled(dir.path()).await?;
    assert!(ended.len() > 2, "{ended:?}");
    let mut scrubber = log.scrubber();
    let all = scrubber.left();
    assert_eq!(
        all,
        ended
            .iter()
            .map(|path| path.metadata().unwrap().len())
            .sum::<u64>()
    );
    for _ in 0..2 {
        assert_eq!(scrub(&mut scrubber)?, all);
    }
    let mut found = 0;
    for path in &ended {
        for at in [9, 4096, 4100, 4096 + 60, 6000, 8192, 12_000] {
            flip(path, at);
            match scrub(&mut log.scrubber()) {
                Err(Fault::Corrupt {
                    path: named, offset, ..
                }) => {
                    assert_eq!(Path::new(&named), path);
                    assert!(offset as usize <= at, "{offset} for {at}");
                    found += 1;
                }
                // The rest of a sector behind a batch says nothing.
                Ok(_) => assert!(at > 4100, "{at}"),
                Err(other) => panic!("{other}"),
            }
            flip(path, at);
            assert_eq!(scrub(&mut log.scrubber())?, all);
        }
    }
    assert!(found > ended.len() * 4, "{found}");
    Ok(())
}

/// The story: generations were taken to rise along the log, and a segment that was made before its turn, for a long entry or in
/// haste, hid the one that was being made ready at that time from every pass.
#[tokio::test]
async fn a_segment_that_follows_one_of_a_later_generation_is_gone_through_too() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    append(&log, entries(1, 0..50)).await?;
    log.maker.idle().await;
    append(&log, vec![entry_of(1, 50, 100_000)]).await?;
    for round in 0..12 {
        append(&log, entries(1, 51 + round * 50..101 + round * 50)).await?;
    }
    let generations: Vec<u64> = {
        let view = log.shared.view();
        view.ended().map(|segment| segment.header.generation).collect()
    };
    assert!(!generations.is_sorted(), "{generations:?}");
    let mut scrubber = log.scrubber();
    let all = scrubber.left();
    assert_eq!(scrub(&mut scrubber)?, all);
    Ok(())
}

#[tokio::test]
async fn a_scrub_passes_over_segments_that_are_purged_and_used_again_meanwhile() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (log, _) = filled(dir.path()).await?;
    let mut scrubber = log.scrubber();
    let mut next = 600;
    for _ in 0..60 {
        scrubber.step()?;
        append(&log, entries(1, next..next + 40)).await?;
        next += 40;
        purge(&log, position(1, next - 30)).await?;
        log.maker.idle().await;
    }
    assert!(log.statistics().segments_retired > 10);
    scrub(&mut scrubber)?;
    scrub(&mut scrubber)?;
    log.close().await?;
    let log = reopen(dir.path());
    scrub(&mut log.scrubber())?;
    Ok(())
}

/// With one that has nothing to go through a pass is over at once.
#[tokio::test]
async fn a_log_of_one_segment_has_nothing_to_scrub() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let log = create(dir.path());
    append(&log, entries(1, 0..3)).await?;
    assert_eq!(log.scrubber().step()?, crate::scrub::Scrubbed::default());
    Ok(())
}

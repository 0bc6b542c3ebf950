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
        let bytes = path.metadata()?.len() as usize;
        for at in [9, 4096, 4100, 4096 + 60, 6000, 8192, 12_000] {
            // The first segment is shorter than the others.
            if at >= bytes {
                continue;
            }
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

/// One step goes through 256 KiB. A segment of more that is looked up wrongly for the next step is begun again without end, and
/// what has rotted behind its first steps is never found.
#[tokio::test]
async fn a_segment_of_several_steps_is_gone_through_to_its_end_and_rot_in_its_middle_is_found()
-> anyhow::Result<()> {
    const SEGMENT: u64 = 1 << 20;
    const ROTTEN: usize = 700 << 10;
    let dir = tempfile::tempdir()?;
    let settings = LogSettings {
        segment_bytes: SEGMENT,
        ..LogSettings::default()
    };
    let log = Log::open(Arc::new(RealDisk), dir.path(), settings.create())?;
    for round in 0..40 {
        let batch = (round * 32..(round + 1) * 32).map(|number| entry_of(1, number, 4_000));
        append(&log, batch.collect()).await?;
        // Who finds no segment made ready makes a short one.
        log.maker.idle().await;
    }
    let ended: Vec<(PathBuf, u64)> = {
        let view = log.shared.view();
        view.ended()
            .map(|segment| (segment.path.clone(), segment.header.bytes))
            .collect()
    };
    let long = ended.iter().filter(|(_, bytes)| *bytes == SEGMENT);
    assert!(long.count() > 2, "{ended:?}");
    // A step goes through 256 KiB at least, or to a segment's end.
    let steps_max = ended.iter().map(|(_, bytes)| bytes / (256 << 10) + 1).sum();

    let mut scrubber = log.scrubber();
    for pass in 0..2 {
        let all = scrubber.left();
        let (mut left, mut bytes, mut steps) = (all, 0, 0);
        while left > 0 {
            let scrubbed = scrubber.step()?;
            (bytes, steps) = (bytes + scrubbed.bytes, steps + 1);
            assert!(
                scrubbed.left < left,
                "pass {pass}, step {steps}: {} bytes are left, and before it {left}",
                scrubbed.left
            );
            assert_eq!(bytes + scrubbed.left, all, "pass {pass}, step {steps}");
            left = scrubbed.left;
        }
        assert!(steps <= steps_max, "{steps} steps, at most {steps_max}");
        assert!(steps > ended.len() as u64, "{steps} steps");
    }

    for (path, bytes) in &ended {
        if *bytes < SEGMENT {
            continue;
        }
        flip(path, ROTTEN);
        let mut scrubber = log.scrubber();
        let found = (0..steps_max).find_map(|_| scrubber.step().err());
        let Some(Fault::Corrupt {
            path: named, offset, ..
        }) = found
        else {
            panic!("{}: {found:?}", path.display());
        };
        assert_eq!(Path::new(&named), path);
        // The batch that it is in, of 32 entries of 4,000 bytes.
        let batch = ROTTEN as u64 - (140 << 10)..=ROTTEN as u64;
        assert!(batch.contains(&offset), "{offset}");
        flip(path, ROTTEN);
    }
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

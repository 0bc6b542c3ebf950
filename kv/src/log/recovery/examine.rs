//! What an opening of the log would find, and all that it would refuse, not only the first. Changes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::scan::{Scan, peek, survey};
use super::{Listing, ReadLog, list, read};
use crate::damage::{Damage, Damages, Part};
use crate::env::Disk;
use crate::log::format::{Head, SECTOR, SegmentHeader};
use crate::log::open_error::{LogOpenError, corrupt};
use crate::log::segment::Segment;
use crate::model::LogPosition;

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Examined {
    /// Segment files, those included that hold nothing that is wanted.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What they hold; none where the log would be refused.
    pub held: Option<LogContent>,
}

/// What a log that is whole holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogContent {
    /// Segments that hold entries or the vote.
    pub segments: u64,
    pub entries: u64,
    pub purged: Option<LogPosition>,
    pub last: Option<LogPosition>,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    /// Whether a write that was never answered stands at the end, which the next start cuts off.
    pub torn: bool,
}

/// Reads the log in `dir`.
pub(crate) fn examine(disk: &dyn Disk, dir: &Path, damages: &mut Damages) -> Examined {
    let mut examined = Examined {
        files: 0,
        bytes: 0,
        held: None,
    };
    let files = match list(disk, dir) {
        Ok(files) => files,
        Err(error) => {
            damages.add(damage(dir, error));
            return examined;
        }
    };
    examined.files = files.segments.len() as u64;
    let length = |path| disk.open(path, false).and_then(|file| file.len()).unwrap_or(0);
    examined.bytes = files.segments.values().map(|path| length(path)).sum();
    if files.segments.is_empty() {
        damages.add(damage(dir, LogOpenError::Missing { dir: dir.to_owned() }));
        return examined;
    }
    match read(disk, dir, &files) {
        Ok(log) => examined.held = held(&log),
        Err(error) => {
            damages.add(damage(dir, error));
            find_the_rest(disk, dir, &files, damages);
        }
    }
    examined
}

fn held(log: &ReadLog) -> Option<LogContent> {
    let newest = log.chain.last()?;
    let end = &newest.end;
    let below = end.purged.map_or(0, |purged| purged.index.number() + 1);
    let entries = |scan: &Scan| {
        let (first, end) = scan.bounds().unwrap_or((0, 0));
        end.saturating_sub(first.max(below))
    };
    Some(LogContent {
        segments: log.chain.len() as u64 + u64::from(log.fresh_tail.is_some()),
        entries: log.chain.iter().map(entries).sum(),
        purged: end.purged,
        last: end.last,
        vote: end.vote.clone(),
        committed: end.committed.clone(),
        torn: log.fresh_tail.is_none() && newest.goes_on_torn().unwrap_or(false),
    })
}

/// Goes through all segments from the newest back, as far as entries are wanted, over whatever is wrong with them.
fn find_the_rest(disk: &dyn Disk, dir: &Path, files: &Listing, damages: &mut Damages) {
    let mut by_sequence: BTreeMap<u64, (Head, Segment)> = BTreeMap::new();
    for (&number, path) in &files.segments {
        let opened = disk.open(path, false).and_then(|file| {
            let mut sector = [0; SECTOR as usize];
            file.read_exact_at(&mut sector, 0)?;
            Ok((file.len()?, sector, file))
        });
        // A header that does not verify is told where the log refers to the segment, or its place is empty.
        let Ok((len, sector, file)) = opened else { continue };
        let Ok(header) = SegmentHeader::decode(&sector) else {
            continue;
        };
        if len < header.bytes {
            let detail = format!(
                "the file has {len} bytes of the {} that its header tells",
                header.bytes
            );
            damages.add(damage(dir, corrupt(path, len, detail)));
            continue;
        }
        let segment = Segment::new(path.clone(), number, header, file);
        match peek(&segment) {
            Ok(Some(head)) => drop(by_sequence.insert(head.sequence, (head, segment))),
            Ok(None) => {}
            Err(error) => damages.add(damage(dir, error)),
        }
    }
    let Some((&newest, (head, _))) = by_sequence.last_key_value() else {
        return;
    };
    let purged = head.state.purged;
    let mut later: Option<(u64, Arc<Path>)> = None;
    for (sequence, (head, segment)) in by_sequence.iter().rev() {
        if let Some((expected, later)) = &later
            && sequence + 1 != *expected
        {
            let detail = format!(
                "of the segments before this one, {} are missing or have no header that verifies",
                expected - sequence - 1
            );
            damages.add(damage(dir, corrupt(later, 0, detail)));
        }
        later = Some((*sequence, Arc::from(segment.path.as_path())));
        match survey(segment) {
            Ok(survey) => {
                for hole in &survey.holes {
                    let detail =
                        "the batch here does not verify, and later ones were written when it was durable";
                    damages.add(damage(dir, corrupt(&segment.path, *hole, detail)));
                }
                if !survey.sealed && *sequence != newest {
                    let detail = "the segment ends here, but the log goes on in others";
                    damages.add(damage(dir, corrupt(&segment.path, survey.end, detail)));
                }
            }
            Err(error) => damages.add(damage(dir, error)),
        }
        // What stands before this segment is purged.
        if purged.is_some_and(|purged| head.state.last.is_none_or(|last| last.index <= purged.index)) {
            return;
        }
    }
}

/// What an opening would say of the log in `dir`.
fn damage(dir: &Path, error: LogOpenError) -> Damage {
    match error {
        LogOpenError::Corrupt { file, offset, detail } => Damage::new(Part::Log, &file, detail).at(offset),
        LogOpenError::UnknownFormat { ref file, .. } => Damage::new(Part::Log, file, error.to_string()),
        LogOpenError::Disk { doing, path, error } => {
            Damage::new(Part::Log, &path, format!("{doing}: {error}"))
        }
        other => Damage::new(Part::Log, dir, other.to_string()),
    }
}

//! Opens a log: finds its segments, reads them, tells what a crash left unfinished from what rotted.
//!
//! The newest segment is read first. It starts with the log's whole state, so older ones are read only as far
//! back as entries are still wanted; whatever else lies in the directory is material for new segments.
//!
//! Reading a segment stops at the first batch that is not whole. That is the log's end, unless something
//! proves that the batch was durable once: a later batch that says so, or a later segment that goes on from
//! there. Then it is corruption, and nothing is touched. The one loss that leaves no proof is that of the very
//! last batch, when nothing was written after it, not even the mark of a close.
//!
//! Always: before anybody is served, all that was found is durable: what no batch proves to have been synced is
//! written again and synced, since after a failed sync it may stand in the page cache only. Then a mark is
//! written behind it that gives what was cut off an older opening's number, so that it never verifies as part
//! of what follows.

pub(super) mod examine;
mod scan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::scan::{Scan, SegmentContent, peek, scan};
pub(super) use self::scan::{Verified, verify};
use super::appender::{Appender, Continue, Tail};
use super::crash_points::CrashPoint;
use super::format::{self, Anchor, BadHeader, FIRST_BATCH, SECTOR, SegmentHeader};
use super::open_error::{LogOpenError, corrupt, disk_error};
use super::segment::{self, Named, RawFile, Segment, Unnamed, classify};
use super::settings::{LogSettings, OpenMode};
use super::view::{Index, Recovered, Runs};
use crate::env::{Disk, random_u64};
use crate::planted::{self, Bug};

/// An opened log.
pub(super) struct Opened {
    pub recovered: Recovered,
    pub appender: Appender,
}

/// Opens the log in `dir`, or makes it.
pub(super) fn open(disk: &Arc<dyn Disk>, dir: &Path, settings: &LogSettings) -> Result<Opened, LogOpenError> {
    let mut files = list(&**disk, dir)?;
    if files.segments.is_empty() {
        if settings.mode == OpenMode::Existing {
            return Err(LogOpenError::Missing { dir: dir.to_owned() });
        }
        remove_unfinished(&**disk, dir, &files)?;
        create(&**disk, dir, settings)?;
        files = list(&**disk, dir)?;
    }
    recover(disk, dir, settings, files)
}

/// What is in the log's directory.
#[derive(Debug, Default)]
struct Listing {
    segments: BTreeMap<u64, PathBuf>,
    unfinished: Vec<PathBuf>,
}

fn list(disk: &dyn Disk, dir: &Path) -> Result<Listing, LogOpenError> {
    let mut listing = Listing::default();
    if !disk.exists(dir).map_err(disk_error("look for directory", dir))? {
        return Ok(listing);
    }
    for path in disk.list(dir).map_err(disk_error("list directory", dir))? {
        match classify(&path) {
            Named::Segment(number) => {
                listing.segments.insert(number, path);
            }
            Named::Unfinished => listing.unfinished.push(path),
            Named::Foreign => {}
        }
    }
    Ok(listing)
}

/// Removes what interrupted preparations left. Durably, since their names are given again.
fn remove_unfinished(disk: &dyn Disk, dir: &Path, files: &Listing) -> Result<(), LogOpenError> {
    if files.unfinished.is_empty() {
        return Ok(());
    }
    for path in &files.unfinished {
        disk.remove_file(path)
            .map_err(disk_error("remove unfinished segment", path))?;
        reached(CrashPoint::UnfinishedRemoved, path)?;
    }
    disk.sync_dir(dir).map_err(disk_error("sync directory", dir))
}

/// Makes the first segment. It gets its name when all of it is durable: the log is there whole, or not.
fn create(disk: &dyn Disk, dir: &Path, settings: &LogSettings) -> Result<(), LogOpenError> {
    disk.create_dir_all(dir)
        .map_err(disk_error("make directory", dir))?;
    let header = SegmentHeader {
        log_id: random_u64(),
        generation: 1,
        bytes: segment::first_bytes(settings.segment_bytes),
    };
    let first = Unnamed::create(disk, dir, 1, header)?;
    write_first_head(first.segment())?;
    reached(CrashPoint::CreateWritten, dir)?;
    first.finish(disk, dir)?;
    reached(CrashPoint::CreateNamed, dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)
            .map_err(disk_error("sync directory", parent))?;
    }
    Ok(())
}

fn write_first_head(segment: &Segment) -> Result<(), LogOpenError> {
    let head = crate::model::encode(&format::Head {
        sequence: 1,
        previous: None,
        state: Anchor::default(),
    });
    let mut batch = vec![0; format::BATCH_HEADER];
    let kind = format::RecordKind::Head;
    format::encode_record(segment.salt, 0, kind, format::NO_POSITION, &head, &mut batch);
    let header = format::BatchHeader {
        offset: FIRST_BATCH,
        durable: FIRST_BATCH,
        body_bytes: (batch.len() - format::BATCH_HEADER) as u32,
        records: 1,
        opening: 0,
    };
    header.encode(segment.salt, &mut batch);
    segment
        .file
        .write_all_at(&batch, FIRST_BATCH)
        .map_err(disk_error("write", &segment.path))
}

/// A log as its files have it.
struct ReadLog {
    /// The segments that hold what is wanted, oldest first; one at least.
    chain: Vec<Scan>,
    /// Where the log goes on, if the last of the chain was ended: nothing whole stands in it.
    fresh_tail: Option<Arc<Segment>>,
    /// All whose headers verify, by generation.
    segments: BTreeMap<u64, Arc<Segment>>,
    unreadable: Vec<Unreadable>,
    /// The greatest generation that was given.
    generations: u64,
}

/// Reads what is there, and changes nothing.
fn read(disk: &dyn Disk, dir: &Path, files: &Listing) -> Result<ReadLog, LogOpenError> {
    let Known { segments, unreadable } = read_headers(disk, files)?;
    let mut generations: u64 = segments.keys().next_back().copied().unwrap_or(0);

    let newest = find_newest(&segments, &unreadable, dir)?;
    // The newest segment ends for good, or is where the log goes on.
    let (newest, fresh_tail) = match newest.sealed {
        None => {
            check_nothing_follows(&newest)?;
            (newest, None)
        }
        Some(generation) => {
            generations = generations.max(generation);
            let next = segments
                .get(&generation)
                .cloned()
                .ok_or_else(|| missing_segment(&newest, generation, &unreadable))?;
            let empty = Scan::empty(next, &newest);
            check_nothing_follows(&empty)?;
            (newest, Some(empty.segment))
        }
    };

    let chain = read_chain(newest, &segments, &unreadable)?;
    Ok(ReadLog {
        chain,
        fresh_tail,
        segments,
        unreadable,
        generations,
    })
}

fn recover(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    settings: &LogSettings,
    files: Listing,
) -> Result<Opened, LogOpenError> {
    let next_number = files.segments.keys().next_back().map_or(1, |number| number + 1);
    let ReadLog {
        chain,
        fresh_tail,
        mut segments,
        unreadable,
        generations,
    } = read(&**disk, dir, &files)?;
    let Some(newest) = chain.last() else {
        return Err(LogOpenError::Missing { dir: dir.to_owned() });
    };
    let state = newest.end.clone();
    refuse_unless_wanted(settings, dir, &state)?;

    remove_unfinished(&**disk, dir, &files)?;
    // What was read may be in the operating system's memory only, after a crash of the process alone. It must
    // be durable before the mark says so.
    let segment = &newest.segment;
    newest.rewrite_unproven()?;
    reached(CrashPoint::RecoveryRewritten, &segment.path)?;
    segment
        .file
        .sync_data()
        .map_err(disk_error("sync log", &segment.path))?;
    reached(CrashPoint::RecoverySynced, &segment.path)?;
    disk.sync_dir(dir).map_err(disk_error("sync directory", dir))?;

    let tail = match &fresh_tail {
        None => {
            let cursor = match planted::is(Bug::TornTailKept) {
                true => newest.end_of_torn()?,
                false => newest.cursor,
            };
            Tail {
                segment: newest.segment.clone(),
                sequence: newest.sequence,
                previous: newest.previous,
                cursor,
                durable: cursor,
            }
        }
        Some(segment) => Tail {
            segment: segment.clone(),
            sequence: newest.sequence + 1,
            previous: Some(newest.segment.header.generation),
            cursor: FIRST_BATCH,
            durable: FIRST_BATCH,
        },
    };
    let opening = newest.opening.saturating_add(1);
    let log_id = newest.segment.header.log_id;
    for scanned in &chain {
        segments.remove(&scanned.segment.header.generation);
    }
    segments.remove(&tail.segment.header.generation);
    let mut pool: Vec<RawFile> = segments.values().map(|segment| segment.raw()).collect();
    pool.extend(unreadable.into_iter().map(|file| file.raw));

    let mut recovered = assemble(chain);
    if let Some(segment) = fresh_tail {
        recovered.index.roll(segment);
    }
    let from = Continue {
        log_id,
        next_generation: generations + 1,
        next_number,
        opening,
        tail,
        state,
        pool,
    };
    let mut appender = Appender::new(disk.clone(), dir.to_owned(), settings, from);
    appender.head()?;
    appender.commit()?;
    reached(CrashPoint::RecoveryMarked, dir)?;
    // The mark may have gone into a new segment.
    let (changes, _, _) = appender.take_changes();
    for change in changes {
        if let super::view::Change::Rolled(segment) = change {
            recovered.index.roll(segment);
        }
    }
    Ok(Opened { recovered, appender })
}

/// A log that should not be there may be there if it never held anything.
fn refuse_unless_wanted(settings: &LogSettings, dir: &Path, state: &Anchor) -> Result<(), LogOpenError> {
    if settings.mode == OpenMode::Create && *state != Anchor::default() {
        return Err(LogOpenError::NotEmpty {
            dir: dir.to_owned(),
            last: state.last,
        });
    }
    Ok(())
}

/// The segment files of the directory.
struct Known {
    /// By generation.
    segments: BTreeMap<u64, Arc<Segment>>,
    unreadable: Vec<Unreadable>,
}

/// A segment file whose header does not verify: it was being headed anew, or its header rotted. In the first
/// case the log is whole without it.
struct Unreadable {
    raw: RawFile,
}

fn read_headers(disk: &dyn Disk, files: &Listing) -> Result<Known, LogOpenError> {
    let mut segments: BTreeMap<u64, Arc<Segment>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for (&number, path) in &files.segments {
        let file = disk.open(path, false).map_err(disk_error("open", path))?;
        let len = file.len().map_err(disk_error("measure", path))?;
        let mut sector = [0; SECTOR as usize];
        if len >= SECTOR {
            file.read_exact_at(&mut sector, 0)
                .map_err(disk_error("read", path))?;
        }
        let header = match SegmentHeader::decode(&sector) {
            Ok(header) => header,
            Err(BadHeader::Version(found)) => {
                return Err(LogOpenError::UnknownFormat {
                    file: path.clone(),
                    found,
                    known: format::FORMAT_VERSION,
                });
            }
            Err(BadHeader::Unreadable) => {
                let raw = RawFile {
                    path: path.clone(),
                    number,
                    bytes: len,
                };
                unreadable.push(Unreadable { raw });
                continue;
            }
        };
        if len < header.bytes {
            let detail = format!(
                "the file has {len} bytes of the {} that its header tells",
                header.bytes
            );
            return Err(corrupt(path, len, detail));
        }
        let segment = Arc::new(Segment::new(path.clone(), number, header, file));
        if let Some(other) = segments
            .values()
            .find(|other| other.header.log_id != header.log_id)
        {
            let detail = format!("it is of another log than {}", other.path.display());
            return Err(corrupt(path, 0, detail));
        }
        if let Some(other) = segments.insert(header.generation, segment) {
            let detail = format!("it is a copy of {}", other.path.display());
            return Err(corrupt(path, 0, detail));
        }
    }
    Ok(Known { segments, unreadable })
}

/// Finds and reads the newest segment that holds a whole batch.
fn find_newest(
    segments: &BTreeMap<u64, Arc<Segment>>,
    unreadable: &[Unreadable],
    dir: &Path,
) -> Result<Scan, LogOpenError> {
    let mut begun: Vec<(u64, Arc<Segment>)> = Vec::new();
    for segment in segments.values() {
        if let Some(head) = peek(segment)? {
            begun.push((head.sequence, segment.clone()));
        }
    }
    begun.sort_by_key(|(sequence, _)| *sequence);
    let mut unfinished: Option<Arc<Segment>> = None;
    while let Some((_, segment)) = begun.pop() {
        match scan(&segment)? {
            SegmentContent::Nothing => {
                // Only the first batch of the newest segment may be torn.
                if let Some(later) = unfinished.replace(segment.clone()) {
                    return Err(corrupt(&segment.path, FIRST_BATCH, goes_on(&later)));
                }
            }
            SegmentContent::Batches(scan) => {
                if let Some(later) = unfinished
                    && scan.sealed != Some(later.header.generation)
                {
                    return Err(corrupt(&segment.path, scan.cursor, goes_on(&later)));
                }
                return Ok(*scan);
            }
        }
    }
    let (path, detail) = match (unfinished, unreadable.first()) {
        (Some(segment), _) => (
            segment.path.clone(),
            "its first batch does not verify, and no segment precedes it",
        ),
        (None, Some(file)) => (
            file.raw.path.clone(),
            "its header does not verify, and no other segment holds the log",
        ),
        (None, None) => match segments.values().next() {
            Some(segment) => (segment.path.clone(), "its first batch does not verify"),
            None => return Err(LogOpenError::Missing { dir: dir.to_owned() }),
        },
    };
    Err(corrupt(&path, FIRST_BATCH, detail))
}

fn goes_on(later: &Segment) -> String {
    format!(
        "the segment ends here, but the log goes on in {}",
        later.path.display()
    )
}

/// Checks that no batch behind the end of `scan` says that there was more before it.
fn check_nothing_follows(scan: &Scan) -> Result<(), LogOpenError> {
    match scan.proof_of_more()? {
        None => Ok(()),
        Some(proof) => {
            let detail = format!(
                "the batch here does not verify, but the one at byte {} was written after it was durable",
                proof.offset
            );
            Err(corrupt(&scan.segment.path, scan.cursor, detail))
        }
    }
}

/// Reads back from the newest segment as far as entries are wanted. Oldest first.
fn read_chain(
    newest: Scan,
    segments: &BTreeMap<u64, Arc<Segment>>,
    unreadable: &[Unreadable],
) -> Result<Vec<Scan>, LogOpenError> {
    let purged = newest.end.purged.map_or(0, |purged| purged.index.number() + 1);
    // The entries from `purged` up to here are still to be found.
    let mut wanted_below = newest.end.last.map_or(0, |last| last.index.number() + 1);
    let mut chain = vec![newest];
    loop {
        let Some(oldest) = chain.last_mut() else {
            return Ok(chain);
        };
        oldest.clip(wanted_below);
        if let Some((first, end)) = oldest.bounds() {
            if end != wanted_below {
                let detail = format!("entries {end} to {} are missing", wanted_below - 1);
                return Err(corrupt(&oldest.segment.path, oldest.cursor, detail));
            }
            wanted_below = first;
        }
        // A log that held nothing before this segment starts where its first entry does.
        let is_first = oldest.head.last.is_none() && purged == 0;
        if wanted_below <= purged || is_first {
            chain.reverse();
            return Ok(chain);
        }
        let Some(generation) = oldest.previous else {
            let detail = format!("entries {purged} to {} are missing", wanted_below - 1);
            return Err(corrupt(&oldest.segment.path, FIRST_BATCH, detail));
        };
        let Some(previous) = segments.get(&generation) else {
            return Err(missing_segment(oldest, generation, unreadable));
        };
        let SegmentContent::Batches(previous) = scan(previous)? else {
            return Err(corrupt(&previous.path, FIRST_BATCH, goes_on(&oldest.segment)));
        };
        if previous.sealed != Some(oldest.segment.header.generation) {
            return Err(corrupt(
                &previous.segment.path,
                previous.cursor,
                goes_on(&oldest.segment),
            ));
        }
        if !previous.end.agrees_with(&oldest.head) || previous.sequence + 1 != oldest.sequence {
            let detail = format!(
                "the state here is not what {} starts with",
                oldest.segment.path.display()
            );
            return Err(corrupt(&previous.segment.path, previous.cursor, detail));
        }
        chain.push(*previous);
    }
}

fn missing_segment(after: &Scan, generation: u64, unreadable: &[Unreadable]) -> LogOpenError {
    let suspects: Vec<_> = unreadable
        .iter()
        .map(|file| file.raw.path.display().to_string())
        .collect();
    let detail = if suspects.is_empty() {
        format!("the log continues in the segment of generation {generation}, and no file is that")
    } else {
        format!(
            "the log continues in the segment of generation {generation}, and no file is that; the header of \
             {} does not verify",
            suspects.join(", ")
        )
    };
    corrupt(&after.segment.path, after.cursor, detail)
}

/// Puts what was read together. Oldest first.
fn assemble(chain: Vec<Scan>) -> Recovered {
    let mut runs = Runs::default();
    let mut index = Index::default();
    let mut end = Anchor::default();
    for scanned in chain {
        index.roll(scanned.segment.clone());
        for position in scanned.positions() {
            runs.push(position);
        }
        if let Some((first, _)) = scanned.bounds() {
            index.append(first, scanned.offsets);
        }
        end = scanned.end;
    }
    if let Some(purged) = end.purged {
        index.purge(purged.index.number());
        runs.purge(purged.index.number());
    }
    Recovered {
        purged: end.purged,
        last: end.last,
        vote: end.vote,
        committed: end.committed,
        runs,
        index,
    }
}

/// A step of the opening is done.
fn reached(point: CrashPoint, path: &Path) -> Result<(), LogOpenError> {
    point.reached().map_err(disk_error("pass", path))
}

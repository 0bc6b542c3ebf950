//! Segment files, and the thread that prepares the next one.
//!
//! A file is made under a temporary name, filled with zeros, headed, synced and only then given its name, so
//! that whatever bears a segment's name is whole. A file whose entries were purged is headed anew, under a new
//! generation, and needs no zeros: what it still holds no longer verifies.
//!
//! Always: a segment handed to the writer has a durable name, length and header, and nothing in it verifies;
//! no file that is part of the log is written here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::crash_points::CrashPoint;
use super::format::{FIRST_BATCH, PAGE, SECTOR, SegmentHeader};
use crate::env::{Disk, File, Owner, OwnerHandle, oneshot, spawn_owner};
use crate::fault::{Fault, Faults};

/// How much is zeroed at once.
const ZERO_CHUNK: usize = 1 << 20;
/// How much is zeroed between two syncs: little enough that the log's own syncs, which share the device,
/// do not wait long behind it.
const ZERO_SYNC_BYTES: u64 = 4 << 20;
/// The maker's queue. One segment is asked for at a time; the rest are removals, which wait in the writer's
/// pool when the queue is full.
const MAKER_QUEUE: usize = 16;

const SUFFIX: &str = ".log";
const PREFIX: &str = "segment-";
const UNFINISHED: &str = ".new";

/// A segment file in one life.
#[derive(Debug)]
pub(super) struct Segment {
    pub path: PathBuf,
    pub number: u64,
    pub header: SegmentHeader,
    pub salt: u32,
    pub file: Arc<dyn File>,
}

impl Segment {
    pub fn new(path: PathBuf, number: u64, header: SegmentHeader, file: Arc<dyn File>) -> Self {
        Self {
            path,
            number,
            salt: header.salt(),
            header,
            file,
        }
    }

    /// The file without its life.
    pub fn raw(&self) -> RawFile {
        RawFile {
            path: self.path.clone(),
            number: self.number,
            bytes: self.header.bytes,
        }
    }
}

/// A whole segment file whose content nobody needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawFile {
    pub path: PathBuf,
    pub number: u64,
    pub bytes: u64,
}

/// A file's part in the directory, by its name.
pub(super) enum Named {
    /// A segment, with its number.
    Segment(u64),
    /// What an interrupted preparation left behind.
    Unfinished,
    /// Not ours.
    Foreign,
}

/// Tells what a path in the log's directory is.
pub(super) fn classify(path: &Path) -> Named {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Named::Foreign;
    };
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return Named::Foreign;
    };
    if rest.ends_with(UNFINISHED) {
        return Named::Unfinished;
    }
    match rest.strip_suffix(SUFFIX).map(str::parse) {
        Some(Ok(number)) => Named::Segment(number),
        _ => Named::Foreign,
    }
}

/// A segment's path.
pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:08}{SUFFIX}"))
}

/// A segment file that has no name yet.
pub(super) struct Unnamed {
    segment: Segment,
    temporary: PathBuf,
}

impl Unnamed {
    /// Makes a file of `header.bytes` bytes, zeroed and headed, under a temporary name.
    pub fn create(disk: &dyn Disk, dir: &Path, number: u64, header: SegmentHeader) -> Result<Self, Fault> {
        let path = path_of(dir, number);
        let mut temporary = path.clone().into_os_string();
        temporary.push(UNFINISHED);
        let temporary = PathBuf::from(temporary);
        let making = |e| Fault::disk("make segment", temporary.display(), e);
        let file = disk.open(&temporary, true).map_err(making)?;
        zero(&*file, header.bytes).map_err(making)?;
        CrashPoint::SegmentZeroed.reached().map_err(making)?;
        file.write_all_at(&header.encode(), 0).map_err(making)?;
        Ok(Self {
            segment: Segment::new(path, number, header, file),
            temporary,
        })
    }

    /// The segment, so that its first batch may be written before it gets its name.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Makes the content durable, then the name.
    pub fn finish(self, disk: &dyn Disk, dir: &Path) -> Result<Segment, Fault> {
        let Self { segment, temporary } = self;
        segment
            .file
            .sync_data()
            .and_then(|()| CrashPoint::SegmentSynced.reached())
            .map_err(|e| Fault::disk("sync new segment", temporary.display(), e))?;
        disk.rename(&temporary, &segment.path)
            .and_then(|()| CrashPoint::SegmentNamed.reached())
            .map_err(|e| Fault::disk("name segment", segment.path.display(), e))?;
        disk.sync_dir(dir)
            .map_err(|e| Fault::disk("sync directory", dir.display(), e))?;
        Ok(segment)
    }
}

fn zero(file: &dyn File, bytes: u64) -> io::Result<()> {
    // Written, not only counted as length: the blocks must exist, or each later write would allocate them
    // and each later sync would wait for the file system's journal.
    let zeros = vec![0; ZERO_CHUNK.min(usize::try_from(bytes).unwrap_or(ZERO_CHUNK))];
    let mut at = 0;
    let mut unsynced = 0;
    while at < bytes {
        let step = (bytes - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..step as usize], at)?;
        at += step;
        unsynced += step;
        if unsynced >= ZERO_SYNC_BYTES {
            file.sync_data()?;
            // A segment full of them in the system's memory would serve nobody: what is written over them covers
            // whole pages.
            file.drop_cached();
            unsynced = 0;
        }
    }
    Ok(())
}

/// Makes a segment ready for the writer: heads a file anew, or makes one.
pub(super) fn prepare(
    disk: &dyn Disk,
    dir: &Path,
    from: Material,
    header: SegmentHeader,
) -> Result<Segment, Fault> {
    match from {
        Material::New { number } => Unnamed::create(disk, dir, number, header)?.finish(disk, dir),
        Material::Recycled(raw) => {
            let heading = |e| Fault::disk("head recycled segment", raw.path.display(), e);
            let file = disk.open(&raw.path, false).map_err(heading)?;
            file.write_all_at(&header.encode(), 0).map_err(heading)?;
            CrashPoint::SegmentHeadedAnew.reached().map_err(heading)?;
            file.sync_data().map_err(heading)?;
            CrashPoint::SegmentRecycled.reached().map_err(heading)?;
            Ok(Segment::new(raw.path.clone(), raw.number, header, file))
        }
    }
}

/// What a segment is made of.
#[derive(Debug)]
pub(super) enum Material {
    /// A new file.
    New {
        /// Its number, which no other file of the directory bears.
        number: u64,
    },
    /// A file that nobody needs; its length is that of the header.
    Recycled(RawFile),
}

/// A log's first segment has this part of the full length: a new node takes little disk, and serves at once.
const FIRST_PART: u64 = 512;
/// And no less than this: its header's page, and some batches.
const FIRST_BYTES_MIN: u64 = 2 * PAGE;

/// The length of a new log's first segment.
pub(super) fn first_bytes(segment_bytes: u64) -> u64 {
    (segment_bytes / FIRST_PART)
        .next_multiple_of(PAGE)
        .max(FIRST_BYTES_MIN)
        .min(segment_bytes)
}

/// The length of the segment behind one of `bytes`: each is twice as long as the one before, until they have their full
/// length. So an idle log takes little, and one under load has full segments when it has filled as much as one of them.
pub(super) fn next_bytes(bytes: u64, segment_bytes: u64) -> u64 {
    bytes.saturating_mul(2).min(segment_bytes)
}

/// The least length of a segment that has room for one batch of `batch_bytes` and its end.
pub(super) fn bytes_for(batch_bytes: u64) -> u64 {
    FIRST_BATCH + super::format::sector_up(batch_bytes) + SECTOR
}

/// Where the maker leaves the segment it prepared.
#[derive(Debug, Default)]
struct Slot {
    ready: Option<Segment>,
    asked: bool,
}

/// Prepares segments ahead of their use, on a thread of its own.
#[derive(Debug, Clone)]
pub(super) struct Maker {
    jobs: OwnerHandle<MakerJob>,
    slot: Arc<Mutex<Slot>>,
}

enum MakerJob {
    Prepare(Material, SegmentHeader),
    Remove(PathBuf),
    Stop(oneshot::Sender<()>),
}

impl Maker {
    /// Starts the thread.
    pub fn start(disk: Arc<dyn Disk>, dir: PathBuf, faults: &Faults) -> Self {
        let slot = Arc::new(Mutex::new(Slot::default()));
        let owner = MakerOwner {
            disk,
            dir,
            slot: slot.clone(),
            stopped: false,
        };
        Self {
            jobs: spawn_owner(
                "log-segments",
                MAKER_QUEUE,
                1,
                owner,
                faults.on_panic("segment thread of the log"),
            ),
            slot,
        }
    }

    /// Whether a segment is ready or on its way.
    pub fn is_provided(&self) -> bool {
        let slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.ready.is_some() || slot.asked
    }

    /// Asks for a segment to be made ready. Gives the material back when the queue is full.
    pub fn ask(&self, from: Material, header: SegmentHeader) -> Result<(), Option<Material>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).asked = true;
        self.jobs
            .try_send(MakerJob::Prepare(from, header))
            .map_err(|refused| {
                // The writer makes its segment itself then, and asks again afterwards.
                self.slot.lock().unwrap_or_else(PoisonError::into_inner).asked = false;
                match refused {
                    Some(MakerJob::Prepare(from, _)) => Some(from),
                    _ => None,
                }
            })
    }

    /// Takes the segment that is ready, if it is at least so long.
    pub fn take(&self, bytes_min: u64) -> Option<Segment> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.ready.take_if(|segment| segment.header.bytes >= bytes_min)
    }

    /// Takes the segment that is ready, if it is shorter than that: the log has grown past it.
    pub fn take_shorter(&self, bytes: u64) -> Option<Segment> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.ready.take_if(|segment| segment.header.bytes < bytes)
    }

    /// Removes a file that nobody needs. `false` when the queue is full: try later.
    pub fn remove(&self, path: PathBuf) -> bool {
        self.jobs.try_send(MakerJob::Remove(path)).is_ok()
    }

    /// Waits until the thread has done all it was asked for.
    #[cfg(test)]
    pub async fn idle(&self) {
        while self.slot.lock().unwrap_or_else(PoisonError::into_inner).asked {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the thread has done all it was asked for, and will touch no file any more.
    pub async fn stop(&self) {
        let (tx, rx) = oneshot::channel();
        if self.jobs.send(MakerJob::Stop(tx)).await.is_ok() {
            let _ended = rx.await;
        }
    }
}

struct MakerOwner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    slot: Arc<Mutex<Slot>>,
    stopped: bool,
}

enum Made {
    Segment(Option<Segment>),
    Nothing,
    Stopped(oneshot::Sender<()>),
}

impl Owner for MakerOwner {
    type Job = MakerJob;
    type Effects = Vec<Made>;

    fn work(&mut self, batch: &mut Vec<MakerJob>) -> Vec<Made> {
        batch
            .drain(..)
            .map(|job| match job {
                MakerJob::Stop(done) => {
                    self.stopped = true;
                    Made::Stopped(done)
                }
                MakerJob::Prepare(..) | MakerJob::Remove(_) if self.stopped => Made::Nothing,
                MakerJob::Prepare(from, header) => {
                    // A failure is told by the writer, which meets it again when it needs the segment.
                    let made = prepare(&*self.disk, &self.dir, from, header);
                    if let Err(fault) = &made {
                        tracing::warn!(%fault, "no spare segment could be made ready");
                    }
                    Made::Segment(made.ok())
                }
                MakerJob::Remove(path) => {
                    // A file that stays is found and used or removed when the log is opened the next time.
                    let removed = CrashPoint::SegmentUnneeded
                        .reached()
                        .and_then(|()| self.disk.remove_file(&path));
                    if let Err(error) = removed {
                        tracing::warn!(path = %path.display(), %error, "a spare segment could not be removed");
                    }
                    Made::Nothing
                }
            })
            .collect()
    }

    fn publish(&mut self, effects: Vec<Made>) {
        for made in effects {
            match made {
                Made::Segment(segment) => {
                    let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
                    slot.asked = false;
                    slot.ready = segment;
                }
                Made::Nothing => {}
                Made::Stopped(done) => {
                    let _gone = done.send(());
                }
            }
        }
    }
}

//! Raft's log: segment files that are only appended to, one writer, one sync for all that waits.
//!
//! Called by `raft`, whose entries are opaque bytes here; stands on [`crate::env`]'s disk and owner threads.
//! Knows nothing of Raft beyond positions, and nothing of the state machine. `docs/formats/log.md` specifies
//! the bytes and what opening makes of every kind of damage.
//!
//! Always:
//! - What was told durable is there after a crash; entries, votes, truncations and purges become durable in
//!   the order in which they were sent, so that what is found is a prefix of what was sent.
//! - Bytes that a crash left unfinished are cut off; bytes that rotted are never passed over: the log refuses
//!   to open, and names file and offset.
//! - After a failed write or sync no file is written again, and every call answers the fault.
//! - Entries are consecutive, in memory and on disk.

mod appender;
mod crash_points;
mod format;
mod reader;
mod recovery;
mod scrub;
mod segment;
mod timings;
mod view;
mod writer;

#[cfg(test)]
pub(crate) mod crash_disk;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

#[doc(hidden)]
pub use self::crash_points::CRASH_POINTS;
pub(crate) use self::crash_points::CrashPoint;
use self::reader::{ReadJob, Reader};
pub(crate) use self::recovery::examine::{Examined, examine};
pub use self::scrub::LogScrubber;
use self::segment::Maker;
use self::view::{Truncation, View};
use self::writer::{Answer, Job, Work, Writer};
use crate::env::{Disk, Instant, OwnerHandle, oneshot, spawn_owner, watch};
use crate::fault::{Fault, Faults};
use crate::model::{LogIndex, LogPosition};

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index, and the term and leader that wrote it.
    pub position: LogPosition,
    /// What it carries: opaque here, at most 1 GiB.
    pub payload: Bytes,
}

/// Told once, in the order of the calls: `Ok` after what it was given for is durable.
///
/// Runs on the log's thread: it should hand the news on and return.
pub type Completion = Box<dyn FnOnce(Result<(), Fault>) + Send>;

/// Whether a log should be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpenMode {
    /// It must be there: a log that is missing has been lost, and with it perhaps a vote.
    #[default]
    Existing,
    /// It must not be there, or must never have held anything, so that an interrupted start can be repeated.
    Create,
}

/// How a log uses disk and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Whether a log should be there already. Default: it must.
    pub mode: OpenMode,
    /// The full length of a segment file in bytes, from 16 KiB to 1 GiB; 64 MiB by default.
    ///
    /// A new log begins with a segment of a 512th part of it (8 KiB at least), and each later one is twice as long as the one
    /// before, up to this. Disk space is freed by whole segments, and two of them are there besides what the log holds: the one
    /// being written and the one made ready. An entry that is longer gets a longer segment of its own.
    pub segment_bytes: u64,
    /// How many bytes of the newest entries stay in memory once durable; 64 MiB by default, 0 for none.
    ///
    /// Followers that lag by no more than this are served without touching the disk.
    pub cache_bytes_max: u64,
    /// How many bytes may wait to be written until there is no more room, from 64 KiB to 4 GiB; 64 MiB by default.
    ///
    /// No call waits for room: who has more to write asks for it first, with [`Log::wait_for_room`]. They are in memory
    /// in addition to the cache. Each call counts as 1 KiB at least.
    pub queue_bytes_max: u64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            mode: OpenMode::Existing,
            segment_bytes: 64 << 20,
            cache_bytes_max: 64 << 20,
            queue_bytes_max: 64 << 20,
        }
    }
}

impl LogSettings {
    /// These settings, for a log that is to be made.
    #[must_use]
    pub fn create(self) -> Self {
        Self {
            mode: OpenMode::Create,
            ..self
        }
    }

    fn check(&self) -> Result<(), LogOpenError> {
        let check = |setting, value, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(LogOpenError::InvalidSetting {
                    setting,
                    value,
                    min,
                    max,
                })
            }
        };
        check("segment_bytes", self.segment_bytes, 16 << 10, 1 << 30)?;
        check("queue_bytes_max", self.queue_bytes_max, 64 << 10, 4 << 30)
    }
}

/// Why a log was not opened. Nothing was changed, except that a log being created may be there half.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogOpenError {
    /// There should be a log, and there is none.
    #[error(
        "no log in {}: if it was lost, this node must not vote again under its id; remove the node from the \
         cluster, empty its data directory and add it as a new one", dir.display()
    )]
    Missing {
        /// Where it should be.
        dir: PathBuf,
    },
    /// There should be no log, and there is one that holds something.
    #[error("the log in {} is not empty (last entry {last:?}): it is another node's, or this one's", dir.display())]
    NotEmpty {
        /// Where it is.
        dir: PathBuf,
        /// Its last position; none when it holds only a vote.
        last: Option<LogPosition>,
    },
    /// A file holds what was never written to it, or lacks what was durable.
    #[error(
        "the log is corrupt: {} at byte {offset}: {detail}. Do not delete or cut the file: it held durable \
         entries and votes. Check the disk, remove this node from the cluster and add an empty directory under a new \
         node id; for a node alone, quorate check tells what is whole", file.display()
    )]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was expected and what was found.
        detail: String,
    },
    /// A file is of another release.
    #[error("{} has format version {found}, this release reads version {known}", file.display())]
    UnknownFormat {
        /// Which file.
        file: PathBuf,
        /// The version found.
        found: u32,
        /// The version that is read.
        known: u32,
    },
    /// A setting is out of bounds.
    #[error("setting {setting} is {value}, and must be from {min} to {max}")]
    InvalidSetting {
        /// Which.
        setting: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// The disk refused an operation.
    #[error("{doing} {}: {error}{}", path.display(), crate::fault::advice(error))]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The disk refused an operation of the writer.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<LogOpenError> for Fault {
    fn from(error: LogOpenError) -> Fault {
        match error {
            LogOpenError::Fault(fault) => fault,
            LogOpenError::Disk { doing, path, error } => Fault::disk(doing, path.display(), error),
            LogOpenError::Corrupt { file, offset, detail } => Fault::Corrupt {
                path: file.display().to_string(),
                offset,
                detail,
            },
            other @ (LogOpenError::Missing { .. }
            | LogOpenError::NotEmpty { .. }
            | LogOpenError::UnknownFormat { .. }
            | LogOpenError::InvalidSetting { .. }) => Fault::State {
                doing: "opening the log",
                detail: other.to_string(),
            },
        }
    }
}

impl LogOpenError {
    /// Whether the same may succeed later with nothing changed: only what the disk refused.
    pub fn is_retryable(&self) -> bool {
        match self {
            LogOpenError::Disk { error, .. } => crate::fault::may_pass(error),
            LogOpenError::Fault(fault) => fault.is_retryable(),
            LogOpenError::Missing { .. }
            | LogOpenError::NotEmpty { .. }
            | LogOpenError::Corrupt { .. }
            | LogOpenError::UnknownFormat { .. }
            | LogOpenError::InvalidSetting { .. } => false,
        }
    }
}

/// What the log has done since it was opened, and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogStatistics {
    /// The last position known to be durable.
    pub durable: Option<LogPosition>,
    /// Batches that were written: all that waited at the time, behind one sync.
    pub batches: u64,
    /// Calls that were answered by those batches.
    pub jobs: u64,
    /// Entries that were written.
    pub entries: u64,
    /// The most entries of one batch.
    pub batch_entries_max: u64,
    /// Syncs of the log's files; a batch needs one, and another for each segment it ends.
    pub syncs: u64,
    /// Bytes that were written, padding included.
    pub bytes: u64,
    /// How long the last batch took, from its first byte to its answer.
    pub last_write: Duration,
    /// The median of the latest 1,024 batches' times; `None` before the first.
    pub write_p50: Option<Duration>,
    /// What 99 of 100 of them did not exceed.
    pub write_p99: Option<Duration>,
    /// Segments that were ended because they were full.
    pub rolls: u64,
    /// Segments that were not ready when they were needed: the batch waited until they were made.
    pub segments_made_late: u64,
    /// Segment files freed by purging, to be used again.
    pub segments_retired: u64,
    /// Segment files of the log.
    pub segments: u64,
    /// Entries in memory.
    pub cache_entries: u64,
    /// Bytes that they take.
    pub cache_bytes: u64,
}

/// A handle on the log. Cheap to clone; all clones are the same log.
///
/// Calls take effect in the order in which they are made. When the last handle is dropped, what was sent is
/// still written and answered, and then its threads end: the log is left as a crash would leave it.
/// [`Log::close`] ends it properly, and waits.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    writer: OwnerHandle<Job>,
    reader: OwnerHandle<ReadJob>,
    maker: Maker,
}

/// What handles, writer and reader share.
#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// Held while a job is entered into the view and sent, so that the order of both is one. Taken before
    /// `view`, never after it.
    next: Mutex<Next>,
    view: Mutex<View>,
    queued: Arc<Queued>,
    /// Since when the writer has been at a batch.
    writing: Mutex<Option<Instant>>,
}

/// How many bytes are on their way to the disk: counted from sending to answering.
#[derive(Debug)]
struct Queued {
    /// Who watches is woken when the bytes fall to the most again.
    bytes: watch::Sender<u64>,
    bytes_max: u64,
}

impl Queued {
    fn new(bytes_max: u64) -> Arc<Self> {
        let bytes = watch::channel(0).0;
        Arc::new(Self { bytes, bytes_max })
    }

    /// Counts a job, until what is returned is dropped.
    fn count(self: &Arc<Self>, bytes: u64) -> Place {
        let bytes = bytes.max(JOB_BYTES_MIN);
        self.bytes.send_if_modified(|queued| {
            *queued += bytes;
            false
        });
        Place {
            queued: Arc::clone(self),
            bytes,
        }
    }
}

/// A job's place in the queue.
#[derive(Debug)]
struct Place {
    queued: Arc<Queued>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let max = self.queued.bytes_max;
        self.queued.bytes.send_if_modified(|queued| {
            let before = *queued;
            *queued = before.saturating_sub(self.bytes);
            before > max && *queued <= max
        });
    }
}

/// What goes along with the next job.
#[derive(Debug, Default)]
struct Next {
    committed: Option<Bytes>,
}

/// What a job counts in the queue at least.
const JOB_BYTES_MIN: u64 = 1024;
/// Jobs that the queue has places for. It is the bytes that are bounded, by callers who ask for room; so many jobs
/// would be 1 GiB of them. A place that is not taken costs nothing.
const QUEUE_JOBS: usize = 1 << 20;

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        // A panic elsewhere does not make the view worse than it was: it is whole between any two calls.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> Fault {
        let stopped = Fault::Stopped { owner: "log" };
        let mut view = self.view();
        view.fail(&stopped);
        view.fault().cloned().unwrap_or(stopped)
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.shared.view();
        f.debug_struct("Log")
            .field("dir", &self.shared.dir)
            .field("purged", &view.purged())
            .field("last", &view.last())
            .field("fault", &view.fault())
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Opens or makes the log in `dir`, and blocks while it reads what is there.
    ///
    /// Memory does not grow with the entries' size: a segment is read after the other, and 4 bytes are kept
    /// for each entry. The caller holds the data directory's lock.
    ///
    /// # Errors
    /// See [`LogOpenError`]. What a crash left unfinished is no error.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, settings: LogSettings) -> Result<Log, LogOpenError> {
        Self::open_of_node(disk, dir, settings, &Faults::default())
    }

    /// As [`open`](Self::open), for a node: a panic of one of the log's threads is a fault of the node.
    ///
    /// # Errors
    /// See [`LogOpenError`].
    pub fn open_of_node(
        disk: Arc<dyn Disk>,
        dir: &Path,
        settings: LogSettings,
        faults: &Faults,
    ) -> Result<Log, LogOpenError> {
        settings.check()?;
        let opened = recovery::open(&disk, dir, &settings)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            next: Mutex::default(),
            view: Mutex::new(View::new(opened.recovered, settings.cache_bytes_max)),
            queued: Queued::new(settings.queue_bytes_max),
            writing: Mutex::default(),
        });
        let maker = Maker::start(disk, dir.to_owned(), faults);
        let writer = Writer::start(shared.clone(), maker.clone(), opened.appender);
        // One batch takes all that waits.
        let writer = spawn_owner(
            "log-writer",
            QUEUE_JOBS,
            QUEUE_JOBS,
            writer,
            faults.on_panic("writer of the log"),
        );
        let reader = spawn_owner(
            "log-reader",
            READ_QUEUE,
            1,
            Reader::new(shared.clone()),
            faults.on_panic("reader of the log"),
        );
        Ok(Log {
            shared,
            writer,
            reader,
            maker,
        })
    }

    /// The last entry, or the purge point when there is none; none for a log that never held one.
    ///
    /// As of what was appended: it may not be durable yet.
    pub fn last(&self) -> Option<LogPosition> {
        self.shared.view().last()
    }

    /// The purge point: every entry up to it is gone.
    pub fn purged(&self) -> Option<LogPosition> {
        self.shared.view().purged()
    }

    /// The last entry that the newest segments, whose files take `bytes` of disk together at most, do not hold:
    /// where the log may take no more than that, it is to be purged up to there. None where all of it fits. The
    /// segment that is being written is counted whole.
    pub fn beyond(&self, bytes: u64) -> Option<LogIndex> {
        self.shared.view().beyond(bytes)
    }

    /// The vote that was saved last.
    pub fn vote(&self) -> Option<Bytes> {
        self.shared.view().vote()
    }

    /// What was saved last as committed.
    pub fn committed(&self) -> Option<Bytes> {
        self.shared.view().committed()
    }

    /// The whole position of an entry in the log, or of the purge point, without touching the disk.
    pub fn position(&self, index: LogIndex) -> Option<LogPosition> {
        self.shared.view().position(index)
    }

    /// How long the write that is under way has taken so far; none where none is. That of a disk that hangs never ends,
    /// and is in no percentile.
    pub fn write_under_way(&self) -> Option<Duration> {
        let since = *self.shared.writing();
        since.map(Instant::elapsed)
    }

    /// What the log has done since it was opened.
    pub fn statistics(&self) -> LogStatistics {
        self.shared.view().statistics()
    }

    /// Waits until no more than [`LogSettings::queue_bytes_max`] wait to be written, or the log has stopped. Cancel safe.
    ///
    /// Room is not reserved: of those that wait for it each may find the others' bytes before its own.
    pub async fn wait_for_room(&self) {
        let queued = &self.shared.queued;
        // The sender is ours: the channel does not end.
        let _ = queued
            .bytes
            .subscribe()
            .wait_for(|bytes| *bytes <= queued.bytes_max)
            .await;
    }

    /// Appends entries, which follow on the last one.
    ///
    /// Returns once they can be read; `on_durable` is told after they are on disk, in the order of the calls,
    /// exactly once, also when this call fails. Never waits, also where there is no room in the queue: openraft's core
    /// appends in its one loop, which answers heartbeats and votes as well.
    ///
    /// # Errors
    /// The fault that stopped the log; or that the entries are not consecutive, and then none is taken.
    pub fn append(&self, entries: Vec<LogEntry>, on_durable: Completion) -> Result<(), Fault> {
        let bytes = entries
            .iter()
            .map(|entry| (entry.payload.len() + format::RECORD_HEADER) as u64)
            .sum();
        self.begin(bytes, on_durable, |view| {
            view.append(&entries)?;
            Ok(Work::Append(entries))
        })
    }

    /// Saves the vote; returns when it, and everything appended before, is durable.
    ///
    /// # Errors
    /// The fault that stopped the log. The vote may be found after a restart all the same.
    ///
    /// # Cancel safety
    /// Dropped, the vote may be saved all the same.
    pub async fn save_vote(&self, vote: Bytes) -> Result<(), Fault> {
        self.call(vote.len() as u64, |view| {
            view.set_vote(vote.clone());
            Ok(Work::Vote(vote))
        })
        .await
    }

    /// Returns when everything that was asked before is durable.
    ///
    /// # Errors
    /// The fault that stopped the log: then it may not be.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn durable(&self) -> Result<(), Fault> {
        self.call(0, |_| Ok(Work::Barrier)).await
    }

    /// Saves how far the log is known to be committed. It becomes durable with whatever is next.
    ///
    /// # Errors
    /// The fault that stopped the log.
    pub fn save_committed(&self, committed: Bytes) -> Result<(), Fault> {
        let mut next = self.next();
        self.enter(|view| {
            view.set_committed(committed.clone());
            Ok(())
        })?;
        next.committed = Some(committed);
        Ok(())
    }

    /// Removes the entries after `last`, all of them with `None`; `on_durable` is told as for
    /// [`append`](Self::append). Never waits.
    ///
    /// They cannot be read from here on, and others may be appended in their place at once.
    ///
    /// # Errors
    /// The fault that stopped the log; or that `last` lies below the purge point.
    pub fn truncate_after(&self, last: Option<LogIndex>, on_durable: Completion) -> Result<(), Fault> {
        self.begin(0, on_durable, |view| {
            Ok(match view.truncate_after(last)? {
                Truncation::Nothing => Work::Barrier,
                Truncation::From { index, last } => Work::Truncate { from: index, last },
            })
        })
    }

    /// Removes the entries up to `upto`, which may lie beyond the last; `on_durable` is told as for
    /// [`append`](Self::append). Never waits.
    ///
    /// Segments that hold no entry any more are used again once that is durable.
    ///
    /// # Errors
    /// The fault that stopped the log.
    pub fn purge(&self, upto: LogPosition, on_durable: Completion) -> Result<(), Fault> {
        self.begin(0, on_durable, |view| {
            Ok(if view.purge(upto) {
                Work::Purge(upto)
            } else {
                Work::Barrier
            })
        })
    }

    /// Reads the entries of `range` that are in the log, consecutive and without a hole.
    ///
    /// They start with the range's first index, or with the first above the purge point when that is higher;
    /// they end before the range does where the log ends, or where the payloads would exceed `bytes_max`. At
    /// least one entry is returned when there is any. Those in memory are returned at once; others are read
    /// on the log's reader thread.
    ///
    /// # Errors
    /// The disk failed, or an entry on it no longer verifies.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn read(&self, range: Range<LogIndex>, bytes_max: usize) -> Result<Vec<LogEntry>, Fault> {
        let mut entries = Vec::new();
        {
            let view = self.shared.view();
            let present = view.present(&range);
            let mut budget = bytes_max;
            match view.take(present.start, present.end, &mut budget, &mut entries)? {
                view::Place::Absent | view::Place::Cached => return Ok(entries),
                view::Place::OnDisk(_) => {}
            }
        }
        let (reply, answer) = oneshot::channel();
        let job = ReadJob {
            range,
            bytes_max,
            reply,
        };
        let stopped = Fault::Stopped { owner: "log reader" };
        self.reader.send(job).await.map_err(|_| stopped.clone())?;
        answer.await.unwrap_or(Err(stopped))
    }

    /// A scrubber of the segments that are no longer written to, at the beginning of a pass.
    pub fn scrubber(&self) -> LogScrubber {
        LogScrubber::new(Arc::clone(&self.shared))
    }

    /// Writes what waits, marks the log as closed, and returns when no thread of it touches a file any more.
    ///
    /// Afterwards every call answers that the log has stopped. A log that is to be opened again by the same
    /// process must be closed first.
    ///
    /// # Errors
    /// The fault that stopped the log before.
    pub async fn close(&self) -> Result<(), Fault> {
        let closed = self.call(0, |_| Ok(Work::Close)).await;
        self.maker.stop().await;
        closed
    }

    /// Enters a change into the view and sends its job.
    fn begin(
        &self,
        bytes: u64,
        on_durable: Completion,
        change: impl FnOnce(&mut View) -> Result<Work, Fault>,
    ) -> Result<(), Fault> {
        let place = self.shared.queued.count(bytes);
        let refused = {
            let mut next = self.next();
            match self.enter(change) {
                Ok(work) => return self.send(&mut next, work, Answer::new(on_durable, place)),
                Err(fault) => fault,
            }
        };
        on_durable(Err(refused.clone()));
        Err(refused)
    }

    /// The same, and waits until it is durable.
    async fn call(
        &self,
        bytes: u64,
        change: impl FnOnce(&mut View) -> Result<Work, Fault>,
    ) -> Result<(), Fault> {
        let (tx, rx) = oneshot::channel();
        // Who asked may have gone.
        self.begin(bytes, Box::new(|result| drop(tx.send(result))), change)?;
        rx.await.unwrap_or_else(|_| Err(self.shared.stopped()))
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.shared.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view, unless the log has stopped. With `next` held, and until the job is sent.
    fn enter<T>(&self, change: impl FnOnce(&mut View) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut view = self.shared.view();
        if let Some(fault) = view.fault() {
            return Err(fault.clone());
        }
        change(&mut view)
    }

    fn send(&self, next: &mut Next, work: Work, answer: Answer) -> Result<(), Fault> {
        let job = Job {
            work,
            committed: next.committed.take(),
            answer,
        };
        self.writer.try_send(job).map_err(|refused| match refused {
            None => self.shared.stopped(),
            Some(_full) => {
                let fault = Fault::Invariant {
                    invariant: "callers of the log ask for room before they have more to write",
                    detail: format!("{QUEUE_JOBS} jobs wait"),
                };
                self.shared.view().fail(&fault);
                fault
            }
        })
    }
}

/// How many reads may wait for the reader thread; beyond it callers wait. Each waiting read costs a struct.
const READ_QUEUE: usize = 256;

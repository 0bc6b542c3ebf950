//! The handle by which a log is appended to and read.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::entry::{Completion, LogEntry};
use super::open_error::LogOpenError;
use super::queued::Queued;
use super::reader::{ReadJob, Reader};
use super::scrub::LogScrubber;
use super::segment::Maker;
use super::settings::LogSettings;
use super::shared::{Next, Shared};
use super::statistics::LogStatistics;
use super::view::{self, Truncation, View};
use super::writer::{Answer, Job, Work, Writer};
use super::{format, recovery};
use crate::env::{Disk, Instant, OwnerHandle, oneshot, spawn_owner};
use crate::fault::{Fault, Faults};
use crate::model::{LogIndex, LogPosition};

/// Jobs that the queue has places for. It is the bytes that are bounded, by callers who ask for room; so many jobs
/// would be 1 GiB of them. A place that is not taken costs nothing.
const QUEUE_JOBS: usize = 1 << 20;
/// How many reads may wait for the reader thread; beyond it callers wait. Each waiting read costs a struct.
const READ_QUEUE: usize = 256;

/// A handle on the log. Cheap to clone; all clones are the same log.
///
/// Calls take effect in the order in which they are made. When the last handle is dropped, what was sent is
/// still written and answered, and then its threads end: the log is left as a crash would leave it.
/// [`Log::close`] ends it properly, and waits.
#[derive(Clone)]
pub struct Log {
    pub(super) shared: Arc<Shared>,
    writer: OwnerHandle<Job>,
    reader: OwnerHandle<ReadJob>,
    pub(super) maker: Maker,
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

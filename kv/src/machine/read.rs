//! Reads: one state pinned, from any thread, while the machine goes on applying.
//!
//! Always: everything that one [`View`] answers comes from one state, that after some whole `apply`; a view stays readable after
//! its file was replaced by a snapshot.

use std::sync::Arc;

use super::database::{Published, Shared};
use super::range::Gathered;
use super::snapshot::SnapshotSource;
use super::system::Standing;
use super::verify;
use super::version::RecordRef;
use crate::fault::Fault;
use crate::model::{LogPosition, LogTime, ReadOp, ReadResult, Revision, StateHash};

/// A page of a range ends at so many bytes of keys and values.
const PAGE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads the machine's state. Cheap to clone; usable from any thread, also while entries are applied and
/// after a snapshot was installed.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) shared: Shared,
}

/// Where a pinned state stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The last entry applied.
    pub position: Option<LogPosition>,
    /// The store's revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// The log's time.
    pub log_time: LogTime,
    /// The hash of the replicated state.
    pub state_hash: StateHash,
}

/// One state, pinned until dropped. A view that lives long keeps memory and old pages of the file alive.
#[derive(Debug)]
pub struct View {
    pinned: Pinned,
    published: Arc<Published>,
}

/// A read that this state cannot answer. Nothing is wrong with the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadRefused {
    /// The revision's records are gone.
    #[error("revision {asked} was compacted, the oldest that can be read is {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision is not there yet.
    #[error("revision {asked} is not there yet, this state is at {current}")]
    FutureRevision {
        /// The revision asked for.
        asked: Revision,
        /// The revision of the state.
        current: Revision,
    },
    /// The batch of reads would answer too much at once.
    #[error("read {index}: the batch of reads exceeds {limit} bytes")]
    TooLarge {
        /// The read at which the limit was passed.
        index: usize,
        /// The limit in bytes.
        limit: u64,
    },
}

impl Reader {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }

    /// Pins the state as it is after the entries applied last.
    pub fn view(&self) -> Result<View, Fault> {
        let published = self.shared.get();
        let Standing {
            position,
            revision,
            oldest,
            log_time,
            ..
        } = published.standing;
        let state_hash = published.standing.state_hash(&published.limits);
        Ok(View {
            pinned: Pinned {
                position,
                revision,
                oldest,
                log_time,
                state_hash,
            },
            published,
        })
    }

    /// Pins the state of the last checkpoint, to stream it: what is durable, so that a log that is purged up to
    /// there goes on where the snapshot ends.
    pub fn snapshot(&self) -> Result<SnapshotSource, Fault> {
        let state = Arc::clone(&self.shared.get().state.base.state);
        let txn = state.begin_read()?;
        SnapshotSource::new(state, txn)
    }
}

impl View {
    /// Where the state stands.
    pub fn applied(&self) -> &Pinned {
        &self.pinned
    }

    /// Answers a batch of reads, on the state as it is or as it was at a revision.
    ///
    /// A range's page ends at 1 MiB of keys and values. A revision that was compacted or is not there yet is
    /// refused.
    pub fn read(
        &self,
        ops: &[ReadOp],
        at: Option<Revision>,
    ) -> Result<Result<Vec<ReadResult>, ReadRefused>, Fault> {
        let at = match at {
            None => self.pinned.revision,
            Some(asked) if asked < self.pinned.oldest => {
                let oldest = self.pinned.oldest;
                return Ok(Err(ReadRefused::Compacted { asked, oldest }));
            }
            Some(asked) if asked > self.pinned.revision => {
                let current = self.pinned.revision;
                return Ok(Err(ReadRefused::FutureRevision { asked, current }));
            }
            Some(asked) => asked,
        };
        let state = &self.published.state;
        let is_past = at < state.base.standing.revision;
        let limit = state.base.state.read_bytes_max;
        let mut bytes = 0u64;
        let mut results = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            let result = match op {
                ReadOp::Get(key) => {
                    let record = state.record(key.as_bytes(), at)?;
                    let size = record.as_ref().map_or(0, |r| key.len() + r.value.len());
                    bytes = bytes.saturating_add(size as u64);
                    ReadResult::Get(record)
                }
                ReadOp::Range(read) => {
                    let mut gathered = Gathered::new(read, PAGE_BYTES_MAX);
                    if !read.range.is_empty() {
                        let visit = |key: &[u8], record: RecordRef<'_>| gathered.visit(key, record);
                        if is_past {
                            state.base.scan_at(&read.range, read.order, at, visit)?;
                        } else {
                            let values = Gathered::values(read);
                            state.scan(&read.range, read.order, at, values, None, visit)?;
                        }
                    }
                    bytes = bytes.saturating_add(gathered.bytes);
                    ReadResult::Range {
                        records: gathered.records,
                        count: gathered.count,
                        more: gathered.more,
                    }
                }
            };
            if bytes > limit {
                return Ok(Err(ReadRefused::TooLarge { index, limit }));
            }
            results.push(result);
        }
        Ok(Ok(results))
    }

    /// Reads the whole state of the last checkpoint, on which this view stands, and computes its hash anew:
    /// corruption if it is not the one that was kept.
    pub fn verify_hash(&self) -> Result<StateHash, Fault> {
        let base = &self.published.state.base;
        verify::base(base)?;
        Ok(base.standing.state_hash(&self.published.limits))
    }
}

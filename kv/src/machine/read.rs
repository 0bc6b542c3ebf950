//! Reads: one committed state pinned, from any thread, while the machine goes on applying.
//!
//! Always: everything that one [`View`] answers comes from one committed state; a view stays readable after
//! its file was replaced by a snapshot.

use std::ops::ControlFlow;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction};

use super::current::RecordRef;
use super::database::{OpenState, Shared, for_each_row};
use super::error::{step, storage};
use super::past::Past;
use super::range::Gathered;
use super::snapshot::SnapshotSource;
use super::system::{self, Standing};
use super::tables::{SYSTEM, Table};
use super::wire::hash_row;
use crate::fault::Fault;
use crate::model::{
    Key, KeyRange, LogPosition, LogTime, Order, ReadOp, ReadResult, Record, Revision, StateHash,
};

/// A page of a range ends at so many bytes of keys and values.
const PAGE_BYTES_MAX: u64 = 1024 * 1024;

pub(super) type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

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

/// One committed state, pinned until dropped. A view that lives long keeps old pages of the file alive.
#[derive(Debug)]
pub struct View {
    pinned: Pinned,
    rows_hash: u128,
    current: Rows,
    // Before `state`: the transaction ends before its database may close.
    txn: ReadTransaction,
    state: Arc<OpenState>,
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

    /// Pins the state that was committed last.
    pub fn view(&self) -> Result<View, Fault> {
        View::new(self.shared.get())
    }

    /// Pins the state that was committed last, to stream it: the live state, never an older file.
    pub fn snapshot(&self) -> Result<SnapshotSource, Fault> {
        let state = self.shared.get();
        let txn = state.begin_read()?;
        SnapshotSource::new(state, txn)
    }
}

impl View {
    fn new(state: Arc<OpenState>) -> Result<Self, Fault> {
        let txn = state.begin_read()?;
        let file = &state.file;
        let open = |definition| {
            txn.open_table(definition)
                .map_err(step(file, "opening a table of"))
        };
        let (limits, standing) = {
            let table = open(SYSTEM)?;
            (
                system::read_limits(file, &table)?,
                system::read_standing(file, &table)?,
            )
        };
        let Standing {
            position,
            revision,
            oldest,
            log_time,
            rows_hash,
            ..
        } = standing;
        let current = open(Table::Current.definition())?;
        Ok(Self {
            pinned: Pinned {
                position,
                revision,
                oldest,
                log_time,
                state_hash: standing.state_hash(&limits),
            },
            rows_hash,
            current,
            txn,
            state,
        })
    }

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
        let past = match at {
            None => None,
            Some(asked) if asked < self.pinned.oldest => {
                let oldest = self.pinned.oldest;
                return Ok(Err(ReadRefused::Compacted { asked, oldest }));
            }
            Some(asked) if asked > self.pinned.revision => {
                let current = self.pinned.revision;
                return Ok(Err(ReadRefused::FutureRevision { asked, current }));
            }
            Some(asked) if asked == self.pinned.revision => None,
            Some(asked) => Some(Past {
                file: &self.state.file,
                current: &self.current,
                history: self.open(Table::History)?,
                revision: asked,
            }),
        };
        let limit = self.state.read_bytes_max;
        let mut bytes = 0u64;
        let mut results = Vec::with_capacity(ops.len());
        for (index, op) in ops.iter().enumerate() {
            let result = match op {
                ReadOp::Get(key) => {
                    let record = match &past {
                        None => self.get(key)?,
                        Some(past) => past.get(key.as_bytes())?,
                    };
                    let size = record.as_ref().map_or(0, |r| key.len() + r.value.len());
                    bytes = bytes.saturating_add(size as u64);
                    ReadResult::Get(record)
                }
                ReadOp::Range(read) => {
                    let mut gathered = Gathered::new(read, PAGE_BYTES_MAX);
                    if !read.range.is_empty() {
                        let visit = |key: &[u8], record: RecordRef<'_>| gathered.visit(key, record);
                        match &past {
                            None => self.scan(&read.range, read.order, visit)?,
                            Some(past) => past.scan(&read.range, read.order, visit)?,
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

    /// Reads the whole state and computes its hash anew: corruption if it is not the one that was kept.
    pub fn verify_hash(&self) -> Result<StateHash, Fault> {
        let mut scratch = Vec::new();
        let mut sum = 0u128;
        for table in Table::ALL {
            for_each_row(&self.state.file, &self.txn, table, |key, value| {
                sum = sum.wrapping_add(hash_row(&mut scratch, table, key, value));
                Ok(())
            })?;
        }
        if sum == self.rows_hash {
            Ok(self.pinned.state_hash)
        } else {
            Err(self.state.file.corrupt(format!(
                "the rows hash to {sum:032x}, the state says {:032x}",
                self.rows_hash
            )))
        }
    }

    fn open(&self, table: Table) -> Result<Rows, Fault> {
        self.txn
            .open_table(table.definition())
            .map_err(step(&self.state.file, "opening a table of"))
    }

    fn decode<'a>(&self, row: &'a [u8]) -> Result<RecordRef<'a>, Fault> {
        RecordRef::decode(row).map_err(|e| self.state.file.malformed(&e))
    }

    fn get(&self, key: &Key) -> Result<Option<Record>, Fault> {
        match self
            .current
            .get(key.as_bytes())
            .map_err(storage(&self.state.file))?
        {
            None => Ok(None),
            Some(row) => Ok(Some(self.decode(row.value())?.to_record(true))),
        }
    }

    fn scan(
        &self,
        range: &KeyRange,
        order: Order,
        mut visit: impl FnMut(&[u8], RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let mut rows = self
            .current
            .range::<&[u8]>(range.bounds())
            .map_err(storage(&self.state.file))?;
        loop {
            let row = match order {
                Order::Ascending => rows.next(),
                Order::Descending => rows.next_back(),
            };
            let Some(row) = row.transpose().map_err(storage(&self.state.file))? else {
                return Ok(());
            };
            if visit(row.0.value(), self.decode(row.1.value())?).is_break() {
                return Ok(());
            }
        }
    }
}

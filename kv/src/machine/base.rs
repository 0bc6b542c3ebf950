//! The base: the state as the last checkpoint left it in the state file, pinned for reading.
//!
//! Always: everything that it answers comes from one durable commit; it stays readable after its file was
//! replaced by a snapshot.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use redb::{AccessGuard, Range, ReadOnlyTable, ReadTransaction};

use super::database::OpenState;
use super::error::{StateFile, step, storage};
use super::head::{Head, Meta};
use super::layered::{Sight, Values, in_order};
use super::sequences;
use super::sessions::answer_key;
use super::system::{self, Standing};
use super::tables::{SYSTEM, Table};
use super::version::{self, ChangeKind, RecordRef, Version};
use crate::fault::Fault;
use crate::model::{KeyRange, Order, Record, Revision, Sequence, SessionId};

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// See the module.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) standing: Standing,
    current: Rows,
    deleted: Rows,
    versions: Rows,
    answers: Rows,
    sequences: Rows,
    // Before `state`: the transaction ends before its database may close.
    pub(super) txn: ReadTransaction,
    pub(super) state: Arc<OpenState>,
}

impl Base {
    /// Pins what was committed last.
    pub(super) fn pin(state: Arc<OpenState>) -> Result<Self, Fault> {
        let txn = state.begin_read()?;
        let file = &state.file;
        let open = |definition| {
            txn.open_table(definition)
                .map_err(step(file, "opening a table of"))
        };
        Ok(Self {
            standing: system::read_standing(file, &open(SYSTEM)?)?,
            current: open(Table::Current.definition())?,
            deleted: open(Table::Deleted.definition())?,
            versions: open(Table::Versions.definition())?,
            answers: open(Table::Answers.definition())?,
            sequences: open(Table::Sequences.definition())?,
            txn,
            state,
        })
    }

    pub(super) fn file(&self) -> &StateFile {
        &self.state.file
    }

    /// The head of a key, which may be deleted; `None` where it never was.
    pub(super) fn head(&self, key: &[u8]) -> Result<Option<Head>, Fault> {
        for table in [&self.current, &self.deleted] {
            if let Some(row) = table.get(key).map_err(storage(self.file()))? {
                return Ok(Some(self.decode_head(row.value())?));
            }
        }
        Ok(None)
    }

    /// The rows of the keys that exist in a range (not an empty one).
    pub(super) fn existing(&self, range: &KeyRange, order: Order) -> Result<HeadRows<'_>, Fault> {
        self.rows(&self.current, range, order)
    }

    fn rows(&self, table: &Rows, range: &KeyRange, order: Order) -> Result<HeadRows<'_>, Fault> {
        let rows = table
            .range::<&[u8]>(range.bounds())
            .map_err(storage(self.file()))?;
        Ok(HeadRows {
            rows,
            order,
            file: self.file(),
        })
    }

    /// What the row of a key says of its newest version; nothing of a deletion but its revision.
    pub(super) fn newest(&self, row: &HeadRow<'_>) -> Result<(Revision, Option<Meta>), Fault> {
        Head::decode_newest(row.head()).map_err(|e| self.file().malformed(&e))
    }

    /// Looks at the version of a key that a revision wrote: there must be one.
    pub(super) fn version<T>(
        &self,
        revision: Revision,
        key: &[u8],
        look: impl FnOnce(Version<'_>) -> T,
    ) -> Result<T, Fault> {
        let row = self
            .versions
            .get(&version::row_key(revision, key)[..])
            .map_err(storage(self.file()))?
            .ok_or_else(|| {
                let key = key.escape_ascii();
                self.file().corrupt(format!(
                    "the version of key {key} at revision {revision} is missing"
                ))
            })?;
        let version = Version::decode(row.value()).map_err(|e| self.file().malformed(&e))?;
        Ok(look(version))
    }

    /// The value that a revision wrote to a key.
    pub(super) fn value(&self, revision: Revision, key: &[u8]) -> Result<Bytes, Fault> {
        self.version(revision, key, |version| Bytes::copy_from_slice(version.value))
    }

    /// A remembered answer.
    pub(super) fn answer(&self, id: SessionId, sequence: Sequence) -> Result<Option<Bytes>, Fault> {
        let row = self.answers.get(&answer_key(id, sequence)[..]);
        let row = row.map_err(storage(self.file()))?;
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
    }

    /// The last number of a sequence; 0 for one that gave none.
    pub(super) fn sequence(&self, prefix: &[u8]) -> Result<u64, Fault> {
        let row = self.sequences.get(prefix).map_err(storage(self.file()))?;
        row.map_or(Ok(0), |row| sequences::decode(row.value()))
            .map_err(|e| self.file().malformed(&e))
    }

    // The past: the state as it was at a revision older than the base's.

    /// The record of a key as it was at `at`.
    pub(super) fn record_at(
        &self,
        key: &[u8],
        at: Revision,
        steps: &mut u64,
    ) -> Result<Option<Record>, Fault> {
        match self.head(key)? {
            None => Ok(None),
            Some(head) => match self.revision_at(key, &head, at, steps)? {
                None => Ok(None),
                Some(revision) => self.version(revision, key, |version| {
                    record(revision, &version).map(|record| record.to_record(true))
                }),
            },
        }
    }

    /// Visits the keys of a range (not an empty one) as they were at `at`, until `visit` breaks.
    pub(super) fn scan_at(
        &self,
        range: &KeyRange,
        order: Order,
        at: Revision,
        values: Values,
        mut visit: impl FnMut(Sight<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        // A key is in one of the two tables, so the streams never hold the same one.
        let mut existing = self.rows(&self.current, range, order)?;
        let mut deleted = self.rows(&self.deleted, range, order)?;
        let (mut a, mut b) = (existing.next()?, deleted.next()?);
        loop {
            let first = match (&a, &b) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => in_order(order, a.key(), b.key()),
            };
            let next = if first.is_le() {
                let next = existing.next()?;
                std::mem::replace(&mut a, next)
            } else {
                let next = deleted.next()?;
                std::mem::replace(&mut b, next)
            };
            let Some(row) = next else { return Ok(()) };
            if self.sight_at(&row, at, values, &mut visit)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Visits a key as it was at `at`.
    fn sight_at(
        &self,
        row: &HeadRow<'_>,
        at: Revision,
        values: Values,
        visit: &mut impl FnMut(Sight<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let key = row.key();
        let gone = |steps| Sight {
            key,
            record: None,
            steps,
        };
        let (newest, meta) = self.newest(row)?;
        let (revision, steps) = if newest <= at {
            let Some(meta) = meta else {
                return Ok(visit(gone(1)));
            };
            if values == Values::Skip {
                let record = RecordRef {
                    meta,
                    mod_revision: newest,
                    value: &[],
                };
                return Ok(visit(Sight {
                    key,
                    record: Some(record),
                    steps: 1,
                }));
            }
            (newest, 1)
        } else {
            let mut steps = 1;
            let head = self.decode_head(row.head())?;
            match self.revision_at(key, &head, at, &mut steps)? {
                Some(revision) => (revision, steps),
                None => return Ok(visit(gone(steps))),
            }
        };
        self.version(revision, key, |version| {
            let mut record = record(revision, &version);
            if let Some(record) = &mut record
                && values == Values::Skip
            {
                record.value = &[];
            }
            visit(Sight { key, record, steps })
        })
    }

    /// The revision of the newest version of a key at or before `at`; counts the versions looked at on the way.
    fn revision_at(
        &self,
        key: &[u8],
        head: &Head,
        at: Revision,
        steps: &mut u64,
    ) -> Result<Option<Revision>, Fault> {
        if head.revision <= at {
            return Ok(Some(head.revision));
        }
        let Some(mut from) = head.walk_from(at) else {
            return Ok(None);
        };
        loop {
            *steps += 1;
            let link = self.version(from, key, |version| version.link)?;
            // No version is so old, which the ancestors ruled out.
            let Some(link) = link else { return Ok(None) };
            if link.previous <= at {
                return Ok(Some(link.previous));
            }
            from = if link.ancestor > at {
                link.ancestor
            } else {
                link.previous
            };
        }
    }

    fn decode_head(&self, row: &[u8]) -> Result<Head, Fault> {
        Head::decode(row).map_err(|e| self.file().malformed(&e))
    }
}

/// A sorted stream of rows of `current` or `deleted`.
pub(super) struct HeadRows<'b> {
    rows: Range<'b, &'static [u8], &'static [u8]>,
    order: Order,
    file: &'b StateFile,
}

/// A row of `current` or `deleted`, where it lies in the page cache.
pub(super) struct HeadRow<'b> {
    key: AccessGuard<'b, &'static [u8]>,
    head: AccessGuard<'b, &'static [u8]>,
}

impl HeadRow<'_> {
    pub(super) fn key(&self) -> &[u8] {
        self.key.value()
    }

    fn head(&self) -> &[u8] {
        self.head.value()
    }
}

impl<'b> HeadRows<'b> {
    pub(super) fn next(&mut self) -> Result<Option<HeadRow<'b>>, Fault> {
        let row = match self.order {
            Order::Ascending => self.rows.next(),
            Order::Descending => self.rows.next_back(),
        };
        let row = row.transpose().map_err(storage(self.file))?;
        Ok(row.map(|(key, head)| HeadRow { key, head }))
    }
}

/// The record that a version is; `None` for a deletion.
fn record<'a>(revision: Revision, version: &Version<'a>) -> Option<RecordRef<'a>> {
    debug_assert_eq!(version.meta.is_none(), version.kind == ChangeKind::Deleted);
    Some(RecordRef {
        meta: version.meta?,
        mod_revision: revision,
        value: version.value,
    })
}

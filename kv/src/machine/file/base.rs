//! The base: the state as the last checkpoint left it in the state file, pinned for reading.
//!
//! Always: everything that it answers comes from one durable commit; it stays readable after its file was
//! replaced by a snapshot.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Range, ReadOnlyTable, ReadTransaction};

use super::blocks::{self, BlockBound};
use super::database::{OpenState, for_each_row};
use super::filter::{Filter, FilterHash};
use super::heads::{self, Heads};
use super::runs::{self, Runs};
use super::sight::{Sight, Values};
use crate::fault::Fault;
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::head::{Head, Meta, ValueDigest};
use crate::machine::rows::sequences;
use crate::machine::rows::sessions::answer_key;
use crate::machine::rows::system::{self, Standing};
use crate::machine::rows::tables::{SYSTEM, Table};
use crate::machine::rows::times::{self, Stood};
use crate::machine::rows::version::{self, ChangeKind, RecordRef, Version};
use crate::machine::rows::wire::Malformed;
use crate::model::{KeyRange, LogTime, Order, Record, Revision, Sequence, SessionId};

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// See the module.
#[derive(Debug)]
pub(in crate::machine) struct Base {
    pub(in crate::machine) standing: Standing,
    pub(in crate::machine) runs: Runs,
    /// The heads of the runs, the newest first.
    heads: Vec<(Arc<Filter>, runs::Blocks)>,
    versions: Rows,
    answers: Rows,
    sequences: Rows,
    times: Rows,
    // Before `state`: the transaction ends before its database may close.
    pub(in crate::machine) txn: ReadTransaction,
    pub(in crate::machine) state: Arc<OpenState>,
}

impl Base {
    /// Pins what a file has that was just opened, of which nothing is in memory.
    pub(in crate::machine) fn of_opened(state: OpenState) -> Result<Self, Fault> {
        let base = Self::pin(Arc::new(state))?;
        let revision = base.standing.revision;
        base.state.recent.follow(revision, std::iter::empty());
        Ok(base)
    }

    /// Pins what was committed last.
    pub(in crate::machine) fn pin(state: Arc<OpenState>) -> Result<Self, Fault> {
        let txn = state.begin_read()?;
        let file = &state.file;
        let open = |definition| {
            txn.open_table(definition)
                .map_err(step(file, "opening a table of"))
        };
        let system = open(SYSTEM)?;
        let runs = Runs::read(file, &system)?;
        let filters = state.runs.filters_of(file, &txn, &runs)?;
        let heads = runs.list.iter().zip(filters).rev();
        let heads = heads.map(|(run, filter)| Ok((filter, runs::open(file, &txn, run.number)?)));
        Ok(Self {
            standing: system::read_standing(file, &system)?,
            heads: heads.collect::<Result<_, Fault>>()?,
            runs,
            versions: open(Table::Versions.definition())?,
            answers: open(Table::Answers.definition())?,
            sequences: open(Table::Sequences.definition())?,
            times: open(Table::Times.definition())?,
            txn,
            state,
        })
    }

    /// The last row of `times` that is not later than a time.
    pub(in crate::machine) fn stood(&self, time: LogTime) -> Result<Option<Stood>, Fault> {
        let last = times::key(time);
        let mut rows = self
            .times
            .range::<&[u8]>(..=&last[..])
            .map_err(storage(self.file()))?;
        let Some(row) = rows.next_back() else {
            return Ok(None);
        };
        let (key, value) = row.map_err(storage(self.file()))?;
        let stood = times::read(key.value(), value.value());
        stood.map(Some).map_err(|e| self.file().malformed(&e))
    }

    pub(in crate::machine) fn file(&self) -> &StateFile {
        &self.state.file
    }

    /// The head of a key, which may be deleted; `None` where it never was, or nothing is left of it.
    pub(in crate::machine) fn head(&self, key: &[u8]) -> Result<Option<Head>, Fault> {
        let hash = FilterHash::of(key);
        for (filter, rows) in &self.heads {
            if filter.may_have(hash)
                && let Some(row) = blocks::find(self.file(), rows, key)?
            {
                return Ok(Some(self.decode_head(row.head())?));
            }
        }
        Ok(None)
    }

    /// The heads of a range (not an empty one), of deleted keys too.
    pub(in crate::machine) fn heads(&self, range: &KeyRange, order: Order) -> Result<HeadRows<'_>, Fault> {
        let runs = self
            .heads
            .iter()
            .map(|(_, rows)| blocks::rows(self.file(), rows, range.bounds(), order));
        let runs = runs.collect::<Result<Vec<_>, _>>()?;
        Heads::new(self.file(), order, runs)
    }

    /// Visits the rows of a table in the order of their keys.
    pub(in crate::machine) fn for_each_row(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Fault> {
        match table.is_of_heads() {
            true => self.for_each_head(table, visit),
            false => for_each_row(self.file(), &self.txn, table, &mut visit),
        }
    }

    /// A row of a table.
    pub(in crate::machine) fn row(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let file = self.file();
        if !table.is_of_heads() {
            let rows = self
                .txn
                .open_table(table.definition())
                .map_err(step(file, "opening a table of"))?;
            let row = rows.get(key).map_err(storage(file))?;
            return Ok(row.map(|row| row.value().to_vec()));
        }
        let mut row = Vec::new();
        if let Some(head) = self.head(key)? {
            head.encode_into(&mut row);
        }
        let since = self.standing.history.since;
        let is_there = !row.is_empty() && heads::is_of(table, &row, since).map_err(|e| file.malformed(&e))?;
        Ok(is_there.then_some(row))
    }

    /// Visits the heads of the keys that exist, or of the deleted ones of which there is history, in the order of the keys.
    fn for_each_head(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Fault> {
        let malformed = |e| self.file().malformed(&e);
        let mut rows = self.heads(&KeyRange::all(), Order::Ascending)?;
        while let Some(row) = rows.next()? {
            let here = heads::is_of(table, row.head(), self.standing.history.since);
            if here.map_err(malformed)? {
                visit(row.key(), row.head()).map_err(malformed)?;
            }
        }
        Ok(())
    }

    /// What the row of a key says of its newest version; nothing of a deletion but its revision.
    pub(in crate::machine) fn newest(
        &self,
        row: &HeadRow<'_>,
    ) -> Result<(Revision, Option<(Meta, ValueDigest)>), Fault> {
        Head::decode_newest(row.head()).map_err(|e| self.file().malformed(&e))
    }

    /// Looks at the version of a key that a revision wrote: there must be one.
    pub(in crate::machine) fn version<T>(
        &self,
        revision: Revision,
        key: &[u8],
        look: impl FnOnce(Version<'_>) -> T,
    ) -> Result<T, Fault> {
        let found = self.version_if_there(revision, key, look)?;
        found.ok_or_else(|| self.missing(revision, key))
    }

    fn version_if_there<T>(
        &self,
        revision: Revision,
        key: &[u8],
        look: impl FnOnce(Version<'_>) -> T,
    ) -> Result<Option<T>, Fault> {
        let row = self
            .versions
            .get(&version::row_key(revision, key)[..])
            .map_err(storage(self.file()))?;
        let Some(row) = row else { return Ok(None) };
        let version = Version::decode(row.value()).map_err(|e| self.file().malformed(&e))?;
        Ok(Some(look(version)))
    }

    fn missing(&self, revision: Revision, key: &[u8]) -> Fault {
        let key = key.escape_ascii();
        self.file().corrupt(format!(
            "the version of key {key} at revision {revision} is missing"
        ))
    }

    /// Looks at the newest version of a key, whose value is to be the one that its head tells of.
    pub(in crate::machine) fn newest_version<T>(
        &self,
        revision: Revision,
        key: &[u8],
        digest: ValueDigest,
        look: impl FnOnce(Version<'_>) -> T,
    ) -> Result<T, Fault> {
        let looked = self.version(revision, key, |version| {
            (ValueDigest::of(version.value) == digest).then(|| look(version))
        })?;
        looked.ok_or_else(|| self.wrong_value(revision, key))
    }

    /// A value is not the one that its head tells of.
    fn wrong_value(&self, revision: Revision, key: &[u8]) -> Fault {
        let key = key.escape_ascii();
        self.file().corrupt(format!(
            "the value of key {key} at revision {revision} is not the one that was written"
        ))
    }

    /// The value that a key has, by its head.
    pub(in crate::machine) fn value(
        &self,
        revision: Revision,
        key: &[u8],
        digest: ValueDigest,
    ) -> Result<Bytes, Fault> {
        self.newest_version(revision, key, digest, |version| {
            Bytes::copy_from_slice(version.value)
        })
    }

    /// A remembered answer.
    pub(in crate::machine) fn answer(
        &self,
        id: SessionId,
        sequence: Sequence,
    ) -> Result<Option<Bytes>, Fault> {
        let row = self.answers.get(&answer_key(id, sequence)[..]);
        let row = row.map_err(storage(self.file()))?;
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
    }

    /// The last number of a sequence; 0 for one that gave none.
    pub(in crate::machine) fn sequence(&self, prefix: &[u8]) -> Result<u64, Fault> {
        let row = self.sequences.get(prefix).map_err(storage(self.file()))?;
        row.map_or(Ok(0), |row| sequences::decode(row.value()))
            .map_err(|e| self.file().malformed(&e))
    }

    // The past: the state as it was at a revision older than the base's.

    /// The record of a key as it was at `at`.
    pub(in crate::machine) fn record_at(
        &self,
        key: &[u8],
        at: Revision,
        steps: &mut u64,
    ) -> Result<Option<Record>, Fault> {
        let Some(head) = self.head(key)? else {
            return Ok(None);
        };
        if head.revision <= at {
            let Some((_, digest)) = head.record else {
                return Ok(None);
            };
            return self.newest_version(head.revision, key, digest, |version| {
                record(head.revision, &version).map(|record| record.to_record(true))
            });
        }
        let Some(older) = self.older_at(key, &head, at, steps)? else {
            return Ok(None);
        };
        let found = self.older_version(&older, key, |version| {
            record(older.revision, &version).map(|record| record.to_record(true))
        })?;
        Ok(found.flatten())
    }

    /// Visits the keys of a range (not an empty one) as they were at `at`, until `visit` breaks.
    pub(in crate::machine) fn scan_at(
        &self,
        range: &KeyRange,
        order: Order,
        at: Revision,
        values: Values,
        mut visit: impl FnMut(Sight<'_>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let mut rows = self.heads(range, order)?;
        while let Some(row) = rows.next()? {
            if self.sight_at(&row, at, values, &mut visit)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
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
        let (newest, told) = self.newest(row)?;
        if newest > at {
            let mut steps = 1;
            let head = self.decode_head(row.head())?;
            let Some(older) = self.older_at(key, &head, at, &mut steps)? else {
                return Ok(visit(gone(steps)));
            };
            let seen = self.older_version(&older, key, |version| {
                let mut record = record(older.revision, &version);
                if let Some(record) = &mut record
                    && values == Values::Skip
                {
                    record.value = &[];
                }
                visit(Sight { key, record, steps })
            })?;
            return Ok(seen.unwrap_or_else(|| visit(gone(steps))));
        }
        let Some((meta, digest)) = told else {
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
        self.newest_version(newest, key, digest, |version| {
            let record = record(newest, &version);
            visit(Sight {
                key,
                record,
                steps: 1,
            })
        })
    }

    /// The newest version of a key at or before `at`, which is older than its head; counts the versions looked at on the way.
    fn older_at(
        &self,
        key: &[u8],
        head: &Head,
        at: Revision,
        steps: &mut u64,
    ) -> Result<Option<Older>, Fault> {
        let Some(mut from) = head.walk_from(at) else {
            return Ok(None);
        };
        loop {
            *steps += 1;
            let (link, kind) = self.version(from, key, |version| (version.link, version.kind))?;
            // No version is so old, which the ancestors ruled out.
            let Some(link) = link else { return Ok(None) };
            if link.previous <= at {
                return Ok(Some(Older {
                    revision: link.previous,
                    may_be_forgotten: kind == ChangeKind::Created,
                }));
            }
            from = if link.ancestor > at {
                link.ancestor
            } else {
                link.previous
            };
        }
    }

    /// Looks at an older version; `None` where it is a deletion that was forgotten.
    fn older_version<T>(
        &self,
        older: &Older,
        key: &[u8],
        look: impl FnOnce(Version<'_>) -> T,
    ) -> Result<Option<T>, Fault> {
        match self.version_if_there(older.revision, key, look)? {
            Some(looked) => Ok(Some(looked)),
            None if older.may_be_forgotten && older.revision <= self.standing.history.since => Ok(None),
            None => Err(self.missing(older.revision, key)),
        }
    }

    fn decode_head(&self, row: &[u8]) -> Result<Head, Fault> {
        Head::decode(row).map_err(|e| self.file().malformed(&e))
    }
}

/// The heads of a range.
pub(in crate::machine) type HeadRows<'b> = Heads<Range<'b, BlockBound, &'static [u8]>, &'b StateFile>;

/// One of them.
pub(in crate::machine) type HeadRow<'b> = blocks::HeadRow<redb::AccessGuard<'b, &'static [u8]>>;

/// A version behind a key's newest.
struct Older {
    revision: Revision,
    /// The one after it created the key: it is a deletion, unless that one's transaction deleted the key itself first.
    may_be_forgotten: bool,
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

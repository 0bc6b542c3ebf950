//! Computing the digests of the state anew, from all its rows: the proof that those which are kept, change by change, are
//! the state's.

use std::collections::BTreeMap;
use std::ops::Bound;

use redb::{ReadableTable, WriteTransaction};

use crate::fault::Fault;
use crate::machine::file::base::{Base, HeadRows};
use crate::machine::file::blocks;
use crate::machine::file::heads::Heads;
use crate::machine::file::runs;
use crate::machine::layers::layered::Layered;
use crate::machine::rows::chain::Fold;
use crate::machine::rows::counters::Counters;
use crate::machine::rows::error::{StateFile, step, storage};
use crate::machine::rows::head::{Head, ValueDigest};
use crate::machine::rows::row_hash::hash_of_logical_row;
use crate::machine::rows::system::Standing;
use crate::machine::rows::tables::Table;
use crate::machine::rows::times::{self, Stood};
use crate::machine::rows::version::{self, Version};
use crate::machine::rows::wire::Malformed;
use crate::model::{KeyRange, Order, Revision};

/// Demands that the rows of the base have the digests and the counts that its standing says, and its values those that their
/// heads say.
pub(in crate::machine) fn base(base: &Base) -> Result<(), Fault> {
    let mut found = RowTotals::in_rows_of(base)?;
    found.demand(base.file(), &base.standing)?;
    values(base)
}

/// Demands that the rows, as a checkpoint would leave them now, have the digests and the counts that are kept. For the thread
/// that applies.
pub(in crate::machine) fn layered(state: &Layered, kept: &Standing) -> Result<(), Fault> {
    let base = &*state.base;
    let malformed = |e| base.file().malformed(&e);
    let mut found = RowTotals::in_rows_of(base)?;
    let mut scratch = Vec::new();
    let oldest_first = state.frozen.iter().chain([&state.active]);
    let layers: Vec<_> = oldest_first.map(|layer| (layer, layer.order())).collect();
    for (layer, order) in &layers {
        layer.visit_rows(Table::Versions, order, |key, row| {
            row.map_or(Ok(()), |row| found.version(key, row))
                .map_err(malformed)
        })?;
        layer.visit_rows(Table::Times, order, |key, row| {
            row.map_or(Ok(()), |row| found.time(key, row)).map_err(malformed)
        })?;
    }
    for table in Table::ALL.into_iter().filter(|table| table.is_logical()) {
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for (layer, order) in &layers {
            layer.visit_rows(table, order, |key, row| {
                changes.insert(key.to_vec(), row.map(<[u8]>::to_vec));
                Ok::<(), Fault>(())
            })?;
        }
        for (key, row) in changes {
            if let Some(old) = base.row(table, &key)? {
                found.no_row(&mut scratch, table, &key, &old).map_err(malformed)?;
            }
            if let Some(row) = row {
                found.row(&mut scratch, table, &key, &row).map_err(malformed)?;
            }
        }
    }
    found.demand(base.file(), kept)
}

/// What rows come to.
struct RowTotals {
    rows_hash: u128,
    fold: Option<Fold>,
    counters: Counters,
    /// The last row of `times`.
    stood: Option<Stood>,
}

impl RowTotals {
    fn in_rows_of(base: &Base) -> Result<Self, Fault> {
        let history = base.standing.history;
        let mut found = Self {
            rows_hash: 0,
            fold: Some(Fold::after(history.since, history.chain)),
            counters: Counters::ZERO,
            stood: None,
        };
        let mut scratch = Vec::new();
        for table in Table::ALL.into_iter().filter(|table| *table != Table::Deleted) {
            base.for_each_row(table, |key, row| match table {
                Table::Versions => found.version(key, row),
                Table::Times => found.time(key, row),
                logical => found.row(&mut scratch, logical, key, row),
            })?;
        }
        Ok(found)
    }

    /// A row of a logical table.
    fn row(&mut self, scratch: &mut Vec<u8>, table: Table, key: &[u8], row: &[u8]) -> Result<(), Malformed> {
        let hash = hash_of_logical_row(scratch, table, key, row)?;
        self.rows_hash = self.rows_hash.wrapping_add(hash);
        match table {
            Table::Current => count_head(&mut self.counters, key, row),
            Table::Sequences => {
                self.counters.sequence_begins(key.len());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A row of a logical table is another one, or none.
    fn no_row(
        &mut self,
        scratch: &mut Vec<u8>,
        table: Table,
        key: &[u8],
        row: &[u8],
    ) -> Result<(), Malformed> {
        let hash = hash_of_logical_row(scratch, table, key, row)?;
        self.rows_hash = self.rows_hash.wrapping_sub(hash);
        if table == Table::Current
            && let (_, Some((_, digest))) = Head::decode_newest(row)?
        {
            self.counters.ends(key.len(), digest.size());
        }
        if table == Table::Sequences {
            self.counters.sequence_ends(key.len());
        }
        Ok(())
    }

    fn version(&mut self, key: &[u8], row: &[u8]) -> Result<(), Malformed> {
        count_version(&mut self.counters, key, row)?;
        self.fold.as_mut().map_or(Ok(()), |fold| fold.row(key, row))
    }

    fn time(&mut self, key: &[u8], row: &[u8]) -> Result<(), Malformed> {
        let stood = times::read(key, row)?;
        times::follows(self.stood.replace(stood), stood)
    }

    /// Demands what a standing says.
    fn demand(&mut self, file: &StateFile, kept: &Standing) -> Result<(), Fault> {
        let chain = self.fold.take().and_then(|fold| other_chain(fold, kept));
        let wrong = other_rows(self.rows_hash, kept).or(chain);
        if let Some(wrong) = wrong.or_else(|| other_counters(self.counters, kept)) {
            return Err(file.corrupt(wrong));
        }
        if let Some((_, revision)) = self.stood
            && revision > kept.revision
        {
            return Err(file.corrupt(format!(
                "a time has revision {revision}, the last is {}",
                kept.revision
            )));
        }
        Ok(())
    }
}

/// What is wrong where the logical rows hash to this.
pub(in crate::machine) fn other_rows(found: u128, kept: &Standing) -> Option<String> {
    let said = kept.rows_hash;
    (found != said).then(|| format!("the rows hash to {found:032x}, the state says {said:032x}"))
}

/// What is wrong where the versions have this chain.
pub(in crate::machine) fn other_chain(found: Fold, kept: &Standing) -> Option<String> {
    let (revision, chain) = found.end();
    ((revision, chain) != (kept.revision, kept.chain)).then(|| {
        format!(
            "the versions up to revision {revision} have the chain {:032x}, the state says {:032x} at revision {}",
            chain.0, kept.chain.0, kept.revision
        )
    })
}

/// What is wrong where the rows count this.
pub(in crate::machine) fn other_counters(found: Counters, kept: &Standing) -> Option<String> {
    let said = kept.counters;
    (found != said).then(|| format!("there are {found}, the state says {said}"))
}

/// Counts a row of `current`.
pub(in crate::machine) fn count_head(
    counters: &mut Counters,
    key: &[u8],
    row: &[u8],
) -> Result<(), Malformed> {
    let (_, record) = Head::decode_newest(row)?;
    let (_, digest) = record.ok_or(Malformed("a deleted key has its head in current"))?;
    counters.lives(key.len(), digest.size());
    Ok(())
}

/// Counts a row of `versions`.
pub(in crate::machine) fn count_version(
    counters: &mut Counters,
    row_key: &[u8],
    row: &[u8],
) -> Result<(), Malformed> {
    let (_, key) = version::read_key(row_key)?;
    let size = Version::decode(row)?.value.len() as u64;
    counters.version_comes(key.len(), size);
    Ok(())
}

/// Demands that each key that exists has the value that its head tells of.
fn values(base: &Base) -> Result<(), Fault> {
    let file = base.file();
    let versions = base
        .txn
        .open_table(Table::Versions.definition())
        .map_err(step(file, "opening a table of"))?;
    let wrong = wrong_value(
        file,
        base.heads(&KeyRange::all(), Order::Ascending)?,
        &versions,
        None,
        &|| true,
    )?;
    wrong.map_or(Ok(()), |wrong| Err(file.corrupt(wrong)))
}

/// What is wrong with the values that were written at or before a revision, of which no chain tells: those of a snapshot that
/// is being received, in whose file a run has the heads of the keys that exist. Nothing, where that is not wanted any more.
pub(in crate::machine) fn cold_values(
    file: &StateFile,
    txn: &WriteTransaction,
    run: u64,
    since: Revision,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<String>, Fault> {
    // Nothing was forgotten: the chain tells of all.
    if since == Revision::FIRST {
        return Ok(None);
    }
    let heads = runs::open_within(file, txn, run)?;
    let all = (Bound::Unbounded, Bound::Unbounded);
    let heads = blocks::rows(file, &heads, all, Order::Ascending)?;
    let versions = txn
        .open_table(Table::Versions.definition())
        .map_err(step(file, "opening a table of"))?;
    wrong_value(
        file,
        Heads::new(file, Order::Ascending, [heads])?,
        &versions,
        Some(since),
        goes_on,
    )
}

/// The first key that exists and has not the value that its head tells of, if it was written by a revision up to `upto`.
fn wrong_value(
    file: &StateFile,
    mut heads: HeadRows<'_>,
    versions: &impl ReadableTable<&'static [u8], &'static [u8]>,
    upto: Option<Revision>,
    goes_on: &dyn Fn() -> bool,
) -> Result<Option<String>, Fault> {
    /// So many heads are looked at before it is asked again whether that is wanted.
    const LOOKED_AT: u32 = 256;
    let malformed = |e| file.malformed(&e);
    let mut looked_at = 0u32;
    while let Some(row) = heads.next()? {
        looked_at = looked_at.wrapping_add(1);
        if looked_at.is_multiple_of(LOOKED_AT) && !goes_on() {
            return Ok(None);
        }
        let key = row.key();
        let (revision, told) = Head::decode_newest(row.head()).map_err(malformed)?;
        let Some((_, told)) = told else { continue };
        if upto.is_some_and(|upto| revision > upto) {
            continue;
        }
        let found = versions
            .get(&version::row_key(revision, key)[..])
            .map_err(storage(file))?;
        let digest = found
            .map(|row| Version::decode(row.value()).map(|version| ValueDigest::of(version.value)))
            .transpose()
            .map_err(malformed)?;
        if digest != Some(told) {
            let key = key.escape_ascii();
            return Ok(Some(format!(
                "the value of key {key} at revision {revision} is not there, or not the one that was written"
            )));
        }
    }
    Ok(None)
}

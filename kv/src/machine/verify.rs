//! Computing the digests of the state anew, from all its rows: the proof that those which are kept, change by change, are
//! the state's.

use std::collections::BTreeMap;

use redb::{ReadableTable, WriteTransaction};

use super::base::Base;
use super::chain::Fold;
use super::database::for_each_row;
use super::error::{StateFile, step, storage};
use super::head::{Head, ValueDigest};
use super::layered::Layered;
use super::system::Standing;
use super::tables::Table;
use super::version::{self, Version};
use super::wire::hash_of_logical_row;
use crate::fault::Fault;
use crate::model::Revision;

/// Demands that the rows of the base have the digests that its standing says, and its values those that their heads say.
pub(super) fn base(base: &Base) -> Result<(), Fault> {
    let sum = sum_of_rows(base)?;
    let standing = &base.standing;
    demand(base, sum, standing.rows_hash)?;
    demand_chain(base, fold_of_versions(base)?, standing)?;
    values(base)
}

/// Demands that the rows, as a checkpoint would leave them now, have the digests that are kept. For the thread that applies.
pub(super) fn layered(state: &Layered, kept: &Standing) -> Result<(), Fault> {
    let base = &*state.base;
    let malformed = |e| base.file().malformed(&e);
    let mut sum = sum_of_rows(base)?;
    let mut fold = fold_of_versions(base)?;
    let mut scratch = Vec::new();
    let oldest_first = state.frozen.iter().chain([&state.active]);
    let layers: Vec<_> = oldest_first.map(|layer| (layer, layer.order())).collect();
    for (layer, order) in &layers {
        layer.visit_rows(Table::Versions, order, |key, row| {
            row.map_or(Ok(()), |row| fold.row(key, row)).map_err(malformed)
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
        let rows = base
            .txn
            .open_table(table.definition())
            .map_err(step(base.file(), "opening a table of"))?;
        for (key, row) in changes {
            let mut hash =
                |row: &[u8]| hash_of_logical_row(&mut scratch, table, &key, row).map_err(malformed);
            if let Some(old) = rows.get(&key[..]).map_err(storage(base.file()))? {
                sum = sum.wrapping_sub(hash(old.value())?);
            }
            if let Some(row) = row {
                sum = sum.wrapping_add(hash(&row)?);
            }
        }
    }
    demand(base, sum, kept.rows_hash)?;
    demand_chain(base, fold, kept)
}

fn sum_of_rows(base: &Base) -> Result<u128, Fault> {
    let mut scratch = Vec::new();
    let mut sum = 0u128;
    for table in Table::ALL.into_iter().filter(|table| table.is_logical()) {
        for_each_row(base.file(), &base.txn, table, |key, row| {
            sum = sum.wrapping_add(hash_of_logical_row(&mut scratch, table, key, row)?);
            Ok(())
        })?;
    }
    Ok(sum)
}

fn fold_of_versions(base: &Base) -> Result<Fold, Fault> {
    let history = base.standing.history;
    let mut fold = Fold::after(history.since, history.chain);
    for_each_row(base.file(), &base.txn, Table::Versions, |key, row| {
        fold.row(key, row)
    })?;
    Ok(fold)
}

/// Demands that each key that exists has the value that its head tells of.
fn values(base: &Base) -> Result<(), Fault> {
    let file = base.file();
    let open = |table: Table| {
        base.txn
            .open_table(table.definition())
            .map_err(step(file, "opening a table of"))
    };
    let (current, versions) = (open(Table::Current)?, open(Table::Versions)?);
    let wrong = wrong_value(file, &current, &versions, None)?;
    wrong.map_or(Ok(()), |wrong| Err(file.corrupt(wrong)))
}

/// What is wrong with the values that were written at or before a revision, of which no chain tells: those of a snapshot that
/// is being received.
pub(super) fn cold_values(
    file: &StateFile,
    txn: &WriteTransaction,
    since: Revision,
) -> Result<Option<String>, Fault> {
    // Nothing was forgotten: the chain tells of all.
    if since == Revision::FIRST {
        return Ok(None);
    }
    let open = |table: Table| {
        txn.open_table(table.definition())
            .map_err(step(file, "opening a table of"))
    };
    wrong_value(file, &open(Table::Current)?, &open(Table::Versions)?, Some(since))
}

/// The first key that exists and has not the value that its head tells of, if it was written by a revision up to `upto`.
fn wrong_value(
    file: &StateFile,
    current: &impl ReadableTable<&'static [u8], &'static [u8]>,
    versions: &impl ReadableTable<&'static [u8], &'static [u8]>,
    upto: Option<Revision>,
) -> Result<Option<String>, Fault> {
    let malformed = |e| file.malformed(&e);
    for row in current.range::<&[u8]>(..).map_err(storage(file))? {
        let (key, row) = row.map_err(storage(file))?;
        let key = key.value();
        let (revision, told) = Head::decode_newest(row.value()).map_err(malformed)?;
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
        if digest.is_none() || digest != told.map(|(_, digest)| digest) {
            let key = key.escape_ascii();
            return Ok(Some(format!(
                "the value of key {key} at revision {revision} is not there, or not the one that was written"
            )));
        }
    }
    Ok(None)
}

fn demand(base: &Base, sum: u128, kept: u128) -> Result<(), Fault> {
    if sum == kept {
        Ok(())
    } else {
        Err(base
            .file()
            .corrupt(format!("the rows hash to {sum:032x}, the state says {kept:032x}")))
    }
}

fn demand_chain(base: &Base, fold: Fold, kept: &Standing) -> Result<(), Fault> {
    let (revision, chain) = fold.end();
    if (revision, chain) == (kept.revision, kept.chain) {
        return Ok(());
    }
    Err(base.file().corrupt(format!(
        "the versions up to revision {revision} have the chain {:032x}, the state says {:032x} at revision {}",
        chain.0, kept.chain.0, kept.revision
    )))
}

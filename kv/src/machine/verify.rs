//! Computing the hash of the state anew, from all its rows: the proof that the hash which is kept, change by
//! change, is that of the state.

use std::collections::BTreeMap;

use super::base::Base;
use super::database::for_each_row;
use super::error::{step, storage};
use super::layered::Layered;
use super::tables::Table;
use super::wire::hash_row;
use crate::fault::Fault;

/// Demands that the rows of the base hash to what its standing says.
pub(super) fn base(base: &Base) -> Result<(), Fault> {
    let sum = sum_of_rows(base)?;
    demand(base, sum, base.standing.rows_hash)
}

/// Demands that the rows, as a checkpoint would leave them now, hash to `kept`. For the thread that applies.
pub(super) fn layered(state: &Layered, kept: u128) -> Result<(), Fault> {
    let base = &*state.base;
    let mut sum = sum_of_rows(base)?;
    let mut scratch = Vec::new();
    let oldest_first = state.frozen.iter().chain([&state.active]);
    let layers: Vec<_> = oldest_first.map(|layer| (layer, layer.order())).collect();
    for table in Table::ALL {
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
            if let Some(old) = rows.get(&key[..]).map_err(storage(base.file()))? {
                sum = sum.wrapping_sub(hash_row(&mut scratch, table, &key, old.value()));
            }
            if let Some(row) = row {
                sum = sum.wrapping_add(hash_row(&mut scratch, table, &key, &row));
            }
        }
    }
    demand(base, sum, kept)
}

fn sum_of_rows(base: &Base) -> Result<u128, Fault> {
    let mut scratch = Vec::new();
    let mut sum = 0u128;
    for table in Table::ALL {
        for_each_row(base.file(), &base.txn, table, |key, value| {
            sum = sum.wrapping_add(hash_row(&mut scratch, table, key, value));
            Ok(())
        })?;
    }
    Ok(sum)
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

//! Reading heads in the order of their keys, over all runs: of those that a key has the newest counts.

use std::ops::Deref;

use super::blocks::{HeadRow, Rows, RunRows};
use super::in_order::{InOrder, Sorted};
use crate::fault::Fault;
use crate::machine::rows::error::StateFile;
use crate::machine::rows::head::Head;
use crate::machine::rows::tables::Table;
use crate::machine::rows::wire::Malformed;
use crate::model::{Order, Revision};

/// Whether a head is a row of `current`, or of `deleted`: one of a deleted key of which no history is left is in neither.
/// `since` is the revision up to which it was forgotten.
pub(in crate::machine) fn is_of(table: Table, head: &[u8], since: Revision) -> Result<bool, Malformed> {
    let (revision, record) = Head::decode_newest(head)?;
    Ok(match table {
        Table::Current => record.is_some(),
        Table::Deleted => record.is_none() && revision > since,
        _ => false,
    })
}

/// See the module.
pub(in crate::machine) struct Heads<R: Rows, F> {
    file: F,
    runs: InOrder<RunRows<R>>,
}

impl<R: Rows> Sorted for RunRows<R> {
    type Of = StateFile;
    type Item = HeadRow<R::Guard>;

    fn next(&mut self, file: &StateFile) -> Result<Option<Self::Item>, Fault> {
        RunRows::next(self, file)
    }

    fn key(row: &Self::Item) -> &[u8] {
        row.key()
    }
}

impl<R: Rows, F: Deref<Target = StateFile>> Heads<R, F> {
    /// Over the rows of these runs, the newest first, which have all this order.
    pub(in crate::machine) fn new(
        file: F,
        order: Order,
        runs: impl IntoIterator<Item = RunRows<R>>,
    ) -> Result<Self, Fault> {
        let runs = InOrder::new(&*file, order, runs)?;
        Ok(Self { file, runs })
    }

    /// The next key's newest head.
    pub(in crate::machine) fn next(&mut self) -> Result<Option<HeadRow<R::Guard>>, Fault> {
        let Some(row) = self.runs.next(&*self.file)? else {
            return Ok(None);
        };
        while self.runs.next_of(&*self.file, row.key())?.is_some() {}
        Ok(Some(row))
    }
}

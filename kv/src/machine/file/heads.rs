//! Reading heads in the order of their keys, over all runs: of those that a key has the newest counts.

use std::cmp::Ordering;
use std::ops::Deref;

use super::blocks::{HeadRow, Rows, RunRows};
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
    order: Order,
    /// The newest first.
    runs: Vec<Stream<R>>,
    /// Those that have a row, by which of them comes first; of those that have the same key the newest.
    turn: Vec<usize>,
}

struct Stream<R: Rows> {
    rows: RunRows<R>,
    front: Option<HeadRow<R::Guard>>,
}

impl<R: Rows, F: Deref<Target = StateFile>> Heads<R, F> {
    /// Over the rows of these runs, the newest first, which have all this order.
    pub(in crate::machine) fn new(
        file: F,
        order: Order,
        runs: impl IntoIterator<Item = RunRows<R>>,
    ) -> Result<Self, Fault> {
        let runs = runs.into_iter().map(|rows| Stream { rows, front: None });
        let mut heads = Self {
            file,
            order,
            runs: runs.collect(),
            turn: Vec::new(),
        };
        for run in (0..heads.runs.len()).rev() {
            heads.advance(run)?;
            if heads.runs[run].front.is_some() {
                heads.turn.insert(0, run);
                heads.settle();
            }
        }
        Ok(heads)
    }

    /// The next row of a run becomes its front.
    fn advance(&mut self, run: usize) -> Result<Option<HeadRow<R::Guard>>, Fault> {
        let stream = &mut self.runs[run];
        let row = stream.rows.next(&self.file)?;
        Ok(std::mem::replace(&mut stream.front, row))
    }

    /// Brings the first to its place among the others, which have theirs.
    fn settle(&mut self) {
        for place in 1..self.turn.len() {
            let (a, b) = (self.turn[place - 1], self.turn[place]);
            if self.compare(a, b).is_lt() {
                return;
            }
            self.turn.swap(place - 1, place);
        }
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        match (&self.runs[a].front, &self.runs[b].front) {
            (Some(x), Some(y)) => self.order.compare(x.key(), y.key()).then(a.cmp(&b)),
            (None, _) => Ordering::Greater,
            (_, None) => Ordering::Less,
        }
    }

    fn take_first(&mut self) -> Result<Option<HeadRow<R::Guard>>, Fault> {
        let Some(&run) = self.turn.first() else {
            return Ok(None);
        };
        let row = self.advance(run)?;
        match self.runs[run].front {
            Some(_) => self.settle(),
            None => drop(self.turn.remove(0)),
        }
        Ok(row)
    }

    /// The next key's newest head.
    pub(in crate::machine) fn next(&mut self) -> Result<Option<HeadRow<R::Guard>>, Fault> {
        let Some(row) = self.take_first()? else {
            return Ok(None);
        };
        while let Some(&run) = self.turn.first()
            && self.runs[run]
                .front
                .as_ref()
                .is_some_and(|older| older.key() == row.key())
        {
            drop(self.take_first()?);
        }
        Ok(Some(row))
    }
}

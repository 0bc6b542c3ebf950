//! A checkpoint: what was applied since the last one, written to the state file in one durable transaction.
//!
//! It runs beside `apply` and readers, on a thread of its own, on a layer to which nothing is added any more.
//! Rows go to the tables sorted, so that a page that many of them share is written once for all.
//!
//! A step of forgetting (see `forget`), and one of merging (see `merge`), is written the same way, in the place of a checkpoint.
//!
//! Always: the file is at the position of the last checkpoint or at that of this one, whole; the log
//! replays what a crash took from memory.

use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use redb::{Durability, WriteTransaction};

use super::forget;
use super::merge::{self, Load};
use super::shrink;
use crate::env;
use crate::fault::Fault;
use crate::machine::file::base::Base;
use crate::machine::file::blocks;
use crate::machine::file::database::{OpenState, write_system};
use crate::machine::file::heads::Heads;
use crate::machine::file::runs::{self, Run, Runs, Writing};
use crate::machine::layers::layer::Layer;
use crate::machine::rows::error::{step, storage};
use crate::machine::rows::system::{self, System};
use crate::machine::rows::tables::{SYSTEM, Table};
use crate::machine::snapshot::ReceivedSnapshot;
use crate::model::{Order, Revision};

/// Everything that a checkpoint writes, taken from the machine at one moment.
#[derive(Debug)]
pub struct Checkpoint {
    pub(in crate::machine) state: Arc<OpenState>,
    pub(in crate::machine) what: What,
}

/// What is written.
#[derive(Debug)]
pub(in crate::machine) enum What {
    /// What was applied since the last checkpoint.
    Layer { layer: Arc<Layer>, system: Box<System> },
    /// Nothing: history that no read can ask for any more goes, over so many rows.
    Forget { rows: usize },
    /// Nothing: the file is copied into a smaller one.
    Copy(shrink::Copy),
    /// So many heads of several runs, to one.
    Merge { rows: usize, load: Load },
}

/// How a checkpoint ended, for [`Machine::end_checkpoint`](crate::machine::Machine::end_checkpoint).
#[derive(Debug)]
pub struct CheckpointEnd {
    pub(in crate::machine) state: Arc<OpenState>,
    pub(in crate::machine) result: Result<Base, Fault>,
    /// Of a copy that was made whole.
    pub(in crate::machine) copy: Option<ReceivedSnapshot>,
}

impl Checkpoint {
    /// Writes it. Blocks, for a few microseconds a row and some syncs; durable when this returns, if the end
    /// says so.
    pub fn write(self) -> CheckpointEnd {
        // Whoever waits for the end must hear of it, whatever the database does.
        let mut copy = None;
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            match &self.what {
                What::Layer { layer, system } => {
                    self.commit(layer, system)?;
                    let base = Base::pin(Arc::clone(&self.state))?;
                    layer.newest(|keys| self.state.recent.follow(base.standing.revision, keys));
                    Ok(base)
                }
                // No record is another for it.
                What::Forget { rows } => {
                    self.forget(*rows)?;
                    Base::pin(Arc::clone(&self.state))
                }
                What::Merge { rows, load } => {
                    self.merge(*rows, *load)?;
                    Base::pin(Arc::clone(&self.state))
                }
                What::Copy(what) => {
                    copy = what.make(&self.state)?;
                    Base::pin(Arc::clone(&self.state))
                }
            }
        }))
        .unwrap_or_else(|_| {
            let file = &self.state.file;
            Err(file.rot().unwrap_or_else(|| Fault::State {
                doing: "writing a checkpoint",
                detail: format!("{}: the database panicked", file.name()),
            }))
        });
        CheckpointEnd {
            state: self.state,
            result,
            copy,
        }
    }

    /// What is written to a file that was replaced stays in memory, so it ends soon.
    fn in_use(&self) -> Result<(), Fault> {
        match self.state.backend.is_retired() {
            true => Err(Fault::State {
                doing: "writing a checkpoint",
                detail: format!("{}: a snapshot has replaced the file", self.state.file.name()),
            }),
            false => Ok(()),
        }
    }

    fn passed(&self, point: &'static str) -> Result<(), Fault> {
        env::crash_point(point).map_err(|e| Fault::disk("writing a checkpoint to", self.state.file.name(), e))
    }

    fn forget(&self, rows: usize) -> Result<(), Fault> {
        let file = &self.state.file;
        self.passed("state.forgetting_begins")?;
        let txn = self.state.begin_write(Durability::Immediate)?;
        let mut system = {
            let table = txn
                .open_table(SYSTEM)
                .map_err(step(file, "opening the system table of"))?;
            System::read(file, &table)?
        };
        forget::step(file, &txn, &mut system.standing, rows, || self.in_use())?;
        write_system(file, &txn, &system)?;
        self.passed("state.forgotten_not_committed")?;
        self.state.commit(txn)?;
        env::mark("state.forgotten");
        self.passed("state.forgotten")
    }

    fn merge(&self, rows: usize, load: Load) -> Result<(), Fault> {
        let file = &self.state.file;
        self.passed("state.merging_begins")?;
        let txn = self.state.begin_write(Durability::Immediate)?;
        let since = {
            let table = txn
                .open_table(SYSTEM)
                .map_err(step(file, "opening the system table of"))?;
            system::read_standing(file, &table)?.history.since
        };
        merge::step(&self.state, &txn, since, rows, load, || self.in_use())?;
        self.passed("state.merged_not_committed")?;
        self.state.commit(txn)?;
        env::mark("state.merged");
        self.passed("state.merged")
    }

    /// Writes the heads of the layer to a run, together with those of the newest runs as far as these are small.
    fn write_heads(
        &self,
        txn: &WriteTransaction,
        layer: &Layer,
        order: &[u32],
        since: Revision,
    ) -> Result<(), Fault> {
        let (file, state) = (&self.state.file, &*self.state);
        if order.is_empty() {
            return Ok(());
        }
        let mut runs = Runs::read_within(file, txn)?;
        let absorbed = {
            let merging = state.runs.merging();
            let is_free = |run: &Run| !merging.iter().any(|m| m.inputs.contains(&run.number));
            let mut rows = 0u64;
            let small = runs.list.iter().rev().take_while(|run| {
                rows = rows.saturating_add(run.rows);
                rows <= state.tuning.run_rows && is_free(run)
            });
            let kept = runs.list.len() - small.count();
            runs.list.split_off(kept)
        };
        // Below the oldest run no deleted key can be hidden.
        let is_oldest = runs.list.is_empty();
        let goes = |head: &[u8]| match is_oldest {
            true => merge::is_forgotten(head, since).map_err(|e| file.malformed(&e)),
            false => Ok(false),
        };
        let number = runs.number();
        let rows_max = absorbed.iter().map(|run| run.rows).sum::<u64>() + order.len() as u64;
        let mut writing = Writing::of(rows_max, state.tuning.block_bytes);
        {
            let old = absorbed.iter().rev();
            let old = old.map(|run| runs::open_within(file, txn, run.number));
            let old = old.collect::<Result<Vec<_>, _>>()?;
            let all = (Bound::Unbounded, Bound::Unbounded);
            let old = old
                .iter()
                .map(|run| blocks::rows(file, run, all, Order::Ascending));
            let old = old.collect::<Result<Vec<_>, _>>()?;
            let mut old = Heads::new(file, Order::Ascending, old)?;
            let mut before = old.next()?;
            let mut table = runs::open_within(file, txn, number)?;
            let mut end = table
                .upper_bound_mut(Bound::<&[u8]>::Unbounded)
                .map_err(storage(file))?;
            let mut put = |key: &[u8], head: &[u8]| -> Result<(), Fault> {
                self.in_use()?;
                if !goes(head)? {
                    writing.put(file, &mut end, key, head)?;
                }
                Ok(())
            };
            layer.visit_heads(order, |key, head| {
                while let Some(row) = before.take_if(|row| row.key() <= key) {
                    if row.key() < key {
                        put(row.key(), row.head())?;
                    }
                    before = old.next()?;
                }
                put(key, head)
            })?;
            while let Some(row) = before.take() {
                put(row.key(), row.head())?;
                before = old.next()?;
            }
            writing.close_block(file, &mut end)?;
            end.close().map_err(storage(file))?;
        }
        for run in &absorbed {
            runs::remove(file, txn, run.number)?;
        }
        if let Some((run, filter)) = writing.finish(file, txn, number)? {
            state.runs.keep(number, filter);
            runs.list.push(run);
        }
        runs.write(file, txn)
    }

    fn commit(&self, layer: &Layer, system: &System) -> Result<(), Fault> {
        let file = &self.state.file;
        self.passed("state.checkpoint_begins")?;
        self.in_use()?;
        let txn = self.state.begin_write(Durability::Immediate)?;
        let order = layer.order();
        self.write_heads(&txn, layer, &order, system.standing.history.since)?;
        for table in Table::ALL.into_iter().filter(|table| !table.is_of_heads()) {
            let mut rows = txn
                .open_table(table.definition())
                .map_err(step(file, "opening a table of"))?;
            if table == Table::Versions {
                // They all belong behind those that are there: whole pages are made of them.
                let mut end = rows
                    .upper_bound_mut(Bound::<&[u8]>::Unbounded)
                    .map_err(storage(file))?;
                layer.visit_rows(table, &order, |key, row| {
                    self.in_use()?;
                    row.map_or(Ok(()), |row| end.insert_before(key, row))
                        .map_err(storage(file))
                })?;
                end.close().map_err(storage(file))?;
                continue;
            }
            layer.visit_rows(table, &order, |key, row| {
                self.in_use()?;
                match row {
                    Some(row) => rows.insert(key, row).map(drop),
                    None => rows.remove(key).map(drop),
                }
                .map_err(storage(file))
            })?;
        }
        write_system(file, &txn, system)?;
        self.passed("state.checkpoint_written_not_committed")?;
        self.state.commit(txn)?;
        self.passed("state.checkpoint_committed")
    }
}

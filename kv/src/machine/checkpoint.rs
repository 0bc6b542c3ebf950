//! A checkpoint: what was applied since the last one, written to the state file in one durable transaction.
//!
//! It runs beside `apply` and readers, on a thread of its own, on a layer to which nothing is added any more.
//! Rows go to the tables sorted, so that a page that many of them share is written once for all.
//!
//! Always: the file is at the position of the last checkpoint or at that of this one, whole; the log
//! replays what a crash took from memory.

use std::ops::Bound;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use redb::Durability;

use super::base::Base;
use super::database::{OpenState, write_system};
use super::error::{step, storage};
use super::layer::Layer;
use super::system::System;
use super::tables::Table;
use crate::env;
use crate::fault::Fault;

/// Everything that a checkpoint writes, taken from the machine at one moment.
#[derive(Debug)]
pub struct Checkpoint {
    pub(super) state: Arc<OpenState>,
    pub(super) layer: Arc<Layer>,
    pub(super) system: System,
}

/// How a checkpoint ended, for [`Machine::end_checkpoint`](super::Machine::end_checkpoint).
#[derive(Debug)]
pub struct CheckpointEnd {
    pub(super) state: Arc<OpenState>,
    pub(super) result: Result<Base, Fault>,
}

impl Checkpoint {
    /// Writes it. Blocks, for a few microseconds a row and some syncs; durable when this returns, if the end
    /// says so.
    pub fn write(self) -> CheckpointEnd {
        // Whoever waits for the end must hear of it, whatever the database does.
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.commit()?;
            Base::pin(Arc::clone(&self.state))
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
        }
    }

    fn commit(&self) -> Result<(), Fault> {
        let file = &self.state.file;
        let passed = |point| {
            env::crash_point(point).map_err(|e| Fault::disk("writing a checkpoint to", file.name(), e))
        };
        // What is written to a file that was replaced stays in memory, so it ends soon.
        let in_use = || match self.state.backend.is_retired() {
            true => Err(Fault::State {
                doing: "writing a checkpoint",
                detail: format!("{}: a snapshot has replaced the file", file.name()),
            }),
            false => Ok(()),
        };
        passed("state.checkpoint_begins")?;
        in_use()?;
        let txn = self.state.begin_write(Durability::Immediate)?;
        let order = self.layer.order();
        for table in Table::ALL {
            let mut rows = txn
                .open_table(table.definition())
                .map_err(step(file, "opening a table of"))?;
            if table == Table::Versions {
                // They all belong behind those that are there: whole pages are made of them.
                let mut end = rows
                    .upper_bound_mut(Bound::<&[u8]>::Unbounded)
                    .map_err(storage(file))?;
                self.layer.visit_rows(table, &order, |key, row| {
                    in_use()?;
                    row.map_or(Ok(()), |row| end.insert_before(key, row))
                        .map_err(storage(file))
                })?;
                end.close().map_err(storage(file))?;
                continue;
            }
            self.layer.visit_rows(table, &order, |key, row| {
                in_use()?;
                match row {
                    Some(row) => rows.insert(key, row).map(drop),
                    None => rows.remove(key).map(drop),
                }
                .map_err(storage(file))
            })?;
        }
        write_system(file, &txn, &self.system)?;
        passed("state.checkpoint_written_not_committed")?;
        self.state.commit(txn)?;
        passed("state.checkpoint_committed")
    }
}

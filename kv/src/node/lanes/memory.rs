//! Reads of a few keys that memory answers: at once, on the task of whoever asks.
//!
//! The thread of the fast lane is there for the disk, which nobody else may wait for. Where the newest layers have what is
//! asked for, or it was read of the file of late, the way to that thread and back takes many times as long as the read. A read
//! of which a part is not in memory goes to the thread whole.
//!
//! Always: nothing here waits, for a disk or for a lock that is held through more than a few keys; what is answered here the
//! thread would have answered; who looks frees no state that is large.

use std::panic::AssertUnwindSafe;

use super::jobs::End;
use crate::env::{self, Instant};
use crate::fault::Fault;
use crate::machine::{ReadBudget, Reader, View};
use crate::model::{ReadOp, ReadResponse, Revision};
use crate::node::service::Service;

/// What one read may look at here: it takes a few microseconds at most.
const BUDGET: ReadBudget = ReadBudget {
    keys: 64,
    bytes: 64 * 1024,
};
/// Keys that reads which came together may look at here. Those of the others are for the thread, which has a core of its own.
const KEYS_TOGETHER_MAX: u64 = 256;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    reader: Reader,
    service: Service,
}

/// A look at one state, for reads that came together.
#[derive(Debug)]
pub(super) struct Look<'a> {
    /// There until the look is over.
    view: Option<View>,
    keys: u64,
    /// Once somebody asks.
    now: Option<Instant>,
    memory: &'a Memory,
}

impl Memory {
    pub(super) fn new(reader: Reader, service: Service) -> Self {
        Self { reader, service }
    }

    /// A look at the present state; `None` where the node does not serve any more, or cannot, which the thread tells.
    pub(super) fn look(&self) -> Option<Look<'_>> {
        if !self.service.goes_on() {
            return None;
        }
        Some(Look {
            view: Some(self.reader.view().ok()?),
            keys: 0,
            now: None,
            memory: self,
        })
    }
}

impl Look<'_> {
    /// Whether a read that ends then has time left.
    pub(super) fn is_in_time(&mut self, end: End) -> bool {
        end.is_over(*self.now.get_or_insert_with(env::now)).is_none()
    }

    /// Answers a batch of reads, where memory has all that it asks for.
    pub(super) fn answer(&mut self, reads: &[ReadOp], at: Option<Revision>) -> Option<ReadResponse> {
        self.keys += reads.len() as u64;
        if self.keys > KEYS_TOGETHER_MAX {
            return None;
        }
        let view = self.view.as_ref()?;
        // It runs on a task that is not ours.
        let recalled = std::panic::catch_unwind(AssertUnwindSafe(|| view.recall(reads, at, BUDGET)));
        match recalled {
            Ok(recalled) => {
                let (revision, results) = recalled?;
                env::mark("read.from_memory");
                Some(ReadResponse { revision, results })
            }
            Err(panicked) => {
                self.memory.service.faults().raise(Fault::Panicked {
                    owner: "reader of the state",
                    message: env::panic_message(panicked.as_ref()),
                });
                None
            }
        }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.view.take()
            && view.is_last_of_much()
        {
            // It may free a layer, or close a file.
            drop(env::spawn_blocking(move || drop(view)));
        }
    }
}

//! Writes checkpoints of the state on a thread of its own, while the state machine goes on applying.
//!
//! Always: checkpoints are written one after the other, in the order in which they began; whoever begins one
//! hears of its end.

use std::sync::{Arc, Mutex, PoisonError};

use crate::env::{self, Owner, OwnerHandle};
use crate::fault::{Fault, Faults};
use crate::machine::{Checkpoint, CheckpointEnd};

/// How many may have been sent and not have ended.
pub(super) const AT_ONCE: usize = 2;

/// The ends of checkpoints, until the state machine takes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends(Arc<Mutex<Vec<CheckpointEnd>>>);

impl Ends {
    fn put(&self, end: CheckpointEnd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(end);
    }

    /// Those that came since this was asked last, in order.
    pub(super) fn take(&self) -> Vec<CheckpointEnd> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where checkpoints are sent to be written.
#[derive(Debug)]
pub(super) struct Checkpoints {
    thread: OwnerHandle<Checkpoint>,
}

impl Checkpoints {
    /// Starts the thread. It puts each end into `ends`, then calls `ended`, which must not block.
    pub(super) fn start(ends: Ends, faults: &Faults, ended: impl Fn() + Send + 'static) -> Self {
        let owner = Writer { ends, ended };
        let thread = env::spawn_owner(
            "quorate-checkpoint",
            AT_ONCE,
            1,
            owner,
            faults.on_panic("checkpoint thread"),
        );
        Self { thread }
    }

    /// Has a checkpoint written, of [`AT_ONCE`] at most. Its end comes through the ends.
    pub(super) fn write(&self, checkpoint: Checkpoint) -> Result<(), Fault> {
        self.thread.try_send(checkpoint).map_err(|_| Fault::Stopped {
            owner: "checkpoint thread",
        })
    }
}

struct Writer<F> {
    ends: Ends,
    ended: F,
}

impl<F: Fn() + Send + 'static> Owner for Writer<F> {
    type Job = Checkpoint;
    type Effects = Vec<CheckpointEnd>;

    fn work(&mut self, batch: &mut Vec<Checkpoint>) -> Vec<CheckpointEnd> {
        batch
            .drain(..)
            .map(|checkpoint| {
                let started = env::now();
                let end = checkpoint.write();
                metrics::histogram!("quorate_state_sync_seconds").record(started.elapsed().as_secs_f64());
                end
            })
            .collect()
    }

    fn publish(&mut self, ends: Vec<CheckpointEnd>) {
        for end in ends {
            self.ends.put(end);
        }
        (self.ended)();
    }
}

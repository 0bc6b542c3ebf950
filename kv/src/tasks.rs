//! The tasks of a node: each has a name, an end, and somebody who waits for it.
//!
//! Always: a task ends when its group is told to end; a panic in one is a fault of the node.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::env;
use crate::fault::Faults;

/// A group of tasks that end together. Cheap to clone; clones are the same group.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    /// Those of the groups that this one is part of.
    outer: Vec<TaskTracker>,
    stop: CancellationToken,
    faults: Faults,
}

impl Tasks {
    /// An empty group, whose panics are told there.
    pub(crate) fn new(faults: Faults) -> Self {
        Self {
            tracker: TaskTracker::new(),
            outer: Vec::new(),
            stop: CancellationToken::new(),
            faults,
        }
    }

    /// A part of this group: it ends by itself, and at the latest with the whole, which waits for its tasks too.
    pub(crate) fn part(&self) -> Self {
        let mut outer = self.outer.clone();
        outer.push(self.tracker.clone());
        Self {
            tracker: TaskTracker::new(),
            outer,
            stop: self.stop.child_token(),
            faults: self.faults.clone(),
        }
    }

    /// Starts a task, which is dropped at its next await once the group is told to end.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        // Where it stays: each layer around it would move it, whole, and keep room for it twice.
        let task = Box::pin(task);
        let stop = self.stop.clone();
        let on_panic = self.faults.on_panic(name);
        let run = async move {
            let ended = env::catching(name, stop.run_until_cancelled_owned(task)).await;
            if let Err(message) = ended {
                on_panic(message);
            }
        };
        let tokens: Vec<_> = self.outer.iter().map(TaskTracker::token).collect();
        let run = self.tracker.track_future(run);
        drop(env::spawn(name, async move {
            run.await;
            drop(tokens);
        }));
    }

    /// Tells every task to end, and does not wait.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
    }

    /// Tells every task to end, and waits until all have. Cancel safe: dropped, they end all the same.
    pub(crate) async fn end(&self) {
        self.stop();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    #[tokio::test]
    async fn a_panic_of_a_task_is_a_fault_of_the_node() {
        let faults = Faults::default();
        let tasks = Tasks::new(faults.clone());
        tasks.spawn("unlucky", async { panic!("the reason") });
        let fault = faults.raised().await;
        assert!(
            matches!(&fault, Fault::Panicked { owner: "unlucky", message } if message == "the reason"),
            "{fault:?}"
        );
        tasks.end().await;
    }

    #[tokio::test]
    async fn a_part_ends_alone_or_with_the_whole_which_waits_for_it() {
        let whole = Tasks::new(Faults::default());
        let (alone, with) = (whole.part(), whole.part());
        let (held, mut released) = tokio::sync::mpsc::channel::<()>(1);
        for part in [&alone, &with] {
            let held = held.clone();
            part.spawn("waits", async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
        }
        drop(held);
        alone.end().await;
        assert!(
            released
                .try_recv()
                .is_err_and(|e| e == tokio::sync::mpsc::error::TryRecvError::Empty)
        );
        whole.end().await;
        assert!(
            released
                .try_recv()
                .is_err_and(|e| e == tokio::sync::mpsc::error::TryRecvError::Disconnected)
        );
        with.end().await;
    }

    #[tokio::test]
    async fn tasks_end_when_their_group_does() {
        let tasks = Tasks::new(Faults::default());
        tasks.spawn("waits", std::future::pending());
        tasks.end().await;
    }
}

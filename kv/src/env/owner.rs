//! An owner of blocking state: one thread, one bounded queue, batches of jobs.
//!
//! The log and the state machine are each owned by such a thread; everyone else holds an [`OwnerHandle`]
//! that sends. Under the simulator the same owner runs as a task and its disk time is charged to it.

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::executor::current;
use super::task::{catching, charged, panic_message, yield_now};

/// What an owner thread does with the jobs that wait.
pub trait Owner: Send + 'static {
    /// One unit of work, with the callback that answers it.
    type Job: Send + 'static;
    /// What must happen after the batch's disk time has passed: the callbacks, in order.
    type Effects: Send + 'static;

    /// Does all jobs of `batch` (in the order sent; none only where the owner [is not idle](Self::is_idle)), leaving
    /// `batch` empty. Blocking is allowed.
    fn work(&mut self, batch: &mut Vec<Self::Job>) -> Self::Effects;

    /// Whether there is nothing left to do before the next job comes. An owner that answers `false` kept some of its
    /// jobs, and is called again at once, with the jobs that have come meanwhile.
    fn is_idle(&self) -> bool {
        true
    }

    /// Hands the results out. Must not block.
    fn publish(&mut self, effects: Self::Effects);

    /// Called once after the last handle was dropped and the queue is empty. What the owner still keeps is not gone on
    /// with.
    fn finish(&mut self) {}
}

/// Sends jobs to an owner without keeping it alive. Cheap to clone.
pub struct WeakOwnerHandle<J> {
    tx: mpsc::WeakSender<J>,
}

impl<J> fmt::Debug for WeakOwnerHandle<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakOwnerHandle").finish_non_exhaustive()
    }
}

impl<J: Send + 'static> WeakOwnerHandle<J> {
    /// As [`OwnerHandle::try_send`]; an owner that has no other handle any more is closed.
    pub fn try_send(&self, job: J) -> Result<(), Option<J>> {
        match self.tx.upgrade() {
            Some(tx) => OwnerHandle { tx }.try_send(job),
            None => Err(None),
        }
    }
}

/// The owner has ended: it was shut down, or a broken invariant or a disk error stopped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the owner of this state has stopped")]
pub struct QueueClosed;

/// Sends jobs to an owner. Cheap to clone; the owner ends when the last handle is dropped.
pub struct OwnerHandle<J> {
    tx: mpsc::Sender<J>,
}

impl<J> Clone for OwnerHandle<J> {
    fn clone(&self) -> Self {
        Self { tx: self.tx.clone() }
    }
}

impl<J> fmt::Debug for OwnerHandle<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerHandle").finish_non_exhaustive()
    }
}

impl<J: Send + 'static> OwnerHandle<J> {
    /// A handle that does not keep the owner alive.
    pub fn downgrade(&self) -> WeakOwnerHandle<J> {
        WeakOwnerHandle {
            tx: self.tx.downgrade(),
        }
    }

    /// Sends a job, waiting for room in the queue. Cancel safe: a dropped future sent nothing.
    pub async fn send(&self, job: J) -> Result<(), QueueClosed> {
        self.tx.send(job).await.map_err(|_| QueueClosed)
    }

    /// Sends a job if there is room now; gives it back otherwise (`Err(Some(job))` full, `Err(None)` closed).
    pub fn try_send(&self, job: J) -> Result<(), Option<J>> {
        self.tx.try_send(job).map_err(|e| match e {
            mpsc::error::TrySendError::Full(job) => Some(job),
            mpsc::error::TrySendError::Closed(_) => None,
        })
    }
}

/// Starts an owner's thread.
///
/// `capacity` bounds the queue: a sender waits when it is full. `batch_max` bounds how many jobs one call
/// of [`Owner::work`] sees. A panic inside the owner ends it: `on_panic` is told the message on the owner's
/// thread, then the jobs that wait are dropped, and later sends answer [`QueueClosed`]. The same where the
/// operating system has no thread to give.
pub fn spawn_owner<O: Owner>(
    name: &'static str,
    capacity: usize,
    batch_max: usize,
    owner: O,
    on_panic: impl FnOnce(String) + Send + 'static,
) -> OwnerHandle<O::Job> {
    let (tx, rx) = mpsc::channel::<O::Job>(capacity);
    match current() {
        None => spawn_thread(name, batch_max, owner, rx, Box::new(on_panic)),
        Some(_) => spawn_task(name, batch_max, owner, rx, on_panic),
    }
    OwnerHandle { tx }
}

/// Told by the thread that panicked, or by whoever could not start it.
type OnPanic = Box<dyn FnOnce(String) + Send>;

#[allow(clippy::disallowed_methods, reason = "the seam itself")]
fn spawn_thread<O: Owner>(
    name: &'static str,
    batch_max: usize,
    mut owner: O,
    mut rx: mpsc::Receiver<O::Job>,
    on_panic: OnPanic,
) {
    // Shared, so that it is still here when the thread does not start.
    let on_panic = Arc::new(Mutex::new(Some(on_panic)));
    let tell = Arc::clone(&on_panic);
    let run = move || {
        // Out here with the owner and its queue, so that what a panic leaves is dropped after it was told.
        let mut batch = Vec::new();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            loop {
                if owner.is_idle() {
                    let Some(job) = rx.blocking_recv() else { break };
                    batch.push(job);
                }
                if take_batch(&mut batch, &mut rx, batch_max).is_break() && batch.is_empty() {
                    break;
                }
                let effects = owner.work(&mut batch);
                batch.clear();
                owner.publish(effects);
            }
            owner.finish();
        }));
        if let Err(payload) = ended {
            told(&tell, panic_message(payload.as_ref()));
        }
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    if let Err(error) = started {
        told(
            &on_panic,
            format!("the operating system refused a thread: {error}"),
        );
    }
}

fn told(on_panic: &Mutex<Option<OnPanic>>, message: String) {
    let on_panic = on_panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(on_panic) = on_panic {
        on_panic(message);
    }
}

/// The same loop as a task of the simulator: the work is done at once, and its disk time passes before its
/// effects are published. A node that dies in between never published them, and its disk may lack the work.
fn spawn_task<O: Owner>(
    name: &'static str,
    batch_max: usize,
    mut owner: O,
    mut rx: mpsc::Receiver<O::Job>,
    on_panic: impl FnOnce(String) + Send + 'static,
) {
    let run = async move {
        let mut batch = Vec::new();
        let worked = catching(name, async {
            loop {
                if owner.is_idle() {
                    let Some(job) = rx.recv().await else { break };
                    batch.push(job);
                } else {
                    // Others run in between, as they would beside a thread.
                    yield_now().await;
                }
                if take_batch(&mut batch, &mut rx, batch_max).is_break() && batch.is_empty() {
                    break;
                }
                let effects = charged(|| owner.work(&mut batch)).await;
                batch.clear();
                owner.publish(effects);
            }
            owner.finish();
        });
        if let Err(message) = worked.await {
            on_panic(message);
        }
    };
    // Its end shows in the queue, as a thread's does.
    drop(super::spawn(name, run));
}

/// Takes what waits. Breaks where nothing will ever come any more.
fn take_batch<J>(batch: &mut Vec<J>, rx: &mut mpsc::Receiver<J>, batch_max: usize) -> ControlFlow<()> {
    while batch.len() < batch_max {
        match rx.try_recv() {
            Ok(job) => batch.push(job),
            Err(TryRecvError::Empty) => break,
            Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
        }
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Faults};

    struct Unlucky;

    impl Owner for Unlucky {
        type Job = tokio::sync::oneshot::Sender<()>;
        type Effects = ();

        fn work(&mut self, _batch: &mut Vec<Self::Job>) {
            panic!("the reason");
        }

        fn publish(&mut self, (): ()) {}
    }

    /// Counts down, a step at each call, and answers at the end.
    #[derive(Default)]
    struct Slow {
        left: Vec<(u32, tokio::sync::oneshot::Sender<u32>)>,
        steps: u32,
    }

    impl Owner for Slow {
        type Job = (u32, tokio::sync::oneshot::Sender<u32>);
        type Effects = Vec<(u32, tokio::sync::oneshot::Sender<u32>)>;

        fn work(&mut self, batch: &mut Vec<Self::Job>) -> Self::Effects {
            self.left.append(batch);
            self.steps += 1;
            for (left, _) in &mut self.left {
                *left = left.saturating_sub(1);
            }
            self.left.extract_if(.., |(left, _)| *left == 0).collect()
        }

        fn publish(&mut self, effects: Self::Effects) {
            for (_, answer) in effects {
                let _ = answer.send(self.steps);
            }
        }

        fn is_idle(&self) -> bool {
            self.left.is_empty()
        }
    }

    #[tokio::test]
    async fn an_owner_that_keeps_jobs_goes_on_with_them_while_others_come() {
        let handle = spawn_owner("slow", 4, 4, Slow::default(), |_| {});
        let (answer, long) = tokio::sync::oneshot::channel();
        handle
            .send((1_000_000, answer))
            .await
            .expect("the owner takes jobs");
        let (answer, short) = tokio::sync::oneshot::channel();
        handle.send((1, answer)).await.expect("the owner takes jobs");
        let (short, long) = (short.await.expect("an answer"), long.await.expect("an answer"));
        assert!(short < long && long == 1_000_000, "{short}, {long}");
    }

    #[tokio::test]
    async fn an_owner_that_nobody_can_send_to_any_more_ends_with_what_it_keeps() {
        let handle = spawn_owner("slow", 4, 4, Slow::default(), |_| {});
        let (answer, never) = tokio::sync::oneshot::channel();
        handle
            .send((u32::MAX, answer))
            .await
            .expect("the owner takes jobs");
        drop(handle);
        never.await.expect_err("it ended first");
    }

    #[tokio::test]
    async fn a_panic_of_an_owner_is_told_before_anyone_who_waits_is_refused() {
        let faults = Faults::default();
        let handle = spawn_owner("unlucky", 4, 4, Unlucky, faults.on_panic("unlucky"));
        let (answer, answered) = tokio::sync::oneshot::channel();
        handle.send(answer).await.expect("the owner takes jobs");
        answered.await.expect_err("nobody answers");
        assert!(
            matches!(faults.first(), Some(Fault::Panicked { owner: "unlucky", message }) if message == "the reason")
        );
        // The queue closes with the thread.
        while handle.try_send(tokio::sync::oneshot::channel().0).is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

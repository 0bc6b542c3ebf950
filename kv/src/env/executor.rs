//! The hook through which a simulator takes over time, tasks, randomness and disk time.
//!
//! A simulator installs its [`Executor`] in the thread while it polls; every function of this module's parent
//! asks here first. In production nothing is installed, and asking is one read of a thread-local flag.
//!
//! Always: the executor is asked only from the thread that installed it; what it hands out (ids, moments)
//! has a meaning only to itself.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::Instant;
use crate::model::LogTime;

/// A task as an executor keeps it.
pub type BoxTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task of an [`Executor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// A timer of an [`Executor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(pub u64);

/// Runs tasks in place of tokio, in one thread, with time and randomness of its own.
///
/// "The running node" is the one whose task is being polled: clocks and tasks belong to it.
pub trait Executor {
    /// The monotonic clock of the running node.
    fn now(&self) -> Instant;

    /// The wall clock of the running node.
    fn wall_clock(&self) -> LogTime;

    /// The next random number.
    fn random_u64(&self) -> u64;

    /// Starts a task of the running node.
    fn spawn(&self, name: &'static str, task: BoxTask) -> TaskId;

    /// Drops a task, at the latest after its present poll. Unknown tasks are no error.
    fn abort(&self, task: TaskId);

    /// Whether a task has neither ended nor been dropped.
    fn is_running(&self, task: TaskId) -> bool;

    /// A task of the running node panicked with `message`; its join handle is told separately.
    fn task_panicked(&self, name: &'static str, message: &str);

    /// Wakes `waker` once the running node's monotonic clock has reached `deadline`. With `timer`, that
    /// timer's waker is replaced, if it has not fired yet.
    fn set_timer(&self, timer: Option<TimerId>, deadline: Instant, waker: &Waker) -> TimerId;

    /// Forgets a timer. Unknown timers are no error.
    fn cancel_timer(&self, timer: TimerId);

    /// Runs tasks until `future` is ready, letting time pass whenever no task can run.
    fn block_on(&self, future: Pin<&mut dyn Future<Output = ()>>);

    /// From here on the disk's time is charged to whoever asks [`Executor::take_disk_charge`]: what the
    /// simulated disk does takes effect as that time passes.
    fn begin_disk_charge(&self);

    /// The disk time charged since [`Executor::begin_disk_charge`], which ends.
    fn take_disk_charge(&self) -> Duration;

    /// The running node is at a named crash point. `Err` is what the code must pass on as if the disk had
    /// said it: an injected error, or the node is dead already and nothing that it does has an effect.
    fn crash_point(&self, name: &'static str) -> io::Result<()>;

    /// The running node does something rare that is worth counting.
    fn mark(&self, _name: &'static str) {}

    /// The running node begins something that lasts, and during which faults are worth having.
    fn span_began(&self, _name: &'static str) {}

    /// It has ended, or the node died in the middle of it.
    fn span_ended(&self, _name: &'static str) {}
}

thread_local! {
    /// Whether `EXECUTOR` holds one: kept apart, since a flag without a destructor is one plain read.
    static INSTALLED: Cell<bool> = const { Cell::new(false) };
    static EXECUTOR: RefCell<Option<Rc<dyn Executor>>> = const { RefCell::new(None) };
}

/// The executor of this thread; `None` means tokio.
#[inline]
pub(crate) fn current() -> Option<Rc<dyn Executor>> {
    if INSTALLED.get() { installed() } else { None }
}

#[cold]
fn installed() -> Option<Rc<dyn Executor>> {
    EXECUTOR.try_with(|e| e.borrow().clone()).ok().flatten()
}

/// Keeps an executor installed in this thread until dropped; the one before it then returns.
#[must_use = "the executor is removed when the guard is dropped"]
pub struct Entered {
    before: Option<Rc<dyn Executor>>,
    /// The hook is the thread's: the guard must not leave it.
    _thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for Entered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}

/// Installs an executor in this thread. Guards are dropped in the reverse order of their making.
pub fn enter(executor: Rc<dyn Executor>) -> Entered {
    INSTALLED.set(true);
    Entered {
        before: EXECUTOR.replace(Some(executor)),
        _thread: PhantomData,
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        // The thread may be ending, its locals gone: then there is nothing to restore.
        let _ = INSTALLED.try_with(|i| i.set(before.is_some()));
        let _ = EXECUTOR.try_with(|e| e.replace(before));
    }
}

/// A named step at which a simulated node may crash or suffer an injected error.
///
/// Stands between two steps whose order durability depends on. Without a simulator it is one read of a
/// thread-local flag and answers `Ok`. An error is to be handled as an error of the disk.
#[inline]
pub fn crash_point(name: &'static str) -> io::Result<()> {
    match current() {
        None => Ok(()),
        Some(executor) => executor.crash_point(name),
    }
}

/// Counts a rare path. Without a simulator it is one read of a thread-local flag.
///
/// What no simulated run has passed was not tested: a campaign tells which marks stayed at zero.
#[inline]
pub fn mark(name: &'static str) {
    if let Some(executor) = current() {
        executor.mark(name);
    }
}

/// Says that the running node is in the middle of something, until dropped: see [`span`].
#[derive(Debug)]
#[must_use = "the span ends when it is dropped"]
pub struct Span {
    name: &'static str,
}

/// Begins something that lasts (a snapshot on its way, a truncation), so that a simulator can aim faults at it
/// and count those that met it. Without a simulator it is one read of a thread-local flag, and one at its end.
#[inline]
pub fn span(name: &'static str) -> Span {
    if let Some(executor) = current() {
        executor.span_began(name);
    }
    Span { name }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(executor) = current() {
            executor.span_ended(self.name);
        }
    }
}

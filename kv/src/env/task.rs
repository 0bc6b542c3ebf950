//! Tasks, and work that blocks.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Either;
use tokio::sync::oneshot;

use super::executor::{TaskId, current};
use super::time::sleep;

/// Starts a task. `name` appears in traces of the simulator.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Some(executor) = current() else {
        return JoinHandle(Inner::Tokio(tokio::spawn(future)));
    };
    let (tx, rx) = oneshot::channel();
    let task = async move {
        let result = catching(name, future).await.map_err(JoinError::Panicked);
        // A dropped handle leaves the task running; nobody is there to be told.
        let _ = tx.send(result);
    };
    let task = executor.spawn(name, Box::pin(task));
    JoinHandle(Inner::Simulated { task, rx })
}

/// Starts a task where there is something that runs it, and drops it otherwise: for what is done at a value's end, which
/// may come outside of any runtime.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn try_spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
    if current().is_some() || tokio::runtime::Handle::try_current().is_ok() {
        drop(spawn(name, future));
    }
}

/// Runs a future to its end. A panic in it is told to the simulator, and is an error with its message.
pub async fn catching<F: Future>(name: &'static str, future: F) -> Result<F::Output, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| {
        let message = panic_message(payload.as_ref());
        if let Some(executor) = current() {
            executor.task_panicked(name, &message);
        }
        message
    })
}

/// Runs `work`, which may block, beside the tasks: on a thread of tokio's pool; in the simulator at once, its
/// disk time passing before the answer. It is not stopped when the answer is no longer waited for.
///
/// # Errors
///
/// When `work` panicked, or the runtime shut down before it began.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn spawn_blocking<F, T>(work: F) -> impl Future<Output = io::Result<T>> + Send
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match current() {
        Some(_) => Either::Left(charged(work).map(Ok)),
        None => Either::Right(tokio::task::spawn_blocking(work).map(|r| r.map_err(io::Error::other))),
    }
}

/// Lets others run now and then: for what may be called again and again without ever having to wait, and would keep the
/// thread to itself then. In the simulator always. Cancel safe.
pub fn give_way() -> GiveWay {
    GiveWay { yielded: false }
}

/// Lets others run once; see [`give_way`].
#[derive(Debug)]
#[must_use = "nobody runs before it is awaited"]
pub struct GiveWay {
    yielded: bool,
}

impl Future for GiveWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if current().is_none() {
            return tokio::task::coop::poll_proceed(context).map(|budget| budget.made_progress());
        }
        poll_yield(&mut self.yielded, context)
    }
}

/// Lets the other tasks that can run do so once.
pub(super) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| poll_yield(&mut yielded, context)).await;
}

fn poll_yield(yielded: &mut bool, context: &mut Context<'_>) -> Poll<()> {
    if std::mem::replace(yielded, true) {
        return Poll::Ready(());
    }
    context.waker().wake_by_ref();
    Poll::Pending
}

/// Does `work` at once and answers when the simulated disk's time for it has passed.
pub(super) fn charged<T>(work: impl FnOnce() -> T) -> impl Future<Output = T> {
    let executor = current();
    if let Some(executor) = &executor {
        executor.begin_disk_charge();
    }
    let answer = work();
    let charge = executor.map_or(Duration::ZERO, |executor| executor.take_disk_charge());
    async move {
        if !charge.is_zero() {
            sleep(charge).await;
        }
        answer
    }
}

/// A running task. Dropping the handle leaves the task running; awaiting it gives the task's output.
#[derive(Debug)]
pub struct JoinHandle<T>(Inner<T>);

#[derive(Debug)]
enum Inner<T> {
    Tokio(tokio::task::JoinHandle<T>),
    Simulated {
        task: TaskId,
        rx: oneshot::Receiver<Result<T, JoinError>>,
    },
}

impl<T> JoinHandle<T> {
    /// Drops the task at its next await; it may have ended before.
    pub fn abort(&self) {
        match &self.0 {
            Inner::Tokio(handle) => handle.abort(),
            Inner::Simulated { task, .. } => {
                if let Some(executor) = current() {
                    executor.abort(*task);
                }
            }
        }
    }

    /// Whether the task has ended or was dropped.
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Inner::Tokio(handle) => handle.is_finished(),
            Inner::Simulated { task, .. } => current().is_none_or(|executor| !executor.is_running(*task)),
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Tokio(handle) => handle.poll_unpin(cx).map_err(JoinError::from),
            Inner::Simulated { rx, .. } => rx
                .poll_unpin(cx)
                .map(|told| told.unwrap_or(Err(JoinError::Cancelled))),
        }
    }
}

/// Why a task has no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It was aborted, or its runtime ended.
    #[error("the task was cancelled")]
    Cancelled,
    /// It panicked, with this message.
    #[error("the task panicked: {0}")]
    Panicked(String),
}

impl JoinError {
    /// Whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self, JoinError::Panicked(_))
    }

    /// Whether the task was aborted, or its runtime ended.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, JoinError::Cancelled)
    }
}

impl From<tokio::task::JoinError> for JoinError {
    fn from(error: tokio::task::JoinError) -> Self {
        match error.try_into_panic() {
            Ok(payload) => JoinError::Panicked(panic_message(payload.as_ref())),
            Err(_) => JoinError::Cancelled,
        }
    }
}

/// What a panic said.
pub fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_reaches_the_join_handle_with_its_message() {
        let error = spawn("panics", async { panic!("the reason") }).await.unwrap_err();
        assert_eq!(error, JoinError::Panicked("the reason".to_owned()));
    }

    #[tokio::test]
    async fn an_aborted_task_is_cancelled() {
        let task = spawn("waits", std::future::pending::<()>());
        task.abort();
        assert_eq!(task.await, Err(JoinError::Cancelled));
    }

    #[tokio::test]
    async fn blocking_work_answers_and_its_panic_is_an_error() {
        assert_eq!(spawn_blocking(|| 7).await.unwrap(), 7);
        assert!(spawn_blocking(|| panic!("the reason")).await.is_err());
    }
}

//! Panics of tasks that somebody else starts.
//!
//! openraft starts tasks of its own, which call our code, and looks after few of them: one that replicates to a peer and
//! panics is gone, and nobody notices. Whatever a watched future has openraft start is watched too.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::task::panic_message;

/// Is told the name of the task and the message of the panic.
#[derive(Clone)]
pub struct OnPanic(Arc<dyn Fn(&'static str, String) + Send + Sync>);

impl fmt::Debug for OnPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnPanic").finish_non_exhaustive()
    }
}

impl OnPanic {
    /// Calls this.
    pub fn new(tell: impl Fn(&'static str, String) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

thread_local! {
    /// Of the future that is being polled.
    static WATCH: RefCell<Option<OnPanic>> = const { RefCell::new(None) };
}

/// A future whose panics somebody is told of, and those of whatever tasks openraft starts in it. They go on as panics.
#[derive(Debug)]
pub struct Watched<F> {
    name: &'static str,
    on_panic: Option<OnPanic>,
    future: Pin<Box<F>>,
}

/// Has the panics of a future told.
pub fn watched<F: Future>(name: &'static str, on_panic: OnPanic, future: F) -> Watched<F> {
    Watched {
        name,
        on_panic: Some(on_panic),
        future: Box::pin(future),
    }
}

/// The same to whom the one is told that is being polled, if anybody.
pub(super) fn inherit<F: Future>(name: &'static str, future: F) -> Watched<F> {
    Watched {
        name,
        on_panic: WATCH.with_borrow(Clone::clone),
        future: Box::pin(future),
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(on_panic) = self.on_panic.clone() else {
            return self.future.as_mut().poll(context);
        };
        let outer = WATCH.replace(Some(on_panic.clone()));
        let polled = catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(context)));
        WATCH.set(outer);
        polled.unwrap_or_else(|panicked| {
            (on_panic.0)(self.name, panic_message(panicked.as_ref()));
            resume_unwind(panicked)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use openraft_rt::AsyncRuntime as _;

    use super::super::Runtime;
    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_task_that_a_watched_ones_task_started_is_told() {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let tell = Arc::clone(&told);
        let on_panic = OnPanic::new(move |_, message| tell.lock().unwrap().push(message));
        let started = async {
            let outer = Runtime::spawn(async { Runtime::spawn(async { panic!("the reason") }).await });
            outer.await.unwrap()
        };
        let ended = watched("test", on_panic, started).await;
        assert!(ended.unwrap_err().is_panic());
        assert_eq!(*told.lock().unwrap(), ["the reason"]);
        // Nobody is told of one that was not started there.
        Runtime::spawn(async { panic!("another") }).await.unwrap_err();
        assert_eq!(told.lock().unwrap().len(), 1);
    }
}

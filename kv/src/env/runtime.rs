//! The runtime that openraft runs on: the functions of this module's parent, under openraft's names.
//!
//! Its bounded channels, oneshots and mutexes are tokio's types, which are plain data structures that run
//! under any executor; its watch channel is ours, since tokio's draws at random whom it wakes first.

use std::future::Future;
use std::io;
use std::panic::Location;
use std::pin::pin;
use std::time::Duration;

use openraft_rt::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};

use super::executor::current;
use super::instant::Instant;
use super::random::ThreadRng;
use super::task::{JoinError, JoinHandle};
use super::time::{Elapsed, Sleep, Timeout};
use super::watch::Watch;

/// Tokio's runtime, or the simulator's where one is installed.
///
/// openraft never makes one: it calls the functions. A value serves its conformance suite alone.
#[derive(Debug)]
pub struct Runtime {
    /// `None` inside a simulation.
    tokio: Option<tokio::runtime::Runtime>,
}

impl AsyncRuntime for Runtime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = ThreadRng;
    type Mpsc = TokioMpsc;
    type Watch = Watch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    #[track_caller]
    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        // openraft's tasks have no names; where they were started tells them apart in a trace.
        let file: &'static str = Location::caller().file();
        let name = file.rsplit_once("/src/").map_or(file, |(_, module)| module);
        super::spawn(name, super::watched::inherit(name, future))
    }

    fn sleep(duration: Duration) -> Sleep {
        super::sleep(duration)
    }

    fn sleep_until(deadline: Instant) -> Sleep {
        super::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Timeout<F> {
        super::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Instant, future: F) -> Timeout<F> {
        super::timeout_at(deadline, future)
    }

    fn is_panic(error: &JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> ThreadRng {
        super::random::thread_rng()
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        super::spawn_blocking(work)
    }

    fn new(threads: usize) -> Self {
        let tokio = current().is_none().then(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build()
                .unwrap_or_else(|e| panic!("the operating system refused threads for a runtime: {e}"))
        });
        Runtime { tokio }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        match (&self.tokio, current()) {
            (Some(tokio), _) => tokio.block_on(future),
            (None, Some(executor)) => {
                let mut output = None;
                executor.block_on(pin!(async { output = Some(future.await) }));
                let Some(output) = output else {
                    panic!("the simulation ended before the future that it was to run");
                };
                output
            }
            (None, None) => panic!("this runtime was made inside a simulation and is used outside of it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_tokio_it_passes_openrafts_conformance_suite() {
        openraft_rt::testing::Suite::<Runtime>::test_all();
    }
}

//! Time, tasks and randomness of the process, by the runtime that runs it.
//!
//! The functions are ambient, as tokio's own are: a task inherits the runtime that polls it.

use std::future::Future;
use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::LogTime;

/// The runtime that openraft runs on.
pub type Runtime = openraft_rt_tokio::TokioRuntime;

/// A moment of the monotonic clock, in nanoseconds since the process began. Never stored, never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(Duration);

impl Instant {
    /// The time from `earlier` to this moment; zero when `earlier` is the later one.
    pub fn since(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from this moment until now.
    pub fn elapsed(self) -> Duration {
        now().since(self)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(rhs))
    }
}

/// A deadline passed before the future was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

/// A running task. Dropping the handle leaves the task running.
pub type JoinHandle<T> = tokio::task::JoinHandle<T>;

/// The present moment of the monotonic clock.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn now() -> Instant {
    static ORIGIN: OnceLock<tokio::time::Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(tokio::time::Instant::now);
    Instant(tokio::time::Instant::now().saturating_duration_since(origin))
}

/// The wall clock, for stamping proposals and for people: milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn wall_clock() -> LogTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Waits for `duration`. Cancel safe.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Waits until `deadline`. Cancel safe.
pub async fn sleep_until(deadline: Instant) {
    sleep(deadline.since(now())).await;
}

/// Runs `future` for at most `duration`, then drops it.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(duration, future).await.map_err(|_| Elapsed)
}

/// Starts a task. `name` appears in traces of the simulator and in panics.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let _ = name;
    tokio::spawn(future)
}

/// A random number, for jitter and for ids that are made before a proposal.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn random_u64() -> u64 {
    rand::random()
}

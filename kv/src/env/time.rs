//! Moments, sleeps and timeouts, by the clock of whoever runs the task.
//!
//! Always: a moment says something only inside the process (or the simulation) that made it; a deadline
//! further away than the clock reaches means never.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pin_project_lite::pin_project;

use super::executor::{TimerId, current};
use super::instant::{Instant, nanos, origin};
use crate::model::LogTime;

/// The present moment of the monotonic clock.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn now() -> Instant {
    match current() {
        Some(executor) => executor.now(),
        None => Instant(nanos(
            tokio::time::Instant::now().saturating_duration_since(origin()),
        )),
    }
}

impl Instant {
    /// The time from this moment until now.
    pub fn elapsed(self) -> Duration {
        now().since(self)
    }
}

impl openraft_rt::Instant for Instant {
    fn now() -> Self {
        now()
    }
}

/// The wall clock, for stamping proposals and for people: milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn wall_clock() -> LogTime {
    match current() {
        Some(executor) => executor.wall_clock(),
        None => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        }
    }
}

/// Waits for `duration`, from this call on. Cancel safe.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn sleep(duration: Duration) -> Sleep {
    let inner = match current() {
        Some(executor) => SleepInner::Simulated {
            timer: Timer::new(executor.now() + duration),
        },
        None => SleepInner::Tokio {
            sleep: tokio::time::sleep(duration),
        },
    };
    Sleep { inner }
}

/// Waits until `deadline`. Cancel safe.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn sleep_until(deadline: Instant) -> Sleep {
    let inner = match current() {
        Some(_) => SleepInner::Simulated {
            timer: Timer::new(deadline),
        },
        None => SleepInner::Tokio {
            sleep: tokio::time::sleep_until(deadline.to_tokio()),
        },
    };
    Sleep { inner }
}

/// Runs `future` for at most `duration`, from this call on, then drops it.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    let inner = match current() {
        Some(executor) => TimeoutInner::Simulated {
            future,
            timer: Timer::new(executor.now() + duration),
        },
        None => TimeoutInner::Tokio {
            timeout: tokio::time::timeout(duration, future),
        },
    };
    Timeout { inner }
}

/// Runs `future` until `deadline` at most, then drops it.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    let inner = match current() {
        Some(_) => TimeoutInner::Simulated {
            future,
            timer: Timer::new(deadline),
        },
        None => TimeoutInner::Tokio {
            timeout: tokio::time::timeout_at(deadline.to_tokio(), future),
        },
    };
    Timeout { inner }
}

/// A deadline passed before the future was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

pin_project! {
    /// Waits for a moment; made by [`sleep`] and [`sleep_until`].
    #[must_use = "futures do nothing unless awaited"]
    #[derive(Debug)]
    pub struct Sleep {
        #[pin]
        inner: SleepInner,
    }
}

pin_project! {
    #[project = SleepProjection]
    #[derive(Debug)]
    enum SleepInner {
        Tokio { #[pin] sleep: tokio::time::Sleep },
        Simulated { timer: Timer },
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project().inner.project() {
            SleepProjection::Tokio { sleep } => sleep.poll(cx),
            SleepProjection::Simulated { timer } => timer.poll(cx),
        }
    }
}

pin_project! {
    /// Runs a future until a deadline; made by [`timeout`] and [`timeout_at`].
    #[must_use = "futures do nothing unless awaited"]
    #[derive(Debug)]
    pub struct Timeout<F> {
        #[pin]
        inner: TimeoutInner<F>,
    }
}

pin_project! {
    #[project = TimeoutProjection]
    #[derive(Debug)]
    enum TimeoutInner<F> {
        Tokio { #[pin] timeout: tokio::time::Timeout<F> },
        Simulated { #[pin] future: F, timer: Timer },
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.project() {
            TimeoutProjection::Tokio { timeout } => timeout.poll(cx).map_err(|_| Elapsed),
            TimeoutProjection::Simulated { future, timer } => {
                if let Poll::Ready(output) = future.poll(cx) {
                    return Poll::Ready(Ok(output));
                }
                ready!(timer.poll(cx));
                Poll::Ready(Err(Elapsed))
            }
        }
    }
}

/// A deadline by the simulator's clock.
#[derive(Debug)]
struct Timer {
    deadline: Instant,
    registered: Option<TimerId>,
}

impl Timer {
    fn new(deadline: Instant) -> Self {
        Timer {
            deadline,
            registered: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(executor) = current() else {
            panic!("a simulated timer was polled outside of its simulation");
        };
        if executor.now() >= self.deadline {
            if let Some(timer) = self.registered.take() {
                executor.cancel_timer(timer);
            }
            return Poll::Ready(());
        }
        self.registered = Some(executor.set_timer(self.registered, self.deadline, cx.waker()));
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let (Some(timer), Some(executor)) = (self.registered, current()) {
            executor.cancel_timer(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_before_the_start_is_a_moment_too() {
        let now = now();
        let hour = Duration::from_secs(3600);
        assert_eq!(now - (now - hour), hour);
    }

    #[test]
    fn differences_and_sums_saturate() {
        let early = Instant::from_nanos(5);
        let late = Instant::from_nanos(9);
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early - Duration::from_nanos(6), Instant::from_nanos(0));
        assert_eq!((late + Duration::MAX).as_nanos(), u64::MAX);
    }

    #[tokio::test]
    async fn sleeps_and_timeouts_last_as_long_as_asked() {
        let step = Duration::from_millis(5);
        let start = now();
        sleep(step).await;
        assert!(start.elapsed() >= step);
        sleep_until(start + step * 2).await;
        assert!(start.elapsed() >= step * 2);
        let never = std::future::pending::<()>();
        assert_eq!(timeout(step, never).await, Err(Elapsed));
        assert!(start.elapsed() >= step * 3);
        assert_eq!(timeout_at(start + Duration::MAX, async { 7 }).await, Ok(7));
    }
}

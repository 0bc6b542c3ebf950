//! The time and the chance that a [`MemoryNetwork`](super::MemoryNetwork) runs on.
//!
//! Always: nothing else in `memory` knows a clock, a timer, a task or a random source, so that a simulator
//! that implements [`Clock`] owns every delay and every choice.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;

/// What the network in memory asks of its runtime.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Ends when `duration` has passed. Dropping it early is legal.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// The next random number. Under a simulator it comes from the seed.
    fn random(&self) -> u64;
}

/// tokio's clock (which a test may pause) and a reproducible sequence of random numbers.
#[derive(Debug)]
pub struct TokioClock {
    started: tokio::time::Instant,
    /// The state of SplitMix64; a plain counter, so that no order between threads matters.
    state: AtomicU64,
}

impl TokioClock {
    /// A clock at zero, with the random numbers that belong to `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            started: tokio::time::Instant::now(),
            state: AtomicU64::new(seed),
        }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn random(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014): each step is a counter, its mixture the number.
        let step = 0x9E37_79B9_7F4A_7C15_u64;
        let mut z = self.state.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

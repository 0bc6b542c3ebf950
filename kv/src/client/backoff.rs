//! Pauses between attempts: exponential, with jitter.

use std::time::Duration;

use crate::env::{self, Instant};

/// The first pause after a failed attempt; it doubles up to the second, and half of each is drawn at random.
const FIRST: Duration = Duration::from_millis(5);
const MAX: Duration = Duration::from_millis(500);
/// The longest pause after a conflict.
const CONFLICT_MAX: Duration = Duration::from_millis(40);

/// The pauses of one call.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: FIRST,
            max: MAX,
        }
    }
}

impl Backoff {
    /// Between conflicts, which are over in a moment: who waits long while others go on at once never gets a turn.
    pub(super) fn of_conflicts() -> Self {
        Self {
            max: CONFLICT_MAX,
            ..Self::default()
        }
    }

    /// Waits before the next attempt; answers false when the deadline leaves no time for one. Who was `redirected`
    /// knows whom to ask, and does so at once.
    pub(super) async fn wait(&mut self, redirected: bool, end: Instant) -> bool {
        let left = end.since(env::now());
        let half = self.next / 2;
        let jitter = half.mul_f64((env::random_u64() >> 11) as f64 / (1u64 << 53) as f64);
        // Two nodes that name each other must not be asked in a tight loop, so even a redirect waits from
        // the second time on.
        let pause = if redirected && self.next == FIRST {
            Duration::ZERO
        } else {
            half + jitter
        };
        self.next = (self.next * 2).min(self.max);
        if pause >= left || left.is_zero() {
            return false;
        }
        env::sleep(pause).await;
        true
    }
}

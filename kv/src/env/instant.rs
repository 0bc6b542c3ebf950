//! A moment of the monotonic clock.

use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::sync::OnceLock;
use std::time::Duration;

/// How far before the process's start the monotonic clock has its zero, so that "now less a lease" is a
/// moment too.
const BEFORE_START: Duration = Duration::from_secs(24 * 60 * 60);

/// A moment of the monotonic clock, in nanoseconds since some moment before the process began. Never stored,
/// never sent. Sums saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub(super) u64);

impl Instant {
    /// The moment `nanos` after the clock's zero: for an [`Executor`](super::Executor), which has the clock.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's zero: for an [`Executor`](super::Executor).
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero when `earlier` is the later one.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The same moment of tokio's clock.
    pub(super) fn to_tokio(self) -> tokio::time::Instant {
        let origin = origin();
        origin
            .checked_add(Duration::from_nanos(self.0))
            // A clock that cannot count so far: as far as tokio's own "never".
            .unwrap_or_else(|| origin + Duration::from_secs(30 * 365 * 24 * 60 * 60))
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(nanos(rhs)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(nanos(rhs)))
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, rhs: Duration) {
        *self = *self - rhs;
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

/// The zero of the monotonic clock, on tokio's. It is taken from the operating system's clock, since a paused
/// tokio clock may stand anywhere after it.
#[allow(clippy::disallowed_methods, reason = "the seam itself")]
pub(super) fn origin() -> tokio::time::Instant {
    static ORIGIN: OnceLock<tokio::time::Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| {
        let start = std::time::Instant::now();
        tokio::time::Instant::from_std(start.checked_sub(BEFORE_START).unwrap_or(start))
    })
}

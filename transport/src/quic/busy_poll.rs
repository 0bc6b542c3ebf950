//! Busy polling: a thread that received a datagram looks for the next one for a while before it sleeps.
//!
//! Where one process waits for another, most of a hop is not the network but the sleeping thread's way back onto a
//! processor. A thread that looks again instead of sleeping is there when the datagram is. It never holds a
//! processor that another thread could use: it gives way before each look, and when all processors turn out to be
//! wanted it sleeps like any other thread, which the system then wakes ahead of those that compute.
//!
//! How long to look is learnt as Linux's haltpoll governor learns it (`drivers/cpuidle/governors/haltpoll.c`): it
//! doubles when looking longer would have met the datagram, and halves when nothing came for longer than may be
//! looked. A cluster at rest, with a heartbeat now and then, hardly looks at all.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::sync::Notify;

/// The first time that is looked.
const WINDOW_FIRST: Duration = Duration::from_micros(50);

/// Giving way takes this long when another thread computes on: far more than a turn of those that only pass a
/// message on, less than what a scheduler gives at once.
const CROWDED: Duration = Duration::from_millis(1);

/// How long nobody looks after the processors were found to be wanted: at first, and at most.
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(10);

/// tokio's runtime for QUIC, where the calling runtime's thread is to look for datagrams for up to `max`; and what
/// does the looking, to be run for as long as there are sockets. Nothing looks if `max` is zero, or if the runtime
/// has several worker threads: one of them would look, and another receive.
pub(super) fn runtime(
    max: Duration,
) -> (
    Arc<dyn Runtime>,
    Option<impl Future<Output = ()> + Send + 'static>,
) {
    let workers = tokio::runtime::Handle::current().metrics().num_workers();
    if max.is_zero() || workers > 1 {
        return (Arc::new(TokioRuntime), None);
    }
    let arrivals = Arc::new(Arrivals::new());
    let look = look(Arc::clone(&arrivals), Attention::new(max));
    (Arc::new(Listening { arrivals }), Some(look))
}

/// Keeps the thread that it runs on awake while a datagram may come.
async fn look(arrivals: Arc<Arrivals>, mut attention: Attention) {
    let mut last = arrivals.last();
    loop {
        arrivals.some.notified().await;
        loop {
            let newest = arrivals.last();
            if newest != last {
                attention.came(newest.saturating_sub(last));
                last = newest;
            }
            let now = arrivals.clock();
            if !attention.looks(now, now.saturating_sub(last)) {
                break;
            }
            std::thread::yield_now();
            attention.gave_way(now, arrivals.clock());
            // Until the runtime has looked at its sockets and run whom it found work for.
            tokio::task::yield_now().await;
        }
    }
}

/// When datagrams come.
#[derive(Debug)]
struct Arrivals {
    start: Instant,
    /// In nanoseconds since the start.
    last: AtomicU64,
    some: Notify,
}

impl Arrivals {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            some: Notify::new(),
        }
    }

    fn clock(&self) -> Duration {
        self.start.elapsed()
    }

    fn note(&self) {
        let nanos = u64::try_from(self.clock().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
        self.some.notify_one();
    }

    fn last(&self) -> Duration {
        Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// Whether to look. Times are since some start.
#[derive(Debug)]
struct Attention {
    /// The longest look.
    max: Duration,
    /// How long a look is now; zero, or from [`WINDOW_FIRST`] to `max`.
    window: Duration,
    /// How long the last rest was to be, and until when nobody looks.
    rest: Duration,
    rests_until: Duration,
}

impl Attention {
    fn new(max: Duration) -> Self {
        Self {
            max,
            window: Duration::ZERO,
            rest: Duration::ZERO,
            rests_until: Duration::ZERO,
        }
    }

    /// A datagram came, so long after the one before.
    fn came(&mut self, gap: Duration) {
        if gap > self.max {
            self.window /= 2;
            if self.window < WINDOW_FIRST {
                self.window = Duration::ZERO;
            }
        } else if gap > self.window {
            self.window = (self.window * 2).max(WINDOW_FIRST).min(self.max);
        }
    }

    /// Other threads went first, from one time until another.
    fn gave_way(&mut self, from: Duration, until: Duration) {
        if until.saturating_sub(from) < CROWDED {
            return;
        }
        // Again soon after the last rest: it was too short.
        let again = from.saturating_sub(self.rests_until) < self.rest;
        self.rest = if again { self.rest * 2 } else { REST_FIRST };
        self.rest = self.rest.min(REST_MAX);
        self.rests_until = until + self.rest;
    }

    /// Whether to go on looking, when nothing has come for `idle`.
    fn looks(&self, now: Duration, idle: Duration) -> bool {
        idle < self.window && now >= self.rests_until
    }
}

/// tokio, with sockets that note when something comes.
#[derive(Debug)]
struct Listening {
    arrivals: Arc<Arrivals>,
}

impl Runtime for Listening {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Heard {
            socket: TokioRuntime.wrap_udp_socket(socket)?,
            arrivals: Arc::clone(&self.arrivals),
        }))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct Heard {
    socket: Arc<dyn AsyncUdpSocket>,
    arrivals: Arc<Arrivals>,
}

impl AsyncUdpSocket for Heard {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.socket.poll_recv(cx, bufs, meta);
        if matches!(received, Poll::Ready(Ok(_))) {
            self.arrivals.note();
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(500);
    const SHORT: Duration = Duration::from_micros(300);
    const LONG: Duration = Duration::from_millis(50);

    fn after(gaps: &[Duration]) -> Attention {
        let mut attention = Attention::new(MAX);
        for gap in gaps {
            attention.came(*gap);
        }
        attention
    }

    #[test]
    fn at_first_nothing_is_looked_for() {
        assert!(!after(&[]).looks(Duration::ZERO, Duration::ZERO));
        assert!(!after(&[LONG, LONG]).looks(LONG, Duration::ZERO));
    }

    #[test]
    fn the_look_becomes_as_long_as_what_comes_makes_worthwhile_and_no_longer_than_allowed() {
        let windows: Vec<u128> = (0..7)
            .map(|count| after(&vec![SHORT; count]).window.as_micros())
            .collect();
        assert_eq!(windows, [0, 50, 100, 200, 400, 400, 400]);
        assert_eq!(after(&[MAX; 9]).window, MAX);
    }

    #[test]
    fn what_comes_too_seldom_to_be_looked_for_ends_the_looking() {
        let mut attention = after(&[SHORT; 4]);
        let mut windows = Vec::new();
        for _ in 0..5 {
            attention.came(LONG);
            windows.push(attention.window.as_micros());
        }
        assert_eq!(windows, [200, 100, 50, 0, 0]);
    }

    #[test]
    fn a_look_ends_when_nothing_came_for_its_length() {
        let attention = after(&[SHORT; 4]);
        assert!(attention.looks(LONG, Duration::from_micros(399)));
        assert!(!attention.looks(LONG, Duration::from_micros(400)));
    }

    #[test]
    fn nobody_looks_while_other_threads_want_the_processors_and_the_rests_grow_until_they_do_not() {
        let mut attention = after(&[SHORT; 4]);
        let mut now = Duration::from_secs(1);
        attention.gave_way(now, now + CROWDED / 2);
        assert!(attention.looks(now, Duration::ZERO), "a short turn of others");

        let mut rests = Vec::new();
        for _ in 0..9 {
            let until = now + CROWDED * 4;
            attention.gave_way(now, until);
            rests.push(attention.rest.as_millis());
            now = until + attention.rest;
            assert!(!attention.looks(now - Duration::from_nanos(1), Duration::ZERO));
            assert!(attention.looks(now, Duration::ZERO));
        }
        assert_eq!(rests, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);

        now += REST_MAX;
        attention.gave_way(now, now + CROWDED);
        assert_eq!(
            attention.rest, REST_FIRST,
            "after as long without as the last rest was"
        );
    }

    #[tokio::test]
    async fn nobody_looks_unless_asked_to() {
        assert!(runtime(Duration::ZERO).1.is_none());
        assert!(runtime(MAX).1.is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_looks_on_one_thread_for_what_another_receives() {
        assert!(runtime(MAX).1.is_none());
    }
}

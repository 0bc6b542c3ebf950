//! What executor, disks and network of one simulation share: the time, the disk's charge, and the trace.
//!
//! One thread uses it; it is `Sync` only because the seams ask it of a disk and of a network.
//!
//! Always: time never goes back; each event changes the trace's hash, which two runs of one seed share.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A simulated machine: its tasks, its clocks and its disk. Host 0 is the world around them (clients, the
/// test itself), and never fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

impl HostId {
    /// The world around the machines.
    pub const OUTSIDE: HostId = HostId(0);
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("outside"),
            n => write!(f, "host {n}"),
        }
    }
}

/// Lets go of a poisoned lock: whoever panicked has been reported, and the simulation ends soon.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One simulation's time and trace.
pub struct World {
    now: AtomicU64,
    charging: AtomicBool,
    charge: AtomicU64,
    trace: Mutex<Trace>,
    timers: Mutex<Timers>,
    observer: Mutex<Option<Observer>>,
    spans: Mutex<BTreeMap<(HostId, &'static str), u32>>,
    marks: Mutex<BTreeMap<&'static str, u64>>,
}

/// Hears of each fault at the moment at which it takes effect.
type Observer = Arc<dyn Fn(HostId, Effect) + Send + Sync>;

/// A fault that takes effect, or a message that one may hold up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The process dies; the disk keeps what was written.
    Died,
    /// The power fails, with so many bytes, lengths and names lost.
    PowerLost {
        /// How many together.
        lost: u64,
    },
    /// The host dies at a crash point.
    Crashed(&'static str),
    /// A step is answered with an error.
    Failed(&'static str),
    /// A step takes longer.
    Stalled(&'static str),
    /// The code panics at a step.
    Panicked(&'static str),
    /// The disk refuses a write because it is full.
    DiskFull,
    /// The host sends a message.
    Sent {
        /// To whom.
        to: HostId,
    },
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("now", &self.now)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// Who waits for a moment of the simulation's own clock, whatever the hosts' clocks show.
#[derive(Debug, Default)]
struct Timers {
    waiting: BTreeMap<(u64, u64), Waker>,
    last: u64,
}

impl World {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(World {
            now: AtomicU64::new(0),
            charging: AtomicBool::new(false),
            charge: AtomicU64::new(0),
            trace: Mutex::default(),
            timers: Mutex::default(),
            observer: Mutex::default(),
            spans: Mutex::default(),
            marks: Mutex::default(),
        })
    }

    /// Has every fault told to `observer` from now on, in the middle of what the simulation does: it may look
    /// at this world, and at nothing that a poll may have locked.
    pub fn observe(&self, observer: impl Fn(HostId, Effect) + Send + Sync + 'static) {
        *lock(&self.observer) = Some(Arc::new(observer));
    }

    /// Lets the observer go: it may hold this world.
    pub(super) fn end_observation(&self) {
        *lock(&self.observer) = None;
    }

    pub(super) fn notice(&self, host: HostId, effect: Effect) {
        let observer = lock(&self.observer).clone();
        if let Some(observer) = observer {
            observer(host, effect);
        }
    }

    /// Does `f` without telling the observer.
    pub(super) fn unobserved(&self, f: impl FnOnce()) {
        let observer = lock(&self.observer).take();
        f();
        *lock(&self.observer) = observer;
    }

    /// Whether the work that is being done has its disk time charged.
    pub(super) fn is_charging(&self) -> bool {
        self.charging.load(Ordering::Relaxed)
    }

    pub(super) fn mark(&self, name: &'static str) {
        *lock(&self.marks).entry(name).or_default() += 1;
    }

    /// How often each rare path was passed and each span begun.
    pub fn marks(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.marks).clone()
    }

    pub(super) fn span(&self, host: HostId, name: &'static str, begins: bool) {
        let mut spans = lock(&self.spans);
        let open = spans.entry((host, name)).or_default();
        *open = if begins { *open + 1 } else { open.saturating_sub(1) };
    }

    /// Whether any host is in the middle of the span `name`.
    pub fn is_in_span(&self, name: &str) -> bool {
        let spans = lock(&self.spans);
        spans.iter().any(|((_, span), open)| *span == name && *open > 0)
    }

    /// Virtual nanoseconds since the simulation began.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(super) fn advance(&self, to: u64) {
        let before = self.now.swap(to, Ordering::Relaxed);
        assert!(before <= to, "time goes back from {before} to {to}");
    }

    /// Waits on the simulation's own clock: for what is of no host, as a message on its way.
    pub fn sleep(self: &Arc<Self>, duration: Duration) -> WorldSleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        WorldSleep {
            world: Arc::clone(self),
            deadline: self.now().saturating_add(nanos),
            number: None,
        }
    }

    /// Wakes somebody at a moment of the simulation's own clock.
    pub(super) fn wake_at(&self, at: u64, waker: Waker) {
        let mut timers = lock(&self.timers);
        timers.last += 1;
        let number = timers.last;
        timers.waiting.insert((at, number), waker);
    }

    /// When the next of these sleeps ends.
    pub(super) fn next_timer(&self) -> Option<u64> {
        lock(&self.timers).waiting.keys().next().map(|(at, _)| *at)
    }

    /// Takes one of those whose sleep is over.
    pub(super) fn take_due_timer(&self) -> Option<Waker> {
        let now = self.now();
        let mut timers = lock(&self.timers);
        let first = timers.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    pub(super) fn begin_charge(&self) {
        self.charge.store(0, Ordering::Relaxed);
        self.charging.store(true, Ordering::Relaxed);
    }

    pub(super) fn take_charge(&self) -> Duration {
        self.charging.store(false, Ordering::Relaxed);
        Duration::from_nanos(self.charge.swap(0, Ordering::Relaxed))
    }

    /// Adds to the disk time of the work that is being done. Outside of such work the disk takes no time.
    pub(super) fn charge(&self, time: Duration) {
        if self.charging.load(Ordering::Relaxed) {
            self.charge.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// When the work that is being done has come to where it is: now, and the disk time charged so far.
    pub(super) fn now_charged(&self) -> u64 {
        self.now() + self.charge.load(Ordering::Relaxed)
    }

    /// Adds an event to the trace.
    pub fn record(&self, host: HostId, event: Event) {
        lock(&self.trace).record(Entry {
            at: self.now(),
            host,
            event,
        });
    }

    /// Keeps every event from now on, not only the last few thousand.
    pub fn keep_whole_trace(&self) {
        lock(&self.trace).keep = usize::MAX;
    }

    /// The hash over every event so far.
    pub fn hash(&self) -> u64 {
        lock(&self.trace).hash
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        lock(&self.trace).count
    }

    /// The remarks among the last events, with the time of each.
    pub fn marks_told(&self) -> Vec<(Duration, String)> {
        let trace = lock(&self.trace);
        let marks = trace.entries.iter().filter_map(|(entry, _)| match &entry.event {
            Event::Mark(what) => {
                let at = Duration::from_nanos(entry.at);
                Some((at, format!("{}: {what}", entry.host)))
            }
            _ => None,
        });
        marks.collect()
    }

    /// The last events, a line each, with the hash after each.
    pub fn trace(&self) -> Vec<String> {
        let trace = lock(&self.trace);
        let first = trace.count - trace.entries.len() as u64;
        let lines = trace.entries.iter().enumerate();
        lines
            .map(|(i, (entry, hash))| format!("{} {entry} {hash:016x}", first + i as u64))
            .collect()
    }
}

/// Made by [`World::sleep`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct WorldSleep {
    world: Arc<World>,
    deadline: u64,
    number: Option<u64>,
}

impl Future for WorldSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.now() >= self.deadline {
            return Poll::Ready(());
        }
        let (number, before) = {
            let mut timers = lock(&self.world.timers);
            let number = self.number.unwrap_or(timers.last + 1);
            timers.last = timers.last.max(number);
            (
                number,
                timers.waiting.insert((self.deadline, number), cx.waker().clone()),
            )
        };
        drop(before);
        self.number = Some(number);
        Poll::Pending
    }
}

impl Drop for WorldSleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let waker = lock(&self.world.timers).waiting.remove(&(self.deadline, number));
            drop(waker);
        }
    }
}

/// What happened in a simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A task was polled.
    Poll {
        /// Its number.
        task: u64,
        /// Its name.
        name: &'static str,
    },
    /// A file or a name changed, or was made durable.
    Disk {
        /// What was done.
        op: &'static str,
        /// To what.
        path: Arc<str>,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The hash of the bytes.
        data: u64,
    },
    /// A message was sent, delivered or lost.
    Message {
        /// Which of these.
        what: &'static str,
        /// To whom.
        to: HostId,
        /// How many bytes.
        len: u64,
        /// The hash of the bytes.
        data: u64,
    },
    /// A fault, a crash point, or whatever else the simulation finds worth telling.
    Mark(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Poll { task, name } => write!(f, "poll {task} {name}"),
            Event::Disk {
                op,
                path,
                offset,
                len,
                data,
            } => write!(f, "disk {op} {path} {offset}+{len} {data:016x}"),
            Event::Message { what, to, len, data } => write!(f, "message {what} {to} {len} {data:016x}"),
            Event::Mark(what) => f.write_str(what),
        }
    }
}

struct Entry {
    at: u64,
    host: HostId,
    event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.at / 1000;
        write!(
            f,
            "{:>5}.{:06} {}: {}",
            micros / 1_000_000,
            micros % 1_000_000,
            self.host,
            self.event
        )
    }
}

/// The events' hash, and the last of the events.
struct Trace {
    hash: u64,
    count: u64,
    entries: VecDeque<(Entry, u64)>,
    keep: usize,
}

impl Default for Trace {
    fn default() -> Self {
        Trace {
            hash: 0,
            count: 0,
            entries: VecDeque::new(),
            keep: 4000,
        }
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("count", &self.count)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

impl Trace {
    fn record(&mut self, entry: Entry) {
        let (kind, a, b, c, d) = match &entry.event {
            Event::Poll { task, .. } => (0, *task, 0, 0, 0),
            Event::Disk {
                op,
                path,
                offset,
                len,
                data,
            } => {
                let name = xxh3_64_with_seed(path.as_bytes(), op.len() as u64);
                (1, name, *offset, *len, *data)
            }
            Event::Message { what, to, len, data } => (2, u64::from(to.0), what.len() as u64, *len, *data),
            Event::Mark(what) => (3, xxh3_64_with_seed(what.as_bytes(), 0), 0, 0, 0),
        };
        let mut bytes = [0_u8; 56];
        for (chunk, word) in
            bytes
                .chunks_exact_mut(8)
                .zip([kind, entry.at, u64::from(entry.host.0), a, b, c, d])
        {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        self.hash = xxh3_64_with_seed(&bytes, self.hash);
        self.count += 1;
        if self.entries.len() >= self.keep {
            self.entries.pop_front();
        }
        self.entries.push_back((entry, self.hash));
    }
}

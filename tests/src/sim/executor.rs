//! Runs every task of a simulation in one thread, in virtual time, in an order that the seed draws.
//!
//! Always: a task is polled only while its host lives and is not paused; time moves only when no task can
//! run; nothing that the simulation does depends on addresses, threads or the real clock. No future is
//! dropped and no waker called while the state is borrowed, since both may come back in.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use quorate_kv::env::{self, BoxTask, Instant, TaskId, TimerId};
use quorate_kv::model::LogTime;

use super::clock::HostClock;
use super::crash::{Armed, INJECTED_PANIC, Outcome};
use super::disk::{PowerLoss, SimDisk};
use super::rng::Rng;
use super::world::{Effect, Event, HostId, World, lock};

type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// The task that [`SimRt::run`] was called with.
const MAIN: u64 = 0;

/// So many polls without time moving are a livelock.
const POLLS_AT_ONE_MOMENT_MAX: u64 = 1_000_000;

/// Which of the tasks that can run runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// The one that waits longest, as in tokio.
    Fifo,
    /// Any.
    Random,
    /// The one of the highest priority; priorities are drawn, and drawn anew now and then, so that some
    /// tasks stay far behind the others.
    Priority,
}

/// Why a simulation cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// Nothing can run and no timer is set.
    #[error("deadlock: nothing can run and nothing will; waiting: {waiting}")]
    Deadlock {
        /// The tasks there are.
        waiting: String,
    },
    /// Tasks run and time stands still.
    #[error("livelock: {polls} polls at {at:?}, the last of {last}")]
    Livelock {
        /// How many polls.
        polls: u64,
        /// When.
        at: Duration,
        /// Which task was polled last.
        last: String,
    },
    /// A rule was broken.
    #[error("{0}")]
    Violation(Violation),
}

/// A rule that a simulation saw broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at:?} {host}: {what}")]
pub struct Violation {
    /// When, since the simulation began.
    pub at: Duration,
    /// Where.
    pub host: HostId,
    /// Which, with what was expected and what was seen.
    pub what: String,
}

/// The ids of the tasks that can run, oldest first.
type ReadyQueue = Arc<Mutex<VecDeque<u64>>>;

struct TaskWaker {
    task: u64,
    queued: AtomicBool,
    ready: ReadyQueue,
    /// Weak: the world holds wakers.
    world: Weak<World>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // What an owner causes in the middle of its work happens when the work has come so far, not at its beginning:
        // else a crash in between would leave the effect without its cause.
        if let Some(world) = self.world.upgrade()
            && world.is_charging()
            && world.now_charged() > world.now()
        {
            world.wake_at(world.now_charged(), Waker::from(Arc::clone(self)));
            return;
        }
        if !self.queued.swap(true, Ordering::Relaxed) {
            lock(&self.ready).push_back(self.task);
        }
    }
}

struct Task {
    host: HostId,
    name: &'static str,
    /// `None` while it is polled.
    future: Option<LocalTask>,
    waker: Arc<TaskWaker>,
    priority: u64,
}

struct Timer {
    host: HostId,
    deadline: Instant,
    waker: Waker,
}

pub(super) struct Host {
    pub(super) alive: bool,
    pub(super) paused: bool,
    pub(super) clock: HostClock,
    pub(super) disk: SimDisk,
    pub(super) armed: Vec<Armed>,
    /// It was made to panic since it was switched on: other panics may follow from that, as of a lock that is poisoned.
    pub(super) made_to_panic: bool,
    /// Called when it dies, before its tasks are dropped.
    pub(super) at_death: Option<Rc<dyn Fn(PowerLoss)>>,
    /// Tasks that could run, were the host not paused.
    pub(super) parked: Vec<u64>,
    random: Rng,
}

struct State {
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    timers: BTreeMap<(u64, u64), Timer>,
    /// When each timer is due, on the simulation's clock.
    due: BTreeMap<u64, u64>,
    next_timer: u64,
    hosts: BTreeMap<HostId, Host>,
    /// The task that is being polled.
    running: Option<(u64, HostId)>,
    schedule: Schedule,
    random: Rng,
    violations: Vec<Violation>,
    polls: u64,
    crash_points: BTreeMap<&'static str, u64>,
}

/// The executor of one simulation.
pub(super) struct SimRt {
    pub(super) world: Arc<World>,
    ready: ReadyQueue,
    seed: Rng,
    state: RefCell<State>,
}

impl SimRt {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        let seed = Rng::new(seed);
        let mut random = seed.fork("schedule");
        let schedule = *random.pick(&[
            Schedule::Fifo,
            Schedule::Random,
            Schedule::Random,
            Schedule::Priority,
        ]);
        let rt = Rc::new(SimRt {
            world: World::new(),
            ready: ReadyQueue::default(),
            seed,
            state: RefCell::new(State {
                tasks: BTreeMap::new(),
                next_task: MAIN + 1,
                timers: BTreeMap::new(),
                due: BTreeMap::new(),
                next_timer: 1,
                hosts: BTreeMap::new(),
                running: None,
                schedule,
                random,
                violations: Vec::new(),
                polls: 0,
                crash_points: BTreeMap::new(),
            }),
        });
        rt.add_host(HostId::OUTSIDE);
        rt
    }

    /// Makes a machine, switched on, if it is not there yet.
    pub(super) fn add_host(&self, id: HostId) {
        let mut state = self.state.borrow_mut();
        state.hosts.entry(id).or_insert_with(|| Host {
            alive: true,
            paused: false,
            clock: HostClock::default(),
            disk: SimDisk::new(
                id,
                Arc::clone(&self.world),
                self.seed.fork(&format!("disk of {id}")),
            ),
            armed: Vec::new(),
            made_to_panic: false,
            at_death: None,
            parked: Vec::new(),
            random: self.seed.fork(&format!("random numbers of {id}")),
        });
    }

    pub(super) fn with_host<T>(&self, id: HostId, f: impl FnOnce(&mut Host) -> T) -> T {
        let mut state = self.state.borrow_mut();
        match state.hosts.get_mut(&id) {
            Some(host) => f(host),
            None => panic!("there is no {id} in this simulation"),
        }
    }

    pub(super) fn set_schedule(&self, schedule: Schedule) {
        self.state.borrow_mut().schedule = schedule;
    }

    pub(super) fn polls(&self) -> u64 {
        self.state.borrow().polls
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        self.state.borrow().violations.clone()
    }

    pub(super) fn crash_points(&self) -> BTreeMap<&'static str, u64> {
        self.state.borrow().crash_points.clone()
    }

    pub(super) fn violation(&self, host: HostId, what: String) {
        let at = Duration::from_nanos(self.world.now());
        self.world.record(host, Event::Mark(format!("VIOLATION {what}")));
        self.state
            .borrow_mut()
            .violations
            .push(Violation { at, host, what });
    }

    /// The host of the task that is being polled.
    fn here(&self) -> HostId {
        self.state
            .borrow()
            .running
            .map_or(HostId::OUTSIDE, |(_, host)| host)
    }

    pub(super) fn spawn_on(&self, host: HostId, name: &'static str, future: LocalTask) -> TaskId {
        let mut state = self.state.borrow_mut();
        let task = state.next_task;
        state.next_task += 1;
        if !state.hosts.get(&host).is_some_and(|h| h.alive) {
            // The last words of a task that dies with its host.
            drop(state);
            drop(future);
            return TaskId(task);
        }
        let waker = Arc::new(TaskWaker {
            task,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
            world: Arc::downgrade(&self.world),
        });
        let priority = state.random.next_u64();
        state.tasks.insert(
            task,
            Task {
                host,
                name,
                future: Some(future),
                waker: Arc::clone(&waker),
                priority,
            },
        );
        waker.wake();
        TaskId(task)
    }

    /// Switches a host off: its disk loses what `power` says, all its tasks are dropped.
    pub(super) fn switch_off(&self, host: HostId, power: PowerLoss) {
        assert_ne!(host, HostId::OUTSIDE, "the world does not fail");
        // Whoever observes learns of it while the host still stands as it stood.
        let (was_alive, disk) = self.with_host(host, |h| (h.alive, h.disk.clone()));
        let lost = disk.crash(power);
        if was_alive {
            let effect = match power {
                PowerLoss::ProcessOnly => Effect::Died,
                _ => Effect::PowerLost { lost },
            };
            self.world.notice(host, effect);
        }
        let last_wish = self.with_host(host, |h| h.at_death.clone());
        if let Some(last_wish) = last_wish {
            last_wish(power);
        }
        let was_alive = self.with_host(host, |h| {
            h.parked.clear();
            h.paused = false;
            std::mem::replace(&mut h.alive, false)
        });
        if was_alive {
            self.world
                .record(host, Event::Mark(format!("switched off: {power:?}")));
        }
        if self.here() != host || self.state.borrow().running.is_none() {
            self.drop_tasks(host);
        }
        // Else the present poll ends first: see `poll`.
    }

    /// Unwinds as a panic does, but tells nobody on standard error: it is meant.
    fn panic_at(&self, name: &'static str, host: HostId) -> ! {
        self.world
            .record(host, Event::Mark(format!("{name}: an injected panic")));
        self.with_host(host, |h| h.made_to_panic = true);
        self.world.notice(host, Effect::Panicked(name));
        // Work that took the disk's time has ended.
        self.world.take_charge();
        resume_unwind(Box::new(format!("{INJECTED_PANIC}{name}")))
    }

    fn crash_at(&self, name: &'static str, host: HostId, power: PowerLoss) {
        self.world.record(host, Event::Mark(format!("{name}: crash")));
        self.world.notice(host, Effect::Crashed(name));
        self.switch_off(host, power);
    }

    fn drop_tasks(&self, host: HostId) {
        // One at a time: a destructor may wake, spawn or abort others.
        loop {
            let (task, before) = {
                let mut state = self.state.borrow_mut();
                let running = state.running.map(|(id, _)| id);
                let found = state
                    .tasks
                    .iter()
                    .find(|(id, t)| t.host == host && Some(**id) != running)
                    .map(|(id, _)| *id);
                let Some(id) = found else { return };
                let task = state.tasks.remove(&id);
                (task, state.running.replace((id, host)))
            };
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(task)));
            self.state.borrow_mut().running = before;
            // A lock that a panic poisoned makes destructors panic too.
            if let Err(panicked) = dropped
                && !self.with_host(host, |h| h.made_to_panic)
            {
                resume_unwind(panicked);
            }
        }
    }

    pub(super) fn drop_all_tasks(&self) {
        let hosts: Vec<_> = self.state.borrow().hosts.keys().copied().collect();
        for host in &hosts {
            // Nothing starts anew while the last ones go.
            self.with_host(*host, |h| h.alive = false);
        }
        for host in hosts {
            self.drop_tasks(host);
        }
    }

    /// Does `f` as if a task of `host` did it.
    pub(super) fn acting_as<T>(&self, host: HostId, f: impl FnOnce() -> T) -> T {
        const NO_TASK: u64 = u64::MAX;
        let before = self.state.borrow_mut().running.replace((NO_TASK, host));
        let answer = f();
        self.state.borrow_mut().running = before;
        answer
    }

    pub(super) fn resume(&self, host: HostId) {
        let parked = self.with_host(host, |h| {
            h.paused = false;
            std::mem::take(&mut h.parked)
        });
        lock(&self.ready).extend(parked);
    }

    /// Changes a host's clock; its timers keep their deadlines on it.
    pub(super) fn change_clock(&self, host: HostId, change: impl FnOnce(&mut HostClock, u64)) {
        let now = self.world.now();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(h) = state.hosts.get_mut(&host) else {
            return;
        };
        change(&mut h.clock, now);
        let old = std::mem::take(&mut state.timers);
        for ((due, seq), timer) in old {
            let due = if timer.host == host {
                h.clock.when(timer.deadline).max(now)
            } else {
                due
            };
            state.due.insert(seq, due);
            state.timers.insert((due, seq), timer);
        }
    }

    /// Runs until `main` is ready.
    pub(super) fn run(&self, mut main: Pin<&mut dyn Future<Output = ()>>) -> Result<(), Halt> {
        let waker = Arc::new(TaskWaker {
            task: MAIN,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
            world: Arc::downgrade(&self.world),
        });
        waker.wake_by_ref();
        let main_waker = Waker::from(Arc::clone(&waker));
        let mut polls_at_this_moment = 0;
        loop {
            let Some(task) = self.next_ready() else {
                self.next_moment()?;
                polls_at_this_moment = 0;
                continue;
            };
            polls_at_this_moment += 1;
            if polls_at_this_moment > POLLS_AT_ONE_MOMENT_MAX {
                return Err(self.livelock(task, polls_at_this_moment));
            }
            if task == MAIN {
                waker.queued.store(false, Ordering::Relaxed);
                self.begin_poll(MAIN, HostId::OUTSIDE, "main");
                let polled = main.as_mut().poll(&mut Context::from_waker(&main_waker));
                self.state.borrow_mut().running = None;
                if polled.is_ready() {
                    return Ok(());
                }
            } else {
                self.poll(task);
            }
            if let Some(violation) = self.state.borrow().violations.first() {
                return Err(Halt::Violation(violation.clone()));
            }
        }
    }

    fn begin_poll(&self, task: u64, host: HostId, name: &'static str) {
        self.world.record(host, Event::Poll { task, name });
        let mut state = self.state.borrow_mut();
        state.polls += 1;
        state.running = Some((task, host));
    }

    fn poll(&self, id: u64) {
        let (mut future, waker, host, name) = {
            let mut state = self.state.borrow_mut();
            let Some(task) = state.tasks.get_mut(&id) else {
                return;
            };
            task.waker.queued.store(false, Ordering::Relaxed);
            let Some(future) = task.future.take() else { return };
            (future, Waker::from(Arc::clone(&task.waker)), task.host, task.name)
        };
        self.begin_poll(id, host, name);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut state = self.state.borrow_mut();
        let alive = state.hosts.get(&host).is_some_and(|h| h.alive);
        match state.tasks.get_mut(&id) {
            // Not ended, and neither aborted by itself nor dead with its host.
            Some(task) if polled.is_pending() && alive => task.future = Some(future),
            _ => {
                let task = state.tasks.remove(&id);
                drop(state);
                drop((future, task));
                if !alive {
                    self.drop_tasks(host);
                }
                state = self.state.borrow_mut();
            }
        }
        state.running = None;
    }

    /// The task that runs next; those of paused hosts are parked.
    fn next_ready(&self) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        loop {
            let mut ready = lock(&self.ready);
            if ready.is_empty() {
                return None;
            }
            let index = match state.schedule {
                Schedule::Fifo => 0,
                Schedule::Random => state.random.index(ready.len()),
                Schedule::Priority => {
                    let priority = |id: &u64| state.tasks.get(id).map_or(u64::MAX, |t| t.priority);
                    let highest = ready.iter().enumerate().max_by_key(|(_, id)| priority(id));
                    highest.map_or(0, |(i, _)| i)
                }
            };
            let id = ready.remove(index)?;
            drop(ready);
            if id == MAIN {
                return Some(MAIN);
            }
            // It may have ended after it was woken.
            let Some(task) = state.tasks.get_mut(&id) else {
                continue;
            };
            if state.schedule == Schedule::Priority && state.random.one_in(16) {
                task.priority = state.random.next_u64();
            }
            match state.hosts.get_mut(&task.host) {
                Some(host) if host.paused => host.parked.push(id),
                _ => return Some(id),
            }
        }
    }

    /// Moves time to the next timer, and wakes all that are due then.
    fn next_moment(&self) -> Result<(), Halt> {
        let of_hosts = self.state.borrow().timers.keys().next().map(|(due, _)| *due);
        let Some(due) = of_hosts.into_iter().chain(self.world.next_timer()).min() else {
            return Err(self.deadlock());
        };
        self.world.advance(due.max(self.world.now()));
        while let Some(waker) = self.world.take_due_timer() {
            waker.wake();
        }
        loop {
            let timer = {
                let mut state = self.state.borrow_mut();
                match state.timers.first_key_value() {
                    Some(((at, seq), _)) if *at <= due => {
                        let key = (*at, *seq);
                        state.due.remove(&key.1);
                        state.timers.remove(&key)
                    }
                    _ => return Ok(()),
                }
            };
            if let Some(timer) = timer {
                timer.waker.wake();
            }
        }
    }

    fn deadlock(&self) -> Halt {
        let mut waiting = String::new();
        for (id, task) in &self.state.borrow().tasks {
            let _ = write!(waiting, "{id} {} on {}, ", task.name, task.host);
        }
        Halt::Deadlock { waiting }
    }

    fn livelock(&self, task: u64, polls: u64) -> Halt {
        let state = self.state.borrow();
        let last = state.tasks.get(&task);
        Halt::Livelock {
            polls,
            at: Duration::from_nanos(self.world.now()),
            last: last.map_or("main".to_owned(), |t| format!("{} on {}", t.name, t.host)),
        }
    }
}

impl env::Executor for SimRt {
    fn now(&self) -> Instant {
        let now = self.world.now();
        self.with_host(self.here(), |h| h.clock.monotonic(now))
    }

    fn wall_clock(&self) -> LogTime {
        let now = self.world.now();
        self.with_host(self.here(), |h| h.clock.wall(now))
    }

    fn random_u64(&self) -> u64 {
        self.with_host(self.here(), |h| h.random.next_u64())
    }

    fn spawn(&self, name: &'static str, task: BoxTask) -> TaskId {
        self.spawn_on(self.here(), name, task)
    }

    fn abort(&self, task: TaskId) {
        let mut state = self.state.borrow_mut();
        // The one that is being polled finds itself gone at the end of its poll.
        let aborted = state.tasks.remove(&task.0);
        drop(state);
        drop(aborted);
    }

    fn is_running(&self, task: TaskId) -> bool {
        self.state.borrow().tasks.contains_key(&task.0)
    }

    fn task_panicked(&self, name: &'static str, message: &str) {
        let host = self.here();
        let what = format!("the task {name} panicked: {message}");
        let follows = self.with_host(host, |h| h.made_to_panic);
        match follows || message.starts_with(INJECTED_PANIC) {
            true => self.world.record(host, Event::Mark(what)),
            false => self.violation(host, what),
        }
    }

    fn set_timer(&self, timer: Option<TimerId>, deadline: Instant, waker: &Waker) -> TimerId {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Some(TimerId(seq)) = timer
            && let Some(due) = state.due.get(&seq)
            && let Some(timer) = state.timers.get_mut(&(*due, seq))
        {
            timer.waker.clone_from(waker);
            return TimerId(seq);
        }
        let host = state.running.map_or(HostId::OUTSIDE, |(_, host)| host);
        let due = state.hosts.get(&host).map_or(0, |h| h.clock.when(deadline));
        let seq = state.next_timer;
        state.next_timer += 1;
        state.due.insert(seq, due);
        let timer = Timer {
            host,
            deadline,
            waker: waker.clone(),
        };
        state.timers.insert((due, seq), timer);
        TimerId(seq)
    }

    fn cancel_timer(&self, timer: TimerId) {
        let mut state = self.state.borrow_mut();
        let cancelled = state
            .due
            .remove(&timer.0)
            .and_then(|due| state.timers.remove(&(due, timer.0)));
        drop(state);
        drop(cancelled);
    }

    fn block_on(&self, future: Pin<&mut dyn Future<Output = ()>>) {
        if let Err(halt) = self.run(future) {
            panic!("the simulation halted: {halt}");
        }
    }

    fn begin_disk_charge(&self) {
        self.world.begin_charge();
    }

    fn take_disk_charge(&self) -> Duration {
        let charge = self.world.take_charge();
        if charge.is_zero() {
            return charge;
        }
        let now = self.world.now();
        self.with_host(self.here(), |h| h.clock.lasting(now, charge))
    }

    fn crash_point(&self, name: &'static str) -> io::Result<()> {
        let host = self.here();
        *self.state.borrow_mut().crash_points.entry(name).or_default() += 1;
        let (alive, outcome) = self.with_host(host, |h| (h.alive, Outcome::at(&mut h.armed, name)));
        if !alive {
            return Err(io::Error::other("the host is off"));
        }
        match outcome {
            Outcome::Pass => Ok(()),
            Outcome::Delay(time) => {
                self.world
                    .record(host, Event::Mark(format!("{name}: delayed by {time:?}")));
                if self.world.is_charging() {
                    self.world.notice(host, Effect::Stalled(name));
                }
                self.world.charge(time);
                Ok(())
            }
            Outcome::Error => {
                self.world
                    .record(host, Event::Mark(format!("{name}: an injected error")));
                self.world.notice(host, Effect::Failed(name));
                Err(io::Error::other(format!("injected at {name}")))
            }
            Outcome::Panic => self.panic_at(name, host),
            Outcome::SwitchOff(power) => {
                self.crash_at(name, host, power);
                Err(io::Error::other(format!("the host crashed at {name}")))
            }
        }
    }

    fn mark(&self, name: &'static str) {
        self.world.mark(name);
    }

    fn span_began(&self, name: &'static str) {
        let host = self.here();
        self.world.mark(name);
        self.world.span(host, name, true);
        // A span's beginning is a crash point too, at which nothing can fail by itself.
        let outcome = self.with_host(host, |h| match h.alive {
            true => Outcome::at(&mut h.armed, name),
            false => Outcome::Pass,
        });
        match outcome {
            Outcome::SwitchOff(power) => self.crash_at(name, host, power),
            Outcome::Panic => self.panic_at(name, host),
            Outcome::Pass | Outcome::Delay(_) | Outcome::Error => {}
        }
    }

    fn span_ended(&self, name: &'static str) {
        self.world.span(self.here(), name, false);
    }
}

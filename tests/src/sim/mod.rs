//! The deterministic simulator: hosts with clocks and disks, in virtual time, in one thread.
//!
//! ```
//! use quorate_kv::env;
//! use quorate_tests::sim::Simulation;
//! use std::time::Duration;
//!
//! let sim = Simulation::new(7);
//! let host = sim.host(1);
//! let answer = sim.block_on(async move {
//!     let task = host.spawn("worker", async {
//!         env::sleep(Duration::from_secs(3600)).await;
//!         42
//!     });
//!     task.await
//! })?;
//! assert_eq!(answer, Ok(42));
//! # Ok::<(), quorate_tests::sim::Halt>(())
//! ```
//!
//! Always: everything that happens follows from the seed; two runs of one seed, in two processes, have the
//! same [`Simulation::hash`].

pub mod campaign;
mod clock;
pub mod cluster;
mod crash;
pub mod disk;
mod executor;
pub mod net;
mod rng;
pub mod scene;
pub mod selftest;
pub mod shrink;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use quorate_kv::env::{self, JoinHandle};

use crash::Armed;
pub use crash::CrashAction;
pub use disk::{DiskProfile, DiskStats, PowerLoss, SimDisk};
use executor::SimRt;
pub use executor::{Halt, Schedule, Violation};
pub use rng::Rng;
pub use world::{Effect, Event, HostId, World, WorldSleep};

/// One simulation. A clone is the same one.
#[derive(Clone)]
pub struct Simulation {
    rt: Rc<SimRt>,
    seed: u64,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed)
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

impl Simulation {
    /// The simulation of a seed, at its beginning.
    pub fn new(seed: u64) -> Self {
        Simulation {
            rt: SimRt::new(seed),
            seed,
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A stream of random numbers for one purpose of the test's own.
    pub fn rng(&self, purpose: &str) -> Rng {
        Rng::new(self.seed).fork(purpose)
    }

    /// Orders the tasks in another way than the one that the seed drew.
    pub fn set_schedule(&self, schedule: Schedule) {
        self.rt.set_schedule(schedule);
    }

    /// A machine, made and switched on when it is first asked for. 0 is the world around the machines.
    pub fn host(&self, number: u32) -> Host {
        let id = HostId(number);
        self.rt.add_host(id);
        Host {
            sim: self.clone(),
            id,
        }
    }

    /// Runs the simulation until `main` is ready.
    ///
    /// # Errors
    ///
    /// When it cannot go on: nothing can run, time stands still, or a rule was broken.
    pub fn block_on<F: Future>(&self, main: F) -> Result<F::Output, Halt> {
        let _entered = self.enter();
        let mut output = None;
        self.rt.run(pin!(async { output = Some(main.await) }))?;
        match output {
            Some(output) => Ok(output),
            None => unreachable!("the executor returned before its main future was ready"),
        }
    }

    /// Makes this simulation the one that [`mod@env`] speaks to, in this thread, until the guard is dropped.
    /// [`Simulation::block_on`] does it by itself.
    pub fn enter(&self) -> env::Entered {
        env::enter(Rc::clone(&self.rt) as Rc<dyn env::Executor>)
    }

    /// Starts a task of the world around the machines, which need not be `Send`.
    pub fn spawn_local<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + 'static,
    {
        let sim = self.clone();
        let guarded = async move {
            if let Err(payload) = AssertUnwindSafe(future).catch_unwind().await {
                let message = payload.downcast_ref::<String>().cloned();
                let message = message.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
                let message = message.unwrap_or_default();
                sim.violation(HostId::OUTSIDE, format!("the task {name} panicked: {message}"));
            }
        };
        self.rt.spawn_on(HostId::OUTSIDE, name, Box::pin(guarded));
    }

    /// Drops every task. Without it a simulation whose tasks hold a clone of it stays in memory.
    pub fn end(&self) {
        let _entered = self.enter();
        self.rt.drop_all_tasks();
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.rt.world.now())
    }

    /// Reports that a rule is broken; the simulation halts after the present poll.
    pub fn violation(&self, host: HostId, what: impl Into<String>) {
        self.rt.violation(host, what.into());
    }

    /// The rules broken so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.rt.violations()
    }

    /// Adds a remark to the trace.
    pub fn mark(&self, host: HostId, what: impl Into<String>) {
        self.rt.world.record(host, Event::Mark(what.into()));
    }

    /// The hash over every event so far: polls, disk operations, messages.
    pub fn hash(&self) -> u64 {
        self.rt.world.hash()
    }

    /// How often a task was polled.
    pub fn polls(&self) -> u64 {
        self.rt.polls()
    }

    /// How often each crash point was passed.
    pub fn crash_points(&self) -> BTreeMap<&'static str, u64> {
        self.rt.crash_points()
    }

    /// The time and the trace, for a simulated network.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.rt.world)
    }
}

/// A machine of a simulation.
#[derive(Debug, Clone)]
pub struct Host {
    sim: Simulation,
    id: HostId,
}

impl Host {
    /// Its number.
    pub fn id(&self) -> HostId {
        self.id
    }

    /// Whether it is switched on.
    pub fn is_alive(&self) -> bool {
        self.sim.rt.with_host(self.id, |h| h.alive)
    }

    /// Starts a task on it. The task ends with the host; on a host that is off it never runs.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _entered = self.sim.enter();
        self.sim.rt.acting_as(self.id, || env::spawn(name, future))
    }

    /// The process dies (SIGKILL): its tasks are gone, its disk keeps what was written.
    pub fn kill(&self) {
        self.sim.rt.switch_off(self.id, PowerLoss::ProcessOnly);
    }

    /// The same, as part of starting it anew: nobody observes it as a fault.
    pub fn kill_unseen(&self) {
        let world = self.sim.world();
        world.unobserved(|| self.kill());
    }

    /// The power fails: its tasks are gone, and of what was not synced the disk keeps what `power` says.
    pub fn power_off(&self, power: PowerLoss) {
        self.sim.rt.switch_off(self.id, power);
    }

    /// Switches it on again, with the disk that it has and no task.
    pub fn power_on(&self) {
        self.sim.rt.with_host(self.id, |h| {
            h.alive = true;
            h.made_to_panic = false;
        });
        self.sim.mark(self.id, "switched on");
    }

    /// Stops it (SIGSTOP): no task of it runs, while time goes on.
    pub fn pause(&self) {
        self.sim.rt.with_host(self.id, |h| h.paused = h.alive);
        self.sim.mark(self.id, "paused");
    }

    /// Lets it run again after [`Host::pause`].
    pub fn resume(&self) {
        self.sim.rt.resume(self.id);
        self.sim.mark(self.id, "resumed");
    }

    /// Whether it stands still.
    pub fn is_paused(&self) -> bool {
        self.sim.rt.with_host(self.id, |h| h.paused)
    }

    /// How many tasks could run, were it not paused.
    pub fn tasks_held(&self) -> usize {
        self.sim.rt.with_host(self.id, |h| h.parked.len())
    }

    /// Sets how fast its clocks run, in millionths: 1,000,000 is right.
    pub fn set_clock_rate(&self, parts_per_million: u64) {
        self.sim
            .rt
            .change_clock(self.id, |clock, now| clock.set_rate(now, parts_per_million));
    }

    /// Moves its wall clock forward, or back.
    pub fn shift_wall_clock(&self, by: Duration, back: bool) {
        self.sim
            .rt
            .change_clock(self.id, |clock, _| clock.shift_wall(by, back));
    }

    /// Has the network told of its death, and of what died, before its tasks are dropped: what dies says no farewell.
    pub fn at_death(&self, tell: impl Fn(PowerLoss) + 'static) {
        self.sim
            .rt
            .with_host(self.id, |h| h.at_death = Some(Rc::new(tell)));
    }

    /// Its disk, as the process that runs now sees it: after a crash ask again.
    pub fn disk(&self) -> SimDisk {
        self.sim.rt.with_host(self.id, |h| h.disk.reopened())
    }

    /// Arms a crash point: it is passed `passes` times unharmed, then `action` happens, once. The disk's
    /// calls are crash points of their own: `disk.write`, `disk.sync`, ...; `disk.*` is any of them.
    pub fn arm(&self, point: impl Into<String>, passes: u64, action: CrashAction) {
        let armed = Armed {
            point: point.into(),
            passes,
            action,
        };
        self.sim.rt.with_host(self.id, |h| h.armed.push(armed));
    }

    /// Disarms every crash point of this host.
    pub fn disarm(&self) {
        self.sim.rt.with_host(self.id, |h| h.armed.clear());
    }
}

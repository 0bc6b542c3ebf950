//! A cluster in the simulator: real nodes and clients over the simulated network and disks, faults from the
//! seed, and a judgement.
//!
//! A run has phases: the cluster forms; clients work while faults happen; all faults end; the cluster must
//! serve again and its nodes become equal; then every operation is judged against the store's own history.

mod audit;
mod coverage;
mod draw;
mod fault;
mod fleet;
mod nemesis;
mod operator;
mod phase;
mod plan;
mod served;
mod verdict;
mod workload;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use quorate_kv::env::{self, Notify};
use quorate_kv::identity::IdentityError;
use quorate_kv::log::LogOpenError;
use quorate_kv::machine::MachineOpenError;
use quorate_kv::model::{Limits, LogIndex, Revision, StateHash, Term};
use quorate_kv::node::{NodeRole, StartError, Status, StorageError};
use quorate_kv::planted::{self, Bug};
use quorate_kv::{Client, Node};
use quorate_transport::memory::{MemoryNetwork, NetworkSettings};
use quorate_transport::{ClusterId, Identity, Transport};

use super::crash::{INJECTED_PANIC, is_injected};
use super::net::{SimClock, Traced};
use super::world::lock;
use super::{DiskStats, Event, HostId, PowerLoss, Simulation};

use coverage::Watch;
use fleet::Fleet;
use operator::Operator;
use phase::Fresh;
use served::Excuses;

pub use coverage::{Coverage, REQUIRED_FROM_SEEDS};
pub use fault::{Fault, FaultEvent, Kind, Reach, Target, UnknownKind};
pub use phase::Phase;
pub use plan::{Disks, Links, Plan, PlanError, Small, Tuning};
pub use verdict::Failure;
pub use workload::OperationCounts;

const NAME: &str = "simulated";
/// How often a node is asked what it is.
const ROUND: Duration = Duration::from_millis(5);

/// What a run was like.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed of its simulation.
    pub seed: u64,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Virtual time.
    pub time: Duration,
    /// Polls of tasks.
    pub polls: u64,
    /// Events of the trace, and their hash.
    pub events: u64,
    /// The hash over all of them.
    pub hash: u64,
    /// What clients did.
    pub operations: OperationCounts,
    /// What was done to the cluster, and when.
    pub coverage: Coverage,
    /// What else happened.
    pub counts: Counts,
    /// Who led, in the order of the terms: its term, its node, and when it first said so.
    pub leaders: Vec<(u64, u32, Duration)>,
    /// The highest term seen.
    pub term: u64,
    /// The highest revision seen.
    pub revision: u64,
    /// The disks of all hosts together.
    pub disks: DiskStats,
    /// How often each crash point was passed.
    pub crash_points: BTreeMap<&'static str, u64>,
    /// How often each rare path was passed.
    pub marks: BTreeMap<&'static str, u64>,
}

/// What happened in a run besides operations and faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Leaders that came up.
    pub elections: u64,
    /// Nodes started again after they had stopped by themselves.
    pub restarts_after_faults: u64,
}

/// A run, told as a story.
#[derive(Debug, Clone)]
pub struct Story {
    /// What it was like.
    pub report: Report,
    /// What happened, by time: faults, who led, what clients asked and were answered.
    pub timeline: Vec<String>,
}

/// Runs a plan. The simulation is the caller's, who may want its trace; its seed is the plan's.
pub fn run(sim: &Simulation, plan: &Plan) -> Report {
    let cluster = Cluster::new(sim, plan);
    run_cluster(&cluster, sim, plan)
}

/// Runs a plan, and tells what happened; the simulation must have kept its whole trace.
pub fn run_traced(sim: &Simulation, plan: &Plan) -> Story {
    let cluster = Cluster::new(sim, plan);
    let report = run_cluster(&cluster, sim, plan);
    let timeline = cluster.timeline();
    Story { report, timeline }
}

fn run_cluster(cluster: &Cluster, sim: &Simulation, plan: &Plan) -> Report {
    let ended = sim.block_on(cluster.clone().live());
    let failure = match ended {
        Ok(ended) => ended.err(),
        Err(halt) => Some(Failure::of_halt(&halt)),
    };
    let mut marks = sim.world().marks();
    marks.insert("network.late_message", cluster.network.late_messages());
    let (time, polls) = (sim.now(), sim.polls());
    let (events, hash) = (sim.world().events(), sim.hash());
    sim.end();
    sim.world().end_observation();
    let operations = cluster.history.borrow().counts();
    let seen = lock(&cluster.seen);
    let failure = failure.or_else(|| {
        let led_since = seen.leaders.values().next().map(|(_, since)| *since);
        Failure::of_calm(plan, &cluster.history.borrow(), led_since)
    });
    let mut counts = *cluster.counts.borrow();
    counts.elections = seen.leaders.len() as u64;
    Report {
        seed: sim.seed(),
        failure,
        time,
        polls,
        events,
        hash,
        operations,
        coverage: cluster.watch.coverage(),
        counts,
        leaders: seen
            .leaders
            .iter()
            .map(|(term, (node, since))| (term.number(), *node, *since))
            .collect(),
        term: seen.term,
        revision: seen.revision,
        disks: cluster.disk_stats(),
        crash_points: sim.crash_points(),
        marks,
    }
}

/// Runs a plan in a simulation of its own.
pub fn run_plan(plan: &Plan) -> Report {
    run(&Simulation::new(plan.seed), plan)
}

/// How far a planned stop of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Asked,
    /// It hands over what it leads, and closes its files.
    Begun,
    Done,
}

/// What the nodes have told of themselves.
#[derive(Debug, Default)]
struct Seen {
    /// The state after each entry, and who was there first.
    states: BTreeMap<LogIndex, (Revision, StateHash, u32)>,
    /// What those that run have told last.
    latest: BTreeMap<u32, Status>,
    /// Those that stand still.
    silent: BTreeSet<u32>,
    /// Those that apply what their log held when they started, with its last entry.
    replaying: BTreeMap<u32, Option<LogIndex>>,
    /// Who led in each term, and since when.
    leaders: BTreeMap<Term, (u32, Duration)>,
    /// The last term that had a leader.
    led_term: u64,
    fresh: Option<Fresh>,
    changing_members: bool,
    moving_leader: bool,
    /// Nodes that stopped by themselves, and have not been started again.
    stopped: BTreeMap<u32, String>,
    /// Nodes that came back under their ids without their directories, and what they said of being refused.
    wiped: BTreeMap<u32, Option<String>>,
    /// Nodes that are to stop as planned, until their hosts are switched off.
    stops: BTreeMap<u32, Stop>,
    /// Nodes in whose files a bit was flipped, and which have not started since; with what those say that refused to.
    rotten: BTreeMap<u32, Option<String>>,
    /// Those of them that may start with what has rotted, and find it later.
    rots_on: BTreeSet<u32>,
    /// The first node that found its own files to be spoiled.
    refused: Option<(u32, String)>,
    /// Nobody led for longer than is promised, or somebody was elected without a reason.
    unled: Option<String>,
    /// The first rule that was seen broken.
    broken: Option<(u32, String)>,
    term: u64,
    revision: u64,
}

#[derive(Clone)]
struct Cluster {
    sim: Simulation,
    plan: Rc<Plan>,
    network: MemoryNetwork,
    seen: Arc<Mutex<Seen>>,
    history: Rc<RefCell<workload::History>>,
    record: audit::Record,
    fleet: Rc<RefCell<Fleet>>,
    watch: Watch,
    operator: Operator,
    counts: Rc<RefCell<Counts>>,
    healed: Rc<Cell<bool>>,
    excuses: Rc<Excuses>,
    /// By node: whoever waits for an end of a process there is told of one when these are notified.
    false_ends: Rc<RefCell<BTreeMap<u32, Arc<Notify>>>>,
}

impl Cluster {
    fn new(sim: &Simulation, plan: &Plan) -> Self {
        let clock = SimClock::new(sim.world(), sim.rng("network"));
        let network = NetworkSettings::default();
        let network = NetworkSettings {
            // As the server has it.
            idle_timeout: network
                .idle_timeout
                .max(plan.settings().timing.idle_timeout_min()),
            ..network
        };
        let network = MemoryNetwork::with_settings(Arc::new(clock), network);
        network.set_links(plan.link_settings());
        let seen = Arc::default();
        Cluster {
            sim: sim.clone(),
            plan: Rc::new(plan.clone()),
            network,
            watch: Watch::start(sim.world(), Arc::clone(&seen)),
            seen,
            history: Rc::default(),
            record: audit::Record::new(sim),
            fleet: Rc::new(RefCell::new(Fleet::of(plan.nodes))),
            operator: Operator::default(),
            counts: Rc::default(),
            healed: Rc::default(),
            excuses: Rc::default(),
            false_ends: Rc::default(),
        }
    }

    /// The whole life of the cluster, from its forming to the judgement.
    async fn live(self) -> Result<(), Failure> {
        for number in self.numbers() {
            self.install(number);
            self.start(number);
        }
        let workers = workload::start(&self);
        let operating = self.operator.clone().work(self.clone());
        self.sim.spawn_local("operator", operating);
        nemesis::run(&self).await;
        self.heal();
        let audited = async {
            audit::wait_until_healthy(&self).await?;
            self.operator.finish().await?;
            workers.stop().await;
            audit::judge(&self).await
        };
        audited.await.map_err(Failure::of_audit)
    }

    /// The hosts whose nodes are members.
    fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        let members: Vec<u32> = self.fleet.borrow().members.iter().copied().collect();
        members.into_iter()
    }

    /// Sets up a host for a node, which is not started yet.
    fn install(&self, number: u32) {
        let host = self.sim.host(number);
        host.disk().set_profile(self.plan.disk_profile());
        if let Some(rate) = self.plan.clock_rates.get(number as usize - 1) {
            host.set_clock_rate(*rate);
        }
        let (network, seen) = (self.network.clone(), Arc::clone(&self.seen));
        host.at_death(move |power| {
            died(&network, number, power);
            let mut seen = lock(&seen);
            seen.latest.remove(&number);
            seen.silent.remove(&number);
            seen.replaying.remove(&number);
            seen.stops.remove(&number);
        });
    }

    /// Starts the process of a node on its host, which is switched on for it.
    fn start(&self, number: u32) {
        let host = self.sim.host(number);
        if !host.is_alive() {
            host.power_on();
        }
        {
            let mut seen = lock(&self.seen);
            seen.stopped.remove(&number);
            seen.replaying.insert(number, None);
        }
        let transport = self.network.transport(node_identity(number), &address(number));
        let traced = Traced::new(transport, self.sim.world(), host.id());
        let transport = Arc::new(traced.misled_by(self.false_ends(number)));
        let builder = Node::builder()
            .data_dir(Path::new("/node"))
            .cluster(NAME)
            .node_id(u64::from(number))
            .transport(transport)
            .disk(Arc::new(host.disk()))
            .settings(self.plan.settings());
        // Of who lost its directory nothing is left that its log had promised; it must take no part any more.
        let is_wiped = lock(&self.seen).wiped.contains_key(&number);
        let builder = match is_wiped {
            true => builder,
            false => builder.tap(self.record.started(number)),
        };
        let builder = match number <= self.plan.nodes {
            true => builder.peers((1..=self.plan.nodes).map(|n| (u64::from(n), address(n)))),
            false => builder.join(),
        };
        let (seen, world) = (Arc::clone(&self.seen), self.sim.world());
        let record = self.record.clone();
        host.spawn("node", async move {
            // A panic of a start's own task is its caller's to catch.
            let started = match AssertUnwindSafe(builder.start()).catch_unwind().await {
                Ok(started) => started,
                Err(panicked) if is_injected(panicked.as_ref()) => {
                    let mut seen = lock(&seen);
                    seen.stopped.insert(number, "its start panicked".to_owned());
                    return;
                }
                Err(panicked) => resume_unwind(panicked),
            };
            match started {
                Err(error) => {
                    let mut seen = lock(&seen);
                    // It may be told before it has come to serve.
                    seen.is_told_off(number, &error.to_string());
                    if is_refusal(&error) {
                        match seen.rotten.get_mut(&number) {
                            Some(refused) => {
                                refused.get_or_insert_with(|| error.to_string());
                            }
                            None => {
                                seen.refused.get_or_insert_with(|| (number, error.to_string()));
                            }
                        }
                    }
                    seen.stopped.insert(number, error.to_string());
                }
                Ok(node) => {
                    lock(&seen).started(number);
                    loop {
                        let asked = lock(&seen).stops.get(&number) == Some(&Stop::Asked);
                        if asked {
                            lock(&seen).stops.insert(number, Stop::Begun);
                            node.shutdown().await;
                            lock(&seen).stops.insert(number, Stop::Done);
                            return;
                        }
                        let status = node.status();
                        let stopped = status.role == NodeRole::Stopped;
                        if !is_wiped {
                            record.status(&status);
                        }
                        let now = Duration::from_nanos(world.now());
                        let told = lock(&seen).take(number, status, now);
                        if let Some(told) = told {
                            world.record(HostId(number), Event::Mark(told));
                        }
                        if stopped {
                            return;
                        }
                        env::sleep(ROUND).await;
                    }
                }
            }
        });
    }

    fn transport(&self, identity: Identity, address: &str, host: HostId) -> Arc<dyn Transport> {
        let transport = self.network.transport(identity, address);
        Arc::new(Traced::new(transport, self.sim.world(), host))
    }

    fn false_ends(&self, number: u32) -> Arc<Notify> {
        Arc::clone(self.false_ends.borrow_mut().entry(number).or_default())
    }

    /// A client of its own with these limits, which asks the nodes in the order that its name draws.
    fn client_with(&self, name: &str, limits: Limits) -> Client {
        let identity = Identity::client(cluster_id(), name).expect("a legal name");
        let transport = self.transport(identity, name, HostId::OUTSIDE);
        let mut addresses: Vec<String> = self.numbers().map(address).collect();
        self.sim.rng(name).shuffle(&mut addresses);
        Client::connect(addresses, transport, limits).expect("legal addresses")
    }

    /// A client that knows one node alone. One that only reads never hears of another.
    fn client_of(&self, name: &str, node: u32) -> Client {
        let identity = Identity::client(cluster_id(), name).expect("a legal name");
        let transport = self.transport(identity, name, HostId::OUTSIDE);
        Client::connect([address(node)], transport, Limits::default()).expect("a legal address")
    }

    /// Ends every fault, and starts whoever is down.
    fn heal(&self) {
        self.healed.set(true);
        self.watch.stop();
        self.tell("all faults end");
        self.network.heal_all();
        self.network.set_links(plan::good_links());
        let (running, all) = {
            let fleet = self.fleet.borrow();
            (fleet.running(), fleet.all())
        };
        for number in all {
            let host = self.sim.host(number);
            host.resume();
            host.disarm();
            host.set_clock_rate(1_000_000);
            host.disk().set_profile(plan::good_disk());
            let stopped = lock(&self.seen).stopped.contains_key(&number);
            if stopped || !running.contains(&number) {
                host.kill();
            }
            if !host.is_alive() && running.contains(&number) {
                self.start(number);
            }
        }
        lock(&self.seen).silent.clear();
        // An error from before may stop a node only now.
        let cluster = self.clone();
        self.sim.spawn_local("late stops", async move {
            for _ in 0..100 {
                env::sleep(Duration::from_millis(50)).await;
                cluster.restart_late();
            }
        });
    }

    /// Starts nodes again that stopped after the faults' end, for one from before: an error that was injected, or a
    /// disk that had no room.
    fn restart_late(&self) {
        let running = self.fleet.borrow().running();
        for number in running {
            let stopped = lock(&self.seen).stopped.get(&number).cloned();
            if stopped.is_some_and(|told| is_of_a_fault(&told)) {
                self.sim.host(number).kill();
                self.start(number);
            }
        }
    }

    /// The power fails everywhere, and comes back at once: whatever anybody was told must be on the disks.
    fn lose_all_power(&self) {
        let loss = *self
            .sim
            .rng("last power loss")
            .pick(&[PowerLoss::Drawn, PowerLoss::LoseAll]);
        self.tell("the power fails everywhere");
        let running = self.fleet.borrow().running();
        for number in &running {
            self.sim.host(*number).power_off(loss);
        }
        for number in running {
            self.start(number);
        }
    }

    fn is_healed(&self) -> bool {
        self.healed.get()
    }

    /// Adds a remark to the trace.
    fn tell(&self, what: impl Into<String>) {
        self.sim.mark(HostId::OUTSIDE, what);
    }

    /// What happened, by time, a line each.
    fn timeline(&self) -> Vec<String> {
        let mut lines = self.sim.world().marks_told();
        let history = self.history.borrow().book.history();
        let mut call = |called: Duration,
                        answered: Duration,
                        id: &dyn fmt::Debug,
                        asked: &dyn fmt::Debug,
                        told: &dyn fmt::Debug| {
            lines.push((called, short(format!("asks {id:?}: {asked:?}"))));
            let took = answered.saturating_sub(called);
            lines.push((answered, short(format!("told {id:?} after {took:?}: {told:?}"))));
        };
        for c in &history.calls {
            call(c.called, c.answered, &c.id, &c.request, &c.answer);
        }
        for c in &history.meta {
            call(c.called, c.answered, &c.id, &c.request, &c.answer);
        }
        lines.sort_by_key(|(at, _)| *at);
        let line = |(at, what): (Duration, String)| format!("{:>12.6} {what}", at.as_secs_f64());
        lines.into_iter().map(line).collect()
    }

    /// The first rule that the nodes' own accounts break.
    fn broken(&self) -> Option<String> {
        if let Some(violation) = self.record.broken() {
            return Some(violation.to_string());
        }
        let seen = lock(&self.seen);
        let refused = seen.refused.as_ref();
        let refused =
            refused.map(|(number, what)| format!("files: node {number} refuses what it wrote: {what}"));
        let broken = seen.broken.as_ref();
        refused
            .or_else(|| seen.unled.clone())
            .or_else(|| broken.map(|(number, what)| format!("node {number}: {what}")))
    }

    fn disk_stats(&self) -> DiskStats {
        let disks = self.fleet.borrow().all().map(|n| self.sim.host(n).disk().stats());
        disks.fold(DiskStats::default(), |a, b| a + b)
    }
}

impl Seen {
    /// Who leads in the highest term, as far as those that run have told.
    fn leader(&self) -> Option<u32> {
        let leads = self.latest.iter().filter(|(_, s)| s.role == NodeRole::Leader);
        leads.max_by_key(|(_, s)| s.term).map(|(number, _)| *number)
    }

    /// Takes a node's account of itself, and compares it with all others at the same entry. Answers what is
    /// worth telling of it.
    fn take(&mut self, number: u32, status: Status, now: Duration) -> Option<String> {
        self.take_phase(number, &status, now);
        self.term = self.term.max(status.term.number());
        self.revision = self.revision.max(status.revision.number());
        if let Some(applied) = status.applied {
            let (revision, hash, first) =
                *self
                    .states
                    .entry(applied)
                    .or_insert((status.revision, status.state_hash, number));
            if (revision, hash) != (status.revision, status.state_hash) {
                let what = format!(
                    "after entry {applied} it is at revision {} with state {:?}, node {first} was at {revision} \
                     with {hash:?}",
                    status.revision, status.state_hash
                );
                self.broken.get_or_insert((number, what));
            }
        }
        let is_wiped = self.wiped.contains_key(&number);
        if is_wiped && (status.applied.is_some() || status.role == NodeRole::Leader) {
            let what = format!("it lost its directory, and takes part under its id again: {status:?}");
            self.broken.get_or_insert((number, what));
        }
        if status.role == NodeRole::Stopped {
            let fault = status
                .fault
                .clone()
                .unwrap_or_else(|| "without a fault".to_owned());
            if let Some(found) = self.rotten.get_mut(&number)
                && fault.starts_with("corruption: ")
            {
                found.get_or_insert_with(|| fault.clone());
            }
            self.is_told_off(number, &fault);
            let is_another = [ANOTHER_DIRECTORY, "another history", "two clusters of one name"]
                .iter()
                .any(|words| fault.contains(words));
            if is_another && !is_wiped && !planted::is(Bug::WipedNodeRejoins) {
                let what = format!("it has lost nothing, and is taken for another: {fault}");
                self.broken.get_or_insert((number, what));
            }
            self.stopped.insert(number, fault);
        }
        let part = |s: &Status| (s.role, s.term, s.leader);
        let before = self.latest.get(&number).map(part);
        let told = (before != Some(part(&status))).then(|| {
            let leader = status.leader.map_or("nobody".to_owned(), |n| format!("node {n}"));
            let (role, term, applied) = (status.role, status.term, status.applied);
            format!("node {number} is {role} in term {term}, leader {leader}, applied {applied:?}")
        });
        self.latest.insert(number, status);
        told
    }

    /// A node has ended with these words: if it lost its directory, they may be what the others had to say.
    fn is_told_off(&mut self, number: u32, words: &str) {
        if let Some(refused) = self.wiped.get_mut(&number)
            && words.contains(ANOTHER_DIRECTORY)
        {
            refused.get_or_insert_with(|| words.to_owned());
        }
    }

    /// A node has started with what its disk holds: what it has not refused it must be able to live with.
    fn started(&mut self, number: u32) {
        if self.rotten.get(&number) == Some(&None) && !self.rots_on.contains(&number) {
            self.rotten.remove(&number);
        }
    }

    fn take_phase(&mut self, number: u32, status: &Status, now: Duration) {
        if status.role == NodeRole::Leader && !self.leaders.contains_key(&status.term) {
            self.leaders.insert(status.term, (number, now));
            self.led_term = self.led_term.max(status.term.number());
            self.fresh = Some(Fresh {
                term: status.term,
                until: status.last_log,
            });
        }
        let committed = |fresh: &Fresh| fresh.until.is_some() && status.committed >= fresh.until;
        if self
            .fresh
            .filter(|f| f.term <= status.term)
            .is_some_and(|f| committed(&f))
        {
            self.fresh = None;
        }
        if let Some(until) = self.replaying.get_mut(&number) {
            // What its log held when it was first heard.
            let until = *until.get_or_insert(status.last_log.unwrap_or(LogIndex::new(0)));
            if status.last_log.is_none() || status.applied >= Some(until) {
                self.replaying.remove(&number);
            }
        }
    }
}

/// What a node says that is not the directory which the cluster knows under its id.
const ANOTHER_DIRECTORY: &str = "another directory";

/// Whether a node met what was done to its disk, and nothing else.
fn is_of_a_fault(told: &str) -> bool {
    told.contains("injected at") || told.contains("the host crashed at") || told.contains("disk is full")
}

/// Whether a node found files that no power loss explains. No fault but bit rot spoils what is durable, so that otherwise
/// nothing but the node itself can have written them.
fn is_refusal(error: &StartError) -> bool {
    let StartError::Storage(storage) = error else {
        return false;
    };
    let is_disk = matches!(
        storage,
        StorageError::Io { .. }
            | StorageError::InUse { .. }
            | StorageError::Identity(IdentityError::Disk { .. })
            | StorageError::Log(LogOpenError::Disk { .. })
            | StorageError::State(MachineOpenError::Disk { .. } | MachineOpenError::Fault(_))
    );
    let told = error.to_string();
    !is_disk && !is_of_a_fault(&told) && !told.contains(INJECTED_PANIC)
}

/// A line that a terminal can bear: values may be long.
fn short(mut line: String) -> String {
    const CHARS_MAX: usize = 240;
    if let Some((end, _)) = line.char_indices().nth(CHARS_MAX) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// A node's process died; its host lives on and says so, unless it lost power.
fn died(network: &MemoryNetwork, number: u32, power: PowerLoss) {
    match power {
        PowerLoss::ProcessOnly => network.crash(&address(number)),
        _ => network.vanish(&address(number)),
    }
}

fn address(number: u32) -> String {
    format!("node-{number}:7000")
}

fn cluster_id() -> ClusterId {
    ClusterId::new(NAME).expect("a legal name")
}

fn node_identity(number: u32) -> Identity {
    Identity::node(cluster_id(), u64::from(number))
}

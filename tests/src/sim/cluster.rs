//! A cluster in the simulator: real nodes and clients over the simulated network and disks, faults from the
//! seed, and a judgement.
//!
//! A run has phases: the cluster forms; clients work while faults happen; all faults end; the cluster must
//! serve again and its nodes become equal; then every operation is judged against the store's own history.

mod audit;
mod nemesis;
mod plan;
mod workload;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_kv::env;
use quorate_kv::model::{Limits, LogIndex, Revision, StateHash};
use quorate_kv::node::{NodeRole, Status};
use quorate_kv::{Client, Node};
use quorate_transport::memory::MemoryNetwork;
use quorate_transport::{ClusterId, Identity, Transport};

use super::net::{SimClock, Traced};
use super::world::lock;
use super::{DiskStats, HostId, Simulation};

pub use nemesis::FaultCounts;
pub use plan::Plan;
pub use workload::OperationCounts;

const NAME: &str = "simulated";

/// What a run was like.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed that repeats it.
    pub seed: u64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
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
    /// What was done to the cluster.
    pub faults: FaultCounts,
    /// The highest term seen.
    pub term: u64,
    /// The highest revision seen.
    pub revision: u64,
    /// The disks of all hosts together.
    pub disks: DiskStats,
    /// How often each crash point was passed.
    pub crash_points: BTreeMap<&'static str, u64>,
}

/// Runs the plan of a seed. The simulation is the caller's, who may want its trace.
pub fn run(sim: &Simulation, plan: &Plan) -> Report {
    let cluster = Cluster::new(sim, plan);
    let ended = sim.block_on(cluster.clone().live());
    let failure = match ended {
        Ok(Ok(())) => None,
        Ok(Err(broken)) => Some(broken),
        Err(halt) => Some(halt.to_string()),
    };
    let (time, polls) = (sim.now(), sim.polls());
    let (events, hash) = (sim.world().events(), sim.hash());
    sim.end();
    let seen = lock(&cluster.seen);
    Report {
        seed: sim.seed(),
        failure,
        time,
        polls,
        events,
        hash,
        operations: cluster.history.borrow().counts(),
        faults: *cluster.faults.borrow(),
        term: seen.term,
        revision: seen.revision,
        disks: cluster.disk_stats(),
        crash_points: sim.crash_points(),
    }
}

/// What the nodes have told of themselves.
#[derive(Debug, Default)]
struct Seen {
    /// The state after each entry, and who was there first.
    states: BTreeMap<LogIndex, (Revision, StateHash, u32)>,
    latest: BTreeMap<u32, Status>,
    /// Nodes that stopped by themselves, and have not been started again.
    stopped: BTreeMap<u32, String>,
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
    faults: Rc<RefCell<FaultCounts>>,
}

impl Cluster {
    fn new(sim: &Simulation, plan: &Plan) -> Self {
        let clock = SimClock::new(sim.world(), sim.rng("network"));
        let network = MemoryNetwork::new(Arc::new(clock));
        network.set_links(plan.links.clone());
        Cluster {
            sim: sim.clone(),
            plan: Rc::new(plan.clone()),
            network,
            seen: Arc::default(),
            history: Rc::default(),
            record: audit::Record::new(sim),
            faults: Rc::default(),
        }
    }

    /// The whole life of the cluster, from its forming to the judgement.
    async fn live(self) -> Result<(), String> {
        for number in self.numbers() {
            let host = self.sim.host(number);
            host.disk().set_profile(self.plan.disk.clone());
            host.set_clock_rate(self.plan.clock_rates[number as usize - 1]);
            let network = self.network.clone();
            host.at_death(move || network.crash(&address(number)));
            self.start(number);
        }
        let workers = workload::start(&self);
        nemesis::run(&self).await;
        self.heal();
        audit::wait_until_healthy(&self).await?;
        workers.stop().await;
        audit::judge(&self).await
    }

    fn numbers(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.plan.nodes
    }

    /// Starts the process of a node on its host, which is switched on for it.
    fn start(&self, number: u32) {
        let host = self.sim.host(number);
        if !host.is_alive() {
            host.power_on();
        }
        lock(&self.seen).stopped.remove(&number);
        let transport = self.transport(node_identity(number), &address(number), host.id());
        let builder = Node::builder()
            .data_dir(Path::new("/node"))
            .cluster(NAME)
            .node_id(u64::from(number))
            .peers(self.numbers().map(|n| (u64::from(n), address(n))))
            .transport(transport)
            .disk(Arc::new(host.disk()))
            .tap(self.record.started(number))
            .settings(self.plan.settings.clone());
        let (seen, record) = (Arc::clone(&self.seen), self.record.clone());
        host.spawn("node", async move {
            match builder.start().await {
                Err(error) => {
                    lock(&seen).stopped.insert(number, error.to_string());
                }
                Ok(node) => loop {
                    let status = node.status();
                    let stopped = status.role == NodeRole::Stopped;
                    record.status(&status);
                    lock(&seen).take(number, status);
                    if stopped {
                        return;
                    }
                    env::sleep(Duration::from_millis(10)).await;
                },
            }
        });
    }

    fn transport(&self, identity: Identity, address: &str, host: HostId) -> Arc<dyn Transport> {
        let transport = self.network.transport(identity, address);
        Arc::new(Traced::new(transport, self.sim.world(), host))
    }

    /// A client of its own with these limits, which asks the nodes in the order that its name draws.
    fn client_with(&self, name: &str, limits: Limits) -> Client {
        let identity = Identity::client(cluster_id(), name).expect("a legal name");
        let transport = self.transport(identity, name, HostId::OUTSIDE);
        let mut addresses: Vec<String> = self.numbers().map(address).collect();
        self.sim.rng(name).shuffle(&mut addresses);
        Client::connect(addresses, transport, limits)
    }

    /// Ends every fault, and starts whoever is down.
    fn heal(&self) {
        self.sim.mark(HostId::OUTSIDE, "all faults end");
        self.network.heal_all();
        self.network.set_links(plan::good_links());
        for number in self.numbers() {
            let host = self.sim.host(number);
            host.resume();
            host.disarm();
            host.set_clock_rate(1_000_000);
            host.disk().set_profile(plan::good_disk());
            let stopped = lock(&self.seen).stopped.contains_key(&number);
            if stopped {
                host.kill();
            }
            if !host.is_alive() {
                self.start(number);
            }
        }
    }

    /// The first rule that the nodes' own accounts break.
    fn broken(&self) -> Option<String> {
        if let Some(violation) = self.record.broken() {
            return Some(violation.to_string());
        }
        let seen = lock(&self.seen);
        let broken = seen.broken.as_ref();
        broken.map(|(number, what)| format!("node {number}: {what}"))
    }

    fn disk_stats(&self) -> DiskStats {
        let disks = self.numbers().map(|n| self.sim.host(n).disk().stats());
        disks.fold(DiskStats::default(), |a, b| a + b)
    }
}

impl Seen {
    /// Takes a node's account of itself, and compares it with all others at the same entry.
    fn take(&mut self, number: u32, status: Status) {
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
        if status.role == NodeRole::Stopped {
            let fault = status
                .fault
                .clone()
                .unwrap_or_else(|| "without a fault".to_owned());
            self.stopped.insert(number, fault);
        }
        self.latest.insert(number, status);
    }
}

fn address(number: u32) -> String {
    format!("node-{number}")
}

fn cluster_id() -> ClusterId {
    ClusterId::new(NAME).expect("a legal name")
}

fn node_identity(number: u32) -> Identity {
    Identity::node(cluster_id(), u64::from(number))
}

//! A good history: a calm simulated cluster with everything that the checkers look at.
//!
//! For tests of the checkers themselves, which spoil it, and of the workload. Three nodes; one of them stands
//! aside for a while and catches up by a snapshot, and starts anew once.

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_kv::model::{KeyValue, Limits, Revision};
use quorate_kv::node::{Settings, Status, Timing};
use quorate_kv::{Client, Node, env};
use quorate_transport::memory::{LinkSettings, MemoryNetwork};
use quorate_transport::{ClusterId, Identity};

use super::history::History;
use super::rebuild::Source;
use super::taps::{Clock, TapEvent, Taps};
use super::workload::{Book, Clients, Style, Worker, lax_limits};
use crate::sim::Simulation;
use crate::sim::net::SimClock;

const NODES: u32 = 3;
const WORKERS: u32 = 4;
const NAME: &str = "recorded";

/// Everything that was seen.
#[derive(Debug, Clone)]
pub struct Recording {
    /// What the nodes applied.
    pub events: Vec<TapEvent>,
    /// What the callers saw.
    pub history: History,
    /// The book, for its counts.
    pub book: Book,
    /// What the nodes told of themselves.
    pub statuses: Vec<Status>,
    /// What was read back at the end.
    pub last: (Revision, Vec<KeyValue>),
}

/// Records the life of a cluster: so many steps of each caller, on so many keys.
pub fn record(seed: u64, steps: u64, keys: u64) -> Recording {
    let sim = Simulation::new(seed);
    let recorded = sim.block_on(life(sim.clone(), steps, keys));
    sim.end();
    recorded.expect("a calm simulation runs to its end")
}

async fn life(sim: Simulation, steps: u64, keys: u64) -> Recording {
    let network = MemoryNetwork::new(Arc::new(SimClock::new(sim.world(), sim.rng("network"))));
    network.set_links(LinkSettings::latency(
        Duration::from_micros(100),
        Duration::from_micros(900),
    ));
    let world = sim.world();
    let clock: Clock = Arc::new(move || Duration::from_nanos(world.now()));
    let taps = Taps::new(Arc::clone(&clock));
    taps.keep_events();
    let statuses: Arc<Mutex<Vec<Status>>> = Arc::default();
    let cluster = Cluster {
        sim: sim.clone(),
        network,
        taps: taps.clone(),
        statuses: Arc::clone(&statuses),
    };
    for number in 1..=NODES {
        cluster.start(number);
    }
    let book = Book::default();
    let style = Style {
        keys,
        pause_max: Duration::from_millis(20),
        deadline: Duration::from_secs(10),
        hurried: false,
        compacts: true,
        meta_every: 4,
    };
    let done = Rc::new(std::cell::Cell::new(0));
    for number in 0..WORKERS {
        let clients = Clients {
            main: cluster.client(&format!("client-{number}"), Limits::default()),
            other: cluster.client(&format!("client-{number}-other"), Limits::default()),
            lax: cluster.client(&format!("client-{number}-lax"), lax_limits()),
        };
        let random = sim.rng(&format!("worker {number}"));
        let mut worker = Worker::new(number, style, clients, random, Arc::clone(&clock), book.clone());
        let done = Rc::clone(&done);
        sim.spawn_local("client", async move {
            for _ in 0..steps {
                worker.step().await;
            }
            done.set(done.get() + 1);
        });
    }
    // The third node misses a part, and comes back.
    let third = sim.host(NODES);
    env::sleep(Duration::from_secs(1)).await;
    third.kill();
    env::sleep(Duration::from_secs(1)).await;
    third.power_on();
    cluster.start(NODES);
    while done.get() < WORKERS {
        env::sleep(Duration::from_millis(50)).await;
    }
    let judge = cluster.client("judge", Limits::default());
    let last = judge.everything(None).await.expect("a calm cluster answers");
    // Until the last node has applied what the others have.
    while !equal(&lock(&statuses)) {
        env::sleep(Duration::from_millis(20)).await;
    }
    let statuses = lock(&statuses).clone();
    Recording {
        events: taps.events(),
        history: book.history(),
        book,
        statuses,
        last,
    }
}

/// Whether all nodes told last that they stand behind the same entry.
fn equal(told: &[Status]) -> bool {
    let applied = |number: u32| {
        let of_node = |status: &&Status| status.node.number() == u64::from(number);
        told.iter().rev().find(of_node).and_then(|status| status.applied)
    };
    applied(1).is_some() && (2..=NODES).all(|number| applied(number) == applied(1))
}

struct Cluster {
    sim: Simulation,
    network: MemoryNetwork,
    taps: Taps,
    statuses: Arc<Mutex<Vec<Status>>>,
}

impl Cluster {
    fn start(&self, number: u32) {
        let host = self.sim.host(number);
        let network = self.network.clone();
        host.at_death(move |_| network.crash(&address(number)));
        let mut settings = Settings::default();
        settings.timing = Timing {
            heartbeat: Duration::from_millis(50),
            failover_min: Duration::from_millis(500),
            failover_max: Duration::from_secs(1),
        };
        settings.snapshot_entries = 20;
        settings.log_entries_kept = 10;
        settings.log_segment_bytes = 1 << 20;
        settings.state_cache_bytes = Some(1 << 20);
        let identity = Identity::node(cluster_id(), u64::from(number));
        let builder = Node::builder()
            .data_dir(Path::new("/node"))
            .cluster(NAME)
            .node_id(u64::from(number))
            .peers((1..=NODES).map(|number| (u64::from(number), address(number))))
            .transport(self.network.transport(identity, &address(number)))
            .disk(Arc::new(host.disk()))
            .tap(self.taps.start(u64::from(number)))
            .settings(settings);
        let (statuses, taps) = (Arc::clone(&self.statuses), self.taps.clone());
        host.spawn("node", async move {
            let node = builder.start().await.expect("nothing speaks against a start");
            loop {
                let status = node.status();
                if let Some(purged) = status.purged {
                    taps.purged(u64::from(number), purged);
                }
                lock(&statuses).push(status);
                env::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn client(&self, name: &str, limits: Limits) -> Client {
        let identity = Identity::client(cluster_id(), name).expect("a legal name");
        let transport = self.network.transport(identity, name);
        Client::connect((1..=NODES).map(address), transport, limits).expect("legal addresses")
    }
}

fn address(number: u32) -> String {
    format!("node-{number}:7000")
}

fn cluster_id() -> ClusterId {
    ClusterId::new(NAME).expect("a legal name")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

//! The clients of a simulated cluster: the common workload, at the pace and on the keys of the plan.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use quorate_kv::Client;
use quorate_kv::env;
use quorate_kv::model::Limits;

use super::Cluster;
use crate::check::history::Call;
use crate::check::workload::{Book, Clients, Style, Tally, Worker, lax_limits};
use crate::sim::Rng;

/// All operations of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) book: Book,
}

/// How many operations ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// Writes acknowledged.
    pub written: u64,
    /// Reads answered.
    pub read: u64,
    /// Writes whose outcome the client does not know.
    pub unknown: u64,
    /// Operations that failed for certain, or were refused.
    pub failed: u64,
}

/// The calls that only read.
const READS: [&str; 10] = [
    "get",
    "range",
    "read",
    "broker",
    "brokers",
    "topic",
    "topics",
    "partition",
    "partitions",
    "describe",
];

impl History {
    /// What was called through clients, and how it ended.
    pub(super) fn calls(&self) -> Vec<Call> {
        self.book.history().calls
    }

    pub(super) fn counts(&self) -> OperationCounts {
        let mut counts = OperationCounts::default();
        for (method, tally) in self.book.tallies() {
            let Tally {
                done,
                refused,
                failed,
                unknown,
            } = tally;
            // Neither reads nor writes anything.
            if method == "close" {
                continue;
            }
            if READS.contains(&method) || method == "image" {
                counts.read += done;
            } else {
                counts.written += done;
            }
            counts.unknown += unknown;
            counts.failed += refused + failed;
        }
        counts
    }
}

/// The clients at work.
pub(super) struct Workers {
    stop: Rc<Cell<bool>>,
    running: Rc<Cell<u32>>,
}

impl Workers {
    /// Lets each finish the operation that it is at.
    pub(super) async fn stop(self) {
        self.stop.set(true);
        while self.running.get() > 0 {
            env::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(super) fn start(cluster: &Cluster) -> Workers {
    let workers = Workers {
        stop: Rc::default(),
        running: Rc::new(Cell::new(cluster.plan.clients + cluster.plan.readers)),
    };
    let style = Style {
        keys: cluster.plan.keys,
        pause_max: cluster.plan.pause_max,
        deadline: Duration::from_secs(1),
        hurried: !cluster.plan.is_calm(),
        compacts: true,
        meta_every: 5,
    };
    let mut shared = None;
    for number in 0..cluster.plan.clients {
        let (stop, running) = (Rc::clone(&workers.stop), Rc::clone(&workers.running));
        let clients = match shared.take().filter(|_| number % cluster.plan.sharing != 0) {
            Some(clients) => clients,
            None => clients_of(cluster, number),
        };
        shared = Some(Clients::clone(&clients));
        let random = cluster.sim.rng(&format!("worker {number}"));
        let book = cluster.history.borrow().book.clone();
        let mut pace = Pace::new(cluster, number);
        let mut worker = Worker::new(number, style, clients, random, cluster.record.clock(), book);
        cluster.sim.spawn_local("client", async move {
            while !stop.get() {
                pace.rest_if_tired().await;
                worker.step().await;
            }
            running.set(running.get() - 1);
        });
    }
    // Of a read that goes on for long anything new enough at its beginning is right: short ones ask for more.
    let style = Style {
        deadline: Duration::from_millis(100),
        ..style
    };
    for number in 0..cluster.plan.readers {
        let (stop, running) = (Rc::clone(&workers.stop), Rc::clone(&workers.running));
        let name = format!("reader-{number}");
        let client = cluster.client_of(&name, number % cluster.plan.nodes + 1);
        let clients = Clients {
            main: client.clone(),
            other: client.clone(),
            lax: client,
        };
        let number = cluster.plan.clients + number;
        let (random, book) = (cluster.sim.rng(&name), cluster.history.borrow().book.clone());
        let mut pace = Pace::new(cluster, number);
        let mut worker = Worker::new(number, style, clients, random, cluster.record.clock(), book);
        cluster.sim.spawn_local("reader", async move {
            while !stop.get() {
                pace.rest_if_tired().await;
                worker.look().await;
            }
            running.set(running.get() - 1);
        });
    }
    workers
}

/// The clients of a caller's own.
fn clients_of(cluster: &Cluster, number: u32) -> Clients {
    let client = |part: &str| cluster.client(&format!("client-{number}{part}"));
    Clients {
        main: client(""),
        other: client("-other"),
        lax: cluster.client_with(&format!("client-{number}-lax"), lax_limits()),
    }
}

/// When a client works, and when it rests: what takes time (elections, checkpoints, a node that comes back late)
/// meets an idle cluster too, and a run's simulated time is not all spent on calls.
struct Pace {
    cluster: Cluster,
    random: Rng,
    tired_at: Duration,
}

impl Pace {
    /// How often a client that rests looks whether all faults have ended, since then it works without rests.
    const LOOK: Duration = Duration::from_millis(100);

    fn new(cluster: &Cluster, number: u32) -> Self {
        let mut pace = Self {
            cluster: cluster.clone(),
            random: cluster.sim.rng(&format!("rests of worker {number}")),
            tired_at: Duration::ZERO,
        };
        pace.work();
        pace
    }

    fn work(&mut self) {
        let busy = self.random.duration(Duration::ZERO, self.cluster.plan.busy_max);
        self.tired_at = self.cluster.sim.now() + busy;
    }

    async fn rest_if_tired(&mut self) {
        let rest_max = self.cluster.plan.rest_max;
        if rest_max.is_zero() || self.cluster.is_healed() || self.cluster.sim.now() < self.tired_at {
            return;
        }
        let until = self.cluster.sim.now() + self.random.duration(Duration::ZERO, rest_max);
        while !self.cluster.is_healed() && self.cluster.sim.now() < until {
            env::sleep(Self::LOOK.min(until - self.cluster.sim.now())).await;
        }
        self.work();
    }
}

impl Cluster {
    /// A client of its own, which asks the nodes in the order that its name draws.
    pub(super) fn client(&self, name: &str) -> Client {
        self.client_with(name, Limits::default())
    }
}

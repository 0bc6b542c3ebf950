//! The clients of a simulated cluster: the common workload, at the pace and on the keys of the plan.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use quorate_kv::Client;
use quorate_kv::env;
use quorate_kv::model::Limits;

use super::Cluster;
use crate::check::workload::{Book, Clients, Style, Tally, Worker, lax_limits};

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
const READS: [&str; 11] = [
    "get",
    "get_with",
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
    pub(super) fn counts(&self) -> OperationCounts {
        let mut counts = OperationCounts::default();
        for (method, tally) in self.book.tallies() {
            let Tally {
                done,
                refused,
                failed,
                unknown,
            } = tally;
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
        running: Rc::new(Cell::new(cluster.plan.clients)),
    };
    let style = Style {
        keys: cluster.plan.keys,
        pause_max: cluster.plan.pause_max,
        deadline: Duration::from_secs(1),
        hurried: !cluster.plan.is_calm(),
        meta_every: 5,
    };
    for number in 0..cluster.plan.clients {
        let (stop, running) = (Rc::clone(&workers.stop), Rc::clone(&workers.running));
        let client = |part: &str| cluster.client(&format!("client-{number}{part}"));
        let clients = Clients {
            main: client(""),
            other: client("-other"),
            lax: cluster.client_with(&format!("client-{number}-lax"), lax_limits()),
        };
        let random = cluster.sim.rng(&format!("worker {number}"));
        let book = cluster.history.borrow().book.clone();
        let mut worker = Worker::new(number, style, clients, random, cluster.record.clock(), book);
        cluster.sim.spawn_local("client", async move {
            while !stop.get() {
                worker.step().await;
            }
            running.set(running.get() - 1);
        });
    }
    workers
}

impl Cluster {
    /// A client of its own, which asks the nodes in the order that its name draws.
    pub(super) fn client(&self, name: &str) -> Client {
        self.client_with(name, Limits::default())
    }
}

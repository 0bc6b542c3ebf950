//! What clients do, and what they were told.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::env;
use quorate_kv::model::{
    Consistency, Key, Op, OpResult, ReadOp, ReadResult, Record, Revision, Txn, TxnResponse,
};

use super::Cluster;
use crate::sim::Rng;

/// One operation.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    #[allow(dead_code, reason = "told by Debug where an operation is reported")]
    pub(super) client: u32,
    pub(super) request: Request,
    /// When it was called and when it was answered, on the simulation's clock.
    pub(super) call: Duration,
    pub(super) ret: Duration,
    pub(super) answer: Answer,
}

#[derive(Debug, Clone)]
pub(super) enum Request {
    /// Writes a value that nobody else writes.
    Put { key: Key, value: Bytes },
    /// Creates a key that nobody else creates: done twice, it would be refused.
    Create { key: Key, value: Bytes },
    /// Adds 1, and writes a value that nobody else writes, in one transaction.
    Add { counter: Key, key: Key, value: Bytes },
    /// Reads a key, linearizably.
    Get { key: Key },
}

#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// It made this revision; of an add, the number that came of it.
    Written { revision: Revision, number: Option<i64> },
    /// The key as it was at this revision.
    Read {
        revision: Revision,
        record: Option<Record>,
    },
    /// It may have happened, may yet, or never.
    Unknown,
    /// It has not happened, and will not.
    Failed(String),
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) operations: Vec<Operation>,
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
    /// Operations that failed for certain.
    pub failed: u64,
}

impl History {
    pub(super) fn counts(&self) -> OperationCounts {
        let mut counts = OperationCounts::default();
        for operation in &self.operations {
            match operation.answer {
                Answer::Written { .. } => counts.written += 1,
                Answer::Read { .. } => counts.read += 1,
                Answer::Unknown => counts.unknown += 1,
                Answer::Failed(_) => counts.failed += 1,
            }
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
    for number in 0..cluster.plan.clients {
        let (stop, running) = (Rc::clone(&workers.stop), Rc::clone(&workers.running));
        let worker = Worker {
            number,
            client: cluster.client(&format!("client-{number}")),
            cluster: cluster.clone(),
            random: cluster.sim.rng(&format!("worker {number}")),
            done: 0,
        };
        cluster.sim.spawn_local("client", async move {
            worker.run(&stop).await;
            running.set(running.get() - 1);
        });
    }
    workers
}

struct Worker {
    number: u32,
    client: Client,
    cluster: Cluster,
    random: Rng,
    done: u64,
}

impl Worker {
    async fn run(mut self, stop: &Cell<bool>) {
        while !stop.get() {
            let pause = self.random.duration(Duration::ZERO, self.cluster.plan.pause_max);
            env::sleep(pause).await;
            let request = self.next();
            let deadline = self
                .random
                .duration(Duration::from_secs(1), Duration::from_secs(8));
            let client = self.client.with_deadline(deadline);
            let call = self.cluster.sim.now();
            let answer = ask(&client, &request).await;
            let operation = Operation {
                client: self.number,
                request,
                call,
                ret: self.cluster.sim.now(),
                answer,
            };
            self.cluster.history.borrow_mut().operations.push(operation);
        }
    }

    fn next(&mut self) -> Request {
        self.done += 1;
        let unique = format!("{}/{}", self.number, self.done);
        let len = *self.random.pick(&[0, 0, 10, 1_000, 20_000]);
        let mut value = unique.clone().into_bytes();
        value.resize(value.len() + len, b'.');
        let (value, shared) = (Bytes::from(value), self.random.below(self.cluster.plan.keys));
        match self.random.below(10) {
            0..=2 => Request::Put {
                key: key(format!("put/{shared}")),
                value,
            },
            3 => Request::Create {
                key: key(format!("create/{unique}")),
                value,
            },
            4..=5 => Request::Add {
                counter: key(format!("counter/{shared}")),
                key: key(format!("added/{shared}")),
                value,
            },
            _ => Request::Get {
                key: key(format!("put/{shared}")),
            },
        }
    }
}

pub(super) fn key(name: impl Into<Bytes>) -> Key {
    Key::new(name).expect("a legal key")
}

async fn ask(client: &Client, request: &Request) -> Answer {
    let written = match request {
        Request::Put { key, value } => client.txn(Txn::new([Op::put(key.clone(), value.clone())])).await,
        Request::Create { key, value } => {
            client
                .txn(Txn::new([Op::create(key.clone(), value.clone())]))
                .await
        }
        Request::Add { counter, key, value } => {
            let add = Op::Add {
                key: counter.clone(),
                delta: 1,
            };
            client
                .txn(Txn::new([add, Op::put(key.clone(), value.clone())]))
                .await
        }
        Request::Get { key } => {
            let read = client
                .read(vec![ReadOp::Get(key.clone())], Consistency::Linearizable)
                .await;
            return match read {
                Ok(response) => match response.results.into_iter().next() {
                    Some(ReadResult::Get(record)) => Answer::Read {
                        revision: response.revision,
                        record,
                    },
                    other => Answer::Failed(format!("a get was answered with {other:?}")),
                },
                Err(error) => Answer::Failed(error.to_string()),
            };
        }
    };
    match written {
        Ok(TxnResponse {
            revision, results, ..
        }) => {
            let number = results.iter().find_map(|result| match result {
                OpResult::Number(number) => Some(*number),
                _ => None,
            });
            Answer::Written { revision, number }
        }
        Err(error) if error.may_have_committed() => Answer::Unknown,
        // Refused for what it had done itself: it was done twice.
        Err(Error::Refused(refused)) => Answer::Failed(format!("refused: {refused}")),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

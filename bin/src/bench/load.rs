//! The callers and what they measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use quorate_kv::Client;
use quorate_kv::client::Error;
use quorate_kv::model::{Key, Op, Txn};
use rand::Rng as _;

use crate::cli::{BenchArgs, BenchOp};
use crate::failure::Failure;
use crate::output::{Format, Output};
use crate::reach::{self, Reached};

/// How many puts a transaction of the load has.
pub fn ops_per_txn(args: &BenchArgs) -> u32 {
    args.ops_per_txn.unwrap_or(10)
}

/// What all callers did together.
#[derive(Debug)]
pub struct Measured {
    /// How long the measurement took.
    pub took: Duration,
    /// Operations that succeeded.
    pub ok: u64,
    /// Operations that did not.
    pub errors: u64,
    /// What the first of those met.
    pub first_error: Option<String>,
    /// The latencies of those that succeeded, in microseconds.
    pub latencies: Histogram<u64>,
}

/// A load that is ready to begin.
pub struct Load {
    plan: Arc<Plan>,
    connections: Vec<Client>,
    clients: u32,
    total: u64,
    warm_up: u64,
    progress: ProgressBar,
}

/// What every caller does.
struct Plan {
    op: BenchOp,
    keys: u64,
    value: Bytes,
    ops_per_txn: u64,
}

impl Load {
    /// Connects, opens the sessions, and writes what is to be read.
    pub async fn prepare(args: &BenchArgs, reached: &Reached, output: Output) -> Result<Self, Failure> {
        let mut value = vec![0; args.value_size];
        // Random, so that nothing on the way can make it small.
        rand::rng().fill_bytes(&mut value);
        let plan = Plan {
            op: args.op,
            keys: args.keys,
            value: value.into(),
            ops_per_txn: u64::from(ops_per_txn(args)),
        };
        let count = connections(args);
        let connections: Result<Vec<Client>, Failure> = (0..count as usize)
            .map(|index| reached.client_from(index))
            .collect();
        let connections = connections?;
        for client in &connections {
            client.put("bench/warm-up", "").await?;
        }
        let progress = if output.format() == Format::Json {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(args.total)
        };
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {per_sec} {eta}") {
            progress.set_style(style);
        }
        let load = Self {
            plan: Arc::new(plan),
            connections,
            clients: args.clients,
            total: args.total,
            warm_up: args.warm_up,
            progress,
        };
        if matches!(args.op, BenchOp::Get | BenchOp::StaleGet) {
            load.fill().await?;
        }
        Ok(load)
    }

    /// Gives the connections' sessions back to the cluster.
    pub async fn close(self) {
        futures_util::future::join_all(self.connections.into_iter().map(reach::close)).await;
    }

    /// Writes all keys, for loads that read them.
    async fn fill(&self) -> Result<(), Failure> {
        const BATCH_OPS: u64 = 500;
        const BATCH_BYTES: u64 = 4 << 20;
        let size = self.plan.value.len() as u64 + 64;
        let batch = (BATCH_BYTES / size).clamp(1, BATCH_OPS);
        let Some(client) = self.connections.first() else {
            return Ok(());
        };
        self.progress.set_message("filling");
        let mut next = 0;
        while next < self.plan.keys {
            let end = (next + batch).min(self.plan.keys);
            let ops = (next..end).map(|index| self.plan.put(index));
            client.commit(Txn::new(ops)).await?;
            next = end;
        }
        Ok(())
    }

    /// Runs the warm-up, then the measurement.
    pub async fn run(&self) -> Result<Measured, Failure> {
        self.progress.set_message("warming up");
        self.round(0, self.warm_up, false).await?;
        self.progress.set_message("measuring");
        self.progress.reset();
        let measured = self.round(self.warm_up, self.total, true).await?;
        self.progress.finish_and_clear();
        Ok(measured)
    }

    /// `count` operations, numbered from `first` on, by all callers.
    async fn round(&self, first: u64, count: u64, show: bool) -> Result<Measured, Failure> {
        let next = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let callers = (0..self.clients as usize).map(|caller| {
            let client = self.connections[caller % self.connections.len()].clone();
            let (plan, next) = (Arc::clone(&self.plan), Arc::clone(&next));
            let progress = if show {
                self.progress.clone()
            } else {
                ProgressBar::hidden()
            };
            tokio::spawn(async move {
                let mut own = Own::new();
                loop {
                    // Relaxed: each number is taken once, and nothing else hangs on it.
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return own;
                    }
                    let begun = Instant::now();
                    let result = plan.run(&client, first + number).await;
                    own.note(begun.elapsed(), result);
                    progress.inc(1);
                }
            })
        });
        let finished = join_all(callers.collect::<Vec<_>>()).await;
        let took = begun.elapsed();
        let mut all = Own::new();
        for own in finished {
            let own = own.map_err(|error| Failure::failed(format!("a caller ended: {error}")))?;
            all.add(own);
        }
        let Own {
            latencies,
            errors,
            first_error,
        } = all;
        Ok(Measured {
            took,
            ok: latencies.len(),
            errors,
            first_error,
            latencies,
        })
    }
}

/// How many connections the callers share: no more than there are callers, and enough that no session holds more
/// unanswered writes than the nodes let it.
pub(super) fn connections(args: &BenchArgs) -> u32 {
    const CALLERS_MAX: u32 = 2_048;
    args.connections
        .min(args.clients)
        .max(args.clients.div_ceil(CALLERS_MAX))
}

impl Plan {
    async fn run(&self, client: &Client, number: u64) -> Result<(), Error> {
        match self.op {
            BenchOp::Put => {
                client.commit(Txn::new([self.put(number)])).await?;
            }
            BenchOp::Txn => {
                let first = number.wrapping_mul(self.ops_per_txn);
                let ops = (0..self.ops_per_txn).map(|i| self.put(first + i));
                client.commit(Txn::new(ops)).await?;
            }
            BenchOp::Get => {
                client.get(self.key(number)).await?;
            }
            BenchOp::StaleGet => {
                client.get(self.key(number)).stale().await?;
            }
        }
        Ok(())
    }

    fn put(&self, number: u64) -> Op {
        Op::put(self.key(number), self.value.clone())
    }

    /// Numbers that follow each other name different keys, scattered over the whole space, until all had a turn.
    fn key(&self, number: u64) -> Key {
        // A prime larger than any space divides none, so that the step meets every key.
        const STEP: u128 = 18_446_744_073_709_551_557;
        let scattered = u128::from(number) * STEP % u128::from(self.keys);
        Key::from(format!("bench/{scattered:012}"))
    }
}

/// One caller's measurements.
struct Own {
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<String>,
}

impl Own {
    fn new() -> Self {
        // Three digits, from a microsecond on; it grows by itself.
        // Fixed bounds, since `saturating_record` does not widen them: 1 µs to 10 minutes, to three digits.
        let latencies = Histogram::new_with_bounds(1, 600_000_000, 3)
            .unwrap_or_else(|_| unreachable!("the bounds are in order and three digits are allowed"));
        Self {
            latencies,
            errors: 0,
            first_error: None,
        }
    }

    fn note(&mut self, took: Duration, result: Result<(), Error>) {
        match result {
            Ok(()) => self
                .latencies
                .saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn add(&mut self, other: Own) {
        // Both grow by themselves, so nothing is out of range.
        let _ = self.latencies.add(&other.latencies);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

//! The work, the same for both sides.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use quorate_kv::Client;
use quorate_kv::model::{Op, Txn};

use crate::etcd;

pub const VALUE_BYTES: usize = 256;
const KEYS: u64 = 10_000;
const PUTS_A_TXN: u64 = 100;
const WARM_UP: Duration = Duration::from_secs(1);

/// What is done again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    LonePut,
    Transactions,
    Puts,
    Gets,
}

impl Load {
    pub const ALL: [Load; 4] = [Load::LonePut, Load::Transactions, Load::Puts, Load::Gets];

    pub fn name(self) -> &'static str {
        match self {
            Load::LonePut => "put, 1 client, p50",
            Load::Transactions => "transactions of 100 puts, 8 clients",
            Load::Puts => "puts, 64 clients",
            Load::Gets => "linearizable gets, 64 clients",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Load::LonePut => "µs",
            Load::Transactions | Load::Puts | Load::Gets => "/s",
        }
    }

    pub fn goal(self) -> Option<f64> {
        (self == Load::LonePut).then_some(2.0)
    }

    fn clients(self) -> usize {
        match self {
            Load::LonePut => 1,
            Load::Transactions => 8,
            Load::Puts | Load::Gets => 64,
        }
    }
}

/// A connection to one of the two.
#[derive(Debug, Clone)]
pub enum Store {
    Quorate(Client),
    Etcd(etcd::Client),
}

impl Store {
    async fn put(&self, keys: &[String], value: &Bytes) -> Result<()> {
        match self {
            Store::Quorate(client) => {
                let ops = keys.iter().map(|key| Op::put(key, value));
                client.commit(Txn::new(ops)).await?;
            }
            Store::Etcd(client) => match keys {
                [key] => client.put(key, value).await?,
                keys => client.put_all(keys, value).await?,
            },
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<()> {
        let found = match self {
            Store::Quorate(client) => client.get(key).await?.map(|record| record.value.len()),
            Store::Etcd(client) => client.get(key).await?,
        };
        anyhow::ensure!(found == Some(VALUE_BYTES), "{key} has a value of {found:?} bytes");
        Ok(())
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct Measured {
    /// Operations a second.
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
            self.rate,
            millis(self.p50),
            millis(self.p99)
        )
    }
}

/// A value that nothing on the way can make small.
fn value() -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

/// Numbers that follow each other name different keys, scattered over all of them.
fn key(number: u64) -> String {
    const STEP: u128 = 18_446_744_073_709_551_557;
    format!("bench/{:012}", u128::from(number) * STEP % u128::from(KEYS))
}

/// Writes all keys.
pub async fn fill(store: &Store) -> Result<()> {
    let value = value();
    for first in (0..KEYS).step_by(PUTS_A_TXN as usize) {
        let keys: Vec<String> = (first..first + PUTS_A_TXN).map(key).collect();
        store.put(&keys, &value).await?;
    }
    Ok(())
}

/// Warms up, then measures for `time`.
pub async fn run(load: Load, stores: &Arc<Vec<Store>>, time: Duration) -> Result<Measured> {
    round(load, stores, WARM_UP).await?;
    round(load, stores, time).await
}

async fn round(load: Load, stores: &Arc<Vec<Store>>, time: Duration) -> Result<Measured> {
    let (next, value) = (Arc::new(AtomicU64::new(0)), value());
    let begun = Instant::now();
    let callers: Vec<_> = (0..load.clients())
        .map(|caller| {
            let store = stores[caller % stores.len()].clone();
            let (next, value) = (Arc::clone(&next), value.clone());
            tokio::spawn(async move {
                let mut latencies = histogram()?;
                while begun.elapsed() < time {
                    // Relaxed: each number is taken once, and nothing else hangs on it.
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let asked = Instant::now();
                    match load {
                        Load::LonePut | Load::Puts => store.put(&[key(number)], &value).await?,
                        Load::Gets => store.get(&key(number)).await?,
                        Load::Transactions => {
                            let first = number * PUTS_A_TXN;
                            let keys: Vec<String> = (first..first + PUTS_A_TXN).map(key).collect();
                            store.put(&keys, &value).await?;
                        }
                    }
                    let took = asked.elapsed().as_micros();
                    latencies.saturating_record(u64::try_from(took).unwrap_or(u64::MAX));
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut all = histogram()?;
    for caller in callers {
        all.add(caller.await.context("a caller ended")??)?;
    }
    let micros = |part| Duration::from_micros(all.value_at_quantile(part));
    Ok(Measured {
        rate: all.len() as f64 / begun.elapsed().as_secs_f64(),
        p50: micros(0.5),
        p99: micros(0.99),
    })
}

fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 600_000_000, 3)?)
}

//! What does a call cost where the caller and a node share a process?
//!
//! Gets and puts through [`Node::client`](quorate_kv::Node::client), of one caller and of a hundred: on a node alone, and on
//! the leader of three, whose followers are reached by QUIC over the loopback device (they are in this process too, each in
//! a runtime of its own). The keys were written, brought into the state file by a checkpoint, and read once before.
//!
//! `cargo bench -p quorate-benches --bench embedded`; `-- --json` for one object a row, `-- --only WORD` for the rows with a
//! word in their names; `QUORATE_BENCH_KEYS` for another number of keys, `QUORATE_BENCH_SECONDS` for longer rows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use quorate_benches::cluster::Embedded;
use quorate_benches::facts;
use quorate_kv::Client;
use quorate_kv::model::{Consistency, Key, Op, ReadOp, ReadResult, Txn};
use tokio::runtime::Runtime;

/// How long a row is measured, after a warm-up of a quarter of it.
const SECONDS: f64 = 4.0;
const VALUE: &[u8] = &[b'v'; 128];
const MANY: u64 = 100;
/// Keys of a batch of gets.
const BATCH: u64 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Get(Consistency),
    Batch(Consistency),
    Put,
}

const STALE: Consistency = Consistency::Stale {
    min_revision: None,
    max_lag: None,
};

/// The rows: what it is called, on how many nodes, by how many callers.
const ROWS: [(&str, u64, u64, What); 10] = [
    ("embedded stale get, 1 caller", 1, 1, What::Get(STALE)),
    ("embedded stale get, 100 callers", 1, MANY, What::Get(STALE)),
    (
        "embedded stale batch of 10 gets, 1 caller",
        1,
        1,
        What::Batch(STALE),
    ),
    (
        "embedded one node linearizable get, 1 caller",
        1,
        1,
        What::Get(Consistency::Linearizable),
    ),
    (
        "embedded one node linearizable get, 100 callers",
        1,
        MANY,
        What::Get(Consistency::Linearizable),
    ),
    ("embedded one node put, 1 caller", 1, 1, What::Put),
    (
        "embedded three nodes linearizable get, 1 caller",
        3,
        1,
        What::Get(Consistency::Linearizable),
    ),
    (
        "embedded three nodes linearizable get, 100 callers",
        3,
        MANY,
        What::Get(Consistency::Linearizable),
    ),
    ("embedded three nodes put, 1 caller", 3, 1, What::Put),
    ("embedded three nodes put, 100 callers", 3, MANY, What::Put),
];

/// What was asked for on the command line and in the environment.
struct Asked {
    json: bool,
    only: Option<String>,
    keys: u64,
    seconds: f64,
}

impl Asked {
    fn read() -> Result<Self> {
        let mut asked = Self {
            json: false,
            only: None,
            keys: number("QUORATE_BENCH_KEYS")?.unwrap_or(10_000.0) as u64,
            seconds: number("QUORATE_BENCH_SECONDS")?.unwrap_or(SECONDS),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--json" => asked.json = true,
                "--only" => asked.only = Some(words.next().context("--only takes a word")?),
                // Cargo's own.
                "--bench" => {}
                other => bail!("{other:?} is not known: --json, --only WORD"),
            }
        }
        Ok(asked)
    }

    fn wants(&self, nodes: u64) -> impl Iterator<Item = &'static (&'static str, u64, u64, What)> {
        ROWS.iter().filter(move |(name, of, ..)| {
            *of == nodes && self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
        })
    }
}

fn number(variable: &str) -> Result<Option<f64>> {
    let text = std::env::var(variable).ok();
    text.map(|text| text.parse().with_context(|| format!("{variable}={text}")))
        .transpose()
}

fn main() -> Result<()> {
    let asked = Asked::read()?;
    let dir = facts::directory();
    if !asked.json {
        println!("What does a call cost where the caller and a node share a process?\n");
        for fact in facts::describe(&dir)? {
            println!("{fact}");
        }
        println!(
            "\n{:52} {:>9} {:>9} {:>9} {:>9}",
            "", "calls/s", "p50 µs", "p99 µs", "max µs"
        );
    }
    for nodes in [1, 3] {
        if asked.wants(nodes).next().is_some() {
            on_nodes(nodes, &asked, &dir)?;
        }
    }
    Ok(())
}

fn on_nodes(nodes: u64, asked: &Asked, dir: &Path) -> Result<()> {
    let cluster = Embedded::start(nodes, dir)?;
    let client = cluster.client();
    let keys = asked.keys;
    cluster.runtime().block_on(fill(client, keys))?;
    for (name, _, callers, what) in asked.wants(nodes) {
        let seconds = Duration::from_secs_f64(asked.seconds);
        measure(cluster.runtime(), client, keys, *callers, *what, seconds / 4)?;
        let took = measure(cluster.runtime(), client, keys, *callers, *what, seconds)?;
        let micros = |quantile| took.value_at_quantile(quantile) as f64 / 1e3;
        let a_second = took.len() as f64 / asked.seconds;
        if asked.json {
            println!(
                "{{\"row\":\"{name}\",\"keys\":{keys},\"calls_per_second\":{a_second:.0},\"p50_us\":{:.2},\
                 \"p99_us\":{:.2},\"max_us\":{:.1}}}",
                micros(0.5),
                micros(0.99),
                micros(1.0)
            );
        } else {
            println!(
                "{name:52} {a_second:9.0} {:9.2} {:9.2} {:9.1}",
                micros(0.5),
                micros(0.99),
                micros(1.0)
            );
        }
    }
    cluster.stop();
    Ok(())
}

fn key(number: u64) -> Key {
    Key::from(format!("key/{number:010}"))
}

/// Writes all keys, waits until a checkpoint has them, and reads each once.
async fn fill(client: &Client, keys: u64) -> Result<()> {
    let numbers: Vec<u64> = (0..keys).collect();
    for some in numbers.chunks(1_000) {
        let puts = some.iter().map(|number| Op::put(key(*number), VALUE));
        client.commit(Txn::new(puts)).await?;
    }
    // One begins within this time of the last write, and takes far less.
    tokio::time::sleep(Duration::from_secs(7)).await;
    for some in numbers.chunks(50) {
        let gets = some.iter().map(|number| ReadOp::Get(key(*number)));
        client.read(gets).consistency(STALE).await?;
    }
    Ok(())
}

/// What calls of keys here and there take, in nanoseconds, by some callers at once.
fn measure(
    runtime: &Runtime,
    client: &Client,
    keys: u64,
    callers: u64,
    what: What,
    lasts: Duration,
) -> Result<Histogram<u64>> {
    let end = Instant::now() + lasts;
    let calls = (0..callers).map(|caller| {
        let client = client.clone();
        runtime.spawn(async move {
            let mut took = Histogram::<u64>::new(3)?;
            let mut at = caller.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            loop {
                at = at
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let number = (at >> 33) % keys;
                let began = Instant::now();
                call(&client, number, keys, what).await?;
                let now = Instant::now();
                took.record(u64::try_from((now - began).as_nanos())?)?;
                if now >= end {
                    return Ok::<_, anyhow::Error>(took);
                }
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    let mut all = Histogram::new(3)?;
    for call in calls {
        all.add(runtime.block_on(call)??)?;
    }
    Ok(all)
}

async fn call(client: &Client, number: u64, keys: u64, what: What) -> Result<()> {
    match what {
        What::Get(consistency) => {
            let Some(record) = client.get(key(number)).consistency(consistency).await? else {
                bail!("a key is lost");
            };
            if record.value != VALUE {
                bail!("a value is another");
            }
        }
        What::Batch(consistency) => {
            let gets = (0..BATCH).map(|next| ReadOp::Get(key((number + next) % keys)));
            let response = client.read(gets).consistency(consistency).await?;
            let found = response.results.iter();
            let found = found.filter(|result| matches!(result, ReadResult::Get(Some(_))));
            if found.count() as u64 != BATCH {
                bail!("a key is lost");
            }
        }
        What::Put => {
            client.put(key(number), VALUE).await?;
        }
    }
    Ok(())
}

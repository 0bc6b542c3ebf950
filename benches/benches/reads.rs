//! What does a scan cost those who read single keys beside it?
//!
//! The latency of point gets, linearizable and over the network, of one caller and of some, with nothing beside them and
//! beside a client that counts a million keys again and again, in turns. Ends with the ratio of their 99th percentiles.
//!
//! `cargo bench -p quorate-benches --bench reads`; `QUORATE_BENCH_KEYS` for another number of keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use quorate_benches::cluster::Cluster;
use quorate_benches::facts;
use quorate_kv::Client;
use quorate_kv::model::{Key, KeyRange, Op, Txn};
use quorate_transport::delay::Alarm;
use tokio::runtime::Runtime;

/// How long each part of a round lasts, and how many rounds there are.
const PART: Duration = Duration::from_secs(4);
const ROUNDS: usize = 4;
/// How many call at once.
const CALLERS: [u64; 2] = [1, 8];

fn main() -> Result<()> {
    let keys = std::env::var("QUORATE_BENCH_KEYS").map_or(Ok(1_000_000), |keys| keys.parse())?;
    println!("What does a count of {keys} keys cost those who read single keys beside it?\n");
    let dir = facts::directory();
    for fact in facts::describe(&dir)? {
        println!("{fact}");
    }
    Runtime::new()?.block_on(run(keys, &dir))
}

async fn run(keys: u64, dir: &std::path::Path) -> Result<()> {
    let cluster = Cluster::start(1, dir, Duration::ZERO, &Alarm::start()?).await?;
    let client = cluster.client();
    let numbers: Vec<u64> = (0..keys).collect();
    for some in numbers.chunks(10_000) {
        let puts = some
            .iter()
            .map(|number| Op::put(key(*number), "a value of some size"));
        client.commit(Txn::new(puts)).await?;
    }
    println!("\n                       gets/s      p50      p99      max   counts   each takes");
    for callers in CALLERS {
        let (mut alone, mut beside) = (Histogram::new(3)?, Histogram::new(3)?);
        let mut counts = 0;
        for round in 0..=ROUNDS {
            // The first warms up.
            let (mut alone_once, mut beside_once) = (Histogram::new(3)?, Histogram::new(3)?);
            part(client, keys, callers, None, &mut alone_once).await?;
            let counting = Counting::begin(client.clone(), keys);
            part(client, keys, callers, Some(&counting), &mut beside_once).await?;
            let counted = counting.end().await?;
            if round > 0 {
                alone.add(&alone_once)?;
                beside.add(&beside_once)?;
                counts += counted;
            }
        }
        let of = |what: &str, histogram: &Histogram<u64>, counts: u64| {
            let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
            let seconds = PART.as_secs_f64() * ROUNDS as f64;
            let each = if counts == 0 {
                String::new()
            } else {
                format!("{:9} {:9.0} ms", counts, seconds * 1e3 / counts as f64)
            };
            println!(
                "{callers} callers, {what:8} {:8.0} {:6.2} ms {:6.2} ms {:6.2} ms{each}",
                histogram.len() as f64 / seconds,
                ms(0.5),
                ms(0.99),
                ms(1.0)
            );
        };
        of("alone", &alone, 0);
        of("beside", &beside, counts);
        let ratio = beside.value_at_quantile(0.99) as f64 / alone.value_at_quantile(0.99) as f64;
        println!("{callers} callers: the 99th percentile is {ratio:.2} times as long beside a count");
    }
    cluster.stop().await;
    Ok(())
}

fn key(number: u64) -> Key {
    Key::from(format!("key/{number:010}"))
}

/// Gets of keys here and there, by some callers at once.
async fn part(
    client: &Client,
    keys: u64,
    callers: u64,
    counting: Option<&Counting>,
    histogram: &mut Histogram<u64>,
) -> Result<()> {
    if let Some(counting) = counting {
        counting.under_way().await;
    }
    let end = Instant::now() + PART;
    let calls = (0..callers).map(|caller| {
        let client = client.clone();
        tokio::spawn(async move {
            let mut took = Histogram::<u64>::new(3)?;
            let mut at = caller.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            while Instant::now() < end {
                at = at
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let began = Instant::now();
                let record = client.get(key((at >> 33) % keys)).await?;
                took.record(u64::try_from(began.elapsed().as_nanos())?)?;
                if record.is_none() {
                    bail!("a key is lost");
                }
            }
            Ok(took)
        })
    });
    for call in calls.collect::<Vec<_>>() {
        histogram.add(call.await??)?;
    }
    Ok(())
}

/// Someone who counts all keys again and again.
struct Counting {
    stop: Arc<AtomicBool>,
    begun: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<u64>>,
}

impl Counting {
    fn begin(client: Client, keys: u64) -> Self {
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn({
            let (stop, begun) = (Arc::clone(&stop), Arc::clone(&begun));
            async move {
                let client = client.with_deadline(Duration::from_secs(60));
                let mut counts = 0;
                while !stop.load(Ordering::Relaxed) {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let count = client.count(KeyRange::prefix("key/")).await?;
                    if count != keys {
                        bail!("a count of {keys} keys was answered with {count}");
                    }
                    counts += 1;
                }
                Ok(counts)
            }
        });
        Self { stop, begun, task }
    }

    async fn under_way(&self) {
        while self.begun.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

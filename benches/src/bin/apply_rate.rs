//! How many small writes a second does the state machine apply, and how many reads does it answer?
//!
//! One thread, the real disk, no Raft and no log: the ceiling of what a node can do. Run it with
//! `cargo run --release -p quorate-benches --bin apply_rate -- [directory]`.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures time, and runs outside the simulator"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::{Entry, EntryOutcome, Machine, MachineSettings, OpenMode, Payload, Reader};
use quorate_kv::model::{
    Command, Key, KeyRange, LogIndex, LogPosition, LogTime, NodeId, Op, Outcome, Proposal, RangeRead, ReadOp,
    Sequence, SessionId, SessionRef, Term, Txn, encode,
};

/// Entries that one apply takes: of a node at its ease, and of one that is behind.
const BATCH: u64 = 64;
const LARGE_BATCH: u64 = 1_024;
const VALUE_BYTES: usize = 100;
/// A node makes its state durable in the background, so often at least.
const ENTRIES_PER_DURABLE: u64 = 16 * 1024;

fn main() -> anyhow::Result<()> {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(parent)?;

    let mut bench = Bench::create(&dir.path().join("fresh"))?;
    bench.puts("fresh keys, ascending", 400_000, BATCH, |i| i, false)?;
    let mut bench = Bench::create(&dir.path().join("random"))?;
    bench.puts("fresh keys, in random order", 400_000, BATCH, scatter, false)?;
    bench.puts(
        "overwritten keys, in random order",
        200_000,
        BATCH,
        scatter,
        false,
    )?;
    bench.puts("the same in large batches", 200_000, LARGE_BATCH, scatter, false)?;
    bench.puts("the same in a session", 200_000, BATCH, scatter, true)?;
    let hot = |i| scatter(i % 1_000);
    bench.puts("1,000 hot keys in a session", 200_000, BATCH, hot, true)?;
    bench.puts("the same in large batches", 200_000, LARGE_BATCH, hot, true)?;
    bench.reads()?;
    bench.verify()?;

    for count in [10_000, 100_000] {
        let mut bench = Bench::create(&dir.path().join(format!("one-{count}")))?;
        bench.one_transaction(count)?;
        bench.one_transaction(count)?;
    }
    Ok(())
}

/// The time that this thread was on a processor: on a busy machine the wall clock measures the others.
fn busy() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// A permutation of the numbers below 2^64.
fn scatter(i: u64) -> u64 {
    let mut x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

fn key(number: u64) -> anyhow::Result<Key> {
    Ok(Key::new(format!("k/{number:016x}"))?)
}

struct Bench {
    machine: Machine,
    reader: Reader,
    index: u64,
}

impl Bench {
    fn create(dir: &Path) -> anyhow::Result<Self> {
        let settings = MachineSettings::default();
        let (machine, reader) = Machine::open(Arc::new(RealDisk), dir, OpenMode::Create, settings)?;
        Ok(Self {
            machine,
            reader,
            index: 0,
        })
    }

    fn entry(&mut self, command: Command) -> Entry {
        self.index += 1;
        let proposal = Proposal {
            stamp: LogTime::from_millis(self.index / 1_000),
            full_at: None,
            commands: vec![command],
        };
        Entry {
            position: LogPosition {
                term: Term::new(1),
                leader: NodeId::new(1),
                index: LogIndex::new(self.index),
            },
            payload: Payload::Proposal(encode(&proposal).into()),
        }
    }

    fn open_session(&mut self) -> anyhow::Result<SessionId> {
        let entry = self.entry(Command::open_session(1_000_000));
        match self.machine.apply(vec![entry])?.pop() {
            Some(EntryOutcome::Proposal(outcomes)) => match outcomes.first() {
                Some(Outcome::SessionOpened(Ok(opened))) => Ok(opened.session),
                other => bail!("opening a session answered {other:?}"),
            },
            other => bail!("a proposal answered {other:?}"),
        }
    }

    fn puts(
        &mut self,
        name: &str,
        count: u64,
        batch_len: u64,
        number: fn(u64) -> u64,
        session: bool,
    ) -> anyhow::Result<()> {
        let session = if session { Some(self.open_session()?) } else { None };
        let value = Bytes::from(vec![7u8; VALUE_BYTES]);
        let mut batches = Vec::new();
        for first in (0..count).step_by(usize::try_from(batch_len)?) {
            let mut batch = Vec::new();
            for i in first..(first + batch_len).min(count) {
                let txn = Txn::new([Op::put(key(number(i))?, value.clone())]);
                let session = session.map(|id| SessionRef {
                    id,
                    sequence: Sequence::new(i + 1),
                    answered_below: Sequence::new(i.saturating_sub(2 * batch_len) + 1),
                });
                batch.push(self.entry(Command::Txn { session, txn }));
            }
            batches.push(batch);
        }
        let (mut durable, mut durables, mut slowest) = (Duration::ZERO, 0, Duration::ZERO);
        let mut latencies = Vec::with_capacity(batches.len());
        let (began, mut apply_busy) = (Instant::now(), Duration::ZERO);
        for batch in batches {
            let (from, busy_from) = (Instant::now(), busy());
            self.machine.apply(batch)?;
            latencies.push(from.elapsed());
            apply_busy += busy() - busy_from;
            if self.machine.entries_since_checkpoint() >= ENTRIES_PER_DURABLE {
                let from = Instant::now();
                self.machine.make_durable()?;
                durable += from.elapsed();
                durables += 1;
                slowest = slowest.max(from.elapsed());
            }
        }
        let took = began.elapsed();
        latencies.sort_unstable();
        let rate = |time: Duration| count as f64 / time.as_secs_f64();
        println!(
            "{name}: {:.0} puts/s in apply ({:.0} by processor time), {:.0} with {durables} durable commits \
             ({:.1} ms each, {:.1} at most); a batch of {batch_len} p50 {} us, p99 {} us",
            rate(took - durable),
            rate(apply_busy),
            rate(took),
            durable.as_secs_f64() * 1e3 / f64::from(durables.max(1)),
            slowest.as_secs_f64() * 1e3,
            latencies[latencies.len() / 2].as_micros(),
            latencies[latencies.len() * 99 / 100].as_micros(),
        );
        Ok(())
    }

    fn one_transaction(&mut self, count: u64) -> anyhow::Result<()> {
        let value = Bytes::from(vec![7u8; 40]);
        let puts = (0..count).map(|i| Ok(Op::put(key(i)?, value.clone())));
        let txn = Txn::new(puts.collect::<anyhow::Result<Vec<_>>>()?);
        let began = Instant::now();
        let entry = self.entry(Command::Txn { session: None, txn });
        let encoded = began.elapsed();
        let existed = self.machine.applied().revision.number() > 1;
        let began = Instant::now();
        self.machine.apply(vec![entry])?;
        let applied = began.elapsed();
        let began = Instant::now();
        self.machine.make_durable()?;
        println!(
            "{count} puts of {} keys in one transaction: apply {:.1} ms (encoding the entry {:.1} ms, making it durable {:.1} ms)",
            if existed { "existing" } else { "fresh" },
            applied.as_secs_f64() * 1e3,
            encoded.as_secs_f64() * 1e3,
            began.elapsed().as_secs_f64() * 1e3,
        );
        Ok(())
    }

    fn reads(&mut self) -> anyhow::Result<()> {
        let count = 300_000u64;
        let rate = |began: Instant| count as f64 / began.elapsed().as_secs_f64();

        let began = Instant::now();
        for _ in 0..count {
            std::hint::black_box(self.reader.view()?);
        }
        println!("views: {:.0} a second", rate(began));

        let view = self.reader.view()?;
        let began = Instant::now();
        for i in 0..count {
            std::hint::black_box(
                view.read(&[ReadOp::Get(key(scatter(i))?)], None)?
                    .context("refused")?,
            );
        }
        println!("gets on one view: {:.0} a second", rate(began));

        let began = Instant::now();
        for i in 0..count {
            let view = self.reader.view()?;
            std::hint::black_box(
                view.read(&[ReadOp::Get(key(scatter(i))?)], None)?
                    .context("refused")?,
            );
        }
        println!("a view and a get: {:.0} a second", rate(began));

        let past = quorate_kv::model::Revision::new(count);
        let began = Instant::now();
        for i in 0..count {
            let get = ReadOp::Get(key(scatter(i))?);
            std::hint::black_box(view.read(&[get], Some(past))?.context("refused")?);
        }
        println!("gets at an older revision: {:.0} a second", rate(began));

        let began = Instant::now();
        let range = ReadOp::Range(RangeRead::new(KeyRange::all()).limit(1_000));
        for _ in 0..300 {
            std::hint::black_box(
                view.read(std::slice::from_ref(&range), None)?
                    .context("refused")?,
            );
        }
        println!("records of ranges of 1,000: {:.0} a second", rate(began));
        Ok(())
    }

    fn verify(&self) -> anyhow::Result<()> {
        let view = self.reader.view()?;
        let began = Instant::now();
        view.verify_hash()?;
        println!(
            "verifying the hash of the state: {:.0} ms",
            began.elapsed().as_secs_f64() * 1e3
        );
        let mut source = self.reader.snapshot()?;
        let (mut bytes, began) = (0, Instant::now());
        while let Some(chunk) = source.next_chunk()? {
            bytes += chunk.len();
        }
        println!(
            "reading a snapshot of {:.0} MiB: {:.0} ms",
            bytes as f64 / f64::from(1 << 20),
            began.elapsed().as_secs_f64() * 1e3
        );
        Ok(())
    }
}

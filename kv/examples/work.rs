//! How long does the costliest work take: counts, ranges, and transactions that look at many keys?
//!
//! One thread, the real disk, no Raft and no log, a million keys by default. Run it with
//! `cargo run --release --example work -p quorate-kv [keys [directory]]`.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures time, and runs outside the simulator"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::{
    Entry, Machine, MachineSettings, OpenMode, Payload, ReadBudget, Reader, Step, View,
};
use quorate_kv::model::{
    Command, Key, KeyRange, LogIndex, LogPosition, LogTime, NodeId, Op, Proposal, RangeRead, ReadOp,
    Revision, Term, Txn, encode,
};

const VALUE_BYTES: usize = 100;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let keys: u64 = args.next().map_or(Ok(1_000_000), |keys| keys.parse())?;
    let parent = args.next().unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(parent)?;
    let mut bench = Bench::create(dir.path())?;
    let began = Instant::now();
    bench.fill(keys)?;
    println!(
        "{keys} keys were written in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let filled = bench.machine.applied().revision;

    bench.reads("all in the file", None)?;
    bench.overwrite(keys, 90_000)?;
    let began = Instant::now();
    let first = ReadOp::Range(RangeRead::new(KeyRange::all()).limit(1));
    bench.whole(&[first], None)?;
    println!(
        "the first range after 90,000 writes: {:.2} ms",
        began.elapsed().as_secs_f64() * 1e3
    );
    bench.reads("90,000 overwritten, in memory", None)?;
    bench.machine.make_durable()?;
    bench.reads("as it was before they were, by the history", Some(filled))?;
    Ok(())
}

/// A permutation of the numbers below 2^64.
fn scatter(i: u64) -> u64 {
    let mut x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 32;
    x.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

fn key(number: u64) -> Result<Key> {
    Ok(Key::new(format!("k/{number:016x}"))?)
}

struct Bench {
    machine: Machine,
    reader: Reader,
    index: u64,
}

impl Bench {
    fn create(dir: &Path) -> Result<Self> {
        let settings = MachineSettings::default();
        let (machine, reader) = Machine::open(Arc::new(RealDisk), dir, OpenMode::Create, settings)?;
        Ok(Self {
            machine,
            reader,
            index: 0,
        })
    }

    fn apply(&mut self, txn: Txn) -> Result<Duration> {
        self.index += 1;
        let proposal = Proposal {
            stamp: LogTime::from_millis(self.index),
            commands: vec![Command::Txn { session: None, txn }],
        };
        let entry = Entry {
            position: LogPosition {
                term: Term::new(1),
                leader: NodeId::new(1),
                index: LogIndex::new(self.index),
            },
            payload: Payload::Proposal(encode(&proposal).into()),
        };
        let began = Instant::now();
        self.machine.apply(vec![entry])?;
        Ok(began.elapsed())
    }

    fn fill(&mut self, keys: u64) -> Result<()> {
        let value = Bytes::from(vec![7u8; VALUE_BYTES]);
        for first in (0..keys).step_by(1_000) {
            let puts =
                (first..(first + 1_000).min(keys)).map(|i| Ok(Op::put(key(scatter(i))?, value.clone())));
            self.apply(Txn::new(puts.collect::<Result<Vec<_>>>()?))?;
            if self.machine.bytes_since_checkpoint() >= 64 << 20 {
                self.machine.make_durable()?;
            }
        }
        self.machine.make_durable()?;
        Ok(())
    }

    fn overwrite(&mut self, keys: u64, count: u64) -> Result<()> {
        let value = Bytes::from(vec![8u8; VALUE_BYTES]);
        for i in 0..count {
            let one = Op::put(key(scatter(i * 7 % keys))?, value.clone());
            self.apply(Txn::new([one]))?;
        }
        Ok(())
    }

    fn whole(&self, reads: &[ReadOp], at: Option<Revision>) -> Result<Duration> {
        let view = self.reader.view()?;
        let began = Instant::now();
        view.read(reads, at)?.context("refused")?;
        Ok(began.elapsed())
    }

    fn reads(&self, what: &str, at: Option<Revision>) -> Result<()> {
        println!("{what}:");
        let count = ReadOp::Range(RangeRead {
            count_only: true,
            ..RangeRead::new(KeyRange::all())
        });
        let view = self.reader.view()?;
        for round in ["first", "again"] {
            let took = self.whole(std::slice::from_ref(&count), at)?;
            println!("  a count of all, {round}: {:.0} ms", took.as_secs_f64() * 1e3);
        }
        for keys in [256, 4_096] {
            let (steps, took, longest) = steps(&view, &count, at, keys)?;
            println!(
                "  the same in {steps} steps of {keys}: {:.0} ms, the longest step {:.2} ms",
                took.as_secs_f64() * 1e3,
                longest.as_secs_f64() * 1e3
            );
        }
        for (kind, keys_only) in [("keys", true), ("records", false)] {
            let read = ReadOp::Range(RangeRead {
                keys_only,
                ..RangeRead::new(KeyRange::all()).limit(10_000)
            });
            let took = self.whole(&[read], at)?;
            println!("  a range of 10,000 {kind}: {:.1} ms", took.as_secs_f64() * 1e3);
        }
        Ok(())
    }
}

/// How many steps a read took, how long all did, and how long the longest.
fn steps(view: &View, read: &ReadOp, at: Option<Revision>, keys: u64) -> Result<(u32, Duration, Duration)> {
    let (mut steps, mut longest, all) = (0, Duration::ZERO, Instant::now());
    let mut scan = view.begin(vec![read.clone()], at)?;
    loop {
        steps += 1;
        let began = Instant::now();
        let step = scan.step(
            view,
            ReadBudget {
                keys,
                bytes: u64::MAX,
            },
        )?;
        longest = longest.max(began.elapsed());
        match step {
            Step::More(rest) => scan = rest,
            Step::Done(_) => return Ok((steps, all.elapsed(), longest)),
            Step::Refused(refused) => bail!(refused),
        }
    }
}

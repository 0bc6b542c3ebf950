//! How long does the costliest work take: counts, ranges, and transactions that look at many keys?
//!
//! One thread, the real disk, no Raft and no log, a million keys by default. Run it with
//! `cargo run --release -p quorate-benches --bin work -- [keys [directory]]`.

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
    Entry, EntryOutcome, Machine, MachineSettings, OpenMode, Payload, ReadBudget, Reader, Step, View,
};
use quorate_kv::model::{
    Command, Compare, Guard, Key, KeyRange, KeyTest, LogIndex, LogPosition, LogTime, NodeId, Op, Outcome,
    Proposal, RangeRead, RangeTest, ReadOp, ReadResult, Revision, Term, Txn, TxnRefused, TxnResponse, encode,
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
    bench.transactions(keys)
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

    fn apply(&mut self, txn: Txn) -> Result<()> {
        self.apply_all(vec![txn]).map(drop)
    }

    /// Applies transactions that share an entry: how long it took, and the answers.
    fn apply_all(&mut self, txns: Vec<Txn>) -> Result<(Duration, Vec<Result<TxnResponse, TxnRefused>>)> {
        self.index += 1;
        let commands = txns.into_iter().map(|txn| Command::Txn { session: None, txn });
        let proposal = Proposal {
            stamp: LogTime::from_millis(self.index),
            full_at: None,
            commands: commands.collect(),
        };
        let entry = Entry {
            position: LogPosition {
                term: Term::new(1),
                leader: NodeId::new(1),
                index: LogIndex::new(self.index),
            },
            payload: Payload::Proposal(encode(&proposal).into()),
        };
        let began = busy();
        let outcomes = self.machine.apply(vec![entry])?;
        let took = busy() - began;
        let Some(EntryOutcome::Proposal(outcomes)) = outcomes.into_iter().next() else {
            bail!("a proposal has outcomes");
        };
        let answers = outcomes.into_iter().filter_map(|outcome| match outcome {
            Outcome::Txn(answer) => Some(answer),
            _ => None,
        });
        Ok((took, answers.collect()))
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

/// Transactions that cost as much as one may, and an entry of them.
impl Bench {
    fn transactions(&mut self, keys: u64) -> Result<()> {
        println!("transactions, and the time of a processor in which they hold everybody up:");
        let limits = *self.machine.limits();
        let (looked, changed) = (limits.keys_looked_at_max, limits.keys_changed_max);
        let all = KeyRange::all;
        let count = |operand| Guard::range(all(), RangeTest::Count(Compare::Equal, operand));
        let value = Bytes::from(vec![9u8; VALUE_BYTES]);
        let numbered = |count: u64| (0..count).map(move |i| key(scatter(i * 7 % keys)));
        let puts = numbered(changed).map(|key| Ok(Op::put(key?, value.clone())));
        let puts = puts.collect::<Result<Vec<_>>>()?;
        let gets = numbered(looked / 4).map(|key| Ok(Op::get(key?)));
        let gets = gets.collect::<Result<Vec<_>>>()?;
        let conditions = numbered(looked / 2).map(|key| {
            let other = KeyTest::Value(Compare::NotEqual, Bytes::from_static(b"x"));
            Ok(Guard::key(key?, other))
        });
        let conditions = conditions.collect::<Result<Vec<_>>>()?;
        let between = |i: u64| -> Result<Guard> {
            let start = [key(scatter(i))?.as_bytes(), b"-"].concat();
            let end = [&start[..], b"-"].concat();
            let any = RangeTest::Any(KeyTest::Exists(true));
            Ok(Guard::not(Guard::range(KeyRange::new(start, end), any)))
        };
        let empty = (0..looked / 4 - 1).map(between).collect::<Result<Vec<_>>>()?;
        let exists = || KeyTest::Exists(true);
        let other = KeyTest::Value(Compare::NotEqual, Bytes::from_static(b"x"));
        let small = Guard::range(all(), RangeTest::Any(exists()));
        let any_100 = Guard::range(all(), RangeTest::Count(Compare::GreaterOrEqual, 99));
        let cases = [
            (
                "131,000 counts of all (refused)",
                Txn::new([]).when(Guard::all(vec![count(2 * keys); 131_000])),
            ),
            (
                "one count, as far as it may",
                Txn::new([]).when(count(looked - 10)),
            ),
            (
                "counts of 100",
                Txn::new([]).when(Guard::all(vec![any_100; (looked / 104) as usize])),
            ),
            (
                "a look at values in a range",
                Txn::new([]).when(Guard::all([Guard::range(
                    KeyRange::new(
                        key(0)?.into_bytes(),
                        key(u64::MAX / 100 * (looked / 2 * 95 / keys.max(1)).min(95))?.into_bytes(),
                    ),
                    RangeTest::All(other),
                )])),
            ),
            (
                "ranges of one key",
                Txn::new([]).when(Guard::all(vec![small; (looked / 5) as usize])),
            ),
            ("empty ranges", Txn::new([]).when(Guard::all(empty))),
            ("conditions on values", Txn::new([]).when(Guard::all(conditions))),
            ("gets", Txn::new(gets)),
            ("puts", Txn::new(puts)),
        ];
        for (name, txn) in cases {
            self.timed(name, vec![txn.clone()])?;
            // As many as an entry of a mebibyte has room for.
            let copies = ((1 << 20) / encode(&txn).len()).min(40);
            if copies > 1 {
                self.timed(&format!("  {copies} of them in one entry"), vec![txn; copies])?;
            }
        }
        self.machine.make_durable()?;
        let delete = Txn::new([Op::delete_some_of(all(), u32::try_from(changed)?)]);
        self.timed("a range delete", vec![delete.clone()])?;
        self.timed("  four of them in one entry", vec![delete; 4])?;
        // 15 deleted keys between two that exist: too few to be remembered as a gap.
        let view = self.reader.view()?;
        let some = ReadOp::Range(RangeRead {
            keys_only: true,
            ..RangeRead::new(all()).limit(100_000)
        });
        let (mut deletes, mut there) = (Vec::new(), 0u64);
        if let Some(ReadResult::Range { records, .. }) = view.read(&[some], None)?.context("refused")?.pop() {
            for (nth, record) in records.into_iter().enumerate() {
                match nth % 16 {
                    0 => there += 1,
                    _ => deletes.push(Op::delete(record.key)),
                }
            }
        }
        self.timed("puts holes", vec![Txn::new(deletes)])?;
        let among = Guard::range(all(), RangeTest::Count(Compare::GreaterOrEqual, there - 1));
        let many = Txn::new([]).when(Guard::all(vec![among; (looked / (there + 4)) as usize]));
        self.timed("counts among deleted keys", vec![many.clone()])?;
        self.timed("  40 of them in one entry", vec![many; 40])?;
        Ok(())
    }

    fn timed(&mut self, name: &str, txns: Vec<Txn>) -> Result<()> {
        let visited = self.machine.keys_visited();
        let (took, answers) = self.apply_all(txns)?;
        let refused = answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .collect::<Vec<_>>();
        println!(
            "  {name}: {:.0} ms, {} keys visited, {} of {} refused{}",
            took.as_secs_f64() * 1e3,
            self.machine.keys_visited() - visited,
            refused.len(),
            answers.len(),
            refused
                .first()
                .map_or(String::new(), |refused| format!(": {refused}")),
        );
        if self.machine.bytes_since_checkpoint() >= 64 << 20 {
            self.machine.make_durable()?;
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

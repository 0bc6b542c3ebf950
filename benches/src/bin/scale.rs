//! What grows with the number of keys? A state machine alone, with its checkpoints, at several sizes.
//!
//! One process, the real disk, no Raft and no log. For each size it fills the state, overwrites random keys, counts all keys,
//! ends as a crash would, and opens again. Checkpoints are written on a thread of their own while entries are applied, begin and
//! hold applying up by the rules of a node. Run it with
//! `cargo run --release -p quorate-benches --bin scale -- [--dir DIR] [--keys N,N,…] [--puts N] [--order random|rising]
//! [--cache-mib N] [--layer-mib N]`.

#![allow(
    clippy::disallowed_methods,
    reason = "it measures time, and runs outside the simulator"
)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::{
    Checkpoint, CheckpointEnd, Entry, Machine, MachineSettings, OpenMode, Payload, ReadBudget, Reader, Step,
};
use quorate_kv::model::{
    Command, Key, KeyRange, LogIndex, LogPosition, LogTime, NodeId, Op, Proposal, RangeRead, ReadOp,
    ReadResult, Term, Txn, encode,
};

/// Puts of a transaction of the bulk load.
const PUTS_PER_TXN: u64 = 1_000;
/// Entries that one apply takes of single puts, as a node under load does.
const BATCH: u64 = 64;
const VALUE_BYTES: usize = 100;
/// When a node begins a checkpoint, at the latest.
const CHECKPOINT_ENTRIES: u64 = 100_000;
const CHECKPOINT_MIB: u64 = 48;

#[derive(Clone, Copy)]
struct Bounds {
    cache_bytes: usize,
    /// Of what gathers until a checkpoint begins.
    layer_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyOrder {
    Random,
    Rising,
}

fn main() -> anyhow::Result<()> {
    let (mut parent, mut sizes, mut puts) = (PathBuf::from("."), vec![10_000, 1_000_000], 400_000);
    let mut order = KeyOrder::Random;
    let mut bounds = Bounds {
        cache_bytes: MachineSettings::default().cache_bytes,
        layer_bytes: CHECKPOINT_MIB << 20,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match &arg[..] {
            "--dir" => parent = value.into(),
            "--keys" => sizes = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--puts" => puts = value.parse()?,
            "--cache-mib" => bounds.cache_bytes = value.parse::<usize>()? << 20,
            "--layer-mib" => bounds.layer_bytes = value.parse::<u64>()? << 20,
            "--order" if value == "random" => order = KeyOrder::Random,
            "--order" if value == "rising" => order = KeyOrder::Rising,
            _ => bail!("{arg} {value}: not known"),
        }
    }
    for keys in sizes {
        let dir = tempfile::tempdir_in(&parent)?;
        measure(&dir.path().join("state"), keys, puts, order, bounds)?;
    }
    Ok(())
}

fn measure(dir: &Path, keys: u64, puts: u64, order: KeyOrder, bounds: Bounds) -> anyhow::Result<()> {
    println!("{keys} keys");
    forget_high_water();
    let mut node = Node::open(dir, OpenMode::Create, 0, bounds)?;
    let number = move |i| match order {
        KeyOrder::Random => scatter(i),
        KeyOrder::Rising => i,
    };
    let fill = (0..keys.div_ceil(PUTS_PER_TXN)).map(|txn| {
        let numbers = txn * PUTS_PER_TXN..((txn + 1) * PUTS_PER_TXN).min(keys);
        vec![numbers.map(number).collect::<Vec<u64>>()]
    });
    node.run("  fill", fill, keys)?;
    node.settle()?;
    node.sizes(keys)?;

    forget_high_water();
    let overwrite = (0..puts.div_ceil(BATCH)).map(|batch| {
        let one = |i| vec![number(scatter(i ^ 0x5555) % keys)];
        (batch * BATCH..(batch + 1) * BATCH).map(one).collect()
    });
    node.run("  puts", overwrite, puts)?;

    node.count(keys)?;
    node.reads(keys, number)?;

    let last = node.index;
    let mut entries = node.crash();
    let began = Instant::now();
    let mut node = Node::open(dir, OpenMode::Existing, last, bounds)?;
    let opened = began.elapsed();
    let durable = node.machine.durable().context("nothing is durable")?;
    entries.retain(|entry| entry.position > durable);
    let replayed = entries.len();
    for some in entries.chunks(4096) {
        node.machine.apply(some.to_vec())?;
    }
    println!(
        "  opened after a crash in {:.0} ms, and {replayed} entries replayed in {:.0} ms",
        ms(opened),
        ms(began.elapsed() - opened)
    );
    node.compact()?;
    node.sizes(keys)?;
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
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

/// The processor time of this process, and of this thread alone. Asking for the first takes long.
fn busy() -> (Duration, Duration) {
    let ticks = |path: &str| {
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let used: u64 = after.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Duration::from_millis(used * 10)
    };
    (ticks("/proc/self/stat"), busy_thread())
}

fn busy_thread() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// Bytes that this process has read and written, by its calls.
fn io() -> (u64, u64) {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let field = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    };
    (field("rchar:"), field("wchar:"))
}

fn high_water_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    kib / 1024
}

fn forget_high_water() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// What a checkpoint, or a step of merging or forgetting, took: in all, and of the processor.
#[derive(Clone, Copy)]
struct Took(Duration, Duration);

/// What a node is made of below Raft.
struct Node {
    machine: Machine,
    reader: Reader,
    dir: PathBuf,
    bounds: Bounds,
    index: u64,
    writer: JoinHandle<()>,
    to_write: Sender<(Checkpoint, bool)>,
    written: Receiver<(CheckpointEnd, bool, Took)>,
    under_way: bool,
    checkpoints: Vec<Took>,
    steps: Vec<Took>,
    /// Entries that a crash may take.
    replayable: Vec<Entry>,
}

impl Node {
    fn open(dir: &Path, mode: OpenMode, index: u64, bounds: Bounds) -> anyhow::Result<Self> {
        let mut settings = MachineSettings::default();
        settings.cache_bytes = bounds.cache_bytes;
        let (machine, reader) = Machine::open(Arc::new(RealDisk), dir, mode, settings)?;
        let (to_write, jobs) = channel::<(Checkpoint, bool)>();
        let (ends, written) = channel();
        let writer = std::thread::spawn(move || {
            for (checkpoint, is_step) in jobs {
                let (began, (_, cpu)) = (Instant::now(), busy());
                let end = checkpoint.write();
                let took = Took(began.elapsed(), busy().1 - cpu);
                if ends.send((end, is_step, took)).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            machine,
            reader,
            dir: dir.to_owned(),
            bounds,
            index,
            writer,
            to_write,
            written,
            under_way: false,
            checkpoints: Vec::new(),
            steps: Vec::new(),
            replayable: Vec::new(),
        })
    }

    /// Ends as a crash would, once what is being written is. The entries that it may take.
    fn crash(self) -> Vec<Entry> {
        drop(self.to_write);
        let _ = self.writer.join();
        self.replayable
    }

    fn entry(&mut self, commands: Vec<Command>) -> Entry {
        self.index += 1;
        let proposal = Proposal {
            stamp: LogTime::from_millis(self.index / 1_000),
            full_at: None,
            commands,
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

    /// Applies one group of transactions after the other, each transaction an entry that puts keys of these numbers.
    fn run(
        &mut self,
        name: &str,
        groups: impl Iterator<Item = Vec<Vec<u64>>>,
        puts: u64,
    ) -> anyhow::Result<()> {
        let mut value = vec![0u8; VALUE_BYTES];
        self.checkpoints.clear();
        self.steps.clear();
        let (mut made, mut latencies, mut stalled) = (Duration::ZERO, Vec::new(), Duration::ZERO);
        let (began, (busy_before, _), (read, written)) = (Instant::now(), busy(), io());
        let (mut applying, mut making_busy) = (Duration::ZERO, Duration::ZERO);
        for group in groups {
            let (from, busy_from) = (Instant::now(), busy_thread());
            let mut entries = Vec::with_capacity(group.len());
            for numbers in group {
                let ops = numbers.into_iter().map(|number| {
                    value[..8].copy_from_slice(&(number ^ self.index).to_be_bytes());
                    Ok(Op::put(key(number)?, Bytes::copy_from_slice(&value)))
                });
                let txn = Txn::new(ops.collect::<anyhow::Result<Vec<_>>>()?);
                entries.push(self.entry(vec![Command::Txn { session: None, txn }]));
            }
            self.replayable.extend(entries.iter().cloned());
            made += from.elapsed();
            let (from, busy_now) = (Instant::now(), busy_thread());
            making_busy += busy_now - busy_from;
            stalled += self.make_room()?;
            self.machine.apply(entries)?;
            latencies.push(from.elapsed());
            applying += busy_thread() - busy_now;
        }
        let took = began.elapsed() - made;
        let used = (busy().0 - busy_before).saturating_sub(making_busy);
        latencies.sort_unstable();
        let at = |per_mille: usize| ms(latencies[(latencies.len() - 1) * per_mille / 1000]);
        let (read_now, written_now) = io();
        println!(
            "{name}: {:.0} records/s, {:.2} us of processor time each ({:.2} in apply); an apply p50 {:.2} ms, p99 {:.2}, \
             max {:.0}; stalled {:.1} s of {:.1}",
            puts as f64 / took.as_secs_f64(),
            used.as_secs_f64() * 1e6 / puts as f64,
            applying.as_secs_f64() * 1e6 / puts as f64,
            at(500),
            at(990),
            at(1000),
            stalled.as_secs_f64(),
            took.as_secs_f64(),
        );
        let told = |times: &[Took]| {
            let sum: Duration = times.iter().map(|took| took.0).sum();
            let cpu: Duration = times.iter().map(|took| took.1).sum();
            let max = times.iter().map(|took| took.0).max().unwrap_or_default();
            let mean = |sum: Duration| ms(sum) / times.len().max(1) as f64;
            let (count, each) = (times.len(), cpu.as_secs_f64() * 1e6 / puts as f64);
            format!(
                "{count} of {:.0} ms ({:.0} of the processor, {each:.2} us a put), {:.0} at most",
                mean(sum),
                mean(cpu),
                ms(max)
            )
        };
        println!(
            "    checkpoints: {}; steps: {}; {} runs; bytes a put: {:.0} written, {:.0} read; memory at most {} MiB",
            told(&self.checkpoints),
            told(&self.steps),
            self.machine.runs(),
            (written_now - written) as f64 / puts as f64,
            (read_now - read) as f64 / puts as f64,
            high_water_mib(),
        );
        Ok(())
    }

    fn forget_replayable(&mut self) {
        if let Some(durable) = self.machine.durable() {
            self.replayable.retain(|entry| entry.position > durable);
        }
    }

    /// What a node does between two applies.
    fn make_room(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            while let Ok(end) = self.written.try_recv() {
                self.take(end)?;
            }
            self.begin(false)?;
            if !(self.under_way && self.is_full()) {
                return Ok(began.elapsed());
            }
            let end = self.written.recv()?;
            self.take(end)?;
        }
    }

    fn is_full(&self) -> bool {
        self.machine.entries_since_checkpoint() >= CHECKPOINT_ENTRIES
            || self.machine.bytes_since_checkpoint() >= self.bounds.layer_bytes
    }

    fn begin(&mut self, now: bool) -> anyhow::Result<()> {
        if self.under_way {
            return Ok(());
        }
        let due = now || self.is_full();
        let begun = match due.then(|| self.machine.begin_checkpoint()).flatten() {
            Some(checkpoint) => Some((checkpoint, false)),
            None => {
                let step = self.machine.begin_forgetting();
                let step = step.or_else(|| match self.machine.entries_since_checkpoint() {
                    0 => self.machine.begin_merging_at_rest(),
                    _ => self.machine.begin_merging(),
                });
                step.map(|step| (step, true))
            }
        };
        if let Some(begun) = begun {
            self.under_way = true;
            self.to_write.send(begun)?;
        }
        Ok(())
    }

    fn take(&mut self, (end, is_step, took): (CheckpointEnd, bool, Took)) -> anyhow::Result<()> {
        self.under_way = false;
        match is_step {
            true => self.steps.push(took),
            false => self.checkpoints.push(took),
        }
        self.machine.end_checkpoint(end)?;
        self.forget_replayable();
        Ok(())
    }

    /// All that is to be written is.
    fn settle(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let (cpu, _) = busy();
        loop {
            self.begin(true)?;
            if !self.under_way {
                println!(
                    "    settled in {:.0} ms, {:.0} of processor time",
                    ms(began.elapsed()),
                    ms(busy().0 - cpu)
                );
                return Ok(());
            }
            let end = self.written.recv()?;
            self.take(end)?;
        }
    }

    fn count(&mut self, keys: u64) -> anyhow::Result<()> {
        let mut longest = Duration::ZERO;
        for _ in 0..2 {
            let (began, (_, cpu)) = (Instant::now(), busy());
            let view = self.reader.view()?;
            let mut scan = match view.begin(vec![ReadOp::Range(count_all())], None) {
                Ok(scan) => scan,
                Err(refused) => bail!("{refused}"),
            };
            let budget = ReadBudget {
                keys: 4_096,
                bytes: 1 << 20,
            };
            let results = loop {
                let from = Instant::now();
                match scan.step(&view, budget)? {
                    Step::More(rest) => scan = rest,
                    Step::Done(answered) => break answered.results,
                    Step::Refused(refused) => bail!("{refused}"),
                }
                longest = longest.max(from.elapsed());
            };
            match &results[..] {
                [ReadResult::Range { count, .. }] if *count == keys => {}
                other => bail!("{other:?}"),
            }
            println!(
                "  count: {:.0} ms ({:.0} by processor time), a step {:.1} ms at most",
                ms(began.elapsed()),
                ms(busy().1 - cpu),
                ms(longest)
            );
        }
        Ok(())
    }

    fn reads(&mut self, keys: u64, number: impl Fn(u64) -> u64) -> anyhow::Result<()> {
        const READS: u64 = 100_000;
        let (began, (_, cpu)) = (Instant::now(), busy());
        for i in 0..READS {
            let view = self.reader.view()?;
            let get = ReadOp::Get(key(number(scatter(i) % keys))?);
            match &view.read(&[get], None)?.context("refused")?[..] {
                [ReadResult::Get(Some(_))] => {}
                other => bail!("{other:?}"),
            }
        }
        println!(
            "  gets: {:.2} us each ({:.2} by processor time)",
            began.elapsed().as_secs_f64() * 1e6 / READS as f64,
            (busy().1 - cpu).as_secs_f64() * 1e6 / READS as f64
        );
        Ok(())
    }

    /// Gives all history up.
    fn compact(&mut self) -> anyhow::Result<()> {
        let revision = self.machine.applied().revision;
        let entry = self.entry(vec![Command::Compact { revision }]);
        self.machine.apply(vec![entry])?;
        self.settle()
    }

    fn sizes(&self, keys: u64) -> anyhow::Result<()> {
        let live = keys * (18 + VALUE_BYTES as u64);
        let (mut file, mut on_disk) = (0, 0);
        for entry in std::fs::read_dir(&self.dir)? {
            let metadata = entry?.metadata()?;
            file += metadata.len();
            on_disk += metadata.blocks() * 512;
        }
        println!(
            "    the file has {:.0} MiB, {:.2} times the live bytes, and {:.2} times on the disk",
            file as f64 / f64::from(1 << 20),
            file as f64 / live as f64,
            on_disk as f64 / live as f64,
        );
        Ok(())
    }
}

fn count_all() -> RangeRead {
    let mut read = RangeRead::new(KeyRange::all());
    read.count_only = true;
    read
}

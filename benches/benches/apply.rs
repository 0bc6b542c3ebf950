//! How many transactions a second does the state machine apply, by how many it is given at once?
//!
//! Entries of one transaction each that puts one key of 16 bytes with a value of 128, over a key space of 100,000;
//! each batch of entries is one transaction of the state file. No log, no network. Ends with the rates.
//!
//! `cargo bench -p quorate-benches --bench apply`

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use quorate_benches::facts;
use quorate_kv::env::RealDisk;
use quorate_kv::machine::{Entry, Machine, MachineSettings, OpenMode, Payload};
use quorate_kv::model::{
    Command, Key, LogIndex, LogPosition, LogTime, NodeId, Op, Proposal, Term, Txn, encode,
};

const BATCHES: [u64; 4] = [1, 16, 256, 4_096];
const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 128;

fn main() -> Result<()> {
    println!(
        "How many transactions a second does the state machine apply, by how many it is given at once?\n"
    );
    let dir = tempfile::Builder::new()
        .prefix("quorate-bench-")
        .tempdir_in(facts::directory())?;
    for fact in facts::describe(dir.path())? {
        println!("{fact}");
    }
    let settings = MachineSettings::default();
    let (mut machine, _reader) = Machine::open(Arc::new(RealDisk), dir.path(), OpenMode::Create, settings)?;
    let mut next = 1;
    let mut rates = Vec::new();
    let mut criterion = Criterion::default().configure_from_args();
    for batch in BATCHES {
        let (mut spent, mut applied) = (Duration::ZERO, 0);
        let mut group = criterion.benchmark_group("apply");
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(3));
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            bencher.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let took = apply(&mut machine, &mut next, batch);
                    total += took.unwrap_or_else(|error| panic!("apply failed: {error:#}"));
                }
                spent += total;
                applied += times * batch;
                total
            });
        });
        group.finish();
        rates.push((batch, applied as f64 / spent.as_secs_f64()));
    }
    println!("\ntransactions a second");
    let slowest = rates.first().map_or(1.0, |(_, rate)| *rate);
    for (batch, rate) in rates {
        println!(
            "{batch:>5} at once {rate:>10.0}   {:>5.1} times one at a time",
            rate / slowest
        );
    }
    Ok(())
}

/// The time is that of `apply` alone. The state is made durable in between, as a node does it now and then.
fn apply(machine: &mut Machine, next: &mut u64, count: u64) -> Result<Duration> {
    const DURABLE_EVERY: u64 = 50_000;
    let entries: Result<Vec<Entry>> = (*next..*next + count).map(entry).collect();
    let entries = entries?;
    *next += count;
    let begun = Instant::now();
    let outcomes = machine.apply(entries)?;
    let took = begun.elapsed();
    ensure!(outcomes.len() as u64 == count, "an entry has one outcome");
    if machine.entries_since_checkpoint() >= DURABLE_EVERY {
        machine.make_durable()?;
    }
    Ok(took)
}

fn entry(index: u64) -> Result<Entry> {
    // A multiplicative hash: neighbours in time are no neighbours in the tree.
    let key = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
    let key = Key::from(format!("key/{key:012}"));
    let put = Op::put(key, Bytes::from(vec![7; VALUE_BYTES]));
    let txn = Command::Txn {
        session: None,
        txn: Txn::new([put]),
    };
    let proposal = Proposal {
        stamp: LogTime::from_millis(index),
        full_at: None,
        commands: vec![txn],
    };
    Ok(Entry {
        position: LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        },
        payload: Payload::Proposal(encode(&proposal).into()),
    })
}

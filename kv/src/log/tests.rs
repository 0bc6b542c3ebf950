//! The log's promises, on real files. What a crash may do to them is in `tests/crash.rs`.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;

use super::{Completion, Log, LogEntry, LogOpenError, LogSettings};
use crate::env::{RealDisk, oneshot};
use crate::fault::Fault;
use crate::model::{LogIndex, LogPosition, NodeId, Term};

mod basics;
mod concurrency;
mod crash;
mod formats;
mod scrub;

/// Small segments, so that a few entries fill one.
const SMALL: u64 = 16 << 10;

fn small() -> LogSettings {
    LogSettings {
        segment_bytes: SMALL,
        ..LogSettings::default()
    }
}

fn create(dir: &Path) -> Log {
    Log::open(Arc::new(RealDisk), dir, small().create()).expect("a new log")
}

fn reopen(dir: &Path) -> Log {
    Log::open(Arc::new(RealDisk), dir, small()).expect("the same log")
}

fn index(number: u64) -> LogIndex {
    LogIndex::new(number)
}

fn position(term: u64, number: u64) -> LogPosition {
    LogPosition {
        term: Term::new(term),
        leader: NodeId::new(7),
        index: index(number),
    }
}

/// An entry whose payload tells its term and index.
fn entry(term: u64, number: u64) -> LogEntry {
    entry_of(term, number, 40)
}

fn entry_of(term: u64, number: u64, bytes: usize) -> LogEntry {
    let mut payload = format!("{term}/{number} ").into_bytes();
    payload.resize(bytes.max(payload.len()), b'.');
    LogEntry {
        position: position(term, number),
        payload: Bytes::from(payload),
    }
}

fn entries(term: u64, range: std::ops::Range<u64>) -> Vec<LogEntry> {
    range.map(|number| entry(term, number)).collect()
}

/// Asks the log for something, and waits until it is durable.
async fn durable(ask: impl FnOnce(Completion) -> Result<(), Fault>) -> Result<(), Fault> {
    let (tx, rx) = oneshot::channel();
    ask(Box::new(move |result| drop(tx.send(result))))?;
    rx.await.expect("the completion is told")
}

async fn append(log: &Log, entries: Vec<LogEntry>) -> Result<(), Fault> {
    durable(|told| log.append(entries, told)).await
}

async fn truncate_after(log: &Log, last: Option<LogIndex>) -> Result<(), Fault> {
    durable(|told| log.truncate_after(last, told)).await
}

async fn purge(log: &Log, upto: LogPosition) -> Result<(), Fault> {
    durable(|told| log.purge(upto, told)).await
}

async fn all(log: &Log) -> Vec<LogEntry> {
    log.read(index(0)..index(u64::MAX), usize::MAX)
        .await
        .expect("a read")
}

/// A completion's name, and what it was told.
type Told = (u64, Result<(), Fault>);

/// Collects completions in the order in which they are told.
fn recorder() -> (impl Fn(u64) -> Completion, Receiver<Told>) {
    let (tx, rx) = channel();
    let make = move |name| {
        let tx = tx.clone();
        Box::new(move |result| drop(tx.send((name, result)))) as Completion
    };
    (make, rx)
}

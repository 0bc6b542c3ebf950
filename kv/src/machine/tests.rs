//! The machine against an independent slow model, through crashes, snapshots and every cut into batches.

mod budgets;
pub(super) mod disk;
mod exactly_once;
mod forgetting;
mod golden;
mod laws;
mod memory;
mod merging;
mod opening;
mod reserve;
mod rot;
mod semantics;
mod shrinking;
mod slow;
mod snapshots;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, EntryOutcome, Machine, MachineSettings, OpenMode, Payload, Reader};
use crate::env::Disk;
use crate::model::{
    Command, Key, LogIndex, LogPosition, LogTime, NodeId, Outcome, Proposal, ReplicatedLimits, Term, Txn,
    TxnRefused, TxnResponse, encode,
};

fn dir() -> &'static Path {
    Path::new("/node")
}

fn settings() -> MachineSettings {
    MachineSettings {
        cache_bytes: 4 * 1024 * 1024,
        ..MachineSettings::default()
    }
}

fn position(index: u64) -> LogPosition {
    LogPosition {
        term: Term::new(1),
        leader: NodeId::new(1),
        index: LogIndex::new(index),
    }
}

fn proposal(index: u64, millis: u64, commands: Vec<Command>) -> Entry {
    proposal_when_full(index, millis, None, commands)
}

fn proposal_when_full(index: u64, millis: u64, full_at: Option<u64>, commands: Vec<Command>) -> Entry {
    let stamp = LogTime::from_millis(millis);
    let proposal = Proposal {
        stamp,
        full_at,
        commands,
    };
    Entry {
        position: position(index),
        payload: Payload::Proposal(encode(&proposal).into()),
    }
}

fn key(text: &str) -> Key {
    Key::from(text)
}

fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn create(disk: &Arc<dyn Disk>) -> (Machine, Reader) {
    Machine::open(Arc::clone(disk), dir(), OpenMode::Create, settings()).unwrap()
}

fn reopen(disk: &Arc<dyn Disk>) -> (Machine, Reader) {
    Machine::open(Arc::clone(disk), dir(), OpenMode::Existing, settings()).unwrap()
}

/// A machine on a disk in memory, which counts the log's indexes for the test.
struct Store {
    disk: Arc<dyn Disk>,
    machine: Machine,
    reader: Reader,
    index: u64,
}

impl Store {
    fn new() -> Self {
        Self::on(Arc::new(disk::MemoryDisk::default()))
    }

    fn on(disk: Arc<dyn Disk>) -> Self {
        Self::with(disk, OpenMode::Create, settings())
    }

    /// Goes on behind what the disk has.
    fn with(disk: Arc<dyn Disk>, mode: OpenMode, settings: MachineSettings) -> Self {
        let (machine, reader) = Machine::open(Arc::clone(&disk), dir(), mode, settings).unwrap();
        let index = machine.applied().position.map_or(0, |at| at.index.number());
        Self {
            disk,
            machine,
            reader,
            index,
        }
    }

    /// With one key, durable.
    fn with_a_key(disk: &Arc<disk::MemoryDisk>) -> Self {
        let mut store = Self::on(Arc::<disk::MemoryDisk>::clone(disk));
        store
            .txn(Txn::new([crate::model::Op::put(key("a"), value("1"))]))
            .unwrap();
        store.machine.make_durable().unwrap();
        store
    }

    /// As after a crash of the process.
    fn reopened(self, settings: MachineSettings) -> Self {
        let Self {
            disk,
            machine,
            reader,
            ..
        } = self;
        drop((machine, reader));
        Self::with(disk, OpenMode::Existing, settings)
    }

    fn apply(&mut self, millis: u64, commands: Vec<Command>) -> Vec<Outcome> {
        self.index += 1;
        let entry = proposal(self.index, millis, commands);
        match self.machine.apply(vec![entry]).unwrap().pop() {
            Some(EntryOutcome::Proposal(outcomes)) => outcomes,
            other => panic!("a proposal answered {other:?}"),
        }
    }

    /// Has other limits from here on.
    fn limit(&mut self, change: impl FnOnce(&mut ReplicatedLimits)) {
        let (version, limits) = {
            let view = self.reader.view().unwrap();
            let (version, limits) = view.limits();
            (version, *limits)
        };
        let mut limits = limits;
        change(&mut limits);
        let command = Command::SetLimits {
            expected: Some(version),
            changes: limits.to_changes(),
        };
        match self.one(0, command) {
            Outcome::LimitsSet(set) => assert!(set.changed && set.limits == limits, "{set:?}"),
            other => panic!("setting limits answered {other:?}"),
        }
    }

    fn one(&mut self, millis: u64, command: Command) -> Outcome {
        self.apply(millis, vec![command]).pop().unwrap()
    }

    fn txn(&mut self, txn: Txn) -> Result<TxnResponse, TxnRefused> {
        match self.one(0, Command::Txn { session: None, txn }) {
            Outcome::Txn(answer) => answer,
            other => panic!("a transaction answered {other:?}"),
        }
    }

    fn verify(&self) {
        let view = self.reader.view().unwrap();
        assert_eq!(
            self.machine.verify_hash().unwrap(),
            self.machine.applied().state_hash
        );
        assert_eq!(view.applied().state_hash, self.machine.applied().state_hash);
        assert_eq!(view.applied().position, self.machine.applied().position);
        assert_eq!(view.applied().revision, self.machine.applied().revision);
    }
}

//! openraft's state machine on [`crate::machine`], which an owner thread holds.
//!
//! Every committed entry that is ready goes to the owner in one job and becomes one database transaction;
//! the answers leave from the owner's thread. The owner makes the state durable within bounds of entries,
//! bytes and time, and always before openraft may purge the log behind it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use super::types::{
    LogId, Membership, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, position,
};
use crate::env::{self, Disk, Owner, OwnerHandle, oneshot, watch};
use crate::fault::Fault;
use crate::machine::{
    Applied, Entry, EntryOutcome, Machine, Payload, Reader, ReceivedSnapshot, SnapshotError, SnapshotSink,
    SnapshotSource,
};
use crate::model;

/// Entries that one job carries at most: bounds the memory of a replay after a restart.
const APPLY_ENTRIES_MAX: usize = 4096;
/// Bytes of proposals after which a job is closed.
const APPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Jobs that wait for the owner. openraft sends one apply at a time, so few ever do.
const QUEUE: usize = 64;

/// When the state is made durable, at the latest: whichever bound is met first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DurabilityBounds {
    /// Entries applied since.
    pub entries: u64,
    /// Bytes of proposals applied since.
    pub bytes: u64,
}

impl Default for DurabilityBounds {
    fn default() -> Self {
        Self {
            entries: 100_000,
            bytes: 128 * 1024 * 1024,
        }
    }
}

/// A snapshot on its way: pinned at the sender, or received whole and verified.
pub(crate) enum SnapshotData {
    /// A state pinned for reading.
    Source(SnapshotSource),
    /// A file that waits to be installed.
    Received(ReceivedSnapshot),
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SnapshotData::Source(_) => "SnapshotData::Source",
            SnapshotData::Received(_) => "SnapshotData::Received",
        })
    }
}

/// The handle that openraft holds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StateMachine {
    jobs: OwnerHandle<Job>,
    applied: watch::Receiver<Arc<Applied>>,
    reader: Reader,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// The answer once the machine is closed.
const STOPPED: Fault = Fault::Stopped {
    owner: "state machine",
};

enum Job {
    Apply {
        entries: Vec<Entry>,
        responders: Vec<Option<ApplyResponder<TypeConfig>>>,
        done: Done<()>,
    },
    Snapshot {
        durable_first: bool,
        done: Done<SnapshotSource>,
    },
    Install {
        received: ReceivedSnapshot,
        done: Done<()>,
    },
    MakeDurable {
        done: Done<()>,
    },
    /// Installs a state that is pinned in this process, as if it had been received.
    Copy {
        source: Box<SnapshotSource>,
        done: Done<()>,
    },
    Close {
        done: Done<()>,
    },
}

type Done<T> = oneshot::Sender<Result<T, Fault>>;

struct MachineOwner {
    /// `None` once closed.
    machine: Option<Machine>,
    reader: Reader,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bounds: DurabilityBounds,
    bytes_since_durable: u64,
    entries_since_durable: u64,
    applied: watch::Sender<Arc<Applied>>,
    fault: Option<Fault>,
}

enum Effect {
    Applied {
        outcomes: Vec<EntryOutcome>,
        responders: Vec<Option<ApplyResponder<TypeConfig>>>,
        done: Done<()>,
    },
    Done {
        result: Result<(), Fault>,
        done: Done<()>,
    },
    Snapshot {
        result: Result<SnapshotSource, Fault>,
        done: Done<SnapshotSource>,
    },
}

impl StateMachine {
    pub(crate) fn start(
        machine: Machine,
        reader: Reader,
        bounds: DurabilityBounds,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
    ) -> Self {
        let (applied_tx, applied) = watch::channel(Arc::new(machine.applied().clone()));
        let owner = MachineOwner {
            machine: Some(machine),
            reader: reader.clone(),
            disk: Arc::clone(&disk),
            dir: dir.clone(),
            bounds,
            bytes_since_durable: 0,
            entries_since_durable: 0,
            applied: applied_tx,
            fault: None,
        };
        // One job at a time: an apply job is a batch already, and its effects should leave at once.
        let jobs = env::spawn_owner("quorate-apply", QUEUE, 1, owner);
        Self {
            jobs,
            applied,
            reader,
            disk,
            dir,
        }
    }

    /// What was applied last; changes after the database transaction committed.
    pub(crate) fn applied(&self) -> watch::Receiver<Arc<Applied>> {
        self.applied.clone()
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Begins to receive a snapshot into a file beside the state. Blocks: call from an owner's thread.
    pub(crate) fn sink(&self) -> Result<SnapshotSink, SnapshotError> {
        SnapshotSink::begin(Arc::clone(&self.disk), &self.dir)
    }

    /// Makes all that was applied durable. Cancel safe: the work goes on.
    pub(crate) async fn make_durable(&self) -> Result<(), Fault> {
        self.ask(|done| Job::MakeDurable { done }).await
    }

    /// Ends all writing to the state file. Afterwards every call answers that the machine has stopped, and
    /// another may open the file.
    pub(crate) async fn close(&self) {
        // An owner that has ended has closed its file.
        let _ = self.ask(|done| Job::Close { done }).await;
    }

    async fn ask<T>(&self, job: impl FnOnce(Done<T>) -> Job) -> Result<T, Fault> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_| STOPPED)?;
        answer.await.unwrap_or(Err(STOPPED))
    }

    async fn snapshot(&self, durable_first: bool) -> Result<Snapshot, Fault> {
        let source = self.ask(|done| Job::Snapshot { durable_first, done }).await?;
        let meta = source.meta();
        let meta = SnapshotMeta {
            last_log_id: meta.position.map(log_id),
            last_membership: stored_membership(meta.membership.as_ref())?,
        };
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Source(source),
        })
    }
}

impl MachineOwner {
    fn apply(&mut self, entries: Vec<Entry>) -> Result<Vec<EntryOutcome>, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let count = entries.len();
        let bytes: usize = entries.iter().map(size).sum();
        let started = env::now();
        let outcomes = self.open()?.apply(entries)?;
        metrics::histogram!("quorate_apply_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("quorate_apply_batch_entries").record(count as f64);
        self.entries_since_durable += count as u64;
        self.bytes_since_durable += bytes as u64;
        if self.entries_since_durable >= self.bounds.entries || self.bytes_since_durable >= self.bounds.bytes
        {
            self.make_durable()?;
        }
        Ok(outcomes)
    }

    fn make_durable(&mut self) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let machine = self.open()?;
        if machine.durable() == machine.applied().position {
            return Ok(());
        }
        let started = env::now();
        machine.make_durable()?;
        metrics::histogram!("quorate_state_sync_seconds").record(started.elapsed().as_secs_f64());
        self.entries_since_durable = 0;
        self.bytes_since_durable = 0;
        Ok(())
    }

    fn copy(&mut self, source: &mut SnapshotSource) -> Result<(), Fault> {
        let failed = |error: SnapshotError| Fault::State {
            doing: "copying a snapshot",
            detail: error.to_string(),
        };
        let mut sink = SnapshotSink::begin(Arc::clone(&self.disk), &self.dir).map_err(failed)?;
        while let Some(chunk) = source.next_chunk()? {
            sink.write(&chunk).map_err(failed)?;
        }
        let received = sink.finish().map_err(failed)?;
        self.open()?.install(received)
    }

    fn open(&mut self) -> Result<&mut Machine, Fault> {
        self.machine.as_mut().ok_or(STOPPED)
    }

    /// Remembers the first fault: from then on nothing touches the state file.
    fn keep<T>(&mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &result {
            self.fault.get_or_insert_with(|| fault.clone());
        }
        result
    }
}

impl Owner for MachineOwner {
    type Job = Job;
    type Effects = Vec<Effect>;

    fn work(&mut self, batch: &mut Vec<Job>) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(batch.len());
        for job in batch.drain(..) {
            effects.push(match job {
                Job::Apply {
                    entries,
                    responders,
                    done,
                } => {
                    let result = self.apply(entries);
                    match self.keep(result) {
                        Ok(outcomes) => Effect::Applied {
                            outcomes,
                            responders,
                            done,
                        },
                        Err(fault) => Effect::Done {
                            result: Err(fault),
                            done,
                        },
                    }
                }
                Job::Snapshot { durable_first, done } => {
                    let durable = if durable_first {
                        self.make_durable()
                    } else {
                        Ok(())
                    };
                    let result = durable.and_then(|()| self.reader.snapshot());
                    Effect::Snapshot {
                        result: self.keep(result),
                        done,
                    }
                }
                Job::Install { received, done } => {
                    let result = self.open().and_then(|machine| machine.install(received));
                    Effect::Done {
                        result: self.keep(result),
                        done,
                    }
                }
                Job::Copy { mut source, done } => {
                    let result = self.copy(&mut source);
                    Effect::Done {
                        result: self.keep(result),
                        done,
                    }
                }
                Job::Close { done } => {
                    self.machine = None;
                    Effect::Done { result: Ok(()), done }
                }
                Job::MakeDurable { done } => {
                    let result = self.make_durable();
                    Effect::Done {
                        result: self.keep(result),
                        done,
                    }
                }
            });
        }
        effects
    }

    fn publish(&mut self, effects: Vec<Effect>) {
        // Readers that wait for an index may run as soon as the transaction has committed, so before the
        // answers: a client that saw its write acknowledged finds it.
        if let Some(machine) = &self.machine
            && self.applied.borrow().position != machine.applied().position
        {
            self.applied.send_replace(Arc::new(machine.applied().clone()));
        }
        for effect in effects {
            match effect {
                Effect::Applied {
                    outcomes,
                    responders,
                    done,
                } => {
                    for (outcome, responder) in outcomes.into_iter().zip(responders) {
                        if let Some(responder) = responder {
                            responder.send(outcome);
                        }
                    }
                    let _ = done.send(Ok(()));
                }
                Effect::Done { result, done } => {
                    let _ = done.send(result);
                }
                Effect::Snapshot { result, done } => {
                    let _ = done.send(result);
                }
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = Arc::clone(&self.applied.borrow());
        Ok((
            applied.position.map(log_id),
            stored_membership(applied.membership.as_ref())?,
        ))
    }

    async fn apply<Strm>(&mut self, mut stream: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        loop {
            let (mut entries, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut ended = true;
            while let Some(item) = stream.next().await {
                let (entry, responder) = item?;
                let entry = machine_entry(entry);
                bytes += size(&entry);
                entries.push(entry);
                responders.push(responder);
                if entries.len() >= APPLY_ENTRIES_MAX || bytes >= APPLY_BYTES_MAX {
                    ended = false;
                    break;
                }
            }
            if !entries.is_empty() {
                self.ask(|done| Job::Apply {
                    entries,
                    responders,
                    done,
                })
                .await?;
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        match snapshot {
            SnapshotData::Received(received) => Ok(self.ask(|done| Job::Install { received, done }).await?),
            // A state pinned in this process: openraft asks for our own at the start, which is the state already.
            SnapshotData::Source(_) if self.applied.borrow().position.map(log_id) == meta.last_log_id => {
                Ok(())
            }
            SnapshotData::Source(source) => {
                let source = Box::new(source);
                Ok(self.ask(|done| Job::Copy { source, done }).await?)
            }
        }
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.applied.borrow().position.is_none() {
            return Ok(None);
        }
        Ok(Some(self.snapshot(false).await?))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // openraft may purge the log up to this position afterwards, so the state must be durable first.
        Ok(self.snapshot(true).await?)
    }
}

fn machine_entry(entry: super::types::Entry) -> Entry {
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(proposal) => Payload::Proposal(proposal.proposal()),
        EntryPayload::Membership(membership) => Payload::Membership(model::encode(&membership).into()),
    };
    Entry {
        position: position(&entry.log_id),
        payload,
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Blank => 0,
        Payload::Proposal(bytes) | Payload::Membership(bytes) => bytes.len(),
    }
}

pub(crate) fn stored_membership(
    stored: Option<&(model::LogPosition, bytes::Bytes)>,
) -> Result<StoredMembership, Fault> {
    let Some((position, bytes)) = stored else {
        return Ok(StoredMembership::default());
    };
    let membership: Membership = model::decode(bytes).map_err(|e| Fault::Corrupt {
        path: "state file, membership".to_owned(),
        offset: 0,
        detail: e.to_string(),
    })?;
    Ok(StoredMembership::new(Some(log_id(*position)), membership))
}

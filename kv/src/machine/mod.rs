//! The state machine: applies committed entries, and keeps their state in one redb file.
//!
//! Called by `raft` with entries in log order; read by whoever holds a [`Reader`]. Knows no clock, no network
//! and no task: time comes inside the entries, and all methods block, so that an owner thread runs them.
//!
//! What entries change gathers in memory, in layers, and goes to the file in checkpoints, many entries in one
//! durable transaction; readers see the file under the layers.
//!
//! Always:
//! - the same entries make the same state, the same answers and the same hash on every node, however they are
//!   cut into calls of [`Machine::apply`] and whenever checkpoints are made;
//! - one transaction that changes something is one revision; none is skipped; a refused one changes nothing;
//! - what `apply` did is visible to readers when it returns, and durable after the next checkpoint; after a
//!   crash the state is that of the last whole checkpoint, with its position inside, and the log replays the
//!   rest;
//! - a write that a session retries is answered as the first time, and never executed again;
//! - the state file's name stands for a whole state file, or for none;
//! - after a fault the machine does nothing any more but answer that fault.
//!
//! Where to start: `execute` runs a transaction on a `batch`, which is what one `apply` has changed so far, and
//! which becomes part of a `layer`; `layered` is the state that stands, layers over the `base`, which is the
//! file; `checkpoint` brings the one into the other; `tables` lists the tables, and each has a file that
//! specifies its rows; `read` answers readers.

mod answers;
mod backend;
mod base;
mod batch;
mod blocks;
mod chain;
mod changed;
mod checkpoint;
mod counters;
mod database;
mod error;
mod examine;
mod execute;
mod filter;
mod forget;
mod gaps;
mod hashes;
mod head;
mod heads;
mod keys;
mod layer;
mod layered;
mod merge;
mod range;
mod read;
mod recent;
mod reserve;
mod runs;
mod scrub;
mod sequences;
mod sessions;
mod settings;
mod shrink;
mod snapshot;
mod system;
mod tables;
#[cfg(test)]
mod tests;
mod times;
mod verify;
mod version;
mod wire;
mod work;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

pub(crate) use self::backend::GATHERED_BYTES_MAX;
use self::base::Base;
use self::batch::Batch;
pub use self::checkpoint::{Checkpoint, CheckpointEnd};
pub(crate) use self::counters::{ROOM_PERCENT, is_used, version_bytes};
pub(crate) use self::database::RECEIVING_CACHE_BYTES;
use self::database::{FILE_NAME, Loaded, Published, Shared, failed};
pub(crate) use self::examine::{Examined, examine, unfinished};
use self::execute::{Executed, Room};
use self::gaps::Gaps;
use self::hashes::Hashes;
use self::layered::Layered;
use self::merge::Load;
pub use self::read::{Answered, Holds, Pinned, ReadBudget, ReadClass, ReadRefused, Reader, Scan, Step, View};
pub use self::reserve::Reserve;
pub use self::scrub::Scrubber;
use self::sessions::{Sessions, Use};
pub use self::settings::MachineSettings;
#[doc(hidden)]
pub use self::settings::Tuning;
pub use self::shrink::{NotShrunk, Shrunk};
pub use self::snapshot::{
    PinnedState, ReceivedSnapshot, SnapshotError, SnapshotMeta, SnapshotSink, SnapshotSource,
};
use self::system::System;
use self::work::EntryWork;
use crate::env::{self, Disk};
use crate::fault::Fault;
use crate::model::{
    self, Command, Compacted, LimitChange, LimitsSet, LogPosition, LogTime, Outcome, Proposal,
    ReplicatedLimits, Revision, SessionId, SessionOpened, SessionRef, StateHash, TooManyOf, Txn, TxnRefused,
};
use crate::planted::{self, Bug};

/// An entry to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub position: LogPosition,
    /// What it carries.
    pub payload: Payload,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// A [`Proposal`], encoded by [`model::encode`].
    Proposal(Bytes),
    /// A membership; the machine stores the bytes and does not read them.
    Membership(Bytes),
}

/// What an entry answered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EntryOutcome {
    /// Of [`Payload::Blank`].
    Blank,
    /// Of [`Payload::Proposal`]: one outcome for each command.
    Proposal(Vec<Outcome>),
    /// Of [`Payload::Membership`].
    Membership,
}

/// Where the machine stands after the last entry that it applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The last entry applied; `None` before the first.
    pub position: Option<LogPosition>,
    /// The last membership applied, and where it stands in the log.
    pub membership: Option<(LogPosition, Bytes)>,
    /// The store's revision.
    pub revision: Revision,
    /// The oldest revision that can be read.
    pub oldest: Revision,
    /// The hash of the replicated state.
    pub state_hash: StateHash,
    /// The greatest stamp of the proposals applied.
    pub log_time: LogTime,
}

/// Whether a state file is to be made or must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Makes an empty state. One that is there already is opened if no entry was ever applied to it (a first
    /// start that was cut short), and refused otherwise.
    Create,
    /// Opens the state that is there; a missing one is an error, never replaced by an empty one.
    Existing,
}

/// Why a state machine did not open. Nothing was changed, unless the disk failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineOpenError {
    /// There is no state file.
    #[error(
        "the state file {path} is missing or empty. This node's state is lost: do not start it under the same \
         id with an empty state; remove it from the cluster and add an empty directory under a new node id"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is a state file where a new one was to be made.
    #[error(
        "the state file {path} exists and entries were applied to it. It belongs to a node that ran before: \
         open it as what it is, or choose another directory"
    )]
    Exists {
        /// Where it is.
        path: PathBuf,
    },
    /// The file is not a whole state file.
    #[error(
        "the state file {path} is corrupt: {detail}. It was left as it is: check the disk, remove this node \
         from the cluster and add an empty directory under a new node id; for a node alone, quorate check tells what is whole"
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The file was written by another release.
    #[error(
        "the state file {path} has format version {found}, this release knows {known}: run the release that wrote it"
    )]
    UnknownFormat {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u16,
        /// The version that this release knows.
        known: u16,
    },
    /// The disk failed.
    #[error("{doing} {path}: {error}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The file could not be read or written.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl MachineOpenError {
    /// Whether the same may succeed later with nothing changed: only what the disk refused.
    pub fn is_retryable(&self) -> bool {
        match self {
            MachineOpenError::Disk { error, .. } => crate::fault::may_pass(error),
            MachineOpenError::Fault(fault) => fault.is_retryable(),
            MachineOpenError::Missing { .. }
            | MachineOpenError::Exists { .. }
            | MachineOpenError::Corrupt { .. }
            | MachineOpenError::UnknownFormat { .. } => false,
        }
    }
}

impl From<MachineOpenError> for Fault {
    fn from(error: MachineOpenError) -> Fault {
        match error {
            MachineOpenError::Fault(fault) => fault,
            MachineOpenError::Disk { doing, path, error } => Fault::disk(doing, path.display(), error),
            MachineOpenError::Corrupt { path, detail } => Fault::Corrupt {
                path: path.display().to_string(),
                offset: 0,
                detail,
            },
            MachineOpenError::Missing { .. }
            | MachineOpenError::Exists { .. }
            | MachineOpenError::UnknownFormat { .. } => Fault::State {
                doing: "opening",
                detail: error.to_string(),
            },
        }
    }
}

/// How many sessions there are, and what became of others since a machine was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionCounts {
    /// Sessions that are open.
    pub open: u64,
    /// Idle ones that made room for others.
    pub evicted: u64,
    /// Those that were not opened, since there were too many and none was idle.
    pub refused: u64,
}

/// The state machine: the one owner of all writing to the state file. All methods block.
///
/// Dropping it is as a crash of the process: what no checkpoint has written is lost, and the log replays it.
/// An orderly end calls [`make_durable`](Self::make_durable) first.
#[derive(Debug)]
pub struct Machine {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    settings: MachineSettings,
    reserve: Reserve,
    shared: Shared,
    state: Layered,
    system: System,
    sessions: Sessions,
    session_counts: SessionCounts,
    /// Where `state` has no keys.
    gaps: Gaps,
    keys_visited: u64,
    applied: Applied,
    entries_since_checkpoint: u64,
    /// A step of forgetting or of merging is under way.
    step_under_way: bool,
    shrinking: Option<Shrinking>,
    /// Copies that were begun.
    copies: u64,
    /// What the last shrinking came to, until it is asked for.
    shrunk: Option<Result<Shrunk, NotShrunk>>,
    hashes: Arc<Hashes>,
    /// The file's length after the last checkpoint.
    file_bytes: u64,
    /// The time of the last row of `times`.
    noted: Option<LogTime>,
    /// The fault that ended this machine.
    poison: Option<Fault>,
}

impl Machine {
    /// Opens the state file of a directory, and removes what receptions of snapshots left behind there.
    ///
    /// What the file holds when this returns is durable. Requires that no other process has the directory
    /// (the node holds its lock).
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        mode: OpenMode,
        settings: MachineSettings,
    ) -> Result<(Machine, Reader), MachineOpenError> {
        let path = dir.join(FILE_NAME);
        if mode == OpenMode::Create {
            disk.create_dir_all(dir)
                .map_err(failed("making the directory of", &path))?;
        }
        let exists = disk.exists(&path).map_err(failed("looking for", &path))?;
        match mode {
            OpenMode::Existing => {
                // redb would make a new database of an empty file in silence.
                if !exists
                    || disk
                        .open(&path, false)
                        .and_then(|f| f.len())
                        .map_err(failed("opening", &path))?
                        == 0
                {
                    return Err(MachineOpenError::Missing { path });
                }
                database::remove_unfinished(&*disk, dir)?;
            }
            OpenMode::Create => {
                database::remove_unfinished(&*disk, dir)?;
                if !exists {
                    database::create_empty(&disk, dir, &settings)?;
                }
            }
        }
        let Loaded {
            base,
            system,
            sessions,
            noted,
        } = database::load(&disk, dir, &settings)?;
        if mode == OpenMode::Create && system.standing.position.is_some() {
            return Err(MachineOpenError::Exists { path });
        }
        let state = Layered::of(Arc::new(base));
        let file_bytes = state.base.state.file_bytes();
        let applied = applied(&system);
        let shared = Shared::new(Published {
            state: state.clone(),
            standing: system.standing,
            limits: system.limits,
            hashes: Arc::default(),
            file_bytes,
            state_hash: applied.state_hash,
        });
        let machine = Machine {
            reserve: Reserve::of(Arc::clone(&disk), dir),
            disk,
            dir: dir.to_owned(),
            settings,
            shared: shared.clone(),
            state,
            applied,
            system,
            session_counts: SessionCounts::default(),
            sessions,
            gaps: Gaps::default(),
            keys_visited: 0,
            entries_since_checkpoint: 0,
            step_under_way: false,
            shrinking: None,
            copies: 0,
            shrunk: None,
            hashes: Arc::default(),
            file_bytes,
            noted,
            poison: None,
        };
        Ok((machine, Reader::new(shared)))
    }

    /// Where the machine stands.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// The limits that the state carries.
    pub fn limits(&self) -> &ReplicatedLimits {
        &self.system.limits
    }

    /// How many sessions there are, and what became of others since this machine was opened.
    pub fn sessions(&self) -> SessionCounts {
        SessionCounts {
            open: self.sessions.len() as u64,
            ..self.session_counts
        }
    }

    /// How many keys the ranges of transactions have visited since this machine was opened, deleted ones that were gone by
    /// included: what it did, and not what it was paid for.
    pub fn keys_visited(&self) -> u64 {
        self.keys_visited
    }

    /// The last entry whose effects survive a loss of power. The log may be purged up to here and no further.
    pub fn durable(&self) -> Option<LogPosition> {
        self.state.base.standing.position
    }

    /// How many bytes of memory hold what was applied since the last checkpoint began, near enough.
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.state.active.bytes()
    }

    /// How many entries were applied since the last checkpoint began.
    pub fn entries_since_checkpoint(&self) -> u64 {
        self.entries_since_checkpoint
    }

    /// Whether a checkpoint, a step of forgetting or of merging, or a shrinking has begun and not ended.
    pub fn checkpoint_under_way(&self) -> bool {
        self.state.frozen.is_some() || self.step_under_way || self.shrinking.is_some()
    }

    /// Whether the state is being copied into a smaller file: then no second layer is in memory either.
    pub fn is_shrinking(&self) -> bool {
        self.shrinking.is_some()
    }

    /// Whether a step of forgetting or of merging has begun and not ended: then no second layer is in memory.
    pub fn step_under_way(&self) -> bool {
        self.step_under_way
    }

    /// In how many runs the heads of keys stand in the file: a look-up of a key may look into each.
    pub fn runs(&self) -> usize {
        self.state.base.runs.list.len()
    }

    /// Applies entries, which follow the last one applied, together. That none is left out is the promise of
    /// whoever reads them from the log. Reads the file where it must, and never writes to it.
    ///
    /// Readers see the result when this returns, all of it at once; the next checkpoint makes it durable. An
    /// entry that cannot be decoded was committed by a broken or a newer release: that is a fault and not a
    /// refusal, nothing of the call is kept, and the node stops.
    pub fn apply(&mut self, entries: Vec<Entry>) -> Result<Vec<EntryOutcome>, Fault> {
        let mut entries = VecDeque::from(entries);
        let mut outcomes = Vec::with_capacity(entries.len());
        while !entries.is_empty() {
            outcomes.extend(self.apply_some(&mut entries)?);
        }
        Ok(outcomes)
    }

    /// The same for as many of the entries as are best answered together, from the front, one at least: no more follow
    /// once they have looked at very many keys or answered very many bytes, since everybody waits for the answers, and
    /// they take memory until they are given. What was applied is taken from `entries`; it answers one outcome for each.
    pub fn apply_some(&mut self, entries: &mut VecDeque<Entry>) -> Result<Vec<EntryOutcome>, Fault> {
        self.healthy()?;
        let outcomes = self.apply_front(entries);
        self.remember_fault(outcomes)
    }

    /// Begins a checkpoint of everything applied so far: [`Checkpoint::write`] may run on any thread while entries
    /// are applied, and [`end_checkpoint`](Self::end_checkpoint) takes its end. `None` if there is nothing to
    /// write, or another is under way.
    pub fn begin_checkpoint(&mut self) -> Option<Checkpoint> {
        if self.poison.is_some()
            || self.checkpoint_under_way()
            || self.durable() == self.system.standing.position
        {
            return None;
        }
        let layer = std::mem::take(&mut self.state.active);
        self.state.frozen = Some(Arc::clone(&layer));
        self.entries_since_checkpoint = 0;
        self.publish();
        Some(Checkpoint {
            state: Arc::clone(&self.state.base.state),
            what: checkpoint::What::Layer {
                layer,
                system: Box::new(self.system.clone()),
            },
        })
    }

    /// Begins a step of forgetting, in the place of a checkpoint: it takes rows of history away that no read can ask for any
    /// more. `None` if there are none in the file, or a checkpoint is under way; none begins until it has ended. A crash costs
    /// nothing but the step.
    pub fn begin_forgetting(&mut self) -> Option<Checkpoint> {
        let standing = &self.state.base.standing;
        if self.poison.is_some()
            || self.checkpoint_under_way()
            || standing.history.since >= forget::target(standing)
        {
            return None;
        }
        Some(self.begin_step(checkpoint::What::Forget {
            rows: self.settings.tuning.forget_rows,
        }))
    }

    /// Begins a step of merging, in the place of a checkpoint: runs of heads become fewer. `None` if they are few, or a checkpoint
    /// is under way; none begins until it has ended. A crash costs nothing but what was merged.
    pub fn begin_merging(&mut self) -> Option<Checkpoint> {
        self.begin_merging_under(Load::Writers)
    }

    /// The same where nothing is written at present: they become fewer than beside writers, who find less to merge then.
    pub fn begin_merging_at_rest(&mut self) -> Option<Checkpoint> {
        self.begin_merging_under(Load::None)
    }

    fn begin_merging_under(&mut self, load: Load) -> Option<Checkpoint> {
        let base = &self.state.base;
        if self.poison.is_some()
            || self.checkpoint_under_way()
            || !merge::is_due(&base.state, &base.runs, base.standing.history.since, load)
        {
            return None;
        }
        Some(self.begin_step(checkpoint::What::Merge {
            rows: self.settings.tuning.merge_rows,
            load,
        }))
    }

    fn begin_step(&mut self, what: checkpoint::What) -> Checkpoint {
        self.step_under_way = true;
        Checkpoint {
            state: Arc::clone(&self.state.base.state),
            what,
        }
    }

    /// Begins to copy the state file into one without free pages, in the place of a checkpoint; none begins until that has
    /// ended, and [`cancel_shrinking`](Self::cancel_shrinking) ends it soon. What it came to tells
    /// [`take_shrunk`](Self::take_shrunk) afterwards. A crash costs nothing but the copy.
    ///
    /// `None` where a checkpoint is under way. Refused where the disk has no room for a second file.
    pub fn begin_shrinking(&mut self) -> Result<Option<Checkpoint>, NotShrunk> {
        if self.poison.is_some() || self.checkpoint_under_way() {
            return Ok(None);
        }
        let before = self.file_bytes();
        let held = self.system.standing.counters.version_bytes;
        shrink::make_room(&*self.disk, &self.dir, before, held, &self.reserve)?;
        let is_cancelled = Arc::new(AtomicBool::new(false));
        self.copies += 1;
        self.shrinking = Some(Shrinking {
            before,
            is_cancelled: Arc::clone(&is_cancelled),
        });
        Ok(Some(Checkpoint {
            state: Arc::clone(&self.state.base.state),
            what: checkpoint::What::Copy(shrink::Copy {
                disk: Arc::clone(&self.disk),
                dir: self.dir.clone(),
                number: self.copies,
                is_cancelled,
            }),
        }))
    }

    /// Has a shrinking that is under way end soon, without a result.
    pub fn cancel_shrinking(&self) {
        if let Some(shrinking) = &self.shrinking {
            shrinking
                .is_cancelled
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// What the last shrinking came to, once.
    pub fn take_shrunk(&mut self) -> Option<Result<Shrunk, NotShrunk>> {
        self.shrunk.take()
    }

    /// The reserve beside the state file.
    pub fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// The length of the state file, in bytes; 0 where it cannot be told.
    pub fn file_bytes(&self) -> u64 {
        self.state.base.state.file_bytes()
    }

    /// Takes the end of a checkpoint. One of a state that a snapshot has replaced meanwhile does not matter, nor
    /// how it ended.
    pub fn end_checkpoint(&mut self, end: CheckpointEnd) -> Result<(), Fault> {
        self.healthy()?;
        if !Arc::ptr_eq(&end.state, &self.state.base.state) {
            return Ok(());
        }
        let was_step = std::mem::take(&mut self.step_under_way);
        let shrinking = self.shrinking.take();
        let mut base = self.remember_fault(end.result)?;
        if let Some(shrinking) = shrinking {
            let placed = self.put_copy_in_place(shrinking, end.copy);
            if let Some(smaller) = self.remember_fault(placed)? {
                // Views that were pinned before keep the old file; nothing more is written to it.
                self.state.base.state.backend.retire();
                base = smaller;
            }
        }
        let standing = &mut self.system.standing;
        standing.history = base.standing.history;
        if was_step {
            let before = self.state.base.standing.counters.version_bytes;
            let gone = before.saturating_sub(base.standing.counters.version_bytes);
            standing.counters.version_bytes = standing.counters.version_bytes.saturating_sub(gone);
        }
        self.file_bytes = base.state.file_bytes();
        self.state.base = Arc::new(base);
        self.state.frozen = None;
        self.publish();
        Ok(())
    }

    fn put_copy_in_place(
        &mut self,
        shrinking: Shrinking,
        copy: Option<ReceivedSnapshot>,
    ) -> Result<Option<Base>, Fault> {
        let Some(copy) = copy.filter(|copy| copy.meta.position == self.durable()) else {
            self.shrunk = Some(Err(NotShrunk::Interrupted));
            return Ok(None);
        };
        let base = shrink::take_place(&self.disk, &self.dir, &self.settings, copy)?;
        self.shrunk = Some(Ok(Shrunk {
            before: shrinking.before,
            after: base.state.file_bytes(),
        }));
        Ok(Some(base))
    }

    /// Makes everything applied so far durable, by a checkpoint here and now. Not while another is under way.
    pub fn make_durable(&mut self) -> Result<(), Fault> {
        self.healthy()?;
        if self.checkpoint_under_way() {
            return Err(Fault::invariant("one checkpoint at a time", "one is under way"));
        }
        match self.begin_checkpoint() {
            Some(checkpoint) => self.end_checkpoint(checkpoint.write()),
            None => Ok(()),
        }
    }

    /// Reads the whole state, what is in memory included, and computes its hash anew: corruption if it is not
    /// the one that was kept.
    pub fn verify_hash(&self) -> Result<StateHash, Fault> {
        verify::layered(&self.state, &self.system.standing)?;
        Ok(self.applied.state_hash)
    }

    /// Replaces the state by a received snapshot. Durable when this returns; readers see the new state then, and
    /// views that were pinned before keep the old one.
    ///
    /// A snapshot that is not ahead of the state is dropped, and the state kept. One that cannot be of the same history as
    /// the state is a fault.
    pub fn install(&mut self, received: ReceivedSnapshot) -> Result<(), Fault> {
        self.healthy()?;
        if let (Some(applied), Some(theirs)) = (self.applied.position, received.meta.position)
            && !are_of_one_history(applied, theirs)
        {
            return self.remember_fault(Err(Fault::AnotherHistory {
                detail: format!("a snapshot of {theirs} was to replace the state of {applied}"),
            }));
        }
        if received.meta.position <= self.applied.position {
            return Ok(());
        }
        let installed = self.replace_state(received);
        self.remember_fault(installed)
    }

    /// Begins to receive a snapshot into a new file of `dir`, beside the state.
    pub fn snapshot_sink(disk: Arc<dyn Disk>, dir: &Path) -> Result<SnapshotSink, SnapshotError> {
        SnapshotSink::begin(disk, dir)
    }

    fn healthy(&self) -> Result<(), Fault> {
        match &self.poison {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        }
    }

    fn remember_fault<T>(&mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &result {
            self.poison = Some(fault.clone());
        }
        result
    }

    fn publish(&self) {
        self.shared.publish(Published {
            state: self.state.clone(),
            standing: self.system.standing,
            limits: self.system.limits,
            hashes: Arc::clone(&self.hashes),
            file_bytes: self.file_bytes,
            state_hash: self.applied.state_hash,
        });
    }

    fn apply_front(&mut self, entries: &mut VecDeque<Entry>) -> Result<Vec<EntryOutcome>, Fault> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let tuning = self.settings.tuning;
        let gaps = std::mem::take(&mut self.gaps);
        let mut apply = Apply {
            batch: Batch::new(&self.state, &self.system.standing, gaps),
            system: &mut self.system,
            sessions: &mut self.sessions,
            session_counts: &mut self.session_counts,
            noted: &mut self.noted,
            time_spacing_millis: tuning.time_spacing_millis,
            looked_at: 0,
            answer_bytes: 0,
        };
        let mut outcomes = Vec::with_capacity(entries.len());
        while apply.looked_at < tuning.apply_keys && apply.answer_bytes < tuning.apply_answer_bytes
            || outcomes.is_empty()
        {
            let Some(entry) = entries.pop_front() else { break };
            let index = entry.position.index;
            outcomes.push(apply.entry(entry)?);
            if hashes::is_agreed(index, tuning.hash_entries) {
                break;
            }
        }
        self.keys_visited = self.keys_visited.saturating_add(apply.batch.visited);
        let (additions, sums, gaps) = apply.batch.finish(apply.sessions);
        self.gaps = gaps;
        let standing = &mut self.system.standing;
        standing.chain = sums.chain;
        standing.counters = sums.counters;
        standing.rows_hash = match planted::is(Bug::RandomInApply) {
            true => sums.rows_hash ^ u128::from(env::random_u64() & 1),
            false => sums.rows_hash,
        };
        self.state.active.add(additions);
        self.applied = applied(&self.system);
        if let Some(position) = self.applied.position
            && hashes::is_agreed(position.index, tuning.hash_entries)
        {
            Arc::make_mut(&mut self.hashes).note(position, self.applied.state_hash);
        }
        let count = outcomes.len() as u64;
        self.entries_since_checkpoint = self.entries_since_checkpoint.saturating_add(count);
        self.publish();
        Ok(outcomes)
    }

    fn replace_state(&mut self, received: ReceivedSnapshot) -> Result<(), Fault> {
        let ReceivedSnapshot { meta, unfinished } = received;
        let path = self.dir.join(FILE_NAME);
        if unfinished.path.parent() != Some(&*self.dir) {
            return Err(Fault::invariant(
                "a snapshot is received beside the state that it replaces",
                unfinished.path.display().to_string(),
            ));
        }
        database::rename(&*self.disk, &unfinished.path, &path)
            .map_err(|e| Fault::disk("renaming", unfinished.path.display(), e))?;
        unfinished.keep();
        self.disk
            .sync_dir(&self.dir)
            .map_err(|e| Fault::disk("syncing", self.dir.display(), e))?;
        let Loaded {
            base,
            system,
            sessions,
            noted,
        } = database::load(&self.disk, &self.dir, &self.settings)?;
        self.noted = noted;
        self.system = system;
        self.sessions = sessions;
        self.gaps = Gaps::default();
        self.applied = applied(&self.system);
        if self.applied.position != meta.position || self.applied.state_hash != meta.hash {
            return Err(Fault::invariant(
                "the file that was installed is the snapshot that was received",
                format!("{:?} and {:?}", self.applied, meta),
            ));
        }
        // A checkpoint of the old file that is under way comes to nothing from here on, and its end is thrown away.
        self.state.base.state.backend.retire();
        self.file_bytes = base.state.file_bytes();
        self.state = Layered::of(Arc::new(base));
        self.step_under_way = false;
        if self.shrinking.take().is_some() {
            self.shrunk = Some(Err(NotShrunk::Interrupted));
        }
        self.entries_since_checkpoint = 0;
        self.publish();
        Ok(())
    }
}

/// A shrinking that is under way.
#[derive(Debug)]
struct Shrinking {
    /// The file's length when it began.
    before: u64,
    is_cancelled: Arc<AtomicBool>,
}

/// Whether two entries can both be committed in one history: the later one is of no earlier term, and one index has one
/// entry.
fn are_of_one_history(one: LogPosition, other: LogPosition) -> bool {
    match one.index.cmp(&other.index) {
        Ordering::Equal => one == other,
        Ordering::Less => (one.term, one.leader) <= (other.term, other.leader),
        Ordering::Greater => (one.term, one.leader) >= (other.term, other.leader),
    }
}

impl Drop for Machine {
    /// As a crash would: nothing more is written, also not by the closing of the database, which the last view
    /// brings about when another machine may have opened the file. Views that were pinned before keep the state. What was not made durable is replayed from
    /// the log.
    fn drop(&mut self) {
        self.state.base.state.backend.retire();
    }
}

fn applied(system: &System) -> Applied {
    Applied {
        position: system.standing.position,
        membership: system.membership.clone(),
        revision: system.standing.revision,
        oldest: system.standing.oldest,
        state_hash: system.standing.state_hash(&system.limits),
        log_time: system.standing.log_time,
    }
}

/// One call of [`Machine::apply`] under way.
struct Apply<'a, 's> {
    batch: Batch<'s>,
    system: &'a mut System,
    sessions: &'a mut Sessions,
    session_counts: &'a mut SessionCounts,
    noted: &'a mut Option<LogTime>,
    time_spacing_millis: u64,
    /// Keys that all transactions have looked at.
    looked_at: u64,
    /// Bytes that their reads return.
    answer_bytes: u64,
}

impl Apply<'_, '_> {
    fn entry(&mut self, entry: Entry) -> Result<EntryOutcome, Fault> {
        let last = self.system.standing.position;
        if last.is_some_and(|last| entry.position.index <= last.index || entry.position < last) {
            return Err(Fault::invariant(
                "entries are applied in the log's order",
                format!("{} after {last:?}", entry.position),
            ));
        }
        let outcome = match entry.payload {
            Payload::Blank => EntryOutcome::Blank,
            Payload::Membership(bytes) => {
                self.system.membership = Some((entry.position, bytes));
                EntryOutcome::Membership
            }
            Payload::Proposal(bytes) => {
                self.batch.entry(&bytes);
                let proposal: Proposal = model::decode_shared(&bytes).map_err(|e| Fault::Corrupt {
                    path: format!("the log entry {}", entry.position),
                    offset: 0,
                    detail: format!("a committed proposal cannot be decoded: {e}"),
                })?;
                EntryOutcome::Proposal(self.proposal(entry.position, proposal)?)
            }
        };
        self.system.standing.position = Some(entry.position);
        Ok(outcome)
    }

    fn proposal(&mut self, position: LogPosition, proposal: Proposal) -> Result<Vec<Outcome>, Fault> {
        let standing = &mut self.system.standing;
        standing.log_time = standing.log_time.max(proposal.stamp);
        let now = Use {
            time: standing.log_time,
            entry: position.index,
        };
        for id in self.sessions.due(now.time) {
            self.end_session(id);
        }
        let mut work = EntryWork::new(proposal.full_at);
        let mut outcomes = Vec::with_capacity(proposal.commands.len());
        for command in proposal.commands {
            outcomes.push(match command {
                Command::Txn { session: None, txn } => {
                    Outcome::Txn(self.txn(now, txn, &mut work, None)?.answer)
                }
                Command::Txn {
                    session: Some(session),
                    txn,
                } => self.session_txn(now, session, txn, &mut work)?,
                Command::OpenSession { id, ttl_millis } => {
                    Outcome::SessionOpened(self.open_session(id, ttl_millis, now))
                }
                Command::CloseSession { session } => {
                    self.end_session(session);
                    Outcome::SessionClosed
                }
                Command::SetLimits { expected, changes } => {
                    Outcome::LimitsSet(self.set_limits(expected, &changes))
                }
                Command::Compact { revision } => Outcome::Compacted(self.compact(revision)),
            });
        }
        Ok(outcomes)
    }

    fn txn(
        &mut self,
        now: Use,
        txn: Txn,
        work: &mut EntryWork,
        room: Option<Room>,
    ) -> Result<Executed, Fault> {
        let System { limits, standing, .. } = &mut *self.system;
        let at = (standing.revision, now.entry);
        let executed = execute::execute(&mut self.batch, txn, at, limits, work, room)?;
        if let Ok(response) = &executed.answer
            && response.revision > standing.revision
        {
            standing.revision = response.revision;
            let is_new = |noted: &LogTime| {
                now.time.millis() >= noted.millis().saturating_add(self.time_spacing_millis.max(1))
            };
            if self.noted.as_ref().is_none_or(is_new) {
                *self.noted = Some(now.time);
                self.batch.stood((now.time, response.revision));
            }
        }
        self.looked_at = self.looked_at.saturating_add(executed.looked_at);
        self.answer_bytes = self.answer_bytes.saturating_add(executed.answer_bytes);
        Ok(executed)
    }

    /// Runs a session's write once, however often it comes.
    fn session_txn(
        &mut self,
        now: Use,
        session: SessionRef,
        txn: Txn,
        work: &mut EntryWork,
    ) -> Result<Outcome, Fault> {
        let SessionRef { id, sequence, .. } = session;
        let Some((found, forgotten)) = self.sessions.touch(id, session.answered_below, now) else {
            return Ok(Outcome::Txn(Err(TxnRefused::SessionExpired { session: id })));
        };
        let known = found.answers.get(&sequence).copied();
        let was_forgotten = sequence < found.answered_below;
        let unanswered = (found.answers.len() as u64, found.answer_bytes);
        self.batch.forget(id, forgotten);
        if was_forgotten {
            return Ok(Outcome::Txn(Err(TxnRefused::SequenceForgotten {
                session: id,
                sequence,
            })));
        }
        if let Some(known) = known
            && !planted::is(Bug::RetryAppliedTwice)
        {
            if let Err(refused) = work.give_again(known.bytes, &self.system.limits) {
                return Ok(Outcome::Txn(Err(refused)));
            }
            self.answer_bytes = self.answer_bytes.saturating_add(known.bytes);
            return self.first_answer(id, sequence);
        }
        let ReplicatedLimits {
            unanswered_max: limit,
            unanswered_bytes_max,
            ..
        } = self.system.limits;
        if unanswered.0 >= limit {
            let what = TooManyOf::UnansweredWrites;
            return Ok(Outcome::Txn(Err(TxnRefused::TooMany { what, limit })));
        }
        let room = Room {
            left: unanswered_bytes_max.saturating_sub(unanswered.1),
            max: unanswered_bytes_max,
        };
        let Executed {
            answer, remembered, ..
        } = self.txn(now, txn, work, Some(room))?;
        if let Some(bytes) = remembered {
            let answer = self.batch.remember(id, sequence, bytes);
            self.sessions.answered(id, sequence, answer);
        }
        Ok(Outcome::Txn(answer))
    }

    fn first_answer(&self, id: SessionId, sequence: model::Sequence) -> Result<Outcome, Fault> {
        let file = self.batch.file();
        let answer = self.batch.answer(id, sequence)?;
        let answer =
            answer.ok_or_else(|| file.corrupt(format!("session {id} lacks its answer {sequence}")))?;
        model::decode(&answer).map_err(|e| {
            file.corrupt(format!(
                "the answer {sequence} of session {id} cannot be decoded: {e}"
            ))
        })
    }

    fn open_session(
        &mut self,
        id: SessionId,
        ttl_millis: u64,
        now: Use,
    ) -> Result<SessionOpened, TxnRefused> {
        let limits = self.system.limits;
        while self.sessions.len() as u64 >= limits.sessions_max {
            let Some(idle) = self.sessions.idle(now, &limits) else {
                self.session_counts.refused += 1;
                return Err(TxnRefused::TooMany {
                    what: TooManyOf::Sessions,
                    limit: limits.sessions_max,
                });
            };
            self.session_counts.evicted += 1;
            self.end_session(idle);
        }
        let session = self.sessions.free_from(id);
        let ttl_millis = ttl_millis.min(limits.session_ttl_millis_max);
        self.sessions.open(session, ttl_millis, now);
        Ok(SessionOpened { session, ttl_millis })
    }

    fn set_limits(&mut self, expected: Option<u64>, changes: &[LimitChange]) -> LimitsSet {
        let System {
            limits: stand,
            standing,
            ..
        } = &mut *self.system;
        let is_expected = expected.is_none_or(|version| version == standing.limits_version);
        let changed = stand
            .with(changes)
            .ok()
            .filter(|_| is_expected && !changes.is_empty());
        if let Some(limits) = changed {
            *stand = limits;
            standing.limits_version += 1;
        }
        LimitsSet {
            changed: changed.is_some(),
            version: standing.limits_version,
            limits: *stand,
        }
    }

    fn compact(&mut self, revision: Revision) -> Compacted {
        let standing = &mut self.system.standing;
        if revision <= standing.revision {
            standing.oldest = standing.oldest.max(revision);
        }
        self.batch.oldest = standing.oldest;
        Compacted {
            oldest: standing.oldest,
            revision: standing.revision,
        }
    }

    fn end_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(id) {
            self.batch.session_ended(session.row_hash);
            self.batch.forget(id, session.answers);
        }
    }
}

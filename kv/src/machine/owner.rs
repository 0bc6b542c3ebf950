//! The one owner of all writing to the state: what is applied, and what of it goes to the file and when.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::applying::applied::Applied;
use super::applying::apply::Apply;
use super::applying::batch::Batch;
use super::applying::entry::{Entry, EntryOutcome};
use super::applying::gaps::Gaps;
use super::applying::hashes::{self, Hashes};
use super::file::base::Base;
use super::file::database::{self, FILE_NAME};
use super::file::open_error::{MachineOpenError, failed};
use super::file::opening::{self, Loaded, OpenMode};
use super::file::reserve::Reserve;
use super::layers::layered::Layered;
use super::reading::published::{LastPublished, Published};
use super::reading::read::Reader;
use super::rows::sessions::{SessionCounts, Sessions};
use super::rows::system::System;
use super::settings::MachineSettings;
use super::snapshot::{ReceivedSnapshot, SnapshotError, SnapshotSink};
use super::upkeep::checkpoint::{self, Checkpoint, CheckpointEnd};
use super::upkeep::forget;
use super::upkeep::merge::{self, Load};
use super::upkeep::shrink::{self, NotShrunk, Shrunk};
use super::upkeep::verify;
use crate::env::{self, Disk};
use crate::fault::Fault;
use crate::model::{LogPosition, LogTime, ReplicatedLimits, StateHash};
use crate::planted::{self, Bug};

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
    shared: LastPublished,
    pub(super) state: Layered,
    system: System,
    sessions: Sessions,
    session_counts: SessionCounts,
    /// Where `state` has no keys.
    pub(super) gaps: Gaps,
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
                    opening::create_empty(&disk, dir, &settings)?;
                }
            }
        }
        let Loaded {
            base,
            system,
            sessions,
            noted,
        } = opening::load(&disk, dir, &settings)?;
        if mode == OpenMode::Create && system.standing.position.is_some() {
            return Err(MachineOpenError::Exists { path });
        }
        let state = Layered::of(Arc::new(base));
        let file_bytes = state.base.state.file_bytes();
        let applied = Applied::of(&system);
        let shared = LastPublished::new(Published {
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
        self.applied = Applied::of(&self.system);
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
        } = opening::load(&self.disk, &self.dir, &self.settings)?;
        self.noted = noted;
        self.system = system;
        self.sessions = sessions;
        self.gaps = Gaps::default();
        self.applied = Applied::of(&self.system);
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
pub(super) fn are_of_one_history(one: LogPosition, other: LogPosition) -> bool {
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

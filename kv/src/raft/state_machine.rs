//! openraft's state machine on [`crate::machine`], which an owner thread holds.
//!
//! openraft hands committed entries over and goes on; whatever has come while the owner was busy is applied
//! together, as far as it is done soon and its answers are small, and the answers leave from the owner's thread. What must see the entries applied (snapshots, the
//! applied state) goes through the same queue behind them. The owner begins a checkpoint whenever a bound of
//! entries, bytes or time is met, and another thread writes it; where that thread is slower than what comes,
//! applying waits, and openraft with it. The log is purged behind checkpoints only.
//!
//! Always: after the first fault nothing is applied, every call answers it, and the node stops; jobs are done in the
//! order in which they came; what was applied and is in no checkpoint has a bound in bytes, however much an entry answers.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::OwnedSemaphorePermit;

use super::checkpoints::{self, Checkpoints, Ends};
use super::sendings::Sendings;
use super::snapshot_data::SnapshotData;
use super::tap::Tap;
use super::turns::{ApplyBounds, Standing, Turn, Turns};
use super::types::{
    LogId, Membership, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, position,
};
use crate::env::{self, Disk, Owner, OwnerHandle, WeakOwnerHandle, oneshot, watch};
use crate::fault::{Fault, Faults};
use crate::log::CrashPoint;
use crate::machine::{
    Applied, Checkpoint, Entry, EntryOutcome, Machine, NotShrunk, Payload, Reader, ReceivedSnapshot, Reserve,
    SessionCounts, Shrunk, SnapshotError, SnapshotSink, SnapshotSource,
};
use crate::model::{self, LogPosition, Revision};
use crate::planted::{self, Bug};
use crate::room::Room;

/// Entries that one job carries at most: bounds the memory of a replay after a restart.
const APPLY_ENTRIES_MAX: usize = 4096;
/// Bytes of proposals after which a job is closed.
const APPLY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Jobs that wait for the owner, and as many that it has taken and not got to.
const QUEUE: usize = 64;
/// How often it is told that sessions are refused, at most.
const SESSIONS_TOLD_EVERY: Duration = Duration::from_secs(60);

/// openraft, with this state machine.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// The handle that openraft holds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StateMachine {
    jobs: OwnerHandle<Job>,
    applied: watch::Receiver<Arc<Applied>>,
    faults: Faults,
    /// Whether the owner takes more entries.
    room: watch::Receiver<bool>,
    /// For the entries that wait to be applied.
    queue: Room,
    reserve: Reserve,
    reader: Reader,
    sendings: Sendings,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// The answer once the machine is closed.
const STOPPED: Fault = Fault::Stopped {
    owner: "state machine",
};

enum Job {
    Apply(ApplyJob),
    /// Answers when everything before it was applied.
    Applied {
        done: Done<Arc<Applied>>,
    },
    /// A snapshot of the last checkpoint; `of_all` applied before, once that is in one, or where there was none.
    Snapshot {
        of_all: bool,
        done: Done<Box<SnapshotSource>>,
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
    /// Copies the state file into one without free pages, when there is time.
    Shrink {
        done: oneshot::Sender<Result<Shrunk, NotShrunk>>,
    },
    /// A copy that is under way ends, and none begins any more.
    StopShrinking,
    Close {
        done: Done<()>,
    },
    /// A checkpoint has ended, or there was more to do than is done in one go: look.
    GoOn,
}

#[derive(Default)]
struct ApplyJob {
    entries: VecDeque<Entry>,
    /// One for each entry; `None` where nobody here waits for the answer.
    responders: VecDeque<Option<ApplyResponder<TypeConfig>>>,
    bytes: usize,
    /// Its place in the queue, in bytes, until all of it was applied.
    held: Option<OwnedSemaphorePermit>,
}

/// A job's place among those that wait to be applied: also an empty one has one.
async fn place(queue: &Room, bytes: usize) -> OwnedSemaphorePermit {
    queue.take(bytes.max(1)).await
}

type Done<T> = oneshot::Sender<Result<T, Fault>>;

struct MachineOwner {
    /// `None` once closed.
    machine: Option<Machine>,
    reader: Reader,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bounds: ApplyBounds,
    tap: Option<Arc<dyn Tap>>,
    applied: watch::Sender<Arc<Applied>>,
    /// After the first of them nothing is applied.
    faults: Faults,
    room: watch::Sender<bool>,
    /// Jobs that were taken and not got to, in order.
    pending: VecDeque<Job>,
    /// Where a job to go on is sent.
    own_queue: Arc<OnceLock<WeakOwnerHandle<Job>>>,
    sessions: SessionsTold,
    checkpoints: Checkpoints,
    ends: Ends,
    turns: Turns,
    /// Checkpoints that were begun and whose end was not taken.
    being_written: usize,
    /// Who waits until what was applied is durable.
    waiting: Vec<Waiting>,
    /// Who waits until the state is shrunk: it is to be, as soon as nothing else is due.
    shrinking: Option<oneshot::Sender<Result<Shrunk, NotShrunk>>>,
    /// The state is not shrunk any more: the node stops.
    shrinks_no_more: bool,
    /// Who waits until nothing touches the state file any more.
    closing: Vec<Done<()>>,
}

struct Waiting {
    position: Option<LogPosition>,
    what: WaitingFor,
}

enum WaitingFor {
    Durable(Done<()>),
    Snapshot(Done<Box<SnapshotSource>>),
}

enum Effect {
    Applied {
        answers: Vec<(ApplyResponder<TypeConfig>, EntryOutcome)>,
    },
    AppliedState {
        result: Result<Arc<Applied>, Fault>,
        done: Done<Arc<Applied>>,
    },
    Done {
        result: Result<(), Fault>,
        done: Done<()>,
    },
    Snapshot {
        result: Result<Box<SnapshotSource>, Fault>,
        done: Done<Box<SnapshotSource>>,
    },
}

impl StateMachine {
    pub(crate) fn start(
        machine: Machine,
        reader: Reader,
        bounds: ApplyBounds,
        tap: Option<Arc<dyn Tap>>,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        faults: Faults,
    ) -> Self {
        let (applied_tx, applied) = watch::channel(Arc::new(machine.applied().clone()));
        let (room_tx, room) = watch::channel(true);
        let ends = Ends::default();
        let own_queue: Arc<OnceLock<WeakOwnerHandle<Job>>> = Arc::default();
        let told = Arc::clone(&own_queue);
        let checkpoints = Checkpoints::start(ends.clone(), &faults, move || go_on(&told));
        let reserve = machine.reserve().clone();
        let owner = MachineOwner {
            machine: Some(machine),
            reader: reader.clone(),
            disk: Arc::clone(&disk),
            dir: dir.clone(),
            bounds,
            tap,
            applied: applied_tx,
            faults: faults.clone(),
            room: room_tx,
            pending: VecDeque::new(),
            own_queue: Arc::clone(&own_queue),
            sessions: SessionsTold::default(),
            checkpoints,
            ends,
            turns: Turns::default(),
            being_written: 0,
            waiting: Vec::new(),
            shrinking: None,
            shrinks_no_more: false,
            closing: Vec::new(),
        };
        let jobs = env::spawn_owner(
            "quorate-apply",
            QUEUE,
            QUEUE,
            owner,
            faults.on_panic("apply thread"),
        );
        let _ = own_queue.set(jobs.downgrade());
        Self {
            jobs,
            applied,
            faults,
            room,
            queue: Room::new(bounds.queue_bytes),
            reserve,
            reader,
            sendings: Sendings::default(),
            disk,
            dir,
        }
    }

    /// What was applied last; changes once readers see it.
    pub(crate) fn applied(&self) -> watch::Receiver<Arc<Applied>> {
        self.applied.clone()
    }

    /// The revision that readers see at least.
    pub(crate) fn applied_revision(&self) -> Revision {
        self.applied.borrow().revision
    }

    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Begins to receive a snapshot into a file beside the state. Blocks: call from an owner's thread.
    pub(crate) fn sink(&self) -> Result<SnapshotSink, SnapshotError> {
        SnapshotSink::begin(Arc::clone(&self.disk), &self.dir)
    }

    /// The reserve beside the state file.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// The snapshots that are on their way to others.
    pub(crate) fn sendings(&self) -> &Sendings {
        &self.sendings
    }

    /// The node's faults.
    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Makes all that was applied durable. Cancel safe: the work goes on.
    pub(crate) async fn make_durable(&self) -> Result<(), Fault> {
        self.ask(|done| Job::MakeDurable { done }).await
    }

    /// Copies the state file into one without free pages, which takes its place. Waits for that; dropped, it goes on.
    pub(crate) async fn shrink(&self) -> Result<Shrunk, NotShrunk> {
        let (done, answer) = oneshot::channel();
        let sent = self.jobs.send(Job::Shrink { done }).await;
        sent.map_err(|_| NotShrunk::Stopped)?;
        answer.await.unwrap_or(Err(NotShrunk::Stopped))
    }

    /// Has a copy of the state that is under way end, for a node that is about to stop: nothing is durable before it has.
    pub(crate) async fn stop_shrinking(&self) {
        // An owner that has ended shrinks nothing.
        let _ = self.jobs.send(Job::StopShrinking).await;
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

    async fn snapshot(&self, of_all: bool) -> Result<Snapshot, Fault> {
        let source = self.ask(|done| Job::Snapshot { of_all, done }).await?;
        self.snapshot_of(source)
    }

    fn snapshot_of(&self, source: Box<SnapshotSource>) -> Result<Snapshot, Fault> {
        let meta = source.meta();
        let claimed = match planted::is(Bug::EarlyPurge) {
            true => self.applied.borrow().position,
            false => meta.position,
        };
        let meta = SnapshotMeta {
            last_log_id: claimed.map(log_id),
            last_membership: stored_membership(meta.membership.as_ref())?,
        };
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Source(source),
        })
    }
}

impl MachineOwner {
    /// Applies entries from the front, as many as are best answered together.
    fn apply_some(&mut self, entries: &mut VecDeque<Entry>) -> Result<Vec<EntryOutcome>, Fault> {
        self.healthy()?;
        let tapped = self.tap.clone().map(|tap| (tap, entries.clone()));
        let machine = self.open()?;
        let started = env::now();
        let visited = machine.keys_visited();
        let outcomes = machine.apply_some(entries)?;
        if let Some((tap, entries)) = tapped {
            let entries: Vec<Entry> = entries.into_iter().take(outcomes.len()).collect();
            tap.applied(&entries, &outcomes, machine.applied());
        }
        if outcomes
            .iter()
            .any(|outcome| matches!(outcome, EntryOutcome::Membership))
        {
            CrashPoint::MembershipApplied
                .reached()
                .map_err(|e| Fault::disk("applying to", "the state", e))?;
        }
        metrics::histogram!("quorate_apply_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("quorate_apply_batch_entries").record(outcomes.len() as f64);
        metrics::counter!("quorate_apply_keys_visited_total").increment(machine.keys_visited() - visited);
        let counts = machine.sessions();
        self.sessions.tell(counts);
        Ok(outcomes)
    }

    /// Takes the ends of checkpoints.
    fn take_ends(&mut self) {
        for end in self.ends.take() {
            self.being_written = self.being_written.saturating_sub(1);
            let result = self.machine.as_mut().map_or(Ok(()), |m| m.end_checkpoint(end));
            let _ = self.keep(result);
            if let Some(shrunk) = self.machine.as_mut().and_then(Machine::take_shrunk) {
                self.end_shrinking(shrunk);
            }
        }
    }

    /// Tells who waits for it.
    fn end_shrinking(&mut self, shrunk: Result<Shrunk, NotShrunk>) {
        if let Some(done) = self.shrinking.take() {
            let _ = done.send(shrunk);
        }
    }

    fn stop_shrinking(&mut self) {
        self.shrinks_no_more = true;
        self.end_shrinking(Err(NotShrunk::Stopped));
        if let Some(machine) = &self.machine {
            machine.cancel_shrinking();
        }
    }

    /// Begins a checkpoint where a bound is met or someone waits for one, or a step of merging or forgetting, and says whether there is
    /// room.
    fn check_bounds(&mut self) {
        if let Some(checkpoint) = self.begin_what_is_due() {
            let sent = self.checkpoints.write(checkpoint);
            self.being_written += usize::from(sent.is_ok());
            let _ = self.keep(sent);
        }
        let has_room = self.has_room() && self.pending.len() < QUEUE;
        self.room
            .send_if_modified(|room| std::mem::replace(room, has_room) != has_room);
    }

    fn begin_what_is_due(&mut self) -> Option<Checkpoint> {
        // Two are being written only where a snapshot has just replaced the state of the first.
        if self.being_written >= checkpoints::AT_ONCE {
            return None;
        }
        let machine = self.machine.as_ref()?;
        let standing = Standing {
            bounds: self.bounds,
            entries: machine.entries_since_checkpoint(),
            bytes: machine.bytes_since_checkpoint(),
            runs: machine.runs(),
            is_awaited: !self.waiting.is_empty(),
            is_copy_wanted: self.shrinking.is_some(),
        };
        if standing.is_full() {
            // What comes must not wait for a copy of everything.
            machine.cancel_shrinking();
        }
        for turn in self.turns.next(&standing) {
            let machine = self.machine.as_mut()?;
            let begun = match turn {
                Turn::Forget => machine.begin_forgetting(),
                Turn::Merge => machine.begin_merging(),
                Turn::MergeAtRest => machine.begin_merging_at_rest(),
                Turn::Checkpoint => machine.begin_checkpoint(),
                Turn::Copy if machine.checkpoint_under_way() => None,
                Turn::Copy => match machine.begin_shrinking() {
                    Ok(copy) => copy,
                    Err(refused) => {
                        self.end_shrinking(Err(refused));
                        None
                    }
                },
            };
            if begun.is_some() {
                self.turns.begun(turn);
                return begun;
            }
        }
        None
    }

    /// Whether more may be applied now: not while the bounds are met and a checkpoint is still being written, or a step of
    /// merging or forgetting for which half as much more has come.
    fn has_room(&self) -> bool {
        let bounds = self.bounds;
        let is_full = self.machine.as_ref().is_some_and(|machine| {
            let more = |bound: u64| match machine.step_under_way() || machine.is_shrinking() {
                true => bound + bound / 2,
                false => bound,
            };
            machine.checkpoint_under_way()
                && (machine.entries_since_checkpoint() >= more(bounds.entries)
                    || machine.bytes_since_checkpoint() >= more(bounds.bytes))
        });
        !is_full || self.faults.is_raised()
    }

    /// Answers those for whom the state is durable enough, or never will be.
    fn answer_waiting(&mut self, effects: &mut Vec<Effect>) {
        let fault = self.faults.first();
        let durable = match (&self.machine, fault) {
            (Some(machine), None) => Ok(machine.durable()),
            (_, Some(fault)) => Err(fault),
            (None, None) => Err(STOPPED),
        };
        for waiting in std::mem::take(&mut self.waiting) {
            let result = match &durable {
                Ok(durable) if *durable < waiting.position => {
                    self.waiting.push(waiting);
                    continue;
                }
                Ok(_) => Ok(()),
                Err(fault) => Err(fault.clone()),
            };
            effects.push(match waiting.what {
                WaitingFor::Durable(done) => Effect::Done { result, done },
                WaitingFor::Snapshot(done) => {
                    let result = result.and_then(|()| Ok(Box::new(self.reader.snapshot()?)));
                    let result = self.keep(result);
                    Effect::Snapshot { result, done }
                }
            });
        }
        if self.machine.is_none() && self.being_written == 0 {
            for done in self.closing.drain(..) {
                effects.push(Effect::Done { result: Ok(()), done });
            }
        }
    }

    /// Has someone wait until everything applied so far is durable.
    fn wait(&mut self, what: WaitingFor) {
        let position = self.machine.as_ref().and_then(|m| m.applied().position);
        self.waiting.push(Waiting { position, what });
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
        self.install(received)
    }

    fn install(&mut self, received: ReceivedSnapshot) -> Result<(), Fault> {
        let tap = self.tap.clone();
        let machine = self.open()?;
        if let Some(tap) = &tap {
            tap.installing(received.meta().position);
        }
        machine.install(received)?;
        if let Some(tap) = tap {
            tap.installed(machine.applied());
        }
        Ok(())
    }

    fn open(&mut self) -> Result<&mut Machine, Fault> {
        self.machine.as_mut().ok_or(STOPPED)
    }

    fn healthy(&self) -> Result<(), Fault> {
        self.faults.first().map_or(Ok(()), Err)
    }

    /// Remembers the first fault: from then on nothing touches the state file.
    fn keep<T>(&mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &result
            && self.machine.is_some()
        {
            self.faults.raise(fault.clone());
        }
        result
    }

    /// Takes the entries of the jobs at the front together, as far as they are few.
    fn gather(&mut self, first: ApplyJob) -> ApplyJob {
        let mut together = first;
        while together.bytes < APPLY_BYTES_MAX
            && let Some(Job::Apply(next)) = self.pending.front_mut()
        {
            let next = std::mem::take(next);
            self.pending.pop_front();
            together.entries.extend(next.entries);
            together.responders.extend(next.responders);
            together.bytes += next.bytes;
            together.held = match (together.held, next.held) {
                (Some(mut held), Some(more)) => {
                    held.merge(more);
                    Some(held)
                }
                (held, more) => held.or(more),
            };
        }
        together
    }

    /// Applies what comes first of entries; gives back what is left.
    fn apply_front(&mut self, mut job: ApplyJob, effects: &mut Vec<Effect>) -> Option<ApplyJob> {
        let result = self.apply_some(&mut job.entries);
        // Without an answer the responders are dropped, and what they hold says that the outcome is unknown.
        let outcomes = self.keep(result).ok()?;
        let responders = job.responders.drain(..outcomes.len().min(job.responders.len()));
        // What nobody here waits for goes at once: outcomes may be large.
        let answers = responders.zip(outcomes);
        let answers = answers.filter_map(|(responder, outcome)| Some((responder?, outcome)));
        effects.push(Effect::Applied {
            answers: answers.collect(),
        });
        (!job.entries.is_empty()).then_some(job)
    }

    /// Gets to what is pending, in order: until nothing is, or there is no room, or what was done is worth to be told.
    fn work_off(&mut self, effects: &mut Vec<Effect>) {
        while let Some(job) = self.pending.pop_front() {
            match job {
                Job::Apply(job) if !self.has_room() => {
                    self.pending.push_front(Job::Apply(job));
                    // The end of the checkpoint goes on with it, but for who closes: that waits for no room.
                    if self.pending.iter().any(|job| matches!(job, Job::Close { .. })) {
                        self.machine = None;
                        continue;
                    }
                    return;
                }
                Job::Apply(job) => {
                    let together = self.gather(job);
                    let rest = self.apply_front(together, effects);
                    // What is pending may be many times what is kept in memory without a checkpoint.
                    self.check_bounds();
                    if let Some(rest) = rest {
                        self.pending.push_front(Job::Apply(rest));
                        go_on(&self.own_queue);
                        return;
                    }
                }
                other => effects.extend(self.do_other(other)),
            }
        }
    }

    /// Does anything but applying.
    fn do_other(&mut self, job: Job) -> Option<Effect> {
        Some(match job {
            Job::Apply(_) | Job::GoOn => return None,
            Job::Applied { done } => {
                let healthy = self.healthy();
                let result = healthy.and_then(|()| Ok(Arc::new(self.open()?.applied().clone())));
                Effect::AppliedState { result, done }
            }
            Job::Snapshot { of_all, done }
                if of_all || self.machine.as_ref().is_some_and(|m| m.durable().is_none()) =>
            {
                self.wait(WaitingFor::Snapshot(done));
                return None;
            }
            Job::Snapshot { done, .. } => {
                let result = self.healthy();
                let result = result.and_then(|()| Ok(Box::new(self.reader.snapshot()?)));
                Effect::Snapshot {
                    result: self.keep(result),
                    done,
                }
            }
            Job::Install { received, done } => {
                let result = self.install(received);
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
            Job::Shrink { done } => {
                match self.shrinking.is_some() {
                    _ if self.shrinks_no_more => drop(done.send(Err(NotShrunk::Stopped))),
                    true => drop(done.send(Err(NotShrunk::UnderWay))),
                    false => self.shrinking = Some(done),
                }
                return None;
            }
            Job::StopShrinking => {
                self.stop_shrinking();
                return None;
            }
            Job::Close { done } => {
                self.stop_shrinking();
                // A checkpoint under way fails from here on; the answer waits until it has.
                self.machine = None;
                self.closing.push(done);
                return None;
            }
            Job::MakeDurable { done } => {
                self.wait(WaitingFor::Durable(done));
                return None;
            }
        })
    }
}

/// Has the owner look again. Where its queue is full it looks anyway: before the next job that it takes.
fn go_on(queue: &OnceLock<WeakOwnerHandle<Job>>) {
    if let Some(jobs) = queue.get() {
        let _ = jobs.try_send(Job::GoOn);
    }
}

/// What was told of the sessions.
#[derive(Default)]
struct SessionsTold {
    counts: SessionCounts,
    warned: Option<env::Instant>,
    /// Refused since the last warning.
    refused: u64,
}

impl SessionsTold {
    fn tell(&mut self, counts: SessionCounts) {
        metrics::gauge!("quorate_sessions").set(counts.open as f64);
        let before = std::mem::replace(&mut self.counts, counts);
        let evicted = counts.evicted.saturating_sub(before.evicted);
        let refused = counts.refused.saturating_sub(before.refused);
        metrics::counter!("quorate_sessions_evicted_total").increment(evicted);
        metrics::counter!("quorate_sessions_refused_total").increment(refused);
        self.refused += refused;
        let is_quiet = |at: env::Instant| at.elapsed() < SESSIONS_TOLD_EVERY;
        if self.refused > 0 && !self.warned.is_some_and(is_quiet) {
            tracing::warn!(
                refused = self.refused,
                open = counts.open,
                "there are as many sessions as may be and none is idle: new clients cannot write; see sessions_max"
            );
            self.warned = Some(env::now());
            self.refused = 0;
        }
    }
}

impl Owner for MachineOwner {
    type Job = Job;
    type Effects = Vec<Effect>;

    fn work(&mut self, batch: &mut Vec<Job>) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(batch.len());
        self.take_ends();
        self.pending.extend(batch.drain(..));
        self.work_off(&mut effects);
        // First: a checkpoint that has just ended may be all that someone waits for.
        self.answer_waiting(&mut effects);
        self.check_bounds();
        effects
    }

    fn publish(&mut self, effects: Vec<Effect>) {
        // Readers that wait for an index may run as soon as they would see it, so before the answers: a client
        // that saw its write acknowledged finds it.
        if let Some(machine) = &self.machine
            && self.applied.borrow().position != machine.applied().position
        {
            self.applied.send_replace(Arc::new(machine.applied().clone()));
        }
        for effect in effects {
            match effect {
                Effect::Applied { answers } => {
                    for (responder, outcome) in answers {
                        responder.send(outcome);
                    }
                }
                Effect::AppliedState { result, done } => {
                    let _ = done.send(result);
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
        let applied = self.ask(|done| Job::Applied { done }).await?;
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
            let (mut entries, mut responders, mut bytes) = (VecDeque::new(), VecDeque::new(), 0);
            let mut ended = true;
            while let Some(item) = stream.next().await {
                let (entry, responder) = item?;
                let entry = machine_entry(entry);
                bytes += size(&entry);
                entries.push_back(entry);
                responders.push_back(responder);
                if entries.len() >= APPLY_ENTRIES_MAX || bytes >= APPLY_BYTES_MAX {
                    ended = false;
                    break;
                }
            }
            if !entries.is_empty() {
                // The fault of an earlier job; those who waited for its answers were told that they never came.
                if let Some(fault) = self.faults.first() {
                    return Err(fault.into());
                }
                // Where checkpoints cannot keep up. An owner that has ended says so below.
                let _ = self.room.wait_for(|room| *room).await;
                let job = Job::Apply(ApplyJob {
                    entries,
                    responders,
                    bytes,
                    held: Some(place(&self.queue, bytes).await),
                });
                self.jobs.send(job).await.map_err(|_| STOPPED)?;
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
            SnapshotData::Source(source) => Ok(self.ask(|done| Job::Copy { source, done }).await?),
        }
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if self.applied_state().await?.0.is_none() {
            return Ok(None);
        }
        // One that broke off goes on; the log still has all that follows it.
        let snapshot = match self.sendings.broken() {
            Some(pinned) => self.snapshot_of(Box::new(SnapshotSource::of(pinned)))?,
            None => self.snapshot(false).await?,
        };
        if let SnapshotData::Source(source) = &snapshot.snapshot {
            self.sendings.begin(&source.pinned());
        }
        Ok(Some(snapshot))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // openraft may purge the log up to this position afterwards; what it has applied is in a checkpoint then.
        Ok(self.snapshot(!planted::is(Bug::EarlyPurge)).await?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::RealDisk;
    use crate::machine::{MachineSettings, OpenMode};

    fn start(dir: &std::path::Path) -> StateMachine {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let settings = MachineSettings::default();
        let (machine, reader) = Machine::open(Arc::clone(&disk), dir, OpenMode::Create, settings).unwrap();
        let bounds = ApplyBounds::default();
        StateMachine::start(
            machine,
            reader,
            bounds,
            None,
            disk,
            dir.to_owned(),
            Faults::default(),
        )
    }

    /// The story: who asked for a smaller file behind the close waited for as long as the process ran.
    #[tokio::test]
    async fn a_shrinking_asked_for_behind_the_close_or_the_stop_of_shrinkings_is_answered_that_it_has_stopped()
     {
        for closes in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let state = start(dir.path());
            assert!(state.shrink().await.is_ok());
            match closes {
                true => state.close().await,
                false => state.stop_shrinking().await,
            }
            assert_eq!(state.shrink().await, Err(NotShrunk::Stopped));
        }
    }

    #[tokio::test]
    async fn what_waits_to_be_applied_has_a_bound_in_bytes_and_what_is_larger_goes_alone() {
        let queue = Room::new(100);
        let first = place(&queue, 60).await;
        let mut second = std::pin::pin!(place(&queue, 41));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let second = second.await;
        assert_eq!(second.num_permits(), 41);
        let mut large = std::pin::pin!(place(&queue, usize::MAX));
        assert!(futures_util::poll!(&mut large).is_pending(), "it waits for all");
        drop(second);
        let large = large.await;
        let mut next = std::pin::pin!(place(&queue, 0));
        assert!(
            futures_util::poll!(&mut next).is_pending(),
            "an empty one has a place too"
        );
        drop(large);
        assert_eq!(next.await.num_permits(), 1);
    }
}

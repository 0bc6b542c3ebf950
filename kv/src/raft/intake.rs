//! How much of its leaders' entries a node takes in before it has written and applied them.
//!
//! openraft's core must never wait for the log or for the state machine: it answers heartbeats and votes in the loop in
//! which it would wait. So whoever reads an append stream waits instead, before the message reaches the core, and a
//! sender that is faster than this disk meets the transport's back-pressure.
//!
//! Always: of one stream no more than [`UNANSWERED_BYTES_MAX`], and a message, are in the core or on their way to the
//! disk; of all of them no more is read while the log has no room; no more than [`UNAPPLIED_MAX`] messages that tell of a
//! new commit, of all streams together, are ahead of the state machine; of one peer no more than one stream waits here, the
//! newest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::raft::AppendEntriesRequest;
use quorate_transport::MessageReceiver;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::types::TypeConfig;
use crate::env::{Semaphore, watch};
use crate::log::Log;
use crate::machine::Applied;
use crate::model::LogIndex;

/// Bytes of one stream that were read and are not durable yet: enough for the largest batches that a disk writes at
/// once, little enough that a vote, which waits for what is before it in the log, does not wait long.
const UNANSWERED_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Messages with a new commit index that the state machine is behind. Each makes openraft queue an apply, at most: it
/// has 1,024 places (`state_machine_channel_size`), and its core would wait for one.
const UNAPPLIED_MAX: usize = 256;

/// What all append streams share.
#[derive(Debug)]
pub(super) struct Intakes {
    log: Log,
    applied: watch::Receiver<Arc<Applied>>,
    /// The commit indexes told, from the oldest that is not applied on; rising.
    unapplied: Arc<Mutex<VecDeque<LogIndex>>>,
    /// Ends the newest stream of each peer.
    newest: Mutex<BTreeMap<u64, CancellationToken>>,
}

impl Intakes {
    pub(super) fn new(log: Log, applied: watch::Receiver<Arc<Applied>>) -> Self {
        Self {
            log,
            applied,
            unapplied: Arc::default(),
            newest: Mutex::default(),
        }
    }

    /// A new stream of this peer. It has given up the one before, which may wait here and not know it: that one ends.
    pub(super) fn begin(&self, peer: u64) -> Intake {
        let ended = CancellationToken::new();
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = newest.insert(peer, ended.clone()) {
            before.cancel();
        }
        Intake {
            log: self.log.clone(),
            applied: self.applied.clone(),
            unapplied: Arc::clone(&self.unapplied),
            room: Arc::new(Semaphore::new(UNANSWERED_BYTES_MAX as usize)),
            unanswered: Unanswered::default(),
            ended,
        }
    }
}

/// One append stream's share.
#[derive(Debug)]
pub(super) struct Intake {
    log: Log,
    applied: watch::Receiver<Arc<Applied>>,
    /// See [`Intakes`].
    unapplied: Arc<Mutex<VecDeque<LogIndex>>>,
    room: Arc<Semaphore>,
    unanswered: Unanswered,
    ended: CancellationToken,
}

/// The stream has ended: its peer has begun another, or its answers go nowhere.
#[derive(Debug)]
pub(super) struct Ended;

/// What was read of a stream and is not answered, in order. Cheap to clone: the reading and the answering side share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Unanswered(Arc<Mutex<Owing>>);

#[derive(Debug, Default)]
struct Owing {
    /// Of those that went to the core.
    places: VecDeque<OwnedSemaphorePermit>,
    /// One was read and waits here.
    is_waiting: bool,
}

impl Unanswered {
    fn owing(&self) -> MutexGuard<'_, Owing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest message was answered.
    pub(super) fn answered(&self) {
        self.owing().places.pop_front();
    }

    /// Whether an answer is owed.
    pub(super) fn is_any(&self) -> bool {
        let owing = self.owing();
        owing.is_waiting || !owing.places.is_empty()
    }
}

impl Intake {
    /// Ends the stream when it is dropped.
    pub(super) fn end_with(&self) -> DropGuard {
        self.ended.clone().drop_guard()
    }

    pub(super) fn unanswered(&self) -> Unanswered {
        self.unanswered.clone()
    }

    /// The next message of the stream; none once it has ended.
    pub(super) async fn receive(&self, receiver: &mut MessageReceiver) -> Option<Bytes> {
        let received = self.ended.run_until_cancelled(receiver.receive()).await?;
        let message = received.ok()??;
        self.unanswered.owing().is_waiting = true;
        Some(message)
    }

    /// Waits until a message of so many bytes may go to the core, and counts it. With it everything up to `commit` is
    /// here and committed, where that is known: what is not here cannot be waited for. Dropped, nothing was counted.
    pub(super) async fn admit(&mut self, bytes: usize, commit: Option<LogIndex>) -> Result<(), Ended> {
        let ended = self.ended.clone();
        let admitted = ended.run_until_cancelled(self.admit_in_turn(bytes, commit)).await;
        admitted.ok_or(Ended)
    }

    async fn admit_in_turn(&mut self, bytes: usize, commit: Option<LogIndex>) {
        self.log.wait_for_room().await;
        // A message that is longer than all the room takes all of it, and goes alone.
        let units = u32::try_from(bytes)
            .unwrap_or(u32::MAX)
            .clamp(1, UNANSWERED_BYTES_MAX);
        let place = Arc::clone(&self.room).acquire_many_owned(units).await;
        self.wait_for_apply().await;
        // The semaphore is never closed.
        if let Ok(place) = place {
            let mut owing = self.unanswered.owing();
            owing.places.push_back(place);
            owing.is_waiting = false;
        }
        if let Some(commit) = commit {
            let mut unapplied = self.unapplied();
            if unapplied.back().is_none_or(|told| *told < commit) {
                unapplied.push_back(commit);
            }
        }
    }

    fn unapplied(&self) -> MutexGuard<'_, VecDeque<LogIndex>> {
        self.unapplied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_for_apply(&mut self) {
        loop {
            let applied = self.applied.borrow_and_update().position.map(|at| at.index);
            let is_room = {
                let mut unapplied = self.unapplied();
                while unapplied.front().is_some_and(|commit| applied >= Some(*commit)) {
                    unapplied.pop_front();
                }
                unapplied.len() < UNAPPLIED_MAX
            };
            // A state machine that has ended has a fault, or the node stops: the core says so.
            if is_room || self.applied.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Up to where everything is committed and sent, with this message: its commit index may be far ahead of a follower that
/// catches up.
pub(super) fn committed_with(request: &AppendEntriesRequest<TypeConfig>) -> Option<LogIndex> {
    let sent = request.entries.last().map(|entry| entry.log_id);
    let committed = sent.or(request.prev_log_id).min(request.leader_commit);
    committed.map(|id| LogIndex::new(id.index))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt;

    use super::super::types::{Vote, log_id};
    use super::*;
    use crate::log::LogSettings;
    use crate::log::crash_disk::CrashDisk;
    use crate::model::{LogPosition, LogTime, NodeId, Revision, StateHash, Term};

    fn applied_to(index: u64) -> Arc<Applied> {
        Arc::new(Applied {
            position: Some(LogPosition {
                term: Term::new(1),
                leader: NodeId::new(1),
                index: LogIndex::new(index),
            }),
            membership: None,
            revision: Revision::FIRST,
            oldest: Revision::FIRST,
            state_hash: StateHash(0),
            log_time: LogTime::ZERO,
        })
    }

    fn intakes() -> (CrashDisk, watch::Sender<Arc<Applied>>, Intakes) {
        let disk = CrashDisk::default();
        let log = Log::open(
            Arc::new(disk.clone()),
            Path::new("/log"),
            LogSettings::default().create(),
        )
        .expect("a log");
        let (tell, applied) = watch::channel(applied_to(0));
        (disk, tell, Intakes::new(log, applied))
    }

    fn intake() -> (CrashDisk, watch::Sender<Arc<Applied>>, Intake) {
        let (disk, tell, intakes) = intakes();
        (disk, tell, intakes.begin(2))
    }

    #[tokio::test]
    async fn what_is_ahead_of_the_state_machine_is_bounded_for_all_streams_together() {
        let (_disk, tell, intakes) = intakes();
        let mut streams = [intakes.begin(2), intakes.begin(3)];
        for commit in 1..=UNAPPLIED_MAX as u64 {
            let stream = &mut streams[commit as usize % 2];
            stream
                .admit(1, Some(LogIndex::new(commit)))
                .await
                .expect("it goes on");
        }
        // Nor does a peer that gives a stream up, and begins another, bring more in.
        let mut anew = intakes.begin(2);
        let next = Some(LogIndex::new(1_000));
        assert!(anew.admit(1, next).now_or_never().is_none());
        tell.send_replace(applied_to(1));
        anew.admit(1, next).await.expect("it goes on");
    }

    /// The story: a stream that waited for the disk did not notice that its peer had given it up, and held its message; each
    /// new one held another, until the disk answered or the memory was full.
    #[tokio::test]
    async fn a_stream_that_waits_ends_when_its_peer_begins_another() {
        let (disk, _tell, intakes) = intakes();
        let held = disk.hold_syncs();
        let mut first = intakes.begin(2);
        let payload = bytes::Bytes::from(vec![0; LogSettings::default().queue_bytes_max as usize]);
        let position = applied_to(1).position.expect("it has one");
        let entry = crate::log::LogEntry { position, payload };
        intakes
            .log
            .append(vec![entry], Box::new(drop))
            .expect("an append");
        let mut other = intakes.begin(3);
        let mut waits = std::pin::pin!(first.admit(1, None));
        assert!(waits.as_mut().now_or_never().is_none());
        let mut second = intakes.begin(2);
        waits.await.expect_err("its peer has another");
        assert!(
            other.admit(1, None).now_or_never().is_none(),
            "another's goes on waiting"
        );
        assert!(second.admit(1, None).now_or_never().is_none());
        drop(held);
        second.admit(1, None).await.expect("it goes on");
        // One whose answers go nowhere ends, too.
        drop(second.end_with());
        second.admit(1, None).await.expect_err("it has ended");
    }

    #[tokio::test]
    async fn a_stream_is_read_no_further_than_its_answers_allow() {
        let (_disk, _tell, mut intake) = intake();
        let unanswered = intake.unanswered();
        let third = UNANSWERED_BYTES_MAX as usize / 3 + 1;
        for _ in 0..2 {
            intake.admit(third, None).await.expect("it goes on");
        }
        assert!(intake.admit(third, None).now_or_never().is_none());
        unanswered.answered();
        intake.admit(third, None).await.expect("it goes on");
        // Longer than all there is: it waits until it is alone.
        assert!(intake.admit(usize::MAX, None).now_or_never().is_none());
        unanswered.answered();
        assert!(intake.admit(usize::MAX, None).now_or_never().is_none());
        unanswered.answered();
        intake.admit(usize::MAX, None).await.expect("it goes on");
    }

    #[tokio::test]
    async fn a_stream_is_read_no_further_than_the_state_machine_follows() {
        let (_disk, tell, mut intake) = intake();
        for commit in 1..=UNAPPLIED_MAX as u64 {
            intake
                .admit(1, Some(LogIndex::new(commit)))
                .await
                .expect("it goes on");
            if commit < UNAPPLIED_MAX as u64 {
                // The same commit again tells nothing new.
                intake
                    .admit(1, Some(LogIndex::new(commit)))
                    .await
                    .expect("it goes on");
            }
        }
        let next = Some(LogIndex::new(1_000));
        assert!(intake.admit(1, next).now_or_never().is_none());
        tell.send_replace(applied_to(1));
        intake.admit(1, next).await.expect("it goes on");
        assert!(intake.admit(1, None).now_or_never().is_none());
        tell.send_replace(applied_to(1_000));
        intake.admit(1, None).await.expect("it goes on");
    }

    #[test]
    fn a_follower_that_catches_up_waits_for_no_commit_beyond_what_it_was_sent() {
        let id = |index: u64| log_id(applied_to(index).position.expect("it has one"));
        let request = |prev, sent: Option<u64>, commit| AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(1, 1),
            prev_log_id: prev,
            entries: sent
                .map(|index| openraft::Entry {
                    log_id: id(index),
                    payload: openraft::EntryPayload::Blank,
                })
                .into_iter()
                .collect(),
            leader_commit: commit,
        };
        let cases = [
            (
                "far behind",
                request(Some(id(4)), Some(5), Some(id(1_000))),
                Some(5),
            ),
            ("ahead", request(Some(id(4)), Some(5), Some(id(3))), Some(3)),
            ("news alone", request(Some(id(4)), None, Some(id(9))), Some(4)),
            ("nothing is committed", request(Some(id(4)), Some(5), None), None),
            ("the first", request(None, Some(0), Some(id(7))), Some(0)),
            ("nothing was sent", request(None, None, Some(id(7))), None),
        ];
        for (case, request, expected) in cases {
            assert_eq!(committed_with(&request).map(LogIndex::number), expected, "{case}");
        }
    }

    #[tokio::test]
    async fn a_stream_is_not_read_while_the_log_has_no_room() {
        let (disk, _tell, mut intake) = intake();
        let held = disk.hold_syncs();
        let payload = bytes::Bytes::from(vec![0; LogSettings::default().queue_bytes_max as usize]);
        let position = applied_to(1).position.expect("it has one");
        let entry = crate::log::LogEntry { position, payload };
        intake.log.append(vec![entry], Box::new(drop)).expect("an append");
        assert!(intake.admit(1, None).now_or_never().is_none());
        drop(held);
        intake.admit(1, None).await.expect("it goes on");
    }
}

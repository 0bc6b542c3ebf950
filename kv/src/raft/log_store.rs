//! openraft's log storage on [`crate::log`].
//!
//! Always: `append` returns once the entries are readable, and completes its callback after their sync, in
//! order; a vote is durable when `save_vote` returns (openraft's `docs::protocol::io_ordering`).
//! Always: nothing here but a vote waits for the disk. openraft's core calls it from the one loop in which it also
//! answers heartbeats and votes; a disk that stalls must not stop those.
//!
//! Always: what the state machine has applied is never replaced. A peer that would have it replaced has another history: a
//! voter somewhere has forgotten what it acknowledged, and the node stops with what it has.
//!
//! Truncations and purges may return before they are durable, since the log makes everything durable in the order in which
//! it was asked: whatever is told durable later stands on a log in which they are. A crash before that leaves what is
//! as true as it was: entries that a leader will find in conflict again, or some that the state no longer needs.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::tap::{LogEvent, LogVote, Tap};
use super::types::{
    Entry, EntryPayload, LogId, Membership, ProposalData, TypeConfig, Vote, kind, log_id, position,
};
use crate::env::{self, watch};
use crate::fault::{Fault, Faults};
use crate::log::{Completion, CrashPoint, Log, LogEntry};
use crate::machine::Applied;
use crate::model::{self, LogIndex, NodeId, Term};
use crate::planted::{self, Bug};

/// How many bytes of entries one read returns at most, beyond the first entry. Bounds what a lagging
/// follower makes the leader hold in memory for it.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    log: Log,
    applied: watch::Receiver<Arc<Applied>>,
    tap: Option<Arc<dyn Tap>>,
    faults: Faults,
}

impl LogStore {
    /// The log of a node whose state stands where `applied` says.
    pub(crate) fn new(
        log: Log,
        applied: watch::Receiver<Arc<Applied>>,
        tap: Option<Arc<dyn Tap>>,
        faults: Faults,
    ) -> Self {
        let store = Self {
            log,
            applied,
            tap,
            faults,
        };
        store.tell(|| LogEvent::Opened {
            // One that cannot be read is a fault, which openraft meets when it asks.
            vote: store
                .log
                .vote()
                .and_then(|bytes| decode_vote(&bytes).ok())
                .map(told_vote),
            last: store.log.last(),
            purged: store.log.purged(),
        });
        store
    }

    fn tell(&self, event: impl FnOnce() -> LogEvent) {
        if let Some(tap) = &self.tap {
            tap.log(event());
        }
    }

    /// Refuses to have the entries from `from` on replaced where one of them is applied.
    fn spare_applied(&self, from: u64, what: &str) -> Result<(), io::Error> {
        let applied = self.applied.borrow().position;
        let Some(applied) = applied.filter(|applied| applied.index.number() >= from) else {
            return Ok(());
        };
        if planted::is(Bug::WipedNodeRejoins) {
            return Ok(());
        }
        let fault = Fault::AnotherHistory {
            detail: format!("{what} from entry {from} on, and this node has applied up to {applied}"),
        };
        self.faults.raise(fault.clone());
        Err(fault.into())
    }

    async fn make_durable(&self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = model::encode(vote).into();
        let late = [(Bug::VoteVolatile, 400), (Bug::VoteAfterAppend, 5)];
        if let Some((_, millis)) = late.into_iter().find(|(bug, _)| planted::is(*bug)) {
            let log = self.log.clone();
            env::spawn("late-vote", async move {
                env::sleep(Duration::from_millis(millis)).await;
                log.save_vote(bytes).await
            });
            return Ok(());
        }
        Ok(self.log.save_vote(bytes).await?)
    }

    /// Passes a crash point once something is durable for which nobody waits. What fails then is told to all.
    fn passing(
        &self,
        span: env::Span,
        point: CrashPoint,
        then: impl FnOnce() + Send + 'static,
    ) -> Completion {
        let faults = self.faults.clone();
        Box::new(move |durable| {
            let _ends_here = span;
            let passed = durable.and_then(|()| {
                then();
                point
                    .reached()
                    .map_err(|error| Fault::disk("writing to", "the log", error))
            });
            if let Err(fault) = passed {
                faults.raise(fault);
            }
        })
    }

    /// What a read finds to be spoiled ends the node's part by itself: openraft would stop for it too, and tell less.
    fn kept<T>(&self, read: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault @ (Fault::Corrupt { .. } | Fault::Disk { .. })) = &read {
            self.faults.raise(fault.clone());
        }
        read
    }

    /// Reads `range` whole, in as many steps as its size asks for.
    async fn read_all(&self, range: std::ops::Range<u64>) -> Result<Vec<Entry>, io::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = range.start;
        while next < range.end {
            let step = LogIndex::new(next)..LogIndex::new(range.end);
            let read = self.kept(self.log.read(step, READ_BYTES_MAX).await)?;
            // By the last entry's index, not by their number: a log may begin after the range does.
            let Some(last) = read.last() else { break };
            next = last.position.index.number() + 1;
            for entry in read {
                let entry = decode_entry(entry)?;
                if let Some(before) = entries.last()
                    && entry.log_id.index != before.log_id.index + 1
                {
                    let detail = format!("{} after {}", entry.log_id, before.log_id);
                    return Err(Fault::invariant("the log is read without a hole", detail).into());
                }
                entries.push(entry);
            }
        }
        if next < range.end {
            let detail = format!("asked for {range:?}, read up to {next}");
            return Err(Fault::invariant("the log is read to the end of the range", detail).into());
        }
        Ok(entries)
    }

    /// The range cut to what the log holds.
    fn clamp(&self, range: impl RangeBounds<u64>) -> std::ops::Range<u64> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let first = self.log.purged().map_or(0, |purged| purged.index.number() + 1);
        let past_last = self.log.last().map_or(0, |last| last.index.number() + 1);
        start.max(first)..end.min(past_last)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let range = self.clamp(range);
        self.read_all(range).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.log.vote().map(|bytes| decode_vote(&bytes)).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let range = self.clamp(start..end);
        if range.start > start {
            // Purged in the meantime. Entries from further on would follow the peer's last one with a hole
            // between them, and an error would end this node: none, and the network ends the stream.
            return Ok(Vec::new());
        }
        let range = LogIndex::new(range.start)..LogIndex::new(range.end);
        let read = self.kept(self.log.read(range, READ_BYTES_MAX).await)?;
        read.into_iter().map(decode_entry).collect()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        Ok(LogState {
            last_purged_log_id: self.log.purged().map(log_id),
            last_log_id: self.log.last().map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.make_durable(vote).await?;
        self.tell(|| LogEvent::Voted(told_vote(*vote)));
        CrashPoint::VoteSaved.reached()
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        Ok(self
            .log
            .save_committed(model::encode(&position(&committed)).into())?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let Some(bytes) = self.log.committed() else {
            return Ok(None);
        };
        let position = model::decode(&bytes).map_err(|e| corrupt("the committed position", &e))?;
        Ok(Some(log_id(position)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(|entry| encode_entry(&entry)).collect();
        let last = entries.last().map(|entry| entry.position);
        if let Some(first) = entries.first() {
            let what = format!("the entry {} was to be written", first.position);
            self.spare_applied(first.position.index.number(), &what)?;
        }
        if let Some(last) = last {
            self.tell(|| LogEvent::Appending(last));
        }
        let tap = self.tap.clone();
        let on_durable = move |result: Result<(), Fault>| {
            if let (Ok(()), Some(tap), Some(last)) = (&result, tap, last) {
                tap.log(LogEvent::Durable(last));
            }
            callback.io_completed(result.map_err(io::Error::from));
        };
        if planted::is(Bug::AckBeforeSync) {
            on_durable(Ok(()));
            return Ok(self.log.append(entries, Box::new(drop))?);
        }
        Ok(self.log.append(entries, Box::new(on_durable))?)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let span = env::span("raft.truncate");
        let from = last.as_ref().map_or(0, |last| last.index.saturating_add(1));
        self.spare_applied(from, "the log was to be replaced")?;
        let last = last.map(|id| LogIndex::new(id.index));
        self.tell(|| LogEvent::Truncating(last));
        Ok(self
            .log
            .truncate_after(last, self.passing(span, CrashPoint::Truncated, || ()))?)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let span = env::span("raft.purge");
        CrashPoint::PurgeAsked.reached()?;
        let (upto, tap) = (position(&upto), self.tap.clone());
        let tell = move || {
            if let Some(tap) = tap {
                tap.log(LogEvent::Purged(upto));
            }
        };
        Ok(self
            .log
            .purge(upto, self.passing(span, CrashPoint::Purged, tell))?)
    }
}

pub(crate) fn encode_entry(entry: &Entry) -> LogEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => bytes::Bytes::from_static(&[kind::BLANK]),
        EntryPayload::Normal(proposal) => proposal.record(),
        EntryPayload::Membership(membership) => {
            let mut framed = vec![kind::MEMBERSHIP];
            model::encode_onto(membership, &mut framed);
            framed.into()
        }
    };
    LogEntry {
        position: position(&entry.log_id),
        payload,
    }
}

pub(crate) fn decode_entry(entry: LogEntry) -> Result<Entry, io::Error> {
    let payload = match entry.payload.first() {
        Some(&kind::BLANK) => EntryPayload::Blank,
        Some(&kind::PROPOSAL) => EntryPayload::Normal(ProposalData::from_record(entry.payload)),
        Some(&kind::MEMBERSHIP) => {
            let membership: Membership =
                model::decode(&entry.payload[1..]).map_err(|e| corrupt("a membership entry", &e))?;
            EntryPayload::Membership(membership)
        }
        other => return Err(corrupt("an entry's kind", &format!("{other:?}"))),
    };
    Ok(Entry {
        log_id: log_id(entry.position),
        payload,
    })
}

fn told_vote(vote: Vote) -> LogVote {
    LogVote {
        term: Term::new(vote.leader_id.term),
        node: NodeId::new(vote.leader_id.node_id),
        leads: vote.committed,
    }
}

/// The vote that a log holds.
pub(crate) fn read_vote(bytes: &[u8]) -> Result<LogVote, io::Error> {
    decode_vote(bytes).map(told_vote)
}

fn decode_vote(bytes: &[u8]) -> Result<Vote, io::Error> {
    model::decode(bytes).map_err(|e| corrupt("the vote", &e))
}

fn corrupt(what: &str, detail: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the log's record of {what} cannot be read: {detail}"),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::log::LogSettings;
    use crate::log::crash_disk::CrashDisk;
    use crate::model::{LogPosition, LogTime, Revision, StateHash};

    fn position(index: u64) -> LogPosition {
        LogPosition {
            term: Term::new(1),
            leader: NodeId::new(1),
            index: LogIndex::new(index),
        }
    }

    /// The second net: whoever forgot what it acknowledged may win an election, and then has others replace what they have.
    #[tokio::test]
    async fn a_log_whose_applied_entries_were_to_be_replaced_stops_its_node_and_keeps_them() {
        let log = Log::open(
            Arc::new(CrashDisk::default()),
            Path::new("/log"),
            LogSettings::default().create(),
        )
        .expect("a log");
        let entries = (0..8).map(|index| LogEntry {
            position: position(index),
            payload: bytes::Bytes::from_static(&[kind::BLANK]),
        });
        log.append(entries.collect(), Box::new(drop)).expect("an append");
        let applied = watch::channel(Arc::new(Applied {
            position: Some(position(5)),
            membership: None,
            revision: Revision::FIRST,
            oldest: Revision::FIRST,
            state_hash: StateHash(0),
            log_time: LogTime::ZERO,
        }))
        .1;
        let faults = Faults::default();
        let mut store = LogStore::new(log.clone(), applied, None, faults.clone());
        let after = |index| Some(log_id(position(index)));
        store.truncate_after(after(6)).await.expect("7 is not applied");
        store.truncate_after(after(5)).await.expect("6 is not applied");
        assert!(store.spare_applied(6, "a test").is_ok() && !faults.is_raised());
        for last in [after(4), None] {
            assert!(store.truncate_after(last).await.is_err(), "{last:?}");
        }
        let fault = faults.first().expect("a fault");
        assert!(
            matches!(fault, Fault::AnotherHistory { .. }) && !fault.is_retryable(),
            "{fault}"
        );
        assert_eq!(log.last(), Some(position(5)));
        log.close().await.expect("a close");
    }
}

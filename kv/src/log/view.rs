//! What readers see of the log: its bounds, its newest entries in memory, and where the older ones stand.
//!
//! Shared by the handles, the writer and the reader behind one plain mutex, held for a few lines. It has two
//! ages. The bounds, the vote and the cache are as of what was *appended*, and change when a job is sent. The
//! index is as of what is *durable*, and changes when the writer has synced:
//!
//! ```text
//!   purged │ evicted: on disk only │ durable, and in memory │ in memory, being written │ last
//!          └── index ─────────────────────────────────────┘
//!                                  └── cache ─────────────────────────────────────────┘
//! ```
//!
//! Always: the cache is consecutive and ends with `last`; an entry that is not durable is in the cache; an
//! entry leaves the cache only when the index has that same entry.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::entry::LogEntry;
use super::segment::{RawFile, Segment};
use super::statistics::LogStatistics;
use super::timings::Timings;
use crate::fault::Fault;
use crate::model::{LogIndex, LogPosition, NodeId, Term};

/// What an entry in memory costs beside its payload: its struct and the payload's own bookkeeping.
const ENTRY_OVERHEAD: u64 = size_of::<LogEntry>() as u64 + 32;
/// How many offsets one plan for reading from disk carries at most: 4 KiB of them.
const PLAN_ENTRIES_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    purged: Option<LogPosition>,
    last: Option<LogPosition>,
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    runs: Runs,
    cache: VecDeque<LogEntry>,
    cache_bytes: u64,
    cache_bytes_max: u64,
    index: Index,
    durable: Option<LogPosition>,
    /// Truncations that were sent and are not durable yet. Meanwhile the index may hold other entries than
    /// the cache for the same indexes, so nothing is evicted.
    truncations_pending: u32,
    /// Truncations since the log was opened. Two looks at the view between which it did not rise saw parts of
    /// one log.
    truncations: u64,
    fault: Option<Fault>,
    statistics: LogStatistics,
    timings: Timings,
}

/// What opening found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub purged: Option<LogPosition>,
    pub last: Option<LogPosition>,
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub runs: Runs,
    pub index: Index,
}

/// What the writer made durable, in order.
#[derive(Debug)]
pub(super) enum Change {
    /// The entries that follow stand in this segment.
    Rolled(Arc<Segment>),
    /// Entries from an index on, at these offsets.
    Entries { first: u64, offsets: Vec<u32> },
    /// The entries from an index on are gone.
    Truncated { from: u64 },
    /// The entries up to an index are gone.
    Purged { upto: u64 },
}

/// Where a read goes on.
#[derive(Debug)]
pub(super) enum Place {
    /// Not in the log.
    Absent,
    /// In memory: as many as the caller's budget allowed were taken.
    Cached,
    /// On disk.
    OnDisk(Plan),
}

/// Consecutive entries in one segment.
#[derive(Debug)]
pub(super) struct Plan {
    pub segment: Arc<Segment>,
    pub first: u64,
    pub offsets: Vec<u32>,
    /// Where the entry after the planned ones starts, if it is in the same segment.
    pub end: Option<u32>,
}

impl View {
    pub fn new(recovered: Recovered, cache_bytes_max: u64) -> Self {
        Self {
            durable: recovered.last,
            purged: recovered.purged,
            last: recovered.last,
            vote: recovered.vote,
            committed: recovered.committed,
            runs: recovered.runs,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            index: recovered.index,
            truncations_pending: 0,
            truncations: 0,
            fault: None,
            statistics: LogStatistics::default(),
            timings: Timings::default(),
        }
    }

    // As of what was appended.

    /// Takes entries, which must follow on the last one.
    pub fn append(&mut self, entries: &[LogEntry]) -> Result<(), Fault> {
        // All are checked before any is taken.
        let mut next = self.last.map(|last| last.index.next());
        for entry in entries {
            let index = entry.position.index;
            if next.is_some_and(|next| next != index) {
                return Err(Fault::invariant(
                    "appended entries are consecutive",
                    format!("entry {} was appended after {:?}", entry.position, self.last),
                ));
            }
            next = Some(index.next());
        }
        for entry in entries {
            self.runs.push(entry.position);
            self.cache_bytes += cost(entry);
            self.cache.push_back(entry.clone());
            self.last = Some(entry.position);
        }
        Ok(())
    }

    /// Forgets the entries after `last`. Answers the new last position and whether anything changed.
    pub fn truncate_after(&mut self, last: Option<LogIndex>) -> Result<Truncation, Fault> {
        let Some(end) = self.last else {
            return Ok(Truncation::Nothing);
        };
        if last.is_some_and(|last| last >= end.index) {
            return Ok(Truncation::Nothing);
        }
        let purged_upto = self.purged.map_or(0, |purged| purged.index.number() + 1);
        let from = last.map_or(purged_upto, |last| last.number() + 1);
        if from < purged_upto {
            return Err(Fault::invariant(
                "purged entries are not truncated",
                format!("truncation from index {from}, but everything below {purged_upto} is purged"),
            ));
        }
        if self.purged == self.last {
            return Ok(Truncation::Nothing);
        }
        while self
            .cache
            .back()
            .is_some_and(|entry| entry.position.index.number() >= from)
        {
            self.pop_newest();
        }
        self.runs.truncate(from);
        self.last = match last {
            Some(last) if from > purged_upto => self.runs.position(last.number()),
            _ => self.purged,
        };
        self.truncations_pending += 1;
        self.truncations += 1;
        Ok(Truncation::From {
            index: from,
            last: self.last,
        })
    }

    /// Forgets the entries up to `upto`, which may lie beyond the last. `false` when they were forgotten already.
    pub fn purge(&mut self, upto: LogPosition) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        while self
            .cache
            .front()
            .is_some_and(|entry| entry.position.index <= upto.index)
        {
            self.pop_oldest();
        }
        self.runs.purge(upto.index.number());
        self.purged = Some(upto);
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
        }
        true
    }

    pub fn set_vote(&mut self, vote: Bytes) {
        self.vote = Some(vote);
    }

    pub fn set_committed(&mut self, committed: Bytes) {
        self.committed = Some(committed);
    }

    pub fn last(&self) -> Option<LogPosition> {
        self.last
    }

    pub fn purged(&self) -> Option<LogPosition> {
        self.purged
    }

    pub fn beyond(&self, bytes: u64) -> Option<LogIndex> {
        self.index.beyond(bytes).map(LogIndex::new)
    }

    pub fn vote(&self) -> Option<Bytes> {
        self.vote.clone()
    }

    pub fn committed(&self) -> Option<Bytes> {
        self.committed.clone()
    }

    /// The position of an entry of the log, or of the purge point.
    pub fn position(&self, index: LogIndex) -> Option<LogPosition> {
        if self.purged.is_some_and(|purged| purged.index == index) {
            return self.purged;
        }
        self.is_present(index.number())
            .then(|| self.runs.position(index.number()))
            .flatten()
    }

    /// Whether an entry is in the log.
    pub fn is_present(&self, index: u64) -> bool {
        let above_purged = self.purged.is_none_or(|purged| purged.index.number() < index);
        let first = self.runs.first();
        above_purged
            && first.is_some_and(|first| first <= index)
            && self.last.is_some_and(|last| index <= last.index.number())
    }

    /// The part of `range` that is in the log.
    pub fn present(&self, range: &Range<LogIndex>) -> Range<u64> {
        let first = match self.purged {
            Some(purged) => purged.index.number() + 1,
            None => self.runs.first().unwrap_or(0),
        };
        let end = self.last.map_or(0, |last| last.index.number() + 1);
        range.start.number().max(first)..range.end.number().min(end)
    }

    /// Takes entries from `next` on that are in memory, or says where they stand.
    ///
    /// Takes at least one, then as many as `budget` allows, and lowers it by their payloads.
    pub fn take(
        &self,
        next: u64,
        end: u64,
        budget: &mut usize,
        out: &mut Vec<LogEntry>,
    ) -> Result<Place, Fault> {
        if !self.is_present(next) || next >= end {
            return Ok(Place::Absent);
        }
        let cached_from = self.cache.front().map(|entry| entry.position.index.number());
        if let Some(at) = cached_from.and_then(|from| next.checked_sub(from)) {
            let wanted = usize::try_from(end - next).unwrap_or(usize::MAX);
            // `at` is within the cache's length: the entry is present and not below the cache.
            for entry in self.cache.iter().skip(at as usize).take(wanted) {
                if !out.is_empty() && entry.payload.len() > *budget {
                    *budget = 0;
                    break;
                }
                *budget = budget.saturating_sub(entry.payload.len());
                out.push(entry.clone());
            }
            return Ok(Place::Cached);
        }
        let end = end.min(cached_from.unwrap_or(end));
        let plan = self.index.locate(next, end).ok_or_else(|| {
            Fault::invariant(
                "an entry is in memory or its place on disk is known",
                format!("entry {next} of a log that ends with {:?}", self.last),
            )
        })?;
        Ok(Place::OnDisk(plan))
    }

    /// Whether an entry still stands at this place.
    pub fn stands_at(&self, index: u64, segment: &Arc<Segment>, offset: u32) -> bool {
        self.is_present(index)
            && self
                .index
                .locate(index, index.saturating_add(1))
                .is_some_and(|plan| {
                    Arc::ptr_eq(&plan.segment, segment) && plan.offsets.first() == Some(&offset)
                })
    }

    /// The segments that were ended and are part of the log, oldest first.
    pub fn ended(&self) -> impl Iterator<Item = &Arc<Segment>> {
        let written = self.index.segments.len().saturating_sub(1);
        let ended = self.index.segments.iter().take(written);
        ended.map(|indexed| &indexed.segment)
    }

    /// See the field.
    pub fn truncations(&self) -> u64 {
        self.truncations
    }

    // As of what is durable.

    /// Takes over what the writer made durable.
    pub fn publish(&mut self, changes: Vec<Change>, durable: Option<LogPosition>) {
        for change in changes {
            match change {
                Change::Rolled(segment) => self.index.roll(segment),
                Change::Entries { first, offsets } => self.index.append(first, offsets),
                Change::Truncated { from } => {
                    self.index.truncate(from);
                    self.truncations_pending = self.truncations_pending.saturating_sub(1);
                }
                Change::Purged { upto } => self.index.purge(upto),
            }
        }
        self.durable = durable;
        self.evict();
        debug_assert!(self.check(), "the log's view broke its invariants: {self:?}");
    }

    /// Takes the oldest segments that hold no entry any more out of the index.
    pub fn retire(&mut self) -> Vec<RawFile> {
        self.index.retire()
    }

    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Remembers why the log stopped. The first fault stays.
    pub fn fail(&mut self, fault: &Fault) {
        self.fault.get_or_insert_with(|| fault.clone());
    }

    pub fn statistics_mut(&mut self) -> &mut LogStatistics {
        &mut self.statistics
    }

    pub fn statistics(&self) -> LogStatistics {
        LogStatistics {
            durable: self.durable,
            cache_bytes: self.cache_bytes,
            cache_entries: self.cache.len() as u64,
            segments: self.index.segments.len() as u64,
            write_p50: self.timings.percentile(50),
            write_p99: self.timings.percentile(99),
            ..self.statistics.clone()
        }
    }

    pub fn count_batch(&mut self, written: &Written, took: Duration) {
        let s = &mut self.statistics;
        s.batches += u64::from(written.jobs > 0);
        s.jobs += written.jobs;
        s.entries += written.entries;
        s.batch_entries_max = s.batch_entries_max.max(written.entries);
        s.syncs += written.syncs;
        s.bytes += written.bytes;
        s.rolls += written.rolls;
        s.segments_made_late += written.segments_made_late;
        if written.syncs > 0 {
            s.last_write = took;
            self.timings.add(took);
            metrics::histogram!("quorate_log_sync_seconds").record(took.as_secs_f64());
            metrics::histogram!("quorate_log_batch_entries").record(written.entries as f64);
        }
    }

    fn evict(&mut self) {
        if self.truncations_pending > 0 {
            return;
        }
        let durable = self.durable.map(|durable| durable.index);
        while self.cache_bytes > self.cache_bytes_max
            && self
                .cache
                .front()
                .is_some_and(|entry| Some(entry.position.index) <= durable)
        {
            self.pop_oldest();
        }
    }

    fn pop_oldest(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= cost(&entry);
        }
    }

    fn pop_newest(&mut self) {
        if let Some(entry) = self.cache.pop_back() {
            self.cache_bytes -= cost(&entry);
        }
    }

    fn check(&self) -> bool {
        let ends_with_last = self
            .cache
            .back()
            .is_none_or(|entry| Some(entry.position) == self.last);
        let consecutive = match (self.cache.front(), self.cache.back()) {
            (Some(front), Some(back)) => {
                let span = back.position.index.number() - front.position.index.number() + 1;
                span == self.cache.len() as u64
            }
            _ => true,
        };
        ends_with_last && consecutive
    }
}

/// What a truncation comes to.
pub(super) enum Truncation {
    /// There is nothing after that index.
    Nothing,
    /// The entries from an index on go.
    From { index: u64, last: Option<LogPosition> },
}

/// What one batch of the writer came to.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub jobs: u64,
    pub entries: u64,
    pub syncs: u64,
    pub bytes: u64,
    pub rolls: u64,
    pub segments_made_late: u64,
}

fn cost(entry: &LogEntry) -> u64 {
    entry.payload.len() as u64 + ENTRY_OVERHEAD
}

/// The term and leader of every entry, as runs: a few bytes for each change of leader.
#[derive(Debug, Default)]
pub(super) struct Runs(VecDeque<Run>);

#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    term: Term,
    leader: NodeId,
}

impl Runs {
    pub fn push(&mut self, position: LogPosition) {
        let same = |run: &Run| run.term == position.term && run.leader == position.leader;
        if !self.0.back().is_some_and(same) {
            self.0.push_back(Run {
                first: position.index.number(),
                term: position.term,
                leader: position.leader,
            });
        }
    }

    pub fn truncate(&mut self, from: u64) {
        while self.0.back().is_some_and(|run| run.first >= from) {
            self.0.pop_back();
        }
    }

    pub fn purge(&mut self, upto: u64) {
        while self.0.get(1).is_some_and(|run| run.first <= upto + 1) {
            self.0.pop_front();
        }
    }

    /// Where the first run starts; entries below are not in the log.
    fn first(&self) -> Option<u64> {
        self.0.front().map(|run| run.first)
    }

    /// The position of an entry, which must be in the log.
    pub fn position(&self, index: u64) -> Option<LogPosition> {
        let after = self.0.partition_point(|run| run.first <= index);
        let run = self.0.get(after.checked_sub(1)?)?;
        Some(LogPosition {
            term: run.term,
            leader: run.leader,
            index: LogIndex::new(index),
        })
    }
}

/// Where the durable entries stand: 4 bytes for each, and a segment's struct for each segment.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Oldest first; the last is the one being written. Their entries are consecutive, and those that hold
    /// none any more are skipped.
    segments: VecDeque<Indexed>,
}

#[derive(Debug)]
struct Indexed {
    segment: Arc<Segment>,
    first: u64,
    offsets: Vec<u32>,
    /// Entries below are purged.
    purged_below: u64,
}

impl Indexed {
    fn end(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }

    fn is_dead(&self) -> bool {
        self.offsets.is_empty() || self.end() <= self.purged_below
    }
}

impl Index {
    pub fn roll(&mut self, segment: Arc<Segment>) {
        if let Some(tail) = self.segments.back_mut() {
            tail.offsets.shrink_to_fit();
        }
        self.segments.push_back(Indexed {
            segment,
            first: 0,
            offsets: Vec::new(),
            purged_below: 0,
        });
    }

    pub fn append(&mut self, first: u64, offsets: Vec<u32>) {
        let Some(tail) = self.segments.back_mut() else {
            return;
        };
        if tail.is_dead() || tail.end() != first {
            // After a purge beyond the last entry the log goes on at a higher index.
            debug_assert!(
                tail.is_dead(),
                "entries from {first} on do not follow {}",
                tail.end()
            );
            tail.first = first;
            tail.offsets = offsets;
        } else {
            tail.offsets.extend_from_slice(&offsets);
        }
    }

    pub fn truncate(&mut self, from: u64) {
        for indexed in self.segments.iter_mut().rev() {
            if indexed.end() <= from && !indexed.offsets.is_empty() {
                break;
            }
            let kept = from.saturating_sub(indexed.first);
            indexed
                .offsets
                .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        }
    }

    pub fn purge(&mut self, upto: u64) {
        for indexed in &mut self.segments {
            if indexed.first > upto && !indexed.offsets.is_empty() {
                break;
            }
            indexed.purged_below = indexed.purged_below.max(upto + 1);
            if indexed.is_dead() {
                indexed.offsets = Vec::new();
            }
        }
    }

    /// The last entry that is not in the newest segments whose files have `bytes` together at most.
    fn beyond(&self, bytes: u64) -> Option<u64> {
        let mut total = 0u64;
        let beyond = self.segments.iter().rev().find(|indexed| {
            total = total.saturating_add(indexed.segment.header.bytes);
            total > bytes && !indexed.is_dead()
        })?;
        Some(beyond.end() - 1)
    }

    fn retire(&mut self) -> Vec<RawFile> {
        let mut retired = Vec::new();
        // From the oldest on only: a later segment may hold the truncation of what an earlier one still holds.
        while self.segments.len() > 1 && self.segments.front().is_some_and(Indexed::is_dead) {
            retired.extend(self.segments.pop_front().map(|indexed| indexed.segment.raw()));
        }
        retired
    }

    fn locate(&self, next: u64, end: u64) -> Option<Plan> {
        let indexed = self
            .segments
            .iter()
            .rev()
            .find(|indexed| !indexed.offsets.is_empty() && indexed.first <= next)?;
        let at = usize::try_from(next - indexed.first).ok()?;
        let wanted = usize::try_from(end - next).unwrap_or(usize::MAX);
        let planned = indexed.offsets.get(at..)?;
        let count = planned.len().min(wanted).min(PLAN_ENTRIES_MAX);
        (count > 0).then(|| Plan {
            segment: indexed.segment.clone(),
            first: next,
            offsets: planned[..count].to_vec(),
            end: planned.get(count).copied(),
        })
    }
}

//! Reads entries that are no longer in memory, on a thread of its own.
//!
//! Always: what is returned verified against its checksum and bears the index that was asked for; a segment
//! that was purged and written anew meanwhile is noticed, and is not taken for corruption.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::entry::LogEntry;
use super::format::{self, RecordKind};
use super::shared::Shared;
use super::view::{Place, Plan};
use crate::env::{Owner, oneshot};
use crate::fault::Fault;
use crate::model::LogIndex;

/// The most that is read at once: enough to fill a message to a follower in a few reads. The entries that a
/// read returns share its buffer.
const CHUNK_MAX: usize = 256 << 10;
/// The least: a page costs what a record costs.
const CHUNK_MIN: usize = 4 << 10;

/// A read that somebody waits for.
pub(super) struct ReadJob {
    pub range: Range<LogIndex>,
    pub bytes_max: usize,
    pub reply: oneshot::Sender<Result<Vec<LogEntry>, Fault>>,
}

/// See the module.
pub(super) struct Reader {
    shared: Arc<Shared>,
}

type ReadAnswer = (
    oneshot::Sender<Result<Vec<LogEntry>, Fault>>,
    Result<Vec<LogEntry>, Fault>,
);

impl Reader {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Reads what [`super::Log::read`] answers. Blocks.
    pub fn read(&self, range: &Range<LogIndex>, bytes_max: usize) -> Result<Vec<LogEntry>, Fault> {
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut budget = bytes_max;
        let mut truncations = None;
        loop {
            let place = {
                let view = self.shared.view();
                if truncations.is_some_and(|seen| seen != view.truncations()) && !entries.is_empty() {
                    // What follows may be of another leader than what was read.
                    return Ok(entries);
                }
                truncations = Some(view.truncations());
                let present = view.present(range);
                let next = match entries.last() {
                    Some(last) => last.position.index.number() + 1,
                    None => present.start,
                };
                view.take(next, present.end, &mut budget, &mut entries)?
            };
            match place {
                // The cache reaches to the log's end: there is nothing after it.
                Place::Absent | Place::Cached => return Ok(entries),
                Place::OnDisk(plan) => match read_plan(&plan, &mut budget, &mut entries) {
                    Ok(()) if budget == 0 => return Ok(entries),
                    Ok(()) => {}
                    Err(failed) => {
                        let next = entries
                            .last()
                            .map_or(plan.first, |e| e.position.index.number() + 1);
                        // A purge frees the segment for a new life even while it is being read.
                        if self.shared.view().stands_at(next, &plan.segment, failed.offset) {
                            return Err(failed.fault);
                        }
                    }
                },
            }
        }
    }
}

impl Owner for Reader {
    type Job = ReadJob;
    type Effects = Vec<ReadAnswer>;

    fn work(&mut self, batch: &mut Vec<ReadJob>) -> Vec<ReadAnswer> {
        batch
            .drain(..)
            .map(|job| {
                let read = self.read(&job.range, job.bytes_max);
                (job.reply, read)
            })
            .collect()
    }

    fn publish(&mut self, effects: Vec<ReadAnswer>) {
        for (reply, read) in effects {
            // Who asked may have gone.
            let _gone = reply.send(read);
        }
    }
}

/// Reads planned entries: at least one, then as many as one chunk and the budget allow.
fn read_plan(plan: &Plan, budget: &mut usize, out: &mut Vec<LogEntry>) -> Result<(), Failed> {
    let Some(&first) = plan.offsets.first() else {
        return Ok(());
    };
    let start = u64::from(first);
    let segment_end = plan.segment.header.bytes;
    let plan_end = plan.end.map_or(segment_end, u64::from);
    let wanted = budget
        .saturating_add(plan.offsets.len() * format::RECORD_HEADER)
        .clamp(CHUNK_MIN, CHUNK_MAX);
    let span = usize::try_from(plan_end.saturating_sub(start))
        .unwrap_or(usize::MAX)
        .min(wanted);
    let mut chunk = read_at(plan, first, span)?;
    let first_bytes = format::claimed_payload_bytes(&chunk).map(|bytes| bytes + format::RECORD_HEADER);
    if let Some(bytes) = first_bytes.filter(|bytes| *bytes > chunk.len()) {
        if start + bytes as u64 > segment_end {
            return Err(corrupt(
                plan,
                first,
                "the record's length leads out of the segment",
            ));
        }
        chunk = read_at(plan, first, bytes)?;
    }
    for (read, (index, &offset)) in (plan.first..).zip(&plan.offsets).enumerate() {
        // Offsets within one segment rise, so none is below the first.
        let at = (u64::from(offset) - start) as usize;
        let rest = chunk.get(at..).unwrap_or_default();
        let fits = format::claimed_payload_bytes(rest)
            .is_some_and(|bytes| bytes + format::RECORD_HEADER <= rest.len());
        if !fits && read > 0 {
            // The next chunk starts with it.
            return Ok(());
        }
        let record = format::decode_record(plan.segment.salt, rest)
            .map_err(|bad| corrupt(plan, offset, format!("not a record: {bad:?}")))?;
        if record.kind != RecordKind::Entry || record.position.index.number() != index {
            let found = format!(
                "entry {index} should be here, found {:?} {}",
                record.kind, record.position
            );
            return Err(corrupt(plan, offset, found));
        }
        let payload = chunk.slice(at + format::RECORD_HEADER..at + record.record_bytes());
        if !out.is_empty() && payload.len() > *budget {
            *budget = 0;
            return Ok(());
        }
        *budget = budget.saturating_sub(payload.len());
        out.push(LogEntry {
            position: record.position,
            payload,
        });
    }
    Ok(())
}

/// A record that could not be read, and why.
struct Failed {
    offset: u32,
    fault: Fault,
}

fn read_at(plan: &Plan, offset: u32, bytes: usize) -> Result<Bytes, Failed> {
    let mut chunk = BytesMut::zeroed(bytes);
    match plan.segment.file.read_exact_at(&mut chunk, u64::from(offset)) {
        Ok(()) => Ok(chunk.freeze()),
        Err(e) => Err(Failed {
            offset,
            fault: Fault::disk("read log", plan.segment.path.display(), e),
        }),
    }
}

fn corrupt(plan: &Plan, offset: u32, detail: impl Into<String>) -> Failed {
    Failed {
        offset,
        fault: Fault::Corrupt {
            path: plan.segment.path.display().to_string(),
            offset: u64::from(offset),
            detail: detail.into(),
        },
    }
}

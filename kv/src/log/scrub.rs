//! Reads the segments that are no longer written to from the disk, part by part, and finds what has rotted in them.
//!
//! What such a segment holds is read again only where a follower is far behind, or at the next start, which refuses a log
//! that has rotted: too late, where the other nodes' logs rot too.
//!
//! Always: it changes nothing, and holds no file open between two steps; what a purge frees for a new life meanwhile is
//! passed over, and is not taken for corruption.

use std::sync::Arc;

use super::format::{FIRST_BATCH, SECTOR, SegmentHeader};
use super::open_error::LogOpenError;
use super::recovery::{Verified, verify};
use super::segment::Segment;
use super::shared::Shared;
use super::view::View;
use crate::fault::Fault;
use crate::scrub::Scrubbed;

/// See the module. Its steps block.
#[derive(Debug)]
pub struct LogScrubber {
    shared: Arc<Shared>,
    /// The segment that was done last in this pass. Segments are told apart by their generations, which do not always rise
    /// along the log: one that was made in haste, or for a long entry, stands before the one that was being made ready.
    done: Option<u64>,
    /// The segment that was begun, and where in it the next batch begins.
    begun: Option<(u64, (u64, u32))>,
}

impl LogScrubber {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            done: None,
            begun: None,
        }
    }

    /// Verifies the next part of a segment. Once a pass is complete the next step begins another.
    ///
    /// # Errors
    /// What is in a file is not what was written to it; or the disk failed.
    pub fn step(&mut self) -> Result<Scrubbed, Fault> {
        let (segment, later) = {
            let view = self.shared.view();
            let mut ahead = view.ended().skip(self.next(&view));
            let next = ahead.next().cloned();
            (next, ahead.map(|segment| segment.header.bytes).sum::<u64>())
        };
        let Some(segment) = segment else {
            (self.done, self.begun) = (None, None);
            return Ok(Scrubbed::default());
        };
        let generation = segment.header.generation;
        let at = self
            .begun
            .filter(|(begun, _)| *begun == generation)
            .map(|(_, at)| at);
        let end = segment.header.bytes;
        let from = at.map_or(0, |(cursor, _)| cursor);
        let upto = match verified(&segment, at) {
            Ok(Some((cursor, opening))) => {
                self.begun = Some((generation, (cursor, opening)));
                cursor
            }
            Err(error) if self.stands(&segment) => return Err(error.into()),
            Ok(None) | Err(_) => {
                (self.done, self.begun) = (Some(generation), None);
                end
            }
        };
        let left = end - upto + later;
        if left == 0 {
            (self.done, self.begun) = (None, None);
        }
        Ok(Scrubbed {
            bytes: upto - from,
            left,
        })
    }

    /// Bytes that a pass which begins now would have before it.
    pub fn left(&self) -> u64 {
        let view = self.shared.view();
        view.ended().map(|segment| segment.header.bytes).sum()
    }

    /// The place of the segment that comes next among those that were ended: the one that was begun, or the one behind what
    /// was done; where a purge took both, the oldest.
    fn next(&self, view: &View) -> usize {
        let place = |generation: u64| {
            view.ended()
                .position(|segment| segment.header.generation == generation)
        };
        let begun = self.begun.and_then(|(generation, _)| place(generation));
        begun
            .or_else(|| self.done.and_then(place).map(|done| done + 1))
            .unwrap_or_default()
    }

    /// Whether a segment is still part of the log, and the log in use.
    fn stands(&self, segment: &Arc<Segment>) -> bool {
        let view = self.shared.view();
        view.fault().is_none() && view.ended().any(|other| Arc::ptr_eq(other, segment))
    }
}

/// Where the next batch begins behind those that were verified; nothing at the segment's end.
fn verified(segment: &Segment, at: Option<(u64, u32)>) -> Result<Option<(u64, u32)>, LogOpenError> {
    let corrupt = |offset, detail: &str| LogOpenError::Corrupt {
        file: segment.path.clone(),
        offset,
        detail: detail.to_owned(),
    };
    if at.is_none() {
        let mut sector = [0; SECTOR as usize];
        let read = segment.file.read_from_disk_at(&mut sector, 0);
        read.map_err(|error| LogOpenError::Disk {
            doing: "read log",
            path: segment.path.clone(),
            error,
        })?;
        if SegmentHeader::decode(&sector).ok() != Some(segment.header) {
            return Err(corrupt(0, "the segment's header is not the one that was written"));
        }
    }
    let (from, opening) = at.unwrap_or((FIRST_BATCH, 0));
    match verify(segment, from, opening)? {
        Verified::UpTo(cursor, opening) => Ok(Some((cursor, opening))),
        Verified::Ended => Ok(None),
        Verified::Broken(offset) => Err(corrupt(
            offset,
            "no whole batch stands here, in a segment that goes on behind it",
        )),
    }
}

//! The table `changes`: what each revision changed, and why.
//!
//! Key: the revision (8 bytes, big-endian), then the part's number (4 bytes, big-endian, from 0). Value: one
//! change after another in key order, each a byte for its kind, the key's size (varint) and the key. A part
//! ends after the change that takes it to [`PART_BYTES`], so that a transaction of 100,000 keys makes rows of
//! a page's order and not one of megabytes. A revision lives until compaction. The records themselves are in
//! `current` and `history`.

use super::wire::{Malformed, Row, put_varint};
use crate::model::Revision;

/// A part ends once it is so large.
pub(super) const PART_BYTES: usize = 16 * 1024;

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChangeKind {
    /// It did not exist before (or was deleted and written anew by the same transaction).
    Created,
    /// It was written.
    Written,
    /// A transaction deleted it. Numbers above are for what ends keys later: a lease, a time to live.
    Deleted,
}

impl ChangeKind {
    const fn number(self) -> u8 {
        match self {
            ChangeKind::Created => 1,
            ChangeKind::Written => 2,
            ChangeKind::Deleted => 3,
        }
    }

    fn of_number(number: u8) -> Result<Self, Malformed> {
        [ChangeKind::Created, ChangeKind::Written, ChangeKind::Deleted]
            .into_iter()
            .find(|kind| kind.number() == number)
            .ok_or(Malformed("a change is of an unknown kind"))
    }
}

/// Collects the changes of one revision into rows.
pub(super) struct ChangeRows<'a> {
    rows: &'a mut Vec<([u8; 12], Vec<u8>)>,
    revision: Revision,
    part: u32,
    value: Vec<u8>,
}

impl<'a> ChangeRows<'a> {
    /// Rows of `revision`, to be appended to `rows`.
    pub(super) fn new(rows: &'a mut Vec<([u8; 12], Vec<u8>)>, revision: Revision) -> Self {
        Self {
            rows,
            revision,
            part: 0,
            value: Vec::new(),
        }
    }

    /// Adds a change. Keys come in ascending order.
    pub(super) fn push(&mut self, kind: ChangeKind, key: &[u8]) {
        self.value.push(kind.number());
        put_varint(&mut self.value, key.len() as u64);
        self.value.extend_from_slice(key);
        if self.value.len() >= PART_BYTES {
            self.end_part();
        }
    }

    /// Ends the revision; whether it has any change.
    pub(super) fn finish(mut self) -> bool {
        if !self.value.is_empty() {
            self.end_part();
        }
        self.part > 0
    }

    fn end_part(&mut self) {
        let mut key = [0; 12];
        key[..8].copy_from_slice(&self.revision.number().to_be_bytes());
        key[8..].copy_from_slice(&self.part.to_be_bytes());
        self.rows.push((key, std::mem::take(&mut self.value)));
        self.part += 1;
    }
}

/// Reads the changes of one part.
#[allow(dead_code, reason = "watch replay reads it; tests hold the format")]
pub(super) fn read_part(value: &[u8]) -> Result<Vec<(ChangeKind, Vec<u8>)>, Malformed> {
    let mut row = Row::new(value);
    let mut changes = Vec::new();
    while row.end().is_err() {
        let kind = ChangeKind::of_number(row.u8()?)?;
        changes.push((kind, row.sized()?.to_vec()));
    }
    Ok(changes)
}

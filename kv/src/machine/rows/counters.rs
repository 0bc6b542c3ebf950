//! How much a state holds, counted as it changes, so that nobody needs a scan to know.
//!
//! Each version of a key counts its key twice, as it stands in the version and in the key's head, its value and
//! [`RECORD_BYTES`]. What a live key's newest version counts is live, and so is the row of a sequence, as a key's with a number;
//! the rest is history, which is each node's own.

use super::sequences;
use super::wire::{Malformed, Row, put_u64};

/// What a record takes in an answer beside its key and its value, in bytes, near enough: its revisions, and the memory
/// that holds it. Without it a page of short keys would have no end.
pub(in crate::machine) const RECORD_BYTES: u64 = 64;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::machine) struct Counters {
    /// Keys that exist.
    pub(in crate::machine) records: u64,
    /// What their records count, and sequences.
    pub(in crate::machine) live_bytes: u64,
    /// What all versions count, and sequences, the live ones included.
    pub(in crate::machine) version_bytes: u64,
}

/// What a version of a key counts whose value has so many bytes.
pub(crate) fn version_bytes(key: usize, value: u64) -> u64 {
    (key as u64)
        .saturating_mul(2)
        .saturating_add(value)
        .saturating_add(RECORD_BYTES)
}

/// A store that was nearly full has room again where less than so many percent of the limit are used.
pub(crate) const ROOM_PERCENT: u64 = 80;

/// Whether so many bytes are at least so many percent of a limit.
pub(crate) fn is_used(bytes: u64, limit: u64, percent: u64) -> bool {
    u128::from(bytes) * 100 >= u128::from(limit) * u128::from(percent)
}

impl Counters {
    /// Of the empty store.
    pub(in crate::machine) const ZERO: Counters = Counters {
        records: 0,
        live_bytes: 0,
        version_bytes: 0,
    };

    /// A key exists from here on, whose value has so many bytes.
    pub(in crate::machine) fn lives(&mut self, key: usize, value: u64) {
        self.records = self.records.saturating_add(1);
        self.live_bytes = self.live_bytes.saturating_add(version_bytes(key, value));
    }

    /// It exists no more.
    pub(in crate::machine) fn ends(&mut self, key: usize, value: u64) {
        self.records = self.records.saturating_sub(1);
        self.live_bytes = self.live_bytes.saturating_sub(version_bytes(key, value));
    }

    /// A version is there from here on, a deletion with no bytes for its value.
    pub(in crate::machine) fn version_comes(&mut self, key: usize, value: u64) {
        self.version_bytes = self.version_bytes.saturating_add(version_bytes(key, value));
    }

    /// It is there no more.
    pub(in crate::machine) fn version_goes(&mut self, key: usize, value: u64) {
        self.version_bytes = self.version_bytes.saturating_sub(version_bytes(key, value));
    }

    /// A sequence has given its first number: its row is there for ever, and counts as live.
    pub(in crate::machine) fn sequence_begins(&mut self, prefix: usize) {
        let bytes = version_bytes(prefix, sequences::ROW_BYTES);
        self.live_bytes = self.live_bytes.saturating_add(bytes);
        self.version_bytes = self.version_bytes.saturating_add(bytes);
    }

    /// A row of a sequence is another one, or none.
    pub(in crate::machine) fn sequence_ends(&mut self, prefix: usize) {
        let bytes = version_bytes(prefix, sequences::ROW_BYTES);
        self.live_bytes = self.live_bytes.saturating_sub(bytes);
        self.version_bytes = self.version_bytes.saturating_sub(bytes);
    }

    pub(in crate::machine) fn put(self, out: &mut Vec<u8>) {
        put_u64(out, self.records);
        put_u64(out, self.live_bytes);
        put_u64(out, self.version_bytes);
    }

    pub(in crate::machine) fn read(row: &mut Row<'_>) -> Result<Self, Malformed> {
        let counters = Self {
            records: row.u64()?,
            live_bytes: row.u64()?,
            version_bytes: row.u64()?,
        };
        match counters.live_bytes > counters.version_bytes {
            true => Err(Malformed("live records are not among the versions")),
            false => Ok(counters),
        }
    }
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            records,
            live_bytes,
            version_bytes,
        } = self;
        write!(
            f,
            "{records} records of {live_bytes} bytes among versions of {version_bytes} bytes"
        )
    }
}

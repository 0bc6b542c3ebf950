//! One range read, gathered record by record; the same for transactions and for reads.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::sight::Values;
use super::version::RecordRef;
use crate::model::{Key, KeyValue, RangeRead};

/// What a record takes in an answer beside its key and its value, in bytes, near enough: its revisions, and the memory
/// that holds it. Without it a page of short keys would have no end.
pub(super) const RECORD_BYTES: u64 = 64;

/// How many bytes a record counts for in an answer.
pub(super) fn answer_bytes(key: usize, value: usize) -> u64 {
    (key as u64)
        .saturating_add(value as u64)
        .saturating_add(RECORD_BYTES)
}

/// Gathers the answer to a [`RangeRead`].
#[derive(Debug)]
pub(super) struct Gathered {
    limit: u64,
    keys_only: bool,
    count_only: bool,
    page_bytes_max: u64,
    pub(super) records: Vec<KeyValue>,
    /// How many keys were counted; else how many records were gathered.
    pub(super) count: u64,
    /// There are more keys. Never for a count, which counts all.
    pub(super) more: bool,
    /// What was gathered, in bytes as answers count them.
    pub(super) bytes: u64,
}

impl Gathered {
    /// Nothing yet. A page ends before it exceeds `page_bytes_max`, but holds one record at least.
    pub(super) fn new(read: &RangeRead, page_bytes_max: u64) -> Self {
        Self {
            limit: read.limit.into(),
            keys_only: read.keys_only,
            count_only: read.count_only,
            page_bytes_max,
            records: Vec::new(),
            count: 0,
            more: false,
            bytes: 0,
        }
    }

    /// Whether the answer needs values at all.
    pub(super) fn values(read: &RangeRead) -> Values {
        if read.keys_only || read.count_only {
            Values::Skip
        } else {
            Values::Read
        }
    }

    /// Takes in the next record in the order asked for.
    pub(super) fn visit(&mut self, key: &[u8], record: RecordRef<'_>) -> ControlFlow<()> {
        if self.count_only {
            self.count += 1;
            return ControlFlow::Continue(());
        }
        let value = if self.keys_only { 0 } else { record.value.len() };
        let bytes = self.bytes.saturating_add(answer_bytes(key.len(), value));
        let full = bytes > self.page_bytes_max && !self.records.is_empty();
        if full || self.records.len() as u64 >= self.limit {
            self.more = true;
            return ControlFlow::Break(());
        }
        // A key in the state file passed the gate when it was written.
        let Ok(key) = Key::new(Bytes::copy_from_slice(key)) else {
            return ControlFlow::Continue(());
        };
        self.bytes = bytes;
        self.count += 1;
        self.records.push(KeyValue {
            key,
            record: record.to_record(!self.keys_only),
        });
        ControlFlow::Continue(())
    }
}

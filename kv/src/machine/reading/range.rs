//! One range read, gathered record by record; the same for transactions and for reads.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::machine::file::sight::Values;
use crate::machine::rows::counters::RECORD_BYTES;
use crate::machine::rows::version::RecordRef;
use crate::model::{Key, KeyValue, RangeRead};

/// How many bytes a record counts for in an answer.
pub(in crate::machine) fn answer_bytes(key: usize, value: usize) -> u64 {
    (key as u64)
        .saturating_add(value as u64)
        .saturating_add(RECORD_BYTES)
}

/// Gathers the answer to a [`RangeRead`].
#[derive(Debug)]
pub(in crate::machine) struct Gathered {
    limit: u64,
    keys_only: bool,
    count_only: bool,
    page_bytes_max: u64,
    pub(in crate::machine) records: Vec<KeyValue>,
    /// How many keys were counted; else how many records were gathered.
    pub(in crate::machine) count: u64,
    /// There are more keys. Never for a count, which counts all.
    pub(in crate::machine) more: bool,
    /// What was gathered, in bytes as answers count them.
    pub(in crate::machine) bytes: u64,
}

impl Gathered {
    /// Nothing yet. A page ends before it exceeds `page_bytes_max`, but holds one record at least.
    pub(in crate::machine) fn new(read: &RangeRead, page_bytes_max: u64) -> Self {
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
    pub(in crate::machine) fn values(read: &RangeRead) -> Values {
        if read.keys_only || read.count_only {
            Values::Skip
        } else {
            Values::Read
        }
    }

    /// Takes in the next record in the order asked for.
    pub(in crate::machine) fn visit(&mut self, key: &[u8], record: RecordRef<'_>) -> ControlFlow<()> {
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

//! One range read, gathered record by record; the same for transactions and for reads.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::layered::Values;
use super::version::RecordRef;
use crate::model::{Key, KeyValue, RangeRead};

/// Gathers the answer to a [`RangeRead`].
#[derive(Debug)]
pub(super) struct Gathered<'r> {
    read: &'r RangeRead,
    page_bytes_max: u64,
    pub(super) records: Vec<KeyValue>,
    /// How many keys were counted; else how many records were gathered.
    pub(super) count: u64,
    /// There are more keys. Never for a count, which counts all.
    pub(super) more: bool,
    /// Keys and values gathered, in bytes.
    pub(super) bytes: u64,
}

impl<'r> Gathered<'r> {
    /// Nothing yet. A page ends before it exceeds `page_bytes_max`, but holds one record at least.
    pub(super) fn new(read: &'r RangeRead, page_bytes_max: u64) -> Self {
        Self {
            read,
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
        if self.read.count_only {
            self.count += 1;
            return ControlFlow::Continue(());
        }
        let value = if self.read.keys_only {
            0
        } else {
            record.value.len()
        };
        let bytes = self.bytes.saturating_add((key.len() + value) as u64);
        let full = bytes > self.page_bytes_max && !self.records.is_empty();
        if full || self.records.len() as u64 >= u64::from(self.read.limit) {
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
            record: record.to_record(!self.read.keys_only),
        });
        ControlFlow::Continue(())
    }
}

//! What waits to be written, in bytes.

use std::sync::Arc;

use crate::env::watch;

/// How many bytes are on their way to the disk: counted from sending to answering.
#[derive(Debug)]
pub(super) struct Queued {
    /// Who watches is woken when the bytes fall to the most again.
    pub(super) bytes: watch::Sender<u64>,
    pub(super) bytes_max: u64,
}

impl Queued {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        let bytes = watch::channel(0).0;
        Arc::new(Self { bytes, bytes_max })
    }

    /// Counts a job, until what is returned is dropped.
    pub(super) fn count(self: &Arc<Self>, bytes: u64) -> Place {
        let bytes = bytes.max(JOB_BYTES_MIN);
        self.bytes.send_if_modified(|queued| {
            *queued += bytes;
            false
        });
        Place {
            queued: Arc::clone(self),
            bytes,
        }
    }
}

/// A job's place in the queue.
#[derive(Debug)]
pub(super) struct Place {
    queued: Arc<Queued>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let max = self.queued.bytes_max;
        self.queued.bytes.send_if_modified(|queued| {
            let before = *queued;
            *queued = before.saturating_sub(self.bytes);
            before > max && *queued <= max
        });
    }
}

/// What a job counts in the queue at least.
const JOB_BYTES_MIN: u64 = 1024;

//! Reads that a client may give up before they are answered: each has a number on its stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The reads of one stream that are not answered yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenReads(Arc<Mutex<BTreeMap<u64, CancellationToken>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OpenRead {
    id: u64,
    given_up: CancellationToken,
    among: OpenReads,
}

impl OpenReads {
    /// Adds a read.
    pub(super) fn open(&self, id: u64) -> OpenRead {
        let given_up = CancellationToken::new();
        self.lock().insert(id, given_up.clone());
        OpenRead {
            id,
            given_up,
            among: self.clone(),
        }
    }

    /// The client does not wait for this one any more. One that was answered meanwhile is no error.
    pub(super) fn give_up(&self, id: u64) {
        let read = self.lock().remove(&id);
        if let Some(given_up) = read {
            given_up.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenRead {
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    /// Cancelled once it is given up.
    pub(super) fn token(&self) -> CancellationToken {
        self.given_up.clone()
    }
}

impl Drop for OpenRead {
    fn drop(&mut self) {
        self.among.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_can_be_given_up_until_it_is_answered() {
        let reads = OpenReads::default();
        let (first, second) = (reads.open(1), reads.open(2));
        reads.give_up(1);
        reads.give_up(7);
        assert!(first.is_given_up() && !second.is_given_up());
        drop((first, second));
        assert!(reads.lock().is_empty());
    }
}

//! What readers see: the state that was published last, and how it is handed over.

use std::sync::{Arc, PoisonError, RwLock};

use crate::machine::applying::hashes::Hashes;
use crate::machine::layers::layered::Layered;
use crate::machine::rows::system::Standing;
use crate::model::{ReplicatedLimits, StateHash};

/// What readers pin: the state at one moment.
#[derive(Debug)]
pub(in crate::machine) struct Published {
    pub(in crate::machine) state: Layered,
    pub(in crate::machine) standing: Standing,
    pub(in crate::machine) limits: ReplicatedLimits,
    pub(in crate::machine) hashes: Arc<Hashes>,
    /// The file's length after the last checkpoint.
    pub(in crate::machine) file_bytes: u64,
    /// Of the two, and computed once for all who look.
    pub(in crate::machine) state_hash: StateHash,
}

/// The state that was published last. The lock is held for the few lines that clone or replace the `Arc`.
#[derive(Clone, Debug)]
pub(in crate::machine) struct LastPublished(Arc<RwLock<Arc<Published>>>);

impl LastPublished {
    pub(in crate::machine) fn new(published: Published) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(published))))
    }

    pub(in crate::machine) fn get(&self) -> Arc<Published> {
        // A panic cannot leave the Arc half replaced.
        let published = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&published)
    }

    pub(in crate::machine) fn publish(&self, published: Published) {
        let published = Arc::new(published);
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let replaced = std::mem::replace(&mut *place, published);
        drop(place);
        // Outside of the lock: it may be the last that holds a layer, or a file.
        drop(replaced);
    }
}

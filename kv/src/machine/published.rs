//! What readers see: the state that was published last, and how it is handed over.

use std::sync::{Arc, PoisonError, RwLock};

use super::hashes::Hashes;
use super::layered::Layered;
use super::system::Standing;
use crate::model::{ReplicatedLimits, StateHash};

/// What readers pin: the state at one moment.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) state: Layered,
    pub(super) standing: Standing,
    pub(super) limits: ReplicatedLimits,
    pub(super) hashes: Arc<Hashes>,
    /// The file's length after the last checkpoint.
    pub(super) file_bytes: u64,
    /// Of the two, and computed once for all who look.
    pub(super) state_hash: StateHash,
}

/// The state that was published last. The lock is held for the few lines that clone or replace the `Arc`.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<RwLock<Arc<Published>>>);

impl Shared {
    pub(super) fn new(published: Published) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(published))))
    }

    pub(super) fn get(&self) -> Arc<Published> {
        // A panic cannot leave the Arc half replaced.
        let published = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&published)
    }

    pub(super) fn publish(&self, published: Published) {
        let published = Arc::new(published);
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let replaced = std::mem::replace(&mut *place, published);
        drop(place);
        // Outside of the lock: it may be the last that holds a layer, or a file.
        drop(replaced);
    }
}

//! Room in bytes for what waits.
//!
//! Always: whoever wants more than is left waits, first come, first served; what is held is given back when its holder is dropped.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::env::Semaphore;

/// Some bytes. Cheap to clone; a clone is the same room.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Room {
    pub(crate) fn new(bytes: u64) -> Self {
        let bytes = bytes.clamp(1, u32::MAX.into()) as usize;
        Self {
            free: Arc::new(Semaphore::new(bytes)),
            bytes,
        }
    }

    /// A part of this room's size.
    pub(crate) fn part(&self, divisor: usize) -> Self {
        Self::new((self.bytes / divisor) as u64)
    }

    /// Waits for so many bytes; for all there are, where there are fewer. Cancel safe.
    pub(crate) async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let wanted = u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX);
        match Arc::clone(&self.free).acquire_many_owned(wanted).await {
            Ok(permit) => permit,
            // No room is ever closed.
            Err(_closed) => std::future::pending().await,
        }
    }

    /// So many bytes, if they are free.
    pub(crate) fn take_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes.min(self.bytes)).unwrap_or(u32::MAX);
        Arc::clone(&self.free).try_acquire_many_owned(wanted).ok()
    }

    /// Whether so many bytes are free.
    pub(crate) fn has(&self, bytes: usize) -> bool {
        self.free.available_permits() >= bytes.min(self.bytes)
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.bytes - self.free.available_permits()
    }
}

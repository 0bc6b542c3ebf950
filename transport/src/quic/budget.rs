//! Memory for the messages of clients that have not arrived whole.
//!
//! QUIC's windows bound what nobody has read. A message is read piece by piece and put together, outside of the windows:
//! so that memory needs a bound of its own, or a thousand clients that each send half of a large message on many streams
//! hold all that a machine has.
//!
//! Always: a message above [`SMALL`] reserves its whole length before more of it is read than came with its beginning; so
//! nobody waits who holds a part of the budget, and what was reserved is given back within a time. A stream that waits
//! keeps its window of the connection full and no other stream's, so that those who hold a part go on.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A message up to this size is not counted: its stream has a window of more.
pub(super) const SMALL: usize = 16 << 10;

/// The bytes that messages of all clients together may reserve.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    all: Arc<Semaphore>,
    message_max: usize,
}

/// One connection's way to it.
#[derive(Debug, Clone)]
pub(super) struct Share {
    all: Arc<Semaphore>,
    /// One message of the longest at a time, or some shorter ones: a client alone never takes the whole budget.
    own: Arc<Semaphore>,
}

/// Bytes that are reserved until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Budget {
    /// `bytes` in all, and one message in any case.
    pub(super) fn new(bytes: usize, message_max: usize) -> Self {
        let bytes = bytes.max(message_max).min(Semaphore::MAX_PERMITS);
        Self {
            all: Arc::new(Semaphore::new(bytes)),
            message_max,
        }
    }

    pub(super) fn share(&self) -> Share {
        Share {
            all: Arc::clone(&self.all),
            own: Arc::new(Semaphore::new(self.message_max)),
        }
    }
}

impl Share {
    /// Reserves so many bytes, at most the longest message, in the order of asking. `None` never: the budget is not
    /// closed. Cancel safe.
    pub(super) async fn reserve(&self, bytes: usize) -> Option<Reservation> {
        let bytes = u32::try_from(bytes).ok()?;
        // The own first: who waits for it holds nothing of the others'.
        let own = Arc::clone(&self.own).acquire_many_owned(bytes).await.ok()?;
        let all = Arc::clone(&self.all).acquire_many_owned(bytes).await.ok()?;
        Some(Reservation { _own: own, _all: all })
    }
}

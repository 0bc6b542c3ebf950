//! Memory for the messages of clients that have not arrived whole.
//!
//! QUIC's windows bound what nobody has read. A message is read piece by piece and put together, outside of the windows:
//! so that memory needs a bound of its own, or one client that sends half of a large message on each of many streams
//! holds all that a machine has.
//!
//! Always: a message above [`SMALL`] reserves its whole length before more of it is read than came with its beginning, and
//! until nobody holds a part of it any more.
//! Nobody waits for room: what waited would hold the connection's window, which those need that have room. A message that
//! finds none ends its stream, and its client tries again. One that has room arrives within a time, or its stream ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A message up to this size is not counted: its stream has a window of more.
pub(super) const SMALL: usize = 16 << 10;

/// How many messages of the longest one connection may have under way.
const MESSAGES_OF_ONE: usize = 4;

/// A message has a second more for each so many bytes.
const BYTES_A_SECOND: usize = 256 << 10;

/// The bytes that messages of all clients together may reserve.
#[derive(Debug)]
pub(super) struct Budget {
    all: Arc<Semaphore>,
    #[cfg(test)]
    bytes: usize,
    of_one: usize,
    patience: Duration,
}

/// One connection's way to it.
#[derive(Debug, Clone)]
pub(super) struct Share {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    patience: Duration,
}

/// Bytes that are reserved until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// A message that has its room for as long as it is in memory.
struct Roomy {
    message: Bytes,
    _room: Reservation,
}

impl AsRef<[u8]> for Roomy {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

impl Reservation {
    /// The message, which gives this back once no part of it is held any more.
    pub(super) fn hold_for(self, message: Bytes) -> Bytes {
        Bytes::from_owner(Roomy { message, _room: self })
    }
}

impl Budget {
    /// `bytes` in all, and one message in any case. `patience` is how long the sender of a message is waited for at least.
    pub(super) fn new(bytes: usize, message_max: usize, patience: Duration) -> Self {
        let bytes = bytes.max(message_max).min(Semaphore::MAX_PERMITS);
        // One of the longest it must have room for, however little there is in all.
        let of_one = message_max
            .saturating_mul(MESSAGES_OF_ONE)
            .min((bytes / 4).max(message_max));
        Self {
            all: Arc::new(Semaphore::new(bytes)),
            #[cfg(test)]
            bytes,
            of_one,
            patience,
        }
    }

    #[cfg(test)]
    pub(super) fn reserved(&self) -> usize {
        self.bytes - self.all.available_permits()
    }

    pub(super) fn share(&self) -> Share {
        Share {
            all: Arc::clone(&self.all),
            own: Arc::new(Semaphore::new(self.of_one)),
            patience: self.patience,
        }
    }
}

impl Share {
    /// Reserves so many bytes, if there is room.
    pub(super) fn reserve(&self, bytes: usize) -> Option<Reservation> {
        let bytes = u32::try_from(bytes).ok()?;
        let own = Arc::clone(&self.own).try_acquire_many_owned(bytes).ok()?;
        let all = Arc::clone(&self.all).try_acquire_many_owned(bytes).ok()?;
        Some(Reservation { _own: own, _all: all })
    }

    /// How long the sender of a message of so many bytes may be waited for, all in all.
    pub(super) fn patience(&self, bytes: usize) -> Duration {
        self.patience + Duration::from_secs((bytes / BYTES_A_SECOND) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_has_room_for_four_long_messages_and_all_have_the_budget() {
        let budget = Budget::new(1_600, 100, Duration::ZERO);
        let one = budget.share();
        let held: Vec<Reservation> = (0..4).map(|_| one.reserve(100).unwrap()).collect();
        assert!(one.reserve(1).is_none(), "its share is taken");
        let others = [budget.share(), budget.share(), budget.share()];
        let rest: Vec<Reservation> = others
            .iter()
            .flat_map(|other| (0..4).map(|_| other.reserve(100).unwrap()))
            .collect();
        assert!(budget.share().reserve(1).is_none(), "the budget is taken");
        drop(held);
        budget.share().reserve(100).unwrap();
        one.reserve(100).unwrap();
        drop(rest);
    }

    /// The story: with room for two of the longest messages in all, one slow connection had it all.
    #[test]
    fn where_there_is_little_room_one_connection_has_a_quarter_or_one_message() {
        for (bytes, of_one) in [(1_000, 250), (200, 100), (100, 100)] {
            let budget = Budget::new(bytes, 100, Duration::ZERO);
            let one = budget.share();
            let all: Vec<Reservation> = std::iter::from_fn(|| one.reserve(10)).collect();
            assert_eq!(all.len(), of_one / 10, "of {bytes}");
        }
    }

    #[test]
    fn the_longest_message_always_fits_alone() {
        assert!(
            Budget::new(1, 1_000, Duration::ZERO)
                .share()
                .reserve(1_000)
                .is_some()
        );
    }
}

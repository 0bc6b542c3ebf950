//! What a peer owes on an append stream, and how long it may.
//!
//! A message counts from when it was handed to the stream, or from what was heard of the peer since: a peer whose disk is behind
//! gives signs of life, and what it holds is not sent again; a long one has more time, since one
//! entry is one message, and one that is given up is sent again from its beginning: with one time for all of them, what takes
//! longer to carry would be sent for ever and never arrive, and all writes behind it would wait.
//!
//! Pure: the owner brings the time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::env::Instant;

/// A message has a second more for each so many bytes: a link that carries less is no link for a log.
const BYTES_A_SECOND: u64 = 256 * 1024;

/// The messages that are not answered. Cheap to clone: the sending and the receiving half share it.
#[derive(Debug, Clone)]
pub(super) struct Owed {
    patience: Duration,
    messages: Arc<Mutex<Messages>>,
}

#[derive(Debug, Default)]
struct Messages {
    /// From the oldest on: when it was handed over, and its bytes.
    waiting: VecDeque<(Instant, u64)>,
    /// When the last answer came, or the last sign of life.
    heard: Option<Instant>,
}

impl Owed {
    /// `patience`: how long a message without bytes may wait.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            messages: Arc::default(),
        }
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message of so many bytes is handed to the stream.
    pub(super) fn hand_over(&self, now: Instant, bytes: usize) {
        self.messages().waiting.push_back((now, bytes as u64));
    }

    /// The oldest was answered.
    pub(super) fn answer(&self, now: Instant) {
        let mut messages = self.messages();
        messages.waiting.pop_front();
        messages.heard = Some(now);
    }

    /// The peer lives, and is not done with the oldest.
    pub(super) fn sign_of_life(&self, now: Instant) {
        self.messages().heard = Some(now);
    }

    /// Until when the oldest may wait; none where nothing is owed.
    pub(super) fn until(&self) -> Option<Instant> {
        let messages = self.messages();
        let (handed_over, bytes) = *messages.waiting.front()?;
        let since = messages.heard.map_or(handed_over, |at| at.max(handed_over));
        Some(since + self.patience + Duration::from_secs(bytes / BYTES_A_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env;

    #[test]
    fn the_oldest_message_has_its_time_from_when_it_was_the_first_to_be_answered() {
        let begun = env::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let owed = Owed::new(Duration::from_secs(2));
        assert_eq!(owed.until(), None, "silence is no fault where nothing is owed");
        owed.hand_over(at(10), 100);
        owed.hand_over(at(11), 100);
        assert_eq!(owed.until(), Some(at(12)));
        owed.answer(at(12));
        assert_eq!(owed.until(), Some(at(14)));
        owed.answer(at(13));
        assert_eq!(owed.until(), None);
        owed.hand_over(at(100), 100);
        assert_eq!(
            owed.until(),
            Some(at(102)),
            "a quiet time before it is not its own"
        );
        owed.sign_of_life(at(101));
        assert_eq!(owed.until(), Some(at(103)), "the peer works on it");
    }

    #[test]
    fn a_long_message_has_time_to_be_carried() {
        let begun = env::now();
        let owed = Owed::new(Duration::from_secs(2));
        owed.hand_over(begun, 16 << 20);
        assert_eq!(owed.until(), Some(begun + Duration::from_secs(2 + 64)));
    }
}

//! The client's side of exactly-once: a session and the numbers of its writes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::env::Notify;
use crate::model::{Sequence, SessionId, SessionRef};
use crate::planted::{self, Bug};

/// How far apart the oldest write under way and the newest may be. The cluster remembers the answers in between, up to
/// a number (4,096 by default), and refuses what goes beyond: also those of writes that were answered long ago, while
/// one that fell into a failover is still being retried. Half of that, so that no write is ever refused.
pub(super) const SPREAD_MAX: u64 = 2_048;

/// A session of the cluster that this client writes in.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    numbers: Mutex<Numbers>,
    /// Told when the oldest write under way has ended.
    moved: Notify,
}

#[derive(Debug)]
struct Numbers {
    next: Sequence,
    /// Writes that were not answered yet.
    open: BTreeSet<Sequence>,
}

/// A write's number, held until the write was answered or given up.
#[derive(Debug)]
pub(crate) struct Numbered {
    session: Arc<Session>,
    sequence: Sequence,
}

impl Session {
    pub(crate) fn new(id: SessionId) -> Arc<Self> {
        let numbers = Numbers {
            next: Sequence::FIRST,
            open: BTreeSet::new(),
        };
        Arc::new(Self {
            id,
            numbers: Mutex::new(numbers),
            moved: Notify::new(),
        })
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// The number of a new write, once it is near enough to the oldest one under way. Cancel safe.
    pub(crate) async fn number(self: &Arc<Self>) -> Numbered {
        loop {
            // Made before the look, so that no change in between is missed.
            let moved = self.moved.notified();
            if let Some(numbered) = self.number_now() {
                return numbered;
            }
            moved.await;
        }
    }

    fn number_now(self: &Arc<Self>) -> Option<Numbered> {
        let mut numbers = self.lock();
        let sequence = numbers.next;
        let oldest = numbers.open.first().copied().unwrap_or(sequence);
        if sequence.number() - oldest.number() >= SPREAD_MAX {
            return None;
        }
        numbers.next = sequence.next();
        numbers.open.insert(sequence);
        drop(numbers);
        Some(Numbered {
            session: Arc::clone(self),
            sequence,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbered {
    /// For one attempt: the same number each time, and what was answered meanwhile.
    pub(crate) fn reference(&self) -> SessionRef {
        let numbers = self.session.lock();
        // Itself it is under way.
        let answered_below = match numbers.open.first() {
            Some(oldest) if !planted::is(Bug::OpenAnswersForgotten) => *oldest,
            _ => self.sequence,
        };
        SessionRef {
            id: self.session.id,
            sequence: self.sequence,
            answered_below,
        }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let mut numbers = self.session.lock();
        let was_oldest = numbers.open.first() == Some(&self.sequence);
        numbers.open.remove(&self.sequence);
        drop(numbers);
        if was_oldest {
            self.session.moved.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn number(session: &Arc<Session>) -> Numbered {
        session.number().now_or_never().expect("there is room")
    }

    #[test]
    fn the_lowest_open_write_bounds_what_may_be_forgotten() {
        let session = Session::new(SessionId::new(7));
        let (first, second) = (number(&session), number(&session));
        assert_eq!(second.reference().sequence, Sequence::new(2));
        assert_eq!(
            second.reference().answered_below,
            Sequence::new(1),
            "the first is still open"
        );
        drop(first);
        assert_eq!(second.reference().answered_below, Sequence::new(2));
        drop(second);
        assert_eq!(number(&session).reference().answered_below, Sequence::new(3));
    }

    /// The story: one write fell into a failover and was retried, the others went on, and the answers in between became
    /// more than the cluster remembers: it refused writes of a client that had done nothing wrong.
    #[tokio::test]
    async fn a_write_waits_while_it_would_be_too_far_from_the_oldest_one_under_way() {
        let session = Session::new(SessionId::new(7));
        let oldest = number(&session);
        for _ in 1..SPREAD_MAX {
            drop(number(&session));
        }
        let mut waiting = std::pin::pin!(session.number());
        assert!(waiting.as_mut().now_or_never().is_none(), "it is too far");
        drop(oldest);
        let next = waiting.await;
        let SessionRef {
            sequence,
            answered_below,
            ..
        } = next.reference();
        assert_eq!(sequence, Sequence::new(SPREAD_MAX + 1));
        assert_eq!(answered_below, sequence);
    }
}

//! The client's side of exactly-once: a session and the numbers of its writes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::{Sequence, SessionId, SessionRef};

/// A session of the cluster that this client writes in.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    numbers: Mutex<Numbers>,
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
        })
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// The number of a new write.
    pub(crate) fn number(self: &Arc<Self>) -> Numbered {
        let mut numbers = self.lock();
        let sequence = numbers.next;
        numbers.next = sequence.next();
        numbers.open.insert(sequence);
        drop(numbers);
        Numbered {
            session: Arc::clone(self),
            sequence,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Numbered {
    /// For one attempt: the same number each time, and what was answered meanwhile.
    pub(crate) fn reference(&self) -> SessionRef {
        let numbers = self.session.lock();
        let answered_below = numbers.open.first().copied().unwrap_or(numbers.next);
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
        self.session.lock().open.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_open_write_bounds_what_may_be_forgotten() {
        let session = Session::new(SessionId::new(7));
        let (first, second) = (session.number(), session.number());
        assert_eq!(second.reference().sequence, Sequence::new(2));
        assert_eq!(
            second.reference().answered_below,
            Sequence::new(1),
            "the first is still open"
        );
        drop(first);
        assert_eq!(second.reference().answered_below, Sequence::new(2));
        drop(second);
        assert_eq!(session.number().reference().answered_below, Sequence::new(3));
    }
}

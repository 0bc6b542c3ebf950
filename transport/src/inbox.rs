//! The streams that peers opened and nobody has accepted yet.
//!
//! Always: at most [`WAITING_MAX`] streams of a class wait, and whoever brings one more waits; the most
//! urgent class is handed out first; after the close nothing is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

use crate::{Class, Incoming};

/// How many streams of one class wait at most. Opening one more is felt by the peer as latency, then as
/// flow control: 256 covers a burst of every client's requests while the acceptor is busy with one.
pub(crate) const WAITING_MAX: usize = 256;

/// A bounded queue for each class.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// `None` after the close. Held for a few lines, never across a wait.
    waiting: Mutex<Option<[VecDeque<Incoming>; 4]>>,
    room: [Semaphore; 4],
    arrived: Notify,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            waiting: Mutex::new(Some(Default::default())),
            room: Class::ALL.map(|_| Semaphore::new(WAITING_MAX)),
            arrived: Notify::new(),
        }
    }

    /// Queues a stream, waiting for room. After the close the stream is dropped, which resets it.
    pub(crate) async fn push(&self, incoming: Incoming) {
        let rank = incoming.class.rank();
        // Closed with the inbox.
        let Ok(permit) = self.room[rank].acquire().await else {
            return;
        };
        if let Some(waiting) = self.waiting().as_mut() {
            permit.forget();
            waiting[rank].push_back(incoming);
        }
        self.arrived.notify_one();
    }

    /// The next stream; `None` after the close. Cancel safe.
    pub(crate) async fn next(&self) -> Option<Incoming> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut waiting = self.waiting();
                let queues = waiting.as_mut()?;
                for (queue, room) in queues.iter_mut().zip(&self.room) {
                    if let Some(incoming) = queue.pop_front() {
                        room.add_permits(1);
                        return Some(incoming);
                    }
                }
            }
            arrived.await;
        }
    }

    /// Drops all that wait, and wakes all who do.
    pub(crate) fn close(&self) {
        let dropped = self.waiting().take();
        for room in &self.room {
            room.close();
        }
        self.arrived.notify_waiters();
        drop(dropped);
    }

    fn waiting(&self) -> MutexGuard<'_, Option<[VecDeque<Incoming>; 4]>> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

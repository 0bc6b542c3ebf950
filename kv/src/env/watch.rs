//! A channel that keeps the newest value alone, for any number of senders and receivers.
//!
//! tokio's own wakes its receivers in an order that it draws at random, which no simulator can repeat; this
//! one wakes them in the order in which they began to wait. openraft runs on it too.
//!
//! Always: the version rises with each value sent, under the value's lock; a receiver that has seen version v
//! waits until the version is another, or the last sender is gone.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use openraft_rt::{OptionalSend, OptionalSync};
use tokio::sync::Notify;
use tokio::task::coop::cooperative;

/// Makes a channel with a first value, which its receiver has seen.
pub fn channel<T>(first: T) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        value: RwLock::new(first),
        version: AtomicU64::new(0),
        senders: AtomicUsize::new(1),
        receivers: AtomicUsize::new(1),
        changed: Notify::new(),
        abandoned: Notify::new(),
    });
    let tx = Sender {
        shared: Arc::clone(&shared),
    };
    (tx, Receiver { shared, seen: 0 })
}

struct Shared<T> {
    value: RwLock<T>,
    /// How many values were sent. Written under the value's lock; SeqCst, so that a receiver which began to
    /// wait and then reads an old version is among those that the sender wakes.
    version: AtomicU64,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    /// A value was sent, or the last sender has gone.
    changed: Notify,
    /// The last receiver has gone.
    abandoned: Notify,
}

impl<T> Shared<T> {
    fn borrow(&self) -> Ref<'_, T> {
        // A value is replaced, or changed by a closure: a panic in the closure is the sender's affair.
        Ref(self.value.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// No receiver is left; the value comes back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody watches this channel any more")]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").finish_non_exhaustive()
    }
}

/// The last sender has gone, and its last value has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sender of this channel has gone")]
pub struct RecvError;

/// The channel's value, locked: senders wait while it is held, so hold it briefly and never across an await.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Ref<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Replaces the value. Cheap to clone.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Replaces the value and wakes the receivers; gives it back when there is none.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.is_closed() {
            return Err(SendError(value));
        }
        self.send_replace(value);
        Ok(())
    }

    /// Replaces the value, wakes the receivers and returns the value before. Works without receivers too.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|current| std::mem::swap(current, &mut value));
        value
    }

    /// Changes the value in place and wakes the receivers. Works without receivers too.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value in place; wakes the receivers if `modify` answers `true`, and returns its answer.
    /// Works without receivers too.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut value = self.shared.value.write().unwrap_or_else(PoisonError::into_inner);
            if !modify(&mut value) {
                return false;
            }
            self.shared.version.fetch_add(1, Ordering::SeqCst);
        }
        self.shared.changed.notify_waiters();
        true
    }

    /// The value now.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// A receiver that has seen the value of now.
    pub fn subscribe(&self) -> Receiver<T> {
        self.shared.receivers.fetch_add(1, Ordering::SeqCst);
        Receiver {
            shared: Arc::clone(&self.shared),
            seen: self.shared.version.load(Ordering::SeqCst),
        }
    }

    /// Whether no receiver is left (a later [`Sender::subscribe`] makes one again).
    pub fn is_closed(&self) -> bool {
        self.receiver_count() == 0
    }

    /// How many receivers there are.
    pub fn receiver_count(&self) -> usize {
        self.shared.receivers.load(Ordering::SeqCst)
    }

    /// Waits until no receiver is left. Cancel safe.
    pub async fn closed(&self) {
        cooperative(async {
            loop {
                let abandoned = self.shared.abandoned.notified();
                if self.is_closed() {
                    return;
                }
                abandoned.await;
            }
        })
        .await;
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::SeqCst);
        Sender {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("watch::Sender").finish_non_exhaustive()
    }
}

/// Sees the newest value. A clone has seen what this one has.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

impl<T> Receiver<T> {
    /// The value now; it does not count as seen.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    /// The value now, which then counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.borrow();
        // Read under the value's lock: the version is that of this value.
        self.seen = self.shared.version.load(Ordering::SeqCst);
        value
    }

    /// Whether there is a value that was not seen.
    ///
    /// # Errors
    ///
    /// When there is none, nor will be: the last sender has gone.
    pub fn has_changed(&self) -> Result<bool, RecvError> {
        // The order matters: a sender's last value comes before its end.
        let gone = self.shared.senders.load(Ordering::SeqCst) == 0;
        let changed = self.shared.version.load(Ordering::SeqCst) != self.seen;
        if !changed && gone {
            return Err(RecvError);
        }
        Ok(changed)
    }

    /// Waits for a value that was not seen, which then counts as seen. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the last sender has gone and its last value was seen.
    pub async fn changed(&mut self) -> Result<(), RecvError> {
        // Within tokio's budget, as its own channels: a loop over a value that always changes must yield.
        cooperative(async {
            loop {
                // Made before the check: whoever sends after the check wakes it.
                let notified = self.shared.changed.notified();
                if self.has_changed()? {
                    self.seen = self.shared.version.load(Ordering::SeqCst);
                    return Ok(());
                }
                notified.await;
            }
        })
        .await
    }

    /// Waits until the value satisfies `condition`, which sees the present value first; the value then counts
    /// as seen. Cancel safe.
    ///
    /// # Errors
    ///
    /// When the last sender has gone and its last value does not satisfy the condition.
    pub async fn wait_for(&mut self, mut condition: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, RecvError> {
        loop {
            // Asked for twice, since a lock that is returned from a loop would be held through it.
            if condition(&self.borrow_and_update()) {
                break;
            }
            self.changed().await?;
        }
        Ok(self.borrow())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.fetch_add(1, Ordering::SeqCst);
        Receiver {
            shared: Arc::clone(&self.shared),
            seen: self.seen,
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if self.shared.receivers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.shared.abandoned.notify_waiters();
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("watch::Receiver")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

/// The channel as openraft asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Watch;

impl openraft_rt::Watch for Watch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(first: T) -> (Sender<T>, Receiver<T>) {
        channel(first)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchSender<Watch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), openraft_rt::watch::SendError<T>> {
        Sender::send(self, value).map_err(|SendError(value)| openraft_rt::watch::SendError(value))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        Sender::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Sender::subscribe(self)
    }
}

impl<T: OptionalSend + OptionalSync> openraft_rt::WatchReceiver<Watch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), openraft_rt::watch::RecvError> {
        Receiver::changed(self)
            .await
            .map_err(|RecvError| openraft_rt::watch::RecvError(()))
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        Receiver::borrow_and_update(self)
    }
}

#[cfg(test)]
mod tests;

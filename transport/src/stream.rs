//! Streams of whole messages, whatever carries them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::TransportError;

/// The default limit of a message: 32 MiB, well above the largest entry and below what hurts to hold twice.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// A two-way stream of messages.
#[derive(Debug)]
pub struct Stream {
    /// Our messages to the peer.
    pub sender: MessageSender,
    /// The peer's messages to us.
    pub receiver: MessageReceiver,
}

/// The sending half that an implementation provides.
#[async_trait]
pub trait StreamSender: fmt::Debug + Send {
    /// Queues messages, in order, waiting while the queue is full. What one call queues may travel in one
    /// packet: callers hand over all that they have. Empties `messages`. Not cancel safe: after a dropped
    /// call drop the stream.
    async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError>;
    /// Says that no message follows; the peer's receiver ends after the last one.
    async fn finish(&mut self) -> Result<(), TransportError>;
}

/// How many bytes have come on a stream, those of a message that has not ended included: who waits for a long one can
/// tell that it comes. Clones share one count.
#[derive(Debug, Clone, Default)]
pub struct Arrived(Arc<AtomicU64>);

impl Arrived {
    /// So many so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// So many more have come: for implementations.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The receiving half that an implementation provides.
#[async_trait]
pub trait StreamReceiver: fmt::Debug + Send {
    /// Counts what comes.
    fn arrived(&self) -> &Arrived;
    /// Appends every message that is there to `messages`, waiting for at least one; `Ok(0)` when the peer
    /// finished. Cancel safe.
    async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError>;
}

/// Sends messages. Dropping it without [`finish`](Self::finish) resets the stream.
#[derive(Debug)]
pub struct MessageSender(Box<dyn StreamSender>);

/// Receives messages. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct MessageReceiver {
    inner: Box<dyn StreamReceiver>,
    /// Messages that arrived together with one that [`receive`](Self::receive) returned, in order.
    waiting: VecDeque<Bytes>,
}

impl MessageSender {
    /// Wraps an implementation.
    pub fn new(inner: Box<dyn StreamSender>) -> Self {
        Self(inner)
    }

    /// Queues one message, waiting while the queue is full.
    pub async fn send(&mut self, message: Bytes) -> Result<(), TransportError> {
        self.0.send_all(&mut vec![message]).await
    }

    /// Queues messages in order, waiting while the queue is full; empties the vector.
    pub async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        self.0.send_all(messages).await
    }

    /// Says that no message follows.
    pub async fn finish(mut self) -> Result<(), TransportError> {
        self.0.finish().await
    }
}

impl MessageReceiver {
    /// Wraps an implementation.
    pub fn new(inner: Box<dyn StreamReceiver>) -> Self {
        Self {
            inner,
            waiting: VecDeque::new(),
        }
    }

    /// Counts what comes, also while nobody receives it as far as the implementation takes it in.
    pub fn arrived(&self) -> &Arrived {
        self.inner.arrived()
    }

    /// All messages that are there, at least one; `Ok(0)` after the peer's last one. Cancel safe.
    pub async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError> {
        if !self.waiting.is_empty() {
            let count = self.waiting.len();
            messages.extend(self.waiting.drain(..));
            return Ok(count);
        }
        self.inner.receive_many(messages).await
    }

    /// The next message; `None` after the peer's last one. Cancel safe.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, TransportError> {
        if self.waiting.is_empty() {
            let mut messages = Vec::with_capacity(1);
            self.inner.receive_many(&mut messages).await?;
            self.waiting.extend(messages);
        }
        Ok(self.waiting.pop_front())
    }
}

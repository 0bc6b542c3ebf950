//! The two halves of a stream in memory.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::shared::Shared;
use super::state::{Offered, PipeId, Received};
use crate::{Arrived, StreamReceiver, StreamSender, TransportError};

/// Writes one pipe.
#[derive(Debug)]
pub(super) struct Sender {
    shared: Arc<Shared>,
    pipe: PipeId,
}

/// Reads one pipe.
#[derive(Debug)]
pub(super) struct Receiver {
    shared: Arc<Shared>,
    pipe: PipeId,
    arrived: Arrived,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, pipe: PipeId) -> Self {
        Self { shared, pipe }
    }
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, pipe: PipeId) -> Self {
        let arrived = Arrived::default();
        Self {
            shared,
            pipe,
            arrived,
        }
    }
}

#[async_trait]
impl StreamSender for Sender {
    async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        let limit = self.shared.settings.message_bytes_max;
        if let Some(message) = messages.iter().find(|message| message.len() > limit) {
            let size = message.len();
            return Err(TransportError::TooLarge { size, limit });
        }
        let Some(writable) = self.shared.step(|state, _| state.writable(self.pipe)) else {
            return Err(TransportError::Closed);
        };
        let mut sent = 0;
        while sent < messages.len() {
            // Made before the look, so that no change in between is missed.
            let changed = writable.notified();
            let full = self.shared.step(|state, moment| {
                while let Some(message) = messages.get(sent) {
                    match state.offer(self.pipe, message, moment)? {
                        Offered::Taken => sent += 1,
                        Offered::Full(next) => return Ok(Some(next)),
                    }
                }
                Ok(None)
            })?;
            if let Some(next) = full {
                self.shared.wait(changed, next).await;
            }
        }
        messages.clear();
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.shared.step(|state, moment| state.finish(self.pipe, moment))
    }
}

#[async_trait]
impl StreamReceiver for Receiver {
    /// Whole messages alone: nothing of one is there before all of it.
    fn arrived(&self) -> &Arrived {
        &self.arrived
    }

    async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError> {
        let Some(readable) = self.shared.step(|state, _| state.readable(self.pipe)) else {
            return Err(TransportError::Closed);
        };
        loop {
            // Made before the look, so that no change in between is missed.
            let changed = readable.notified();
            let received = self
                .shared
                .step(|state, moment| state.receive(self.pipe, messages, moment.now))?;
            match received {
                Received::Messages(count) => {
                    for message in messages.iter_mut().rev().take(count) {
                        self.arrived.add(message.len() as u64);
                        // What arrives over a network is memory of its own. What was sent may be tied to something of
                        // its sender's, which gets that back once it has left.
                        *message = Bytes::copy_from_slice(message);
                    }
                    return Ok(count);
                }
                Received::Finished => return Ok(0),
                Received::Nothing(next) => self.shared.wait(changed, next).await,
            }
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared
            .step(|state, moment| state.drop_sender(self.pipe, moment));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared
            .step(|state, moment| state.drop_receiver(self.pipe, moment));
    }
}

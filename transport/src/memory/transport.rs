//! One node's or client's transport in the network in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::shared::Shared;
use super::state::{Handshake, Opening, PipeId, PlaceId, Probe};
use super::stream::{Receiver, Sender};
use crate::backoff::within;
use crate::{
    Class, Identity, Incoming, MessageReceiver, MessageSender, Peer, Stream, Transport, TransportError,
};

/// A transport in memory. Dropping it without [`shutdown`](Transport::shutdown) is a crash.
#[derive(Debug)]
pub struct MemoryTransport {
    shared: Arc<Shared>,
    identity: Identity,
    address: String,
    place: PlaceId,
    incarnation: u64,
}

impl MemoryTransport {
    pub(super) fn new(
        shared: Arc<Shared>,
        identity: Identity,
        address: &str,
        place: PlaceId,
        incarnation: u64,
    ) -> Self {
        Self {
            shared,
            identity,
            address: address.to_owned(),
            place,
            incarnation,
        }
    }

    /// The address by which peers and scripts name it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until a handshake is through or the attempt's time is over.
    async fn connect(&self, peer: &Peer, handshake: Duration) -> Result<(), TransportError> {
        let deadline = self.shared.now() + self.shared.settings.connect_timeout;
        loop {
            let until = (self.shared.now() + handshake).min(deadline);
            self.shared.sleep(until.saturating_sub(self.shared.now())).await;
            let change = self.shared.step(|state, _| state.change(self.place));
            let changed = change.notified();
            let outcome = self.shared.step(|state, moment| {
                match state.handshake(self.place, self.incarnation, peer, handshake, moment)? {
                    Handshake::Held if moment.now >= deadline => {
                        let failure = TransportError::Unreachable {
                            address: peer.address.to_string(),
                            reason: format!("no answer within {:?}", self.shared.settings.connect_timeout),
                        };
                        Err(state.failed(self.place, peer, failure, moment))
                    }
                    outcome => Ok(outcome),
                }
            })?;
            match outcome {
                Handshake::Connected => return Ok(()),
                Handshake::Held => self.shared.wait(changed, Some(deadline)).await,
            }
        }
    }

    fn stream(&self, outgoing: PipeId, ingoing: PipeId) -> Stream {
        Stream {
            sender: MessageSender::new(Box::new(Sender::new(Arc::clone(&self.shared), outgoing))),
            receiver: MessageReceiver::new(Box::new(Receiver::new(Arc::clone(&self.shared), ingoing))),
        }
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The address, where it is one of the internet's.
    fn local_address(&self) -> Option<SocketAddr> {
        self.address.parse().ok()
    }

    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError> {
        loop {
            let opening = self
                .shared
                .step(|state, moment| state.open(self.place, self.incarnation, peer, class, moment))?;
            match opening {
                Opening::Opened(requests, replies) => return Ok(self.stream(requests, replies)),
                Opening::Dial(handshake) => self.connect(peer, handshake).await?,
                Opening::Full(change) => {
                    // The acceptor's next step may have come in between: never wait for longer than a while.
                    let until = self.shared.now() + self.shared.settings.backoff.first;
                    self.shared.wait(change.notified(), Some(until)).await;
                }
            }
        }
    }

    async fn accept(&self) -> Option<Incoming> {
        let change = self.shared.step(|state, _| state.change(self.place));
        loop {
            // Made before the look, so that no change in between is missed.
            let changed = change.notified();
            let (open, found) = self.shared.step(|state, moment| {
                let open = state.is_open(self.place, self.incarnation);
                (
                    open,
                    if open {
                        state.accept(self.place, moment.now)
                    } else {
                        Err(None)
                    },
                )
            });
            if !open {
                return None;
            }
            match found {
                Ok((from, class, requests, replies)) => {
                    let stream = self.stream(replies, requests);
                    return Some(Incoming { from, class, stream });
                }
                Err(next) => self.shared.wait(changed, next).await,
            }
        }
    }

    async fn ended(&self, peer: &Peer) {
        let every = self.shared.settings.probe_every;
        let place = self.shared.step(|state, _| state.place(peer.address.as_str()));
        let emptied = self.shared.step(|state, _| state.emptied(place));
        // As over QUIC: one answer, and a second one to another probe.
        let mut answers = 0;
        while answers < 2 {
            // Made before the look, so that no end in between is missed.
            let left = emptied.notified();
            let probe = self
                .shared
                .step(|state, moment| state.probe(self.place, self.incarnation, place, moment));
            match probe {
                None => return std::future::pending().await,
                Some(Probe::Closed(took)) => {
                    self.shared.sleep(took).await;
                    // The answer may be lost to what happened meanwhile.
                    let arrived = self.shared.step(|state, _| state.passes(place, self.place));
                    answers = if arrived { answers + 1 } else { 0 };
                }
                Some(Probe::Silent) => {
                    answers = 0;
                    self.shared.sleep(every).await;
                }
                Some(Probe::Occupied) => {
                    answers = 0;
                    left.await;
                    // The next probe is due at some moment.
                    let due = within(every, self.shared.step(|_, moment| (moment.random)()));
                    self.shared.sleep(due).await;
                }
            }
        }
    }

    fn round_trip(&self, node_id: u64) -> Option<Duration> {
        self.shared.step(|state, _| state.round_trip(self.place, node_id))
    }

    async fn shutdown(&self) {
        self.shared
            .step(|state, moment| state.leave(self.place, self.incarnation, moment));
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.shared
            .step(|state, moment| state.abandon(self.place, self.incarnation, moment));
    }
}

//! The transport of a node without peers: nobody to reach, nobody who comes.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use quorate_transport::{Class, Identity, Incoming, Peer, Stream, Transport, TransportError};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Loopback {
    identity: Identity,
    closed: CancellationToken,
}

impl Loopback {
    pub(crate) fn new(identity: Identity) -> Self {
        Self {
            identity,
            closed: CancellationToken::new(),
        }
    }
}

#[async_trait]
impl Transport for Loopback {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn local_address(&self) -> Option<SocketAddr> {
        None
    }

    async fn open(&self, peer: &Peer, _class: Class) -> Result<Stream, TransportError> {
        Err(TransportError::Unreachable {
            address: peer.address.to_string(),
            reason: "this node was started without a network".to_owned(),
        })
    }

    async fn accept(&self) -> Option<Incoming> {
        self.closed.cancelled().await;
        None
    }

    async fn ended(&self, _peer: &Peer) {
        std::future::pending().await
    }

    fn round_trip(&self, _node_id: u64) -> Option<Duration> {
        None
    }

    async fn shutdown(&self) {
        self.closed.cancel();
    }
}

//! A transport that makes messages late, as a distance would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quorate_transport::{
    Class, Identity, Incoming, MessageSender, Peer, Stream, StreamSender, Transport, TransportError,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Batches that are on their way on one stream; a sender that is ahead of the distance by more waits.
const UNDER_WAY: usize = 1024;

/// Another transport, each of whose messages arrives later by the same time. Order is kept.
#[derive(Debug)]
pub struct Delayed {
    inner: Arc<dyn Transport>,
    one_way: Duration,
}

impl Delayed {
    /// Makes a round trip longer by `round_trip` when both its ends are delayed.
    pub fn new(inner: Arc<dyn Transport>, round_trip: Duration) -> Arc<Self> {
        Arc::new(Self {
            inner,
            one_way: round_trip / 2,
        })
    }

    fn delay(&self, stream: Stream) -> Stream {
        let (queue, under_way) = mpsc::channel(UNDER_WAY);
        tokio::spawn(forward(under_way, stream.sender));
        let sender = DelayedSender {
            queue,
            one_way: self.one_way,
        };
        Stream {
            sender: MessageSender::new(Box::new(sender)),
            receiver: stream.receiver,
        }
    }
}

#[async_trait]
impl Transport for Delayed {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.inner.local_address()
    }

    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError> {
        Ok(self.delay(self.inner.open(peer, class).await?))
    }

    async fn accept(&self) -> Option<Incoming> {
        let incoming = self.inner.accept().await?;
        Some(Incoming {
            stream: self.delay(incoming.stream),
            ..incoming
        })
    }

    fn round_trip(&self, node_id: u64) -> Option<Duration> {
        Some(self.inner.round_trip(node_id)? + self.one_way * 2)
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

#[derive(Debug)]
enum Late {
    Messages { due: Instant, messages: Vec<Bytes> },
    Finish { due: Instant },
}

#[derive(Debug)]
struct DelayedSender {
    queue: mpsc::Sender<Late>,
    one_way: Duration,
}

#[async_trait]
impl StreamSender for DelayedSender {
    async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        self.send(Late::Messages {
            due: Instant::now() + self.one_way,
            messages: std::mem::take(messages),
        })
        .await
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.send(Late::Finish {
            due: Instant::now() + self.one_way,
        })
        .await
    }
}

impl DelayedSender {
    async fn send(&self, late: Late) -> Result<(), TransportError> {
        self.queue.send(late).await.map_err(|_| TransportError::Broken {
            reason: "the stream ended".to_owned(),
        })
    }
}

/// Sends what is due. Ends when the stream breaks, which the next send then learns, or when its sender is dropped,
/// which resets the stream.
async fn forward(mut under_way: mpsc::Receiver<Late>, mut sender: MessageSender) {
    while let Some(late) = under_way.recv().await {
        match late {
            Late::Messages { due, mut messages } => {
                tokio::time::sleep_until(due).await;
                if sender.send_all(&mut messages).await.is_err() {
                    return;
                }
            }
            Late::Finish { due } => {
                tokio::time::sleep_until(due).await;
                // A stream that broke before its end has told its reader so.
                let _ = sender.finish().await;
                return;
            }
        }
    }
}

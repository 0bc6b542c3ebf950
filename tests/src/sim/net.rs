//! The network in memory, in a simulation: its clock and chance, and its messages in the trace.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use quorate_kv::env::Notify;
use quorate_transport::memory::Clock;
use quorate_transport::{
    Arrived, Class, Identity, Incoming, MessageReceiver, MessageSender, Peer, Stream, StreamReceiver,
    StreamSender, Transport, TransportError,
};
use xxhash_rust::xxh3::xxh3_64;

use super::rng::Rng;
use super::world::{Effect, Event, HostId, World, lock};

/// The simulation's own time, and a stream of its seed's random numbers.
#[derive(Debug)]
pub struct SimClock {
    world: Arc<World>,
    random: Mutex<Rng>,
}

impl SimClock {
    /// A clock of a simulation.
    pub fn new(world: Arc<World>, random: Rng) -> Self {
        SimClock {
            world,
            random: Mutex::new(random),
        }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.world.now())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.world.sleep(duration))
    }

    fn random(&self) -> u64 {
        lock(&self.random).next_u64()
    }
}

/// A transport of one host, whose messages enter the trace.
pub struct Traced<T> {
    inner: T,
    tap: Tap,
    false_ends: Arc<Notify>,
}

/// Where a host's messages are recorded.
#[derive(Debug, Clone)]
struct Tap {
    world: Arc<World>,
    host: HostId,
}

impl Tap {
    fn record(&self, what: &'static str, to: HostId, message: &[u8]) {
        let event = Event::Message {
            what,
            to,
            len: message.len() as u64,
            data: xxh3_64(message),
        };
        self.world.record(self.host, event);
        if what == "sent" {
            self.world.notice(self.host, Effect::Sent { to });
        }
    }

    fn wrap(&self, peer: HostId, stream: Stream) -> Stream {
        let sender = TracedSender {
            inner: Some(stream.sender),
            tap: self.clone(),
            peer,
        };
        let receiver = TracedReceiver {
            inner: stream.receiver,
            tap: self.clone(),
            peer,
        };
        Stream {
            sender: MessageSender::new(Box::new(sender)),
            receiver: MessageReceiver::new(Box::new(receiver)),
        }
    }
}

impl<T> Traced<Arc<T>> {
    /// Records what `inner` carries as messages of `host`.
    pub fn new(inner: Arc<T>, world: Arc<World>, host: HostId) -> Self {
        Traced {
            inner,
            tap: Tap { world, host },
            false_ends: Arc::default(),
        }
    }

    /// Whoever waits here for the end of a process is told of one when these are notified, though there was none.
    #[must_use]
    pub fn misled_by(self, false_ends: Arc<Notify>) -> Self {
        Traced { false_ends, ..self }
    }
}

impl<T: fmt::Debug> fmt::Debug for Traced<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traced").field(&self.inner).finish()
    }
}

#[async_trait]
impl<T: Transport> Transport for Traced<Arc<T>> {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.inner.local_address()
    }

    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError> {
        let stream = self.inner.open(peer, class).await?;
        let to = HostId(peer.node_id.unwrap_or_default() as u32);
        Ok(self.tap.wrap(to, stream))
    }

    async fn accept(&self) -> Option<Incoming> {
        let incoming = self.inner.accept().await?;
        let from = HostId(incoming.from.node_id().unwrap_or_default() as u32);
        Some(Incoming {
            stream: self.tap.wrap(from, incoming.stream),
            ..incoming
        })
    }

    async fn ended(&self, peer: &Peer) {
        tokio::select! {
            biased;
            () = self.false_ends.notified() => {}
            () = self.inner.ended(peer) => {}
        }
    }

    fn round_trip(&self, node_id: u64) -> Option<Duration> {
        self.inner.round_trip(node_id)
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

#[derive(Debug)]
struct TracedSender {
    /// `None` once finished.
    inner: Option<MessageSender>,
    tap: Tap,
    peer: HostId,
}

#[async_trait]
impl StreamSender for TracedSender {
    async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        for message in messages.iter() {
            self.tap.record("sent", self.peer, message);
        }
        match &mut self.inner {
            Some(inner) => inner.send_all(messages).await,
            None => Err(TransportError::Closed),
        }
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        match self.inner.take() {
            Some(inner) => inner.finish().await,
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct TracedReceiver {
    inner: MessageReceiver,
    tap: Tap,
    peer: HostId,
}

#[async_trait]
impl StreamReceiver for TracedReceiver {
    fn arrived(&self) -> &Arrived {
        self.inner.arrived()
    }

    async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError> {
        let before = messages.len();
        let count = self.inner.receive_many(messages).await?;
        for message in &messages[before..] {
            self.tap.record("received", self.peer, message);
        }
        Ok(count)
    }
}

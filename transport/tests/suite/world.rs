//! What a test needs from an implementation.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quorate_transport::{
    Address, Class, ClusterId, Identity, Incoming, Peer, Stream, Transport, TransportError,
};

/// The largest message in all worlds.
pub const LIMIT: usize = 8 << 20;

/// How many unread bytes at most a stream may take in all worlds, with all that lies under way.
pub const UNREAD_MAX: usize = 4 << 20;

pub const IDLE_TIMEOUT: Duration = Duration::from_millis(600);

/// How often a peer is probed in all worlds.
pub const PROBE_EVERY: Duration = Duration::from_millis(10);

/// The cluster that tests are about.
pub const CLUSTER: &str = "tested";

/// A network with nodes and clients in it.
#[async_trait]
pub trait World: Send {
    /// Starts a node, or starts it again at the address where it was.
    async fn start(&mut self, identity: Identity) -> Arc<dyn Transport>;
    /// Where a node is or will be.
    fn address(&self, id: u64) -> Address;
    /// Ends a node's process without a word. Its host lives on.
    async fn kill(&mut self, id: u64, transport: Arc<dyn Transport>);
    /// Does this to every way between a node and those who opened by its address; `None` undoes it.
    fn impair(&self, id: u64, impairment: Option<Impairment>);
}

/// What can be wrong with the way to a node that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Impairment {
    /// Nothing gets through.
    Cut,
    /// What is sent to the node is lost.
    Deaf,
    /// What the node sends is lost.
    Mute,
    /// Its process does not run: what is sent to it is taken, and not answered.
    Paused,
    /// Of ten datagrams three are lost, each way.
    Lossy,
    /// Handshakes with the node begin, its address validation included, and do not go on: over QUIC alone.
    Stalling,
}

pub fn cluster() -> ClusterId {
    ClusterId::new(CLUSTER).unwrap()
}

pub fn node(id: u64) -> Identity {
    Identity::node(cluster(), id)
}

pub fn peer(world: &impl World, id: u64) -> Peer {
    Peer {
        node_id: Some(id),
        address: world.address(id),
    }
}

/// Two nodes and a stream between them: the opener's end first.
pub struct Pair {
    pub one: Arc<dyn Transport>,
    pub two: Arc<dyn Transport>,
    pub peer: Peer,
    pub opened: Stream,
    pub accepted: Stream,
}

pub async fn pair(world: &mut impl World) -> Pair {
    let one = world.start(node(1)).await;
    let two = world.start(node(2)).await;
    let peer = peer(world, 2);
    let (opened, incoming) = stream(&*one, &*two, &peer, Class::Append).await;
    let accepted = incoming.stream;
    Pair {
        one,
        two,
        peer,
        opened,
        accepted,
    }
}

/// The two ends of a stream, and the nodes, which must live as long as it is used.
pub async fn streams(world: &mut impl World) -> (Stream, Stream, [Arc<dyn Transport>; 2]) {
    let pair = pair(world).await;
    (pair.opened, pair.accepted, [pair.one, pair.two])
}

/// Opens a stream and accepts it; another one, where the connection's idle timeout passed between the two: the worlds' is
/// short, and a busy machine may stand still for as long.
pub async fn stream(
    one: &dyn Transport,
    two: &dyn Transport,
    peer: &Peer,
    class: Class,
) -> (Stream, Incoming) {
    loop {
        let mut opened = open(one, peer, class).await;
        tokio::select! {
            biased;
            incoming = two.accept() => return (opened, incoming.expect("the acceptor was not shut down")),
            // Nobody has said anything to it.
            _ = opened.receiver.receive() => {}
        }
    }
}

/// Opens a stream, as often as the backoff asks for it.
pub async fn open(one: &dyn Transport, peer: &Peer, class: Class) -> Stream {
    loop {
        match one.open(peer, class).await {
            Ok(stream) => return stream,
            Err(TransportError::Unreachable { .. } | TransportError::Broken { .. }) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// Answers each message of each stream with itself, until the transport is shut down.
pub fn echo(transport: Arc<dyn Transport>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(incoming) = transport.accept().await {
            tokio::spawn(async move {
                let mut stream = incoming.stream;
                let mut messages = Vec::new();
                while let Ok(1..) = stream.receiver.receive_many(&mut messages).await {
                    if stream.sender.send_all(&mut messages).await.is_err() {
                        return;
                    }
                }
                // The peer may be gone already.
                let _ = stream.sender.finish().await;
            });
        }
    })
}

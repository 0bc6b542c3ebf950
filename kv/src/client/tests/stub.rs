//! A node as a client sees it, whose answers the test gives, in the order that it likes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quorate_transport::memory::{MemoryNetwork, MemoryTransport, TokioClock};
use quorate_transport::{
    Arrived, Class, ClusterId, Identity, Incoming, MessageReceiver, Peer, Stream, StreamReceiver, Transport,
    TransportError,
};

use crate::Client;
use crate::env::{self, mpsc};
use crate::model::{
    self, Command, Limits, LogIndex, OpResult, Outcome, Revision, SessionId, SessionOpened, Txn, TxnResponse,
};
use crate::protocol::{Call, Reply, Request, Response};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network with a client and some nodes that the test plays.
pub(super) struct Stage {
    network: MemoryNetwork,
    cluster: ClusterId,
}

/// One node that the test plays.
pub(super) struct Stub {
    calls: mpsc::Receiver<Asked>,
    transport: Arc<MemoryTransport>,
}

/// A call that waits for the test's answer. Dropped, it is never answered.
pub(super) struct Asked {
    pub(super) request: Request,
    id: u64,
    replies: mpsc::Sender<Reply>,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self {
            network: MemoryNetwork::new(Arc::new(TokioClock::new(7))),
            cluster: ClusterId::new("stage").expect("a legal name"),
        }
    }

    /// A node at this address.
    pub(super) fn node(&self, id: u64, address: &str) -> Stub {
        let identity = Identity::node(self.cluster.clone(), id);
        let transport = self.network.transport(identity, address);
        let (asked, calls) = mpsc::channel(1024);
        let accepting = Arc::clone(&transport);
        env::spawn("stub", async move {
            while let Some(incoming) = accepting.accept().await {
                env::spawn("stub-stream", serve(incoming, asked.clone()));
            }
        });
        Stub { calls, transport }
    }

    /// A client that knows these addresses.
    pub(super) fn client(&self, addresses: &[&str]) -> Client {
        let identity = Identity::client(self.cluster.clone(), "caller").expect("a legal name");
        self.client_of(identity, addresses)
    }

    /// A client of another cluster.
    pub(super) fn stranger(&self, addresses: &[&str]) -> Client {
        let elsewhere = ClusterId::new("elsewhere").expect("a legal name");
        let identity = Identity::client(elsewhere, "caller").expect("a legal name");
        self.client_of(identity, addresses)
    }

    /// A client on a slow way: it has of a message what the test counts here, and receives it when it is whole.
    pub(super) fn slow_client(&self, addresses: &[&str], arrived: &Arrived) -> Client {
        let identity = Identity::client(self.cluster.clone(), "caller").expect("a legal name");
        let transport = SlowWay {
            inner: self.network.transport(identity, "client"),
            arrived: arrived.clone(),
        };
        Client::connect(addresses, Arc::new(transport), Limits::default()).expect("addresses")
    }

    fn client_of(&self, identity: Identity, addresses: &[&str]) -> Client {
        let transport = self.network.transport(identity, "client");
        Client::connect(addresses, transport, Limits::default()).expect("addresses")
    }

    /// Breaks every stream between the client and this address, for both ends.
    pub(super) fn break_streams(&self, address: &str) {
        self.network.fail_streams("client", address);
    }
}

impl Stub {
    /// The next call that arrives.
    pub(super) async fn asked(&mut self) -> Asked {
        let asked = env::timeout(PATIENCE, self.calls.recv()).await;
        asked.expect("a call in time").expect("the node runs")
    }

    /// A call that has arrived, or none.
    pub(super) fn asked_already(&mut self) -> Option<Asked> {
        self.calls.try_recv().ok()
    }

    /// Ends the node: its address refuses whoever comes.
    pub(super) async fn leave(self) {
        self.transport.shutdown().await;
    }
}

impl Asked {
    /// Says that the node works on the call.
    pub(super) async fn is_worked_on(&self) {
        let reply = Reply {
            id: self.id,
            response: Response::Working,
        };
        self.replies.send(reply).await.expect("the client is there");
    }

    pub(super) async fn answer(self, response: Response) {
        let reply = Reply {
            id: self.id,
            response,
        };
        // A client that is gone needs no answer.
        let _ = self.replies.send(reply).await;
    }
}

/// Whose streams have of a message what the test counts.
#[derive(Debug)]
struct SlowWay {
    inner: Arc<MemoryTransport>,
    arrived: Arrived,
}

#[derive(Debug)]
struct SlowReceiver {
    inner: MessageReceiver,
    arrived: Arrived,
}

#[async_trait]
impl StreamReceiver for SlowReceiver {
    fn arrived(&self) -> &Arrived {
        &self.arrived
    }

    async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError> {
        self.inner.receive_many(messages).await
    }
}

#[async_trait]
impl Transport for SlowWay {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.inner.local_address()
    }

    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError> {
        let Stream { sender, receiver } = self.inner.open(peer, class).await?;
        let receiver = SlowReceiver {
            inner: receiver,
            arrived: self.arrived.clone(),
        };
        Ok(Stream {
            sender,
            receiver: MessageReceiver::new(Box::new(receiver)),
        })
    }

    async fn accept(&self) -> Option<Incoming> {
        self.inner.accept().await
    }

    async fn ended(&self, peer: &Peer) {
        self.inner.ended(peer).await;
    }

    fn round_trip(&self, node_id: u64) -> Option<Duration> {
        self.inner.round_trip(node_id)
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

async fn serve(incoming: Incoming, asked: mpsc::Sender<Asked>) {
    let (mut sender, mut receiver) = (incoming.stream.sender, incoming.stream.receiver);
    let (replies, mut outgoing) = mpsc::channel::<Reply>(1024);
    env::spawn("stub-replies", async move {
        while let Some(reply) = outgoing.recv().await {
            if sender.send(model::encode(&reply).into()).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(message)) = receiver.receive().await {
        let Call { id, request } = model::decode(&message).expect("a client's call");
        let replies = replies.clone();
        if asked.send(Asked { request, id, replies }).await.is_err() {
            return;
        }
    }
}

/// What opening a session is answered.
pub(super) fn opened(session: SessionId) -> Outcome {
    Outcome::SessionOpened(Ok(SessionOpened {
        session,
        ttl_millis: 3_600_000,
    }))
}

/// Lets the client open its session and commit; answers what it asked for.
pub(super) async fn commit(node: &mut Stub, succeeded: bool, results: Vec<OpResult>) -> Txn {
    loop {
        let asked = node.asked().await;
        let (outcome, txn) = match &asked.request {
            Request::Write(Command::OpenSession { .. }) => (opened(SessionId::new(1)), None),
            Request::Write(Command::Txn { txn, .. }) => {
                let response = TxnResponse {
                    revision: Revision::new(100),
                    log_index: LogIndex::new(1),
                    succeeded,
                    failed: Vec::new(),
                    results: results.clone(),
                };
                (Outcome::Txn(Ok(response)), Some(txn.clone()))
            }
            other => panic!("a write was expected, not {other:?}"),
        };
        asked.answer(Response::Written(outcome)).await;
        if let Some(txn) = txn {
            return txn;
        }
    }
}

//! Ways to one node: in this process, or over a pipelined stream.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quorate_transport::{Class, MessageReceiver, MessageSender, Peer, Stream, Transport};

use crate::env::{self, mpsc, oneshot};
use crate::model;
use crate::node::Front;
use crate::protocol::{Call, Reply, Request, Response};

/// Calls that wait to be written; more wait in their callers.
const QUEUE: usize = 1024;

/// A call was not answered.
#[derive(Debug, Clone)]
pub(crate) struct CallError {
    /// Whether the request may have reached the node.
    pub sent: bool,
    pub reason: String,
}

impl CallError {
    fn unsent(reason: impl ToString) -> Self {
        Self {
            sent: false,
            reason: reason.to_string(),
        }
    }

    fn sent(reason: impl ToString) -> Self {
        Self {
            sent: true,
            reason: reason.to_string(),
        }
    }
}

/// One node, as a client reaches it.
#[derive(Debug)]
pub(crate) enum Endpoint {
    Local(Front),
    Remote(Remote),
}

/// A node elsewhere: its stream is opened when first needed, and anew after it broke.
#[derive(Debug)]
pub(crate) struct Remote {
    transport: Arc<dyn Transport>,
    peer: Peer,
    link: Mutex<Option<Link>>,
}

#[derive(Clone, Debug)]
struct Link {
    calls: mpsc::Sender<Bytes>,
    open: Arc<OpenCalls>,
}

/// Calls that wait for their replies. Closed when the stream is: then every one of them fails.
#[derive(Debug, Default)]
struct OpenCalls {
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    calls: BTreeMap<u64, oneshot::Sender<Response>>,
}

impl Endpoint {
    pub(crate) fn remote(transport: Arc<dyn Transport>, peer: Peer) -> Self {
        Endpoint::Remote(Remote {
            transport,
            peer,
            link: Mutex::new(None),
        })
    }

    /// Where it is reached; empty in this process.
    pub(crate) fn address(&self) -> &str {
        match self {
            Endpoint::Local(_) => "",
            Endpoint::Remote(remote) => &remote.peer.address,
        }
    }

    /// Asks, for at most `deadline`. A dropped call may still be carried out.
    ///
    /// A trait object, and not `async`: so a call, and a node behind it, is translated with this crate, once, and not
    /// again by everyone who awaits it; and it does not add to the depth of the types that the caller's own futures
    /// are made of, which the compiler bounds.
    #[inline(never)]
    pub(crate) fn call(
        &self,
        request: Request,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Response, CallError>> {
        match self {
            Endpoint::Local(front) => Box::pin(within(deadline, async { Ok(front.call(request).await) })),
            Endpoint::Remote(remote) => Box::pin(within(deadline, remote.call(request))),
        }
    }
}

async fn within(
    deadline: Duration,
    call: impl Future<Output = Result<Response, CallError>>,
) -> Result<Response, CallError> {
    match env::timeout(deadline, call).await {
        Ok(answer) => answer,
        Err(env::Elapsed) => Err(CallError::sent("no answer in time")),
    }
}

impl Remote {
    async fn call(&self, request: Request) -> Result<Response, CallError> {
        let link = self.link().await?;
        let id = link.open.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        if !link.open.add(id, reply) {
            self.forget(&link);
            return Err(CallError::unsent("the connection broke"));
        }
        // Whatever ends this future, the call's place is given back.
        let _place = Place { open: &link.open, id };
        let message = model::encode(&Call { id, request }).into();
        if link.calls.send(message).await.is_err() {
            self.forget(&link);
            return Err(CallError::unsent("the connection broke"));
        }
        match answer.await {
            Ok(response) => Ok(response),
            Err(_) => {
                self.forget(&link);
                Err(CallError::sent("the connection broke"))
            }
        }
    }

    /// The stream that stands, or a new one. Two callers may both open one; the second then wins for later
    /// calls, and both work.
    async fn link(&self) -> Result<Link, CallError> {
        if let Some(link) = self.lock().clone() {
            return Ok(link);
        }
        let stream = self
            .transport
            .open(&self.peer, Class::Client)
            .await
            .map_err(CallError::unsent)?;
        let Stream { sender, receiver } = stream;
        let (calls, queue) = mpsc::channel(QUEUE);
        let link = Link {
            calls,
            open: Arc::default(),
        };
        env::spawn("client-write", write_calls(sender, queue));
        env::spawn("client-read", read_replies(receiver, Arc::clone(&link.open)));
        Ok(self.lock().get_or_insert(link).clone())
    }

    fn forget(&self, broken: &Link) {
        let mut link = self.lock();
        if link
            .as_ref()
            .is_some_and(|link| Arc::ptr_eq(&link.open, &broken.open))
        {
            *link = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Place<'a> {
    open: &'a OpenCalls,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.open.lock().calls.remove(&self.id);
    }
}

impl OpenCalls {
    fn add(&self, id: u64, reply: oneshot::Sender<Response>) -> bool {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.calls.insert(id, reply);
        }
        !waiting.closed
    }

    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.calls.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_calls(mut sender: MessageSender, mut queue: mpsc::Receiver<Bytes>) {
    let mut batch = Vec::new();
    loop {
        if queue.recv_many(&mut batch, QUEUE).await == 0 {
            let _ = sender.finish().await;
            return;
        }
        // A broken stream is noticed by the reader, which fails every open call.
        if sender.send_all(&mut batch).await.is_err() {
            return;
        }
    }
}

async fn read_replies(mut receiver: MessageReceiver, open: Arc<OpenCalls>) {
    let mut messages = Vec::new();
    while let Ok(count) = receiver.receive_many(&mut messages).await {
        if count == 0 {
            break;
        }
        for message in messages.drain(..) {
            match model::decode::<Reply>(&message) {
                Ok(reply) => {
                    if let Some(waiting) = open.lock().calls.remove(&reply.id) {
                        let _ = waiting.send(reply.response);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a node's reply cannot be read; the stream is closed");
                    open.close();
                    return;
                }
            }
        }
    }
    open.close();
}

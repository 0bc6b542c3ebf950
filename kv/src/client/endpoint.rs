//! Ways to one node: in this process, or over a pipelined stream.
//!
//! Always: a call whose error says `sent: false` has not left this process; requests that wait to be written are bounded
//! in number and in bytes, and who finds no room waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quorate_transport::{
    Arrived, Class, MESSAGE_BYTES_MAX, MessageReceiver, MessageSender, Peer, Stream, Transport,
    TransportError,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::env::{self, Instant, JoinHandle, Notify, Semaphore, mpsc, oneshot};
use crate::model;
use crate::node::Front;
use crate::protocol::{Call, Reply, Request, Response};

/// Calls that wait to be written; more wait in their callers.
const QUEUE: usize = 1024;
/// Their bytes, twice what the largest message has: more wait in their callers.
const QUEUE_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
/// A node that answered nothing for so long, though it owes an answer, may have ended: its process is watched for
/// a while. Not sooner, so that a client costs no probes while it is answered.
const QUIET: Duration = Duration::from_millis(50);
const WATCHED: Duration = Duration::from_secs(1);

/// How the node in the caller's own process is called.
pub(super) const THIS_NODE: &str = "this node";

/// A call was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallError {
    /// Whether the request may have reached the node.
    pub sent: bool,
    pub why: Unanswered,
    /// Names the node.
    pub reason: String,
}

/// Why a call was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The node was not reached.
    Unreachable,
    /// The node refused us, or we refused it.
    NotAdmitted,
    /// The request is larger than a message may be.
    TooLarge,
    /// The connection ended before the answer came.
    Broken,
    /// Nothing came in time.
    Late,
}

/// A message leaves at so many bytes a second at least: the call of a large one has so much more time.
const SENT_A_SECOND_MIN: usize = 1 << 20;
/// So many bytes that come within a silence are a sign of life: a long answer is on its way, and nothing else can come on
/// the stream before it is whole.
const LONG_ANSWER_MIN: u64 = 64 << 10;

/// One node, as a client reaches it.
#[derive(Debug)]
pub(crate) enum Endpoint {
    Local(Arc<Front>),
    Remote(Remote),
}

/// A node elsewhere: its stream is opened when first needed, and anew after it broke.
#[derive(Debug)]
pub(crate) struct Remote {
    transport: Arc<dyn Transport>,
    peer: Peer,
    link: Mutex<Option<Arc<Link>>>,
}

/// A stream that stands. Dropped, it ends: whoever still waits for an answer is told.
#[derive(Debug)]
struct Link {
    calls: mpsc::Sender<Outgoing>,
    /// The room for the bytes of calls that wait to be written.
    room: Arc<Semaphore>,
    open: Arc<OpenCalls>,
    arrived: Arrived,
    tasks: [JoinHandle<()>; 3],
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A message, and its room in the queue until it is written.
type Outgoing = (Bytes, OwnedSemaphorePermit);

/// Calls that wait for their replies. Closed when the stream is: then every one of them fails.
#[derive(Debug, Default)]
struct OpenCalls {
    next: AtomicU64,
    /// How many messages have come.
    heard: AtomicU64,
    /// A call was added.
    added: Notify,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    calls: BTreeMap<u64, OpenCall>,
}

#[derive(Debug)]
struct OpenCall {
    reply: oneshot::Sender<Response>,
    /// Set when the node says that it has not forgotten the call.
    worked_on: Arc<AtomicBool>,
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
            Endpoint::Remote(remote) => remote.peer.address.as_str(),
        }
    }

    /// How it is called in what people read.
    pub(crate) fn name(&self) -> &str {
        match self {
            Endpoint::Local(_) => THIS_NODE,
            Endpoint::Remote(remote) => remote.peer.address.as_str(),
        }
    }

    /// Asks, until `end`, and for no longer than a `silence_max` in which there was no sign of life, and what a large request
    /// takes to be sent. Signs are looked for when it is over, so that a node that falls silent is given up within two of
    /// them. A dropped call may still be carried out.
    ///
    /// A trait object, and not `async`: so a call, and a node behind it, is translated with this crate, once, and not
    /// again by everyone who awaits it; and it does not add to the depth of the types that the caller's own futures
    /// are made of, which the compiler bounds.
    #[inline(never)]
    pub(crate) fn call(
        &self,
        request: Request,
        silence_max: Duration,
        end: Instant,
    ) -> BoxFuture<'_, Result<Response, CallError>> {
        match self {
            Endpoint::Local(front) => Box::pin(self.here(front, request, silence_max, end)),
            Endpoint::Remote(remote) => Box::pin(remote.call(request, silence_max, end)),
        }
    }

    /// A node in this process works on a read for as long as it takes; of a write it knows no more than others do.
    async fn here(
        &self,
        front: &Arc<Front>,
        request: Request,
        silence_max: Duration,
        end: Instant,
    ) -> Result<Response, CallError> {
        let until = match &request {
            Request::Read { .. } | Request::Shrink => end,
            Request::Write(_)
            | Request::WriteAgain(_)
            | Request::Status
            | Request::Admin(_)
            | Request::GiveUp { .. } => end.min(env::now() + silence_max),
        };
        match env::timeout_at(until, front.call(request, until)).await {
            Ok(response) => Ok(response),
            Err(env::Elapsed) => Err(CallError {
                sent: true,
                why: Unanswered::Late,
                reason: format!("{}: no answer in time", self.name()),
            }),
        }
    }
}

impl Remote {
    fn failed(&self, sent: bool, why: Unanswered, reason: &str) -> CallError {
        CallError {
            sent,
            why,
            reason: format!("{}: {reason}", self.peer.address),
        }
    }

    fn broke(&self, sent: bool) -> CallError {
        self.failed(sent, Unanswered::Broken, "the connection broke")
    }

    fn late(&self, sent: bool) -> CallError {
        self.failed(sent, Unanswered::Late, "no answer in time")
    }

    async fn call(
        &self,
        request: Request,
        silence_max: Duration,
        end: Instant,
    ) -> Result<Response, CallError> {
        let until = end.min(env::now() + silence_max);
        let link = match env::timeout_at(until, self.link()).await {
            Ok(link) => link?,
            Err(env::Elapsed) => {
                let reason = "it was not reached in time";
                return Err(self.failed(false, Unanswered::Unreachable, reason));
            }
        };
        let heard = link.open.heard.load(Ordering::Relaxed);
        let id = link.open.next.fetch_add(1, Ordering::Relaxed);
        let (reply, mut answer) = oneshot::channel();
        let worked_on = Arc::new(AtomicBool::new(false));
        let call = OpenCall {
            reply,
            worked_on: Arc::clone(&worked_on),
        };
        if !link.open.add(id, call) {
            self.forget(&link);
            return Err(self.broke(false));
        }
        // Whatever ends this future, the call's place is given back.
        let gives_up = request.may_be_given_up();
        let mut place = Place {
            link: &link,
            id,
            gives_up: false,
        };
        let message: Bytes = model::encode(&Call { id, request }).into();
        if message.len() > MESSAGE_BYTES_MAX {
            let reason = format!(
                "the request has {} bytes, the limit of a message is {MESSAGE_BYTES_MAX}",
                message.len()
            );
            return Err(self.failed(false, Unanswered::TooLarge, &reason));
        }
        let sent_within = Duration::from_secs_f64(message.len() as f64 / SENT_A_SECOND_MIN as f64);
        let mut until = end.min(until + sent_within);
        let mut arrived = link.arrived.bytes();
        let mut lives = || {
            let before = std::mem::replace(&mut arrived, link.arrived.bytes());
            let comes = arrived - before >= LONG_ANSWER_MIN;
            let now = env::now();
            let lives = worked_on.swap(false, Ordering::Relaxed) || comes;
            (lives && now < end).then(|| end.min(now + silence_max))
        };
        let mut sending = std::pin::pin!(link.send(message));
        loop {
            match env::timeout_at(until, &mut sending).await {
                Ok(true) => break,
                Ok(false) => {
                    self.forget(&link);
                    return Err(self.broke(false));
                }
                Err(env::Elapsed) => until = lives().ok_or_else(|| self.late(false))?,
            }
        }
        place.gives_up = gives_up;
        loop {
            match env::timeout_at(until, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(_)) => {
                    self.forget(&link);
                    return Err(self.broke(true));
                }
                Err(env::Elapsed) => {
                    let Some(next) = lives() else {
                        // A stream on which nothing at all came meanwhile may be stuck: the next call has a new one.
                        if link.open.heard.load(Ordering::Relaxed) == heard {
                            self.forget(&link);
                        }
                        return Err(self.late(true));
                    };
                    until = next;
                }
            }
        }
    }

    /// The stream that stands, or a new one. Two callers may both open one; the first then serves both.
    async fn link(&self) -> Result<Arc<Link>, CallError> {
        if let Some(link) = self.lock().clone() {
            return Ok(link);
        }
        let opened = self.transport.open(&self.peer, Class::Client).await;
        let stream = opened.map_err(|error| {
            let why = match &error {
                TransportError::Refused { .. } => Unanswered::NotAdmitted,
                TransportError::Unreachable { .. } => Unanswered::Unreachable,
                _ => Unanswered::Broken,
            };
            match &error {
                // They name the address themselves.
                TransportError::Refused { .. } | TransportError::Unreachable { .. } => CallError {
                    sent: false,
                    why,
                    reason: error.to_string(),
                },
                _ => self.failed(false, why, &error.to_string()),
            }
        })?;
        let link = Arc::new(Link::over(stream, Arc::clone(&self.transport), self.peer.clone()));
        Ok(Arc::clone(self.lock().get_or_insert(link)))
    }

    fn forget(&self, broken: &Arc<Link>) {
        let mut link = self.lock();
        if link.as_ref().is_some_and(|link| Arc::ptr_eq(link, broken)) {
            *link = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn over(stream: Stream, transport: Arc<dyn Transport>, peer: Peer) -> Self {
        let Stream { sender, receiver } = stream;
        let (calls, queue) = mpsc::channel(QUEUE);
        let open = Arc::new(OpenCalls::default());
        let arrived = receiver.arrived().clone();
        let tasks = [
            env::spawn("client-write", write_calls(sender, queue)),
            env::spawn("client-read", read_replies(receiver, Closing(Arc::clone(&open)))),
            env::spawn("client-watch", watch_process(transport, peer, Arc::clone(&open))),
        ];
        Self {
            calls,
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            open,
            arrived,
            tasks,
        }
    }

    /// Queues a message, waiting for room; answers whether the stream still stood. Cancel safe: dropped, nothing is sent.
    async fn send(&self, message: Bytes) -> bool {
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(bytes).await else {
            return false;
        };
        self.calls.send((message, room)).await.is_ok()
    }

    /// Tells the node that nobody waits for this call any more, if there is room to say so: it ends by itself too.
    fn give_up(&self, call: u64) {
        let id = self.open.next.fetch_add(1, Ordering::Relaxed);
        let request = Request::GiveUp { call };
        let message: Bytes = model::encode(&Call { id, request }).into();
        let bytes = u32::try_from(message.len()).unwrap_or(u32::MAX);
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(bytes) {
            let _ = self.calls.try_send((message, room));
        }
    }
}

/// A call that waits for its reply, until it is dropped.
struct Place<'a> {
    link: &'a Link,
    id: u64,
    /// The node is told when nobody waits for the answer any more: it may be long at work.
    gives_up: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let unanswered = self.link.open.lock().calls.remove(&self.id);
        if unanswered.is_some() && self.gives_up {
            self.link.give_up(self.id);
        }
    }
}

impl OpenCalls {
    fn add(&self, id: u64, call: OpenCall) -> bool {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.calls.insert(id, call);
            self.added.notify_one();
        }
        !waiting.closed
    }

    fn is_waiting(&self) -> bool {
        !self.lock().calls.is_empty()
    }

    /// Fails every open call, and those to come.
    fn close(&self) {
        let calls = {
            let mut waiting = self.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.calls)
        };
        drop(calls);
    }

    fn take(&self, reply: Reply) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.lock();
        if reply.response.is_sign() {
            let last = match reply.response {
                Response::Waiting => u64::MAX,
                _ => reply.id,
            };
            for (_, call) in waiting.calls.range(reply.id..=last) {
                call.worked_on.store(true, Ordering::Relaxed);
            }
            return;
        }
        let call = waiting.calls.remove(&reply.id);
        drop(waiting);
        if let Some(call) = call {
            // A caller that is gone needs no answer.
            let _ = call.reply.send(reply.response);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails every open call when it is dropped, however the reading of the stream ended.
struct Closing(Arc<OpenCalls>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Fails the open calls when the node's process has ended: QUIC itself notices that only by its silence, after seconds.
async fn watch_process(transport: Arc<dyn Transport>, peer: Peer, open: Arc<OpenCalls>) {
    loop {
        open.added.notified().await;
        loop {
            let heard = open.heard.load(Ordering::Relaxed);
            env::sleep(QUIET).await;
            if !open.is_waiting() {
                break;
            }
            if heard != open.heard.load(Ordering::Relaxed) {
                continue;
            }
            if env::timeout(WATCHED, transport.ended(&peer)).await.is_ok() {
                return open.close();
            }
        }
    }
}

async fn write_calls(mut sender: MessageSender, mut queue: mpsc::Receiver<Outgoing>) {
    let (mut batch, mut messages) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut batch, QUEUE).await > 0 {
        let (outgoing, room): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        messages.extend(outgoing);
        // A broken stream is noticed by the reader, which fails every open call.
        if sender.send_all(&mut messages).await.is_err() {
            return;
        }
        drop(room);
    }
}

async fn read_replies(mut receiver: MessageReceiver, open: Closing) {
    let mut messages = Vec::new();
    while let Ok(count) = receiver.receive_many(&mut messages).await {
        if count == 0 {
            return;
        }
        for message in messages.drain(..) {
            match model::decode::<Reply>(&message) {
                Ok(reply) => open.0.take(reply),
                Err(error) => {
                    tracing::warn!(%error, "a node's reply cannot be read; the stream is closed");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_room_gives_a_sign_for_a_call_and_all_that_were_sent_after_it() {
        let open = OpenCalls::default();
        let signs: Vec<Arc<AtomicBool>> = (0..4).map(|_| Arc::default()).collect();
        let mut answers = Vec::new();
        for (id, worked_on) in (0..).zip(&signs) {
            let (reply, answer) = oneshot::channel();
            let worked_on = Arc::clone(worked_on);
            assert!(open.add(id, OpenCall { reply, worked_on }));
            answers.push(answer);
        }
        let mut heard = |id, response| {
            open.take(Reply { id, response });
            assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()));
            let signs = signs.iter().map(|sign| sign.swap(false, Ordering::Relaxed));
            signs.collect::<Vec<_>>()
        };
        assert_eq!(heard(1, Response::Working), [false, true, false, false]);
        assert_eq!(heard(2, Response::Waiting), [false, false, true, true]);
    }
}

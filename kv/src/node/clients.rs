//! Serves the streams of clients: many calls on the way at once, replies as they come.
//!
//! Always: what one stream holds of the node's memory is bounded (`room`), and of one that has its share nothing more is
//! read but what arrived together, and once more; nothing waits for room that only what is gathered here could give back; a
//! client that does not take its answers in is cut off; whatever it had asked for ends with its stream, but for what was
//! proposed, and changes of the group.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future;
use quorate_transport::{Identity, MessageReceiver, MessageSender, Stream};
use tokio::sync::OwnedSemaphorePermit;

use super::cost;
use super::front::{Front, ReadCall};
use super::given_up::OpenReads;
use super::reply::{Outgoing, ReplyTo, SIGN_INTERVAL, give_sign};
use super::room::{Guest, Held};
use super::space::Attempt;
use crate::env::{self, Instant, Semaphore, mpsc};
use crate::model::{self, Command, DecodeError};
use crate::protocol::{Call, Failure, Reply, Request, Response};
use crate::tasks::Tasks;

/// Calls that one stream may have open; the node reads no further call until one is answered.
const OPEN_CALLS_MAX: usize = 1024;
/// Replies on their way out: an answer to each of them, and as many signs of life, with what several threads may give at once.
const REPLIES: usize = 3 * OPEN_CALLS_MAX;
/// What was counted for a message before it was read, and is not needed, is given back above so many bytes: it costs more than
/// reading a short one.
const WORTH_GIVING_BACK: usize = 16 * 1024;
/// How long a client may take to take in what it is sent: so long, and a second for each of so many bytes more.
const TAKES_IN_WITHIN: Duration = Duration::from_secs(10);
const TAKES_IN_BYTES_A_SECOND: usize = 256 * 1024;

/// Serves one stream until it ends.
pub(super) async fn serve(front: Arc<Front>, client: Identity, stream: Stream) {
    let (replies, outgoing) = mpsc::channel::<Outgoing>(REPLIES);
    let open = Arc::new(Semaphore::new(OPEN_CALLS_MAX));
    let Some(guest) = front.guest(&client) else {
        metrics::counter!("quorate_client_streams_refused_total").increment(1);
        return;
    };
    let serving = Serving {
        guest: Arc::new(guest),
        tasks: front.tasks().part(),
        replies,
        open: Arc::clone(&open),
        reads: OpenReads::default(),
        gathered: Vec::new(),
        ahead: Vec::new(),
        signed_at: env::now(),
        receiver: stream.receiver,
        front,
    };
    let tasks = serving.tasks.clone();
    let writing = write_replies(stream.sender, outgoing, open);
    // Whichever ends first: a client that has gone needs no answers, and one that takes none need not ask.
    tokio::select! {
        // In this order, so that a simulation does the same again.
        biased;
        () = serving.read_calls() => {}
        () = writing => {}
    }
    tasks.end().await;
}

/// The reading half of a stream.
struct Serving {
    front: Arc<Front>,
    guest: Arc<Guest>,
    /// What is done for this stream, and ends with it.
    tasks: Tasks,
    replies: mpsc::Sender<Outgoing>,
    /// Places for open calls. A place is given back when its reply leaves.
    open: Arc<Semaphore>,
    reads: OpenReads,
    receiver: MessageReceiver,
    /// Reads that arrived together, and share one confirmation. They have room, so that nothing here waits while they are here.
    gathered: Vec<ReadCall>,
    /// Messages that were read while the ones before them waited for room.
    ahead: Vec<Bytes>,
    /// Since when those who sent what is not read yet have heard nothing.
    signed_at: Instant,
}

/// The stream has ended.
struct Gone;

/// A call that was read.
#[allow(clippy::large_enum_variant, reason = "it is looked into at once")]
enum Taken {
    /// With the room that it takes.
    Call(Call, Held),
    /// It is answered already, or needs no answer.
    Done,
}

impl Serving {
    async fn read_calls(mut self) {
        loop {
            let mut messages = std::mem::take(&mut self.ahead);
            if messages.is_empty() {
                match self.receiver.receive_many(&mut messages).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => self.signed_at = env::now(),
                }
            }
            for message in messages {
                match self.take(message).await {
                    Ok(Taken::Call(call, held)) => self.begin(call, held),
                    Ok(Taken::Done) => {}
                    Err(Gone) => return,
                }
            }
            self.read_gathered();
        }
    }

    /// Begins the reads that were gathered.
    fn read_gathered(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let reads = std::mem::take(&mut self.gathered);
        let (front, guest) = (Arc::clone(&self.front), Arc::clone(&self.guest));
        self.tasks.spawn("client-reads", async move {
            front.read_linearizable(&guest, reads).await;
        });
    }

    /// Reads one call, once there is room for it.
    async fn take(&mut self, message: Bytes) -> Result<Taken, Gone> {
        let message = model::own(message);
        let limits = self.front.settings.limits;
        let counted = cost::of_message(message.len(), &limits);
        let (place, mut held) = self.place_and_room(&message, counted).await?;
        let call: Call = match model::decode_limited(&message, limits.txn_ops_max) {
            Ok(call) => call,
            Err(error) => {
                if let Some(id) = number_of_too_long(&message, &error) {
                    OwnedSemaphorePermit::forget(place);
                    let reply = self.reply_to(id, held);
                    reply.send(Response::Failed(Failure::Invalid(error.to_string())));
                    return Ok(Taken::Done);
                }
                metrics::counter!("quorate_client_messages_malformed_total").increment(1);
                tracing::debug!(%error, "a client's message cannot be read; its stream is closed");
                return Err(Gone);
            }
        };
        if let Request::GiveUp { call } = call.request {
            self.reads.give_up(call);
            return Ok(Taken::Done);
        }
        OwnedSemaphorePermit::forget(place);
        let returned_max = self.front.settings.response_bytes_max;
        let takes = cost::of_call(message.len(), &call.request, &limits, returned_max);
        if takes > counted {
            // Its answer may be large. What it has is given back first: two that wait for each other's would wait for
            // ever.
            drop(held);
            let (guest, id) = (Arc::clone(&self.guest), call.id);
            let room = async move { guest.calls.take(takes).await };
            held = self.while_client_stays(Some(id), room).await?;
        } else if counted - takes > WORTH_GIVING_BACK {
            held.shrink(takes);
        }
        Ok(Taken::Call(call, held))
    }

    /// A place for one more open call, and this room.
    async fn place_and_room(
        &mut self,
        message: &[u8],
        bytes: usize,
    ) -> Result<(OwnedSemaphorePermit, Held), Gone> {
        if let Ok(place) = Arc::clone(&self.open).try_acquire_owned()
            && let Some(held) = self.guest.calls.take_now(bytes)
        {
            return Ok((place, held));
        }
        let (open, guest) = (Arc::clone(&self.open), Arc::clone(&self.guest));
        let id = model::decode_front(message).ok().map(|(id, _)| id);
        let room = async move { (open.acquire_owned().await, guest.calls.take(bytes).await) };
        match self.while_client_stays(id, room).await? {
            (Ok(place), held) => Ok((place, held)),
            (Err(_closed), _) => Err(Gone),
        }
    }

    /// Waits for something, and looks meanwhile whether the client is still there. What it says meanwhile is kept, once:
    /// it has sent more than it may. It hears that the call of this number waits, and what it sent after it.
    async fn while_client_stays<T>(
        &mut self,
        id: Option<u64>,
        wait: impl Future<Output = T>,
    ) -> Result<T, Gone> {
        let mut wait = std::pin::pin!(wait);
        if let Some(done) = future::poll_immediate(&mut wait).await {
            return Ok(done);
        }
        env::mark("call.has_no_room");
        // They may hold what is waited for.
        self.read_gathered();
        loop {
            tokio::select! {
                biased;
                done = &mut wait => {
                    // It may wait for its state next, about which it hears nothing.
                    if let Some(id) = id {
                        give_sign(&self.replies, id, Response::Working);
                    }
                    return Ok(done);
                }
                received = self.receiver.receive_many(&mut self.ahead), if self.ahead.is_empty() => {
                    if !matches!(received, Ok(1..)) {
                        return Err(Gone);
                    }
                }
                // Counted from call to call: each may wait for a moment alone, and what is behind many of them for long.
                () = env::sleep_until(self.signed_at + SIGN_INTERVAL) => {
                    self.signed_at = env::now();
                    // From a node that stops they are to go elsewhere.
                    if let Some(id) = id && self.front.serves() {
                        give_sign(&self.replies, id, Response::Waiting);
                    }
                }
            }
        }
    }

    fn reply_to(&self, id: u64, held: Held) -> ReplyTo {
        let mut reply = ReplyTo::stream(id, self.replies.clone(), None);
        reply.hold(held);
        reply
    }

    fn write(&self, command: Command, attempt: Attempt, reply: ReplyTo) {
        let front = Arc::clone(&self.front);
        if let Some((checked, reply)) = front.write_now(command, attempt, reply) {
            self.tasks.spawn("client-write", async move {
                front.write_in_time(checked, attempt, reply).await;
            });
        }
    }

    /// Begins to carry a call out. Waits for nothing.
    fn begin(&mut self, call: Call, held: Held) {
        let Call { id, request } = call;
        let front = Arc::clone(&self.front);
        let may_be_given_up = request.may_be_given_up();
        match request {
            Request::Write(command) => self.write(command, Attempt::First, self.reply_to(id, held)),
            Request::WriteAgain(command) => self.write(command, Attempt::Again, self.reply_to(id, held)),
            Request::Read {
                reads,
                consistency,
                wait,
                time,
            } if !may_be_given_up => {
                let reply = self.reply_to(id, held);
                self.gathered
                    .push(front.read_call(reads, consistency, wait, time, reply));
            }
            Request::Read {
                reads,
                consistency,
                wait,
                time,
            } => {
                let open = self.reads.open(id);
                let given_up = open.token();
                let mut reply = ReplyTo::stream(id, self.replies.clone(), Some(open));
                reply.hold(held);
                let read = front.read_call(reads, consistency, wait, time, reply);
                let Some(read) = front.read_now(&self.guest, read) else {
                    return;
                };
                let guest = Arc::clone(&self.guest);
                self.tasks.spawn("client-read", async move {
                    given_up.run_until_cancelled(front.read(&guest, read)).await;
                });
            }
            Request::Status => {
                let reply = self.reply_to(id, held);
                reply.send(Response::Status(Box::new(front.status())));
            }
            Request::Shrink => front.begin_shrinking(self.reply_to(id, held)),
            Request::Admin(admin) => front.begin_change(admin, self.reply_to(id, held)),
            Request::GiveUp { .. } => {}
        }
    }
}

/// The number of a call with too many steps, which is answered: it may well be meant.
fn number_of_too_long(message: &[u8], error: &DecodeError) -> Option<u64> {
    if !matches!(error, DecodeError::TooManySteps { .. }) {
        return None;
    }
    model::decode_front(message).ok().map(|(id, _)| id)
}

/// Writes replies until the stream breaks, or its client takes nothing in.
async fn write_replies(
    mut sender: MessageSender,
    mut outgoing: mpsc::Receiver<Outgoing>,
    open: Arc<Semaphore>,
) {
    let (mut batch, mut messages, mut held) = (Vec::new(), Vec::new(), Vec::new());
    while outgoing.recv_many(&mut batch, OPEN_CALLS_MAX).await > 0 {
        let (mut answered, mut bytes) = (0, 0);
        for Outgoing { reply, held: its } in batch.drain(..) {
            answered += usize::from(!reply.response.is_sign());
            // Behind the call's own.
            let about = its.iter().skip(1).map(Held::bytes).sum();
            let message = encode(&reply, about);
            // One after the other: an answer is held twice for no longer than it takes to encode it.
            drop(reply);
            bytes += message.len();
            if message.len() <= SHORT {
                messages.push(message.into());
                held.extend(its);
            } else {
                messages.push(Bytes::from_owner(Roomy { message, _held: its }));
            }
        }
        let within = TAKES_IN_WITHIN + Duration::from_secs((bytes / TAKES_IN_BYTES_A_SECOND) as u64);
        match env::timeout(within, sender.send_all(&mut messages)).await {
            Ok(Ok(())) => {
                held.clear();
                open.add_permits(answered);
                let free = open.available_permits();
                debug_assert!(
                    free <= OPEN_CALLS_MAX,
                    "{free} of {OPEN_CALLS_MAX} places are free"
                );
            }
            // The client is gone. What it had proposed goes its way; the answers have nowhere to go.
            Ok(Err(_)) => return,
            Err(env::Elapsed) => {
                metrics::counter!("quorate_client_streams_cut_total").increment(1);
                tracing::info!(
                    bytes,
                    ?within,
                    "a client did not take its answers in; its stream is cut"
                );
                return;
            }
        }
    }
}

/// A reply of more bytes gives its room back once the transport holds no part of it any more, as it does until its client
/// has acknowledged all: that may be long after it was taken to be sent.
const SHORT: usize = 64 * 1024;

/// A reply that has its room for as long as it is in memory.
struct Roomy {
    message: Vec<u8>,
    _held: Vec<Held>,
}

impl AsRef<[u8]> for Roomy {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

/// `about`: so many bytes it has, near enough. Else a large one would be copied again and again while it grows, and hold
/// twice its room at the end.
fn encode(reply: &Reply, about: usize) -> Vec<u8> {
    /// What a reply may have, below the transport's limit.
    const BYTES_MAX: usize = 24 * 1024 * 1024;
    let mut bytes = Vec::with_capacity(about.min(BYTES_MAX));
    model::encode_onto(reply, &mut bytes);
    if bytes.len() <= BYTES_MAX {
        return bytes;
    }
    let (size, limit) = (bytes.len() as u64, BYTES_MAX as u64);
    let failure = match &reply.response {
        // What was committed stays so, also where its answer cannot be told.
        Response::Written(_) => Failure::AnswerTooLarge { size, limit },
        _ => Failure::Refused(format!("the answer has {size} bytes, the limit is {limit}")),
    };
    model::encode(&Reply {
        id: reply.id,
        response: Response::Failed(failure),
    })
}

#[cfg(test)]
mod tests {
    use quorate_transport::memory::{MemoryNetwork, TokioClock};
    use quorate_transport::{Class, ClusterId, Peer, Transport};

    use super::*;

    /// The story: of a thousand reads that waited together on one stream the same half heard nothing, each time.
    #[tokio::test]
    async fn all_calls_that_a_stream_may_have_open_hear_a_sign_at_once_and_their_answers_find_room() {
        let (replies, mut outgoing) = mpsc::channel(REPLIES);
        let calls: Vec<ReplyTo> = (0..OPEN_CALLS_MAX as u64)
            .map(|id| ReplyTo::stream(id, replies.clone(), None))
            .collect();
        calls.iter().for_each(ReplyTo::is_worked_on);
        calls.into_iter().for_each(|call| call.send(Response::Done));
        let (mut signs, mut answers) = (0, 0);
        while let Ok(Outgoing { reply, .. }) = outgoing.try_recv() {
            match reply.response.is_sign() {
                true => signs += 1,
                false => answers += 1,
            }
        }
        assert_eq!((signs, answers), (OPEN_CALLS_MAX, OPEN_CALLS_MAX));
    }

    /// A place that each sign of life gave back as well would soon let a stream have any number of calls open.
    #[tokio::test]
    async fn a_place_for_a_call_is_given_back_by_its_answer_and_not_by_signs_of_life() -> anyhow::Result<()> {
        const CALLS: usize = 10;
        let network = MemoryNetwork::new(Arc::new(TokioClock::new(7)));
        let cluster = ClusterId::new("test")?;
        let client = network.transport(Identity::client(cluster.clone(), "caller")?, "caller");
        let node = network.transport(Identity::node(cluster, 1), "node:1");
        let peer = Peer {
            node_id: Some(1),
            address: "node:1".parse()?,
        };
        let mut at_client = client.open(&peer, Class::Client).await?;
        let at_node = node.accept().await.expect("a stream").stream;
        let open = Arc::new(Semaphore::new(OPEN_CALLS_MAX));
        let (replies, outgoing) = mpsc::channel(REPLIES);
        let writing = env::spawn(
            "writing",
            write_replies(at_node.sender, outgoing, Arc::clone(&open)),
        );
        let mut calls = Vec::new();
        for id in 0..CALLS {
            open.acquire().await?.forget();
            calls.push(ReplyTo::stream(id as u64, replies.clone(), None));
        }

        let mut answered = 0;
        while let Some(call) = calls.pop() {
            // All are long at work.
            call.is_worked_on();
            calls.iter().for_each(ReplyTo::is_worked_on);
            let signs = calls.len() + 1;
            call.send(Response::Done);
            answered += 1;
            for nth in 0..=signs {
                let message = at_client.receiver.receive().await?.expect("a reply");
                let reply: Reply = model::decode(&message)?;
                let is_sign = reply.response.is_sign();
                assert_eq!(is_sign, nth < signs, "{:?}", reply.response);
            }
            // They are given back once the answer has left, which it has nearly.
            let free = OPEN_CALLS_MAX - CALLS + answered;
            while open.available_permits() < free {
                env::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(open.available_permits(), free, "{answered} were answered");
        }
        drop(replies);
        writing.await.expect("no panic");
        assert_eq!(open.available_permits(), OPEN_CALLS_MAX);
        Ok(())
    }
}

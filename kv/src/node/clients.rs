//! Serves the streams of clients: many calls on the way at once, replies as they come.

use std::sync::Arc;

use bytes::Bytes;
use quorate_transport::{MessageReceiver, MessageSender, Stream};
use tokio::sync::OwnedSemaphorePermit;

use super::front::Front;
use super::readers::ReadJob;
use super::reply::ReplyTo;
use crate::env::{self, Semaphore, mpsc};
use crate::model::{self, Consistency, DecodeError, ReadOp};
use crate::protocol::{Call, Failure, Reply, Request, Response};

/// Calls that one stream may have open; the node reads no further call until one is answered.
pub(crate) const OPEN_CALLS_MAX: usize = 1024;

/// Serves one stream until it ends.
pub(crate) async fn serve(front: Front, stream: Stream) {
    let (replies, outgoing) = mpsc::channel::<Reply>(OPEN_CALLS_MAX);
    let open = Arc::new(Semaphore::new(OPEN_CALLS_MAX));
    let writing = write_replies(stream.sender, outgoing, Arc::clone(&open));
    let reading = read_calls(front, stream.receiver, replies, open);
    // The writer ends when the reader and all open calls have dropped their ends of the channel.
    tokio::join!(reading, writing);
}

async fn read_calls(
    front: Front,
    mut receiver: MessageReceiver,
    replies: mpsc::Sender<Reply>,
    open: Arc<Semaphore>,
) {
    let mut messages = Vec::new();
    while let Ok(count) = receiver.receive_many(&mut messages).await {
        if count == 0 {
            return;
        }
        let mut reads = Vec::new();
        for message in messages.drain(..) {
            // A call's place is given back when its reply leaves.
            let Ok(place) = Arc::clone(&open).acquire_owned().await else {
                return;
            };
            OwnedSemaphorePermit::forget(place);
            let call: Call = match model::decode_limited(&message, front.settings.limits.txn_ops_max) {
                Ok(call) => call,
                Err(error) => {
                    if let Some(id) = number_of_too_long(&message, &error) {
                        let reply = ReplyTo::stream(id, replies.clone());
                        reply.send(Response::Failed(Failure::Invalid(error.to_string())));
                        continue;
                    }
                    tracing::warn!(%error, "a client's message cannot be read; its stream is closed");
                    return;
                }
            };
            let reply = ReplyTo::stream(call.id, replies.clone());
            match call.request {
                Request::Write(command) => front.write(command, reply).await,
                Request::Read {
                    reads: ops,
                    consistency: Consistency::Linearizable,
                    wait,
                    time: _,
                } => {
                    reads.push((ops, wait, reply));
                }
                request => {
                    let front = front.clone();
                    env::spawn(
                        "client-call",
                        async move { reply.send(front.call(request).await) },
                    );
                }
            }
        }
        if !reads.is_empty() {
            env::spawn("client-reads", linearizable(front.clone(), reads));
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

/// Reads that arrived together share one confirmation.
async fn linearizable(front: Front, reads: Vec<(Vec<ReadOp>, std::time::Duration, ReplyTo)>) {
    let wait = reads.iter().map(|(_, wait, _)| *wait).max().unwrap_or_default();
    match front.prepare_read(&[], Consistency::Linearizable, wait).await {
        Ok(at) => {
            for (reads, _, reply) in reads {
                match model::check_reads(&reads, &front.settings.limits) {
                    Ok(()) => front.read(ReadJob { reads, at, reply }).await,
                    Err(error) => reply.send(Response::Failed(error.into())),
                }
            }
        }
        Err(failure) => {
            for (_, _, reply) in reads {
                reply.send(Response::Failed(failure.clone()));
            }
        }
    }
}

async fn write_replies(mut sender: MessageSender, mut outgoing: mpsc::Receiver<Reply>, open: Arc<Semaphore>) {
    let (mut batch, mut messages) = (Vec::new(), Vec::new());
    loop {
        let count = outgoing.recv_many(&mut batch, OPEN_CALLS_MAX).await;
        if count == 0 {
            let _ = sender.finish().await;
            return;
        }
        messages.extend(batch.drain(..).map(|reply| encode(&reply)));
        open.add_permits(count);
        if sender.send_all(&mut messages).await.is_err() {
            // The client is gone. Its open calls go their way; their replies have nowhere to go.
            return;
        }
    }
}

fn encode(reply: &Reply) -> Bytes {
    /// What a reply may have, below the transport's limit.
    const BYTES_MAX: usize = 24 * 1024 * 1024;
    let bytes = model::encode(reply);
    if bytes.len() <= BYTES_MAX {
        return bytes.into();
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
    .into()
}

//! The two halves of a stream over QUIC.

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, timeout_at};

use super::budget::{Reservation, SMALL, Share};
use super::errors;
use super::errors::Way;
use super::meters::ClassMeters;
use super::shared::Shared;
use crate::frame::{self, Decoder};
use crate::{
    Arrived, Class, MessageReceiver, MessageSender, Stream, StreamReceiver, StreamSender, TransportError,
};

/// How many pieces are taken from QUIC at a time. One is a packet's share: 64 are what one system call
/// brings.
const PIECES: usize = 64;
/// What is taken of a client's stream at once, and what one system call brings more.
const CLIENT_AT_ONCE_MAX: usize = 64 << 10;

/// Begins a stream that we opened: the header goes out at once, so that the peer sees it.
pub(super) async fn open(
    shared: &Shared,
    way: &Arc<Way>,
    class: Class,
    send: SendStream,
    receive: RecvStream,
) -> Result<Stream, TransportError> {
    let meters = shared.meters.class(class);
    meters.opened.increment(1);
    let mut sender = Sender::new(send, class, way, shared);
    let header = Bytes::copy_from_slice(&frame::header(class));
    sender.write(&mut [header]).await?;
    Ok(pair(sender, receive, None, class, way, shared))
}

/// Takes a stream that a peer opened, whose header was read. A client's messages take room of its share.
pub(super) fn accepted(
    shared: &Shared,
    way: &Arc<Way>,
    share: Option<&Share>,
    class: Class,
    send: SendStream,
    receive: RecvStream,
) -> Stream {
    shared.meters.class(class).accepted.increment(1);
    let sender = Sender::new(send, class, way, shared);
    pair(sender, receive, share.cloned(), class, way, shared)
}

fn pair(
    sender: Sender,
    receive: RecvStream,
    share: Option<Share>,
    class: Class,
    way: &Arc<Way>,
    shared: &Shared,
) -> Stream {
    let receiver = Receiver {
        stream: receive,
        decoder: Decoder::new(shared.settings.message_bytes_max),
        pieces: Box::new(std::array::from_fn(|_| Bytes::new())),
        arrived: Arrived::default(),
        failure: None,
        at_once_max: match share {
            // What came together is in memory before anybody counts it.
            Some(_) => CLIENT_AT_ONCE_MAX,
            None => shared.settings.stream_window as usize,
        },
        share,
        begun: None,
        meters: shared.meters.class(class),
        way: Arc::clone(way),
    };
    Stream {
        sender: MessageSender::new(Box::new(sender)),
        receiver: MessageReceiver::new(Box::new(receiver)),
    }
}

#[derive(Debug)]
struct Sender {
    stream: SendStream,
    limit: usize,
    /// Kept for its capacity; empty between calls.
    chunks: Vec<Bytes>,
    finished: bool,
    meters: ClassMeters,
    /// For errors alone.
    way: Arc<Way>,
}

/// A message whose end has not arrived.
#[derive(Debug)]
struct Begun {
    room: Reservation,
    length: usize,
    /// How long its sender may still be waited for.
    patience: Duration,
    /// Since when it is waited for, if it is.
    waiting: Option<Instant>,
}

#[derive(Debug)]
struct Receiver {
    stream: RecvStream,
    decoder: Decoder,
    /// Where QUIC puts what it has; empty between calls.
    pieces: Box<[Bytes; PIECES]>,
    arrived: Arrived,
    /// How the stream ended, where that was seen together with its last messages.
    failure: Option<TransportError>,
    /// What is taken without waiting in one call: beyond it a sender that is faster than we are would fill the memory.
    at_once_max: usize,
    /// Of a client's stream: where messages get their room.
    share: Option<Share>,
    /// Room of the message that has begun and not ended, if it needs any.
    begun: Option<Begun>,
    meters: ClassMeters,
    /// For errors alone.
    way: Arc<Way>,
}

impl Sender {
    fn new(stream: SendStream, class: Class, way: &Arc<Way>, shared: &Shared) -> Self {
        let priority = match class {
            Class::Control => 3,
            Class::Append => 2,
            Class::Client => 1,
            Class::Bulk => 0,
        };
        // Fails for a stream that is closed already; the first write says so.
        let _ = stream.set_priority(priority);
        Self {
            stream,
            limit: shared.settings.message_bytes_max,
            chunks: Vec::new(),
            finished: false,
            meters: shared.meters.class(class),
            way: Arc::clone(way),
        }
    }

    async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), TransportError> {
        let written = self.stream.write_all_chunks(chunks).await;
        written.map_err(|error| errors::not_written(&self.way, error))
    }
}

#[async_trait]
impl StreamSender for Sender {
    async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        if let Some(message) = messages.iter().find(|message| message.len() > self.limit) {
            let (size, limit) = (message.len(), self.limit);
            return Err(TransportError::TooLarge { size, limit });
        }
        let count = messages.len() as u64;
        let bytes = messages.iter().map(|message| message.len() as u64).sum();
        let mut chunks = std::mem::take(&mut self.chunks);
        frame::encode(messages, &mut chunks);
        self.write(&mut chunks).await?;
        chunks.clear();
        self.chunks = chunks;
        self.meters.messages_sent.increment(count);
        self.meters.bytes_sent.increment(bytes);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.finished = true;
        self.stream
            .finish()
            .map_err(|_| errors::broken("the stream is finished".to_owned()))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // quinn would finish the stream, and an abandoned one would look whole.
        if !self.finished {
            let _ = self.stream.reset(errors::DROPPED);
        }
    }
}

impl Receiver {
    /// Finds the messages in the first `count` pieces.
    fn decode(&mut self, count: usize, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        let bytes: usize = self.pieces[..count].iter().map(Bytes::len).sum();
        self.arrived.add(bytes as u64);
        for piece in &mut self.pieces[..count] {
            if let Err(oversized) = self.decoder.push(std::mem::take(piece), messages) {
                let _ = self.stream.stop(errors::OVERSIZED);
                return Err(errors::broken(oversized.to_string()));
            }
        }
        Ok(())
    }

    /// Sees to the room of a message that has begun, after these were found: it is the first of them.
    fn settle(&mut self, found: &mut [Bytes]) -> Result<(), TransportError> {
        if let Some(message) = found.first_mut()
            && let Some(begun) = self.begun.take()
        {
            *message = begun.room.hold_for(std::mem::take(message));
        }
        let Some(share) = &self.share else {
            return Ok(());
        };
        let (None, Some(length)) = (&self.begun, self.decoder.announced()) else {
            return Ok(());
        };
        if length <= SMALL {
            return Ok(());
        }
        let Some(room) = share.reserve(length) else {
            let reason = format!("there is no room for a message of {length} bytes of this client now");
            return Err(self.refuse(reason));
        };
        self.begun = Some(Begun {
            room,
            length,
            patience: share.patience(length),
            waiting: None,
        });
        Ok(())
    }

    fn refuse(&mut self, reason: String) -> TransportError {
        self.meters.refused.increment(1);
        let _ = self.stream.stop(errors::NO_ROOM);
        errors::broken(reason)
    }

    /// Waits for pieces; for a message that has room, as long as its sender has time. Cancel safe: the pieces are filled
    /// in the same poll that ends the wait.
    async fn read(&mut self) -> Result<Option<usize>, TransportError> {
        let reading = self.stream.read_chunks(&mut *self.pieces);
        let read = match &mut self.begun {
            None => reading.await,
            Some(begun) => {
                let since = *begun.waiting.get_or_insert_with(Instant::now);
                match timeout_at(since + begun.patience, reading).await {
                    Ok(read) => {
                        begun.patience = begun.patience.saturating_sub(since.elapsed());
                        begun.waiting = None;
                        read
                    }
                    Err(_) => {
                        let length = begun.length;
                        let reason =
                            format!("a message of {length} bytes began, and its end came too slowly");
                        return Err(self.refuse(reason));
                    }
                }
            }
        };
        read.map_err(|error| errors::not_read(&self.way, error))
    }

    /// Takes what else is there, without waiting.
    fn drain(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        let mut context = Context::from_waker(Waker::noop());
        let mut taken = 0;
        while taken < self.at_once_max {
            let read = pin!(self.stream.read_chunks(&mut *self.pieces)).poll(&mut context);
            match read {
                Poll::Ready(Ok(Some(count))) => {
                    taken += self.pieces[..count].iter().map(Bytes::len).sum::<usize>();
                    self.decode(count, messages)?;
                    if count < PIECES {
                        return Ok(());
                    }
                }
                // What came before it is handed out first.
                Poll::Ready(Err(error)) => {
                    self.failure = Some(errors::not_read(&self.way, error));
                    return Ok(());
                }
                // The end, which the next call meets again, or nothing now.
                Poll::Ready(Ok(None)) | Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl StreamReceiver for Receiver {
    fn arrived(&self) -> &Arrived {
        &self.arrived
    }

    async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let before = messages.len();
        loop {
            let count = match self.read().await? {
                Some(count) => count,
                None if self.decoder.is_between_messages() => return Ok(0),
                None => return Err(errors::broken("the stream ended within a message".to_owned())),
            };
            self.decode(count, messages)?;
            if count == PIECES {
                self.drain(messages)?;
            }
            let received = &mut messages[before..];
            match self.settle(received) {
                // What came before it is handed out first.
                Err(refused) if !received.is_empty() => self.failure = Some(refused),
                settled => settled?,
            }
            if !received.is_empty() {
                self.meters.messages_received.increment(received.len() as u64);
                let bytes = received.iter().map(|message| message.len() as u64).sum();
                self.meters.bytes_received.increment(bytes);
                return Ok(received.len());
            }
        }
    }
}

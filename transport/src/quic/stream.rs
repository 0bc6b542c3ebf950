//! The two halves of a stream over QUIC.

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use super::errors::Way;
use super::meters::ClassMeters;
use super::{Shared, errors};
use crate::frame::{self, Decoder};
use crate::{Class, MessageReceiver, MessageSender, Stream, StreamReceiver, StreamSender, TransportError};

/// How many pieces are taken from QUIC at a time. One is a packet's share: 64 are what one system call
/// brings.
const PIECES: usize = 64;

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
    Ok(pair(sender, receive, class, way, shared))
}

/// Takes a stream that a peer opened, whose header was read.
pub(super) fn accepted(
    shared: &Shared,
    way: &Arc<Way>,
    class: Class,
    send: SendStream,
    receive: RecvStream,
) -> Stream {
    shared.meters.class(class).accepted.increment(1);
    pair(Sender::new(send, class, way, shared), receive, class, way, shared)
}

fn pair(sender: Sender, receive: RecvStream, class: Class, way: &Arc<Way>, shared: &Shared) -> Stream {
    let receiver = Receiver {
        stream: receive,
        decoder: Decoder::new(shared.settings.message_bytes_max),
        pieces: Box::new(std::array::from_fn(|_| Bytes::new())),
        failure: None,
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

#[derive(Debug)]
struct Receiver {
    stream: RecvStream,
    decoder: Decoder,
    /// Where QUIC puts what it has; empty between calls.
    pieces: Box<[Bytes; PIECES]>,
    /// How the stream ended, where that was seen together with its last messages.
    failure: Option<TransportError>,
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
        for piece in &mut self.pieces[..count] {
            if let Err(oversized) = self.decoder.push(std::mem::take(piece), messages) {
                let _ = self.stream.stop(errors::OVERSIZED);
                return Err(errors::broken(oversized.to_string()));
            }
        }
        Ok(())
    }

    /// Takes what else is there, without waiting.
    fn drain(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let read = pin!(self.stream.read_chunks(&mut *self.pieces)).poll(&mut context);
            match read {
                Poll::Ready(Ok(Some(count))) => {
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
    }
}

#[async_trait]
impl StreamReceiver for Receiver {
    async fn receive_many(&mut self, messages: &mut Vec<Bytes>) -> Result<usize, TransportError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let before = messages.len();
        loop {
            // Cancel safe: the pieces are filled in the same poll that ends the wait.
            let count = match self.stream.read_chunks(&mut *self.pieces).await {
                Ok(Some(count)) => count,
                Ok(None) if self.decoder.is_between_messages() => return Ok(0),
                Ok(None) => return Err(errors::broken("the stream ended within a message".to_owned())),
                Err(error) => return Err(errors::not_read(&self.way, error)),
            };
            self.decode(count, messages)?;
            if count == PIECES {
                self.drain(messages)?;
            }
            let received = &messages[before..];
            if !received.is_empty() {
                self.meters.messages_received.increment(received.len() as u64);
                let bytes = received.iter().map(|message| message.len() as u64).sum();
                self.meters.bytes_received.increment(bytes);
                return Ok(received.len());
            }
        }
    }
}

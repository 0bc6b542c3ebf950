//! A transport that makes messages late, as a distance would: for demonstrations and measurements in one place.
//!
//! Always: order is kept; a message is late by the same time, whatever else is under way; only the side that
//! opened a stream delays, and by the whole round trip, so that a question and its answer together are late by
//! it once. (Half of it on each side would round up twice where the clock is coarse.)

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc as line};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Class, Identity, Incoming, MessageSender, Peer, Stream, StreamSender, Transport, TransportError,
};

/// Batches that are on their way on one stream; a sender that is ahead of the distance by more waits.
const UNDER_WAY: usize = 1024;

/// A clock that wakes within a tenth of a millisecond: the async runtime's wakes at whole milliseconds only,
/// which is too coarse for a round trip of one.
#[derive(Debug, Clone)]
pub struct Alarm {
    set: line::Sender<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    due: Instant,
    wake: oneshot::Sender<()>,
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Waiter {}

impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

impl Alarm {
    /// Starts the clock's thread, which ends with the last clone.
    pub fn start() -> std::io::Result<Self> {
        let (set, asked) = line::channel();
        std::thread::Builder::new()
            .name("alarm".to_owned())
            .spawn(move || ring(&asked))?;
        Ok(Self { set })
    }

    /// Waits until then.
    pub async fn at(&self, due: Instant) {
        let (wake, woken) = oneshot::channel();
        if self.set.send(Waiter { due, wake }).is_ok() {
            // The thread answers every waiter before it ends.
            let _ended = woken.await;
        }
    }
}

fn ring(asked: &line::Receiver<Waiter>) {
    let mut waiting: BinaryHeap<Reverse<Waiter>> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while let Some(Reverse(next)) = waiting.pop() {
            if next.due > now {
                waiting.push(Reverse(next));
                break;
            }
            // Whoever does not wait any more is not missed.
            let _gone = next.wake.send(());
        }
        let asked = match waiting.peek() {
            Some(Reverse(next)) => match asked.recv_timeout(next.due.saturating_duration_since(now)) {
                Err(line::RecvTimeoutError::Timeout) => continue,
                asked => asked.ok(),
            },
            None => asked.recv().ok(),
        };
        match asked {
            Some(waiter) => waiting.push(Reverse(waiter)),
            None => return,
        }
    }
}

/// Another transport, with a round trip that is longer.
#[derive(Debug)]
pub struct Delayed {
    inner: Arc<dyn Transport>,
    alarm: Alarm,
    round_trip: Duration,
}

impl Delayed {
    /// Makes every round trip over streams opened here longer by `round_trip`; by nothing when it is zero.
    pub fn by(inner: Arc<dyn Transport>, round_trip: Duration, alarm: &Alarm) -> Arc<dyn Transport> {
        if round_trip.is_zero() {
            return inner;
        }
        Arc::new(Self {
            inner,
            alarm: alarm.clone(),
            round_trip,
        })
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
        let stream = self.inner.open(peer, class).await?;
        let (queue, under_way) = mpsc::channel(UNDER_WAY);
        tokio::spawn(forward(under_way, stream.sender, self.alarm.clone()));
        let sender = DelayedSender {
            queue,
            late: self.round_trip,
        };
        Ok(Stream {
            sender: MessageSender::new(Box::new(sender)),
            receiver: stream.receiver,
        })
    }

    async fn accept(&self) -> Option<Incoming> {
        self.inner.accept().await
    }

    /// Late by the round trip, as its answer is.
    async fn ended(&self, peer: &Peer) {
        self.inner.ended(peer).await;
        self.alarm.at(Instant::now() + self.round_trip).await;
    }

    fn round_trip(&self, node_id: u64) -> Option<Duration> {
        Some(self.inner.round_trip(node_id)? + self.round_trip)
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
    late: Duration,
}

#[async_trait]
impl StreamSender for DelayedSender {
    async fn send_all(&mut self, messages: &mut Vec<Bytes>) -> Result<(), TransportError> {
        self.send(Late::Messages {
            due: Instant::now() + self.late,
            messages: std::mem::take(messages),
        })
        .await
    }

    async fn finish(&mut self) -> Result<(), TransportError> {
        self.send(Late::Finish {
            due: Instant::now() + self.late,
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

/// Sends what is due. Ends when the stream breaks, which the next send then learns, or when its sender is
/// dropped, which resets the stream.
async fn forward(mut under_way: mpsc::Receiver<Late>, mut sender: MessageSender, alarm: Alarm) {
    while let Some(late) = under_way.recv().await {
        match late {
            Late::Messages { due, mut messages } => {
                alarm.at(due).await;
                if sender.send_all(&mut messages).await.is_err() {
                    return;
                }
            }
            Late::Finish { due } => {
                alarm.at(due).await;
                // A stream that broke before its end has told its reader so.
                let _broken = sender.finish().await;
                return;
            }
        }
    }
}

//! The socket that a transport accepts on, and whose address it can give back.
//!
//! QUIC holds a socket for as long as anyone holds one of its connections or streams, and lets go of it in a task of
//! its own at some later time. Whoever starts again at the same address, in the same process, would find it taken.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A socket that [`close`](Self::close) takes away from QUIC. From then on nothing arrives, and what is sent is lost,
/// as datagrams may be: connections that still take leave end by their timers.
#[derive(Debug)]
pub(super) struct Closable {
    /// `None` after the close. Held for a clone, never across a system call.
    open: RwLock<Option<Arc<Open>>>,
    closed: CancellationToken,
    /// The last attempt to send found no room; nobody has found any since.
    full: AtomicBool,
}

/// In this order: the address is free before it is said to be.
#[derive(Debug)]
struct Open {
    socket: Arc<dyn AsyncUdpSocket>,
    _closed: DropGuard,
}

impl Closable {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        let closed = CancellationToken::new();
        Self {
            open: RwLock::new(Some(Arc::new(Open {
                socket,
                _closed: closed.clone().drop_guard(),
            }))),
            closed,
            full: AtomicBool::new(false),
        }
    }

    /// Closes the socket and waits until it is: for calls under way in other threads, and for a connection that waits
    /// for room to send. Cancel safe; what is begun goes on.
    pub(super) async fn close(&self) {
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(open);
        self.closed.cancelled().await;
    }

    fn open(&self) -> Option<Arc<Open>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AsyncUdpSocket for Closable {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(open) = self.open() else {
            return Ok(());
        };
        let sent = open.socket.try_send(transmit);
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Relaxed);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.open() {
            Some(open) => open.socket.poll_recv(cx, bufs, meta),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self.open() {
            Some(open) => open.socket.local_addr(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Asked each time: it falls to one when the system refuses several datagrams at once.
    fn max_transmit_segments(&self) -> usize {
        self.open().map_or(1, |open| open.socket.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.open().map_or(1, |open| open.socket.max_receive_segments())
    }

    fn may_fragment(&self) -> bool {
        self.open().is_none_or(|open| open.socket.may_fragment())
    }
}

/// One connection's wait for room to send.
struct Writable {
    socket: Arc<Closable>,
    /// Only as long as there is something to wait for, since it holds the socket.
    waiting: Option<Waiting>,
}

/// In this order: what holds the socket is gone before the close is told.
struct Waiting {
    poller: Pin<Box<dyn UdpPoller>>,
    _open: Arc<Open>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable")
            .field("waits", &self.waiting.is_some())
            .finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            // An attempt tells more than a question: where there is no room it says so, and this is asked again.
            if !self.socket.full.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let Some(open) = self.socket.open() else {
                return Poll::Ready(Ok(()));
            };
            self.waiting = Some(Waiting {
                poller: Arc::clone(&open.socket).create_io_poller(),
                _open: open,
            });
        }
        if let Some(waiting) = &mut self.waiting {
            let room = ready!(waiting.poller.as_mut().poll_writable(cx));
            self.waiting = None;
            room?;
        }
        self.socket.full.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

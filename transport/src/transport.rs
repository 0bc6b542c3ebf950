//! What every transport does, over QUIC or in memory.

use std::fmt;
use std::net::SocketAddr;

use async_trait::async_trait;

use crate::{Class, Identity, Peer, Stream, TransportError};

/// A stream that a peer opened.
#[derive(Debug)]
pub struct Incoming {
    /// Who opened it, as its certificate says.
    pub from: Identity,
    /// What for.
    pub class: Class,
    /// The stream.
    pub stream: Stream,
}

/// Opens and accepts streams. One value serves a node, for its peers and its clients.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Who we are.
    fn identity(&self) -> &Identity;

    /// The address that we listen on, with the port that was really bound; `None` for one that only opens.
    fn local_address(&self) -> Option<SocketAddr>;

    /// Opens a stream to a peer, over the connection that exists or a new one.
    ///
    /// A connection that failed is made anew at the next call, at once for the first attempt and then no
    /// sooner than a backoff with jitter allows; until then the call answers the last attempt's failure
    /// (`Unreachable` or `Refused`) without waiting. Cancel safe.
    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError>;

    /// The next stream that a peer opened; `None` after [`shutdown`](Self::shutdown). Cancel safe.
    async fn accept(&self) -> Option<Incoming>;

    /// Returns when the peer's process has ended on a host that lives: nobody listens at its port any more, and the
    /// host's system says so. This is how a dead leader is noticed long before any timeout.
    ///
    /// It never returns for silence: not for lost packets, a cut link, a paused process, a slow host or one that lost
    /// power. Nor after [`shutdown`](Self::shutdown) of this side. A process that starts again at the same address
    /// before the next probe is not noticed to have ended (its streams break instead). A firewall that *rejects* what
    /// is sent to the port (ICMP port unreachable), instead of dropping it, is taken for an end.
    ///
    /// A peer is watched where it was reached, while that connection is up or its name still leads there; else all
    /// addresses of its name must be closed, and the name is looked up again from time to time, in case it moves.
    /// Costs a probe of one byte every so often, for as long as somebody waits here. Cancel safe.
    async fn ended(&self, peer: &Peer);

    /// The smoothed round trip to a node, where it was measured.
    fn round_trip(&self, node_id: u64) -> Option<std::time::Duration>;

    /// Ends all streams, refuses new ones, and gives the local address free.
    async fn shutdown(&self);
}

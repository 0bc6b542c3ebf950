//! Authenticated messages between peers. Knows nothing of Raft or of keys.
//!
//! A [`Transport`] opens and accepts [`Stream`]s of whole messages, each in a [`Class`] of traffic, between
//! peers whose [`Identity`] was proven by their certificates ([`certs`] makes them). [`quic`] is the real
//! one, [`memory`] the scripted one for tests; one suite of tests runs over both. [`delay`] makes either late.
//!
//! Always: messages of one stream arrive whole, in order and at most once; a stream that failed says so to
//! both sides and never resumes; every queue is bounded and a full one makes the sender wait.

// A library that prints panics where its program has no standard output.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod address;
mod backoff;
#[cfg(feature = "quic")]
pub mod certs;
pub mod delay;
#[cfg(feature = "quic")]
mod frame;
mod identity;
#[cfg(feature = "quic")]
mod inbox;
pub mod memory;
#[cfg(feature = "quic")]
pub mod quic;
mod refused;
mod stream;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

pub use address::{Address, AddressRule, Host, HostName, InvalidAddress, ListenAddress};
pub use backoff::BackoffSettings;
pub use identity::{ClusterId, Identity, InvalidIdentity, Role};
pub use refused::RefusedBecause;
pub use stream::{Arrived, MessageReceiver, MessageSender, Stream, StreamReceiver, StreamSender};

use std::fmt;
use std::net::SocketAddr;

use async_trait::async_trait;

/// The default limit of a message: 32 MiB, well above the largest entry and below what hurts to hold twice.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// The classes of traffic, the most urgent first. A later class never delays an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Votes, heartbeats, leadership transfers: small, and never behind anything else.
    Control,
    /// Log entries on their way to followers.
    Append,
    /// Requests of clients and their answers.
    Client,
    /// Snapshots and backups.
    Bulk,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Class; 4] = [Class::Control, Class::Append, Class::Client, Class::Bulk];

    /// Its name in logs and in the labels of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::Control => "control",
            Class::Append => "append",
            Class::Client => "client",
            Class::Bulk => "bulk",
        }
    }

    /// 0 for the most urgent, and so on.
    pub(crate) fn rank(self) -> usize {
        match self {
            Class::Control => 0,
            Class::Append => 1,
            Class::Client => 2,
            Class::Bulk => 3,
        }
    }
}

/// Where a peer is to be found and who it must prove to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The node that must answer there; `None` takes any node of the cluster (clients know addresses only).
    pub node_id: Option<u64>,
    /// Where it listens.
    pub address: Address,
}

/// A message was not sent, or not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nobody could be reached there; nothing was sent.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// The address tried.
        address: String,
        /// Why.
        reason: String,
    },
    /// The peer is not who it must be, or does not take us for one of its own; nothing was sent.
    #[error("{address} was refused: {reason}")]
    Refused {
        /// The address tried.
        address: String,
        /// Why, for programs.
        because: RefusedBecause,
        /// Why, in words.
        reason: String,
    },
    /// The stream or its connection broke; what was sent may or may not have arrived.
    #[error("the connection broke: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// A message exceeds the limit; nothing of it was sent.
    #[error("the message has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The transport was shut down.
    #[error("the transport was shut down")]
    Closed,
}

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

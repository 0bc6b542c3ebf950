//! The transport over QUIC, with mutual TLS 1.3.
//!
//! A [`QuicTransport`] keeps one connection to each peer that it opens streams to, made when it is first
//! needed and made anew after it broke. A peer's certificate must come from the cluster's authority, and
//! the identity in it must be of our cluster and, where the caller named a node, that node's.
//!
//! Classes of traffic are priorities of QUIC streams on one connection: each packet is filled from the most
//! urgent stream that has data, so a vote waits for one packet at most, not for the snapshot that is under
//! way. Flow control is per stream; the connection's own window is so large that a stream nobody reads does
//! not stop the others.
//!
//! A connection ends with the certificate of either side that ends first.
//!
//! Always: no message passes before both sides know who the other is; an attempt to connect is shared by
//! all who wait for it; a failure is answered to whoever caused or waited for it, and the next call tries
//! again within the backoff.
//!
//! Metrics, through the `metrics` facade:
//!
//! | name | labels | meaning |
//! |---|---|---|
//! | `quorate_transport_messages_sent_total`, `..._received_total` | `class` | messages handed over to, or taken from, streams |
//! | `quorate_transport_bytes_sent_total`, `..._received_total` | `class` | their bytes, without framing |
//! | `quorate_transport_streams_opened_total`, `..._accepted_total` | `class` | streams |
//! | `quorate_transport_connections` | `direction` (`outgoing`, `incoming`) | connections that are up |
//! | `quorate_transport_connects_failed_total` | `reason` (`unreachable`, `refused`) | attempts of ours that failed |
//! | `quorate_transport_handshakes` | | handshakes of peers that are under way |
//! | `quorate_transport_validations_total` | | peers whose address was validated before their handshake |
//! | `quorate_transport_refusals_total` | `reason`, as below | peers that were not let in, and streams that were not taken |
//! | `quorate_transport_messages_refused_total` | `class` | messages of clients for which there was no room, or that came too slowly |
//! | `quorate_certificate_expiry_seconds` | `kind` (`own`, `authority`) | when the certificate ends, in seconds of Unix time |
//! | `quorate_transport_round_trip_seconds` | `node` | smoothed round trip to a node, set every five seconds |
//!
//! Reasons of refusals: `untrusted` (a certificate of another authority, or it takes ours for one), `expired` (a
//! certificate that is not valid now), `tls` (the handshake failed otherwise), `identity` (a certificate of the authority's
//! that has no business here), `timeout` (the handshake did not go on), `displaced` (another one needed its place),
//! `handshakes`, `nodes`, `clients`, `client_share` (a bound of [`QuicSettings`]: `handshakes_max`,
//! `node_connections_max`, `client_connections_max`, `client_share_max`), `stream` (a stream that is not as it should be).
//! The log has one line for each reason within ten seconds at most, which says how many it stands for.

mod acceptor;
mod budget;
mod busy_poll;
mod connect;
mod ended;
mod endpoint;
mod errors;
mod expiry;
mod handshakes;
mod links;
mod meters;
mod places;
mod probe;
mod race;
mod refusals;
mod resolve;
mod said;
mod seldom;
mod settings;
mod socket;
mod stream;
mod tls;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use resolve::{Resolver, SystemResolver};
pub use settings::{BUSY_POLL_MAX, InvalidSettings, QuicSettings};

use crate::certs::Credentials;
use crate::inbox::Inbox;
use crate::{Class, Identity, Incoming, Peer, Stream, Transport, TransportError};
use acceptor::Door;
use links::Links;
use meters::Meters;
use resolve::Names;
use socket::Closable;

/// A transport over QUIC. [`shutdown`](Transport::shutdown) takes leave of the peers and gives the address free, for a
/// successor to take at once, whoever still holds a stream; dropping it without that closes its connections too, but
/// waits for nobody, and the address is free some time later.
#[derive(Debug)]
pub struct QuicTransport {
    shared: Arc<Shared>,
}

/// A transport was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program has the port, or this one already.
    #[error("{address} is in use already: stop who listens there, or choose another port")]
    AddressInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The operating system refused the address.
    #[error("cannot listen on {address}: {error}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What it said.
        error: std::io::Error,
    },
    /// The credentials do not make a TLS configuration.
    #[error("the credentials cannot be used: {reason}")]
    Credentials {
        /// What rustls said.
        reason: String,
    },
    /// Settings that cannot work.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
}

impl BindError {
    /// Whether the same may succeed later with nothing changed: a port that another program has now, an address that the
    /// machine does not have yet.
    pub fn is_retryable(&self) -> bool {
        use std::io::ErrorKind as K;
        match self {
            BindError::AddressInUse { .. } => true,
            BindError::Address { error, .. } => !matches!(
                error.kind(),
                K::PermissionDenied | K::InvalidInput | K::Unsupported
            ),
            BindError::Credentials { .. } | BindError::Settings(_) => false,
        }
    }
}

/// What the transport and its tasks share.
struct Shared {
    identity: Identity,
    settings: QuicSettings,
    /// Opens connections, from a port of its own.
    outgoing: quinn::Endpoint,
    listening: Option<(quinn::Endpoint, Arc<Closable>)>,
    local_address: Option<SocketAddr>,
    own: RwLock<OwnCredentials>,
    links: Links,
    names: Names,
    door: Door,
    inbox: Inbox,
    meters: Meters,
    /// Every task of this transport, so that shutdown can wait for them.
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What opening takes of the own credentials, and their times.
struct OwnCredentials {
    client: quinn::ClientConfig,
    times: expiry::Own,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport")
            .field("identity", &self.identity)
            .field("local_address", &self.local_address)
            .finish_non_exhaustive()
    }
}

impl QuicTransport {
    /// Makes a transport that proves itself with `credentials`. With an address it accepts peers there (port
    /// 0 takes a free one); without, it only opens. Must be called inside a tokio runtime.
    pub fn bind(
        listen: Option<SocketAddr>,
        credentials: &Credentials,
        settings: QuicSettings,
    ) -> Result<Arc<Self>, BindError> {
        Self::bind_with(listen, credentials, settings, Arc::new(SystemResolver))
    }

    /// The same, with names looked up by `resolver`.
    pub fn bind_with(
        listen: Option<SocketAddr>,
        credentials: &Credentials,
        settings: QuicSettings,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Arc<Self>, BindError> {
        settings.check()?;
        let client = tls::client(credentials, &settings)?;
        let times = expiry::Own::of(credentials);
        times.publish();
        let (runtime, look) = busy_poll::runtime(settings.busy_poll);
        let outgoing = endpoint::outgoing(&settings, &runtime)?;
        let listening = match listen {
            Some(address) => Some(endpoint::listening(address, credentials, &settings, &runtime)?),
            None => None,
        };
        let local_address = match (&listening, listen) {
            (Some((endpoint, _)), Some(address)) => {
                let bound = endpoint.local_addr();
                Some(bound.map_err(|error| BindError::Address { address, error })?)
            }
            _ => None,
        };
        let shared = Arc::new(Shared {
            identity: credentials.identity().clone(),
            door: Door::new(&settings),
            settings,
            outgoing,
            listening: listening.clone(),
            local_address,
            own: RwLock::new(OwnCredentials { client, times }),
            links: Links::default(),
            names: Names::new(resolver),
            inbox: Inbox::new(),
            meters: Meters::new(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        });
        if let Some((endpoint, _)) = listening {
            shared.tasks.spawn(acceptor::run(Arc::clone(&shared), endpoint));
        }
        if let Some(look) = look {
            let closing = shared.closing.clone();
            shared.tasks.spawn(closing.run_until_cancelled_owned(look));
        }
        shared.tasks.spawn(meters::report(Arc::clone(&shared)));
        shared.tasks.spawn(expiry::foretell(Arc::clone(&shared)));
        Ok(Arc::new(Self { shared }))
    }

    /// Uses other credentials, of the same identity, for all connections from now on; those that are up stay, until the end of
    /// the certificates that they were made with.
    pub fn reload(&self, credentials: &Credentials) -> Result<(), BindError> {
        if *credentials.identity() != self.shared.identity {
            return Err(BindError::Credentials {
                reason: format!(
                    "they are {}'s, not {}'s",
                    credentials.identity(),
                    self.shared.identity
                ),
            });
        }
        let client = tls::client(credentials, &self.shared.settings)?;
        if let Some((endpoint, _)) = &self.shared.listening {
            endpoint.set_server_config(Some(tls::server(credentials, &self.shared.settings)?));
        }
        let times = expiry::Own::of(credentials);
        times.publish();
        *self.shared.own.write().unwrap_or_else(PoisonError::into_inner) = OwnCredentials { client, times };
        Ok(())
    }
}

impl Shared {
    /// Ends everything at once; nobody is waited for.
    fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.inbox.close();
        let listening = self.listening.iter().map(|(endpoint, _)| endpoint);
        for endpoint in listening.chain([&self.outgoing]) {
            endpoint.close(errors::SHUT_DOWN, b"shut down");
        }
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.shared.local_address
    }

    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError> {
        let live = links::live(&self.shared, peer).await?;
        let (send, receive) = live
            .connection
            .open_bi()
            .await
            .map_err(|error| errors::unreachable(&live.way, &error))?;
        stream::open(&self.shared, &live.way, class, send, receive).await
    }

    async fn accept(&self) -> Option<Incoming> {
        self.shared.inbox.next().await
    }

    async fn ended(&self, peer: &Peer) {
        ended::ended(&self.shared, peer).await;
    }

    fn round_trip(&self, node_id: u64) -> Option<Duration> {
        self.shared.links.round_trip(node_id)
    }

    async fn shutdown(&self) {
        self.shared.close();
        let within = self.shared.settings.shutdown_timeout;
        let drained = async {
            self.shared.tasks.wait().await;
            self.shared.outgoing.wait_idle().await;
            if let Some((endpoint, _)) = &self.shared.listening {
                endpoint.wait_idle().await;
            }
        };
        if timeout(within, drained).await.is_err() {
            tracing::debug!(identity = %self.shared.identity, "some peers did not take note of the shutdown in time");
        }
        // Only then: taking leave needs it.
        if let Some((_, socket)) = &self.shared.listening
            && timeout(within, socket.close()).await.is_err()
        {
            tracing::warn!(identity = %self.shared.identity, "the socket is still in use after the shutdown");
        }
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.close();
    }
}

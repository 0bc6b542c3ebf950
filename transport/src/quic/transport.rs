//! The transport: made, asked, ended. What it does for whoever asks is in a file of its own each.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bind_error::BindError;
use super::door::Door;
use super::links::Links;
use super::meters::Meters;
use super::names::{Names, Resolver, SystemResolver};
use super::settings::QuicSettings;
use super::shared::{OwnCredentials, Shared};
use super::{
    acceptor, busy_poll, connect, ended, endpoint, errors, expiry, foretold, round_trips, stream, tls,
};
use crate::certs::Credentials;
use crate::inbox::Inbox;
use crate::{Class, Identity, Incoming, Peer, Stream, Transport, TransportError};

/// A transport over QUIC. [`shutdown`](Transport::shutdown) takes leave of the peers and gives the address free, for a
/// successor to take at once, whoever still holds a stream; dropping it without that closes its connections too, but
/// waits for nobody, and the address is free some time later.
#[derive(Debug)]
pub struct QuicTransport {
    pub(super) shared: Arc<Shared>,
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
        shared.tasks.spawn(round_trips::report(Arc::clone(&shared)));
        shared.tasks.spawn(foretold::foretell(Arc::clone(&shared)));
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

#[async_trait]
impl Transport for QuicTransport {
    fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.shared.local_address
    }

    async fn open(&self, peer: &Peer, class: Class) -> Result<Stream, TransportError> {
        let live = connect::live(&self.shared, peer).await?;
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

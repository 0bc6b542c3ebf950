//! What a transport and its tasks share.
//!
//! It knows how to end itself and no more: what works on it stands above, in a file for each task.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::door::Door;
use super::links::Links;
use super::meters::Meters;
use super::names::Names;
use super::settings::QuicSettings;
use super::socket::Closable;
use super::{errors, expiry};
use crate::Identity;
use crate::inbox::Inbox;

/// What the transport and its tasks share.
pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) settings: QuicSettings,
    /// Opens connections, from a port of its own.
    pub(super) outgoing: quinn::Endpoint,
    pub(super) listening: Option<(quinn::Endpoint, Arc<Closable>)>,
    pub(super) local_address: Option<SocketAddr>,
    pub(super) own: RwLock<OwnCredentials>,
    pub(super) links: Links,
    pub(super) names: Names,
    pub(super) door: Door,
    pub(super) inbox: Inbox,
    pub(super) meters: Meters,
    /// Every task of this transport, so that shutdown can wait for them.
    pub(super) tasks: TaskTracker,
    pub(super) closing: CancellationToken,
}

/// What opening takes of the own credentials, and their times.
pub(super) struct OwnCredentials {
    pub(super) client: quinn::ClientConfig,
    pub(super) times: expiry::Own,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport")
            .field("identity", &self.identity)
            .field("local_address", &self.local_address)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Ends everything at once; nobody is waited for.
    pub(super) fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.inbox.close();
        let listening = self.listening.iter().map(|(endpoint, _)| endpoint);
        for endpoint in listening.chain([&self.outgoing]) {
            endpoint.close(errors::SHUT_DOWN, b"shut down");
        }
    }
}

//! What is known of the way to each peer: the connection, the attempt under way, or when to try again.
//!
//! Always: at most one attempt for each link is under way, and whoever waits for it shares its outcome; an
//! attempt belongs to a task of the transport ([`connect`](super::connect)), so that a caller who gives up does not end it
//! for the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::errors::{self, Way};
use crate::backoff::{Backoff, BackoffSettings};
use crate::{Address, Peer, TransportError};

/// How many links are remembered. Beyond that those without a connection that is up are forgotten: a cluster has few,
/// and a client that was given ever new addresses must not grow for ever. Few in tests, which are to reach it.
pub(super) const LINKS_MAX: usize = if cfg!(test) { 8 } else { 1_024 };

/// A connection that is up, and whose peer has welcomed us.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: quinn::Connection,
    pub(super) node_id: u64,
    pub(super) since: Instant,
    pub(super) way: Arc<Way>,
}

/// How an attempt ends.
pub(super) type Outcome = Result<Live, TransportError>;

/// The ways to all peers.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<BTreeMap<Key, Link>>);

/// A peer as the callers name it.
pub(super) type Key = (Address, Option<u64>);

#[derive(Debug, Default)]
struct Link {
    state: LinkState,
    backoff: Backoff,
    /// Where the peer answered last.
    reached: Option<SocketAddr>,
    /// No attempt before; the last one's failure is answered until then.
    rest: Option<(Instant, TransportError)>,
}

#[derive(Debug, Default)]
enum LinkState {
    #[default]
    Down,
    Connecting(watch::Receiver<Option<Outcome>>),
    Up(Live),
}

impl LinkState {
    /// The connection, while it is up: one that has ended stays until the next look.
    fn up(&self) -> Option<&Live> {
        match self {
            LinkState::Up(live) if live.connection.close_reason().is_none() => Some(live),
            LinkState::Up(_) | LinkState::Down | LinkState::Connecting(_) => None,
        }
    }
}

/// Where a peer was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    Never,
    /// The last time; the connection is gone.
    Before(SocketAddr),
    /// The connection is up.
    Connected(SocketAddr),
}

fn key(peer: &Peer) -> Key {
    (peer.address.clone(), peer.node_id)
}

/// What there is for a peer.
pub(super) enum Known {
    Live(Live),
    /// An attempt is under way.
    Attempt(watch::Receiver<Option<Outcome>>),
    /// An attempt is to be made by whoever asked, and its outcome to be settled and sent.
    Due {
        key: Key,
        done: watch::Sender<Option<Outcome>>,
        attempt: watch::Receiver<Option<Outcome>>,
    },
}

impl Links {
    /// What there is for a peer: an attempt is due where there is nothing and it is time for one.
    pub(super) fn look(&self, peer: &Peer, backoff: &BackoffSettings) -> Result<Known, TransportError> {
        let now = Instant::now();
        let mut links = self.links();
        let key = key(peer);
        if links.len() >= LINKS_MAX && !links.contains_key(&key) {
            links.retain(|_, link| {
                matches!(link.state, LinkState::Connecting(_)) || link.state.up().is_some()
            });
        }
        let link = links.entry(key.clone()).or_default();
        match &link.state {
            LinkState::Up(live) if live.connection.close_reason().is_none() => {
                return Ok(Known::Live(live.clone()));
            }
            LinkState::Connecting(attempt) => return Ok(Known::Attempt(attempt.clone())),
            LinkState::Up(live) => {
                // One that lasted makes the next failure a first one; one that broke at once counts as one.
                if live.since.elapsed() > backoff.max {
                    link.backoff.succeeded();
                    link.rest = None;
                } else if let Some(error) = live.connection.close_reason() {
                    let failure = errors::unreachable(&live.way, &error);
                    let delay = link.backoff.failed(backoff, rand::random());
                    link.rest = Some((live.since + delay, failure));
                }
                link.state = LinkState::Down;
            }
            LinkState::Down => {}
        }
        if let Some((until, failure)) = &link.rest
            && *until > now
        {
            return Err(failure.clone());
        }
        let (done, attempt) = watch::channel(None);
        link.state = LinkState::Connecting(attempt.clone());
        Ok(Known::Due { key, done, attempt })
    }

    /// An attempt is over.
    pub(super) fn settle(&self, key: Key, outcome: &Outcome, backoff: &BackoffSettings) {
        let mut links = self.links();
        let link = links.entry(key).or_default();
        match outcome {
            Ok(live) => {
                link.reached = Some(live.connection.remote_address());
                link.state = LinkState::Up(live.clone());
                link.rest = None;
            }
            Err(failure) => {
                let delay = link.backoff.failed(backoff, rand::random());
                link.state = LinkState::Down;
                link.rest = Some((Instant::now() + delay, failure.clone()));
            }
        }
    }

    /// Where a peer was reached last.
    pub(super) fn reached(&self, peer: &Peer) -> Reached {
        let links = self.links();
        let Some(link) = links.get(&key(peer)) else {
            return Reached::Never;
        };
        match (link.state.up(), link.reached) {
            (Some(live), _) => Reached::Connected(live.connection.remote_address()),
            (None, Some(place)) => Reached::Before(place),
            (None, None) => Reached::Never,
        }
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.links().len()
    }

    /// The round trip to a node that we have a connection to.
    pub(super) fn round_trip(&self, node_id: u64) -> Option<Duration> {
        let links = self.links();
        let mut up = links.values().filter_map(|link| link.state.up());
        up.find(|live| live.node_id == node_id)
            .map(|live| live.connection.rtt())
    }

    /// The nodes that we have connections to, once for each that is up.
    pub(super) fn nodes(&self) -> Vec<u64> {
        let links = self.links();
        let up = links.values().filter_map(|link| link.state.up());
        up.map(|live| live.node_id).collect()
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<Key, Link>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

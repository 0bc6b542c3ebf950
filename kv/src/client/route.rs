//! The nodes that a client knows, and which of them it asks next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_transport::{Address, Peer, Transport};

use super::endpoint::Endpoint;
use crate::env::{self, Instant};
use crate::model::NodeId;

/// A caller that gives up earlier says nothing of the node.
const PATIENCE_MIN: Duration = Duration::from_millis(250);

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// The leader alone can carry it out.
    Leader,
    /// Any node answers it.
    Anyone,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Routes {
    transport: Arc<dyn Transport>,
    known: Mutex<Known>,
    /// Whether whoever can ask anyone asks this process's node next. Nothing else is published by it.
    here_is_next: AtomicBool,
}

/// A node is asked. Dropped before that has ended, the caller gave up; had it waited for a while, and for a node elsewhere, the
/// next call goes to another one: callers with less patience than the client would else ask a frozen node for ever.
pub(super) struct Asking<'a> {
    routes: &'a Routes,
    place: usize,
    since: Instant,
    has_ended: bool,
}

impl Asking<'_> {
    /// It answered, or why it did not is known.
    pub(super) fn ends(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.has_ended && self.since.elapsed() >= PATIENCE_MIN && !self.routes.is_here(self.place) {
            self.routes.avoid(self.place);
        }
    }
}

#[derive(Debug)]
struct Known {
    /// In the order of preference; the first is this process's node, where there is one. Only grows.
    endpoints: Vec<Arc<Endpoint>>,
    /// Where writes go: the leader as last heard of.
    leader: Option<usize>,
    /// Where to try next while no leader is known.
    next: usize,
}

impl Known {
    /// Whether one of them runs in this process.
    fn has_here(&self) -> bool {
        let first = self.endpoints.first();
        first.is_some_and(|first| matches!(**first, Endpoint::Local(_)))
    }

    fn here_is_next(&self) -> bool {
        self.has_here() && self.next.is_multiple_of(self.endpoints.len())
    }
}

impl Routes {
    pub(super) fn new(endpoints: Vec<Endpoint>, transport: Arc<dyn Transport>) -> Self {
        let known = Known {
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            leader: None,
            next: 0,
        };
        Self {
            transport,
            here_is_next: AtomicBool::new(known.here_is_next()),
            known: Mutex::new(known),
        }
    }

    /// Whether [`choose`](Self::choose) would answer this process's node for what anyone can do.
    pub(super) fn here_is_next(&self) -> bool {
        self.here_is_next.load(Ordering::Relaxed)
    }

    /// Whom to ask, and its place among those known; `None` where no node is known at all.
    pub(super) fn choose(&self, to: To) -> Option<(usize, Arc<Endpoint>)> {
        let known = self.known();
        let count = known.endpoints.len();
        let index = match known.leader {
            Some(leader) if to == To::Leader || !known.has_here() => leader,
            _ => known.next.checked_rem(count)?,
        };
        Some((index, Arc::clone(&known.endpoints[index])))
    }

    /// The node at this place carried out what only a leader can.
    pub(super) fn leads(&self, index: usize) {
        self.known().leader = Some(index);
    }

    /// Goes to the leader that a node named; answers whether there is one to go to that is not itself.
    pub(super) fn follow(&self, from: usize, leader: Option<(NodeId, String)>) -> bool {
        let mut known = self.known();
        known.leader = None;
        let place = leader.and_then(|(id, address)| Some((id, address.parse::<Address>().ok()?)));
        let Some((id, address)) = place else {
            known.next = from + 1;
            self.here_is_next.store(known.here_is_next(), Ordering::Relaxed);
            return false;
        };
        let here = |e: &Arc<Endpoint>| match &**e {
            Endpoint::Local(front) => front.node() == id,
            Endpoint::Remote(_) => e.address() == address.as_str(),
        };
        let index = known.endpoints.iter().position(here).unwrap_or_else(|| {
            let endpoint = self.remote(Some(id), address);
            known.endpoints.push(Arc::new(endpoint));
            known.endpoints.len() - 1
        });
        known.leader = Some(index);
        self.here_is_next.store(known.here_is_next(), Ordering::Relaxed);
        index != from
    }

    /// The node at this place is asked now.
    pub(super) fn asks(&self, place: usize) -> Asking<'_> {
        Asking {
            routes: self,
            place,
            since: env::now(),
            has_ended: false,
        }
    }

    /// Another node next time.
    pub(super) fn avoid(&self, index: usize) {
        let mut known = self.known();
        if known.leader == Some(index) {
            known.leader = None;
        }
        known.next = index + 1;
        self.here_is_next.store(known.here_is_next(), Ordering::Relaxed);
    }

    /// Whether the node at this place runs in this process.
    fn is_here(&self, place: usize) -> bool {
        let known = self.known();
        let endpoint = known.endpoints.get(place);
        endpoint.is_some_and(|endpoint| matches!(**endpoint, Endpoint::Local(_)))
    }

    /// How many nodes are known.
    pub(super) fn count(&self) -> usize {
        self.known().endpoints.len()
    }

    /// All nodes that are known.
    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.known().endpoints.clone()
    }

    /// A way to a node that is not among those known yet.
    pub(super) fn remote(&self, id: Option<NodeId>, address: Address) -> Endpoint {
        let peer = Peer {
            node_id: id.map(NodeId::number),
            address,
        };
        Endpoint::remote(Arc::clone(&self.transport), peer)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

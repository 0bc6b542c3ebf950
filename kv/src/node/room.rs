//! Room in bytes for what waits in a node on behalf of its callers: of the node, of one client, of one stream.
//!
//! Whoever wants more than is left waits, first come, first served. What one stream may hold is a part of what its
//! client may hold, and that a part of the node's: a client that does not read its answers, or asks for more than it
//! takes in, holds up itself, and the others have room.
//!
//! Always: what is held is given back when its holder is dropped; nothing waits for room while it holds some of the
//! same kind, so that no two wait for each other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quorate_transport::Identity;
use tokio::sync::OwnedSemaphorePermit;

use crate::machine::ReadClass;
use crate::room::Room;

/// Room that is taken in a stream's, a client's and the node's share at once.
#[derive(Debug, Clone)]
pub(super) struct SharedRoom([Room; 3]);

/// Bytes that are taken. Given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    permits: [OwnedSemaphorePermit; 3],
    /// What was asked for: of a share that is smaller it is all.
    bytes: usize,
}

impl SharedRoom {
    /// The narrowest first: who waits there holds nothing that others want. Cancel safe.
    pub(super) async fn take(&self, bytes: usize) -> Held {
        if let Some(held) = self.take_now(bytes) {
            return held;
        }
        let [stream, client, node] = &self.0;
        let stream = stream.take(bytes).await;
        let client = client.take(bytes).await;
        let permits = [stream, client, node.take(bytes).await];
        Held { permits, bytes }
    }

    /// Whether so many bytes are free just now.
    pub(super) fn has(&self, bytes: usize) -> bool {
        self.0.iter().all(|room| room.has(bytes))
    }

    /// So many bytes, if they are free, and nobody waits for them.
    pub(super) fn take_now(&self, bytes: usize) -> Option<Held> {
        let [stream, client, node] = &self.0;
        let permits = [
            stream.take_now(bytes)?,
            client.take_now(bytes)?,
            node.take_now(bytes)?,
        ];
        Some(Held { permits, bytes })
    }
}

impl Held {
    /// What it suffices for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what is more than this.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
        for permit in &mut self.permits {
            let surplus = permit.num_permits().saturating_sub(bytes);
            if surplus > 0 {
                drop(permit.split(surplus));
            }
        }
    }
}

/// The room of each kind.
#[derive(Debug, Clone)]
struct Kinds {
    /// Streams, whose calls that arrived together are here before there is room for them: no bytes, a place for each.
    streams: Room,
    /// Calls, from when they were read until their answers have left.
    calls: Room,
    /// Answers to reads of a few keys: what a small one needs from before it is made, and all of it once it is, until it has
    /// left.
    points: Room,
    /// The same to all other reads.
    scans: Room,
}

impl Kinds {
    fn part(&self, divisor: usize) -> Self {
        Self {
            streams: self.streams.part(divisor),
            calls: self.calls.part(divisor),
            points: self.points.part(divisor),
            scans: self.scans.part(divisor),
        }
    }
}

/// A node's room.
#[derive(Debug)]
pub(super) struct Rooms {
    node: Kinds,
    /// By the name in the certificate; of those that have a stream, or had one lately.
    clients: Mutex<BTreeMap<String, Weak<Kinds>>>,
    guests: AtomicU64,
}

/// The streams of all clients together. A client of the library opens one to each node.
const STREAMS_MAX: usize = 2_048;
/// What one client may have of the node's room, and one stream of its client's.
const CLIENT_PART: usize = 2;
const STREAM_PART: usize = 4;

impl Rooms {
    pub(super) fn new(calls: u64, answers: u64) -> Self {
        Self {
            node: Kinds {
                streams: Room::new(STREAMS_MAX as u64),
                calls: Room::new(calls),
                points: Room::new(answers / 4),
                scans: Room::new(answers - answers / 4),
            },
            clients: Mutex::default(),
            guests: AtomicU64::new(0),
        }
    }

    /// A new stream of this client, if there is a place for it.
    pub(super) fn guest(&self, client: &Identity) -> Option<Guest> {
        let client = self.client(client.to_string());
        let places = [client.streams.take_now(1)?, self.node.streams.take_now(1)?];
        Some(self.guest_of(client, STREAM_PART, Some(places)))
    }

    /// The callers in this process, who are as many as they like: together they are one client, and one stream.
    pub(super) fn here(&self, node: &Identity) -> Guest {
        self.guest_of(self.client(node.to_string()), 1, None)
    }

    fn guest_of(&self, client: Arc<Kinds>, part: usize, places: Option<[OwnedSemaphorePermit; 2]>) -> Guest {
        let stream = client.part(part);
        let shared =
            |kind: fn(&Kinds) -> &Room| SharedRoom([&stream, &*client, &self.node].map(|k| kind(k).clone()));
        Guest {
            number: GuestNumber(self.guests.fetch_add(1, Ordering::Relaxed)),
            calls: shared(|kinds| &kinds.calls),
            points: shared(|kinds| &kinds.points),
            scans: shared(|kinds| &kinds.scans),
            _client: client,
            _places: places,
        }
    }

    /// Waits until no call of a stream is under way, and lets none begin. Cancel safe.
    pub(super) async fn idle(&self) {
        let all = self.node.calls.take(usize::MAX).await;
        all.forget();
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        let Kinds {
            calls,
            points,
            scans,
            streams: _,
        } = &self.node;
        (calls.held(), points.held(), scans.held())
    }

    fn client(&self, name: String) -> Arc<Kinds> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&name).and_then(Weak::upgrade) {
            return client;
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(self.node.part(CLIENT_PART));
        clients.insert(name, Arc::downgrade(&client));
        client
    }
}

/// One stream of a client, or the callers in this process.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) number: GuestNumber,
    pub(super) calls: SharedRoom,
    points: SharedRoom,
    scans: SharedRoom,
    /// Kept, so that its other streams find it.
    _client: Arc<Kinds>,
    /// A stream's, of its client's and of the node's.
    _places: Option<[OwnedSemaphorePermit; 2]>,
}

impl Guest {
    /// The room for answers to reads of this class.
    pub(super) fn answers(&self, class: ReadClass) -> &SharedRoom {
        match class {
            ReadClass::Point => &self.points,
            ReadClass::Scan => &self.scans,
        }
    }
}

/// Tells one stream's work from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GuestNumber(u64);

#[cfg(test)]
impl GuestNumber {
    pub(super) const fn new(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(test)]
impl Guest {
    /// One of this number, in rooms of its own.
    pub(super) fn alone(number: u64, answers: u64) -> Self {
        use quorate_transport::ClusterId;
        let name = Identity::client(ClusterId::new("test").unwrap(), "alone").unwrap();
        let mut guest = Rooms::new(1 << 30, answers).guest(&name).unwrap();
        guest.number = GuestNumber(number);
        guest
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use quorate_transport::ClusterId;

    use super::*;

    fn rooms(bytes: u64) -> Rooms {
        Rooms::new(bytes, 1 << 30)
    }

    fn client(name: &str) -> Identity {
        Identity::client(ClusterId::new("test").unwrap(), name).unwrap()
    }

    fn guest(rooms: &Rooms, name: &str) -> Guest {
        rooms.guest(&client(name)).expect("a place")
    }

    #[test]
    fn streams_are_bounded_and_those_of_one_client_leave_places_to_the_others() {
        let rooms = rooms(800);
        let mut streams: Vec<Guest> = (0..STREAMS_MAX / CLIENT_PART)
            .map(|_| guest(&rooms, "a"))
            .collect();
        assert!(rooms.guest(&client("a")).is_none(), "its places are taken");
        let other = guest(&rooms, "b");
        streams.pop();
        let again = guest(&rooms, "a");
        drop((streams, other, again));
        let _all: Vec<Guest> = (0..STREAMS_MAX)
            .map(|number| guest(&rooms, &format!("c{}", number % 4)))
            .collect();
        assert!(rooms.guest(&client("d")).is_none(), "the node's places are taken");
    }

    #[test]
    fn a_stream_that_is_full_leaves_room_to_its_client_and_a_client_to_the_others() {
        let rooms = rooms(800);
        let (one, again, other) = (guest(&rooms, "a"), guest(&rooms, "a"), guest(&rooms, "b"));
        let full = one.calls.take(100).now_or_never().expect("a stream's share");
        assert!(one.calls.take(1).now_or_never().is_none(), "it is used up");
        let _rest: Vec<Held> = (0..3)
            .map(|_| {
                let stream = guest(&rooms, "a");
                stream.calls.take(100).now_or_never().expect("the client's share")
            })
            .collect();
        assert!(
            again.calls.take(1).now_or_never().is_none(),
            "the client's is used up"
        );
        let others = other.calls.take(100).now_or_never();
        assert!(others.is_some(), "another client has its own");
        drop(full);
        assert!(again.calls.take(1).now_or_never().is_some(), "it was given back");
    }

    #[test]
    fn what_is_larger_than_a_share_takes_all_of_it_and_is_never_stuck() {
        let rooms = rooms(800);
        let guest = guest(&rooms, "a");
        let mut held = guest.calls.take(1 << 30).now_or_never().expect("all there is");
        assert!(guest.calls.take(1).now_or_never().is_none());
        held.shrink(60);
        assert!(guest.calls.take(40).now_or_never().is_some());
        drop(held);
        assert_eq!(rooms.node.calls.held(), 0);
    }

    #[test]
    fn who_gives_up_waiting_holds_nothing() {
        let rooms = rooms(80);
        let guest = guest(&rooms, "a");
        let held = guest.calls.take(10).now_or_never().expect("all of the stream's");
        assert!(guest.calls.take(10).now_or_never().is_none());
        drop(held);
        assert_eq!(rooms.node.calls.held(), 0);
        assert!(guest.calls.take(10).now_or_never().is_some());
    }
}

//! What there is: places, links, connections and pipes, and how one finds one's way among them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::memory::link::{Link, LinkSettings};
use crate::memory::settings::NetworkSettings;
use crate::{Class, Identity, TransportError};

pub(in crate::memory) type PlaceId = usize;
pub(in crate::memory) type PipeId = u64;
pub(super) type ConnectionId = u64;
/// Opener, acceptor, and which node the opener expects there.
pub(super) type Way = (PlaceId, PlaceId, Option<u64>);

/// What an end says that noticed by silence alone.
pub(super) const SILENCE: &str = "no answer for the idle timeout";

/// The moment of a step: the clock's reading, and its random numbers.
pub(in crate::memory) struct Moment<'a> {
    pub(in crate::memory) now: Duration,
    pub(in crate::memory) random: &'a mut dyn FnMut() -> u64,
}

/// Where a transport lives: a node or a client, in one life or another.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) address: String,
    /// Which transport has the place: rises with each.
    pub(super) incarnation: u64,
    /// Who is there; `None` while nobody is.
    pub(super) occupant: Option<Identity>,
    /// Its host is up, and answers for a process that is not there.
    pub(super) powered: bool,
    /// Told whenever the occupant is gone.
    pub(super) emptied: Arc<Notify>,
    /// Streams that others opened, in the order of opening.
    pub(super) arrivals: Vec<Arrival>,
    /// Told whenever `accept` should look again, and whoever waits for room in `arrivals`.
    pub(super) changed: Arc<Notify>,
}

/// A stream on its way to `accept`.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) due: Duration,
    pub(super) class: Class,
    pub(super) from: Identity,
    pub(super) connection: ConnectionId,
    /// Read by who accepts.
    pub(super) requests: PipeId,
    /// Written by who accepts.
    pub(super) replies: PipeId,
}

/// One place and the life in which it takes part in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) place: PlaceId,
    pub(super) incarnation: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Break {
    pub(super) at: Duration,
    pub(super) reason: &'static str,
}

/// A connection: the opener's end, then the acceptor's.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) ends: [End; 2],
    /// When each end learns that it broke, once that is known.
    pub(super) breaks: [Option<Break>; 2],
    pub(super) pipes: BTreeSet<PipeId>,
}

/// What an opener knows of the way to a place.
#[derive(Debug, Default)]
pub(super) struct Dial {
    pub(super) connection: Option<ConnectionId>,
    pub(super) backoff: Backoff,
    pub(super) not_before: Duration,
    pub(super) last_failure: Option<TransportError>,
    pub(super) round_trip: Option<Duration>,
}

/// A message under way.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) due: Duration,
    pub(super) message: Bytes,
}

/// One direction of a stream.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) connection: ConnectionId,
    pub(super) class: Class,
    /// Which end of the connection sends.
    pub(super) sending: usize,
    pub(super) parcels: VecDeque<Parcel>,
    /// Sent and not yet received.
    pub(super) bytes: usize,
    /// When the last parcel arrives: none overtakes it.
    pub(super) last_due: Duration,
    /// When the word of the sender's regular end arrives.
    pub(super) finished: Option<Duration>,
    /// When the word of its abandonment arrives.
    pub(super) reset: Option<Duration>,
    /// When the sender learns that nobody reads.
    pub(super) stopped: Option<Duration>,
    pub(super) sender_gone: bool,
    pub(super) receiver_gone: bool,
    pub(super) readable: Arc<Notify>,
    pub(super) writable: Arc<Notify>,
}

/// What a receiver finds.
#[derive(Debug)]
pub(in crate::memory) enum Received {
    Messages(usize),
    Finished,
    /// Nothing yet; look again when told, and then at the latest.
    Nothing(Option<Duration>),
}

/// What became of a message that was offered.
#[derive(Debug)]
pub(in crate::memory) enum Offered {
    Taken,
    /// The pipe is full; look again when told, and then at the latest.
    Full(Option<Duration>),
}

/// What became of an attempt to open a stream.
#[derive(Debug)]
pub(in crate::memory) enum Opening {
    /// The two pipes: requests, replies.
    Opened(PipeId, PipeId),
    /// The acceptor's queue is full; look again when its place changes.
    Full(Arc<Notify>),
    /// There is no connection. A handshake takes this long; then call `handshake`.
    Dial(Duration),
}

/// What a probe of a place finds.
#[derive(Debug)]
pub(in crate::memory) enum Probe {
    /// The host will say, after this time, that nobody listens there.
    Closed(Duration),
    /// Nothing is said: the host is gone, or the way is.
    Silent,
    /// Somebody is there: look again when told that it is gone.
    Occupied,
}

/// What became of a handshake whose time is over.
#[derive(Debug)]
pub(in crate::memory) enum Handshake {
    /// Done: open again.
    Connected,
    /// Something on the way holds it back: try again when the network changes.
    Held,
}

#[derive(Debug)]
pub(in crate::memory) struct State {
    pub(super) settings: NetworkSettings,
    pub(super) default_link: LinkSettings,
    pub(super) next_id: u64,
    pub(super) places: Vec<Place>,
    pub(super) links: BTreeMap<(PlaceId, PlaceId), Link>,
    pub(super) dials: BTreeMap<Way, Dial>,
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) pipes: BTreeMap<PipeId, Pipe>,
    /// Messages that arrived when their sender's place had a successor already.
    pub(super) late_messages: u64,
}

impl State {
    pub(in crate::memory) fn new(settings: NetworkSettings) -> Self {
        Self {
            settings,
            default_link: LinkSettings::default(),
            next_id: 0,
            places: Vec::new(),
            links: BTreeMap::new(),
            dials: BTreeMap::new(),
            connections: BTreeMap::new(),
            pipes: BTreeMap::new(),
            late_messages: 0,
        }
    }

    pub(in crate::memory) fn under_way(&self) -> usize {
        self.pipes.values().map(|pipe| pipe.parcels.len()).sum()
    }

    pub(in crate::memory) fn late_messages(&self) -> u64 {
        self.late_messages
    }

    /// The place of an address, made if it was never named before: links are scripted before nodes start.
    pub(in crate::memory) fn place(&mut self, address: &str) -> PlaceId {
        if let Some(place) = self.places.iter().position(|place| place.address == address) {
            return place;
        }
        self.places.push(Place {
            address: address.to_owned(),
            incarnation: 0,
            occupant: None,
            powered: true,
            emptied: Arc::new(Notify::new()),
            arrivals: Vec::new(),
            changed: Arc::new(Notify::new()),
        });
        self.places.len() - 1
    }

    pub(in crate::memory) fn all_places(&self) -> std::ops::Range<PlaceId> {
        0..self.places.len()
    }

    pub(super) fn connections_of(&self, place: PlaceId) -> Vec<ConnectionId> {
        let of_place = |connection: &Connection| connection.ends.iter().any(|end| end.place == place);
        let matching = self
            .connections
            .iter()
            .filter(|(_, connection)| of_place(connection));
        matching.map(|(id, _)| *id).collect()
    }

    pub(super) fn lives(&self, end: End) -> bool {
        let place = &self.places[end.place];
        place.incarnation == end.incarnation && place.occupant.is_some()
    }

    /// Whether a later life has taken an end's place.
    pub(super) fn has_successor(&self, end: End) -> bool {
        let place = &self.places[end.place];
        place.incarnation > end.incarnation && place.occupant.is_some()
    }

    pub(in crate::memory) fn is_open(&self, place: PlaceId, incarnation: u64) -> bool {
        self.lives(End { place, incarnation })
    }

    pub(super) fn forget_unused(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let dialled = self.dials.values().any(|dial| dial.connection == Some(id));
        if connection.pipes.is_empty() && !dialled {
            self.connections.remove(&id);
        }
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn link(&mut self, from: PlaceId, to: PlaceId) -> &mut Link {
        let settings = &self.default_link;
        self.links
            .entry((from, to))
            .or_insert_with(|| Link::new(settings.clone()))
    }

    pub(super) fn wake_connection(&self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        for pipe in connection.pipes.iter().filter_map(|pipe| self.pipes.get(pipe)) {
            pipe.readable.notify_waiters();
            pipe.writable.notify_waiters();
        }
        for end in connection.ends {
            self.changed(end.place);
        }
    }

    pub(super) fn changed(&self, place: PlaceId) {
        self.places[place].changed.notify_waiters();
    }

    /// Told whenever something about the place changes.
    pub(in crate::memory) fn change(&self, place: PlaceId) -> Arc<Notify> {
        Arc::clone(&self.places[place].changed)
    }

    /// Why a connection is broken for one of its ends, if it is.
    pub(super) fn broken(&self, id: ConnectionId, end: usize, now: Duration) -> Option<TransportError> {
        let Some(connection) = self.connections.get(&id) else {
            return Some(broken("it is gone"));
        };
        if !self.lives(connection.ends[end]) {
            return Some(TransportError::Closed);
        }
        let (at, reason) = self.breaks_at(connection, end)?;
        (at <= now).then(|| broken(reason))
    }

    /// When a connection breaks for one of its ends, as things stand.
    pub(super) fn breaks_at(&self, connection: &Connection, end: usize) -> Option<(Duration, &'static str)> {
        let known = connection.breaks[end]
            .as_ref()
            .map(|known| (known.at, known.reason));
        let [a, b] = connection.ends.map(|end| end.place);
        let silent = |from, to| {
            let link: Option<&Link> = self.links.get(&(from, to));
            let at = link.and_then(|link| link.breaks_at(self.settings.idle_timeout));
            at.map(|at| (at, SILENCE))
        };
        [known, silent(a, b), silent(b, a)].into_iter().flatten().min()
    }
}

pub(super) fn broken(reason: &str) -> TransportError {
    TransportError::Broken {
        reason: reason.to_owned(),
    }
}

//! All that the network in memory knows: places, links, connections and the streams' messages.
//!
//! One value behind one lock, changed by short synchronous steps; whoever waits does so outside, on the
//! `Notify` of what it waits for, until the next moment that the step named. No task moves messages: each
//! bears the time of its arrival, and the reader looks at the time.
//!
//! Always: ids are given out in the order of the calls, and every collection is ordered, so that the same
//! calls at the same times with the same random numbers do the same; what a place's earlier incarnation
//! holds is never delivered to a later one; the parcels of a pipe arrive in the order in which they were
//! sent.

mod dial;
mod pipe;
mod probe;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::memory::link::{Link, LinkSettings, Passage};
use crate::memory::network::NetworkSettings;
use crate::{Class, Identity, TransportError};

pub(super) type PlaceId = usize;
pub(super) type PipeId = u64;
type ConnectionId = u64;
/// Opener, acceptor, and which node the opener expects there.
type Way = (PlaceId, PlaceId, Option<u64>);

/// What an end says that noticed by silence alone.
const SILENCE: &str = "no answer for the idle timeout";

/// The moment of a step: the clock's reading, and its random numbers.
pub(super) struct Moment<'a> {
    pub(super) now: Duration,
    pub(super) random: &'a mut dyn FnMut() -> u64,
}

/// Where a transport lives: a node or a client, in one life or another.
#[derive(Debug)]
struct Place {
    address: String,
    /// Which transport has the place: rises with each.
    incarnation: u64,
    /// Who is there; `None` while nobody is.
    occupant: Option<Identity>,
    /// Its host is up, and answers for a process that is not there.
    powered: bool,
    /// Told whenever the occupant is gone.
    emptied: Arc<Notify>,
    /// Streams that others opened, in the order of opening.
    arrivals: Vec<Arrival>,
    /// Told whenever `accept` should look again, and whoever waits for room in `arrivals`.
    changed: Arc<Notify>,
}

/// A stream on its way to `accept`.
#[derive(Debug)]
struct Arrival {
    due: Duration,
    class: Class,
    from: Identity,
    connection: ConnectionId,
    /// Read by who accepts.
    requests: PipeId,
    /// Written by who accepts.
    replies: PipeId,
}

/// One place and the life in which it takes part in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    place: PlaceId,
    incarnation: u64,
}

#[derive(Debug, Clone)]
struct Break {
    at: Duration,
    reason: &'static str,
}

/// A connection: the opener's end, then the acceptor's.
#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    /// When each end learns that it broke, once that is known.
    breaks: [Option<Break>; 2],
    pipes: BTreeSet<PipeId>,
}

/// What an opener knows of the way to a place.
#[derive(Debug, Default)]
struct Dial {
    connection: Option<ConnectionId>,
    backoff: Backoff,
    not_before: Duration,
    last_failure: Option<TransportError>,
    round_trip: Option<Duration>,
}

/// A message under way.
#[derive(Debug)]
struct Parcel {
    due: Duration,
    message: Bytes,
}

/// One direction of a stream.
#[derive(Debug)]
struct Pipe {
    connection: ConnectionId,
    class: Class,
    /// Which end of the connection sends.
    sending: usize,
    parcels: VecDeque<Parcel>,
    /// Sent and not yet received.
    bytes: usize,
    /// When the last parcel arrives: none overtakes it.
    last_due: Duration,
    /// When the word of the sender's regular end arrives.
    finished: Option<Duration>,
    /// When the word of its abandonment arrives.
    reset: Option<Duration>,
    /// When the sender learns that nobody reads.
    stopped: Option<Duration>,
    sender_gone: bool,
    receiver_gone: bool,
    readable: Arc<Notify>,
    writable: Arc<Notify>,
}

/// What a receiver finds.
#[derive(Debug)]
pub(super) enum Received {
    Messages(usize),
    Finished,
    /// Nothing yet; look again when told, and then at the latest.
    Nothing(Option<Duration>),
}

/// What became of a message that was offered.
#[derive(Debug)]
pub(super) enum Offered {
    Taken,
    /// The pipe is full; look again when told, and then at the latest.
    Full(Option<Duration>),
}

/// What became of an attempt to open a stream.
#[derive(Debug)]
pub(super) enum Opening {
    /// The two pipes: requests, replies.
    Opened(PipeId, PipeId),
    /// The acceptor's queue is full; look again when its place changes.
    Full(Arc<Notify>),
    /// There is no connection. A handshake takes this long; then call `handshake`.
    Dial(Duration),
}

/// What a probe of a place finds.
#[derive(Debug)]
pub(super) enum Probe {
    /// The host will say, after this time, that nobody listens there.
    Closed(Duration),
    /// Nothing is said: the host is gone, or the way is.
    Silent,
    /// Somebody is there: look again when told that it is gone.
    Occupied,
}

/// What became of a handshake whose time is over.
#[derive(Debug)]
pub(super) enum Handshake {
    /// Done: open again.
    Connected,
    /// Something on the way holds it back: try again when the network changes.
    Held,
}

#[derive(Debug)]
pub(super) struct State {
    settings: NetworkSettings,
    default_link: LinkSettings,
    next_id: u64,
    places: Vec<Place>,
    links: BTreeMap<(PlaceId, PlaceId), Link>,
    dials: BTreeMap<Way, Dial>,
    connections: BTreeMap<ConnectionId, Connection>,
    pipes: BTreeMap<PipeId, Pipe>,
    /// Messages that arrived when their sender's place had a successor already.
    late_messages: u64,
}

impl State {
    pub(super) fn new(settings: NetworkSettings) -> Self {
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

    pub(super) fn under_way(&self) -> usize {
        self.pipes.values().map(|pipe| pipe.parcels.len()).sum()
    }

    pub(super) fn late_messages(&self) -> u64 {
        self.late_messages
    }

    /// The place of an address, made if it was never named before: links are scripted before nodes start.
    pub(super) fn place(&mut self, address: &str) -> PlaceId {
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

    pub(super) fn all_places(&self) -> std::ops::Range<PlaceId> {
        0..self.places.len()
    }

    /// A transport takes the place; an earlier one that is still there crashed. Returns the incarnation.
    pub(super) fn occupy(&mut self, place: PlaceId, identity: Identity, moment: &mut Moment<'_>) -> u64 {
        self.crash(place, moment);
        // The newcomer does not know the connections of the earlier life and says so to whoever speaks on
        // them: the others need not wait for the idle timeout.
        for id in self.connections_of(place) {
            self.break_far_end(id, place, "the peer restarted", moment, true);
        }
        self.dials.retain(|(opener, ..), _| *opener != place);
        let taken = &mut self.places[place];
        taken.incarnation += 1;
        taken.occupant = Some(identity);
        taken.powered = true;
        let incarnation = taken.incarnation;
        self.changed(place);
        incarnation
    }

    /// The occupant dies: it says nothing to anyone, the others notice after the idle timeout.
    pub(super) fn crash(&mut self, place: PlaceId, moment: &mut Moment<'_>) {
        if self.places[place].occupant.take().is_some() {
            self.vacate(place, SILENCE, moment, false);
        }
    }

    /// As [`crash`](Self::crash), and the host is gone too.
    pub(super) fn vanish(&mut self, place: PlaceId, moment: &mut Moment<'_>) {
        self.crash(place, moment);
        self.places[place].powered = false;
    }

    /// The occupant takes leave: the others learn it as fast as a message travels.
    pub(super) fn leave(&mut self, place: PlaceId, incarnation: u64, moment: &mut Moment<'_>) {
        if self.lives(End { place, incarnation }) {
            self.places[place].occupant = None;
            self.vacate(place, "the peer shut down", moment, true);
        }
    }

    /// As [`crash`](Self::crash), if the place is still that incarnation's.
    pub(super) fn abandon(&mut self, place: PlaceId, incarnation: u64, moment: &mut Moment<'_>) {
        if self.lives(End { place, incarnation }) {
            self.crash(place, moment);
        }
    }

    fn vacate(&mut self, place: PlaceId, reason: &'static str, moment: &mut Moment<'_>, told: bool) {
        for arrival in std::mem::take(&mut self.places[place].arrivals) {
            self.drop_receiver(arrival.requests, moment);
            self.drop_sender(arrival.replies, moment);
        }
        for id in self.connections_of(place) {
            self.break_far_end(id, place, reason, moment, told);
        }
        self.changed(place);
        self.places[place].emptied.notify_waiters();
    }

    fn connections_of(&self, place: PlaceId) -> Vec<ConnectionId> {
        let of_place = |connection: &Connection| connection.ends.iter().any(|end| end.place == place);
        let matching = self
            .connections
            .iter()
            .filter(|(_, connection)| of_place(connection));
        matching.map(|(id, _)| *id).collect()
    }

    /// The end of a connection that is not at `place` will learn that the other is gone: by a message if it
    /// is `told` and the way is open, else by silence.
    fn break_far_end(
        &mut self,
        id: ConnectionId,
        place: PlaceId,
        reason: &'static str,
        moment: &mut Moment<'_>,
        told: bool,
    ) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        // A transport may speak to itself; then both ends are gone already.
        let Some(far) = connection.ends.iter().position(|end| end.place != place) else {
            return;
        };
        let far_place = connection.ends[far].place;
        let link = self.link(place, far_place);
        let after = match (told, link.passage) {
            (true, Passage::Open) => link.latency(moment.random),
            _ => self.settings.idle_timeout,
        };
        let at = moment.now + after;
        if let Some(connection) = self.connections.get_mut(&id) {
            let known = &mut connection.breaks[far];
            if known.as_ref().is_none_or(|earlier| earlier.at > at) {
                *known = Some(Break { at, reason });
            }
        }
        self.wake_connection(id);
    }

    fn lives(&self, end: End) -> bool {
        let place = &self.places[end.place];
        place.incarnation == end.incarnation && place.occupant.is_some()
    }

    /// Whether a later life has taken an end's place.
    fn has_successor(&self, end: End) -> bool {
        let place = &self.places[end.place];
        place.incarnation > end.incarnation && place.occupant.is_some()
    }

    pub(super) fn is_open(&self, place: PlaceId, incarnation: u64) -> bool {
        self.lives(End { place, incarnation })
    }
}

fn broken(reason: &str) -> TransportError {
    TransportError::Broken {
        reason: reason.to_owned(),
    }
}

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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::link::{Link, LinkSettings, Passage};
use super::network::NetworkSettings;
use crate::backoff::Backoff;
use crate::{Class, Identity, Peer, Role, TransportError};

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
        }
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
            arrivals: Vec::new(),
            changed: Arc::new(Notify::new()),
        });
        self.places.len() - 1
    }

    pub(super) fn all_places(&self) -> std::ops::Range<PlaceId> {
        0..self.places.len()
    }

    // ---- Lives ------------------------------------------------------------------------------------

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

    pub(super) fn is_open(&self, place: PlaceId, incarnation: u64) -> bool {
        self.lives(End { place, incarnation })
    }

    // ---- The script -------------------------------------------------------------------------------

    pub(super) fn set_default_link(&mut self, settings: LinkSettings) {
        for link in self.links.values_mut() {
            link.settings = settings.clone();
        }
        self.default_link = settings;
    }

    pub(super) fn set_link(&mut self, from: PlaceId, to: PlaceId, settings: LinkSettings) {
        self.link(from, to).settings = settings;
    }

    fn link(&mut self, from: PlaceId, to: PlaceId) -> &mut Link {
        let settings = &self.default_link;
        self.links
            .entry((from, to))
            .or_insert_with(|| Link::new(settings.clone()))
    }

    pub(super) fn cut(&mut self, from: PlaceId, to: PlaceId, moment: &mut Moment<'_>) {
        let link = self.link(from, to);
        if !matches!(link.passage, Passage::Cut { .. }) {
            // What a pause holds back stays held back, but the silence that breaks connections begins now.
            let held = link.held().unwrap_or(moment.now);
            let since = moment.now;
            link.passage = Passage::Cut { held, since };
        }
        self.wake_between(from, to);
    }

    pub(super) fn pause(&mut self, from: PlaceId, to: PlaceId, moment: &mut Moment<'_>) {
        let link = self.link(from, to);
        if link.passage == Passage::Open {
            link.passage = Passage::Paused { held: moment.now };
        }
        self.wake_between(from, to);
    }

    /// Ends a cut or a pause.
    pub(super) fn open_passage(&mut self, from: PlaceId, to: PlaceId, moment: &mut Moment<'_>) {
        let idle_timeout = self.settings.idle_timeout;
        let link = self.link(from, to);
        let (held, breaks_at) = (link.held(), link.breaks_at(idle_timeout));
        link.passage = Passage::Open;
        // Those that broke in the meantime stay broken, whether anybody looked or not.
        if let Some(at) = breaks_at
            && at <= moment.now
        {
            self.break_between(from, to, at, SILENCE);
        }
        if let Some(held) = held {
            self.release(from, to, held, moment);
        }
        self.wake_between(from, to);
    }

    /// What the link held back since then is sent anew.
    fn release(&mut self, from: PlaceId, to: PlaceId, since: Duration, moment: &mut Moment<'_>) {
        let resent = self.link(from, to).word(moment.now, moment.random);
        let held = |due: &mut Duration| {
            if *due > since {
                *due = resent.max(*due);
            }
        };
        for pipe in self.pipes.values_mut() {
            let Some(connection) = self.connections.get(&pipe.connection) else {
                continue;
            };
            let sender = connection.ends[pipe.sending].place;
            let receiver = connection.ends[1 - pipe.sending].place;
            if (sender, receiver) == (from, to) {
                pipe.parcels.iter_mut().for_each(|parcel| held(&mut parcel.due));
                pipe.finished.iter_mut().for_each(held);
                pipe.reset.iter_mut().for_each(held);
                held(&mut pipe.last_due);
            }
            if (receiver, sender) == (from, to) {
                pipe.stopped.iter_mut().for_each(held);
            }
        }
        for arrival in &mut self.places[to].arrivals {
            let opener = self.connections.get(&arrival.connection);
            if opener.is_some_and(|connection| connection.ends[0].place == from) {
                held(&mut arrival.due);
            }
        }
    }

    /// Breaks all connections between two places, for both, at a moment.
    pub(super) fn break_between(&mut self, a: PlaceId, b: PlaceId, at: Duration, reason: &'static str) {
        for id in self.connections_of(a) {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let places = connection.ends.map(|end| end.place);
            if places != [a, b] && places != [b, a] {
                continue;
            }
            for known in &mut connection.breaks {
                if known.as_ref().is_none_or(|earlier| earlier.at > at) {
                    *known = Some(Break { at, reason });
                }
            }
            self.wake_connection(id);
        }
    }

    fn wake_connection(&self, id: ConnectionId) {
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

    fn wake_between(&self, from: PlaceId, to: PlaceId) {
        for id in self.connections_of(from) {
            self.wake_connection(id);
        }
        self.changed(from);
        self.changed(to);
    }

    fn changed(&self, place: PlaceId) {
        self.places[place].changed.notify_waiters();
    }

    /// Told whenever something about the place changes.
    pub(super) fn change(&self, place: PlaceId) -> Arc<Notify> {
        Arc::clone(&self.places[place].changed)
    }

    // ---- Opening ----------------------------------------------------------------------------------

    /// One attempt to open a stream.
    pub(super) fn open(
        &mut self,
        place: PlaceId,
        incarnation: u64,
        peer: &Peer,
        class: Class,
        moment: &mut Moment<'_>,
    ) -> Result<Opening, TransportError> {
        let opener = End { place, incarnation };
        if !self.lives(opener) {
            return Err(TransportError::Closed);
        }
        let to = self.place(&peer.address);
        let way = (place, to, peer.node_id);
        let dial = self.dials.entry(way).or_default();
        if let Some(id) = dial.connection {
            if self.connections.contains_key(&id) && self.broken(id, 0, moment.now).is_none() {
                return self.open_on(id, class, moment);
            }
            self.hang_up(way);
        }
        let dial = self.dials.entry(way).or_default();
        if dial.not_before > moment.now
            && let Some(failure) = &dial.last_failure
        {
            return Err(failure.clone());
        }
        let there = self.link(place, to).latency(moment.random);
        let back = self.link(to, place).latency(moment.random);
        Ok(Opening::Dial(there + back))
    }

    /// The time of a handshake is over: did it succeed?
    pub(super) fn handshake(
        &mut self,
        place: PlaceId,
        incarnation: u64,
        peer: &Peer,
        took: Duration,
        moment: &mut Moment<'_>,
    ) -> Result<Handshake, TransportError> {
        let opener = End { place, incarnation };
        let own = match &self.places[place].occupant {
            Some(own) if self.lives(opener) => own.clone(),
            _ => return Err(TransportError::Closed),
        };
        let to = self.place(&peer.address);
        let way = (place, to, peer.node_id);
        let dial = self.dials.entry(way).or_default();
        if let Some(id) = dial.connection
            && self.connections.contains_key(&id)
            && self.broken(id, 0, moment.now).is_none()
        {
            // Another caller's handshake was faster.
            return Ok(Handshake::Connected);
        }
        let passable = |link: &mut Link| link.passage == Passage::Open;
        if !passable(self.link(place, to)) || !passable(self.link(to, place)) {
            return Ok(Handshake::Held);
        }
        let address = || peer.address.clone();
        let refusal = match &self.places[to].occupant {
            None => {
                let reason = "nobody listens there".to_owned();
                let address = address();
                return Err(self.dial_failed(way, TransportError::Unreachable { address, reason }, moment));
            }
            Some(theirs) => refusal(&own, theirs, peer.node_id),
        };
        if let Some(reason) = refusal {
            let address = address();
            return Err(self.dial_failed(way, TransportError::Refused { address, reason }, moment));
        }
        let acceptor = End {
            place: to,
            incarnation: self.places[to].incarnation,
        };
        let id = self.id();
        self.connections.insert(
            id,
            Connection {
                ends: [opener, acceptor],
                breaks: [None, None],
                pipes: BTreeSet::new(),
            },
        );
        self.hang_up(way);
        let dial = self.dials.entry(way).or_default();
        dial.connection = Some(id);
        dial.round_trip = Some(took);
        dial.backoff.succeeded();
        dial.last_failure = None;
        Ok(Handshake::Connected)
    }

    /// The way to a place failed: it is left alone for a while. Returns the failure.
    pub(super) fn failed(
        &mut self,
        place: PlaceId,
        peer: &Peer,
        failure: TransportError,
        moment: &mut Moment<'_>,
    ) -> TransportError {
        let to = self.place(&peer.address);
        self.dial_failed((place, to, peer.node_id), failure, moment)
    }

    fn dial_failed(&mut self, way: Way, failure: TransportError, moment: &mut Moment<'_>) -> TransportError {
        let settings = self.settings.backoff;
        let dial = self.dials.entry(way).or_default();
        let delay = dial.backoff.failed(&settings, (moment.random)());
        dial.not_before = moment.now + delay;
        dial.last_failure = Some(failure.clone());
        failure
    }

    /// Forgets a dial's connection, and the connection too where no stream needs it.
    fn hang_up(&mut self, way: Way) {
        let dial = self.dials.entry(way).or_default();
        dial.round_trip = None;
        if let Some(id) = dial.connection.take() {
            self.forget_unused(id);
        }
    }

    fn forget_unused(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let dialled = self.dials.values().any(|dial| dial.connection == Some(id));
        if connection.pipes.is_empty() && !dialled {
            self.connections.remove(&id);
        }
    }

    fn open_on(
        &mut self,
        id: ConnectionId,
        class: Class,
        moment: &mut Moment<'_>,
    ) -> Result<Opening, TransportError> {
        let Some(connection) = self.connections.get(&id) else {
            return Err(broken("it is gone"));
        };
        let [opener, acceptor] = connection.ends;
        let Some(own) = self.places[opener.place].occupant.clone() else {
            return Err(TransportError::Closed);
        };
        let waiting = &self.places[acceptor.place].arrivals;
        let of_class = waiting.iter().filter(|arrival| arrival.class == class);
        if self.lives(acceptor) && of_class.count() >= self.settings.streams_waiting_max {
            return Ok(Opening::Full(self.change(acceptor.place)));
        }
        let requests = self.pipe(id, class, 0);
        let replies = self.pipe(id, class, 1);
        if self.lives(acceptor) {
            let link = self.link(opener.place, acceptor.place);
            let due = link.arrival(class, 2, moment.now, moment.random);
            self.places[acceptor.place].arrivals.push(Arrival {
                due,
                class,
                from: own,
                connection: id,
                requests,
                replies,
            });
            self.changed(acceptor.place);
        } else {
            // Nobody will ever take it: its halves over there are gone, and the break will be noticed.
            for (pipe, far_sends) in [(requests, false), (replies, true)] {
                if let Some(pipe) = self.pipes.get_mut(&pipe) {
                    pipe.sender_gone = far_sends;
                    pipe.receiver_gone = !far_sends;
                }
            }
        }
        Ok(Opening::Opened(requests, replies))
    }

    fn pipe(&mut self, connection: ConnectionId, class: Class, sending: usize) -> PipeId {
        let id = self.id();
        self.pipes.insert(
            id,
            Pipe {
                connection,
                class,
                sending,
                parcels: VecDeque::new(),
                bytes: 0,
                last_due: Duration::ZERO,
                finished: None,
                reset: None,
                stopped: None,
                sender_gone: false,
                receiver_gone: false,
                readable: Arc::new(Notify::new()),
                writable: Arc::new(Notify::new()),
            },
        );
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.pipes.insert(id);
        }
        id
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The most urgent stream that arrived: who opened it, its class, requests and replies. Otherwise when
    /// the next one arrives, as far as that is known.
    #[allow(clippy::type_complexity)]
    pub(super) fn accept(
        &mut self,
        place: PlaceId,
        now: Duration,
    ) -> Result<(Identity, Class, PipeId, PipeId), Option<Duration>> {
        let mut best: Option<(usize, Class)> = None;
        let mut next: Option<Duration> = None;
        for index in 0..self.places[place].arrivals.len() {
            let (due, class, id) = {
                let arrival = &self.places[place].arrivals[index];
                (arrival.due, arrival.class, arrival.connection)
            };
            let Some(connection) = self.connections.get(&id) else {
                continue;
            };
            let opener = connection.ends[0].place;
            let link = self.link(opener, place);
            let (passage, horizon) = (link.passage, link.horizon(now));
            if due > horizon {
                if passage == Passage::Open {
                    next = Some(next.map_or(due, |next| next.min(due)));
                }
            } else if best.is_none_or(|(_, urgent)| class < urgent) {
                best = Some((index, class));
            }
        }
        let Some((index, _)) = best else {
            return Err(next);
        };
        let arrival = self.places[place].arrivals.remove(index);
        self.changed(place);
        Ok((arrival.from, arrival.class, arrival.requests, arrival.replies))
    }

    pub(super) fn round_trip(&self, place: PlaceId, node_id: u64) -> Option<Duration> {
        let is_node = |to: &PlaceId| {
            let occupant = &self.places[*to].occupant;
            occupant.as_ref().and_then(Identity::node_id) == Some(node_id)
        };
        let mut dials = self.dials.iter().filter(|((opener, ..), _)| *opener == place);
        dials.find_map(|((_, to, _), dial)| if is_node(to) { dial.round_trip } else { None })
    }

    // ---- Streams ----------------------------------------------------------------------------------

    /// Why a connection is broken for one of its ends, if it is.
    fn broken(&self, id: ConnectionId, end: usize, now: Duration) -> Option<TransportError> {
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
    fn breaks_at(&self, connection: &Connection, end: usize) -> Option<(Duration, &'static str)> {
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

    /// Up to when arrivals from one place are visible at another.
    fn horizon(&self, from: PlaceId, to: PlaceId, now: Duration) -> (Duration, bool) {
        match self.links.get(&(from, to)) {
            Some(link) => (link.horizon(now), link.passage == Passage::Open),
            None => (now, true),
        }
    }

    /// Takes all messages that arrived.
    pub(super) fn receive(
        &mut self,
        id: PipeId,
        messages: &mut Vec<Bytes>,
        now: Duration,
    ) -> Result<Received, TransportError> {
        let Some(pipe) = self.pipes.get(&id) else {
            return Err(broken("it is gone"));
        };
        let Some(connection) = self.connections.get(&pipe.connection) else {
            return Err(broken("it is gone"));
        };
        let receiving = 1 - pipe.sending;
        if !self.lives(connection.ends[receiving]) {
            return Err(TransportError::Closed);
        }
        let (sender, receiver) = (
            connection.ends[pipe.sending].place,
            connection.ends[receiving].place,
        );
        let (mut horizon, open) = self.horizon(sender, receiver, now);
        let breaks = self.breaks_at(connection, receiving);
        if let Some((at, _)) = breaks {
            horizon = horizon.min(at);
        }
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return Err(broken("it is gone"));
        };
        if pipe.reset.is_some_and(|due| due <= horizon) {
            return Err(broken("the peer gave the stream up"));
        }
        let mut count = 0;
        while let Some(parcel) = pipe.parcels.pop_front_if(|parcel| parcel.due <= horizon) {
            pipe.bytes -= parcel.message.len();
            messages.push(parcel.message);
            count += 1;
        }
        if count > 0 {
            pipe.writable.notify_waiters();
            return Ok(Received::Messages(count));
        }
        if pipe.parcels.is_empty() && pipe.finished.is_some_and(|due| due <= horizon) {
            return Ok(Received::Finished);
        }
        if let Some((at, reason)) = breaks
            && at <= now
        {
            return Err(broken(reason));
        }
        let mut next = breaks.map(|(at, _)| at);
        if open {
            let arrivals = [
                pipe.parcels.front().map(|parcel| parcel.due),
                pipe.finished,
                pipe.reset,
            ];
            next = arrivals.into_iter().chain([next]).flatten().min();
        }
        Ok(Received::Nothing(next))
    }

    /// Sends a message, if there is room for it.
    pub(super) fn offer(
        &mut self,
        id: PipeId,
        message: &Bytes,
        moment: &mut Moment<'_>,
    ) -> Result<Offered, TransportError> {
        let (sender, receiver, next) = self.may_send(id, moment.now)?;
        let Some(pipe) = self.pipes.get(&id) else {
            return Err(broken("it is gone"));
        };
        if pipe.bytes >= self.settings.stream_bytes_max {
            return Ok(Offered::Full(next));
        }
        let class = pipe.class;
        let link = self.link(sender, receiver);
        let due = link.arrival(class, message.len() + 4, moment.now, moment.random);
        if let Some(pipe) = self.pipes.get_mut(&id)
            // Nobody reads over there, and the word of it is still under way.
            && !pipe.receiver_gone
        {
            pipe.last_due = pipe.last_due.max(due);
            pipe.bytes += message.len();
            pipe.parcels.push_back(Parcel {
                due: pipe.last_due,
                message: message.clone(),
            });
            pipe.readable.notify_waiters();
        }
        Ok(Offered::Taken)
    }

    /// Says that no message follows.
    pub(super) fn finish(&mut self, id: PipeId, moment: &mut Moment<'_>) -> Result<(), TransportError> {
        let (sender, receiver, _) = self.may_send(id, moment.now)?;
        let due = self.link(sender, receiver).word(moment.now, moment.random);
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.finished = Some(pipe.last_due.max(due));
            pipe.readable.notify_waiters();
        }
        Ok(())
    }

    /// The way of a pipe, and the next moment at which it may turn out to be broken.
    fn may_send(
        &self,
        id: PipeId,
        now: Duration,
    ) -> Result<(PlaceId, PlaceId, Option<Duration>), TransportError> {
        let Some(pipe) = self.pipes.get(&id) else {
            return Err(broken("it is gone"));
        };
        if let Some(failure) = self.broken(pipe.connection, pipe.sending, now) {
            return Err(failure);
        }
        let Some(connection) = self.connections.get(&pipe.connection) else {
            return Err(broken("it is gone"));
        };
        let sender = connection.ends[pipe.sending].place;
        let receiver = connection.ends[1 - pipe.sending].place;
        let (horizon, open) = self.horizon(receiver, sender, now);
        if pipe.stopped.is_some_and(|due| due <= horizon) {
            return Err(broken("the peer stopped receiving"));
        }
        let mut next = self.breaks_at(connection, pipe.sending).map(|(at, _)| at);
        if open {
            next = [next, pipe.stopped].into_iter().flatten().min();
        }
        Ok((sender, receiver, next))
    }

    pub(super) fn readable(&self, id: PipeId) -> Option<Arc<Notify>> {
        self.pipes.get(&id).map(|pipe| Arc::clone(&pipe.readable))
    }

    pub(super) fn writable(&self, id: PipeId) -> Option<Arc<Notify>> {
        self.pipes.get(&id).map(|pipe| Arc::clone(&pipe.writable))
    }

    /// The sending half is gone; without [`finish`](Self::finish) that resets the stream.
    pub(super) fn drop_sender(&mut self, id: PipeId, moment: &mut Moment<'_>) {
        let arrives = self.travel(id, true, moment);
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        pipe.sender_gone = true;
        if pipe.finished.is_none() {
            pipe.reset = arrives;
        }
        pipe.readable.notify_waiters();
        self.forget_pipe(id);
    }

    /// The receiving half is gone: the sender will be told.
    pub(super) fn drop_receiver(&mut self, id: PipeId, moment: &mut Moment<'_>) {
        let arrives = self.travel(id, false, moment);
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        pipe.receiver_gone = true;
        pipe.stopped = arrives;
        pipe.parcels.clear();
        pipe.bytes = 0;
        pipe.writable.notify_waiters();
        self.forget_pipe(id);
    }

    /// When a word of one end of the pipe, sent now, reaches the other; `None` where the end is dead and
    /// says nothing.
    fn travel(&mut self, id: PipeId, by_sender: bool, moment: &mut Moment<'_>) -> Option<Duration> {
        let pipe = self.pipes.get(&id)?;
        let connection = self.connections.get(&pipe.connection)?;
        let from = if by_sender { pipe.sending } else { 1 - pipe.sending };
        let (from, to) = (connection.ends[from], connection.ends[1 - from]);
        if !self.lives(from) {
            return None;
        }
        Some(self.link(from.place, to.place).word(moment.now, moment.random))
    }

    fn forget_pipe(&mut self, id: PipeId) {
        let Some(pipe) = self.pipes.get(&id) else {
            return;
        };
        if !(pipe.sender_gone && pipe.receiver_gone) {
            return;
        }
        let connection = pipe.connection;
        self.pipes.remove(&id);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.pipes.remove(&id);
        }
        self.forget_unused(connection);
    }

    #[cfg(test)]
    pub(super) fn pipe_count(&self) -> usize {
        self.pipes.len()
    }
}

fn broken(reason: &str) -> TransportError {
    TransportError::Broken {
        reason: reason.to_owned(),
    }
}

/// Why two do not speak with each other, if they do not.
fn refusal(own: &Identity, theirs: &Identity, expected: Option<u64>) -> Option<String> {
    if theirs.cluster != own.cluster {
        return Some(format!("{theirs} is of another cluster than {own}"));
    }
    match (&theirs.role, expected) {
        (Role::Client(_), _) => Some(format!("{theirs} is no node")),
        (Role::Node(id), Some(expected)) if *id != expected => {
            Some(format!("node {id} is there, not node {expected}"))
        }
        (Role::Node(_), _) => None,
    }
}

//! Opening and accepting: handshakes, backoff, and streams on their way to the acceptor.
//!
//! Always: a connection is made only while both directions are open and the right node is there; during a
//! backoff the last failure is the answer.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::world::{
    Arrival, Connection, ConnectionId, End, Handshake, Moment, Opening, Pipe, PipeId, PlaceId, State, Way,
    broken,
};
use crate::memory::link::{Link, Passage};
use crate::{Class, Identity, Peer, RefusedBecause, Role, TransportError};

impl State {
    /// One attempt to open a stream.
    pub(in crate::memory) fn open(
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
        let to = self.place(peer.address.as_str());
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
    pub(in crate::memory) fn handshake(
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
        let to = self.place(peer.address.as_str());
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
        let address = || peer.address.to_string();
        let refusal = match &self.places[to].occupant {
            None => {
                let reason = "nobody listens there".to_owned();
                let address = address();
                return Err(self.dial_failed(way, TransportError::Unreachable { address, reason }, moment));
            }
            Some(theirs) => refusal(&own, theirs, peer.node_id),
        };
        if let Some((because, reason)) = refusal {
            let refused = TransportError::Refused {
                address: address(),
                because,
                reason,
            };
            return Err(self.dial_failed(way, refused, moment));
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
    pub(in crate::memory) fn failed(
        &mut self,
        place: PlaceId,
        peer: &Peer,
        failure: TransportError,
        moment: &mut Moment<'_>,
    ) -> TransportError {
        let to = self.place(peer.address.as_str());
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

    /// The most urgent stream that arrived: who opened it, its class, requests and replies. Otherwise when
    /// the next one arrives, as far as that is known.
    #[allow(clippy::type_complexity)]
    pub(in crate::memory) fn accept(
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

    pub(in crate::memory) fn round_trip(&self, place: PlaceId, node_id: u64) -> Option<Duration> {
        let is_node = |to: &PlaceId| {
            let occupant = &self.places[*to].occupant;
            occupant.as_ref().and_then(Identity::node_id) == Some(node_id)
        };
        let from_here = self.dials.range((place, PlaceId::MIN, None)..);
        let mut from_here = from_here.take_while(|((opener, ..), _)| *opener == place);
        from_here.find_map(|((_, to, _), dial)| if is_node(to) { dial.round_trip } else { None })
    }
}

/// Why two do not speak with each other, if they do not.
fn refusal(own: &Identity, theirs: &Identity, expected: Option<u64>) -> Option<(RefusedBecause, String)> {
    use RefusedBecause::{WrongCluster, WrongNode};
    if theirs.cluster != own.cluster {
        return Some((WrongCluster, format!("{theirs} is of another cluster than {own}")));
    }
    match (&theirs.role, expected) {
        (Role::Client(_), _) => Some((WrongNode, format!("{theirs} is no node"))),
        (Role::Node(id), Some(expected)) if *id != expected => {
            Some((WrongNode, format!("node {id} is there, not node {expected}")))
        }
        (Role::Node(_), _) => None,
    }
}

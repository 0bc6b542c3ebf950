//! Who comes to a place and who leaves it, and what the others learn of that.

use super::world::{Break, ConnectionId, End, Moment, PlaceId, SILENCE, State};
use crate::Identity;
use crate::memory::link::Passage;

impl State {
    /// A transport takes the place; an earlier one that is still there crashed. Returns the incarnation.
    pub(in crate::memory) fn occupy(
        &mut self,
        place: PlaceId,
        identity: Identity,
        moment: &mut Moment<'_>,
    ) -> u64 {
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
    pub(in crate::memory) fn crash(&mut self, place: PlaceId, moment: &mut Moment<'_>) {
        if self.places[place].occupant.take().is_some() {
            self.vacate(place, SILENCE, moment, false);
        }
    }

    /// As [`crash`](Self::crash), and the host is gone too.
    pub(in crate::memory) fn vanish(&mut self, place: PlaceId, moment: &mut Moment<'_>) {
        self.crash(place, moment);
        self.places[place].powered = false;
    }

    /// The occupant takes leave: the others learn it as fast as a message travels.
    pub(in crate::memory) fn leave(&mut self, place: PlaceId, incarnation: u64, moment: &mut Moment<'_>) {
        if self.lives(End { place, incarnation }) {
            self.places[place].occupant = None;
            self.vacate(place, "the peer shut down", moment, true);
        }
    }

    /// As [`crash`](Self::crash), if the place is still that incarnation's.
    pub(in crate::memory) fn abandon(&mut self, place: PlaceId, incarnation: u64, moment: &mut Moment<'_>) {
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
}

//! What the script does to the links, and through them to the connections.
//!
//! Always: what a closed link held back is delivered after it opened, in order; what broke meanwhile stays
//! broken, whether anybody looked or not.

use std::time::Duration;

use super::world::{Break, Moment, PlaceId, SILENCE, State};
use crate::memory::link::{LinkSettings, Passage};

impl State {
    pub(in crate::memory) fn set_default_link(&mut self, settings: LinkSettings) {
        for link in self.links.values_mut() {
            link.settings = settings.clone();
        }
        self.default_link = settings;
    }

    pub(in crate::memory) fn set_link(&mut self, from: PlaceId, to: PlaceId, settings: LinkSettings) {
        self.link(from, to).settings = settings;
    }

    pub(in crate::memory) fn cut(&mut self, from: PlaceId, to: PlaceId, moment: &mut Moment<'_>) {
        let link = self.link(from, to);
        if !matches!(link.passage, Passage::Cut { .. }) {
            // What a pause holds back stays held back, but the silence that breaks connections begins now.
            let held = link.held().unwrap_or(moment.now);
            let since = moment.now;
            link.passage = Passage::Cut { held, since };
        }
        self.wake_between(from, to);
    }

    pub(in crate::memory) fn pause(&mut self, from: PlaceId, to: PlaceId, moment: &mut Moment<'_>) {
        let link = self.link(from, to);
        if link.passage == Passage::Open {
            link.passage = Passage::Paused { held: moment.now };
        }
        self.wake_between(from, to);
    }

    /// Ends a cut or a pause.
    pub(in crate::memory) fn open_passage(&mut self, from: PlaceId, to: PlaceId, moment: &mut Moment<'_>) {
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
    pub(in crate::memory) fn break_between(
        &mut self,
        a: PlaceId,
        b: PlaceId,
        at: Duration,
        reason: &'static str,
    ) {
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

    fn wake_between(&self, from: PlaceId, to: PlaceId) {
        for id in self.connections_of(from) {
            self.wake_connection(id);
        }
        self.changed(from);
        self.changed(to);
    }
}

//! Whether anybody is at a place, as its host says.
//!
//! Always: only a host that is up answers, only for a place where nobody is, and only where the question and the
//! answer both get through.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::world::{End, Moment, PlaceId, Probe, State};
use crate::memory::link::Passage;

impl State {
    /// What a probe that is sent now finds; `None` for an asker who is gone.
    pub(in crate::memory) fn probe(
        &mut self,
        place: PlaceId,
        incarnation: u64,
        to: PlaceId,
        moment: &mut Moment<'_>,
    ) -> Option<Probe> {
        if !self.lives(End { place, incarnation }) {
            return None;
        }
        if self.places[to].occupant.is_some() {
            return Some(Probe::Occupied);
        }
        if !self.places[to].powered {
            return Some(Probe::Silent);
        }
        let mut took = Duration::ZERO;
        for (from, to) in [(place, to), (to, place)] {
            if !self.passes(from, to) || self.link(from, to).loses(moment.random) {
                return Some(Probe::Silent);
            }
            took += self.link(from, to).latency(moment.random);
        }
        Some(Probe::Closed(took))
    }

    /// Whether anything gets from one place to another now.
    pub(in crate::memory) fn passes(&mut self, from: PlaceId, to: PlaceId) -> bool {
        self.link(from, to).passage == Passage::Open
    }

    /// Told whenever a place's occupant is gone.
    pub(in crate::memory) fn emptied(&self, place: PlaceId) -> Arc<Notify> {
        Arc::clone(&self.places[place].emptied)
    }
}

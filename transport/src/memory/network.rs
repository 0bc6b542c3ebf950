//! The network: who is where, and the script of what happens between them.

use std::sync::{Arc, Mutex};

use super::clock::Clock;
use super::link::LinkSettings;
use super::settings::NetworkSettings;
use super::shared::Shared;
use super::state::State;
use super::transport::MemoryTransport;
use crate::Identity;

/// A network of transports in memory. Cheap to clone; every clone is the same network.
///
/// Places are named by their address, in its one form where peers are to find them; a client's may be any text. A script may name an address before a transport is there,
/// and stays in force over restarts. All calls take effect at once.
#[derive(Debug, Clone)]
pub struct MemoryNetwork {
    shared: Arc<Shared>,
}

impl MemoryNetwork {
    /// A network without delays, losses and cuts.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_settings(clock, NetworkSettings::default())
    }

    /// A network with other limits and timeouts.
    pub fn with_settings(clock: Arc<dyn Clock>, settings: NetworkSettings) -> Self {
        let state = Mutex::new(State::new(settings.clone()));
        Self {
            shared: Arc::new(Shared {
                clock,
                settings,
                state,
            }),
        }
    }

    /// A transport at an address, for a node or a client. One that is there already crashes, as if its
    /// process had been replaced: its streams end, and nothing sent to it reaches the new one.
    pub fn transport(&self, identity: Identity, address: &str) -> Arc<MemoryTransport> {
        let (place, incarnation) = self.shared.step(|state, moment| {
            let place = state.place(address);
            (place, state.occupy(place, identity.clone(), moment))
        });
        let shared = Arc::clone(&self.shared);
        Arc::new(MemoryTransport::new(
            shared,
            identity,
            address,
            place,
            incarnation,
        ))
    }

    /// Kills whoever is at an address without a word: its own streams answer `Closed`, those of others break
    /// after the idle timeout, or when a successor is there. Its host lives on and says, to those who
    /// [ask](crate::Transport::ended), that nobody is there.
    pub fn crash(&self, address: &str) {
        self.shared.step(|state, moment| {
            let place = state.place(address);
            state.crash(place, moment);
        });
    }

    /// As [`crash`](Self::crash), and the host is gone too, as after a loss of power: nothing answers for it until a
    /// transport is there again. May follow a `crash`.
    pub fn vanish(&self, address: &str) {
        self.shared.step(|state, moment| {
            let place = state.place(address);
            state.vanish(place, moment);
        });
    }

    /// Sets all links, those not yet named too.
    pub fn set_links(&self, settings: LinkSettings) {
        self.shared.step(|state, _| state.set_default_link(settings));
    }

    /// Sets one direction between two addresses.
    pub fn set_link(&self, from: &str, to: &str, settings: LinkSettings) {
        self.shared.step(|state, _| {
            let (from, to) = (state.place(from), state.place(to));
            state.set_link(from, to, settings);
        });
    }

    /// Cuts one direction: nothing arrives, and after the idle timeout the connections break.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.shared.step(|state, moment| {
            let (from, to) = (state.place(from), state.place(to));
            state.cut(from, to, moment);
        });
    }

    /// Cuts both directions.
    pub fn cut(&self, a: &str, b: &str) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts an address off from all others.
    pub fn isolate(&self, address: &str) {
        self.shared.step(|state, moment| {
            let place = state.place(address);
            for other in state.all_places().filter(|other| *other != place) {
                state.cut(place, other, moment);
                state.cut(other, place, moment);
            }
        });
    }

    /// Cuts every link between two of these groups of addresses. Links inside a group, and those of
    /// addresses in no group, stay as they are.
    pub fn partition(&self, groups: &[&[&str]]) {
        for (index, group) in groups.iter().enumerate() {
            for other in &groups[index + 1..] {
                for (a, b) in group.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
                    self.cut(a, b);
                }
            }
        }
    }

    /// Holds one direction back: nothing arrives until [`heal`](Self::heal), and no connection breaks, however
    /// long it lasts.
    pub fn pause(&self, from: &str, to: &str) {
        self.shared.step(|state, moment| {
            let (from, to) = (state.place(from), state.place(to));
            state.pause(from, to, moment);
        });
    }

    /// Half-open: what `a` sends arrives at `b`, what `b` sends does not come back, and no connection
    /// breaks. A pause of the way from `b` to `a`.
    pub fn half_open(&self, a: &str, b: &str) {
        self.pause(b, a);
    }

    /// Ends cuts and pauses between two addresses, in both directions. What was held back arrives now,
    /// unless its connection broke meanwhile.
    pub fn heal(&self, a: &str, b: &str) {
        self.shared.step(|state, moment| {
            let (a, b) = (state.place(a), state.place(b));
            state.open_passage(a, b, moment);
            state.open_passage(b, a, moment);
        });
    }

    /// Ends all cuts and pauses.
    pub fn heal_all(&self) {
        self.shared.step(|state, moment| {
            for from in state.all_places() {
                for to in state.all_places() {
                    state.open_passage(from, to, moment);
                }
            }
        });
    }

    /// Breaks all present connections between two addresses, for both ends, now. New ones can be made.
    pub fn fail_streams(&self, a: &str, b: &str) {
        self.shared.step(|state, moment| {
            let (a, b) = (state.place(a), state.place(b));
            state.break_between(a, b, moment.now, "the connection was made to fail");
        });
    }

    /// How many messages arrived so far that an earlier life of their sender's place had sent, with the next one
    /// there already.
    pub fn late_messages(&self) -> u64 {
        self.shared.step(|state, _| state.late_messages())
    }

    /// How many messages were sent and not received yet.
    pub fn under_way(&self) -> usize {
        self.shared.step(|state, _| state.under_way())
    }

    #[cfg(test)]
    pub(super) fn pipe_count(&self) -> usize {
        self.shared.step(|state, _| state.pipe_count())
    }
}

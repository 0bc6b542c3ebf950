//! Who is on the way in, and who is in: what the acceptor keeps count of.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::budget::Budget;
use super::handshakes::Handshakes;
use super::places::{Bounds, Places};
use super::refusals::Refusals;
use super::settings::QuicSettings;

/// The places for strangers and for those who proved who they are.
#[derive(Debug)]
pub(super) struct Door {
    /// Each is ended by its token. Held for a few lines, as the next.
    handshakes: Mutex<Handshakes<CancellationToken>>,
    places: Mutex<Places>,
    pub(super) budget: Budget,
    pub(super) refusals: Refusals,
}

impl Door {
    pub(super) fn new(settings: &QuicSettings) -> Self {
        // A handshake that goes on takes a few round trips.
        let patience = settings.connect_timeout / 4;
        let bounds = Bounds {
            nodes: settings.node_connections_max,
            clients: settings.client_connections_max,
            client_share: settings.client_share_max,
        };
        Self {
            handshakes: Mutex::new(Handshakes::new(
                settings.handshakes_max,
                settings.handshakes_unvalidated_max,
                patience,
            )),
            places: Mutex::new(Places::new(bounds)),
            budget: Budget::new(
                settings.client_messages_bytes,
                settings.message_bytes_max,
                settings.client_message_patience,
            ),
            refusals: Refusals::new(),
        }
    }

    pub(super) fn handshakes(&self) -> MutexGuard<'_, Handshakes<CancellationToken>> {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that messages have reserved.
    #[cfg(test)]
    pub(super) fn reserved(&self) -> usize {
        self.budget.reserved()
    }

    pub(super) fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

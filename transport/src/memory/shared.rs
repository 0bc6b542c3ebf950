//! What a network's handles share: the state, and the clock by which whoever waits for it waits.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};

use super::clock::Clock;
use super::settings::NetworkSettings;
use super::state::{Moment, State};

/// What the network's handles share.
pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: NetworkSettings,
    /// Held for one synchronous step each; nothing else is locked inside.
    pub(super) state: Mutex<State>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork")
            .field("clock", &self.clock)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// One step, now.
    pub(super) fn step<T>(&self, change: impl FnOnce(&mut State, &mut Moment<'_>) -> T) -> T {
        let mut random = || self.clock.random();
        let mut moment = Moment {
            now: self.clock.now(),
            random: &mut random,
        };
        change(&mut self.state(), &mut moment)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked inside a step ends anyway; its other tasks may still drop their streams.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    pub(super) async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    /// Waits until told, or until a moment comes.
    pub(super) async fn wait(&self, told: impl Future<Output = ()>, until: Option<Duration>) {
        let Some(until) = until else {
            return told.await;
        };
        let timer = self.clock.sleep(until.saturating_sub(self.clock.now()));
        // Which of the two it was does not matter: the caller looks again.
        match select(std::pin::pin!(told), timer).await {
            Either::Left(_) | Either::Right(_) => {}
        }
    }
}

//! When this node last knew itself level with its leader: the bound of a stale read.

use std::sync::Mutex;
use std::time::Duration;

use crate::env::{self, Instant};

/// What the leader's messages said of its commit index, and when.
#[derive(Debug, Default)]
pub(crate) struct PeerContact {
    state: Mutex<Contact>,
}

#[derive(Debug, Default)]
struct Contact {
    /// The oldest commit index heard that was not yet applied when last looked at.
    pending: Option<(u64, Instant)>,
    /// The newest one heard.
    newest: Option<(u64, Instant)>,
    /// When all that was then committed had been applied, as far as was heard.
    level_at: Option<Instant>,
}

impl PeerContact {
    /// A leader's message arrived, with the commit index that it names.
    pub(crate) fn heard(&self, commit: Option<u64>) {
        let Some(commit) = commit else { return };
        let heard = (commit, env::now());
        let mut state = self.lock();
        state.newest = Some(heard);
        state.pending.get_or_insert(heard);
    }

    /// How long ago this node, which has applied up to `applied`, was level with its leader.
    pub(crate) fn lag(&self, applied: Option<u64>) -> Option<Duration> {
        let mut state = self.lock();
        let reached = |heard: Option<(u64, Instant)>| {
            heard
                .filter(|(commit, _)| applied.is_some_and(|applied| applied >= *commit))
                .map(|(_, at)| at)
        };
        if let Some(at) = reached(state.newest) {
            state.level_at = Some(at);
            state.pending = None;
        } else if let Some(at) = reached(state.pending) {
            state.level_at = Some(at);
            state.pending = state.newest;
        }
        state.level_at.map(Instant::elapsed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contact> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

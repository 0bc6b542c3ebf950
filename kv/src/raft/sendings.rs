//! Snapshots on their way to followers: what of the log they need, and the one that broke off.
//!
//! A follower goes on behind its snapshot with the log, so nothing behind a snapshot on its way is purged. One that broke
//! off is kept for a while: the same stream again is gone on with where it broke, and another would begin anew.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::env::{self, Instant};
use crate::machine::PinnedState;
use crate::model::LogIndex;

/// How long one that broke off is kept, here and by its receiver. It keeps pages of the state file alive.
pub(super) const KEPT: Duration = Duration::from_secs(300);

/// All of a node. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sendings(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    under_way: Vec<Weak<PinnedState>>,
    broken: Option<(Arc<PinnedState>, Instant)>,
}

impl Sendings {
    /// This state is on its way, until its last holder drops it.
    pub(super) fn begin(&self, pinned: &Arc<PinnedState>) {
        let mut all = self.all();
        all.under_way.retain(|other| other.strong_count() > 0);
        all.under_way.push(Arc::downgrade(pinned));
    }

    /// It broke off. It is kept for the next attempt, in the place of one that broke earlier.
    pub(super) fn broke(&self, pinned: Arc<PinnedState>) {
        self.all().broken = Some((pinned, env::now()));
    }

    /// It arrived.
    pub(super) fn arrived(&self, pinned: &Arc<PinnedState>) {
        let mut all = self.all();
        if all
            .broken
            .as_ref()
            .is_some_and(|(broken, _)| Arc::ptr_eq(broken, pinned))
        {
            all.broken = None;
        }
    }

    /// The one that broke off, if it is still worth going on with.
    pub(super) fn broken(&self) -> Option<Arc<PinnedState>> {
        self.broken_at(env::now())
    }

    pub(super) fn broken_at(&self, now: Instant) -> Option<Arc<PinnedState>> {
        let mut all = self.all();
        all.forget_old(now);
        all.broken.as_ref().map(|(pinned, _)| Arc::clone(pinned))
    }

    /// The last entry that may be purged for those on their way, and the one that broke off.
    pub(super) fn held(&self) -> Option<LogIndex> {
        let mut all = self.all();
        all.forget_old(env::now());
        let under_way = all.under_way.iter().filter_map(Weak::upgrade);
        let positions = under_way.filter_map(|pinned| pinned.meta().position);
        positions.map(|position| position.index).min()
    }

    /// The log is purged up to there all the same: what ends before is of no more use to a follower.
    pub(super) fn overrun(&self, upto: LogIndex) {
        let mut all = self.all();
        let is_behind = |pinned: &Arc<PinnedState>| pinned.meta().position.is_none_or(|p| p.index < upto);
        if all.broken.as_ref().is_some_and(|(pinned, _)| is_behind(pinned)) {
            all.broken = None;
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn forget_old(&mut self, now: Instant) {
        if self
            .broken
            .as_ref()
            .is_some_and(|(_, since)| now.since(*since) > KEPT)
        {
            self.broken = None;
        }
    }
}

//! What a log's handles, its writer and its reader share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::queued::Queued;
use super::view::View;
use crate::env::Instant;
use crate::fault::Fault;

/// What handles, writer and reader share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    /// Held while a job is entered into the view and sent, so that the order of both is one. Taken before
    /// `view`, never after it.
    pub(super) next: Mutex<Next>,
    pub(super) view: Mutex<View>,
    pub(super) queued: Arc<Queued>,
    /// Since when the writer has been at a batch.
    pub(super) writing: Mutex<Option<Instant>>,
}

/// What goes along with the next job.
#[derive(Debug, Default)]
pub(super) struct Next {
    pub(super) committed: Option<Bytes>,
}

impl Shared {
    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        // A panic elsewhere does not make the view worse than it was: it is whole between any two calls.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopped(&self) -> Fault {
        let stopped = Fault::Stopped { owner: "log" };
        let mut view = self.view();
        view.fail(&stopped);
        view.fault().cloned().unwrap_or(stopped)
    }
}
